"""What the workers of one gateway know of one another: a file in the run directory.

Rule: what one of them does for all (to announce the gateway, say) is done by whoever holds
the lock on that file, which a process that ends, however it does, gives back. A byte in the
file is a reload: a worker that has seen one since it was born is being replaced, and one that
is told to leave without one leaves for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from gevent import monkey

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
    """One worker's view; made in that worker."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(os.path.join(folder, _NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._born = self._reloads()

    def lead(self) -> bool:
        """Whether this worker is the one of them; once it is, it stays so."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def resign(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def replaced(self) -> bool:
        """Whether younger workers take over when this one leaves."""
        return self._reloads() != self._born

    def _reloads(self) -> int:
        return os.fstat(self._fd).st_size
