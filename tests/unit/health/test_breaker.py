"""The circuit breaker: closed, open, half open."""

from __future__ import annotations

import pytest

from gateway.errors import CircuitOpen
from gateway.health.breaker import CLOSED, HALF_OPEN, OPEN, CircuitBreaker
from gateway.model import Breaker

SETTINGS = Breaker(error_rate=0.5, min_requests=10, window=10.0, open_for=5.0)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker("u", SETTINGS)
    for _ in range(10):
        breaker.failed(now, "why")
    assert breaker.state == OPEN
    return breaker


def admitted(breaker: CircuitBreaker, now: float) -> bool:
    try:
        breaker.admit(now)
    except CircuitOpen:
        return False
    return True


def test_too_few_requests_say_nothing() -> None:
    breaker = CircuitBreaker("u", SETTINGS)
    for number in range(9):
        breaker.failed(0.1 * number, "why")
    assert breaker.state == CLOSED
    assert admitted(breaker, 1.0)


@pytest.mark.parametrize(("answers", "state"), [(9, OPEN), (10, OPEN), (12, CLOSED)])
def test_at_its_share_it_opens(answers: int, state: str) -> None:
    breaker = CircuitBreaker("u", SETTINGS)
    breaker.failed(0.0, "why")
    for _ in range(answers):
        breaker.answered()
    for _ in range(9):
        breaker.failed(1.0, "why")
    assert breaker.state == state


def test_failures_that_are_long_ago_do_not_open_it() -> None:
    breaker = CircuitBreaker("u", SETTINGS)
    for number in range(100):
        breaker.failed(number * 2.0, "why")
    assert breaker.state == CLOSED


def test_open_it_refuses_and_says_for_how_long() -> None:
    breaker = opened()
    with pytest.raises(CircuitOpen) as seen:
        breaker.admit(1.5)
    assert seen.value.retry_after == 4
    assert (breaker.refused, breaker.opened) == (1, 1)
    with pytest.raises(CircuitOpen) as seen:
        breaker.admit(4.9999)
    assert seen.value.retry_after == 1


def test_then_one_is_let_through_and_decides_well() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    assert breaker.state == HALF_OPEN
    assert not admitted(breaker, 5.1)
    breaker.answered()
    assert breaker.state == CLOSED
    assert admitted(breaker, 5.2)
    # What was before is forgotten.
    breaker.failed(5.3, "why")
    assert breaker.state == CLOSED


def test_or_badly() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    breaker.failed(6.0, "why")
    assert (breaker.state, breaker.opened) == (OPEN, 2)
    assert not admitted(breaker, 10.9)
    assert admitted(breaker, 11.0)


def test_one_that_is_never_decided_is_followed_by_another() -> None:
    breaker = opened()
    assert admitted(breaker, 5.0)
    assert not admitted(breaker, 9.9)
    assert admitted(breaker, 10.0)


def test_what_was_under_way_when_it_opened_does_not_open_it_again() -> None:
    breaker = opened()
    breaker.failed(1.0, "late")
    assert breaker.opened == 1
    assert admitted(breaker, 5.0)
