"""Failures within a window, among how many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.health.window import Window


def test_the_first_failure_begins_the_count() -> None:
    window = Window(10.0)
    assert window.failed(100.0, 5_000) == (1, 1)
    assert window.failed(101.0, 5_003) == (2, 5)


def test_what_is_older_than_the_window_is_gone() -> None:
    window = Window(10.0)
    window.failed(100.0, 0)
    window.failed(105.0, 10)
    assert window.failed(110.1, 20) == (2, 12)
    assert window.failed(200.0, 90) == (1, 1)


def test_cleared_it_begins_anew() -> None:
    window = Window(10.0)
    window.failed(100.0, 0)
    window.clear()
    assert window.failed(100.1, 7) == (1, 1)


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 50)), min_size=1, max_size=200))
def test_it_counts_as_a_list_of_all_would(steps: list[tuple[float, int]]) -> None:
    """All failures of the window but perhaps its oldest twentieth, and the answers since the oldest of them."""
    window, now, answered = Window(10.0), 0.0, 0
    times: list[tuple[float, int]] = []
    for passed, answers in steps:
        now, answered = now + passed, answered + answers
        times.append((now, answered))
        failures, requests = window.failed(now, answered)
        within = [at for at in times if now - at[0] < 10.0]
        surely = [at for at in times if now - at[0] < 10.0 - 10.0 / 20]
        assert len(surely) <= failures <= len(within)
        assert failures <= requests <= len(within) + answered - within[0][1]


def test_many_failures_are_few_entries() -> None:
    window = Window(10.0)
    for number in range(100_000):
        window.failed(number * 0.001, number)
    assert len(window._entries) <= 22
