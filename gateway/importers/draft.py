"""What an importer makes: a configuration that is still being written, and what it lost.

Rule: nothing is dropped silently. Whatever has no counterpart is a `Note` at the thing that
it concerns, with its line in the source. A route whose guard (a login, a list of addresses)
or whose answer cannot be carried over is `closed`: it leads to an upstream that answers 503,
because without it its requests would meet the next best route, unguarded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gateway.model import Match

# Where a match stands in the source's own order; the lowest wins. `()`: our order will do.
Rank = tuple[int, ...]

_UNFIT = re.compile(r"[^A-Za-z0-9._@:/*+-]+")


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was not carried over, and the line that it stands in; 0: unknown."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A match and its place in the source's order."""

    match: Match
    rank: Rank = ()


@dataclass(slots=True)
class DraftUpstream:
    """`settings`: keys of an upstream as the file spells them."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class DraftRoute:
    """`upstream`: empty where `settings`, the keys of a route but for name, match and upstream,
    say what becomes of requests. `closed`: why it leads nowhere; it is then what it led to."""

    name: str
    upstream: str
    matches: list[Ranked]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    line: int = 0
    closed: str = ""

    @property
    def upstreams(self) -> list[str]:
        """Those that its requests go to."""
        split = self.settings.get("split")
        return [part["upstream"] for part in split] if split else [self.upstream] if self.upstream else []

    @property
    def answered(self) -> bool:
        """The gateway itself answers."""
        return "redirect" in self.settings or "respond" in self.settings

    @property
    def lets_pass(self) -> bool:
        """A redirect that leaves those who are there to the next route."""
        to = self.settings.get("redirect")
        return to is not None and "path" not in to and "prefix" not in to


class Names:
    """Names that differ: each as near to the wanted one as names may be."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        base = _UNFIT.sub("-", wanted)[:100].strip("-") or "unnamed"
        name = base
        while name in self._last:
            self._last[base] += 1
            name = f"{base}-{self._last[base]}"
        self._last[name] = 1
        return name


@dataclass(slots=True)
class Draft:
    """`source`: the kind of gateway that the document is for; `names`: of upstreams;
    `route_names`: of routes, given out once all routes are known."""

    source: str
    server: dict[str, Any] = field(default_factory=dict)
    upstreams: dict[str, DraftUpstream] = field(default_factory=dict)
    routes: list[DraftRoute] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    names: Names = field(default_factory=Names)
    route_names: Names = field(default_factory=Names)

    def note(self, line: int, text: str) -> None:
        self.notes.append(Note(line, text))

    def upstream(self, wanted: str) -> DraftUpstream:
        """A new upstream under the wanted name, or one like it that is free."""
        made = DraftUpstream(self.names.free(wanted))
        self.upstreams[made.name] = made
        return made


# Where https ends in front of the gateway, a redirect to it would go round in a circle.
HTTPS_IS_KNOWN = (
    "https is what the connection says or, from a proxy in server.trusted_proxies, its X-Forwarded-Proto: "
    "without that a redirect to https never ends"
)


def duration(milliseconds: float) -> str:
    """A length of time as the file writes it."""
    whole = round(milliseconds)
    return f"{whole // 1000}s" if whole % 1000 == 0 else f"{whole}ms"
