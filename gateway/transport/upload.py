"""Sending a request's body in a greenlet of its own while the answer is awaited.

Rule: bytes are counted. An upload is complete at the announced length or at the terminating
chunk and nowhere else (RFC 9112 §6.2, §7.1); one that ends otherwise never looks complete to
the upstream: the connection is broken instead. An upstream that stops reading in order to
answer early (413, 401) is heard: a failed write is only noted, and reading goes on.
"""

from __future__ import annotations

from gevent import GreenletExit

from gateway.errors import GatewayError
from gateway.http.messages import RequestBody
from gateway.model import Timeouts
from gateway.net.read_size import Portions
from gateway.net.stream import Carrier, Stream
from gateway.transport.answer import AnswerReader


class WrongLength(GatewayError):
    """A fault of the gateway or of code in front of it: a request body that is not as long as its
    head announces. The upstream never takes it for a whole one."""


def whole(body: RequestBody, length: int | None) -> bytes:
    """A complete body as it goes on the wire: `length` bytes, or (None) one chunk and the last
    one. Raises WrongLength."""
    data = body.read()
    while more := body.read():
        data += more
    if length is None:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
    if len(data) != length:
        raise WrongLength(f"a request body of {len(data)} bytes with Content-Length {length}")
    return data


class Upload:
    """One body being sent. `length`: the announced one; None: chunked. `done`: all of it was sent.
    `client_error`: the client's side failed. `failed`: the upstream's side did."""

    __slots__ = (
        "_body",
        "_deadline",
        "_greenlet",
        "_left",
        "_reader",
        "_stream",
        "_timeouts",
        "client_error",
        "done",
        "failed",
    )

    def __init__(
        self,
        reader: AnswerReader,
        stream: Stream,
        body: RequestBody,
        length: int | None,
        timeouts: Timeouts,
        deadline: float | None,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._body = body
        # Announced bytes that were not sent yet; None: chunked.
        self._left = length
        self._timeouts = timeouts
        self._deadline = deadline
        self._greenlet: Carrier | None = None
        self.done = False
        self.failed: OSError | None = None
        self.client_error: GatewayError | None = None

    def start(self) -> None:
        self._greenlet = Carrier.spawn(self._run)

    @property
    def started(self) -> bool:
        return self._greenlet is not None

    def cancel(self) -> None:
        """Stop sending, and return when the body is not read any more. Harmless when it has ended."""
        # An error that is kept where its own traceback leads is garbage for the collector alone.
        self.failed = self.client_error = None
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.kill()

    def _run(self) -> None:
        try:
            self._pump()
        except GatewayError as error:
            self.client_error = error.with_traceback(None)
            self._stream.abort()
        except TimeoutError as error:
            # Only the stream to the upstream raises it; the client's side has its own.
            self.failed = error.with_traceback(None)
            # An upstream that has begun to answer may need no more of the request.
            if not self._reader.parsed:
                self._stream.abort()
        except OSError as error:
            # Perhaps the upstream answered before it closed: the reader will find out.
            self.failed = error.with_traceback(None)
            self._limit_head()
        except GreenletExit:
            # Cancelled. Raising it again would end the greenlet no better, and keep a traceback.
            self._stream.abort()
        except BaseException:
            # A fault of ours: end the wait for the answer as well.
            self._stream.abort()
            raise
        else:
            self.done = True
            self._limit_head()

    def _limit_head(self) -> None:
        """The wait for the head is limited from the request's end on."""
        reader = self._reader
        if not reader.parsed:
            reader.limit(self._timeouts.response, self._deadline)
            self._stream.limit(reader.left)

    def _pump(self) -> None:
        stream, timeout = self._stream, self._timeouts.write
        portions = Portions(stream)
        while piece := self._body.read(portions.next()):
            size = len(piece)
            if self._left is None:
                for rest in stream.send_parts((b"%x\r\n" % size, piece, b"\r\n")):
                    stream.send(rest, timeout)
            else:
                if size > self._left:
                    raise WrongLength(f"a request body longer than its Content-Length by {size - self._left} bytes")
                self._left -= size
                stream.send(piece, timeout)
            # The wait for the next one may be long.
            del piece
            portions.passed(size)
        if self._left is None:
            stream.send(b"0\r\n\r\n", timeout)
        elif self._left:
            raise WrongLength(f"a request body shorter than its Content-Length by {self._left} bytes")
