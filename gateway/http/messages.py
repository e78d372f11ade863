"""Request and Response as doors, filters and forwarder see them: bytes, lists, no framework.

Rule: nothing here knows which door made it. A door makes a `Request`, hands it to
`Gateway.handle`, writes the `Response` that comes back, and says how that went by
`Gateway.finish`. Header lists keep the case, order and number of what came.

The body of a request is read on demand: reading is what makes a `100 Continue` go out,
so nobody reads before it is known that the body is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gateway.net.read_size import PIECE

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.model import Buffering, Endpoint, Route, Upstream
    from gateway.net.stream import Stream

_EVENTS = b"text/event-stream"
_EVENT_STREAM = re.compile(rb"(?:\A|\n)content-type: " + _EVENTS, re.IGNORECASE)

Header = tuple[bytes, bytes]
Headers = list[Header]


class RequestBody(Protocol):
    """The body of one request, read on demand.

    `complete`: every byte is already here and `read` will neither wait nor fail.
    `expects_continue`: the client waits for `100 Continue`, which the first `read` sends.
    """

    @property
    def complete(self) -> bool: ...

    @property
    def expects_continue(self) -> bool: ...

    def read(self, most: int = PIECE) -> bytes:
        """The next piece as it arrives, of `most` bytes or so; `b""` is the end.

        Raises a `ClientError` (`ClientClosed`, `RequestTimeout`, `BadRequest`,
        `BodyTooLarge`) when the body cannot be had whole: a short body never looks
        complete.
        """
        ...


class BufferedBody:
    """A body of which every byte is here already."""

    __slots__ = ("_data",)
    complete = True
    expects_continue = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, most: int = PIECE) -> bytes:
        data, self._data = self._data, b""
        return data


class ResponseBody(Protocol):
    """What is still to come of an answer's body. `on_end` is called once, at its end. `most`:
    the bytes that one `read` may return, 64 KiB unless a door says otherwise. A door calls
    `on_wait` when it is the client that is waited for. `buffering`: how much may be read ahead of
    a slow client; None: nothing. `sent`: the whole request was sent."""

    most: int
    on_end: Callable[[], None] | None
    on_wait: Callable[[], None] | None
    buffering: Buffering | None

    @property
    def sent(self) -> bool: ...

    def read(self) -> bytes:
        """The next piece as it arrives; `b""` is the proper end.

        Raises `UpstreamTruncated`, `UpstreamStalled` or `BadResponse` when the proper end
        will not come. After `b""` or an error the upstream connection is already given back.
        """
        ...

    def close(self) -> None:
        """Give the upstream connection back (or break it); harmless when called again."""
        ...


class Tunnel(Protocol):
    """An upgraded upstream connection, handed to the door that owns the client's socket.
    `on_end` is called once, at its end."""

    on_end: Callable[[], None] | None

    def run(self, client: Stream, early: bytes) -> tuple[int, int]:
        """Pump both ways until both sides are done; `early` is what the client had sent
        behind its handshake. Returns (bytes from the client, bytes to the client); raises
        TunnelFault with them."""
        ...

    def close(self) -> None: ...


class Request:
    """One request as it came, and what becomes known of it along the line.

    The first group of attributes is given by the door; the second is filled in as the
    request passes, and is what the access log reads.
    """

    __slots__ = (
        "attempts",
        "body",
        "bytes_in",
        "cause",
        "chunked",
        "client",
        "config_version",
        "connect_s",
        "content_length",
        "endpoint",
        "fields",
        "first_byte_s",
        "headers",
        "host",
        "http11",
        "interim",
        "method",
        "peer",
        "port",
        "queue_s",
        "reason",
        "request_id",
        "reused",
        "route",
        "scheme",
        "started",
        "target",
        "trace_id",
        "upgrade",
        "upstream",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        started: float,
        peer: str = "",
        scheme: str = "http",
        port: int = 80,
        http11: bool = True,
        content_length: int | None = None,
        chunked: bool = False,
        body: RequestBody | None = None,
        interim: Callable[[int, Headers], None] | None = None,
        upgrade: bytes | None = None,
        host: bytes = b"",
    ) -> None:
        # As on the wire. `target` may be any of RFC 9112 §3.2's forms but authority-form.
        self.method = method
        self.target = target
        self.headers = headers
        # The header fields that routes and balancers read: those of the client, or, if a route or balancer reads
        # a field that only a trusted peer may set, those that will be forwarded (headers.Outbound.view).
        self.fields = headers
        self.http11 = http11
        # Framing, already judged by the door: at most one of the two is set. With neither
        # there is no body; `body` is None then, and also for a length of 0.
        self.content_length = content_length
        self.chunked = chunked
        self.body = body
        # Who asked and how. `peer`: the address without port, "" for a unix socket.
        # `scheme`: "http" or "https" as spoken to us; `port`: the port we listen on.
        self.peer = peer
        self.scheme = scheme
        self.port = port
        # `time.monotonic()` when the first byte of the head was there.
        self.started = started
        # Sends a 1xx on to the client at once; None when the door or the client cannot.
        self.interim = interim
        # The one token of `Upgrade`, lower case, when the door could make a tunnel of it.
        self.upgrade = upgrade

        # The authority asked for, as it came; a door that has looked at Host says it.
        self.host = host
        self.client = ""
        self.request_id = b""
        self.trace_id = ""
        # That of the configuration which serves it; empty until it has taken a snapshot.
        self.config_version = ""
        self.route: Route | None = None
        self.upstream: Upstream | None = None
        self.endpoint: Endpoint | None = None
        self.attempts = 0
        self.reused = False
        self.bytes_in = 0
        self.queue_s = 0.0
        self.connect_s = 0.0
        self.first_byte_s = 0.0
        self.reason = ""
        self.cause = ""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, its name in any case; None when there is none."""
        wanted = name.lower()
        for field, value in self.headers:
            if len(field) == len(wanted) and field.lower() == wanted:
                return value
        return None

    def field(self, name: bytes) -> bytes | None:
        """The first value of a field as routes and balancers read it (`fields`), its name in any case."""
        wanted = name.lower()
        return next((value for field, value in self.fields if field.lower() == wanted), None)

    def cookie(self, name: bytes) -> bytes:
        """The first value of a cookie; empty when there is none. Pairs stand behind "; " (RFC 6265
        §4.2.1); servers read them with less or more white space, too."""
        for field, pairs in self.headers:
            if len(field) == 6 and field.lower() == b"cookie":
                for pair in pairs.split(b";"):
                    key, _, value = pair.partition(b"=")
                    if key.strip(b" \t") == name:
                        return value.strip(b" \t")
        return b""

    def fail(self, error: GatewayError) -> None:
        """Note an error for the log; the first one is the cause, later ones follow it."""
        self.reason = error.reason
        told = error.cause or error.detail
        self.cause = f"{self.cause}; then {told}" if self.cause else told


class Response:
    """One answer: head, what is here of the body, and where the rest comes from.

    `data` is the part of the body that is here; `stream` the rest, None when `data` is
    all of it. `content_length` None with a body means that its end is not known ahead:
    a door uses chunked for HTTP/1.1 and the end of the connection for HTTP/1.0. `headers`
    hold no framing (Content-Length, Transfer-Encoding) and no hop-by-hop field: a door
    writes those itself. `bodyless`: HEAD, 204 and 304, where `content_length` is only told.

    `block` are the header fields as they go on the wire (`name: value` lines joined by CRLF),
    for as long as nobody has asked for `headers`: whoever does may change the list, so from
    then on the list alone counts and `block` is empty.
    """

    __slots__ = (
        "_headers",
        "block",
        "bodyless",
        "close",
        "content_length",
        "data",
        "reason",
        "status",
        "stream",
        "tunnel",
    )

    def __init__(
        self,
        status: int,
        reason: bytes,
        headers: Headers,
        block: bytes = b"",
        content_length: int | None = None,
        data: bytes = b"",
        stream: ResponseBody | None = None,
        bodyless: bool = False,
        close: bool = False,
        tunnel: Tunnel | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self._headers = headers
        self.block = block
        self.content_length = content_length
        self.data = data
        self.stream = stream
        self.bodyless = bodyless
        # The door must not keep the client's connection after this answer.
        self.close = close
        self.tunnel = tunnel

    @property
    def headers(self) -> Headers:
        """The header fields, in order, to be read and changed."""
        if self.block:
            pairs = (line.split(b": ", 1) for line in self.block.split(b"\r\n"))
            self._headers = [(name, value) for name, value in pairs]
            self.block = b""
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers
        self.block = b""

    def is_event_stream(self) -> bool:
        """Whether its Content-Type is text/event-stream."""
        if self.block:
            return _EVENT_STREAM.search(self.block) is not None
        return any(
            name.lower() == b"content-type" and value.lower().startswith(_EVENTS) for name, value in self._headers
        )
