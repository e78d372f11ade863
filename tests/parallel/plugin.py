"""pytest plugin of one bin: writes what happens as JSON lines, for the process that runs all bins.

`TESTS_EVENTS` names the file. `TESTS_ALONE` chooses: "0" leaves tests marked `alone` out and reports them, "1" runs
only those. SIGUSR1 writes the stacks of all threads to the file that `TESTS_STACKS` names, SIGUSR2 those of all
greenlets.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import IO, Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    events = os.environ.pop("TESTS_EVENTS")
    alone = os.environ.pop("TESTS_ALONE") == "1"
    # Kept open: a signal may come when no file can be opened any more.
    stacks = open(os.environ.pop("TESTS_STACKS"), "a")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    signal.signal(signal.SIGUSR2, lambda *_: _write_greenlets(stacks))
    config.pluginmanager.register(Reporter(events, config.rootpath, alone), "events")


def _write_greenlets(stacks: IO[str]) -> None:
    from gevent.util import format_run_info

    stacks.write("\n".join(format_run_info()) + "\n")
    stacks.flush()


def cpu_seconds() -> float:
    """CPU time of this process and of the children that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


class Reporter:
    """Writes one JSON object a line to `path`."""

    def __init__(self, path: str, root: Path, alone: bool) -> None:
        self._out = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        self._root = root
        self._alone = alone
        # Files that skipped themselves as a whole.
        self._skipped: list[str] = []
        self._began = 0.0
        self._cpu = 0.0

    def _write(self, kind: str, **more: Any) -> None:
        self._out.write(json.dumps({"event": kind, **more}) + "\n")
        self._out.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        files = sorted({str(item.path) for item in items} | set(self._skipped))
        marked = [item for item in items if item.get_closest_marker("alone")]
        kept = marked if self._alone else [item for item in items if item not in set(marked)]
        dropped = [] if self._alone else marked
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
        self._write("divided", files=files, alone=sorted({str(item.path) for item in dropped}))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("report", id=report.nodeid, when="collect", outcome="failed", text=report.longreprtext)
        elif report.skipped:
            self._skipped.append(str(self._root / report.nodeid))
            self._write("report", id=report.nodeid, when="collect", outcome="skipped", reason=_reason(report))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write("collected", number=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began, self._cpu = time.monotonic(), cpu_seconds()
        self._write("start", id=nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(
            "end", id=nodeid, s=round(time.monotonic() - self._began, 3), cpu=round(cpu_seconds() - self._cpu, 3)
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        expected = getattr(report, "wasxfail", None)
        if report.when != "call" and report.passed:
            return
        more: dict[str, Any] = {}
        if report.failed:
            more = {"text": report.longreprtext, "sections": report.sections}
        elif report.skipped:
            more = {"reason": expected if expected is not None else _reason(report)}
        self._write(
            "report", id=report.nodeid, when=report.when, outcome=report.outcome, expected=expected is not None, **more
        )

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        text = f"{warning_message.filename}:{warning_message.lineno}: {warning_message.category.__name__}: "
        self._write("warning", id=nodeid, text=text + str(warning_message.message))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        # Not at the top: conftest.py has gevent patch before anything imports sockets.
        from tests import services

        missed = {name: [services.HOW[name], len(tests)] for name, tests in services.missed.items()}
        self._write("finish", status=int(exitstatus), missed=missed, cpu=round(cpu_seconds(), 1))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped."""
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
