"""Passive health: who is taken out, for how long, who tries it again, and when all are tried."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.health.candidate import Candidate, EndpointState
from gateway.health.outlier import PATIENCE, Outliers
from gateway.model import Eject, Endpoint, StaticSource, Upstream
from tests.long import times


class World:
    """Candidates of one upstream, and the time."""

    def __init__(self, number: int = 4, *, slow_start: float = 0.0, eject: Eject | None = Eject()) -> None:  # noqa: B008
        self.now = 1000.0
        # Those that a request tries now, after they were out.
        self.trying: set[int] = set()
        self.decisions: Counter[str] = Counter()
        self.upstream = Upstream("u", StaticSource(()), eject=eject, slow_start=slow_start)
        self.outliers = Outliers(self.upstream, self.decisions, wall=lambda: 7.0)
        self.all = tuple(
            Candidate(Endpoint("http", f"10.0.0.{index}", 80), EndpointState(), object()) for index in range(number)
        )

    def look(self) -> None:
        if self.all is not self.outliers.of or self.now >= self.outliers.recheck:
            self.outliers.look(self.all, self.now)

    @property
    def usable(self) -> list[int]:
        self.look()
        return [self.all.index(candidate) for candidate in self.outliers.usable]

    def fail(self, index: int, times: int = 1, why: str = "connect_refused", *, took: float = 0.0) -> None:
        for _ in range(times):
            self.look()
            trial = index in self.trying
            self.trying.discard(index)
            self.outliers.failed(self.all[index], self.now - took, self.now, why, trial)

    def answer(self, index: int, times: int = 1) -> None:
        for _ in range(times):
            candidate = self.all[index]
            candidate.state.answered += 1
            if index in self.trying:
                self.trying.discard(index)
                self.outliers.answered(candidate, self.now)

    def trial(self, again: bool = True) -> int | None:
        self.look()
        found = self.outliers.trial(again, self.now)
        if found is None:
            return None
        self.trying.add(self.all.index(found))
        return self.all.index(found)

    def undecided(self, index: int) -> None:
        self.trying.discard(index)
        self.outliers.undecided(self.all[index])

    def states(self) -> list[str]:
        return [candidate.state.state for candidate in self.all]


class TestConsecutive:
    def test_so_many_in_a_row(self) -> None:
        world = World()
        world.fail(1, 4)
        assert world.usable == [0, 1, 2, 3]
        world.fail(1)
        assert world.usable == [0, 2, 3]
        assert world.states() == ["up", "ejected", "up", "up"]
        assert world.decisions == {"ejected": 1}
        state = world.all[1].state
        assert (state.why, state.since) == ("5 failures in a row (connect_refused)", 7.0)

    def test_an_answer_in_between_begins_anew(self) -> None:
        world = World()
        for _ in range(3):
            world.fail(1, 4)
            world.answer(1)
        assert world.usable == [0, 1, 2, 3]

    def test_0_switches_the_rule_off(self) -> None:
        world = World(eject=Eject(consecutive=0, error_rate=0.0))
        world.fail(1, 1000)
        assert world.usable == [0, 1, 2, 3]

    def test_null_switches_it_all_off(self) -> None:
        world = World(eject=None)
        world.fail(1, 1000)
        assert world.usable == [0, 1, 2, 3]

    def test_what_fails_late_does_not_lengthen_it(self) -> None:
        world = World()
        world.fail(1, 5)
        until = world.all[1].state.out_until
        world.now += 1.0
        world.fail(1, 50)
        assert world.all[1].state.out_until == until


class TestRate:
    @pytest.mark.parametrize(("answers", "usable"), [(1, [0, 2, 3]), (2, [0, 1, 2, 3])])
    def test_a_share_of_enough_requests(self, answers: int, usable: list[int]) -> None:
        world = World(eject=Eject(consecutive=0, error_rate=0.5, min_requests=20))
        for _ in range(10):
            world.fail(1)
            world.answer(1, answers)
        world.fail(1)
        assert world.usable == usable

    def test_too_few_requests(self) -> None:
        world = World(eject=Eject(consecutive=0, error_rate=0.5, min_requests=20))
        world.fail(1, 19)
        assert world.usable == [0, 1, 2, 3]
        world.fail(1)
        assert world.usable == [0, 2, 3]

    def test_spread_over_more_than_the_window(self) -> None:
        world = World(eject=Eject(consecutive=0, error_rate=0.5, min_requests=20, window=10.0))
        for _ in range(100):
            world.fail(1)
            world.now += 1.0
        assert world.usable == [0, 1, 2, 3]


class TestReturn:
    def out(self, **settings: float) -> World:
        world = World(eject=Eject(out_for=10.0, **settings))  # type: ignore[arg-type]
        world.fail(1, 5)
        return world

    def test_not_before_its_time(self) -> None:
        world = self.out()
        world.now += 9.99
        assert world.trial() is None
        world.now += 0.01
        assert world.trial() == 1

    def test_one_request_tries_it(self) -> None:
        world = self.out()
        world.now += 10.0
        assert (world.trial(), world.trial()) == (1, None)
        assert world.usable == [0, 2, 3]
        assert world.states()[1] == "trial"

    def test_and_it_is_back(self) -> None:
        world = self.out()
        world.now += 10.0
        world.trial()
        world.answer(1)
        assert world.usable == [0, 1, 2, 3]
        assert world.states() == ["up"] * 4
        assert world.decisions == {"ejected": 1, "returned": 1}
        # A single failure is nothing new.
        world.fail(1)
        assert world.usable == [0, 1, 2, 3]

    def test_or_out_for_twice_as_long(self) -> None:
        world = self.out(max_for=35.0)
        for seconds in (10.0, 20.0, 35.0, 35.0):
            assert world.all[1].state.out_until == world.now + seconds
            world.now += seconds
            assert world.trial() == 1
            world.fail(1, why="upstream_reset")
        assert world.all[1].state.why == "upstream_reset when it was tried again"
        assert world.trial() is None

    def test_a_trial_that_says_nothing_is_followed_by_another(self) -> None:
        world = self.out()
        world.now += 10.0
        assert world.trial() == 1
        world.undecided(1)
        assert world.trial() == 1

    def test_what_began_before_it_came_back_says_nothing(self) -> None:
        """Requests that hung with it end long after it answers again."""
        world = self.out()
        world.now += 10.0
        world.trial()
        world.answer(1)
        world.now += 5.0
        world.fail(1, 50, took=5.1)
        assert world.usable == [0, 1, 2, 3]
        world.fail(1, 5, took=4.9)
        assert world.usable == [0, 2, 3]

    def test_others_do_not_decide_a_trial(self) -> None:
        world = self.out()
        world.now += 10.0
        world.trial()
        trying, world.trying = world.trying, set()
        world.fail(1)
        world.answer(1)
        assert world.states()[1] == "trial"
        world.trying = trying
        world.answer(1)
        assert world.states()[1] == "up"

    @pytest.mark.parametrize("failed", [True, False])
    def test_a_trial_that_ends_when_it_is_back_decides_nothing(self, failed: bool) -> None:
        """It hung while all were tried, or while a check was good again."""
        world = self.out()
        world.now += 10.0
        assert world.trial() == 1
        world.outliers.check(world.all[1], False, "no", world.now)
        world.now += 1.0
        world.outliers.check(world.all[1], True, "yes", world.now)
        world.now += 1.0
        if failed:
            world.fail(1, took=2.0)
        else:
            world.answer(1)
        world.undecided(1)
        assert world.usable == [0, 1, 2, 3]
        assert world.states()[1] == "up"
        assert (world.decisions["ejected"], world.decisions["returned"]) == (1, 0)

    def test_what_may_not_be_sent_twice_tries_it_only_when_nothing_else_comes(self) -> None:
        world = self.out()
        world.now += 10.0
        assert world.trial(again=False) is None
        world.now += PATIENCE
        assert world.trial(again=False) == 1

    def test_good_times_are_counted_for_it(self) -> None:
        world = self.out()
        world.now += 10.0
        world.trial()
        world.fail(1)
        world.now += 20.0
        world.trial()
        world.answer(1)
        assert world.all[1].state.ejections == 2
        world.now += 100.0
        world.fail(1, 5)
        assert world.all[1].state.out_until == world.now + 10.0

    def test_the_time_that_it_was_out_is_not(self) -> None:
        """It was back once: from then on every trial that fails doubles the time, too."""
        world = self.out()
        world.now += 10.0
        world.trial()
        world.answer(1)
        world.fail(1, 5)
        for seconds in (20.0, 40.0, 80.0, 160.0, 300.0):
            assert world.all[1].state.out_until == world.now + seconds
            world.now += seconds
            assert world.trial() == 1
            world.fail(1)

    def test_a_short_time_is_not(self) -> None:
        world = self.out()
        world.now += 10.0
        world.trial()
        world.answer(1)
        world.now += 1.0
        world.fail(1, 5)
        assert world.all[1].state.out_until == world.now + 20.0


class TestHowMany:
    @pytest.mark.parametrize(
        ("number", "share", "most"), [(1, 0.5, 0), (1, 1.0, 0), (2, 0.5, 1), (3, 0.5, 1), (5, 0.5, 2), (4, 1.0, 4), (3, 0.1, 1), (3, 0.0, 0)]
    )
    def test_no_more_than_the_share(self, number: int, share: float, most: int) -> None:
        world = World(number, eject=Eject(max_ejected=share))
        for index in range(number):
            world.fail(index, 5)
        assert world.states().count("ejected") == most

    def test_who_is_spared_stays_among_those_that_work(self) -> None:
        world = World(5)
        for index in (0, 1, 2):
            world.fail(index, 5)
        assert world.usable == [2, 3, 4]
        assert not world.outliers.panic
        assert world.decisions == {"ejected": 2, "spared": 1}

    def test_and_goes_when_there_is_room(self) -> None:
        world = World(5)
        for index in (0, 1, 2):
            world.fail(index, 5)
        world.now += 10.0
        world.trial()
        world.answer(0)
        world.fail(2)
        assert world.usable == [0, 3, 4]

    def test_the_only_one_is_never_out(self) -> None:
        world = World(1)
        world.fail(0, 1000)
        assert (world.usable, world.outliers.panic) == ([0], False)


class TestPanic:
    def all_failing(self) -> World:
        world = World(4)
        for index in range(4):
            world.fail(index, 5)
        return world

    def test_when_none_works_all_are_tried(self) -> None:
        world = self.all_failing()
        assert world.usable == [0, 1, 2, 3]
        assert world.outliers.panic
        assert world.decisions["panic"] == 1

    def test_whoever_answers_is_back_and_ends_it(self) -> None:
        world = self.all_failing()
        world.look()
        world.answer(0)
        world.now += 0.1
        assert world.usable == [0, 2, 3]
        assert not world.outliers.panic
        assert world.states() == ["up", "ejected", "up", "up"]

    def test_one_that_was_spared_ends_it_too(self) -> None:
        world = self.all_failing()
        world.look()
        world.answer(3)
        world.now += 0.1
        assert world.usable == [2, 3]
        assert not world.outliers.panic

    def test_it_is_said_once(self) -> None:
        world = self.all_failing()
        for _ in range(10):
            world.now += 0.1
            world.fail(2)
            world.look()
        assert world.decisions["panic"] == 1


class TestChecks:
    def test_an_unhealthy_one_gets_nothing(self) -> None:
        world = World()
        world.look()
        world.outliers.check(world.all[2], False, "3 checks failed", world.now)
        assert world.usable == [0, 1, 3]
        assert world.states()[2] == "unhealthy"
        world.now += 1000.0
        assert world.trial() is None
        world.outliers.check(world.all[2], True, "2 checks passed", world.now)
        assert world.usable == [0, 1, 2, 3]
        assert world.decisions == {"unhealthy": 1, "healthy": 1}

    def test_more_than_the_share_may_be(self) -> None:
        world = World()
        for index in (0, 1, 2):
            world.outliers.check(world.all[index], False, "no", world.now)
        assert world.usable == [3]

    def test_with_none_left_all_are_tried(self) -> None:
        world = World()
        for index in range(4):
            world.outliers.check(world.all[index], False, "no", world.now)
        assert world.usable == [0, 1, 2, 3]
        assert world.outliers.panic
        world.outliers.check(world.all[1], True, "yes", world.now)
        assert world.usable == [1]

    def test_the_first_good_word_is_no_news(self) -> None:
        world = World()
        world.outliers.check(world.all[0], True, "ok", world.now)
        assert world.decisions == {}

    def test_a_check_that_passes_again_ends_an_ejection(self) -> None:
        world = World()
        world.fail(1, 5)
        world.outliers.check(world.all[1], False, "no", world.now)
        world.now += 1.0
        world.outliers.check(world.all[1], True, "yes", world.now)
        assert world.usable == [0, 1, 2, 3]

    def test_and_what_was_counted_before(self) -> None:
        """Neither a first failure nor what hung since then takes it out again."""
        world = World()
        world.fail(1, 5)
        world.outliers.check(world.all[1], False, "no", world.now)
        world.now += 5.0
        world.outliers.check(world.all[1], True, "yes", world.now)
        world.now += 1.0
        world.fail(1)
        world.fail(1, 50, took=1.5)
        assert world.usable == [0, 1, 2, 3]
        world.fail(1, 4)
        assert world.usable == [0, 2, 3]


class TestSlowStart:
    def test_who_comes_back_begins_slowly(self) -> None:
        world = World(slow_start=20.0)
        world.fail(1, 5)
        world.now += 10.0
        world.trial()
        world.answer(1)
        world.look()
        state = world.all[1].state
        assert [round(state.warm(world.now + passed), 2) for passed in (0.0, 1.0, 5.0, 10.0, 20.0, 99.0)] == [
            0.1, 0.1, 0.25, 0.5, 1.0, 1.0,
        ]  # fmt: skip

    def test_a_balancer_is_told_when_it_is_over(self) -> None:
        world = World(slow_start=20.0)
        world.outliers.warm_up(world.all[1].state, world.now)
        world.look()
        during = world.outliers.usable
        assert during is not world.all
        world.now += 19.0
        world.look()
        assert world.outliers.usable is during
        world.now += 1.0
        world.look()
        assert world.outliers.usable is world.all


def test_the_same_sequence_while_nothing_changes() -> None:
    """A balancer keeps its place by the identity of what it is given."""
    world = World()
    world.look()
    assert world.outliers.usable is world.all
    world.fail(1, 4)
    world.look()
    assert world.outliers.usable is world.all


def test_settings_that_change() -> None:
    world = World()
    world.fail(1, 5)
    assert world.usable == [0, 2, 3]
    world.outliers.configure(Upstream("u", StaticSource(()), eject=None))
    assert world.usable == [0, 1, 2, 3]


def test_another_snapshot_with_what_is_known() -> None:
    world = World()
    world.fail(1, 5)
    world.all = tuple(Candidate(one.endpoint, one.state, one.pool) for one in world.all)
    assert world.usable == [0, 2, 3]


@settings(max_examples=times(300), deadline=None)
@given(number=st.integers(1, 6), seed=st.integers(0, 2**32), steps=st.integers(1, 300), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_nobody_that_is_out_is_picked_but_in_panic(number: int, seed: int, steps: int, share: float) -> None:
    """Whatever happens: someone can be picked, nobody that is out unless all are tried, and no more are out than may be."""
    chance = random.Random(seed)
    world = World(number, eject=Eject(consecutive=2, out_for=1.0, max_for=8.0, max_ejected=share))
    for _ in range(steps):
        world.now += chance.choice([0.0, 0.01, 0.5, 2.0])
        tried = world.trial(again=chance.random() < 0.5)
        usable = world.usable
        assert usable
        if not world.outliers.panic:
            assert all(world.states()[index] in ("up",) for index in usable)
        most = max(int(number * share), 1) if share and number > 1 else 0
        assert sum(state in ("ejected", "trial") for state in world.states()) <= most
        index = tried if tried is not None else chance.choice(usable)
        match chance.randrange(3):
            case 0:
                world.answer(index)
            case 1:
                world.fail(index, chance.randrange(1, 4))
            case _ if tried is not None:
                world.undecided(index)
