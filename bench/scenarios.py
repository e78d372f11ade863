"""What is done to each system, and which figures come of it.

Rule: a scenario is one value in the table at the end: how the system is started, what is
measured on it, which figures make its table. Each measurement starts the system anew and
ends it. The first figure named in `columns` is the one that ratios are made of.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import events, paced, wrk
from bench.answer import ask, request
from bench.proc import BenchError, Program
from bench.systems import ROUTES, SYSTEMS, Running, System, by_pattern, gateway, gateway_on, route_path
from bench.upstream import FILES, JSON, Place, content, start_nginx, start_registry, start_streaming, told
from tests.parallel import interpreters

Figures = dict[str, float]
STREAMS = 2_000
IDLE = 5_000
SERVICES, INSTANCES, CHANGES = 1_000, 50, 100
CROWD = 50_000
# The whole of it takes well under a minute; a hang may not.
_WATCHING = 120.0
LARGE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a table: its key, its heading, how it is written."""

    key: str
    title: str
    form: str = ",.1f"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a table: a system, started with so many routes (which only ours looks at)."""

    key: str
    title: str
    system: System
    routes: int = ROUTES


@dataclass(frozen=True, slots=True)
class Run:
    """What is the same for all measurements of a run of the harness."""

    place: Place
    core: int
    seconds: float
    warm_up: float
    upstream: int

    @contextmanager
    def started(self, entry: Entry, probe: bytes, body: bytes) -> Iterator[Running]:
        """The system, for as long as it is measured."""
        running = entry.system.start(self.place, self.core, f"127.0.0.1:{self.upstream}", probe, body, entry.routes)
        try:
            yield running
        finally:
            running.program.stop()

    def file(self, name: str, data: bytes) -> Path:
        """Bytes as a file, for wrk."""
        path = self.place.directory / name
        path.write_bytes(data)
        return path


Measure = Callable[[Run, Entry], Figures]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`entries` chooses the rows; `base` is the row that ratios refer to; `ranked` ones are sorted by the
    first column, others stay as the entries are."""

    name: str
    title: str
    upstream: Callable[[Place], tuple[Program, int]]
    measure: Measure
    columns: tuple[Column, ...]
    entries: Callable[[], list[Entry]]
    base: str = "go"
    ranked: bool = True


def middle(entry: Entry) -> str:
    """A path that one of the routes in the middle of the table takes."""
    return route_path(entry.routes // 2)


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed-loop load by wrk; every body is compared, large ones only while it warms up."""

    path: str
    expected: bytes
    method: str = "GET"
    body: bytes | None = None
    connections: int = 64
    keep: bool = True
    # For uploads: asked once, the upstream then tells the CRC of what reached it.
    crc: bool = False

    def __call__(self, run: Run, entry: Entry) -> Figures:
        path = middle(entry) + self.path
        close = "" if self.keep else "Connection: close\r\n"
        probe = request(self.method, path, self.body, close)
        with run.started(entry, probe, self.expected) as running:
            if self.crc and self.body is not None:
                self._compare(running, path, self.body)
            url = f"http://127.0.0.1:{running.port}{path}"
            body = run.file("request.body", self.body) if self.body is not None else None
            load = wrk.Load(url, self.method, body, self.connections, self.keep)
            expected = run.file("answer.body", self.expected)
            wrk.run(load, run.warm_up, expected=expected)
            before = running.program.cpu_seconds()
            if len(self.expected) > LARGE:
                outcome = wrk.run(load, run.seconds, size=running.size)
            else:
                outcome = wrk.run(load, run.seconds, expected=expected)
            used = running.program.cpu_seconds() - before
            return {
                "cpu_us": used / outcome.requests * 1e6,
                "rate": outcome.rate,
                "p50_ms": outcome.p50_ms,
                "p99_ms": outcome.p99_ms,
                "peak_mib": running.program.peak_mib(),
                "mb_s": outcome.rate * max(len(self.body or b""), len(self.expected)) / 1e6,
            }

    def _compare(self, running: Running, path: str, body: bytes) -> None:
        answer = ask(running.port, request(self.method, path + "?crc=1", body))
        if answer.body != told(len(body), zlib.crc32(body)):
            raise BenchError(f"the upload reached the upstream altered: {answer.body!r}")


def at_half(run: Run, entry: Entry) -> Figures:
    """Latency at half of what the system can do at most, and what the same load costs without a gateway."""
    path = middle(entry) + "/item"
    data = request("GET", path)
    with run.started(entry, data, JSON) as running:
        load = wrk.Load(f"http://127.0.0.1:{running.port}{path}")
        expected = run.file("answer.body", JSON)
        wrk.run(load, run.warm_up, expected=expected)
        rate = wrk.run(load, max(1.0, run.seconds / 2), expected=expected).rate / 2
        direct = paced.run(run.upstream, data, JSON, rate, run.seconds / 2)
        before = running.program.cpu_seconds()
        through = paced.run(running.port, data, JSON, rate, run.seconds)
        used = running.program.cpu_seconds() - before
        return {
            "added_p99_ms": through.p99_ms - direct.p99_ms,
            "p99_ms": through.p99_ms,
            "p50_ms": through.p50_ms,
            "direct_p99_ms": direct.p99_ms,
            "rate": rate,
            "cpu_us": used / (through.count + paced.CONNECTIONS) * 1e6,
        }


def event_streams(run: Run, entry: Entry) -> Figures:
    """2,000 open streams with an event a second each."""
    with run.started(entry, request("GET", middle(entry) + "/"), told(0)) as running:
        empty = running.program.resident_kib()
        streams = events.open_streams(running.port, middle(entry) + "/events", STREAMS)
        try:
            before = running.program.cpu_seconds()
            latency = events.listen(streams, max(3.0, run.seconds))
            used = running.program.cpu_seconds() - before
            resident = running.program.resident_kib()
        finally:
            paced.close([stream.sock for stream in streams])
        return {
            "p99_ms": latency.p99_ms,
            "p50_ms": latency.p50_ms,
            "cpu_us": used / latency.count * 1e6,
            "kib": (resident - empty) / STREAMS,
            "peak_mib": running.program.peak_mib(),
        }


def idle_connections(run: Run, entry: Entry) -> Figures:
    """5,000 connections that have each had an answer and now rest."""
    path = middle(entry) + "/item"
    data = request("GET", path)
    with run.started(entry, data, JSON) as running:
        load = wrk.Load(f"http://127.0.0.1:{running.port}{path}")
        wrk.run(load, run.warm_up, expected=run.file("answer.body", JSON))
        empty = running.program.resident_kib()
        socks = paced.connections(running.port, IDLE, data, JSON)
        try:
            # What the requests left behind is given back in the background, or not at all.
            time.sleep(run.warm_up)
            resident = running.program.resident_kib()
            still = paced.alive(socks[:: IDLE // 100], data, JSON)
        finally:
            paced.close(socks)
        return {"kib": (resident - empty) / IDLE, "alive": still, "peak_mib": running.program.peak_mib()}


def discovery(run: Run, entry: Entry) -> Figures:
    """What one worker pays to know 1,000 services of 50 instances, by watching each."""
    command = [sys.executable, "-m", "bench.watching", str(run.upstream), str(SERVICES), str(CHANGES), str(run.seconds)]
    return _worker(run, "watching", command)


def crowd(run: Run, entry: Entry) -> Figures:
    """How long one worker's hub is held when one service has 50,000 instances and they change."""
    return _worker(run, "crowd", [sys.executable, "-m", "bench.crowd", str(run.upstream), str(CROWD)])


def _worker(run: Run, name: str, command: list[str]) -> Figures:
    """The figures that a program prints as its last line."""
    program = run.place.start(name, command, run.core)
    try:
        program.wait(_WATCHING)
        return {key: float(value) for key, value in json.loads(program.tail().splitlines()[-1]).items()}
    except ValueError as error:
        raise BenchError(f"no figures: {program.tail()}") from error
    finally:
        program.stop()


def ours() -> list[Entry]:
    """The gateway alone."""
    return [Entry("gateway", SYSTEMS["gateway"].title, SYSTEMS["gateway"])]


def proxies() -> list[Entry]:
    """Every system that forwards."""
    return [Entry(system.name, system.title, system) for system in SYSTEMS.values() if system.proxies]


def everything() -> list[Entry]:
    """Every system, those that only answer included."""
    return [Entry(system.name, system.title, system) for system in SYSTEMS.values()]


def route_counts() -> list[Entry]:
    """Ours with more and more routes."""
    ours = SYSTEMS["gateway"]
    return [Entry(f"gateway-{count}", f"{ours.title}, {count:,} routes", ours, count) for count in (10, 1_000, 10_000)]


def pattern_counts() -> list[Entry]:
    """Ours with patterns in place of prefixes, of which the one in the middle is asked for."""
    ours = replace(SYSTEMS["gateway"], prepare=gateway(match=by_pattern))
    counts = ((1, "1 pattern"), (10, "10 patterns"), (1_000, "1,000 patterns"))
    return [Entry(f"gateway-regex-{count}", f"{ours.title}, {told}", ours, count) for count, told in counts]


def pythons() -> list[Entry]:
    """Ours on each supported interpreter of this machine, beside Go."""
    ours = SYSTEMS["gateway"]
    entries = [Entry("go", SYSTEMS["go"].title, SYSTEMS["go"]), Entry("gateway", ours.title, ours)]
    for each in interpreters.others():
        title = f"{ours.title}, CPython {each.version}"
        entries.append(Entry(f"gateway-{each.version}", title, replace(ours, prepare=gateway_on(each))))
    return entries


CPU = Column("cpu_us", "CPU µs/request")
RATE = Column("rate", "requests/s", ",.0f")
P50 = Column("p50_ms", "p50 ms", ",.2f")
P99 = Column("p99_ms", "p99 ms", ",.2f")
PEAK = Column("peak_mib", "peak MiB", ",.0f")
SPEED = Column("mb_s", "MB/s", ",.0f")
LOAD = (CPU, RATE, P50, P99, PEAK)
BULK = (Column("cpu_us", "CPU µs/transfer", ",.0f"), SPEED, RATE, PEAK)
SMALL = Closed("/item", JSON)
UPLOAD = content(FILES["10m"])

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("small", "Small JSON, 64 keep-alive connections", start_nginx, SMALL, LOAD, everything),
        Scenario("pythons", "The same on other interpreters", start_nginx, SMALL, LOAD, pythons, "go"),
        Scenario("routes", "The same, more routes", start_nginx, SMALL, LOAD, route_counts, "gateway-10", ranked=False),
        Scenario(
            "regex",
            "The same, routes by pattern",
            start_nginx,
            SMALL,
            LOAD,
            pattern_counts,
            "gateway-regex-1",
            ranked=False,
        ),
        Scenario(
            "post",
            "POST of 1 KiB",
            start_nginx,
            Closed("/post", JSON, "POST", content(1024)),
            LOAD,
            proxies,
        ),
        Scenario(
            "newconn",
            "A new connection for each request",
            start_nginx,
            Closed("/item", JSON, keep=False),
            LOAD,
            everything,
        ),
        Scenario("100k", "100 KiB down", start_nginx, Closed("/100k.bin", content(FILES["100k"])), BULK, proxies),
        Scenario(
            "10m",
            "10 MiB down, 4 connections",
            start_nginx,
            Closed("/10m.bin", content(FILES["10m"]), connections=4),
            BULK,
            proxies,
        ),
        Scenario(
            "upload",
            "10 MiB up, 4 connections",
            start_streaming,
            Closed("/in", told(len(UPLOAD)), "POST", UPLOAD, connections=4, crc=True),
            BULK,
            proxies,
        ),
        Scenario(
            "sse",
            f"{STREAMS:,} event streams, an event a second each",
            start_streaming,
            event_streams,
            (
                Column("p99_ms", "event p99 ms", ",.2f"),
                Column("p50_ms", "event p50 ms", ",.2f"),
                Column("cpu_us", "CPU µs/event"),
                Column("kib", "KiB/stream"),
                PEAK,
            ),
            proxies,
        ),
        Scenario(
            "idle",
            f"{IDLE:,} idle keep-alive connections",
            start_nginx,
            idle_connections,
            (Column("kib", "KiB/connection"), Column("alive", "still alive of 100", ".0f"), PEAK),
            everything,
        ),
        Scenario(
            "latency",
            "Constant rate, half of each system's most",
            start_nginx,
            at_half,
            (
                Column("added_p99_ms", "added p99 ms", ",.2f"),
                P99,
                P50,
                Column("direct_p99_ms", "p99 without gateway ms", ",.2f"),
                RATE,
                CPU,
            ),
            proxies,
        ),
        Scenario(
            "crowd",
            f"One Consul service of {CROWD:,} instances, watched by one worker with traffic",
            lambda place: start_registry(place, 1, CROWD),
            crowd,
            (
                Column("first_hold_ms", "hub held at most ms: first snapshot"),
                Column("one_hold_ms", "one weight changed"),
                Column("all_hold_ms", "all weights"),
                Column("half_hold_ms", "half gone"),
                Column("back_hold_ms", "all back"),
                Column("first_s", "first snapshot s", ",.2f"),
                Column("one_s", "one change seen after s", ",.2f"),
                Column("one_cpu_s", "its CPU s, requests included", ",.2f"),
                Column("kib", "KiB/endpoint", ",.2f"),
                PEAK,
            ),
            ours,
        ),
        Scenario(
            "discovery",
            f"{SERVICES:,} Consul services of {INSTANCES} instances, watched by one worker",
            lambda place: start_registry(place, SERVICES, INSTANCES),
            discovery,
            (
                Column("first_s", "first snapshot s", ",.2f"),
                Column("change_cpu_ms", "CPU ms/change"),
                Column("change_ms", "change seen after ms", ",.0f"),
                Column("hold_ms", "hub held at most ms, changes"),
                Column("idle_hold_ms", "idle"),
                Column("kib", "KiB/endpoint", ",.2f"),
                Column("asked_per_s", "requests/s to the registry, idle", ",.0f"),
                Column("idle_cpu_share", "CPU % of a core, idle"),
                PEAK,
            ),
            ours,
        ),
    )
}
