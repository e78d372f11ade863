"""The measure itself: chi-square says no to what is not even, and yes to what is."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tests.unit.balancers.picking import likelihood, survival


@pytest.mark.parametrize(
    ("freedom", "critical"),
    # Of every table: what is exceeded once in a thousand times.
    [(1, 10.828), (2, 13.816), (3, 16.266), (4, 18.467), (5, 20.515), (9, 27.877), (19, 43.820), (99, 148.230)],
)
def test_survival_is_that_of_the_tables(freedom: int, critical: float) -> None:
    assert survival(critical, freedom) == pytest.approx(0.001, rel=1e-3)
    assert survival(0.0, freedom) == 1.0


def test_what_is_even_is_likely_and_what_is_not_is_not() -> None:
    chance = Random(1)
    even = Counter(chance.choices(range(5), k=5000))
    assert likelihood(even, dict.fromkeys(range(5), 1)) > 0.001
    # One of five gets a tenth too much.
    uneven = Counter(chance.choices(range(5), [1.1, 1, 1, 1, 1], k=20000))
    assert likelihood(uneven, dict.fromkeys(range(5), 1)) < 0.001
