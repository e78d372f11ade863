"""The access log and the places it is written to: files that are moved, pipes that nobody reads, full disks,
processes that end in every way but SIGKILL."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gateway.http.messages import Request
from gateway.model import AccessLogSettings
from gateway.telemetry.access_log import QUEUE, AccessLog
from gateway.telemetry.log_file import LogFile

# Bounds a wait for something that does come; nothing is measured with it.
PATIENCE = 30.0
ROOT = Path(__file__).resolve().parents[2]


def record(log: AccessLog, target: str) -> None:
    log.record(Request(b"GET", target.encode(), [], started=0.0), 200, 0, 0.0, "v")


def until(true: Callable[[], Any]) -> None:
    """Let greenlets and threads go on until something is true."""
    with gevent.Timeout(PATIENCE):
        while not true():
            gevent.sleep(0.005)


def targets(text: bytes) -> list[str]:
    """The targets in a log of which every line is whole."""
    assert text.endswith(b"\n") or not text
    return [json.loads(line)["target"] for line in text.splitlines()]


@pytest.fixture
def open_log() -> Iterator[Callable[[str], AccessLog]]:
    """Logs that write; stopped at the end."""
    logs: list[AccessLog] = []

    def make(path: str) -> AccessLog:
        log = AccessLog(AccessLogSettings(path), 1)
        log.start()
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.stop(timeout=0)


def read_now(reader: int) -> bytes:
    """What there is to read from a non-blocking descriptor."""
    data = b""
    try:
        while piece := os.read(reader, 1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return data


class Pipe:
    """A real pipe, and the name under which a log can open its writing end."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.path = f"/proc/self/fd/{self._writer}"

    def read(self) -> bytes:
        return read_now(self.reader)

    def full(self) -> bool:
        return not select.select([], [self._writer], [], 0)[1]

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


# -- files ------------------------------------------------------------------------------


def test_lines_are_written_while_requests_come(open_log: Callable[[str], AccessLog], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b'{"target":"before"}\n')
    log = open_log(str(path))
    record(log, "/1")
    until(lambda: targets(path.read_bytes()) == ["before", "/1"])
    record(log, "/2")
    until(lambda: targets(path.read_bytes()) == ["before", "/1", "/2"])


def test_a_new_file_is_not_for_everybody(open_log: Callable[[str], AccessLog], tmp_path: Path) -> None:
    open_log(str(tmp_path / "access.log"))
    assert (tmp_path / "access.log").stat().st_mode & 0o007 == 0


def test_a_file_that_was_moved_away_is_let_go(open_log: Callable[[str], AccessLog], tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    log = open_log(str(path))
    record(log, "/1")
    until(lambda: path.stat().st_size)
    path.rename(moved)
    record(log, "/2")
    until(lambda: targets(moved.read_bytes()) == ["/1", "/2"])
    log.reopen()
    until(path.exists)  # without a request, too
    record(log, "/3")
    until(lambda: targets(path.read_bytes()) == ["/3"])
    assert targets(moved.read_bytes()) == ["/1", "/2"]


def test_a_file_that_was_removed_comes_back(open_log: Callable[[str], AccessLog], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = open_log(str(path))
    path.unlink()
    log.reopen()
    record(log, "/1")
    log.stop()
    assert targets(path.read_bytes()) == ["/1"]


def test_when_it_cannot_be_reopened_the_old_file_stays(
    open_log: Callable[[str], AccessLog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    log = open_log(str(folder / "access.log"))
    folder.rename(moved)
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        log.reopen()
        record(log, "/1")
        until(lambda: (moved / "access.log").stat().st_size)
        until(lambda: "No such file" in caplog.text)
    assert targets((moved / "access.log").read_bytes()) == ["/1"]
    assert log.lost == 0
    folder.mkdir()
    log.reopen()
    record(log, "/2")
    until(lambda: (folder / "access.log").exists() and (folder / "access.log").stat().st_size)
    assert targets((folder / "access.log").read_bytes()) == ["/2"]


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    def descriptors() -> set[str]:
        held = set()
        for fd in os.listdir("/proc/self/fd"):
            try:
                held.add(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                pass  # the one that listed
        return {name for name in held if str(tmp_path) in name}

    path = tmp_path / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    log.start()
    for n in range(3):
        path.rename(tmp_path / f"access.log.{n}")
        log.reopen()
        until(path.exists)
    log.stop()
    assert descriptors() == set()


@pytest.mark.parametrize("path", ["/nonexistent/access.log", "/"])
def test_a_log_that_cannot_be_opened_is_an_error_at_the_start(path: str) -> None:
    with pytest.raises(OSError, match=path):
        AccessLog(AccessLogSettings(path), 1).start()


def test_a_log_that_may_be_opened_later_loses_lines_until_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "logs" / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        log.start(persist=True)
        for lost in (1, 2):
            record(log, "/lost")
            until(lambda lost=lost: log.lost == lost)
        path.parent.mkdir()
        record(log, "/1")
        until(lambda: path.exists() and path.stat().st_size)
        log.stop()
    assert targets(path.read_bytes()) == ["/1"]
    assert log.lost == 2
    first, last = (entry.getMessage() for entry in caplog.records)
    assert first.endswith("lines are lost until it can be opened")
    assert last.endswith("written again; 2 lines were lost so far")


def test_a_log_that_was_never_opened_stops_and_counts(tmp_path: Path) -> None:
    log = AccessLog(AccessLogSettings(str(tmp_path / "logs" / "access.log")), 1)
    log.start(persist=True)
    record(log, "/lost")
    log.stop()
    assert log.lost == 1


def test_a_named_pipe_without_a_reader_is_an_error_not_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo"):
        AccessLog(AccessLogSettings(str(tmp_path / "fifo")), 1).start()


# -- a pipe that nobody reads -----------------------------------------------------------


def test_a_blocked_pipe_stops_nothing_and_tells_what_it_cost(
    open_log: Callable[[str], AccessLog], pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(pipe.path)
    total = 0
    # Until the pipe, the batch on its way and the queue are full.
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        with gevent.Timeout(PATIENCE):
            while log.dropped < 1000:
                for _ in range(1000):
                    record(log, f"/{total}")
                    total += 1
                gevent.sleep(0.001)  # the hub turns: that is the point
        until(lambda: "dropped" in caplog.text)  # said while it is still blocked
    read = bytearray()

    def drained() -> bool:
        read.extend(pipe.read())
        return read.count(b"\n") >= total - log.dropped

    until(drained)
    # Then it works as if nothing had been.
    record(log, "/after")
    log.stop()
    read.extend(pipe.read())
    seen = targets(bytes(read))
    assert seen[-1] == "/after"
    numbers = [int(target[1:]) for target in seen[:-1]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == total - log.dropped
    assert len(numbers) >= QUEUE
    assert log.lost == 0


def test_stop_does_not_wait_for_a_pipe_that_nobody_reads(
    open_log: Callable[[str], AccessLog], pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(pipe.path)
    for n in range(1000):
        record(log, f"/{n}")
    until(pipe.full)
    with caplog.at_level(logging.WARNING, "gateway.access_log"), gevent.Timeout(PATIENCE):
        log.stop(timeout=0.2)
    assert 0 < log.lost <= 1000
    assert "still blocked" in caplog.text


def test_a_reader_that_went_away_costs_lines_and_one_warning(
    open_log: Callable[[str], AccessLog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(path)
    record(log, "/1")
    read = bytearray()
    until(lambda: read.extend(read_now(reader)) or read)
    os.close(reader)
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        for lost in (1, 2, 3):
            record(log, "/gone")
            until(lambda lost=lost: log.lost == lost)
        assert [entry.getMessage() for entry in caplog.records if "Broken pipe" in entry.getMessage()]
        assert len(caplog.records) == 1
        # Another reader: the log is there again.
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        record(log, "/2")
        log.stop()
    read.extend(read_now(reader))
    os.close(reader)
    assert targets(bytes(read)) == ["/1", "/2"]
    assert log.lost == 3
    assert "3 lines were lost" in caplog.records[-1].getMessage()


def test_a_full_disk_costs_lines_and_one_warning(
    open_log: Callable[[str], AccessLog], caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log("/dev/full")
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        for lost in (1, 2):
            record(log, "/")
            until(lambda lost=lost: log.lost == lost)
    assert ["No space left" in entry.getMessage() for entry in caplog.records] == [True]


# -- whole lines ------------------------------------------------------------------------


def test_a_line_that_broke_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    """A disk that is full in the middle of a line, by a limit on the size of files."""
    path = tmp_path / "access.log"
    program = f"""
        import resource
        from gateway.telemetry.log_file import LogFile
        file = LogFile({str(path)!r})
        assert file.write(b"one\\ntwo\\n") == (0, None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (13, resource.RLIM_INFINITY))
        lost, error = file.write(b"three\\nfour\\nfive\\n")
        assert (lost, error.strerror) == (3, "File too large"), (lost, error)
        lost, error = file.write(b"six\\n")
        assert (lost, error.strerror) == (1, "File too large"), (lost, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert file.write(b"seven\\n") == (0, None)
        assert file.write(b"eight\\n") == (0, None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=PATIENCE, cwd=ROOT)
    assert path.read_bytes() == b"one\ntwo\nthree\nseven\neight\n"


def test_a_deadline_holds_even_for_a_line_longer_than_a_pipe_takes(pipe: Pipe) -> None:
    file = LogFile(pipe.path)
    line = b"x" * 200_000 + b"\n"
    lost, error = file.write(line + line, time.monotonic() + 0.05)
    assert isinstance(error, TimeoutError)
    assert lost == 2
    written = pipe.read()
    assert 0 < len(written) < 200_000
    lost, error = file.write(b"next\n", time.monotonic() + 0.05)
    assert (lost, error) == (0, None)
    assert pipe.read() == b"\nnext\n"
    file.close()


WRITER = """
    from gevent import monkey
    monkey.patch_all()
    import sys
    from gateway.http.messages import Request
    from gateway.model import AccessLogSettings
    from gateway.telemetry.access_log import AccessLog
    log = AccessLog(AccessLogSettings("-"), sys.argv[1])
    log.start()
    def record(target):
        log.record(Request(b"GET", target.encode(), [], started=0.0), 200, 0, 0.0, "v")
"""


def writer(then: str, name: str = "w", **options: Any) -> subprocess.Popen[bytes]:
    """A process whose log is its standard output."""
    program = textwrap.dedent(WRITER) + textwrap.dedent(then)
    return subprocess.Popen([sys.executable, "-c", program, name], cwd=ROOT, **options)


def test_workers_that_share_a_pipe_do_not_cut_into_one_anothers_lines() -> None:
    reader, end = os.pipe()
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 8192)  # so that it is always full, and both wait for room
    then = """
        for n in range(3000):
            record(f"/{n}/" + "x" * (n % 3000))
        log.stop(timeout=60)
        assert log.dropped == log.lost == 0
    """
    writers = [writer(then, name, stdout=end) for name in ("a", "b")]
    os.close(end)
    data = bytearray()
    while piece := gevent.os.tp_read(reader, 1 << 16):
        data += piece
    os.close(reader)
    assert [process.wait(PATIENCE) for process in writers] == [0, 0]
    lines = [json.loads(line) for line in data.splitlines()]
    for name in ("a", "b"):
        numbers = [int(line["target"].split("/")[1]) for line in lines if line["worker"] == name]
        assert numbers == list(range(3000))


def test_a_standard_output_that_does_not_block_is_waited_for() -> None:
    then = """
        import os
        os.set_blocking(1, False)
        for n in range(2000):
            record(f"/{n}")
        log.stop(timeout=60)
        assert log.dropped == log.lost == 0
    """
    process = writer(then, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert targets(out) == [f"/{n}" for n in range(2000)]


# -- every exit flushes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("log.stop()", 0),
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError", 1),
        ("import gevent; gevent.sleep(0.0)", 0),
        ("import gevent; gevent.spawn(sys.exit, 4).join(); gevent.sleep(60)", 4),
        ("import gevent; gevent.get_hub().destroy(destroy_loop=True)", 0),
        ("import os, signal; signal.signal(15, lambda *_: sys.exit(5)); os.kill(os.getpid(), 15)", 5),
        ("import gevent; gevent.sleep(0.06); record('/late'); sys.exit(6)", 6),
    ],
    ids=["stop", "end", "exit", "error", "switched", "greenlet", "hub-gone", "sigterm", "twice"],
)
def test_nothing_is_lost_when_the_process_ends(then: str, code: int) -> None:
    process = writer("for n in range(500): record(f'/{n}')\n" + then, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, error
    assert targets(out) == [f"/{n}" for n in range(500)] + (["/late"] if "/late" in then else [])


def test_a_process_ends_though_nobody_reads_its_log() -> None:
    reader, end = os.pipe()
    then = """
        import gevent, select
        for n in range(5000):
            record(f"/{n}")
        while select.select([], [1], [], 0)[1]:
            gevent.sleep(0.005)
    """
    process = writer(then, stdout=end, stderr=subprocess.PIPE)
    os.close(end)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert b"still blocked at the end" in error
    os.close(reader)


def test_a_child_that_was_forked_off_does_not_write_its_copy() -> None:
    then = """
        import os
        record("/1")
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
    """
    process = writer(then, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, _ = process.communicate(timeout=PATIENCE)
    assert targets(out) == ["/1"]
