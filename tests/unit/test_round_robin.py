"""Round robin: even, smooth, and with a memory."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancers.round_robin import RoundRobin
from gateway.exchange import Request
from gateway.health.candidate import Candidate, EndpointState
from gateway.model import Endpoint

ASKED = Request(b"GET", b"/", [], started=0.0)


def candidates(*weights: int, known: list[EndpointState] | None = None) -> tuple[Candidate, ...]:
    """`known`: what an earlier snapshot knew of them, in their order."""
    states = known or [EndpointState() for _ in weights]
    return tuple(
        Candidate(Endpoint("http", f"10.0.0.{number}", 80, weight), state, None)
        for number, (weight, state) in enumerate(zip(weights, states, strict=True))
    )


def picks(balancer: RoundRobin, among: tuple[Candidate, ...], number: int) -> list[str]:
    return [balancer.pick(among, ASKED).endpoint.host[-1] for _ in range(number)]


@given(st.integers(1, 8), st.floats(0, 0.999))
def test_equal_weights_rotate(number: int, start: float) -> None:
    chosen = picks(RoundRobin(lambda: start), candidates(*[3] * number), number * 4)
    assert set(Counter(chosen).values()) == {4}
    assert chosen[:number] * 4 == chosen


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_weights_are_kept_exactly_over_a_round(weights: list[int]) -> None:
    balancer = RoundRobin(lambda: 0.5)
    among = candidates(*weights)
    counts = Counter(picks(balancer, among, sum(weights) * 3))
    for number, weight in enumerate(weights):
        assert abs(counts[str(number)] - weight * 3) <= (0 if len(set(weights)) == 1 else 1)


def test_it_is_smooth_from_the_first_request() -> None:
    # nginx's own example: 5, 1, 1 is a a b a c a a and not a a a a a b c.
    chosen = picks(RoundRobin(lambda: 0.5), candidates(5, 1, 1), 7)
    assert Counter(chosen) == {"0": 5, "1": 1, "2": 1}
    assert "00000" not in "".join(chosen)


def test_the_first_pick_is_random() -> None:
    firsts = {picks(RoundRobin(lambda at=at: at / 1000), candidates(1, 1, 1), 1)[0] for at in range(10)}  # type: ignore[misc]
    assert len(firsts) == 3


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)])
def test_its_place_survives_a_new_snapshot(weights: tuple[int, ...]) -> None:
    balancer, other = RoundRobin(lambda: 0.5), RoundRobin(lambda: 0.5)
    undisturbed = picks(other, candidates(*weights), 12)
    known = [EndpointState() for _ in weights]
    disturbed = [pick for _ in range(6) for pick in picks(balancer, candidates(*weights, known=known), 2)]
    assert disturbed == undisturbed


@pytest.mark.parametrize("weights", [(3, 1), (1, 4), (7, 3)])
def test_who_is_left_out_keeps_its_place(weights: tuple[int, int]) -> None:
    """A second try asks the other one alone: the first tries go on as if there had been none."""
    balancer, other, chance = RoundRobin(Random(1).random), RoundRobin(Random(1).random), Random(2)
    undisturbed = picks(other, candidates(*weights), 100)
    among = candidates(*weights)
    firsts = []
    for _ in range(100):
        first = balancer.pick(among, ASKED)
        firsts.append(first.endpoint.host[-1])
        if chance.random() < 0.3:
            balancer.pick([candidate for candidate in among if candidate is not first], ASKED)
    assert firsts == undisturbed


def test_who_is_left_out_neither_gains_nor_pays() -> None:
    balancer, among = RoundRobin(lambda: 0.9), candidates(5, 2, 1)
    for _ in range(20):
        first = balancer.pick(among, ASKED)
        credit = first.state.credit
        balancer.pick([candidate for candidate in among if candidate is not first], ASKED)
        assert first.state.credit == credit


def test_a_newcomer_does_not_get_everything() -> None:
    balancer = RoundRobin(lambda: 0.5)
    known = [EndpointState(), EndpointState()]
    picks(balancer, candidates(3, 1, known=known), 400)
    counts = Counter(picks(balancer, candidates(3, 1, 2, known=[*known, EndpointState()]), 60))
    assert abs(counts["2"] - 20) <= 1
