"""Interim answers (1xx) to a client that does not take them at once: never half of one on the wire, never
one in the middle of another, whichever greenlet sends it and however that ends."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.messages import Request, Response
from gateway.server.writer import CONTINUE
from tests.unit.server import wire

POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


class Reluctant(wire.ScriptedStream):
    """Takes so many bytes at a time; for more it waits until `taking` is set."""

    def __init__(self, *arrivals: wire.Arrival, takes: int) -> None:
        super().__init__(*arrivals)
        self.takes = takes
        self.taking = Event()
        self.waits = 0

    def send_some(self, data: bytes | memoryview) -> int:
        taken = min(len(data), self.takes) if not self.taking.is_set() else len(data)
        if not self.taking.is_set():
            self.takes -= taken
        self.sent += bytes(data[:taken])
        return taken

    def recv(self, size: int, timeout: float | None) -> bytes:
        if self.unread == [b"hello"]:
            # The client sends its body once it has the whole of its 100.
            while CONTINUE not in self.sent:
                gevent.sleep(0.001)
        return super().recv(size, timeout)

    def wait_writable(self, timeout: float | None) -> None:
        self.waits += 1
        self.taking.wait()

    def unsent(self) -> int:
        return 0


def serve(stream: Reluctant, answers) -> gevent.Greenlet:
    """A connection over `stream` in a greenlet of its own."""
    return gevent.spawn(wire.serve_stream, stream, answers)


def final(sent: bytes) -> tuple[bytes, bytes]:
    """What came before the final answer, and its body."""
    before, found, rest = sent.partition(b"HTTP/1.1 200 OK\r\n")
    assert found, sent
    return before, rest.partition(b"\r\n\r\n")[2]


@given(st.integers(0, len(CONTINUE) - 1))
def test_a_killed_upload_leaves_no_half_of_a_100(takes: int) -> None:
    def answers(request: Request) -> Response:
        upload = gevent.spawn(request.body.read)  # type: ignore[union-attr]
        while not stream.waits:
            gevent.sleep(0)
        upload.kill()
        stream.taking.set()
        return Response(200, b"OK", [], data=b"done")

    stream = Reluctant(POST, takes=takes)
    serve(stream, answers).get()
    assert final(stream.sent) == (CONTINUE, b"done")


@given(st.integers(0, len(CONTINUE) - 1))
def test_a_final_answer_waits_for_the_end_of_a_100(takes: int) -> None:
    def answers(request: Request) -> Response:
        gevent.spawn(request.body.read)  # type: ignore[union-attr]
        while not stream.waits:
            gevent.sleep(0)
        return Response(200, b"OK", [], data=b"done")

    stream = Reluctant(POST, b"hello", takes=takes)
    connection = serve(stream, answers)
    while not stream.waits:
        gevent.sleep(0)
    gevent.sleep(0)
    assert stream.sent == CONTINUE[:takes]
    stream.taking.set()
    connection.get()
    assert final(stream.sent) == (CONTINUE, b"done")


@given(st.integers(0, len(CONTINUE) - 1))
def test_another_interim_answer_comes_behind_it(takes: int) -> None:
    """The exchange's own greenlet passes on a 103 while the upload's is sending the 100."""

    def answers(request: Request) -> Response:
        upload = gevent.spawn(request.body.read)  # type: ignore[union-attr]
        while not stream.waits:
            gevent.sleep(0)
        assert request.interim is not None
        request.interim(103, [(b"Link", b"</a>")])
        stream.taking.set()
        upload.join()
        return Response(200, b"OK", [], data=b"done")

    stream = Reluctant(POST, b"hello", takes=takes)
    serve(stream, answers).get()
    assert final(stream.sent) == (CONTINUE + HINT, b"done")


def test_a_second_upload_goes_on_with_the_same_100() -> None:
    """A retry reads the body anew: the client gets its one `100 Continue` all the same."""

    def answers(request: Request) -> Response:
        first = gevent.spawn(request.body.read)  # type: ignore[union-attr]
        while not stream.waits:
            gevent.sleep(0)
        first.kill()
        second = gevent.spawn(request.body.read)  # type: ignore[union-attr]
        gevent.sleep(0)
        stream.taking.set()
        return Response(200, b"OK", [], data=second.get())

    stream = Reluctant(POST, b"hello", takes=7)
    serve(stream, answers).get()
    assert final(stream.sent) == (CONTINUE, b"hello")


@pytest.mark.parametrize("takes", [0, 9])
def test_a_client_that_leaves_meanwhile(takes: int) -> None:
    def answers(request: Request) -> Response:
        request.body.read()  # type: ignore[union-attr]
        raise AssertionError("not reached")

    class Leaves(Reluctant):
        def wait_writable(self, timeout: float | None) -> None:
            raise ConnectionResetError("gone")

    stream = Leaves(POST, takes=takes)
    door = serve(stream, answers).get()
    assert door.finished == [(b"/p", None, 0, "client_closed")]
    assert stream.aborted
