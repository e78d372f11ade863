"""The slowest that a peer may be."""

from __future__ import annotations

from gateway.server.pace import Pace


def test_only_whole_windows_are_judged() -> None:
    pace = Pace(256)
    assert all(pace.keeps(1.0, 0) for _ in range(29))
    assert not pace.keeps(1.0, 0)


def test_the_rate_itself_is_enough() -> None:
    pace = Pace(256)
    assert all(pace.keeps(10.0, 2560) for _ in range(30))


def test_less_is_not() -> None:
    pace = Pace(256)
    assert pace.keeps(10.0, 2560)
    assert pace.keeps(10.0, 2560)
    assert not pace.keeps(10.0, 2559)


def test_each_window_begins_anew() -> None:
    pace = Pace(256)
    assert pace.keeps(30.0, 1_000_000)
    assert not pace.keeps(30.0, 100)


def test_time_that_was_not_spent_waiting_costs_nothing() -> None:
    pace = Pace(256)
    assert all(pace.keeps(0.0, 1) for _ in range(1000))
