"""How many retries an upstream may get: a share of its live traffic, with a floor.

Rule: pure but for the clock, which is an argument.
"""

from __future__ import annotations

from collections.abc import Callable

# Retries that an upstream may always get: with few requests, a share of them would round
# down to nothing (Linkerd's and Finagle's budgets have a floor likewise).
FLOOR_PER_SECOND = 3.0
# The traffic of this many seconds counts as live.
WINDOW = 10.0


class Budget:
    """Bounds the retries of one upstream and worker to a share of its live traffic.

    The forwarder counts `requests` up; everything else happens only when a retry is wanted.
    Tokens come in at `share` of the traffic, or at the floor if that is more, and at most a
    window's worth is saved.
    """

    __slots__ = ("_at", "_clock", "_seen", "_tokens", "requests", "spent")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests = 0
        self.spent = 0
        self._at = clock()
        self._seen = 0
        self._tokens = FLOOR_PER_SECOND * WINDOW

    def take(self, share: float) -> bool:
        """Take one retry out of the budget; False when there is none."""
        now = self._clock()
        elapsed = now - self._at
        fresh = float(self.requests - self._seen)
        if elapsed > WINDOW:
            fresh *= WINDOW / elapsed
            elapsed = WINDOW
        self._at, self._seen = now, self.requests
        earned = max(share * fresh, FLOOR_PER_SECOND * elapsed)
        most = max(FLOOR_PER_SECOND * WINDOW, share * fresh)
        self._tokens = min(self._tokens + earned, most)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.spent += 1
        return True

    def give_back(self) -> None:
        """A retry that was taken is not made after all."""
        self._tokens += 1.0
        self.spent -= 1
