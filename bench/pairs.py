"""This checkout against another revision of itself, in alternating pairs.

Rule: both run in the same minutes, on the same cores, with the same libraries; which one
goes first alternates. What is compared is the ratio within each pair, so that a slow
minute of the machine falls on both. The interval is made of order statistics: it assumes
nothing about how the ratios are distributed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import comb
from pathlib import Path
from statistics import median

from bench.proc import BenchError
from bench.scenarios import Entry, Run, Scenario


def interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with at least that probability
    (the sign test's interval); the extremes where there are too few values for it."""
    ordered = sorted(values)
    number = len(ordered)
    for cut in range(number // 2, 0, -1):
        outside = 2 * sum(comb(number, k) for k in range(cut)) / 2**number
        if outside <= 1 - coverage:
            return ordered[cut - 1], ordered[number - cut]
    return ordered[0], ordered[-1]


@contextmanager
def checkout(root: Path, revision: str, folder: Path) -> Iterator[Path]:
    """The tree of a revision, in a folder of its own."""
    target = folder / "other"
    done = subprocess.run(
        ["git", "-C", str(root), "worktree", "add", "--detach", "--force", str(target), revision],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"no checkout of {revision}: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(target)], check=False)


def ours(scenario: Scenario) -> list[Entry]:
    """The scenario's rows that are the gateway in its own worker."""
    return [entry for entry in scenario.entries() if entry.system.name == "gateway"]


def compare(run: Run, scenario: Scenario, entry: Entry, other: Path, pairs: int) -> Iterator[tuple[float, float]]:
    """The scenario's first figure of this checkout and of the other one, pair by pair."""
    place = replace(run.place, root=other, env={**run.place.env, "PYTHONPATH": str(other)})
    theirs = replace(run, place=place)
    key = scenario.columns[0].key
    for number in range(pairs):
        found = {}
        for one in (run, theirs) if number % 2 else (theirs, run):
            found[id(one)] = scenario.measure(one, entry)[key]
        yield found[id(run)], found[id(theirs)]


def summary(scenario: str, revision: str, found: Sequence[tuple[float, float]]) -> str:
    """One line: both medians, the median of the ratios and its interval."""
    ratios = [ours / theirs for ours, theirs in found]
    low, high = interval(ratios)
    ours, theirs = median(one for one, _ in found), median(other for _, other in found)
    return (
        f"{scenario}: {ours:.1f} against {theirs:.1f} at {revision}: "
        f"ratio {median(ratios):.3f} (95 %: {low:.3f} to {high:.3f}, {len(found)} pairs)"
    )
