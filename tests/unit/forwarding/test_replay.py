"""One buffer, and a reader of its own for each attempt."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientClosed
from gateway.forwarding.replay import ReplayBuffer
from gateway.http.messages import BufferedBody
from gateway.net.read_size import PIECE


class Pieces:
    """A client's body; an Event among the pieces is waited for, an exception is raised."""

    def __init__(self, *pieces: object, expects_continue: bool = False) -> None:
        self._left = list(pieces)
        self.expects_continue = expects_continue
        self.asked: list[int] = []

    @property
    def complete(self) -> bool:
        return not self._left

    def read(self, most: int = PIECE) -> bytes:
        self.asked.append(most)
        self.expects_continue = False
        while self._left:
            piece = self._left[0]
            if isinstance(piece, bytes):
                del self._left[0]
                return piece
            if isinstance(piece, BaseException):
                raise piece
            piece.wait()  # type: ignore[attr-defined]
            del self._left[0]
        return b""


def read_all(reader) -> bytes:
    return b"".join(iter(reader.read, b""))


def test_every_reader_begins_at_the_first_byte() -> None:
    source = Pieces(b"a", b"bc", expects_continue=True)
    buffer = ReplayBuffer(source)
    first = buffer.reader()
    assert first.expects_continue
    assert first.read(7) == b"a"
    second = buffer.reader()
    assert not second.expects_continue
    assert read_all(second) == b"abc"
    assert read_all(first) == b"bc"
    assert read_all(buffer.reader()) == b"abc"
    # Kept pieces are not read again.
    assert source.asked == [7, PIECE, PIECE, PIECE, PIECE]


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.lists(st.integers(0, 3), max_size=40))
def test_readers_never_take_from_one_another(pieces: list[bytes], turns: list[int]) -> None:
    buffer = ReplayBuffer(Pieces(*pieces))
    readers = [buffer.reader() for _ in range(4)]
    got = [b""] * 4
    for turn in turns:
        got[turn] += readers[turn].read()
    for turn, reader in enumerate(readers):
        assert got[turn] + read_all(reader) == b"".join(pieces)


def test_complete_once_all_of_it_is_here() -> None:
    buffer = ReplayBuffer(Pieces(b"a", b"b"))
    reader = buffer.reader()
    assert not reader.complete
    read_all(reader)
    assert buffer.reader().complete
    assert ReplayBuffer(BufferedBody(b"x")).reader().complete


def test_a_body_that_fails_fails_for_every_reader_behind_what_is_kept() -> None:
    buffer = ReplayBuffer(Pieces(b"a", ClientClosed("gone")))
    for _ in range(2):
        reader = buffer.reader()
        assert reader.read() == b"a"
        with pytest.raises(ClientClosed):
            reader.read()


def test_a_killed_read_loses_nothing() -> None:
    go = Event()
    buffer = ReplayBuffer(Pieces(b"a", go, b"b"))
    stuck = gevent.spawn(read_all, buffer.reader())
    gevent.sleep(0)
    stuck.kill()
    go.set()
    assert read_all(buffer.reader()) == b"ab"


def test_two_attempts_never_read_the_client_at_once() -> None:
    go = Event()
    buffer = ReplayBuffer(Pieces(go, b"b"))
    stuck = gevent.spawn(read_all, buffer.reader())
    gevent.sleep(0)
    with pytest.raises(RuntimeError, match="two attempts at once"):
        buffer.reader().read()
    go.set()
    assert stuck.get() == b"b"
