"""What pip-audit found: scripts/audited.py REPORT, its JSON.

Rule: a package that could not be looked up is not free of vulnerabilities: it is named as skipped. Ends
with 1 when there is a known vulnerability.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def judged(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The lines that tell it, and the status to end with."""
    lines = [
        f"{one['name']} {one['version']}: {known['id']} (fixed in {', '.join(known['fix_versions']) or 'no version'})"
        for one in packages
        for known in one.get("vulns", ())
    ]
    status = 1 if lines else 0
    skipped = [one for one in packages if "skip_reason" in one]
    if skipped:
        names = ", ".join(one["name"] for one in skipped[:5]) + (" …" if len(skipped) > 5 else "")
        lines.append(f"SKIPPED {len(skipped)} of {len(packages)} packages ({names}): {skipped[0]['skip_reason']}")
    if len(skipped) < len(packages) and not status:
        lines.append(f"no known vulnerability in {len(packages) - len(skipped)} packages of requirements.lock")
    return lines, status


def main(report: Path) -> int:
    lines, status = judged(json.loads(report.read_text(encoding="utf-8"))["dependencies"])
    for line in lines:
        print(f"scripts/audit: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
