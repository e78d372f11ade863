"""What `--long` makes longer, and `--again` shorter. conftest.py sets it before any test is imported."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

# Property tests try this many times more examples.
_FACTOR = 20
# Where the tests run again, on another interpreter, they try one of so many examples, but these at least.
_SHARE = 10
_LEAST = 10

_long = False
_again = False


def begin() -> None:
    """This is a run with --long."""
    global _long
    _long = True


def begin_again() -> None:
    """This is a run with --again."""
    global _again
    _again = True


def times(number: int) -> int:
    """So many examples of a property: more in a long run, fewer where the tests run again."""
    if _long:
        return number * _FACTOR
    return min(number, max(_LEAST, number // _SHARE)) if _again else number


def either(short: T, long: T) -> T:
    """The value for this run."""
    return long if _long else short
