"""Clients that hold connections without using them, a thousand at a time, against a real gateway, and a normal
client beside them.

Rule: what is measured is what ships, with its default limits. It has failed when a slow connection outlives its
limit, when the normal client misses an answer, or when slowhttptest calls the service unavailable.

python -m tests.slow_peers [heads | bodies | readers | tunnels]...
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import csv
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer

from gateway.testing import RawClient, Truncated, Wire, answer, head, parse_head, values
from tests.conformance.harness import GatewayProcess, doors

CONNECTIONS = 1000
# How fast they come, a second.
_RATE = 250
TUNNELS = 10_000
# How long a slow connection may be seen behind its limit: looks are half a second apart, and the machine is busy.
_SLACK = 10.0
# How often the normal client asks.
_PAUSE = 0.01
_QUIET_SECONDS = 5.0
_BIG = b"0123456789abcdef" * 65536
_BIG_PIECES = 32
_DIRECT = next(door for door in doors() if door.name == "direct")

CONFIG = """
version: 1
server: {{name: gw, limits: {{connections: {connections}}}}}
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
    "bodies": Attack(("-B", "-i", "3", "-s", "8192", "-x", "10"), "/ok", 30.0),
    # server.min_rate again: 32 bytes every five seconds
    "readers": Attack(("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "1"), "/big", 35.0),
}


class _Upstream:
    """Answers at once, with much (/big), or by a tunnel that says nothing (/tunnel)."""

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
        line, fields = parse_head(wire.read_until(b"\r\n\r\n"))
        target = line.split(b" ")[1]
        if target == b"/tunnel":
            wire.send(head(101, b"Upgrade: websocket", b"Connection: Upgrade"))
            while data := wire.read_some():
                wire.received.clear()
                wire.send(data)
            return False
        if target == b"/big":
            wire.send(head(200, b"Content-Length: %d" % (len(_BIG) * _BIG_PIECES)))
            for _ in range(_BIG_PIECES):
                wire.send(_BIG)
            return True
        for length in values(fields, b"content-length"):
            wire.read_exactly(int(length))
        wire.send(answer(b"ok"))
        return True


class Normal:
    """A client that asks a hundred times a second over one connection, and how long each answer took."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = Event()
        self.took: list[float] = []
        self.failed: list[str] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with RawClient(self._port, timeout=20.0) as client:
                    while not self._stop.wait(_PAUSE):
                        began = time.perf_counter()
                        status = client.request(_ASK).status
                        self.took.append(time.perf_counter() - began)
                        if status != 200:
                            self.failed.append(f"status {status}")
            except (OSError, Truncated) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return

    def stop(self) -> None:
        self._stop.set()
        self._greenlet.get()

    @property
    def told(self) -> str:
        median, p99 = statistics.median(self.took), statistics.quantiles(self.took, n=100)[98]
        return f"{len(self.took)} answers, p50 {median * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms, {len(self.failed)} failed"


@contextmanager
def _beside(port: int) -> Iterator[Normal]:
    normal = Normal(port)
    try:
        yield normal
    finally:
        normal.stop()


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
    """One run of slowhttptest, and how many connections the gateway had meanwhile."""

    def __init__(self, gateway: GatewayProcess, attack: Attack, folder: Path) -> None:
        self._gateway = gateway
        self._report = folder / "report"
        url = f"http://127.0.0.1:{gateway.port}{attack.target}"
        command = ["slowhttptest", "-c", str(CONNECTIONS), "-r", str(_RATE), "-l", str(int(attack.limit + 2 * _SLACK)), "-p", "3",
                   *attack.arguments, "-u", url, "-g", "-o", str(self._report)]  # fmt: skip
        self.most = self.resident = 0
        # Seconds from the start to the last look that saw slow connections.
        self.seen_until = 0.0
        with (folder / "output").open("wb") as output:
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            try:
                while process.poll() is None:
                    self._look(time.monotonic() - began)
                    gevent.sleep(0.5)
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
        """Seconds at which slowhttptest's probe got no answer in 3 s."""
        with self._report.with_suffix(".csv").open() as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise AssertionError("slowhttptest has written nothing")
        return sum(1 for row in rows if row["Service Available"].strip() in ("0", "NO"))


def attacked(name: str) -> list[str]:
    """Run one of ATTACKS; what was wrong."""
    if shutil.which("slowhttptest") is None:
        return ["slowhttptest is not installed (Debian has it as a package of that name)"]
    attack = ATTACKS[name]
    upstream = _Upstream()
    wrong = []
    try:
        with _gateway(upstream.port) as gateway, tempfile.TemporaryDirectory() as folder:
            with _beside(gateway.port) as quiet:
                gevent.sleep(_QUIET_SECONDS)
            before = gateway.resident()
            with _beside(gateway.port) as normal:
                run = Attacked(gateway, attack, Path(folder))
            print(f"{name}: quiet:    {quiet.told}")
            print(f"{name}: meanwhile: {normal.told}")
            print(
                f"{name}: up to {run.most} connections, gone after {run.seen_until:.1f} s (limit {attack.limit:.0f} s); "
                f"{(run.resident - before) / CONNECTIONS / 1024:.1f} KiB each; slowhttptest: unavailable for {run.unavailable()} s", flush=True,
            )  # fmt: skip
            wrong += [f"the normal client: {failure}" for failure in quiet.failed + normal.failed]
            if run.most < CONNECTIONS // 2:
                wrong.append(f"only {run.most} connections were there at once")
            if run.seen_until > CONNECTIONS / _RATE + attack.limit + _SLACK:
                wrong.append(f"slow connections after {run.seen_until:.1f} s")
            if run.unavailable():
                wrong.append("slowhttptest calls the service unavailable")
            if "Traceback" in gateway.errors():
                wrong.append(gateway.errors())
    finally:
        upstream.close()
    return [f"{name}: {one}" for one in wrong]


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
    number = min(TUNNELS, (_raise_open_files(2 * TUNNELS + 200) - 200) // 2)
    upstream = _Upstream()
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
            print(f"tunnels: {number} held, {held / number / 1024:.1f} KiB each; {answered} of them answer; a client beside: {normal.told}")
            wrong += normal.failed
            for client in opened:
                client.close()
            gateway._await(lambda: gateway.open_connections() <= sockets, "the tunnels to end")
            if answered != number:
                wrong.append(f"{number - answered} do not answer")
            if "Traceback" in gateway.errors():
                wrong.append(gateway.errors())
    finally:
        upstream.close()
    return [f"tunnels: {one}" for one in wrong]


def main(names: list[str]) -> int:
    wrong = []
    for name in names or [*ATTACKS, "tunnels"]:
        wrong += tunnels() if name == "tunnels" else attacked(name)
    for one in wrong:
        print(one)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
