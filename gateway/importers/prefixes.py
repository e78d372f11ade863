"""Prefixes taken off and put on, in the words of a route.

Rule: `strip_prefix` and `rewrite: {prefix}` where they say it, because they leave every
other byte of the path alone; `rewrite: {regex}`, which works on the normal form, where not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.errors import ClientError
from gateway.http import target
from gateway.importers import regexes
from gateway.importers.draft import Ranked
from gateway.model import Match


def settings(matches: Sequence[Match], cut: Sequence[str], added: str) -> dict[str, Any]:
    """The keys of a route that take off whichever of the prefixes `cut` a path has, and put
    `added` before the rest."""
    own = {match.prefix if match.path is None else match.path for match in matches if match.regex is None}
    patterned = any(match.regex is not None for match in matches)
    exact = any(match.path is not None for match in matches)
    bare = added.rstrip("/")
    if not cut:
        return {} if not bare else _prepended(own, patterned, bare)
    if not patterned and not exact and _cuts_own({_bare(one or "/") for one in own}, [_bare(one) for one in cut]):
        return {"rewrite": {"prefix": _sent(added)}} if bare else {"strip_prefix": True}
    choice = "|".join(regexes.path(one.rstrip("/")) for one in cut)
    return {"rewrite": {"regex": f"(?:{choice})(.*)", "to": f"{_literal(bare)}\\1"}}


def _cuts_own(own: set[str], cut: list[str]) -> bool:
    """Whether the first of the prefixes `cut` that a path has is always the longest of its
    route's own that it has, which is the one that `strip_prefix` takes off."""
    return all(
        one in cut
        and all((_under(first, one) and first in own) or not _related(first, one) for first in cut[: cut.index(one)])
        for one in own
    )


def _under(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/")


def _related(one: str, other: str) -> bool:
    return _under(one, other) or _under(other, one)


def _prepended(own: set[str | None], patterned: bool, added: str) -> dict[str, Any]:
    if not patterned and len(own) == 1:
        (one,) = own
        return {"rewrite": {"prefix": _sent(added + (_bare(one) if one else "") or "/")}}
    return {"rewrite": {"regex": "(.*)", "to": f"{_literal(added)}\\1"}}


def _bare(prefix: str) -> str:
    """A prefix as it is matched: its trailing slash means nothing."""
    try:
        return target.written_prefix(prefix).decode()
    except ClientError:
        return prefix


def _sent(path: str) -> str:
    """A path as it may be sent."""
    try:
        return target.written(path).decode()
    except ClientError:
        return path


def _literal(path: str) -> str:
    return _sent(path).replace("\\", "\\\\") if path else ""


def by_bytes(matches: Sequence[Ranked]) -> list[Ranked]:
    """What the prefixes among the matches meet by their bytes but not by whole segments: `/.ht` is
    there to shut `/.htaccess`."""
    return [
        # One with a pattern as well keeps that: the pattern alone says what is met.
        Ranked(replace(one.match, prefix=None, regex=one.match.regex or _of_bytes(one.match.prefix)), one.rank)
        for one in matches
        if one.match.prefix is not None and not one.match.prefix.endswith("/")
    ]


def _of_bytes(prefix: str) -> str:
    """A pattern for what begins with the bytes of a prefix, and is not under it."""
    return f"{regexes.path(prefix)}[^/].*"
