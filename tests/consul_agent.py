"""Consul as a server that remembers, and a wire before it that counts what it is asked.

Rule: everything is the real agent's; `services.Consul` starts and stops it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests import services


class LastingConsul(services.Consul):
    """A server of one with its state on disk: unlike one in development mode it comes back from a
    SIGKILL with every registration that it had."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        http, server, lan, wan = self.port, *services.free_ports(3)
        config = folder / "consul.json"
        settings = {
            "server": True, "bootstrap": True, "data_dir": str(folder / "data"), "node_name": "one",
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "log_level": "warn",
            "ports": {"http": http, "server": server, "serf_lan": lan, "serf_wan": wan, "dns": -1, "grpc": -1},
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


class CountingWire:
    """A TCP relay that keeps every request line that went through it to the agent."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._lines: list[str] = []
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

    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def asked(self) -> list[str]:
        """The services that were asked for, in order."""
        return [line.split("/v1/health/service/", 1)[1].split("?", 1)[0] for line in self.lines()]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        try:
            agent = socket.create_connection(("127.0.0.1", self._to), timeout=5)
        except OSError:
            client.close()
            return
        agent.settimeout(None)
        back = threading.Thread(target=self._copy, args=(agent, client), daemon=True)
        back.start()
        self._copy(client, agent, count=True)
        back.join()
        client.close()
        agent.close()

    def _copy(self, source: socket.socket, target: socket.socket, count: bool = False) -> None:
        # A poll's head is one small packet and has no body, so lines are not split between reads.
        try:
            while data := source.recv(65536):
                if count:
                    self._note(data)
                target.sendall(data)
        except OSError:
            pass  # one side was killed; the other is told below
        for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def _note(self, data: bytes) -> None:
        line = data.split(b"\r\n", 1)[0].decode("latin-1")
        with self._lock:
            self._lines.append(line)
