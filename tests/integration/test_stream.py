"""Stream: waits, limits and ends over a pair of loopback sockets."""

from __future__ import annotations

import socket
import time

import gevent
import pytest
from gevent import socket as gsocket

from gateway.net import stream as streams
from gateway.net.stream import AHEAD, Deadlines, Stream
from tests.exchanges import finish, soon

PLENTY = 64 * 1024 * 1024


def hold_up(seconds: float) -> None:
    """Keep the hub from running, as a view that computes does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.fixture
def pair():
    """(our stream, the other side's plain socket)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = gsocket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    stream = Stream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


class TestReading:
    def test_what_is_there(self, pair):
        stream, theirs = pair
        theirs.sendall(b"hello")
        assert stream.recv(100, 5.0) == b"hello"
        theirs.close()
        assert stream.recv(100, 5.0) == b""

    def test_what_comes_later(self, pair):
        stream, theirs = pair
        reading = gevent.spawn(stream.recv, 100, None)
        soon(lambda: stream.waiting)
        theirs.sendall(b"hello")
        assert finish([reading]) == [b"hello"]

    def test_in_pieces_of_the_size_asked_for(self, pair):
        stream, theirs = pair
        theirs.sendall(b"abcdefg")
        assert [stream.recv(3, 5.0) for _ in range(3)] == [b"abc", b"def", b"g"]

    def test_a_limit(self, pair):
        stream, _ = pair
        with pytest.raises(TimeoutError):
            stream.recv(100, 0.02)

    def test_what_came_while_the_hub_was_held_up_is_read(self, pair):
        """A limit passes for the other side only while we listen."""
        stream, theirs = pair
        reading = gevent.spawn(stream.recv, 100, 0.05)
        soon(lambda: stream.waiting)
        theirs.sendall(b"in time")
        hold_up(0.3)
        assert finish([reading]) == [b"in time"]

    def test_but_nothing_else_is_waited_for(self, pair):
        stream, _ = pair
        reading = gevent.spawn(stream.recv, 100, 0.05)
        soon(lambda: stream.waiting)
        hold_up(0.3)
        reading.join(timeout=5.0)
        assert isinstance(reading.exception, TimeoutError)

    def test_a_limit_is_for_one_wait(self, pair):
        stream, theirs = pair
        with pytest.raises(TimeoutError):
            stream.recv(100, 0.02)
        theirs.sendall(b"late")
        assert stream.recv(100, 0.02) == b"late"
        reading = gevent.spawn(stream.recv, 100, None)
        gevent.sleep(0.06)
        assert stream.waiting
        theirs.sendall(b"later")
        assert finish([reading]) == [b"later"]

    def test_a_shorter_limit_after_a_longer_one(self, pair):
        stream, theirs = pair
        theirs.sendall(b"x")
        stream.recv(1, 60.0)
        with pytest.raises(TimeoutError):
            stream.recv(1, 0.02)

    def test_a_longer_limit_after_a_shorter_one(self, pair):
        stream, theirs = pair
        theirs.sendall(b"x")
        stream.recv(1, 0.02)
        reading = gevent.spawn(stream.recv, 1, 60.0)
        gevent.sleep(0.06)
        assert stream.waiting
        theirs.sendall(b"y")
        assert finish([reading]) == [b"y"]

    def test_a_limit_changed_meanwhile(self, pair):
        stream, _ = pair
        reading = gevent.spawn(stream.recv, 1, None)
        soon(lambda: stream.waiting)
        stream.limit(0.02)
        assert isinstance(finish([reading])[0], TimeoutError)
        stream.limit(0.02)  # nobody waits: nothing happens

    def test_a_limit_taken_away_meanwhile(self, pair):
        stream, theirs = pair
        reading = gevent.spawn(stream.recv, 1, 0.03)
        soon(lambda: stream.waiting)
        stream.limit(None)
        gevent.sleep(0.08)
        assert stream.waiting
        theirs.sendall(b"x")
        assert finish([reading]) == [b"x"]

    def test_many_limits_each_at_its_time(self):
        """In the order of the limits, whatever the order in which they were set."""
        order = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            streams = [Stream(gsocket.create_connection(listener.getsockname())) for _ in range(8)]

            def wait(stream, limit):
                with pytest.raises(TimeoutError):
                    stream.recv(1, limit)
                order.append(limit)

            limits = [0.13, 0.01, 0.16, 0.04, 0.07, 0.19, 0.1, 0.22]
            finish(gevent.spawn(wait, stream, limit) for stream, limit in zip(streams, limits, strict=True))
            assert order == sorted(limits)
            for stream in streams:
                stream.close()

    def test_killed(self, pair):
        stream, theirs = pair
        reading = gevent.spawn(stream.recv, 1, 5.0)
        soon(lambda: stream.waiting)
        reading.kill()
        assert not stream.waiting
        theirs.sendall(b"x")
        assert stream.recv(1, 5.0) == b"x"

    def test_interrupted(self, pair):
        stream, _ = pair
        reading = gevent.spawn(stream.recv, 1, 5.0)
        soon(lambda: stream.waiting)
        gevent.get_hub().loop.run_callback(stream.interrupt, KeyError("news"))
        assert isinstance(finish([reading])[0], KeyError)


class TestNews:
    def test_of_bytes_while_nobody_reads(self, pair):
        stream, theirs = pair
        told = []
        stream.on_readable = lambda: told.append(stream.peek())
        stream.watch()
        theirs.sendall(b"x")
        soon(lambda: bool(told))
        gevent.sleep(0.02)
        assert told == [b"x"]  # once, not at every turn of the hub
        assert stream.recv(10, 5.0) == b"x"

    def test_of_the_end(self, pair):
        stream, theirs = pair
        told = []
        stream.on_readable = lambda: told.append(stream.peek())
        stream.watch()
        assert stream.is_quiet()
        theirs.close()
        soon(lambda: bool(told))
        assert told == [b""]
        assert not stream.is_quiet()

    def test_none_after_closing(self, pair):
        stream, theirs = pair
        told = []
        stream.on_readable = lambda: told.append(1)
        stream.watch()
        theirs.sendall(b"x")
        stream.close()
        gevent.sleep(0.02)
        assert told == []
        assert not stream.is_quiet()


class TestWriting:
    def test_more_than_fits(self, pair):
        stream, theirs = pair

        def read():
            size = 0
            while size < PLENTY:
                size += len(theirs.recv(1 << 20))
            return size

        reading = gevent.spawn(read)
        stream.send(b"x" * PLENTY, 5.0)
        assert finish([reading]) == [PLENTY]

    def test_a_limit(self, pair):
        stream, _ = pair
        with pytest.raises(TimeoutError):
            stream.send(b"x" * PLENTY, 0.02)

    def test_progress_extends_it(self, pair):
        stream, theirs = pair
        sending = gevent.spawn(stream.send, b"x" * PLENTY, 0.3)
        size = 0
        while size < PLENTY:
            gevent.sleep(0.01)
            size += len(theirs.recv(2 << 20))
        assert finish([sending]) == [None]

    def test_to_a_connection_that_was_reset(self, pair):
        stream, theirs = pair
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with pytest.raises(OSError):
            stream.send(b"x" * PLENTY, 5.0)

    @pytest.mark.parametrize(("waited", "slow"), [(0.09, False), (0.11, True)])
    def test_room_is_what_goes_out_without_waiting(self, monkeypatch, waited, slow):
        """Also when the other side takes nothing, and what the kernel holds ahead is bounded (as by the acceptor): by
        less again once it was waited for a tenth of a second."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, AHEAD)
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        sock = gsocket.socket(fileno=ours.detach())
        stream = Stream(sock)
        try:
            taken = _fill(stream)
            stream.go_further_ahead()
            assert _fill(stream) > taken >= AHEAD
            assert not stream.held_up
            times = iter([100.0, 100.0 + waited])
            # The timer of other streams' limits may look at the clock as well.
            monkeypatch.setattr(streams, "monotonic", lambda: next(times, 100.0 + waited))
            with pytest.raises(TimeoutError):
                stream.wait_writable(0.001)
            monkeypatch.undo()
            assert stream.held_up is slow
            assert (sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == AHEAD) is slow
        finally:
            stream.close()
            theirs.close()


def _fill(stream: Stream) -> int:
    """Send what there is room for until there is none; how much that was, and that it was most of what goes out."""
    taken = 0
    while (room := stream.room()) > 0:
        piece = min(room, 65536)
        assert stream.send_some(b"x" * piece) == piece
        taken += piece
    assert sum(iter(lambda: stream.send_some(b"x" * 65536), 0)) <= taken
    return taken


class TestClosing:
    def test_wakes_who_reads(self, pair):
        stream, _ = pair
        reading = gevent.spawn(stream.recv, 1, None)
        soon(lambda: stream.waiting)
        stream.close()
        assert isinstance(finish([reading])[0], ConnectionAbortedError)

    def test_wakes_who_writes(self, pair):
        stream, _ = pair
        sending = gevent.spawn(stream.send, b"x" * PLENTY, None)
        gevent.sleep(0.02)
        assert not sending.dead
        stream.abort()
        assert isinstance(finish([sending])[0], ConnectionAbortedError)

    def test_wakes_both(self, pair):
        stream, _ = pair
        both = [gevent.spawn(stream.send, b"x" * PLENTY, None), gevent.spawn(stream.recv, 1, None)]
        gevent.sleep(0.02)
        stream.close()
        assert [type(error) for error in finish(both)] == [ConnectionAbortedError] * 2

    def test_does_not_hit_who_has_gone_on(self, pair):
        """Woken by somebody else in the same turn of the hub, and waiting for something else by now."""
        stream, _ = pair

        def read():
            try:
                stream.recv(1, None)
            except KeyError:
                gevent.sleep(0.03)
                return "went on"

        reading = gevent.spawn(read)
        soon(lambda: stream.waiting)
        gevent.get_hub().loop.run_callback(reading.throw, KeyError("news"))
        stream.close()
        assert finish([reading]) == ["went on"]

    def test_nothing_can_be_done_after_it(self, pair):
        stream, _ = pair
        stream.close()
        stream.close()
        stream.abort()
        with pytest.raises(OSError):
            stream.recv(1, 1.0)
        with pytest.raises(OSError):
            stream.send(b"x", 1.0)
        assert not stream.is_quiet()

    def test_half(self, pair):
        stream, theirs = pair
        stream.shutdown_write()
        assert theirs.recv(1) == b""
        theirs.sendall(b"still")
        assert stream.recv(10, 5.0) == b"still"

    def test_abort_is_a_reset(self, pair):
        stream, theirs = pair
        stream.send(b"x", 1.0)
        stream.abort()
        theirs.settimeout(5.0)
        assert theirs.recv(1) in (b"x", b"")
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)

    def test_is_forgotten_at_once(self, pair):
        """Whatever limit it had: an hour of closed tunnels would be memory for nothing."""
        stream, _ = pair
        reading = gevent.spawn(stream.recv, 1, 3600.0)
        soon(lambda: stream.waiting)
        known = Deadlines.current()._due
        assert any(stream in streams for streams in known.values())
        stream.close()
        assert not any(stream in streams for streams in known.values())
        finish([reading])


def test_deadlines_are_looked_at_seldom(pair):
    """A thousand waits within one limit arm it once."""
    stream, theirs = pair
    armed = []
    original = Deadlines.arm
    try:
        Deadlines.arm = lambda self, *args: (armed.append(1), original(self, *args))[1]
        began = time.monotonic()
        for _ in range(1000):
            theirs.sendall(b"x")
            stream.recv(1, 60.0)
        assert time.monotonic() - began < 60
    finally:
        Deadlines.arm = original
    assert len(armed) <= 1
