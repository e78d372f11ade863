"""Parts of a configuration in words, for commands: matches, sources, settings, tables.

Rule: values look as in the file, so that what is printed can be looked for and pasted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from gateway.model import Endpoint, Match, Route, Source, StaticSource

# Keys whose numbers are bytes, and those whose numbers are shares.
_SIZES = frozenset({"buffer", "header", "body", "request_line", "chunk_extensions", "min_rate"})
_SHARES = frozenset({"budget"})


def text(raw: bytes) -> str:
    """Bytes of a request or of the file, one character each."""
    return raw.decode("latin-1")


def printable(line: str) -> str:
    """Requests and logs hold what clients sent: no terminal's control sequences from there."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def told_match(match: Match) -> str:
    """`api.example.com /user GET x-beta: 1 ?v=2`."""
    path = f"= {match.path}" if match.path is not None else f"~ {match.regex}" if match.regex is not None else ""
    parts = [match.host or "*", path or match.prefix or "/", ",".join(sorted(match.methods))]
    parts += [f"{name}: {value}" for name, value in match.headers]
    parts += [f"?{name}={value}" for name, value in match.query]
    return " ".join(part for part in parts if part)


def told_source(source: Source) -> str:
    """Where endpoints come from: `consul user-svc`, or the URLs themselves."""
    if isinstance(source, StaticSource):
        return " ".join(map(told_endpoint, source.endpoints))
    kind = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(source).__name__.removesuffix("Source"))
    values = (getattr(source, field.name) for field in fields(source))
    return " ".join([kind.removeprefix("_"), *(str(value) for value in values if value is not None)])


def told_endpoint(endpoint: Endpoint) -> str:
    """The URL of an endpoint, and its weight unless that is 1."""
    query = f"?{text(endpoint.query)}" if endpoint.query else ""
    weight = "" if endpoint.weight == 1 else f" ({endpoint.weight})"
    return f"{endpoint.scheme}://{endpoint.address}{text(endpoint.base_path)}{query}{weight}"


def told_rewrite(route: Route) -> str:
    rewrite = route.rewrite
    assert rewrite is not None
    if rewrite.regex is not None:
        return f"{text(rewrite.regex.pattern)} to {text(rewrite.to or b'')}"
    return f"prefix {text(rewrite.prefix)}" if rewrite.prefix is not None else f"path {text(rewrite.path or b'')}"


def told_values(section: Any) -> Iterator[tuple[str, str]]:
    """The keys of a section of the model with their values, as the file would say them."""
    for field in fields(section):
        yield field.name, told_value(field.name, getattr(section, field.name))


def told_value(name: str, value: object) -> str:
    """A value as the file would say it; its key tells what a number counts."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "true" if value else "false"
    if name in _SHARES and isinstance(value, float):
        return f"{value * 100:g}%"
    if name in _SIZES and isinstance(value, int):
        return _size(value)
    if isinstance(value, float):
        return _duration(value)
    if isinstance(value, frozenset | tuple):
        named = [text(one) if isinstance(one, bytes) else str(one) for one in value]
        return f"[{', '.join(sorted(named) if isinstance(value, frozenset) else named)}]"
    return text(value) if isinstance(value, bytes) else str(value)


def _duration(seconds: float) -> str:
    if seconds and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"


def _size(number: int) -> str:
    for unit, bytes_ in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if number and number % bytes_ == 0:
            return f"{number // bytes_}{unit}"
    return f"{number}B"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of a table, each column as wide as its widest cell."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
