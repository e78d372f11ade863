"""DNS: the client against a server that misbehaves as told, the providers against it, dnsmasq and Consul."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.rdatatype
import gevent
import pytest
import trustme
from gevent.event import Event

from gateway import providers
from gateway.app import Gateway
from gateway.model import (
    AccessLogSettings,
    Config,
    ConsulSettings,
    ConsulSource,
    DiscoverySettings,
    DnsSettings,
    DnsSrvSource,
    Endpoint,
    Match,
    Route,
    StaticSource,
    TlsSettings,
    Upstream,
)
from gateway.providers import dns_srv, names, static
from gateway.providers.base import Update
from gateway.registries import RegistryError, dns_servers, pacing
from gateway.registries import dns as dns_client
from gateway.registries.dns import AT_ONCE, Addresses, DnsApi, Service, Srv
from gateway.testing import FakeUpstream, answer
from tests import dns_server
from tests.dns_server import DnsServer
from tests.dnsmasq_server import Dnsmasq
from tests.services import Consul, free_port

NAME = "_http._tcp.orders.test"
TWO = f"""
{NAME} 20 SRV 10 5 8080 a.test.
{NAME} 20 SRV 10 1 8081 b.test.
a.test 20 A 10.0.0.1
b.test 20 A 10.0.0.2
b.test 20 AAAA ::1
"""


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as running:
        running.zone(TWO)
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are silent are not waited for as long as in earnest."""
    monkeypatch.setattr(dns_servers, "TRIES", ((0.2, 1232), (0.4, None), (0.4, None)))


@pytest.fixture
def hasty(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are short: nothing is kept for longer than 0.2 s, and failures are soon over."""
    for module in (dns_client, names, dns_srv, static):
        monkeypatch.setattr(module, "LEAST_TTL", 0.2)
    monkeypatch.setattr(dns_client, "EMPTY_TTL", 0.2)
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(pacing, "LONGEST_PAUSE", 0.4)


def api(*servers: DnsServer | str, ttl: float = 30.0) -> DnsApi:
    return DnsApi(DnsSettings(tuple(one if isinstance(one, str) else one.address for one in servers), ttl))


def refused() -> str:
    """Where nothing listens."""
    return f"127.0.0.1:{free_port()}"


# -- the client: answers ------------------------------------------------------------------


def test_records_and_the_addresses_that_came_along(server: DnsServer) -> None:
    assert api(server).srv(NAME) == Service(
        (Srv(10, 1, 8081, "b.test"), Srv(10, 5, 8080, "a.test")),
        {"a.test": ("10.0.0.1",), "b.test": ("10.0.0.2", "::1")},
        20.0,
    )
    server.adds = False
    assert api(server).srv(NAME).addresses == {}
    assert [one.kind for one in server.asked] == ["SRV", "SRV"]


@pytest.mark.parametrize(("ttl", "kept"), [(0, 1.0), (1, 1.0), (2, 2.0), (30, 30.0), (2**31 - 1, 30.0)])
def test_a_ttl_is_kept_within_bounds(server: DnsServer, ttl: int, kept: float) -> None:
    server.zone(f"{NAME} {ttl} SRV 0 0 80 a.test.\na.test {ttl} A 10.0.0.1")
    assert api(server).srv(NAME).ttl == kept
    assert api(server).addresses("a.test") == Addresses(("10.0.0.1",), min(kept, 5.0) if ttl > 2**31 else kept)
    assert api(server, ttl=1.5).srv(NAME).ttl == min(kept, 1.5)


def test_the_least_ttl_counts(server: DnsServer) -> None:
    server.zone(f"{NAME} 20 SRV 0 0 80 a.test.\na.test 3 A 10.0.0.1\na.test 2 AAAA ::1")
    assert api(server).srv(NAME).ttl == 2.0
    assert api(server).addresses("a.test").ttl == 2.0


def test_case_and_the_trailing_dot_do_not_matter(server: DnsServer) -> None:
    server.zone("_http._tcp.orders.test 9 SRV 0 0 80 A.Test.\nA.Test 9 A 10.0.0.1")
    expected = Service((Srv(0, 0, 80, "a.test"),), {"a.test": ("10.0.0.1",)}, 9.0)
    for name in ("_http._tcp.orders.test", "_HTTP._tcp.Orders.TEST."):
        assert api(server).srv(name) == expected
    assert api(server).addresses("A.TEST.").hosts == ("10.0.0.1",)


def test_names_are_absolute(server: DnsServer) -> None:
    server.zone("a 9 A 10.0.0.1")
    assert api(server).addresses("a").hosts == ("10.0.0.1",)
    assert {one.name for one in server.asked} == {"a"}


def test_one_record_twice_is_one_and_one_target_may_have_two_ports(server: DnsServer) -> None:
    server.zone(f"{NAME} 9 SRV 0 0 80 a.test.\n{NAME} 9 SRV 0 0 80 a.test.\n{NAME} 9 SRV 0 0 81 a.test.")
    assert api(server).srv(NAME).records == (Srv(0, 0, 80, "a.test"), Srv(0, 0, 81, "a.test"))


def test_the_root_as_target_is_no_service(server: DnsServer) -> None:
    server.zone(f"{NAME} 9 SRV 0 0 0 .")
    assert api(server).srv(NAME) == Service((), {}, 5.0)


@pytest.mark.parametrize(
    ("zone", "kept"),
    [
        ("x.test 9 A 10.0.0.1", 5.0),  # NXDOMAIN
        (f"{NAME} 9 A 10.0.0.1", 5.0),  # NOERROR without a record
        (". 900 SOA ns.test. admin.test. 1 2 3 4 2", 2.0),  # RFC 2308: the least of TTL and minimum
        (". 3 SOA ns.test. admin.test. 1 2 3 4 900", 3.0),
    ],
)
def test_there_is_none_is_an_answer_kept_for_a_short_time(server: DnsServer, zone: str, kept: float) -> None:
    server.zone(zone)
    assert api(server).srv(NAME) == Service((), {}, kept)
    assert api(server).addresses("none.test") == Addresses((), kept)


def test_aliases_are_followed(server: DnsServer) -> None:
    server.zone(f"alias.test 4 CNAME {NAME}.\n{TWO}\nwww.test 9 CNAME b.test.")
    found = api(server).srv("alias.test")
    assert ([r.target for r in found.records], found.ttl) == (["b.test", "a.test"], 4.0)
    assert api(server).addresses("www.test").hosts == ("10.0.0.2", "::1")


def test_an_alias_whose_target_is_not_in_the_answer_is_asked_for(server: DnsServer) -> None:
    server.zone(f"alias.test 4 CNAME {NAME}.\n{TWO}")

    def alias_alone(message: dns_server.Message, protocol: str) -> list[bytes]:
        message.answer = message.answer[:1]
        return dns_server.honest(message, protocol)

    server.fault(alias_alone, "SRV", "alias.test")
    assert len(api(server).srv("alias.test").records) == 2
    # A server that asks others itself has said all there is.
    server.recursive = True
    assert api(server).srv("alias.test").records == ()


def test_aliases_that_go_round_are_an_error(server: DnsServer) -> None:
    server.zone("alias.test 4 CNAME other.test.\nother.test 4 CNAME alias.test.")

    def alias_alone(message: dns_server.Message, protocol: str) -> list[bytes]:
        message.answer = message.answer[:1]
        return dns_server.honest(message, protocol)

    for name in ("alias.test", "other.test"):
        server.fault(alias_alone, "SRV", name)
    with pytest.raises(RegistryError, match=r"alias.test SRV: too many aliases"):
        api(server).srv("alias.test")
    assert server.count(kind="SRV") == 8


def test_addresses_of_both_versions(server: DnsServer) -> None:
    server.zone("a.test 9 A 10.0.0.2\na.test 9 A 10.0.0.1\na.test 9 AAAA ::1\na.test 9 AAAA ::ffff:10.0.0.3")
    assert api(server).addresses("a.test") == Addresses(("10.0.0.1", "10.0.0.2", "10.0.0.3", "::1"), 9.0)


def test_one_version_that_fails_is_not_there_is_none(server: DnsServer) -> None:
    server.zone("a.test 9 A 10.0.0.1\nb.test 9 AAAA ::1")
    server.fault(dns_server.rcode("SERVFAIL"), "AAAA", "a.test")
    assert api(server).addresses("a.test") == Addresses(("10.0.0.1",), 9.0, unknown=6)
    server.fault(dns_server.rcode("SERVFAIL"), "A", "b.test")
    assert api(server).addresses("b.test") == Addresses(("::1",), 9.0, unknown=4)
    server.fault(dns_server.rcode("SERVFAIL"), "A", "a.test")
    with pytest.raises(RegistryError, match=r"a\.test A: SERVFAIL from 127\.0\.0\.1"):
        api(server).addresses("a.test")
    server.fault(None, "AAAA", "a.test")
    with pytest.raises(RegistryError):  # there is no IPv6 address, and nobody knows of an IPv4 one
        api(server).addresses("a.test")


# -- the client: what is no answer --------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (dns_server.rcode("SERVFAIL"), "SERVFAIL"),
        (dns_server.rcode("REFUSED"), "REFUSED"),
        (dns_server.rcode("NOTIMP"), "NOTIMP"),
        (dns_server.rcode("FORMERR"), "FORMERR"),
        (dns_server.garbage, "garbage"),
        (dns_server.half, "garbage"),
        (dns_server.referral, "a referral"),
    ],
)
def test_what_is_no_answer_is_an_error(server: DnsServer, fault: dns_server.Fault, told: str) -> None:
    server.fault(fault, "SRV")
    with pytest.raises(RegistryError, match=rf"^{NAME} SRV: {told}[^,\n]* from {server.address}$"):
        api(server).srv(NAME)


def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(RegistryError, match="Connection refused from 127"):
        api(refused()).srv(NAME)


@pytest.mark.usefixtures("quick")
def test_silence_is_bounded_and_asked_about_again(server: DnsServer) -> None:
    server.fault(dns_server.silent, "SRV")
    with pytest.raises(RegistryError, match=f"{NAME} SRV: no answer from {server.address}"):
        api(server).srv(NAME)
    # A lost packet is not the end, nor is something on the way that does not let EDNS pass.
    assert [one.edns for one in server.asked] == [True, False, False]
    server.fault(dns_server.once(dns_server.silent), "SRV")
    assert len(api(server).srv(NAME).records) == 2


def test_all_of_it_together_is_bounded(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_servers, "LIFETIME", 0.2)
    server.fault(dns_server.silent, "SRV")
    with pytest.raises(RegistryError, match="no answer"):
        api(server).srv(NAME)
    assert server.count() == 1


def test_replies_of_nobody_are_not_looked_at(server: DnsServer) -> None:
    server.fault(dns_server.forged_first, "SRV")
    assert len(api(server).srv(NAME).records) == 2
    assert server.count() == 1


def test_tcp_when_an_answer_is_cut_short(server: DnsServer) -> None:
    server.fault(dns_server.truncated, "SRV")
    assert len(api(server).srv(NAME).records) == 2
    assert [one.protocol for one in server.asked] == ["udp", "tcp"]


def test_a_large_service(server: DnsServer) -> None:
    records = "".join(f"{NAME} 9 SRV 0 0 80 n{n}.test.\nn{n}.test 9 A 10.0.{n // 250}.{n % 250}\n" for n in range(600))
    server.zone(records)
    found = api(server).srv(NAME)
    assert (len(found.records), len(found.addresses)) == (600, 600)
    assert server.count(protocol="tcp") == 1


@pytest.mark.usefixtures("quick")
def test_half_an_answer_by_tcp_is_an_error(server: DnsServer) -> None:
    def cut(message: dns_server.Message, protocol: str) -> list[bytes]:
        return [] if protocol == "tcp" else dns_server.truncated(message, protocol)

    server.fault(cut, "SRV")
    with pytest.raises(RegistryError, match="half an answer"):
        api(server).srv(NAME)


def test_a_server_that_does_not_know_edns(server: DnsServer) -> None:
    server.fault(dns_server.without_edns, "SRV")
    assert len(api(server).srv(NAME).records) == 2
    assert [one.edns for one in server.asked] == [True, False]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [dns_server.silent, dns_server.rcode("SERVFAIL"), dns_server.garbage, None])
def test_the_next_server_answers_and_is_asked_first_from_then_on(
    server: DnsServer, fault: dns_server.Fault | None
) -> None:
    with DnsServer() as first:
        first.fault(fault or dns_server.silent, "SRV")
        client = api(first if fault else refused(), server)
        for _ in range(3):
            assert len(client.srv(NAME).records) == 2
        assert first.count() == (1 if fault else 0)
        assert server.count() == 3


def test_a_server_at_ipv6() -> None:
    with DnsServer("::1") as server:
        server.zone(TWO)
        assert len(api(server).srv(NAME).records) == 2


def test_servers_of_the_system_are_read_anew(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [refused()]
    monkeypatch.setattr(dns_servers, "of_system", lambda: tuple(named))
    client = api()
    with pytest.raises(RegistryError):
        client.srv(NAME)
    named[:] = [server.address]
    assert len(client.srv(NAME).records) == 2


@pytest.mark.usefixtures("quick")
def test_a_server_of_the_system_that_is_no_address_is_passed_over(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_servers, "of_system", lambda: ("ns.example:53", server.address))
    assert len(api().srv(NAME).records) == 2


# -- the client: many at once -------------------------------------------------------------


def test_one_question_at_a_time_and_whoever_leaves_spoils_nothing(server: DnsServer) -> None:
    gate = threading.Event()
    server.fault(dns_server.after(gate), "SRV")
    client = api(server)
    asking = [gevent.spawn(client.srv, name) for name in (NAME, NAME.upper(), f"{NAME}.") * 3]
    while not server.count():
        gevent.sleep(0.005)
    asking[0].kill()
    asking[4].kill()
    gate.set()
    gevent.joinall(asking, timeout=10)
    assert sum(isinstance(one.value, Service) for one in asking) == 7
    assert server.count() == 1


def test_when_nobody_waits_any_more_the_question_ends(server: DnsServer) -> None:
    gate = threading.Event()
    server.fault(dns_server.after(gate), "A")
    client = api(server)
    asking = [gevent.spawn(client.addresses, "a.test") for _ in range(2)]
    while not server.count(kind="A"):
        gevent.sleep(0.005)
    gevent.killall(asking)
    assert client._flights == {}
    gate.set()
    assert client.addresses("a.test").hosts == ("10.0.0.1",)
    assert server.count(kind="A") == 2


def test_questions_at_once_are_bounded_and_the_hub_goes_on(server: DnsServer) -> None:
    gate = threading.Event()
    server.fault(dns_server.after(gate), "SRV")
    client = api(server)
    asking = [gevent.spawn(client.srv, f"n.d{n}.test") for n in range(3 * AT_ONCE)]
    while server.count() < AT_ONCE:
        gevent.sleep(0.005)
    for _ in range(20):
        gevent.sleep(0.001)  # would not come back from a look-up that blocks
    assert server.count() == AT_ONCE
    gate.set()
    gevent.joinall(asking, timeout=10)
    assert all(one.value == Service((), {}, 5.0) for one in asking)


def nothing_is_left(client: DnsApi) -> None:
    with gevent.Timeout(10, AssertionError(f"{client._flights} {client._domains}")):
        while client._flights or client._domains:
            gevent.sleep(0.005)


def test_a_silent_domain_leaves_places_for_others(server: DnsServer) -> None:
    """Its names have half of the places at most, and later places that no other names need."""
    gate = threading.Event()
    client = api(server)
    for number in range(2 * AT_ONCE):
        server.fault(dns_server.after(gate), "A", f"n{number}.silent.test")
    asking = [gevent.spawn(client.addresses, f"n{number}.silent.test") for number in range(2 * AT_ONCE)]
    while server.count(kind="A") < dns_client.AT_ONCE_IN_DOMAIN:
        gevent.sleep(0.005)
    assert client.addresses("a.test").hosts == ("10.0.0.1",)
    assert server.count(kind="A") == dns_client.AT_ONCE_IN_DOMAIN + 1
    gevent.killall(asking)
    gate.set()
    nothing_is_left(client)


def test_questions_that_were_slow_have_places_of_their_own(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(dns_client, "SLOW", 0.2)
    monkeypatch.setattr(dns_client, "LIFETIME", 0.3)
    # One domain each, as if whole servers were silent.
    names = [f"n.d{number}.test" for number in range(2 * AT_ONCE)]
    for name in names:
        for kind in ("A", "AAAA"):
            server.fault(dns_server.silent, kind, name)
    client = api(server)
    first = [gevent.spawn(_trouble, client, name) for name in names]
    gevent.joinall(first, timeout=20)
    assert {each.value for each in first} == {"no answer in 0.3 s"}
    monkeypatch.setattr(dns_client, "LIFETIME", 30.0)
    before = server.count(kind="A")
    again = [gevent.spawn(_trouble, client, name) for name in names]
    while server.count(kind="A") < before + AT_ONCE:
        gevent.sleep(0.005)
    # As many as may be open are open, and another name is answered all the same.
    assert client.addresses("a.test").hosts == ("10.0.0.1",)
    gevent.killall(again)
    nothing_is_left(client)


def _trouble(client: DnsApi, name: str) -> str:
    try:
        return str(client.addresses(name))
    except RegistryError as error:
        return str(error).partition(": ")[2]


def test_the_time_in_the_queue_does_not_count(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_client, "LIFETIME", 0.5)
    client = api(server)
    with contextlib.ExitStack() as places:
        for _ in range(AT_ONCE):
            places.enter_context(client._open[dns.rdatatype.SRV, False])
        asking = gevent.spawn(client.srv, NAME)
        assert not asking.ready()
        # Longer than an answer may take.
        asking.join(0.7)
    assert len(asking.get(timeout=10).records) == 2


def test_addresses_of_one_version_do_not_wait_for_the_other(server: DnsServer) -> None:
    gate = threading.Event()
    server.fault(dns_server.after(gate), "AAAA")
    client = api(server)
    assert client.addresses("b.test") == Addresses(("10.0.0.2",), 1.0, 6)
    assert client.addresses("b.test") == Addresses(("10.0.0.2",), 1.0, 6)
    gate.set()
    with gevent.Timeout(10):
        while (found := client.addresses("b.test")).unknown:
            gevent.sleep(0.01)
    assert found.hosts == ("10.0.0.2", "::1")
    assert 10.0 < found.ttl <= 20.0
    # All of it by one question of each kind.
    assert (server.count("b.test", "A"), server.count("b.test", "AAAA")) == (1, 1)
    assert (client._flights, client._late) == ({}, {})


def test_late_addresses_that_nobody_comes_for_are_forgotten(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault(dns_server.silent, "AAAA")
    client = api(server)
    client.addresses("a.test")
    client.addresses("b.test")
    assert len(client._late) == 2
    monkeypatch.setattr(dns_client, "LATEST", 0.0)
    # Anew: what is too old counts no more.
    assert client.addresses("a.test").hosts == ("10.0.0.1",)
    assert server.count("a.test", "A") == 2
    assert len(client._late) == 1


def test_addresses_that_cannot_be_reached_wait_for_others(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """AAAA comes first, and this machine has no IPv6."""
    monkeypatch.setattr(dns_client, "_has_route", lambda host: False)
    monkeypatch.setattr(dns_client._routed, "__defaults__", (lambda host: False,))
    gate = threading.Event()
    server.fault(dns_server.after(gate), "A")
    asking = gevent.spawn(api(server).addresses, "b.test")
    while server.count(kind="AAAA") < 1:
        gevent.sleep(0.005)
    asking.join(0.2)
    gate.set()
    assert asking.get(timeout=10).hosts == ("10.0.0.2",)


def test_a_target_with_unreachable_addresses_alone_is_looked_up(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that leave out what does not fit may add the AAAA records only."""
    monkeypatch.setattr(dns_client, "_has_route", lambda host: False)
    monkeypatch.setattr(dns_client._routed, "__defaults__", (lambda host: False,))
    server.zone(f"{NAME} 20 SRV 0 0 80 c.test.\nc.test 20 AAAA 2001:db8::1\n")
    assert api(server).srv(NAME).addresses == {}
    monkeypatch.setattr(dns_client, "_has_route", lambda host: True)
    assert api(server).srv(NAME).addresses == {"c.test": ("2001:db8::1",)}


# -- the providers ------------------------------------------------------------------------


@dataclass
class Running:
    """A provider in a greenlet, and what it said."""

    provider: providers.Provider
    told: list[Update] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    _news: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.greenlet = gevent.spawn(self.provider.run, self._tell, self.stop)

    def _tell(self, update: Update) -> None:
        self.told.append(update)
        self._news.set()

    def until(self, wanted: Callable[[Update], bool], within: float = 30.0) -> Update:
        """The next thing it says that is wanted; what it said before does not count."""
        seen = len(self.told)
        with gevent.Timeout(within, AssertionError(f"{self.told[-3:]}")):
            while True:
                while seen < len(self.told):
                    seen += 1
                    if wanted(self.told[seen - 1]):
                        return self.told[seen - 1]
                self._news.clear()
                self._news.wait()

    def until_at(self, *endpoints: str) -> Update:
        return self.until(lambda update: places(update) == list(endpoints))

    def until_error(self) -> Update:
        return self.until(lambda update: bool(update.error))

    def end(self) -> None:
        self.stop.set()
        self.greenlet.join(10)
        assert self.greenlet.successful()


def places(update: Update) -> list[str] | None:
    """`address` or `address*weight`."""
    if update.endpoints is None:
        return None
    return [e.address if e.weight == 1 else f"{e.address}*{e.weight}" for e in update.endpoints]


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Running] = []

    def start(address: str, name: str = NAME, **more: object) -> Running:
        settings = DiscoverySettings(dns=DnsSettings((address,), 30.0), **more)  # type: ignore[arg-type]
        provider = providers.make(Upstream("u", DnsSrvSource(name)), settings)
        assert provider is not None
        started.append(Running(provider))
        return started[-1]

    yield start
    for running in started:
        running.end()


ONE = f"{NAME} 0 SRV 0 0 80 a.test.\na.test 0 A 10.0.0.1"


@pytest.mark.usefixtures("hasty")
def test_through_everything_that_a_server_does(server: DnsServer, start: Start) -> None:
    server.zone(ONE)
    running = start(server.address)
    running.until_at("10.0.0.1:80")
    for fault in (dns_server.rcode("SERVFAIL"), dns_server.silent):
        server.fault(fault, "SRV")
        assert places(running.until_error()) == ["10.0.0.1:80"]
        server.fault(None, "SRV")
        assert running.until(lambda update: not update.error).endpoints
    # Decidedly not there, in each of three ways.
    for zone in ("x.test 0 A 10.0.0.1", f"{NAME} 0 TXT x", f"{NAME} 0 SRV 0 0 0 ."):
        server.zone(zone)
        assert running.until_at().error == ""
        server.zone(f"{NAME} 0 SRV 0 3 80 a.test.\n{NAME} 0 SRV 0 1 80 b.test.\na.test 0 A 10.0.0.1\nb.test 0 A 10.0.0.2")
        running.until_at("10.0.0.1:80*3", "10.0.0.2:80")
    # Weights alone.
    server.zone(f"{NAME} 0 SRV 0 0 80 a.test.\n{NAME} 0 SRV 0 7 80 b.test.\na.test 0 A 10.0.0.1\nb.test 0 A 10.0.0.2")
    running.until_at("10.0.0.1:80", "10.0.0.2:80*7")


@pytest.mark.usefixtures("hasty")
def test_only_the_address_of_one_target_cannot_be_had(server: DnsServer, start: Start) -> None:
    server.adds = False
    server.zone(f"{NAME} 0 SRV 0 0 80 a.test.\n{NAME} 0 SRV 0 0 80 b.test.\na.test 0 A 10.0.0.1\nb.test 0 A 10.0.0.2")
    running = start(server.address)
    running.until_at("10.0.0.1:80", "10.0.0.2:80")
    server.fault(dns_server.rcode("SERVFAIL"), "A", "a.test")
    server.zone(f"{NAME} 0 SRV 0 0 80 a.test.\n{NAME} 0 SRV 0 0 80 b.test.\na.test 0 A 10.0.0.9\nb.test 0 A 10.0.0.3")
    update = running.until_at("10.0.0.1:80", "10.0.0.3:80")
    assert "a.test A: SERVFAIL" in running.until_error().error
    assert update.endpoints
    server.fault(None, "A", "a.test")
    running.until_at("10.0.0.9:80", "10.0.0.3:80")


@pytest.mark.usefixtures("hasty")
def test_priorities(server: DnsServer, start: Start) -> None:
    first = f"{NAME} 0 SRV 1 0 80 a.test.\n{NAME} 0 SRV 2 0 80 b.test.\nb.test 0 A 10.0.0.2\n"
    server.zone(f"{first}a.test 0 A 10.0.0.1")
    running = start(server.address)
    running.until_at("10.0.0.1:80")
    server.zone(f"{first}a.test 0 TXT nothing")
    running.until_at("10.0.0.2:80")
    server.zone(f"{first}a.test 0 A 169.254.169.254")
    running.until_at("10.0.0.2:80")
    server.zone(f"{first}a.test 0 AAAA ::1")
    running.until_at("[::1]:80")


def test_a_ttl_of_0_is_no_storm(server: DnsServer, start: Start) -> None:
    server.zone(ONE)
    began = time.monotonic()
    one = start(server.address)
    one.until_at("10.0.0.1:80")
    two = start(server.address)
    two.until_at("10.0.0.1:80")
    one.until_at("10.0.0.1:80")
    one.until_at("10.0.0.1:80")
    passed = time.monotonic() - began
    assert server.count(NAME, "SRV") <= 2 * (passed + 1)
    assert server.count(kind="A") == 0


@pytest.mark.parametrize("kill", [True, False])
def test_stopped_in_the_middle_of_a_question(
    server: DnsServer, start: Start, caplog: pytest.LogCaptureFixture, kill: bool
) -> None:
    server.adds = False
    for kind in ("SRV", "A"):
        server.fault(dns_server.silent, kind)
        running = start(server.address)
        while not server.count(kind=kind):
            gevent.sleep(0.005)
        if kill:
            running.greenlet.kill()
        else:
            running.end()
        assert running.told == []
        server.fault(None, "SRV")
    assert caplog.records == []
    until(lambda: dns_client.shared(DnsSettings((server.address,)))._flights == {})


@pytest.mark.usefixtures("hasty")
def test_names_of_the_file_are_asked_of_the_servers_of_the_configuration(server: DnsServer) -> None:
    server.zone("api.test 0 A 10.0.0.1")
    settings = DiscoverySettings(dns=DnsSettings((server.address,)))
    endpoints = (Endpoint("http", "api.test", 80), Endpoint("http", "10.0.0.9", 80))
    provider = providers.make(Upstream("u", StaticSource(endpoints)), settings)
    assert provider is not None
    running = Running(provider)
    running.until_at("10.0.0.1:80", "10.0.0.9:80")
    server.zone("api.test 0 A 10.0.0.2")
    running.until_at("10.0.0.2:80", "10.0.0.9:80")
    server.fault(dns_server.rcode("SERVFAIL"), "A")
    assert places(running.until_error()) == ["10.0.0.2:80", "10.0.0.9:80"]
    server.fault(None, "A")
    server.zone("other.test 0 A 10.0.0.2")
    running.until_at("10.0.0.9:80")
    running.end()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("through", ["file", "srv"])
def test_the_second_kind_of_address_joins_when_it_comes(server: DnsServer, through: str) -> None:
    """The first one is in use meanwhile, and after the second one was given up; it is no error."""
    gate = threading.Event()
    server.adds = False
    server.zone(f"{NAME} 60 SRV 0 0 80 b.test.\nb.test 60 A 10.0.0.2\nb.test 60 AAAA ::1")
    server.fault(dns_server.after(gate), "AAAA")
    source = StaticSource((Endpoint("http", "b.test", 80),)) if through == "file" else DnsSrvSource(NAME)
    provider = providers.make(Upstream("u", source), DiscoverySettings(dns=DnsSettings((server.address,))))
    assert provider is not None
    running = Running(provider)
    assert running.until_at("10.0.0.2:80").error == ""
    gate.set()
    running.until_at("10.0.0.2:80", "[::1]:80")
    running.end()


@pytest.mark.usefixtures("hasty")
def test_names_in_consul_are_asked_of_the_servers_of_the_configuration(server: DnsServer) -> None:
    server.zone("api.test 0 A 10.0.0.1")
    listed = json.dumps([{"Node": {"Node": "n"}, "Service": {"ID": "s", "Address": "api.test", "Port": 80}}]).encode()
    with FakeUpstream(answer(listed, b"X-Consul-Index: 9")) as registry:
        consul = ConsulSettings(address=registry.url, poll=0.2)
        settings = DiscoverySettings(consul=consul, dns=DnsSettings((server.address,)))
        provider = providers.make(Upstream("u", ConsulSource("s")), settings)
        assert provider is not None
        running = Running(provider)
        assert running.until_at("10.0.0.1:80").endpoints[0].authority == b"api.test:80"  # type: ignore[index]
        server.zone("api.test 0 A 10.0.0.2")
        running.until_at("10.0.0.2:80")
        running.end()
    assert server.count("api.test", "A") >= 2


# -- dnsmasq ------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_dnsmasq_changes_hangs_dies_and_comes_back_with_other_data(start: Start) -> None:
    a, b = "host-record=a.test,10.0.0.1", "host-record=b.test,10.0.0.2,::1"
    with Dnsmasq.start(f"srv-host={NAME},a.test,8080,0,0", a, b) as dnsmasq:
        running = start(dnsmasq.address)
        running.until_at("10.0.0.1:8080")
        dnsmasq.restart(f"srv-host={NAME},a.test,8080,0,3", f"srv-host={NAME},b.test,8081,0,2", a, b)
        running.until_at("10.0.0.1:8080*3", "10.0.0.2:8081", "[::1]:8081")
        dnsmasq.freeze()
        assert "no answer" in running.until_error().error
        assert len(running.told[-1].endpoints or ()) == 3
        dnsmasq.thaw()
        running.until(lambda update: not update.error)
        dnsmasq.down()
        assert "Connection refused" in running.until_error().error
        assert len(running.told[-1].endpoints or ()) == 3
        # By CNAME, to a target whose addresses are not in the answer.
        dnsmasq.up("srv-host=_real.test,c.test,8083,0,0", f"cname={NAME},_real.test", "address=/c.test/10.0.0.3")
        running.until(lambda update: not update.error)
        dnsmasq.restart("address=/c.test/10.0.0.3", f"srv-host={NAME},c.test,8083,0,0")
        running.until_at("10.0.0.3:8083")
        dnsmasq.restart(a)
        running.until_at()


# -- Consul -------------------------------------------------------------------------------


class ConsulDns(Consul):
    """An agent that answers DNS as well."""

    def __init__(self) -> None:
        super().__init__()
        self.dns = free_port()
        command = self.server.command
        command[command.index("-dns-port") + 1] = str(self.dns)


@pytest.mark.usefixtures("hasty")
def test_srv_records_of_consul(start: Start) -> None:
    with ConsulDns.start() as agent:
        assert isinstance(agent, ConsulDns)
        agent.register("web", "w1", 8001, check={"CheckID": "w1", "TTL": "600s", "Status": "passing"})
        agent.register("web", "w2", 8002, Weights={"Passing": 4, "Warning": 1})
        running = start(f"127.0.0.1:{agent.dns}", "web.service.consul")
        running.until_at("127.0.0.1:8001", "127.0.0.1:8002*4")
        assert all(e.authority.endswith(b".consul:%d" % e.port) for e in running.told[-1].endpoints or ())
        agent.call("PUT", "/v1/agent/check/fail/w1")
        running.until_at("127.0.0.1:8002")
        agent.deregister("w2")
        running.until_at()
        agent.call("PUT", "/v1/agent/check/pass/w1")
        running.until_at("127.0.0.1:8001")
        agent.down()
        assert places(running.until_error()) == ["127.0.0.1:8001"]


def test_all_of_a_large_service_of_consul(start: Start) -> None:
    """Consul cuts answers to UDP without the flag that says so, and leaves out others each time."""
    ports = range(8000, 8060)
    with ConsulDns.start() as agent:
        assert isinstance(agent, ConsulDns)
        for port in ports:
            agent.register("large", f"l{port}", port)
        running = start(f"127.0.0.1:{agent.dns}", "large.service.consul")
        running.until_at(*(f"127.0.0.1:{port}" for port in ports))
        server = f"127.0.0.1:{agent.dns}"
        for _ in range(5):
            assert [record.port for record in sorted(api(server).srv("large.service.consul").records, key=_port)] == [*ports]


def _port(record: Srv) -> int:
    return record.port


def cut_without_a_word(message: dns_server.Message, protocol: str) -> list[bytes]:
    if protocol == "udp":
        for rrset in message.answer:
            del rrset[1:]
    return dns_server.honest(message, protocol)


def test_names_of_consul_are_asked_for_by_tcp(server: DnsServer) -> None:
    name = "web.service.CONSUL"
    server.zone("\n".join(f"web.service.consul 5 A 10.0.0.{number}" for number in range(1, 9)))
    server.fault(cut_without_a_word, "A")
    assert len(api(server).addresses(name).hosts) == 8
    assert (server.count(protocol="tcp"), server.count(protocol="udp")) == (2, 0)
    # Others as ever.
    assert api(server).addresses("web.service.consul.test").hosts == ()
    assert server.count(protocol="tcp") == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [dns_server.silent, dns_server.half, dns_server.rcode("REFUSED")])
def test_names_of_consul_by_udp_where_tcp_is_not_answered(server: DnsServer, fault: dns_server.Fault) -> None:
    def by_tcp(message: dns_server.Message, protocol: str) -> list[bytes]:
        return (fault if protocol == "tcp" else dns_server.honest)(message, protocol)

    server.zone("web.service.consul 5 A 10.0.0.1")
    server.fault(by_tcp, "A")
    assert api(server).addresses("web.service.consul").hosts == ("10.0.0.1",)


# -- the gateway --------------------------------------------------------------------------


def get(gateway: Gateway) -> tuple[int, str]:
    """The status, and what answered or why none did."""
    response = gateway.test_client().get("/x")
    if response.status_code == 200:
        return 200, response.get_data(as_text=True)
    return response.status_code, json.loads(response.get_data())["reason"]


@pytest.mark.usefixtures("hasty")
def test_requests_through_whatever_happens_to_the_dns(server: DnsServer) -> None:
    with FakeUpstream() as four, FakeUpstream(host="::1") as six:
        four.answer(answer(b"four"))
        six.answer(answer(b"six"))
        server.fault(dns_server.rcode("SERVFAIL"), "SRV")
        settings = DiscoverySettings(dns=DnsSettings((server.address,)), wait=0.05)
        config = Config(
            "v1",
            {"orders": Upstream("orders", DnsSrvSource(NAME))},
            (Route("all", "orders", (Match(prefix="/"),), host="upstream"),),
            access_log=AccessLogSettings(path=None),
            discovery=settings,
        )
        gateway = Gateway(config)
        gateway.start()
        try:
            until(lambda: get(gateway) == (502, "dns_error"))
            server.fault(None, "SRV")
            server.zone(f"{NAME} 0 SRV 0 0 {four.port} a.test.\na.test 0 A 127.0.0.1")
            until(lambda: get(gateway) == (200, "four"))
            assert four.last.header(b"Host") == b"a.test:%d" % four.port
            server.zone(f"{NAME} 0 SRV 0 0 {six.port} b.test.\nb.test 0 AAAA ::1")
            until(lambda: get(gateway) == (200, "six"))
            server.fault(dns_server.rcode("SERVFAIL"), "SRV")
            before = server.count()
            until(lambda: server.count() > before + 1)
            assert get(gateway) == (200, "six")
            server.fault(None, "SRV")
            server.zone("x.test 0 A 10.0.0.1")
            until(lambda: get(gateway) == (503, "no_endpoint"))
        finally:
            gateway.stop()


@pytest.mark.parametrize(("certified", "expected"), [("a.test", (200, "ok")), ("b.test", (502, "tls_error"))])
def test_tls_verifies_the_target_of_the_record(
    server: DnsServer, tmp_path: Path, certified: str, expected: tuple[int, str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(context)
    with FakeUpstream(tls=context) as upstream:
        server.zone(f"{NAME} 9 SRV 0 0 {upstream.port} A.test.\na.test 9 A 127.0.0.1")
        orders = Upstream("orders", DnsSrvSource(NAME), scheme="https", tls=TlsSettings(ca=str(tmp_path / "ca.pem")))
        settings = DiscoverySettings(dns=DnsSettings((server.address,)))
        route = Route("all", "orders", (Match(prefix="/"),))
        gateway = Gateway(
            Config("v1", {"orders": orders}, (route,), access_log=AccessLogSettings(path=None), discovery=settings)
        )
        gateway.start()
        try:
            assert get(gateway) == expected
        finally:
            gateway.stop()


def until(so: Callable[[], bool], within: float = 30.0) -> None:
    with gevent.Timeout(within, AssertionError("not in time")):
        while not so():
            gevent.sleep(0.02)
