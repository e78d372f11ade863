"""A limit on concurrency that follows the upstream's latency.

Rule (Envoy's gradient controller, after Netflix's concurrency-limits): once in a while few
requests are let through and their latency is what the upstream takes when it is not busy.
Requests that take longer than that are queued somewhere behind us, so the limit shrinks in
proportion; where they do not, and the limit is being used, it grows by the room of a short
queue. Steps are counted in samples, so that the rule knows no clock.
"""

from __future__ import annotations

from math import inf, sqrt

from gateway.health.candidate import Candidate
from gateway.health.gate import Gate
from gateway.http.messages import Request, Response

# Where it begins; what is always allowed; what is allowed while the idle latency is measured.
_FIRST, _LEAST, _FEW = 20.0, 4.0, 5.0
# Samples of one step, and steps from one measurement of the idle latency to the next.
_WINDOW = 50
_MEASURE = 200
# Latency may be so many times the idle one before the limit shrinks, by no more than half a step.
_TOLERANCE, _MOST_SHRUNK = 1.5, 0.5
# How fast the limit follows.
_SMOOTHING = 0.2
# A step in which so large a share failed shrinks by this instead.
_FAILING, _BACK_OFF = 0.1, 0.9


class Gradient:
    """Narrows a gate. One for each upstream that has `concurrency.adaptive`."""

    __slots__ = ("_failed", "_gate", "_idle", "_measuring", "_most_used", "_samples", "_steps", "_sum", "limit")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._samples = 0
        self._sum = 0.0
        self._failed = 0
        # Requests that waited for their answer at once within this step.
        self._most_used = 0
        # What the upstream takes when it is not busy, in seconds.
        self._idle = inf
        self._measuring = False
        self._steps = 0
        self.limit = _FIRST
        gate.narrow(self.limit)

    def watch(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None:
        """Learn from a try; `took` is to its head or its failure."""
        self._most_used = max(self._most_used, self._gate.in_flight - self._gate.streams)
        self._failed += response is None
        self._samples += 1
        self._sum += took
        if self._samples >= _WINDOW:
            self._step(self._sum / self._samples)

    def _step(self, latency: float) -> None:
        used, failed = self._most_used, self._failed >= self._samples * _FAILING
        self._samples, self._sum, self._most_used, self._failed = 0, 0.0, 0, 0
        self._steps += 1
        if self._measuring:
            if used > _FEW:
                return  # those of before are still under way
            self._measuring = False
            self._idle = latency
        else:
            self._idle = min(self._idle, latency)
            self._follow(latency, used, failed)
            self._measuring = not self._steps % _MEASURE
        self.resume()

    def resume(self) -> None:
        """Apply the learnt limit to the gate, for example after the gate's settings changed."""
        self._gate.narrow(min(self.limit, _FEW) if self._measuring else self.limit)

    def _follow(self, latency: float, used: int, failed: bool) -> None:
        if failed:
            self.limit = max(self.limit * _BACK_OFF, _LEAST)
            return
        gradient = max(_MOST_SHRUNK, min(1.0, _TOLERANCE * self._idle / latency if latency else 1.0))
        if gradient == 1.0 and used < self.limit / 2:
            return  # nobody needs more
        wanted = self.limit * gradient + sqrt(self.limit)
        # What is not allowed anyway is not grown into.
        most = float(self._gate.most)
        self.limit = min(max(self.limit + (wanted - self.limit) * _SMOOTHING, _LEAST), most)
