"""What is known of an upstream, kept from one snapshot to the next, and what is decided by it.

Rule: it hangs on (upstream, scheme, host, port, base path), never on weight, so that a
re-weighting or a reload forgets nothing. What no snapshot names any more is forgotten once
its last request has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gateway.errors import GatewayError
from gateway.exchange import Request, Response
from gateway.health.adaptive import Gradient
from gateway.health.breaker import CircuitBreaker
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.gate import Gate
from gateway.health.latency import Latencies
from gateway.health.outlier import Outliers
from gateway.model import Endpoint, RetryPolicy, Upstream

if TYPE_CHECKING:
    from gateway.balancers import Balancer
    from gateway.retry import Budget

Key = tuple[str, str, int, bytes]


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
        "gradient",
        "latencies",
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
        self.upstream = upstream
        self.breaker = self._breaker()
        self.balancer = balancer
        # Made when somebody asks for it: not every upstream pays for it.
        self.latencies: Latencies | None = None
        # Learns the adaptive limit; None without `concurrency.adaptive`.
        self.gradient: Gradient | None = None
        self._watch()

    def _breaker(self) -> CircuitBreaker | None:
        """One that is closed, where one is configured; what was counted before stays counted."""
        settings = self.upstream.breaker
        return None if settings is None else CircuitBreaker(self.upstream.name, settings, self.decisions)

    def _watch(self) -> None:
        """Have told of each try whoever learns from it."""
        if not self.upstream.concurrency.adaptive:
            self.gradient = None
        elif self.gradient is None:
            self.gradient = Gradient(self.gate)
        learning: list[object] = [self.balancer, self.latencies, self.gradient]
        self.watchers: tuple[Watcher, ...] = tuple(one.watch for one in learning if hasattr(one, "watch"))

    def usual(self) -> float | None:
        """The time, in seconds, in which 95 of 100 answers begin; None while that is not known."""
        if self.latencies is None:
            self.latencies = Latencies()
            self._watch()
        return self.latencies.p95

    def configure(self, upstream: Upstream, balancer: Callable[[Upstream], Balancer]) -> None:
        """Take over settings that may have changed; what was learnt stays."""
        self.change(upstream, balancer)()

    def change(self, upstream: Upstream, balancer: Callable[[Upstream], Balancer]) -> Callable[[], None]:
        """Returns a function that applies the settings of `upstream`, to be called after the swap. Everything that
        can fail is done here and changes nothing."""
        before = self.upstream
        chosen = balancer(upstream) if upstream.balance != before.balance else None

        def take_over() -> None:
            self.upstream = upstream
            if chosen is not None:
                self.balancer = chosen
            if upstream.concurrency != before.concurrency:
                self.gate.configure(upstream.concurrency)
            if chosen is not None or upstream.concurrency != before.concurrency:
                self._watch()
                if self.gradient is not None:
                    self.gradient.resume()
            if upstream.breaker != before.breaker:
                self.breaker = self._breaker()
            self.outliers.configure(upstream)

        return take_over

    def endpoint(self, endpoint: Endpoint, now: float, slow_start: float | None = None) -> EndpointState:
        """The state of an endpoint; a newcomer among others begins slowly. `slow_start`: seconds, from the settings
        of a snapshot that is being built; None: from the settings in force."""
        known = self.endpoints.get(endpoint.key)
        if known is None:
            known = self.endpoints[endpoint.key] = EndpointState(self.gate)
            seconds = self.upstream.slow_start if slow_start is None else slow_start
            if seconds and self.outliers.of:
                self.outliers.warm_up(known, now, seconds)
        return known

    # -- what becomes of tries ----------------------------------------------------------

    def take_retry(self, policy: RetryPolicy) -> bool:
        """Take another try out of the budget; False when there is none left."""
        if self.budget.take(policy.budget):
            return True
        self.decisions["retry_over_budget"] += 1
        return False

    def answered_badly(self, candidate: Candidate, status: int, began: float, now: float, trial: bool) -> None:
        """An answer of 5xx to a try that began at `began`: a failure for the breaker, and for
        passive health where `eject.statuses` names it; else an answer like any other."""
        if self.breaker is not None:
            self.breaker.failed(began, now, f"{candidate.endpoint.address} answered {status}")
        eject = self.outliers.eject
        if eject is not None and status in eject.statuses:
            self.outliers.failed(candidate, began, now, f"it answered {status}", trial)
            return
        candidate.state.answered += 1
        if trial:
            self.outliers.answered(candidate, now)

    def failed(
        self, candidate: Candidate, error: GatewayError, request: Request, began: float, now: float, trial: bool
    ) -> None:
        """A try that began at `began` failed by the endpoint's fault."""
        self.outliers.failed(candidate, began, now, error.reason, trial)
        if self.breaker is not None:
            self.breaker.failed(began, now, f"{candidate.endpoint.address}: {error.reason}")
        for watch in self.watchers:
            watch(candidate, request, None, now - began)

    def forget(self, keep: set[Key]) -> None:
        """Drop what is known of endpoints that are gone and have no request left."""
        for key, state in list(self.endpoints.items()):
            if key not in keep and state.in_flight == 0:
                del self.endpoints[key]

