"""Garbage collection while very many objects are made that live long.

Rule: a full collection walks through every object that could be part of a cycle, in one go: 0.2 s with
50,000 endpoints. None starts while such objects are made (`spared`), and once there are many of them
(`settle`) they are frozen: later collections leave them out. A frozen object is still freed when its last
reference goes. Only a cycle among frozen objects would stay, and neither endpoints nor connections are part of one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# After so many new endpoints the heap is frozen: a full collection of as many takes some milliseconds.
MANY = 2000
# The pool of an endpoint, with a connection, is as many objects as so many endpoints.
POOL = 10
_NEVER = 1_000_000

_sparing = 0
_usual = 0
_made = 0


@contextmanager
def spared() -> Iterator[None]:
    """No full collection starts by itself inside. Young objects are collected as ever. May be nested, and
    used by several greenlets at once."""
    global _sparing, _usual
    young, middle, old = gc.get_threshold()
    if _sparing == 0:
        _usual = old
        gc.set_threshold(young, middle, _NEVER)
    _sparing += 1
    try:
        yield
    finally:
        _sparing -= 1
        if _sparing == 0:
            gc.set_threshold(young, middle, _usual)


def settle(made: int) -> None:
    """So many endpoints were made that stay: freeze the heap if it is time."""
    global _made
    _made += made
    if _made >= MANY:
        _made = 0
        gc.freeze()
