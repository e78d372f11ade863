"""Whoever has the fewest requests under way, for its weight.

Rule: the load of an endpoint is (requests in flight + 1) / weight, what it would be with this
request. Up to 8 endpoints: whose turn it is gets the request when it is idle or as little
loaded as the least; else one of the least loaded does, by chance. Above 8: one, chosen by
chance and weight, gets it when it is idle; else the less loaded of it and another (power of
two choices: nearly as even as asking all, and it costs the same for a thousand).

Why an idle one is not held against the others: by the formula alone the heaviest would get
every request of a quiet upstream, and by requests / weight (nginx) a canary of 1 in 100 would
get every second one as soon as two come at a time. So weights hold when it is quiet, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from gateway.balancers.round_robin import RoundRobin
from gateway.balancers.weights import Weights
from gateway.health.candidate import Candidate
from gateway.http.messages import Request

# Among so many all are looked at.
_FEW = 8


class LeastRequests:
    __slots__ = ("_random", "_turns", "_weights")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._turns = RoundRobin(random)
        self._weights = Weights(random)

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        self._weights.prepare(candidates, turn)
        self._turns.prepare(candidates, turn)

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        if len(candidates) > _FEW:
            return self._of_two(candidates, request)
        turn = self._turns.pick(candidates, request)
        return self._least(candidates, request, turn) if turn.state.in_flight else turn

    def _least(self, candidates: Sequence[Candidate], request: Request, turn: Candidate) -> Candidate:
        weights = self._weights
        weights.look(candidates, request.started)
        least = inf
        alike: list[Candidate] = []
        for candidate, share in zip(candidates, weights.shares, strict=True):
            load = (candidate.state.in_flight + 1) / share
            if load < least:
                least, alike = load, [candidate]
            elif load == least:
                alike.append(candidate)
        return turn if turn in alike else alike[int(self._random() * len(alike))]

    def _of_two(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        weights = self._weights
        weights.look(candidates, request.started)
        place = weights.one()
        first = candidates[place]
        if not first.state.in_flight:
            return first
        other = weights.another(place)
        second, shares = candidates[other], weights.shares
        if (second.state.in_flight + 1) * shares[place] < (first.state.in_flight + 1) * shares[other]:
            return second
        return first
