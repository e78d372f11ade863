"""An upstream connection after its 101: an `exchange.Tunnel`."""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import TunnelFault
from gateway.net.stream import Stream
from gateway.net.tunnel import Pump
from gateway.transport.body import Owner
from gateway.transport.connection import Connection


class Upgraded:
    """Never goes back to its pool. `on_end` is called once, when the tunnel is over."""

    __slots__ = ("_connection", "_early", "_owner", "_tail", "_timeout", "on_end")

    def __init__(
        self, owner: Owner, connection: Connection, early: bytes, timeout: float | None, tail: float | None
    ) -> None:
        self._owner = owner
        self._connection: Connection | None = connection
        self._early = early
        self._timeout = timeout
        # As for `Pump`.
        self._tail = tail
        self.on_end: Callable[[], None] | None = None

    def run(self, client: Stream, early: bytes) -> tuple[int, int]:
        connection = self._connection
        if connection is None:
            return 0, 0
        pump = Pump(client, connection.stream, self._timeout, self._tail)
        try:
            pump.run(early, self._early)
        finally:
            self.close()
        if pump.fault:
            cause = "one direction of the tunnel ended by a fault of the gateway; see its log"
            raise TunnelFault(cause, pump.sent, pump.received)
        return pump.sent, pump.received

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._owner.discard(connection)
        if self.on_end is not None:
            self.on_end()
