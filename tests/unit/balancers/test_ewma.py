"""Peak EWMA: the faster endpoint, a slow one now and then, and nothing that fails fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers.ewma import PeakEwma
from gateway.health.candidate import Candidate
from gateway.http.messages import Response
from tests.unit.balancers.picking import NOW, Simulation, ask, candidates, likelihood, number, picks


class Measured:
    """A balancer and its candidates, with a clock that stands still until it is moved."""

    def __init__(self, *weights: int, seed: int = 1) -> None:
        self.now = NOW
        self.among = candidates(*weights)
        self.balancer = PeakEwma(Random(seed).random, lambda: self.now)

    def answer(self, which: int, took: float, status: int | None = 200) -> float:
        """The latency that it is thought to have after an answer (status None: a failure)."""
        response = None if status is None else Response(status, b"", [])
        self.balancer.watch(self.among[which], ask(now=self.now - took), response, took)
        return self.among[which].state.latency

    def picks(self, times: int) -> list[int]:
        return picks(self.balancer, self.among, times, ask(now=self.now))


# -- what is learnt -------------------------------------------------------------------


def test_it_rises_at_once_and_falls_slowly() -> None:
    world = Measured(1, 1)
    assert world.answer(0, 0.01) == 0.01
    assert world.answer(0, 0.5) == 0.5
    fallen = []
    for _ in range(30):
        world.now += 1.0
        fallen.append(world.answer(0, 0.01))
    assert fallen == sorted(fallen, reverse=True)
    # In ten seconds all but 1 / e of the difference is gone.
    assert fallen[9] - 0.01 == pytest.approx(0.49 / 2.718281828, rel=0.01)
    assert fallen[29] < 0.04


def test_how_often_it_is_asked_does_not_make_it_fall_faster() -> None:
    often, seldom = Measured(1), Measured(1)
    for world, steps in ((often, 1000), (seldom, 10)):
        world.answer(0, 1.0)
        for _ in range(steps):
            world.now += 5.0 / steps
            world.answer(0, 0.01)
    assert often.among[0].state.latency == pytest.approx(seldom.among[0].state.latency, rel=0.01)


def test_a_failure_is_slow_however_fast_it_came() -> None:
    world = Measured(1, 1)
    for _ in range(20):
        world.answer(0, 0.02)
        world.answer(1, 0.02)
    assert world.answer(1, 0.0001, status=None) == pytest.approx(0.2)
    assert set(world.picks(100)) == {0}


@pytest.mark.parametrize("took", [0.0001, 30.0])
def test_a_failure_before_anything_is_known(took: float) -> None:
    world = Measured(1, 1)
    assert world.answer(0, took, status=None) == max(took, 1.0)
    assert set(world.picks(100)) == {1}


def test_a_fast_5xx_is_as_slow_as_usual() -> None:
    world = Measured(1, 1)
    for _ in range(20):
        world.answer(0, 0.02)
        world.answer(1, 0.02)
    assert world.answer(1, 0.0001, status=500) == pytest.approx(0.02)
    assert world.answer(1, 0.7, status=503) == pytest.approx(0.7)
    # What else it says is no verdict on who said it.
    assert Measured(1).answer(0, 0.0001, status=404) == 0.0001


# -- who is picked --------------------------------------------------------------------


@pytest.mark.parametrize("endpoints", [2, 5, 12])
def test_by_latency_times_what_it_has_to_do(endpoints: int) -> None:
    world = Measured(*[1] * endpoints)
    for which in range(endpoints):
        world.answer(which, 0.1)
    # Half as slow and three under way: twice the cost of an idle one.
    world.among[0].state.latency = 0.05
    assert world.picks(400).count(0) > 0
    world.among[0].state.in_flight = 3
    assert world.picks(400).count(0) == 0
    for each in world.among[1:]:
        each.state.in_flight = 9
    got = Counter(world.picks(4000))
    # Whenever it is one of the two: 2 times in n.
    assert got[0] / 4000 == pytest.approx(2 / endpoints, rel=0.12)


@pytest.mark.parametrize("endpoints", [2, 5, 20])
def test_nobody_is_favoured(endpoints: int) -> None:
    """With latency and load drawn alike for all of them, each is the one as often as the others."""
    chance = Random(6)
    got = Counter[int]()
    among = candidates(*[1] * endpoints)
    balancer = PeakEwma(chance.random)
    for _ in range(10_000):
        for each in among:
            each.state.latency, each.state.latency_at = chance.expovariate(10.0), NOW - chance.random()
            each.state.in_flight = chance.randrange(4)
        got[number(balancer.pick(among, ask()))] += 1
    assert likelihood(got, dict.fromkeys(range(endpoints), 1)) > 0.001


def test_the_slowest_of_all_is_left_alone_until_its_latency_is_old() -> None:
    world = Measured(1, 1, 1)
    for which, took in enumerate((0.01, 0.011, 0.1)):
        world.answer(which, took)
    assert world.picks(300).count(2) == 0
    for _ in range(60):
        world.now += 1.0
        world.answer(0, 0.01)
        world.answer(1, 0.011)
    # Now it is thought to be as fast as usual, and gets one as soon as others have something to do.
    world.among[0].state.in_flight = world.among[1].state.in_flight = 1
    assert world.picks(300).count(2) == pytest.approx(200, rel=0.15)


def test_a_newcomer_is_tried_soon_but_not_by_everyone_at_once() -> None:
    world = Measured(1, 1, 1, 1, 1)
    chance = Random(9)
    for _ in range(40):
        for which in range(4):
            world.answer(which, chance.uniform(0.01, 0.03))
            world.now += 0.01
    got = []
    # A hundred requests of which none is answered.
    for _ in range(100):
        picked = world.balancer.pick(world.among, ask(now=world.now))
        picked.state.in_flight += 1
        got.append(number(picked))
    assert 4 in got[:10]
    assert got.count(4) < 40


def test_a_second_try_asks_with_the_time_of_its_request() -> None:
    """What was measured since then is as it was measured, not more than that."""
    world = Measured(1, 1)
    world.answer(1, 0.04)
    world.now += 29.0
    world.answer(0, 0.05)
    world.among[1].state.in_flight = 1
    assert set(picks(world.balancer, world.among, 50, ask(now=NOW - 1.0, attempts=2))) == {0}


def test_after_a_quiet_night_a_burst_is_spread() -> None:
    """Who was measured last is no hundred times faster than who was a minute before."""
    world = Measured(1, 1, 1, 1)
    for which in range(4):
        world.answer(which, 0.02)
        world.now += 60.0
    world.now += 8 * 3600.0
    for _ in range(200):
        world.balancer.pick(world.among, ask(now=world.now)).state.in_flight += 1
    assert all(45 <= each.state.in_flight <= 55 for each in world.among)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=12), st.floats(-100, 100), st.randoms(use_true_random=False))
def test_any_latency_at_any_time(latencies: list[float], later: float, chance: Random) -> None:
    """Second tries come with the time at which their request began, before what was measured since."""
    among = candidates(*[1] * len(latencies))
    balancer = PeakEwma(chance.random, lambda: NOW)
    for each, took in zip(among, latencies, strict=True):
        balancer.watch(each, ask(), Response(200, b"", []), took)
    assert balancer.pick(among, ask(now=NOW + later)) in among


@pytest.mark.parametrize("weights", [(1, 3), (99, 1), (1, 2, 3, 4, 5), (5, 5, 1)])
def test_a_quiet_upstream_of_one_latency_is_shared_by_weight(weights: tuple[int, ...]) -> None:
    world = Measured(*weights)
    chance = Random(7)
    for which in range(len(weights)):
        world.answer(which, chance.uniform(0.02, 0.03))
    assert likelihood(Counter(world.picks(20_000)), dict(enumerate(weights))) > 0.001


def test_weights_do_not_save_a_slow_one() -> None:
    world = Measured(1, 2)
    world.answer(0, 0.01)
    world.answer(1, 0.1)
    assert set(world.picks(100)) == {0}


def test_under_load_it_is_by_weight() -> None:
    world = Measured(1, 3, 1, 3)
    for which in range(4):
        world.answer(which, 0.02)
    for _ in range(400):
        world.balancer.pick(world.among, ask(now=world.now)).state.in_flight += 1
    in_flight = [each.state.in_flight for each in world.among]
    assert in_flight == pytest.approx([50, 150, 50, 150], rel=0.25)


def test_a_light_one_is_not_filled_up_while_the_heavy_one_has_little_to_do() -> None:
    """As for least requests: one in a hundred of a handful at a time."""
    chance = Random(4)
    balancer = PeakEwma(chance.random, lambda: simulation.clock())
    simulation = Simulation(
        balancer, candidates(99, 1), lambda candidate, now: (chance.uniform(0.05, 0.15), 200), rate=50.0
    )
    got = simulation.run(200)
    assert 0.003 < got[1] / got.total() < 0.012


def test_slow_start_is_a_smaller_weight() -> None:
    world = Measured(1, 1, 1)
    for which in range(3):
        world.answer(which, 0.02)
    world.among[1].state.warm_from, world.among[1].state.warm_until = NOW, NOW + 10
    world.now += 2.0
    assert Counter(world.picks(6000))[1] / 6000 == pytest.approx(0.2 / 2.2, rel=0.1)
    for each in world.among:
        each.state.in_flight = 4
    assert 1 not in world.picks(200)


# -- an upstream ----------------------------------------------------------------------

Serve = Callable[[Candidate, float], tuple[float, int | None]]


def upstream(serve: Serve, endpoints: int = 5, rate: float = 100.0) -> Simulation:
    """Requests at `rate`; the balancer learns from every answer."""
    balancer = PeakEwma(Random(3).random, lambda: simulation.clock())
    simulation = Simulation(balancer, candidates(*[1] * endpoints), serve, rate)
    return simulation


@pytest.mark.parametrize(("endpoints", "most"), [(2, 0.1), (5, 0.05), (12, 0.03)])
def test_ten_times_the_latency(endpoints: int, most: float) -> None:
    chance = Random(8)

    def serve(candidate: Candidate, now: float) -> tuple[float, int]:
        return chance.uniform(0.01, 0.03) * (10 if number(candidate) == 0 else 1), 200

    got = upstream(serve, endpoints).run(60)
    assert got[0] / got.total() < most
    rest = [got[which] for which in range(1, endpoints)]
    assert max(rest) < 1.35 * min(rest)


def test_it_is_found_out_and_comes_back() -> None:
    chance = Random(8)
    slow = 1.0

    def serve(candidate: Candidate, now: float) -> tuple[float, int]:
        return chance.uniform(0.01, 0.03) * (slow if number(candidate) == 0 else 1), 200

    simulation = upstream(serve)
    assert simulation.run(20)[0] == pytest.approx(400, rel=0.15)
    slow = 20.0
    assert simulation.run(20)[0] < 60
    slow = 1.0
    simulation.run(40)
    assert simulation.run(20)[0] == pytest.approx(400, rel=0.15)


@pytest.mark.parametrize(("status", "most"), [(None, 0.06), (500, 0.3)])
def test_failing_at_once_attracts_nobody(status: int | None, most: float) -> None:
    chance = Random(8)

    def serve(candidate: Candidate, now: float) -> tuple[float, int | None]:
        return (0.0002, status) if number(candidate) == 0 else (chance.uniform(0.01, 0.03), 200)

    # Of five, of which it is the one with the least to do.
    got = upstream(serve).run(60)
    assert got[0] / got.total() < most
