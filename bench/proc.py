"""One started program: on which core it runs, what its whole process tree has used, how it ends.

Rule: every program is the leader of a session of its own, which is how its tree is known,
orphans included; it gets SIGTERM from the kernel when the harness dies, and SIGKILL from
the harness when it does not end by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A measurement that cannot be trusted, or a program that does not do its part."""


class Program:
    """A running program and its descendants."""

    def __init__(
        self, name: str, command: Sequence[str], core: int, log: Path, *, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(core), *command]
        with log.open("wb") as output:
            self._root = subprocess.Popen(
                pinned,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
            )
        self.pid = self._root.pid

    @property
    def running(self) -> bool:
        """The program itself (not only a descendant) is there."""
        return self._root.poll() is None

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, children that were waited for included."""
        return sum(cpu_ticks(stat) for _, stat in session(self.pid)) / TICK

    def peak_mib(self) -> float:
        """The sum of the processes' peak resident sizes; pages that they share count for each."""
        return sum(status_kib(pid, "VmHWM") for pid, _ in session(self.pid)) / 1024

    def resident_kib(self) -> int:
        """The sum of the processes' resident sizes now."""
        return sum(status_kib(pid, "VmRSS") for pid, _ in session(self.pid))

    def tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])

    def wait(self, patience: float) -> None:
        """Until it has ended well."""
        try:
            status = self._root.wait(patience)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.name} did not end within {patience} s") from error
        if status:
            raise BenchError(f"{self.name} ended with {status}: {self.tail()}")

    def stop(self, patience: float = 3.0) -> None:
        """End the whole tree: politely first, surely after."""
        if self.running:
            self._root.terminate()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and (self.running or living(self.pid)):
            time.sleep(0.02)
        for pid in living(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended between the look and the shot
        self._root.wait()


def fields(stat: str) -> list[str]:
    """proc(5): the fields of a `stat` line from the third on; the name before may hold anything."""
    return stat[stat.rindex(")") + 2 :].split()


def cpu_ticks(stat: str) -> int:
    """utime + stime + cutime + cstime: fields 14 to 17."""
    return sum(int(value) for value in fields(stat)[11:15])


def session(leader: int) -> Iterator[tuple[int, str]]:
    """Every process of a session with its `stat` line, zombies included: their times are nobody else's yet."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while the list was read
        if int(fields(stat)[3]) == leader:
            yield int(entry), stat


def living(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    return [pid for pid, stat in session(leader) if fields(stat)[0] != "Z"]


def status_kib(pid: int, key: str) -> int:
    """One size out of /proc/PID/status; 0 for a process that has just ended."""
    try:
        text = Path("/proc", str(pid), "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0
