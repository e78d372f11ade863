"""What `--long` makes longer. conftest.py sets it before any test is imported."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

# Property tests try this many times more examples.
_FACTOR = 20

_long = False


def begin() -> None:
    """This is a run with --long."""
    global _long
    _long = True


def times(number: int) -> int:
    """So many examples of a property, more in a long run."""
    return number * _FACTOR if _long else number


def either(short: T, long: T) -> T:
    """The value for this run."""
    return long if _long else short
