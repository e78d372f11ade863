"""What the DNS says of a name: its addresses, or the SRV records of a service (RFC 2782).

Rule: "there is none" (NXDOMAIN, or NOERROR without a record) is an answer; that nobody
answers is a `RegistryError`. Names are absolute: no search list, no hosts file. Whoever asks
what is being asked already waits for the same answer, and no more than `AT_ONCE` questions
of a type are open at a time. Silence of a server or a zone does not hold up other names: the names of one domain have
a part of these places, and a question that was slow the last time gets a place among slow ones.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import gevent
from dns.rdatatype import AAAA, SRV, A, RdataType
from dns.rrset import RRset
from gevent import socket
from gevent.lock import BoundedSemaphore

from gateway.model import DnsSettings
from gateway.registries import RegistryError, one_line
from gateway.registries.dns_servers import LIFETIME, Servers, flat

# No answer is kept for less, so that a TTL of 0 does not become a question per request.
LEAST_TTL = 1.0
# "There is none" is asked again soon, so that a service that begins is seen soon.
EMPTY_TTL = 5.0
# Questions of one worker and type at a time; a thousand upstreams may begin together. As many more that were slow
# before.
AT_ONCE = 32
# Those of them about names in one domain: the names of a zone are silent together.
AT_ONCE_IN_DOMAIN = 16
# A question that took so many seconds is slow: its first server was silent.
SLOW = 1.0
# Slow questions that are remembered.
MOST_SLOW = 10_000
# Once a name has addresses of one version of IP, those of the other one have so many seconds (RFC 8305 §3). Later
# ones join within `LATEST` seconds.
RESOLUTION_DELAY = 0.05
LATEST = 2 * LIFETIME
# Aliases that are followed; dnspython follows as many within one message.
MOST_ALIASES = 8


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a name, good for `ttl` seconds. `unknown`: the version of IP whose
    addresses could not be had."""

    hosts: tuple[str, ...]
    ttl: float
    unknown: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class Srv:
    """One SRV record; the target in lower case, without the last dot."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Service:
    """The SRV records of a name, good for `ttl` seconds, and the addresses of targets that
    came along with them."""

    records: tuple[Srv, ...]
    addresses: Mapping[str, tuple[str, ...]]
    ttl: float


@dataclass(frozen=True, slots=True)
class _Records:
    rrset: RRset | None
    ttl: float
    message: dns.message.Message


Question = tuple[dns.name.Name, RdataType]


class DnsApi:
    """Asks the DNS servers of one configuration."""

    def __init__(self, settings: DnsSettings, servers: Servers | None = None) -> None:
        self._longest = settings.ttl
        self._servers = servers or Servers(flat(settings.servers))
        # By type, as some servers are silent for AAAA alone; and whether the question was slow before.
        self._open = {(kind, slow): BoundedSemaphore(AT_ONCE) for kind in (A, AAAA, SRV) for slow in (False, True)}
        self._domains: dict[Question, _Domain] = {}
        self._slow: set[Question] = set()
        self._flights: dict[Question, _Flight] = {}
        # Names of which one question is answered and the other is not, the oldest first.
        self._late: dict[dns.name.Name, _Late] = {}

    def srv(self, name: str) -> Service:
        """The records of a service; none when it is decidedly not there."""
        flight = self._flight((_question(name), SRV))
        try:
            found = flight.greenlet.get()
        finally:
            self._leave(flight)
        if isinstance(found, RegistryError):
            raise found
        # A target "." says that there is no such service (RFC 2782), whatever stands beside it.
        records = tuple(
            sorted(
                Srv(record.priority, record.weight, record.port, _text(record.target))
                for record in found.rrset or ()
                if record.target != dns.name.root
            )
        )
        addresses, ttl = _came_along(found.message, {record.target for record in records})
        return Service(records, addresses, self._kept(min(found.ttl, ttl), empty=not records))

    def addresses(self, name: str) -> Addresses:
        """The IPv4 and IPv6 addresses of a name; none when it decidedly has none. Those of one version alone, for
        `LEAST_TTL`, while the server is slow to answer for the other one (RFC 4074 §4.1: some never do)."""
        if name.rstrip(".").lower().rpartition(".")[2] == "localhost":
            # RFC 6761 §6.3: not a question for the DNS.
            return Addresses(("127.0.0.1",), self._longest)
        asked = _question(name)
        self._forget_late()
        late = self._late.pop(asked, None)
        if late is not None and time.monotonic() - late.since > LATEST:
            self._leave(*late.flights)
            late = None
        age = 0.0 if late is None else time.monotonic() - late.since
        if late is None:
            late = _Late([self._flight((asked, kind)) for kind in (A, AAAA)], time.monotonic())
        try:
            _wait(late.flights)
            found = [flight.greenlet.get() if flight.greenlet.ready() else None for flight in late.flights]
            if None in found and asked not in self._late:
                self._late[asked] = late
        finally:
            if self._late.get(asked) is not late:
                self._leave(*late.flights)
        return self._of_both(found, age)

    def _of_both(self, found: list[_Records | RegistryError | None], age: float) -> Addresses:
        """The addresses in the answers to both questions, which were asked `age` seconds ago. None: there is no answer
        so far."""
        had = [one for one in found if isinstance(one, _Records)]
        hosts = _routed(host for one in had for host in _hosts(one.rrset))
        failed = [(version, one) for version, one in zip((4, 6), found, strict=True) if not isinstance(one, _Records)]
        if failed and not hosts:
            raise next(one for _, one in failed if one is not None)
        ttl = LEAST_TTL if None in found else min(one.ttl for one in had) - age
        return Addresses(hosts, self._kept(ttl, empty=not hosts), failed[0][0] if failed else None)

    def _forget_late(self) -> None:
        """Give up what no caller has come back for."""
        for name, late in list(itertools.islice(self._late.items(), 2)):
            if time.monotonic() - late.since < LATEST:
                return
            del self._late[name]
            self._leave(*late.flights)

    def _kept(self, ttl: float, empty: bool) -> float:
        return max(LEAST_TTL, min(ttl, self._longest, EMPTY_TTL if empty else ttl))

    # -- questions ----------------------------------------------------------------------

    def _flight(self, question: Question) -> _Flight:
        flight = self._flights.get(question)
        if flight is None:
            flight = self._flights[question] = _Flight(question, gevent.spawn(self._answer, *question))
        flight.waiting += 1
        return flight

    def _leave(self, *flights: _Flight) -> None:
        """The last to leave ends a question: nobody waits for it any more."""
        for flight in flights:
            flight.waiting -= 1
            if flight.waiting == 0:
                flight.greenlet.kill(block=False)
                del self._flights[flight.question]

    def _answer(self, name: dns.name.Name, kind: RdataType) -> _Records | RegistryError:
        """Errors are values here: one flight is waited for by several."""
        with self._place((name, kind)):
            # The time in the queue does not count.
            late = gevent.Timeout(LIFETIME)
            try:
                with late:
                    return self._follow(name, kind)
            except gevent.Timeout as timeout:
                if timeout is not late:
                    raise
                return RegistryError(f"{_text(name)} {dns.rdatatype.to_text(kind)}: no answer in {LIFETIME:g} s")
            except RegistryError as error:
                return error
            except dns.exception.DNSException as error:
                return RegistryError(one_line(f"{_text(name)} {dns.rdatatype.to_text(kind)}: {error}"))

    @contextmanager
    def _place(self, question: Question) -> Iterator[None]:
        """One of the places for open questions; waits for it."""
        name, kind = question
        place = (name.parent() if name != dns.name.root else name, kind)
        domain = self._domains.get(place)
        if domain is None:
            domain = self._domains[place] = _Domain(BoundedSemaphore(AT_ONCE_IN_DOMAIN))
        domain.users += 1
        try:
            with domain.open, self._open[kind, question in self._slow]:
                began = time.monotonic()
                yield
                self._note(question, time.monotonic() - began)
        finally:
            domain.users -= 1
            if not domain.users:
                del self._domains[place]

    def _note(self, question: Question, took: float) -> None:
        if took < SLOW:
            self._slow.discard(question)
            return
        if len(self._slow) >= MOST_SLOW:
            self._slow.clear()
        self._slow.add(question)

    def _follow(self, name: dns.name.Name, kind: RdataType) -> _Records:
        """An alias whose target the server did not add is asked for by that name."""
        ttl = float("inf")
        for _ in range(MOST_ALIASES):
            message = self._servers.ask(name, kind)
            assert isinstance(message, dns.message.QueryMessage)
            chain = message.resolve_chaining()
            ttl = min(ttl, chain.minimum_ttl)
            if chain.answer is not None or chain.canonical_name == name or _final(message):
                return _Records(chain.answer, ttl, message)
            name = chain.canonical_name
        raise RegistryError(f"{_text(name)} {dns.rdatatype.to_text(kind)}: too many aliases")


@dataclass(slots=True)
class _Flight:
    """A question that is being asked, and how many wait for the answer."""

    question: Question
    greenlet: Any
    waiting: int = 0


@dataclass(slots=True)
class _Late:
    """The questions for both kinds of addresses of a name, asked at `since` (monotonic seconds)."""

    flights: list[_Flight]
    since: float


@dataclass(slots=True)
class _Domain:
    """The places of one domain, and how many questions have one or wait for one."""

    open: BoundedSemaphore
    users: int = 0


def _wait(flights: list[_Flight]) -> None:
    """Wait for every answer, but not for long once there are addresses."""
    greenlets = [flight.greenlet for flight in flights]
    for done in gevent.iwait(greenlets):
        if isinstance(done.value, _Records) and _any_route(_hosts(done.value.rrset)):
            break
    gevent.joinall(greenlets, timeout=RESOLUTION_DELAY)


def _question(name: str) -> dns.name.Name:
    try:
        return dns.name.from_text(name).canonicalize()
    except (dns.exception.DNSException, UnicodeError) as error:
        raise RegistryError(one_line(f"{name}: {error}")) from error


@functools.lru_cache(maxsize=8)
def shared(settings: DnsSettings) -> DnsApi:
    """The one of this worker for a configuration, so that upstreams with one name ask once."""
    return DnsApi(settings)


# -- records --------------------------------------------------------------------------


def _final(message: dns.message.Message) -> bool:
    """Whether a message that ends with an alias says all there is: the server has asked others
    itself, or names the zone in which there is nothing (RFC 2308 §2)."""
    soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
    return soa or message.rcode() != dns.rcode.NOERROR or bool(message.flags & dns.flags.RA)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _hosts(rrset: RRset | None) -> Iterable[str]:
    for record in rrset or ():
        found = ipaddress.ip_address(record.address)
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        yield str(mapped or found)


def _came_along(message: dns.message.Message, targets: set[str]) -> tuple[dict[str, tuple[str, ...]], float]:
    """The addresses of targets in the additional section, and the least of their TTLs."""
    found: dict[str, list[str]] = {}
    ttl = float("inf")
    for rrset in message.additional:
        target = _text(rrset.name)
        if rrset.rdtype in (A, AAAA) and target in targets:
            found.setdefault(target, []).extend(_hosts(rrset))
            ttl = min(ttl, rrset.ttl)
    known = {target: _routed(hosts) for target, hosts in found.items()}
    # Others have to be looked up: the server may have left out IPv4 addresses.
    return {target: hosts for target, hosts in known.items() if _any_route(hosts)}, ttl


def _has_route(host: str) -> bool:
    """Whether the kernel knows a way to an IPv6 address; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 53))
    except OSError:
        return False
    return True


def _any_route(hosts: Iterable[str]) -> bool:
    return any("." in host or _has_route(host) for host in hosts)


def _routed(hosts: Iterable[str], has_route: Callable[[str], bool] = _has_route) -> tuple[str, ...]:
    """Each address once, in a stable order. Where there are IPv4 addresses, IPv6 ones to which
    this machine has no way are left out: they would fail half of the requests (the C
    library's AI_ADDRCONFIG, which browsers use, has the same end)."""
    every = sorted(set(hosts))
    if not any("." in host for host in every):
        return tuple(every)
    return tuple(host for host in every if ":" not in host or has_route(host))
