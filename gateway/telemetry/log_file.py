"""Where log lines go: a file, a pipe, a socket or standard output; whole lines only.

Rule: this blocks, so it runs on a native thread and touches nothing of gevent. Several
workers may write to the same place: a regular file takes a batch in one appending write,
which the kernel does not mix with others; anything else takes at most PIPE_BUF bytes of
whole lines at a time, which POSIX (write, "Write requests to a pipe") does not mix either.
A single line longer than that is the exception: it may be mixed when the pipe is full.
"""

from __future__ import annotations

import os
import select
import stat
import time
from typing import Final

from gevent import monkey

STDOUT: Final = "-"

# The real one: this runs outside of any hub.
_poll = monkey.get_original("select", "poll")

# A log names clients: their owner and the log's group read it, nobody else.
_MODE = 0o640


class LogFile:
    """A log, closed until `open` or the first `write`. Not for two threads at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        # -1: closed.
        self._fd = -1
        self._regular = False
        # The last write broke off within a line: the next one begins a new line.
        self._torn = False

    def open(self) -> None:
        """Open it, anew if it is open: the file may have been moved away. On OSError the old one stays in use."""
        if self._path == STDOUT and self._fd >= 0:
            return
        new = _open(self._path)
        self.close()
        self._fd = new
        self._regular = _is_regular(new)
        self._torn = False

    def close(self) -> None:
        if self._path != STDOUT and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def write(self, lines: bytes, deadline: float | None = None) -> tuple[int, OSError | None]:
        """Write whole lines; how many could not be, and why. A closed log is opened first.

        Waits as long as it takes, or until `deadline` (`time.monotonic()`), without ever
        blocking beyond it.
        """
        if self._fd < 0:
            try:
                self.open()
            except OSError as error:
                return lines.count(b"\n"), error
        prefix = b"\n" if self._torn else b""
        lines = prefix + lines
        view = memoryview(lines)
        done = 0
        try:
            while done < len(lines):
                end = len(lines) if self._regular else _whole_lines(lines, done)
                while done < end:
                    done += self._put(view[done:end], deadline)
        except OSError as error:
            if done:
                self._torn = not lines.endswith(b"\n", 0, done)
            # What is torn off counts as lost, as does all behind it.
            return lines.count(b"\n", max(done, len(prefix))), error
        self._torn = False
        return 0, None

    def _put(self, piece: memoryview, deadline: float | None) -> int:
        """One write, after waiting for room."""
        if deadline is not None:
            self._wait_for_room(deadline)
            if not self._regular:
                # There is room for so much; more might block.
                piece = piece[: select.PIPE_BUF]
        while True:
            try:
                return os.write(self._fd, piece)
            except BlockingIOError:
                # Whoever shares our standard output has made it non-blocking.
                self._wait_for_room(deadline)

    def _wait_for_room(self, deadline: float | None) -> None:
        poll = _poll()
        poll.register(self._fd, select.POLLOUT)
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(wait):
            raise TimeoutError("nobody reads it")


def _open(path: str) -> int:
    if path == STDOUT:
        return 1
    # O_NONBLOCK: a named pipe without a reader is an error (ENXIO), not a wait for one.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
    os.set_blocking(fd, True)
    return fd


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _whole_lines(lines: bytes, start: int) -> int:
    """Where a piece of whole lines ends that begins at `start`: within PIPE_BUF if it can."""
    end = start + select.PIPE_BUF
    if end >= len(lines):
        return len(lines)
    return (lines.rfind(b"\n", start, end) + 1) or (lines.find(b"\n", end) + 1)
