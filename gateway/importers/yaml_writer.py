"""A draft as our file: keys in the schema's order, a comment beside what it concerns.

Rule: one thing a line. What is an item of a list (a route's match, an endpoint) has a line
of its own, and `Text.owners` says whose each line is, so that a mistake in a line can be
laid at one item's door.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.config.document import resolve
from gateway.config.schema_mistakes import Path, section_at
from gateway.importers.draft import Draft, DraftRoute, DraftUpstream, Note
from gateway.model import Match

# Plain in flow and block context alike, and never read as anything but text.
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*(?:[*:][A-Za-z0-9_./+-]+)*\Z")

# Whose a line is: ("upstreams", name[, number of the endpoint]), ("routes", number[, number of the match]).
Owner = tuple[str | int, ...]


@dataclass(slots=True)
class Text:
    """The lines of a document and whose they are."""

    lines: list[str] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)

    def add(self, line: str, owner: Owner = ()) -> None:
        self.lines.append(line)
        self.owners.append(owner)

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


def written(draft: Draft, name: str) -> Text:
    """The whole document; `name` is what the source is called in its first comment."""
    text = Text()
    text.add(f"# Made of {told(name)} by: gateway import {draft.source}")
    if draft.notes:
        text.add("# Not carried over (and see the comments below):")
        _comments(text, draft.notes, "", ())
    text.add("version: 1")
    if draft.server:
        text.add(f"server: {_flow(draft.server, ('server',))}", ("server",))
    if draft.upstreams:
        text.add("upstreams:")
        for upstream in draft.upstreams.values():
            _upstream(text, upstream)
    if draft.routes:
        text.add("routes:")
    for number, route in enumerate(draft.routes):
        _route(text, route, number)
    return text


def _upstream(text: Text, upstream: DraftUpstream) -> None:
    owner: Owner = ("upstreams", upstream.name)
    path: Path = ("upstreams", "*")
    _comments(text, upstream.notes, "  ", owner)
    text.add(f"  {scalar(upstream.name)}:", owner)
    for key, value in _ordered(upstream.settings, path):
        if key == "endpoints":
            text.add("    endpoints:", owner)
            for number, endpoint in enumerate(value):
                text.add(f"      - {_flow(endpoint, (*path, key, 0))}", (*owner, number))
        else:
            text.add(f"    {key}: {_flow(value, (*path, key))}", owner)


def _route(text: Text, route: DraftRoute, number: int) -> None:
    owner: Owner = ("routes", number)
    path: Path = ("routes", 0)
    _comments(text, route.notes, "  ", owner)
    end = {"upstream": route.upstream} if route.upstream else {}
    keys = {"name": route.name, "match": None, **end, **route.settings}
    for place, (key, value) in enumerate(_ordered(keys, path)):
        lead = "  - " if place == 0 else "    "
        if key != "match":
            text.add(f"{lead}{key}: {_flow(value, (*path, key))}", owner)
        elif len(route.matches) == 1:
            one = _match(route.matches[0].match)
            if one:
                text.add(f"{lead}match: {_flow(one, (*path, 'match', 0))}", (*owner, 0))
        else:
            text.add(f"{lead}match:", owner)
            for nth, ranked in enumerate(route.matches):
                text.add(f"      - {_flow(_match(ranked.match), (*path, 'match', 0))}", (*owner, nth))


def _match(match: Match) -> dict[str, Any]:
    found: dict[str, Any] = {
        "host": match.host,
        "path": match.path,
        "prefix": match.prefix,
        "regex": match.regex,
        "methods": sorted(match.methods),
        "headers": dict(match.headers),
        "query": dict(match.query),
        "not": {} if match.excluded is None else _match(match.excluded),
    }
    return {key: value for key, value in found.items() if value}


def _comments(text: Text, notes: Iterable[Note], indent: str, owner: Owner) -> None:
    for note in dict.fromkeys(notes):
        place = f"line {note.line}: " if note.line else ""
        text.add(f"{indent}# {place}{told(note.text)}", owner)


def told(text: str) -> str:
    """Text of a comment: one line, and nothing in it that a terminal would act upon."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown if len(shown) <= 300 else f"{shown[:299]}…"


def _ordered(settings: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """The keys in the order in which the schema has them; those that it lacks come last."""
    section = section_at(path)
    places = list(section.model_fields) if section is not None else []
    yield from sorted(settings.items(), key=lambda pair: places.index(pair[0]) if pair[0] in places else len(places))


def _flow(value: Any, path: Path) -> str:
    match value:
        case dict():
            pairs = (f"{scalar(key)}: {_flow(one, (*path, key))}" for key, one in _ordered(value, path))
            return f"{{{', '.join(pairs)}}}"
        case list() | tuple():
            return f"[{', '.join(_flow(one, (*path, 0)) for one in value)}]"
        case str():
            return scalar(value.replace("${", "$${"))
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case _:
            return str(value)


def scalar(text: str) -> str:
    """A text as a YAML scalar that is read as that text."""
    if _PLAIN.match(text) and isinstance(resolve(text), str):
        return text
    # Anything that a reader may take for a line break, or for nothing, is written as a number.
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_quoted, text)) + '"'


def _quoted(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if " " <= letter <= "~":
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
