"""One endpoint in a snapshot, and what is known of it.

Rule: what is known hangs on the endpoint's key (scheme, host, port, base path) within its
upstream, never on weight, and outlives snapshots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.health.gate import Gate
from gateway.health.window import Window
from gateway.model import Endpoint

# What a newcomer gets at least while its share grows: nothing at all would teach nothing.
_LEAST_WARM = 0.1


class EndpointState:
    """What is learnt about one endpoint of one upstream.

    Counted where requests pass: `in_flight`, requests whose answer's body has not ended, and
    `answered`, heads that came and are not counted as failures. `credit`: its place among
    weighted ones (balancers.round_robin); None for a newcomer. `latency`: seconds, what
    balancers.ewma makes of it. `warm_from`, `warm_until`: slow start, monotonic seconds.

    Of passive health (health.outlier), all times monotonic seconds: `out_until`, when it may
    be tried again (0: it is not out); `on_trial`, one request is trying it; `streak`, failures
    in a row, the last of them when `streak_at` were answered. Of active health: `checked`, what
    the checks say (None: nothing). `why` and `since` (seconds since 1970) tell of the last
    change of its state.
    """

    __slots__ = (
        "answered",
        "checked",
        "credit",
        "ejections",
        "gate",
        "in_flight",
        "latency",
        "latency_at",
        "mark",
        "on_trial",
        "out_until",
        "returned_at",
        "since",
        "spared",
        "streak",
        "streak_at",
        "warm_from",
        "warm_until",
        "why",
        "window",
    )

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate = gate or Gate()
        self.in_flight = 0
        self.answered = 0
        self.credit: float | None = None
        self.latency = 0.0
        self.latency_at = 0.0
        self.warm_from = 0.0
        self.warm_until = 0.0
        self.out_until = 0.0
        self.on_trial = False
        self.streak = 0
        self.streak_at = 0
        self.window: Window | None = None
        self.ejections = 0
        self.returned_at = 0.0
        # It deserves to be out, but too many are: so many had been answered then.
        self.spared: int | None = None
        # So many had been answered when all began to be tried (panic).
        self.mark = 0
        self.checked: bool | None = None
        self.why = ""
        self.since = 0.0

    @property
    def state(self) -> str:
        """up, ejected, trial or unhealthy."""
        if self.checked is False:
            return "unhealthy"
        if self.on_trial:
            return "trial"
        return "ejected" if self.out_until else "up"

    def warm(self, now: float) -> float:
        """The share of its weight that it gets at `now`, up to 1."""
        if now >= self.warm_until:
            return 1.0
        return max((now - self.warm_from) / (self.warm_until - self.warm_from), _LEAST_WARM)

    def end(self) -> None:
        """A try has ended, and perhaps its request goes on."""
        self.in_flight -= 1


class Stay:
    """What an answer keeps of its upstream while its body goes on: a count at the endpoint, and
    a place in the gate until the client is what is waited for."""

    __slots__ = ("_placed", "_state")

    def __init__(self, state: EndpointState) -> None:
        state.gate.stream()
        self._state = state
        self._placed = True

    def outlast(self) -> None:
        """The client is slow to take it: that keeps nobody else from being answered."""
        if self._placed:
            self._placed = False
            self._state.gate.end_stream()

    def end(self) -> None:
        """The body has ended, and with it the request."""
        self._state.end()
        self.outlast()


class Candidate:
    """An endpoint in one snapshot, with what is known of it and the way to reach it.

    `pool` is the transport's; whatever it is, only the forwarder calls it. Where `make` is
    given, it is made when it is first looked at: of thousands of endpoints most never get a
    request in one worker. The candidate goes on in later snapshots for as long as endpoint and
    upstream are the same objects.
    """

    __slots__ = ("_make", "endpoint", "pool", "state")
    pool: Any

    def __init__(
        self,
        endpoint: Endpoint,
        state: EndpointState,
        pool: Any = None,
        make: Callable[[Endpoint], Any] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.state = state
        self._make = make
        if make is None:
            self.pool = pool

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there: the pool, once.
        if name != "pool" or self._make is None:
            raise AttributeError(name)
        self.pool = self._make(self.endpoint)
        return self.pool
