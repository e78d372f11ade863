"""How many requests an upstream may have at once: a place each, a queue, and its end."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gateway.errors import ClientClosed, DeadlineExceeded, Overloaded
from gateway.health.gate import Gate
from gateway.http.messages import Request
from gateway.model import Concurrency


def ask() -> Request:
    return Request(b"GET", b"/", [], started=0.0)


def full(limit: int = 2, queue: int = 3, queue_timeout: float | None = 60.0) -> Gate:
    gate = Gate(Concurrency(limit=limit, queue=queue, queue_timeout=queue_timeout))
    gate.in_flight = limit
    return gate


def waiting(gate: Gate, request: Request | None = None) -> gevent.Greenlet:
    before = gate.queued
    greenlet = gevent.spawn(gate.wait, "u", request or ask(), None)
    while gate.queued == before:
        gevent.sleep(0)
    return greenlet


def test_without_a_limit_nobody_waits() -> None:
    gate = Gate()
    assert gate.in_flight < gate.limit == float("inf")


def test_a_place_that_is_free_goes_to_who_waited_longest() -> None:
    gate = full()
    order: list[int] = []
    greenlets = [waiting(gate) for _ in range(3)]
    for number, greenlet in enumerate(greenlets):
        greenlet.link(lambda _, number=number: order.append(number))
    for _ in range(3):
        gate.leave()
        gevent.sleep(0)
        gevent.sleep(0)
    gevent.joinall(greenlets, raise_error=True)
    assert order == [0, 1, 2]
    assert (gate.in_flight, gate.queued, gate.waited, gate.refused) == (2, 0, 3, 0)


def test_a_full_queue_refuses_at_once() -> None:
    gate = full(queue=1)
    greenlet = waiting(gate)
    with pytest.raises(Overloaded):
        gate.wait("u", ask(), None)
    assert (gate.queued, gate.refused, gate.in_flight) == (1, 1, 2)
    gate.leave()
    greenlet.get()


def test_no_queue_no_waiting() -> None:
    with pytest.raises(Overloaded):
        full(queue=0).wait("u", ask(), None)


def test_the_time_in_the_queue_is_bounded() -> None:
    gate, request = full(queue_timeout=0.02), ask()
    with pytest.raises(Overloaded) as seen:
        gate.wait("u", request, None)
    assert "upstream u" in seen.value.cause
    assert (gate.queued, gate.in_flight, gate.refused) == (0, 2, 1)
    assert request.queue_s > 0.0


def test_a_deadline_comes_first() -> None:
    gate = full(queue_timeout=60.0)
    with pytest.raises(DeadlineExceeded):
        gate.wait("u", ask(), 0.0)
    assert gate.queued == 0


def test_a_client_that_leaves_is_no_more_in_the_queue() -> None:
    gate = full()
    greenlet = waiting(gate)
    greenlet.kill(ClientClosed("gone"), block=True)
    assert (gate.queued, gate.in_flight) == (0, 2)
    assert isinstance(greenlet.exception, ClientClosed)


def test_one_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    gate = full()
    first, second = waiting(gate), waiting(gate)
    # As the connection's watcher does; it comes before the first is told of its place.
    gevent.get_hub().loop.run_callback(first.throw, ClientClosed("gone"))
    gate.leave()
    second.get(timeout=5)
    assert (gate.queued, gate.in_flight) == (0, 2)


def test_another_limit_lets_more_in() -> None:
    gate = full(limit=1)
    greenlets = [waiting(gate) for _ in range(2)]
    gate.configure(Concurrency(limit=3, queue=3))
    gevent.joinall(greenlets, raise_error=True)
    assert gate.in_flight == 3


def test_a_lower_one_waits_until_enough_have_left() -> None:
    gate = full(limit=3)
    greenlet = waiting(gate)
    gate.narrow(2.0)
    gate.leave()
    gevent.sleep(0)
    assert (gate.in_flight, gate.queued) == (2, 1)
    gate.leave()
    greenlet.get(timeout=5)
    assert gate.in_flight == 2


def test_narrowed_it_never_has_more_than_was_configured() -> None:
    gate = Gate(Concurrency(limit=10))
    gate.narrow(500.0)
    assert gate.limit == 10


def test_narrowed_it_is_for_those_whose_answer_has_not_begun() -> None:
    """Streams that go on for hours would take all places, and nothing would be learnt any more."""
    gate = Gate(Concurrency(limit=6))
    gate.narrow(2.0)
    gate.in_flight = 2
    greenlets = [waiting(gate) for _ in range(5)]
    for number in range(1, 5):
        gate.stream()
        gevent.sleep(0)
        assert (gate.in_flight, gate.limit, gate.queued) == (2 + number, 2 + number, 5 - number)
    # They count for the configured limit.
    gate.stream()
    assert (gate.in_flight, gate.limit, gate.queued) == (6, 6, 1)
    gate.end_stream()
    gevent.joinall(greenlets, raise_error=True)
    assert (gate.in_flight, gate.streams, gate.queued) == (6, 4, 0)
    for _ in range(4):
        gate.end_stream()
    assert (gate.in_flight, gate.limit) == (2, 2)


def test_many_at_once() -> None:
    gate = Gate(Concurrency(limit=5, queue=1000, queue_timeout=None))
    most, done = 0, Event()

    def run() -> None:
        nonlocal most
        if gate.in_flight < gate.limit:
            gate.in_flight += 1
        else:
            gate.wait("u", ask(), None)
        most = max(most, gate.in_flight)
        gevent.sleep(0)
        gate.leave()
        if not gate.in_flight:
            done.set()

    greenlets = [gevent.spawn(run) for _ in range(500)]
    gevent.joinall(greenlets, raise_error=True)
    assert (most, gate.in_flight, gate.queued) == (5, 0, 0)
