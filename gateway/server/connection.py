"""One client connection: heads in, answers out, one after another, until it ends.

Rule: one greenlet runs it. Requests are answered in the order in which they came, and a
request begins only where the one before it ended: after anything that leaves that place
unknown, or a body that nobody read and that is too long to throw away, the connection is
closed so that the answer can still be read.

While an exchange runs, the hub watches the socket: a client that hung up ends the exchange
by an exception thrown into the greenlet, wherever that waits (`ClientClosed`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, Protocol

from gevent import get_hub, getcurrent
from gevent.event import Event

from gateway.buffers.ahead import SLOW, Ahead, ahead
from gateway.buffers.memory import Buffers
from gateway.errors import (
    BadRequest,
    BadResponse,
    ClientClosed,
    ClientError,
    Draining,
    GatewayError,
    HeaderTooLarge,
    RequestTimeout,
    TunnelFault,
    UpstreamTruncated,
    UriTooLong,
    WriteTimeout,
)
from gateway.http.messages import Headers, Request, Response, ResponseBody, Tunnel
from gateway.model import ServerSettings
from gateway.net.read_size import PIECE, TOLD_PIECE, Portions
from gateway.net.stream import Stream
from gateway.runtime.hub import breathe
from gateway.server import proxy_protocol as preamble
from gateway.server import writer
from gateway.server.body import ArrivingBody, of_chunks, of_length
from gateway.server.intake import Closable, Places
from gateway.server.pace import Pace
from gateway.server.parser import Before, HeadParser

log = logging.getLogger(__name__)

# One read of heads. A head of a few hundred bytes fits many times.
_READ = 16 * 1024
# Empty lines before a request line that are skipped (RFC 9112 §2.2: "at least one").
_MOST_EMPTY_LINES = 8
# What may stand at the beginning of a method (RFC 9110 §5.6.2).
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# An unread body is read and thrown away within these, to keep the connection …
_DRAIN_BYTES = 256 * 1024
_DRAIN_SECONDS = 1.0
# … or else to close it without the RST that would take our answer from the client (RFC 9112
# §9.6; nginx's lingering_close): up to `limits.linger` bytes, so long without a byte, so long in all.
LINGER_QUIET = 5.0
LINGER_SECONDS = 30.0
_READS_A_TURN = 16
# How often a blocked write looks whether the client takes anything.
_LONGEST_LOOK = 5.0
_NO_BODY = frozenset({204, 304})


class Door(Protocol):
    """Who answers requests: the gateway, or a WSGI application in its place."""

    def handle(self, request: Request) -> Response | None:
        """None: the request is to be answered by the WSGI application."""
        ...

    def answer(self, error: GatewayError, request: Request) -> Response: ...

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        """The exchange is over. `error`: what went wrong outside `handle`."""
        ...


class Application(Protocol):
    """The WSGI application of this worker, for what `Door.handle` leaves to it."""

    def serve(self, connection: Connection, request: Request, body: ArrivingBody | None) -> None:
        """Answer the request by the connection's `begin`, `more` and `end`."""
        ...


@dataclass(slots=True)
class Shared:
    """What all connections of one worker have in common."""

    door: Door
    application: Application
    settings: ServerSettings
    parser: HeadParser
    # `worn` is called once `left` requests have been served (gunicorn's max_requests).
    worn: Callable[[], None]
    left: float = inf
    # No connection is kept any more: the worker is leaving (or gunicorn's keepalive is 0).
    closing: bool = False
    connections: set[Connection] = field(default_factory=set)
    # Those of them that may be closed for a new one.
    places: Places = field(default_factory=Places)
    # What is held of bodies for slow clients.
    buffers: Buffers = field(default_factory=lambda: Buffers(0))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection came in: what a listener knows of itself."""

    scheme: str
    port: int
    address: str = ""


def without_body(request: Request, response: Response) -> bool:
    """Whether the answer ends with its head, whatever length that tells (RFC 9112 §6.3)."""
    return response.bodyless or response.status in _NO_BODY or request.method == b"HEAD"


class Connection:
    """See the module's docstring. `run` serves the connection to its end and closes it."""

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_body",
        "_by_reset",
        "_chunked",
        "_continued",
        "_delimited",
        "_greenlet",
        "_half_closed",
        "_idle",
        "_keep",
        "_opens_ahead",
        "_owed",
        "_pace",
        "_passing",
        "_paying",
        "_silent",
        "_told",
        "_tunnel",
        "_waited",
        "answering",
        "busy",
        "closed_for_another",
        "gone",
        "idle_since",
        "lingers_since",
        "peer",
        "peer_port",
        "pending",
        "place",
        "proxy_protocol",
        "sent",
        "settings",
        "shared",
        "started",
        "stream",
    )

    def __init__(
        self,
        shared: Shared,
        stream: Stream,
        place: Place,
        peer: str,
        peer_port: int = 0,
        proxy_protocol: str = "off",
        opens_ahead: bool = False,
    ) -> None:
        self.shared = shared
        self.settings = shared.settings
        self.stream = stream
        self.place = place
        self.peer = peer
        self.peer_port = peer_port
        # gunicorn's setting; "off" for a peer that is not allowed to speak it.
        self.proxy_protocol = proxy_protocol
        # The peer may open connections before it has requests for them.
        self._opens_ahead = opens_ahead
        # It has not waited for its first byte yet.
        self._silent = True
        self._idle = shared.places.idle
        # Since when the last answer is out and what still comes is read and dropped; None: it is not.
        self.lingers_since: float | None = None
        # It was closed so that another one could be accepted.
        self.closed_for_another = False
        # Bytes that were read and belong to nobody yet.
        self.pending = b""
        # When the first byte of the current head was there.
        self.started = 0.0
        # Since when there is nothing to do but to wait for the next request; None: there is.
        self.idle_since: float | None = None
        # An exchange runs; it ends early for the reason in `gone`.
        self.busy = False
        self.gone: GatewayError | None = None
        self._greenlet: Any = None
        # That of the request which is answered.
        self._body: ArrivingBody | None = None
        # What it has become.
        self._tunnel: Tunnel | None = None
        self._half_closed: Any = None
        self._pace: Pace | None = None
        # The rest of the answer that is being written, until it is read ahead of the client by `_ahead`; seconds
        # that the client was waited for in it.
        self._passing: ResponseBody | None = None
        self._ahead: Ahead | None = None
        self._waited = 0.0
        # The answer that is being written. `answering`: its head is (being) sent.
        self.answering = False
        self.sent = 0
        self._keep = False
        self._chunked = False
        self._told: int | None = None
        self._delimited = False
        # Whatever is not out yet is not to be sent any more.
        self._by_reset = False
        # `100 Continue` was sent, or is owed. `_owed`: bytes of interim answers that are not out;
        # `_paying`: a greenlet is sending them.
        self._continued = False
        self._owed = b""
        self._paying: Event | None = None

    def run(self) -> None:
        """Serve requests until the connection ends, and close it."""
        self._greenlet = getcurrent()
        stream = self.stream
        stream.on_readable = self._readable
        # The first request is mostly there already.
        stream.eager = True
        self.shared.connections.add(self)
        try:
            self._serve()
        except OSError:
            pass  # the client is gone, and nothing was under way
        finally:
            self.shared.connections.discard(self)
            self._stop_half_closed()
            stream.close()

    def _serve(self) -> None:
        shared, parser = self.shared, self.shared.parser
        if self.proxy_protocol != "off" and not self._preamble():
            return
        before: Before | None = None
        while True:
            head: bytes | None = None
            try:
                head = self._head()
                if head is None:
                    self._say_the_end()
                    return
                before = parser.parse(head, before)
                body: ArrivingBody | None = None
                if parser.content_length is not None:
                    body = of_length(self, parser.content_length, parser.expects_continue)
                elif parser.chunked:
                    body = of_chunks(self, parser.expects_continue)
            except ClientError as error:
                self._refuse(error, head)
                return
            # It is read; a slow client is not to have it kept.
            del head
            request = Request(
                parser.method,
                parser.target,
                parser.headers,
                self.started,
                self.peer,
                self.place.scheme,
                self.place.port,
                parser.http11,
                parser.content_length,
                parser.chunked,
                body,
                self.send_interim if parser.http11 else None,
                parser.upgrade,
                parser.host,
            )
            if body is not None:
                body.request = request
            shared.left -= 1
            if shared.left <= 0:
                shared.left = inf
                shared.worn()
            self._keep = parser.keep_alive
            self._exchange(request, body)
            if not self._keep:
                self._part(body is None or body.complete)
                return

    # -- reading a head ---------------------------------------------------------------

    def _head(self) -> bytes | None:
        """The bytes of the next head, None at the end of the connection. What is here of one that is
        refused is left in `pending`."""
        data = self.pending
        if not data:
            idle, limit = self._idle, self.settings.timeouts.keepalive
            if self._silent:
                idle, limit = self._first_wait()
            self.idle_since = monotonic()
            idle[self] = None
            try:
                data = self.stream.recv(_READ, limit)
            except TimeoutError:
                return None
            finally:
                self.idle_since = None
                idle.pop(self, None)
            # A client that floods us with requests gets one buffer of them a turn.
            self.stream.eager = False
            if not data:
                return None
        self.started = monotonic()
        end = data.find(b"\r\n\r\n") + 4
        if end == 3 or data[0] == 13:
            # Not one more frame, and nothing twice, for as long as a slow client may take.
            begun = bytearray(data)
            del data
            try:
                return self._head_in_pieces(begun)
            except ClientError:
                self.pending = bytes(begun)
                raise
        if end == len(data):
            self.pending = b""
            return data
        self.pending = data[end:]
        return data[:end]

    def _first_wait(self) -> tuple[dict[Closable, None], float | None]:
        """Among which connections it waits for its first byte, and how long."""
        self._silent = False
        timeouts = self.settings.timeouts
        return self.shared.places.silent, timeouts.keepalive if self._opens_ahead else timeouts.header

    def _head_in_pieces(self, buffer: bytearray) -> bytes | None:
        """A head that did not come at once, or has empty lines before it. `buffer`: what is here of it."""
        limit = self.settings.timeouts.header
        deadline = inf if limit is None else self.started + limit
        empty_lines = seen = 0
        # Where the request line ends, once that is known: it is searched for in new bytes alone.
        line_end = -1
        while True:
            while buffer.startswith(b"\r\n") and empty_lines < _MOST_EMPTY_LINES:
                del buffer[:2]
                empty_lines += 1
            end = buffer.find(b"\r\n\r\n", max(seen - 3, 0)) + 4
            if end != 3:
                self.pending = bytes(buffer[end:])
                return bytes(buffer[:end])
            line_end = self._plausible(buffer, seen, line_end)
            seen = len(buffer)
            try:
                data = self.stream.recv(_READ, None if limit is None else max(deadline - monotonic(), 0.0))
            except TimeoutError:
                if not buffer:
                    return None  # nothing but empty lines: nobody waits for an answer
                raise RequestTimeout(f"no whole head in {limit} s") from None
            if not data:
                if not buffer:
                    return None
                raise BadRequest("the connection ended inside a head")
            buffer += data

    def _plausible(self, buffer: bytearray, seen: int, line_end: int) -> int:
        """Refuse the beginning of a head that can become none, as soon as that is known. `seen`: how
        many of its bytes were looked at before; `line_end`: where its first line ends, -1 as long as
        that is not known. Returns the new `line_end`."""
        if not buffer or buffer == b"\r":
            return -1
        if buffer[0] not in _TOKEN_BYTES:
            raise BadRequest(f"a request does not begin with {bytes(buffer[:8])!r}")
        lf = buffer.find(b"\n", seen)
        while lf >= 0:
            if buffer[lf - 1] != 13:
                raise BadRequest("a line ends with a bare LF")
            lf = buffer.find(b"\n", lf + 1)
        limits = self.settings.limits
        if line_end < 0:
            line_end = buffer.find(b"\r\n", max(seen - 1, 0))
            if line_end < 0:
                if limits.request_line and len(buffer) > limits.request_line + 1:
                    raise UriTooLong(f"request line of more than {limits.request_line} bytes")
                return -1
            self.shared.parser.request_line(bytes(buffer[:line_end]))
        if limits.header and len(buffer) - line_end > limits.header + 4:
            raise HeaderTooLarge(f"header lines of more than {limits.header} bytes")
        return line_end

    def _preamble(self) -> bool:
        """Read the PROXY protocol's header, if there is one; False when the connection ended."""
        limit = self.settings.timeouts.header
        deadline = None if limit is None else monotonic() + limit
        silent = self.shared.places.silent
        self.idle_since = monotonic()
        silent[self] = None
        begun = bytearray()
        while True:
            try:
                data = self.stream.recv(_READ, None if deadline is None else max(deadline - monotonic(), 0.0))
            except TimeoutError:
                return False
            finally:
                self.idle_since = None
                silent.pop(self, None)
            if not data:
                return False
            begun += data
            try:
                found = preamble.read(begun, self.proxy_protocol)
            except BadRequest as error:
                self.pending = bytes(begun)
                self.started = monotonic()
                self._refuse(error, None)
                return False
            if found is not None:
                self.pending = bytes(begun[found.length :])
                if found.peer is not None:
                    self.peer, self.peer_port = found.peer, found.port
                return True

    # -- one exchange -----------------------------------------------------------------

    def _exchange(self, request: Request, body: ArrivingBody | None) -> None:
        """Answer one request; `_keep` says afterwards whether there may be another. However it
        ends, the log has one record of it."""
        door = self.shared.door
        response: Response | None = None
        error: GatewayError | None = None
        # An application in the gateway's place logs by itself.
        logs_itself = False
        self.answering = self._continued = False
        self.sent = 0
        self._waited = 0.0
        self.gone = None
        self._body = body
        self.busy = True
        self.stream.watch()
        try:
            try:
                response = door.handle(request)
            except GatewayError as thrown:
                # Without the traceback, which leads to this frame.
                error = thrown.with_traceback(None)
            except Exception as failure:
                error = self.failed(failure)
            if response is not None and not request.reason and self.gone is None:
                error = self.write(request, response, body)
            elif response is None and error is None:
                logs_itself = True
                self.shared.application.serve(self, request, body)
            else:
                response, error = self._deliver(request, response, error, body)
        except BaseException:
            self._keep = False
            error = error or Draining("the exchange was ended from outside")
            raise
        finally:
            try:
                self._settle(body)
            finally:
                if not logs_itself:
                    door.finish(request, response, self.sent, error)
                # The traceback of its cause leads to this frame: only the collector would find the two.
                error = None
        if self._keep and body is not None and not body.complete:
            # What is left of the request must go; it is logged, and holds no slot.
            self._keep = self._drain(body)

    def _deliver(
        self, request: Request, response: Response | None, error: GatewayError | None, body: ArrivingBody | None
    ) -> tuple[Response | None, GatewayError | None]:
        """Write the answer, or drop it if the client has left; what the log records."""
        if response is not None and request.reason == ClientClosed.reason:
            self.discard(response)  # `handle` has recorded it
            return response, None
        if self.gone is not None or isinstance(error, ClientClosed):
            self.discard(response)
            return None, error or self.gone
        if response is None:
            assert error is not None
            response = self.shared.door.answer(error, request)
        return response, self.write(request, response, body)

    def _settle(self, body: ArrivingBody | None) -> None:
        """The answer is out or broken off."""
        self.busy = False
        if body is not None:
            body.request = self._body = None
        self._stop_half_closed()
        if self.stream.waiting:  # somebody still reads the body that nobody wants any more
            self._keep = False

    def failed(self, failure: BaseException) -> GatewayError:
        """A fault of the gateway (or of a WSGI application), with its traceback in the log."""
        log.error("a request failed", exc_info=failure)
        return GatewayError(f"{type(failure).__name__}: {failure}")

    def write(self, request: Request, response: Response, body: ArrivingBody | None) -> GatewayError | None:
        """Write a whole answer and release what it comes from; what went wrong, if something did."""
        stream = response.stream
        wrong: GatewayError | None = None
        released: GatewayError | None = None
        try:
            try:
                if response.tunnel is not None:
                    self.open_tunnel(request, response)
                    return None
                if stream is None or without_body(request, response):
                    self.begin(request, response, body, stream is None)
                else:
                    self._passing = stream
                    self.begin(request, response, body, False)
                    self._pass_on(stream)
                    self.end()
            except GatewayError as error:
                self.break_off()
                wrong = error.with_traceback(None)
            except OSError as error:  # of a tunnel: nothing else here lets one out
                self.break_off()
                wrong = ClientClosed(f"the tunnel broke: {error}")
            except Exception as failure:
                wrong = self.failed(failure)
                self._passing = None
                if self.answering:
                    self.break_off()
                else:
                    self.write(request, self.shared.door.answer(wrong, request), body)
            finally:
                if stream is not None:
                    released = self._release(stream)
            return wrong or released
        finally:
            # The traceback of its cause leads to this frame: only the collector would find the two.
            wrong = None

    def _release(self, stream: ResponseBody) -> GatewayError | None:
        """Give back what an answer came from; a fault in that ends the connection after the answer."""
        self._passing = None
        if self._ahead is not None:
            stream, self._ahead = self._ahead, None
        # This may wait for the end of an upload. The client's leaving changes nothing any
        # more, so it is not thrown in here.
        self.busy = False
        try:
            stream.close()
        except Exception as failure:
            self._keep = False
            return self.failed(failure)
        return None

    def _pass_on(self, stream: ResponseBody) -> None:
        portions = Portions(self.stream, PIECE if self._told is None else TOLD_PIECE)
        if self._ahead is not None:
            stream = self._ahead
        while True:
            stream.most = portions.next()
            piece = stream.read()
            if not piece:
                return
            self.more(piece)
            size = len(piece)
            # The wait for the next one may be long.
            del piece
            if self._ahead is not None:
                stream = self._ahead
            if portions.passed(size):
                breathe()

    def open_tunnel(self, request: Request, response: Response) -> None:
        """Answer 101 and carry bytes both ways until the tunnel ends."""
        tunnel = response.tunnel
        assert tunnel is not None
        self._keep = False
        self.answering = True
        try:
            headers = [*response.headers, (b"Connection", b"Upgrade")]
            if not any(name.lower() == b"upgrade" for name, _ in response.headers):
                headers.append((b"Upgrade", request.upgrade or b""))
            head = writer.head(response.status, response.reason, writer.fields(headers), b"", b"")
            self._send(self._owed_first() + head)
            # From here on both directions are the tunnel's.
            self.busy = False
            self._stop_half_closed()
            self.stream.on_readable = None
            early, self.pending = self.pending, b""
            self._tunnel = tunnel
            try:
                request.bytes_in, self.sent = tunnel.run(self.stream, early)
            except TunnelFault as fault:
                request.bytes_in, self.sent = fault.sent, fault.received
                raise
            # Its ends were relayed by the tunnel, which also waited for what was to be taken.
            self.stream.close()
        finally:
            tunnel.close()

    def _refuse(self, error: ClientError, head: bytes | None) -> None:
        """Answer a request that is none, or not one that can be served, and be done. `head` None: there
        is no whole one."""
        parser = self.shared.parser
        parsed = head is not None
        begun = self.pending if head is None else head
        request = Request(
            # An answer to HEAD has no body, whatever is wrong with the rest.
            (parser.method if parsed else b"") or (b"HEAD" if begun.startswith(b"HEAD ") else b"-"),
            (parser.target if parsed else b"") or b"-",
            parser.headers if parsed else [],
            started=self.started,
            peer=self.peer,
            scheme=self.place.scheme,
            port=self.place.port,
            http11=parser.http11 if parsed else True,
        )
        self.answering = False
        self.sent = 0
        self._keep = False
        response = self.shared.door.answer(error, request)
        failure = self.write(request, response, None)
        self.shared.door.finish(request, response, self.sent, failure)
        self._part(done=False)

    # -- writing ----------------------------------------------------------------------

    def begin(self, request: Request, response: Response, body: ArrivingBody | None, complete: bool) -> None:
        """Send the head and what is here of the body; settles how the rest is framed.
        `complete`: `response.data` is all of the body."""
        status, data, length = response.status, response.data, response.content_length
        keep = self._keep and not response.close and not self.shared.closing
        if keep and body is not None and not body.complete:
            # Not kept when the client waits for a 100 that will not come, or when more is
            # to come than is thrown away.
            keep = not body.expects_continue and (body.left is None or body.left <= _DRAIN_BYTES)
        framing = b""
        self._chunked = self._delimited = False
        self._told = None
        if without_body(request, response):
            if length is None and complete and data:
                length = len(data)
            data = b""
            if length is not None and status != 204:  # RFC 9110 §8.6
                framing = b"Content-Length: %d\r\n" % length
        else:
            if length is None and complete:
                length = len(data)
            if length is not None:
                self._told = length
                framing = b"Content-Length: %d\r\n" % length
                if len(data) > length or (complete and len(data) != length):
                    raise ValueError(f"a body of {len(data)} bytes with Content-Length {length}")
            elif request.http11:
                self._chunked = True
                framing = writer.CHUNKED
            else:
                self._delimited = True
                keep = False
        self._keep = keep
        connection = (b"" if request.http11 else writer.KEEP) if keep else writer.CLOSE
        lines = response.block or writer.fields(response.headers)
        out = writer.head(status, response.reason, lines, framing, connection)
        if data:
            self.sent = len(data)
            out = b"".join((out, b"%x\r\n" % len(data), data, b"\r\n")) if self._chunked else out + data
            # A slow client is not to hold it twice, nor while the rest is awaited.
            response.data = data = b""
        self.answering = True
        if self._owed or self._paying is not None:
            out = self._owed_first() + out
        self._send(out)

    def more(self, piece: bytes) -> None:
        """Send one more piece (not an empty one) of the body."""
        self.sent += len(piece)
        if self._chunked:
            self._send_parts((b"%x\r\n" % len(piece), piece, b"\r\n"))
            return
        if self._told is not None and self.sent > self._told:
            raise BadResponse(f"more body than the {self._told} bytes told")
        self._send(piece)

    def end(self) -> None:
        """The body is complete."""
        if self._chunked:
            self._send(writer.LAST_CHUNK)
        elif self._told is not None and self.sent != self._told:
            raise UpstreamTruncated(f"{self.sent} bytes of body instead of the {self._told} told")

    def send_interim(self, status: int, headers: Headers) -> None:
        """Send a 1xx at once; nothing once the final answer has begun."""
        if not self.answering:
            self._send_interim(writer.interim(status, headers))

    def send_continue(self) -> None:
        """Send `100 Continue`, once a request; called again, what is left of it."""
        if self.answering:
            return
        if not self._continued:
            self._continued = True
            self._send_interim(writer.CONTINUE)
        elif self._owed and self._paying is None:
            self._pay()

    # Interim answers come from two greenlets (the exchange's own and its upload's, which may be
    # killed), and a client may not take them at once. So the bytes of one that is not sent whole
    # belong to the connection: one greenlet at a time sends them, and a final answer follows them.

    def _send_interim(self, data: bytes) -> None:
        if self._paying is None and not self._owed:
            try:
                sent = self.stream.send_some(data)
            except OSError as error:
                raise ClientClosed(f"client went away before its answer: {error}") from error
            if sent == len(data):
                return
            data = data[sent:]
        self._owed += data
        if self._paying is None:
            self._pay()

    def _pay(self) -> None:
        """Send what is owed of interim answers as the client takes it."""
        paying = self._paying = Event()
        rest = memoryview(b"")
        try:
            while self._owed:
                rest, self._owed = memoryview(self._owed), b""
                for left in self._slowly(rest):
                    rest = left
        except OSError as error:
            raise ClientClosed(f"client went away before its answer: {error}") from error
        finally:
            self._owed = bytes(rest) + self._owed
            self._paying = None
            paying.set()

    def _owed_first(self) -> bytes:
        """What is owed of interim answers, to be sent in front of a final one."""
        while self._paying is not None:
            self._paying.wait()
        owed, self._owed = self._owed, b""
        return owed

    def _send(self, data: bytes) -> None:
        try:
            sent = self.stream.send_some(data)
            if sent != len(data):
                self._send_slowly(memoryview(data)[sent:])
        except OSError as error:
            raise ClientClosed(f"client went away inside its answer: {error}") from error

    def _send_parts(self, parts: tuple[bytes, ...]) -> None:
        try:
            for rest in self.stream.send_parts(parts):
                self._send_slowly(rest)
        except OSError as error:
            raise ClientClosed(f"client went away inside its answer: {error}") from error

    def _send_slowly(self, rest: memoryview) -> None:
        for _ in self._slowly(rest):
            pass

    def _slowly(self, rest: memoryview) -> Iterator[memoryview]:
        """Send as the client takes it, which is not at once; what is left after each step.

        That the socket becomes writable is not the measure: with large buffers it does so
        long after the client took something. What left our kernel is.
        """
        stream, limit, rate = self.stream, self.settings.timeouts.write, self.settings.min_rate
        pace = self._pace = self._pace or Pace(rate)
        look = _LONGEST_LOOK if limit is None else min(limit / 4, _LONGEST_LOOK)
        stalled = 0.0
        if self._passing is not None:
            self._hold_up(self._passing, 0.0)
        while rest:
            began, unsent = monotonic(), stream.unsent()
            try:
                # Not so often once it is known to be slow: there may be thousands of such clients.
                stream.wait_writable(look if self._passing is None or self._waited >= SLOW else min(look, SLOW))
            except TimeoutError:
                pass  # not writable; whether something was taken is seen below
            waited = monotonic() - began
            if self._passing is not None:
                self._hold_up(self._passing, waited)
            # Before the next write, of which TLS does not tell what a part of it sent.
            moved = max(unsent - stream.unsent(), 0)
            rest = rest[stream.send_some(rest) :]
            yield rest
            stalled = 0.0 if moved else stalled + waited
            if limit is not None and stalled >= limit:
                raise self._stuck(f"client took nothing for {limit} s")
            if rate and not pace.keeps(waited, moved):
                raise self._stuck(f"client took less than {rate} bytes a second")

    def _hold_up(self, passing: ResponseBody, waited: float) -> None:
        """The client was waited for so many seconds more. From some time on the answer is read ahead of it."""
        if passing.on_wait is not None:
            on_wait, passing.on_wait = passing.on_wait, None
            on_wait()
        self._waited += waited
        if self._waited < SLOW:
            return
        self._ahead = ahead(passing, None if self._told is None else self._told - self.sent, self.shared.buffers)
        if self._ahead is not None or passing.buffering is None:
            self._passing = None

    def _stuck(self, cause: str) -> WriteTimeout:
        """With a FIN the kernel would go on to offer what it holds to a client that does not take it."""
        self._by_reset = True
        return WriteTimeout(cause)

    # -- the client's end -------------------------------------------------------------

    def _readable(self) -> None:
        """From the hub: there is something to read and nobody reads."""
        if not self.busy:
            return
        stream, body = self.stream, self._body
        # The next request is taken in, so that one sees what comes behind it; up to a limit,
        # from which on it is not watched until it is read.
        ahead = (body is None or body.complete) and len(self.pending) < _READ
        try:
            if ahead or stream.is_tls:
                found = stream.poll(_READ)
                if found:
                    self.pending += found
            else:
                found = stream.peek()
        except OSError as error:
            self._give_up(f"client reset the connection: {error}")
            return
        if found is None or (found and ahead):
            stream.watch()
        elif not found:
            self._half_close()
        # Else more of this one's body: it is not watched until it is read, or the hub would
        # tell of it for ever.

    def _half_close(self) -> None:
        patience = self.settings.timeouts.half_close
        if patience is None or self._half_closed is not None:
            return
        if not patience:
            self._give_up("client closed the connection")
            return
        self._half_closed = get_hub().loop.timer(patience)
        self._half_closed.start(self._give_up, f"client closed the connection and waited {patience} s")

    def _stop_half_closed(self) -> None:
        if self._half_closed is not None:
            self._half_closed.stop()
            self._half_closed.close()
            self._half_closed = None

    def _give_up(self, cause: str) -> None:
        """From the hub: end the exchange, wherever its greenlet waits."""
        if self.busy:
            # Two of them: one that is thrown leads by its traceback to this object.
            self.gone = ClientClosed(cause)
            self._greenlet.throw(ClientClosed(cause))

    # -- ends -------------------------------------------------------------------------

    def interrupt(self, error: GatewayError) -> None:
        """End the exchange that runs, if one does. From any greenlet but its own."""
        if self.busy:
            get_hub().loop.run_callback(self._throw, error)

    def _throw(self, error: GatewayError) -> None:
        if self.busy:
            self._greenlet.throw(error)

    def close(self) -> None:
        """Close it although it is not idle. From any greenlet but its own.

        A tunnel may wait for its upstream alone: for what a half-closed client is to get, or to take what that sent.
        """
        self.stream.close()
        if self._tunnel is not None:
            self._tunnel.close()

    def dismiss(self) -> bool:
        """Close the connection if it is idle, and nothing has come meanwhile; whether it was."""
        if self.idle_since is None:
            return False
        with suppress(OSError):
            # The raw peek, under TLS too: anything at all means that it is not idle.
            if Stream.peek(self.stream) is not None:
                return False
        self._say_the_end()
        self.stream.close()
        return True

    def make_room(self) -> bool:
        """Close the connection for another one, if it is idle or only lingers (`intake.Closable`)."""
        if self.lingers_since is not None:
            self.stream.close()
        elif not self.dismiss():
            return False
        self.closed_for_another = True
        return True

    def _say_the_end(self) -> None:
        """An idle connection ends: under TLS the other side is to know that it was not cut (RFC 8446 §6.1)."""
        if self.stream.is_tls:
            self.stream.shutdown_write()

    def _drain(self, body: ArrivingBody) -> bool:
        """Read what is left of a body that nobody wanted; False when that is too much."""
        if body.expects_continue:
            return False
        stopped = False
        allowed = body.received + _DRAIN_BYTES

        def stop() -> None:
            nonlocal stopped
            stopped = True
            self.stream.interrupt(RequestTimeout("the rest of the body does not come"))

        timer = get_hub().loop.timer(_DRAIN_SECONDS)
        timer.start(stop)
        try:
            while not stopped and body.received <= allowed:
                if not body.read():
                    return True
        except GatewayError:
            return False  # it is not to be had; the answer is out already
        except Exception as failure:
            self.failed(failure)
            return False  # the connection is closed so that the answer can still be read
        finally:
            timer.stop()
            timer.close()
        return False

    def break_off(self) -> None:
        """What was sent is not all: never let it look complete."""
        self._keep = False
        if self._delimited or self._by_reset:
            self.stream.abort()
        else:
            self.stream.close()

    def discard(self, response: Response | None) -> None:
        """The client has left: release what the answer comes from."""
        self._keep = self.busy = False
        if response is not None:
            if response.stream is not None:
                response.stream.close()
            if response.tunnel is not None:
                response.tunnel.close()
        self.stream.abort()

    def _part(self, done: bool) -> None:
        """Close so that the last answer can still be read. `done`: nothing is to come of
        the last request."""
        stream = self.stream
        if stream.closed:
            return
        if stream.waiting:
            return  # `run` closes it, which ends that wait
        stream.shutdown_write()
        if done and not self.pending and stream.is_quiet():
            return
        self.lingers_since = monotonic()
        deadline = self.lingers_since + LINGER_SECONDS
        left = self.settings.limits.linger or inf
        reads = 0
        self.shared.places.lingering[self] = None
        try:
            while left > 0 and (rest := deadline - monotonic()) > 0:
                reads += 1
                if not reads % _READS_A_TURN:
                    stream.eager = False
                data = stream.recv(PIECE, min(LINGER_QUIET, rest))
                if not data:
                    return
                left -= len(data)
        except OSError:
            return  # it waited long enough (TimeoutError), or is gone
        finally:
            self.lingers_since = None
            self.shared.places.lingering.pop(self, None)
