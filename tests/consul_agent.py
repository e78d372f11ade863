"""Consul as a server that remembers, and a wire before it that counts what it is asked.

Rule: everything is the real agent's; `services.Consul` starts and stops it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import services


class LastingConsul(services.Consul):
    """A server of one with its state on disk: unlike one in development mode it comes back from a
    SIGKILL with every registration that it had."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        server, lan, wan = services.free_ports(3)
        config = folder / "consul.json"
        settings = {
            "server": True, "bootstrap": True, "data_dir": str(folder / "data"), "node_name": "one",
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "log_level": "warn",
            "ports": {"http": self.port, "server": server, "serf_lan": lan, "serf_wan": wan, "dns": -1, "grpc": -1},
            # Elections of a server of one need not wait for others.
            "performance": {"raft_multiplier": 1},
        }  # fmt: skip
        config.write_text(json.dumps(settings))
        self.server.command = [str(services.require("consul")), "agent", "-config-file", str(config)]

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Self]:
        with tempfile.TemporaryDirectory() as folder:
            agent = cls(Path(folder))
            try:
                agent.up()
                yield agent
            finally:
                agent.server.close()

    def kill(self) -> None:
        """SIGKILL: no good-bye, open connections reset."""
        self.server.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.server.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.server.send(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Poll:
    """One request that went by: when (monotonic), on which connection, its request line."""

    at: float
    connection: int
    line: str

    @property
    def service(self) -> str:
        """The service that was asked for; "" when it was something else."""
        _, found, rest = self.line.partition("/v1/health/service/")
        return rest.split("?", 1)[0] if found else ""


class CountingWire:
    """A TCP relay before the agent that notes every request that goes through it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._polls: list[Poll] = []
        self._open: set[int] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def polls(self, since: float = 0.0) -> list[Poll]:
        with self._lock:
            return [poll for poll in self._polls if poll.at >= since]

    def everyone_polled(self, service: str, since: float, number: int) -> bool:
        """Whether so many who ask for a service have asked since then and have the answer behind them:
        each keeps one connection, and asks again only when it has dealt with the last answer."""
        with self._lock:
            asking = {poll.connection for poll in self._polls if poll.service == service} & self._open
            asked = Counter(poll.connection for poll in self._polls if poll.at >= since)
        return len(asking) == number and all(asked[connection] >= 2 for connection in asking)

    def _accept(self) -> None:
        for connection in itertools.count():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._relay, args=(client, connection), daemon=True).start()

    def _relay(self, client: socket.socket, connection: int) -> None:
        try:
            agent = socket.create_connection(("127.0.0.1", self._to), timeout=5)
        except OSError:
            client.close()
            return
        agent.settimeout(None)
        self._open.add(connection)
        back = threading.Thread(target=self._copy, args=(agent, client), daemon=True)
        back.start()
        self._copy(client, agent, connection)
        back.join()
        self._open.discard(connection)
        client.close()
        agent.close()

    def _copy(self, source: socket.socket, target: socket.socket, connection: int | None = None) -> None:
        try:
            while data := source.recv(65536):
                if connection is not None:
                    self._note(data, connection)
                target.sendall(data)
        except OSError:
            pass  # one side was killed; the other is told below
        for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def _note(self, data: bytes, connection: int) -> None:
        # A poll is one small packet without a body: its line is never split between reads.
        line = data.split(b"\r\n", 1)[0].decode("latin-1")
        with self._lock:
            self._polls.append(Poll(time.monotonic(), connection, line))
