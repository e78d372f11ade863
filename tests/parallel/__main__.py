"""Runs every test in several pytest processes and reports like one of them.

python -m tests.parallel [--long]

Exit status 1 when a test failed, or when a bin collected nothing, lost a file, crashed, was killed or hung.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parallel import interpreters
from tests.parallel.bins import TESTS, all_files, divide
from tests.parallel.results import TAIL, Results, clock, events, summary

# Most tests wait for processes and timers, so two cores bear more than two bins.
BINS_PER_CORE = 3.0
# Seconds until a run is stopped and what hangs is named. CI stops a job after 20 minutes, and the environment comes first.
LIMIT = 17 * 60
LONG_LIMIT = 6 * 3600
# Seconds that one test may take before its bin is given up; the slowest takes 40 on a busy machine.
TEST_LIMIT = 5 * 60
# Seconds to make the environment of another interpreter.
INSTALL = 120
# Seconds between two lines of progress, and after which a line names the test that takes so long.
PROGRESS = 10
SLOW = 30
# Seconds for a hung process to write its stacks, for an interrupted one to stop its servers.
LAST_WORDS = 5
# Characters of its stacks that are shown: those of the threads come first, then those of the greenlets.
STACKS = 8000
TICK = 0.1


@dataclass
class Job:
    """One bin: a command of pytest and its results. `files`: relative to the checkout, or absolute."""

    name: str
    seconds: int
    files: list[str]
    command: list[str]
    alone: bool = False
    # The unit tests on another interpreter.
    again: bool = False
    results: Results = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    took: float = 0.0

    def __post_init__(self) -> None:
        self.results = Results(self.name)

    def start(self, folder: Path) -> None:
        self._stacks, self._log = folder / f"{self.name}.stacks", folder / f"{self.name}.log"
        path = folder / f"{self.name}.jsonl"
        path.write_bytes(b"")
        self._events = events(path)
        environ = {**os.environ, "TESTS_EVENTS": str(path), "TESTS_STACKS": str(self._stacks)}
        environ["TESTS_ALONE"] = str(int(self.alone))
        # One file for all bins: the last of them judges the patterns of each.
        environ["TESTS_PATTERNS"] = str(folder / "patterns")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.files],
                cwd=TESTS.parent,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.began = time.monotonic()

    def look(self) -> list[str]:
        """Take what has been reported; lines to show at once."""
        return [line for event in next(self._events) if (line := self.results.take(event))]

    def over(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def finish(self) -> None:
        """The process has ended: check that nothing is missing."""
        assert self.process is not None
        self.took = time.monotonic() - self.began
        expected = {str(TESTS.parent / file) for file in self.files}
        self.results.check(self.process.returncode, set() if self.alone else expected)
        if self.results.faults and not self.results.finished:
            self.results.faults.append("the end of its output:\n" + self._log.read_text(errors="replace")[-TAIL:])

    def give_up(self, after: float) -> None:
        """Write down where it hangs, then kill it and every process below it."""
        assert self.process is not None
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS)
        self.kill()
        self.took = time.monotonic() - self.began
        stacks = self._stacks.read_text(errors="replace")[:STACKS] if self._stacks.exists() else ""
        where = self.results.running or "no test"
        self.results.faults.append(f"not finished after {clock(after)}, in {where}; its stacks:\n{stacks}")

    def kill(self) -> None:
        assert self.process is not None
        for pid in reversed(tree(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def progress(self, now: float) -> str:
        if not self.process:
            return f"{self.name} waits"
        here = self.results
        if here.number is None:
            return f"{self.name} starts"
        slow = f" (for {clock(here.age(now))} in {here.running})" if here.age(now) > SLOW else ""
        return f"{self.name} {here.ended}/{here.number}{slow}"


def tree(pid: int) -> list[int]:
    """The process and all of its descendants, parents first."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (path / "children").read_text().split())
    return found


def planned(options: list[str]) -> tuple[list[Job], dict[str, str]]:
    """One job for each bin, and one with the unit tests for each other interpreter; what is not available here, and
    what is not run for want of it. `options`: arguments of Python."""
    divided = divide(all_files(TESTS))
    jobs = [
        Job(each.name, each.seconds, [f"tests/{file}" for file in files], [sys.executable, *options])
        for each, files in divided.items()
    ]
    others = interpreters.others()
    unit = next(job for job in jobs if job.name == "unit")
    for each in others:
        command = [sys.executable, "-m", "tests.parallel.interpreters", str(each.path), each.version, *options]
        if "--long" not in options:
            command.append("--again")
        seconds = unit.seconds + (0 if interpreters.ready(each) else INSTALL)
        jobs.append(Job(f"unit-{each.version}", seconds, unit.files, command, again=True))
    return jobs, interpreters.missing(others)


class Run:
    """All jobs: the longest first, `most` at once; at the end, with nothing beside them, tests that must be alone.
    `limit`: seconds for all of it; `test_limit`: for one test. `command` runs pytest."""

    def __init__(
        self, jobs: list[Job], most: int, limit: float, test_limit: float, command: list[str], folder: Path
    ) -> None:
        self.jobs = sorted(jobs, key=lambda job: -job.seconds)
        self._most = most
        self._limit = limit
        self._test_limit = test_limit
        self._command = command
        self._folder = folder
        self._began = time.monotonic()
        self._shown = self._began

    def go(self, not_had: dict[str, str]) -> bool:
        """Run everything, print the summary. Returns whether it succeeded."""
        say(f"{len(self.jobs)} bins, {self._most} at once: {', '.join(job.name for job in self.jobs)}")
        try:
            self._together(self.jobs, self._most)
            files = sorted({file for job in self.jobs for file in job.results.alone if not job.again})
            if files:
                alone = Job("alone", 0, files, self._command, alone=True)
                self.jobs.append(alone)
                self._together([alone], 1)
        except KeyboardInterrupt:
            # The terminal has interrupted every pytest as well: they stop their servers first.
            self._wait(LAST_WORDS)
            raise
        finally:
            for job in self._running():
                job.kill()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        bins = [job.results for job in self.jobs]
        text, good = summary(bins, not_had, time.monotonic() - self._began, used.ru_utime + used.ru_stime)
        say("\n".join(["", *self._table(), "", text]))
        return good

    def _running(self) -> list[Job]:
        return [job for job in self.jobs if job.process and not job.over()]

    def _wait(self, seconds: float) -> None:
        """Until no bin runs, so long at most."""
        until = time.monotonic() + seconds
        while self._running() and time.monotonic() < until:
            time.sleep(TICK)

    def _together(self, jobs: list[Job], most: int) -> None:
        waiting, running = list(jobs), list[Job]()
        while waiting or running:
            self._watch(jobs, running, waiting)
            while waiting and len(running) < most:
                running.append(waiting.pop(0))
                running[-1].start(self._folder)
            time.sleep(TICK)
            for job in list(running):
                over = job.over()
                for line in job.look():
                    say(line)
                if over:
                    job.finish()
                    running.remove(job)
                    say(f"[{self._clock()}] {job.name} is done in {clock(job.took)}: {_counts(job.results)}")

    def _watch(self, jobs: list[Job], running: list[Job], waiting: list[Job]) -> None:
        now = time.monotonic()
        if now - self._began > self._limit:
            for job in running:
                job.give_up(now - self._began)
            for job in waiting:
                job.results.faults.append(f"not started within {clock(self._limit)}")
            running.clear()
            waiting.clear()
        for job in [job for job in running if job.results.age(now) > self._test_limit]:
            job.give_up(job.results.age(now))
            running.remove(job)
        if now - self._shown >= PROGRESS:
            self._shown = now
            say(
                f"[{self._clock()}] " + ", ".join(job.progress(now) for job in jobs if job in running or job in waiting)
            )

    def _clock(self) -> str:
        return clock(time.monotonic() - self._began)

    def _table(self) -> Iterator[str]:
        for job in self.jobs:
            yield f"{job.name:<14} {job.results.ended:>6} tests {clock(job.took):>6} {job.results.cpu:>6.0f}s CPU"


def _counts(results: Results) -> str:
    told: dict[str, Any] = {**results.counts, "bin failed": len(results.faults)}
    return ", ".join(f"{number} {key}" for key, number in told.items() if number) or "nothing"


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    arguments = sys.argv[1:]
    if arguments not in ([], ["--long"]):
        say("usage: python -m tests.parallel [--long]")
        return 2
    # A CI job that is cancelled must not leave servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    options = ["-m", "pytest", "-p", "tests.parallel.plugin", *arguments]
    jobs, not_had = planned(options)
    most = max(2, round(BINS_PER_CORE * (os.cpu_count() or 1)))
    limit, test_limit = (LONG_LIMIT, LONG_LIMIT) if arguments else (LIMIT, TEST_LIMIT)
    run = Run(jobs, most, limit, test_limit, [sys.executable, *options], folder)
    failed = False
    try:
        failed = not run.go(not_had)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if failed:
            say(f"The output of every bin: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
