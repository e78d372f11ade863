"""Request bodies that are held: what is complete, what streams, what is given back."""

from __future__ import annotations

import time

import gevent
import pytest

from gateway.buffers.held import HeldBody, hold
from gateway.buffers.memory import Buffers
from gateway.errors import ClientClosed, DeadlineExceeded
from gateway.http.messages import Request, Response
from gateway.model import Buffering


def given_back(buffers: Buffers) -> bool:
    """Whether nothing is held any more. Files are closed by threads."""
    with gevent.Timeout(5.0, False):
        while buffers.held or buffers.spooled:
            gevent.sleep(0.001)
    return not (buffers.held or buffers.spooled)


class Client:
    """A body that comes in pieces; an exception among them is raised, None is waited for without an end."""

    complete = expects_continue = False

    def __init__(self, *pieces: bytes | BaseException | None) -> None:
        self.pieces = list(pieces)

    def read(self, most: int = 0) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece is None:
            gevent.sleep(60)
            raise AssertionError("nobody waits so long")
        if isinstance(piece, BaseException):
            raise piece
        return piece


def asked(*pieces: bytes | BaseException | None, length: int | None) -> Request:
    return Request(b"POST", b"/", [], 0.0, content_length=length, body=Client(*pieces))


def whole(request: Request) -> bytes:
    assert request.body is not None
    found = b""
    while piece := request.body.read():
        found += piece
    return found


def test_in_memory():
    buffers = Buffers(0)
    request = asked(b"one", b"two", length=6)
    held = hold(request, Buffering(request=6), buffers, None)
    assert held is not None
    assert request.body is not None
    assert (request.body.complete, buffers.held, whole(request)) == (True, 6, b"onetwo")
    held.release()
    held.release()
    assert (buffers.held, buffers.counts["request_held"]) == (0, 1)


@pytest.mark.parametrize(("length", "most"), [(7, 6), (None, 6), (1, 0)])
def test_what_is_not_held(length, most):
    request = asked(b"x", length=length)
    before, buffers = request.body, Buffers(0)
    assert hold(request, Buffering(request=most), buffers, None) is None
    assert (request.body, buffers.held, +buffers.counts) == (before, 0, {})


@pytest.mark.parametrize("room", [1, 3, 5])
def test_where_memory_ends_the_rest_streams(room):
    buffers = Buffers(room)
    request = asked(b"one", b"two", b"three", length=11)
    held = hold(request, Buffering(), buffers, None)
    assert held is not None
    assert isinstance(request.body, HeldBody)
    assert (request.body.complete, buffers.counts["request_streamed"]) == (False, 1)
    assert whole(request) == b"onetwothree"
    held.release()
    assert buffers.held == 0


@pytest.mark.parametrize("size", [5, 70_000, 200_000, 2_000_000])
def test_in_a_file(tmp_path, size):
    buffers = Buffers(0)
    body = bytes(range(250)) * (size // 250) + b"tail!"
    pieces = [body[at : at + 9_999] for at in range(0, len(body), 9_999)]
    request = asked(*pieces, length=len(body))
    held = hold(request, Buffering(request=4, spool=str(tmp_path)), buffers, None)
    assert held is not None
    assert buffers.held < 80_000
    assert whole(request) == body
    held.release_after(Response(200, b"OK", []))
    assert given_back(buffers)


@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.parametrize("ends", [ClientClosed("gone"), RuntimeError("a fault"), None])
def test_whatever_ends_it_gives_all_back(tmp_path, spool, ends):
    buffers = Buffers(0)
    request = asked(b"x" * 70_000, ends, length=100_000)
    buffering = Buffering(request=10, spool=str(tmp_path)) if spool else Buffering(request=100_000)
    with pytest.raises(DeadlineExceeded if ends is None else type(ends)):
        hold(request, buffering, buffers, None if ends is not None else time.monotonic() + 0.05)
    assert given_back(buffers)


def test_a_kill_gives_all_back():
    buffers = Buffers(0)
    request = asked(b"x" * 70, None, length=100)
    holder = gevent.spawn(hold, request, Buffering(), buffers, None)
    with gevent.Timeout(5.0):
        while buffers.held < 70:
            gevent.sleep(0)
    holder.kill()
    assert buffers.held == 0


class Body:
    on_end = None


def test_a_file_stays_until_the_answer_has_ended(tmp_path):
    """An upload from it may go on behind an early answer."""
    buffers = Buffers(0)
    request = asked(b"x" * 100_000, length=100_000)
    held = hold(request, Buffering(request=10, spool=str(tmp_path)), buffers, None)
    assert held is not None
    stream, called = Body(), []
    stream.on_end = lambda: called.append(1)
    held.release_after(Response(200, b"OK", [], stream=stream))
    assert buffers.spooled > 0
    stream.on_end()
    assert called == [1]
    assert given_back(buffers)


def test_what_processes_left_is_removed_from_each_folder_once(tmp_path):
    left = tmp_path / "gateway-spool-left"
    left.write_bytes(b"x")
    other = tmp_path / "another"
    other.write_bytes(b"x")
    Buffers(0).clean([Buffering(spool=str(tmp_path)), Buffering(spool=str(tmp_path)), Buffering()])
    assert (left.exists(), other.exists()) == (False, True)


def test_a_reload_changes_the_limit_of_a_folder(tmp_path):
    buffers = Buffers(0)
    first = buffers.spool(Buffering(spool=str(tmp_path), spool_max=10))
    assert first is not None
    assert first.limit == 10
    assert buffers.spool(Buffering(spool=str(tmp_path), spool_max=20)) is first
    assert first.limit == 20


def test_nothing_in_a_file_where_nothing_is_held(tmp_path):
    request = asked(b"x", length=1)
    assert hold(request, Buffering(request=0, spool=str(tmp_path)), Buffers(0), None) is None
