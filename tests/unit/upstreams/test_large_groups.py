"""Upstreams with very many endpoints: what is done at a time is bounded, whatever their number, and nothing is lost
or half done because others run in between."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gevent
import pytest

from gateway import app as app_module
from gateway.admin import status
from gateway.app import Gateway
from gateway.balancers import balancer
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.outlier import Outliers
from gateway.model import (
    AccessLogSettings,
    Balance,
    Config,
    ConsulSource,
    DiscoverySettings,
    Endpoint,
    Match,
    Route,
    StaticSource,
    Timeouts,
    Upstream,
)
from gateway.providers import Update
from gateway.runtime import background, garbage, hub
from gateway.runtime.hub import PART, Discards, in_order, parts
from gateway.testing import FakeProvider
from gateway.upstreams import store
from gateway.upstreams.alike import alike
from gateway.upstreams.snapshot import difference
from tests.unit.balancers.picking import NOW, ask
from tests.unit.upstreams.test_store import until

MANY = 1500
POLICIES = [
    Balance("round_robin"),
    Balance("least_requests"),
    Balance("ewma"),
    Balance("hash", by="header", name="x-user"),
    Balance("sticky", name="gw"),
]


def endpoints(number: int = MANY, weight: int = 1) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("http", f"10.0.{each // 250}.{each % 250 + 1}", 80, weight) for each in range(number))


def config(version: str, *upstreams: Upstream) -> Config:
    routes = tuple(Route(one.name, one.name, (Match(prefix=f"/{one.name}"),)) for one in upstreams)
    settings = DiscoverySettings(wait=0.0)
    return Config(version, {one.name: one for one in upstreams}, routes, discovery=settings, access_log=AccessLogSettings(None))


LARGE, SMALL = Upstream("large", ConsulSource("l")), Upstream("small", ConsulSource("s"))


class Paused:
    """Each pause of a store; `act` is called at each, with its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = store.breathe
        self.number = 0
        self.act: Callable[[int], None] = lambda number: None
        monkeypatch.setattr(store, "SLICE", -1.0)
        monkeypatch.setattr(store, "breathe", self)

    def __call__(self) -> None:
        self.number += 1
        self.act(self.number)
        self._real()


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Paused:
    monkeypatch.setattr(store, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    return Paused(monkeypatch)


@pytest.fixture
def gateway(paused: Paused, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """One that runs, with two discovered upstreams and no look-ups."""
    monkeypatch.setattr(store, "make", lambda upstream, settings: FakeProvider(upstream.name))
    made = Gateway(config("v1", LARGE, SMALL))
    made.start()
    yield made
    made.stop()


def emit(gateway: Gateway, upstream: str, found: tuple[Endpoint, ...]) -> None:
    gevent.spawn(gateway.store.emit, Update(upstream, found)).get()


def in_force(gateway: Gateway, upstream: str, found: tuple[Endpoint, ...]) -> None:
    until(lambda: gateway.store.current.groups[upstream].endpoints == found)
    # What is left to do after the swap.
    until(lambda: not gateway._gone and not gateway._leaving and not gateway.store._dirty)


# -- the work at a time --------------------------------------------------------------------


def test_a_group_is_built_in_parts(gateway: Gateway, paused: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = [0]

    class Counted(Candidate):
        __slots__ = ()

        def __init__(self, *given: Any, **named: Any) -> None:
            made[-1] += 1
            super().__init__(*given, **named)

    monkeypatch.setattr(app_module, "Candidate", Counted)
    paused.act = lambda number: made.append(0)
    emit(gateway, "large", endpoints())
    in_force(gateway, "large", endpoints())
    assert sum(made) == MANY
    assert max(made) <= PART


@pytest.mark.parametrize("number", [10, 100, 1000])
def test_pauses_grow_with_endpoints(gateway: Gateway, paused: Paused, number: int) -> None:
    """Each walk through all endpoints pauses once a part, and there are some tens of walks."""
    emit(gateway, "large", endpoints(number))
    in_force(gateway, "large", endpoints(number))
    assert number // PART <= paused.number <= 60 * (number // PART + 1)


@pytest.mark.parametrize("balance", POLICIES, ids=lambda one: one.policy)
@pytest.mark.parametrize("weight", [1, 5], ids=["equal", "different"])
def test_a_balancer_is_ready_for_candidates_that_were_prepared(balance: Balance, weight: int) -> None:
    class Walked(tuple[Candidate, ...]):
        walks = 0

        def __iter__(self) -> Iterator[Candidate]:
            Walked.walks += 1
            return super().__iter__()

    found = (replace(endpoints(1)[0], weight=weight), *endpoints()[1:])
    among: Sequence[Candidate] = Walked(Candidate(one, EndpointState(), None) for one in found)
    chosen = balancer(Upstream("u", StaticSource(()), balance=balance), lambda: 0.5)
    calls: list[int] = []
    chosen.prepare(among, lambda: calls.append(1))
    assert len(calls) >= MANY // PART
    Walked.walks = 0
    for user in (b"a", b"b", b""):
        assert chosen.pick(among, ask(headers=[(b"X-User", user)])) in set(super(Walked, among).__iter__())  # type: ignore[misc]
    assert Walked.walks == 0


def test_prepared_candidates_are_picked_as_others_are() -> None:
    for balance in POLICIES:
        upstream = Upstream("u", StaticSource(()), balance=balance)
        found = tuple(replace(one, weight=place % 3 + 1) for place, one in enumerate(endpoints(40)))
        among = tuple(Candidate(one, EndpointState(), None) for one in found)
        same = tuple(Candidate(one, EndpointState(), None) for one in found)
        prepared, other = balancer(upstream, lambda: 0.3), balancer(upstream, lambda: 0.3)
        prepared.prepare(among, lambda: None)
        for user in range(50):
            request = ask(headers=[(b"X-User", b"%d" % user)])
            assert prepared.pick(among, request).endpoint == other.pick(same, request).endpoint


def test_weights_of_very_many_are_kept_by_chance() -> None:
    # The first number is for where a rotation begins.
    chances = iter([0.0, 0.4, 0.6])
    chosen = balancer(Upstream("u", StaticSource(())), lambda: next(chances))
    found = (replace(endpoints(1)[0], weight=MANY - 1), *endpoints()[1:])
    among = tuple(Candidate(one, EndpointState(), None) for one in found)
    # The first endpoint has half of all weight.
    assert [among.index(chosen.pick(among, ask())) for _ in range(2)] == [0, 300]


def test_outliers_that_were_prepared_are_taken_over_unless_something_happened() -> None:
    upstream = Upstream("u", StaticSource(()))
    among = tuple(Candidate(one, EndpointState(), None) for one in endpoints(200))
    outliers = Outliers(upstream, Counter())
    calls: list[int] = []
    outliers.prepare(among, NOW, lambda: calls.append(1))
    assert len(calls) == 200 // PART + 1
    outliers.look(among, NOW)
    assert outliers.usable is among
    outliers.prepare(among, NOW, lambda: None)
    for _ in range(5):
        outliers.failed(among[7], NOW, NOW, "reset", trial=False)
    outliers.look(among, NOW)
    assert outliers.usable == (*among[:7], *among[8:])
    outliers.prepare(among, NOW, lambda: None)
    outliers.look(among, NOW)
    assert outliers.usable == (*among[:7], *among[8:])


# -- nothing is lost -----------------------------------------------------------------------


def test_what_did_not_change_is_taken_over(gateway: Gateway) -> None:
    before = endpoints()
    emit(gateway, "large", before)
    in_force(gateway, "large", before)
    old = gateway.store.current.groups["large"]
    after = (replace(before[0], weight=7), *before[1:])
    emit(gateway, "large", after)
    in_force(gateway, "large", after)
    new = gateway.store.current.groups["large"]
    assert [mine is theirs for mine, theirs in zip(new.candidates, old.candidates, strict=True)].count(False) == 1
    assert new.candidates[0].state is old.candidates[0].state
    assert new.state.members is new.members


def test_a_request_sees_one_group_whole(gateway: Gateway, paused: Paused) -> None:
    first, second = endpoints(300), endpoints(300, weight=2)
    emit(gateway, "large", first)
    in_force(gateway, "large", first)
    seen: set[tuple[int, ...]] = set()

    def look(number: int) -> None:
        group = gateway.store.current.groups["large"]
        seen.add(tuple(sorted({one.endpoint.weight for one in group.candidates})))
        assert len(group.candidates) == len(group.members) == 300

    paused.act = look
    emit(gateway, "large", second)
    in_force(gateway, "large", second)
    assert seen == {(1,), (2,)}


@pytest.mark.parametrize("number", range(8, 40, 6))
def test_an_update_that_comes_meanwhile_is_not_lost(gateway: Gateway, paused: Paused, number: int) -> None:
    emitted: list[int] = []

    def more(at: int) -> None:
        if at == number:
            emitted.append(at)
            paused.act = lambda number: None
            gevent.spawn(gateway.store.emit, Update("large", endpoints(120, weight=9)))
            gevent.spawn(gateway.store.emit, Update("small", endpoints(2)))

    paused.number, paused.act = 0, more
    emit(gateway, "large", endpoints(300))
    until(lambda: bool(emitted))
    in_force(gateway, "large", endpoints(120, weight=9))
    in_force(gateway, "small", endpoints(2))


@pytest.mark.parametrize("number", range(8, 60, 9))
@pytest.mark.parametrize("error", [RuntimeError("no"), gevent.Timeout(9)], ids=["exception", "timeout"])
def test_a_fault_in_the_middle_loses_no_update(
    gateway: Gateway, paused: Paused, number: int, error: BaseException
) -> None:
    """Nor that of another upstream in the same burst."""
    thrown: list[int] = []

    def fault(at: int) -> None:
        if at == number:
            thrown.append(at)
            raise error

    # Past the pauses of `emit` itself, whose caller gets what is thrown there.
    emit(gateway, "small", endpoints(3))
    emit(gateway, "large", endpoints(300))
    paused.number, paused.act = 0, fault
    until(lambda: bool(thrown))
    in_force(gateway, "large", endpoints(300))
    in_force(gateway, "small", endpoints(3))
    assert gateway.store.current.groups["large"].state.members.keys() == {one.key for one in endpoints(300)}


def test_connections_to_what_is_gone_are_closed_and_others_are_not(gateway: Gateway) -> None:
    first = endpoints(300)
    emit(gateway, "large", first)
    in_force(gateway, "large", first)
    pools = [one.pool for one in gateway.store.current.groups["large"].candidates]
    emit(gateway, "large", first[::2])
    in_force(gateway, "large", first[::2])
    assert [pool.retired for pool in pools] == [False, True] * 150
    emit(gateway, "large", first)
    in_force(gateway, "large", first)
    again = [one.pool for one in gateway.store.current.groups["large"].candidates]
    assert [mine is theirs for mine, theirs in zip(pools, again, strict=True)] == [True, False] * 150
    assert not any(pool.retired for pool in again)


def test_one_that_comes_back_before_its_pool_is_dropped_keeps_it(gateway: Gateway, paused: Paused) -> None:
    first = endpoints(100)
    emit(gateway, "large", first)
    in_force(gateway, "large", first)
    pool = gateway.store.current.groups["large"].candidates[0].pool
    real = gateway._drain
    # As if nothing had come of it yet.
    gateway._drain = lambda *given: None  # type: ignore[method-assign, assignment]
    emit(gateway, "large", first[1:])
    in_force(gateway, "large", first[1:])
    gone = (LARGE, (Candidate(first[0], EndpointState(), pool),))
    emit(gateway, "large", first)
    in_force(gateway, "large", first)
    real(*gone, lambda: None)
    assert gateway.store.current.groups["large"].candidates[0].pool is pool
    assert not pool.retired


def test_settings_reach_pools_that_exist(gateway: Gateway) -> None:
    emit(gateway, "large", endpoints(100))
    in_force(gateway, "large", endpoints(100))
    pools = [one.pool for one in gateway.store.current.groups["large"].candidates[:3]]
    changed = replace(LARGE, pool=replace(LARGE.pool, max_idle=3))
    gateway.reconfigure(config("v2", changed, SMALL))
    until(lambda: gateway.store.current.version == "v2" and not gateway._changed)
    assert [pool._settings.max_idle for pool in pools] == [3, 3, 3]


def test_two_endpoints_with_one_key_share_what_is_known_and_not_their_connections() -> None:
    one = Endpoint("https", "10.0.0.1", 443, server_name="a.example")
    two = replace(one, server_name="b.example")
    made = Gateway(config("v1", Upstream("u", StaticSource((one, two)), scheme="https")))
    group = made.store.current.groups["u"]
    assert group.candidates[0].state is group.candidates[1].state
    assert group.twins == group.candidates[1:]
    assert group.find(one.key, "b.example") is group.candidates[1]
    assert group.find(one.key, "c.example") is None
    assert group.candidates[0].pool is not group.candidates[1].pool
    fewer = replace(group, endpoints=(one,), candidates=group.candidates[:1], members={}, twins=())
    assert difference("u", group, fewer).gone == group.candidates[1:]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (endpoints(3)[:2], "-10.0.0.3:80 (2 now)"),
        ((replace(endpoints(1)[0], weight=2), *endpoints(3)[1:]), "+10.0.0.1:80 -10.0.0.1:80 (3 now)"),
        (endpoints(3)[::-1], "another order (3 now)"),
        (endpoints(40), " ".join(f"+10.0.0.{each}:80" for each in sorted(range(4, 41), key=str)[:20]) + " … (40 now)"),
    ],
)
def test_the_line_in_the_log(after: tuple[Endpoint, ...], told: str) -> None:
    def group(found: tuple[Endpoint, ...]) -> Any:
        return Gateway(config("v1", Upstream("u", StaticSource(found)))).store.current.groups["u"]

    assert difference("u", group(endpoints(3)), group(after)).line == f"upstream u: {told}"


# -- a file --------------------------------------------------------------------------------


def test_what_a_new_configuration_has_in_common_is_the_same_object() -> None:
    def written(version: str, found: tuple[Endpoint, ...], **settings: Any) -> Config:
        return config(version, Upstream("u", StaticSource(found), **settings))

    old = alike(written("v1", endpoints()), config("v0"))
    assert old.upstreams["u"].source.literal is True  # type: ignore[union-attr]
    same = alike(written("v2", endpoints()), old)
    assert same.upstreams["u"] is old.upstreams["u"]
    slower = alike(written("v3", endpoints(), timeouts=Timeouts(response=1.0)), old)
    assert slower.upstreams["u"] is not old.upstreams["u"]
    assert slower.upstreams["u"].source is old.upstreams["u"].source
    named = (Endpoint("http", "a.example", 80), *endpoints()[1:])
    other = alike(written("v4", named), old).upstreams["u"].source
    assert isinstance(other, StaticSource)
    assert isinstance(old.upstreams["u"].source, StaticSource)
    assert other.literal is False
    assert all(mine is theirs for mine, theirs in zip(other.endpoints[1:], old.upstreams["u"].source.endpoints[1:], strict=True))


# -- status --------------------------------------------------------------------------------


def test_a_large_upstream_is_told_in_parts(gateway: Gateway) -> None:
    emit(gateway, "large", endpoints())
    in_force(gateway, "large", endpoints())
    calls: list[int] = []
    told = list(status.of_upstreams(gateway, lambda: calls.append(1)))
    assert max(len(part["endpoints"]) for part in told) <= status.ROWS
    assert len(calls) >= MANY // PART
    own = status.of_worker(gateway, 0, None, 0.0)
    found = status.merged([[own, *told], [{**own, "slot": 1}, *told]])["upstreams"]
    assert sorted(found) == ["large", "small"]
    assert len(found["large"]["endpoints"]) == MANY
    assert {one["workers"] for one in found["large"]["endpoints"]} == {2}
    assert len(found["large"]["gate"]) == 2


# -- parts, order, freeing, collecting -------------------------------------------------------


def test_parts_and_order() -> None:
    calls: list[int] = []
    things = [(each * 7919) % 5000 for each in range(5000)]
    assert list(parts(things, lambda: calls.append(1), 100)) == things
    assert len(calls) == 50
    assert list(in_order(things, lambda: calls.append(1))) == sorted(things)
    assert len(calls) >= 50 + 5 + 5000 // PART
    assert (list(in_order([], lambda: None)), list(in_order([2, 1], lambda: None))) == ([], [1, 2])


class Thing:
    freed: list[int] = [0]  # noqa: RUF012

    def __del__(self) -> None:
        Thing.freed[-1] += 1


def test_what_is_not_needed_any_more_is_freed_in_parts() -> None:
    Thing.freed = [0]
    discards = Discards()
    things = tuple(Thing() for _ in range(500))
    mine: tuple[Thing, ...] | None = things
    discards.keep(things)
    discards.keep(things)
    discards.keep((Thing(),))
    assert Thing.freed == [1]
    del things
    discards.sweep(lambda: Thing.freed.append(0))
    assert sum(Thing.freed) == 1
    mine = None
    assert mine is None
    discards.sweep(lambda: Thing.freed.append(0))
    assert sum(Thing.freed) == 501
    assert max(Thing.freed) <= PART


def test_no_full_collection_starts_while_they_are_spared() -> None:
    before = gc.get_threshold()
    with garbage.spared():
        with garbage.spared():
            assert gc.get_threshold()[2] > 100_000
        assert gc.get_threshold()[2] > 100_000
    assert gc.get_threshold() == before


def test_the_heap_is_frozen_after_many_endpoints_and_looked_through_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("freeze", "unfreeze", "collect"):
        monkeypatch.setattr(garbage.gc, name, lambda name=name: done.append(name))
    monkeypatch.setattr(garbage, "_made", 0)
    monkeypatch.setattr(garbage, "_freezes", 0)
    monkeypatch.setattr(garbage, "MOST", 3)
    garbage.settle(garbage.MANY - 1)
    assert done == []
    garbage.settle(1)
    garbage.settle(garbage.MANY)
    assert done == ["freeze", "freeze"]
    garbage.settle(10 * garbage.MANY)
    assert done[2:] == ["unfreeze", "collect", "freeze"]


def test_a_thread_gives_way_sooner_while_it_computes() -> None:
    before = hub.sys.getswitchinterval()
    with hub.beside(), hub.beside():
        assert hub.sys.getswitchinterval() <= 0.001
    assert hub.sys.getswitchinterval() == before
