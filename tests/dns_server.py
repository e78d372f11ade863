"""A DNS server for tests: UDP and TCP on one loopback port, answers from records or as scripted.

Rule: without a script it is an honest server of the records that it was given, NXDOMAIN and
all; a `Fault` takes an honest answer and makes of it what goes over the wire. Every question is
noted before it is answered.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Message = dns.message.Message
# What goes over the wire in place of an honest answer: packets; none is silence.
Fault = Callable[[Message, str], list[bytes]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: by which protocol ("udp", "tcp"), for which name and type, with EDNS or not."""

    protocol: str
    name: str
    kind: str
    edns: bool
    at: float


class DnsServer:
    """Serves the records of `zone`; `fault` for a type, or a name and a type, overrules."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tcp = socket.create_server((host, port), family=family)
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((host, self.port))
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.asked: list[Asked] = []
        # Whether addresses of SRV targets are added.
        self.adds = True
        self.recursive = False
        self._records: dict[tuple[str, str], dns.rrset.RRset] = {}
        self._faults: dict[tuple[str, str], Fault] = {}
        for loop in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=loop, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for sock in (self._tcp, self._udp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    # -- what it says -------------------------------------------------------------------

    def zone(self, text: str) -> None:
        """All records from now on, one a line: `NAME TTL TYPE DATA`; names are absolute."""
        records: dict[tuple[str, str], list[str]] = {}
        ttls: dict[tuple[str, str], int] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            name, ttl, kind, data = line.split(None, 3)
            records.setdefault((_key(name), kind), []).append(data)
            ttls[_key(name), kind] = int(ttl)
        self._records = {
            key: dns.rrset.from_text_list(f"{key[0]}.", ttls[key], "IN", key[1], data)
            for key, data in records.items()
        }

    def fault(self, fault: Fault | None, kind: str, name: str = "") -> None:
        """From now on; None: honest again."""
        if fault is None:
            self._faults.pop((_key(name), kind), None)
        else:
            self._faults[_key(name), kind] = fault

    def count(self, name: str = "", kind: str = "", protocol: str = "") -> int:
        """How many questions there were of that kind."""
        return sum(
            (not name or one.name == _key(name)) and (not kind or one.kind == kind) and protocol in ("", one.protocol)
            for one in list(self.asked)
        )

    def _answer(self, wire: bytes, protocol: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        name, kind = _key(query.question[0].name.to_text()), dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append(Asked(protocol, name, kind, query.edns >= 0, time.monotonic()))
        fault = self._faults.get((name, kind)) or self._faults.get(("", kind)) or honest
        return fault(self._honest(query, name, kind), protocol)

    def _honest(self, query: Message, name: str, kind: str) -> Message:
        answer = dns.message.make_response(query, recursion_available=self.recursive)
        answer.flags |= dns.flags.AA
        while (name, kind) not in self._records:
            alias = self._records.get((name, "CNAME"))
            if alias is None or alias in answer.answer:
                break
            answer.answer.append(alias)
            name = _key(alias[0].target.to_text())
        if (name, kind) in self._records:
            answer.answer.append(self._records[name, kind])
        elif not any(known == name for known, _ in self._records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if not answer.answer and (soa := self._records.get(("", "SOA"))) is not None:
            answer.authority.append(soa)
        if kind == "SRV" and self.adds:
            targets = {_key(record.target.to_text()) for rrset in answer.answer for record in rrset}
            answer.additional += [
                rrset for (target, type_), rrset in self._records.items() if target in targets and type_ in ("A", "AAAA")
            ]
        return answer

    # -- sockets ------------------------------------------------------------------------

    def _serve_udp(self) -> None:
        while True:
            try:
                wire, peer = self._udp.recvfrom(65535)
            except OSError:
                return  # closed
            threading.Thread(target=self._reply_udp, args=(wire, peer), daemon=True).start()

    def _reply_udp(self, wire: bytes, peer: tuple[str, int]) -> None:
        for packet in self._answer(wire, "udp"):
            with contextlib.suppress(OSError):  # closed meanwhile
                self._udp.sendto(packet, peer)

    def _serve_tcp(self) -> None:
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._reply_tcp, args=(client,), daemon=True).start()

    def _reply_tcp(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), client.makefile("rb") as stream:
            size = int.from_bytes(stream.read(2), "big")
            for packet in self._answer(stream.read(size), "tcp"):
                client.sendall(len(packet).to_bytes(2, "big") + packet)


def _key(name: str) -> str:
    return name.rstrip(".").lower()


# -- faults -----------------------------------------------------------------------------


def honest(answer: Message, protocol: str) -> list[bytes]:
    """What there is, cut short by UDP where it does not fit."""
    if protocol == "tcp":
        return [answer.to_wire(max_size=65535)]
    limit = answer.request_payload or 512
    try:
        return [answer.to_wire(max_size=limit)]
    except dns.exception.TooBig:
        return truncated(answer, protocol)


def truncated(answer: Message, protocol: str) -> list[bytes]:
    """Nothing but the flag over UDP, all of it over TCP."""
    if protocol == "tcp":
        return honest(answer, protocol)
    short = dns.message.Message(answer.id)
    short.flags = answer.flags | dns.flags.TC
    short.question = answer.question
    return [short.to_wire()]


def silent(answer: Message, protocol: str) -> list[bytes]:
    return []


def rcode(name: str) -> Fault:
    def fault(answer: Message, protocol: str) -> list[bytes]:
        failed = dns.message.Message(answer.id)
        failed.flags = dns.flags.Flag(dns.flags.QR)
        failed.question = answer.question
        failed.set_rcode(dns.rcode.from_text(name))
        return [failed.to_wire()]

    return fault


def without_edns(answer: Message, protocol: str) -> list[bytes]:
    """A server that does not know EDNS (RFC 6891 §7)."""
    return rcode("FORMERR")(answer, protocol) if answer.edns >= 0 else honest(answer, protocol)


def garbage(answer: Message, protocol: str) -> list[bytes]:
    return [answer.to_wire()[:12] + b"\xff" * 40]


def half(answer: Message, protocol: str) -> list[bytes]:
    return [answer.to_wire()[:-3]]


def referral(answer: Message, protocol: str) -> list[bytes]:
    """Who else to ask, in place of an answer."""
    away = dns.message.Message(answer.id)
    away.flags = dns.flags.Flag(dns.flags.QR)
    away.question = answer.question
    away.authority = [dns.rrset.from_text("example.", 60, "IN", "NS", "ns.example.")]
    return [away.to_wire()]


def forged_first(answer: Message, protocol: str) -> list[bytes]:
    """Replies with another id, to another question, from nobody in particular; then the right one."""
    right = honest(answer, protocol)
    wire = right[0]
    other_id = (answer.id ^ 0x5555).to_bytes(2, "big") + wire[2:]
    asked = dns.message.make_query("other.example.", "A", id=answer.id)
    other_question = dns.message.make_response(asked)
    not_a_reply = wire[:2] + bytes([wire[2] & 0x7F]) + wire[3:]
    return [b"", b"x", other_id, other_question.to_wire(), not_a_reply, *right]


def after(gate: threading.Event) -> Fault:
    """Nothing until the gate opens."""

    def fault(answer: Message, protocol: str) -> list[bytes]:
        return honest(answer, protocol) if gate.wait(30) else []

    return fault


def once(first: Fault) -> Fault:
    """One fault, then honest."""
    faults: Iterator[Fault] = iter([first])
    return lambda answer, protocol: next(faults, honest)(answer, protocol)
