"""What one bin reported, and the text that stands for all bins at the end.

Rule: reads like the end of one pytest run: every failure once, a short summary, one closing line that counts everything.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 100
ORDER = ("failed", "errors", "passed", "skipped", "xfailed", "xpassed")
# The end of a bin's own output, where it crashed.
TAIL = 3000


@dataclass(slots=True)
class Results:
    """The events of one bin so far. `files`: absolute paths with at least one test; `alone`: those of them with tests
    that wait for the bin that runs alone. `cpu`: seconds. `faults`: why the bin as a whole failed."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    missed: dict[str, tuple[str, int]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    number: int | None = None
    ended: int = 0
    cpu: float = 0.0
    running: str = ""
    running_since: float = 0.0
    finished: bool = False
    faults: list[str] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> str:
        """Count one event; a line to show at once, or ""."""
        match event["event"]:
            case "divided":
                self.files, self.alone = set(event["files"]), set(event["alone"])
            case "collected":
                self.number = event["number"]
            case "start":
                self.running, self.running_since = event["id"], time.monotonic()
            case "end":
                self.ended += 1
                self.running = ""
            case "warning":
                self.warnings[event["text"]] += 1
            case "finish":
                self.finished, self.cpu = True, event["cpu"]
                self.missed = {name: (how, number) for name, (how, number) in event["missed"].items()}
            case "report":
                return self._report(event)
        return ""

    def age(self, now: float) -> float:
        """Seconds since the test that runs began; 0 when none does."""
        return now - self.running_since if self.running else 0.0

    def _report(self, event: dict[str, Any]) -> str:
        outcome = event["outcome"]
        if outcome == "failed":
            kind = "failed" if event["when"] == "call" else "errors"
            self.counts[kind] += 1
            self.failures.append((f"{event['id']} ({self.name})", _failure(event)))
            return f"{'FAILED' if kind == 'failed' else 'ERROR'} {event['id']} ({self.name})"
        if event.get("expected"):
            outcome = "xfailed" if outcome == "skipped" else "xpassed"
        self.counts[outcome] += 1
        if outcome in ("skipped", "xfailed"):
            self.reasons[outcome, event["reason"]] += 1
        return ""

    def check(self, status: int, expected: set[str]) -> None:
        """Note everything by which a bin fails as a whole: its exit status, what it did not collect, what it did not
        run. `expected`: the files that it was given."""
        if status not in (0, 1) or not self.finished:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self.faults.append(f"{how}{f', in {self.running}' if self.running else ''}")
        elif self.number != self.ended:
            self.faults.append(f"collected {self.number} tests and ran {self.ended}")
        if not self.number and not self.alone:
            self.faults.append("collected no tests")
        if lost := sorted(expected - self.files):
            self.faults.append(f"collected nothing from {', '.join(lost)}")


def events(path: Path) -> Iterator[list[dict[str, Any]]]:
    """What was appended to the file since the last turn; a half-written line waits for its end."""
    rest = b""
    with path.open("rb") as file:
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            yield [json.loads(line) for line in lines]


def _failure(event: dict[str, Any]) -> str:
    parts = [event["text"]]
    for title, text in event.get("sections", ()):
        parts += [f" {title} ".center(WIDTH, "-"), text.rstrip("\n")]
    return "\n".join(parts)


def summary(bins: Sequence[Results], not_had: dict[str, str], wall: float, cpu: float) -> tuple[str, bool]:
    """The end of a run and whether it succeeded. `not_had`: what this machine lacks and what was not run for want of
    it. `wall`, `cpu`: seconds."""
    lines: list[str] = []
    failures = [failure for each in bins for failure in each.failures]
    if failures:
        lines.append(" FAILURES ".center(WIDTH, "="))
    for name, text in failures:
        lines += [f" {name} ".center(WIDTH, "_"), text]
    lines += _warnings(bins)
    short = [_short(name, text) for name, text in failures]
    short += [f"BIN FAILED {each.name}: {fault}" for each in bins for fault in each.faults]
    short += _reasons(bins)
    if short:
        lines += [" short test summary info ".center(WIDTH, "="), *short]
    lines += _not_had(bins, not_had)
    counts = sum((each.counts for each in bins), Counter[str]())
    counts["bins failed"] = sum(bool(each.faults) for each in bins)
    told = [f"{counts[key]} {key}" for key in (*ORDER, "bins failed") if counts[key]]
    number = "1 bin" if len(bins) == 1 else f"{len(bins)} bins"
    line = f" {', '.join(told) or 'nothing ran'} in {wall:.1f}s ({clock(wall)}), CPU {cpu:.0f}s, {number} "
    line = line.replace(" 1 errors", " 1 error").replace(" 1 bins failed", " 1 bin failed")
    lines.append(line.center(WIDTH, "="))
    good = not (counts["failed"] or counts["errors"] or counts["bins failed"]) and counts["passed"] > 0
    return "\n".join(lines), good


def _short(name: str, text: str) -> str:
    """The test, and the line of its report that names the exception."""
    found = re.findall(r"^E +(.*)", text, re.MULTILINE) or text.splitlines()[-1:] or [""]
    return f"FAILED {name} - {found[0][:160]}"


def _reasons(bins: Sequence[Results]) -> list[str]:
    reasons = sum((each.reasons for each in bins), Counter[tuple[str, str]]())
    kinds = {"skipped": "SKIPPED", "xfailed": "XFAIL"}
    return [f"{kinds[outcome]} [{number}] {reason}" for (outcome, reason), number in sorted(reasons.items())]


def _warnings(bins: Sequence[Results]) -> list[str]:
    found = sum((each.warnings for each in bins), Counter[str]())
    if not found:
        return []
    return [" warnings summary ".center(WIDTH, "="), *(f"[{number}] {text}" for text, number in sorted(found.items()))]


def _not_had(bins: Sequence[Results], not_had: dict[str, str]) -> list[str]:
    missed: dict[str, str] = dict(not_had)
    for name in sorted({name for each in bins for name in each.missed}):
        number = sum(each.missed[name][1] for each in bins if name in each.missed)
        how = next(each.missed[name][0] for each in bins if name in each.missed)
        missed[name] = f"{number} test(s) SKIPPED; {how}"
    if not missed:
        return []
    return [" NOT AVAILABLE HERE ".center(WIDTH, "="), *(f"{name}: {text}" for name, text in missed.items())]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
