"""Group F, slow clients: each limit of the client's side by its name (gunicorn's own worker has none of them)."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from gateway.testing import PATIENCE, Act, Exchange, Truncated, answer, chunk, head
from tests.conformance.harness import check_problem, request

SCENE = "impatient"
pytestmark = pytest.mark.own_worker("gunicorn's worker has one timer for head and idle, and none for bodies")
PROBLEM = b"HTTP/1.1 408 "


class TestHeads:
    @pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\n", request(b"/slow")[:-2]])
    def test_half_a_head(self, scene, upstream, part):
        with scene.client() as client:
            client.send(part)
            check_problem(client.read_response(), 408, "request_timeout")
            assert client.ended()
        assert upstream.requests == []

    def test_a_dripping_head(self, scene, upstream):
        """The limit is for the whole head: a byte now and then does not extend it."""
        with scene.client() as client:
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(_rest(client)), daemon=True)
            reader.start()
            try:
                for byte in request(b"/drip", b"X: " + b"a" * 200):
                    client.send(bytes([byte]))
                    time.sleep(0.1)
                    if not reader.is_alive():
                        break
                else:
                    pytest.fail("the whole head was taken, which lasts over 20 seconds")
            except OSError:
                pass  # cut off
            reader.join(PATIENCE)
            assert not reader.is_alive()
        assert not got[0] or got[0].startswith(PROBLEM)
        assert upstream.requests == []

    def test_silence_is_closed_without_a_word(self, scene):
        with scene.client() as client:
            assert client.read_to_end() == b""

    def test_an_idle_connection(self, scene, upstream):
        with scene.client() as client:
            assert client.request(request()).status == 200
            assert client.read_to_end() == b""

    def test_within_the_limit(self, scene, upstream):
        with scene.client() as client:
            client.send_pieces([request()[:10], request()[10:20], request()[20:]], gap=0.05)
            assert client.read_response().status == 200


class TestBodies:
    @pytest.mark.parametrize("lines", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
    def test_one_that_stops(self, scene, upstream, lines):
        target = b"/slow-body-%d" % len(lines)
        with scene.client() as client:
            client.send(request(target, lines, method=b"POST") + b"5\r\nhello\r\n")
            check_problem(client.read_response(), 408, "request_timeout")
            assert client.ended()
        assert not [seen for seen in upstream.requests if seen.complete]
        record = scene.gateway.logged(target.decode())
        assert (record["status"], record["reason"]) == (408, "request_timeout")

    def test_the_clock_runs_for_progress(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/", b"Transfer-Encoding: chunked", method=b"POST"))
            client.send_pieces([chunk(b"x" * 1000)] * 6, gap=0.25)
            client.send(b"0\r\n\r\n")
            assert client.read_response().status == 200
        assert len(upstream.last.body) == 6000

    def test_the_clock_stands_while_the_upstream_does_not_read(self, scene, upstream):
        """It is not the client's fault when nobody takes its bytes."""

        def lazy(exchange: Exchange) -> None:
            exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            time.sleep(1.5)
            exchange.read_body()
            exchange.send(answer(b"at last"))

        upstream.answer(lazy)
        assert scene.ask(request(b"/", method=b"POST", body=b"x" * 8_000_000)).body == b"at last"


class TestFullDuplex:
    """While an answer is in progress, progress in either direction counts."""

    START = (b"Transfer-Encoding: chunked",)

    def test_a_silent_client_whose_answer_goes_on(self, scene, upstream):
        took = threading.Semaphore(0)

        def talk(exchange: Exchange) -> None:
            exchange.send(head(200, b"Transfer-Encoding: chunked"))
            for _ in range(10):  # three times the limit
                exchange.send(chunk(b"tick\n"))
                assert took.acquire(timeout=PATIENCE)
                time.sleep(0.2)
            exchange.read_body()
            exchange.send(chunk(b"got " + exchange.request.body) + b"0\r\n\r\n")

        upstream.answer(talk)
        with scene.client() as client:
            client.send(request(b"/duplex", *self.START, method=b"POST") + chunk(b"begun"))
            assert client.read_head().status == 200
            for _ in range(10):
                client.read_until(b"tick\n\r\n")
                took.release()
            client.send(chunk(b", ended") + b"0\r\n\r\n")
            assert client.read_until(b"0\r\n\r\n").endswith(b"got begun, ended\r\n0\r\n\r\n")
        record = scene.gateway.logged("/duplex")
        assert (record["status"], record["reason"]) == (200, None)

    def test_silence_both_ways(self, scene, upstream):
        def fall_silent(exchange: Exchange) -> None:
            exchange.send(head(200, b"Transfer-Encoding: chunked") + chunk(b"tick\n"))
            exchange.hang()

        upstream.answer(fall_silent)
        with scene.client() as client:
            client.send(request(b"/duplex-silent", *self.START, method=b"POST") + chunk(b"begun"))
            assert client.read_head().status == 200
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_until(b"0\r\n\r\n")
        upstream.wait_aborted()
        assert scene.gateway.logged("/duplex-silent")["reason"] == "request_timeout"


class TestReading:
    def test_a_client_that_does_not_read(self, scene, upstream):
        def pour(exchange: Exchange) -> None:
            exchange.send(head(200, b"Transfer-Encoding: chunked"))
            while True:
                exchange.send(chunk(b"x" * 65536))

        upstream.answer(pour)
        with scene.client(receive_buffer=4096) as client:
            client.send(request(b"/no-reader"))
            upstream.wait_aborted()
        record = scene.gateway.logged("/no-reader")
        assert (record["status"], record["reason"]) == (200, "write_timeout")


class TestHalfClosed:
    def test_longer_than_it_is_waited_for(self, scene, upstream):
        upstream.answer([Act.HANG])
        with scene.client() as client:
            client.send(request(b"/half-closed"))
            client.half_close()
            upstream.wait_aborted()
        record = scene.gateway.logged("/half-closed")
        assert (record["status"], record["reason"]) == (499, "client_closed")


def test_many_slow_ones_do_not_stop_the_others(scene, upstream):
    slow = [scene.client() for _ in range(300)]
    try:
        for number, client in enumerate(slow):
            client.send([b"GET / HT", request(b"/", b"Content-Length: 9", method=b"POST"), b"\x16\x03\x01"][number % 3])
        for _ in range(20):
            assert scene.ask(request(b"/normal")).status == 200
        for client in slow:
            assert client.ended(), "a slow client was not cut"
    finally:
        for client in slow:
            client.close()


def _rest(client) -> bytes:
    try:
        return client.read_to_end()
    except OSError:
        return b""
