"""What is learnt of how long answers take: the usual time, and the limit that follows from it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from gateway.health.adaptive import Gradient
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.gate import Gate
from gateway.health.latency import Latencies
from gateway.health.retry_budget import Budget
from gateway.http.messages import Request, Response
from gateway.model import Balance, Breaker, Concurrency, Endpoint, StaticSource, Timeouts
from gateway.model import Upstream as Settings
from gateway.upstreams.state import UpstreamState

ANY = Candidate(Endpoint("http", "10.0.0.1", 80), EndpointState(), object())
ASKED = Request(b"GET", b"/", [], started=0.0)
OK = Response(200, b"OK", [])


class TestLatencies:
    def test_little_is_nothing(self) -> None:
        latencies = Latencies()
        for _ in range(31):
            latencies.watch(ANY, ASKED, OK, 1.0)
        assert latencies.p95 is None

    def test_95_of_100(self) -> None:
        latencies = Latencies()
        for number in range(320):
            latencies.watch(ANY, ASKED, OK, number / 320)
        assert latencies.p95 is not None
        assert abs(latencies.p95 - 0.95) < 0.01

    def test_what_is_long_ago_is_forgotten(self) -> None:
        latencies = Latencies()
        for took in [9.0] * 512 + [1.0] * 512:
            latencies.watch(ANY, ASKED, OK, took)
        assert latencies.p95 == 1.0

    def test_failures_say_nothing(self) -> None:
        latencies = Latencies()
        for _ in range(100):
            latencies.watch(ANY, ASKED, None, 0.0)
        assert latencies.p95 is None


class Upstream:
    """Serves `room` requests in `took` seconds; more of them wait behind one another."""

    def __init__(self, room: int, most: int = 1024) -> None:
        self.room = room
        self.gate = Gate(Concurrency(limit=most))
        self.gradient = Gradient(self.gate)
        self.chance = random.Random(1)

    def run(self, demand: int, steps: int, took: float = 0.1, failing: float = 0.0) -> float:
        for _ in range(steps * 50):
            self.gate.in_flight = min(demand, int(self.gate.limit))
            waiting = self.gate.in_flight - self.gate.streams
            latency = took * max(waiting / self.room, 1.0) * self.chance.uniform(0.95, 1.05)
            response = None if self.chance.random() < failing else OK
            self.gradient.watch(ANY, ASKED, response, latency)
        return self.gradient.limit


class TestGradient:
    def test_it_settles_near_what_the_upstream_can(self) -> None:
        upstream = Upstream(room=100)
        assert 80 <= upstream.run(demand=1000, steps=400) <= 250

    def test_it_does_not_grow_while_nobody_needs_more(self) -> None:
        upstream = Upstream(room=100)
        assert upstream.run(demand=5, steps=200) == 20

    def test_it_shrinks_when_the_upstream_slows_down(self) -> None:
        upstream = Upstream(room=100)
        before = upstream.run(demand=1000, steps=150)
        assert upstream.run(demand=1000, steps=10, took=1.0) < before / 2

    def test_it_shrinks_when_something_fails(self) -> None:
        upstream = Upstream(room=100)
        before = upstream.run(demand=1000, steps=100)
        assert upstream.run(demand=1000, steps=20, failing=0.5) < before / 2

    def test_not_when_little_does(self) -> None:
        """Whoever knows an URL that always fails does not shrink it for the others."""
        upstream = Upstream(room=100)
        before = upstream.run(demand=1000, steps=150)
        assert upstream.run(demand=1000, steps=40, failing=0.02) > before / 2

    def test_what_streams_is_not_waited_for(self) -> None:
        upstream = Upstream(room=100)
        upstream.gate.streams = 500
        upstream.run(demand=1000, steps=200)
        # Few are let through, to learn what it takes when it is idle; then more again.
        assert upstream.gate.limit == 505
        assert upstream.run(demand=1000, steps=1) > 80
        assert upstream.gate.limit == 500 + upstream.gradient.limit

    def test_an_upstream_that_is_slower_for_good_is_measured_anew(self) -> None:
        upstream = Upstream(room=100)
        upstream.run(demand=1000, steps=300)
        assert upstream.run(demand=1000, steps=600, took=0.3) >= 60

    def test_never_to_nothing_and_never_beyond_the_limit(self) -> None:
        upstream = Upstream(room=10_000, most=64)
        assert upstream.run(demand=1000, steps=500) == 64
        assert upstream.run(demand=1000, steps=500, failing=1.0) == 4
        # And it finds its way back.
        assert upstream.run(demand=1000, steps=500) == 64


class TestWhatIsKept:
    """The adaptive limit outlives whatever else of its upstream changes."""

    def learnt(self, **concurrency: Any) -> UpstreamState:
        settings = Concurrency(**{"limit": 0, "adaptive": True, **concurrency})
        upstream = Settings("u", StaticSource(()), concurrency=settings)
        state = UpstreamState(upstream, Picking(), Budget(lambda: 0.0))  # type: ignore[arg-type]
        assert state.gradient is not None
        state.gradient.limit = 180.0
        state.gradient.resume()
        assert state.gate.limit == 180.0
        return state

    def test_hedging_begins(self) -> None:
        state = self.learnt()
        assert state.usual() is None
        assert state.gate.limit == 180.0
        assert len(state.watchers) == 2

    @pytest.mark.parametrize(
        "change",
        [
            {"balance": Balance(policy="least_requests")},
            {"breaker": Breaker()},
            {"slow_start": 5.0},
            {"timeouts": Timeouts(response=9.0)},
            {"concurrency": Concurrency(limit=0, adaptive=True, queue=7)},
            {"concurrency": Concurrency(limit=500, adaptive=True)},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_other_settings_change(self, change: dict[str, Any]) -> None:
        state = self.learnt()
        gradient = state.gradient
        state.configure(replace(state.upstream, **change), lambda upstream: Picking())  # type: ignore[arg-type, return-value]
        assert state.gate.limit == 180.0
        assert state.gradient is gradient
        assert sum(watch.__self__ is gradient for watch in state.watchers) == 1  # type: ignore[attr-defined]

    def test_a_lower_limit_counts_and_a_higher_one_gives_back_what_was_learnt(self) -> None:
        state = self.learnt()
        for limit, expected in ((100, 100.0), (1000, 180.0)):
            changed = replace(state.upstream, concurrency=Concurrency(limit=limit, adaptive=True))
            state.configure(changed, lambda upstream: Picking())  # type: ignore[arg-type, return-value]
            assert state.gate.limit == expected

    def test_a_measurement_under_way_goes_on(self) -> None:
        state = self.learnt()
        assert state.gradient is not None
        state.gradient._measuring = True
        changed = replace(state.upstream, concurrency=Concurrency(limit=0, adaptive=True, queue=7))
        state.configure(changed, lambda upstream: Picking())  # type: ignore[arg-type, return-value]
        assert state.gate.limit == 5.0

    def test_switched_off_and_on_it_begins_anew(self) -> None:
        state = self.learnt()
        for adaptive, expected in ((False, 300.0), (True, 20.0)):
            changed = replace(state.upstream, concurrency=Concurrency(limit=300, adaptive=adaptive))
            state.configure(changed, lambda upstream: Picking())  # type: ignore[arg-type, return-value]
            assert state.gate.limit == expected

    def test_a_change_that_cannot_be_made_changes_nothing(self) -> None:
        state = self.learnt()
        before = (state.upstream, state.balancer, state.breaker, state.watchers)

        def fail(upstream: Settings) -> Any:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError):
            state.configure(replace(state.upstream, balance=Balance(policy="ewma"), breaker=Breaker()), fail)
        assert (state.upstream, state.balancer, state.breaker, state.watchers) == before


class Picking:
    """A balancer that learns nothing."""
