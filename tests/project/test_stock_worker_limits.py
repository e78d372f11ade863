"""docs/stock-worker.md and the table that it is made of."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.stock_worker_limits import LIMITS, page


def test_the_page_of_limits_is_the_table(root: Path) -> None:
    assert (root / "docs" / "stock-worker.md").read_text() == page(), "write it anew: see stock_worker_limits"


def test_every_limit_is_tested(root: Path) -> None:
    sources = "".join(path.read_text() for path in (root / "tests" / "conformance").glob("test_*.py"))
    assert [label for label in LIMITS if f'stock_limit("{label}")' not in sources] == []
