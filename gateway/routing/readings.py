"""Other readings of a path: what a server behind the gateway may take it for.

Rule: pure. Some servers decode `%2F` before they look at a path, take a backslash for a slash,
or cut off `;…` from each segment (RFC 3986 §3.3). A path with such bytes is ambiguous: a route
that guards `/admin` does not match `/admin%2Fusers`, yet the server behind another route may
serve `/admin/users`. So a request goes on only if every reading of its path has the same route
(issue 12), unless that route or the server says `ambiguous_paths: forward`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from gateway.errors import BadPath, ClientError
from gateway.http.messages import Request
from gateway.http.target import AmbiguousTarget, Target, normal
from gateway.model import Route, ServerSettings
from gateway.routing.router import Router

_parameters = re.compile(rb"(?:;|%3B)[^/]*+").sub


class Reading(NamedTuple):
    """`how`: what a server would do to read the path so. `path`: in normal form; None for one that
    the gateway refuses, as it holds `..` segments."""

    how: str
    path: bytes | None


class Served(NamedTuple):
    """A reading and the route that it would have; None for no route."""

    reading: Reading
    route: Route | None


def readings(path: bytes) -> list[Reading]:
    """The other readings of a path in normal form, each once; empty for a path that has one only.

    Takes linear time.
    """
    slashes = path.replace(b"%2F", b"/")
    backslashes = _without_backslashes(path)
    both = _without_backslashes(slashes)
    ways = (
        ("with %2F as a slash", slashes),
        ("with a backslash as a slash", backslashes),
        ("without path parameters (;)", _parameters(b"", path)),
        ("with all slashes decoded, then without parameters", _parameters(b"", both)),
        ("without parameters, then with all slashes decoded", _decoded(_parameters(b"", path))),
    )
    found: dict[bytes | None, Reading] = {}
    for how, raw in ways:
        if raw != path:
            read = _normal(raw)
            found.setdefault(read, Reading(how, read))
    found.pop(path, None)
    return list(found.values())


def _without_backslashes(path: bytes) -> bytes:
    return path.replace(b"%5C", b"/").replace(b"\\", b"/")


def _decoded(path: bytes) -> bytes:
    return _without_backslashes(path.replace(b"%2F", b"/"))


def _normal(path: bytes) -> bytes | None:
    try:
        return normal(path)
    except ClientError:
        return None


def served(
    router: Router, request: Request, passed: Sequence[Route], target: Target, path: bytes, host: bytes
) -> list[Served]:
    """What each other reading of a request's path would have. `passed`: redirects that the request
    was not sent away by."""
    found = []
    for reading in readings(path):
        route = None
        if reading.path is not None:
            route = router.after(passed, request.method, host, reading.path, target.query, request.fields)
        found.append(Served(reading, route))
    return found


def check(
    router: Router,
    server: ServerSettings,
    request: Request,
    route: Route,
    passed: Sequence[Route],
    target: Target,
    path: bytes,
    host: bytes,
) -> None:
    """Let a request go on that `route` matches by its path as it came. Raises BadPath if another
    reading has another route, or none."""
    if not isinstance(target, AmbiguousTarget) or (route.ambiguous_paths or server.ambiguous_paths) != "refuse":
        return
    for one in served(router, request, passed, target, path, host):
        if one.route is not route:
            raise BadPath(f"{path[:200]!r} has route {route.name}; {difference(one)}")


def difference(one: Served) -> str:
    """What a reading leads to, in words."""
    reading = one.reading
    if reading.path is None:
        return f"{reading.how} it has a .. segment"
    has = "no route" if one.route is None else f"route {one.route.name}"
    return f"{reading.how} it is {reading.path[:200]!r} and has {has}"
