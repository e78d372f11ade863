"""The connections to one endpoint.

Rule: a connection is lent to one exchange at a time and comes back only when it is beyond
doubt: the answer complete, nothing left over, the request sent whole, nobody's identity
bound to it. The freshest idle one is lent first, so that the others can grow old and go.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, cast

from gevent.event import AsyncResult
from urllib3.connectionpool import HTTPConnectionPool

from gateway.errors import PoolFull
from gateway.http.messages import Request, Response
from gateway.http.request_head import Head
from gateway.model import PoolSettings, Timeouts, Upstream
from gateway.transport.connection import Connection, PlainConnection, TlsConnection
from gateway.transport.exchange import exchange, sooner

# Interface, Retries: what may not be sent twice rides a connection only when that was used
# within this many seconds, because an upstream closes idle ones without a word.
FRESH = 1.0


class EndpointPool(HTTPConnectionPool):
    """urllib3's pool for one host and port, its queue replaced by what a gateway needs."""

    ConnectionCls: type[PlainConnection] | type[TlsConnection] = PlainConnection

    def __init__(self, host: str, port: int, *, upstream: Upstream, address: str, hop: bytes, **kw: Any) -> None:
        super().__init__(host, port, maxsize=1, **kw)
        self.upstream = upstream
        self._settings: PoolSettings = upstream.pool
        self.address = address
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
        self.upstream = upstream
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
        connect = timeouts.connect if deadline is None else sooner(timeouts.connect, deadline)
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
            turn.wait(limit if deadline is None else sooner(limit, deadline))
            served = turn.ready()
        finally:
            if not served:
                self._give_up_turn(turn)
            request.queue_s += monotonic() - began
        if not served:
            raise PoolFull(
                f"pool of {self.address}: all {self._settings.max_connections} connections in use "
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
            connection.open(self.address, timeout)
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

    def limit_idle(self, connection: Connection, keep_alive: int) -> None:
        """The upstream announced how many seconds it keeps idle connections (Keep-Alive: timeout): stop using this one
        a second before that."""
        limit = self._settings.idle_timeout
        announced = float(max(keep_alive - 1, 0))
        connection.idle_limit = announced if limit is None else min(limit, announced)

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
        return exchange(self, connection, request, head, timeouts, deadline)


class TlsEndpointPool(EndpointPool):
    """The same over TLS."""

    scheme = "https"
    ConnectionCls = TlsConnection
