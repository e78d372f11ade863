"""How two matches relate: whether one holds wherever the other does, or never with it.

Rule: pure, and decided from what is written alone. Where that does not settle it (regular
expressions, mostly) the answer is the careful one: nothing covers, nothing is apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway import target
from gateway.model import Match


def covers(wide: Match, narrow: Match) -> bool:
    """Whether `wide` certainly holds for every request for which `narrow` holds."""
    return (
        _covers_host(host(wide), host(narrow))
        and _covers_path(wide, narrow)
        and (not wide.methods or (bool(narrow.methods) and narrow.methods <= wide.methods))
        and set(wide.headers) <= set(narrow.headers)
        and set(wide.query) <= set(narrow.query)
    )


def apart(one: Match, other: Match) -> bool:
    """Whether no request certainly can meet both."""
    return (
        _apart_hosts(host(one), host(other))
        or _apart_paths(one, other)
        or (bool(one.methods) and bool(other.methods) and not one.methods & other.methods)
        or _apart_pairs(one.headers, other.headers)
        or _apart_pairs(one.query, other.query)
    )


# -- hosts ------------------------------------------------------------------------------


def host(match: Match) -> str | None:
    """The host of a match in normal form, a wildcard with its `*.`."""
    if match.host is None:
        return None
    name = match.host.removeprefix("*.")
    return match.host[: len(match.host) - len(name)] + target.host(name.encode()).decode("latin-1")


def hosts_around(name: str | None) -> Iterator[str | None]:
    """The hosts of matches that cover this one: itself, wildcards, none."""
    if name is not None:
        yield name
        labels = name.removeprefix("*.").split(".")
        # A wildcard has one label more than its suffix; of `*.a.b` that is the star.
        for first in range(1, len(labels)):
            yield f"*.{'.'.join(labels[first:])}"
    yield None


def _covers_host(wide: str | None, narrow: str | None) -> bool:
    return wide in hosts_around(narrow)


def _apart_hosts(one: str | None, other: str | None) -> bool:
    return not _covers_host(one, other) and not _covers_host(other, one)


# -- paths ------------------------------------------------------------------------------


def prefix(match: Match) -> bytes | None:
    """The prefix of a match in normal form, empty for every path; None when it has another
    condition on the path."""
    if match.path is not None or match.regex is not None:
        return None
    return target.written_prefix(match.prefix or "/")


def prefixes_around(match: Match) -> Iterator[bytes]:
    """The prefixes that a match's paths certainly have, from its own up to every path."""
    own = prefix(match)
    if own is None:
        own = b"" if match.path is None else target.written(match.path)
    while own:
        yield own
        own = own.rpartition(b"/")[0]
    yield b""


def _covers_path(wide: Match, narrow: Match) -> bool:
    wanted = prefix(wide)
    if wanted is not None:
        own = prefix(narrow) if narrow.path is None else target.written(narrow.path)
        return wanted == b"" or (own is not None and target.begins(own, wanted))
    if wide.regex is not None:
        return wide.regex == narrow.regex
    return narrow.path is not None and target.written(narrow.path) == target.written(wide.path or "")


def _apart_paths(one: Match, other: Match) -> bool:
    if one.regex is not None or other.regex is not None:
        return False
    return not _covers_path(one, other) and not _covers_path(other, one)


def _apart_pairs(one: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> bool:
    theirs = dict(other)
    return any(theirs.get(name, value) != value for name, value in one)
