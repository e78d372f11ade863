"""A request's body that is complete before an endpoint is picked.

Rule: a slow client then holds bytes here, and no connection and no thread of an upstream. Only a body of known
length is held, in memory up to `buffer.request`, in a temporary file where `buffer.spool` names a folder; one that
turns out not to fit streams from there on, with nothing lost. The client's `100 Continue` goes out with the first
read (RFC 9110 §10.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from gevent import Timeout

from gateway.buffers.memory import Buffers
from gateway.buffers.spool import SpoolError, SpoolFile, spooled
from gateway.errors import DeadlineExceeded
from gateway.http.messages import Request, RequestBody, Response
from gateway.model import Buffering
from gateway.net.read_size import PIECE


class Held:
    """What is held of one request's body: so many bytes of memory, and perhaps a file. `release` gives all of it
    back, once."""

    __slots__ = ("_buffers", "_taken", "file")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._taken = 0
        self.file: SpoolFile | None = None

    def take(self, size: int) -> bool:
        """Take memory; False when the worker has no more for bodies."""
        if not self._buffers.take(size):
            return False
        self._taken += size
        return True

    def move_to_file(self, data: bytearray) -> bool:
        """Move `data`, for which memory was taken, to the file; False when that does not take it."""
        assert self.file is not None
        try:
            self.file.append(bytes(data))
        except SpoolError:
            return False
        self._taken -= len(data)
        self._buffers.give_back(len(data))
        data.clear()
        return True

    def release(self) -> None:
        """Give everything back. Harmless when called again."""
        taken, self._taken = self._taken, 0
        self._buffers.give_back(taken)
        if self.file is not None:
            self.file.close()

    def release_after(self, response: Response) -> None:
        """Give everything back once nothing reads the body any more: the answer has begun, but an upload from a file
        may go on until the answer has ended."""
        rest = response.stream
        if self.file is None or rest is None:
            self.release()
            return
        earlier = rest.on_end

        def ended() -> None:
            self.release()
            if earlier is not None:
                earlier()

        rest.on_end = ended


class HeldBody:
    """A `RequestBody`: what is here of it, in a file and then in memory, and after that what still comes from the
    client."""

    __slots__ = ("_data", "_file", "_rest", "complete")
    expects_continue = False

    def __init__(self, file: SpoolFile | None, data: bytes, rest: RequestBody | None) -> None:
        """`rest`: the client's body, whose end is not here yet; None: all of it is."""
        self._file = file
        self._data = data
        self._rest = rest
        # A file may have to be waited for.
        self.complete = file is None and rest is None

    def read(self, most: int = PIECE) -> bytes:
        """The next bytes. Those of memory come in one piece, as they are. Raises what the client's body raises, and
        SpoolUnreadable."""
        if self._file is not None and (data := spooled(self._file, most)):
            return data
        if self._data:
            data, self._data = self._data, b""
            return data
        return b"" if self._rest is None else self._rest.read(most)


def hold(request: Request, buffering: Buffering, buffers: Buffers, deadline: float | None) -> Held | None:
    """Read the body of `request` to its end if it is one that is held, and put what is held in its place; None when
    there is nothing to be released. `deadline`: monotonic seconds until which that may take.

    Raises DeadlineExceeded and what the client's body raises; nothing is held then.
    """
    body, length = request.body, request.content_length
    if body is None or length is None or not buffering.request:
        return None
    held = Held(buffers)
    if length > buffering.request:
        spool = buffers.spool(buffering)
        if spool is None or length > buffering.spool_max:
            return None
        try:
            held.file = spool.open()
        except SpoolError:
            buffers.counts["request_streamed"] += 1
            return None
    try:
        with _until(deadline):
            request.body = _read(body, length, held, buffers)
    except BaseException:
        held.release()
        raise
    return held


def _read(body: RequestBody, length: int, held: Held, buffers: Buffers) -> HeldBody:
    """All of a body, or what there is room for and then the rest as it comes."""
    # However small the pieces are that a client sends: they are not kept one by one.
    data = bytearray()
    came = 0
    while came < length and (piece := body.read()):
        came += len(piece)
        fits = held.take(len(piece))
        data += piece
        if fits and held.file is not None and len(data) >= PIECE:
            fits = held.move_to_file(data)
        if not fits:
            buffers.counts["request_streamed"] += 1
            return HeldBody(held.file, bytes(data), body)
    buffers.counts["request_held"] += 1
    # The door and the upload judge its length.
    return HeldBody(held.file, bytes(data), None)


@contextmanager
def _until(deadline: float | None) -> Iterator[None]:
    """Raise DeadlineExceeded inside when `deadline` passes."""
    if deadline is None:
        yield
        return
    with Timeout(max(deadline - monotonic(), 0.0), DeadlineExceeded("the request's body was not here in time")):
        yield
