"""One after the other, as often as the weights say, and evenly spread.

Rule: smooth weighted round robin (`Weights.smooth`). With equal weights that is a plain
rotation, which costs nothing. The first pick is random, so that workers started together
do not all begin with the same endpoint.

A second try is no turn: it goes to one of the others by chance. Else a rotation of two of
which one fails would offer every request to that one first, the second try having used the
other's turn.

Smooth weighted round robin looks at each endpoint for each request. Above `FEW` endpoints with different
weights one is therefore chosen at random by weight, which costs the same for any number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.balancers.weights import Weights
from gateway.health.candidate import Candidate
from gateway.http.messages import Request

# Among so many, weights are kept to exactly.
FEW = 1000


class RoundRobin:
    __slots__ = ("_next", "_of", "_others", "_weights")

    def __init__(self, random: Callable[[], float]) -> None:
        self._next = int(random() * 1_000_000)
        # The candidates that merely take turns.
        self._of: Sequence[Candidate] = ()
        self._weights = Weights(random)
        self._others = Weights(random)

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        self._weights.prepare(candidates, turn)

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        if candidates is self._of:
            self._next += 1
            return candidates[self._next % len(candidates)]
        if request.attempts > 1:
            self._others.look(candidates, request.started)
            return candidates[self._others.one()]
        weights = self._weights
        weights.look(candidates, request.started)
        if not weights.equal:
            self._of = ()
            return weights.smooth() if len(candidates) <= FEW else candidates[weights.one()]
        self._of = candidates if weights.settled else ()
        self._next += 1
        return candidates[self._next % len(candidates)]
