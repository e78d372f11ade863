"""How much of a body to read at once, so that large ones cost little and slow sinks hold little.

Rule: no more is read than the sink's kernel would take without anybody waiting. Large pieces cost
less (each wakes the source and the sink, which is most of what a byte costs), but what the sink does
not take waits in our memory for as long as it is let.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.net.stream import Stream

# Bytes read from a body at once, unless a caller asks for another size.
PIECE = 64 * 1024
# What is read at first where the length is told and a buffer is made for what is to come: less
# than glibc's malloc would map and unmap each time (mallopt(3), M_MMAP_THRESHOLD).
TOLD_PIECE = 120 * 1024
_LARGE_PIECE = 1024 * 1024
# What waits in our memory when the sink would take nothing.
_SMALL_PIECE = 1024
# A fast source and a fast sink never wait: let others run in between.
BYTES_A_TURN = 1024 * 1024


class Portions:
    """The pieces of one body on its way to `sink`. `first`: bytes of the first one, at most."""

    __slots__ = ("_passed", "_room", "_sink", "_wanted")

    def __init__(self, sink: Stream, first: int = PIECE) -> None:
        self._sink = sink
        self._wanted = first
        self._room = 0
        self._passed = 0

    def next(self) -> int:
        """How many bytes the next read may give."""
        if self._room < self._wanted:
            self._room = self._sink.room()
            self._wanted = min(max(self._room, _SMALL_PIECE), self._wanted)
        return self._wanted

    def passed(self, size: int) -> bool:
        """So many bytes were read and given to the sink; True when others should have a turn."""
        self._room -= size
        # A piece that is not full was all that was there.
        self._wanted = _LARGE_PIECE if size >= self._wanted else PIECE
        self._passed += size
        if self._passed < BYTES_A_TURN:
            return False
        self._passed = 0
        if self._sink.held_up:
            self._sink.held_up = False
        else:
            self._sink.go_further_ahead()
        return True
