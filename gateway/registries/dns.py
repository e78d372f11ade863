"""What the DNS says of a name: its addresses, or the SRV records of a service (RFC 2782).

Rule: "there is none" (NXDOMAIN, or NOERROR without a record) is an answer; that nobody
answers is a `RegistryError`. Names are absolute: no search list, no hosts file. Whoever asks
what is being asked already waits for the same answer, and no more than `AT_ONCE` questions
are open at a time.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Iterable, Mapping
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
# Questions of one worker at a time; a thousand upstreams may begin together.
AT_ONCE = 32
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
        self._open = BoundedSemaphore(AT_ONCE)
        self._flights: dict[Question, _Flight] = {}

    def srv(self, name: str) -> Service:
        """The records of a service; none when it is decidedly not there."""
        (found,) = self._ask(name, SRV)
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
        """The IPv4 and IPv6 addresses of a name; none when it decidedly has none."""
        if name.rstrip(".").lower().rpartition(".")[2] == "localhost":
            # RFC 6761 §6.3: not a question for the DNS.
            return Addresses(("127.0.0.1",), self._longest)
        found = self._ask(name, A, AAAA)
        had = [one for one in found if not isinstance(one, RegistryError)]
        hosts = _routed(host for one in had for host in _hosts(one.rrset))
        failed = [(version, one) for version, one in zip((4, 6), found, strict=True) if isinstance(one, RegistryError)]
        if failed and not hosts:
            raise failed[0][1]
        ttl = min(one.ttl for one in had)
        return Addresses(hosts, self._kept(ttl, empty=not hosts), failed[0][0] if failed else None)

    def _kept(self, ttl: float, empty: bool) -> float:
        return max(LEAST_TTL, min(ttl, self._longest, EMPTY_TTL if empty else ttl))

    # -- questions ----------------------------------------------------------------------

    def _ask(self, name: str, *kinds: RdataType) -> list[_Records | RegistryError]:
        """What is said to each kind of question, all of them asked at once."""
        try:
            asked = dns.name.from_text(name).canonicalize()
        except (dns.exception.DNSException, UnicodeError) as error:
            raise RegistryError(one_line(f"{name}: {error}")) from error
        flights = [self._flight((asked, kind)) for kind in kinds]
        try:
            return [flight.greenlet.get() for flight in flights]
        finally:
            for flight in flights:
                self._leave(flight)

    def _flight(self, question: Question) -> _Flight:
        flight = self._flights.get(question)
        if flight is None:
            flight = self._flights[question] = _Flight(question, gevent.spawn(self._answer, *question))
        flight.waiting += 1
        return flight

    def _leave(self, flight: _Flight) -> None:
        """The last to leave ends the question: nobody waits for it any more."""
        flight.waiting -= 1
        if flight.waiting == 0:
            flight.greenlet.kill(block=False)
            del self._flights[flight.question]

    def _answer(self, name: dns.name.Name, kind: RdataType) -> _Records | RegistryError:
        """Errors are values here: one flight is waited for by several."""
        late = gevent.Timeout(LIFETIME)
        try:
            with late, self._open:
                return self._follow(name, kind)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            return RegistryError(f"{_text(name)} {dns.rdatatype.to_text(kind)}: no answer in {LIFETIME:g} s")
        except RegistryError as error:
            return error
        except dns.exception.DNSException as error:
            return RegistryError(one_line(f"{_text(name)} {dns.rdatatype.to_text(kind)}: {error}"))

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
    return {target: _routed(hosts) for target, hosts in found.items()}, ttl


def _has_route(host: str) -> bool:
    """Whether the kernel knows a way to an IPv6 address; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 53))
    except OSError:
        return False
    return True


def _routed(hosts: Iterable[str], has_route: Callable[[str], bool] = _has_route) -> tuple[str, ...]:
    """Each address once, in a stable order. Where there are IPv4 addresses, IPv6 ones to which
    this machine has no way are left out: they would fail half of the requests (the C
    library's AI_ADDRCONFIG, which browsers use, has the same end)."""
    every = sorted(set(hosts))
    if not any("." in host for host in every):
        return tuple(every)
    return tuple(host for host in every if ":" not in host or has_route(host))
