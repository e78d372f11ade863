"""Choosing by weight: each as often as it should be, and never the same one twice."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers.weights import Weights
from tests.unit.balancers.picking import NOW, candidates, likelihood


def about(*weights: int, seed: int = 1) -> Weights:
    found = Weights(Random(seed).random)
    found.look(candidates(*weights), NOW)
    return found


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3, 4), (100, 1, 1), tuple(range(1, 21))])
def test_one_is_as_likely_as_its_share_is_large(weights: tuple[int, ...]) -> None:
    found = about(*weights)
    got = Counter(found.one() for _ in range(20_000))
    assert likelihood(got, dict(enumerate(weights))) > 0.001


@pytest.mark.parametrize("first", [0, 1, 3])
def test_another_is_one_of_the_others_by_their_weights(first: int) -> None:
    weights = (5, 1, 2, 3)
    found = about(*weights)
    got = Counter(found.another(first) for _ in range(20_000))
    assert likelihood(got, {each: weight for each, weight in enumerate(weights) if each != first}) > 0.001


@settings(deadline=None)
@given(st.lists(st.integers(1, 65535), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_there_is_always_one(weights: list[int], chance: float) -> None:
    found = Weights(lambda: chance)
    found.look(candidates(*weights), NOW)
    first = found.one()
    assert 0 <= first < len(weights)
    assert 0 <= found.another(first) < len(weights)


def test_the_only_one_has_no_other() -> None:
    found = about(7)
    assert (found.one(), found.another(0)) == (0, 0)


def test_it_looks_again_only_when_there_is_something_to_see() -> None:
    among = candidates(1, 1)
    found = Weights(lambda: 0.0)
    found.look(among, NOW)
    before = found.shares
    found.look(among, NOW + 1000)
    assert found.shares is before
    among[0].state.warm_from, among[0].state.warm_until = NOW, NOW + 10
    again = (*among,)
    found.look(again, NOW)
    assert found.shares == pytest.approx([0.1 / 1.1, 1 / 1.1])
    found.look(again, NOW + 0.05)
    assert found.shares == pytest.approx([0.1 / 1.1, 1 / 1.1])
    found.look(again, NOW + 5)
    assert (found.shares, found.settled) == (pytest.approx([1 / 3, 2 / 3]), False)
    found.look(again, NOW + 10.05)
    assert (found.shares, found.settled, found.equal) == ([0.5, 0.5], True, True)
