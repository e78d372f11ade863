"""The command: which systems and scenarios, how long; progress while it runs, tables at the end.

Rule: rounds are interleaved (every system once, then again), so that a slow minute of the
machine falls on all. Nothing is left running and nothing written, whatever happens,
unless `--write` was given and every answer was right.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import chart, machine, pairs, report
from bench.proc import BenchError
from bench.scenarios import SCENARIOS, Entry, Run, Scenario
from bench.systems import SYSTEMS, needs, search_path
from bench.upstream import Place

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks.svg"
# 5,000 connections on our side, twice 2,000 in a gateway; started programs inherit it.
FILES_NEEDED = 6_000


def names(known: Sequence[str], extra: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """An argparse type: names of a table, joined by commas."""

    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        if text in extra:
            return list(known)
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join([*known, *extra])}")
        return wanted

    return parse


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the gateway and its peers.")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s each: about a minute")
    parser.add_argument("--only", type=names(list(SYSTEMS)), metavar="SYSTEM,…", help=", ".join(SYSTEMS))
    parser.add_argument(
        "--scenario",
        type=names(list(SCENARIOS), ["all"]),
        default=["small"],
        metavar="SCENARIO,…",
        help=", ".join([*SCENARIOS, "all"]) + " (default: small)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each measurement, default 5")
    parser.add_argument("--against", metavar="REVISION", help="compare with another revision of ours, in pairs")
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="with --against: default 15")
    parser.add_argument("--write", action="store_true", help="keep the figures and write docs/benchmarks.md and .svg")
    return parser.parse_args(argv)


def available(only: Sequence[str] | None) -> set[str]:
    """The systems that can be had; the others are told."""
    found = set()
    for name in only or SYSTEMS:
        if missing := SYSTEMS[name].missing():
            say(f"skipped: {SYSTEMS[name].title} ({missing})")
        else:
            found.add(name)
    return found


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Session:
    """One run of the harness: what was measured, and what went wrong."""

    def __init__(self, place: Place, core: int, rounds: int, seconds: float, described: dict[str, str]) -> None:
        self._place = place
        self._core = core
        self._rounds = rounds
        self._seconds = seconds
        self._described = described
        self.failed: list[str] = []

    def table(self, scenario: Scenario, systems: set[str]) -> report.Table:
        """Every round of one scenario."""
        entries = [entry for entry in scenario.entries() if entry.system.name in systems]
        found = machine.versions({entry.system.name for entry in entries})
        rows = {entry.key: report.Row(entry.key, entry.title, found[entry.system.name]) for entry in entries}
        program, port = scenario.upstream(self._place)
        try:
            run = Run(self._place, self._core, self._seconds, min(2.0, self._seconds / 2), port)
            for number in range(self._rounds):
                for entry in entries:
                    self._once(scenario, run, entry, rows[entry.key], number)
        finally:
            program.stop()
        return report.Table(scenario.name, self._seconds, self._described, list(rows.values()))

    def _once(self, scenario: Scenario, run: Run, entry: Entry, row: report.Row, number: int) -> None:
        told = f"{scenario.name} {number + 1}/{self._rounds} {entry.title}"
        begun = time.monotonic()
        try:
            figures = scenario.measure(run, entry)
        except (BenchError, OSError) as error:
            self.failed.append(f"{told}: {error}")
            say(f"{told}: FAILED: {error}")
            return
        row.rounds.append(figures)
        shown = (f"{report.written(column, figures)} {column.title}" for column in scenario.columns[:4])
        say(f"{told}: {', '.join(shown)} ({time.monotonic() - begun:.1f} s)")


def paired(options: argparse.Namespace, place: Place, core: int, seconds: float) -> None:
    """This checkout and another revision, in turn."""
    with pairs.checkout(ROOT, options.against, place.directory) as other:
        for name in options.scenario:
            scenario = SCENARIOS[name]
            program, port = scenario.upstream(place)
            try:
                run = Run(place, core, seconds, min(2.0, seconds / 2), port)
                for entry in pairs.ours(scenario):
                    found = []
                    for ours, theirs in pairs.compare(run, scenario, entry, other, options.pairs):
                        found.append((ours, theirs))
                        say(f"{entry.key} {len(found)}/{options.pairs}: {ours:.1f}, {theirs:.1f}: {ours / theirs:.3f}")
                    print(pairs.summary(f"{name}, {entry.title}", options.against, found), flush=True)
            finally:
                program.stop()


def write(tables: Sequence[report.Table]) -> None:
    """Keep the figures; the page and the chart are made from all that is kept."""
    kept = {data["scenario"]: report.from_json(data) for data in json.loads(KEPT.read_text())} if KEPT.exists() else {}
    kept.update({table.scenario: table for table in tables})
    ordered = [kept[name] for name in SCENARIOS if name in kept]
    KEPT.write_text(json.dumps([table.to_json() for table in ordered], indent=1) + "\n")
    PAGE.write_text(report.replace(PAGE.read_text(), report.page(ordered)))
    if "small" in kept:
        bars = [
            chart.Bar(row.title, figures["cpu_us"], row.key.startswith(report.OURS))
            for row, figures in report.measured(kept["small"])
        ]
        CHART.write_text(chart.svg("CPU µs per request (less is better)", bars))


def environment(home: Path) -> dict[str, str]:
    """What the programs see: ours is found in the checkout, nobody's settings leak in."""
    return {"PATH": search_path(), "HOME": str(home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}


def raise_file_limit() -> None:
    """As many descriptors as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < FILES_NEEDED:
        raise BenchError(f"the limit of open files is {hard}; the large scenarios need {FILES_NEEDED} (ulimit -n)")


def prepared() -> tuple[int, int]:
    """The gateway's core and the load's; the harness moves to the second."""
    if missing := needs("nginx", "wrk", "taskset", "setpriv")():
        raise BenchError(f"the harness itself cannot do without: {missing}")
    cores = machine.cores()
    if len(cores) < 2:
        raise BenchError("two cores are needed: one for the gateway, one for load and upstream")
    raise_file_limit()
    os.sched_setaffinity(0, {cores[1]})
    return cores[0], cores[1]


def interrupted(number: int, _: object) -> None:
    """A signal ends the run as Ctrl-C does: by unwinding."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, 1 when a measurement failed, 2 when none could begin, 130 when interrupted."""
    options = arguments(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (2.0 if options.quick else 5.0)
    tables = []
    try:
        described = machine.describe()
        core, load_core = prepared()
        systems = available(options.only)
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
            place = Place(Path(directory), ROOT, load_core, environment(Path(directory)))
            if options.against:
                paired(options, place, core, seconds)
                return 0
            session = Session(place, core, rounds, seconds, described)
            for name in options.scenario:
                tables.append(session.table(SCENARIOS[name], systems))
                print("\n" + report.plain(tables[-1]) + "\n", flush=True)
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    except BenchError as error:
        say(f"bench: {error}")
        return 2
    if session.failed:
        say("failed; nothing was written:\n" + "\n".join(told.splitlines()[0] for told in session.failed))
        return 1
    if options.write:
        write(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
