"""One question of the DNS, put to one server after the other until one has an answer.

Rule: an answer is NOERROR or NXDOMAIN, whole, to this very question and from the server that
was asked. Anything else (SERVFAIL, REFUSED, garbage, a referral, silence) is that server's
failure and the next one is asked; all of it together takes `LIFETIME` at most. A reply with
another id or question is nobody's answer and not looked at (RFC 5452 §9.1).

Names in Consul's domain are asked for by TCP: Consul cuts its answers to UDP without saying so.

dnspython reads and writes the messages; the sockets are gevent's, connected, each with a port
of its own: a server that is not there is told at once by the kernel.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

# What answers are made of; dnspython would import each with its first record, in a worker that serves.
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import gevent
from gevent import monkey, socket

from gateway.registries import RegistryError

# For all servers and tries together.
LIFETIME = 5.0
# How long each try waits for one server, and the size of UDP answers that it asks for with
# EDNS (1232: the DNS flag day of 2020). Later tries are for those that were silent or do not
# know EDNS (RFC 6891 §7), and go without.
TRIES = ((1.0, 1232), (2.0, None), (2.0, None))
NO_EDNS = frozenset({dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS})
# A server that failed is asked after the others for so long.
ASIDE = 30.0

# Consul's DNS leaves out records that do not fit into UDP, others each time, and does not set TC
# (developer.hashicorp.com/consul/docs/reference/agent/configuration-file/dns, `enable_truncate`).
BY_TCP = dns.name.from_text("consul.")

# Messages of this size take some 10 ms to parse (45 us a record), for which nothing else may wait.
LARGE = 4096

RESOLV_CONF = Path("/etc/resolv.conf")
# As many as the C library takes from that file; without one it asks this machine (resolv.conf(5)).
MOST_OF_SYSTEM = 3
OF_SYSTEM_WITHOUT_FILE = ("127.0.0.1:53",)

_TRUNCATED = 0x02

_getaddrinfo = monkey.get_original("socket", "getaddrinfo")


class _NoAnswer(Exception):
    """What a server said is no answer. `again`: it may be one without EDNS."""

    def __init__(self, why: str, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


def of_system(file: Path = RESOLV_CONF) -> tuple[str, ...]:
    """The servers of the system, each `address:port`. Read anew each time: the file changes
    when a machine moves to another network."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return OF_SYSTEM_WITHOUT_FILE
    named = [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]
    found = tuple(f"[{host}]:53" if ":" in host else f"{host}:53" for host in named[:MOST_OF_SYSTEM])
    return found or OF_SYSTEM_WITHOUT_FILE


class Servers:
    """The DNS servers of one configuration, and which of them failed lately."""

    def __init__(self, named: Callable[[], tuple[str, ...]], clock: Callable[[], float] = time.monotonic) -> None:
        self._named = named
        self._clock = clock
        self._failed: dict[str, float] = {}

    def ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.message.Message:
        """The first answer. Raises `RegistryError` when no server has one in time."""
        troubles: dict[str, str] = {}
        late = gevent.Timeout(LIFETIME)
        try:
            with late:
                answer = self._first(name, kind, troubles)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            answer = None
        if answer is None:
            told = ", ".join(f"{trouble} from {server}" for server, trouble in troubles.items())
            raise RegistryError(f"{name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(kind)}: {told}")
        return answer

    def _first(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, troubles: dict[str, str]
    ) -> dns.message.Message | None:
        left = self._order()
        for patience, payload in TRIES:
            query = dns.message.make_query(name, kind, use_edns=False if payload is None else 0, payload=payload)
            again: list[str] = []
            for server in left:
                troubles[server] = "no answer"
                try:
                    answer = _answer(server, query, patience)
                except _NoAnswer as error:
                    troubles[server] = str(error)
                    if error.again:
                        again.append(server)
                else:
                    self._failed.pop(server, None)
                    return answer
                self._failed[server] = self._clock()
            left = again
        return None

    def _order(self) -> list[str]:
        """Those that did not fail lately first; each part as configured."""
        since = self._clock() - ASIDE
        return sorted(self._named(), key=lambda server: self._failed.get(server, since) > since)


# -- one server -----------------------------------------------------------------------


def _answer(server: str, query: dns.message.QueryMessage, patience: float) -> dns.message.Message:
    """The answer of one server; raises `_NoAnswer`."""
    if query.question[0].name.is_subdomain(BY_TCP):
        # Where nobody answers by TCP, a part is better than nothing.
        with contextlib.suppress(_NoAnswer, OSError):
            return _judged(_within(patience, _by_tcp, server, query), query)
    try:
        reply = _within(patience, _by_udp, server, query)
        if reply is None:
            reply = _within(patience, _by_tcp, server, query)
    except OSError as error:
        raise _NoAnswer(error.strerror or type(error).__name__) from error
    assert reply is not None  # what came by TCP is never cut short
    return _judged(reply, query)


def _judged(reply: dns.message.Message, query: dns.message.QueryMessage) -> dns.message.Message:
    code = reply.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise _NoAnswer(dns.rcode.to_text(code), again=code in NO_EDNS and query.edns >= 0)
    authority = {rrset.rdtype for rrset in reply.authority}
    if not reply.answer and dns.rdatatype.NS in authority and dns.rdatatype.SOA not in authority:
        # RFC 2308 §2.2: this is how a server that does not ask others says who to ask, and no
        # "there is none".
        raise _NoAnswer("a referral")
    return reply


Exchange = Callable[[str, dns.message.QueryMessage], dns.message.Message | None]


def _within(patience: float, exchange: Exchange, server: str, query: dns.message.QueryMessage) -> Any:
    with gevent.Timeout(patience, False):
        return exchange(server, query)
    raise _NoAnswer("no answer", again=True)


def _by_udp(server: str, query: dns.message.QueryMessage) -> dns.message.Message | None:
    """The reply; None when it was too large for UDP."""
    wire = query.to_wire()
    with _connected(server, socket.SOCK_DGRAM) as sock:
        sock.send(wire)
        while True:
            got = sock.recv(65535)
            if got[:2] == wire[:2] and len(got) > 2 and got[2] & _TRUNCATED:
                return None
            reply = _read(got, query)
            if reply is not None:
                return reply


def _by_tcp(server: str, query: dns.message.QueryMessage) -> dns.message.Message:
    wire = query.to_wire()
    with _connected(server, socket.SOCK_STREAM) as sock:
        sock.sendall(len(wire).to_bytes(2, "big") + wire)
        got = _exactly(sock, int.from_bytes(_exactly(sock, 2), "big"))
    reply = _read(got, query)
    if reply is None:
        raise _NoAnswer("an answer to another question")
    return reply


def _connected(server: str, kind: int) -> Any:
    family, where = _place(server)
    sock = socket.socket(family, kind)
    try:
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _place(server: str) -> tuple[int, tuple[Any, ...]]:
    """The family and address of a server, the number of its zone (fe80::1%eth0) in its place."""
    host, _, port = server.rpartition(":")
    # The C library's, on the hub: it has only numbers to read. gevent's would take a thread that
    # look-ups of others may hold.
    family, _, _, _, (plain, *rest) = _getaddrinfo(host.strip("[]"), int(port), 0, 0, 0, socket.AI_NUMERICHOST)[0]
    return family, (plain.partition("%")[0], *rest)


def _exactly(sock: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise _NoAnswer("half an answer")
        data += piece
    return bytes(data)


def _read(wire: bytes, query: dns.message.QueryMessage) -> dns.message.Message | None:
    """A reply to this question; None for anything that is not one."""
    if wire[:2] != query.id.to_bytes(2, "big"):
        return None
    try:
        reply = _parsed(wire)
        return reply if query.is_response(reply) else None
    except Exception as error:
        # Whatever the parser makes of foreign bytes.
        raise _NoAnswer(f"garbage ({type(error).__name__})") from error


def _parsed(wire: bytes) -> dns.message.Message:
    if len(wire) < LARGE:
        return dns.message.from_wire(wire, keyring=False)
    # On a thread: the interpreter goes from one to the other every few milliseconds.
    parsed: dns.message.Message = gevent.get_hub().threadpool.apply(dns.message.from_wire, (wire,), {"keyring": False})
    return parsed


def flat(servers: Iterable[str]) -> Callable[[], tuple[str, ...]]:
    """The servers that the configuration names; the system's when it names none."""
    named = tuple(servers)
    return (lambda: named) if named else of_system
