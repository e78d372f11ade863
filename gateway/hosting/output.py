"""Standard output and error that nobody waits for: whoever reads them may stop reading.

Rule: a log line must not stop a worker. A pipe (a container's log driver, a supervisor) or socket (journald) that is
full would stop the event loop at the next line, and the master at the next of its own. So both are written to without
waiting: what they do not take is kept, up to `MOST` bytes, and written later; what is beyond that is dropped and
counted. Files, terminals and /dev/null are left as they are.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import select
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gevent import monkey

_allocate_lock = monkey.get_original("_thread", "allocate_lock")
_poll = monkey.get_original("select", "poll")
_Socket = monkey.get_original("socket", "socket")

# Bytes that wait for a reader, of each stream and process.
MOST: Final = 1024 * 1024
# Seconds that a process waits at its end for what is left.
LAST: Final = 1.0


class Outlet(io.RawIOBase):
    """One stream. `write` takes everything and never blocks; `drain` writes what was kept. `dropped`: lines so far."""

    def __init__(self, descriptor: int, name: str, put: Callable[[memoryview], int]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._name = name
        self._put = put
        self._kept: deque[bytes] = deque()
        self._size = 0
        # Not reported yet.
        self._unreported = 0
        self.dropped = 0
        # Held by whoever writes; nobody waits for it, so that a signal handler may log.
        self._writing = _allocate_lock()
        os.register_at_fork(after_in_child=self._forget)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        size = len(piece)
        if self._size + size > MOST:
            lines = max(1, piece.count(b"\n"))
            self.dropped += lines
            self._unreported += lines
        else:
            self._kept.append(piece)
            # Without a call in it, an addition is not interrupted by another thread.
            self._size += size
        self.drain()
        return size

    def flush(self) -> None:
        if not self.closed:
            self.drain()

    def drain(self) -> None:
        """Write what is kept, as far as that is possible now."""
        while self._kept and self._writing.acquire(False):
            try:
                if not self._drain():
                    return
            finally:
                self._writing.release()

    def _drain(self) -> bool:
        """Whether there may be more to write."""
        while self._kept:
            piece = self._kept[0]
            try:
                done = self._put(memoryview(piece)[: _whole_lines(piece)])
            except BlockingIOError:
                return False
            except OSError:
                done = len(piece)  # nobody will ever read it
            self._size -= done
            if done < len(piece):
                self._kept[0] = piece[done:]
                continue
            self._kept.popleft()
            if self._unreported and not self._kept:
                self._report()
        return True

    def _report(self) -> None:
        lines, self._unreported = self._unreported, 0
        now = time.strftime("[%Y-%m-%d %H:%M:%S %z]")
        text = f"{now} [{os.getpid()}] [WARNING] {lines} log lines were dropped: nobody read standard {self._name}\n"
        size = len(text)
        self._kept.append(text.encode())
        self._size += size

    def finish(self, seconds: float = LAST) -> None:
        """At the end of the process: write what is left, within some seconds."""
        deadline = time.monotonic() + seconds
        self.drain()
        poll = _poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._kept and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.drain()

    def _forget(self) -> None:
        """In a child, which has a copy of what is kept."""
        self._kept = deque()
        self._size = self._unreported = 0
        self._writing = _allocate_lock()


def _whole_lines(piece: bytes) -> int:
    """How much to write at once: a pipe takes up to PIPE_BUF bytes whole or not at all (POSIX, write)."""
    if len(piece) <= select.PIPE_BUF:
        return len(piece)
    return (piece.rfind(b"\n", 0, select.PIPE_BUF) + 1) or select.PIPE_BUF


_outlets: list[Outlet] = []


def drain() -> None:
    for outlet in _outlets:
        outlet.drain()


def install(server: Any) -> None:
    """In gunicorn's master: replace standard output and error, and what the handlers of loggers have of them."""
    for name, told in (("stdout", "output"), ("stderr", "error")):
        before = getattr(sys, name)
        outlet = _outlet(before, told)
        if outlet is None:
            continue
        before.flush()
        raw: Any = outlet
        stream = io.TextIOWrapper(raw, encoding=before.encoding, errors=before.errors, line_buffering=True)
        setattr(sys, name, stream)
        _hand_over(before, stream)
        _outlets.append(outlet)
        atexit.register(outlet.finish)
    if _outlets:
        server.murder_workers = partial(_then_drain, server.murder_workers)


def _then_drain(murder_workers: Callable[[], None]) -> None:
    """What the master does every second."""
    drain()
    murder_workers()


def _outlet(stream: Any, name: str) -> Outlet | None:
    """None for what need not be waited for."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or none at all
        return None
    if stat.S_ISSOCK(mode):
        connection = _Socket(fileno=os.dup(descriptor))
        return Outlet(descriptor, name, lambda piece: connection.send(piece, socket.MSG_DONTWAIT))
    if not stat.S_ISFIFO(mode):
        return None
    # An open file of its own: to set O_NONBLOCK on this one would do so for everybody who shares it.
    with contextlib.suppress(OSError):
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return Outlet(descriptor, name, partial(os.write, own))
    # Another user's pipe. It is asked first; only if another process takes the room in between does this wait.
    return Outlet(descriptor, name, partial(_if_there_is_room, descriptor))


def _if_there_is_room(descriptor: int, piece: memoryview) -> int:
    poll = _poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(descriptor, piece)


def _hand_over(before: Any, stream: Any) -> None:
    for each in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in each.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(stream)
