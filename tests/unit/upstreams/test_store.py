"""From what providers say to the snapshot in force."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import gevent
import pytest

from gateway.errors import DnsError, NoEndpoint
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.model import (
    Config,
    ConsulSettings,
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
from gateway.testing import FakeProvider
from gateway.upstreams.snapshot import Difference, Group, Snapshot, Turn
from gateway.upstreams.state import UpstreamState
from gateway.upstreams.store import Store

ONE = Endpoint("http", "10.0.0.1", 80)
TWO = Endpoint("http", "10.0.0.2", 80)


class Joined:
    """What the composition root does, without a transport."""

    def __init__(self) -> None:
        self.states: dict[str, UpstreamState] = {}
        self.swapped: list[tuple[Snapshot | None, Snapshot, set[str]]] = []
        self.joined: list[str] = []

    def join(
        self, upstream: Upstream, endpoints: tuple[Endpoint, ...], before: Group | None, turn: Turn
    ) -> tuple[tuple[Candidate, ...], UpstreamState]:
        self.joined.append(upstream.name)
        balancer: Any = None
        state = self.states.setdefault(upstream.name, UpstreamState(upstream, balancer, Budget(lambda: 0.0)))
        return tuple(Candidate(one, state.endpoint(one, 0.0), None) for one in endpoints), state

    def swap(self, old: Snapshot | None, new: Snapshot, changed: Mapping[str, Difference]) -> None:
        self.swapped.append((old, new, set(changed)))


def store(*upstreams: Upstream) -> tuple[Store, Joined]:
    joined = Joined()
    routes = tuple(Route(name=one.name, upstream=one.name, matches=(Match(prefix="/" + one.name),)) for one in upstreams)
    config = Config("v1", {one.name: one for one in upstreams}, routes)
    return Store(config, joined.join, joined.swap), joined


CONSUL = Upstream("users", ConsulSource("user-svc"))
STATIC = Upstream("legacy", StaticSource((ONE, TWO)))
NAMED = Upstream("named", StaticSource((Endpoint("http", "a.example", 80),)))


def addresses(kept: Store, upstream: str = "users") -> list[str]:
    return [candidate.endpoint.host for candidate in kept.current.groups[upstream].candidates]


def test_literal_addresses_are_there_from_the_start() -> None:
    kept, joined = store(STATIC)
    assert addresses(kept, "legacy") == ["10.0.0.1", "10.0.0.2"]
    assert kept.providers == {}
    assert list(kept.waiting) == []
    assert joined.swapped == [(None, kept.current, {"legacy"})]


def test_a_discovered_upstream_is_waited_for() -> None:
    kept, _ = store(CONSUL)
    assert list(kept.waiting) == ["users"]
    assert isinstance(kept.current.groups["users"].absence(), NoEndpoint)
    kept.emit(Update("users", (ONE,)))
    assert addresses(kept) == []
    assert kept.apply()
    assert addresses(kept) == ["10.0.0.1"]
    assert list(kept.waiting) == []


def test_an_empty_group_is_an_answer() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", ()))
    kept.apply()
    assert list(kept.waiting) == []
    assert isinstance(kept.current.groups["users"].absence(), NoEndpoint)


def test_an_error_keeps_the_last_good_group() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    for _ in range(3):
        kept.emit(Update("users", None, "500"))
        kept.apply()
    assert addresses(kept) == ["10.0.0.1"]
    assert kept.current.groups["users"].error == "500"
    kept.emit(Update("users", ()))
    kept.apply()
    assert addresses(kept) == []


def test_an_error_is_no_first_answer() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", None, "down"))
    kept.apply()
    assert list(kept.waiting) == ["users"]


@pytest.mark.parametrize(
    ("update", "error"),
    [(Update("named", None, "SERVFAIL"), DnsError), (Update("named", ()), NoEndpoint)],
)
def test_no_address_is_told_from_a_failed_lookup(update: Update, error: type[Exception]) -> None:
    kept, _ = store(NAMED)
    kept.emit(update)
    kept.apply()
    assert isinstance(kept.current.groups["named"].absence(), error)


def test_the_same_again_changes_nothing() -> None:
    kept, joined = store(CONSUL)
    kept.emit(Update("users", (ONE, TWO)))
    assert kept.apply()
    before = kept.current
    kept.emit(Update("users", (Endpoint("http", "10.0.0.1", 80), Endpoint("http", "10.0.0.2", 80))))
    assert not kept.apply()
    assert kept.current is before
    assert len(joined.swapped) == 2


def test_a_burst_makes_one_snapshot() -> None:
    kept, joined = store(CONSUL, STATIC)
    for number in range(10):
        kept.emit(Update("users", (Endpoint("http", f"10.0.1.{number}", 80),)))
    kept.apply()
    assert addresses(kept) == ["10.0.1.9"]
    assert len(joined.swapped) == 2


def test_what_is_known_survives_a_re_weighting() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    state: EndpointState = kept.current.groups["users"].candidates[0].state
    state.in_flight = 3
    kept.emit(Update("users", (Endpoint("http", "10.0.0.1", 80, weight=5),)))
    assert kept.apply()
    assert kept.current.groups["users"].candidates[0].state is state


def test_weight_0_gets_nothing_but_is_known() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE, Endpoint("http", "10.0.0.2", 80, weight=0))))
    kept.apply()
    assert addresses(kept) == ["10.0.0.1"]
    assert len(kept.current.groups["users"].endpoints) == 2


def test_a_snapshot_taken_before_a_swap_stays_as_it_was() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    mine = kept.current
    kept.emit(Update("users", (TWO,)))
    kept.apply()
    assert [one.endpoint.host for one in mine.groups["users"].candidates] == ["10.0.0.1"]


def test_what_is_gone_is_forgotten_when_its_last_request_ended() -> None:
    state = UpstreamState(CONSUL, None, Budget(lambda: 0.0))  # type: ignore[arg-type]
    one, two = state.endpoint(ONE, 0.0), state.endpoint(TWO, 0.0)
    one.in_flight = 1
    state.forget()
    assert (state.find(ONE.key), state.find(TWO.key)) == (one, None)
    one.end()
    state.forget()
    assert state.find(ONE.key) is None
    assert state.endpoint(TWO, 0.0) is not two


# -- another configuration ----------------------------------------------------------------


def version(name: str, *upstreams: Upstream, discovery: DiscoverySettings | None = None) -> Config:
    routes = tuple(Route(name=one.name, upstream=one.name, matches=(Match(prefix="/" + one.name),)) for one in upstreams)
    return Config(name, {one.name: one for one in upstreams}, routes, discovery=discovery or DiscoverySettings())


def test_a_configuration_is_applied_whole() -> None:
    kept, joined = store(CONSUL, STATIC)
    old = kept.current
    fresh = Upstream("fresh", StaticSource((TWO,)))
    kept.reconfigure(version("v2", STATIC, fresh))
    assert kept.current.version == kept.config.version == "v2"
    assert sorted(kept.current.groups) == ["fresh", "legacy"]
    assert kept.current.router is not old.router
    assert joined.swapped[-1] == (old, kept.current, {"fresh", "users"})
    assert old.version == "v1"
    assert sorted(old.groups) == ["legacy", "users"]
    # What did not change is the very same object: nothing was made anew.
    assert kept.current.groups["legacy"] is old.groups["legacy"]


def test_an_upstream_that_stays_keeps_its_provider_and_what_it_said() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    provider, group = kept.providers["users"], kept.current.groups["users"]
    kept.reconfigure(version("v2", CONSUL, STATIC))
    assert kept.providers["users"] is provider
    assert kept.current.groups["users"] is group


def test_settings_of_an_upstream_change_without_a_new_provider() -> None:
    kept, joined = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    provider, state = kept.providers["users"], kept.current.groups["users"].candidates[0].state
    slower = replace(CONSUL, timeouts=Timeouts(response=99.0))
    kept.reconfigure(version("v2", slower))
    assert kept.providers["users"] is provider
    assert kept.current.groups["users"].upstream is slower
    assert kept.current.groups["users"].candidates[0].state is state
    assert addresses(kept) == ["10.0.0.1"]
    assert joined.swapped[-1][2] == {"users"}


def test_another_registry_keeps_the_endpoints_until_it_answers() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    provider = kept.providers["users"]
    moved = DiscoverySettings(consul=ConsulSettings(address="http://10.9.9.9:8500"))
    kept.reconfigure(version("v2", CONSUL, discovery=moved))
    assert kept.providers["users"] is not provider
    assert addresses(kept) == ["10.0.0.1"]


def test_another_service_does_not_keep_the_endpoints() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    kept.reconfigure(version("v2", Upstream("users", ConsulSource("other-svc"))))
    assert addresses(kept) == []
    assert list(kept.waiting) == ["users"]


def test_what_is_said_of_an_upstream_that_is_gone_is_nothing() -> None:
    kept, joined = store(CONSUL, STATIC)
    kept.reconfigure(version("v2", STATIC))
    number = len(joined.swapped)
    kept.emit(Update("users", (ONE,)))
    assert not kept.apply()
    assert len(joined.swapped) == number


def test_a_change_of_one_upstream_makes_one_group() -> None:
    many = [Upstream(f"u{number}", ConsulSource(f"s{number}")) for number in range(50)]
    kept, joined = store(*many)
    for one in many:
        kept.emit(Update(one.name, (ONE,)))
    # One call ends after a slice of time.
    while kept.apply():
        pass
    joined.joined.clear()
    kept.emit(Update("u7", (TWO,)))
    kept.apply()
    assert joined.joined == ["u7"]
    assert joined.swapped[-1][2] == {"u7"}
    assert addresses(kept, "u7") == ["10.0.0.2"]
    assert addresses(kept, "u8") == ["10.0.0.1"]


def test_once_ready_always_ready() -> None:
    kept, _ = store(CONSUL)
    assert not kept.ready
    kept.emit(Update("users", ()))
    kept.apply()
    assert kept.ready
    kept.reconfigure(version("v2", CONSUL, Upstream("more", ConsulSource("more-svc"))))
    assert list(kept.waiting) == ["more"]
    assert kept.ready


def test_without_a_version_nothing_is_ready() -> None:
    joined = Joined()
    kept = Store(Config("", {}, ()), joined.join, joined.swap)
    assert not kept.ready
    kept.reconfigure(version("v1", STATIC))
    assert kept.ready


def test_a_configuration_that_cannot_be_joined_leaves_the_old_one() -> None:
    kept, joined = store(CONSUL, STATIC)
    old, providers = kept.current, dict(kept.providers)

    def refuse(upstream: Upstream, *given: Any) -> Any:
        raise RuntimeError("no")

    kept._join = refuse
    with pytest.raises(RuntimeError):
        kept.reconfigure(version("v2", Upstream("fresh", StaticSource((TWO,)))))
    assert kept.current is old
    assert kept.providers == providers
    kept._join = joined.join
    kept.emit(Update("users", (ONE,)))
    assert kept.apply()


def test_discovered_endpoints_may_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    kept, _ = store(CONSUL, STATIC)
    kept.refuse(own)
    for _ in range(3):
        kept.emit(Update("users", (ONE, TWO)))
        kept.apply()
    assert addresses(kept) == ["10.0.0.2"]
    assert caplog.text.count("upstream users: not an endpoint: it is our own") == 1


def own(endpoint: Endpoint) -> str:
    return "it is our own" if endpoint == ONE else ""


def test_endpoints_of_the_file_may_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    alone = Upstream("alone", StaticSource((ONE,)))
    kept, joined = store(STATIC, alone, Upstream("other", StaticSource((TWO,))))
    joined.joined.clear()
    kept.refuse(own)
    assert (addresses(kept, "legacy"), addresses(kept, "alone"), addresses(kept, "other")) == (["10.0.0.2"], [], ["10.0.0.2"])
    assert sorted(joined.joined) == ["alone", "legacy"]
    assert kept.ready
    absence = kept.current.groups["alone"].absence()
    assert isinstance(absence, NoEndpoint)
    assert absence.cause == "upstream alone has no endpoint: it is our own"
    assert caplog.messages == ["upstream legacy: not an endpoint: it is our own", "upstream alone: not an endpoint: it is our own"]


def test_a_reload_is_judged_as_well() -> None:
    kept, _ = store(CONSUL)
    kept.refuse(own)
    kept.reconfigure(version("v2", STATIC), saved={})
    assert addresses(kept, "legacy") == ["10.0.0.2"]


def test_saved_endpoints_are_judged_as_well() -> None:
    kept, _ = store(CONSUL)
    kept.refuse(own)
    kept.restore({"users": (ONE,)})
    assert addresses(kept) == []
    kept.reconfigure(version("v2", Upstream("fresh", ConsulSource("fresh"))), saved={"fresh": (ONE, TWO)})
    assert addresses(kept, "fresh") == ["10.0.0.2"]


def test_what_is_known_is_judged_by_a_new_deny_while_the_registry_is_away() -> None:
    kept, _ = store(CONSUL)
    kept.emit(Update("users", (ONE, TWO)))
    kept.apply()
    kept.reconfigure(replace(version("v2", CONSUL), discovery=DiscoverySettings(deny=("10.0.0.1/32",))))
    assert addresses(kept) == ["10.0.0.2"]
    kept.reconfigure(replace(version("v3", CONSUL), discovery=DiscoverySettings(deny=("10.0.0.0/8",))))
    assert addresses(kept) == []
    assert kept.current.groups["users"].absence().cause == (
        "upstream users has no endpoint: 10.0.0.2 is in 10.0.0.0/8, which discovery.deny excludes"
    )


def test_an_empty_group_says_what_was_refused() -> None:
    kept, _ = store(CONSUL)
    kept.refuse(own)
    kept.emit(Update("users", (), refused=tuple("dcab")))
    kept.apply()
    first = kept.current.groups["users"]
    assert first.absence().cause == "upstream users has no endpoint: a; b; c; and 1 more"
    kept.emit(Update("users", (ONE,)))
    kept.apply()
    assert kept.current.groups["users"].absence().cause == "upstream users has no endpoint: it is our own"
    kept.emit(Update("users", None, "refused"))
    kept.apply()
    assert kept.current.groups["users"].absence().cause == "upstream users has no endpoint: it is our own; refused"
    kept.emit(Update("users", ()))
    kept.apply()
    assert kept.current.groups["users"].absence().cause == "upstream users has no endpoint"
    assert kept.current.groups["users"].state is first.state


def test_endpoints_from_before_a_restart_serve_until_there_is_an_answer() -> None:
    kept, _ = store(CONSUL, STATIC)
    kept.restore({"users": (ONE,), "legacy": (), "gone": (TWO,)})
    assert addresses(kept) == ["10.0.0.1"]
    assert addresses(kept, "legacy") == ["10.0.0.1", "10.0.0.2"]
    assert kept.ready
    kept.emit(Update("users", None, "refused"))
    kept.apply()
    assert addresses(kept) == ["10.0.0.1"]
    kept.emit(Update("users", (TWO,)))
    kept.apply()
    kept.restore({"users": (ONE,)})
    assert addresses(kept) == ["10.0.0.2"]


def test_which_upstreams_of_a_coming_configuration_have_no_endpoints_so_far() -> None:
    kept, _ = store(CONSUL, STATIC, NAMED)
    literal = Upstream("new", StaticSource((ONE,), literal=True))
    other = replace(NAMED, name="other")
    coming = version("v2", CONSUL, replace(STATIC, source=StaticSource((TWO,), literal=True)), NAMED, literal, other)
    assert kept.unknown(coming) == ["users", "named", "other"]
    kept.emit(Update("users", ()))
    kept.emit(Update("named", None, "away"))
    assert kept.unknown(coming) == ["named", "other"]
    elsewhere = version("v3", replace(CONSUL, source=ConsulSource("another")))
    assert kept.unknown(elsewhere) == ["users"]


class Doubtful(FakeProvider):
    remembers = False

    def remember(self) -> None:
        self.remembers = True


def test_a_provider_is_told_that_endpoints_are_known_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Doubtful] = []

    def make(upstream: Upstream, settings: DiscoverySettings) -> Doubtful:
        made.append(Doubtful(upstream.name))
        return made[-1]

    monkeypatch.setattr("gateway.upstreams.store.make", make)
    kept, _ = store(CONSUL)
    kept.restore({"users": ()})
    assert [one.remembers for one in made] == [False]
    kept, _ = store(CONSUL)
    kept.restore({"users": (ONE,)})
    moved = DiscoverySettings(consul=ConsulSettings(address="http://10.9.9.9:8500"))
    kept.reconfigure(version("v2", CONSUL, discovery=moved))
    kept.reconfigure(version("v3", Upstream("users", ConsulSource("other"))))
    assert [one.remembers for one in made] == [False, True, True, False]


# -- with greenlets -----------------------------------------------------------------------


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[FakeProvider]]:
    """Every provider that was made, by upstream."""
    made: dict[str, list[FakeProvider]] = {}

    def make(upstream: Upstream, settings: DiscoverySettings) -> FakeProvider | None:
        if isinstance(upstream.source, StaticSource):
            return None
        made.setdefault(upstream.name, []).append(FakeProvider(upstream.name))
        return made[upstream.name][-1]

    monkeypatch.setattr("gateway.upstreams.store.make", make)
    return made


@pytest.fixture
def running(providers: dict[str, list[FakeProvider]]) -> Iterator[Store]:
    kept, _ = store(STATIC)
    kept.start()
    yield kept
    kept.stop()


def until(holds: Callable[[], bool]) -> None:
    with gevent.Timeout(10, AssertionError("not within 10 s")):
        while not holds():
            gevent.sleep(0.001)


PATIENT = DiscoverySettings(wait=60.0)
HASTY = DiscoverySettings(wait=0.0)


def test_a_new_upstream_is_looked_up_before_it_is_used(running: Store, providers: dict[str, list[FakeProvider]]) -> None:
    running.reconfigure(version("v2", STATIC, CONSUL, discovery=PATIENT))
    until(lambda: bool(providers.get("users")) and providers["users"][0].running.is_set())
    gevent.sleep(0.05)
    assert running.current.version == "v1"
    providers["users"][0].fail("no leader")
    gevent.sleep(0.05)
    assert running.current.version == "v1"
    providers["users"][0].give(ONE)
    until(lambda: running.current.version == "v2")
    assert addresses(running) == ["10.0.0.1"]


def test_the_look_up_is_waited_for_so_long_and_no_longer(
    running: Store, providers: dict[str, list[FakeProvider]]
) -> None:
    running.reconfigure(version("v2", STATIC, CONSUL, discovery=HASTY))
    until(lambda: running.current.version == "v2")
    assert isinstance(running.current.groups["users"].absence(), NoEndpoint)
    providers["users"][0].give(ONE)
    until(lambda: addresses(running) == ["10.0.0.1"])


def test_of_several_configurations_the_last_wins(running: Store, providers: dict[str, list[FakeProvider]]) -> None:
    versions: list[str] = []
    running._on_swap = lambda old, new, changed: versions.append(new.version)
    for number in range(2, 12):
        source = Upstream("users", ConsulSource(f"svc-{number}"))
        running.reconfigure(version(f"v{number}", STATIC, CONSUL, replace(source, name="more"), discovery=PATIENT))
    until(lambda: all(one[-1].running.is_set() for one in providers.values()))
    # The look-up that all of them want is made once, the others are given up.
    assert len(providers["users"]) == 1
    until(lambda: [one.running.is_set() for one in providers["more"]] == [False] * 9 + [True])
    providers["users"][0].give(ONE)
    providers["more"][-1].give(TWO)
    until(lambda: running.current.version == "v11")
    assert versions == ["v11"]


def test_a_storm_does_not_put_a_configuration_off_for_ever(running: Store) -> None:
    soon = DiscoverySettings(wait=0.2)
    seen = set()
    with gevent.Timeout(10, AssertionError("never applied")):
        for number in range(10_000):
            running.reconfigure(version(f"w{number}", STATIC, CONSUL, discovery=soon))
            gevent.sleep(0.01)
            seen.add(running.current.version)
            if len(seen) > 2:
                break
    assert "v1" in seen


def test_a_provider_that_is_not_needed_any_more_ends(
    running: Store, providers: dict[str, list[FakeProvider]]
) -> None:
    running.reconfigure(version("v2", CONSUL, discovery=HASTY))
    until(lambda: running.current.version == "v2")
    provider = providers["users"][0]
    until(provider.running.is_set)
    running.reconfigure(version("v3", STATIC, discovery=HASTY))
    until(lambda: running.current.version == "v3")
    until(lambda: not provider.running.is_set())
    running.reconfigure(version("v4", STATIC, CONSUL, discovery=PATIENT))
    until(lambda: len(providers["users"]) == 2)
    running.stop()
    until(lambda: not providers["users"][1].running.is_set())


def test_a_configuration_that_comes_while_another_is_put_in_force(
    running: Store, providers: dict[str, list[FakeProvider]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third wants a look-up of the first that the second ends."""
    monkeypatch.setattr("gateway.upstreams.store.SLICE", 0.0)
    running.reconfigure(version("v2", STATIC, CONSUL, discovery=HASTY))
    until(lambda: running.current.version == "v2")
    join = running._join
    third = version("v4", CONSUL, discovery=HASTY)

    def meanwhile(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "zebra" and running._coming is None:
            running.reconfigure(third)
        return join(upstream, *given)

    running._join = meanwhile
    running.reconfigure(version("v3", Upstream("zebra", StaticSource((ONE,))), discovery=HASTY))
    until(lambda: running.current.version == "v4")
    assert len(providers["users"]) == 1
    assert providers["users"][0].running.is_set()
    providers["users"][0].give(TWO)
    until(lambda: addresses(running) == ["10.0.0.2"])


def test_nothing_is_left_of_hundreds_of_configurations(
    running: Store, providers: dict[str, list[FakeProvider]]
) -> None:
    def greenlets() -> int:
        gc.collect()
        return sum(isinstance(one, gevent.Greenlet) and not one.dead for one in gc.get_objects())

    running.reconfigure(version("v2", STATIC, CONSUL, discovery=HASTY))
    until(lambda: running.current.version == "v2")
    until(lambda: bool(providers["users"]) and providers["users"][0].running.is_set())
    before = greenlets()
    for number in range(200):
        source = ConsulSource(f"svc-{number}")
        running.reconfigure(version(f"w{number}", STATIC, Upstream("users", source), discovery=HASTY))
        if number % 10 == 0:
            until(lambda wanted=f"w{number}": running.current.version == wanted)  # type: ignore[misc]
    until(lambda: running.current.version == "w199")
    until(lambda: [one.running.is_set() for one in providers["users"]] == [False] * 200 + [True])
    until(lambda: greenlets() == before)


def test_what_is_said_while_a_snapshot_is_made_is_not_lost(
    running: Store, providers: dict[str, list[FakeProvider]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstreams.store.SLICE", 0.0)
    running.reconfigure(version("v2", STATIC, CONSUL, discovery=HASTY))
    until(lambda: running.current.version == "v2")
    join = running._join
    said: list[bool] = []

    def meanwhile(upstream: Upstream, *given: Any) -> Any:
        if upstream.name == "zebra":
            providers["users"][0].give(TWO)
            said.append(True)
        return join(upstream, *given)

    running._join = meanwhile
    zebra = Upstream("zebra", StaticSource((ONE,)))
    running.reconfigure(version("v3", CONSUL, zebra, discovery=HASTY))
    until(lambda: addresses(running) == ["10.0.0.2"])
    assert said == [True]
