"""The folder in which the workers of one master meet: counters in files, sockets to ask by.

Rule: the master makes it and removes it; only its user may look in. One that a killed
master left behind is removed by the next: whether anybody lives is asked by a lock, which
the kernel gives up with the last process of that master, wherever its number is reused.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from gevent import monkey

# The plain one: gevent's waits for a loop that does not run in the master.
_close = monkey.get_original("os", "close")

_PREFIX = "wsgi-gateway-run-"
_LOCK = "lock"
# A unix socket's path has 108 bytes (unix(7)); its name inside the folder takes some.
_LONGEST = 90
_YOUNG = 60.0


class RunDirectory:
    """See the module's docstring. Workers inherit the lock by being forked.

    Raises OSError where nothing can be written.
    """

    def __init__(self, within: str | None = None) -> None:
        where = within or tempfile.gettempdir()
        if len(where) > _LONGEST - len(_PREFIX) - 8:
            where = "/tmp"
        with contextlib.suppress(OSError):  # that it cannot be read is no reason not to write there
            _sweep(Path(where))
        # 0700, as all that mkdtemp makes.
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=where)
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._owner = os.getpid()
        atexit.register(self.remove)

    def remove(self) -> None:
        """At the master's end. Workers end by the same way and change nothing."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)


def _sweep(where: Path) -> None:
    """Remove what masters that are gone have left behind."""
    for found in where.glob(f"{_PREFIX}*"):
        # Another user's, or gone meanwhile: not ours to remove.
        with contextlib.suppress(OSError):
            told = found.lstat()
            # One that is being made may not be locked yet.
            if not stat.S_ISDIR(told.st_mode) or told.st_uid != os.getuid() or time.time() - told.st_mtime < _YOUNG:
                continue
            lock = os.open(found / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                _close(lock)
