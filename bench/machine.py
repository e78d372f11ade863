"""What the figures were measured on.

Rule: what a reader needs to judge them, nothing that identifies the machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from bench.systems import SYSTEMS, says


def processor() -> str:
    """The first processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_gib() -> int:
    """Physical memory."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def cores() -> list[int]:
    """Those that the harness may use."""
    return sorted(os.sched_getaffinity(0))


def describe() -> dict[str, str]:
    """One line each."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": f"{processor()}, {len(cores())} cores",
        "memory": f"{memory_gib()} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "wrk": says("wrk", "-v")(),
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each of these systems."""
    return {name: SYSTEMS[name].version() for name in names}
