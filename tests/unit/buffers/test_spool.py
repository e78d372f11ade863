"""Temporary files of bodies: what is read back, what is counted, and when a descriptor is closed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import monkey

from gateway.buffers import spool as module
from gateway.buffers.spool import PIECE, PREFIX, Spool, SpoolFailed, SpoolFile, SpoolFull, clean

# Events of the system's threads, also where gevent has patched `threading`.
NativeLock = monkey.get_original("_thread", "allocate_lock")
PATIENCE = 10.0


@pytest.fixture(params=["o_tmpfile", "unlinked"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system with O_TMPFILE, and one on a file system without."""
    if request.param == "unlinked":
        without_o_tmpfile(monkeypatch, errno.EOPNOTSUPP)
    return tmp_path


def without_o_tmpfile(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **names: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *more, **names)

    monkeypatch.setattr(os, "open", refuse)


def spooled(folder: Path) -> list[int]:
    """Descriptors of this process that are files (without a name) of that folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target.startswith(f"{folder}/") and target.endswith(" (deleted)"):
            found.append(int(name))
    return found


def until(ready: Callable[[], bool]) -> None:
    """Run the hub until it is so: what ends on a thread ends without an event for others."""
    with gevent.Timeout(PATIENCE):
        while not ready():
            gevent.sleep(0.001)


def settle() -> None:
    """Let greenlets run and threads finish what they can: what is not done then waits for something."""
    for _ in range(5):
        gevent.sleep(0.001)
        gevent.get_hub().threadpool.apply(len, ("",))


class Held:
    """Calls of a function of `os` that begin, and wait on a thread until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun: list[tuple[Any, ...]] = []
        self.ended = 0
        self._lock = NativeLock()
        self._lock.acquire()
        real = getattr(os, name)

        def wait(*args: Any) -> Any:
            self.begun.append(args)
            assert self._lock.acquire(timeout=PATIENCE)
            self._lock.release()
            try:
                return real(*args)
            finally:
                self.ended += 1

        monkeypatch.setattr(os, name, wait)

    def release(self) -> None:
        self._lock.release()


@pytest.fixture
def held_write(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch, "pwrite")


@pytest.fixture(autouse=True)
def no_descriptor_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    until(lambda: not spooled(tmp_path))


# -- what is written and read -----------------------------------------------------------


def test_what_was_appended_is_read_back_at_the_readers_own_pace(folder: Path) -> None:
    file = Spool(str(folder), 1000).open()
    assert (file.size, file.unread, file.read(10)) == (0, 0, b"")
    file.append(b"one ")
    assert file.read(2) == b"on"
    file.append(b"two")
    assert (file.size, file.unread) == (7, 5)
    assert file.read(100) == b"e two"
    assert file.read(100) == b""
    file.append(b"!")
    assert file.read(100) == b"!"
    file.close()
    file.close()


def test_a_large_body_goes_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        sizes.append(len(data))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    body = os.urandom(2 * PIECE + 3)
    file = Spool(str(folder), len(body)).open()
    file.append(body)
    assert sizes == [PIECE, PIECE, 3]
    read = [file.read(10 * PIECE) for _ in range(4)]
    assert [len(piece) for piece in read] == [PIECE, PIECE, 3, 0]
    assert b"".join(read) == body
    file.close()


def test_a_short_write_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, data[:3], at))
    file = Spool(str(folder), 1000).open()
    file.append(b"0123456789")
    assert file.read(100) == b"0123456789"
    file.close()


def test_a_file_has_no_name_and_is_its_owners_alone(folder: Path) -> None:
    file = Spool(str(folder), 1000).open()
    assert list(folder.iterdir()) == []
    (descriptor,) = spooled(folder)
    found = os.fstat(descriptor)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_nlink == 0
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    file.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_every_way_to_refuse_o_tmpfile_leads_to_an_unlinked_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_o_tmpfile(monkeypatch, number)
    file = Spool(str(tmp_path), 10).open()
    file.append(b"x")
    assert file.read(1) == b"x"
    assert list(tmp_path.iterdir()) == []
    file.close()


# -- limits and faults --------------------------------------------------------------------


def test_the_limit_is_for_all_files_together_and_closing_gives_back(folder: Path) -> None:
    spool = Spool(str(folder), 10)
    one, two = spool.open(), spool.open()
    one.append(b"123456")
    two.append(b"7890")
    assert spool.held == 10
    with pytest.raises(SpoolFull):
        two.append(b"1")
    assert (spool.held, two.size, two.read(100)) == (10, 4, b"7890")
    one.close()
    until(lambda: spool.held == 4)
    two.append(b"123456")
    assert two.read(100) == b"123456"
    two.close()
    until(lambda: spool.held == 0)


def full_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The disk takes so many writes."""
    real, made = os.pwrite, []

    def pwrite(*args: Any) -> int:
        made.append(args)
        if len(made) > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_full_disk_leaves_what_was_appended_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(str(folder), 10 * PIECE)
    file = spool.open()
    full_after(monkeypatch, 2)
    file.append(b"kept")
    with pytest.raises(SpoolFailed, match="No space left"):
        file.append(bytes(PIECE + 1))
    assert caplog.messages == [f"bodies cannot be spooled in {folder}: No space left on device"]
    with pytest.raises(SpoolFailed):
        file.append(b"more")
    assert file.size == 4
    assert file.read(100) == b"kept"
    assert file.read(100) == b""
    # What is on the disk counts until the file is closed.
    assert spool.held == 4 + PIECE + 1
    file.close()
    until(lambda: spool.held == 0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOENT, errno.EACCES, errno.EIO])
def test_a_folder_that_fails_is_logged_once_a_minute(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=5.0)
    monkeypatch.setattr(module, "time", clock)

    def fail(*args: Any, **names: Any) -> int:
        raise OSError(number, os.strerror(number))

    spool = Spool(str(folder), 10)
    monkeypatch.setattr(os, "open", fail)
    for now, lines in ((5.0, 1), (64.9, 1), (65.0, 2)):
        clock.now = now
        with pytest.raises(SpoolFailed):
            spool.open()
        assert len(caplog.records) == lines
    assert caplog.records[0].levelno == logging.WARNING
    assert spool.held == 0


def test_a_missing_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(SpoolFailed, match="No such file"):
        Spool(str(tmp_path / "missing"), 10).open()


def test_a_read_error_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = Spool(str(folder), 10).open()
    file.append(b"x")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(SpoolFailed, match="Input/output error"):
        file.read(1)
    assert file.unread == 1
    file.close()


def test_a_file_that_was_shortened_is_a_failure_and_no_end(folder: Path) -> None:
    file = Spool(str(folder), 10).open()
    file.append(b"x")
    os.ftruncate(spooled(folder)[0], 0)
    with pytest.raises(SpoolFailed, match="shorter"):
        file.read(1)
    file.close()


def test_a_closed_file_fails(folder: Path) -> None:
    file = Spool(str(folder), 10).open()
    file.append(b"x")
    file.close()
    with pytest.raises(SpoolFailed, match="closed"):
        file.append(b"y")
    with pytest.raises(SpoolFailed, match="closed"):
        file.read(1)


# -- greenlets that are interrupted while a thread works ----------------------------------


class Interrupt(Exception):
    pass


def interrupted(work: Callable[[], object], begun: Callable[[], bool]) -> None:
    """Throw an exception into a greenlet at work, once `begun`."""
    greenlet = gevent.spawn(work)
    until(begun)
    greenlet.kill(Interrupt, timeout=PATIENCE)
    assert isinstance(greenlet.exception, Interrupt)


def append_and_close(file: SpoolFile, data: bytes) -> None:
    try:
        file.append(data)
    finally:
        file.close()


def test_closing_waits_for_the_write_of_an_interrupted_append(folder: Path, held_write: Held) -> None:
    spool = Spool(str(folder), 10)
    file = spool.open()
    (descriptor,) = spooled(folder)
    interrupted(lambda: append_and_close(file, b"secret"), lambda: bool(held_write.begun))
    settle()
    assert spooled(folder) == [descriptor]
    # What opens a file now gets another number.
    other = os.open(folder, os.O_RDONLY)
    assert other != descriptor
    os.close(other)
    assert spool.held == 6
    held_write.release()
    until(lambda: spooled(folder) == [])
    until(lambda: spool.held == 0)
    assert held_write.ended == 1


def test_closing_waits_for_the_read_of_an_interrupted_greenlet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Spool(str(folder), 10).open()
    file.append(b"secret")
    held = Held(monkeypatch, "pread")
    interrupted(lambda: file.read(10), lambda: bool(held.begun))
    file.close()
    settle()
    assert len(spooled(folder)) == 1
    held.release()
    until(lambda: spooled(folder) == [])


def test_an_interrupted_read_has_read_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Spool(str(folder), 10).open()
    file.append(b"secret")
    held = Held(monkeypatch, "pread")
    interrupted(lambda: file.read(10), lambda: bool(held.begun))
    held.release()
    assert file.read(10) == b"secret"
    file.close()


def test_nothing_is_appended_after_an_interrupted_append(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may write what it has at any later time."""
    file = Spool(str(folder), 100).open()
    file.append(b"kept")
    held = Held(monkeypatch, "pwrite")
    interrupted(lambda: file.append(b"lost"), lambda: bool(held.begun))
    with pytest.raises(SpoolFailed):
        file.append(b"more")
    held.release()
    assert (file.size, file.read(100)) == (4, b"kept")
    file.close()


def test_one_greenlet_closes_while_another_one_appends(folder: Path, held_write: Held) -> None:
    """The write goes on; the next piece is not written."""
    file = Spool(str(folder), 2 * PIECE).open()
    writer = gevent.spawn(file.append, bytes(2 * PIECE))
    until(lambda: bool(held_write.begun))
    file.close()
    settle()
    assert len(spooled(folder)) == 1
    held_write.release()
    writer.join(PATIENCE)
    assert isinstance(writer.exception, SpoolFailed)
    assert len(held_write.begun) == 1
    until(lambda: spooled(folder) == [])


def test_an_interrupted_open_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(str(folder), 10)
    lock, created = NativeLock(), []
    lock.acquire()
    real = module._create

    def create(path: str) -> int:
        created.append(real(path))
        assert lock.acquire(timeout=PATIENCE)
        return created[0]

    monkeypatch.setattr(module, "_create", create)
    interrupted(spool.open, lambda: bool(created))
    settle()
    assert spooled(folder) == created
    lock.release()
    until(lambda: spooled(folder) == [])


def test_who_waits_for_a_thread_is_interrupted_and_writes_nothing(folder: Path, held_write: Held) -> None:
    spool = Spool(str(folder), 100)
    files = [spool.open() for _ in range(module.THREADS + 1)]
    writers = [gevent.spawn(file.append, b"x") for file in files[:-1]]
    until(lambda: len(held_write.begun) == module.THREADS)
    # The last one finds all threads taken.
    last = gevent.spawn(append_and_close, files[-1], b"last")
    gevent.sleep(0)
    last.kill(Interrupt, timeout=PATIENCE)
    assert isinstance(last.exception, Interrupt)
    held_write.release()
    gevent.joinall(writers, timeout=PATIENCE, raise_error=True)
    assert len(held_write.begun) == module.THREADS
    for file in files:
        file.close()
    until(lambda: spool.held == 0)
    # All threads were given back.
    file = spool.open()
    file.append(b"y")
    assert file.read(1) == b"y"
    file.close()


def test_the_hub_runs_while_the_disk_hangs(folder: Path, held_write: Held) -> None:
    """And other users of the hub's threads get one, however many files wait."""
    spool = Spool(str(folder), 1000)
    files = [spool.open() for _ in range(20)]
    writers = [gevent.spawn(file.append, b"x") for file in files]
    until(lambda: len(held_write.begun) == module.THREADS)
    with gevent.Timeout(PATIENCE):
        assert gevent.get_hub().threadpool.apply(len, ("abc",)) == 3
    held_write.release()
    gevent.joinall(writers, timeout=PATIENCE, raise_error=True)
    for file in files:
        file.close()


# -- no thread ---------------------------------------------------------------------------


def no_thread_starts(monkeypatch: pytest.MonkeyPatch, queued: bool) -> list[Any]:
    """gevent's pool gets no (further) thread. `queued`: the job is in its queue all the same; the list has it."""
    jobs: list[Any] = []

    def spawn(job: Any) -> Any:
        if queued:
            jobs.append(job)
        raise RuntimeError("can't start new thread")

    hub = gevent.get_hub()
    monkeypatch.setattr(module, "get_hub", lambda: SimpleNamespace(loop=hub.loop, threadpool=SimpleNamespace(spawn=spawn)))
    return jobs


@pytest.mark.parametrize("queued", [True, False])
def test_without_a_thread_it_fails_and_the_file_is_closed_all_the_same(
    queued: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(folder), 100)
    file = spool.open()
    jobs = no_thread_starts(monkeypatch, queued)
    with pytest.raises(SpoolFailed, match="can't start new thread"):
        file.append(b"x")
    file.close()
    until(lambda: spooled(folder) == [])
    assert spool.held == 0
    # A thread that comes to it later does nothing.
    assert [job() for job in jobs] == [(None, None)] * len(jobs)
    assert len(jobs) == (2 if queued else 0)


def test_a_thread_that_began_before_the_pool_failed_keeps_the_descriptor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, held_write: Held
) -> None:
    spool = Spool(str(folder), 100)
    file = spool.open()
    hub = gevent.get_hub()
    real = hub.threadpool.spawn

    def spawn(job: Any) -> Any:
        real(job)
        until(lambda: bool(held_write.begun))
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        pool = SimpleNamespace(spawn=spawn)
        patch.setattr(module, "get_hub", lambda: SimpleNamespace(loop=hub.loop, threadpool=pool))
        with pytest.raises(SpoolFailed):
            file.append(b"x")
    file.close()
    settle()
    assert len(spooled(folder)) == 1
    held_write.release()
    until(lambda: spooled(folder) == [] and spool.held == 0)


# -- what an earlier process left ----------------------------------------------------------


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / f"{PREFIX}left").write_text("body")
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    (tmp_path / f"{PREFIX}folder").mkdir()
    assert clean(str(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"precious", f"{PREFIX}link", f"{PREFIX}folder"}
    assert target.read_text() == "kept"


def test_files_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{PREFIX}theirs").write_text("body")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert clean(str(tmp_path)) == 0
    assert (tmp_path / f"{PREFIX}theirs").exists()


def test_a_file_that_is_cleaned_between_creation_and_unlinking_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_o_tmpfile(monkeypatch, errno.EOPNOTSUPP)
    real, unlinked = os.unlink, []

    def unlink(path: Any) -> None:
        if not unlinked:
            unlinked.append(path)
            assert clean(str(tmp_path)) == 1
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    file = Spool(str(tmp_path), 10).open()
    file.append(b"x")
    assert file.read(1) == b"x"
    file.close()


def test_a_folder_that_cannot_be_cleaned_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert clean(str(tmp_path / "missing")) == 0
    assert "missing cannot be cleaned: No such file" in caplog.text
