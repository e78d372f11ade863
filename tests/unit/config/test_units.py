"""Durations, sizes and shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("0ms", 0.0),
        ("500ms", 0.5),
        ("1ms", 0.001),
        ("5s", 5.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1.5s", 1.5),
        ("0.5h", 1800.0),
        ("090s", 90.0),
        ("8760h", 8760 * 3600.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 s",
        " 5s",
        "5s ",
        "5S",
        "5sec",
        "-5s",
        "+5s",
        "1m30s",
        "s",
        ".5s",
        "5.s",
        "1e3s",
        "5d",
        "8761h",
        "٥s",
        "5s\n",
    ],
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        units.duration(text)


@given(st.integers(0, 8760 * 3600 * 1000 - 1).filter(lambda ms: ms < 10**9))
def test_durations_round_trip(milliseconds: int) -> None:
    assert units.duration(f"{milliseconds}ms") == milliseconds / 1000


@given(st.integers(0, 8760), st.sampled_from(sorted(units.SECONDS)))
def test_units_agree(number: int, unit: str) -> None:
    assert units.duration(f"{number}{unit}") == pytest.approx(number * units.SECONDS[unit], rel=1e-15)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("0B", 0), ("256B", 256), ("64KiB", 65536), ("10MiB", 10 * 1024**2), ("3GiB", 3 * 1024**3)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.size(text) == size


@pytest.mark.parametrize(
    "text", ["", "5", "64K", "64KB", "64kib", "1.5MiB", "-1B", "1TiB", " 1B", "1 B", "9999999GiB", "1B\n"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        units.size(text)


@given(st.integers(0, 10**6), st.sampled_from(sorted(units.BYTES)))
def test_sizes_round_trip(number: int, unit: str) -> None:
    assert units.size(f"{number}{unit}") == number * units.BYTES[unit]


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), ("0%", 0.0), ("100%", 1.0), ("12.5%", 0.125)])
def test_shares(text: str, share: float) -> None:
    assert units.share(text) == share


@pytest.mark.parametrize("text", ["", "20", "0.2", "101%", "-1%", "20 %", "%", "100.1%", "20%%"])
def test_no_shares(text: str) -> None:
    with pytest.raises(ValueError):
        units.share(text)
