"""Output that nobody waits for, on real pipes and sockets."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import monkey

from gateway.hosting import output
from gateway.hosting.output import Outlet
from tests import services

# Real ones, whether or not this process is patched.
_start_new_thread = monkey.get_original("_thread", "start_new_thread")


class Read:
    """The reading end of a pipe or socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def now(self) -> bytes:
        data = b""
        try:
            while piece := os.read(self._descriptor, 1 << 16):
                data += piece
        except BlockingIOError:
            pass
        return data


def by_pipe() -> tuple[int, int]:
    return os.pipe()


def by_socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


Ends = tuple[Outlet, Read]


@pytest.fixture(params=[by_pipe, by_socket], ids=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    reading, writing = request.param()
    outlet = output._outlet(SimpleNamespace(fileno=lambda: writing), "error")
    assert outlet is not None
    yield outlet, Read(reading)
    for descriptor in (reading, writing):
        os.close(descriptor)


def lines(first: int, last: int) -> bytes:
    return b"".join(b"%06d\n" % number for number in range(first, last))


def test_what_is_read_is_written_at_once(ends: Ends) -> None:
    outlet, reader = ends
    for text in (b"one\n", b"two\n", b"without an end"):
        assert outlet.write(text) == len(text)
        assert reader.now() == text


def test_what_nobody_reads_is_kept_in_order(ends: Ends) -> None:
    outlet, reader = ends
    for number in range(100):
        outlet.write(lines(number * 1000, number * 1000 + 1000))
    assert outlet.dropped == 0
    read = b""
    while piece := reader.now():
        read += piece
        outlet.drain()
    assert read == lines(0, 100_000)


def test_beyond_a_limit_lines_are_dropped_and_reported(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    outlet, reader = ends
    monkeypatch.setattr(output, "MOST", 7000)
    number = 0
    while outlet.dropped < 3:
        outlet.write(b"%06d\n" % number)
        number += 1
    # The last that fits, and the first that does not.
    assert outlet._size == 7000
    read = b""
    while piece := reader.now():
        read += piece
        outlet.drain()
    *kept, report = read.decode().splitlines()
    assert [int(line) for line in kept] == list(range(number - 3))
    assert report.endswith("[WARNING] 3 log lines were dropped: nobody read standard error")
    outlet.write(b"after\n")
    assert reader.now() == b"after\n"


def test_a_long_line_comes_whole(ends: Ends) -> None:
    outlet, reader = ends
    text = b"x" * 300_000 + b"\n" + lines(0, 10)
    outlet.write(text)
    read = b""
    while piece := reader.now():
        read += piece
        outlet.drain()
    assert read == text


def test_whoever_else_has_the_pipe_is_not_made_non_blocking() -> None:
    reading, writing = os.pipe()
    outlet = output._outlet(SimpleNamespace(fileno=lambda: writing), "error")
    assert outlet is not None
    outlet.write(b"x" * 200_000)
    assert os.get_blocking(writing)
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_pipe_that_cannot_be_opened_again_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError

    reading, writing = os.pipe()
    with monkeypatch.context() as patched:
        patched.setattr(output.os, "open", refused)
        outlet = output._outlet(SimpleNamespace(fileno=lambda: writing), "error")
    assert outlet is not None
    reader, read = Read(reading), b""
    outlet.write(lines(0, 30_000))
    while piece := reader.now():
        read += piece
        outlet.drain()
    assert read == lines(0, 30_000)
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    outlet = output._outlet(SimpleNamespace(fileno=lambda: writing), "error")
    assert outlet is not None
    os.close(reading)
    for _ in range(3):
        outlet.write(b"x\n")
    assert outlet._size == 0
    os.close(writing)


def test_a_signal_handler_and_threads_write_too(ends: Ends) -> None:
    outlet, reader = ends
    before = signal.signal(signal.SIGALRM, lambda *_: outlet.write(b"signal\n"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    ended: list[bool] = []

    def write() -> None:
        for _ in range(500):
            outlet.write(b"thread\n")
        ended.append(True)

    try:
        for _ in range(4):
            _start_new_thread(write, ())
        for _ in range(500):
            outlet.write(b"main\n")
        read = b""
        while len(ended) < 4:
            read += reader.now()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    outlet.drain()
    while piece := reader.now():
        read += piece
        outlet.drain()
    assert set(read.splitlines()) <= {b"thread", b"main", b"signal"}
    assert (read.count(b"thread\n"), read.count(b"main\n")) == (2000, 500)


def test_a_child_has_nothing_of_what_its_parent_kept(ends: Ends) -> None:
    outlet, reader = ends
    outlet.write(b"x" * 500_000 + b"\n")
    # The plain ones: gevent's would wait for its loop.
    fork, waitpid = monkey.get_original("os", ["fork", "waitpid"])
    child = fork()
    if child == 0:
        os._exit(0 if outlet._size == 0 and not outlet._kept else 1)
    assert os.waitstatus_to_exitcode(waitpid(child, 0)[1]) == 0
    assert outlet._size > 0
    reader.now()


def test_at_the_end_what_is_read_in_time_is_written(ends: Ends) -> None:
    outlet, reader = ends
    outlet.write(lines(0, 100_000))
    read: list[bytes] = []

    def late() -> None:
        while sum(map(len, read)) < 700_000:
            read.append(reader.now())

    _start_new_thread(late, ())
    outlet.finish(30.0)
    services.wait_until(lambda: sum(map(len, read)) == 700_000, "all of it is read")
    assert b"".join(read) == lines(0, 100_000)
    outlet.write(b"x" * 500_000)
    outlet.finish(0.01)
    assert outlet._size > 0


# -- in place of the standard streams ---------------------------------------------------


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """Has a descriptor as standard error."""
    streams: list[Any] = []

    def put(descriptor: int) -> Any:
        stream = os.fdopen(descriptor, "w")
        streams.append(stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        return stream

    monkeypatch.setattr(output, "_outlets", [])
    monkeypatch.setattr(output.atexit, "register", lambda _: None)
    yield put
    monkeypatch.undo()
    for stream in streams:
        stream.close()


def test_handlers_and_prints_go_through_it(standard: Callable[[int], Any]) -> None:
    reading, writing = os.pipe()
    reader = Read(reading)
    before = standard(writing)
    handler = logging.StreamHandler()
    other = logging.StreamHandler(io.StringIO())
    log = logging.getLogger("a.logger.of.this.test")
    log.addHandler(handler)
    log.addHandler(other)
    murdered: list[bool] = []
    server = SimpleNamespace(murder_workers=lambda: murdered.append(True))
    output.install(server)
    assert sys.stderr is not before
    assert sys.stderr.fileno() == writing
    assert isinstance(other.stream, io.StringIO)
    log.warning("from a handler")
    print("printed", file=sys.stderr)
    assert reader.now() == b"from a handler\nprinted\n"
    for _ in range(200):
        log.warning("x" * 1000)
    assert len(reader.now()) < 200_000
    # The master looks once a second.
    server.murder_workers()
    assert murdered == [True]
    assert reader.now()
    log.handlers.clear()
    os.close(reading)


def test_files_and_devices_stay_as_they_are(standard: Callable[[int], Any], tmp_path: Any) -> None:
    for path in (tmp_path / "file", "/dev/null"):
        before = standard(os.open(path, os.O_WRONLY | os.O_CREAT))
        server = SimpleNamespace(murder_workers=None)
        output.install(server)
        assert sys.stderr is before
        assert server.murder_workers is None


def test_a_standard_stream_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    output.install(SimpleNamespace(murder_workers=None))
