"""What is known of endpoints and upstreams, kept from one snapshot to the next.

Rule: it hangs on (upstream, scheme, host, port, base path), never on weight, so that a
re-weighting or a reload forgets nothing. What no snapshot names any more is forgotten once
its last request has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import GatewayError
from gateway.exchange import Request, Response
from gateway.health.breaker import CircuitBreaker
from gateway.health.gate import Gate
from gateway.health.outlier import Outliers
from gateway.health.window import Window
from gateway.model import Endpoint, RetryPolicy, Upstream

if TYPE_CHECKING:
    from gateway.balancers import Balancer
    from gateway.retry import Budget

Key = tuple[str, str, int, bytes]

# What a newcomer gets at least while its share grows: nothing at all would teach nothing.
_LEAST_WARM = 0.1


class EndpointState:
    """What is learnt about one endpoint of one upstream.

    Counted where requests pass: `in_flight`, requests whose answer's body has not ended, and
    `answered`, heads that came and are not counted as failures. `credit`: its place among
    weighted ones (balancers.round_robin); None for a newcomer. `latency`: seconds, what
    balancers.ewma makes of it. `warm_from`, `warm_until`: slow start, monotonic seconds.

    Of passive health (health.outlier), all times monotonic seconds: `out_until`, when it may
    be tried again (0: it is not out); `on_trial`, one request is trying it; `streak`, failures
    in a row, the last of them when `streak_at` were answered. Of active health: `checked`, what
    the checks say (None: nothing). `why` and `since` (seconds since 1970) tell of the last
    change of its state.
    """

    __slots__ = (
        "answered",
        "checked",
        "credit",
        "ejections",
        "gate",
        "in_flight",
        "latency",
        "latency_at",
        "mark",
        "on_trial",
        "out_until",
        "returned_at",
        "since",
        "spared",
        "streak",
        "streak_at",
        "warm_from",
        "warm_until",
        "why",
        "window",
    )

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate = gate or Gate()
        self.in_flight = 0
        self.answered = 0
        self.credit: float | None = None
        self.latency = 0.0
        self.latency_at = 0.0
        self.warm_from = 0.0
        self.warm_until = 0.0
        self.out_until = 0.0
        self.on_trial = False
        self.streak = 0
        self.streak_at = 0
        self.window: Window | None = None
        self.ejections = 0
        self.returned_at = 0.0
        # It deserves to be out, but too many are: so many had been answered then.
        self.spared: int | None = None
        # So many had been answered when all began to be tried (panic).
        self.mark = 0
        self.checked: bool | None = None
        self.why = ""
        self.since = 0.0

    @property
    def state(self) -> str:
        """up, ejected, trial or unhealthy."""
        if self.checked is False:
            return "unhealthy"
        if self.on_trial:
            return "trial"
        return "ejected" if self.out_until else "up"

    def warm(self, now: float) -> float:
        """The share of its weight that it gets at `now`, up to 1."""
        if now >= self.warm_until:
            return 1.0
        return max((now - self.warm_from) / (self.warm_until - self.warm_from), _LEAST_WARM)

    def end(self) -> None:
        """A try has ended, and its request goes on."""
        self.in_flight -= 1

    def leave(self) -> None:
        """A request has ended with it."""
        self.in_flight -= 1
        self.gate.leave()


class Candidate:
    """An endpoint in one snapshot, with what is known of it and the way to reach it.

    `pool` is the transport's; whatever it is, only the forwarder calls it. Where `make` is
    given, it is made when it is first looked at: of thousands of endpoints most never get a
    request in one worker.
    """

    __slots__ = ("_make", "endpoint", "pool", "state")
    pool: Any

    def __init__(
        self, endpoint: Endpoint, state: EndpointState, pool: Any = None, make: Callable[[], Any] | None = None
    ) -> None:
        self.endpoint = endpoint
        self.state = state
        self._make = make
        if make is None:
            self.pool = pool

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there: the pool, once.
        if name != "pool" or self._make is None:
            raise AttributeError(name)
        self.pool = self._make()
        return self.pool


class Watcher(Protocol):
    """Who learns from each try that came to an end: `took` seconds to the answer's head, or,
    `response` None, to a failure that speaks against the endpoint."""

    def __call__(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None: ...


class UpstreamState:
    """What one upstream keeps across snapshots, in one worker.

    `decisions` counts what was decided, by the words of docs/operations.md.
    """

    __slots__ = (
        "balancer",
        "breaker",
        "budget",
        "decisions",
        "endpoints",
        "gate",
        "outliers",
        "upstream",
        "watchers",
    )

    def __init__(self, upstream: Upstream, balancer: Balancer, budget: Budget) -> None:
        self.budget = budget
        self.endpoints: dict[Key, EndpointState] = {}
        self.decisions: Counter[str] = Counter()
        self.gate = Gate(upstream.concurrency)
        self.outliers = Outliers(upstream, self.decisions)
        self.breaker = CircuitBreaker(upstream.name, upstream.breaker) if upstream.breaker is not None else None
        self.upstream = upstream
        self.have(balancer)

    def have(self, balancer: Balancer) -> None:
        """Pick endpoints by another policy from now on."""
        self.balancer = balancer
        self.watchers: tuple[Watcher, ...] = tuple(
            watcher for watcher in (getattr(balancer, "watch", None),) if watcher is not None
        )

    def configure(self, upstream: Upstream, balancer: Callable[[Upstream], Balancer]) -> None:
        """Take over settings that may have changed; what was learnt stays."""
        before, self.upstream = self.upstream, upstream
        if upstream.balance != before.balance:
            self.have(balancer(upstream))
        if upstream.concurrency != before.concurrency:
            self.gate.configure(upstream.concurrency)
        if upstream.breaker != before.breaker:
            self.breaker = CircuitBreaker(upstream.name, upstream.breaker) if upstream.breaker is not None else None
        self.outliers.configure(upstream)

    def endpoint(self, endpoint: Endpoint, now: float) -> EndpointState:
        """What is known of an endpoint; a newcomer among others begins slowly."""
        known = self.endpoints.get(endpoint.key)
        if known is None:
            known = self.endpoints[endpoint.key] = EndpointState(self.gate)
            if self.upstream.slow_start and self.outliers.of:
                self.outliers.warm_up(known, now)
        return known

    # -- what becomes of tries ----------------------------------------------------------

    def take_retry(self, policy: RetryPolicy) -> bool:
        """Take another try out of the budget; False when there is none left."""
        if self.budget.take(policy.budget):
            return True
        self.decisions["retry_over_budget"] += 1
        return False

    def answered_badly(self, candidate: Candidate, status: int, now: float) -> None:
        """An answer of 5xx: a failure for the breaker, and for passive health where
        `eject.statuses` names it; else an answer like any other."""
        if self.breaker is not None:
            self.breaker.failed(now, f"{candidate.endpoint.address} answered {status}")
        eject = self.outliers.eject
        if eject is not None and status in eject.statuses:
            self.outliers.failed(candidate, now, f"it answered {status}")
        else:
            candidate.state.answered += 1

    def failed(self, candidate: Candidate, error: GatewayError, request: Request, began: float, now: float) -> None:
        """A try failed by the endpoint's fault; it began at `began`, where there are watchers."""
        self.outliers.failed(candidate, now, error.reason)
        if self.breaker is not None:
            self.breaker.failed(now, f"{candidate.endpoint.address}: {error.reason}")
        for watch in self.watchers:
            watch(candidate, request, None, now - began)

    def forget(self, keep: set[Key]) -> None:
        """Drop what is known of endpoints that are gone and have no request left."""
        for key, state in list(self.endpoints.items()):
            if key not in keep and state.in_flight == 0:
                del self.endpoints[key]


Candidates = Sequence[Candidate]
