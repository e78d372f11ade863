"""What holds for every balancer: whom it may pick, and what becomes of the shares when endpoints come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers import BALANCERS, balancer
from gateway.errors import ConnectRefused, NoEndpoint
from gateway.health.candidate import Candidate
from gateway.health.retry_budget import Budget
from gateway.http.messages import Response
from gateway.model import Balance, Eject, Endpoint, StaticSource, Upstream
from gateway.testing import FakeClock
from gateway.upstreams.snapshot import Group, Known, Turn, group
from gateway.upstreams.state import UpstreamState
from tests.long import times
from tests.unit.balancers.picking import ask, likelihood, number, others

ALL = {
    "round_robin": Balance(),
    "least_requests": Balance("least_requests"),
    "ewma": Balance("ewma"),
    "hash": Balance("hash", by="header", name="x-user"),
    "sticky": Balance("sticky", name="gw", secret="s"),
}
every = pytest.mark.parametrize("policy", ALL)


def test_each_policy_is_tested_here() -> None:
    assert ALL.keys() == BALANCERS.keys()
    assert [each.policy for each in ALL.values()] == list(BALANCERS)


class World:
    """One upstream in one worker: requests are sent and end at once, unless they are held."""

    def __init__(self, policy: str, *weights: int, seed: int = 1, slow_start: float = 0.0) -> None:
        self.clock = FakeClock()
        self.chance = Random(seed)
        endpoints = tuple(Endpoint("http", f"10.0.0.{each}", 80, weight) for each, weight in enumerate(weights))
        self.upstream = Upstream(
            "u", StaticSource(endpoints), balance=ALL[policy], eject=Eject(consecutive=2), slow_start=slow_start
        )
        self.state = UpstreamState(self.upstream, balancer(self.upstream, self.chance.random), Budget(self.clock))
        self.candidates: tuple[Candidate, ...] = ()
        self.appear(*endpoints)

    def appear(self, *endpoints: Endpoint) -> None:
        """A snapshot with these."""

        def join(
            upstream: Upstream, among: tuple[Endpoint, ...], before: Group | None, turn: Turn
        ) -> tuple[tuple[Candidate, ...], UpstreamState]:
            return tuple(Candidate(each, self.state.endpoint(each, self.clock())) for each in among), self.state

        self.group = group(self.upstream, Known(endpoints), None, join)
        self.state.adopt(self.group.members)
        self.state.forget()
        self.candidates = self.group.candidates

    def usable(self) -> Sequence[Candidate]:
        outliers, now = self.state.outliers, self.clock()
        if self.candidates is not outliers.of or now >= outliers.recheck:
            outliers.look(self.candidates, now)
        return outliers.usable

    def send(self, user: int, fails: frozenset[int] = frozenset()) -> list[int]:
        """The endpoints that one request was sent to: as the forwarder does it, with one more try."""
        request = ask(headers=[(b"X-User", b"%d" % user)], now=self.clock())
        left = self.usable()
        sent: list[int] = []
        while len(sent) < 2:
            request.attempts = len(sent) + 1
            candidate = self.state.balancer.pick(left, request)
            assert candidate in left
            sent.append(number(candidate))
            now = self.clock.advance(0.01)
            if number(candidate) not in fails:
                candidate.state.answered += 1
                for watch in self.state.watchers:
                    watch(candidate, request, Response(200, b"", []), self.chance.uniform(0.005, 0.015))
                break
            self.state.failed(candidate, ConnectRefused("refused"), request, now - 0.01, now, False)
            left = others(left, candidate) or self.usable()
        return sent


@every
@settings(max_examples=times(40), deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=10), st.data())
def test_nobody_that_is_out_is_picked_unless_all_are_tried(policy: str, weights: list[int], data: st.DataObject) -> None:
    world = World(policy, *weights, seed=data.draw(st.integers(0, 99)), slow_start=data.draw(st.sampled_from([0.0, 5.0])))
    for _ in range(12):
        fails = data.draw(st.frozensets(st.integers(0, len(weights) - 1)))
        for user in range(data.draw(st.integers(1, 6))):
            out = {number(each) for each in world.candidates if each.state.out_until}
            world.usable()
            panic = world.state.outliers.panic
            assert panic or not out.intersection(world.send(user, fails)[:1])
        world.clock.advance(data.draw(st.sampled_from([0.0, 0.5, 11.0])))
        while world.state.outliers.due:
            tried = world.state.outliers.trial(True, world.clock())
            assert tried is not None
            world.state.outliers.answered(tried, world.clock())


@every
def test_weight_0_gets_nothing(policy: str) -> None:
    """What is to drain is no candidate; where all are, there is nobody to ask."""
    world = World(policy, 1, 0, 3)
    got = Counter(which for user in range(400) for which in world.send(user))
    assert got[1] == 0
    assert min(got[0], got[2]) > 0
    drained = World(policy, 0, 0)
    assert drained.candidates == ()
    assert isinstance(drained.group.absence(), NoEndpoint)
    assert drained.group.absence().status == 503


def shares(policy: str, got: Counter[int]) -> None:
    """That five endpoints got the same."""
    if policy in ("round_robin", "least_requests", "sticky"):
        assert max(got.values()) - min(got.values()) <= 1
        assert len(got) == 5
    elif policy == "hash":
        assert likelihood(got, dict.fromkeys(range(5), 1)) > 0.001
    else:
        # What it learns from one answer counts for the next, so these are not draws.
        assert len(got) == 5
        assert max(got.values()) < 1.5 * min(got.values())


@every
@pytest.mark.parametrize("slow_start", [0.0, 5.0])
def test_who_comes_back_gets_its_share_again(policy: str, slow_start: float) -> None:
    """Down, then up: the split is even as before."""
    world = World(policy, 1, 1, 1, 1, 1, slow_start=slow_start)
    shares(policy, Counter(which for user in range(2000) for which in world.send(user)))
    for user in range(200):
        world.send(user, frozenset({2}))
    assert world.candidates[2].state.state == "ejected"
    assert 2 not in {which for user in range(500) for which in world.send(user)}
    world.clock.advance(11.0)
    world.usable()
    tried = world.state.outliers.trial(True, world.clock())
    assert tried is world.candidates[2]
    world.state.outliers.answered(tried, world.clock())
    early = Counter(which for user in range(100) for which in world.send(user))
    if slow_start:
        # In its first second, a fifth of its weight at most.
        assert early[2] < 15
    world.clock.advance(30.0)
    shares(policy, Counter(which for user in range(5000, 7000) for which in world.send(user)))


@every
def test_another_snapshot_in_the_middle(policy: str) -> None:
    """Endpoints go, come and change their weights between any two requests."""
    world = World(policy, 1, 2, 3)
    chance = Random(4)
    for generation in range(60):
        some = chance.sample(range(12), chance.randint(1, 12))
        world.appear(*(Endpoint("http", f"10.0.0.{each}", 80, chance.randint(0, 3)) for each in some))
        for user in range(5):
            if world.candidates:
                there = {number(each) for each in world.candidates}
                assert set(world.send(user, frozenset({generation % 12}))) <= there


@every
def test_with_another_policy_what_was_learnt_stays(policy: str) -> None:
    world = World("ewma", 1, 1, 1)
    for user in range(50):
        world.send(user)
    world.upstream = replace(world.upstream, balance=ALL[policy])
    world.state.configure(world.upstream, lambda upstream: balancer(upstream, world.chance.random))
    latencies = [each.state.latency for each in world.candidates]
    assert all(latencies)
    for user in range(50):
        assert world.send(user)[0] in (0, 1, 2)
