"""The bodies of requests, read from the client when somebody wants them.

Rule: a body that cannot be had whole ends with an error, never with `b""`. The clock runs
only while we wait for the client: not while the gateway waits for an upstream, and not
before our `100 Continue` is out.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from gateway.errors import ClientClosed, ClientError, GatewayError, RequestTimeout
from gateway.http.messages import BufferedBody, Request, RequestBody
from gateway.model import ServerSettings
from gateway.net.read_size import BYTES_A_TURN, PIECE
from gateway.net.stream import Stream
from gateway.server.chunked import ChunkedDecoder
from gateway.server.pace import Pace

# The least that is read at once: what follows a body is kept for the next request.
_SMALL_READ = 16 * 1024
# A client that sends next to nothing but chunk sizes lets others run after so many of them, about a
# millisecond, and less of it is read at once.
_LINES_A_TURN = 1024
_FEW = 4 * 1024


class Client(Protocol):
    """What a body needs of the connection that it comes from."""

    stream: Stream
    # Bytes that were read and belong to nobody yet.
    pending: bytes
    settings: ServerSettings
    # The head of the answer is sent, and so many bytes of its body.
    answering: bool
    sent: int

    def send_continue(self) -> None: ...


class _Body:
    """What the two framings share: one read from the client with all its limits."""

    __slots__ = ("_client", "_of_turn", "_pace", "complete", "error", "expects_continue", "received", "request")

    def __init__(self, client: Client, expects_continue: bool) -> None:
        self._client = client
        self.error: GatewayError | None = None
        self._pace: Pace | None = None
        # Bytes read since others had their turn.
        self._of_turn = 0
        self.complete = False
        self.expects_continue = expects_continue
        # Bytes of body handed on so far, also told to the request while there is one.
        self.received = 0
        self.request: Request | None = None

    def _count(self, data: bytes, complete: bool) -> None:
        self.received += len(data)
        if complete and not self.complete:
            self.complete = True
            # Nobody reads any more: from here on the client's end is news.
            self._client.stream.watch()
        if self.request is not None:
            self.request.bytes_in = self.received

    def _fail(self, error: GatewayError) -> GatewayError:
        # A twin is kept: an error that stands where its own traceback leads is cyclic garbage.
        self.error = type(error)(error.cause)
        return error

    def _recv(self, most: int) -> bytes:
        """Read from the client, which may be silent as long as its answer makes progress."""
        client, limit = self._client, self._client.settings.timeouts.body
        while True:
            answered = client.sent if client.answering else -1
            try:
                return client.stream.recv(most, limit)
            except TimeoutError:
                if not client.answering or client.sent == answered:
                    raise

    def _bytes(self, most: int) -> bytes:
        """The next bytes from the client, whatever they are, at most `most`; never none."""
        if self.error is not None:
            raise type(self.error)(self.error.cause)
        client = self._client
        if client.pending:
            data, client.pending = client.pending, b""
            return data
        if self.expects_continue:
            client.send_continue()
            # Not before it is out: the next reader sends the rest if this one was killed.
            self.expects_continue = False
        if self._of_turn >= BYTES_A_TURN:
            self._of_turn = 0
            client.stream.eager = False
        settings = client.settings
        began = monotonic()
        try:
            data = self._recv(most)
        except TimeoutError:
            raise self._fail(RequestTimeout(f"no progress of the body for {settings.timeouts.body} s")) from None
        except OSError as error:
            raise self._fail(ClientClosed(f"client went away inside its body: {error}")) from error
        except GatewayError as error:  # thrown in from outside, to end the exchange
            raise self._fail(error) from None
        if not data:
            raise self._fail(ClientClosed("client closed inside its body"))
        self._of_turn += len(data)
        if settings.min_rate and not client.answering:
            if self._pace is None:
                self._pace = Pace(settings.min_rate)
            if not self._pace.keeps(monotonic() - began, len(data)):
                raise self._fail(RequestTimeout(f"body slower than {settings.min_rate} bytes a second"))
        return data


class LengthBody(_Body):
    """A body whose length was told."""

    __slots__ = ("left",)

    def __init__(self, client: Client, length: int, expects_continue: bool) -> None:
        super().__init__(client, expects_continue)
        self.left = length

    def read(self, most: int = PIECE) -> bytes:
        if not self.left:
            return b""
        data = self._bytes(min(most, max(self.left, _SMALL_READ)))
        if len(data) > self.left:
            data, self._client.pending = data[: self.left], data[self.left :]
        self.left -= len(data)
        self._count(data, complete=not self.left)
        return data


class ChunkedBody(_Body):
    """A body that says piece by piece how long it is. Its trailers are checked and dropped:
    no upstream is told of any (`TE: trailers` is not passed on), and a field that is
    merged late could be one that was already acted upon (RFC 9110 §6.5.1)."""

    __slots__ = ("_decoder", "_lines", "_most", "_ready")
    left: int | None = None

    def __init__(self, client: Client, decoder: ChunkedDecoder, ready: bytes, expects_continue: bool) -> None:
        super().__init__(client, expects_continue)
        self._decoder = decoder
        self._ready = ready
        # The decoder's at the last turn of others.
        self._lines = 0
        # Bytes that are read at once. No more, however fast it is: they may be all chunk sizes.
        self._most = PIECE

    def read(self, most: int = PIECE) -> bytes:
        data, self._ready = self._ready, b""
        while not data and not self._decoder.done:
            arrived = self._bytes(min(most, self._most))
            try:
                data = self._decoder.feed(arrived)
            except ClientError as error:
                raise self._fail(error) from None
            if self._decoder.lines - self._lines >= _LINES_A_TURN:
                self._lines = self._decoder.lines
                self._most = _FEW
                self._client.stream.eager = False
            if self._decoder.done:
                self._client.pending = self._decoder.rest
        self._count(data, complete=self._decoder.done)
        return data


class WholeBody(BufferedBody):
    """A body that arrived together with its head."""

    __slots__ = ("_request", "left", "received")
    error: GatewayError | None = None

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = 0
        self.received = len(data)
        self._request: Request | None = None

    @property
    def request(self) -> Request | None:
        return self._request

    @request.setter
    def request(self, request: Request | None) -> None:
        self._request = request
        if request is not None:
            request.bytes_in = self.received


ArrivingBody = LengthBody | ChunkedBody | WholeBody


def of_length(client: Client, length: int, expects_continue: bool) -> ArrivingBody | None:
    """The body of a request with Content-Length; None for a length of 0."""
    if not length:
        return None
    pending = client.pending
    if len(pending) >= length:
        client.pending = pending[length:]
        return WholeBody(pending[:length])
    return LengthBody(client, length, expects_continue and not pending)


def of_chunks(client: Client, expects_continue: bool) -> ArrivingBody:
    """The body of a request with `Transfer-Encoding: chunked`.

    What came with the head is decoded at once: a body that is wrong from the beginning is
    refused before anybody hears of the request. Raises what the decoder raises.
    """
    decoder = ChunkedDecoder(client.settings.limits)
    pending, client.pending = client.pending, b""
    ready = decoder.feed(pending) if pending else b""
    if decoder.done:
        client.pending = decoder.rest
        return WholeBody(ready)
    return ChunkedBody(client, decoder, ready, expects_continue and not pending)


def _satisfies(body: ArrivingBody) -> RequestBody:
    """For the type checker: each of them is what `exchange` promises."""
    return body
