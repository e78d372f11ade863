"""From what providers say to the snapshot in force."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import DnsError, NoEndpoint
from gateway.health.state import Candidate, EndpointState, UpstreamState
from gateway.model import Config, ConsulSource, Endpoint, Match, Route, StaticSource, Upstream
from gateway.providers import Update
from gateway.retry import Budget
from gateway.snapshot import Snapshot
from gateway.store import Store

ONE = Endpoint("http", "10.0.0.1", 80)
TWO = Endpoint("http", "10.0.0.2", 80)


class Joined:
    """What the composition root does, without a transport."""

    def __init__(self) -> None:
        self.states: dict[str, UpstreamState] = {}
        self.swapped: list[Snapshot] = []

    def join(self, upstream: Upstream, endpoints: tuple[Endpoint, ...]) -> tuple[tuple[Candidate, ...], UpstreamState]:
        balancer: Any = None
        state = self.states.setdefault(upstream.name, UpstreamState(balancer, Budget(lambda: 0.0), {}))
        return tuple(Candidate(one, state.endpoint(one), None) for one in endpoints), state


def store(*upstreams: Upstream) -> tuple[Store, Joined]:
    joined = Joined()
    routes = tuple(Route(name=one.name, upstream=one.name, matches=(Match(prefix="/" + one.name),)) for one in upstreams)
    config = Config("v1", {one.name: one for one in upstreams}, routes)
    return Store(config, joined.join, joined.swapped.append), joined


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
    assert joined.swapped == [kept.current]


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
    state = UpstreamState(None, Budget(lambda: 0.0), {})  # type: ignore[arg-type]
    one, two = state.endpoint(ONE), state.endpoint(TWO)
    one.in_flight = 1
    state.forget(set())
    assert state.endpoints == {ONE.key: one}
    one.leave()
    state.forget({TWO.key})
    assert state.endpoints == {}
    assert state.endpoint(TWO) is not two
