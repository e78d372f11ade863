"""Letting others have their turn in the middle of long work.

Rule: `gevent.sleep(0)` comes back in the same turn of the hub's loop, which looks at sockets
only when such callbacks have taken 5 ms together (gevent, `loop._run_callbacks`). A timer, be
it ever so short, comes back after the sockets were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

import gevent

_SOON = 1e-9
# Seconds of work after which others have their turn.
SLICE = 0.002

Thing = TypeVar("Thing")


def breathe() -> None:
    """Have the hub look at sockets and timers, and everybody run who waits for one."""
    gevent.sleep(_SOON)


class Slices:
    """Long work in slices: called between two pieces of it, it has others run once a slice is over."""

    __slots__ = ("_began", "_clock", "_rest")

    def __init__(self, rest: Callable[[], object] = breathe, clock: Callable[[], float] = monotonic) -> None:
        self._rest = rest
        self._clock = clock
        self._began = clock()

    def __call__(self) -> None:
        if self._clock() - self._began >= SLICE:
            self._rest()
            self._began = self._clock()

    def over(self, things: Iterable[Thing]) -> Iterator[Thing]:
        """The same things, with a look at the clock before each."""
        for thing in things:
            self()
            yield thing
