"""What slow clients do to a service of eight threads behind a proxy, and to its other clients.

Rule: the proxy is as shipped but for its buffers; the service is gunicorn's threaded worker. 200 slow clients come
within two seconds. Then ordinary clients come fifty times a second, whatever became of those before, each on a
connection of its own: counted is who has the whole answer within a second.

python -m tests.shield [PROXY | ATTACK]...: those alone; prints a table (Markdown).
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gevent
from gevent import socket

from tests import nginx_server, services
from tests.conformance.harness import GatewayProcess, doors

CONNECTIONS = 200
THREADS = 8
# Slow clients that come in a second.
_RATE = 100
# Seconds: before ordinary clients come, while they come, and what one of them waits for its answer.
_ALL_THERE = 4.0
_MEASURED = 15.0
_PATIENCE = 1.0
# Ordinary requests a second.
_ORDINARY = 50
# Share of them that has its answer in time where a slow client makes no difference.
_SERVED = 0.99
# Seconds without a miss at the end, after which a stall was a passing one.
_RECOVERED = 3.0
_ASK = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"

# A few bytes every three seconds keep within the time limits of both proxies for as long as this takes.
_BODIES = ("-B", "-i", "3", "-x", "10")
_READERS = ("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "1")
# Name -> what slowhttptest is told, and its target.
ATTACKS: dict[str, tuple[tuple[str, ...], str]] = {
    "-B, 4 KiB": ((*_BODIES, "-s", str(4 * 1024)), "/"),
    "-B, 200 KiB": ((*_BODIES, "-s", str(200 * 1024)), "/"),
    "-X, 32 KiB": (_READERS, f"/{32 * 1024}"),
    "-X, 2 MiB": (_READERS, f"/{2 * 1024 * 1024}"),
    "-X, 4 MiB": (_READERS, f"/{4 * 1024 * 1024}"),
    "-X, 8 MiB": (_READERS, f"/{8 * 1024 * 1024}"),
}

_CONFIG = """
version: 1
server: {{name: gw}}
admin: null
defaults: {{{defaults}}}
upstreams:
  main: {{endpoints: ["http://127.0.0.1:{port}"]}}
routes:
  - {{name: main, match: {{prefix: /}}, upstream: main}}
"""
_NGINX = "server {{ listen 127.0.0.1:PORT backlog=4096; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}"


@contextmanager
def _gateway(defaults: str, upstream: int, folder: Path) -> Iterator[int]:
    direct = next(door for door in doors() if door.name == "direct")
    process = GatewayProcess(_CONFIG.format(port=upstream, defaults=defaults.format(folder=folder)), folder, direct)
    try:
        yield process.port
        if "Traceback" in process.errors():
            raise AssertionError(process.errors())
    finally:
        process.stop()


@contextmanager
def _nginx(upstream: int, folder: Path) -> Iterator[int]:
    with nginx_server.running(folder, _NGINX.format(port=upstream), 4096) as port:
        yield port


def _gateway_with(defaults: str) -> Callable[[int, Path], contextmanager[int]]:  # type: ignore[type-arg]
    return lambda upstream, folder: _gateway(defaults, upstream, folder)


PROXIES = {
    "none": _gateway_with("buffer: {{request: 0, response: 0}}"),
    "defaults": _gateway_with(""),
    "spool": _gateway_with("buffer: {{spool: {folder}}}"),
    "large spool": _gateway_with("buffer: {{spool: {folder}, spool_max: 4GiB}}"),
    "nginx": _nginx,
}


@contextmanager
def _service() -> Iterator[int]:
    """The service's port."""
    port = services.free_port()
    server = services.Server(
        [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", str(THREADS), "-w", "1",
         "-b", f"127.0.0.1:{port}", "tests.threaded_service:app"], cwd=services.ROOT,
    )  # fmt: skip
    try:
        server.start()
        server.wait_until(lambda: services.accepts(port), "gunicorn listens")
        yield port
    finally:
        server.close()


@dataclass
class Ordinary:
    """Ordinary requests: how many were sent, the seconds that each answer took which came in time, and how long after
    the first one the last one was sent that had none."""

    sent: int = 0
    took: list[float] = field(default_factory=list)
    missed_until: float = 0.0
    _began: float = 0.0

    def run(self, port: int, seconds: float) -> None:
        self._began = began = time.monotonic()
        waiting = []
        while time.monotonic() < began + seconds:
            waiting.append(gevent.spawn(self._ask, port))
            gevent.sleep(max(0.0, began + len(waiting) / _ORDINARY - time.monotonic()))
        gevent.joinall(waiting)

    def _ask(self, port: int) -> None:
        self.sent += 1
        began = time.monotonic()
        if self._answered(port):
            self.took.append(time.monotonic() - began)
        else:
            self.missed_until = max(self.missed_until, began - self._began)

    def _answered(self, port: int) -> bool:
        """Whether the whole answer came in time."""
        got = b""
        with gevent.Timeout(_PATIENCE, False):
            try:
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.sendall(_ASK)
                    while data := sock.recv(4096):
                        got += data
            except OSError:
                return False
            return got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\n\0\0")
        return False

    @property
    def share(self) -> float:
        return len(self.took) / self.sent

    def __str__(self) -> str:
        if self.share >= _SERVED:
            word = "served normally"
        elif self.missed_until < _MEASURED - _RECOVERED:
            word = f"stalls for {self.missed_until:.0f} s"
        else:
            word = "stalls"
        middle = f", {statistics.median(self.took) * 1000:.1f} ms" if self.took else ""
        return f"{word}: {100 * self.share:.0f} %{middle}"


@contextmanager
def _slow_clients(attack: str, port: int, report: Path) -> Iterator[None]:
    """They are there. Raises AssertionError when slowhttptest did not hold most of them open."""
    arguments, target = ATTACKS[attack]
    # The probe of slowhttptest itself is of no interest.
    command = ["slowhttptest", "-c", str(CONNECTIONS), "-r", str(_RATE), "-l", str(int(_ALL_THERE + _MEASURED + 2)), "-p", "3",
               *arguments, "-u", f"http://127.0.0.1:{port}{target}", "-g", "-o", str(report)]  # fmt: skip
    with report.with_suffix(".out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        gevent.sleep(_ALL_THERE)
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()
    with report.with_suffix(".csv").open() as file:
        rows = [row for row in csv.DictReader(file) if _ALL_THERE <= int(row["Seconds"]) <= _ALL_THERE + _MEASURED]
    held = min((int(row["Connected"]) for row in rows), default=0)
    if held < 0.9 * CONNECTIONS:
        raise AssertionError(f"only {held} slow connections were held open")


def measured(proxy: str, attack: str) -> Ordinary:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(_service())
        port = stack.enter_context(PROXIES[proxy](upstream, folder))
        if attack != _QUIET:
            stack.enter_context(_slow_clients(attack, port, folder / "slow"))
        ordinary = Ordinary()
        ordinary.run(port, _MEASURED if attack != _QUIET else _ALL_THERE)
    return ordinary


_QUIET = "nobody"


def main(names: list[str]) -> int:
    if unknown := set(names) - set(PROXIES) - set(ATTACKS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join([*PROXIES, *ATTACKS])}")
        return 2
    if shutil.which("slowhttptest") is None:
        print("slowhttptest is not installed (Debian has it as a package of that name)")
        return 2
    proxies = [name for name in PROXIES if name in names] or list(PROXIES)
    attacks = [_QUIET, *([name for name in ATTACKS if name in names] or ATTACKS)]
    print(f"| slow clients | {' | '.join(proxies)} |\n|{' --- |' * (len(proxies) + 1)}")
    for attack in attacks:
        print(f"| {attack} | {' | '.join(str(measured(proxy, attack)) for proxy in proxies)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
