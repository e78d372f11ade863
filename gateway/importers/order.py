"""The source's order of precedence, by `priority` where ours would differ.

Rule: a priority is given only where two matches that one request could meet would else win
in the wrong order, and it is as low as can be. A route whose matches need different ones
becomes several routes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway import target
from gateway.errors import ClientError
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
            if needed > above.priority and overlap(above.ranked.match, below.ranked.match):
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


def overlap(one: Match, other: Match) -> bool:
    """Whether a request could meet both; True also where that is hard to tell."""
    if one.methods and other.methods and not one.methods & other.methods:
        return False
    if any(value != dict(other.headers).get(name, value) for name, value in one.headers):
        return False
    if any(value != dict(other.query).get(name, value) for name, value in one.query):
        return False
    return _hosts_overlap(one.host, other.host) and _paths_overlap(one, other)


def _hosts_overlap(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return True
    if one.startswith("*.") and other.endswith(one[1:]):
        return True
    return other.startswith("*.") and one.endswith(other[1:])


def _paths_overlap(one: Match, other: Match) -> bool:
    if one.path is not None and other.path is not None:
        return _normal(one.path) == _normal(other.path)
    beginnings = (_beginning(one), _beginning(other))
    return any(first.startswith(second) for first, second in (beginnings, beginnings[::-1]))


def _beginning(match: Match) -> str:
    if match.regex is not None:
        return patterns.literal(match.regex)
    if match.path is not None:
        return _normal(match.path)
    return _normal(match.prefix or "/").rstrip("/")


def _normal(path: str) -> str:
    try:
        return target.written(path).decode()
    except ClientError:
        return path
