"""What becomes of requests whose route says more than an upstream; nothing is sent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from gateway.balancers import RoundRobin
from gateway.errors import BadRequest, ConnectRefused, DnsError, NoEndpoint, NoRoute
from gateway.forwarding.route_actions import Shaper, location
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.http import target as targets
from gateway.http.messages import Headers, Request, Response
from gateway.http.request_head import Outbound
from gateway.http.trusted_proxies import Trust
from gateway.model import (
    Config,
    Endpoint,
    Match,
    Mirror,
    Redirect,
    Respond,
    Route,
    ServerSettings,
    Share,
    Split,
    StaticSource,
    Upstream,
)
from gateway.routing.router import Router
from gateway.upstreams.snapshot import Group, Snapshot
from gateway.upstreams.state import UpstreamState


class Rest:
    """What is still to come of an answer."""

    def __init__(self) -> None:
        self.most = 0
        self.on_end: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] | None = None
        self.buffering = None
        self.sent = True
        self.ended = 0

    def read(self) -> bytes:
        return b""

    def close(self) -> None:
        assert self.on_end is not None
        self.on_end()


class World:
    """Routes, upstreams (name: has it an endpoint), and what was sent and copied where."""

    def __init__(self, *routes: Route, chance: Sequence[float] = (), error: str = "", **upstreams: bool) -> None:
        self.sent: list[tuple[str, str]] = []
        self.copied: list[tuple[str, str]] = []
        self.ended = 0
        self.fails: Exception | None = None
        self.rest: Any = None
        groups = {name: _group(name, has, error) for name, has in upstreams.items()}
        self.snapshot = Snapshot("v", Config("v", {}, routes), groups, Router(routes))
        numbers = iter(chance)
        outbound = Outbound(ServerSettings(), b"gw", Trust(("10.0.0.0/8",)), lambda: b"id")
        self.shaper = Shaper(outbound, self._send, self._copy, lambda: next(numbers))

    def _send(
        self, request: Request, route: Route, group: Group, target: Any, normal: bytes, asked_host: bytes
    ) -> Response:
        self.sent.append((route.name, group.upstream.name))
        if not group.candidates:
            raise group.absence()
        if self.fails is not None:
            raise self.fails
        return Response(200, b"OK", [], stream=self.rest)

    def _copy(
        self, request: Request, route: Route, group: Group, target: Any, normal: bytes, asked_host: bytes
    ) -> Callable[[], None]:
        assert self.sent == [], "copied before it is sent: its body is read meanwhile"
        self.copied.append((route.name, group.upstream.name))
        return self._end

    def _end(self) -> None:
        self.ended += 1

    def ask(
        self, target: bytes = b"/", host: bytes = b"example.test", method: bytes = b"GET", headers: Headers | None = None,
        peer: str = "192.0.2.1", scheme: str = "http", upgrade: bytes | None = None,
    ) -> Response:  # fmt: skip
        self.request = Request(
            method, target, headers or [], 0.0, peer, scheme, host=host, upgrade=upgrade, http11=bool(host)
        )
        asked, path = targets.read(target)
        known = targets.host(host) if host else b""
        route = self.snapshot.router.match(method, known, path, asked.query, self.request.headers)
        assert route is not None
        self.request.route = route
        return self.shaper.answer(self.request, route, self.snapshot, asked, path, known, host)


def _group(name: str, has_endpoint: bool, error: str = "") -> Group:
    endpoints = (Endpoint("http", "127.0.0.1", 1),) if has_endpoint else ()
    upstream = Upstream(name, StaticSource(endpoints))
    state = UpstreamState(upstream, RoundRobin(lambda: 0.0), Budget(lambda: 0.0))
    return Group(upstream, endpoints, error, tuple(Candidate(one, EndpointState(), "pool") for one in endpoints), state)


def whither(redirect: Redirect, target: bytes = b"/x", host: bytes = b"example.test", scheme: str = "http") -> str:
    """The Location; "" when the redirect leads to what was asked for."""
    route = Route("r", matches=(Match(prefix="/x"),), redirect=redirect)
    asked, path = targets.read(target)
    found = location(redirect, route, asked, path, targets.host(host), host, scheme)
    return "" if found is None else found.decode()


# -- which routes are plain ------------------------------------------------------------------


def test_plain_is_what_has_an_upstream_and_no_more() -> None:
    plain = Route("r", "u", strip_prefix=True)
    assert plain.plain
    for shaped in (
        replace(plain, upstream="", redirect=Redirect()),
        replace(plain, upstream="", respond=Respond()),
        replace(plain, upstream="", split=Split((Share(plain, 1),))),
        replace(plain, mirror=Mirror(plain)),
        replace(plain, fallback=plain),
    ):
        assert not shaped.plain
        assert replace(shaped, upstream="u", redirect=None, respond=None, split=None, mirror=None, fallback=None).plain
    assert "plain" not in repr(plain)
    assert not next(one for one in fields(Route) if one.name == "plain").compare
    with pytest.raises(FrozenInstanceError):
        plain.plain = False  # type: ignore[misc]


# -- redirect --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "asked", "expected"),
    [
        # what is not set stays, and the query always does
        (Redirect(path=b"/new"), "http://example.test/x", "http://example.test/new"),
        (Redirect(path=b"/new"), "http://example.test/x/y?a=%2f&b", "http://example.test/new?a=%2f&b"),
        (Redirect(path=b"/new"), "http://example.test/x?", "http://example.test/new?"),
        (Redirect(path=b"/new?a=1"), "http://example.test/x?b=2", "http://example.test/new?a=1&b=2"),
        (Redirect(prefix=b"/new"), "http://example.test/x/%C3%A9//z", "http://example.test/new/%C3%A9//z"),
        (Redirect(prefix=b"/"), "http://example.test/x/z", "http://example.test/z"),
        (Redirect(host="other.test"), "http://example.test/x/z", "http://other.test/x/z"),
        (Redirect(host="[::1]"), "http://example.test/x", "http://[::1]/x"),
        # ports
        (Redirect(path=b"/new"), "http://example.test:8080/x", "http://example.test:8080/new"),
        (Redirect(path=b"/new"), "http://[2001:db8::1]:8080/x", "http://[2001:db8::1]:8080/new"),
        (Redirect(path=b"/new"), "http://example.test:80/x", "http://example.test/new"),
        (Redirect(path=b"/new"), "https://example.test:443/x", "https://example.test/new"),
        (Redirect(path=b"/new"), "https://example.test:80/x", "https://example.test:80/new"),
        (Redirect(scheme="https"), "http://example.test:8080/x", "https://example.test/x"),
        (Redirect(scheme="https", port=443), "http://example.test:8080/x", "https://example.test/x"),
        (Redirect(scheme="https", port=8443), "http://example.test/x", "https://example.test:8443/x"),
        (Redirect(scheme="http"), "https://example.test/x", "http://example.test/x"),
        (Redirect(scheme="http", port=80), "https://example.test:8443/x", "http://example.test/x"),
        (Redirect(port=80), "http://example.test:8080/x", "http://example.test/x"),
        (Redirect(port=8081), "http://example.test:8080/x", "http://example.test:8081/x"),
        (Redirect(host="other.test"), "http://example.test:8080/x", "http://other.test/x"),
        (Redirect(host="other.test", port=8080), "http://example.test:8080/x", "http://other.test:8080/x"),
        # a host is one however it is spelt
        (Redirect(path=b"/new"), "http://Example.TEST./x", "http://example.test/new"),
        # to itself
        (Redirect(scheme="https"), "https://example.test/x?a=1", ""),
        (Redirect(scheme="https"), "https://Example.test.:443/x", ""),
        (Redirect(scheme="https", port=8443), "https://example.test:8443/x", ""),
        (Redirect(host="example.test"), "http://example.test/x", ""),
        (Redirect(path=b"/x"), "http://example.test:8080/x", ""),
        (Redirect(path=b"/x?a=1"), "http://example.test/x?a=1", ""),
        (Redirect(prefix=b"/x"), "http://example.test/x/y", ""),
        (Redirect(path=b"/x"), "http://example.test/%78", "http://example.test/x"),
    ],
)  # fmt: skip
def test_where_a_redirect_leads(redirect: Redirect, asked: str, expected: str) -> None:
    scheme, _, rest = asked.partition("://")
    host, slash, path = rest.partition("/")
    assert whither(redirect, (slash + path).encode(), host.encode(), scheme) == expected


@pytest.mark.parametrize(
    "target", [b"/x/%0d%0aSet-Cookie:%20a=b", b"/x/%0A%0D", b"/x?a=%0d%0ab", b"/x//evil.test/", b"/x/\\evil.test"]
)
@pytest.mark.parametrize("redirect", [Redirect(host="other.test"), Redirect(prefix=b"/")])
def test_a_path_stays_a_path(target: bytes, redirect: Redirect) -> None:
    """What was encoded stays so, and no path becomes a host."""
    to = whither(redirect, target)
    assert "\r" not in to
    assert "\n" not in to
    assert to.startswith(("http://other.test/x", "http://example.test/"))
    assert to.endswith(target[len("/x") :].decode())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_a_redirect_is_a_head_and_no_more(status: int, method: bytes) -> None:
    world = World(Route("old", redirect=Redirect(status, path=b"/new")))
    response = world.ask(b"/old", method=method)
    assert response.status == status
    assert response.headers == [(b"Location", b"http://example.test/new")]
    assert (response.content_length, response.data, response.bodyless) == (0, b"", method == b"HEAD")
    assert world.sent == []


@pytest.mark.parametrize(
    ("peer", "forwarded", "scheme", "expected"),
    [
        ("192.0.2.1", b"https", "http", b"http://example.test/new"),
        ("10.0.0.1", b"https", "http", b"https://example.test/new"),
        ("10.0.0.1", b"HTTPS, http", "http", b"https://example.test/new"),
        ("10.0.0.1", b"http", "https", b"http://example.test/new"),
        ("10.0.0.1", b"wss", "https", b"https://example.test/new"),
        ("10.0.0.1", b"javascript", "http", b"http://example.test/new"),
        ("10.0.0.1", b"", "http", b"http://example.test/new"),
    ],
)
def test_the_scheme_is_the_clients(peer: str, forwarded: bytes, scheme: str, expected: bytes) -> None:
    """Only a trusted peer is believed that it was another."""
    world = World(Route("old", redirect=Redirect(path=b"/new")))
    response = world.ask(b"/old", headers=[(b"X-Forwarded-Proto", forwarded)], peer=peer, scheme=scheme)
    assert response.headers == [(b"Location", expected)]


TO_HTTPS = Route("to-https", matches=(Match(prefix="/"),), priority=9, redirect=Redirect(301, scheme="https"), index=0)
SITE = Route("site", "u", (Match(prefix="/"),), index=1)


def test_a_redirect_to_itself_leaves_the_request_to_the_next_route() -> None:
    """Http to https for everything, and what is https already is served."""
    world = World(TO_HTTPS, SITE, u=True)
    assert world.ask(b"/a").status == 301
    assert world.ask(b"/a", scheme="https").status == 200
    assert world.sent == [("site", "u")]
    assert world.request.route is SITE
    assert world.request.upstream is world.snapshot.groups["u"].upstream


def test_several_redirects_to_itself_are_passed() -> None:
    www = Route("www", matches=(Match(prefix="/"),), priority=5, redirect=Redirect(host="example.test"))
    world = World(TO_HTTPS, www, SITE, u=True)
    assert world.ask(scheme="https").status == 200
    assert world.ask(scheme="https", host=b"www.example.test").headers == [(b"Location", b"https://example.test/")]


def test_a_redirect_to_itself_without_another_route_is_no_route() -> None:
    other = Route("other", "u", (Match(prefix="/elsewhere"),))
    world = World(TO_HTTPS, other, u=True)
    with pytest.raises(NoRoute) as caught:
        world.ask(b"/a", scheme="https")
    assert "to-https" in caught.value.cause


def test_no_host_no_redirect() -> None:
    """HTTP/1.0: where would it lead?"""
    with pytest.raises(BadRequest):
        World(Route("old", redirect=Redirect(path=b"/new"))).ask(b"/old", host=b"")


# -- respond ---------------------------------------------------------------------------------


def test_a_fixed_answer() -> None:
    fixed = Respond(418, b"short and stout", ((b"Content-Type", b"text/plain"), (b"X-A", b"1"), (b"X-A", b"2")))
    world = World(Route("tea", respond=fixed))
    response = world.ask(b"/tea")
    assert (response.status, response.data, response.content_length) == (418, b"short and stout", 15)
    assert tuple(response.headers) == fixed.headers
    assert response.bodyless is False
    response.headers.append((b"Date", b"now"))
    assert (b"Date", b"now") not in world.ask(b"/tea").headers


def test_a_fixed_answer_to_head_tells_the_length_only() -> None:
    response = World(Route("tea", respond=Respond(body=b"tea"))).ask(method=b"HEAD")
    assert (response.data, response.content_length, response.bodyless) == (b"", 3, True)


@pytest.mark.parametrize(("status", "length"), [(204, None), (205, 0), (304, None)])
def test_statuses_without_a_body(status: int, length: int | None) -> None:
    response = World(Route("none", respond=Respond(status, b"never sent"))).ask()
    assert (response.data, response.content_length, response.bodyless) == (b"", length, True)


# -- split -----------------------------------------------------------------------------------


def split(*weights: int, by: str = "", name: str = "") -> Route:
    """A route to upstreams a, b, … with these weights."""
    shares = tuple(Share(Route("s", upstream), weight) for upstream, weight in zip("abcd", weights, strict=False))
    return Route("s", split=Split(shares, by, name))


def counted(world: World) -> Counter[str]:
    return Counter(upstream for _, upstream in world.sent)


def test_shares_by_weight() -> None:
    """4,000 requests, 90 to 10: within four standard deviations (19) of 400."""
    seeded = random.Random(5)
    world = World(split(90, 10), a=True, b=True, chance=[seeded.random() for _ in range(4000)])
    for _ in range(4000):
        world.ask()
    assert abs(counted(world)["b"] - 400) < 4 * 19
    assert counted(world).total() == 4000


@pytest.mark.parametrize("chance", [0.0, 0.4999, 0.5, 0.9999999999999999])
def test_weight_0_gets_nothing(chance: float) -> None:
    world = World(split(0, 1, 0, 1), a=True, b=True, c=True, d=True, chance=[chance])
    world.ask()
    assert world.sent == [("s", "b" if chance < 0.5 else "d")]


def test_all_weights_0() -> None:
    with pytest.raises(NoEndpoint):
        World(split(0, 0), a=True, b=True, chance=[0.3]).ask()


@pytest.mark.parametrize("kind", ["header", "cookie"])
def test_the_same_value_goes_to_the_same_upstream(kind: str) -> None:
    def asked(world: World, value: bytes) -> str:
        field = (b"X-User", value) if kind == "header" else (b"cookie", b"a=b; user=%b; c=d" % value)
        world.ask(headers=[(b"X-Other", value), field])
        return world.sent[-1][1]

    name = "x-user" if kind == "header" else "user"
    before = World(split(95, 5, by=kind, name=name), a=True, b=True)
    later = World(split(90, 10, by=kind, name=name), a=True, b=True)
    values = [b"user-%d" % number for number in range(2000)]
    first = {value: asked(before, value) for value in values}
    assert {value: asked(before, value) for value in values} == first
    assert 60 < Counter(first.values())["b"] < 140
    # Whoever is in a canary stays in it when it grows.
    second = {value: asked(later, value) for value in values}
    assert 140 < Counter(second.values())["b"] < 260
    assert all(second[value] == "b" for value in values if first[value] == "b")


def test_what_a_value_is_does_not_change_from_one_process_to_the_next() -> None:
    world = World(split(1, 1, 1, 1, by="header", name="x-user"), a=True, b=True, c=True, d=True)
    for number in range(8):
        world.ask(headers=[(b"X-USER", b"%d" % number)])
    assert "".join(upstream for _, upstream in world.sent) == "cdacbcad"


@pytest.mark.parametrize("headers", [[], [(b"Cookie", b"user=; other=1")], [(b"Cookie", b"user")], [(b"X-User", b"1")]])
def test_without_a_value_it_is_chance(headers: Headers) -> None:
    world = World(split(1, 1, by="cookie", name="user"), a=True, b=True, chance=[0.1, 0.9])
    world.ask(headers=headers)
    world.ask(headers=headers)
    assert counted(world) == {"a": 1, "b": 1}


# -- fallback --------------------------------------------------------------------------------


THREE = Route("r", "a", fallback=Route("r", "b", fallback=Route("r", "c")))


def test_the_first_of_the_fallbacks_with_an_endpoint_stands_in() -> None:
    """With a fallback: the upstreams that had none count it, and the log tells."""
    world = World(THREE, a=False, b=False, c=True)
    assert world.ask().status == 200
    assert world.sent == [("r", "c")]
    assert world.request.upstream is world.snapshot.groups["c"].upstream
    assert world.request.cause == "no endpoint of a, b: c stands in"
    assert [world.snapshot.groups[name].state.decisions["fallback"] for name in "abc"] == [1, 1, 0]


def test_who_has_an_endpoint_needs_no_fallback() -> None:
    world = World(THREE, a=True, b=True, c=True)
    world.ask()
    assert world.sent == [("r", "a")]
    assert world.request.cause == ""
    assert not world.snapshot.groups["a"].state.decisions


@pytest.mark.parametrize(("error", "expected"), [("", NoEndpoint), ("timed out", DnsError)])
def test_when_nobody_has_one_the_error_is_the_first_upstreams(error: str, expected: type[Exception]) -> None:
    """Without a fallback."""
    world = World(THREE, a=False, b=False, c=False, error=error)
    with pytest.raises(expected, match="upstream a"):
        world.ask()
    assert world.request.upstream is world.snapshot.groups["a"].upstream
    assert not any(group.state.decisions for group in world.snapshot.groups.values())


def test_a_part_of_a_split_has_its_own_fallback() -> None:
    route = Route("s", split=Split((Share(Route("s", "a", fallback=Route("s", "b")), 1), Share(Route("s", "c"), 1))))
    world = World(route, a=False, b=True, c=True, chance=[0.1, 0.9])
    world.ask()
    world.ask()
    assert world.sent == [("s", "b"), ("s", "c")]


# -- mirror ----------------------------------------------------------------------------------


def mirrored(percent: float = 1.0, upstream: str = "a") -> Route:
    return Route("m", upstream, mirror=Mirror(Route("m", "copy"), percent), fallback=Route("m", "b"))


def test_a_request_is_copied_and_its_end_is_told() -> None:
    world = World(mirrored(), a=True, b=True, copy=True, chance=[0.99])
    assert world.ask().status == 200
    assert (world.copied, world.sent, world.ended) == ([("m", "copy")], [("m", "a")], 1)


def test_the_end_is_that_of_the_answers_body() -> None:
    world = World(mirrored(), a=True, b=True, copy=True, chance=[0.99])
    rest = world.rest = Rest()
    counted: list[str] = []
    rest.on_end = lambda: counted.append("the forwarder's")
    world.ask()
    assert world.ended == 0
    rest.close()
    assert (world.ended, counted) == (1, ["the forwarder's"])


def test_a_request_that_fails_has_ended() -> None:
    world = World(mirrored(), a=True, b=True, copy=True, chance=[0.99])
    world.fails = ConnectRefused("dial")
    with pytest.raises(ConnectRefused):
        world.ask()
    assert world.ended == 1


def test_so_many_of_a_hundred_are_copied() -> None:
    seeded = random.Random(7)
    world = World(mirrored(0.1), a=True, b=True, copy=True, chance=[seeded.random() for _ in range(2000)])
    for _ in range(2000):
        world.sent.clear()
        world.ask()
    assert 150 < len(world.copied) < 250


def test_none_of_a_hundred() -> None:
    world = World(mirrored(0.0), a=True, b=True, copy=True, chance=[0.0])
    world.ask()
    assert world.copied == []


def test_an_upgrade_is_not_copied() -> None:
    world = World(mirrored(), a=True, b=True, copy=True, chance=[0.5, 0.5])
    world.ask(upgrade=b"websocket")
    assert world.copied == []
    world.sent.clear()
    # It goes on as any other request.
    world.ask(upgrade=b"h2c")
    assert world.copied == [("m", "copy")]


def test_what_nobody_gets_is_not_copied() -> None:
    world = World(mirrored(), a=False, b=False, copy=True, chance=[0.5])
    with pytest.raises(NoEndpoint):
        world.ask()
    assert world.copied == []


def test_a_fallback_and_a_split_are_copied_too() -> None:
    mirror = Mirror(Route("m", "copy"))
    world = World(mirrored(), a=False, b=True, copy=True, chance=[0.5])
    world.ask()
    assert (world.copied, world.sent) == ([("m", "copy")], [("m", "b")])
    parts = Split((Share(Route("s", "a", mirror=mirror), 1),))
    world = World(Route("s", split=parts, mirror=mirror), a=True, copy=True, chance=[0.5, 0.5])
    world.ask()
    assert (world.copied, world.sent) == ([("m", "copy")], [("s", "a")])
