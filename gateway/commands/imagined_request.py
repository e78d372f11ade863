"""A request that nobody sent: what it asks for, and which matches it meets.

Rule: pure, and never a second router. The steps before routing are the functions that
`Gateway.handle` calls, in its order; a condition of a match is asked of a `Router` that
knows no other condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.commands.wording import text
from gateway.errors import BadRequest, GatewayError, UnsupportedMethod
from gateway.http import target as targets
from gateway.http.messages import Headers, Request
from gateway.http.request_head import check_max_forwards
from gateway.http.target import Target
from gateway.model import Match, Route, ServerSettings
from gateway.routing import readings
from gateway.routing.router import Router, precedence

# TEST-NET-1 (RFC 5737): a client somewhere, in nobody's list of trusted proxies.
SOMEWHERE = "192.0.2.1"


# -- the question -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A request, as bytes on the wire would say it. `host` None: no Host line (but see
    `headers`). `peer`: who connects; `scheme`: how."""

    method: bytes
    target: bytes
    host: bytes | None = b"localhost"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    peer: str = SOMEWHERE
    scheme: str = "http"

    @property
    def head(self) -> bytes:
        """The request's head. ValueError for what would be more than one line."""
        named = () if self.host is None else ((b"Host", self.host),)
        lines = [b"%b %b HTTP/1.1" % (self.method, self.target)]
        lines += [b"%b: %b" % field for field in (*named, *self.headers)]
        if any(b"\r" in line or b"\n" in line for line in lines):
            raise ValueError("a line of a request holds no line end")
        return b"\r\n".join([*lines, b"", b""])


def question(method: str, url: str, headers: Iterable[tuple[str, str]] = (), peer: str = SOMEWHERE) -> Question:
    """The request that a client would make for an URL; a path alone is asked of localhost.
    A Host among the headers replaces the URL's."""
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() in ("http", "https"):
        cut = min((rest.index(end) for end in "/?#" if end in rest), default=len(rest))
        host, target = rest[:cut], rest[cut:]
        target = target if target.startswith("/") else f"/{target}"
    else:
        scheme, host, target = "http", "localhost", url
    given = tuple((_wire(name), _wire(value)) for name, value in headers)
    hosts = [value for name, value in given if name.lower() == b"host"]
    return Question(
        method=_wire(method),
        target=_wire(target),
        host=hosts[0] if hosts else _wire(host),
        headers=tuple(field for field in given if field[0].lower() != b"host") + tuple((b"Host", v) for v in hosts[1:]),
        peer=peer,
        scheme=scheme.lower(),
    )


def _wire(text: str) -> bytes:
    # What a shell passes on and is no UTF-8 comes as surrogates (PEP 383).
    return text.encode("utf-8", "surrogateescape")


# -- the line, up to the route ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, in the forms that routes are matched on."""

    request: Request
    target: Target
    authority: bytes
    host: bytes
    path: bytes

    def served_by(self, router: Router) -> Route | None:
        return router.match(self.request.method, self.host, self.path, self.target.query, self.request.fields)

    def ambiguity(
        self, router: Router, route: Route, server: ServerSettings, passed: Sequence[Route] = ()
    ) -> GatewayError | None:
        """Why `route` does not get the request although it matches: another reading of the path has
        another route. `passed`: redirects that the request was not sent away by."""
        try:
            readings.check(router, server, self.request, route, passed, self.target, self.path, self.host)
        except GatewayError as error:
            return error
        return None


@dataclass(frozen=True, slots=True)
class Answered:
    """The gateway answers by itself. `status` None: one of its own paths."""

    status: int | None
    told: str


def asked(request: Request, server: ServerSettings) -> Asked | Answered:
    """The steps of `Gateway.handle` before a route is looked for. Raises GatewayError."""
    if request.method in (b"TRACE", b"CONNECT"):
        raise UnsupportedMethod(request.method.decode("latin-1"))
    parsed, path = targets.read(request.target)
    authority = parsed.authority if parsed.authority is not None else request.host
    if parsed.authority is not None and request.method == b"OPTIONS":
        parsed = targets.for_server(parsed, request.target)
    host = targets.host(authority) if authority else b""
    if path == b"*":
        if request.method != b"OPTIONS":
            raise BadRequest("a target of * is for OPTIONS alone")
        return Answered(204, "OPTIONS * is about the gateway itself")
    own = server.own_prefix
    if own is not None and (path + b"/").startswith(own.encode("latin-1")):
        return Answered(None, f"{own} is the gateway's own (server.own_prefix)")
    if request.method == b"OPTIONS" and check_max_forwards(request):
        return Answered(204, "Max-Forwards is 0")
    return Asked(request, parsed, authority, host, path)


# -- why a match does not hold --------------------------------------------------------------


def first_failure(match: Match, seen: Asked) -> str:
    """The first condition of a match that a request does not meet, in words; "" for none."""
    for condition, told in _conditions(match, seen):
        alone = Route("", "", matches=(condition,))
        if seen.served_by(Router([alone])) is None:
            return told()
    return ""


def _conditions(match: Match, seen: Asked) -> Iterator[tuple[Match, Callable[[], str]]]:
    """The conditions of a match one by one, each with what is to be said when it fails."""
    request = seen.request
    if match.host is not None:
        yield Match(host=match.host), lambda: f"the host {text(seen.host) or '(none)'} is not {match.host}"
    if match.path is not None:
        yield Match(path=match.path), lambda: f"the path {text(seen.path)} is not {match.path}"
    if match.prefix is not None:
        yield Match(prefix=match.prefix), lambda: f"the path {text(seen.path)} is not under {match.prefix}"
    if match.regex is not None:
        yield Match(regex=match.regex), lambda: f"the path {text(seen.path)} does not match {match.regex}"
    if match.methods:
        methods = " or ".join(sorted(match.methods))
        yield Match(methods=match.methods), lambda: f"the method {text(request.method)} is not {methods}"
    for name, value in match.headers:
        yield Match(headers=((name, value),)), lambda name=name, value=value: (  # type: ignore[misc]
            f"the header {name} is {_came(request.fields, name)}, not {value!r}"
        )
    for name, value in match.query:
        yield Match(query=((name, value),)), lambda name=name, value=value: (  # type: ignore[misc]
            f"the query has no {name}={value}" + ("" if seen.target.query is None else " as its first")
        )
    for one in () if match.excluded is None else match.excluded.alone():
        yield Match(excluded=one), lambda one=one: f"not: {_held(one, seen)}"  # type: ignore[misc]


def _held(one: Match, seen: Asked) -> str:
    """Why a condition of `not` holds, in words."""
    if one.host is not None:
        return f"the host {text(seen.host)} is {one.host}"
    if one.path is not None:
        return f"the path is {one.path}"
    if one.prefix is not None:
        return f"the path {text(seen.path)} is under {one.prefix}"
    if one.regex is not None:
        return f"the path {text(seen.path)} matches {one.regex}"
    if one.methods:
        return f"the method is {text(seen.request.method)}"
    if one.headers:
        return f"the header {one.headers[0][0]} is {one.headers[0][1]!r}"
    return f"the query has {one.query[0][0]}={one.query[0][1]}"


def _came(headers: Headers, name: str) -> str:
    values = [text(value) for field, value in headers if field.lower() == name.encode()]
    return repr(", ".join(values)) if values else "missing"


Placed = tuple[Route, Match]


def beaten(won: Placed, lost: Placed) -> str:
    """Which rule of precedence puts one match before another, in words."""
    ours, theirs = precedence(*won), precedence(*lost)
    parts = (mine != other for mine, other in zip(ours, theirs, strict=True))
    return _RULES[next((place for place, differs in enumerate(parts) if differs), len(ours))](won, lost)


# What each part of `precedence` says of the match that comes later; at last: nothing.
_RULES: tuple[Callable[[Placed, Placed], str], ...] = (
    lambda won, lost: f"its priority is {lost[0].priority}, not {won[0].priority}",
    lambda won, lost: f"{_kind_of_host(won[1])} comes before {_kind_of_host(lost[1])}",
    lambda won, lost: f"the wildcard {won[1].host} is longer",
    lambda won, lost: f"{_kind_of_path(won[1])} comes before {_kind_of_path(lost[1])}",
    lambda won, lost: f"the prefix {won[1].prefix} is longer" if won[1].regex is None else "regexes come in file order",
    lambda won, lost: "a match with methods comes before one without",
    lambda won, lost: "more headers come first",
    lambda won, lost: "more query parameters come first",
    lambda won, lost: "it stands later in the file",
    lambda won, lost: "it stands later in the route",
)


def _kind_of_host(match: Match) -> str:
    if match.host is None:
        return "no host"
    return "a wildcard" if match.host.startswith("*.") else "an exact host"


def _kind_of_path(match: Match) -> str:
    if match.path is not None:
        return "an exact path"
    return "a prefix" if match.regex is None else "a regex"
