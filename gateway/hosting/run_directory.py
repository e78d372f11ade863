"""The folder in which the workers of one master meet: counters in files, sockets to ask by.

Rule: the master makes it and removes it; only the workers' user (gunicorn's `user`) may look
in. One that a killed master left behind is removed by the next: whether anybody lives is
asked by a lock, which the kernel gives up with the last process of that master, wherever its
number is reused.
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
from collections.abc import Iterable
from pathlib import Path
from typing import IO

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

    `within`: where to make it, else in the temporary directory. `user` and `group`: whose it
    is, by number. Raises OSError where nothing can be written.
    """

    def __init__(self, within: str | None, user: int, group: int) -> None:
        where = within or tempfile.gettempdir()
        if len(where) > _LONGEST - len(_PREFIX) - 8:
            where = "/tmp"
        with contextlib.suppress(OSError):  # that it cannot be read is no reason not to write there
            _sweep(Path(where), {os.getuid(), user})
        # 0700, as all that mkdtemp makes.
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=where)
        self._user, self._group = user, group
        self._take()
        self._owner = os.getpid()
        atexit.register(self.remove)

    def remake(self) -> None:
        """Make it again if it is gone: there are those who clean /tmp. Raises OSError where that
        cannot be, or somebody else has made one of that name."""
        try:
            told = os.lstat(self.path)
        except FileNotFoundError:
            os.mkdir(self.path, 0o700)
            self._take()
        else:
            if told.st_uid != self._user:
                raise PermissionError(f"{self.path} is another user's")

    def take_over(self, before: str, names: Iterable[str]) -> None:
        """Copy files of the master before this one (SIGUSR2), which still has its directory. Raises OSError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._copy(os.path.join(before, name), os.path.join(self.path, name))

    def _copy(self, source: str, target: str) -> None:
        with _opened(source, os.O_RDONLY | os.O_NONBLOCK) as old:
            found = os.fstat(old.fileno())
            # The workers' user may put anything there, and the master may be root.
            if not stat.S_ISREG(found.st_mode) or found.st_uid != self._user:
                raise PermissionError(f"{source} is not a file of this gateway's workers")
            with _opened(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as new:
                shutil.copyfileobj(old, new)
                if self._user != os.geteuid():
                    os.fchown(new.fileno(), self._user, self._group)

    def _take(self) -> None:
        """Lock it, and give it to whom it is for."""
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if self._user != os.geteuid():
            os.chown(self.path, self._user, self._group)

    def remove(self) -> None:
        """At the master's end. Workers end by the same way and change nothing."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)


def _opened(path: str, flags: int) -> IO[bytes]:
    return open(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb" if flags & os.O_WRONLY else "rb")


def _sweep(where: Path, users: set[int]) -> None:
    """Remove what masters that are gone have left behind for these users."""
    for found in where.glob(f"{_PREFIX}*"):
        # Another user's, or gone meanwhile: not ours to remove.
        with contextlib.suppress(OSError):
            told = found.lstat()
            # One that is being made may not be locked yet.
            if not stat.S_ISDIR(told.st_mode) or told.st_uid not in users or time.time() - told.st_mtime < _YOUNG:
                continue
            lock = os.open(found / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                _close(lock)
