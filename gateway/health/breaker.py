"""A circuit breaker for a whole upstream: closed, open, half open.

Rule: it counts what endpoints did (a connection or an exchange that failed, a 5xx answer),
never what the gateway or a client ended. Open, it refuses at once and says for how long;
after that time one request is let through, and what becomes of that decides. One that is
never decided (its client left) is followed by another when the same time has passed again.
Tries that began before it opened, or closed again, end some time and decide nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from math import ceil

from gateway.errors import CircuitOpen
from gateway.health.window import Window
from gateway.model import Breaker

log = logging.getLogger("gateway.health")

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half open"


class CircuitBreaker:
    """One for each upstream and worker that has `breaker` set. Times are monotonic seconds."""

    __slots__ = ("_answered", "_decisions", "_settings", "_since", "_until", "_upstream", "_window", "state")

    def __init__(self, upstream: str, settings: Breaker, decisions: Counter[str]) -> None:
        self._decisions = decisions
        # None so far is known as well.
        decisions.update(circuit_opened=0, circuit_refused=0)
        self._upstream = upstream
        self._settings = settings
        self._window = Window(settings.window)
        self._answered = 0
        self._until = 0.0
        # When it opened or closed last.
        self._since = 0.0
        self.state = CLOSED

    def admit(self, now: float) -> None:
        """Let a request through, or raise CircuitOpen."""
        if self.state == CLOSED:
            return
        if now < self._until:
            self._decisions["circuit_refused"] += 1
            raise CircuitOpen(
                f"upstream {self._upstream}: circuit {self.state}", retry_after=max(ceil(self._until - now), 1)
            )
        self.state = HALF_OPEN
        self._until = now + self._settings.open_for

    def answered(self, began: float, now: float) -> None:
        """A try that began at `began` was answered."""
        self._answered += 1
        if self.state != CLOSED and began >= self._since:
            log.warning("upstream %s: circuit closed, it answers again", self._upstream)
            self.state = CLOSED
            self._since = now
            self._window.clear()

    def failed(self, began: float, now: float, why: str) -> None:
        """A try that began at `began` failed."""
        if began < self._since:
            return
        if self.state == HALF_OPEN:
            self._open(now, why)
            return
        failures, requests = self._window.failed(now, self._answered)
        settings = self._settings
        if self.state == CLOSED and requests >= settings.min_requests and failures >= settings.error_rate * requests:
            self._open(now, f"{failures} of {requests} requests failed, the last: {why}")

    def _open(self, now: float, why: str) -> None:
        self._decisions["circuit_opened"] += 1
        self.state = OPEN
        self._since = now
        self._until = now + self._settings.open_for
        self._window.clear()
        log.warning("upstream %s: circuit open for %g s: %s", self._upstream, self._settings.open_for, why)
