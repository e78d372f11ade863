"""A gateway in a process of its own, between raw sockets on both sides.

Rule: what runs is what ships: gunicorn as a command, the shipped settings, a YAML file. Only the worker class
and the address are chosen here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import trustme

from gateway.testing import PATIENCE, FakeUpstream, RawClient, RawResponse

ROOT = Path(__file__).resolve().parents[2]
OWN_WORKER = "gateway.server.worker"

# What no answer may tell a client of the inside.
INSIDE = (b"127.0.0.1", b"localhost", b"Traceback", b"Errno", b"errno", b'.py"', b"gevent", b"urllib3")


@dataclass(frozen=True)
class Door:
    """One way into the gateway. `own`: our worker parses the bytes; else gunicorn's parser does and answers
    some malformed requests before the gateway sees them. `app`: what gunicorn loads. `tls`: clients speak it;
    `upstream_tls`: upstreams do."""

    name: str
    worker_class: str
    own: bool
    app: str = "gateway:create_app()"
    tls: bool = False
    upstream_tls: bool = False

    @property
    def scheme(self) -> bytes:
        """What clients speak, and the port that goes without saying."""
        return b"https" if self.tls else b"http"

    @property
    def default_port(self) -> bytes:
        return b"443" if self.tls else b"80"


def doors() -> list[Door]:
    """Gunicorn's gevent worker; and ours, by its direct door and with a middleware in the way of that."""
    found = [Door("gevent", "gevent", own=False)]
    if (ROOT / (OWN_WORKER.replace(".", "/") + ".py")).exists() and importlib.util.find_spec(OWN_WORKER):
        own = f"{OWN_WORKER}.GatewayWorker"
        found += [
            Door("direct", own, own=True),
            Door("wsgi", own, own=True, app="tests.conformance.wrapped:app()"),
        ]
    return found


def tls_doors() -> list[Door]:
    """The direct door with TLS on the one side, and on the other."""
    return [
        replaced
        for door in doors()
        if door.name == "direct"
        for replaced in (replace(door, name="tls", tls=True), replace(door, name="to-tls", upstream_tls=True))
    ]


class Certificate:
    """A certificate for this machine's loopback and the authority that signed it, for both sides of the gateway."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._issued = self._authority.issue_cert("localhost", "127.0.0.1")
        self.client = ssl.create_default_context()
        self._authority.configure_trust(self.client)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._issued.configure_cert(self.server)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Files of it: key and certificate together; the authority."""
        both, authority = folder / "server.pem", folder / "authority.pem"
        self._issued.private_key_and_cert_chain_pem.write_to_path(str(both))
        self._authority.cert_pem.write_to_path(str(authority))
        return both, authority


@functools.cache
def certificate() -> Certificate:
    return Certificate()


class GatewayProcess:
    """gunicorn with the gateway in it, listening on an ephemeral loopback port."""

    def __init__(self, config: str, folder: Path, door: Door, *, workers: int = 1,
                 environ: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self.door = door
        self.log_path = folder / "access.log"
        self.error_path = folder / "error.log"
        config_path = folder / "gateway.yaml"
        config_path.write_text(f"{config}\naccess_log: {{path: {json.dumps(str(self.log_path))}}}\n")
        command = [sys.executable, "-m", "gunicorn", "-c", "conf/gunicorn.conf.py", "-k", door.worker_class,
                   "-w", str(workers), "-b", "127.0.0.1:0"]  # fmt: skip
        settings = {**os.environ, "GATEWAY_CONFIG": str(config_path), "PYTHONPATH": str(ROOT)}
        # On as by default, but on a port of its own, unless the configuration wants it where data is served.
        admin = "inline" if "bind: inline" in config else "127.0.0.1:0"
        settings |= {"GATEWAY_ADMIN": admin, **(environ or {})}
        if door.tls or door.upstream_tls:
            both, authority = certificate().write(folder)
            settings["SSL_CERT_FILE"] = str(authority)
            if door.tls:
                command += ["--certfile", str(both), "--keyfile", str(both)]
        command.append(door.app)
        for name in ("PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS", "DYNO"):
            if name not in (environ or {}):
                settings.pop(name, None)
        with self.error_path.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdout=errors, stderr=errors, start_new_session=True
            )
        try:
            self.port = self._listening()
            self._ready()
        except BaseException:
            self.stop()
            raise

    def _listening(self) -> int:
        """The port, from the line that gunicorn writes once the socket listens."""
        found: list[str] = []

        def told() -> bool:
            found[:] = re.findall(r"Listening at: https?://127\.0\.0\.1:(\d+)", self.errors())
            return bool(found)

        self._await(told, "gunicorn to listen")
        return int(found[0])

    def _ready(self) -> None:
        def ready() -> bool:
            with self.client() as client:
                return client.request(b"GET /-/readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").status == 200

        self._await(ready, "the gateway to be ready")

    def _await(self, holds: Callable[[], bool], what: str, within: float = 3 * PATIENCE) -> None:
        deadline = time.monotonic() + within
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}:\n{self.errors()}")
            time.sleep(0.01)

    def client(self, **options: Any) -> RawClient:
        # The limits of gunicorn's own worker show by waiting in vain: not longer than they have to.
        patience = 3 * PATIENCE if self.door.own else PATIENCE
        return RawClient(self.port, tls=certificate().client if self.door.tls else None, **{"timeout": patience, **options})

    def errors(self) -> str:
        return self.error_path.read_text(errors="replace")

    def logged(self, target: str, *, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The access log's last record of that target, once it is there."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [record for record in self.records() if record["target"] == target and where(record)]
            return bool(found)

        self._await(there, f"the record of {target} in\n{self.log_path.read_text()[-2000:]}", PATIENCE)
        return found[-1]

    def records(self) -> Iterator[dict[str, Any]]:
        """The access log as far as it is written."""
        if self.log_path.exists():
            text = self.log_path.read_text()
            yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def open_sockets(self) -> int:
        """Sockets that the first worker holds."""
        return len(self._sockets())

    def open_connections(self) -> int:
        """Those of them that it does not listen at."""
        return len(self._sockets() - _listening())

    def _sockets(self) -> set[str]:
        folder = Path(f"/proc/{self.worker_pids()[0]}/fd")
        links = [_link(entry) for entry in folder.iterdir()]
        return {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}

    def resident(self) -> int:
        """Bytes of memory that the first worker has resident."""
        status = Path(f"/proc/{self.worker_pids()[0]}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def stop(self) -> int:
        """End it as a supervisor does; kill it only when it does not obey."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""  # closed meanwhile


def _listening() -> set[str]:
    """The inodes of all sockets of this machine that listen."""
    found = set()
    # A machine without IPv6 has no tcp6.
    for table in filter(Path.exists, (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))):
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
        found |= {row[9] for row in rows if row[3] == "0A"}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return found | {row[6] for row in rows if int(row[3], 16) & 0x10000}  # __SO_ACCEPTCON


@dataclass
class Scene:
    """One gateway and the upstreams it was told of, by the names that its configuration uses."""

    gateway: GatewayProcess
    upstreams: dict[str, FakeUpstream]
    door: Door

    def client(self, **options: Any) -> RawClient:
        return self.gateway.client(**options)

    def ask(self, data: bytes, **options: Any) -> RawResponse:
        """One request on a connection of its own."""
        with self.client(**options) as client:
            return client.request(data)


@contextmanager
def refused_port() -> Iterator[int]:
    """A port that refuses connections for as long as this is open: bound, not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    """A port whose connection attempts are never answered: its accept queue is full, so SYNs are dropped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(4):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
                waiting.append(sock)
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


@contextmanager
def scene(config: str, names: tuple[str, ...], folder: Path, door: Door) -> Iterator[Scene]:
    """Start what a configuration needs. In it `$main` stands for the URL of the FakeUpstream "main" (and so on),
    `$refused` and `$silent` for URLs that cannot be reached."""
    upstreams = {name: FakeUpstream(tls=certificate().server if door.upstream_tls else None) for name in names}
    with refused_port() as refused, silent_port() as silent:
        urls = {name: fake.url for name, fake in upstreams.items()}
        scheme = "https" if door.upstream_tls else "http"
        urls |= {"refused": f"{scheme}://127.0.0.1:{refused}", "silent": f"{scheme}://127.0.0.1:{silent}"}
        gateway = None
        try:
            gateway = GatewayProcess(Template(config).substitute(urls), folder, door)
            yield Scene(gateway, upstreams, door)
        finally:
            if gateway:
                gateway.stop()
            for fake in upstreams.values():
                fake.close()


def request(target: bytes = b"/", *lines: bytes, method: bytes = b"GET", host: bytes | None = b"example.test",
            body: bytes | None = None, version: bytes = b"HTTP/1.1") -> bytes:  # fmt: skip
    """A whole request; a body brings its Content-Length."""
    head = [b"%s %s %s" % (method, target, version)]
    if host is not None:
        head.append(b"Host: " + host)
    head += lines
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


def check_problem(response: RawResponse, status: int, reason: str, method: bytes = b"GET") -> dict[str, Any]:
    """The answer is one that the gateway made itself, as promised: status, reason, problem+json, nothing of the inside."""
    assert (response.status, response.header(b"gateway-error")) == (status, reason.encode()), response
    assert response.header(b"content-type") == b"application/problem+json"
    assert not [word for word in INSIDE if word in response.head]
    if method == b"HEAD":
        assert response.framing == "none"
        return {}
    problem: dict[str, Any] = json.loads(response.body)
    assert set(problem) == {"type", "title", "status", "detail", "reason", "request_id"}
    assert (problem["status"], problem["reason"]) == (status, reason)
    assert not [word for word in INSIDE if word in response.body]
    return problem


def check_refused(scene: Scene, client: RawClient, statuses: tuple[int, ...] = (400,)) -> RawResponse:
    """The request was refused and the connection closed. Our own parser also says it as a problem;
    gunicorn's answers with a page of its own. What the gateway refuses behind gunicorn's parser was well framed,
    and an application cannot make gunicorn close (limit "refusal-keeps-open"): what follows is served there."""
    response = client.read_response()
    assert response.status in statuses, response
    reason = response.header(b"gateway-error")
    assert reason or not scene.door.own
    if reason:
        check_problem(response, response.status, reason.decode())
    if scene.door.own or not reason:
        assert client.ended(within=3), "the connection was left open"
    return response
