"""Whoever is expected to answer soonest, going by how long its last answers took.

Rule (Finagle's and Linkerd's peak EWMA): the cost of an endpoint is latency × (requests in
flight + 1) / weight; of two, chosen by chance and weight, the cheaper gets the request, always
of two: the least of all would get every request until it is measured again. Latency, the time
to an answer's head, rises to a peak at once and falls within some 10 seconds.

Where weights differ, the cost alone would send every request of a quiet upstream to the
heaviest. There the second of the two has to be twice as good, an idle first one is as good as
one of average weight, and the second no better: among endpoints of about the same latency
requests go by weight.

What was not heard of for as long is taken to be as fast as the upstream usually is, and so is
a newcomer: it is tried soon, and its requests in flight keep others from it until it answers.
(Finagle lets latency fall to nothing. Then of many quiet endpoints the one measured least
recently would get all requests of a burst.) A failure counts as an answer that took ten times
as long as usual, an answer of 5xx as one that took no less than usual: failing fast attracts
nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from time import monotonic

from gateway.balancers.weights import Weights
from gateway.health.candidate import Candidate, EndpointState
from gateway.http.messages import Request, Response

# Seconds in which all but 1 / e of what was learnt is forgotten.
_DECAY = 10.0
# What an upstream is taken to need before it answered once.
_UNKNOWN = 0.1
# How much of what is usual is the latest answer.
_NEWS = 0.05
# A failure is as good as an answer that took so many times as long as usual.
_FAILURE = 10.0
# Where weights differ, who was chosen second must be better by this.
_MARGIN = 2.0


class PeakEwma:
    __slots__ = ("_clock", "_usual", "_weights")

    def __init__(self, random: Callable[[], float], clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._weights = Weights(random)
        # 0.0: nothing has answered yet.
        self._usual = 0.0

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        self._weights.prepare(candidates, turn)

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        weights = self._weights
        now = request.started
        weights.look(candidates, now)
        place = weights.one()
        other = weights.another(place)
        first, second = candidates[place], candidates[other]
        one, two = first.state.in_flight + 1.0, second.state.in_flight + 1.0
        if not weights.equal:
            # In requests of an endpoint of average weight.
            one = one / weights.shares[place] / len(candidates) if first.state.in_flight else 1.0
            two = max(two / weights.shares[other] / len(candidates), 1.0) * _MARGIN
        return second if self._latency(second.state, now) * two < self._latency(first.state, now) * one else first

    def watch(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None:
        now, state = self._clock(), candidate.state
        good = response is not None and response.status < 500
        if response is None:
            took = max(took, _FAILURE * (self._usual or _UNKNOWN))
        elif not good:
            took = max(took, self._usual)
        if state.latency_at and took < self._latency(state, now):
            took += (state.latency - took) * _left(state, now)
        state.latency, state.latency_at = took, now
        if good:
            # Peaks, too: answers by themselves take less than any endpoint is thought to need.
            self._usual += (took - self._usual) * _NEWS if self._usual else took

    def _latency(self, state: EndpointState, now: float) -> float:
        """What it is thought to need now."""
        usual = self._usual or _UNKNOWN
        return usual + (state.latency - usual) * _left(state, now) if state.latency_at else usual


def _left(state: EndpointState, now: float) -> float:
    """How much of what was learnt is still worth something."""
    # A second try asks with the time at which its request began.
    return exp((state.latency_at - now) / _DECAY) if now > state.latency_at else 1.0
