"""Regular expressions mean the same in every Python that is supported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gateway

SOURCES = sorted(Path(gateway.__file__).parent.rglob("*.py"))
_GROUP = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_group_is_possessive(path: Path) -> None:
    """Before 3.11.5 (Debian 12 has 3.11.2) some of those match wrongly (CPython issue 106052)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(r"\br?b?r?[\"']", line) and "safe=" not in line and _GROUP.search(line)] == []
