"""The connections to one endpoint, and one exchange over one of them.

Rule: a connection is lent to one exchange at a time and comes back only when it is beyond
doubt: the answer complete, nothing left over, the request sent whole, nobody's identity
bound to it. The freshest idle one is lent first, so that the others can grow old and go.
"""

from __future__ import annotations

import ssl
from collections import deque
from time import monotonic
from typing import Any, cast

from gevent.event import AsyncResult
from urllib3.connectionpool import HTTPConnectionPool

from gateway.errors import (
    BadResponse,
    DeadlineExceeded,
    GatewayError,
    PoolFull,
    ResponseTimeout,
    TlsRefused,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
)
from gateway.http.messages import Headers, Request, RequestBody, Response
from gateway.http.request_head import Head, Inbound
from gateway.model import PoolSettings, Timeouts, Upstream
from gateway.transport.answer import AnswerReader
from gateway.transport.body import AnswerBody
from gateway.transport.connection import Connection, PlainConnection, TlsConnection
from gateway.transport.upgraded import Upgraded
from gateway.transport.upload import Upload, whole

# Interface, Retries: what may not be sent twice rides a connection only when that was used
# within this many seconds, because an upstream closes idle ones without a word.
FRESH = 1.0
# How long an upstream may keep `Expect: 100-continue` unanswered before the body is sent
# all the same (RFC 9110 §10.1.1; Go and curl wait as long).
CONTINUE_WAIT = 1.0


class EndpointPool(HTTPConnectionPool):
    """urllib3's pool for one host and port, its queue replaced by what a gateway needs."""

    ConnectionCls: type[PlainConnection] | type[TlsConnection] = PlainConnection

    def __init__(self, host: str, port: int, *, upstream: Upstream, address: str, hop: bytes, **kw: Any) -> None:
        super().__init__(host, port, maxsize=1, **kw)
        self._upstream = upstream
        self._settings: PoolSettings = upstream.pool
        self._address = address
        # Our entry for Via in answers, b"" for none.
        self.hop = hop
        self._idle: list[Connection] = []
        self._waiting: deque[AsyncResult] = deque()
        # Lent and idle together.
        self.open = 0
        # The endpoint is gone: what comes back is closed.
        self.retired = False

    def configure(self, upstream: Upstream) -> None:
        """Take over settings that may have changed since the pool was made."""
        self._upstream = upstream
        self._settings = upstream.pool
        self._room_left()

    # -- lending ------------------------------------------------------------------------

    def _borrow(
        self, request: Request, timeouts: Timeouts, replayable: bool, fresh: bool, deadline: float | None
    ) -> Connection:
        now = monotonic()
        if self._idle and not fresh:
            found = self._freshest(now, replayable)
            if found is not None:
                request.reused = True
                return found
        limit = self._settings.max_connections
        if limit and self.open >= limit and not self._make_room():
            waited = self._wait(request, now, deadline)
            if waited is not None:
                if waited.stream.is_quiet():
                    request.reused = True
                    return waited
                waited.stream.close()
            # The place that was kept for us; dialling takes it again.
            self.open -= 1
        request.reused = False
        connect = timeouts.connect if deadline is None else _sooner(timeouts.connect, deadline)
        return self._dial(request, connect)

    def _freshest(self, now: float, replayable: bool) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle[-1]
            age = now - connection.idle_since
            if not replayable and age >= FRESH:
                return None
            idle.pop()
            limit = connection.idle_limit
            # The hub tells of a disturbed connection at its next turn (`_disturbed`). What
            # may be sent again does not pay a system call to be told within this one, unless
            # its last read left something behind for sure or perhaps (`eager`).
            stream = connection.stream
            if (limit is None or age < limit) and ((replayable and not stream.eager) or stream.is_quiet()):
                return connection
            self.discard(connection)
        return None

    def _make_room(self) -> bool:
        """Close the oldest idle connection for a fresh one."""
        if not self._idle:
            return False
        self.discard(self._idle.pop(0))
        return True

    def _wait(self, request: Request, began: float, deadline: float | None) -> Connection | None:
        """Wait in turn for a connection (or, None, for room to make one)."""
        turn: AsyncResult = AsyncResult()
        self._waiting.append(turn)
        limit = self._settings.queue_timeout
        served = False
        try:
            turn.wait(limit if deadline is None else _sooner(limit, deadline))
            served = turn.ready()
        finally:
            if not served:
                self._give_up_turn(turn)
            request.queue_s += monotonic() - began
        if not served:
            raise PoolFull(
                f"pool of {self._address}: all {self._settings.max_connections} connections in use "
                f"for {monotonic() - began:.3f} s"
            )
        return cast("Connection | None", turn.get())

    def _give_up_turn(self, turn: AsyncResult) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn.ready():
            # It was served at the same moment: pass on what it got.
            lent = turn.get()
            if lent is not None:
                self._put(lent)
            else:
                self.open -= 1
                self._room_left()

    def _dial(self, request: Request, timeout: float | None) -> Connection:
        """A fresh connection; its place among `max_connections` is taken before it is made."""
        self.open += 1
        began = monotonic()
        try:
            connection = cast("Connection", self._new_conn())
            connection.open(self._address, timeout)
        except BaseException:
            self.open -= 1
            self._room_left()
            raise
        finally:
            request.connect_s += monotonic() - began
        connection.idle_limit = self._settings.idle_timeout
        # Readable while idle is closed, or bytes that nobody asked for: either way unfit.
        connection.stream.on_readable = lambda: self._disturbed(connection)
        return connection

    def discard(self, connection: Connection) -> None:
        """Close a connection and let somebody who waits take its place."""
        connection.stream.close()
        connection.reader.end()
        self.open -= 1
        self._room_left()

    def _room_left(self) -> None:
        limit = self._settings.max_connections
        while self._waiting and (self.open < limit or not limit):
            self.open += 1
            self._waiting.popleft().set(None)

    def give_back(self, connection: Connection) -> None:
        """Take a connection whose exchange ended properly."""
        connection.served += 1
        self._put(connection)

    def _put(self, connection: Connection) -> None:
        # Nothing is used twice where none may be kept.
        if self._waiting and self._settings.max_idle:
            self._waiting.popleft().set(connection)
            return
        if self.retired or len(self._idle) >= self._settings.max_idle:
            self.discard(connection)
            return
        connection.idle_since = monotonic()
        self._idle.append(connection)
        connection.stream.watch()

    def _disturbed(self, connection: Connection) -> None:
        if connection not in self._idle:
            return
        if connection.stream.is_quiet():
            # Nothing of the exchange's: a TLS session ticket.
            connection.stream.watch()
            return
        self._idle.remove(connection)
        self.discard(connection)

    def expire(self, now: float) -> None:
        """Close what has been idle for too long (or, once retired, everything idle)."""
        keep: list[Connection] = []
        gone: list[Connection] = []
        for connection in self._idle:
            limit = connection.idle_limit
            stale = self.retired or (limit is not None and now - connection.idle_since >= limit)
            (gone if stale else keep).append(connection)
        if gone:
            self._idle = keep
            for connection in gone:
                self.discard(connection)

    def retire(self) -> None:
        """The endpoint is gone: close what is idle, and the rest as it comes back."""
        self.retired = True
        self.expire(monotonic())

    # -- one exchange -------------------------------------------------------------------

    def send(
        self,
        request: Request,
        head: Head,
        timeouts: Timeouts,
        replayable: bool,
        fresh: bool = False,
        deadline: float | None = None,
    ) -> Response:
        """Send one request and return its answer as soon as the head is complete.

        `replayable`: the request may be sent again, so a connection that has been idle for
        long will do. `fresh`: only a new connection will. `deadline`: monotonic seconds
        that end everything up to the head. Raises a GatewayError; never anything of urllib3.
        """
        connection = self._borrow(request, timeouts, replayable, fresh, deadline)
        reader = connection.reader
        upload: Upload | None = None
        # Until then the connection is released here; from then on the answer's body does it.
        settled = False
        try:
            reader.begin(self._upstream.limits)
            if request.body is None:
                write = timeouts.write if deadline is None else _sooner(timeouts.write, deadline)
                connection.stream.send(head.data, write)
                reader.limit(timeouts.response, deadline)
                judged = reader.read_head(request.method == b"HEAD", request.interim, self.hop)
            else:
                upload = self._send_with_body(connection, request, request.body, head, timeouts, deadline)
                if upload is not None:
                    # A slow client may take its time with the rest.
                    head = head._replace(data=b"")
                judged = self._read_head(connection, request, upload, timeouts, deadline)
            response, body = self._answer(connection, request, head, judged, upload, timeouts)
            settled = True
        except BadResponse as error:
            error.cause = f"read head {self._address}: {error.cause}"
            raise
        except (OSError, EOFError) as error:
            raise self._explain(error, connection, request, upload, timeouts, deadline) from error
        finally:
            if not settled:
                connection.stream.abort()
                self.discard(connection)
                if upload is not None:
                    # Last, because it waits: an exception thrown in meanwhile finds nothing left to do.
                    upload.cancel()
        if body is not None and reader.complete:
            # This may wait for the end of the upload.
            body.finish()
        return response

    def _send_with_body(
        self,
        connection: Connection,
        request: Request,
        body: RequestBody,
        head: Head,
        timeouts: Timeouts,
        deadline: float | None,
    ) -> Upload | None:
        """Send the head, and the body when all of it is here; else what will send it."""
        stream = connection.stream
        write = timeouts.write if deadline is None else _sooner(timeouts.write, deadline)
        data = head.data
        if body.complete:
            data += whole(body, request.content_length)
        try:
            stream.send(data, write)
        except OSError as error:
            # As in an upload: perhaps the upstream answered before it closed.
            upload = Upload(connection.reader, stream, body, request.content_length, timeouts, deadline)
            upload.failed = error
            return upload
        if body.complete:
            return None
        upload = Upload(connection.reader, stream, body, request.content_length, timeouts, deadline)
        if not body.expects_continue:
            upload.start()
        return upload

    def _read_head(
        self,
        connection: Connection,
        request: Request,
        upload: Upload | None,
        timeouts: Timeouts,
        deadline: float | None,
    ) -> Inbound:
        reader = connection.reader
        head_request = request.method == b"HEAD"
        if upload is None:
            reader.limit(timeouts.response, deadline)
        elif upload.failed is not None:
            if isinstance(upload.failed, TimeoutError):
                raise upload.failed
            reader.limit(timeouts.response, deadline)
        else:
            # timeouts.response begins when all of the request is out.
            reader.limit(None, deadline)
            if request.body is not None and request.body.expects_continue:
                return self._read_head_expecting(reader, request, upload, head_request, deadline)
        return reader.read_head(head_request, request.interim, self.hop)

    def _read_head_expecting(
        self, reader: AnswerReader, request: Request, upload: Upload, head_request: bool, deadline: float | None
    ) -> Inbound:
        """Wait for `100 Continue` (or the refusal), then let the body go."""

        def go() -> None:
            if not upload.started:
                reader.limit(None, deadline)
                upload.start()

        def interim(status: int, headers: Headers) -> None:
            if status == 100:
                # Reading the body gives the client its own.
                go()
            elif request.interim is not None:
                request.interim(status, headers)

        reader.limit(CONTINUE_WAIT, deadline)
        try:
            return reader.read_head(head_request, interim, self.hop)
        except TimeoutError:
            if upload.started or (deadline is not None and monotonic() >= deadline):
                raise
        go()
        return reader.read_head(head_request, interim, self.hop)

    def _answer(
        self,
        connection: Connection,
        request: Request,
        head: Head,
        judged: Inbound,
        upload: Upload | None,
        timeouts: Timeouts,
    ) -> tuple[Response, AnswerBody | None]:
        """The answer, and what releases the connection (None: it is released, or the tunnel's)."""
        reader = connection.reader
        if reader.status == 101:
            return self._upgraded(connection, head, judged, timeouts), None
        # Taken apart at once: each look-up of a named tuple's field costs as much as this.
        headers, length, chunked, _, shareable, keep_alive, _, gateway_error, block = judged
        if keep_alive is not None:
            self._shorten(connection, keep_alive)
        if gateway_error is not None:
            request.cause = f"the upstream answered Gateway-Error: {gateway_error[:80].decode('latin-1')}"
        shareable = shareable and head.shareable
        status = reader.status
        response = Response(
            status,
            reader.reason,
            headers,
            block,
            None if chunked else length,
            bodyless=status == 204 or status == 304 or request.method == b"HEAD",
        )
        if reader.complete:
            pieces = reader.pieces
            response.data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if upload is None and shareable and reader.persistent:
                connection.served += 1
                self._put(connection)
                return response, None
        body = AnswerBody(self, connection, upload, shareable, timeouts.idle, self._address)
        if not reader.complete:
            if reader.pieces:
                response.data = b"".join(reader.pieces)
                reader.pieces = []
            response.stream = body
        return response, body

    def _upgraded(self, connection: Connection, head: Head, judged: Inbound, timeouts: Timeouts) -> Response:
        """A 101 is for the token that was asked for, or a fault (RFC 9110 §7.8)."""
        reader = connection.reader
        token = judged.upgrade
        if head.upgrade is None or token != head.upgrade.lower() or reader.upgraded is None:
            raise BadResponse(f"101 to {token!r}, asked for {head.upgrade!r}")
        # Connection, like all framing, is the door's to write.
        headers = [(b"Upgrade", head.upgrade), *judged.headers]
        tunnel = Upgraded(self, connection, reader.upgraded, timeouts.tunnel, timeouts.write)
        return Response(101, reader.reason, headers, bodyless=True, tunnel=tunnel)

    def _shorten(self, connection: Connection, told: int) -> None:
        """The upstream says how long it keeps idle connections: be a second ahead of it."""
        limit = self._settings.idle_timeout
        lowered = float(max(told - 1, 0))
        connection.idle_limit = lowered if limit is None else min(limit, lowered)

    def _explain(
        self,
        error: OSError | EOFError,
        connection: Connection,
        request: Request,
        upload: Upload | None,
        timeouts: Timeouts,
        deadline: float | None,
    ) -> GatewayError:
        """What a failed read or write means, with endpoint, phase and duration."""
        reader = connection.reader
        if upload is not None and upload.client_error is not None:
            return upload.client_error
        cause = error
        alert = _is_alert(error)
        if upload is not None and upload.failed is not None and not alert:
            cause = upload.failed
        phase = "write request" if upload is not None and not upload.done else "read head"
        story = (
            f"{phase} {self._address}: {cause} "
            f"({'reused' if request.reused else 'fresh'} connection, exchange {connection.served + 1})"
        )
        if isinstance(cause, TimeoutError):
            if deadline is not None and monotonic() >= deadline:
                return DeadlineExceeded(f"{story}; total {timeouts.total} s")
            limit = timeouts.write if phase == "write request" else timeouts.response
            return ResponseTimeout(f"{story} after {limit} s")
        if reader.started:
            return UpstreamCut(f"{story}, in the middle of the answer's head")
        if request.reused:
            return UpstreamStale(story)
        return TlsRefused(story) if alert else UpstreamReset(story)


class TlsEndpointPool(EndpointPool):
    """The same over TLS."""

    scheme = "https"
    ConnectionCls = TlsConnection


def _sooner(timeout: float | None, deadline: float) -> float:
    left = max(deadline - monotonic(), 0.0)
    return left if timeout is None else min(timeout, left)


def _is_alert(error: BaseException) -> bool:
    """Whether TLS itself failed. (The end of a connection is an SSLError of its own kind, too.)"""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
