"""Parts of a configuration in words, for commands: matches, sources, ends of routes, settings, tables.

Rule: values look as in the file, so that what is printed can be looked for and pasted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from gateway.model import Balance, Endpoint, HealthCheck, Mirror, Redirect, Route, Source, Split, StaticSource

# Keys whose numbers are bytes, and those whose numbers are shares.
_SIZES = frozenset(
    {
        *("buffer", "buffers", "header", "body", "request_line", "chunk_extensions", "linger", "min_rate"),
        *("request", "response", "spool_max"),
    }
)
_SHARES = frozenset({"budget", "error_rate", "max_ejected"})
# What the file calls by a word that Python has for itself.
_NAMES = {"out_for": "for"}
# What says nothing where the other kind of check is made.
_HTTP_CHECK = frozenset({"path", "status", "host", "headers"})


def text(raw: bytes) -> str:
    """Bytes of a request or of the file, one character each."""
    return raw.decode("latin-1")


def printable(line: str) -> str:
    """Requests and logs hold what clients sent: no terminal's control sequences from there."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


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


# -- what becomes of a route's requests --------------------------------------------------


def told_end(route: Route) -> str:
    """`users`, `orders 95%, legacy 5% by cookie:exp`, `-> 301 /new`, `200 fixed`."""
    if route.split is not None:
        return told_split(route.split)
    if route.redirect is not None:
        return told_redirect(route.redirect)
    return route.upstream if route.respond is None else f"{route.respond.status} fixed"


def told_split(split: Split) -> str:
    shares = zip(split.shares, chances(split), strict=True)
    told = ", ".join(f"{one.route.upstream} {told_share(share)}" for one, share in shares)
    return f"{told} by {split.by}:{split.name}" if split.by else told


def chances(split: Split) -> list[float]:
    """The share of the requests that each upstream of a split gets."""
    whole = sum(one.weight for one in split.shares)
    return [one.weight / whole for one in split.shares]


def told_share(share: float) -> str:
    """As a percentage with two digits behind the point at most; a little is not nothing."""
    return "<0.01%" if 0 < share < 0.00005 else f"{f'{share * 100:.2f}'.rstrip('0').rstrip('.')}%"


def told_redirect(to: Redirect) -> str:
    """Where a redirect leads; `*` is as it was asked for."""
    origin = to.scheme is not None or to.host is not None or to.port is not None
    scheme = f"{to.scheme}:" if to.scheme is not None else ""
    port = f":{to.port}" if to.port is not None else ""
    path = text(to.path) if to.path is not None else f"{text(to.prefix).rstrip('/')}/*" if to.prefix is not None else ""
    return f"-> {to.status} " + (f"{scheme}//{to.host or '*'}{port}{path}" if origin else path)


def told_mirror(mirror: Mirror) -> str:
    return f"{told_share(mirror.percent)} copied to {mirror.route.upstream}"


# -- settings ------------------------------------------------------------------------------


def told_balance(balance: Balance) -> str:
    """The policy, and what it goes by. What cookies are signed with is nobody's business."""
    if balance.policy == "hash":
        return f"hash by {balance.by}:{balance.name}" if balance.name else f"hash by {balance.by}"
    return f"sticky by cookie:{balance.name}" if balance.policy == "sticky" else balance.policy


def told_values(section: Any) -> Iterator[tuple[str, str]]:
    """The keys of a section of the model with their values, as the file would say them."""
    return ((name, told) for name, _, told in values(section))


def values(section: Any) -> Iterator[tuple[str, object, str]]:
    """The keys of a section, their values, and how these are told."""
    for field in fields(section):
        name, value = _NAMES.get(field.name, field.name), getattr(section, field.name)
        if not isinstance(section, HealthCheck):
            yield name, value, told_value(name, value)
        elif name == "tcp" or (section.tcp and name in _HTTP_CHECK | {"statuses"}):
            # The kind of check is told by the keys that it has.
            if section.tcp and name == "tcp":
                yield name, value, told_value(name, value)
        elif name == "statuses":
            yield "status", value, _ranges(sorted(section.statuses))
        elif name == "headers":
            # Their values may be secret.
            yield name, value, f"[{', '.join(text(header) for header, _ in section.headers)}]"
        else:
            yield name, value, "null" if value is None else told_value(name, value)


def _ranges(statuses: Sequence[int]) -> str:
    """`[200-399, 404]`."""
    runs: list[list[int]] = []
    for status in statuses:
        if runs and runs[-1][1] == status - 1:
            runs[-1][1] = status
        else:
            runs.append([status, status])
    return f"[{', '.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)}]"


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
