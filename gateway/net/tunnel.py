"""The byte pump of an upgraded connection (RFC 9110 §7.8).

Rule: two streams, two greenlets, one per direction. The end of one side is relayed as a
half-close while the other direction goes on. When a side breaks (reset, TLS without
close_notify, a write that times out), all bytes received from it are delivered before the
tunnel ends, and what the other side still sends is dropped (RFC 9110 §9.3.6). Only silence,
a close from outside and a fault end both sides at once.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import ClassVar

import gevent

from gateway.net.read_size import PIECE
from gateway.net.stream import Carrier, Stream
from gateway.runtime.hub import breathe

# A fast source and a fast sink never wait: others run in between.
_READS_A_TURN = 16
# Seconds for the delivery of what a broken side had sent, however steadily it progresses.
LONGEST_TAIL = 300.0
# How often the delivery is checked: the kernel does not report acknowledgements.
_FIRST_LOOK = 0.01
_LONGEST_LOOK = 0.5


class Pump:
    """One tunnel between a client and an upstream. `timeout`: seconds without a byte either
    way, None for no limit. `tail`: seconds in which a side must take some bytes once the
    other side is broken, None for LONGEST_TAIL alone. `sent` and `received`: bytes from and
    to the client."""

    __slots__ = (
        "_broken",
        "_client",
        "_finished",
        "_last",
        "_reads",
        "_tail",
        "_timeout",
        "_unsent",
        "_upstream",
        "failure",
        "fault",
        "received",
        "sent",
    )
    # Number of tunnels in this process.
    running: ClassVar[int] = 0

    def __init__(self, client: Stream, upstream: Stream, timeout: float | None, tail: float | None = 60.0) -> None:
        self._client = client
        self._upstream = upstream
        self._timeout = timeout
        self._tail = inf if tail is None else tail
        self._last = monotonic()
        # Unacknowledged bytes of both sides at the last check.
        self._unsent = 0, 0
        self._reads = 0
        self.sent = 0
        self.received = 0
        # The first side that broke.
        self._broken: Stream | None = None
        # The sinks of directions that are complete.
        self._finished: tuple[Stream, ...] = ()
        # The first error of either side; None after a proper end.
        self.failure: OSError | None = None
        # One direction ended by an error that is none of a socket's.
        self.fault = False

    def run(self, from_client: bytes, from_upstream: bytes) -> None:
        """Carry bytes until both sides are done. The two arguments came behind the heads."""
        back = Carrier.spawn(self._carry, self._upstream, self._client, from_upstream)
        Pump.running += 1
        try:
            self._carry(self._client, self._upstream, from_client)
            back.join()
        finally:
            Pump.running -= 1
            back.kill()
            if self._broken is not None:
                self._broken.abort()

    def _carry(self, source: Stream, sink: Stream, early: bytes) -> None:
        """One direction."""
        try:
            self._relay(source, sink, early)
        except BaseException:
            # Without this direction the other one would wait for nothing.
            self.fault = True
            self._abort()
            raise

    def _relay(self, source: Stream, sink: Stream, early: bytes) -> None:
        data = early
        while self._broken is not sink:
            try:
                data = data or self._recv(source)
            except OSError as error:
                self._read_failed(source, sink, error)
                return
            if not data:
                if self._broken is sink:
                    break
                self._finish(source, sink)
                return
            if sink is self._upstream:
                self.sent += len(data)
            else:
                self.received += len(data)
            try:
                sink.send(data, self._timeout)
            except OSError as error:
                if not self._break(sink, error):
                    return
                # The other direction reads what has come from it, and then ends.
                sink.limit(0.0)
                break
            data = b""
        self._linger(source)

    def _recv(self, source: Stream) -> bytes:
        """Read; silence of one side is no matter while the other speaks, or takes what was sent.
        Nothing once the other side broke."""
        self._reads += 1
        if not self._reads % _READS_A_TURN:
            source.eager = False
            if self._broken is source:
                breathe()
        limit = self._timeout
        while self._broken is None:
            try:
                data = source.recv(PIECE, limit)
            except TimeoutError:
                if self._broken is not None:
                    break
                limit = self._left_of_silence()
                if limit > 0:
                    continue
                raise
            self._last = monotonic()
            return data
        # A broken side is not waited for, but everything that has come is read.
        return (source.poll(PIECE) or b"") if self._broken is source else b""

    def _left_of_silence(self) -> float:
        """Seconds that the tunnel may stay silent, from now."""
        now = monotonic()
        unsent = self._client.unsent(), self._upstream.unsent()
        if unsent != self._unsent:
            self._unsent, self._last = unsent, now
        return (inf if self._timeout is None else self._timeout) - (now - self._last)

    def _finish(self, source: Stream, sink: Stream) -> None:
        """Everything of `source` is handed over: end the sink, which may still be reading."""
        if self._broken is source:
            # Under TLS without close_notify: this end is not authentic either.
            sink.cut_write()
        else:
            sink.shutdown_write()
        self._finished = (*self._finished, sink)

    def _read_failed(self, source: Stream, sink: Stream, error: OSError) -> None:
        silent = isinstance(error, TimeoutError) and self._broken is None
        if silent or (self._broken is not source and not self._break(source, error)):
            self.failure = self.failure or error
            self._abort()
            return
        self._finish(source, sink)
        # Whoever waits to write to the broken side, or to read from the other one, now lingers.
        source.cut_write()
        sink.limit(0.0)

    def _break(self, side: Stream, error: OSError) -> bool:
        """Note that a side broke. False, with everything closed, if the tunnel is over by that."""
        self.failure = self.failure or error
        if self._broken not in (None, side) or self._client.closed or self._upstream.closed:
            self._abort()
            return False
        self._broken = side
        return True

    def _linger(self, stream: Stream) -> None:
        """Read and drop what a side sends until it has taken all that the broken one had sent.
        Unread bytes would make the kernel reset the connection, and drop what is not taken."""
        assert self._broken is not None
        began = moved = monotonic()
        before: tuple[int, int] | None = None
        look, ended = _FIRST_LOOK, False
        while not stream.closed and not self._broken.closed:
            now, unsent = monotonic(), stream.unsent()
            if stream in self._finished and (ended or not unsent):
                return
            progress = unsent, self.sent + self.received
            if progress != before:
                before, moved = progress, now
            if now - moved >= self._tail or now - began >= LONGEST_TAIL:
                break
            try:
                if ended:
                    gevent.sleep(look)
                else:
                    stream.eager = False
                    ended = not stream.recv(PIECE, look)
            except TimeoutError:
                look = min(2 * look, _LONGEST_LOOK)
            except OSError:
                break  # broken, too
        self._abort()

    def _abort(self) -> None:
        self._client.abort()
        self._upstream.abort()
