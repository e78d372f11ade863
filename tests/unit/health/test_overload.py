"""When new requests are refused: the hub is late, again and again."""

from __future__ import annotations

from gateway.health.overload import INTERVAL, Overload


def looks(overload: Overload, *lags: float) -> list[bool]:
    now = 100.0
    overload.look(now)
    seen = []
    for lag in lags:
        now += INTERVAL + lag
        overload.look(now)
        seen.append(overload.shedding)
    return seen


def test_in_time_nothing_happens() -> None:
    assert looks(Overload(0.5), 0.0, 0.1, 0.49, 0.49, 0.49) == [False] * 5


def test_late_twice_in_a_row_is_an_overload() -> None:
    overload = Overload(0.5)
    assert looks(overload, 0.6, 0.6, 0.6, 0.2, 0.6) == [False, True, True, False, False]
    assert overload.times == 1


def test_once_is_a_stall() -> None:
    assert looks(Overload(0.5), 30.0, 0.0, 30.0, 0.0) == [False] * 4


def test_without_a_limit_never() -> None:
    overload = Overload(None)
    overload.start()
    assert looks(overload, 5.0, 5.0, 5.0) == [False] * 3
