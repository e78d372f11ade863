"""One after the other, as often as the weights say, and evenly spread.

Rule: nginx's smooth weighted round robin: at each pick everybody's credit grows by its
weight, the largest credit wins and pays the sum of all. With equal weights that is a plain
rotation, which costs nothing. The first pick is random, so that workers started together
do not all begin with the same endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.exchange import Request
from gateway.health.state import Candidate


class RoundRobin:
    __slots__ = ("_credit", "_equal", "_next", "_of", "_random")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = int(random() * 1_000_000)
        # The candidates that the two below are about.
        self._of: Sequence[Candidate] = ()
        self._equal = True
        self._credit: dict[tuple[str, str, int, bytes], float] = {}

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        if candidates is not self._of:
            self._meet(candidates)
        if self._equal:
            self._next += 1
            return candidates[self._next % len(candidates)]
        return self._weighted(candidates)

    def _meet(self, candidates: Sequence[Candidate]) -> None:
        self._of = candidates
        self._equal = len({candidate.endpoint.weight for candidate in candidates}) == 1
        total = sum(candidate.endpoint.weight for candidate in candidates)
        known = self._credit
        # A newcomer starts somewhere between the best and the worst placed.
        self._credit = {
            candidate.endpoint.key: known.get(candidate.endpoint.key, (self._random() - 0.5) * total)
            for candidate in candidates
        }

    def _weighted(self, candidates: Sequence[Candidate]) -> Candidate:
        credit = self._credit
        best = candidates[0]
        most = -float("inf")
        total = 0
        for candidate in candidates:
            endpoint = candidate.endpoint
            total += endpoint.weight
            credit[endpoint.key] = now = credit[endpoint.key] + endpoint.weight
            if now > most:
                best, most = candidate, now
        credit[best.endpoint.key] -= total
        return best
