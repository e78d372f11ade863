"""Faults while a snapshot is built or a configuration is put in force, thrown in at every place where something
can be: the old snapshot stays whole, nothing is lost, and no look-up runs that nothing needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest

from gateway.errors import ConfigError
from gateway.model import Config, ConsulSource, DiscoverySettings, Endpoint, StaticSource, Timeouts, Upstream
from gateway.providers import Update
from gateway.runtime import background
from gateway.runtime.background import Background
from gateway.testing import FakeProvider
from gateway.upstreams import store
from gateway.upstreams.store import Store
from tests.unit.upstreams.test_store import HASTY, PATIENT, Joined, addresses, until, version

ONE = Endpoint("http", "10.0.0.1", 80)
TWO = Endpoint("http", "10.0.0.2", 80)
STATIC = Upstream("legacy", StaticSource((ONE, TWO)))
GONE = Upstream("gone", ConsulSource("gone-svc"))
STAYS = Upstream("stays", ConsulSource("stays-svc"))
SLOWER = replace(STAYS, timeouts=Timeouts(response=99.0))
MOVED = Upstream("moved", ConsulSource("moved-svc"))
FRESH = Upstream("fresh", ConsulSource("fresh-svc"))

Made = dict[str, list[FakeProvider]]
# Of a configuration of four upstreams until it is in force, where each has few endpoints.
PAUSES = 16
FAULTS = [RuntimeError("no"), MemoryError(), gevent.Timeout(9)]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause after every piece of work, and next to none after a fault."""
    monkeypatch.setattr(store, "SLICE", -1.0)
    monkeypatch.setattr(store, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Every provider that was made, by upstream."""
    found: Made = {}

    def make(upstream: Upstream, settings: DiscoverySettings) -> FakeProvider | None:
        if isinstance(upstream.source, StaticSource):
            return None
        found.setdefault(upstream.name, []).append(FakeProvider(upstream.name))
        return found[upstream.name][-1]

    monkeypatch.setattr(store, "make", make)
    return found


class Running:
    """A store that runs, with what it says of trouble."""

    def __init__(self, config: Config) -> None:
        self.joined = Joined()
        self.troubles: list[str] = []
        self.background = Background()
        self.store = Store(config, self.joined.join, self.joined.swap, self.troubles.append, self.background)

    def begin(self, made: Made) -> Store:
        self.store.start()
        for upstream in self.store.config.upstreams:
            if upstream in made:
                until(made[upstream][-1].running.is_set)
                self.store.emit(Update(upstream, (ONE,)))
        until(lambda: self.store.ready and not self.store._dirty)
        self.joined.swapped.clear()
        return self.store


@pytest.fixture
def running(made: Made) -> Iterator[Running]:
    found = Running(version("v1", STATIC, GONE, STAYS, discovery=HASTY))
    found.begin(made)
    yield found
    found.store.stop()


SECOND = version("v2", STATIC, SLOWER, MOVED, FRESH, discovery=HASTY)


def assert_whole(kept: Store, config: Config) -> None:
    """What is in force is one configuration, all of it."""
    assert kept.current.config is config
    assert kept.current.version == config.version
    assert {name: group.upstream for name, group in kept.current.groups.items()} == config.upstreams
    assert set(kept._feeds) == set(config.upstreams)


def looking_up(made: Made) -> set[str]:
    return {name for name, found in made.items() for one in found if one.running.is_set()}


def discovered(config: Config) -> set[str]:
    return {name for name, upstream in config.upstreams.items() if isinstance(upstream.source, ConsulSource)}


def settle(running: Running, made: Made, config: Config) -> None:
    """`config` comes into force, whole, and nothing else looks anything up."""
    until(lambda: running.store.current.version == config.version)
    assert_whole(running.store, config)
    until(lambda: looking_up(made) == discovered(config))
    assert {name: sum(one.running.is_set() for one in made[name]) for name in discovered(config)} == dict.fromkeys(
        discovered(config), 1
    )
    # Updates go on.
    for name in discovered(config):
        running.store.emit(Update(name, (TWO,)))
    until(lambda: all(addresses(running.store, name) == ["10.0.0.2"] for name in discovered(config)))
    assert (running.store.coming, running.store.building) == ((), {})


class Thrown:
    """Throws an error in at the pause of a number, counted while it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = store.breathe
        self.left = -1
        self.error: BaseException = RuntimeError()
        self.met = False
        monkeypatch.setattr(store, "breathe", self)

    def arm(self, number: int, error: BaseException) -> None:
        self.left, self.error, self.met = number, error, False

    def __call__(self) -> None:
        self._real()
        self.left -= 1
        if self.left == -1:
            self.met = True
            raise self.error


@pytest.mark.parametrize("number", range(PAUSES))
@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_fault_at_any_pause_of_a_swap(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    old = running.store.current
    thrown = Thrown(monkeypatch)
    thrown.arm(number, error)
    try:
        running.store.reconfigure(SECOND)
    except (RuntimeError, MemoryError, gevent.Timeout):
        assert thrown.met
        assert running.store.current is old
        assert running.store.coming == ()
        assert looking_up(made) == {"gone", "stays"}
        running.store.reconfigure(SECOND)
    settle(running, made, SECOND)
    assert thrown.met
    assert running.joined.swapped[0][1].version == "v2"


def test_there_are_that_many_pauses_and_no_more(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range of the test before this one."""
    thrown = Thrown(monkeypatch)
    thrown.arm(PAUSES, RuntimeError())
    running.store.reconfigure(SECOND)
    until(lambda: running.store.current.version == "v2")
    assert thrown.left == 0


@pytest.mark.parametrize("victim", ["stays", "moved", "fresh"])
def test_an_upstream_that_cannot_be_joined_keeps_the_old_configuration_whole(
    running: Running, made: Made, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = running.store.current
    broken = [True]
    tries: list[str] = []

    def join(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == victim and broken:
            tries.append(victim)
            raise RuntimeError("a fault of our own")
        return running.joined.join(upstream, *given)

    running.store._join = join
    running.store.reconfigure(SECOND)
    until(lambda: len(tries) > 3)
    assert running.store.current is old
    assert running.troubles[-1] == (
        "the configuration v2 cannot be put in force and is tried again: RuntimeError: a fault of our own"
    )
    # What is in force goes on being updated, and the log is not filled.
    running.store.emit(Update("gone", (TWO,)))
    until(lambda: addresses(running.store, "gone") == ["10.0.0.2"])
    assert running.store.current.version == "v1"
    assert caplog.text.count("Traceback") == 1
    broken.clear()
    settle(running, made, SECOND)
    assert running.troubles[-1] == ""


def test_one_that_cannot_be_put_in_force_gives_way_to_the_next(running: Running, made: Made) -> None:
    def join(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "fresh":
            raise RuntimeError("a fault of our own")
        return running.joined.join(upstream, *given)

    running.store._join = join
    running.store.reconfigure(SECOND)
    until(lambda: running.troubles and running.troubles[-1])
    third = version("v3", STATIC, SLOWER, MOVED, discovery=HASTY)
    running.store.reconfigure(third)
    assert running.troubles[-1] == ""
    settle(running, made, third)
    assert not made["fresh"][-1].running.is_set()


def test_the_old_one_again_ends_the_trouble(running: Running, made: Made) -> None:
    first = running.store.config

    def join(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "fresh":
            raise RuntimeError("a fault of our own")
        return running.joined.join(upstream, *given)

    running.store._join = join
    running.store.reconfigure(SECOND)
    until(lambda: running.troubles and running.troubles[-1])
    running.store.reconfigure(first)
    until(lambda: not running.store.coming)
    assert running.troubles[-1] == ""
    settle(running, made, first)


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_a_follower_that_is_killed_while_it_builds_leaves_the_old_one_whole(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old = running.store.current
    thrown = Thrown(monkeypatch)
    thrown.arm(number, gevent.GreenletExit())
    running.store.reconfigure(SECOND)
    until(lambda: thrown.met)
    assert running.store.current is old
    assert_whole(running.store, old.config)
    assert running.store.coming == (SECOND,)
    assert running.store.building == {}
    running.store.stop()
    until(lambda: looking_up(made) == set())


def test_stopping_in_the_middle_of_a_swap_leaves_nothing_running(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = [0]
    real = store.breathe

    def breathe() -> None:
        pauses[0] += 1
        if pauses[0] == 6:
            running.store.stop()
        real()

    monkeypatch.setattr(store, "breathe", breathe)
    running.store.reconfigure(SECOND)
    until(lambda: pauses[0] >= 6)
    until(lambda: looking_up(made) == set())
    assert running.store.current.version == "v1"
    assert list(running.background) == []


# -- a configuration that cannot be prepared ------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    real = store.make

    def make(upstream: Upstream, settings: DiscoverySettings) -> Any:
        if upstream.name == name:
            raise error
        return real(upstream, settings)

    monkeypatch.setattr(store, "make", make)


@pytest.mark.parametrize("error", [ConfigError("m cannot be made"), RuntimeError("no")])
@pytest.mark.parametrize("reversed_", [False, True])
def test_it_takes_the_place_of_none_that_waits(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, error: Exception, reversed_: bool
) -> None:
    second = replace(SECOND, discovery=PATIENT)
    running.store.reconfigure(second)
    until(lambda: "fresh" in looking_up(made))
    broken = Upstream("broken", ConsulSource("broken-svc"))
    other = Upstream("other", ConsulSource("other-svc"))
    refusing(monkeypatch, "broken", error)
    upstreams = [STATIC, replace(FRESH, source=ConsulSource("another")), other, broken]
    with pytest.raises(type(error)):
        running.store.reconfigure(version("v3", *(upstreams[::-1] if reversed_ else upstreams), discovery=HASTY))
    assert running.store.current.version == "v1"
    assert running.store.coming == (second,)
    gevent.sleep(0)
    assert looking_up(made) == {"gone", "stays", "moved", "fresh"}
    for name in ("moved", "fresh"):
        made[name][0].give(ONE)
    settle(running, made, second)


def test_look_ups_that_cannot_be_started_end(running: Running, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    start = running.background.start

    def refuse(name: str, work: Callable[[], object]) -> Any:
        if name == "provider fresh":
            raise RuntimeError("no room for another greenlet")
        return start(name, work)

    monkeypatch.setattr(Background, "start", lambda self, name, work: refuse(name, work))
    with pytest.raises(RuntimeError):
        running.store.reconfigure(SECOND)
    gevent.sleep(0)
    until(lambda: looking_up(made) == {"gone", "stays"})
    assert running.store.coming == ()
    monkeypatch.setattr(Background, "start", lambda self, name, work: start(name, work))
    running.store.reconfigure(SECOND)
    settle(running, made, SECOND)


# -- updates ---------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [{"gone"}, {"stays"}, {"gone", "stays"}])
def test_a_burst_of_updates_of_which_some_cannot_be_built(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, victims: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    real = store.group
    broken, tries = set(victims), []

    def group(upstream: Upstream, *given: Any) -> Any:
        if upstream.name in broken:
            tries.append(upstream.name)
            raise RuntimeError(f"a fault of {upstream.name}")
        return real(upstream, *given)

    monkeypatch.setattr(store, "group", group)
    for name in ("gone", "stays"):
        running.store.emit(Update(name, (TWO,)))
    for name in {"gone", "stays"} - victims:
        until(lambda name=name: addresses(running.store, name) == ["10.0.0.2"])  # type: ignore[misc]
    until(lambda: all(tries.count(name) > 3 for name in victims))
    assert [addresses(running.store, name) for name in victims] == [["10.0.0.1"]] * len(victims)
    assert caplog.text.count("Traceback") == len(victims)
    (task,) = (one for one in running.background if one.name == "store")
    assert "its latest update is not in force: RuntimeError: a fault of " in task.last_error
    assert task.restarts == 0
    broken.clear()
    for name in victims:
        until(lambda name=name: addresses(running.store, name) == ["10.0.0.2"])  # type: ignore[misc]


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """No group can be made of the upstreams in the list, which starts with `name`."""
    real, broken = store.group, [name]

    def group(upstream: Upstream, *given: Any) -> Any:
        if upstream.name in broken:
            raise RuntimeError("no")
        return real(upstream, *given)

    monkeypatch.setattr(store, "group", group)
    return broken


def test_updates_that_are_late_do_not_wait_for_one_that_fails(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A steady stream of updates of one upstream, and another that fails each time."""
    monkeypatch.setattr(store, "FIRST_RETRY", 3600.0)
    refuse(monkeypatch, "gone")
    running.store.emit(Update("gone", (TWO,)))
    until(lambda: running.store._failed)
    due = running.store._retry_at
    for number in range(5):
        running.store.emit(Update("stays", (Endpoint("http", f"10.0.1.{number}", 80),)))
        until(lambda number=number: addresses(running.store, "stays") == [f"10.0.1.{number}"])  # type: ignore[misc]
    assert running.store._retry_at == due
    assert running.store._failed == {"gone"}


def test_a_reload_builds_what_failed_before(running: Running, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_RETRY", 3600.0)
    broken = refuse(monkeypatch, "gone")
    running.store.emit(Update("gone", (TWO,)))
    until(lambda: running.store._failed)
    broken.clear()
    running.store.reconfigure(version("v2", STATIC, GONE, discovery=HASTY))
    until(lambda: running.store.current.version == "v2")
    assert addresses(running.store, "gone") == ["10.0.0.2"]
    assert running.store._failed == set()


def test_a_fault_of_whoever_is_told_of_a_swap_does_not_undo_it(running: Running, made: Made) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no")

    running.store._on_swap = fail
    running.store.reconfigure(SECOND)
    settle(running, made, SECOND)
    (task,) = (one for one in running.background if one.name == "store")
    assert task.last_error == "a fault after a new snapshot came into force: RuntimeError: no"


# -- providers -------------------------------------------------------------------------


class Failing(FakeProvider):
    """Its look-up dies when it is told to."""

    deaths = 0
    fault: BaseException | None = None

    def run(self, emit: Any, stop: Any) -> None:
        self.deaths += 1
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        super().run(emit, stop)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_provider_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    provider = Failing("stays")
    provider.fault = error
    monkeypatch.setattr(store, "make", lambda upstream, settings: provider)
    found = Running(version("v1", STAYS, discovery=HASTY))
    found.store.start()
    until(provider.running.is_set)
    assert provider.deaths == 2
    if isinstance(error, Exception):
        until(lambda: found.store.current.groups["stays"].error)
        assert found.store.current.groups["stays"].error.startswith(type(error).__name__)
    provider.give(ONE)
    until(lambda: addresses(found.store, "stays") == ["10.0.0.1"])
    assert found.store.current.groups["stays"].error == ""
    (task,) = (one for one in found.background if one.name == "provider stays")
    assert (task.restarts, task.dead) == (1, False)
    found.store.stop()
    until(lambda: not provider.running.is_set())


def test_a_provider_that_ended_is_not_listed_any_more(running: Running, made: Made) -> None:
    assert {task.name for task in running.background} == {"store", "provider gone", "provider stays"}
    running.store.reconfigure(version("v2", STATIC, discovery=HASTY))
    until(lambda: running.store.current.version == "v2")
    assert [task.name for task in running.background] == ["store"]


def test_pauses_between_attempts_grow_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_RETRY", 0.1)
    assert [round(store._pause(faults), 3) for faults in (1, 2, 3, 6, 7, 10_000)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]


# -- several at once -------------------------------------------------------------------


def test_a_second_reload_while_the_registry_is_away(running: Running, made: Made) -> None:
    """The waiting one gives way, its look-ups end but for those that the next one needs."""
    running.store.reconfigure(replace(SECOND, discovery=PATIENT))
    until(lambda: "fresh" in looking_up(made))
    made["fresh"][0].fail("no leader")
    third = version("v3", STATIC, FRESH, discovery=PATIENT)
    running.store.reconfigure(third)
    until(lambda: looking_up(made) == {"gone", "stays", "fresh"})
    assert len(made["fresh"]) == 1
    made["fresh"][0].give(ONE)
    settle(running, made, third)


@pytest.mark.parametrize("number", range(4))
def test_a_fault_while_a_third_is_gathered_and_the_second_built(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second is handed on, and at one of the pauses of its building the third comes and fails."""
    real, pauses = store.breathe, [0]
    third = version("v3", FRESH, Upstream("more", ConsulSource("more-svc")), discovery=HASTY)
    outcome: list[str] = []

    def breathe() -> None:
        pauses[0] += 1
        if pauses[0] == 5 + number:
            refusing(monkeypatch, "more", RuntimeError("no"))
            try:
                running.store.reconfigure(third)
            except RuntimeError:
                outcome.append("refused")
        real()

    monkeypatch.setattr(store, "breathe", breathe)
    running.store.reconfigure(SECOND)
    until(lambda: outcome)
    settle(running, made, SECOND)


@pytest.mark.parametrize("number", range(4))
def test_a_third_comes_while_the_second_is_built_and_fails(
    running: Running, made: Made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, pauses = store.breathe, [0]
    third = version("v3", STATIC, FRESH, discovery=HASTY)

    def breathe() -> None:
        pauses[0] += 1
        if pauses[0] == 5 + number:
            running.store.reconfigure(third)
            raise RuntimeError("a fault of the second")
        real()

    monkeypatch.setattr(store, "breathe", breathe)
    running.store.reconfigure(SECOND)
    settle(running, made, third)
    assert "v2" not in [new.version for _, new, _ in running.joined.swapped]
