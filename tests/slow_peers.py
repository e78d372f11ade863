"""Clients that hold connections without using them, a thousand at a time, against a real gateway, and a normal
client beside them.

Rule: what is measured is what ships, with its default limits, and it is the gateway that is measured: it has a
core of its own, the upstream is nginx, and the normal client asks nginx itself in turn with the gateway, so
that one sees what the machine adds (slowhttptest runs when nobody else wants to). It has failed when a slow connection outlives its limit or costs more
than it may, when the normal client misses an answer or waits thrice as long as in quiet, or when slowhttptest
calls the service unavailable.

python -m tests.slow_peers [heads | bodies | readers | together | tunnels]...
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import csv
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent.server import StreamServer

from gateway.testing import RawClient, Truncated, Wire, answer, head, parse_head
from tests import nginx_server
from tests.conformance.harness import GatewayProcess, doors

CONNECTIONS = 1000
# How fast they come, a second.
_RATE = 250
TUNNELS = 10_000
# How long a slow connection may be seen behind its limit: looks are half a second apart, and the machine is busy.
_SLACK = 10.0
_QUIET_SECONDS = 10.0
# What a slow connection may cost of the worker's memory, its upstream connection included.
_MOST_MEMORY = 20 * 1024
# How much longer an answer may take the normal client, at the 99th percentile.
_MOST_SLOWER = 3.0
# So many seconds may the end of all tunnels take.
_ALL_ENDED = 120.0
_BIG = 32 * 1024 * 1024
_DIRECT = next(door for door in doors() if door.name == "direct")

CONFIG = """
version: 1
server: {{name: gw, overload: 0, limits: {{connections: {connections}}}}}
admin: null
upstreams:
  main: {{endpoints: ["http://127.0.0.1:{port}"]}}
routes:
  - {{name: main, match: {{prefix: /}}, upstream: main}}
"""

_ASK = b"GET /ok HTTP/1.1\r\nHost: a.test\r\n\r\n"
_HANDSHAKE = b"GET /tunnel HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@dataclass(frozen=True)
class Attack:
    """What slowhttptest is told, and after how many seconds the gateway has to have cut each connection."""

    arguments: tuple[str, ...]
    target: str
    limit: float


ATTACKS = {
    # server.timeouts.header: 5s
    "heads": Attack(("-H", "-i", "3", "-x", "24"), "/ok", 5.0),
    # server.min_rate: 256B a second, averaged over 30 s (a few bytes every three seconds keep within timeouts.body)
    "bodies": Attack(("-B", "-i", "3", "-s", "8192", "-x", "10"), "/post", 30.0),
    # server.min_rate again: 32 bytes every five seconds
    "readers": Attack(("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "1"), "/big", 35.0),
}

# A POST is answered when its body is there. The send buffer: what nginx's kernel holds of an answer is this kernel's,
# too, and when a thousand times 32 MiB wait in it, TCP runs short of memory for everybody (tcp(7), tcp_mem).
NGINX = """
  root {folder}; keepalive_requests 1000000; keepalive_timeout 300; client_body_timeout 300; send_timeout 300;
  server {{
    listen 127.0.0.1:PORT backlog=4096 sndbuf=64k;
    location /post {{ proxy_pass http://127.0.0.1:PORT/ok; proxy_method GET; }}
  }}
"""


class _Tunnels:
    """An upstream that answers, or opens a tunnel that says nothing (/tunnel)."""

    def __init__(self) -> None:
        self._server = StreamServer(("127.0.0.1", 0), self._serve, backlog=2048)
        self._server.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.stop(timeout=0)

    def _serve(self, sock: socket.socket, _: Any) -> None:
        wire = Wire(sock, timeout=600.0)
        try:
            while self._one(wire):
                wire.received.clear()
        except (OSError, Truncated):
            pass  # the gateway ended it
        finally:
            wire.close()

    def _one(self, wire: Wire) -> bool:
        line, _ = parse_head(wire.read_until(b"\r\n\r\n"))
        target = line.split(b" ")[1]
        if target == b"/tunnel":
            wire.send(head(101, b"Upgrade: websocket", b"Connection: Upgrade"))
            while data := wire.read_some():
                wire.received.clear()
                wire.send(data)
            return False
        wire.send(answer(b"ok"))
        return True


@dataclass(frozen=True)
class Took:
    """How long the normal client's answers took, in milliseconds."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Took:
        return cls(len(seconds), statistics.median(seconds) * 1000, statistics.quantiles(seconds, n=100)[98] * 1000)

    def __str__(self) -> str:
        return f"{self.count} answers, p50 {self.p50:.2f} ms, p99 {self.p99:.2f} ms"


class Normal:
    """A normal client of some ports (`steady_client`)."""

    def __init__(self, *ports: int) -> None:
        self._ports = [str(port) for port in ports]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.steady_client", *self._ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.took: list[Took] = []
        self.failed: list[str] = []

    def stop(self) -> None:
        said = json.loads(self._process.communicate()[0])
        self.took = [Took.of(said["took"][port]) for port in self._ports]
        self.failed = [said["failed"]] if said["failed"] else []


@contextmanager
def _beside(*ports: int) -> Iterator[Normal]:
    normal = Normal(*ports)
    try:
        yield normal
    finally:
        normal.stop()


def _place(pids: list[int], cores: set[int]) -> None:
    """Give processes a place of their own: cores, and before all others there if that is allowed."""
    for pid in pids:
        os.sched_setaffinity(pid, cores)
        with suppress(PermissionError):
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


@contextmanager
def _gateway(upstream: int, connections: int = 10_000) -> Iterator[GatewayProcess]:
    with tempfile.TemporaryDirectory() as folder:
        process = GatewayProcess(CONFIG.format(port=upstream, connections=connections), Path(folder), _DIRECT)
        try:
            yield process
        finally:
            process.stop()


# -- slowhttptest ---------------------------------------------------------------------------------


class Attacked:
    """A run of slowhttptest for each of the attacks, and how many connections the gateway had meanwhile."""

    def __init__(self, gateway: GatewayProcess, attacks: dict[str, Attack], folder: Path) -> None:
        self._gateway = gateway
        self._reports = [folder / name for name in attacks]
        self.most = self.resident = 0
        # Seconds from the start to the last look that saw slow connections.
        self.seen_until = 0.0
        with ExitStack() as stack:
            began = time.monotonic()
            running = [stack.enter_context(self._run(attacks[path.name], path)) for path in self._reports]
            while any(process.poll() is None for process in running):
                self._look(time.monotonic() - began)
                gevent.sleep(0.5)

    @contextmanager
    def _run(self, attack: Attack, report: Path) -> Iterator[subprocess.Popen[bytes]]:
        url = f"http://127.0.0.1:{self._gateway.port}{attack.target}"
        command = ["slowhttptest", "-c", str(CONNECTIONS), "-r", str(_RATE), "-l", str(int(attack.limit + 2 * _SLACK)), "-p", "3",
                   *attack.arguments, "-u", url, "-g", "-o", str(report)]  # fmt: skip
        with report.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _look(self, at: float) -> None:
        # The normal client's connection, its upstream's, and slowhttptest's own probe are not slow ones.
        count = self._gateway.open_connections()
        self.most = max(self.most, count)
        self.resident = max(self.resident, self._gateway.resident())
        if count > 50:
            self.seen_until = at

    def unavailable(self) -> int:
        """Seconds at which a probe of slowhttptest's got no answer in 3 s."""
        seconds = 0
        for report in self._reports:
            with report.with_suffix(".csv").open() as file:
                rows = list(csv.DictReader(file))
            if not rows:
                raise AssertionError("slowhttptest has written nothing")
            seconds += sum(1 for row in rows if row["Service Available"].strip() in ("0", "NO"))
        return seconds


def attacked(name: str, attacks: dict[str, Attack]) -> list[str]:
    """Run these attacks at the same time; what was wrong."""
    if shutil.which("slowhttptest") is None:
        return ["slowhttptest is not installed (Debian has it as a package of that name)"]
    number = CONNECTIONS * len(attacks)
    limit = max(attack.limit for attack in attacks.values())
    _raise_open_files(4 * number)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "ok").write_text("ok")
        with (folder / "big").open("wb") as big:
            big.truncate(_BIG)
        upstream = stack.enter_context(nginx_server.running(folder, NGINX.format(folder=folder), 10_000))
        gateway = stack.enter_context(_gateway(upstream))
        core, *others = cores = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, cores)
        _place(gateway.worker_pids(), {core})
        _place(_children(), set(others) or cores)
        os.sched_setaffinity(0, set(others) or cores)
        with _beside(gateway.port, upstream) as quiet:
            gevent.sleep(_QUIET_SECONDS)
        before = gateway.resident()
        with _beside(gateway.port, upstream) as normal:
            run = Attacked(gateway, attacks, folder)
        memory = (run.resident - before) / number
        for when, client in (("quiet", quiet), ("meanwhile", normal)):
            print(f"{name}: {when}: {client.took[0]}; nginx itself: {client.took[1]}")
        print(
            f"{name}: up to {run.most} sockets, gone after {run.seen_until:.1f} s (limit {limit:.0f} s); "
            f"{memory / 1024:.1f} KiB each; slowhttptest: unavailable for {run.unavailable()} s", flush=True,
        )  # fmt: skip
        wrong = [f"the normal client: {failure}" for failure in quiet.failed + normal.failed]
        if normal.took[0].p99 > _MOST_SLOWER * quiet.took[0].p99:
            wrong.append(f"the normal client's p99 is {normal.took[0].p99 / quiet.took[0].p99:.1f} times what it was")
        if memory > _MOST_MEMORY:
            wrong.append(f"{memory / 1024:.1f} KiB for each slow connection")
        if run.most < number // 2:
            wrong.append(f"only {run.most} connections were there at once")
        if run.seen_until > CONNECTIONS / _RATE + limit + _SLACK:
            wrong.append(f"slow connections after {run.seen_until:.1f} s")
        if run.unavailable():
            wrong.append("slowhttptest calls the service unavailable")
        if "Traceback" in gateway.errors():
            wrong.append(gateway.errors())
    return [f"{name}: {one}" for one in wrong]


def _children() -> list[int]:
    """The processes that this one has started and that run."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


# -- tunnels ----------------------------------------------------------------------------------------


def _raise_open_files(wanted: int) -> int:
    """Let this process and its children have so many files, if that is allowed; how many it is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _tunnel(port: int) -> RawClient:
    client = RawClient(port, timeout=60.0)
    client.send(_HANDSHAKE)
    if not client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 "):
        raise AssertionError("no tunnel")
    return client


def tunnels() -> list[str]:
    """As many idle tunnels through one worker as files may be open for, 10,000 at most."""
    number = min(TUNNELS, (_raise_open_files(2 * TUNNELS + 50) - 50) // 2)
    upstream = _Tunnels()
    wrong = []
    try:
        with _gateway(upstream.port, number + 100) as gateway, ExitStack() as stack:
            with RawClient(gateway.port) as client:
                client.request(_ASK)
            before, sockets = gateway.resident(), gateway.open_connections()
            opened = [stack.enter_context(_tunnel(gateway.port)) for _ in range(number)]
            held = gateway.resident() - before
            if gateway.open_connections() < 2 * number:
                wrong.append(f"{gateway.open_connections()} sockets for {number} tunnels")
            with _beside(gateway.port) as normal:
                gevent.sleep(_QUIET_SECONDS)
            for client in opened:
                client.send(b"ping")
            answered = sum(1 for client in opened if client.read_exactly(4) == b"ping")
            print(f"tunnels: {number} held, {held / number / 1024:.1f} KiB each; {answered} of them answer; a client beside: {normal.took[0]}")
            wrong += normal.failed
            for client in opened:
                client.close()
            gateway._await(lambda: gateway.open_connections() <= sockets, "the tunnels to end", _ALL_ENDED)
            if answered != number:
                wrong.append(f"{number - answered} do not answer")
            if "Traceback" in gateway.errors():
                wrong.append(gateway.errors())
    finally:
        upstream.close()
    return [f"tunnels: {one}" for one in wrong]


def main(names: list[str]) -> int:
    wrong = []
    for name in names or [*ATTACKS, "together", "tunnels"]:
        if name == "tunnels":
            wrong += tunnels()
        else:
            wrong += attacked(name, ATTACKS if name == "together" else {name: ATTACKS[name]})
    for one in wrong:
        print(one)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
