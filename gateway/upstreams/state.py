"""What is known of an upstream, kept from one snapshot to the next, and what is decided by it.

Rule: it hangs on (upstream, scheme, host, port, base path), never on weight, so that a
re-weighting or a reload forgets nothing. What no snapshot names any more is forgotten once
its last request has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from gateway.errors import GatewayError
from gateway.health.adaptive import Gradient
from gateway.health.breaker import CircuitBreaker
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.gate import Gate
from gateway.health.latency import Latencies
from gateway.health.outlier import Outliers
from gateway.http.messages import Request, Response
from gateway.model import Endpoint, Key, RetryPolicy, Upstream
from gateway.runtime.hub import parts

if TYPE_CHECKING:
    from gateway.balancers import Balancer
    from gateway.health.retry_budget import Budget


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
        "gate",
        "gradient",
        "latencies",
        "members",
        "others",
        "outliers",
        "passing",
        "upstream",
        "watchers",
    )

    def __init__(self, upstream: Upstream, balancer: Balancer, budget: Budget) -> None:
        self.budget = budget
        # What is known of endpoints stands with the candidates of the group in force (`members`), with those of
        # groups before it, newest last, until `forget` has looked through them (`passing`), and in `others`.
        self.members: Mapping[Key, Candidate] = {}
        self.passing: list[Mapping[Key, Candidate]] = []
        self.others: dict[Key, EndpointState] = {}
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
        self.change(upstream, balancer)[0]()

    def change(
        self, upstream: Upstream, balancer: Callable[[Upstream], Balancer]
    ) -> tuple[Callable[[], None], Balancer]:
        """Returns a function that applies the settings of `upstream`, to be called after the swap, and the balancer
        that there is then. Everything that can fail is done here and changes nothing."""
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

        return take_over, chosen or self.balancer

    def find(self, key: Key) -> EndpointState | None:
        """What is known of an endpoint; None: nothing."""
        for members in (self.members, *reversed(self.passing)):
            found = members.get(key)
            if found is not None:
                return found.state
        return self.others.get(key)

    def endpoint(self, endpoint: Endpoint, now: float) -> EndpointState:
        """The state of an endpoint, which is kept from now on, as if a group in force had had it."""
        known = self.others[endpoint.key] = self.take(endpoint, now, self.upstream.slow_start)
        return known

    def take(self, endpoint: Endpoint, now: float, slow_start: float) -> EndpointState:
        """The state of an endpoint for a group to come; a newcomer among others begins slowly, within so many
        seconds. A new one is kept by its candidate alone until that group is in force (`adopt`)."""
        known = self.find(endpoint.key)
        if known is None:
            known = EndpointState(self.gate)
            if slow_start and self.outliers.of:
                self.outliers.warm_up(known, now, slow_start)
        return known

    def adopt(self, members: Mapping[Key, Candidate]) -> None:
        """Another group is in force; none any more: no members."""
        if members is not self.members:
            self.passing.append(self.members)
            self.members = members

    @property
    def in_flight(self) -> int:
        """Requests that its endpoints have, those that are gone included."""
        if not self.passing and not self.others:
            return sum([candidate.state.in_flight for candidate in self.members.values()])
        states = {candidate.state for members in (self.members, *self.passing) for candidate in members.values()}
        return sum([state.in_flight for state in states.union(self.others.values())])

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

    def forget(self, turn: Callable[[], object] = lambda: None) -> None:
        """Drop what is known of endpoints that are gone and have no request left. `turn` is called between two
        parts of the work."""
        while self.passing:
            # In `passing` until it is done, so that `find` sees them, and an exception loses nothing.
            oldest = self.passing[0]
            for key, candidate in parts(oldest.items(), turn):
                if candidate.state.in_flight and key not in self.members:
                    self.others.setdefault(key, candidate.state)
            if self.passing and self.passing[0] is oldest:
                del self.passing[0]
        for key in parts(list(self.others), turn):
            state = self.others.get(key)
            if state is not None and (key in self.members or state.in_flight == 0):
                del self.others[key]
