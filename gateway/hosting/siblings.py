"""What the workers of one gateway know of one another: a file in the run directory.

Rule: what one of them does for all (to announce the gateway, say) is done by whoever holds
the lock on that file, which a process that ends, however it does, gives back. A byte in the
file is a reload: a worker that has seen one since it was born is being replaced, and one that
is told to leave without one leaves for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os

from gevent import monkey

log = logging.getLogger("gateway.server")

# The plain one: gevent's waits for a loop that does not run in the master.
_close = monkey.get_original("os", "close")

_NAME = "siblings"


def reloaded(folder: str) -> None:
    """The master, before it replaces its workers; it makes no file, which they could not open."""
    with contextlib.suppress(OSError):  # no worker has come so far, or somebody cleans up
        # The folder is the workers' user's, whom the master may be more than: no link is followed.
        fd = os.open(os.path.join(folder, _NAME), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.write(fd, b".")
        _close(fd)


class Siblings:
    """One worker's view; made in that worker. While the file cannot be opened, this worker leads nothing."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, _NAME)
        self._fd: int | None = None
        self._born = 0
        self._failing = False
        self._opened()

    def lead(self) -> bool:
        """Whether this worker is the one of them; once it is, it stays so."""
        fd = self._opened()
        if fd is None:
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def resign(self) -> None:
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def replaced(self) -> bool:
        """Whether younger workers take over when this one leaves."""
        return self._fd is not None and os.fstat(self._fd).st_size != self._born

    def _opened(self) -> int | None:
        """The file; it is tried again until it can be opened."""
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if not self._failing:
                    log.error("this worker leaves what one does for all to others: %s", error)
                self._failing = True
            else:
                self._born = os.fstat(self._fd).st_size
        return self._fd
