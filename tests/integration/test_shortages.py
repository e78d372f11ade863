"""A full disk, no descriptors, no threads and no processes: the gateway serves what it can, reports what it cannot, and
recovers by itself. The limits are set on the running processes (prlimit(2)); the disk is a small tmpfs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import FakeUpstream, RawClient
from tests.gateway_process import GunicornProcess
from tests.services import allowed, free_port, wait_until

REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def config(upstream: FakeUpstream, folder: Path, more: str = "") -> str:
    return (
        f"version: 1\nupstreams: {{up: {{endpoints: [{json.dumps(upstream.url)}]}}}}\n"
        f"routes: [{{name: all, match: {{prefix: /}}, upstream: up}}]\n"
        f"access_log: {{path: {folder}/access.log}}\n{more}"
    )


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as found:
        yield found


Start = Callable[..., GunicornProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(folder: Path, *flags: str, **more: Any) -> GunicornProcess:
            return stack.enter_context(GunicornProcess(folder, str(folder / "gateway.yaml"), *flags, **more))

        yield run


def master(gateway: GunicornProcess) -> int:
    assert gateway.server.process is not None
    return gateway.server.process.pid


def targets(log: Path) -> list[str]:
    """The targets of whole lines. On a full disk a line may break off, and another worker's be joined to it."""
    found = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line)["target"])
    return found


def admin_page(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer.read().decode()
    finally:
        connection.close()


# -- a full disk ------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], capture_output=True, text=True)
    allowed("mount", done.stderr.strip() if done.returncode else "")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is free."""
    path = disk / "filling"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"." * 4096)
    return path


def test_a_disk_that_is_full_for_a_while(start: Start, upstream: FakeUpstream, disk: Path, tmp_path: Path) -> None:
    """Log, run directory, saved endpoints and gunicorn's files are all on it."""
    admin = free_port()
    (tmp_path / "gateway.yaml").write_text(config(upstream, disk, f"discovery: {{snapshot: {disk}/endpoints.json}}\n"))
    gateway = start(
        tmp_path, "--worker-tmp-dir", str(disk), workers=2, GATEWAY_ADMIN=f"127.0.0.1:{admin}", TMPDIR=str(disk)
    )
    filling = fill(disk)
    # The workers that ran before, and those that start now.
    for _ in range(4):
        assert gateway.get("/x")[0] == 200
    before = gateway.pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gateway.serves() and not set(before) & set(gateway.pids()), "other workers serve")
    for _ in range(20):
        assert gateway.get("/full")[0] == 200
    before = gateway.pids()
    gateway.server.send(signal.SIGHUP)
    wait_until(lambda: gateway.serves() and not set(before) & set(gateway.pids()), "they are replaced")
    gateway.logged("No space left on device", 1)
    assert len(json.loads(admin_page(admin, "/-/status"))["workers"]) >= 1
    admin_page(admin, "/-/metrics")
    filling.unlink()

    def recovered() -> bool:
        assert gateway.get("/after")[0] == 200
        return "/after" in targets(disk / "access.log") and "gateway_requests_total{" in admin_page(admin, "/-/metrics")

    wait_until(recovered, "log and metrics are written again")
    wait_until(lambda: len(json.loads(admin_page(admin, "/-/status"))["workers"]) == 2, "the workers meet again")
    assert "Traceback" not in gateway.output()


# -- no descriptors ---------------------------------------------------------------------


@contextlib.contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """What a process has open stays, and nothing else can be opened."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Below every number that is free.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_worker_without_descriptors(start: Start, upstream: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(config(upstream, tmp_path))
    gateway = start(tmp_path)
    (worker,) = gateway.pids()
    with RawClient(gateway.port, timeout=60) as kept, contextlib.ExitStack() as stack:
        # A connection to the client and one to the upstream are there.
        assert kept.request(REQUEST).status == 200
        with no_more_descriptors(worker):
            for _ in range(5):
                assert kept.request(REQUEST).status == 200
            upstream.hang_up()
            # There is no other connection to be had to the upstream. The client's goes on.
            wait_until(lambda: kept.request(REQUEST).status == 503, "requests are refused")
            assert kept.request(REQUEST.replace(b"/x", b"/-/healthz")).status == 200
            # Whoever comes now waits in the listener's queue.
            late = [stack.enter_context(RawClient(gateway.port, timeout=60)) for _ in range(3)]
            for client in late:
                client.send(REQUEST.replace(b"/x", b"/-/healthz"))
            gateway.logged("no connection can be accepted for now: [Errno 24]", 1)
            assert kept.request(REQUEST.replace(b"/x", b"/-/healthz")).status == 200
        for client in late:
            assert client.read_response().status == 200
        wait_until(lambda: kept.request(REQUEST).status == 200, "requests are forwarded again")
    assert gateway.pids() == [worker]
    assert "Traceback" not in gateway.output()


def test_a_master_without_descriptors(start: Start, upstream: FakeUpstream, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(config(upstream, tmp_path))
    gateway = start(tmp_path, workers=2)
    before = gateway.pids()
    with no_more_descriptors(master(gateway)):
        os.kill(before[0], signal.SIGKILL)
        gateway.logged("No worker can be started, and it is tried again every second: OSError: [Errno 24]", 1)
        # The other one serves.
        for _ in range(5):
            assert gateway.get("/x")[0] == 200
    wait_until(lambda: gateway.serves() and before[0] not in gateway.pids(), "another worker is there")
    gateway.logged("Workers can be started again", 1)


# -- no threads -------------------------------------------------------------------------

NOBODY = "nobody"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that workers of another user may use."""
    allowed("prlimit", "" if shutil.which("prlimit") else "apt-get install util-linux")
    allowed("another user", "" if os.geteuid() == 0 else "it takes root to have workers of another user")
    folder = Path(tempfile.mkdtemp(prefix="gateway-test-"))
    os.chmod(folder, 0o755)
    (folder / "logs").mkdir()
    os.chown(folder / "logs", pwd.getpwnam(NOBODY).pw_uid, -1)
    yield folder
    shutil.rmtree(folder)


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_a_worker_that_can_have_no_thread(start: Start, upstream: FakeUpstream, public: Path) -> None:
    (public / "gateway.yaml").write_text(config(upstream, public / "logs"))
    gateway = start(public, "-u", NOBODY)
    before = gateway.pids()
    # Its successors inherit it. The master is root's, whom it does not bind.
    _, hard = resource.prlimit(master(gateway), resource.RLIMIT_NPROC)
    resource.prlimit(master(gateway), resource.RLIMIT_NPROC, (0, hard))
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: gateway.serves() and before[0] not in gateway.pids(), "another worker serves")
    (worker,) = gateway.pids()
    for _ in range(20):
        assert gateway.get("/without")[0] == 200
    assert threads(worker) == 1
    gateway.logged("background task access log", 1)
    assert "can't start new thread" in gateway.output()
    # By its own user: it takes more than root may have in a container otherwise.
    text = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    subprocess.run(["prlimit", f"--pid={worker}", f"--nproc={text}:{text}"], user=NOBODY, group=0, extra_groups=[], check=True)

    def written() -> bool:
        assert gateway.get("/after")[0] == 200
        return "/after" in targets(public / "logs" / "access.log")

    wait_until(written, "the log is written")
    # What came meanwhile has waited.
    assert targets(public / "logs" / "access.log").count("/without") == 20
    assert gateway.pids() == [worker]
