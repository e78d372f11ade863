"""From rounds to tables, and to the page in docs.

Rule: pure. A figure is the median of its rounds; a ratio is made of two such medians of
one run. The page is written between two marks, so that prose around them stays; raw
rounds are kept beside the harness, and each scenario's table says when it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from bench.scenarios import SCENARIOS, Column, Figures, Scenario

BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"
OURS = "gateway"


@dataclass(frozen=True, slots=True)
class Row:
    """One system's rounds in one scenario."""

    key: str
    title: str
    version: str
    rounds: list[Figures] = field(default_factory=list)

    def medians(self) -> Figures:
        """Each figure's median."""
        return {key: median(figures[key] for figures in self.rounds) for key in self.rounds[0]}


@dataclass(frozen=True, slots=True)
class Table:
    """One scenario's outcome and how it came about."""

    scenario: str
    seconds: float
    machine: dict[str, str]
    rows: list[Row]

    def to_json(self) -> dict[str, object]:
        """What is kept."""
        return asdict(self)


def from_json(data: Mapping[str, object]) -> Table:
    """What was kept."""
    rows = data["rows"]
    machine = data["machine"]
    if not isinstance(rows, list) or not isinstance(machine, dict):
        raise ValueError("not a kept table")
    return Table(str(data["scenario"]), float(str(data["seconds"])), machine, [Row(**row) for row in rows])


def measured(table: Table) -> list[tuple[Row, Figures]]:
    """The rows that have figures; in a ranked scenario the least of the first column first."""
    scenario = SCENARIOS[table.scenario]
    found = [(row, row.medians()) for row in table.rows if row.rounds]
    return sorted(found, key=lambda pair: pair[1][scenario.columns[0].key]) if scenario.ranked else found


def base_of(scenario: Scenario, found: Sequence[tuple[Row, Figures]]) -> tuple[str, float] | None:
    """Title and figure of the row that ratios refer to, if it was measured and is not naught."""
    for row, figures in found:
        if row.key == scenario.base and figures[scenario.columns[0].key] > 0:
            return row.title, figures[scenario.columns[0].key]
    return None


def cells(table: Table) -> list[list[str]]:
    """Heading and rows, as text."""
    scenario = SCENARIOS[table.scenario]
    found = measured(table)
    base = base_of(scenario, found)
    ratio = f"÷ {base[0].removesuffix(' httputil.ReverseProxy')}" if base else ""
    head = ["system", *(column.title for column in scenario.columns), *([ratio] if base else [])]
    lines = [head]
    for row, figures in found:
        line = [row.title, *(written(column, figures) for column in scenario.columns)]
        if base:
            line.append(f"{figures[scenario.columns[0].key] / base[1]:.2f}")
        lines.append(line)
    return lines


def written(column: Column, figures: Figures) -> str:
    """One figure."""
    return format(figures[column.key], column.form)


def plain(table: Table) -> str:
    """For a terminal."""
    lines = cells(table)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [SCENARIOS[table.scenario].title]
    for line in lines:
        first = line[0].ljust(widths[0])
        text.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]))
    return "\n".join(text)


def markdown(table: Table) -> str:
    """For the page."""
    head, *lines = cells(table)
    rounds = max(len(row.rounds) for row in table.rows)
    text = [f"### {SCENARIOS[table.scenario].title}", ""]
    text += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for line in lines:
        bold = line[0].startswith("wsgi-gateway")
        text.append("| " + " | ".join([f"**{line[0]}**" if bold else line[0], *line[1:]]) + " |")
    text += ["", f"`{table.scenario}`, {table.machine['date']}, median of {rounds} × {table.seconds:g} s."]
    return "\n".join(text)


def losses(tables: Sequence[Table]) -> list[str]:
    """Where another system has the smaller first figure: a line for each scenario."""
    lines = []
    for table in tables:
        found = measured(table)
        own = next((figures for row, figures in found if row.key == OURS), None)
        if own is None:
            continue
        column = SCENARIOS[table.scenario].columns[0]
        better = [
            f"{row.title} {written(column, figures)}"
            for row, figures in found
            if not row.key.startswith(OURS) and figures[column.key] < own[column.key]
        ]
        if better:
            told = f"{column.title} {written(column, own)}; less: {', '.join(better)}"
            lines.append(f"- {SCENARIOS[table.scenario].title}: {told}.")
    return lines


def page(tables: Sequence[Table]) -> str:
    """The generated part of the page."""
    machines: list[dict[str, str]] = []
    for table in tables:
        if table.machine not in machines:
            machines.append(table.machine)
    versions = {row.title: row.version for table in tables for row in table.rows if row.rounds}
    text = ["## Measured", ""]
    for machine in machines:
        text.append("- " + "; ".join(f"{key}: {value}" for key, value in machine.items()))
    text += ["", *(f"- {title}: {version}" for title, version in versions.items())]
    for table in tables:
        text += ["", markdown(table)]
    text += ["", "### Where others need less", ""]
    text += losses(tables) or ["Nowhere in these scenarios."]
    return "\n".join(text)


def replace(document: str, generated: str) -> str:
    """The page with its generated part exchanged."""
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError("the page must have each mark once")
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"
