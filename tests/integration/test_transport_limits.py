"""Every limit of an exchange by its name, and what it does not cut. No test asserts how fast anything is; that a
limit of the wrong name would be far longer is what tells them apart."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import gevent
import pytest

from gateway.errors import (
    ConnectTimeout,
    DeadlineExceeded,
    PoolFull,
    ResponseTimeout,
    UpstreamStalled,
)
from gateway.model import PoolSettings, Timeouts
from gateway.testing import PATIENCE, Act, FakeUpstream, answer, chunk, chunked, head
from tests.exchanges import Line, Pieces, hold_up_the_hub, request, soon, whole

CHUNKED = b"Transfer-Encoding: chunked"
# More than two sockets' buffers hold on loopback.
PLENTY = 32 * 1024 * 1024


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def to(upstream):
    """Makes lines to the upstream; each must end with nothing in use."""
    made: list[Line] = []

    def line(pool: PoolSettings | None = None, **limits: float | None) -> Line:
        timeouts = Timeouts(**{"connect": 9.0, "write": 9.0, "response": 9.0, "idle": 9.0, **limits})
        made.append(Line(upstream.host, upstream.port, timeouts=timeouts, pool=pool))
        return made[-1]

    yield line
    for one in made:
        one.close()
        assert one.counts == (0, 0, 0)


@contextmanager
def full_backlog():
    """The port of a listener that takes no more connections: their SYN is dropped."""
    waiting = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        try:
            for _ in range(3):
                one = socket.socket()
                waiting.append(one)
                one.settimeout(0.2)
                try:
                    one.connect(listener.getsockname())
                except TimeoutError:
                    break
            yield listener.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


class TestConnect:
    def test_one_that_was_made_while_the_hub_was_held_up(self, upstream, to):
        line = to(connect=0.1)
        asking = gevent.spawn(line.ask)
        gevent.sleep(0)  # now it dials
        hold_up_the_hub(0.6)  # and nothing runs until long after its limit
        assert asking.get(timeout=PATIENCE).status == 200

    def test_a_listener_that_does_not_accept(self):
        with full_backlog() as port:
            line = Line("127.0.0.1", port, timeouts=Timeouts(connect=0.1))
            with pytest.raises(ConnectTimeout) as seen:
                line.ask()
        assert (seen.value.status, seen.value.reason, seen.value.retry_as) == (504, "connect_timeout", "connect")
        assert not seen.value.may_have_been_sent
        assert f"dial tcp 127.0.0.1:{port}" in seen.value.cause
        assert line.counts == (0, 0, 0)

    def test_the_total_cuts_it(self):
        with full_backlog() as port:
            line = Line("127.0.0.1", port, timeouts=Timeouts(connect=60.0))
            with pytest.raises(ConnectTimeout):
                line.ask(total=0.1)
        assert line.counts == (0, 0, 0)


class TestResponse:
    def test_silence(self, upstream, to):
        upstream.answer([Act.HANG])
        line = to(response=0.1)
        with pytest.raises(ResponseTimeout) as seen:
            line.ask()
        assert (seen.value.status, seen.value.reason, seen.value.retry_as) == (504, "response_timeout", "timeout")
        assert "read head" in seen.value.cause
        assert "after 0.1 s" in seen.value.cause
        upstream.wait_aborted()

    @pytest.mark.parametrize("drop", [b"HTTP/1.1 200 OK\r\n", b"H", head(102)])
    def test_a_begun_head(self, upstream, to, drop):
        upstream.answer([drop, Act.HANG])
        with pytest.raises(ResponseTimeout):
            to(response=0.1).ask()

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_is_for_the_whole_head(self, upstream, to, method):
        """One byte each 20 ms would never wait long for a byte."""
        data = head(200, b"X: " + b"a" * 1000, b"Content-Length: 0")
        upstream.answer([step for at in range(len(data)) for step in (data[at : at + 1], 0.02)])
        with pytest.raises(ResponseTimeout):
            to(response=0.3).ask(request(method))

    def test_interim_answers_do_not_extend_it(self, upstream, to):
        upstream.answer([step for _ in range(60) for step in (head(102), 0.03)])
        with pytest.raises(ResponseTimeout):
            to(response=0.3).ask()

    def test_is_counted_from_the_end_of_the_request(self, upstream, to):
        """An upload that takes longer than timeouts.response."""
        go = threading.Event()
        threading.Timer(0.5, go.set).start()
        body = Pieces(b"x", go, b"y")
        got = to(response=0.2).ask(request(b"POST", body, length=2))
        assert (got.status, upstream.last.body) == (200, b"xy")

    def test_begins_when_the_upload_ends(self, upstream, to):
        upstream.answer([Act.HANG])
        with pytest.raises(ResponseTimeout) as seen:
            to(response=0.1).ask(request(b"POST", Pieces(b"x", b"y"), chunked=True))
        assert "read head" in seen.value.cause

    def test_null_is_none(self, upstream, to):
        upstream.answer([0.3, answer(b"late")])
        assert to(response=None, connect=None, write=None, idle=None).ask().body == b"late"


class TestWrite:
    def never_reads(self, exchange):
        exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.stop.wait(20)
        exchange.wire.reset()

    @pytest.fixture(autouse=True)
    def _stop(self):
        self.stop = threading.Event()
        yield
        self.stop.set()

    @pytest.mark.parametrize("chunks", [True, False])
    def test_an_upstream_that_never_reads(self, upstream, to, chunks):
        upstream.answer(self.never_reads)
        body = Pieces(*[b"x" * 65536] * (PLENTY // 65536))
        asked = request(b"POST", body, chunked=chunks, length=None if chunks else PLENTY)
        with pytest.raises(ResponseTimeout) as seen:
            to(write=0.1).ask(asked)
        assert "write request" in seen.value.cause
        assert "after 0.1 s" in seen.value.cause
        assert not body.ended

    @pytest.mark.parametrize("chunks", [True, False])
    def test_an_answer_that_has_begun_is_not_cut(self, upstream, to, chunks):
        """An upstream that needs no more of the request goes on with its answer."""

        def answers(exchange):
            exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            exchange.run([head(200, b"Content-Length: 10"), *[0.05, b"x"] * 10])
            self.stop.wait(20)

        upstream.answer(answers)
        body = Pieces(*[b"x" * 65536] * (PLENTY // 65536))
        line = to(write=0.1)
        response = line.send(request(b"POST", body, chunked=chunks, length=None if chunks else PLENTY))
        assert whole(response) == b"x" * 10
        assert not body.ended
        assert line.counts == (0, 0, 0)

    def test_with_a_body_that_is_here_already(self, upstream, to):
        upstream.answer(self.never_reads)
        with pytest.raises(ResponseTimeout) as seen:
            to(write=0.1).ask(request(b"POST", b"x" * PLENTY))
        assert "write request" in seen.value.cause

    def test_the_total_cuts_it(self, upstream, to):
        upstream.answer(self.never_reads)
        line = to()
        with pytest.raises(DeadlineExceeded):
            line.ask(request(b"POST", b"x" * PLENTY), total=0.1)
        with pytest.raises(DeadlineExceeded):
            line.ask(request(b"POST", Pieces(*[b"x" * 65536] * (PLENTY // 65536)), length=PLENTY), total=0.1)

    def test_progress_is_enough(self, upstream, to):
        """A slow reader, slower as a whole than the limit."""

        def slowly(exchange):
            size = len(exchange.wire.take(PLENTY))  # what came with the head
            while size < PLENTY:
                threading.Event().wait(0.02)
                for _ in range(16):
                    size += len(exchange.wire.sock.recv(65536))
                    if size >= PLENTY:
                        break
            exchange.send(answer(b"%d" % size))

        upstream.answer(slowly)
        body = Pieces(*[b"x" * 65536] * (PLENTY // 65536))
        response = to(write=0.4).send(request(b"POST", body, length=PLENTY))
        assert whole(response) == b"%d" % PLENTY


class TestIdle:
    @pytest.mark.parametrize("begun", [head(200, b"Content-Length: 9") + b"hello", head(200, CHUNKED) + chunk(b"x")])
    def test_silence_in_the_body(self, upstream, to, begun):
        upstream.answer([begun, Act.HANG])
        with pytest.raises(UpstreamStalled) as seen:
            to(idle=0.1).ask()
        assert seen.value.reason == "upstream_stalled"
        upstream.wait_aborted()

    def test_a_steady_drip_is_not_cut(self, upstream, to):
        upstream.answer([head(200, CHUNKED), *[step for _ in range(12) for step in (0.05, chunk(b"x"))], chunked()])
        assert to(idle=0.3, response=0.3).ask().body == b"x" * 12

    def test_a_reader_that_takes_its_time_is_not_cut(self, upstream, to):
        upstream.answer([head(200, b"Content-Length: 10") + b"hello", 0.05, b"world"])
        response = to(idle=0.1).send()
        threading.Event().wait(0.3)
        assert whole(response) == b"helloworld"


class TestTotal:
    def test_silence(self, upstream, to):
        upstream.answer([Act.HANG])
        with pytest.raises(DeadlineExceeded) as seen:
            to().ask(total=0.1)
        assert (seen.value.status, seen.value.reason, seen.value.retry_as) == (504, "deadline_exceeded", None)

    def test_a_client_that_does_not_finish_its_upload(self, upstream, to):
        never = threading.Event()
        upstream.answer(lambda exchange: exchange.hang())
        with pytest.raises(DeadlineExceeded):
            to().ask(request(b"POST", Pieces(b"x", never), length=2), total=0.2)
        never.set()
        upstream.wait_aborted()
        assert not upstream.last.complete

    def test_counts_what_the_upload_took(self, upstream, to):
        """response is 9 s from the request's end on; total is less."""
        go = threading.Event()
        threading.Timer(0.2, go.set).start()
        upstream.answer([Act.HANG])
        with pytest.raises(DeadlineExceeded):
            to().ask(request(b"POST", Pieces(b"x", go, b"y"), length=2), total=0.4)

    def test_while_waiting_for_100(self, upstream, to):
        upstream.answer(lambda exchange: exchange.hang())
        with pytest.raises(DeadlineExceeded):
            to().ask(request(b"POST", Pieces(b"x", expects_continue=True), length=1), total=0.2)

    def test_never_cuts_a_body(self, upstream, to):
        upstream.answer([head(200, CHUNKED), *[step for _ in range(8) for step in (0.05, chunk(b"x"))], chunked()])
        assert to().ask(total=0.2).body == b"x" * 8

    def test_one_that_has_passed(self, upstream, to):
        line = to()
        line.ask()
        with pytest.raises(DeadlineExceeded):
            line.ask(total=-1.0)

    def test_cuts_the_wait_for_a_connection(self, upstream, to):
        upstream.answer([Act.HANG])
        line = to(PoolSettings(max_connections=1, queue_timeout=9.0), response=1.0)
        first = gevent.spawn(line.send)
        upstream.wait(1)
        with pytest.raises(PoolFull):
            line.ask(total=0.1)
        first.kill()


class TestTheConnectionAfterwards:
    def test_a_limit_of_one_exchange_is_not_the_next_ones(self, upstream, to):
        line = to(response=0.4)
        upstream.queue(answer(b"quick"), [0.25, answer(b"late")], [0.25, answer(b"late too")])
        assert [line.ask().body for _ in range(3)] == [b"quick", b"late", b"late too"]
        assert len(upstream.connections) == 1

    def test_no_limit_is_left_on_an_idle_connection(self, upstream, to):
        line = to(response=0.05, idle=0.05)
        line.ask()
        threading.Event().wait(0.15)
        assert line.ask().reused
        soon(lambda: line.counts == (1, 1, 0))
