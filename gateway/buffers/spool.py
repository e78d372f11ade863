"""Temporary files for bodies that do not fit in memory.

Rule: a file has no name (O_TMPFILE, or unlinked as soon as it exists), so it ends with its descriptor. Disk I/O runs on
threads, never on the hub. A descriptor is closed only when no thread works on it: the kernel gives its number to the
next file at once.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from gevent import get_hub, spawn_raw
from gevent.lock import Semaphore

from gateway.errors import GatewayError

log = logging.getLogger("gateway.spool")

# Bytes that one call of the kernel moves.
PIECE = 1024 * 1024
# Begins the names of files where the file system has no O_TMPFILE.
PREFIX = "gateway-spool-"
# Threads of the hub's ten that one spool uses at once: a disk that hangs leaves the others for name look-ups, reloads.
THREADS = 4
# Seconds between two lines about a folder that fails.
LOG_EVERY = 60.0
# What open(2) gives for O_TMPFILE where the file system, or the kernel, does not know it.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}

Result = TypeVar("Result")


class SpoolError(Exception):
    """A body cannot be spooled (any further); the caller streams it."""


class SpoolFull(SpoolError):
    """It would take more than the spool's limit. Nothing was written."""


class SpoolFailed(SpoolError):
    """The folder, the disk or the machine fails, or the file was closed."""


class SpoolUnreadable(GatewayError):
    """What was spooled of a body cannot be read again (500 `internal_error`)."""


class Spool:
    """The files of one folder. `limit`: bytes of all open files together; `held`: how many there are now, with those of
    files that are being closed."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.held = 0
        self._threads = Semaphore(THREADS)
        self._logged_at = -LOG_EVERY

    def open(self) -> SpoolFile:
        """An empty file. Raises SpoolFailed."""
        file = SpoolFile(self)
        try:
            file.open()
        except BaseException:
            file.close()
            raise
        return file

    def take(self, number: int) -> None:
        """Count bytes that are about to be written. Raises SpoolFull."""
        if self.held + number > self.limit:
            raise SpoolFull(f"{self.path} holds {self.held} bytes of {self.limit}")
        self.held += number

    def discard(self, descriptor: int, number: int) -> None:
        """Close a descriptor and give back its bytes once that is done; returns at once. Freeing the blocks of a large
        file takes the file system milliseconds."""
        if number == 0:
            os.close(descriptor)
        else:
            spawn_raw(self._discard, [descriptor], number)

    def _discard(self, descriptors: list[int], number: int) -> None:
        def over() -> None:
            # No thread was to be had.
            if descriptors:
                os.close(descriptors.pop())
            self.held -= number

        try:
            self.run(lambda: os.close(descriptors.pop()), over)
        except SpoolFailed:
            pass  # `run` has logged it, and `over` has closed it

    def run(self, call: Callable[[], Result], over: Callable[[], None]) -> Result:
        """What `call` returns, on a thread. Raises SpoolFailed for its OSError, and when no thread can be started.

        `over` is called on the hub, once, when no thread works on `call` (any more). That is after this call when the
        waiting greenlet is killed or gets an exception meanwhile.
        """
        try:
            self._threads.acquire()
        except BaseException:
            over()
            raise

        def ended() -> None:
            self._threads.release()
            over()

        hub = get_hub()
        # The thread takes the element to begin, the hub takes it to cancel; `pop` is atomic.
        turn = [True]

        def job() -> tuple[Result | None, Exception | None]:
            if not _popped(turn):
                return None, None
            # gevent prints a traceback for whatever a thread raises.
            try:
                return call(), None
            except Exception as error:
                return None, error
            finally:
                hub.loop.run_callback_threadsafe(ended)

        try:
            waiting = hub.threadpool.spawn(job)
        except BaseException as error:
            # Also raised when the job is in the queue but the pool got no further thread (RuntimeError).
            if _popped(turn):
                ended()
            if isinstance(error, RuntimeError):
                raise self._failed(error) from error
            raise
        result, fault = waiting.get()
        if isinstance(fault, OSError):
            raise self._failed(fault) from fault
        if fault is not None:
            raise fault
        return result  # type: ignore[no-any-return]

    def _failed(self, error: Exception) -> SpoolFailed:
        """What to raise for this error, which is logged at most once a minute."""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY:
            self._logged_at = now
            log.warning("bodies cannot be spooled in %s: %s", self.path, reason)
        return SpoolFailed(f"{self.path}: {reason}")


class SpoolFile:
    """Bytes that are appended at the end and read from the beginning, each at its own pace, by one greenlet each.
    `size`: bytes that were appended."""

    __slots__ = ("_at", "_broken", "_closed", "_counted", "_descriptor", "_jobs", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self.size = 0
        self._spool = spool
        # Where the next read begins.
        self._at = 0
        # Bytes of it in `Spool.held`.
        self._counted = 0
        # An append did not come to its end: what lies beyond `size` is unknown, and a thread may still write there.
        self._broken = False
        self._closed = False
        # Calls that wait for a thread or run on one.
        self._jobs = 0
        self._descriptor: int | None = None

    @property
    def unread(self) -> int:
        return self.size - self._at

    def open(self) -> None:
        """Only `Spool.open` calls this. The thread stores the descriptor, so that an interrupted call loses none."""

        def create() -> None:
            self._descriptor = _create(self._spool.path)

        self._run(create)

    def append(self, data: bytes) -> None:
        """Write all of it or raise: SpoolFull (a later call may succeed), SpoolFailed (no later call does). What was
        appended before can be read in any case. An interrupted call counts as failed."""
        if self._broken:
            raise SpoolFailed(f"{self._spool.path}: an earlier write failed")
        end = self.size + len(data)
        more = max(0, end - self._counted)
        self._spool.take(more)
        self._counted += more
        self._broken = True
        rest, at = memoryview(data), self.size
        while rest:
            written = self._run(partial(os.pwrite, self._open_descriptor(), rest[:PIECE], at))
            rest, at = rest[written:], at + written
        self.size = end
        self._broken = False

    def read(self, most: int) -> bytes:
        """Up to `most` bytes and up to PIECE; b"" when all that was appended has been read. Raises SpoolFailed. An
        interrupted call has read nothing."""
        number = min(most, self.unread, PIECE)
        if number <= 0:
            return b""
        data = self._run(partial(os.pread, self._open_descriptor(), number, self._at))
        if not data:
            raise SpoolFailed(f"{self._spool.path}: a file is shorter than what was written")
        self._at += len(data)
        return data

    def close(self) -> None:
        """Never waits and never fails; the descriptor is closed when no call runs on a thread any more."""
        self._closed = True
        if self._jobs == 0:
            self._release()

    def _open_descriptor(self) -> int:
        if self._closed or self._descriptor is None:
            raise SpoolFailed(f"{self._spool.path}: the file is closed")
        return self._descriptor

    def _run(self, call: Callable[[], Result]) -> Result:
        self._jobs += 1
        return self._spool.run(call, self._over)

    def _over(self) -> None:
        self._jobs -= 1
        if self._closed and self._jobs == 0:
            self._release()

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._spool.discard(descriptor, self._counted)


def spooled(file: SpoolFile, most: int) -> bytes:
    """As `SpoolFile.read`, where a fault ends the exchange. Raises SpoolUnreadable."""
    try:
        return file.read(most)
    except SpoolError as error:
        raise SpoolUnreadable(f"a body's temporary file: {error}") from None


def _popped(turn: list[bool]) -> bool:
    try:
        return turn.pop()
    except IndexError:
        return False


def _create(folder: str) -> int:
    """Descriptor of a new file without a name, readable by its owner alone. Raises OSError."""
    try:
        # O_EXCL: no process can give it a name later (open(2)).
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    # Mode 0600, O_EXCL and O_CLOEXEC are mkstemp's own.
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass  # another process cleans the folder
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def clean(path: str) -> int:
    """Remove files of processes that died between creating and unlinking one; how many. A folder that cannot be read or
    written is logged. Blocks.

    One that another process creates right now may go, too. That process unlinks it in any case.
    """
    removed = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                removed += entry.name.startswith(PREFIX) and _removed(entry)
    except OSError as error:
        log.warning("%s cannot be cleaned: %s", path, error.strerror or error)
    return removed


def _removed(entry: os.DirEntry[str]) -> bool:
    """Remove it if it is a file (no link) of this process's user. Raises OSError."""
    try:
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False
        os.unlink(entry.path)
    except FileNotFoundError:
        return False
    return True
