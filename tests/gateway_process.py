"""A gateway as its users run it, to be asked and reconfigured while it serves.

Rule: loopback and ephemeral ports only; what it says is what its workers logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from gateway.testing import RawClient
from tests.services import ROOT, Server, accepts, free_port, wait_until


def version(text: str) -> str:
    """The version of a configuration that is one document."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class GatewayProcess:
    """`gateway run` with some workers; `named` is GATEWAY_CONFIG."""

    def __init__(self, folder: Path, named: str, workers: int = 2, **environ: str) -> None:
        self.workers = workers
        self.port = free_port()
        env = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PYTHONPATH": str(ROOT),
            "GATEWAY_CONFIG": named,
            "GATEWAY_ADMIN": "off",
            **environ,
        }
        command = [sys.executable, "-m", "gateway", "run", "-b", f"127.0.0.1:{self.port}", "-w", str(workers)]
        self.server = Server(command, cwd=folder, env=env)

    def __enter__(self) -> Self:
        self.server.start()
        try:
            self.server.wait_until(lambda: self.output().count("Door: ") >= self.workers, "the workers run")
        except BaseException:
            self.server.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.server.stop(signal.SIGTERM)
        finally:
            self.server.close()

    def output(self) -> str:
        return self.server.output()

    def logged(self, text: str, number: int | None = None, within: float = 20.0) -> None:
        """Wait until a text was logged so often, by default by every worker."""
        wanted = self.workers if number is None else number
        wait_until(lambda: self.output().count(text) >= wanted, f"{wanted} times {text!r} in\n{self.output()}", within)

    def follows(self, text: str) -> None:
        """Wait until every worker has this document in force."""
        self.logged(f" -> {version(text)}")

    def get(self, path: str) -> tuple[int, str, bytes]:
        """Status, Gateway-Error and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Gateway-Error", ""), answer.read()
        finally:
            connection.close()

    def until(self, path: str, status: int, within: float = 20.0) -> bytes:
        """Ask until every one of some connections in a row is answered so; the last body."""
        bodies: list[bytes] = []

        def all_so() -> bool:
            answers = [self.get(path) for _ in range(4 * self.workers)]
            bodies.append(answers[-1][2])
            return {answer[0] for answer in answers} == {status}

        wait_until(all_so, f"{status} for {path}", within)
        return bodies[-1]

    def client(self) -> RawClient:
        return RawClient(self.port, timeout=30)

    def pids(self) -> list[int]:
        """The worker processes."""
        assert self.server.process is not None
        pid = self.server.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @contextlib.contextmanager
    def successor(self) -> Iterator[None]:
        """A new master (SIGUSR2) whose workers run; it ends with the block, whatever became of the old one."""
        old, doors = set(self.pids()), self.output().count("Door: ")
        self.server.send(signal.SIGUSR2)
        self.logged("Door: ", doors + self.workers)
        (master,) = set(self.pids()) - old
        try:
            yield
        finally:
            os.kill(master, signal.SIGTERM)
            self.server.stop()
            wait_until(lambda: not accepts(self.port), "the new master has left")

    def requests(self) -> list[dict[str, Any]]:
        """The access log so far."""
        lines = self.output().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith('{"time"')]


class GunicornProcess(GatewayProcess):
    """The same started by `gunicorn -c python:gateway.server.settings FLAGS APPLICATION`; modules are found in `folder`.
    The port and the workers are ready once it answers: what it logs may go elsewhere."""

    def __init__(
        self, folder: Path, named: str, *flags: str, application: str = "gateway:create_app()", workers: int = 1,
        settings: str = "python:gateway.server.settings", **environ: str,
    ) -> None:  # fmt: skip
        super().__init__(folder, named, workers, **{"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **environ})
        command = [sys.executable, "-m", "gunicorn", "-c", settings, "-w", str(workers)]
        command += ["-b", f"127.0.0.1:{self.port}", *flags, application]
        self.server = Server(command, cwd=self.server.cwd, env=self.server.env)

    def __enter__(self) -> Self:
        self.server.start()
        try:
            self.server.wait_until(self.serves, "the workers run")
        except BaseException:
            self.server.close()
            raise
        return self

    def serves(self) -> bool:
        """Whether all of its workers are there and it is ready."""
        with contextlib.suppress(OSError):
            return len(self.pids()) == self.workers and self.get("/-/readyz")[0] == 200
        return False
