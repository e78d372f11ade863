"""The source's order of precedence, by `priority` where ours would differ.

Rule: a priority is given only where two matches that one request could meet would else win
in the wrong order, and it is as low as can be. A route whose matches need different ones
becomes several routes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway import overlap, target
from gateway.importers import patterns
from gateway.importers.draft import DraftRoute, Ranked, unused
from gateway.model import Match, Route
from gateway.router import precedence


@dataclass(slots=True)
class _Placed:
    """A match in the source's order; `key` is its place in ours when priorities are equal."""

    route: int
    ranked: Ranked
    key: tuple[int, ...]
    priority: int = 0


def by_priority(routes: list[DraftRoute]) -> list[DraftRoute]:
    """The same routes, the first to win first, with a priority where that is needed."""
    leading = sorted(routes, key=lambda route: min(ranked.rank for ranked in route.matches))
    placed = [
        _Placed(number, ranked, precedence(Route(route.name, route.upstream, index=number), ranked.match))
        for number, route in enumerate(leading)
        for ranked in route.matches
    ]
    placed.sort(key=lambda one: one.ranked.rank)
    if any(one.ranked.rank for one in placed):
        _raise(placed)
    names = {route.name for route in leading}
    return [part for number, route in enumerate(leading) for part in _parts(route, number, placed, names)]


def _raise(placed: list[_Placed]) -> None:
    """Give each match the lowest priority with which it wins over all that it must."""
    for place in range(len(placed) - 1, -1, -1):
        above = placed[place]
        for below in placed[place + 1 :]:
            needed = below.priority + (above.key > below.key)
            if needed > above.priority and _may_meet(above.ranked.match, below.ranked.match):
                above.priority = needed


def _parts(route: DraftRoute, number: int, placed: list[_Placed], names: set[str]) -> list[DraftRoute]:
    mine = [one for one in placed if one.route == number]
    parts: list[DraftRoute] = []
    for priority in sorted({one.priority for one in mine}, reverse=True):
        part = replace(route, matches=[one.ranked for one in mine if one.priority == priority])
        if priority:
            part.settings = {**route.settings, "priority": priority}
        if parts:
            part.notes = []
            part.name = unused(route.name, names)
            names.add(part.name)
        parts.append(part)
    return parts


def _may_meet(one: Match, other: Match) -> bool:
    """Whether a request could meet both; True also where that is hard to tell."""
    if overlap.apart(one, other):
        return False
    if one.regex is None and other.regex is None:
        return True
    beginnings = (_beginning(one), _beginning(other))
    return any(first.startswith(second) for first, second in (beginnings, beginnings[::-1]))


def _beginning(match: Match) -> str:
    """What every path that a match meets begins with."""
    if match.regex is not None:
        return patterns.literal(match.regex)
    if match.path is not None:
        return target.written(match.path).decode()
    return target.written_prefix(match.prefix or "/").decode()
