"""Which endpoint gets the next request: one policy a file, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.balancers.ewma import PeakEwma
from gateway.balancers.hash import Hash
from gateway.balancers.least_requests import LeastRequests
from gateway.balancers.round_robin import RoundRobin
from gateway.balancers.sticky import SchemeOf, Sticky, shared_key, spoken
from gateway.health.candidate import Candidate
from gateway.http.messages import Request
from gateway.model import Balance, Upstream


class Balancer(Protocol):
    """Its place in the order survives snapshots: there is one for each upstream and worker.

    One that learns from answers has a method `watch` (health.state.Watcher) besides.
    """

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        """Work out for candidates to come what takes long, while those before them are still picked from.
        `turn` is called between two parts of the work."""
        ...

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        """One of `candidates`, of which there is at least one, all with a weight above 0."""
        ...


# What makes each; `random` gives a float in [0, 1), `scheme` what a request's client speaks.
BALANCERS: dict[str, Callable[[Balance, Callable[[], float], SchemeOf], Balancer]] = {
    "round_robin": lambda balance, random, scheme: RoundRobin(random),
    "least_requests": lambda balance, random, scheme: LeastRequests(random),
    "ewma": lambda balance, random, scheme: PeakEwma(random),
    "hash": lambda balance, random, scheme: Hash(balance, random),
    "sticky": lambda balance, random, scheme: Sticky(balance.name, balance.secret or shared_key(), random, scheme),
}


def balancer(upstream: Upstream, random: Callable[[], float], scheme: SchemeOf = spoken) -> Balancer:
    """The balancer that an upstream asks for."""
    return BALANCERS[upstream.balance.policy](upstream.balance, random, scheme)


__all__ = ["BALANCERS", "Balancer", "balancer"]
