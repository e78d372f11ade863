"""From outcomes to tables, and to the page in docs.

Rule: pure. The page is written between two marks, so that the prose around them stays. Where the gateway lost more than
another the table says so, and why, or that nobody has said why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tests.chaos.faults import FAULTS
from tests.chaos.stage import Outcome

BEGIN = "<!-- chaos: begin -->"
END = "<!-- chaos: end -->"
OURS = "gateway"
# Requests more or less than another lost that are chance: what was in hand at that moment.
CHANCE = 6

# Why the gateway loses more than others do, by fault.
WHY = {
    "hang": "a GET that timed out is sent again only where `retry.when` holds `timeout`; nginx's default sends it on",
    "stop": "as above",
    "reset_in_head": "a GET is not sent again once a part of an answer came; each worker takes 5 failures of its own",
}

Outcomes = Mapping[str, Mapping[str, Outcome]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, its columns aligned for those who read it as it is."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def lost(outcome: Outcome) -> int:
    return outcome.failed.total() + outcome.failed_after.total()


def _systems(outcomes: Outcomes) -> list[str]:
    return list(dict.fromkeys(system for of in outcomes.values() for system in of))


def _told(fault: str) -> str:
    return FAULTS[fault].told


def _lost(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    later = f" and {outcome.failed_after.total()} later" if outcome.failed_after else ""
    return f"{outcome.failed.total()} ({100 * outcome.failed.total() / outcome.requests:.1f} %){later}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def counted(counted: Counter[str]) -> str:
    return "; ".join(f"{number} × {told}" for told, number in counted.most_common()) or "-"


def _why(fault: str, of: Mapping[str, Outcome]) -> str:
    ours = of.get(OURS)
    if ours is None:
        return "-"
    better = [name for name, other in of.items() if lost(other) < lost(ours) - CHANCE]
    worse = [name for name, other in of.items() if lost(other) > lost(ours) + CHANCE]
    if better:
        return f"more than {' and '.join(better)}: {WHY.get(fault, 'nobody has said why')}"
    return f"fewer than {' and '.join(worse)}" if worse else "as many" if len(of) > 1 else "-"


def failures(outcomes: Outcomes) -> str:
    systems = _systems(outcomes)
    return table(
        ["fault", *systems, "the gateway lost"],
        [
            [_told(fault), *(_lost(of.get(system)) for system in systems), _why(fault, of)]
            for fault, of in outcomes.items()
        ],
    )


def times(outcomes: Outcomes) -> str:
    """Seconds from a fault's beginning to out, from its end to back."""
    systems = _systems(outcomes)
    head = ["fault", *(f"{system} {what}" for system in systems for what in ("out", "back"))]
    rows = []
    for fault, of in outcomes.items():
        pairs = [(of[system].out, of[system].back) if system in of else (None, None) for system in systems]
        rows.append([_told(fault), *(seconds(value) for pair in pairs for value in pair)])
    return table(head, rows)


def beside(outcomes: Outcomes) -> str:
    """p99 of the other upstream, ms."""
    systems = _systems(outcomes)

    def cell(outcome: Outcome | None) -> str:
        if outcome is None:
            return "-"
        more = f", {outcome.other_failed.total()} FAILED" if outcome.other_failed else ""
        return f"{outcome.p99_quiet:.1f} → {outcome.p99:.1f} (× {outcome.ratio:.2f}){more}"

    rows = [[_told(fault), *(cell(of.get(system)) for system in systems)] for fault, of in outcomes.items()]
    return table(["fault", *systems], rows)


def told(outcomes: Outcomes) -> str:
    """What the gateway's clients and its log were told."""
    rows = [
        [_told(fault), counted(of[OURS].failed + of[OURS].failed_after), counted(of[OURS].said)]
        for fault, of in outcomes.items()
        if OURS in of
    ]
    return table(["fault", "requests that failed", "what the log said"], rows)


def page(outcomes: Outcomes, described: Sequence[str]) -> str:
    """The generated part of the page."""
    everything = [outcome for of in outcomes.values() for outcome in of.values()]
    posts = {s: sum(o.posts for o in everything if o.system == s) for s in _systems(outcomes)}
    wrong = {s: sum(len(o.wrong) for o in everything if o.system == s) for s in posts}
    twice = {s: sum(len(o.twice) for o in everything if o.system == s) for s in posts}
    verdicts = (f"{s}: {wrong[s]} wrong answers, {twice[s]} of {posts[s]:,} POSTs twice" for s in posts)
    parts = [
        *(f"- {line}" for line in described),
        "",
        f"**Wrong answers and POSTs that came twice:** {'; '.join(verdicts)}.",
        "",
        "### Requests that failed",
        "",
        failures(outcomes),
        "",
        "### Seconds until an instance was out, and until it was back",
        "",
        times(outcomes),
        "",
        "### p99 of the other upstream, ms, quiet → during the fault",
        "",
        beside(outcomes),
        "",
    ]
    if any(OURS in of for of in outcomes.values()):
        parts += ["### What the gateway said", "", told(outcomes)]
    return "\n".join(parts)


def replace(document: str, generated: str) -> str:
    """The page with its generated part exchanged."""
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise ValueError("the page must have each mark once")
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"
