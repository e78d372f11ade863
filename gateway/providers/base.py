"""What a provider is: something that says, again and again, which endpoints an upstream has.

Rule: an error is not an update. A provider that cannot get an answer says so with
`endpoints=None`, and whoever listens keeps the last good group for as long as it takes; an
empty group is an answer like any other. A provider knows nothing of routes, snapshots or
the store, and never raises because of what a registry does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gevent

from gateway.model import Endpoint, Upstream
from gateway.registries import one_line as one_line
from gateway.registries.pacing import Clock

log = logging.getLogger("gateway.providers")


@dataclass(frozen=True, slots=True)
class Update:
    """What is now known of one upstream.

    `endpoints` is the whole group, or None when the look-up failed: nothing new is known
    then and `error` says why. Both together mean that the group is good as far as it goes
    (one of several names could not be looked up). "There is none" is the empty tuple.
    `refused`: why endpoints of an empty group may not be dialled.
    """

    upstream: str
    endpoints: tuple[Endpoint, ...] | None
    error: str = ""
    refused: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Nothing was learnt: the last good group stays."""
        return self.endpoints is None


@dataclass(slots=True)
class Status:
    """How a provider fares; the times are its clock's (monotonic) seconds, None is never.

    `last_error` is "" while the last attempt was a success.
    """

    last_success: float | None = None
    last_error: str = ""


class Stop(Protocol):
    """The part of an event that a provider needs; `gevent.event.Event` has it."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> object: ...


class Stopped(gevent.GreenletExit):  # type: ignore[misc]
    """`stop` was set while something was waited for."""


@contextmanager
def until_set(stop: Stop) -> Iterator[None]:
    """Whatever is waited for inside is given up at once when `stop` is set: a question that a
    registry takes its time to answer must not hold up a worker that leaves."""
    link = getattr(stop, "rawlink", None)
    if link is None:
        yield
        return
    here = gevent.getcurrent()

    def end(_: Any) -> None:
        # Called by the hub, which nothing but a waiting greenlet lets run (gevent.Timeout does the same).
        here.throw(Stopped())

    link(end)
    try:
        yield
    except Stopped:
        pass
    finally:
        stop.unlink(end)  # type: ignore[attr-defined]


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


@runtime_checkable
class Remembering(Protocol):
    """A provider that doubts empty answers as long as endpoints are known."""

    def remember(self) -> None:
        """Endpoints are known from before this provider's time."""
        ...


@dataclass(slots=True)
class Journal:
    """Keeps a provider's `Status` and tells the log what changed: each trouble once, when it
    begins or becomes another, and once when it is over."""

    upstream: Upstream
    clock: Clock
    status: Status = field(default_factory=Status)
    _refused: frozenset[str] = frozenset()
    _doubtful: frozenset[str] = frozenset()

    def failure(self, error: str) -> None:
        if error != self.status.last_error:
            log.warning("upstream %s: discovery failed, what is known stays: %s", self.upstream.name, error)
        self.status.last_error = error

    def fault(self, error: Exception) -> str:
        """Returns an internal error as the text of a failed look-up. Its traceback is logged the first time."""
        text = one_line(f"{type(error).__name__}: {error}")
        if text != self.status.last_error:
            log.error("upstream %s: discovery failed for a reason of our own", self.upstream.name, exc_info=error)
        return text

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

    def doubtful(self, reasons: Iterable[str]) -> None:
        """Endpoints that are used but probably wrong: one line each for as long as they stay."""
        now = frozenset(reasons)
        for reason in sorted(now - self._doubtful):
            log.warning("upstream %s: %s", self.upstream.name, reason)
        self._doubtful = now
