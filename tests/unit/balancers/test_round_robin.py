"""Round robin: even, smooth, and with a memory."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers.round_robin import RoundRobin
from gateway.health.candidate import EndpointState
from tests.unit.balancers.picking import NOW, ask, candidates, likelihood, number, others, picks


@settings(deadline=None)
@given(st.integers(1, 8), st.floats(0, 0.999))
def test_equal_weights_rotate(endpoints: int, start: float) -> None:
    chosen = picks(RoundRobin(lambda: start), candidates(*[3] * endpoints), endpoints * 4)
    assert set(Counter(chosen).values()) == {4}
    assert chosen[:endpoints] * 4 == chosen


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_weights_are_kept_exactly_over_a_round(weights: list[int]) -> None:
    balancer = RoundRobin(lambda: 0.5)
    among = candidates(*weights)
    counts = Counter(picks(balancer, among, sum(weights) * 3))
    for which, weight in enumerate(weights):
        assert abs(counts[which] - weight * 3) <= (0 if len(set(weights)) == 1 else 1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_it_is_smooth_from_the_first_request(weights: list[int], chance: Random) -> None:
    """After any number of requests, the first included, nobody is two ahead or behind."""
    chosen = picks(RoundRobin(chance.random), candidates(*weights), 200)
    got: Counter[int] = Counter()
    for requests, which in enumerate(chosen, 1):
        got[which] += 1
        for each, weight in enumerate(weights):
            assert abs(got[each] - requests * weight / sum(weights)) < 2


def test_the_heavy_one_has_no_run() -> None:
    # nginx's own example: 5, 1, 1 is a a b a c a a and not a a a a a b c.
    chosen = picks(RoundRobin(lambda: 0.5), candidates(5, 1, 1), 7)
    assert Counter(chosen) == {0: 5, 1: 1, 2: 1}
    assert "00000" not in "".join(map(str, chosen))


@pytest.mark.parametrize("seed", range(20))
def test_eleven_to_three_wherever_it_begins(seed: int) -> None:
    """Traefik's TestBalancerBias: 11 and 3, of which no two of the light one are neighbours."""
    chosen = picks(RoundRobin(Random(seed).random), candidates(11, 3), 14)
    assert abs(chosen.count(1) - 3) <= 1
    assert "11" not in "".join(map(str, chosen))


def test_the_first_pick_is_random() -> None:
    firsts = {picks(RoundRobin(lambda at=at: at / 1000), candidates(1, 1, 1), 1)[0] for at in range(10)}  # type: ignore[misc]
    assert len(firsts) == 3


def test_workers_that_start_together_begin_everywhere() -> None:
    chance = Random(3)
    firsts = Counter(picks(RoundRobin(chance.random), candidates(1, 1, 1, 1, 1), 1)[0] for _ in range(5000))
    assert likelihood(firsts, dict.fromkeys(range(5), 1)) > 0.001
    weighted = Counter(picks(RoundRobin(chance.random), candidates(3, 2, 2), 1)[0] for _ in range(200))
    assert min(weighted[which] for which in range(3)) > 20


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
def test_its_place_survives_a_new_snapshot(weights: tuple[int, ...]) -> None:
    balancer, other = RoundRobin(lambda: 0.5), RoundRobin(lambda: 0.5)
    undisturbed = picks(other, candidates(*weights), 12)
    known = [EndpointState() for _ in weights]
    disturbed = [pick for _ in range(6) for pick in picks(balancer, candidates(*weights, known=known), 2)]
    assert disturbed == undisturbed


# -- second tries ---------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (3, 1), (1, 4), (7, 3), (5, 2, 1), (2, 2, 3, 9)])
@pytest.mark.parametrize("failing", ["by chance", "the first"])
def test_second_tries_do_not_unsettle_the_first(weights: tuple[int, ...], failing: str) -> None:
    chance = Random(2)
    balancer, other = RoundRobin(lambda: 0.5), RoundRobin(lambda: 0.5)
    among = candidates(*weights)
    firsts = []
    for _ in range(300):
        first = balancer.pick(among, ask())
        firsts.append(number(first))
        if chance.random() < 0.3 if failing == "by chance" else number(first) == 0:
            balancer.pick(others(among, first), ask(attempts=2))
    assert firsts == picks(other, candidates(*weights), 300)


def test_of_two_a_dead_one_is_not_asked_first_by_everybody() -> None:
    """A rotation that second tries take part in would offer each request to the dead one first."""
    balancer, among = RoundRobin(lambda: 0.0), candidates(1, 1)
    asked = Counter[int]()
    for _ in range(100):
        first = balancer.pick(among, ask())
        asked[number(first)] += 1
        if number(first) == 0:
            assert number(balancer.pick(others(among, first), ask(attempts=2))) == 1
    assert asked == {0: 50, 1: 50}


def test_second_tries_go_where_the_weights_say() -> None:
    among = candidates(4, 1, 2, 3)
    balancer = RoundRobin(Random(5).random)
    got = Counter(number(balancer.pick(others(among, among[0]), ask(attempts=2))) for _ in range(6000))
    assert likelihood(got, {1: 1, 2: 2, 3: 3}) > 0.001


def test_who_is_left_out_neither_gains_nor_pays() -> None:
    balancer, among = RoundRobin(lambda: 0.9), candidates(5, 2, 1)
    for _ in range(20):
        first = balancer.pick(among, ask())
        credit = first.state.credit
        balancer.pick(others(among, first), ask())
        assert first.state.credit == credit


# -- what changes ---------------------------------------------------------------------


def test_a_newcomer_does_not_get_everything() -> None:
    balancer = RoundRobin(lambda: 0.5)
    known = [EndpointState(), EndpointState()]
    picks(balancer, candidates(3, 1, known=known), 400)
    counts = Counter(picks(balancer, candidates(3, 1, 2, known=[*known, EndpointState()]), 60))
    assert abs(counts[2] - 20) <= 1


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 1000), min_size=3, max_size=3), min_size=2, max_size=5),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_other_weights_count_from_the_next_request(plans: list[list[int]], between: int, chance: Random) -> None:
    """What was gathered with weights in thousands does not keep one of weight 1 waiting for ever."""
    balancer, known = RoundRobin(chance.random), [EndpointState() for _ in range(3)]
    for weights in plans:
        got = Counter(picks(balancer, candidates(*weights, known=known), between))
        if len(set(weights)) == 1:
            assert max(got.values()) - min(got[which] for which in range(3)) <= 1
            continue
        for which, weight in enumerate(weights):
            assert abs(got[which] - between * weight / sum(weights)) < 2.5


# -- slow start -----------------------------------------------------------------------


def warming(state: EndpointState, seconds: float = 10.0) -> EndpointState:
    state.warm_from, state.warm_until = NOW, NOW + seconds
    return state


@pytest.mark.parametrize(("passed", "share"), [(0.0, 0.1), (2.5, 0.25), (5.0, 0.5), (9.0, 0.9)])
@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 2)])
def test_a_newcomers_share_grows(weights: tuple[int, ...], passed: float, share: float) -> None:
    known = [warming(EndpointState()), EndpointState(), EndpointState()]
    among = candidates(*weights, known=known)
    got = Counter(picks(RoundRobin(Random(1).random), among, 500, ask(now=NOW + passed)))
    total = weights[0] * share + sum(weights[1:])
    assert abs(got[0] - 500 * weights[0] * share / total) < 2


def test_it_grows_with_the_same_candidates_and_ends_in_a_rotation() -> None:
    known = [warming(EndpointState()), EndpointState(), EndpointState()]
    among = candidates(1, 1, 1, known=known)
    balancer = RoundRobin(Random(1).random)
    shares = []
    for second in range(12):
        # The same sequence throughout, as a balancer is given while nothing but time changes.
        got = Counter(picks(balancer, among, 210, ask(now=NOW + second)))
        shares.append(got[0] / 210)
    assert shares == sorted(shares)
    assert shares[0] < 0.06
    assert shares[10] == shares[11] == pytest.approx(1 / 3)
    settled = picks(balancer, among, 6, ask(now=NOW + 12))
    assert settled[:3] == settled[3:]


def test_all_of_them_warming_alike_rotate() -> None:
    among = candidates(1, 1, known=[warming(EndpointState()), warming(EndpointState())])
    balancer = RoundRobin(Random(1).random)
    assert Counter(picks(balancer, among, 10)) == {0: 5, 1: 5}
    # But for so long only as they do.
    among[1].state.warm_until = NOW + 20
    assert Counter(picks(balancer, among, 300, ask(now=NOW + 8)))[1] == pytest.approx(100, abs=2)
