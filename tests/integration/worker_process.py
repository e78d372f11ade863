"""A gunicorn with our worker and one of `worker_apps`, and a steady load that counts what fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import gevent

from gateway.testing import PATIENCE, RawClient, Truncated

ROOT = Path(__file__).resolve().parents[2]
WORKER = "gateway.server.worker.GatewayWorker"


class WorkerProcess:
    """gunicorn on ephemeral ports of the loopback."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        app: str = "told",
        workers: int = 1,
        settings: dict[str, Any] | None = None,
        closed_door: str = "",
        binds: tuple[str, ...] = ("127.0.0.1:0",),
    ) -> None:
        self.log_path = folder / "exchanges.log"
        self.error_path = folder / "error.log"
        command = [sys.executable, "-m", "gunicorn", "-k", WORKER, "-w", str(workers), "--no-control-socket"]
        for bind in binds:
            command += ["-b", bind]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "WORKER_TEST_LOG": str(self.log_path)}
        environ["WORKER_TEST_SETTINGS"] = json.dumps(settings or {})
        for name in ("PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS", "WORKER_TEST_CLOSED_DOOR"):
            environ.pop(name, None)
        if closed_door:
            environ["WORKER_TEST_CLOSED_DOOR"] = closed_door
        with self.error_path.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *arguments, f"tests.integration.worker_apps:{app}"],
                cwd=folder, env=environ, stdout=errors, stderr=errors, start_new_session=True,
            )  # fmt: skip
        try:
            self.until(lambda: self.errors().count("Door: ") >= workers, "the workers to run")
            self.ports = [int(port) for port in re.findall(r"https?://[^\s:]+:(\d+)", self._addresses())]
            self.port = self.ports[0] if self.ports else 0
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _addresses(self) -> str:
        found = re.search(r"Listening at: (.*) \(\d+\)", self.errors())
        assert found is not None
        return found[1]

    def client(self, **options: Any) -> RawClient:
        """A client that waits while a worker starts in the place of another."""
        return RawClient(self.port, **{"timeout": 3 * PATIENCE, **options})

    def ask(self, raw: bytes) -> Any:
        with self.client() as client:
            return client.request(raw)

    def errors(self) -> str:
        return self.error_path.read_text(errors="replace")

    def until(self, holds: Callable[[], bool], what: str, within: float = 3 * PATIENCE) -> None:
        deadline = time.monotonic() + within
        while not holds():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"waited in vain for {what}:\n{self.errors()}")
            time.sleep(0.01)

    def exchanges(self) -> list[dict[str, Any]]:
        """How each exchange ended, so far."""
        if not self.log_path.exists():
            return []
        text = self.log_path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def ended(self, target: str, number: int = 1) -> dict[str, Any]:
        """The record of an exchange that ends, the `number`th of that target; it is the last one, too."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [each for each in self.exchanges() if each["target"] == target]
            return len(found) >= number

        self.until(there, f"{target} to end")
        assert len(found) == number
        return found[-1]

    def worker_pids(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = 3 * PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(within)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(3 * PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body."""
    lines = [f"{method} {target} HTTP/{version}", "Host: a.test", *fields]
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + b"\r\n"


class Load:
    """Clients that ask again and again over connections which they keep as long as they may."""

    def __init__(self, port: int, clients: int = 8, raw: bytes = get("/hello"), pause: float = 0.002) -> None:
        self._port = port
        self._raw = raw
        self._pause = pause
        self._stopping = False
        self.answered = 0
        self.failed: list[str] = []
        self._greenlets = [gevent.spawn(self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stopping:
            try:
                with RawClient(self._port, timeout=2 * PATIENCE) as client:
                    self._use(client)
            except (OSError, Truncated) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return

    def _use(self, client: RawClient) -> None:
        while not self._stopping:
            response = client.request(self._raw)
            if response.status != 200:
                self.failed.append(f"status {response.status}")
            self.answered += 1
            if response.header(b"connection") == b"close":
                return
            gevent.sleep(self._pause)

    def stop(self) -> None:
        self._stopping = True
        gevent.joinall(self._greenlets, raise_error=True)
