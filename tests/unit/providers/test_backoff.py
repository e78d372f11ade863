"""The pauses after attempts that failed in a row."""

import pytest

from gateway.registries.pacing import FIRST_PAUSE, JITTER, LONGEST_PAUSE, Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.failed() for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_success_begins_anew() -> None:
    backoff = Backoff(lambda: 0.5)
    backoff.failed()
    backoff.failed()
    backoff.succeeded()
    assert backoff.failed() == FIRST_PAUSE


def test_a_long_outage_does_not_overflow() -> None:
    backoff = Backoff(lambda: 0.5, failures=100_000)
    assert backoff.failed() == LONGEST_PAUSE


@pytest.mark.parametrize(("random", "share"), [(0.0, 1 - JITTER), (1.0, 1 + JITTER)])
def test_workers_drift_apart(random: float, share: float) -> None:
    assert Backoff(lambda: random).failed() == pytest.approx(share)
