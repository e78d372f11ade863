"""What may be tried again, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BadResponse,
    ConnectRefused,
    ConnectTimeout,
    DnsError,
    GatewayError,
    PoolFull,
    ResponseTimeout,
    TlsError,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
)
from gateway.forwarding.retry import Retries, replayable
from gateway.health.retry_budget import FLOOR_PER_SECOND, WINDOW, Budget
from gateway.http.messages import BufferedBody, Request
from gateway.model import RetryPolicy


def request(method: bytes = b"GET", length: int | None = None, chunked: bool = False) -> Request:
    body = BufferedBody(b"x" * (length or 0)) if length or chunked else None
    return Request(method, b"/", [], started=0.0, content_length=length, chunked=chunked, body=body)


@pytest.mark.parametrize(
    ("asked", "may"),
    [
        (request(), True),
        (request(b"HEAD"), True),
        (request(b"POST"), False),
        (request(b"POST", 1), False),
        (request(b"get"), False),
        (request(b"GET", 100), True),
        (request(b"GET", 101), False),
        (request(b"GET", chunked=True), False),
        (request(b"GET", 0), True),
    ],
)
def test_what_may_be_sent_twice(asked: Request, may: bool) -> None:
    assert replayable(asked, RetryPolicy(buffer=100)) is may


@pytest.mark.parametrize(
    ("error", "replayable", "again"),
    [
        (ConnectRefused(), False, True),
        (ConnectTimeout(), False, True),
        (TlsError(), False, True),
        (PoolFull(), False, True),
        (DnsError(), True, False),
        (UpstreamStale(), True, True),
        (UpstreamStale(), False, False),
        (UpstreamReset(), True, True),
        (UpstreamReset(), False, False),
        (UpstreamCut(), True, False),
        (BadResponse(), True, False),
        (ResponseTimeout(), True, False),
    ],
)
def test_which_errors_are_tried_again_by_default(error: GatewayError, replayable: bool, again: bool) -> None:
    assert Retries(RetryPolicy(), replayable).after(error) is again


def test_a_timeout_is_tried_again_when_asked_for() -> None:
    policy = RetryPolicy(when=frozenset({"timeout"}))
    assert Retries(policy, True).after(ResponseTimeout())
    assert not Retries(policy, False).after(ResponseTimeout())
    assert not Retries(policy, True).after(ConnectRefused())


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_tries_in_all(attempts: int) -> None:
    tries = Retries(RetryPolicy(attempts=attempts), True)
    made = 1
    while tries.after(ConnectRefused()):
        tries.again()
        made += 1
    assert made == attempts


def test_statuses_are_tried_again_only_for_what_is_replayable() -> None:
    policy = RetryPolicy(statuses=frozenset({503}))
    assert Retries(policy, True).after_status(503)
    assert not Retries(policy, True).after_status(500)
    assert not Retries(policy, False).after_status(503)
    assert not Retries(RetryPolicy(), True).after_status(503)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_has_a_floor() -> None:
    clock = Clock()
    budget = Budget(clock)
    saved = int(FLOOR_PER_SECOND * WINDOW)
    assert [budget.take(0.2) for _ in range(saved + 1)] == [True] * saved + [False]
    clock.now += 1.0
    assert [budget.take(0.2) for _ in range(4)] == [True, True, True, False]


def test_the_budget_grows_with_the_traffic() -> None:
    clock = Clock()
    budget = Budget(clock)
    while budget.take(0.2):
        pass
    clock.now += 1.0
    budget.requests += 100
    assert sum(budget.take(0.2) for _ in range(50)) == 20


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200), st.integers(0, 100)), max_size=40))
def test_the_budget_is_never_exceeded(steps: list[tuple[float, int, int]]) -> None:
    clock = Clock()
    budget = Budget(clock)
    start = clock.now
    for pause, requests, wanted in steps:
        clock.now += pause
        budget.requests += requests
        for _ in range(wanted):
            budget.take(0.2)
        allowed = FLOOR_PER_SECOND * (WINDOW + clock.now - start) + 0.2 * budget.requests
        assert budget.spent <= allowed + 1e-6
