"""Letting others have their turn in the middle of long work.

Rule: `gevent.sleep(0)` comes back in the same turn of the hub's loop, which looks at sockets
only when such callbacks have taken 5 ms together (gevent, `loop._run_callbacks`). A timer, be
it ever so short, comes back after the sockets were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from sys import getrefcount
from time import monotonic
from typing import Any, TypeVar

import gevent

_SOON = 1e-9
# Seconds of work after which others have their turn.
SLICE = 0.002

# Cheap pieces of work between two looks at the clock.
PART = 64

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


def parts(things: Iterable[Thing], turn: Callable[[], object], size: int = PART) -> Iterator[Thing]:
    """The same things, with a call of `turn` before each part of them."""
    rest = iter(things)
    while part := tuple(islice(rest, size)):
        turn()
        yield from part


class Discards:
    """Large tuples that are not needed any more. Freeing the last reference to tens of thousands of objects takes
    tens of milliseconds in one go, wherever that happens: here they are freed in parts."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[tuple[Any, ...]] = []

    def keep(self, things: tuple[Any, ...]) -> None:
        """Free them once nothing else refers to the tuple."""
        if len(things) > PART and all(things is not other for other in self._kept):
            self._kept.append(things)

    def sweep(self, turn: Callable[[], object]) -> None:
        """Free what nothing else refers to. `turn` is called between two parts."""
        for _ in range(len(self._kept)):
            if not self._kept:
                # Another greenlet sweeps, too.
                return
            things = self._kept.pop(0)
            # The variable and the argument.
            if getrefcount(things) > 2:
                self._kept.append(things)
                continue
            rest = list(things)
            del things
            while rest:
                turn()
                del rest[-PART:]
