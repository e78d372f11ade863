"""Failures of the last seconds, among how many.

Rule: a success costs its counter and nothing else. The caller counts what was answered and
tells the number when something fails; how many answers there were within the window is then
the difference to the number at the oldest failure that still counts. So a share is that of
the requests since that failure, never of a time in which nothing failed.
"""

from __future__ import annotations

from collections import deque

# A window is looked at in so many pieces; failures of one piece are one entry.
_PIECES = 20


class Window:
    """`length` in seconds. One for each thing that is watched."""

    __slots__ = ("_entries", "length")

    def __init__(self, length: float) -> None:
        self.length = length
        # When the piece began, how many were answered before it, how many failed in it.
        self._entries: deque[list[float]] = deque()

    def failed(self, now: float, answered: int) -> tuple[int, int]:
        """Count a failure at `now` (monotonic seconds), `answered` having been counted so far.
        Returns how many failed within the window, and how many failed or were answered."""
        entries = self._entries
        if not entries or now - entries[-1][0] >= self.length / _PIECES:
            entries.append([now, answered, 0])
        entries[-1][2] += 1
        while now - entries[0][0] >= self.length and len(entries) > 1:
            entries.popleft()
        failures = int(sum(entry[2] for entry in entries))
        return failures, failures + answered - int(entries[0][1])

    def clear(self) -> None:
        self._entries.clear()
