"""The source's order of precedence, by `priority` where ours would differ.

Rule: a priority is given only where two matches that one request could meet would else win
in the wrong order, and it is as low as can be. A route whose matches need different ones
becomes several routes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.errors import ClientError
from gateway.importers import regexes
from gateway.importers.draft import DraftRoute, Names, Ranked
from gateway.model import Match, Route
from gateway.routing.overlap import Extent
from gateway.routing.router import precedence


@dataclass(slots=True)
class _Placed:
    """A match in the source's order. `key` is its place in ours when priorities are equal,
    `beginning` what every path that it meets begins with."""

    route: int
    ranked: Ranked
    key: int
    extent: Extent
    beginning: bytes
    priority: int = 0

    def may_meet(self, other: _Placed) -> bool:
        """Whether a request could meet both; True also where that is hard to tell."""
        if self.extent.apart(other.extent):
            return False
        return self.beginning.startswith(other.beginning) or other.beginning.startswith(self.beginning)


def may_meet(one: Match, other: Match) -> bool:
    """Whether a request could meet both matches; True also where that is hard to tell."""
    return not extent(one).apart(extent(other))


def extent(match: Match) -> Extent:
    """What a match meets; everything where its host or path is none."""
    try:
        return Extent.of(match)
    except ClientError:
        return Extent.of(Match())


def by_priority(routes: list[DraftRoute], names: Names) -> list[DraftRoute]:
    """The same routes, the first to win first, with a priority where that is needed;
    `names` are those in use."""
    leading = sorted(routes, key=lambda route: min(ranked.rank for ranked in route.matches))
    pairs = [(number, ranked) for number, route in enumerate(leading) for ranked in route.matches]
    pairs.sort(key=lambda pair: pair[1].rank)
    ours = [precedence(Route(leading[number].name, "", index=number), ranked.match) for number, ranked in pairs]
    # As whole numbers, which are quicker to compare.
    places = {key: place for place, key in enumerate(sorted(set(ours)))}
    placed = [_placed(number, ranked, places[key]) for (number, ranked), key in zip(pairs, ours, strict=True)]
    if any(one.ranked.rank for one in placed):
        _raise(placed)
    mine: dict[int, list[_Placed]] = {}
    for one in placed:
        mine.setdefault(one.route, []).append(one)
    return [part for number, route in enumerate(leading) for part in _parts(route, mine[number], names)]


def _placed(route: int, ranked: Ranked, key: int) -> _Placed:
    met = extent(ranked.match)
    return _Placed(route, ranked, key, met, _beginning(ranked.match, met))


def _beginning(match: Match, extent: Extent) -> bytes:
    plain = extent.path or extent.prefix or b""
    literal = b"" if match.regex is None else regexes.literal(match.regex).encode()
    return max(plain, literal, key=len)


def _raise(placed: list[_Placed]) -> None:
    """Give each match the lowest priority with which it wins over all that it must."""
    for place in range(len(placed) - 1, -1, -1):
        above, key = placed[place], placed[place].key
        for below in placed[place + 1 :]:
            needed = below.priority + (key > below.key)
            if needed and needed > above.priority and above.may_meet(below):
                above.priority = needed


def _parts(route: DraftRoute, mine: list[_Placed], names: Names) -> list[DraftRoute]:
    parts: list[DraftRoute] = []
    for priority in sorted({one.priority for one in mine}, reverse=True):
        part = replace(route, matches=[one.ranked for one in mine if one.priority == priority])
        if priority:
            part.settings = {**route.settings, "priority": priority}
        if parts:
            part.notes = []
            part.name = names.free(route.name)
        parts.append(part)
    return parts
