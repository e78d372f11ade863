"""What would become of one request: who serves it, what is sent, and which line says so.

Rule: pure, and never a second gateway. The request is read by the worker's parser, goes
through the same functions in the order of `Gateway.handle`, and through the Forwarder
itself, with a listener where the connection pool would be: what the listener is given to
send is what an upstream would get, and whether it is asked twice is whether a request is
tried again. Only *why* is worked out here: a condition of a match is asked of a Router
that knows no other condition.

What depends on the moment stands in angle brackets: the request id, an endpoint that a
registry knows, the gateway's name where the configuration gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from gateway.asking import Answered, Asked, Question, asked, beaten, first_failure
from gateway.config.origins import Origins
from gateway.errors import (
    ConnectRefused,
    GatewayError,
    NoRoute,
    ResponseTimeout,
    UpstreamReset,
    UpstreamStale,
)
from gateway.exchange import Request, Response
from gateway.forwarder import Forwarder
from gateway.headers import Head, Outbound
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.state import UpstreamState
from gateway.model import Config, Endpoint, Match, RetryPolicy, Route, StaticSource, Timeouts, Upstream
from gateway.retry import Budget
from gateway.router import Router
from gateway.server.parser import HeadParser
from gateway.snapshot import Group
from gateway.trust import Trust
from gateway.wording import columns, text, told_match, told_rewrite, told_source, told_value, told_values

NEW_ID = b"<new id>"
OWN_NAME = b"<gateway>"


# -- the answer -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lost:
    """A match that does not serve the request, and why."""

    route: str
    match: str
    place: str
    why: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What these endpoints would get: the request line and the header lines."""

    endpoints: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What holds for the request. `place`: FILE:LINE, or "built-in"."""

    name: str
    value: str
    place: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Whether the request is tried again after something, and why."""

    after: str
    again: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`status` and `reason` say what the gateway itself answers; both are empty for what an
    upstream gets, and `status` is None for the gateway's own paths."""

    method: str
    host: str
    target: str
    forwarded: bool
    status: int | None = None
    reason: str = ""
    detail: str = ""
    route: str = ""
    place: str = ""
    match: str = ""
    upstream: str = ""
    source: str = ""
    lost: tuple[Lost, ...] = ()
    sent: tuple[Sent, ...] = ()
    settings: tuple[Setting, ...] = ()
    retries: tuple[Retry, ...] = ()


def explain(config: Config, asking: Question, origins: Origins | None = None) -> Explanation:
    """What becomes of a request under a configuration; `origins` knows the lines of its file."""
    found = _Found(config, asking, origins or Origins())
    told = Explanation(
        asking.method.decode("latin-1"), (asking.host or b"").decode("latin-1"), asking.target.decode("latin-1"), False
    )
    try:
        request = found.request()
        seen = asked(request, config.server)
        if isinstance(seen, Answered):
            return replace(told, status=seen.status, detail=seen.told)
        router = Router(config.routes)
        route = seen.served_by(router)
        told = replace(told, **found.order(router, route, seen))
        if route is None:
            raise NoRoute("no route matches")
        told = replace(told, settings=tuple(found.settings(route)))
        sent = tuple(found.sent(route, seen))
        return replace(told, forwarded=True, sent=sent, retries=tuple(found.retries(route, seen)))
    except GatewayError as error:
        return replace(told, status=error.status, reason=error.reason, detail=error.cause or error.detail)


class _Found:
    """What is found out for one question."""

    def __init__(self, config: Config, asking: Question, origins: Origins) -> None:
        self._config = config
        self._asking = asking
        self._origins = origins
        name = config.server.name.encode("latin-1") if config.server.name else OWN_NAME
        trust = Trust(config.server.trusted_proxies)
        self._outbound = Outbound(config.server, name, trust, lambda: NEW_ID)

    def request(self) -> Request:
        """The request as the worker makes it of its bytes. Raises what the worker answers."""
        parser = HeadParser(self._config.server.limits)
        parser.parse(self._asking.head)
        framed = parser.chunked or bool(parser.content_length)
        request = Request(
            parser.method,
            parser.target,
            parser.headers,
            # Nothing here waits, so that no deadline may pass.
            started=inf,
            peer=self._asking.peer,
            scheme=self._asking.scheme,
            port=443 if self._asking.scheme == "https" else 80,
            http11=parser.http11,
            content_length=parser.content_length,
            chunked=parser.chunked,
            body=_Body(parser.expects_continue) if framed else None,
            upgrade=parser.upgrade,
            host=parser.host,
        )
        self._outbound.identify(request)
        return request

    # -- who serves it ------------------------------------------------------------------

    def order(self, router: Router, winner: Route | None, seen: Asked) -> dict[str, Any]:
        """The match that won, and the others in their order."""
        won: tuple[Route, Match] | None = None
        lost: list[Lost] = []
        for route, match in router.ordered():
            why = first_failure(match, seen)
            if not why:
                if won is None:
                    assert route is winner, "the order of matches is not the router's"
                    won = route, match
                    continue
                why = f"matches too, but {beaten(won, (route, match))}"
            if route is not winner:
                lost.append(Lost(route.name, told_match(match), self._origins.place(("routes", route.index)), why))
        if won is None:
            return {"lost": tuple(lost)}
        route, match = won
        upstream = self._config.upstreams[route.upstream]
        return {
            "route": route.name,
            "place": self._origins.place(("routes", route.index)),
            "match": told_match(match),
            "upstream": upstream.name,
            "source": told_source(upstream.source),
            "lost": tuple(lost),
        }

    # -- what is sent -------------------------------------------------------------------

    def sent(self, route: Route, seen: Asked) -> Iterator[Sent]:
        """What each endpoint would get; those that get the same together. Raises GatewayError."""
        upstream = self._config.upstreams[route.upstream]
        groups: dict[tuple[str, ...], list[str]] = {}
        endpoints = [endpoint for endpoint in _endpoints(upstream) if endpoint.weight > 0]
        if not endpoints:
            raise Group(upstream, (), "", (), _state(upstream)).absence()
        for endpoint in endpoints:
            listener = _Listener()
            self._forward(route, seen, endpoint, listener)
            lines = listener.heads[0].data.decode("latin-1").split("\r\n")[:-2]
            groups.setdefault(tuple(lines), []).append(f"{endpoint.scheme}://{endpoint.address}")
        for told, addresses in groups.items():
            yield Sent(tuple(addresses), told)

    def _forward(self, route: Route, seen: Asked, endpoint: Endpoint, listener: _Listener) -> None:
        upstream = self._config.upstreams[route.upstream]
        candidate = Candidate(endpoint, EndpointState(), listener)
        group = Group(upstream, (endpoint,), "", (candidate,), _state(upstream))
        forwarder = Forwarder(self._outbound, _one_try, sleep=lambda seconds: None)
        forwarder.forward(self.request(), route, group, seen.target, seen.path, seen.authority)

    # -- whether it is tried again ------------------------------------------------------

    def retries(self, route: Route, seen: Asked) -> Iterator[Retry]:
        endpoint = next(endpoint for endpoint in _endpoints(self._config.upstreams[route.upstream]) if endpoint.weight)
        ends: list[tuple[str, int | GatewayError]] = [
            ("connect", ConnectRefused()),
            ("stale", UpstreamStale()),
            ("reset", UpstreamReset()),
            ("timeout", ResponseTimeout()),
            *((f"status {status}", status) for status in sorted(route.retry.statuses)),
        ]
        for after, end in ends:
            listener = _Listener(end)
            try:
                self._forward(route, seen, endpoint, listener)
            except GatewayError as error:
                if error is not end:
                    raise
            again = len(listener.heads) > 1
            why = "" if again else _why_once(after, seen.request, route.retry)
            yield Retry(after, again, why)

    # -- what was set where -------------------------------------------------------------

    def settings(self, route: Route) -> Iterator[Setting]:
        """What holds for requests of a route, each with the nearest line that says so."""
        upstream = self._config.upstreams[route.upstream]
        at: tuple[str | int, ...] = ("routes", route.index)
        levels = (at, ("upstreams", upstream.name), ("defaults",))

        def setting(name: str, value: str) -> Setting:
            keys = tuple(name.split("."))
            return Setting(name, value, self._origins.nearest((*level, *keys) for level in levels) or "built-in")

        yield Setting("upstream", upstream.name, self._origins.place((*at, "upstream")))
        source = told_source(upstream.source)
        yield Setting(f"upstreams.{upstream.name}", source, self._origins.place(("upstreams", upstream.name)))
        if route.strip_prefix:
            yield setting("strip_prefix", "true")
        if route.rewrite is not None:
            yield setting("rewrite", told_rewrite(route))
        yield setting("host", route.host)
        for section, values in (("timeouts", route.timeouts), ("retry", route.retry), ("pool", upstream.pool)):
            for key, value in told_values(values):
                yield setting(f"{section}.{key}", value)
        yield setting("upgrade", told_value("upgrade", route.upgrade))
        yield setting("balance", upstream.balance.policy)


class _Body:
    """The body of a request that is not sent: nobody reads it here."""

    complete = False

    def __init__(self, expects_continue: bool) -> None:
        self.expects_continue = expects_continue

    def read(self) -> bytes:
        return b""


class _Listener:
    """In the place of a connection pool: keeps the heads that it is given to send. The first
    try ends as it is told: by an error, or by an answer with a status."""

    def __init__(self, first: int | GatewayError = 200) -> None:
        self.heads: list[Head] = []
        self._first = first

    def send(
        self,
        request: Request,
        head: Head,
        timeouts: Timeouts,
        replayable: bool,
        fresh: bool = False,
        deadline: float | None = None,
    ) -> Response:
        self.heads.append(head)
        end = self._first if len(self.heads) == 1 else 200
        if isinstance(end, GatewayError):
            raise end
        return Response(end, b"", [])


def _one_try(
    first: Callable[[], Response],
    second: Callable[[], Callable[[], Response] | None],
    after: float,
    discard: Callable[[Response], None],
) -> tuple[bool, Response]:
    """In the place of a race: the first has an answer at once."""
    return False, first()


class _First:
    """In the place of a balancer: there is one endpoint."""

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        return candidates[0]


def _state(upstream: Upstream) -> UpstreamState:
    """An upstream of which nothing is known: its budget for retries is full."""
    return UpstreamState(upstream, _First(), Budget(lambda: 0.0))


def _endpoints(upstream: Upstream) -> tuple[Endpoint, ...]:
    """Those of the file; one that stands for all where a registry knows them."""
    if isinstance(upstream.source, StaticSource):
        return upstream.source.endpoints
    return (Endpoint(upstream.scheme, "<address>", 0, authority=b"<address:port>"),)


def _why_once(after: str, request: Request, policy: RetryPolicy) -> str:
    """Why a request is not tried again after something."""
    if policy.attempts < 2:
        return f"retry.attempts is {policy.attempts}"
    if not after.startswith("status") and after not in policy.when:
        return f"{after} is not in retry.when"
    if request.method not in policy.methods:
        return f"{text(request.method)} is not in retry.methods"
    if request.chunked:
        return "the length of a chunked body is not known before"
    return f"the body of {request.content_length} bytes does not fit retry.buffer ({policy.buffer} bytes)"


# -- the explanation as text ---------------------------------------------------------------


def told(found: Explanation) -> Iterator[str]:
    """An explanation as lines of text."""
    yield f"{found.method} {found.target} of {found.host or '(no host)'}"
    if found.route:
        yield f"route      {found.route}  {found.place}  ({found.match})"
        yield f"upstream   {found.upstream}  ({found.source})"
    if not found.forwarded:
        status = "" if found.status is None else f"{found.status} {found.reason}".rstrip() + ": "
        yield f"answered by the gateway: {status}{found.detail}"
    yield from _section("lost", [(lost.route, lost.match, lost.place, lost.why) for lost in found.lost])
    for sent in found.sent:
        yield ""
        yield f"sent to {', '.join(sent.endpoints)}"
        yield from (f"  {line}" for line in sent.lines)
    yield from _section("settings", [(one.name, one.value, one.place) for one in found.settings])
    retries = [(one.after, "yes" if one.again else "no", one.why) for one in found.retries]
    yield from _section("tried again after", retries)


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        for line in columns(rows):
            yield f"  {line}"
