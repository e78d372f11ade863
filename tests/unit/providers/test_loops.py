"""The loops of both providers with scripted answers and a clock that nothing waits for."""

import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from gateway import providers
from gateway.model import (
    ConsulSettings,
    ConsulSource,
    DiscoverySettings,
    DnsSettings,
    Endpoint,
    EtcdSettings,
    RegistrationSettings,
    StaticSource,
    Upstream,
)
from gateway.providers.base import Update, one_line
from gateway.providers.consul import ConsulProvider, following
from gateway.providers.names import LookupFailed, Names
from gateway.providers.static import INTERVAL, StaticProvider
from gateway.registries import RefusedError, RegistryError
from gateway.registries.consul import Answer
from gateway.registries.dns import Addresses
from gateway.registries.pacing import spread
from gateway.testing import FakeClock

SOURCE = ConsulSource("user-svc")
SERVICE = Upstream("users", SOURCE)


class Rounds:
    """An event that is set after so many waits, and lets the clock pass instead of waiting."""

    def __init__(self, number: int, clock: FakeClock) -> None:
        self.left = number
        self.clock = clock
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return self.left == 0

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self.clock.advance(timeout)
        self.left -= 1
        return self.is_set()


def instance(address: str = "10.0.0.1", port: int = 80) -> dict[str, Any]:
    return {"Node": {"Node": "n1"}, "Service": {"ID": "i", "Address": address, "Port": port}}


def at(*hosts: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("http", host, 80, authority=f"{host}:80".encode()) for host in hosts)


def said(payload: object, index: int | None = 7, known_leader: bool = True) -> Answer:
    return Answer(json.dumps(payload).encode(), index, known_leader, lambda: payload)


def good(*entries: object, index: int | None = 7, known_leader: bool = True) -> Answer:
    return said(list(entries), index, known_leader)


class Registry:
    """Gives one answer after the other. One that comes when nothing has changed comes when the wait
    is over, unless `waits` is False."""

    def __init__(self, clock: FakeClock, *answers: Answer | Exception, waits: bool = True) -> None:
        self.clock = clock
        self.answers = list(answers)
        self.asked: list[tuple[int | None, float]] = []
        self.at: list[float] = []
        self.waits = waits
        self.closed = False

    def passing(self, source: ConsulSource, index: int | None, wait: float) -> Answer:
        assert source == SOURCE
        self.asked.append((index, wait))
        self.at.append(self.clock())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if self.waits and index is not None and answer.index == index:
            self.clock.advance(wait)
        return answer

    def close(self) -> None:
        self.closed = True


def unknown(name: str) -> tuple[str, ...]:
    raise LookupFailed(f"{name}: not known")


def consul(
    *answers: Answer | Exception,
    look_up: Callable[[str], tuple[str, ...]] = unknown,
    waits: bool = True,
    random: float = 0.5,
    **settings: Any,
) -> tuple[ConsulProvider, list[Update], Registry]:
    clock = FakeClock(0.0)
    registry = Registry(clock, *answers, waits=waits)
    discovery = DiscoverySettings(**settings)
    provider = ConsulProvider(
        SERVICE, SOURCE, registry, discovery, Names(look_up, clock), clock, lambda: random
    )
    told: list[Update] = []
    provider.run(told.append, Rounds(len(answers), clock))
    assert registry.closed
    return provider, told, registry


# -- Consul -----------------------------------------------------------------------------


def test_it_asks_at_once_and_then_waits_for_changes() -> None:
    _, told, registry = consul(good(instance()), good(index=8), good(index=8), consul=ConsulSettings(poll=5.0))
    assert told == [Update("users", at("10.0.0.1")), Update("users", ())]
    assert registry.asked == [(None, 5.0), (7, 5.0), (8, 5.0)]
    assert registry.at == [0, 0, 0]


def test_an_idle_registry_is_asked_once_a_poll_and_nothing_is_told_twice() -> None:
    _, told, registry = consul(*[good(instance())] * 6)
    assert registry.at == [0, 0, 5, 10, 15, 20]
    assert told == [Update("users", at("10.0.0.1"))]


@pytest.mark.parametrize(("drawn", "gap"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
def test_a_registry_that_does_not_wait_is_polled(drawn: float, gap: float) -> None:
    _, _, registry = consul(*[good(instance())] * 4, waits=False, random=drawn)
    assert registry.at == pytest.approx([0, 0, gap, 2 * gap])


def test_without_an_index_it_polls() -> None:
    _, _, registry = consul(*[good(instance(), index=None)] * 4)
    assert registry.asked == [(None, 5.0)] * 4
    assert registry.at == [0, 5, 10, 15]


def test_an_index_that_goes_back_begins_anew() -> None:
    one = instance()
    _, _, registry = consul(good(one, index=90), good(one, index=8), good(one, index=8), good(one, index=9))
    assert [index for index, _ in registry.asked] == [None, 90, None, 8]


@pytest.mark.parametrize(
    ("asked", "got", "next_"), [(None, 7, 7), (7, 7, 7), (7, 9, 9), (7, 6, None), (7, None, None), (None, None, None)]
)
def test_which_index_follows(asked: int | None, got: int | None, next_: int | None) -> None:
    assert following(asked, got) == next_


def test_the_same_data_at_another_index_is_no_update() -> None:
    _, told, _ = consul(good(instance()), good(instance(), index=8), good(instance(), index=9))
    assert told == [Update("users", at("10.0.0.1"))]


def test_what_is_told_is_not_decoded_again_while_it_stays_the_same() -> None:
    decoded: list[int] = []
    body = json.dumps([instance()]).encode()

    def decode() -> object:
        decoded.append(1)
        return [instance()]

    consul(*[Answer(body, 7, True, decode)] * 5)
    assert len(decoded) == 1


def test_fast_churn_is_asked_for_twice_a_second_and_ends_with_the_last_state() -> None:
    """Something new whenever it asks, for 30 s: 4 questions at once, then 2 a second."""
    changes = [good(instance(port=n), index=n) for n in range(1, 65)]
    _, told, registry = consul(*changes)
    assert registry.at == [0, 0, 0, *[n / 2 for n in range(61)]]
    assert told[-1].endpoints is not None
    assert [e.port for e in told[-1].endpoints] == [64]


def test_who_polls_faster_may_ask_faster() -> None:
    changes = [good(instance(port=n), index=n) for n in range(1, 10)]
    _, _, registry = consul(*changes, consul=ConsulSettings(poll=0.1))
    assert registry.at[4:] == pytest.approx([0.1 * n for n in range(1, 6)])


def test_a_registry_that_is_away_is_asked_at_least_once_a_poll() -> None:
    _, _, registry = consul(*[RegistryError("away")] * 40)
    gaps = [after - before for before, after in zip(registry.at, registry.at[1:], strict=False)]
    assert gaps[:3] == pytest.approx([1, 2, 4])
    assert all(4 <= gap <= 5 for gap in gaps[3:])
    assert {index for index, _ in registry.asked} == {None}


@pytest.mark.parametrize(
    ("error", "asked", "poll"), [(RegistryError("no answer"), 134, 5.0), (RefusedError("HTTP 403"), 24, 30.0)]
)
def test_ten_minutes_of_failures_are_not_noticed(error: RegistryError, asked: int, poll: float) -> None:
    provider, told, registry = consul(
        good(instance()), *[error] * asked, good(instance("10.0.0.2")), good(instance("10.0.0.2"))
    )
    back = registry.at[-2]
    assert 600 <= back <= 610
    assert [u.endpoints for u in told] == [at("10.0.0.1"), None, at("10.0.0.2")]
    assert provider.status.last_error == ""
    # Its return is seen by the next question, and changes are waited for again.
    assert back - registry.at[-3] <= poll
    assert registry.asked[-1] == (7, 5.0)


def test_a_registry_that_refuses_is_asked_less_and_less() -> None:
    _, _, registry = consul(*[RefusedError("HTTP 403")] * 8)
    gaps = [after - before for before, after in zip(registry.at, registry.at[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 16, 30, 30])


def test_after_an_error_it_asks_without_waiting_and_soon() -> None:
    _, _, registry = consul(good(instance()), RegistryError("away"), good(instance()), good(instance()))
    assert [index for index, _ in registry.asked] == [None, 7, None, 7]
    assert registry.at == [0, 0, 1, 1]


def test_names_are_not_waited_for_longer_than_they_are_fresh() -> None:
    poll = ConsulSettings(poll=60.0)
    _, _, registry = consul(
        *[good(instance("a.internal"))] * 2, good(instance(), index=8), good(instance(), index=9),
        look_up=lambda _: ("10.0.0.1",), consul=poll,
    )  # fmt: skip
    assert [wait for _, wait in registry.asked] == [60.0, 10.0, 10.0, 60.0]


def test_names_of_dns_servers_are_not_waited_for_longer_than_their_ttl() -> None:
    clock = FakeClock(0.0)
    registry = Registry(clock, *[good(instance("a.internal"))] * 6)
    ttls = [4.4, 1.0, 0.0, 3600.0]
    names = Names(lambda _: Addresses(("10.0.0.1",), ttls.pop(0)), clock, lambda: 0.5)
    discovery = DiscoverySettings(consul=ConsulSettings(poll=60.0))
    ConsulProvider(SERVICE, SOURCE, registry, discovery, names, clock, lambda: 0.5).run(lambda _: None, Rounds(6, clock))
    assert [wait for _, wait in registry.asked] == pytest.approx([60, 4, 1, 1, 10, 10])
    assert ttls == []


def test_a_name_that_moves_is_followed_while_the_registry_says_the_same() -> None:
    moves = [("10.0.0.1",), ("10.0.0.2",)]
    answers = [good(instance("a.internal"))] * 8
    _, told, _ = consul(*answers, look_up=lambda _: moves.pop(0))
    assert [[e.host for e in update.endpoints or ()] for update in told] == [["10.0.0.1"], ["10.0.0.2"]]


def test_an_error_is_not_an_update_and_not_the_end() -> None:
    provider, told, _ = consul(
        good(instance()), RegistryError("HTTP 500"), RegistryError("HTTP 500"), good(instance("10.0.0.2"))
    )
    assert [u.endpoints for u in told] == [at("10.0.0.1"), None, at("10.0.0.2")]
    assert [u.failed for u in told] == [False, True, False]
    assert told[1].error == "HTTP 500"
    assert provider.status.last_error == ""


def test_a_fault_of_our_own_is_not_the_end_either(caplog: pytest.LogCaptureFixture) -> None:
    _, told, _ = consul(KeyError("x"), good(instance()))
    assert told == [Update("users", None, "KeyError: 'x'"), Update("users", at("10.0.0.1"))]
    assert any(r.exc_info for r in caplog.records)


def test_status_tells_when_and_why() -> None:
    clock = FakeClock(100.0)
    registry = Registry(clock, good(instance(), index=None), RegistryError("no"))
    provider = ConsulProvider(SERVICE, SOURCE, registry, DiscoverySettings(), Names(unknown, clock), clock, lambda: 0.5)
    assert provider.status.last_success is None
    provider.run(lambda _: None, Rounds(2, clock))
    assert (provider.status.last_success, provider.status.last_error) == (100.0, "no")


def test_what_is_not_a_list_is_an_error() -> None:
    _, told, _ = consul(said({"a": 1}))
    assert told[0].failed


def test_each_trouble_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.providers")
    bad = instance(port=0)
    consul(
        RegistryError("one"), RegistryError("one"), RegistryError("two"), good(bad), good(bad), good(), good(bad),
        RegistryError("two"),
    )  # fmt: skip
    told = [r.getMessage().split(": ", 1)[1] for r in caplog.records]
    left_out = "not an endpoint: service 'i' on node 'n1': bad port 0"
    assert told == [
        "discovery failed, what is known stays: one",
        "discovery failed, what is known stays: two",
        left_out,
        "discovery works again",
        left_out,
        "discovery failed, what is known stays: two",
    ]


def test_denied_addresses_are_left_out() -> None:
    _, told, _ = consul(good(instance("169.254.169.254"), instance("10.0.0.1")), good(instance("169.254.169.254")))
    assert [u.endpoints for u in told] == [at("10.0.0.1"), ()]


def test_a_name_in_consul_is_looked_up_before_it_is_judged() -> None:
    known = {"a.internal": ("10.0.0.1",), "evil.internal": ("169.254.169.254",)}
    _, told, _ = consul(good(instance("a.internal"), instance("evil.internal")), look_up=lambda name: known[name])
    assert told[0].endpoints is not None
    assert [(e.host, e.authority) for e in told[0].endpoints] == [("10.0.0.1", b"a.internal:80")]


def test_names_that_cannot_be_looked_up_are_an_error_only_when_nothing_is_left() -> None:
    _, told, _ = consul(good(instance("a.internal")), good(instance("a.internal"), instance("10.0.0.1")))
    assert told == [Update("users", None, "a.internal: not known"), Update("users", at("10.0.0.1"))]


@pytest.mark.parametrize(
    ("second", "believed"),
    [
        (good(index=8), True),
        (good(index=7), True),
        (good(index=None), True),
        (good(index=6), False),
        (good(index=8, known_leader=False), False),
    ],
)
def test_an_empty_answer_is_doubted_from_a_registry_that_lost_its_memory(second: Answer, believed: bool) -> None:
    _, told, _ = consul(good(instance(), index=7), second)
    assert told[1].endpoints == (() if believed else None)


def test_a_registry_that_lost_its_memory_is_believed_when_it_names_an_instance() -> None:
    _, told, _ = consul(
        good(instance(), index=900), good(index=5), good(index=1000), good(instance("10.0.0.2"), index=6), good(index=6)
    )
    # Its indices go on changing, which is no other trouble.
    assert [u.endpoints for u in told] == [at("10.0.0.1"), None, at("10.0.0.2"), ()]


def test_instances_are_believed_at_any_index() -> None:
    _, told, _ = consul(good(instance(), index=900), good(instance("10.0.0.2"), index=5), good(index=5))
    assert [u.endpoints for u in told] == [at("10.0.0.1"), at("10.0.0.2"), ()]


def test_an_empty_answer_after_a_failure_is_doubted_for_three_polls() -> None:
    away, empty, one = RegistryError("away"), good(), good(instance())
    for empties, last in ((3, None), (4, ())):
        _, told, registry = consul(one, away, *[empty] * empties)
        assert registry.at[2:] == [1, 1, 6, 11][:empties]
        assert told[-1].endpoints == last


@pytest.mark.parametrize(("poll", "seconds"), [(0.25, 15.0), (1.0, 15.0), (5.0, 15.0), (10.0, 30.0)])
def test_an_empty_answer_after_a_failure_is_doubted_for_15_seconds_at_least(poll: float, seconds: float) -> None:
    """A short poll does not make the checks of services any faster."""

    def after(empties: int) -> tuple[list[Update], list[float]]:
        settings = ConsulSettings(poll=poll)
        _, told, registry = consul(good(instance()), RegistryError("away"), *[good()] * empties, consul=settings)
        return told, registry.at[2:]

    _, asked = after(100)
    # The first one comes at once, each of the others after one poll.
    within = 1 + sum(each + poll - asked[0] < seconds for each in asked[1:])
    assert after(within)[0][-1].endpoints is None
    assert after(within + 1)[0][-1].endpoints == ()


def test_changes_while_an_empty_answer_is_doubted_do_not_make_it_believed_sooner() -> None:
    _, told, _ = consul(good(instance()), RegistryError("away"), *[good(index=n) for n in range(8, 20)])
    assert [u.endpoints for u in told] == [at("10.0.0.1"), None, None]


def test_how_long_is_counted_anew_after_each_failure_and_not_after_instances() -> None:
    away, empty, one = RegistryError("away"), good(), good(instance())
    _, told, _ = consul(one, away, empty, empty, away, empty, empty, empty, one, empty)
    assert [u.endpoints for u in told] == [at("10.0.0.1"), *[None] * 4, at("10.0.0.1"), ()]


@pytest.mark.parametrize("restored", [True, False])
def test_endpoints_from_before_a_restart_are_known_ones(restored: bool) -> None:
    """Consul and the gateway come back together: everything is critical for a while."""
    clock = FakeClock(0.0)
    registry = Registry(clock, RegistryError("refused"), good(), good(instance()), waits=False)
    provider = ConsulProvider(
        SERVICE, SOURCE, registry, DiscoverySettings(), Names(unknown, clock), clock, lambda: 0.5
    )
    if restored:
        provider.remember()
    told: list[Update] = []
    provider.run(told.append, Rounds(3, clock))
    assert [update.endpoints for update in told] == [None, None if restored else (), at("10.0.0.1")]


def test_nothing_is_doubted_while_nothing_is_known() -> None:
    _, told, _ = consul(RegistryError("away"), good(), good(index=1), RegistryError("away"), good(known_leader=False))
    assert [u.endpoints for u in told] == [None, (), None, ()]


def test_the_first_answer_may_be_empty() -> None:
    _, told, _ = consul(good(index=1))
    assert told == [Update("users", ())]


@pytest.mark.parametrize(("drawn", "wait"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
def test_polls_are_spread_by_a_tenth(drawn: float, wait: float) -> None:
    assert spread(5.0, lambda: drawn) == pytest.approx(wait)


def test_an_empty_answer_that_was_believed_is_believed_again_after_a_failure() -> None:
    _, told, _ = consul(good(instance()), good(), RegistryError("away"), good())
    assert [u.endpoints for u in told] == [at("10.0.0.1"), (), None, ()]


@pytest.mark.parametrize(
    "denied",
    [
        "169.254.169.254", "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
        "fd00:ec2::254", "100.100.100.200", "::ffff:100.100.100.200", "255.255.255.255", "239.0.0.1", "ff02::1",
        "fe80::1%eth0", "0.0.0.0", "::", "::ffff:0.0.0.0",
    ],
)  # fmt: skip
def test_addresses_that_no_registry_may_name(denied: str, caplog: pytest.LogCaptureFixture) -> None:
    _, told, _ = consul(good(instance(denied), instance()), good(instance(denied), index=8))
    assert [update.endpoints for update in told] == [at("10.0.0.1"), ()]
    (reason,) = told[1].refused
    assert caplog.messages == [f"upstream users: not an endpoint: {reason}"]


def test_a_name_in_consul_is_judged_by_what_it_is_resolved_to() -> None:
    _, told, _ = consul(good(instance("meta.internal")), look_up=lambda name: ("169.254.169.254",))
    assert told == [Update("users", (), refused=("169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes",))]


LOOPBACK = "upstream users: {}:80 is a loopback address, but the registry is on another machine"


@pytest.mark.parametrize(
    ("address", "place"), [("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.9.9.9"), ("::1", "[::1]"), ("64:ff9b::7f00:1", "[64:ff9b::7f00:1]")]
)
def test_loopback_from_another_machine_is_used_and_logged_once(address: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    answers = [good(instance(address)), good(instance(address), instance(), index=8), good(instance(address), index=9)]
    _, told, _ = consul(*answers, consul=ConsulSettings(address="http://198.51.100.1:8500"))
    assert [len(update.endpoints or ()) for update in told] == [1, 2, 1]
    assert caplog.messages == [LOOPBACK.format(place)]


def test_loopback_from_this_machine_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for here in ("http://127.0.0.1:8500", "http://localhost:8500", "http://[::1]:8500"):
        consul(good(instance("127.0.0.1")), consul=ConsulSettings(address=here))
    assert caplog.messages == []


def test_loopback_that_comes_again_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    local = instance("127.0.0.1")
    consul(good(local), good(instance(), index=8), good(local, index=9), consul=ConsulSettings(address="http://consul.internal:8500"))
    assert caplog.messages == [LOOPBACK.format("127.0.0.1")] * 2


# -- static -----------------------------------------------------------------------------


def static(
    *endpoints: Endpoint, rounds: int, look_up: Callable[[str], tuple[str, ...]]
) -> tuple[StaticProvider, list[Update], list[float]]:
    clock = FakeClock()
    upstream = Upstream("legacy", StaticSource(endpoints))
    provider = StaticProvider(upstream, endpoints, DiscoverySettings(), Names(look_up, clock), clock, lambda: 0.5)
    told: list[Update] = []
    stop = Rounds(rounds, clock)
    provider.run(told.append, stop)
    return provider, told, stop.waits


@pytest.mark.parametrize("ttl", [1.5, 5.0, 12.0, 30.0, 600.0])
@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_a_name_of_the_file_is_asked_of_the_system_within_its_longest_ttl(ttl: float, drawn: float) -> None:
    clock, asked = FakeClock(), []

    def look_up(name: str) -> tuple[str, ...]:
        asked.append(clock())
        return ("10.0.0.1",)

    upstream, names = Upstream("legacy", StaticSource((NAME,))), Names(look_up, clock, longest=ttl)
    provider = StaticProvider(upstream, (NAME,), DiscoverySettings(dns=DnsSettings(ttl=ttl)), names, clock, lambda: drawn)
    provider.run(lambda update: None, Rounds(20, clock))
    # In every round, and no round is later than that.
    assert len(asked) == 20
    assert max(later - at for at, later in itertools.pairwise(asked)) <= min(ttl, 30.0) + 1e-6


@pytest.mark.parametrize("address", ["169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1%eth0", "0.0.0.0", "::"])
def test_a_name_of_the_file_is_judged_by_what_it_is_resolved_to(address: str) -> None:
    _, told, _ = static(NAME, LITERAL, rounds=1, look_up=lambda name: (address,))
    assert [update.endpoints for update in told] == [(LITERAL,)]
    _, (alone,), _ = static(NAME, rounds=1, look_up=lambda name: (address,))
    assert (alone.endpoints, alone.error, len(alone.refused)) == ((), "", 1)


def test_loopback_by_a_name_of_the_file_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    _, told, _ = static(NAME, rounds=1, look_up=lambda name: ("127.0.0.1",))
    assert (len(told[0].endpoints or ()), caplog.messages) == (1, [])


NAME = Endpoint("http", "api.internal", 80, authority=b"api.internal:80")
LITERAL = Endpoint("http", "10.0.0.9", 80, authority=b"10.0.0.9:80")


def test_names_are_looked_up_again_within_30_s() -> None:
    answers = [("10.0.0.1",), ("10.0.0.1", "10.0.0.2")]
    _, told, waits = static(NAME, rounds=2, look_up=lambda _: answers.pop(0))
    assert [[e.host for e in u.endpoints or ()] for u in told] == [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]]
    assert waits == [INTERVAL, INTERVAL]
    assert spread(INTERVAL, lambda: 1.0) < 30


def test_the_first_failure_is_told_and_tried_again_soon_then_later() -> None:
    provider, told, waits = static(NAME, rounds=7, look_up=unknown)
    assert told == [Update("legacy", None, "api.internal: not known")] * 7
    assert waits == [1, 2, 4, 8, 16, INTERVAL, INTERVAL]
    assert provider.status.last_success is None
    assert provider.status.last_error == "api.internal: not known"


def test_a_success_makes_the_next_retry_soon_again() -> None:
    answers: list[tuple[str, ...]] = [(), (), ("10.0.0.1",), ()]

    def scripted(name: str) -> tuple[str, ...]:
        return answers.pop(0) or unknown(name)

    _, _, waits = static(NAME, rounds=4, look_up=scripted)
    assert waits == [1, 2, INTERVAL, 1]


def test_a_failure_keeps_the_last_addresses() -> None:
    answers = [("10.0.0.1",)]

    def once(name: str) -> tuple[str, ...]:
        return answers.pop() if answers else unknown(name)

    _, told, _ = static(NAME, rounds=2, look_up=once)
    assert [[e.host for e in u.endpoints or ()] for u in told] == [["10.0.0.1"], ["10.0.0.1"]]
    assert [u.error for u in told] == ["", "api.internal: not known"]


def test_literals_serve_while_names_cannot() -> None:
    _, told, _ = static(NAME, LITERAL, rounds=1, look_up=unknown)
    assert told == [Update("legacy", (LITERAL,), "api.internal: not known")]


def test_denied_addresses_of_names_are_left_out() -> None:
    _, told, _ = static(NAME, LITERAL, rounds=1, look_up=lambda _: ("169.254.0.1",))
    assert told == [Update("legacy", (LITERAL,))]


# -- the table --------------------------------------------------------------------------


def test_literal_addresses_need_no_provider() -> None:
    for host in ("10.0.0.1", "::1"):
        upstream = Upstream("u", StaticSource((Endpoint("http", host, 80),)))
        assert providers.make(upstream, DiscoverySettings()) is None


def test_one_provider_for_each_upstream_that_needs_one() -> None:
    named = providers.make(Upstream("legacy", StaticSource((NAME, LITERAL))), DiscoverySettings())
    listed = providers.make(SERVICE, DiscoverySettings())
    assert isinstance(named, StaticProvider)
    assert isinstance(listed, ConsulProvider)
    assert (named.upstream, listed.upstream) == ("legacy", "users")


@pytest.mark.parametrize(
    ("other", "anew"),
    [
        (DiscoverySettings(), False),
        (DiscoverySettings(consul=ConsulSettings(registration=RegistrationSettings())), False),
        (DiscoverySettings(wait=9.0), False),
        (DiscoverySettings(etcd=EtcdSettings(poll=9.0)), False),
        (DiscoverySettings(consul=ConsulSettings(poll=9.0)), True),
        (DiscoverySettings(dns=DnsSettings(("10.0.0.53",))), True),  # names in Consul are asked there
        (DiscoverySettings(deny=()), True),
    ],
)
def test_what_a_provider_of_consul_is_made_of(other: DiscoverySettings, anew: bool) -> None:
    assert (providers.depends_on(SERVICE, DiscoverySettings()) != providers.depends_on(SERVICE, other)) is anew


@pytest.mark.parametrize(
    ("text", "line"), [("a\r\nb\x1b[0m", "a  b [0m"), ("x" * 300, "x" * 199 + "…"), ("x" * 200, "x" * 200)]
)
def test_foreign_text_stays_on_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


# -- faults --------------------------------------------------------------------------------


class Deaf:
    """Whoever is told, and cannot take it a number of times."""

    def __init__(self, faults: int) -> None:
        self.faults = faults
        self.told: list[Update] = []

    def __call__(self, update: Update) -> None:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("cannot be taken now")
        self.told.append(update)


def test_what_could_not_be_handed_on_is_said_again() -> None:
    clock = FakeClock(0.0)
    registry = Registry(clock, *[good(instance())] * 3)
    provider = ConsulProvider(
        SERVICE, SOURCE, registry, DiscoverySettings(), Names(unknown, clock), clock, lambda: 0.5
    )
    deaf, stop = Deaf(1), Rounds(2, clock)
    with pytest.raises(RuntimeError):
        provider.run(deaf, stop)
    # Whoever supervises it runs it again.
    provider.run(deaf, stop)
    assert deaf.told == [Update("users", at("10.0.0.1"))]


def test_what_was_said_before_a_fault_is_said_again() -> None:
    """Whoever listens may have taken the fault for a failed look-up."""
    clock = FakeClock(0.0)
    registry = Registry(clock, *[good(instance())] * 2)
    provider = ConsulProvider(
        SERVICE, SOURCE, registry, DiscoverySettings(), Names(unknown, clock), clock, lambda: 0.5
    )
    deaf = Deaf(0)
    for _ in range(2):
        provider.run(deaf, Rounds(1, clock))
    assert deaf.told == [Update("users", at("10.0.0.1"))] * 2


def test_a_fault_that_stays_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(providers.consul, "decode", fail)
    provider, told, _ = consul(*[good(instance())] * 5)
    assert caplog.text.count("Traceback") == 1
    assert told == [Update("users", None, "RuntimeError: a fault of our own")]
    assert provider.status.last_error == "RuntimeError: a fault of our own"


@pytest.mark.parametrize("step", ["decode", "allowed", "expand"])
def test_an_answer_in_whose_middle_something_fails_is_news_the_next_time(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module = providers.consul
    if step == "expand":
        # Called for instances that are names.
        monkeypatch.setattr(module, "is_name", lambda endpoint: True)
    real, faults = getattr(module, step), [RuntimeError("a fault of our own")]

    def fail(*given: Any) -> Any:
        if faults:
            raise faults.pop()
        return real(*given)

    monkeypatch.setattr(module, step, fail)
    _, told, _ = consul(*[good(instance())] * 3)
    assert told == [Update("users", None, "RuntimeError: a fault of our own"), Update("users", at("10.0.0.1"))]
