"""One after the other, as often as the weights say, and evenly spread.

Rule: nginx's smooth weighted round robin: at each pick everybody's credit grows by its
weight, the largest credit wins and pays the sum of all. With equal weights that is a plain
rotation, which costs nothing. The first pick is random, so that workers started together
do not all begin with the same endpoint. A credit stands with what is known of its endpoint:
one that is left out (a retry asks among the others) has it when it is a candidate again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from gateway.exchange import Request
from gateway.health.candidate import Candidate


class RoundRobin:
    __slots__ = ("_equal", "_next", "_of", "_random")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = int(random() * 1_000_000)
        # The candidates that the next is about.
        self._of: Sequence[Candidate] = ()
        self._equal = True

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        if candidates is not self._of:
            self._of = candidates
            self._equal = len({candidate.endpoint.weight for candidate in candidates}) == 1
        if self._equal:
            self._next += 1
            return candidates[self._next % len(candidates)]
        return self._weighted(candidates)

    def _weighted(self, candidates: Sequence[Candidate]) -> Candidate:
        total = sum([candidate.endpoint.weight for candidate in candidates])
        best = candidates[0]
        most = -inf
        for candidate in candidates:
            state = candidate.state
            if state.credit is None:
                # A newcomer starts somewhere between the best and the worst placed.
                state.credit = (self._random() - 0.5) * total
            state.credit += candidate.endpoint.weight
            if state.credit > most:
                best, most = candidate, state.credit
        best.state.credit = most - total
        return best
