"""The chaos suite in its long form: every fault under every system, each time with everything started anew.

Rule: the systems take turns within each fault, so that a busy minute of the machine falls on all. What was found out
is told as it is found out, in tables at the end, and is written into docs/chaos.md if all went well and `--write` was
given. Nothing is left running, however it ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence

from bench import machine
from bench.systems import says
from tests.chaos import network, report
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stage import INSTANCES, OTHER_RATE, RATE, Outcome, Pace, Stage
from tests.chaos.systems import SYSTEMS, WORKERS, Limits, System
from tests.services import ROOT

PAGE = ROOT / "docs" / "chaos.md"
LIMITS = Limits()
# Longer than the second time for which an endpoint is ejected.
LONGEST = 45.0
# So much later than it was due a request of the load may begin (p99, ms) before the latencies say nothing.
LATE = 8.0


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: names of a table, joined by commas."""

    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(known)}")
        return wanted

    return parse


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Make instances fail, and see what is lost.")
    parser.add_argument("--only", type=names(list(FAULTS)), metavar="FAULT,…", help=", ".join(FAULTS))
    parser.add_argument("--systems", type=names(list(SYSTEMS)), metavar="SYSTEM,…", help=", ".join(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=15.0, metavar="N", help="how long a fault lasts (default: 15)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/chaos.md")
    options = parser.parse_args(argv)
    if options.write and (options.only or options.systems):
        parser.error("--write is for all faults and all systems")
    return options


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def available(wanted: Sequence[str] | None) -> list[type[System]]:
    """The systems that can be had; the others are told."""
    found = []
    for name in wanted or SYSTEMS:
        if missing := SYSTEMS[name].missing():
            say(f"skipped: {SYSTEMS[name].name} ({missing})")
        else:
            found.append(SYSTEMS[name])
    return found


def once(fault: Fault, kind: type[System], seconds: float) -> Outcome:
    """One fault under one system. Raises AssertionError, OSError."""
    with Stage(kind, LIMITS, fault.needs) as stage:
        try:
            return stage.play(fault, Pace(quiet=max(seconds / 2, 2.0), fault=seconds, after=3.0, longest=LONGEST))
        except AssertionError:
            say(stage.system.server.output()[-3000:])
            raise


def line(outcome: Outcome) -> str:
    """One outcome, on one line."""
    late = f", THE LOAD WAS {outcome.late:.0f} ms LATE" if outcome.late > LATE else ""
    return (
        f"{outcome.failed.total()} of {outcome.requests} failed, {outcome.failed_after.total()} later "
        f"({report.counted(outcome.failed + outcome.failed_after)}), "
        f"{len(outcome.wrong)} wrong, {len(outcome.twice)} of {outcome.posts} POSTs twice, "
        f"out {report.seconds(outcome.out)} s, back {report.seconds(outcome.back)} s, "
        f"other p99 {outcome.p99_quiet:.1f} -> {outcome.p99:.1f} ms{late}"
    )


def described(seconds: float, systems: Sequence[type[System]]) -> list[str]:
    """How the figures came about."""
    versions = {"nginx": says("nginx", "-v"), "HAProxy": says("haproxy", "-v")}
    found = machine.describe()
    return [
        "; ".join(found[what] for what in ("date", "processor", "memory", "kernel", "python")),
        *(f"{kind.name}: {versions[kind.name]()}" for kind in systems if kind.name in versions),
        f"{RATE:g} requests a second to {INSTANCES} instances, {OTHER_RATE:g} to the other upstream, {WORKERS} workers; each "
        f"fault lasts {seconds:g} s",
    ]


def interrupted(number: int, _: object) -> None:
    """A signal ends the run as Ctrl-C does: by unwinding."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 when something was wrong or could not be played; 130 when interrupted."""
    options = arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    systems = available(options.systems)
    without_network = network.missing()
    outcomes: dict[str, dict[str, Outcome]] = {}
    unplayed = []
    try:
        for name in options.only or FAULTS:
            fault = FAULTS[name]
            if fault.needs == "network" and without_network:
                say(f"skipped: {name} ({without_network}); what comes nearest is: queue")
                continue
            outcomes[name] = {}
            for kind in systems:
                if not kind.can(fault.needs):
                    say(f"{name}, {kind.name}: does not find its instances that way")
                    continue
                began = time.monotonic()
                try:
                    outcome = outcomes[name][kind.name] = once(fault, kind, options.seconds)
                except (AssertionError, OSError) as error:
                    unplayed.append(f"{name}, {kind.name}: {error}")
                    say(f"{name}, {kind.name}: COULD NOT BE PLAYED: {error}")
                    continue
                say(f"{name}, {kind.name}: {line(outcome)} ({time.monotonic() - began:.0f} s)")
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    generated = report.page({name: of for name, of in outcomes.items() if of}, described(options.seconds, systems))
    print(generated, flush=True)
    bad = [o for of in outcomes.values() for o in of.values() if o.system == report.OURS and (o.wrong or o.twice)]
    for outcome in bad:
        say(f"{outcome.fault}: wrong answers {outcome.wrong[:10]}, POSTs twice {outcome.twice[:10]}")
    if bad or unplayed:
        say("\n".join(["nothing was written", *unplayed]))
        return 1
    if options.write:
        PAGE.write_text(report.replace(PAGE.read_text(), generated))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
