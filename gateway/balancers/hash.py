"""Requests with the same key go to the same endpoint, whichever worker or gateway they pass.

Rule (weighted rendezvous hashing, Thaler and Ravishankar 1998; Schindelhauer and Schomaker
2005): key and endpoint together give a number u in (0, 1), and the endpoint with the largest
weight / -ln(u) has the key. When one leaves, its keys alone move, to all others by their
weights; when one comes, it takes its share from all. The order of candidates, the process and
its hash seed play no part.

Bounded load (Mirrokni, Thorup and Zadimoghaddam 2016): an endpoint with more than its share of
the requests in flight, times 1.25, passes what comes to the next in the key's order. So few
that they are no load on anybody are not passed on.

A request without the key goes wherever it is next by round robin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import ceil, log

from gateway.balancers.keys import key
from gateway.balancers.round_robin import RoundRobin
from gateway.balancers.weights import Weights
from gateway.health.candidate import Candidate
from gateway.http.messages import Request
from gateway.model import Balance, Key
from gateway.runtime.hub import parts

# The largest prime that Python keeps in one digit. Of two numbers below it that are hashes the
# product modulo it is as good as a hash of both, and costs a tenth of one.
_PRIME = 2**30 - 35
# So many times its share of the load an endpoint gets at most, and always so many requests.
_MOST = 1.25
_ALWAYS = 8


class Hash:
    __slots__ = ("_key", "_of", "_ready", "_seeds", "_turns", "_weights")

    def __init__(self, balance: Balance, random: Callable[[], float]) -> None:
        self._key = key(balance.by, balance.name)
        self._turns = RoundRobin(random)
        self._weights = Weights(random)
        # The candidates whose seeds these are.
        self._of: Sequence[Candidate] = ()
        self._seeds: list[int] = []
        # The same of candidates to come.
        self._ready: tuple[Sequence[Candidate], list[int]] = ((), [])

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        self._turns.prepare(candidates, turn)
        self._weights.prepare(candidates, turn)
        self._ready = (candidates, [_seed(candidate.endpoint.key) for candidate in parts(candidates, turn)])

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        asked = self._key(request)
        if not asked:
            return self._turns.pick(candidates, request)
        if candidates is not self._of:
            self._of = candidates
            of, seeds = self._ready
            self._seeds = seeds if of is candidates else [_seed(one.endpoint.key) for one in candidates]
        self._weights.look(candidates, request.started)
        scores = self._scores(_number(asked))
        first = candidates[scores.index(max(scores))]
        return first if first.state.in_flight < _ALWAYS else self._bounded(candidates, scores)

    def _scores(self, number: int) -> Sequence[float]:
        """How much each candidate would like to have the key with this number."""
        if self._weights.equal:
            # The order is that of u.
            return [seed * number % _PRIME for seed in self._seeds]
        return [
            share / -log(seed * number % _PRIME / _PRIME)
            for seed, share in zip(self._seeds, self._weights.shares, strict=True)
        ]

    def _bounded(self, candidates: Sequence[Candidate], scores: Sequence[float]) -> Candidate:
        """The first in order that has not too much to do. There always is one: together they
        may have more than all there is."""
        load = _MOST * (sum([candidate.state.in_flight for candidate in candidates]) + 1)
        shares = self._weights.shares
        order = sorted(range(len(candidates)), key=scores.__getitem__, reverse=True)
        return next(
            candidates[place]
            for place in order
            if candidates[place].state.in_flight < max(ceil(load * shares[place]), _ALWAYS)
        )


def _number(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest()) % (_PRIME - 1) + 1


@lru_cache(65536)
def _seed(endpoint: Key) -> int:
    scheme, host, port, base_path = endpoint
    return _number(b"%b://%b:%d%b" % (scheme.encode(), host.encode(), port, base_path))
