"""The circuit breaker: closed, open, half open."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.errors import CircuitOpen
from gateway.health.breaker import CLOSED, HALF_OPEN, OPEN, CircuitBreaker
from gateway.model import Breaker

SETTINGS = Breaker(error_rate=0.5, min_requests=10, window=10.0, open_for=5.0)


def failed(breaker: CircuitBreaker, now: float, took: float = 0.0) -> None:
    breaker.failed(now - took, now, "why")


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker("u", SETTINGS, Counter())
    for _ in range(10):
        failed(breaker, now)
    assert breaker.state == OPEN
    return breaker


def admitted(breaker: CircuitBreaker, now: float) -> bool:
    try:
        breaker.admit(now)
    except CircuitOpen:
        return False
    return True


def test_too_few_requests_say_nothing() -> None:
    breaker = CircuitBreaker("u", SETTINGS, Counter())
    for number in range(9):
        failed(breaker, 0.1 * number)
    assert breaker.state == CLOSED
    assert admitted(breaker, 1.0)


@pytest.mark.parametrize(("answers", "state"), [(9, OPEN), (10, OPEN), (12, CLOSED)])
def test_at_its_share_it_opens(answers: int, state: str) -> None:
    breaker = CircuitBreaker("u", SETTINGS, Counter())
    failed(breaker, 0.0)
    for _ in range(answers):
        breaker.answered(0.5, 0.6)
    for _ in range(9):
        failed(breaker, 1.0)
    assert breaker.state == state


def test_failures_that_are_long_ago_do_not_open_it() -> None:
    breaker = CircuitBreaker("u", SETTINGS, Counter())
    for number in range(100):
        failed(breaker, number * 2.0)
    assert breaker.state == CLOSED


def test_open_it_refuses_and_says_for_how_long() -> None:
    breaker = opened()
    with pytest.raises(CircuitOpen) as seen:
        breaker.admit(1.5)
    assert seen.value.retry_after == 4
    assert breaker._decisions == {"circuit_opened": 1, "circuit_refused": 1}
    with pytest.raises(CircuitOpen) as seen:
        breaker.admit(4.9999)
    assert seen.value.retry_after == 1


def test_then_one_is_let_through_and_decides_well() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    assert breaker.state == HALF_OPEN
    assert not admitted(breaker, 5.1)
    breaker.answered(5.0, 5.2)
    assert breaker.state == CLOSED
    assert admitted(breaker, 5.2)
    # What was before is forgotten.
    failed(breaker, 5.3)
    assert breaker.state == CLOSED


def test_or_badly() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    failed(breaker, 6.0)
    assert (breaker.state, breaker._decisions["circuit_opened"]) == (OPEN, 2)
    assert not admitted(breaker, 10.9)
    assert admitted(breaker, 11.0)


def test_one_that_is_never_decided_is_followed_by_another() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    assert not admitted(breaker, 9.9)
    assert admitted(breaker, 10.0)


def test_what_was_under_way_when_it_opened_does_not_open_it_again() -> None:
    breaker = opened()
    failed(breaker, 1.0, took=2.0)
    assert breaker._decisions["circuit_opened"] == 1
    assert admitted(breaker, 5.0)
    failed(breaker, 5.1, took=6.0)
    assert breaker.state == HALF_OPEN
    breaker.answered(5.0, 5.2)
    for _ in range(100):
        failed(breaker, 5.3, took=6.0)
    assert breaker.state == CLOSED


def test_nor_does_it_close_it() -> None:
    """Where every second request fails, the others that are under way are still answered."""
    breaker = opened()
    breaker.answered(-1.0, 0.1)
    assert not admitted(breaker, 0.2)
    assert admitted(breaker, 5.0)
    breaker.answered(-1.0, 5.1)
    assert breaker.state == HALF_OPEN


def test_one_that_takes_longer_than_until_the_next_decides_as_well() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    assert admitted(breaker, 10.0)
    breaker.answered(5.0, 11.0)
    assert breaker.state == CLOSED
