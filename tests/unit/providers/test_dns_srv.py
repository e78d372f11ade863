"""SRV records: priorities, weights, what can be an endpoint; the loop with a scripted DNS."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import providers
from gateway.model import DiscoverySettings, DnsSettings, DnsSrvSource, Endpoint, StaticSource, TlsSettings, Upstream
from gateway.providers.base import Update
from gateway.providers.dns_srv import DnsSrvProvider, best, levels, merged, weights
from gateway.providers.names import Names
from gateway.providers.static import StaticProvider
from gateway.registries import RegistryError
from gateway.registries.dns import Addresses, Service, Srv
from gateway.testing import FakeClock

SERVICE = Upstream("orders", DnsSrvSource("_http._tcp.orders"))


def places(endpoints: tuple[Endpoint, ...] | None) -> list[tuple[str, int]] | None:
    return None if endpoints is None else [(e.address, e.weight) for e in endpoints]


# -- weights (RFC 2782) -----------------------------------------------------------------


def srv(*weights_: int) -> list[Srv]:
    return [Srv(0, weight, 80, f"n{number}") for number, weight in enumerate(weights_)]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([0], [1]),
        ([5], [5]),
        ([0, 0], [1, 1]),
        ([1, 3], [1, 3]),
        ([0, 3], [1, 3]),
        ([0, 0, 3], [1, 1, 6]),
        ([65535, 0], [65535, 1]),
    ],
)
def test_weights_are_shares_and_0_is_the_least_of_them(given_: list[int], expected: list[int]) -> None:
    assert weights(srv(*given_)) == expected


def chances_by_rfc(records: list[Srv]) -> dict[str, Fraction]:
    """The selection of RFC 2782, p. 4, worked out for every number that may be drawn; of the
    records of weight 0, which come first in no special order, each is as often the first."""
    idle = [record for record in records if record.weight == 0]
    chances: Counter[str] = Counter()
    total = sum(record.weight for record in records)
    rounds = len(idle) or 1
    for first in range(rounds):
        order = idle[first:] + idle[:first] + [record for record in records if record.weight]
        for drawn in range(total + 1):
            running = 0
            for record in order:
                running += record.weight
                if running >= drawn:
                    chances[record.target] += Fraction(1, (total + 1) * rounds)  # type: ignore[assignment]
                    break
    return {record.target: Fraction(chances[record.target]) for record in records}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda given_: 0 in given_))
def test_weights_have_the_chances_of_the_rfc_s_selection(given_: list[int]) -> None:
    records = srv(*given_)
    got = weights(records)
    expected = chances_by_rfc(records)
    assert {r.target: Fraction(w, sum(got)) for r, w in zip(records, got, strict=True)} == expected


# -- records to endpoints ---------------------------------------------------------------


def test_lower_numbers_come_first_and_the_order_of_an_answer_does_not_matter() -> None:
    records = [Srv(20, 1, 80, "c"), Srv(10, 2, 81, "b"), Srv(10, 1, 80, "a"), Srv(10, 1, 82, "b")]
    groups, bad = levels(records, SERVICE)
    assert [[(e.host, e.port, e.weight) for e in group] for group in groups] == [
        [("a", 80, 1), ("b", 81, 2), ("b", 82, 1)],
        [("c", 80, 1)],
    ]
    assert bad == ()
    for seed in range(5):
        shuffled = list(records)
        Random(seed).shuffle(shuffled)
        assert levels(shuffled, SERVICE) == (groups, ())


def test_the_target_is_the_authority_and_what_tls_verifies() -> None:
    plain = levels([Srv(0, 0, 8080, "a.internal")], SERVICE)[0][0][0]
    assert (plain.authority, plain.server_name, plain.scheme) == (b"a.internal:8080", None, "http")
    tls = Upstream("orders", SERVICE.source, scheme="https", tls=TlsSettings())
    assert levels([Srv(0, 0, 443, "a.internal")], tls)[0][0][0].server_name == "a.internal"
    named = Upstream("orders", SERVICE.source, scheme="https", tls=TlsSettings(server_name="orders"))
    assert levels([Srv(0, 0, 443, "a.internal")], named)[0][0][0].server_name == "orders"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Srv(0, 0, 0, "a"), "target 'a': port 0"),
        (Srv(0, 0, 80, "a b"), "target 'a b': no name of a host"),
        (Srv(0, 0, 80, r"a\.b"), r"target 'a\\.b': no name of a host"),
        (Srv(0, 0, 80, "x" * 64), f"target '{'x' * 64}': no name of a host"),
    ],
)
def test_what_is_no_endpoint_is_left_out_alone(record: Srv, why: str) -> None:
    groups, bad = levels([record, Srv(0, 5, 80, "good")], SERVICE)
    assert [e.host for e in groups[0]] == ["good"]
    assert bad == (why,)


def test_a_target_may_be_an_address() -> None:
    ((endpoint,),), _ = levels([Srv(0, 0, 80, "10.0.0.1")], SERVICE)
    assert (endpoint.host, endpoint.authority) == ("10.0.0.1", b"10.0.0.1:80")


def test_one_address_and_port_is_one_endpoint_with_the_weight_of_all() -> None:
    one, two = Endpoint("http", "10.0.0.1", 80, 2), Endpoint("http", "10.0.0.1", 80, 4)
    other = Endpoint("http", "10.0.0.1", 81, 3)
    assert merged([one, other, two]) == (Endpoint("http", "10.0.0.1", 80, 2), Endpoint("http", "10.0.0.1", 81, 1))
    assert merged([]) == ()


def test_the_next_priority_only_when_the_first_has_nothing_to_dial() -> None:
    groups, _ = levels([Srv(1, 0, 80, "a"), Srv(2, 0, 80, "b"), Srv(3, 0, 80, "c")], SERVICE)
    deny = ()
    known: dict[str, tuple[str, ...]] = {"a": ("10.0.0.1",), "b": ("10.0.0.2",), "c": ("10.0.0.3",)}
    assert places(best(groups, known.__getitem__, deny)[0]) == [("10.0.0.1:80", 1)]
    known["a"] = ()
    assert places(best(groups, known.__getitem__, deny)[0]) == [("10.0.0.2:80", 1)]
    known["b"] = ("0.0.0.0",)
    endpoints, refused = best(groups, known.__getitem__, deny)
    assert places(endpoints) == [("10.0.0.3:80", 1)]
    assert refused == ("0.0.0.0 is not an address of one host",)


# -- the loop ---------------------------------------------------------------------------


class Dns:
    """Answers that change between rounds; an exception is raised."""

    def __init__(self) -> None:
        self.service: Service | Exception = RegistryError("nobody asked for")
        self.hosts: dict[str, Addresses | Exception] = {}
        self.asked: list[str] = []

    def srv(self, name: str) -> Service:
        self.asked.append(f"SRV {name}")
        if isinstance(self.service, Exception):
            raise self.service
        return self.service

    def addresses(self, name: str) -> Addresses:
        self.asked.append(name)
        found = self.hosts.get(name, Addresses((), 5.0))
        if isinstance(found, Exception):
            raise found
        return found


class Stop:
    """Lets the clock pass instead of waiting; between rounds the test's own steps are taken."""

    def __init__(self, clock: FakeClock, *steps: object) -> None:
        self.clock = clock
        self.steps = list(steps)
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return not self.steps

    def wait(self, timeout: float) -> None:
        self.waits.append(timeout)
        self.clock.advance(timeout)
        step = self.steps.pop(0)
        if callable(step):
            step()


def records(
    *targets: str, ttl: float = 30.0, addresses: Mapping[str, tuple[str, ...]] | None = None, priority: int = 0
) -> Service:
    return Service(tuple(Srv(priority, 1, 80, target) for target in targets), addresses or {}, ttl)


def run(
    dns: Dns, /, *steps: object, drawn: float = 0.5, clock: FakeClock | None = None, **settings: object
) -> tuple[DnsSrvProvider, list[Update], list[float]]:
    """As many rounds as there are steps; each step is taken after its round."""
    clock = clock or FakeClock()
    discovery = DiscoverySettings(**settings)  # type: ignore[arg-type]
    provider = DnsSrvProvider(SERVICE, "_http._tcp.orders", dns, discovery, clock, lambda: drawn)
    told: list[Update] = []
    stop = Stop(clock, *steps)
    provider.run(told.append, stop)
    return provider, told, stop.waits


def test_targets_are_looked_up_and_an_answer_is_kept_for_its_ttl() -> None:
    dns = Dns()
    dns.service = records("a", "b", ttl=20.0)
    dns.hosts = {"a": Addresses(("10.0.0.1",), 30.0), "b": Addresses(("10.0.0.2", "::1"), 30.0)}
    provider, told, waits = run(dns, None, None, drawn=1.0)
    assert places(told[0].endpoints) == [("10.0.0.1:80", 2), ("10.0.0.2:80", 1), ("[::1]:80", 1)]
    assert (told[0].error, provider.status.last_error) == ("", "")
    assert waits[0] == pytest.approx(20.0)
    # The names are good for longer.
    assert Counter(dns.asked) == {"SRV _http._tcp.orders": 2, "a": 1, "b": 1}


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_nothing_is_kept_for_longer_than_its_ttl_nor_asked_for_twice_a_second(drawn: float) -> None:
    for ttl in (1.0, 1.5, 7.0, 30.0):
        dns = Dns()
        dns.service = records("a", ttl=ttl)
        dns.hosts = {"a": Addresses(("10.0.0.1",), 29.0)}
        _, _, waits = run(dns, None, None, None, drawn=drawn)
        assert all(1.0 <= wait <= ttl for wait in waits)


def test_the_shortest_ttl_of_a_target_makes_a_round_too() -> None:
    dns = Dns()
    dns.service = records("a", "b")
    dns.hosts = {"a": Addresses(("10.0.0.1",), 4.4), "b": Addresses(("10.0.0.2",), 30.0)}
    _, _, waits = run(dns, None, None)
    assert waits == [pytest.approx(4.0)] * 2
    assert Counter(dns.asked) == {"SRV _http._tcp.orders": 1, "a": 2, "b": 1}


def test_addresses_that_came_along_save_look_ups() -> None:
    dns = Dns()
    dns.service = records("a", "b", addresses={"a": ("10.0.0.1",), "b": ("::1",)})
    _, told, _ = run(dns, None, None)
    assert places(told[1].endpoints) == [("10.0.0.1:80", 1), ("[::1]:80", 1)]
    assert dns.asked == ["SRV _http._tcp.orders"] * 2


def test_a_target_whose_addresses_do_not_come_along_any_more_is_looked_up() -> None:
    dns = Dns()
    dns.service = records("a", "b", addresses={"a": ("10.0.0.1",), "b": ("10.0.0.2",)})
    dns.hosts["b"] = Addresses(("10.0.0.3",), 30.0)

    def less() -> None:
        dns.service = records("a", "b", addresses={"a": ("10.0.0.1",)})

    _, told, _ = run(dns, less, None)
    assert places(told[1].endpoints) == [("10.0.0.1:80", 1), ("10.0.0.3:80", 1)]
    assert dns.asked == ["SRV _http._tcp.orders", "SRV _http._tcp.orders", "b"]


def test_no_record_is_an_empty_group_and_an_answer() -> None:
    dns = Dns()
    dns.service = records("a", addresses={"a": ("10.0.0.1",)})

    def gone() -> None:
        dns.service = records(ttl=5.0)

    provider, told, _ = run(dns, gone, None)
    assert told[1] == Update("orders", ())
    assert provider.status.last_error == ""


def test_a_failure_keeps_the_records_and_is_tried_again_sooner_then_later() -> None:
    dns = Dns()
    dns.service = records("a", addresses={"a": ("10.0.0.1",)}, ttl=1.0)
    dns.hosts["a"] = Addresses(("10.0.0.1",), 600.0)

    def fail() -> None:
        dns.service = RegistryError("SERVFAIL")

    def heal() -> None:
        dns.service = records("b", addresses={"b": ("10.0.0.2",)})

    provider, told, waits = run(dns, fail, None, None, None, None, None, heal, None)
    assert [places(u.endpoints) for u in told] == [[("10.0.0.1:80", 1)]] * 7 + [[("10.0.0.2:80", 1)]]
    assert [u.error for u in told] == ["", *["SERVFAIL"] * 6, ""]
    assert waits[1:7] == [pytest.approx(wait) for wait in (1, 2, 4, 8, 16, 30 / 1.1)]
    assert provider.status.last_error == ""


def test_a_server_that_is_back_is_seen_within_the_longest_ttl() -> None:
    dns = Dns()
    dns.service = RegistryError("no answer")
    _, _, waits = run(dns, *[None] * 5, dns=DnsSettings(ttl=3.3))
    assert waits == [pytest.approx(wait) for wait in (1, 2, 3, 3, 3)]
    dns.service = records("a", ttl=600.0)
    dns.hosts["a"] = RegistryError("no answer")
    _, _, waits = run(dns, *[None] * 5, dns=DnsSettings(ttl=3.3))
    assert waits == [pytest.approx(wait) for wait in (1, 2, 3, 3, 3)]


def test_ten_minutes_without_a_server_are_not_noticed() -> None:
    dns = Dns()
    dns.service = records("a", ttl=5.0)
    dns.hosts["a"] = Addresses(("10.0.0.1",), 5.0)
    clock = FakeClock(0.0)

    def away() -> None:
        dns.service = dns.hosts["a"] = RegistryError("no answer")

    def back() -> None:
        dns.service = records("b", ttl=5.0)
        dns.hosts["b"] = Addresses(("10.0.0.2",), 5.0)

    # Records and address have each their own backoff; they drift apart or stay together.
    _, told, waits = run(dns, away, *[None] * 30, back, None, clock=clock)
    assert sum(waits) >= 600
    assert {tuple(places(u.endpoints) or ()) for u in told[:-1]} == {(("10.0.0.1:80", 1),)}
    assert places(told[-1].endpoints) == [("10.0.0.2:80", 1)]
    assert max(waits) <= 30


def test_nothing_known_is_a_failure_and_not_an_empty_group() -> None:
    dns = Dns()
    dns.service = RegistryError("no answer from 10.0.0.53:53")
    provider, told, waits = run(dns, None, None)
    assert told == [Update("orders", None, "no answer from 10.0.0.53:53")] * 2
    assert waits == [1.0, 2.0]
    assert provider.status.last_success is None


def test_when_the_records_fail_their_targets_are_looked_up_all_the_same() -> None:
    dns = Dns()
    dns.service = records("a", addresses={"a": ("10.0.0.1",)}, ttl=1.0)
    dns.hosts["a"] = Addresses(("10.0.0.9",), 30.0)

    def fail() -> None:
        dns.service = RegistryError("SERVFAIL")

    _, told, _ = run(dns, fail, None)
    assert told[1].endpoints is not None
    assert (places(told[1].endpoints), told[1].error) == ([("10.0.0.9:80", 1)], "SERVFAIL")


def test_one_target_that_cannot_be_looked_up_keeps_its_addresses() -> None:
    dns = Dns()
    dns.service = records("a", "b", ttl=1.0)
    dns.hosts = {"a": Addresses(("10.0.0.1",), 1.0), "b": Addresses(("10.0.0.2",), 1.0)}

    def fail() -> None:
        dns.hosts = {"a": RegistryError("a A: SERVFAIL"), "b": Addresses(("10.0.0.3",), 1.0)}

    provider, told, _ = run(dns, fail, None)
    assert (places(told[1].endpoints), told[1].error) == ([("10.0.0.1:80", 1), ("10.0.0.3:80", 1)], "a A: SERVFAIL")
    assert provider.status.last_error == "a A: SERVFAIL"


def test_new_targets_that_cannot_be_looked_up_leave_the_old_group() -> None:
    dns = Dns()
    dns.service = records("a", addresses={"a": ("10.0.0.1",)}, ttl=1.0)
    dns.hosts["b"] = RegistryError("b A: SERVFAIL")

    def moved() -> None:
        dns.service = records("b", ttl=1.0)

    _, told, _ = run(dns, moved, None)
    assert told[1] == Update("orders", None, "b A: SERVFAIL")


def test_a_target_that_decidedly_has_no_address_is_no_endpoint() -> None:
    dns = Dns()
    dns.service = records("a", ttl=1.0)
    _, told, _ = run(dns, None)
    assert told == [Update("orders", ())]


def test_a_name_that_fails_has_a_pace_of_its_own() -> None:
    dns = Dns()
    dns.service = records("a", "b", ttl=1.0)
    dns.hosts = {"a": Addresses(("10.0.0.1",), 600.0), "b": RegistryError("b A: SERVFAIL")}
    _, _, waits = run(dns, *[None] * 16)
    asked = Counter(dns.asked)
    assert waits == [1.0] * 16
    assert (asked["SRV _http._tcp.orders"], asked["a"]) == (16, 1)
    # Due after 1, 3, 7 and 15 s, and up to a second earlier where there is a round anyway.
    assert 5 <= asked["b"] <= 8


def test_denied_and_bad_targets_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.providers")
    dns = Dns()
    dns.service = Service(
        (Srv(0, 0, 0, "a"), Srv(0, 0, 80, "evil"), Srv(1, 0, 80, "b")),
        {"evil": ("169.254.169.254",), "b": ("10.0.0.2",)},
        1.0,
    )
    _, told, _ = run(dns, None, None)
    assert [places(u.endpoints) for u in told] == [[("10.0.0.2:80", 1)]] * 2
    assert [r.getMessage() for r in caplog.records] == [
        "upstream orders: not an endpoint: 169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes",
        "upstream orders: not an endpoint: target 'a': port 0",
    ]


@pytest.mark.parametrize(
    ("servers", "warned"), [((), False), (("127.0.0.1:53",), False), (("127.0.0.1:53", "198.51.100.1:53"), True)]
)
def test_loopback_from_servers_elsewhere_is_used_and_logged(
    servers: tuple[str, ...], warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registries.dns_servers.of_system", lambda: ("[::1]:53",))
    dns = Dns()
    dns.service = records("a", addresses={"a": ("127.0.0.1",)}, ttl=1.0)
    _, told, _ = run(dns, None, None, dns=DnsSettings(servers))
    assert places(told[0].endpoints) == [("127.0.0.1:80", 1)]
    warning = "upstream orders: 127.0.0.1:80 is a loopback address, but the registry is on another machine"
    assert caplog.messages == [warning] * warned


def test_a_group_of_denied_targets_is_empty_and_says_why() -> None:
    dns = Dns()
    dns.service = records("evil", addresses={"evil": ("169.254.169.254", "fd00:ec2::254", "fe80::1%eth0")}, ttl=1.0)
    _, (told,), _ = run(dns, None)
    assert told == Update(
        "orders", (), refused=(
            "169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes",
            "fd00:ec2::254 is in fd00:ec2::254/128, which discovery.deny excludes",
            "fe80::1%eth0 has a zone",
        ),
    )  # fmt: skip


def test_a_fault_of_our_own_is_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    dns = Dns()
    dns.service = KeyError("x")

    def heal() -> None:
        dns.service = records("a", addresses={"a": ("10.0.0.1",)})

    _, told, _ = run(dns, heal, None)
    assert told[0] == Update("orders", None, "KeyError: 'x'")
    assert places(told[1].endpoints) == [("10.0.0.1:80", 1)]
    assert any(record.exc_info for record in caplog.records)


# -- names in the file that DNS servers are asked for -----------------------------------


def test_names_of_the_file_have_the_pace_of_their_ttls() -> None:
    clock, dns = FakeClock(), Dns()
    dns.hosts["api"] = Addresses(("10.0.0.1",), 5.5)
    endpoints = (Endpoint("http", "api", 80),)
    names = Names(dns.addresses, clock, lambda: 0.5)
    provider = StaticProvider(
        Upstream("legacy", StaticSource(endpoints)), endpoints, DiscoverySettings(), names, clock, lambda: 0.5
    )
    told: list[Update] = []
    stop = Stop(clock, None, lambda: dns.hosts.update(api=RegistryError("api A: SERVFAIL")), None, None, None)
    provider.run(told.append, stop)
    assert [places(u.endpoints) for u in told] == [[("10.0.0.1:80", 1)]] * 5
    assert [u.error for u in told] == ["", "", *["api A: SERVFAIL"] * 3]
    assert stop.waits == [pytest.approx(wait) for wait in (5.0, 5.0, 1.0, 2.0, 4.0)]


def test_addresses_of_the_version_that_could_not_be_asked_for_stay() -> None:
    clock, dns = FakeClock(), Dns()
    names = Names(dns.addresses, clock, lambda: 0.5)
    dns.hosts["api"] = Addresses(("10.0.0.1", "::1"), 1.0)
    names.refresh(["api"])
    clock.advance(2)
    dns.hosts["api"] = Addresses(("10.0.0.2",), 1.0, unknown=6)
    assert names.refresh(["api"]) == ()
    assert names.addresses("api") == ("10.0.0.2", "::1")
    clock.advance(2)
    dns.hosts["api"] = Addresses(("10.0.0.2",), 1.0)
    names.refresh(["api"])
    assert names.addresses("api") == ("10.0.0.2",)


def test_no_address_is_an_answer() -> None:
    clock, dns = FakeClock(), Dns()
    endpoints = (Endpoint("http", "api", 80),)
    names = Names(dns.addresses, clock, lambda: 0.5)
    provider = StaticProvider(
        Upstream("legacy", StaticSource(endpoints)), endpoints, DiscoverySettings(), names, clock, lambda: 0.5
    )
    told: list[Update] = []
    provider.run(told.append, Stop(clock, None))
    assert told == [Update("legacy", ())]


# -- the table --------------------------------------------------------------------------


def test_the_provider_of_srv_records() -> None:
    made = providers.make(SERVICE, DiscoverySettings(dns=DnsSettings(("127.0.0.1:53",))))
    assert isinstance(made, DnsSrvProvider)
    assert made.upstream == "orders"
