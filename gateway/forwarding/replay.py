"""The body of a request that may be sent more than once.

Rule: one buffer, and a reader of its own for each attempt. Readers share no position, so an
attempt that is being cancelled cannot take bytes from the next one. (Caddy had bugs of this
kind: caddyserver/caddy#1229, #7360, #7546.)
"""

from __future__ import annotations

from gateway.http.messages import RequestBody
from gateway.net.read_size import PIECE


class ReplayBuffer:
    """Keeps every piece that is read of a client's body. Only for bodies of bounded length
    (`retry.buffer`)."""

    __slots__ = ("_pieces", "_reading", "_source")

    def __init__(self, source: RequestBody) -> None:
        self._source = source
        self._pieces: list[bytes] = []
        self._reading = False

    def reader(self) -> ReplayReader:
        """The whole body from its first byte, for one attempt."""
        return ReplayReader(self, self._pieces, self._source)

    def fetch(self, most: int) -> bytes:
        """Read and keep the client's next piece; `b""` is the end. Raises what the client's body
        raises, and RuntimeError while another attempt still reads."""
        if self._reading:
            # Two greenlets on one client body would each get a part of it: refuse.
            raise RuntimeError("a client's body is read by two attempts at once")
        self._reading = True
        try:
            piece = self._source.read(most)
        finally:
            self._reading = False
        if piece:
            self._pieces.append(piece)
        return piece


class ReplayReader:
    """A `RequestBody`: one attempt's view of a ReplayBuffer."""

    __slots__ = ("_at", "_buffer", "_pieces", "_source")

    def __init__(self, buffer: ReplayBuffer, pieces: list[bytes], source: RequestBody) -> None:
        self._buffer = buffer
        self._pieces = pieces
        self._source = source
        self._at = 0

    @property
    def complete(self) -> bool:
        """Whether the client's body is here whole, so that no read waits or fails."""
        return self._source.complete

    @property
    def expects_continue(self) -> bool:
        """Whether the client still waits for `100 Continue`."""
        return self._source.expects_continue

    def read(self, most: int = PIECE) -> bytes:
        if self._at == len(self._pieces) and not self._buffer.fetch(most):
            return b""
        piece = self._pieces[self._at]
        self._at += 1
        return piece
