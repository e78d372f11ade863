"""Reloads of a running gateway, crossed with its sweep, with faults, and with one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import monkey

from gateway import app as app_module
from gateway.app import Gateway
from gateway.errors import ConfigError
from gateway.http.messages import Request, Response
from gateway.model import (
    AccessLogSettings,
    Balance,
    Breaker,
    Concurrency,
    Config,
    ConsulSettings,
    ConsulSource,
    DiscoverySettings,
    Endpoint,
    Match,
    PoolSettings,
    RegistrationSettings,
    Route,
    StaticSource,
    TlsSettings,
    Upstream,
)
from gateway.upstreams import store
from gateway.upstreams.snapshot import Snapshot
from tests.unit.upstreams.test_store import until

ONE, TWO, THREE = (Endpoint("http", "127.0.0.1", port) for port in (1, 2, 3))
AWAY = DiscoverySettings(consul=ConsulSettings(address="http://127.0.0.1:1"), wait=60.0)


def static(name: str, *endpoints: Endpoint, **settings: Any) -> Upstream:
    return Upstream(name, StaticSource(endpoints), **settings)


def config(version: str, *upstreams: Upstream, discovery: DiscoverySettings | None = None) -> Config:
    return Config(
        version,
        {one.name: one for one in upstreams},
        tuple(Route(one.name, one.name, (Match(prefix=f"/{one.name}"),)) for one in upstreams),
        discovery=discovery or DiscoverySettings(wait=0.0),
        access_log=AccessLogSettings(path=None),
    )


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways; each pauses after every piece of a swap, and tries again soon."""
    monkeypatch.setattr(store, "SLICE", -1.0)
    monkeypatch.setattr(store, "FIRST_RETRY", 0.001)
    started: list[Gateway] = []

    def begin(first: Config) -> Gateway:
        started.append(Gateway(first))
        started[-1].start()
        return started[-1]

    yield begin
    for each in started:
        each.stop()


def at_each_pause(monkeypatch: pytest.MonkeyPatch, gateway: Gateway, act: Callable[[int], None]) -> None:
    """Calls `act` with 0, 1, … at the pauses of a snapshot that is being built."""
    real, number = store.breathe, [0]

    def breathe() -> None:
        if gateway.store.building:
            number[0] += 1
            act(number[0] - 1)
        real()

    monkeypatch.setattr(store, "breathe", breathe)


def in_force(gateway: Gateway, version: str) -> None:
    until(lambda: gateway.store.current.version == version)
    assert gateway.config_status.version == version


# -- the sweep -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_an_upstream_that_comes_back_while_its_last_request_ends(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """At any pause of the swap that brings it back, the request ends and the sweep comes."""
    more = [static(f"z{each}", THREE) for each in range(3)]
    gateway = start(config("v1", static("x", ONE), static("y", TWO)))
    state = gateway._states["x"]
    known = state.find(ONE.key)
    assert known is not None
    known.in_flight = 1
    gateway.reconfigure(config("v2", static("y", TWO)))
    in_force(gateway, "v2")
    assert "x" in gateway._states

    def sweep(at: int) -> None:
        if at == number:
            known.in_flight = 0
        gateway._forget(gateway.store.current)

    at_each_pause(monkeypatch, gateway, sweep)
    gateway.reconfigure(config("v3", static("x", ONE), static("y", TWO), *more))
    in_force(gateway, "v3")
    # What was learnt of it is still known.
    assert gateway._states["x"] is state
    assert gateway.store.current.groups["x"].state is state
    assert gateway.store.current.groups["x"].candidates[0].state is known
    gateway._forget(gateway.store.current)
    assert gateway._leaving == set()
    assert gateway._states.keys() == {"x", "y", "z0", "z1", "z2"}


def test_endpoints_of_a_snapshot_to_come_are_not_forgotten(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(config("v1", static("x", ONE), static("y", TWO)))
    at_each_pause(monkeypatch, gateway, lambda at: gateway._forget(gateway.store.current))
    gateway.reconfigure(config("v2", static("x", TWO, THREE), static("y", TWO)))
    in_force(gateway, "v2")
    state = gateway._states["x"]
    assert state.members is gateway.store.current.groups["x"].members
    assert state.members.keys() == {TWO.key, THREE.key}
    for candidate in gateway.store.current.groups["x"].candidates:
        assert candidate.state is state.find(candidate.endpoint.key)


def refuse_z(gateway: Gateway) -> list[bool]:
    """No candidates can be made for the upstream z. The list starts with one entry and grows by one each time."""
    join, broken = gateway.store._join, [True]

    def refuse(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "z":
            broken.append(True)
            raise RuntimeError("no")
        return join(upstream, *given)

    gateway.store._join = refuse
    return broken


def test_endpoints_of_a_snapshot_that_never_came_are_forgotten(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(config("v1", static("x", ONE)))
    broken = refuse_z(gateway)
    gateway.reconfigure(config("v2", static("x", ONE, TWO), static("new", THREE), static("z", THREE)))
    until(lambda: len(broken) > 2)
    assert "new" in gateway._states
    gateway.reconfigure(config("v3", static("x", ONE)))
    in_force(gateway, "v3")
    gateway._forget(gateway.store.current)
    assert set(gateway._states) == {"x"}
    assert gateway._states["x"].members.keys() == {ONE.key}
    assert gateway._states["x"].find(TWO.key) is None
    assert gateway._leaving == set()


# -- all or nothing ------------------------------------------------------------------------

LEARNT = static(
    "x",
    ONE,
    concurrency=Concurrency(limit=7),
    breaker=Breaker(),
    pool=PoolSettings(max_idle=3),
    balance=Balance(policy="round_robin"),
)
OTHER = replace(
    LEARNT,
    concurrency=Concurrency(limit=9),
    breaker=Breaker(min_requests=5),
    pool=PoolSettings(max_idle=4),
    balance=Balance(policy="least_requests"),
)


def settings(gateway: Gateway) -> tuple[object, ...]:
    group = gateway.store.current.groups["x"]
    state, pool = group.state, group.candidates[0].pool
    return state.gate.limit, state.breaker, state.balancer, state.upstream, pool._settings.max_idle


def test_what_is_in_force_keeps_its_settings_until_the_new_ones_are(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(config("v1", LEARNT, static("y", TWO)))
    before = settings(gateway)
    join, broken, seen = gateway.store._join, [True], []

    def refuse(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "z" and broken:
            seen.append(settings(gateway))
            raise RuntimeError("no")
        return join(upstream, *given)

    gateway.store._join = refuse
    gateway.reconfigure(config("v2", OTHER, static("y", TWO), static("z", THREE)))
    until(lambda: len(seen) > 2)
    assert seen == [before] * len(seen)
    assert gateway.store.current.version == gateway.config_status.version == "v1"
    assert "the configuration v2 cannot be put in force and is tried again" in gateway.config_status.error
    broken.clear()
    in_force(gateway, "v2")
    limit, breaker, balancer, upstream, max_idle = settings(gateway)
    assert (limit, upstream, max_idle) == (9.0, OTHER, 4)
    assert breaker is not before[1]
    assert balancer is not before[2]
    assert gateway.config_status.error == ""


def test_a_balancer_that_cannot_be_made_changes_nothing(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(config("v1", LEARNT))
    before, real, broken = settings(gateway), app_module.balancer, [True]

    def balancer(upstream: Upstream, *given: Any) -> Any:
        if broken:
            broken.append(True)
            raise RuntimeError("no")
        return real(upstream, *given)

    monkeypatch.setattr(app_module, "balancer", balancer)
    gateway.reconfigure(config("v2", OTHER))
    until(lambda: len(broken) > 2)
    assert settings(gateway) == before
    broken.clear()
    in_force(gateway, "v2")
    assert settings(gateway)[0] == 9.0


def test_changes_of_a_swap_that_failed_are_not_taken_over_by_a_later_one(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(config("v1", LEARNT))
    broken = refuse_z(gateway)
    gateway.reconfigure(config("v2", OTHER, static("z", THREE)))
    until(lambda: len(broken) > 2)
    gateway.reconfigure(config("v3", replace(LEARNT, source=StaticSource((ONE, TWO)))))
    in_force(gateway, "v3")
    limit, _, _, _, max_idle = settings(gateway)
    assert (limit, max_idle) == (7.0, 3)


def test_a_newcomer_begins_slowly_as_the_coming_settings_say(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", static("x", ONE)))
    group = gateway.store.current.groups["x"]
    group.state.outliers.look(group.candidates, time.monotonic())
    gateway.reconfigure(config("v2", static("x", ONE, TWO, slow_start=30.0)))
    in_force(gateway, "v2")
    members = gateway._states["x"].members
    assert [members[one.key].state.warm_until > 0 for one in (ONE, TWO)] == [False, True]


# -- what is told of it --------------------------------------------------------------------


def test_a_trouble_outlasts_an_older_configuration_that_comes_into_force(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", static("x", ONE)))
    waiting = config("v2", static("x", ONE), Upstream("n", ConsulSource("nobody")), discovery=replace(AWAY, wait=0.3))
    gateway.reconfigure(waiting)
    assert gateway.config_status.version == "v1"
    # While it waits, the file becomes another one, which is wrong.
    gateway.trouble("file:1:1: is not YAML")
    in_force(gateway, "v2")
    assert gateway.config_status.error == "file:1:1: is not YAML"
    assert gateway.config_status.error_at is not None


def test_both_troubles_are_told(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", static("x", ONE)))
    gateway.trouble("the file")
    gateway._trouble_of("store", "the swap")
    assert gateway.config_status.error == "the file\nthe swap"
    gateway.trouble("")
    assert gateway.config_status.error == "the swap"
    gateway._trouble_of("store", "")
    assert (gateway.config_status.error, gateway.config_status.error_at) == ("", None)


class Records:
    def __init__(self) -> None:
        self.versions: list[str] = []

    def record(self, request: Request, status: int, bytes_out: int, took: float, version: str) -> None:
        self.versions.append(version)

    def stop(self) -> None:
        """There is nothing to write."""


def request(target: bytes) -> Request:
    return Request(b"GET", target, [(b"Host", b"a")], time.monotonic(), "192.0.2.1", host=b"a")


def test_the_log_names_the_version_that_served_the_request() -> None:
    gateway = Gateway(config("v1", static("x")))
    log = Records()
    gateway._access_log = log  # type: ignore[assignment]
    served = request(b"/x")
    answer = gateway.handle(served)
    gateway.reconfigure(config("v2", static("x"), static("y")))
    gateway.finish(served, answer, 0, None)
    # One that a door refused was served by none: the version in force is told.
    gateway.finish(request(b"/x"), Response(400, b"Bad Request", []), 0, None)
    later = request(b"/y")
    gateway.finish(later, gateway.handle(later), 0, None)
    assert log.versions == ["v1", "v2", "v2"]


# -- TLS contexts --------------------------------------------------------------------------

SECURE = replace(ONE, scheme="https")


def secure(name: str, settings: TlsSettings | None = None) -> Upstream:
    return static(name, SECURE, scheme="https", tls=settings or TlsSettings(verify=False))


def contexts(gateway: Gateway) -> set[str]:
    return {name for name, _ in gateway.transport._contexts}


def test_contexts_of_one_that_waits_outlast_the_swap_to_another(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", secure("x")))
    waiting = config("v2", secure("y"), Upstream("n", ConsulSource("nobody")), discovery=AWAY)
    gateway.reconfigure(waiting)
    made = {key: value for key, value in gateway.transport._contexts.items() if key[0] == "y"}
    assert made
    # Endpoints change meanwhile, which swaps the snapshot and prunes.
    gateway._prune()
    assert contexts(gateway) == {"x", "y"}
    assert {key: gateway.transport._contexts[key] for key in made} == made
    gateway.reconfigure(config("v3", secure("z")))
    in_force(gateway, "v3")
    assert contexts(gateway) == {"z"}


@pytest.mark.parametrize("number", range(2))
def test_contexts_of_one_that_is_prepared_while_another_is_built(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    gateway = start(config("v1", secure("x")))
    third = config("v3", secure("z"), secure("y"))
    reloads: list[gevent.Greenlet] = []

    def reload(at: int) -> None:
        if at == number:
            reloads.append(gevent.spawn(gateway.reconfigure, third))

    at_each_pause(monkeypatch, gateway, reload)
    gateway.reconfigure(config("v2", secure("y"), static("plain", ONE)))
    in_force(gateway, "v3")
    gevent.joinall(reloads, raise_error=True)
    assert contexts(gateway) == {"z", "y"}


def test_a_thread_that_makes_contexts_touches_none_that_are_in_use(start: Callable[..., Gateway]) -> None:
    """Pruning while a thread makes contexts: both are done, and no dictionary changes under the other's hands."""
    gateway = start(config("v1", *(secure(f"x{number}") for number in range(20))))
    for number in range(10):
        newer = config(f"w{number}", *(secure(f"x{number}") for number in range(20)), secure(f"more{number}"))
        preparing = gevent.spawn(gateway.reconfigure, newer)
        while not preparing.ready():
            gateway._prune()
            gevent.sleep(0)
        preparing.get()
        in_force(gateway, newer.version)
        assert contexts(gateway) == set(newer.upstreams)


def test_contexts_of_one_that_is_refused_go_again(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", secure("x")))
    bad = TlsSettings(ca="/nonexistent.pem")
    with pytest.raises(ConfigError):
        gateway.reconfigure(config("v2", secure("y"), secure("z", bad)))
    assert contexts(gateway) == {"x"}
    assert gateway._preparing == []
    assert gateway.store.coming == ()


def test_of_reloads_at_once_the_last_wins_and_its_look_ups_run(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes long on its thread: the others wait for it."""
    gateway = start(config("v1", static("x", ONE)))
    real = gateway._ready_for

    def slow(newer: Config, *given: Any) -> Any:
        if newer.version == "v2":
            monkey.get_original("time", "sleep")(0.05)
        return real(newer, *given)

    monkeypatch.setattr(gateway, "_ready_for", slow)
    away = replace(AWAY, wait=0.0)
    found = [static(f"s{number}", TWO) for number in range(3)] + [Upstream("n", ConsulSource("nobody"))]
    reloads = [
        gevent.spawn(gateway.reconfigure, config(f"v{number}", *found[number - 2 :], discovery=away))
        for number in range(2, 6)
    ]
    gevent.joinall(reloads, raise_error=True)
    in_force(gateway, "v5")
    (feed,) = gateway.store._feeds.values()
    assert feed.greenlet is not None
    assert not feed.greenlet.dead
    assert [task.name for task in gateway.background].count("provider n") == 1


# -- registration ---------------------------------------------------------------------------

ANNOUNCED = ConsulSettings(address="http://127.0.0.1:1", registration=RegistrationSettings(address="192.0.2.1", port=80))


def test_the_registration_is_that_of_the_configuration_in_force(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", static("x", ONE)))
    assert gateway._registration is None
    waiting = DiscoverySettings(consul=ANNOUNCED, wait=60.0)
    second = config("v2", static("x", ONE), Upstream("n", ConsulSource("nobody")), discovery=waiting)
    gateway.reconfigure(second)
    until(lambda: gateway.store.coming == (second,))
    gevent.sleep(0.01)
    # Its upstream has not answered: it is not in force, and so not announced.
    assert gateway._registration is None
    gateway.reconfigure(config("v3", static("x", ONE), discovery=replace(waiting, wait=0.0)))
    in_force(gateway, "v3")
    until(lambda: gateway._registration is not None)
    gateway.reconfigure(config("v4", static("x", ONE)))
    in_force(gateway, "v4")
    until(lambda: gateway._registration is None)


def test_a_configuration_that_never_comes_into_force_is_never_announced(start: Callable[..., Gateway]) -> None:
    gateway = start(config("v1", static("x", ONE)))
    waiting = DiscoverySettings(consul=ANNOUNCED, wait=60.0)
    gateway.reconfigure(config("v2", Upstream("n", ConsulSource("nobody")), discovery=waiting))
    gateway.reconfigure(config("v3", static("x", ONE), static("y", TWO)))
    in_force(gateway, "v3")
    gevent.sleep(0.01)
    assert gateway._registration is None


# -- the file of endpoints -------------------------------------------------------------------


def test_what_is_saved_is_one_snapshot_whole(
    start: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Saved at every pause of a swap: always what is in force, never half of what comes."""
    path = tmp_path / "endpoints.json"
    named = [Upstream(f"s{number}", StaticSource((replace(ONE, host="localhost"),))) for number in range(3)]
    discovery = DiscoverySettings(wait=0.0, snapshot=str(path))
    gateway = start(config("v1", *named[:2], discovery=discovery))
    saved: list[Snapshot] = []

    def save(at: int) -> None:
        gateway._saving.turn(str(path), gateway.store.current, frozenset())
        assert gateway._saving._saver is not None
        assert gateway._saving._saver.saved is gateway.store.current
        saved.append(gateway.store.current)

    at_each_pause(monkeypatch, gateway, save)
    gateway.reconfigure(config("v2", *named[1:], discovery=discovery))
    in_force(gateway, "v2")
    assert {snapshot.version for snapshot in saved} == {"v1"}
    assert path.exists()
