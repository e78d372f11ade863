"""Bodies that are held so that a slow client keeps no upstream busy (docs/resilience.md, Slow clients)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.testing import PATIENCE, Act, Exchange, Truncated, answer, chunk, chunked, head
from tests.conformance.harness import check_problem, request

SCENE = "shield"

EXPECTING = b"Expect: 100-continue"
CHUNKED = b"Transfer-Encoding: chunked"
# More than the kernel takes of an answer whose client does not read.
LONG = os.urandom(600_000)


def length(size: int) -> bytes:
    return b"Content-Length: %d" % size


def eventually(holds: Callable[[], bool]) -> None:
    """Nothing tells of it: it is asked again and again."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def buffers(scene) -> dict[str, Any]:
    asked = request(b"/-/status", b"Authorization: Bearer a-token-of-the-tests", b"Connection: close")
    answered = scene.ask(asked)
    assert answered.status == 200, answered.body
    (worker,) = json.loads(answered.body)["workers"]
    return worker["buffers"]


@pytest.fixture(autouse=True)
def nothing_is_left(scene):
    """However a body's exchange ends, what was held of it is given back."""
    yield
    eventually(lambda: (found := buffers(scene))["held"] == found["spooled"] == 0)


@pytest.fixture
def counted(scene):
    """How often something was counted since the test began."""
    before = buffers(scene)
    return lambda word: buffers(scene)[word] - before[word]


class TestRequests:
    @pytest.mark.parametrize("path", [b"/short", b"/files/short"])
    def test_one_that_fits_is_complete_before_the_upstream_hears_of_it(self, scene, upstream, counted, path):
        with scene.client() as client:
            client.send(request(path, length(10), EXPECTING, method=b"POST"))
            assert client.read_head().status == 100
            client.send(b"01234")
            assert scene.ask(request(b"/another")).status == 200
            assert [seen.target for seen in upstream.requests] == [b"/another"]
            client.send(b"56789")
            assert client.read_response().status == 200
        assert upstream.last.body == b"0123456789"
        assert upstream.last.header(b"expect") is None
        assert counted("request_held") == 1

    @pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1])
    def test_up_to_the_limit(self, scene, upstream, size):
        with scene.client() as client:
            client.send(request(b"/edge", length(size), method=b"POST") + b"x" * 1000)
            if size > 64 * 1024:
                upstream.wait(1)
            else:
                assert scene.ask(request(b"/another")).status == 200
                assert len(upstream.requests) == 1
            client.send(b"x" * (size - 1000))
            assert client.read_response().status == 200
        assert upstream.last.body == b"x" * size

    @pytest.mark.parametrize(
        ("path", "line", "rest"), [(b"/chunked", CHUNKED, b"5\r\n12345\r\n0\r\n\r\n"), (b"/off/short", length(5), b"12345")]
    )
    def test_others_stream(self, scene, upstream, counted, path, line, rest):
        with scene.client() as client:
            client.send(request(path, line, method=b"POST") + rest[:4])
            upstream.wait(1)
            client.send(rest[4:])
            assert client.read_response().status == 200
        assert upstream.last.body == b"12345"
        assert counted("request_held") == counted("request_streamed") == 0

    @pytest.mark.parametrize("size", [64 * 1024 + 1, 200_000, 5_000_000])
    def test_longer_ones_in_a_file(self, scene, upstream, counted, size):
        body = os.urandom(size)
        with scene.client() as client:
            client.send(request(b"/files/long", length(size), method=b"POST") + body[: size // 2])
            if size < 1_000_000:
                assert scene.ask(request(b"/another")).status == 200
                assert [seen.target for seen in upstream.requests] == [b"/another"]
            client.send(body[size // 2 :])
            assert client.read_response().status == 200
        assert upstream.last.body == body
        assert counted("request_held") == 1

    @pytest.mark.parametrize("path", [b"/small/two", b"/nowhere/one"])
    def test_one_for_which_the_folder_has_no_room_streams(self, scene, upstream, counted, path):
        """Two of 200 KB in 250 KiB; a folder that is not there."""
        body = os.urandom(200_000)
        with scene.client() as first, scene.client() as second:
            first.send(request(b"/small/one", length(len(body)), method=b"POST") + body[:150_000])
            eventually(lambda: buffers(scene)["spooled"] > 100_000)
            second.send(request(path, length(len(body)), method=b"POST") + body[:190_000])
            upstream.wait(1)
            second.send(body[190_000:])
            assert second.read_response().status == 200
            first.send(body[150_000:])
            assert first.read_response().status == 200
        assert upstream.bodies == [body, body]
        assert (counted("request_held"), counted("request_streamed")) == (1, 1)

    def test_one_for_which_the_worker_has_no_memory_streams(self, scene, upstream, counted):
        """`server.limits.buffers` is 2 MiB."""
        body = os.urandom(3_000_000)
        with scene.client() as client:
            client.send(request(b"/greedy/one", length(len(body)), method=b"POST") + body[:2_500_000])
            upstream.wait(1)
            client.send(body[2_500_000:])
            assert client.read_response().status == 200
        assert upstream.last.body == body
        assert (counted("request_held"), counted("request_streamed")) == (0, 1)

    @pytest.mark.parametrize("path", [b"/left", b"/files/left"])
    def test_a_client_that_leaves(self, scene, upstream, path):
        with scene.client() as client:
            client.send(request(path, length(60_000), method=b"POST") + b"x" * 50_000)
            eventually(lambda: buffers(scene)["held"] > 0)
            client.reset()
        record = scene.gateway.logged(path.decode())
        assert (record["status"], record["reason"]) == (499, "client_closed")
        assert upstream.requests == []

    def test_the_deadline_counts_while_it_is_awaited(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/timed", length(10), method=b"POST") + b"01234")
            check_problem(client.read_response(), 504, "deadline_exceeded")
        assert upstream.requests == []

    def test_an_early_answer_to_one_in_a_file(self, scene, upstream):
        def refuse(exchange: Exchange) -> None:
            exchange.send(answer(b"no", b"Connection: close", status=413))

        upstream.answer(refuse)
        got = scene.ask(request(b"/files/refused", length(8_000_000), method=b"POST") + b"x" * 8_000_000)
        assert (got.status, got.body) == (413, b"no")


class TestAnswers:
    @pytest.mark.parametrize("framed", ["by its length", "in chunks"])
    @pytest.mark.parametrize("path", [b"/answer", b"/files/answer"])
    def test_the_upstream_is_released_while_the_client_is_slow(self, scene, upstream, counted, path, framed):
        upstream.queue(answer(LONG) if framed == "by its length" else head(200, CHUNKED) + chunked(LONG[:9], LONG[9:]))
        with scene.client(receive_buffer=4096) as client:
            client.send(request(path))
            eventually(lambda: scene.ask(request(path + b"/next")).status == 200)
            assert client.read_response().body == LONG
        if scene.door.own:  # gunicorn's worker has the kernel take all of it
            assert counted("answer_held") == 1
        assert scene.gateway.logged(path.decode())["reason"] is None

    def test_not_where_it_is_off(self, scene, upstream):
        upstream.queue(answer(LONG * 16))
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/off/answer"))
            upstream.wait(1)
            check_problem(scene.ask(request(b"/off/next")), 503, "pool_full")
            assert client.read_response().body == LONG * 16

    def test_one_that_is_longer_streams(self, scene, upstream):
        """Memory and files bound what is held; what is longer is passed on whole."""
        upstream.queue(head(200, CHUNKED) + chunked(*[LONG] * 4))
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/small/answer"))
            upstream.wait(1)
            assert client.read_response().body == LONG * 4

    def test_one_that_is_cut_never_looks_complete(self, scene, upstream, counted):
        upstream.queue([head(200, CHUNKED) + chunk(LONG), Act.CLOSE])
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/cut"))
            if scene.door.own:
                eventually(lambda: counted("answer_held") == 1)
            eventually(lambda: scene.ask(request(b"/next")).status == 200)
            with pytest.raises(Truncated):
                client.read_response()
        record = scene.gateway.logged("/cut")
        assert (record["status"], record["reason"]) == (200, "upstream_truncated")

    def test_a_client_that_leaves(self, scene, upstream, counted):
        went_on = threading.Event()

        def pour(exchange: Exchange) -> None:
            exchange.send(head(200, CHUNKED))
            while True:
                exchange.send(chunk(b"x" * 65536))
                went_on.set()

        upstream.answer(pour)
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/left-answer"))
            assert went_on.wait(PATIENCE)
            eventually(lambda: counted("answer_held") == 1)
            client.reset()
        upstream.wait_aborted()
        assert scene.gateway.logged("/left-answer")["reason"] in ("client_closed", "write_timeout")

    def test_events_are_not_read_ahead(self, scene, upstream, counted):
        upstream.queue(head(200, b"Content-Type: text/event-stream", CHUNKED) + chunked(*[LONG] * 3))
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/events"))
            upstream.wait(1)
            assert client.read_response().body == LONG * 3
        assert counted("answer_held") == 0
