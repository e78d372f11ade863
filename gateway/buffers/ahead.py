"""An answer that is read on while a slow client takes what came before.

Rule: reading ahead begins when the client has been waited for, and not before, so that an answer which its client
takes at once costs nothing and waits for nothing. From then on a greenlet reads at the upstream's speed, into memory
up to `buffer.response`, then into a temporary file where `buffer.spool` names a folder. At the answer's end the
connection to the upstream is released, however much the client has still to take. An error of the upstream is met
by the client's side behind the bytes that came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent import GreenletExit, get_hub
from gevent.event import Event

from gateway.buffers.memory import Buffers
from gateway.buffers.spool import SpoolError, SpoolFile, spooled
from gateway.errors import GatewayError, UpstreamTruncated
from gateway.http.messages import ResponseBody
from gateway.model import Buffering
from gateway.net.read_size import PIECE
from gateway.net.stream import Carrier

# Who was waited for so many seconds in one answer is slow.
SLOW = 0.1


def ahead(stream: ResponseBody, left: int | None, buffers: Buffers) -> Ahead | None:
    """What reads on in `stream`, an answer that a slow client is taking; None when it is (still) not to be.

    `left`: bytes that are to come, None where that is not known. An answer that is longer than what may be held is
    not read ahead until its rest fits: until then its upstream cannot be released anyway.
    """
    buffering = stream.buffering
    if buffering is None or not buffering.response or not stream.sent:
        return None
    most = buffering.response + (0 if buffers.spool(buffering) is None else buffering.spool_max)
    if left is not None and left > most:
        return None
    return Ahead(stream, buffering, buffers)


@contextmanager
def unless_soon(call: Callable[..., object], *args: object) -> Iterator[None]:
    """Have the hub call it if the block is not left within SLOW seconds: for a door whose server sends by itself."""
    timer = get_hub().loop.timer(SLOW)
    timer.start(call, *args)
    try:
        yield
    finally:
        timer.stop()
        timer.close()


class Ahead:
    """A `ResponseBody` that gives what `inner` gives. `close` closes that, too."""

    __slots__ = (
        "_buffering",
        "_buffers",
        "_carrier",
        "_data",
        "_ended",
        "_error",
        "_file",
        "_inner",
        "_more",
        "_reserved",
        "_spool",
        "_streamed",
        "_taken",
        "_waits",
        "_wanted",
        "buffering",
        "most",
        "on_end",
        "on_wait",
        "sent",
    )

    def __init__(self, inner: ResponseBody, buffering: Buffering, buffers: Buffers) -> None:
        self._inner = inner
        self._buffering = buffering
        self._buffers = buffers
        self._spool = buffers.spool(buffering)
        self._file: SpoolFile | None = None
        # What is in memory is older than what is in the file.
        self._data = bytearray()
        # Bytes of memory that were taken, and how many of these a read under way may need.
        self._taken = self._reserved = 0
        # There was no room once, which is counted once.
        self._streamed = False
        self._ended = False
        self._error: Exception | None = None
        # For the client's side, and whether it waits: there is something to take, or the end came.
        self._more = Event()
        self._waits = False
        # For the carrier: something was taken, or is waited for.
        self._wanted = Event()
        self.most = PIECE
        # That of `inner` is called when its end comes.
        self.on_end: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] | None = None
        self.buffering: Buffering | None = None
        self.sent = True
        buffers.counts["answer_held"] += 1
        self._carrier = Carrier.spawn(self._run)

    # -- the client's side ----------------------------------------------------------------

    def read(self) -> bytes:
        """The next piece, as of `ResponseBody`. Raises what `inner` raised, and SpoolUnreadable."""
        while True:
            if self._data:
                with memoryview(self._data) as held:
                    piece = bytes(held[: self.most])
                del self._data[: len(piece)]
                self._settle()
                self._wanted.set()
                return piece
            if self._file is not None and self._file.unread:
                piece = spooled(self._file, self.most)
                self._wanted.set()
                return piece
            if self._ended:
                return self._end()
            self._wait()

    def _wait(self) -> None:
        self._more.clear()
        self._waits = True
        self._wanted.set()
        try:
            self._more.wait()
        finally:
            self._waits = False

    def _end(self) -> bytes:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return b""
        finally:
            # Its traceback leads to this frame: only the collector would find the two.
            error = None

    def close(self) -> None:
        """Drop what is held and close the answer. Harmless when called again."""
        try:
            self._carrier.kill()
        finally:
            self._data.clear()
            self._reserved = 0
            self._settle()
            if self._file is not None:
                self._file.close()
            self._inner.close()

    # -- the upstream's side --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                to_file, self._inner.most = self._room()
                piece = self._inner.read()
                if not piece:
                    break
                self._keep(piece, to_file)
                # The wait for the next one may be long.
                del piece
        except GreenletExit:
            # Raising it again would end the greenlet no better, and keep a traceback.
            self._error = _cut()
        except Exception as error:
            # Raised again on the client's side, where it is judged: its own frames are none of that.
            self._error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
        except BaseException:
            self._error = _cut()
            raise
        finally:
            self._reserved = 0
            self._settle()
            self._ended = True
            self._more.set()

    def _room(self) -> tuple[bool, int]:
        """Where the next piece goes (True: into the file) and how large it may be. Waits until there is room, or until
        the client's side has nothing to do without it."""
        while True:
            behind = self._file is not None and self._file.unread > 0
            size = min(self._buffering.response - len(self._data), PIECE)
            if not behind and size > 0 and self._buffers.take(size):
                self._taken += size
                self._reserved = size
                return False, size
            if self._spool is not None:
                return True, PIECE
            if not behind and not self._data and self._waits:
                return False, PIECE
            self._count_streamed()
            self._wanted.clear()
            self._wanted.wait()

    def _keep(self, piece: bytes, to_file: bool) -> None:
        if not to_file or not self._append(piece):
            self._data += piece
        self._reserved = 0
        self._settle()
        self._more.set()

    def _append(self, piece: bytes) -> bool:
        """Put a piece behind what is in the file; False when that does not take it. The file was given to the client's
        side then."""
        assert self._spool is not None
        try:
            if self._file is None:
                self._file = self._spool.open()
            self._file.append(piece)
        except SpoolError:
            # From here on there is memory alone.
            self._spool = None
            self._count_streamed()
            while self._file is not None and self._file.unread:
                self._more.set()
                self._wanted.clear()
                self._wanted.wait()
            return False
        return True

    def _count_streamed(self) -> None:
        if not self._streamed:
            self._streamed = True
            self._buffers.counts["answer_streamed"] += 1

    def _settle(self) -> None:
        """Give back memory that neither what is held nor a read needs."""
        surplus = self._taken - self._reserved - len(self._data)
        if surplus > 0:
            self._taken -= surplus
            self._buffers.give_back(surplus)


def _cut() -> GatewayError:
    """What is here of an answer that was not read to its end never looks complete."""
    return UpstreamTruncated("reading ahead was ended from outside")
