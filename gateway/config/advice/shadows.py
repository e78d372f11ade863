"""Advice: matches that no request can ever win, and rewriting and redirects that do nothing.

Rule: only what is certain is said. Each match is looked up by its host and path among those
that come before it, so that the cost does not grow with the square of the routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from gateway.config import build, schema
from gateway.config.advice.subject import Whole
from gateway.config.rules import Breach, Breaches, match_paths
from gateway.config.schema_mistakes import Path
from gateway.http import target
from gateway.model import Match, Route
from gateway.routing.match_text import told_excluded
from gateway.routing.overlap import Extent
from gateway.routing.readings import readings
from gateway.routing.router import precedence

# Which host a match asks for, and what it says of the path.
_Place = tuple[str | None, str, object]


def shadowed_matches(whole: Whole) -> Breaches:
    """Matches behind one of another route that holds wherever they do. Decided for exact paths,
    prefixes and equal expressions, and for one other match at a time; else nothing is said."""
    earlier: dict[_Place, list[tuple[Route, Extent]]] = {}
    placed = [(route, number, match) for route in whole.config.routes for number, match in enumerate(route.matches)]
    for route, number, match in sorted(placed, key=lambda one: precedence(one[0], one[2])):
        extent = Extent.of(match)
        over = next((one for one in _covering(earlier, extent) if one is not route and not _passed(one, extent)), None)
        if over is not None:
            told = f"never wins: route {over.name} in line {over.line} comes before it and takes all that it matches"
            yield Breach(("routes", route.index, "match", number), told)
        if not _may_be_passed(route):
            earlier.setdefault((extent.host, *_path(extent)), []).append((route, extent))


def _may_be_passed(route: Route) -> bool:
    """A redirect to what was asked for leaves the request to the next route: https to https."""
    redirect = route.redirect
    return redirect is not None and redirect.path is None and redirect.prefix is None


def _passed(route: Route, extent: Extent) -> bool:
    """The same of one to a path, for requests that may be for that path."""
    redirect = route.redirect
    if redirect is None or (redirect.path is None and redirect.prefix is None):
        return False
    if redirect.path is None:
        return any(_written_as(match.prefix, redirect.prefix or b"") for match in route.matches)
    return not extent.apart(Extent.of(Match(path=redirect.path.decode("latin-1"))))


def _path(extent: Extent) -> tuple[str, object]:
    if extent.path is not None:
        return "path", extent.path
    return ("regex", extent.regex) if extent.regex is not None else ("prefix", extent.prefix)


def _covering(earlier: Mapping[_Place, list[tuple[Route, Extent]]], extent: Extent) -> Iterator[Route]:
    """The routes of those matches that hold wherever this one does, the most general first."""
    paths = {_path(extent), *(("prefix", prefix) for prefix in extent.prefixes)}
    for host in sorted(extent.hosts, key=lambda host: len(host or "")):
        for path in sorted(paths, key=str):
            for route, other in earlier.get((host, *path), ()):
                if other.covers(extent):
                    yield route


# Anchored at its start by a letter or digit that must be there: paths begin with a slash.
_NO_SLASH = re.compile(r"\^?[A-Za-z0-9_-](?![*?{|])[^|]*\Z")


def impossible_matches(whole: Whole) -> Breaches:
    for path, route in whole.draft.routes():
        for at, match in match_paths(path, route):
            for number, method in enumerate(match.methods):
                if method in ("TRACE", "CONNECT"):
                    yield Breach((*at, "methods", number), f"never matches: {method} is answered with 405")
            if match.regex is not None and _NO_SLASH.match(match.regex):
                yield Breach((*at, "regex"), "never matches: it is for the whole path, which begins with a slash")
            if match.excluded is not None:
                yield from _excluding_all((*at, "not"), build.match(match))
                if match.excluded.regex is not None and _NO_SLASH.match(match.excluded.regex):
                    told = "excludes nothing: it is for the whole path, which begins with a slash"
                    yield Breach((*at, "not", "regex"), told)


def _excluding_all(at: Path, match: Match) -> Breaches:
    """Conditions of `not` that hold wherever the match itself does."""
    assert match.excluded is not None
    extent = Extent.of(replace(match, excluded=None))
    for one in match.excluded.alone():
        if Extent.of(one).covers(extent):
            yield Breach(at, f"never matches: {told_excluded(one)} takes all that the match does", key=True)


def refused_as_ambiguous(whole: Whole) -> Breaches:
    """Matches whose own path has another reading that their route does not match."""
    for path, route in whole.draft.routes():
        if (route.ambiguous_paths or whole.config.server.ambiguous_paths) != "refuse":
            continue
        for at, match in match_paths(path, route):
            key, wanted = ("path", match.path) if match.path is not None else ("prefix", match.prefix)
            others = [] if wanted is None else readings(target.written(wanted))
            lost = next((one for one in others if not any(_takes(match, one.path) for match in route.match)), None)
            if lost is not None:
                told = f"requests for it are refused: {lost.how} it is another path (ambiguous_paths: forward)"
                yield Breach((*at, key), told)


def _takes(match: schema.Match, path: bytes | None) -> bool:
    """Whether a match may hold for a path in normal form."""
    if path is None:
        return False
    if match.path is not None:
        return target.written(match.path) == path
    return match.regex is not None or target.begins(path, target.written_prefix(match.prefix or "/"))


def useless_strip(whole: Whole) -> Breaches:
    for path, route in whole.draft.routes():
        if route.strip_prefix and all(match.prefix is None and match.path is None for match in route.match):
            yield Breach((*path, "strip_prefix"), "does nothing: no match has a prefix", key=True)


def useless_redirect(whole: Whole) -> Breaches:
    """Only where the target is certainly what was asked for."""
    for path, route in whole.draft.routes():
        to = route.redirect
        if to is None or to.scheme is not None or to.host is not None or to.port is not None:
            continue
        key, place = ("path", to.path) if to.path is not None else ("prefix", to.prefix)
        if place is not None and all(_written_as(getattr(match, key), place) for match in route.match):
            yield Breach((*path, "redirect", key), "does nothing: it leads to what was asked for", key=True)


def _written_as(wanted: str | None, place: bytes) -> bool:
    return wanted is not None and wanted.encode() == place
