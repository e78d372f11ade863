"""Least requests: whoever has least to do for its weight, and nobody is favoured among equals."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers.least_requests import LeastRequests
from gateway.health.candidate import Candidate
from tests.long import times
from tests.unit.balancers.picking import NOW, Simulation, ask, candidates, likelihood, number, others, picks


def busy(*in_flight: int, weights: tuple[int, ...] = ()) -> tuple[Candidate, ...]:
    among = candidates(*(weights or [1] * len(in_flight)))
    for candidate, requests in zip(among, in_flight, strict=True):
        candidate.state.in_flight = requests
    return among


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_up_to_eight_it_is_idle_or_the_least_loaded(loads: list[tuple[int, int]], chance: Random) -> None:
    among = busy(*(load for load, _ in loads), weights=tuple(weight for _, weight in loads))
    picked = LeastRequests(chance.random).pick(among, ask())
    load = [(each.state.in_flight + 1) / each.endpoint.weight for each in among]
    assert picked.state.in_flight == 0 or load[number(picked)] == pytest.approx(min(load))


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_with_equal_weights_it_is_exactly_one_with_the_fewest(loads: list[int], chance: Random) -> None:
    picked = LeastRequests(chance.random).pick(busy(*loads), ask())
    assert picked.state.in_flight == min(loads)


def test_who_is_alike_takes_turns() -> None:
    """nginx's upstream_least_conn.t: ten requests one after the other are five for each of two."""
    assert Counter(picks(LeastRequests(lambda: 0.3), busy(0, 0), 10)) == {0: 5, 1: 5}
    assert Counter(picks(LeastRequests(lambda: 0.3), busy(4, 4, 4), 30)) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize("weights", [(3, 1), (1, 2, 3), (99, 1)])
def test_a_quiet_upstream_is_shared_by_weight(weights: tuple[int, ...]) -> None:
    got = Counter(picks(LeastRequests(Random(1).random), busy(*[0] * len(weights), weights=weights), 600))
    for which, weight in enumerate(weights):
        assert abs(got[which] - 600 * weight / sum(weights)) < 2


def test_the_neighbour_of_a_busy_one_is_not_favoured() -> None:
    got = Counter(picks(LeastRequests(Random(1).random), busy(9, 0, 0, 0, 0), 6000))
    assert got[0] == 0
    # A fifth of them are turns of the busy one, which chance gives away; the rest take turns.
    assert likelihood(got, {1: 1, 2: 1, 3: 1, 4: 1}) > 0.001
    spread = Counter[int]()
    balancer, among = LeastRequests(Random(2).random), busy(9, 3, 3, 3, 3)
    for _ in range(30_000):
        turn = balancer.pick(among, ask())
        spread[number(turn)] += 1
    assert max(spread.values()) < 1.05 * min(spread.values())


def test_above_eight_it_is_by_weight_when_quiet() -> None:
    weights = (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
    got = Counter(picks(LeastRequests(Random(1).random), busy(*[0] * 10, weights=weights), 20_000))
    assert likelihood(got, dict(enumerate(weights))) > 0.001


def test_above_eight_it_is_the_better_of_two() -> None:
    """One of 20 has less to do: it is among two by chance as often as two of 20 hold it, and else never."""
    got = Counter(picks(LeastRequests(Random(2).random), busy(*[2] * 19, 1), 20_000))
    assert likelihood(Counter({0: got[19], 1: 20_000 - got[19]}), {0: 0.1, 1: 0.9}) > 0.001
    rest = Counter({which: times for which, times in got.items() if which != 19})
    assert likelihood(rest, dict.fromkeys(range(19), 1)) > 0.001
    # And whoever has most never gets one: the other of the two has less.
    assert picks(LeastRequests(Random(1).random), busy(*[2] * 19, 3), 5000).count(19) == 0


@pytest.mark.parametrize("endpoints", [5, 12])
def test_a_slow_one_gets_fewer(endpoints: int) -> None:
    """At ten times the latency it gets far less than its share, and the others the same as one another."""
    among = candidates(*[1] * endpoints)
    chance = Random(4)

    def serve(candidate: Candidate, now: float) -> tuple[float, int]:
        return chance.expovariate(10.0 if number(candidate) else 1.0), 200

    got = Simulation(LeastRequests(chance.random), among, serve, rate=20.0 * endpoints).run(100)
    fair = got.total() / endpoints
    assert got[0] < 0.35 * fair
    rest = [got[which] for which in range(1, endpoints)]
    assert max(rest) < 1.15 * min(rest)


@pytest.mark.parametrize("endpoints", [4, 16])
def test_under_load_it_is_by_weight(endpoints: int) -> None:
    weights = [1, 3] * (endpoints // 2)
    chance = Random(4)
    among = candidates(*weights)
    simulation = Simulation(
        LeastRequests(chance.random), among, lambda candidate, now: (chance.expovariate(5.0), 200), rate=50.0 * endpoints
    )
    got = simulation.run(40)
    for which, weight in enumerate(weights):
        assert got[which] == pytest.approx(got.total() * weight / sum(weights), rel=0.15)


def test_a_light_one_is_not_filled_up_while_the_heavy_one_has_little_to_do() -> None:
    """A canary of 1 in 100 with a handful of requests at a time gets about one in a hundred."""
    chance = Random(4)
    simulation = Simulation(
        LeastRequests(chance.random), candidates(99, 1), lambda candidate, now: (0.1, 200), rate=50.0
    )
    got = simulation.run(200)
    assert 0.004 < got[1] / got.total() < 0.011


@pytest.mark.parametrize("endpoints", [3, 12])
def test_slow_start_is_a_smaller_weight(endpoints: int) -> None:
    among = busy(*[0] * endpoints)
    among[0].state.warm_from, among[0].state.warm_until = NOW, NOW + 10
    got = Counter(picks(LeastRequests(Random(1).random), among, 6000, ask(now=NOW + 2)))
    assert got[0] / 6000 == pytest.approx(0.2 / (endpoints - 0.8), rel=0.15)
    for each in among:
        each.state.in_flight = 4
    # (4 + 1) / 0.2 is as much as 24 elsewhere.
    assert 0 not in picks(LeastRequests(Random(1).random), among, 200, ask(now=NOW + 2))


@settings(max_examples=times(50), deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_a_second_try_is_one_of_the_others(loads: list[int], chance: Random) -> None:
    balancer, among = LeastRequests(chance.random), busy(*loads)
    first = balancer.pick(among, ask())
    left = others(among, first)
    assert balancer.pick(left, ask(attempts=2)) in left
