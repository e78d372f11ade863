"""A limit on concurrency that follows the upstream's latency.

Rule (the gradient algorithm of Netflix's concurrency-limits, `Gradient2Limit`): requests that
take longer than they did in the long run are queued somewhere behind us, so the limit shrinks
in proportion; where they do not, and the limit is being used, it grows by the room that a
short queue takes. Windows are counted in samples, so that the rule knows no clock.
"""

from __future__ import annotations

from math import inf, sqrt

from gateway.exchange import Request, Response
from gateway.health.candidate import Candidate
from gateway.health.gate import Gate

# Where it begins, and what is always allowed: without a request nothing is learnt.
_FIRST, _LEAST = 20.0, 4.0
# Samples of one step.
_WINDOW = 50
# Latency may be so many times the long-run one before the limit shrinks; it never shrinks by
# more than half in a step.
_TOLERANCE, _MOST_SHRUNK = 1.5, 0.5
# How fast the limit follows, and how slowly the long-run latency does (in steps).
_SMOOTHING, _LONG = 0.2, 0.02
# A step in which something failed shrinks by this instead.
_BACK_OFF = 0.9


class Gradient:
    """Narrows a gate. One for each upstream that has `concurrency.adaptive`."""

    __slots__ = ("_failed", "_gate", "_long", "_most_used", "_samples", "_sum", "limit")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._samples = 0
        self._sum = 0.0
        self._failed = False
        # Requests that were in flight at once within this step.
        self._most_used = 0
        self._long = 0.0
        self.limit = _FIRST
        gate.narrow(self.limit)

    def watch(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None:
        """Learn from a try; `took` is to its head or its failure."""
        self._most_used = max(self._most_used, self._gate.in_flight)
        self._failed = self._failed or response is None
        self._samples += 1
        self._sum += took
        if self._samples >= _WINDOW:
            self._step(self._sum / self._samples)

    def _step(self, short: float) -> None:
        used, failed = self._most_used, self._failed
        self._samples, self._sum, self._most_used, self._failed = 0, 0.0, 0, False
        if failed:
            self.limit = max(self.limit * _BACK_OFF, _LEAST)
            self._gate.narrow(self.limit)
            return
        if not self._long:
            self._long = short
        # Better times are believed at once: after an outage the long run would allow anything.
        self._long = min(self._long + (short - self._long) * _LONG, max(short, self._long * 0.95))
        gradient = max(_MOST_SHRUNK, min(1.0, _TOLERANCE * self._long / short if short else 1.0))
        if gradient == 1.0 and used < self.limit / 2:
            # Nobody needs more.
            return
        wanted = self.limit * gradient + sqrt(self.limit)
        self.limit = max(self.limit + (wanted - self.limit) * _SMOOTHING, _LEAST)
        self._gate.narrow(self.limit)
        if self._gate.limit < inf:
            # What is not allowed anyway is not grown into.
            self.limit = min(self.limit, self._gate.limit)
