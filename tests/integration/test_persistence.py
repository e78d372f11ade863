"""A gateway that has served goes on serving, whatever its next worker or a signal meets: a log that cannot be opened,
directories that are gone, an application that cannot be loaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess, GunicornProcess
from tests.services import ROOT, wait_until

CONFIG = """version: 1
routes: [{name: all, match: {prefix: /}, respond: {status: 200, body: here}}]
"""

Start = Callable[..., GatewayProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the gateway starts; its configuration is elsewhere."""
    (tmp_path / "home").mkdir()
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    return tmp_path / "home"


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(workers: int = 1, **environ: str) -> GatewayProcess:
            return stack.enter_context(GatewayProcess(folder, str(tmp_path / "gateway.yaml"), workers, **environ))

        yield run


def pid_of(gateway: GatewayProcess) -> int:
    assert gateway.server.process is not None
    assert gateway.server.process.poll() is None, gateway.output()
    return gateway.server.process.pid


def replaced(gateway: GatewayProcess, before: list[int]) -> None:
    """Wait until all of these workers are gone and others serve in their place."""

    def served() -> bool:
        now = gateway.pids()
        with contextlib.suppress(OSError):
            return len(now) == gateway.workers and not set(before) & set(now) and gateway.get("/x")[0] == 200
        return False

    gateway.server.wait_until(served, "other workers serve")


def kill_one(gateway: GatewayProcess) -> list[int]:
    """Kill a worker; the workers before."""
    before = gateway.pids()
    os.kill(before[0], signal.SIGKILL)
    return before[:1]


# -- the access log ---------------------------------------------------------------------


def logging_to(path: Path) -> str:
    return CONFIG + f"access_log: {{path: {path}}}\n"


def test_a_log_that_a_successor_cannot_open_costs_lines_until_it_can(start: Start, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "gateway.yaml").write_text(logging_to(logs / "access.log"))
    gateway = start(workers=2)
    shutil.rmtree(logs)
    replaced(gateway, kill_one(gateway))
    gateway.logged("lines are lost until it can be opened", 1)
    # Both workers go on; the older one writes to the file that was removed.
    for _ in range(20):
        assert gateway.get("/lost")[0] == 200
    logs.mkdir()

    def written() -> bool:
        assert gateway.get("/written")[0] == 200
        return "written again" in gateway.output()

    gateway.server.wait_until(written, "the log is written again")
    assert "/written" in {json.loads(line)["target"] for line in (logs / "access.log").read_text().splitlines()}
    pid_of(gateway)


def test_a_log_that_cannot_be_opened_ends_the_first_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(logging_to(tmp_path / "logs" / "access.log"))
    with pytest.raises(AssertionError, match="ended before the workers run"):
        start()


# -- workers that cannot start ----------------------------------------------------------

APP = """
import os
from gateway import create_app

if os.path.exists({flag!r}):
    raise RuntimeError("not now")
app = create_app()
"""


@pytest.fixture
def gunicorn(tmp_path: Path, folder: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """A gateway as `gunicorn -c … APPLICATION` starts it."""
    with contextlib.ExitStack() as stack:

        def run(application: str, *flags: str) -> GatewayProcess:
            path = f"{ROOT}:{tmp_path}"
            gateway = GunicornProcess(folder, str(tmp_path / "gateway.yaml"), *flags, application=application, PYTHONPATH=path)
            return stack.enter_context(gateway)

        yield run


def test_an_application_that_cannot_be_loaded_for_a_while(
    gunicorn: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "mine.py").write_text(APP.format(flag=str(flag)))
    gateway = gunicorn("mine:app")
    flag.touch()
    before = kill_one(gateway)
    gateway.logged("This worker cannot start", 2)
    assert "RuntimeError: not now" in gateway.output()
    flag.unlink()
    replaced(gateway, before)


def test_an_application_that_cannot_be_loaded_ends_the_first_start(
    gunicorn: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    flag = tmp_path / "broken"
    flag.touch()
    (tmp_path / "mine.py").write_text(APP.format(flag=str(flag)))
    with pytest.raises(AssertionError, match="ended before the workers run"):
        gunicorn("mine:app")


def test_a_directory_of_the_masters_that_is_gone_for_a_while(
    gunicorn: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    """gunicorn makes a file for each worker before it forks."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    gateway = gunicorn("gateway:create_app()", "--worker-tmp-dir", str(temporary))
    shutil.rmtree(temporary)
    before = kill_one(gateway)
    gateway.logged("No worker can be started, and it is tried again every second", 1)
    temporary.mkdir()
    replaced(gateway, before)
    gateway.logged("Workers can be started again", 1)
    assert gateway.output().count("No worker can be started") == 1
    # gunicorn sets its umask while it makes that file.
    status = Path(f"/proc/{pid_of(gateway)}/status").read_text()
    assert f"Umask:\t{os.umask(0o022):04o}" in status


# -- signals ----------------------------------------------------------------------------


def test_a_reload_without_the_working_directory(start: Start, folder: Path) -> None:
    gateway = start(workers=2)
    before = gateway.pids()
    shutil.rmtree(folder)
    gateway.server.send(signal.SIGHUP)
    replaced(gateway, before)
    gateway.logged("settings cannot be read and stay as they are", 1)
    assert gateway.get("/x")[2] == b"here"


def test_a_new_master_without_the_working_directory(start: Start, folder: Path) -> None:
    gateway = start()
    before = gateway.pids()
    shutil.rmtree(folder)
    gateway.server.send(signal.SIGUSR2)
    gateway.logged("SIGUSR2: no new master can be started", 1)
    wait_until(lambda: gateway.pids() == before, "the copy of the master is gone")
    assert gateway.get("/x")[0] == 200


def test_a_reload_that_gunicorn_cannot_finish(gunicorn: Callable[..., GatewayProcess], tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    gateway = gunicorn("gateway:create_app()", "--pid", str(tmp_path / "pids" / "gateway.pid"))
    before = gateway.pids()
    shutil.rmtree(tmp_path / "pids")
    gateway.server.send(signal.SIGHUP)
    gateway.logged("SIGHUP was not carried out to its end", 1)
    assert gateway.get("/x")[0] == 200
    (tmp_path / "pids").mkdir()
    gateway.server.send(signal.SIGHUP)
    replaced(gateway, before)
    assert (tmp_path / "pids" / "gateway.pid").read_text().strip() == str(pid_of(gateway))


@pytest.mark.parametrize("flags", [[], ["--capture-output"]], ids=["", "capture-output"])
def test_a_log_file_of_gunicorns_that_cannot_be_reopened(
    gunicorn: Callable[..., GatewayProcess], tmp_path: Path, flags: list[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    kept = tmp_path / "kept"
    gateway = gunicorn("gateway:create_app()", "--error-logfile", str(logs / "error.log"), *flags)
    logs.rename(kept)
    gateway.server.send(signal.SIGUSR1)
    wait_until(lambda: (kept / "error.log").read_text().count("stays in use") >= 2, "master and worker report it")
    assert gateway.get("/x")[0] == 200
    logs.mkdir()
    gateway.server.send(signal.SIGUSR1)
    wait_until((logs / "error.log").exists, "it is opened again")
    assert gateway.get("/x")[0] == 200
    pid_of(gateway)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_for_the_master_that_the_whole_group_gets(start: Start, number: signal.Signals) -> None:
    """A worker is not ended by it, nor the request that it has."""
    gateway = start()
    worker = gateway.pids()[0]
    with gateway.client() as client:
        client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n")
        os.kill(worker, number)
        # A worker that the signal ended would close the connection.
        client.send(b"\r\n")
        assert client.read_response().status == 200
    assert gateway.pids() == [worker]
    if number == signal.SIGHUP:
        gateway.server.send(number)
        replaced(gateway, [worker])


def test_reuse_port_is_refused_and_a_reload_loses_nothing(gunicorn: Callable[..., GatewayProcess]) -> None:
    gateway = gunicorn("gateway:create_app()", "--reuse-port")
    gateway.logged("reuse_port is not to be set from outside: each worker would have a queue of its own", 1)
    for number in (2, 3):
        before = gateway.pids()
        gateway.server.send(signal.SIGHUP)
        while set(before) & set(gateway.pids()):
            assert gateway.get("/x")[0] == 200
        gateway.logged("reuse_port is not to be set from outside", number)
        # Listening (0A) sockets at this port.
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert len([row for row in rows if row[3] == "0A" and row[1].endswith(f":{gateway.port:04X}")]) == 1
