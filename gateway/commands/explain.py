"""What would become of one request: who serves it, what is sent, and which line says so.

Rule: pure, and never a second gateway. The request is read by the worker's parser, goes
through the same functions in the order of `Gateway.handle`, and through the Shaper and the
Forwarder themselves, with a listener where the connection pool would be: what the listener
is given to send is what an upstream would get, and whether it is asked twice is whether a
request is tried again. Only *why* is worked out here: a condition of a match is asked of a
Router that knows no other condition.

What depends on the moment stands in angle brackets: the request id, an endpoint that a
registry knows, the gateway's name where the configuration gives none, the time that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

from gateway.commands.imagined_request import Answered, Asked, Question, asked, beaten, first_failure
from gateway.commands.wording import (
    chances,
    columns,
    text,
    told_balance,
    told_mirror,
    told_rewrite,
    told_share,
    told_source,
    told_value,
    told_values,
)
from gateway.config.origins import Origins
from gateway.config.schema_mistakes import Path
from gateway.errors import (
    ConnectRefused,
    GatewayError,
    NoRoute,
    ResponseTimeout,
    UpstreamReset,
    UpstreamStale,
)
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.route_actions import Shaper
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.http import upgrades
from gateway.http.messages import Request, Response
from gateway.http.request_head import MIRROR, Head, Outbound, with_field
from gateway.http.target import AmbiguousTarget, Target
from gateway.http.trusted_proxies import Trust
from gateway.model import Config, Endpoint, Match, Mirror, RetryPolicy, Route, StaticSource, Timeouts, Upstream
from gateway.routing.match_text import told_match
from gateway.routing.readings import served
from gateway.routing.router import Router
from gateway.server.parser import HeadParser
from gateway.upstreams.snapshot import Group, Snapshot
from gateway.upstreams.state import UpstreamState

NEW_ID = b"<new id>"
OWN_NAME = b"<gateway>"
TIME_LEFT = b"<milliseconds>"
LENGTH = b"<length>"


# -- the answer -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lost:
    """A match that does not serve the request, and why."""

    route: str
    match: str
    place: str
    why: str


@dataclass(frozen=True, slots=True)
class PathReading:
    """A reading of an ambiguous path (gateway.routing.readings). `how`: what a server would do to read it so;
    `path`: what it is then; `route`: the route that it would have; `same`: whether that is the route
    of the path as it came."""

    how: str
    path: str
    route: str
    same: bool


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
class Way:
    """An upstream that gets the request under some condition, `when`. `kind`: share (of a split),
    fallback or mirror. Without `sent` it gets nothing."""

    kind: str
    upstream: str
    source: str
    when: str
    sent: tuple[Sent, ...] = ()
    settings: tuple[Setting, ...] = ()
    retries: tuple[Retry, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """`status` and `reason` say what the gateway itself answers; both are empty for what an
    upstream gets, and `status` is None for the gateway's own paths. `answer`: the head of what
    a route says itself. `upstream`, and what follows from it, is empty for a split."""

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
    ways: tuple[Way, ...] = ()
    answer: tuple[str, ...] = ()
    readings: tuple[PathReading, ...] = ()


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
        found.resolve(seen)
        router = Router(config.routes)
        first = seen.served_by(router)
        if first is not None and isinstance(seen.target, AmbiguousTarget):
            told = replace(told, readings=tuple(found.readings(router, first, seen)))
            refusal = seen.ambiguity(router, first, config.server)
            if refusal is not None:
                raise refusal
        route, answer = found.served(router, first, seen)
        told = replace(told, **found.order(router, route, seen))
        if first is None:
            raise NoRoute("no route matches")
        if route is None:
            raise NoRoute("redirects lead to what was asked for, and no other route matches")
        if answer is not None:
            kind = "redirect" if route.redirect is not None else f"respond, {answer.content_length or 0} bytes"
            return replace(told, status=answer.status, detail=kind, answer=tuple(_head(answer)))
        told = replace(told, ways=tuple(found.ways(route, seen)))
        if route.split is not None:
            if not any(way.sent for way in told.ways if way.kind != "mirror"):
                raise found.absence(route.split.shares[0].route)
            return replace(told, forwarded=True)
        sent = tuple(found.sent(route, seen))
        told = replace(told, settings=tuple(found.settings(route)))
        if not sent:
            absence = found.absence(route)
            if not any(way.sent for way in told.ways if way.kind == "fallback"):
                raise absence
            return replace(told, forwarded=True, detail=absence.cause)
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
            # As the worker's, which can make a tunnel of an HTTP/1.1 request.
            interim=(lambda status, headers: None) if parser.http11 else None,
            upgrade=parser.upgrade,
            host=parser.host,
        )
        self._outbound.identify(request)
        return request

    def resolve(self, seen: Asked) -> None:
        """Show routes the request's fields as they will be forwarded."""
        self._outbound.replaced = self._config.deadline_headers()
        seen.request.fields = self._outbound.view(seen.request, seen.authority)

    # -- who serves it ------------------------------------------------------------------

    def served(self, router: Router, route: Route | None, seen: Asked) -> tuple[Route | None, Response | None]:
        """The route that is left when redirects to what was asked for are passed, and what it
        answers itself, if it does. Raises GatewayError."""
        if route is None or (route.redirect is None and route.respond is None):
            return route, None
        request = self.request()
        request.route = route
        sends = _Recorder()
        try:
            answer = self._shaped(sends, request, router, seen)
        except NoRoute:
            return None, None
        return request.route, None if sends.routes else answer

    def _shaped(self, sends: _Recorder, request: Request, router: Router, seen: Asked) -> Response:
        route = request.route
        assert route is not None
        shaper = Shaper(self._outbound, sends, sends.copy, sends.chance)
        snapshot = Snapshot("", self._config, _Groups(self._config, self._group), router)
        return shaper.answer(request, route, snapshot, seen.target, seen.path, seen.host, seen.authority)

    def readings(self, router: Router, route: Route, seen: Asked) -> Iterator[PathReading]:
        """The readings of an ambiguous path, as it came first, and the route that each would have."""
        yield PathReading("as it came", text(seen.path), route.name, True)
        for one in served(router, seen.request, (), seen.target, seen.path, seen.host):
            path = "(refused: a .. segment)" if one.reading.path is None else text(one.reading.path)
            name = "(no route)" if one.route is None else one.route.name
            yield PathReading(one.reading.how, path, name, one.route is route)

    def _group(self, name: str) -> Group:
        upstream = self._config.upstreams[name]
        endpoints = tuple(endpoint for endpoint in _endpoints(upstream) if endpoint.weight > 0)
        candidates = tuple(Candidate(endpoint, EndpointState(), None) for endpoint in endpoints)
        return Group(upstream, endpoints, "", candidates, _state(upstream))

    def absence(self, route: Route) -> GatewayError:
        """Why a route has no endpoint to go to."""
        return self._group(route.upstream).absence()

    def order(self, router: Router, winner: Route | None, seen: Asked) -> dict[str, Any]:
        """The match that won, and the others in their order."""
        won: tuple[Route, Match] | None = None
        lost: list[Lost] = []
        for route, match in router.ordered():
            why = first_failure(match, seen)
            if not why:
                if won is None and route is winner:
                    won = route, match
                    continue
                if won is None:
                    assert route.redirect is not None, "the order of matches is not the router's"
                    why = "matches, but its redirect leads to what was asked for"
                else:
                    why = f"matches too, but {beaten(won, (route, match))}"
            if route is not winner:
                lost.append(Lost(route.name, told_match(match), self._origins.place(("routes", route.index)), why))
        if won is None:
            return {"lost": tuple(lost)}
        route, match = won
        return {
            "route": route.name,
            "place": self._origins.place(("routes", route.index)),
            "match": told_match(match),
            "upstream": route.upstream,
            "source": told_source(self._config.upstreams[route.upstream].source) if route.upstream else "",
            "lost": tuple(lost),
        }

    # -- what is sent -------------------------------------------------------------------

    def sent(self, route: Route, seen: Asked, copy: bool = False) -> Iterator[Sent]:
        """What each endpoint would get; those that get the same together. Raises GatewayError."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for endpoint in self._group(route.upstream).endpoints:
            listener = _Listener()
            self._forward(route, seen, endpoint, listener)
            head = listener.heads[0]
            if copy:
                head = with_field(head, MIRROR, route.name.encode())
                if seen.request.chunked:
                    # It is sent when all of it is there.
                    head = with_field(with_field(head, b"Transfer-Encoding", None), b"Content-Length", LENGTH)
            lines = head.data.decode("latin-1").split("\r\n")[:-2]
            groups.setdefault(tuple(lines), []).append(f"{endpoint.scheme}://{endpoint.address}")
        for told, addresses in groups.items():
            yield Sent(tuple(addresses), told)

    def _forward(self, route: Route, seen: Asked, endpoint: Endpoint, listener: _Listener) -> None:
        if route.deadline_header is not None:
            # No time passes here that could be left.
            listener.deadline = route.deadline_header.encode("latin-1")
            limits = replace(route.timeouts, response=route.timeouts.response or route.timeouts.total, total=None)
            route = replace(route, timeouts=limits)
        upstream = self._config.upstreams[route.upstream]
        candidate = Candidate(endpoint, EndpointState(), listener)
        group = Group(upstream, (endpoint,), "", (candidate,), _state(upstream))
        forwarder = Forwarder(self._outbound, _one_try, sleep=lambda seconds: None)
        request = self.request()
        request.route, request.upstream = route, upstream
        forwarder.forward(request, route, group, seen.target, seen.path, seen.authority)

    # -- shares, fallbacks, mirrors -----------------------------------------------------

    def ways(self, route: Route, seen: Asked) -> Iterator[Way]:
        """Upstreams that get the request under some condition."""
        if route.split is None:
            yield from self._fallbacks(route, seen)
        else:
            yield from self._shares(route, seen)
        if route.mirror is not None:
            yield self._mirrored(route, route.mirror, seen)

    def _mirrored(self, route: Route, mirror: Mirror, seen: Asked) -> Way:
        upstream = self._config.upstreams[mirror.route.upstream]
        why = _why_no_copy(route, mirror, seen.request)
        way = Way("mirror", upstream.name, told_source(upstream.source), why or f"{told_share(mirror.percent)} of them")
        if why:
            return way
        # It is sent once, and nowhere else.
        said = ("routes", route.index, "mirror")
        settings = (one for one in self.settings(mirror.route, said) if one.name not in _NOT_OF_COPIES)
        return replace(way, sent=tuple(self.sent(mirror.route, seen, copy=True)), settings=tuple(settings))

    def _shares(self, route: Route, seen: Asked) -> Iterator[Way]:
        assert route.split is not None
        chosen = self._chosen(route, seen)
        for share, chance in zip(route.split.shares, chances(route.split), strict=True):
            if not chosen:
                told, mine = told_share(chance), chance > 0
            else:
                mine = share.route.upstream == chosen
                told = f"by its {route.split.by} {route.split.name}" if mine else "not this request"
            yield self._way("share", share.route, told, seen, ("routes", route.index, "split"), mine)
            if mine:
                yield from self._fallbacks(share.route, seen)

    def _chosen(self, route: Route, seen: Asked) -> str:
        """The upstream that a request belongs to by what it says; empty where chance decides."""
        request, sends = self.request(), _Recorder()
        request.route = replace(route, mirror=None)
        self._shaped(sends, request, Router(()), seen)
        return "" if sends.by_chance else sends.routes[0].upstream

    def _fallbacks(self, route: Route, seen: Asked) -> Iterator[Way]:
        before = route
        while before.fallback is not None:
            said = ("upstreams", before.upstream, "fallback")
            yield self._way("fallback", before.fallback, f"when {before.upstream} has no endpoint", seen, said)
            before = before.fallback

    def _way(self, kind: str, route: Route, when: str, seen: Asked, said: Path, mine: bool = True) -> Way:
        way = Way(kind, route.upstream, told_source(self._config.upstreams[route.upstream].source), when)
        if not mine:
            return way
        sent = tuple(self.sent(route, seen))
        retries = tuple(self.retries(route, seen)) if sent else ()
        return replace(way, sent=sent, settings=tuple(self.settings(route, said)), retries=retries)

    # -- whether it is tried again ------------------------------------------------------

    def retries(self, route: Route, seen: Asked) -> Iterator[Retry]:
        endpoint = self._group(route.upstream).endpoints[0]
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

    def settings(self, route: Route, said: Path | None = None) -> Iterator[Setting]:
        """What holds for requests of a route, each with the nearest line that says so. `said`:
        where its upstream is named, unless that is by the route itself."""
        upstream = self._config.upstreams[route.upstream]
        at: Path = ("routes", route.index)
        levels = (at, ("upstreams", upstream.name), ("defaults",))

        def setting(name: str, value: str) -> Setting:
            keys = tuple(name.split("."))
            return Setting(name, value, self._origins.nearest((*level, *keys) for level in levels) or "built-in")

        yield Setting("upstream", upstream.name, self._origins.place(said or (*at, "upstream")))
        source = told_source(upstream.source)
        yield Setting(f"upstreams.{upstream.name}", source, self._origins.place(("upstreams", upstream.name)))
        if route.strip_prefix:
            yield setting("strip_prefix", "true")
        if route.rewrite is not None:
            yield setting("rewrite", told_rewrite(route))
        if route.mirror is not None:
            yield setting("mirror", told_mirror(route.mirror))
        if route.ambiguous_paths is not None:
            yield setting("ambiguous_paths", route.ambiguous_paths)
        yield setting("host", route.host)
        sections: tuple[tuple[str, Any], ...] = (
            ("timeouts", route.timeouts),
            ("retry", route.retry),
            ("pool", upstream.pool),
            ("buffer", upstream.buffer),
            ("concurrency", upstream.concurrency),
            ("eject", upstream.eject),
            ("health", upstream.health),
            ("breaker", upstream.breaker),
        )
        for section, values in sections:
            if values is None:
                yield setting(section, "off")
                continue
            for key, value in told_values(values):
                yield setting(f"{section}.{key}", value)
        yield setting("upgrade", told_value("upgrade", route.upgrade))
        yield setting("balance", told_balance(upstream.balance))
        yield setting("slow_start", told_value("slow_start", upstream.slow_start))
        yield setting("deadline_header", told_value("deadline_header", route.deadline_header))
        if upstream.fallback is not None:
            yield setting("fallback", upstream.fallback)


class _Groups(dict[str, Group]):
    """The groups of a configuration, each made when it is asked for."""

    def __init__(self, config: Config, make: Callable[[str], Group]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Group:
        made = self[name] = self._make(name)
        return made


class _Recorder:
    """In the place of the Forwarder and of copies: keeps where a request would be sent."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.by_chance = False

    def __call__(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Response:
        self.routes.append(route)
        return Response(200, b"", [])

    def copy(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Callable[[], None]:
        return lambda: None

    def chance(self) -> float:
        self.by_chance = True
        return 0.0


class _Body:
    """The body of a request that is not sent: nobody reads it here."""

    complete = False

    def __init__(self, expects_continue: bool) -> None:
        self.expects_continue = expects_continue

    def read(self, most: int = 0) -> bytes:
        return b""


class _Listener:
    """In the place of a connection pool: keeps the heads that it is given to send. The first
    try ends as it is told: by an error, or by an answer with a status."""

    def __init__(self, first: int | GatewayError = 200) -> None:
        self.heads: list[Head] = []
        # The header that tells how much time is left, if one does.
        self.deadline = b""
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
        if self.deadline and b"\r\n%b: " % self.deadline in head.data:
            head = with_field(head, self.deadline, TIME_LEFT)
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

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        """There is nothing to work out."""

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


# What does not hold for copies.
_NOT_OF_COPIES = {f"retry.{field.name}" for field in fields(RetryPolicy) if field.name != "buffer"} | {"fallback"}


def _why_no_copy(route: Route, mirror: Mirror, request: Request) -> str:
    """Why a request is not copied (gateway.forwarding.route_actions, gateway.forwarding.mirror)."""
    heads = (route,) if route.split is None else tuple(share.route for share in route.split.shares)
    if all(upgrades.protocol(request, head.upgrade) is not None for head in heads):
        return "no copy: it is an upgrade"
    if (request.content_length or 0) > mirror.route.retry.buffer:
        return f"no copy: the body of {request.content_length} bytes does not fit its retry.buffer"
    return "" if mirror.percent else "no copy: percent is 0"


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
    if found.upstream:
        yield f"upstream   {found.upstream}  ({found.source})"
    yield from (f"{way.kind:<10} {way.upstream}  ({way.source})  {way.when}" for way in found.ways)
    if not found.forwarded:
        status = "" if found.status is None else f"{found.status} {found.reason}".rstrip() + ": "
        yield f"answered by the gateway: {status}{found.detail}"
    elif found.detail:
        yield f"now: {found.detail}"
    yield from (f"  {line}" for line in found.answer)
    rows = [(one.how, one.path, one.route, "the same" if one.same else "another") for one in found.readings]
    yield from _section("readings of the path", rows)
    yield from _section("lost", [(lost.route, lost.match, lost.place, lost.why) for lost in found.lost])
    yield from _told_sent(found.sent, "sent to", "")
    for way in found.ways:
        verb = "copied to" if way.kind == "mirror" else "sent to"
        yield from _told_sent(way.sent, verb, f" ({way.upstream}, {way.when})")
    # What is the same for several upstreams is told once.
    settings, retries = list(found.settings), list(found.retries)
    yield from _told_settings("settings", settings)
    yield from _told_retries("tried again after", retries)
    for way in found.ways:
        first = not settings
        yield from _told_settings(
            "settings" if first else f"settings of {way.upstream}, where they differ",
            [one for one in way.settings if one not in settings],
        )
        yield from _told_retries(
            "tried again after" if first else f"tried again after, by {way.upstream}",
            [one for one in way.retries if one not in retries],
        )
        if first:
            settings, retries = list(way.settings), list(way.retries)


def _head(answer: Response) -> Iterator[str]:
    """The head of an answer, without what a door adds."""
    yield f"HTTP/1.1 {answer.status} {text(answer.reason)}"
    yield from (f"{text(name)}: {text(value)}" for name, value in answer.headers)


def _told_sent(sent: Sequence[Sent], verb: str, whose: str) -> Iterator[str]:
    for one in sent:
        yield ""
        yield f"{verb} {', '.join(one.endpoints)}{whose}"
        yield from (f"  {line}" for line in one.lines)


def _told_settings(title: str, settings: Sequence[Setting]) -> Iterator[str]:
    yield from _section(title, [(one.name, one.value, one.place) for one in settings])


def _told_retries(title: str, retries: Sequence[Retry]) -> Iterator[str]:
    yield from _section(title, [(one.after, "yes" if one.again else "no", one.why) for one in retries])


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        for line in columns(rows):
            yield f"  {line}"
