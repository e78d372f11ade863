"""Answers read ahead: order, bounds, ends, and what every kill leaves behind."""

from __future__ import annotations

import gevent
import pytest
from gevent.queue import Queue

from gateway.buffers.ahead import Ahead, ahead
from gateway.buffers.memory import Buffers
from gateway.errors import UpstreamTruncated
from gateway.model import Buffering


class Inner:
    """A `ResponseBody` that gives what a test puts into it; an exception is raised."""

    def __init__(self, buffering: Buffering | None = None) -> None:
        self.pieces: Queue = Queue()
        self.buffering = buffering
        self.sent = True
        self.most = 0
        self.on_end = self.on_wait = None
        self.closed = 0
        self.reads = 0

    def read(self) -> bytes:
        self.reads += 1
        piece = self.pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def settled():
    """Let every greenlet run until it waits."""

    def settle() -> None:
        for _ in range(10):
            gevent.sleep(0)

    return settle


def made(buffering: Buffering, most: int = 0) -> tuple[Inner, Buffers, Ahead]:
    inner, buffers = Inner(buffering), Buffers(most)
    found = ahead(inner, None, buffers)
    assert found is not None
    return inner, buffers, found


class TestWhen:
    @pytest.mark.parametrize(("left", "response", "sent", "is_read"), [
        (100, 100, True, True), (101, 100, True, False), (None, 100, True, True),
        (10, 0, True, False), (10, 100, False, False),
    ])  # fmt: skip
    def test_what_fits_and_whose_request_was_sent(self, left, response, sent, is_read):
        inner = Inner(Buffering(response=response))
        inner.sent = sent
        found = ahead(inner, left, Buffers(0))
        assert (found is not None) == is_read
        if found is not None:
            found.close()

    def test_not_without_settings(self):
        assert ahead(Inner(None), 1, Buffers(0)) is None


class TestReading:
    def test_bytes_in_order_up_to_the_limit_then_the_end(self, settled):
        inner, buffers, found = made(Buffering(response=10))
        inner.pieces.put(b"12345")
        settled()
        assert inner.most == 5
        inner.pieces.put(b"67890")
        settled()
        assert (buffers.held, inner.reads, buffers.counts["answer_streamed"]) == (10, 2, 1)
        inner.pieces.put(b"abc")
        settled()
        assert inner.reads == 2
        found.most = 7
        assert [found.read(), found.read()] == [b"1234567", b"890"]
        settled()
        inner.pieces.put(b"")
        assert [found.read(), found.read(), found.read()] == [b"abc", b"", b""]
        assert buffers.held == 0

    def test_without_memory_it_passes_on(self, settled):
        inner, buffers, found = made(Buffering(response=100_000), most=1)
        settled()
        assert inner.reads == 0
        inner.pieces.put(b"one")
        assert found.read() == b"one"
        inner.pieces.put(b"")
        assert found.read() == b""
        assert (buffers.held, buffers.counts["answer_streamed"]) == (0, 1)

    def test_an_error_comes_behind_the_bytes(self):
        inner, _, found = made(Buffering())
        inner.pieces.put(b"some")
        inner.pieces.put(UpstreamTruncated("cut"))
        assert found.read() == b"some"
        with pytest.raises(UpstreamTruncated, match="cut"):
            found.read()

    @pytest.mark.parametrize("thrown", [gevent.GreenletExit(), gevent.Timeout()])
    def test_one_that_is_killed_never_looks_complete(self, thrown, settled):
        inner, buffers, found = made(Buffering())
        inner.pieces.put(b"some")
        settled()
        inner.pieces.put(thrown)
        assert found.read() == b"some"
        with pytest.raises(UpstreamTruncated):
            found.read()
        assert buffers.held == 0


class TestFiles:
    def test_in_order_over_memory_and_file(self, tmp_path, settled):
        inner, buffers, found = made(Buffering(response=4, spool=str(tmp_path), spool_max=1000))
        body = [b"%03d," % number for number in range(100)]
        for piece in body:
            inner.pieces.put(piece)
        inner.pieces.put(b"")
        got = b""
        while piece := found.read():
            got += piece
        assert got == b"".join(body)
        found.close()
        assert (buffers.held, list(tmp_path.iterdir())) == (0, [])

    @pytest.mark.parametrize("folder", ["", "away"])
    def test_a_full_or_missing_folder_loses_nothing(self, tmp_path, folder):
        inner, buffers, found = made(Buffering(response=4, spool=str(tmp_path / folder), spool_max=50))
        body = [b"%03d," % number for number in range(100)]
        for piece in body:
            inner.pieces.put(piece)
        inner.pieces.put(b"")
        got = b""
        while piece := found.read():
            got += piece
            gevent.sleep(0)
        assert got == b"".join(body)
        assert buffers.counts["answer_streamed"] == 1
        found.close()


class TestKills:
    @pytest.mark.parametrize("filled", [b"", b"x", b"x" * 100])
    def test_close_at_every_wait_gives_all_back(self, tmp_path, settled, filled):
        for spool in (None, str(tmp_path)):
            inner, buffers, found = made(Buffering(response=10, spool=spool))
            if filled:
                inner.pieces.put(filled)
            settled()
            found.close()
            found.close()
            gevent.sleep(0.01)
            assert (buffers.held, inner.closed >= 1) == (0, True)

    def test_before_it_has_begun(self):
        inner, buffers, found = made(Buffering())
        found.close()
        assert (inner.reads, inner.closed, buffers.held) == (0, 1, 0)

    def test_a_reader_that_is_killed(self, settled):
        inner, buffers, found = made(Buffering())
        reader = gevent.spawn(found.read)
        settled()
        reader.kill()
        inner.pieces.put(b"late")
        inner.pieces.put(b"")
        assert [found.read(), found.read()] == [b"late", b""]
        found.close()
        assert buffers.held == 0
