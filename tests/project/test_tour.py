"""docs/tour.md: every stop exists, and is short enough to be read at one sitting."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
MOST_LINES = 40
_STOP = re.compile(r"^\d+\. \[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", re.MULTILINE)
STOPS = _STOP.findall(PAGE)


def length(source: str, name: str) -> int | None:
    """Lines of a function or method (`Class.method`), its docstring included; None where there is none."""
    body: list[ast.stmt] = ast.parse(source).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if getattr(node, "name", None) == part), None)
        body = getattr(found, "body", [])
    return found.end_lineno - found.lineno + 1 if isinstance(found, ast.FunctionDef) and found.end_lineno else None


@pytest.mark.parametrize(("name", "path"), STOPS, ids=[name for name, _ in STOPS])
def test_a_stop_exists_and_is_short(name: str, path: str) -> None:
    lines = length((ROOT / path).read_text(encoding="utf-8"), name)
    assert lines is not None, f"{path} has no {name}"
    assert lines < MOST_LINES


def test_every_numbered_line_is_a_stop() -> None:
    request, update = PAGE.split("## The path of a request")[1].split("## The path of an update")
    assert [len(_STOP.findall(part)) for part in (request, update)] == [12, 6]
    assert len(re.findall(r"^\d+\. ", PAGE, re.MULTILINE)) == len(STOPS)


def test_a_missing_function_is_noticed() -> None:
    source = "class A:\n    def b(self):\n        return 1\n"
    assert length(source, "A.b") == 2
    assert length(source, "A.c") is None
    assert length(source, "A") is None
