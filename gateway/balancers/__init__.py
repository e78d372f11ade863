"""Which endpoint gets the next request: one policy a file, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.balancers.ewma import PeakEwma
from gateway.balancers.hash import Hash
from gateway.balancers.least_requests import LeastRequests
from gateway.balancers.round_robin import RoundRobin
from gateway.balancers.sticky import Sticky, shared_key
from gateway.exchange import Request
from gateway.health.candidate import Candidate
from gateway.model import Balance, Upstream


class Balancer(Protocol):
    """Its place in the order survives snapshots: there is one for each upstream and worker.

    One that learns from answers has a method `watch` (health.state.Watcher) besides.
    """

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        """One of `candidates`, of which there is at least one, all with a weight above 0."""
        ...


# What makes each; `random` gives a float in [0, 1).
BALANCERS: dict[str, Callable[[Balance, Callable[[], float]], Balancer]] = {
    "round_robin": lambda balance, random: RoundRobin(random),
    "least_requests": lambda balance, random: LeastRequests(random),
    "ewma": lambda balance, random: PeakEwma(random),
    "hash": Hash,
    "sticky": lambda balance, random: Sticky(balance.name, balance.secret or shared_key(), random),
}


def balancer(upstream: Upstream, random: Callable[[], float]) -> Balancer:
    """The balancer that an upstream asks for."""
    return BALANCERS[upstream.balance.policy](upstream.balance, random)


__all__ = ["BALANCERS", "Balancer", "balancer"]
