"""Durations, sizes and shares as they are written.

Rule: a number needs its unit; only `0` can do without.
"""

from __future__ import annotations

import re

DURATION = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?)(?P<unit>ms|s|m|h)\Z")
SIZE = re.compile(r"(?P<number>[0-9]{1,12})(?P<unit>B|KiB|MiB|GiB)\Z")
SHARE = re.compile(r"(?P<number>[0-9]{1,3}(\.[0-9]{1,9})?)%\Z")

SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
BYTES = {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024, "B": 1}

# A year; more is a slip of the pen, and event loops do not take every float.
LONGEST = 8760 * 3600.0
# More than any body or header can have, and still an exact float.
LARGEST = 1024**5


def duration(text: str) -> float:
    """Seconds of `500ms`, `5s`, `2m`, `1h`, `0`. ValueError for anything else."""
    if text == "0":
        return 0.0
    found = DURATION.match(text)
    if found is None:
        raise ValueError(text)
    # A division rounds once where a product with 0.001 would round twice.
    number = float(found["number"])
    seconds = number / 1000 if found["unit"] == "ms" else number * SECONDS[found["unit"]]
    if seconds > LONGEST:
        raise ValueError(text)
    return seconds


def size(text: str) -> int:
    """Bytes of `256B`, `64KiB`, `10MiB`, `1GiB`, `0`. ValueError for anything else."""
    if text == "0":
        return 0
    found = SIZE.match(text)
    if found is None:
        raise ValueError(text)
    number = int(found["number"]) * BYTES[found["unit"]]
    if number > LARGEST:
        raise ValueError(text)
    return number


def share(text: str) -> float:
    """0.2 of `20%`. ValueError for anything else and above 100 %."""
    found = SHARE.match(text)
    if found is None or float(found["number"]) > 100:
        raise ValueError(text)
    return float(found["number"]) / 100
