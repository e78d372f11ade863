"""How long answers of one upstream take, of the last few hundred.

Rule: a sample costs a store in a ring; the quantile is worked out anew once in a while.
"""

from __future__ import annotations

from gateway.health.candidate import Candidate
from gateway.http.messages import Request, Response

_KEPT = 512
# So many are needed before anything is said, and the quantile is worked out every so often.
_LEAST = 32
_QUANTILE = 0.95


class Latencies:
    """`p95` in seconds, to an answer's head; None while too little is known."""

    __slots__ = ("_count", "_ring", "p95")

    def __init__(self) -> None:
        self._ring: list[float] = []
        self._count = 0
        self.p95: float | None = None

    def watch(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None:
        """Learn from a try that was answered; a failure says nothing of how long answers take."""
        if response is None:
            return
        ring = self._ring
        if len(ring) < _KEPT:
            ring.append(took)
        else:
            ring[self._count % _KEPT] = took
        self._count += 1
        if not self._count % _LEAST:
            self.p95 = sorted(ring)[int(len(ring) * _QUANTILE)]
