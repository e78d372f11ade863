"""Background tasks go on after any fault, back off, and are listed with what went wrong."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gateway.runtime import background
from gateway.runtime.background import Background, Task


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)


def throw(task: Task, error: BaseException) -> None:
    """Throw a fault into a task at the point where it waits."""
    task._greenlet.kill(error, block=False)


def until(holds: Callable[[], object]) -> None:
    with gevent.Timeout(10, AssertionError("not within 10 s")):
        while not holds():
            gevent.sleep(0.001)


class Looping:
    """Work that counts how often it began, and waits to be thrown at."""

    def __init__(self) -> None:
        self.begun = 0

    def __call__(self) -> None:
        self.begun += 1
        Event().wait()


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), MemoryError(), gevent.Timeout(1), AssertionError(), OSError(24, "many")]
)
def test_a_fault_of_any_kind_starts_it_again(error: BaseException) -> None:
    work = Looping()
    task = Background().start("a", work)
    until(lambda: work.begun == 1)
    throw(task, error)
    until(lambda: work.begun == 2)
    assert (task.dead, task.restarts) == (False, 1)
    assert task.last_error.startswith(type(error).__name__)
    assert task.last_error_at is not None
    task.kill()
    assert task.dead


def test_a_fault_thrown_in_while_it_pauses_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 3600.0)
    work = Looping()
    task = Background().start("a", work)
    until(lambda: work.begun == 1)
    throw(task, RuntimeError("first"))
    until(lambda: task.last_error == "RuntimeError: first")
    monkeypatch.setattr(background, "LONGEST_PAUSE", 0.001)
    throw(task, RuntimeError("second"))
    until(lambda: work.begun == 2)
    assert task.last_error == "RuntimeError: second"
    task.kill()


def test_pauses_grow_to_the_longest_and_begin_anew_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.1)
    now, paused, long_runs = [0.0], [], {9}

    def fail() -> None:
        if len(paused) in long_runs:
            now[0] += background.LONGEST_PAUSE + 1
        if len(paused) == 12:
            raise gevent.GreenletExit
        raise RuntimeError("at once")

    def pause(seconds: float) -> None:
        paused.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr("gateway.runtime.background.time.monotonic", lambda: now[0])
    monkeypatch.setattr("gateway.runtime.background.gevent.sleep", pause)
    Background().start("a", fail).join(10)
    assert paused == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 0.1, 0.2, 0.4]


def test_each_distinct_fault_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    faults = iter(["one", "one", "two", "one", "two", ""])

    def fail() -> None:
        told = next(faults)
        if told:
            raise RuntimeError(told)

    task = Background().start("sweep", fail)
    task.join(10)
    records = [record for record in caplog.records if record.name == "gateway.runtime.background"]
    assert [record.getMessage() for record in records] == ["background task sweep: failed and starts again"] * 2
    assert [str(record.exc_info[1]) for record in records if record.exc_info] == ["one", "two"]
    assert task.restarts == 5


def test_what_is_remembered_of_distinct_faults_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    task = Background().start("a", lambda: None)
    for number in range(background.MOST_LOGGED):
        task.note(RuntimeError(str(number)))
    assert len(task._logged) == background.MOST_LOGGED
    task.note(RuntimeError("one more"))
    assert len(task._logged) == 1


def test_a_long_fault_is_shown_short() -> None:
    task = Background().start("a", lambda: None)
    task.note(RuntimeError("x" * 1000), "while it ran")
    assert len(task.last_error) == background.MOST_SHOWN
    assert task.last_error.startswith("while it ran: RuntimeError: xxx")


def test_work_that_returns_has_ended() -> None:
    task = Background().start("a", lambda: None)
    task.join(10)
    assert (task.dead, task.restarts, task.last_error) == (True, 0, "")


@pytest.mark.parametrize("block", [True, False])
def test_a_kill_ends_it_wherever_it_is(block: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 3600.0)
    work, kept = Looping(), Background()
    working, pausing = kept.start("working", work), kept.start("pausing", lambda: 1 / 0)
    until(lambda: work.begun and pausing.last_error)
    assert [task.name for task in kept] == ["working", "pausing"]
    working.kill(block)
    pausing.kill(block)
    until(lambda: working.dead and pausing.dead)
    assert list(kept) == []
    assert (working.restarts, pausing.restarts) == (0, 0)


def test_the_end_of_the_process_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, trace: raised.append(value))
    task = Background().start("a", sys.exit)
    task.join(10)
    assert task.dead
    assert [type(error) for error in raised] == [SystemExit]
