"""Garbage collection while very many objects are made that live long.

Rule: a full collection walks through every object that could be part of a cycle, in one go: 0.2 s with
50,000 endpoints. None starts while such objects are made (`spared`), and once there are many of them
(`settle`) they are frozen: later collections leave them out. A frozen object is still freed when its last
reference goes. Only a cycle among frozen objects would stay. Neither endpoints nor connections are part of one, but a
request that a Flask view has at that moment is: so after `MOST` freezes everything is collected once.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# After so many new endpoints the heap is frozen: a full collection of as many takes some milliseconds.
MANY = 2000
# The pool of an endpoint, with a connection, is as many objects as so many endpoints.
POOL = 10
# Freezes after which a full collection finds what was frozen and is garbage by now. An update of all endpoints of a
# very large upstream takes two.
MOST = 250
_NEVER = 1_000_000
_ARENA_MAX = -8
# Collections of the middle generation before one of all; Python has 10.
_SELDOM = 100

_sparing = 0
_usual = 0
_made = 0
_freezes = 0


def seldom() -> None:
    """Have full collections start less often by themselves. What is under way for a thousand watched services alone
    takes one tens of milliseconds; what requests leave is found before by `gc.collect(1)`, once a second."""
    young, middle, old = gc.get_threshold()
    if old < _SELDOM:
        gc.set_threshold(young, middle, _SELDOM)


def one_arena() -> None:
    """Have all threads of this process take memory from one place (glibc: mallopt(3), M_ARENA_MAX). Else malloc makes a
    place for each thread that loads a configuration or writes the log, and keeps the largest size that each ever had:
    8 MiB after a thousand reloads. Call it before threads start. Other C libraries have no such places."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


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
    global _made, _freezes
    _made += made
    if _made < MANY:
        return
    _made = 0
    _freezes += 1
    if _freezes >= MOST:
        _freezes = 0
        gc.unfreeze()
        gc.collect()
    gc.freeze()
