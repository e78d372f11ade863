"""What the gateway does when upstreams fail: ejection, the breaker, concurrency limits, hedging, the deadline told."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

import pytest

from gateway.testing import PATIENCE, Act, answer
from tests.conformance.harness import check_problem, request

SCENE = "staying-up"


def statuses(scene, target: bytes, number: int) -> list[int]:
    return [scene.ask(request(target)).status for _ in range(number)]


def soon(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


class TestEjection:
    def test_an_endpoint_that_fails_gets_no_more(self, scene, upstream):
        first = statuses(scene, b"/outlier", 8)
        assert first.count(502) == 2
        assert statuses(scene, b"/outlier", 20) == [200] * 20

    def test_a_404_is_no_failure_and_a_5xx_only_where_it_is_named(self, scene, upstream):
        other = scene.upstreams["other"]
        upstream.answer(answer(b"", status=404))
        other.answer(answer(b"", status=503))
        assert sorted(statuses(scene, b"/status", 20)) == [404] * 10 + [503] * 10
        other.answer(answer(b"", status=500))
        assert sorted(statuses(scene, b"/status", 20)) == [404] * 18 + [500] * 2

    def test_what_the_gateway_or_the_client_ended_is_no_failure(self, scene, upstream):
        """A pool of requests that were refused or given up by the gateway's side."""
        other = scene.upstreams["other"]
        for fake in (upstream, other):
            fake.answer([Act.HANG])
        for _ in range(8):
            with scene.client() as client:
                client.send(request(b"/returning"))
                soon(lambda: len(upstream.requests) + len(other.requests) > 0, "the request to arrive")
                client.reset()
            for fake in (upstream, other):
                fake.forget()
                fake.answer([Act.HANG])
        for fake in (upstream, other):
            fake.answer(answer(b"ok"))
        assert statuses(scene, b"/returning", 10) == [200] * 10
        assert len(upstream.requests) == len(other.requests) == 5

    def test_the_only_endpoint_is_never_out(self, scene):
        for _ in range(5):
            check_problem(scene.ask(request(b"/lonely")), 502, "connect_refused")

    def test_one_that_answers_again_comes_back(self, scene, upstream):
        other = scene.upstreams["other"]
        other.answer([Act.CLOSE])
        soon(lambda: statuses(scene, b"/returning", 4) == [200] * 4, "the one that fails to be out")
        other.answer(answer(b"ok"))
        soon(lambda: statuses(scene, b"/returning", 4) == [200] * 4 and len(other.requests) > 4, "it to be back")
        upstream.forget()
        other.forget()
        assert statuses(scene, b"/returning", 10) == [200] * 10
        assert len(upstream.requests) == len(other.requests) == 5


def test_the_circuit_opens_and_closes(scene, upstream):
    upstream.answer(answer(b"", status=500))
    assert statuses(scene, b"/breaking", 4) == [500] * 4
    upstream.forget()
    refused = scene.ask(request(b"/breaking"))
    check_problem(refused, 503, "circuit_open")
    assert refused.header(b"retry-after") == b"1"
    assert upstream.requests == []
    soon(lambda: statuses(scene, b"/breaking", 1) == [200], "the circuit to be closed")
    assert statuses(scene, b"/breaking", 5) == [200] * 5


class TestConcurrency:
    def held(self, scene, upstream, target: bytes):
        """A request that the upstream keeps, and the event that lets it go."""
        go, there = threading.Event(), len(upstream.requests)
        upstream.queue([go, answer(b"held")])
        client = scene.client()
        client.send(request(target))
        soon(lambda: len(upstream.requests) > there, "the request to arrive")
        return client, go

    def test_beyond_the_limit(self, scene, upstream):
        client, go = self.held(scene, upstream, b"/one")
        check_problem(scene.ask(request(b"/one")), 503, "overloaded")
        # Another upstream is another matter.
        assert scene.ask(request(b"/told")).status == 200
        go.set()
        with client:
            assert client.read_response().body == b"held"
        assert scene.ask(request(b"/one")).status == 200

    @pytest.mark.no_tls("session tickets make a socket readable that has no answer")
    def test_the_next_in_the_queue_has_its_turn(self, scene, upstream):
        client, go = self.held(scene, upstream, b"/turn")
        with client, scene.client() as one, scene.client() as two:
            for each in (one, two):
                each.send(request(b"/turn/next"))
            # Whichever comes second finds the queue full.
            refused = one if select.select([one.sock, two.sock], [], [], PATIENCE)[0][0] is one.sock else two
            waiting = two if refused is one else one
            check_problem(refused.read_response(), 503, "overloaded")
            go.set()
            assert client.read_response().body == b"held"
            assert waiting.read_response().status == 200
        record = scene.gateway.logged("/turn/next", where=lambda record: record["status"] == 200)
        assert record["queue_ms"] > 0

    @pytest.mark.own_worker("it knows that it is the client that is slow", door="direct")
    def test_who_does_not_read_keeps_nobody_from_being_answered(self, scene, upstream):
        upstream.queue(answer(b"x" * 32 * 1024 * 1024))
        with scene.client() as client:
            client.send(request(b"/one/large"))
            assert client.read_head().status == 200
            soon(lambda: scene.ask(request(b"/one")).status == 200, "the place to be free")

    def test_and_no_longer_than_its_time(self, scene, upstream):
        client, go = self.held(scene, upstream, b"/queue")
        with client:
            check_problem(scene.ask(request(b"/queue/late")), 503, "overloaded")
            assert scene.gateway.logged("/queue/late")["queue_ms"] >= 390
            go.set()
            assert client.read_response().body == b"held"


class TestDeadline:
    def test_it_is_told(self, scene, upstream):
        scene.ask(request(b"/told", b"X-Time-Left: 1", b"x-time-left: 2"))
        assert [value for name, value in upstream.last.headers if name.lower() == b"x-time-left"] == [b"7000"]

    def test_with_what_is_left_of_the_total(self, scene, upstream):
        scene.ask(request(b"/told/total"))
        assert 0 < int(upstream.last.header(b"x-time-left")) <= 3000


def test_a_slow_answer_is_asked_for_elsewhere_too(scene, upstream):
    other = scene.upstreams["other"]
    for fake in (upstream, other):
        fake.answer(answer(b"quick"))
    assert statuses(scene, b"/hedged", 80) == [200] * 80
    upstream.answer([Act.HANG])
    assert [scene.ask(request(b"/hedged")).body for _ in range(6)] == [b"quick"] * 6
    soon(lambda: len(upstream.aborted) >= 3, "what came too late to be broken off")
