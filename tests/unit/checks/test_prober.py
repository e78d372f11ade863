"""Active health: who checks, what, when, and what the others learn of it. Time is the test's."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gateway.checks.board import Board, Verdict
from gateway.checks.prober import AT_ONCE, LOOK, SILENCE, SOON, Prober
from gateway.errors import ConnectRefused, Overloaded
from gateway.health.candidate import Candidate
from gateway.health.retry_budget import Budget
from gateway.model import Endpoint, HealthCheck, StaticSource, Upstream
from gateway.upstreams.snapshot import Group
from gateway.upstreams.state import UpstreamState

CHECK = HealthCheck(path=b"/healthz", interval=10.0, healthy=2, unhealthy=3)


def endpoints(number: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("http", f"10.0.{index // 250}.{index % 250}", 80) for index in range(number))


class Service:
    """The endpoints, as all workers find them. `answers`: by host, a status, an error, or what
    happens first. `asked`: when, by host."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.answers: dict[str, int | BaseException | Event] = {}
        self.asked: dict[str, list[float]] = {}
        self.by: Counter[object] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most_at_once = self.most_of_one = 0

    def ask(self, worker: Worker, upstream: Upstream, endpoint: Endpoint, question: bytes | None, within: float) -> int:
        self.asked.setdefault(endpoint.host, []).append(self.now)
        self.by[worker] += 1
        self.under_way[endpoint.host] += 1
        self.most_of_one = max(self.most_of_one, self.under_way[endpoint.host])
        self.most_at_once = max(self.most_at_once, self.under_way.total())
        try:
            found = self.answers.get(endpoint.host, 200)
            if isinstance(found, Event):
                found.wait()
                found = 200
            if isinstance(found, BaseException):
                raise found
            return found
        finally:
            self.under_way[endpoint.host] -= 1


class Worker:
    def __init__(self, service: Service, folder: Path | None, seed: int = 1) -> None:
        self.service = service
        self.states: dict[str, UpstreamState] = {}
        self.groups: dict[str, Group] = {}
        self.prober = Prober(
            lambda: self.groups,
            lambda *given: service.ask(self, *given),
            lambda: service.now,
            lambda: service.now,
            random.Random(seed).random,
        )
        self.folder = folder

    def have(self, name: str = "u", number: int = 3, check: HealthCheck | None = CHECK) -> Worker:
        """A snapshot in which that upstream is so."""
        upstream = Upstream(name, StaticSource(()), health=check)
        state = self.states.get(name)
        if state is None:
            state = self.states[name] = UpstreamState(upstream, None, Budget(lambda: 0.0))  # type: ignore[arg-type]
        found = tuple(Candidate(one, state.endpoint(one, 0.0), object()) for one in endpoints(number))
        group = Group(upstream, endpoints(number), "", found, state)
        state.adopt(group.members)
        state.forget()
        self.groups = {**self.groups, name: group}
        return self

    def lose(self, name: str) -> None:
        del self.states[name]
        self.groups = {other: group for other, group in self.groups.items() if other != name}

    def start(self) -> Worker:
        self.prober.start(None if self.folder is None else str(self.folder))
        # Its turns are the test's.
        assert self.prober._greenlet is not None
        self.prober._greenlet.kill()
        return self

    def states_of(self, name: str = "u") -> list[str]:
        return [candidate.state.state for candidate in self.groups[name].candidates]

    def checked(self, name: str = "u") -> list[bool | None]:
        return [candidate.state.checked for candidate in self.groups[name].candidates]


def run(service: Service, seconds: float, *workers: Worker, step: float = LOOK) -> None:
    """Let time pass."""
    until = service.now + seconds
    while service.now < until:
        service.now += step
        for worker in workers:
            worker.prober.turn()
            # What was begun, and what that sets off.
            for _ in range(3):
                gevent.sleep(0)
            worker.prober.turn()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def one(service: Service) -> Iterator[Worker]:
    """A worker without a place to meet others."""
    made = Worker(service, None)
    yield made
    made.prober.stop()


@pytest.fixture
def two(service: Service, tmp_path: Path) -> Iterator[list[Worker]]:
    made = [Worker(service, tmp_path, seed) for seed in (1, 2)]
    yield made
    for worker in made:
        worker.prober.stop()


class TestOne:
    def test_newcomers_are_asked_soon_and_then_once_an_interval(self, service: Service, one: Worker) -> None:
        one.have(number=200).start()
        run(service, SOON, one)
        assert len(service.asked) == 200
        run(service, 100.0, one)
        for times in service.asked.values():
            # The second comes at any time within the interval.
            assert times[1] - times[0] <= 10.0 + 2 * LOOK
            assert all(8.9 < later - sooner < 11.1 for sooner, later in pairwise(times[1:]))
        # And they have parted: the busiest second has nowhere near all of them.
        seconds = Counter(int(at) for times in service.asked.values() for at in times if at > 1050.0)
        assert max(seconds.values()) < 40

    def test_so_many_bad_ones_take_it_out_and_good_ones_bring_it_back(self, service: Service, one: Worker) -> None:
        one.have().start()
        run(service, 10.0, one)
        assert one.checked() == [True, True, True]
        service.answers["10.0.0.1"] = 503
        began = len(service.asked["10.0.0.1"])
        while len(service.asked["10.0.0.1"]) < began + 2:
            run(service, LOOK, one)
        assert one.states_of() == ["up", "up", "up"]
        run(service, 11.5, one)
        assert one.states_of() == ["up", "unhealthy", "up"]
        state = one.groups["u"].candidates[1].state
        assert state.why == "3 checks in a row failed, the last: GET /healthz was answered 503"
        assert 1000.0 < state.since <= service.now
        del service.answers["10.0.0.1"]
        run(service, 23.0, one)
        assert one.states_of() == ["up", "up", "up"]
        assert one.states["u"].decisions == {"unhealthy": 1, "healthy": 1}

    def test_two_addresses_are_told_apart(self, service: Service, one: Worker) -> None:
        service.answers["10.0.0.2"] = ConnectRefused("dial tcp 10.0.0.2:80: ECONNREFUSED")
        one.have().start()
        run(service, 5.0, one)
        assert one.states_of() == ["up", "up", "unhealthy"]
        why = one.groups["u"].candidates[2].state.why
        assert why == "the first check failed: dial tcp 10.0.0.2:80: ECONNREFUSED"

    def test_a_slow_check_is_not_joined_by_a_second(self, service: Service, one: Worker) -> None:
        slow = service.answers["10.0.0.0"] = Event()
        one.have(number=2).start()
        run(service, 60.0, one)
        assert len(service.asked["10.0.0.0"]) == 1
        assert len(service.asked["10.0.0.1"]) > 4
        del service.answers["10.0.0.0"]
        slow.set()
        run(service, 2 * LOOK, one)
        # It is late already, and asked at once.
        assert len(service.asked["10.0.0.0"]) == 2
        # The same when its settings change meanwhile.
        slow = service.answers["10.0.0.0"] = Event()
        run(service, 12.0, one)
        assert service.under_way["10.0.0.0"] == 1
        one.have(number=2, check=replace(CHECK, interval=1.0))
        run(service, 12.0, one)
        assert service.most_of_one == 1
        slow.set()

    def test_so_many_at_a_time(self, service: Service, one: Worker) -> None:
        slow = Event()
        service.answers = {one.host: slow for one in endpoints(3 * AT_ONCE)}
        one.have(number=3 * AT_ONCE).start()
        run(service, 3.0, one)
        assert service.most_at_once == len(service.asked) == AT_ONCE
        slow.set()
        for _ in range(4):
            run(service, LOOK, one)
        assert len(service.asked) == 3 * AT_ONCE

    def test_what_the_gateway_itself_cannot_do_is_no_verdict(self, service: Service, one: Worker) -> None:
        service.answers = {one.host: Overloaded("socket: EMFILE") for one in endpoints(3)}
        one.have().start()
        run(service, 30.0, one)
        assert one.checked() == [None, None, None]
        assert len(service.asked["10.0.0.0"]) > 2

    def test_a_mistake_of_ours_ends_nothing(self, service: Service, one: Worker) -> None:
        service.answers["10.0.0.0"] = "no status"  # type: ignore[assignment]
        one.have(check=replace(CHECK, statuses=range(200, 400))).start()  # type: ignore[arg-type]
        run(service, 30.0, one)
        assert one.checked()[1:] == [True, True]
        assert len(service.asked["10.0.0.0"]) > 2


    @pytest.mark.parametrize("error", [gevent.Timeout(1), MemoryError()])
    def test_whatever_is_thrown_into_a_check_the_next_one_comes(
        self, service: Service, one: Worker, error: BaseException
    ) -> None:
        service.answers["10.0.0.0"] = error
        one.have().start()
        run(service, 30.0, one)
        assert len(service.asked["10.0.0.0"]) > 2
        assert one.checked() == [None, True, True]
        service.answers["10.0.0.0"] = 200
        run(service, 12.0, one)
        assert one.checked() == [True, True, True]

    def test_a_fault_while_endpoints_are_taken_over_leaves_none_out(self, service: Service, one: Worker) -> None:
        """The turn fails at the first of three upstreams; the next turn has them all."""
        one.have().start()
        real, faults = one.prober._join, [RuntimeError("no")]

        def fail(*given: Any) -> None:
            if faults:
                raise faults.pop()
            real(*given)

        one.prober._join = fail  # type: ignore[method-assign]
        for name in ("v", "w", "x"):
            one.have(name, 1)
        with pytest.raises(RuntimeError):
            one.prober.turn()
        run(service, 5.0, one)
        assert [one.checked(name) for name in ("v", "w", "x")] == [[True]] * 3


class TestChanges:
    def test_switched_off_it_says_nothing_any_more(self, service: Service, one: Worker) -> None:
        service.answers["10.0.0.1"] = 500
        one.have().have("other", 2).start()
        run(service, 5.0, one)
        assert one.states_of() == ["up", "unhealthy", "up"]
        one.have(check=None)
        run(service, LOOK, one)
        assert one.checked() == [None, None, None]
        assert one.groups["u"].candidates[1].state.why == "it is not checked any more"
        assert one.checked("other") == [True, False]
        asked = sum(map(len, service.asked.values()))
        one.lose("other")
        run(service, 30.0, one)
        assert sum(map(len, service.asked.values())) == asked

    def test_endpoints_come_and_go(self, service: Service, one: Worker) -> None:
        service.answers["10.0.0.2"] = 500
        one.have(number=3).start()
        run(service, 5.0, one)
        assert one.states_of()[2] == "unhealthy"
        one.have(number=2)
        run(service, 1.0, one)
        gone = len(service.asked["10.0.0.2"])
        run(service, 30.0, one)
        assert len(service.asked["10.0.0.2"]) == gone
        one.have(number=4)
        run(service, SOON + LOOK, one)
        # Nothing is held against one that came back.
        assert len(service.asked["10.0.0.2"]) == gone + 1
        assert len(service.asked["10.0.0.3"]) == 1
        assert one.checked() == [True, True, False, True]

    def test_one_whose_requests_go_on_comes_back_without_a_verdict(self, service: Service, one: Worker) -> None:
        service.answers["10.0.0.2"] = 500
        one.have(number=3).start()
        run(service, 5.0, one)
        state = one.groups["u"].candidates[2].state
        state.in_flight = 1
        one.have(number=2)
        run(service, LOOK, one)
        service.answers["10.0.0.2"] = Event()
        one.have(number=3)
        run(service, LOOK, one)
        assert one.groups["u"].candidates[2].state is state
        assert state.checked is None

    def test_changes_do_not_put_off_what_is_due(self, service: Service, one: Worker) -> None:
        one.have(number=3).start()
        for _ in range(40):
            one.have(number=3)
            run(service, LOOK, one)
        assert len(service.asked) == 3
        assert one.checked() == [True, True, True]

    def test_a_shorter_interval_counts_at_once(self, service: Service, one: Worker) -> None:
        one.have(check=replace(CHECK, interval=3600.0)).start()
        run(service, 5.0, one)
        one.have(check=replace(CHECK, interval=1.0))
        run(service, 10.0, one)
        assert all(len(times) > 6 for times in service.asked.values())

    def test_an_endpoint_that_stands_there_twice_is_asked_once(self, service: Service, one: Worker) -> None:
        one.have(number=1)
        group = one.groups["u"]
        one.groups = {"u": replace(group, candidates=group.candidates * 2)}
        one.start()
        run(service, 50.0, one)
        assert len(service.asked["10.0.0.0"]) <= 7


class TestTwo:
    def test_one_asks_and_both_know(self, service: Service, two: list[Worker]) -> None:
        service.answers["10.0.0.1"] = 503
        for worker in two:
            worker.have().start()
        run(service, 60.0, *two)
        assert [worker.prober.checking for worker in two] == [True, False]
        assert service.by[two[1]] == 0
        assert all(5 <= len(times) <= 9 for times in service.asked.values())
        for worker in two:
            assert worker.checked() == [True, False, True]
        states = [worker.groups["u"].candidates[1].state for worker in two]
        assert states[0].why == states[1].why
        assert states[0].since == states[1].since
        del service.answers["10.0.0.1"]
        run(service, 25.0, *two)
        assert [worker.checked() for worker in two] == [[True] * 3] * 2

    def test_a_newcomer_among_workers_knows_at_once(self, service: Service, two: list[Worker]) -> None:
        service.answers["10.0.0.1"] = 503
        two[0].have().start()
        run(service, 5.0, two[0])
        two[1].have().start()
        assert two[1].checked() == [True, False, True]
        # So does an endpoint that it learns of later than the one that checks.
        two[0].have(number=4)
        service.answers["10.0.0.3"] = 503
        run(service, 5.0, *two)
        two[1].have(number=4)
        run(service, LOOK, *two)
        assert two[1].states_of() == ["up", "unhealthy", "up", "unhealthy"]

    def test_when_it_ends_the_other_goes_on_with_its_verdicts(self, service: Service, two: list[Worker]) -> None:
        service.answers["10.0.0.1"] = 503
        for worker in two:
            worker.have().start()
        run(service, 20.0, *two)
        two[0].prober.stop()
        # One failure of what was good is none yet, and one success of what was bad neither.
        service.answers = {"10.0.0.0": 503}
        before = {host: len(times) for host, times in service.asked.items()}
        run(service, LOOK, two[1])
        assert two[1].prober.checking
        while any(len(times) == before[host] for host, times in service.asked.items()):
            run(service, LOOK, two[1])
            assert service.now < 1100.0
        assert two[1].checked() == [True, False, True]
        run(service, 40.0, two[1])
        assert two[1].checked() == [False, True, True]

    def test_a_successor_knows_the_last_words_and_forgets_what_is_not_there(
        self, service: Service, two: list[Worker], tmp_path: Path
    ) -> None:
        two[0].have().have("other").start()
        two[1].have().start()
        service.answers["10.0.0.1"] = 503
        run(service, 5.0, two[0])
        two[0].prober.stop()
        service.answers = {one.host: Event() for one in endpoints(3)}
        run(service, 2 * LOOK, two[1])
        assert two[1].checked() == [True, False, True]
        board = Board(str(tmp_path))
        assert {name: len(verdicts) for name, verdicts in board.read().items()} == {"u": 3}
        board.close()

    def test_the_others_are_told_once_a_look(self, service: Service, two: list[Worker]) -> None:
        # First verdicts come all the time.
        two[0].have(number=50).start()
        told: list[float] = []
        board = two[0].prober._board
        assert board is not None
        write, board.write = board.write, lambda *given: (told.append(service.now), write(*given))  # type: ignore[method-assign,func-returns-value]
        run(service, 1.0, two[0], step=0.01)
        assert 1 < len(told) <= 11

    def test_a_successor_keeps_to_the_interval(self, service: Service, two: list[Worker]) -> None:
        for worker in two:
            worker.have(number=100).start()
        run(service, 20.0, *two)
        two[0].prober.stop()
        run(service, 1.0, two[1])
        assert 0 < service.by[two[1]] < 40

    def test_what_hangs_is_not_waited_for(self, service: Service, two: list[Worker]) -> None:
        for worker in two:
            worker.have().start()
        run(service, 20.0, *two)
        service.answers["10.0.0.1"] = 503
        # The one that has the lock does nothing any more.
        os.utime(two[0].folder / "health.lock", (service.now, service.now))  # type: ignore[operator]
        run(service, SILENCE - 1.0, two[1])
        assert not two[1].prober.checking
        run(service, 40.0, two[1])
        assert two[1].prober.checking
        assert two[1].checked() == [True, False, True]
        # It is back, and the one that counts again.
        os.utime(two[0].folder / "health.lock", (service.now + 3600, service.now + 3600))  # type: ignore[operator]
        run(service, LOOK, *two)
        assert [worker.prober.checking for worker in two] == [True, False]
        assert [worker.checked() for worker in two] == [[True] * 3] * 2
        asked = service.by[two[1]]
        run(service, 40.0, *two)
        assert service.by[two[1]] == asked
        assert [worker.checked() for worker in two] == [[True, False, True]] * 2

    def test_switched_off_it_is_over_for_both(self, service: Service, two: list[Worker]) -> None:
        service.answers["10.0.0.1"] = 503
        for worker in two:
            worker.have().start()
        run(service, 5.0, *two)
        for worker in two:
            worker.have(check=None)
        run(service, 1.0, *two)
        assert [worker.checked() for worker in two] == [[None] * 3] * 2
        # Whoever has something to check first takes it.
        two[1].have(check=CHECK)
        run(service, 5.0, *two)
        assert [worker.prober.checking for worker in two] == [False, True]
        assert two[1].checked() == [True, False, True]

    def test_no_place_to_meet(self, service: Service, two: list[Worker], tmp_path: Path) -> None:
        for worker in two:
            worker.folder = tmp_path / "gone"
            worker.have().start()
        run(service, 5.0, *two)
        assert [worker.prober.checking for worker in two] == [True, True]
        assert [worker.checked() for worker in two] == [[True] * 3] * 2


KEY, OTHER = ("http", "10.0.0.1", 80, b"/\xff"), ("https", "::1", 443, b"")
GOOD, BAD = Verdict(True, "fine", 1.5), Verdict(False, "line\nend, \u2028 and \x85", 2.5)


class TestBoard:
    def test_only_what_is_news_is_read(self, tmp_path: Path) -> None:
        writer, reader = Board(str(tmp_path)), Board(str(tmp_path))
        assert reader.read() == {}
        writer.write({"a": {KEY: GOOD, OTHER: BAD}, "b": {KEY: BAD}}, {"a", "b"})
        assert reader.read() == {"a": {KEY: GOOD, OTHER: BAD}, "b": {KEY: BAD}}
        assert reader.read() == {}
        writer.write({"a": {KEY: GOOD, OTHER: BAD}, "b": {KEY: GOOD}}, {"b"})
        assert reader.read() == {"b": {KEY: GOOD}}
        writer.write({"a": {}, "b": {KEY: GOOD}}, {"a"})
        assert reader.read() == {"a": {}}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["health", "health.lock"]
        writer.close()
        reader.close()

    def test_one_leads(self, tmp_path: Path) -> None:
        first, second = Board(str(tmp_path)), Board(str(tmp_path))
        assert first.lead()
        assert first.lead()
        assert not second.lead()
        first.close()
        assert second.lead()
        second.resign()
        third = Board(str(tmp_path))
        assert third.lead()
        second.close()
        third.close()

    def test_another_format_is_not_believed(self, tmp_path: Path) -> None:
        reader = Board(str(tmp_path))
        assert reader.silence() < 60.0
        (tmp_path / "health").write_text('2\n"a"\t[]\n')
        assert reader.read() == {}
        assert reader.silence() == float("inf")
        reader.close()
