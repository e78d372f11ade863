"""Two tries at once: which answer counts, and what becomes of the other."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from gateway.forwarding.hedge import race


class Tries:
    """Two tries that end when they are told to."""

    def __init__(self) -> None:
        self.events = [Event(), Event()]
        self.ends: list[str | Exception] = ["one", "two"]
        self.discarded: list[str] = []
        self.broken_off: list[int] = []
        self.begun: list[int] = []

    def ask(self, number: int) -> Callable[[], str]:
        def run() -> str:
            self.begun.append(number)
            try:
                self.events[number].wait()
            except gevent.GreenletExit:
                self.broken_off.append(number)
                # Whatever has to be closed may take a moment.
                gevent.sleep(0)
                raise
            end = self.ends[number]
            if isinstance(end, Exception):
                raise end
            return end

        return run

    def race(self, after: float = 0.0, second: bool = True) -> tuple[bool, str]:
        return race(self.ask(0), lambda: self.ask(1) if second else None, after, self.discarded.append)

    def spawn(self, **kw: float) -> gevent.Greenlet:
        greenlet = gevent.spawn(self.race, **kw)
        while len(self.begun) < 2:
            gevent.sleep(0.001)
        return greenlet


def test_a_quick_answer_is_alone() -> None:
    tries = Tries()
    tries.events[0].set()
    assert tries.race(after=60.0) == (False, "one")
    assert tries.begun == [0]


@pytest.mark.parametrize(("quicker", "answer"), [(0, (False, "one")), (1, (True, "two"))])
def test_whoever_answers_first(quicker: int, answer: tuple[bool, str]) -> None:
    tries = Tries()
    greenlet = tries.spawn()
    tries.events[quicker].set()
    assert greenlet.get(timeout=5) == answer
    assert (tries.broken_off, tries.discarded) == ([1 - quicker], [])


def test_a_second_that_is_not_allowed() -> None:
    tries = Tries()
    greenlet = gevent.spawn(tries.race, second=False)
    gevent.sleep(0.01)
    tries.events[0].set()
    assert greenlet.get(timeout=5) == (False, "one")
    assert tries.begun == [0]


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_leaves_it_to_the_other(failing: int) -> None:
    tries = Tries()
    tries.ends[failing] = ValueError("failed")
    greenlet = tries.spawn()
    tries.events[failing].set()
    gevent.sleep(0.01)
    assert not greenlet.dead
    tries.events[1 - failing].set()
    assert greenlet.get(timeout=5)[0] is (failing == 0)


def test_both_fail_the_firsts_error_counts() -> None:
    tries = Tries()
    tries.ends[:] = [ValueError("one"), ValueError("two")]
    greenlet = tries.spawn()
    tries.events[1].set()
    tries.events[0].set()
    with pytest.raises(ValueError, match="one"):
        greenlet.get(timeout=5)


def test_an_early_error_is_raised_without_a_second() -> None:
    tries = Tries()
    tries.ends[0] = ValueError("early")
    tries.events[0].set()
    with pytest.raises(ValueError, match="early"):
        tries.race(after=60.0)
    assert tries.begun == [0]


def test_two_answers_at_once() -> None:
    tries = Tries()
    greenlet = tries.spawn()
    tries.events[0].set()
    tries.events[1].set()
    assert greenlet.get(timeout=5) == (False, "one")
    # It had its answer, or was not let have it.
    assert tries.discarded + ["two"] * len(tries.broken_off) == ["two"]


def test_whoever_waits_is_thrown_out_of_it() -> None:
    """The client has left: nothing goes on for it."""
    tries = Tries()
    greenlet = tries.spawn()
    greenlet.kill(ValueError("gone"))
    assert isinstance(greenlet.exception, ValueError)
    assert tries.broken_off == [0, 1]


@pytest.mark.parametrize("winner", [0, 1])
def test_also_while_the_loser_is_broken_off(winner: int) -> None:
    """An answer that nobody takes any more is given back."""
    tries = Tries()
    greenlet = tries.spawn()
    tries.events[winner].set()
    while not tries.broken_off:
        gevent.sleep(0)
    assert not greenlet.dead
    greenlet.kill(ValueError("gone"))
    assert isinstance(greenlet.exception, ValueError)
    assert tries.discarded == [tries.ends[winner]]
