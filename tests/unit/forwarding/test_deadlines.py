"""The limits of streams: one keeper a hub, nothing kept that is over."""

from __future__ import annotations

from math import inf

import gevent
import pytest

from gateway.net import stream as streams
from gateway.net.stream import Deadlines, monotonic


class Waiter:
    """What Deadlines asks of a stream."""

    def __init__(self) -> None:
        self.armed = inf
        self.slot = 0
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)


def kept(deadlines: Deadlines) -> int:
    return sum(map(len, deadlines._due.values()))


def test_greenlets_of_one_hub_share_one() -> None:
    found = [gevent.spawn(Deadlines.current) for _ in range(3)]
    gevent.joinall(found)
    assert len({id(one.value) for one in [*found]} | {id(Deadlines.current())}) == 1


def test_a_limit_is_kept_and_then_forgotten() -> None:
    deadlines = Deadlines()
    waiter = Waiter()
    deadline = monotonic() + 0.03
    deadlines.arm(waiter, deadline)  # type: ignore[arg-type]
    while not waiter.expired:
        gevent.sleep(0.005)
    assert waiter.expired[0] >= deadline
    assert (waiter.armed, waiter.slot, kept(deadlines), deadlines._heap) == (inf, 0, 0, [])


def test_an_earlier_limit_replaces_the_later_one() -> None:
    deadlines = Deadlines()
    waiter = Waiter()
    for seconds in (3600, 75, 30, 5):
        deadlines.arm(waiter, monotonic() + seconds)  # type: ignore[arg-type]
    assert kept(deadlines) == 1


def test_what_is_closed_is_not_kept() -> None:
    deadlines = Deadlines()
    waiters = [Waiter() for _ in range(100)]
    for number, waiter in enumerate(waiters):
        deadlines.arm(waiter, monotonic() + number)  # type: ignore[arg-type]
        deadlines.arm(waiter, monotonic() + number / 2)  # type: ignore[arg-type]
    for waiter in waiters:
        deadlines.forget(waiter)  # type: ignore[arg-type]
    assert kept(deadlines) == 0


def test_far_limits_share_instants() -> None:
    deadlines = Deadlines()
    now = monotonic()
    for number in range(100_000):
        deadlines.arm(Waiter(), now + 3600 + number / 1000)  # type: ignore[arg-type]
    assert len(deadlines._heap) < 20
    # Never early, and at most about a hundredth late.
    assert all(now + 3600 <= slot * deadlines.tick <= (now + 3700) + 40 for slot in deadlines._heap)


def test_a_fault_at_one_stream_leaves_the_limits_of_all_others(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Waiter):
        def expire(self, now: float) -> None:
            super().expire(now)
            raise RuntimeError("a fault")

    deadlines = Deadlines()
    deadline = monotonic() + 0.03
    waiters = [Faulty(), Waiter(), Faulty(), Waiter()]
    for waiter in waiters:
        deadlines.arm(waiter, deadline)  # type: ignore[arg-type]
    later = Waiter()
    deadlines.arm(later, deadline + 0.05)  # type: ignore[arg-type]
    while not later.expired:
        gevent.sleep(0.005)
    assert [len(waiter.expired) for waiter in waiters] == [1, 1, 1, 1]
    assert caplog.text.count("a time limit could not be enforced") == 2


def test_a_fault_while_the_timer_is_set_is_mended_by_the_next_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines()
    first, second = Waiter(), Waiter()
    real, times = streams.monotonic, iter([streams.monotonic()])
    with monkeypatch.context() as broken:
        broken.setattr(streams, "monotonic", lambda: next(times))
        with pytest.raises(StopIteration):
            deadlines.arm(first, real() + 0.02)  # type: ignore[arg-type]
    deadlines.arm(second, real() + 0.03)  # type: ignore[arg-type]
    while not (first.expired and second.expired):
        gevent.sleep(0.005)
