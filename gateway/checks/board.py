"""Where the worker that checks endpoints tells the others: two files in the run directory.

Rule: who checks holds the lock on the one (`health.lock`), which the kernel takes back from a
process however it ends, and touches it as long as it lives. The other (`health`) has the
verdicts, a line for each upstream, and is put in the place of the one before as a whole. Who
reads looks at its age first, and only at the lines that are not as they were.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.model import Key

FORMAT = 1
_NAME, _LOCK = "health", "health.lock"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks of one endpoint say; `since`: seconds since 1970."""

    healthy: bool
    why: str
    since: float


# By upstream and endpoint.
Verdicts = Mapping[str, Mapping[Key, Verdict]]


class Board:
    """One worker's view. Raises OSError where the files cannot be used."""

    def __init__(self, folder: str, wall: Callable[[], float] = time.time) -> None:
        self._path = os.path.join(folder, _NAME)
        self._lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._wall = wall
        self.leading = False
        # The lines as they were written or read last, by upstream; the age of what was read.
        self._lines: dict[str, str] = {}
        self._read: tuple[int, int, int] | None = None
        self._readable = True

    def lead(self) -> bool:
        """Whether this worker is the one that checks; once it is, it stays so."""
        if not self.leading:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.leading = True
            self.beat()
        return True

    def resign(self) -> None:
        if self.leading:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self.leading = False

    def forget(self) -> None:
        """The next `read` tells everything."""
        self._lines = {}
        self._read = None

    def close(self) -> None:
        os.close(self._lock)

    def beat(self) -> None:
        """The one that checks is alive."""
        os.utime(self._lock)

    def silence(self) -> float:
        """For how many seconds nothing was heard of the one that checks. One that speaks another
        format (a worker of before an upgrade) is not heard."""
        return self._wall() - os.fstat(self._lock).st_mtime if self._readable else float("inf")

    def write(self, verdicts: Verdicts, changed: set[str]) -> None:
        """Tell the others. `changed`: the upstreams whose verdicts are not as they were."""
        for name in changed:
            self._lines.pop(name, None)
            if verdicts.get(name):
                self._lines[name] = _line(name, verdicts[name])
        beside = f"{self._path}.new"
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write("\n".join((json.dumps(FORMAT), *self._lines.values(), "")))
        os.replace(beside, self._path)

    def read(self) -> dict[str, dict[Key, Verdict]]:
        """The verdicts of those upstreams for which there are others than at the last call; no
        verdicts where there are none any more."""
        try:
            found = os.stat(self._path)
            age = (found.st_ino, found.st_mtime_ns, found.st_size)
            if age == self._read:
                return {}
            with open(self._path) as file:
                told, *lines = file.read().splitlines()
        except FileNotFoundError:
            return {}  # nobody has checked anything so far
        self._read = age
        self._readable = told == json.dumps(FORMAT)
        if not self._readable:
            lines = []
        before = self._lines
        self._lines = {_name(line): line for line in lines}
        news: dict[str, dict[Key, Verdict]] = {name: {} for name in before if name not in self._lines}
        news.update({name: _verdicts(line) for name, line in self._lines.items() if before.get(name) != line})
        return news


def _line(name: str, verdicts: Mapping[Key, Verdict]) -> str:
    rows = [
        [scheme, host, port, base.decode("latin-1"), one.healthy, one.why, one.since]
        for (scheme, host, port, base), one in verdicts.items()
    ]
    return f"{json.dumps(name)}\t{json.dumps(rows)}"


def _name(line: str) -> str:
    name: str = json.loads(line.partition("\t")[0])
    return name


def _verdicts(line: str) -> dict[Key, Verdict]:
    rows: list[list[Any]] = json.loads(line.partition("\t")[2])
    return {
        (scheme, host, port, base.encode("latin-1")): Verdict(healthy, why, since)
        for scheme, host, port, base, healthy, why, since in rows
    }
