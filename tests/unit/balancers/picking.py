"""Candidates, requests and an upstream of numbers: what tests of balancers have in common, and the statistics.

Rule: every draw is seeded and every time is a number, so a test fails always or never. Chi-square is asked of
picks that do not depend on one another, as it has to be.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from gateway.balancers import Balancer
from gateway.health.candidate import Candidate, EndpointState
from gateway.http.messages import Request, Response
from gateway.model import Endpoint

# The tests' time begins here.
NOW = 1000.0


def candidates(*weights: int, known: list[EndpointState] | None = None) -> tuple[Candidate, ...]:
    """`known`: what an earlier snapshot knew of them, in their order."""
    states = known or [EndpointState() for _ in weights]
    return tuple(
        Candidate(Endpoint("http", f"10.0.0.{number}", 80, weight), state, None)
        for number, (weight, state) in enumerate(zip(weights, states, strict=True))
    )


def ask(
    target: bytes = b"/",
    headers: Sequence[tuple[bytes, bytes]] = (),
    client: str = "192.0.2.1",
    attempts: int = 1,
    now: float = NOW,
    scheme: str = "http",
) -> Request:
    request = Request(b"GET", target, list(headers), started=now, peer="198.51.100.1", scheme=scheme)
    request.client = client
    request.attempts = attempts
    return request


def number(candidate: Candidate) -> int:
    return int(candidate.endpoint.host.rpartition(".")[2])


def picks(balancer: Balancer, among: Sequence[Candidate], times: int, request: Request | None = None) -> list[int]:
    """The numbers of the candidates that were picked; none of them gets to see the request."""
    asked = request or ask()
    return [number(balancer.pick(among, asked)) for _ in range(times)]


def others(among: Sequence[Candidate], tried: Candidate) -> tuple[Candidate, ...]:
    """Those that a second try may go to."""
    return tuple(candidate for candidate in among if candidate is not tried)


# -- chi-square -----------------------------------------------------------------------


def likelihood(counts: Mapping[int, int], weights: Mapping[int, float]) -> float:
    """How likely counts as far from these weights are, or farther, if each was drawn by them."""
    assert counts.keys() <= weights.keys()
    times, total = sum(counts.values()), sum(weights.values())
    expected = {which: times * weight / total for which, weight in weights.items()}
    assert min(expected.values()) >= 5, "too few for the test"
    found = sum((counts.get(which, 0) - much) ** 2 / much for which, much in expected.items())
    return survival(found, len(weights) - 1)


def survival(x: float, freedom: int) -> float:
    """1 - the distribution function of chi-square, exactly (Abramowitz and Stegun 26.4.4, 26.4.5)."""
    if x <= 0.0:
        return 1.0
    half = x / 2
    whole, odd = divmod(freedom, 2)
    first = math.erfc(math.sqrt(half)) if odd else 0.0
    powers = [step + odd / 2 for step in range(whole)]
    return first + sum(math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers)


# -- an upstream ----------------------------------------------------------------------


class Simulation:
    """Requests that come at random, at `rate` a second on average, and endpoints that take their time.

    `serve` gives the seconds that a request takes and the status, None for a failure.
    """

    def __init__(
        self,
        balancer: Balancer,
        among: Sequence[Candidate],
        serve: Callable[[Candidate, float], tuple[float, int | None]],
        rate: float,
        seed: int = 1,
    ) -> None:
        self.now = NOW
        self._balancer = balancer
        self._among = among
        self._serve = serve
        self._rate = rate
        self._random = Random(seed)
        self._ends: list[tuple[float, int, Candidate, Request, float, int | None]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float) -> Counter[int]:
        """How many requests each endpoint got."""
        got: Counter[int] = Counter()
        until = self.now + seconds
        coming = self.now
        while (coming := coming + self._random.expovariate(self._rate)) < until:
            self._finish(coming)
            self.now = coming
            request = ask(now=coming)
            candidate = self._balancer.pick(self._among, request)
            got[number(candidate)] += 1
            candidate.state.in_flight += 1
            took, status = self._serve(candidate, coming)
            self._count += 1
            heapq.heappush(self._ends, (coming + took, self._count, candidate, request, took, status))
        self._finish(until)
        self.now = until
        return got

    def _finish(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self.now, _, candidate, request, took, status = heapq.heappop(self._ends)
            candidate.state.in_flight -= 1
            watch = getattr(self._balancer, "watch", None)
            if watch is not None:
                watch(candidate, request, None if status is None else Response(status, b"", []), took)
