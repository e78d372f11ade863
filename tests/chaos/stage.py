"""A system between a steady load and instances that can fail, and what becomes of the load while one does.

Two workers before five instances of `main`, which get 300 requests a second (60 % GETs, 25 % POSTs, 15 % streamed
downloads), and one instance of `other`, which gets 100 GETs a second and never fails.

Rule: everything is a process of its own on loopback, or in a network of its own, and all of it is gone afterwards. What is measured is what clients
and instances saw; of the system itself only its log is used, for the moment at which it says that an instance is out.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import trustme

from tests.chaos.faults import Fault
from tests.chaos.load import FAILED, OK, PATIENCE, WRONG, Record, read
from tests.chaos.network import Network, instance_address
from tests.chaos.systems import LOOPBACK, SRV, TLS_NAME, Behind, Event, Limits, System
from tests.consul_agent import LastingConsul
from tests.dnsmasq_server import Dnsmasq
from tests.services import ROOT, Server, free_ports

INSTANCES = 5
RATE = 300.0
OTHER_RATE = 100.0
MIX = ("get=12", "post=5", "stream=3")
# An instance has its share again when it answers this much of it, within so many seconds.
_SHARE = 0.75
_WINDOW = 1.0


class Tail:
    """The lines of a growing file, as they come."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = file.fileno()
        self._at = 0
        self._rest = b""

    def lines(self) -> list[str]:
        data = os.pread(self._descriptor, 1 << 24, self._at)
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Instance:
    """One process of `tests.chaos.instance`, at the same place whenever it runs. `enter`: how to get to its side."""

    def __init__(
        self, name: str, address: str, port: int, folder: Path, certificate: Path | None, enter: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.address = address
        self.port = port
        self._orders = folder / f"{name}.sock"
        command = [*enter, sys.executable, "-m", "tests.chaos.instance", name, address, str(port), str(folder)]
        self.server = Server([*command, *([str(certificate)] if certificate else [])], cwd=ROOT)

    def start(self) -> None:
        self._orders.unlink(missing_ok=True)
        self.server.start()

    def wait(self) -> None:
        self.server.wait_until(self._obeys, f"{self.name} takes orders")

    def _obeys(self) -> bool:
        try:
            self.order("well")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def up(self) -> None:
        self.start()
        self.wait()

    def send(self, number: signal.Signals) -> None:
        self.server.send(number)

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)

    def order(self, order: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self._orders))
            sock.sendall(f"{order}\n".encode())
            answered = sock.recv(16)
        assert answered == b"done\n", (self.name, order, answered)


class Load:
    """One process of `tests.chaos.load`, and what it has recorded."""

    def __init__(
        self, port: int, prefix: str, rate: float, mix: tuple[str, ...], name: str, enter: Sequence[str]
    ) -> None:
        command = [*enter, sys.executable, "-m", "tests.chaos.load", str(port), prefix, f"{rate:g}", name, *mix]
        self.server = Server(command, cwd=ROOT)
        self._tail = Tail(self.server.log)
        self.rate = rate
        self.records: list[Record] = []

    def start(self) -> None:
        self.server.start()
        self.server.wait_until(self._begun, "the load has begun")

    def _begun(self) -> bool:
        self.look()
        return bool(self.records)

    def look(self) -> None:
        self.records += map(read, self._tail.lines())

    def between(self, since: float, until: float) -> list[Record]:
        """The requests that were due then."""
        return [record for record in self.records if since <= record.due < until]

    def ended(self, until: float) -> bool:
        """Whether every request that was due before has come to its end."""
        start = min(record.due - record.number / self.rate for record in self.records)
        number = math.floor((until - start) * self.rate)
        return sum(1 for record in self.records if record.number < number) >= number


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: before a fault, of a fault, and at least and at most after it. `until_out`: a fault goes on until the
    system has said that the instance is out, if it has to be."""

    quiet: float
    fault: float
    after: float
    longest: float
    until_out: bool = False


@dataclass(slots=True)
class Outcome:
    """One fault under one system. `failed_gets`: those of `failed` that were no POSTs. Times are seconds; `out`: from the fault's beginning until the system said that the
    instance is out (every worker of it); `back`: from its end until every instance had its share of the requests
    again. None: it never was. p99 of the other upstream, of `main` where it says so, in ms."""

    system: str
    fault: str
    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failed_gets: Counter[str] = field(default_factory=Counter)
    after: int = 0
    failed_after: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    posts: int = 0
    out: float | None = None
    voices: int = 0
    back: float | None = None
    other_failed: Counter[str] = field(default_factory=Counter)
    p99_quiet: float = 0.0
    p99: float = 0.0
    main_p99_quiet: float = 0.0
    main_p99: float = 0.0
    # How late the load itself was: above some milliseconds the machine was too busy for the p99 to say anything.
    late: float = 0.0
    said: Counter[str] = field(default_factory=Counter)

    @property
    def ratio(self) -> float:
        return self.p99 / self.p99_quiet if self.p99_quiet else 0.0


class Stage:
    """Everything that runs. `needs`: tls, dns, consul, network or nothing."""

    def __init__(
        self, kind: type[System], limits: Limits, needs: str = "", rate: float = RATE, settings: str = ""
    ) -> None:
        self._kind = kind
        self._limits = limits
        self._needs = needs
        self._rate = rate
        self._settings = settings
        self._events: list[tuple[float, Event]] = []
        self._turn = 0
        self.main: list[Instance] = []
        self.victim: Instance
        self.dns: Dnsmasq
        self.consul: LastingConsul
        self.network: Network

    # starting and stopping

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as closing:
            self._start(closing)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _start(self, closing: contextlib.ExitStack) -> None:
        self.folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        ports = free_ports(INSTANCES + 2)
        certificate = authority = None
        if self._needs == "tls":
            certificate, authority = self._certificate()
        self._near, far = self._sides(closing)
        self.main = [
            Instance(f"main-{n}", self._address(n), ports[n], self.folder, certificate, far)
            for n in range(1, INSTANCES + 1)
        ]
        self.other = Instance("other", LOOPBACK, ports[0], self.folder, None, self._near)
        self.victim = self.main[0]
        for instance in (*self.main, self.other):
            closing.callback(instance.server.close)
            instance.start()
        for instance in (*self.main, self.other):
            instance.wait()
        found = self._registry(closing)
        behind = Behind(
            {instance.name: (instance.address, instance.port) for instance in self.main}, self.other.port, self._limits,
            authority, settings=self._settings, enter=self._near, **found,
        )  # fmt: skip
        self.system = self._kind(self.folder, behind, ports[-1])
        closing.callback(self.system.stop)
        self.system.start()
        self._log = Tail(self.system.server.log)
        self._loads(closing)

    def _loads(self, closing: contextlib.ExitStack) -> None:
        self.load = Load(self.system.port, "/main", self._rate, MIX, "main", self._near)
        self.beside = Load(self.system.port, "/other", OTHER_RATE, ("get=1",), "other", self._near)
        for load in (self.load, self.beside):
            closing.callback(load.server.close)
            load.start()
        began = time.monotonic()
        assert self.wait(30.0, lambda: self._back(began) is not None), "not every instance gets its share"

    def _sides(self, closing: contextlib.ExitStack) -> tuple[Sequence[str], Sequence[str]]:
        """How to get to the side of the system, and to that of the instances that can fail."""
        if self._needs != "network":
            return (), ()
        self.network = Network.make()
        closing.callback(self.network.close)
        for number in range(1, INSTANCES + 1):
            self.network.appear(self._address(number))
        return self.network.near.enter, self.network.far.enter

    def _address(self, number: int) -> str:
        return instance_address(number) if self._needs == "network" else LOOPBACK

    def _certificate(self) -> tuple[Path, Path]:
        authority = trustme.CA()
        both, trusted = self.folder / "instance.pem", self.folder / "authority.pem"
        authority.issue_cert(LOOPBACK, TLS_NAME).private_key_and_cert_chain_pem.write_to_path(str(both))
        authority.cert_pem.write_to_path(str(trusted))
        return both, trusted

    def _registry(self, closing: contextlib.ExitStack) -> dict[str, str]:
        if self._needs == "dns":
            self.dns = Dnsmasq()
            closing.callback(self.dns.close)
            self.dns_up()
            return {"dns": self.dns.address}
        if self._needs == "consul":
            self.consul = closing.enter_context(LastingConsul.start())
            for instance in self.main:
                self.consul.register("main", instance.name, instance.port)
            return {"consul": self.consul.address}
        return {}

    def dns_up(self) -> None:
        records = ["local-ttl=1"]
        for instance in self.main:
            # A name for each: HAProxy does not tell two of one name apart.
            host = f"{instance.name}.chaos.test"
            records += [f"srv-host={SRV},{host},{instance.port},0,1", f"host-record={host},{LOOPBACK}"]
        self.dns.up(*records)

    # time

    def look(self) -> None:
        """Take note of what has been said and recorded."""
        now = time.monotonic()
        for line in self._log.lines():
            event = self.system.event(line)
            if event:
                self._events.append((now, event))
        self.load.look()
        self.beside.look()

    def wait(self, seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Let it pass, or less if it is over before; whether it was."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if over():
                return True
            time.sleep(min(left, 0.02))
            self.look()
        return over()

    # one fault

    def play(self, fault: Fault, pace: Pace) -> Outcome:
        """The fault, from quiet to quiet, and what came of it. Each has another victim."""
        self.victim = self.main[self._turn % len(self.main)]
        self._turn += 1
        twice_before = set(self._twice())
        quiet = time.monotonic()
        self.wait(pace.quiet)
        began = time.monotonic()
        fault.begin(self)
        self._hold(fault, pace.fault)
        if pace.until_out and fault.out:
            self.wait(pace.longest, lambda: len(self._out(began)) == self.system.voices)
        ended_from = time.monotonic()
        fault.end(self)
        ended = time.monotonic()
        self.wait(pace.after)
        self.wait(pace.longest - pace.after, lambda: self._back(ended) is not None)
        # The window in which it was seen to be back is over.
        until = time.monotonic()
        self._settle(until)
        outcome = Outcome(self.system.name, fault.name)
        self._count(outcome, quiet, began, ended_from, ended, until)
        self._tell(outcome, began, ended_from, ended)
        outcome.twice = sorted(set(self._twice()) - twice_before)
        return outcome

    def _hold(self, fault: Fault, seconds: float) -> None:
        if fault.every is None:
            self.wait(seconds)
            return
        for second in range(1, max(round(seconds), 1) + 1):
            self.wait(1.0)
            fault.every(self, second)

    def _settle(self, until: float) -> None:
        over = self.wait(PATIENCE + 5.0, lambda: self.load.ended(until) and self.beside.ended(until))
        assert over, "a request has no end"

    def _back(self, since: float) -> float | None:
        """How long after `since` every instance had its share."""
        start = since
        last = time.monotonic() - _WINDOW
        while start <= last:
            answered = Counter(r.instance for r in self.load.between(start, start + _WINDOW) if r.verdict == OK)
            fair = answered.total() / INSTANCES
            if fair and all(answered[instance.name] >= _SHARE * fair for instance in self.main):
                return start - since
            start += 0.1
        return None

    # what came of it

    def _count(
        self, outcome: Outcome, quiet: float, began: float, ended_from: float, ended: float, until: float
    ) -> None:
        # Those under way when it began are part of it.
        before = [record for record in self.load.between(quiet, began) if record.due + record.latency < began]
        during = [record for record in self.load.between(quiet, ended) if record.due + record.latency >= began]
        after = self.load.between(ended, until)
        outcome.requests, outcome.after = len(during), len(after)
        for record in during:
            if record.verdict == FAILED:
                outcome.failed[_told(record)] += 1
                if record.kind != "post":
                    outcome.failed_gets[_told(record)] += 1
        outcome.failed_after.update(_told(record) for record in after if record.verdict == FAILED)
        everything = [*self.load.between(quiet, until), *self.beside.between(quiet, until)]
        outcome.wrong = [f"{r.kind} {r.number}: {r.status} {r.reason}" for r in everything if r.verdict == WRONG]
        outcome.posts = sum(1 for record in everything if record.kind == "post")
        early = [r for r in before if r.verdict == FAILED]
        assert early == [], f"before anything went wrong: {early}"
        outcome.other_failed.update(_told(r) for r in self.beside.between(began, until) if r.verdict == FAILED)
        calm, stormy = self.beside.between(quiet, began), self.beside.between(began, ended_from)
        outcome.p99_quiet, outcome.p99 = _p99(calm, "latency"), _p99(stormy, "latency")
        outcome.main_p99_quiet = _p99([r for r in before if r.kind != "stream"], "latency")
        outcome.main_p99 = _p99([r for r in during if r.kind != "stream"], "latency")
        outcome.late = _p99([*calm, *stormy], "late")

    def _tell(self, outcome: Outcome, began: float, ended_from: float, ended: float) -> None:
        for at, event in self._events:
            if at >= began:
                outcome.said[f"{'out' if event.out else 'back'}: {event.why}"] += 1
        first = self._out(began, ended_from)
        outcome.voices = len(first)
        if first and len(first) == self.system.voices:
            outcome.out = max(first.values())
        outcome.back = self._back(ended)

    def _out(self, since: float, until: float = math.inf) -> dict[str, float]:
        """Who has said that the victim is out, how long after `since`."""
        first: dict[str, float] = {}
        for at, event in self._events:
            if since <= at <= until and event.out and event.port == self.victim.port:
                first.setdefault(event.who, at - since)
        return first

    def _twice(self) -> list[str]:
        """POSTs that came to an instance more than once, or to more than one; those that were answered, but came to
        none, would be wrong answers."""
        seen: Counter[str] = Counter()
        for path in self.folder.glob("*.posts"):
            seen.update(path.read_text().split())
        return [ident for ident, times in seen.items() if times > 1]


def _told(record: Record) -> str:
    return f"{record.status or '-'} {record.reason}"


def _p99(records: list[Record], what: str) -> float:
    """In milliseconds."""
    values = sorted(getattr(record, what) for record in records)
    return round(values[min(int(len(values) * 0.99), len(values) - 1)] * 1000, 2) if values else 0.0
