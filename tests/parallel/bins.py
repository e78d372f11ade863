"""Which process runs which test file.

Rule: every test file belongs to exactly one bin. A file that no pattern names goes to the last bin, so a new file
is never lost. Files of one folder stay together where they share session fixtures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# What pytest collects.
NAMES = ("test_*.py", "*_test.py")


@dataclass(frozen=True, slots=True)
class Bin:
    """The test files of one process. `patterns` are matched against paths below tests/, where `*` also matches `/`.
    `seconds` is the usual wall time: the longest bins start first."""

    name: str
    seconds: int
    patterns: tuple[str, ...]


REST = Bin("rest", 250, ())
# The scenes of the conformance tests are started once in each bin: no scene is in both.
_OTHER_SCENES = ("explain", "limits", "retries", "routing", "shaping", "slow_clients", "staying_up", "trusted")
_REGISTRIES = ("consul", "etcd", "dns", "outages", "registration", "discovered", "main_job")
_TRANSPORT = ("transport", "bodies", "websocket", "stream", "mirror", "tls")
_CLIENTS = ("apt", "git", "s3", "tunnel_tails")
BINS = (
    Bin("scenes", 150, tuple(f"conformance/test_{name}.py" for name in _OTHER_SCENES)),
    Bin("conformance", 240, ("conformance/*",)),
    Bin("unit", 130, ("unit/*",)),
    Bin("chaos", 80, ("chaos/*",)),
    Bin("project", 50, ("project/*",)),
    Bin("worker", 110, ("integration/test_worker*.py", "integration/test_agents.py", "integration/test_flask_hooks.py")),
    Bin("hosting", 180, ("integration/test_hosting.py", "integration/test_reload*.py")),
    Bin("registries", 210, tuple(f"integration/test_{name}*.py" for name in _REGISTRIES)),
    Bin("clients", 110, tuple(f"integration/test_{name}.py" for name in _CLIENTS)),
    Bin("transport", 140, tuple(f"integration/test_{name}*.py" for name in _TRANSPORT)),
    REST,
)


def all_files(root: Path) -> list[str]:
    """Every file that pytest collects below `root`, as relative paths."""
    return sorted({path.relative_to(root).as_posix() for name in NAMES for path in root.rglob(name)})


def divide(files: Iterable[str], bins: tuple[Bin, ...] = BINS) -> dict[Bin, list[str]]:
    """The files of each bin. The first bin with a matching pattern takes a file, the last bin takes the others.

    Raises ValueError for a pattern that matches no file: the file was renamed, and its bin with it.
    """
    files = list(files)
    stale = [
        pattern for each in bins for pattern in each.patterns if not any(fnmatchcase(file, pattern) for file in files)
    ]
    if stale:
        raise ValueError(f"tests/parallel/bins.py: no test file matches {', '.join(stale)}")
    divided: dict[Bin, list[str]] = {each: [] for each in bins}
    for file in files:
        divided[_bin_of(file, bins)].append(file)
    return divided


def _bin_of(file: str, bins: tuple[Bin, ...]) -> Bin:
    for each in bins:
        if any(fnmatchcase(file, pattern) for pattern in each.patterns):
            return each
    return bins[-1]
