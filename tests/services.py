"""Real servers that tests talk to: found, started on free loopback ports, stopped.

Rule: a server that cannot be had is skipped loudly, by name (the summary of
`conftest.py`), and never in CI, where `CI` is set and a missing server is a failure.
`scripts/services` gets them; nothing here downloads.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Where `scripts/services` unpacks what it cannot install.
PRIVATE = ROOT / ".cache" / "services"

# How a person gets each, for the summary. The keys are the names of the programs.
HOW = {
    "consul": "run scripts/services, or put consul on PATH",
    "nginx": "apt-get install nginx-light",
    "redis-server": "apt-get install redis-server",
    "etcd": "apt-get install etcd-server",
    "dnsmasq": "apt-get install dnsmasq-base",
    "systemd-socket-activate": "apt-get install systemd",
    "git": "apt-get install git",
}

# Program -> tests that were skipped for want of it.
missed: dict[str, list[str]] = {}


def find(program: str) -> Path | None:
    """The program on PATH, in the sbin folders, or where `scripts/services` put it."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    places += [str(PRIVATE / "usr" / "bin"), str(PRIVATE / "usr" / "sbin")]
    found = shutil.which(program, path=os.pathsep.join(places))
    return Path(found) if found else None


def require(program: str) -> Path:
    """The program, or the calling test is skipped loudly; in CI it fails."""
    found = find(program)
    if found:
        return found
    message = f"{program} is missing ({HOW[program]})"
    if os.environ.get("CI"):
        pytest.fail(message)
    missed.setdefault(program, []).append(os.environ.get("PYTEST_CURRENT_TEST", "?"))
    pytest.skip(message)


def allowed(what: str, why_not: str) -> None:
    """Go on, unless there is a reason why not: then the calling test is skipped loudly, also in CI, where nobody can
    get what the machine does not allow."""
    if why_not:
        missed.setdefault(what, []).append(os.environ.get("PYTEST_CURRENT_TEST", "?"))
        HOW[what] = why_not
        pytest.skip(f"{what}: {why_not}")


class _Ports:
    """Loopback ports for the servers of this process, each given once.

    They lie below the kernel's ephemeral range, so no outgoing connection and no `bind(0)` takes one before its server
    listens, or while that server is stopped. A record lock on byte N of one file holds port N against the other test
    processes of this user until this process ends.
    """

    # Above what servers use by default.
    _FIRST = 12_000

    def __init__(self) -> None:
        ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        # A machine whose ephemeral range begins lower has no ports of this kind.
        self._all = range(self._FIRST, ephemeral if ephemeral > self._FIRST + 1000 else 65_536)
        self._next = random.randrange(len(self._all))
        self._given: set[int] = set()
        # Never closed: closing any descriptor of the file would release every lock of the process.
        self._locks = os.open(Path(tempfile.gettempdir()) / f"gateway-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)

    def give(self) -> int:
        """Raises RuntimeError when every port is taken."""
        for _ in self._all:
            port = self._all[self._next]
            self._next = (self._next + 1) % len(self._all)
            if port not in self._given and self._lock(port):
                if self._is_free(port):
                    self._given.add(port)
                    return port
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, port)
        raise RuntimeError("no free port for a test server")

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True

    @staticmethod
    def _is_free(port: int) -> bool:
        """For TCP and for UDP, as a DNS server takes both."""
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True


_ports = functools.cache(_Ports)


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nothing listens on, for this process alone until it ends."""
    return [_ports().give() for _ in range(count)]


def free_port() -> int:
    return free_ports(1)[0]


def wait_until(ready: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Ask until it is so; a test that waits for another process has no event to wait for."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.02)


def wait_until_read(connection: socket.socket) -> None:
    """Wait until the process at the other end has read everything that was sent on a loopback connection (IPv4)."""
    here, there = _as_in_proc(connection.getsockname()), _as_in_proc(connection.getpeername())

    def read() -> bool:
        waiting = {}
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = row.split()
            waiting[local, remote] = queues
        sent, received = waiting.get((here, there), "0:0"), waiting.get((there, here), "0:0")
        return int(sent.split(":")[0], 16) == int(received.split(":")[1], 16) == 0

    wait_until(read, f"what was sent to {connection.getpeername()} is read")


def _as_in_proc(address: tuple[str, int]) -> str:
    """An IPv4 address and its port as /proc/net/tcp has them."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Does something listen there?"""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Server:
    """One server process: its output kept in a file, its end awaited."""

    def __init__(
        self,
        command: list[str],
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.command = command
        self.cwd = cwd
        self.env = env
        self.pass_fds = pass_fds
        # A file and not a pipe: nobody has to read it for the server to go on.
        self.log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - lives as long as the server
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=self.env,
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
        """Like the function, but a server that has ended is not waited for."""

        def ready_or_dead() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"{self.command[0]} ended before {what}:\n{self.output()}")
            return ready()

        wait_until(ready_or_dead, f"{what}\n{self.output()}", timeout)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Ask it to end and wait; the exit status."""
        process = self.process
        assert process is not None
        if process.poll() is None:
            # A stopped process does not see a SIGTERM.
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def output(self) -> str:
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        """Whatever state it is in: gone afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Consul:
    """A real Consul agent, development mode, state in memory; the same port after a restart."""

    def __init__(self) -> None:
        self.port, server, lan, wan = free_ports(4)
        self.address = f"http://127.0.0.1:{self.port}"
        self.server = Server(
            [
                str(require("consul")), "agent", "-dev", "-log-level", "warn",
                "-bind", "127.0.0.1", "-client", "127.0.0.1",
                "-http-port", str(self.port), "-server-port", str(server),
                "-serf-lan-port", str(lan), "-serf-wan-port", str(wan),
                "-dns-port", "-1", "-grpc-port", "-1",
            ]
        )

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Consul]:
        agent = cls()
        try:
            agent.up()
            yield agent
        finally:
            agent.server.close()

    def up(self) -> None:
        """Start it (again) and wait until it can answer for the catalogue."""
        self.server.start()
        self.server.wait_until(self._leads, "Consul has a leader")

    def down(self) -> None:
        self.server.stop()

    def _leads(self) -> bool:
        try:
            return bool(self.call("GET", "/v1/status/leader"))
        except (OSError, ValueError):
            return False

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call of the HTTP API; the decoded answer, None when it is empty."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.address + path, data=data, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def register(
        self, name: str, ident: str, port: int, *, check: dict[str, object] | None = None, **more: object
    ) -> None:
        """Register one instance with the agent; `check` as in Consul's API, `more` fields as well."""
        service: dict[str, object] = {"Name": name, "ID": ident, "Address": "127.0.0.1", "Port": port, **more}
        if check is not None:
            service["Check"] = check
        self.call("PUT", "/v1/agent/service/register", service)

    def deregister(self, ident: str) -> None:
        self.call("PUT", f"/v1/agent/service/deregister/{ident}")

    def passing(self, name: str) -> set[str]:
        """The ids of the instances that Consul reports as passing."""
        return {entry["Service"]["ID"] for entry in self.call("GET", f"/v1/health/service/{name}?passing")}
