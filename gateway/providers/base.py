"""What a provider is: something that says, again and again, which endpoints an upstream has.

Rule: an error is not an update. A provider that cannot get an answer says so with
`endpoints=None`, and whoever listens keeps the last good group for as long as it takes; an
empty group is an answer like any other. A provider knows nothing of routes, snapshots or
the store, and never raises because of what a registry does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.model import Endpoint, Upstream

log = logging.getLogger("gateway.providers")

# Workers that were started together must not ask together for ever: each wait is longer or
# shorter by up to this share (Prometheus and Envoy spread their polls likewise).
JITTER = 0.1

Clock = Callable[[], float]
Random = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Update:
    """What is now known of one upstream.

    `endpoints` is the whole group, or None when the look-up failed: nothing new is known
    then and `error` says why. Both together mean that the group is good as far as it goes
    (one of several names could not be looked up). "There is none" is the empty tuple.
    """

    upstream: str
    endpoints: tuple[Endpoint, ...] | None
    error: str = ""

    @property
    def failed(self) -> bool:
        """Nothing was learnt: the last good group stays."""
        return self.endpoints is None


@dataclass(slots=True)
class Status:
    """How a provider fares; the times are its clock's (monotonic) seconds, None is never.

    `last_error` is "" while the last attempt was a success.
    """

    last_attempt: float | None = None
    last_success: float | None = None
    last_error: str = ""


class Stop(Protocol):
    """The part of an event that a provider needs; `gevent.event.Event` has it."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> object: ...


Emit = Callable[[Update], None]


class Provider(Protocol):
    """The source of one upstream's endpoints."""

    @property
    def upstream(self) -> str: ...

    @property
    def status(self) -> Status: ...

    def run(self, emit: Emit, stop: Stop) -> None:
        """Say what is known, and again whenever that may have changed, until `stop` is set."""
        ...


# After an error the next attempt is soon, then later and later (interface: 1 s to 30 s).
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


def spread(seconds: float, random: Random) -> float:
    """A wait of about `seconds`, so that many workers drift apart."""
    return seconds * (1 - JITTER + 2 * JITTER * random())


@dataclass(slots=True)
class Backoff:
    """How long to wait after the attempts that failed in a row."""

    random: Random
    failures: int = 0

    def failed(self) -> float:
        """One more failure: the pause before the next attempt, in seconds."""
        # 2 ** 5 is past the longest pause already; a float must not overflow in a long outage.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures, 5))
        self.failures += 1
        return spread(pause, self.random)

    def succeeded(self) -> None:
        self.failures = 0


@dataclass(slots=True)
class Journal:
    """Keeps a provider's `Status` and tells the log what changed: each trouble once, when it
    begins or becomes another, and once when it is over."""

    upstream: Upstream
    clock: Clock
    status: Status = field(default_factory=Status)
    _refused: frozenset[str] = frozenset()

    def attempt(self) -> None:
        self.status.last_attempt = self.clock()

    def failure(self, error: str) -> None:
        if error != self.status.last_error:
            log.warning("upstream %s: discovery failed, what is known stays: %s", self.upstream.name, error)
        self.status.last_error = error

    def success(self) -> None:
        if self.status.last_error:
            log.info("upstream %s: discovery works again", self.upstream.name)
        self.status.last_success = self.clock()
        self.status.last_error = ""

    def refused(self, reasons: Iterable[str]) -> None:
        """Instances that cannot be endpoints: one line each for as long as they stay."""
        now = frozenset(reasons)
        for reason in sorted(now - self._refused):
            log.warning("upstream %s: not an endpoint: %s", self.upstream.name, reason)
        self._refused = now


def one_line(text: object, limit: int = 200) -> str:
    """Foreign text made fit for a log line: printable, on one line, short."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"
