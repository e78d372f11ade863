"""What becomes of a request whose route says more than one upstream: redirect, respond, split,
fallback, mirror.

Rule: pure; chance is an argument, and so is what sends. Plain routes (`Route.plain`) never
come here.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from gateway.errors import BadRequest, NoEndpoint, NoRoute
from gateway.http import problem, upgrades
from gateway.http import target as targets
from gateway.http.messages import Request, Response
from gateway.http.request_head import Outbound, port_of
from gateway.http.target import Target
from gateway.model import Redirect, Respond, Rewrite, Route, Split
from gateway.routing import readings
from gateway.upstreams.snapshot import Group, Snapshot

_PORTS = {"http": 80, "https": 443}
# RFC 9110 §15.3.5, §15.3.6, §15.4.5.
_BODILESS = (204, 205, 304)


class Send(Protocol):
    """Forwarder.forward."""

    def __call__(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Response: ...


class Copy(Protocol):
    """mirror.Copies.copy: what gives it back is called when the request has ended."""

    def __call__(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Callable[[], None]: ...


class Shaper:
    """One per worker; keeps nothing of a request. `send` forwards, `copy` mirrors; `chance` gives
    a number from 0.0 up to, but not, 1.0."""

    __slots__ = ("_chance", "_copy", "_outbound", "_send")

    def __init__(self, outbound: Outbound, send: Send, copy: Copy, chance: Callable[[], float]) -> None:
        self._outbound = outbound
        self._send = send
        self._copy = copy
        self._chance = chance

    def answer(
        self,
        request: Request,
        route: Route,
        snapshot: Snapshot,
        target: Target,
        normal: bytes,
        host: bytes,
        asked_host: bytes,
    ) -> Response:
        """The answer to a request that `route` matches. `host`, `normal`: what was matched;
        `asked_host`: the authority as it came. Raises GatewayError."""
        passed: list[Route] = []
        while route.redirect is not None:
            to = location(route.redirect, route, target, normal, host, asked_host, self._outbound.scheme(request))
            if to is not None:
                return _redirected(route.redirect.status, to, request)
            passed.append(route)
            after = snapshot.router.after(passed, request.method, host, normal, target.query, request.fields)
            if after is None:
                raise NoRoute(f"route {route.name} leads to what was asked for, and no other route matches")
            request.route = route = after
        if passed:
            readings.check(snapshot.router, snapshot.config.server, request, route, passed, target, normal, host)
        if route.respond is not None:
            return respond(route.respond, request)
        chosen = route if route.split is None else self._share(route.split, request)
        chosen, group = standing_in(chosen, snapshot, request)
        request.upstream = group.upstream
        mirror = route.mirror
        if (
            mirror is None
            or not group.candidates
            or upgrades.protocol(request, chosen.upgrade) is not None
            or self._chance() >= mirror.percent
        ):
            return self._send(request, chosen, group, target, normal, asked_host)
        mirrored = snapshot.groups[mirror.route.upstream]
        ended = self._copy(request, mirror.route, mirrored, target, normal, asked_host)
        try:
            response = self._send(request, chosen, group, target, normal, asked_host)
        except BaseException:
            ended()
            raise
        _when_over(response, ended)
        return response

    def _share(self, split: Split, request: Request) -> Route:
        """The part of a split that a request belongs to."""
        total = sum(share.weight for share in split.shares)
        value = _value(split, request)
        if value:
            # The same in every worker, gateway and version: whoever is in stays in.
            point = int.from_bytes(blake2b(value, digest_size=8).digest()) * total >> 64
        else:
            point = int(self._chance() * total)
        for share in split.shares:
            point -= share.weight
            if point < 0:
                return share.route
        raise NoEndpoint("every upstream of the split has weight 0")


def _value(split: Split, request: Request) -> bytes:
    """What a split goes by; empty when the request does not have it."""
    if split.by == "header":
        wanted = split.name.encode("latin-1")
        return b", ".join(value for name, value in request.fields if name.lower() == wanted)
    return request.cookie(split.name.encode("latin-1")) if split.by == "cookie" else b""


def standing_in(route: Route, snapshot: Snapshot, request: Request) -> tuple[Route, Group]:
    """The route with its group or, where that has no endpoint, the first of its fallbacks that
    has one."""
    group = snapshot.groups[route.upstream]
    empty: list[Group] = []
    step: Route | None = route
    while step is not None:
        found = snapshot.groups[step.upstream]
        if found.candidates:
            if empty:
                told = ", ".join(one.upstream.name for one in empty)
                request.cause = f"no endpoint of {told}: {step.upstream} stands in"
                for one in empty:
                    one.state.decisions["fallback"] += 1
            return step, found
        empty.append(found)
        step = step.fallback
    return route, group


def _when_over(response: Response, ended: Callable[[], None]) -> None:
    """Call `ended` once the answer's body has ended."""
    rest = response.stream or response.tunnel
    if rest is None:
        ended()
        return
    before = rest.on_end

    def both() -> None:
        if before is not None:
            before()
        ended()

    rest.on_end = both


# -- answers of the gateway's own ------------------------------------------------------------


def location(
    redirect: Redirect, route: Route, target: Target, normal: bytes, host: bytes, asked_host: bytes, scheme: str
) -> bytes | None:
    """Where a redirect leads, absolute; None when that is what was asked for.

    Absolute, so that a path that begins with two slashes never names a host. A default port
    is left out. `scheme`: as the client sees it; `host`: in normal form.
    """
    asked_port = int(port_of(asked_host) or _PORTS[scheme])
    to_scheme = redirect.scheme or scheme
    to_host = redirect.host.encode() if redirect.host is not None else host
    if not to_host:
        raise BadRequest("a request without Host cannot be redirected")
    if redirect.port is not None:
        port = redirect.port
    elif redirect.scheme is None and redirect.host is None:
        port = asked_port
    else:
        port = _PORTS[to_scheme]
    path, query = target.path, target.query
    if redirect.path is not None or redirect.prefix is not None:
        rewrite = Rewrite(path=redirect.path, prefix=redirect.prefix)
        path, query = targets.rewritten(rewrite, route, target, normal)
    # The query is left out: one that a redirect adds would be added for ever.
    if (to_scheme, to_host, port, path) == (scheme, host, asked_port, target.path):
        return None
    authority = to_host if port == _PORTS[to_scheme] else b"%b:%d" % (to_host, port)
    return b"%b://%b%b%b" % (to_scheme.encode(), authority, path, b"" if query is None else b"?" + query)


def _redirected(status: int, to: bytes, request: Request) -> Response:
    bodyless = request.method == b"HEAD"
    return Response(status, _reason(status), [(b"Location", to)], content_length=0, bodyless=bodyless)


def respond(fixed: Respond, request: Request) -> Response:
    """The answer that a route says, word for word."""
    status, headers = fixed.status, list(fixed.headers)
    if status in _BODILESS:
        return Response(status, _reason(status), headers, content_length=0 if status == 205 else None, bodyless=True)
    bodyless = request.method == b"HEAD"
    data = b"" if bodyless else fixed.body
    return Response(
        status, _reason(status), headers, content_length=len(fixed.body), data=data, bodyless=bodyless
    )


def _reason(status: int) -> bytes:
    return problem.phrase(status).encode("ascii")
