"""Sending a request's body in a greenlet of its own while the answer is awaited.

Rule: an upload that is cut never looks complete to the upstream: the connection is broken
instead. An upstream that stops reading to answer early (413, 401) is heard: a failed write
is only noted, and reading goes on.
"""

from __future__ import annotations

from gateway.errors import GatewayError
from gateway.exchange import RequestBody
from gateway.model import Timeouts
from gateway.portions import Portions
from gateway.stream import Carrier, Stream
from gateway.transport.answer import AnswerReader


class Upload:
    """One body on its way. `done`: all of it was sent. `client_error`: the client's side
    failed. `failed`: the upstream's side did."""

    __slots__ = (
        "_body",
        "_chunked",
        "_deadline",
        "_greenlet",
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
        chunked: bool,
        timeouts: Timeouts,
        deadline: float | None,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._body = body
        self._chunked = chunked
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
        """Stop reading the body; harmless when it has ended."""
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.kill()

    def _run(self) -> None:
        try:
            self._pump()
        except GatewayError as error:
            self.client_error = error
            self._stream.abort()
        except TimeoutError as error:
            # Only the stream to the upstream raises it; the client's side has its own.
            self.failed = error
            # An upstream that has begun to answer may need no more of the request.
            if not self._reader.parsed:
                self._stream.abort()
        except OSError as error:
            # Perhaps the upstream answered before it closed: the reader will find out.
            self.failed = error
            self._limit_head()
        except BaseException:
            # Killed, or a fault of ours: whoever waits for the answer must not wait for ever.
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
            if self._chunked:
                for rest in stream.send_parts((b"%x\r\n" % size, piece, b"\r\n")):
                    stream.send(rest, timeout)
            else:
                stream.send(piece, timeout)
            # The wait for the next one may be long.
            del piece
            portions.passed(size)
        if self._chunked:
            stream.send(b"0\r\n\r\n", timeout)
