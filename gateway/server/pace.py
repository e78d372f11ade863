"""The slowest that a peer may be: bytes over the time that was spent waiting for it.

Rule: only waiting counts, in windows of half a minute, so that a pause between two events
of a stream costs nothing and a peer that drips one byte before each limit is still cut.
"""

from __future__ import annotations


class Pace:
    """What came or went while one side waited for the other."""

    __slots__ = ("_bytes", "_rate", "_waited")

    # Long enough for a phone that loses its network for a while (nginx and Apache's
    # mod_reqtimeout count in tens of seconds too).
    window = 30.0

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._bytes = 0
        self._waited = 0.0

    def keeps(self, waited: float, moved: int) -> bool:
        """Note one wait; False when the window that it ends was slower than the rate."""
        self._waited += waited
        self._bytes += moved
        if self._waited < self.window:
            return True
        enough = self._bytes >= self._rate * self._waited
        self._waited, self._bytes = 0.0, 0
        return enough
