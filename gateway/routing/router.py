"""Which route serves a request: compiled once, looked up without regard to their number.

Rule: pure, and one total order decides (`precedence`). Hosts, exact paths and prefixes
are looked up in dicts; of the prefixes only as many as there are depths (numbers of
segments) in the configuration, so a deep path costs nothing. Only regular expressions,
and routes that differ in nothing but methods, headers or query, are tried one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import ClientError, ConfigError
from gateway.http.target import begins, decoded, written, written_prefix
from gateway.http.target import host as normal_host
from gateway.patterns import Pattern, Patterns, pieces
from gateway.patterns import compile as compile_pattern

if TYPE_CHECKING:
    from gateway.http.messages import Headers
    from gateway.model import Match, Route


def precedence(route: Route, match: Match) -> tuple[int, ...]:
    """The sort key of the order in which matches win; equal keys: as they stand in the file.

    Priority; exact host, longer wildcard, none; exact path, regex in file order, longer
    prefix; with methods before without; more headers; more query parameters; file order.
    """
    return (
        -route.priority,
        *_host_precedence(match.host),
        *_path_precedence(route, match),
        0 if match.methods else 1,
        -len(match.headers),
        -len(match.query),
        route.index,
    )


def _host_precedence(host: str | None) -> tuple[int, int]:
    if host is None:
        return (2, 0)
    return (1, -len(host)) if host.startswith("*.") else (0, 0)


def _path_precedence(route: Route, match: Match) -> tuple[int, int]:
    if match.path is not None:
        return (0, 0)
    if match.regex is not None:
        return (1, route.index)
    return (2, -len(written_prefix(match.prefix or "/")))


class Router:
    """The routes of one configuration, compiled. Raises `ConfigError` for a route that no
    router could serve; the file's own checks come before it and say where."""

    __slots__ = ("_by_host", "_hostless", "_labels", "_one_priority", "_ordered", "_wildcards")

    def __init__(self, routes: Sequence[Route]) -> None:
        candidates = sorted(_compiled(routes), key=lambda one: one.order)
        self._ordered = tuple((one.route, one.match) for one in candidates)
        self._one_priority = len({route.priority for route in routes}) < 2
        tables = {host: _Paths(group) for host, group in _grouped((one.host, one) for one in candidates).items()}
        self._hostless = tuple(table for host, table in tables.items() if host == b"")
        self._wildcards = {host[2:]: table for host, table in tables.items() if host.startswith(b"*.")}
        self._labels = max((suffix.count(b".") + 1 for suffix in self._wildcards), default=0)
        # What nothing of the exact host matches falls through to wildcards, then hostless.
        self._by_host = {
            host: (table, *self._beyond(host)) for host, table in tables.items() if host and not host.startswith(b"*.")
        }

    def ordered(self) -> list[tuple[Route, Match]]:
        """Every match of every route, in the order in which they win."""
        return list(self._ordered)

    def match(self, method: bytes, host: bytes, path: bytes, query: bytes | None, headers: Headers) -> Route | None:
        """The route that serves a request: `host` and `path` in normal form, the query as
        it came. None when no route does."""
        asked: _Asked | None = None
        best: _Candidate | None = None
        for table in self._by_host.get(host) or self._beyond(host):
            for candidates in table.find(path):
                for candidate in candidates:
                    if best is not None and best.order < candidate.order:
                        break
                    if not candidate.plain:
                        asked = asked or _Asked(method, host, path, query, headers)
                        if not asked.meets(candidate):
                            continue
                    if self._one_priority:
                        return candidate.route
                    best = candidate
                    break
        return None if best is None else best.route

    def after(
        self, passed: Sequence[Route], method: bytes, host: bytes, path: bytes, query: bytes | None, headers: Headers
    ) -> Route | None:
        """The route that would serve a request if those in `passed` were not there."""
        asked = _Asked(method, host, path, query, headers)
        met = [
            candidate
            for table in self._by_host.get(host) or self._beyond(host)
            for candidates in table.find(path)
            for candidate in candidates
            if all(candidate.route is not one for one in passed) and (candidate.plain or asked.meets(candidate))
        ]
        return min(met, key=lambda candidate: candidate.order).route if met else None

    def _beyond(self, host: bytes) -> tuple[_Paths, ...]:
        """The tables behind that of the exact host: longer wildcards first."""
        if not self._wildcards:
            return self._hostless
        # No more labels are looked at than the longest wildcard has.
        labels = host.rsplit(b".", self._labels)
        suffixes = (b".".join(labels[first:]) for first in range(1, len(labels)))
        return (*(self._wildcards[suffix] for suffix in suffixes if suffix in self._wildcards), *self._hostless)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One match of a route, compiled. `order`: its precedence, and its place where that
    says nothing. `host`: in normal form, a wildcard with its `*.`, empty for any. Of
    `path`, `prefix` (without trailing slash) and `pattern` one is set, or both of the last two.
    `excluded`: conditions none of which may hold."""

    order: tuple[int, ...]
    route: Route
    match: Match
    host: bytes
    path: bytes | None
    prefix: bytes | None
    pattern: Pattern | None
    methods: frozenset[bytes]
    headers: tuple[tuple[bytes, bytes], ...]
    query: tuple[tuple[bytes, bytes], ...]
    excluded: _Excluded | None
    plain: bool


@dataclass(frozen=True, slots=True)
class _Excluded:
    """Conditions none of which may hold; what is None or empty is no condition."""

    host: bytes
    path: bytes | None
    prefix: bytes | None
    matches: Callable[[bytes], object] | None
    methods: frozenset[bytes]
    headers: tuple[tuple[bytes, bytes], ...]
    query: tuple[tuple[bytes, bytes], ...]

    def holds(self, asked: _Asked) -> bool:
        """Whether any of the conditions holds."""
        path = asked.path
        return (
            asked.method in self.methods
            or (self.path is not None and path == self.path)
            or (self.prefix is not None and begins(path, self.prefix))
            or (bool(self.host) and _is_host(asked.host, self.host))
            or any(asked.fields.get(name) == value for name, value in self.headers)
            or any(asked.parameters.get(name) == value for name, value in self.query)
            or (self.matches is not None and self.matches(path) is not None)
        )


def _is_host(host: bytes, wanted: bytes) -> bool:
    """Whether a host is the one, or one of the wildcard, that a match names."""
    return host.endswith(wanted[1:]) and len(host) >= len(wanted) if wanted.startswith(b"*.") else host == wanted


def _compiled(routes: Sequence[Route]) -> Iterator[_Candidate]:
    pairs = ((route, match) for route in routes for match in route.matches)
    for place, (route, match) in enumerate(pairs):
        try:
            yield _compile(place, route, match)
        except (ClientError, ValueError) as error:
            raise ConfigError(f"route {route.name!r}: {error}") from error


def _compile(place: int, route: Route, match: Match) -> _Candidate:
    if route.rewrite is not None and route.rewrite.regex is not None:
        pieces(route.rewrite.to or b"", route.rewrite.regex)  # a bad group number says so now
    everything = match.path is None and match.regex is None and match.prefix is None
    prefix = "/" if everything else match.prefix
    return _Candidate(
        order=(*precedence(route, match), place),
        route=route,
        match=match,
        host=_host(match.host),
        path=None if match.path is None else written(match.path),
        prefix=None if prefix is None else written_prefix(prefix),
        pattern=None if match.regex is None else compile_pattern(match.regex, groups=False),
        methods=frozenset(method.encode() for method in match.methods),
        headers=_headers(match),
        query=_query(match),
        excluded=None if match.excluded is None else _excluded(match.excluded),
        plain=not (match.methods or match.headers or match.query or match.excluded),
    )


def _headers(match: Match) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower().encode(), value.encode()) for name, value in match.headers)


def _query(match: Match) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode(), value.encode()) for name, value in match.query)


def _excluded(match: Match) -> _Excluded:
    return _Excluded(
        host=_host(match.host),
        path=None if match.path is None else written(match.path),
        prefix=None if match.prefix is None else written_prefix(match.prefix),
        matches=None if match.regex is None else compile_pattern(match.regex, groups=False).fullmatch,
        methods=frozenset(method.encode() for method in match.methods),
        headers=_headers(match),
        query=_query(match),
    )


def _host(host: str | None) -> bytes:
    if host is None:
        return b""
    name = host.removeprefix("*.")
    return host[: len(host) - len(name)].encode() + normal_host(name.encode())


def _grouped(pairs: Iterable[tuple[bytes, _Candidate]]) -> dict[bytes, list[_Candidate]]:
    groups: dict[bytes, list[_Candidate]] = {}
    for key, candidate in pairs:
        groups.setdefault(key, []).append(candidate)
    return groups


class _Paths:
    """The candidates of one host by what they say of the path, each list in order."""

    __slots__ = ("_by_pattern", "_deepest", "_depths", "_exact", "_patterns", "_prefixes")

    def __init__(self, candidates: list[_Candidate]) -> None:
        self._exact = _grouped((one.path, one) for one in candidates if one.path is not None)
        plain = [one for one in candidates if one.pattern is None]
        self._prefixes = _grouped((one.prefix, one) for one in plain if one.prefix is not None)
        by_pattern = [one for one in candidates if one.pattern is not None]
        self._patterns = Patterns([one.pattern for one in by_pattern if one.pattern is not None])
        # What each pattern leads to, and the prefix that the path must have as well.
        self._by_pattern = [(one.prefix or b"", [one]) for one in by_pattern]
        # The numbers of segments that prefixes have here, deepest first.
        self._depths = sorted({prefix.count(b"/") for prefix in self._prefixes}, reverse=True)
        self._deepest = max(self._depths, default=0)

    def _add_by_pattern(self, path: bytes, met: list[list[_Candidate]]) -> None:
        hits = [self._by_pattern[number] for number in self._patterns.matching(path)]
        met += [candidates for prefix, candidates in hits if not prefix or begins(path, prefix)]

    def find(self, path: bytes) -> list[list[_Candidate]]:
        """Those that a path in normal form meets: exact, patterns, longer prefixes first."""
        met: list[list[_Candidate]] = []
        found = self._exact.get(path)
        if found is not None:
            met.append(found)
        if self._by_pattern:
            self._add_by_pattern(path, met)
        if self._deepest == 1:
            # The first segment alone: most tables of prefixes are like this.
            end = path.find(b"/", 1)
            found = self._prefixes.get(path if end < 0 else path[:end])
            if found is not None:
                met.append(found)
            found = self._prefixes.get(b"")
            if found is not None:
                met.append(found)
            return met
        segments = path.split(b"/", self._deepest + 1)
        for depth in self._depths:
            if depth < len(segments):
                found = self._prefixes.get(b"/".join(segments[: depth + 1]))
                if found is not None:
                    met.append(found)
        return met


class _Asked:
    """What a request says; its fields and query are taken apart only when a route asks."""

    __slots__ = ("_fields", "_headers", "_parameters", "_query", "host", "method", "path")

    def __init__(self, method: bytes, host: bytes, path: bytes, query: bytes | None, headers: Headers) -> None:
        self.method = method
        self.host = host
        self.path = path
        self._query = query
        self._headers = headers
        self._fields: dict[bytes, bytes] | None = None
        self._parameters: dict[bytes, bytes] | None = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        if self._fields is None:
            self._fields = _fields(self._headers)
        return self._fields

    @property
    def parameters(self) -> dict[bytes, bytes]:
        if self._parameters is None:
            self._parameters = _parameters(self._query)
        return self._parameters

    def meets(self, candidate: _Candidate) -> bool:
        """Whether method, headers and query are as the candidate wants them, and nothing that it
        excludes holds."""
        if candidate.methods and self.method not in candidate.methods:
            return False
        if candidate.headers and not all(self.fields.get(name) == value for name, value in candidate.headers):
            return False
        if candidate.query and not all(self.parameters.get(name) == value for name, value in candidate.query):
            return False
        return candidate.excluded is None or not candidate.excluded.holds(self)


def _fields(headers: Headers) -> dict[bytes, bytes]:
    """Header values by name in lower case; several lines are one list (RFC 9110 §5.3). A name
    with `_` is none: such fields are dropped, and would pass for another behind CGI."""
    lines: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.find(b"_") < 0:
            lines.setdefault(name.lower(), []).append(value)
    return {name: b", ".join(values) for name, values in lines.items()}


def _parameters(query: bytes | None) -> dict[bytes, bytes]:
    """Query parameters, decoded; of several with one name the first."""
    found: dict[bytes, bytes] = {}
    for pair in (query or b"").split(b"&"):
        name, _, value = pair.partition(b"=")
        found.setdefault(decoded(name), decoded(value))
    return found
