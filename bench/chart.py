"""A bar chart as SVG, readable on light and dark pages.

Rule: pure; one bar a row, its figure beside it, the length in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

LABEL = 250
BARS = 420
ROW = 26
TOP = 44

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.peer { fill: #8c959f; }
.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .peer { fill: #6e7681; }
  .ours { fill: #4493f8; }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row."""

    label: str
    value: float
    ours: bool = False


def svg(title: str, bars: Sequence[Bar]) -> str:
    """The whole picture."""
    most = max(bar.value for bar in bars)
    width, height = LABEL + BARS + 80, TOP + ROW * len(bars) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="22">{escape(title)}</text>',
    ]
    for index, bar in enumerate(bars):
        top = TOP + index * ROW
        length = max(1.0, bar.value / most * BARS)
        kind = "ours" if bar.ours else "peer"
        lines += [
            f'<text x="{LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{top}" width="{length:.1f}" height="{ROW - 6}" rx="2"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{top + 14}">{bar.value:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
