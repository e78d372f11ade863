"""A gateway whose standard error nobody reads: neither its workers nor its master wait for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import monkey

from tests.gateway_process import GunicornProcess
from tests.services import wait_until

CONFIG = """version: 1
routes: [{name: all, match: {prefix: /}, respond: {status: 204}}]
"""


FILLING = b"~" * 4096


class Unread:
    """A pipe or socket, which can be filled."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self._reading, self.writing = os.pipe()
            # Another open file: what is shared with the gateway stays blocking.
            self._own = os.open(f"/proc/self/fd/{self.writing}", os.O_WRONLY | os.O_NONBLOCK)
            self._put = lambda: os.write(self._own, FILLING)
        else:
            ours, theirs = socket.socketpair()
            self._reading, self.writing = ours.detach(), theirs.detach()
            self._own = os.dup(self.writing)
            self._put = lambda: _send(self._own)
        os.set_blocking(self._reading, False)
        self._text = ""

    def fill(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._put()

    def read(self) -> str:
        """What has come so far, but for what filled it."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._reading, 1 << 16):
                self._text += piece.decode(errors="replace").replace("~", "")
        return self._text

    def close(self) -> None:
        for descriptor in (self._reading, self.writing, self._own):
            os.close(descriptor)


def _send(descriptor: int) -> int:
    # gevent's would wait.
    with monkey.get_original("socket", "socket")(fileno=os.dup(descriptor)) as connection:
        sent: int = connection.send(FILLING, socket.MSG_DONTWAIT)
        return sent


@pytest.fixture(params=["pipe", "socket"])
def unread(request: pytest.FixtureRequest) -> Iterator[Unread]:
    made = Unread(request.param)
    yield made
    made.close()


@pytest.fixture
def gateway(tmp_path: Path, unread: Unread) -> Iterator[GunicornProcess]:
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    made = GunicornProcess(tmp_path, str(tmp_path / "gateway.yaml"), workers=2)
    process = subprocess.Popen(
        made.server.command, cwd=tmp_path, env=made.server.env, stdout=made.server.log, stderr=unread.writing
    )
    made.server.process = process
    try:
        made.server.wait_until(made.serves, "the workers run")
        # One that is killed takes along what it could not write.
        wait_until(lambda: unread.read().count("Door: direct") == 2, "both have begun")
        unread.fill()
        yield made
        made.server.stop(signal.SIGTERM)
    finally:
        made.server.close()


def test_nobody_waits_for_standard_error(gateway: GunicornProcess, unread: Unread, tmp_path: Path) -> None:
    document = tmp_path / "gateway.yaml"
    # Each worker has something to say, and then goes on.
    for number in range(3):
        document.write_text(CONFIG + f"nonsense{number}: 1\n")
        document.write_text(CONFIG.replace("all", f"all{number}"))

        def in_force(wanted: str = f"all{number}") -> bool:
            assert gateway.get("/x")[0] == 204
            lines = [line for line in gateway.requests() if line["target"] == "/x"][-8:]
            return {line["route"] for line in lines} == {wanted}

        wait_until(in_force, "both workers have the new configuration")
    # The master has, too.
    before = gateway.pids()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: gateway.serves() and before[0] not in gateway.pids(), "another worker is there")
    # Somebody reads again: what those have to say that live is all there.
    for text in (" -> ", "was sent SIGKILL", "Booting worker"):
        wait_until(lambda text=text: text in unread.read(), f"{text} in {unread.read()}")  # type: ignore[misc]
    # All are replaced while nobody reads. Those that leave wait a second for a reader.
    unread.fill()
    gateway.server.send(signal.SIGHUP)
    wait_until(lambda: gateway.serves() and not set(before) & set(gateway.pids()), "all are replaced")
    wait_until(lambda: unread.read().count("Door: direct") >= 5, f"five workers began in {unread.read()}")
