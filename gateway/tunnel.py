"""The byte pump of an upgraded connection (RFC 9110 §7.8).

Rule: two streams, two greenlets, each carrying one way. The end of one side is passed on
as such (half-close) while the other way goes on; an error on either side ends both.
"""

from __future__ import annotations

import time
from math import inf
from typing import ClassVar

from gateway.exchange import PIECE
from gateway.stream import Carrier, Stream

# A fast source and a fast sink never wait: others run in between.
_READS_A_TURN = 16


class Pump:
    """One tunnel between a client and an upstream. `timeout`: seconds without a byte either
    way, None for no limit. `sent` and `received`: bytes from and to the client."""

    __slots__ = ("_client", "_last", "_reads", "_timeout", "_upstream", "failure", "fault", "received", "sent")
    # How many of this process run now.
    running: ClassVar[int] = 0

    def __init__(self, client: Stream, upstream: Stream, timeout: float | None) -> None:
        self._client = client
        self._upstream = upstream
        self._timeout = timeout
        self._last = time.monotonic()
        self._reads = 0
        self.sent = 0
        self.received = 0
        # The first error of either side; None after a proper end.
        self.failure: OSError | None = None
        # One direction ended by an error that is none of a socket's.
        self.fault = False

    def run(self, from_client: bytes, from_upstream: bytes) -> None:
        """Carry bytes until both sides are done. The two arguments came behind the heads."""
        back = Carrier.spawn(self._carry_back, from_upstream)
        Pump.running += 1
        try:
            self._carry_on(from_client)
            back.join()
        finally:
            Pump.running -= 1
            back.kill()

    def _carry_on(self, early: bytes) -> None:
        """Client to upstream."""
        try:
            data = early or self._recv(self._client)
            while data:
                self.sent += len(data)
                self._upstream.send(data, self._timeout)
                data = self._recv(self._client)
            self._upstream.shutdown_write()
        except OSError as error:
            self._fail(error)
        except BaseException:
            self.fault = True
            self._abort()
            raise

    def _carry_back(self, early: bytes) -> None:
        """Upstream to client."""
        try:
            data = early or self._recv(self._upstream)
            while data:
                self.received += len(data)
                self._client.send(data, self._timeout)
                data = self._recv(self._upstream)
            self._client.shutdown_write()
        except OSError as error:
            self._fail(error)
        except BaseException:
            # Without this direction the other one would wait for nothing.
            self.fault = True
            self._abort()
            raise

    def _recv(self, stream: Stream) -> bytes:
        """Read; silence of one side is no matter while the other speaks."""
        limit = self._timeout
        self._reads += 1
        if not self._reads % _READS_A_TURN:
            stream.eager = False
        while True:
            try:
                data = stream.recv(PIECE, limit)
            except TimeoutError:
                quiet = time.monotonic() - self._last
                limit = (inf if self._timeout is None else self._timeout) - quiet
                if limit > 0:
                    continue
                raise
            self._last = time.monotonic()
            return data

    def _fail(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
        self._abort()

    def _abort(self) -> None:
        self._client.abort()
        self._upstream.abort()
