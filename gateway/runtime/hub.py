"""Letting others have their turn in the middle of long work.

Rule: `gevent.sleep(0)` comes back in the same turn of the hub's loop, which looks at sockets
only when such callbacks have taken 5 ms together (gevent, `loop._run_callbacks`). A timer, be
it ever so short, comes back after the sockets were looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from heapq import merge
from itertools import islice
from time import monotonic
from typing import Any, TypeVar

import gevent

_SOON = 1e-9
# Seconds of work after which others have their turn.
SLICE = 0.002

# Cheap pieces of work between two looks at the clock.
PART = 64
# Seconds that a thread runs on while the hub waits for it.
_SHORT = 0.001
# Things that are sorted at once.
_SORTED = 1000

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def breathe() -> None:
    """Have the hub look at sockets and timers, and everybody run who waits for one."""
    gevent.sleep(_SOON)


_threads = 0
_usual = 0.0


@contextmanager
def beside() -> Iterator[None]:
    """While a thread computes: it gives way to the hub after a millisecond instead of five, which is what Python
    lets one thread have while another waits. May be nested, and used by several greenlets at once."""
    global _threads, _usual
    if _threads == 0:
        _usual = sys.getswitchinterval()
        sys.setswitchinterval(min(_usual, _SHORT))
    _threads += 1
    try:
        yield
    finally:
        _threads -= 1
        if _threads == 0:
            sys.setswitchinterval(_usual)


def off_hub(call: Callable[[], Result]) -> Result:
    """What a call returns or raises; it is made on a thread, so that requests go on."""

    def guarded() -> tuple[Result | None, Exception | None]:
        # gevent prints a traceback for whatever a thread raises.
        try:
            return call(), None
        except Exception as error:
            return None, error

    result: Result
    with beside():
        result, error = gevent.get_hub().threadpool.apply(guarded)
    if error is not None:
        raise error
    return result


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


def in_order(things: Iterable[Any], turn: Callable[[], object]) -> Iterator[Any]:
    """The same things sorted, with calls of `turn` between two parts of the work."""
    unsorted = list(things)
    runs = []
    for at in range(0, len(unsorted), _SORTED):
        turn()
        runs.append(sorted(unsorted[at : at + _SORTED]))
    return iter(runs[0] if runs else ()) if len(runs) < 2 else parts(merge(*runs), turn)


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
            if sys.getrefcount(things) > 2:
                self._kept.append(things)
                continue
            rest = list(things)
            del things
            while rest:
                turn()
                del rest[-PART:]
