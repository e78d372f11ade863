"""The access log of the reload soak against what the clients noted.

Rule: a request whose head the gateway surely read has exactly one line, with the status that its client saw. A request
whose client reset the connection, or found it closed, has one line at most. No line belongs to anybody else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak_clients import Log
from tests.soak_orders import Faults, asked
from tests.soak_reloads import GUESTS


@dataclass(slots=True)
class Lines:
    """What the log says. `times`: lines by number of the request; `own`: lines of the gateway's own paths; `headless`:
    lines of heads that broke off."""

    times: Counter[int] = field(default_factory=Counter)
    records: int = 0
    own: int = 0
    headless: int = 0
    retries: int = 0
    reused: int = 0


def records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def compare(path: Path, log: Log, of_version: Mapping[str, frozenset[str]], faults: Faults) -> Lines:
    """Read the log and note every difference as a fault."""
    lines = Lines()
    for record in records(path):
        lines.records += 1
        target: str = record["target"] or ""
        request = asked(target.encode())
        if request is None:
            lines.own += target.startswith(("/-/", "/soak/"))
            lines.headless += target in ("-", "")
            if not target.startswith(("/-/", "/soak/")) and target not in ("-", ""):
                faults.add("a log line of nobody's request", json.dumps(record))
            continue
        lines.times[request.number] += 1
        lines.retries += max(record["attempts"] - 1, 0)
        lines.reused += record["reused"]
        _judge(record, request.number, request.before[0], log, of_version, faults)
    _count(lines, log, faults)
    return lines


def _judge(
    record: dict[str, Any], number: int, route: str, log: Log, of_version: Mapping[str, frozenset[str]], faults: Faults
) -> None:
    story = json.dumps(record)
    if number not in log.lines:
        faults.add("a log line of nobody's request", story)
        return
    status = log.lines[number]
    if status and status != record["status"]:
        faults.add("another status in the log than the client got", f"{status}: {story}")
    guests = of_version.get(record["config_version"])
    if guests is None:
        faults.add("a log line with a version that was never valid", story)
    elif route in GUESTS and record["route"] is not None and route not in guests:
        faults.add("a log line whose version has no such route", story)
    elif route in guests and record["reason"] == "no_route":
        faults.add("no_route in a version that has the route", story)


def _count(lines: Lines, log: Log, faults: Faults) -> None:
    for number, status in log.lines.items():
        times = lines.times[number]
        if times > 1:
            faults.add("more than one log line for a request", f"{number:08x}: {times}")
        elif not times and status is not None:
            faults.add("no log line for a request", f"{number:08x}, status {status}")
    if lines.headless > log.broken_heads:
        faults.add("more lines of broken heads than heads were broken", f"{lines.headless} of {log.broken_heads}")
