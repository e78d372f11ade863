"""What routes and balancers read of a request is what will be forwarded: nothing that an untrusted client says of itself
where only a trusted proxy may, and the values that the gateway puts there."""

from __future__ import annotations

import time

import pytest

from gateway import config as files
from gateway.app import Gateway
from gateway.balancers.keys import key
from gateway.http.messages import Request
from gateway.http.request_head import Outbound
from gateway.http.trusted_proxies import Trust
from gateway.model import Balance, Match, Route, ServerSettings, Split, StaticSource, Upstream

PEER = "192.0.2.7"
PROXY = "10.0.0.1"


def gateway(name: str, value: str, extra: str = "") -> Gateway:
    """Two routes: one for requests with that field, one for all others."""
    text = f"""
version: 1
admin: null
access_log: null
server: {{trusted_proxies: ["{PROXY}"]}}
upstreams: {{u: {{endpoints: ["http://127.0.0.1:1"]{extra}}}}}
routes:
  - {{name: inside, match: {{headers: {{{name}: "{value}"}}}}, respond: {{status: 200}}}}
  - {{name: outside, respond: {{status: 403}}}}
"""
    return Gateway(files.loads(text.encode(), "x", {}))


def ask(made: Gateway, *fields: tuple[bytes, bytes], peer: str = PEER, scheme: str = "http") -> int:
    request = Request(
        b"GET", b"/", [(b"Host", b"shop.example"), *fields], time.monotonic(), peer, scheme, host=b"shop.example"
    )
    response = made.handle(request)
    assert response is not None
    return response.status


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Ssl",
        "X-Forwarded-User", "X-Forwarded-Prefix", "X-Real-IP", "Forwarded", "Gateway-Mirror", "X-Request-Start",
        "X-Request-Id", "X_User", "X-Time-Left", "Proxy", "Gateway-Error",
    ],
)  # fmt: skip
def test_an_untrusted_client_chooses_no_route_by_them(name: str) -> None:
    made = gateway(name, "10.0.0.9", ", deadline_header: X-Time-Left")
    assert ask(made) == 403
    for spelling in (name, name.lower(), name.upper()):
        assert ask(made, (spelling.encode(), b"10.0.0.9")) == 403


@pytest.mark.parametrize("name", ["X-Forwarded-Server", "X-Forwarded-User", "X-Request-Start", "X-Forwarded-Host"])
def test_a_trusted_proxy_does(name: str) -> None:
    made = gateway(name, "inside.example")
    assert ask(made, (name.encode(), b"inside.example"), peer=PROXY) == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Port", "443"),
        ("X-Forwarded-For", PEER),
        ("X-Real-IP", PEER),
    ],
)
def test_the_gateway_s_own_values_are_there(name: str, value: str) -> None:
    made = gateway(name, value)
    assert ask(made, scheme="https") == 200
    # Whatever the client says of it.
    assert ask(made, (name.encode(), b"other"), scheme="https") == 200


def test_of_a_trusted_proxy_the_client_s_address_counts() -> None:
    made = gateway("X-Real-IP", "198.51.100.3")
    assert ask(made, (b"X-Forwarded-For", b"198.51.100.3"), peer=PROXY) == 200
    assert ask(made, (b"X-Real-IP", b"198.51.100.3"), peer=PROXY) == 403


def test_fields_that_anybody_may_set_are_as_they_came() -> None:
    made = gateway("X-Beta", "1")
    assert not made._reads_forwarding
    assert ask(made, (b"x-beta", b"1")) == 200


def test_upgrade_and_host_stay_visible() -> None:
    text = """
version: 1
admin: null
access_log: null
upstreams: {u: {endpoints: ["http://127.0.0.1:1"]}}
routes:
  - {name: ws, match: {headers: {Upgrade: websocket, X-Forwarded-Proto: http, Host: shop.example}}, respond: {status: 200}}
  - {name: rest, respond: {status: 403}}
"""
    made = Gateway(files.loads(text.encode(), "x", {}))
    assert ask(made, (b"Upgrade", b"websocket")) == 200


@pytest.mark.parametrize(("target", "field"), [(b"http://inside.example/", b"shop.example"), (b"/", b"inside.example")])
def test_host_is_the_one_that_is_forwarded(target: bytes, field: bytes) -> None:
    """The authority of an absolute-form target, whatever the Host field says (RFC 9112 §3.2.2)."""
    made = gateway("Host", "inside.example")
    request = Request(b"GET", target, [(b"hOST", field)], time.monotonic(), PEER, host=field)
    response = made.handle(request)
    assert response is not None
    assert response.status == 200
    request = Request(b"GET", b"http://shop.example/", [(b"Host", b"inside.example")], time.monotonic(), PEER)
    response = made.handle(request)
    assert response is not None
    assert response.status == 403


def test_what_must_not_be_there_sees_the_same() -> None:
    text = """
version: 1
admin: null
access_log: null
upstreams: {u: {endpoints: ["http://127.0.0.1:1"]}}
routes:
  - {name: open, match: {not: {headers: {X-Forwarded-Proto: http}}}, respond: {status: 200}}
  - {name: rest, respond: {status: 403}}
"""
    made = Gateway(files.loads(text.encode(), "x", {}))
    assert ask(made, (b"X-Forwarded-Proto", b"https")) == 403
    assert ask(made, scheme="https") == 200


def test_a_balancer_s_key_is_read_from_the_same() -> None:
    outbound = Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id")
    assert outbound.resolves([b"x-real-ip"])
    request = Request(b"GET", b"/", [(b"X-Real-IP", b"10.0.0.9")], time.monotonic(), PEER, host=b"a")
    outbound.identify(request)
    request.fields = outbound.view(request, b"a")
    assert key("header", "x-real-ip")(request) == PEER.encode()


def test_a_split_goes_by_the_same() -> None:
    text = """
version: 1
admin: null
access_log: null
upstreams: {a: {consul: a}, b: {consul: b}, c: {consul: c}, d: {consul: d}}
routes:
  - name: r
    split: {by: "header:X-Forwarded-Proto", to: [{upstream: a}, {upstream: b}, {upstream: c}, {upstream: d}]}
"""
    made = Gateway(files.loads(text.encode(), "x", {}))
    assert made._reads_forwarding

    def chosen(scheme: str, *fields: tuple[bytes, bytes]) -> str:
        request = Request(b"GET", b"/", [(b"Host", b"a"), *fields], time.monotonic(), PEER, scheme, host=b"a")
        made.handle(request)
        assert request.upstream is not None
        return request.upstream.name

    assert chosen("http") != chosen("https")
    for scheme, claimed in (("http", b"https"), ("https", b"http")):
        assert chosen(scheme, (b"X-Forwarded-Proto", claimed)) == chosen(scheme)


def test_a_balancer_s_field_is_resolved_where_no_route_names_it() -> None:
    assert gateway("X-Beta", "1", ', balance: {hash: {by: "header:X-Real-IP"}}')._reads_forwarding


class TestConnection:
    """A client's Connection header names fields that must not be forwarded (RFC 9110 §7.6.1)."""

    def sent(self, named: bytes, *fields: tuple[bytes, bytes], route: Route | None = None) -> bytes:
        outbound = Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id")
        request = Request(b"GET", b"/", [(b"Connection", named), *fields], time.monotonic(), PEER, host=b"a")
        outbound.identify(request)
        request.route = route
        return outbound.head(request, b"/", b"a", b"a").data

    def test_others_go(self) -> None:
        assert b"X-Team" not in self.sent(b"x-team, close", (b"X-Team", b"1"))

    @pytest.mark.parametrize("name", [b"Authorization", b"Cookie", b"Traceparent", b"X-Request-Id", b"X-Real-IP"])
    def test_what_the_gateway_uses_stays(self, name: bytes) -> None:
        value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert b"\r\n" + name.lower() + b": " in self.sent(name, (name, value)).lower()

    def test_what_the_route_was_chosen_by_stays(self) -> None:
        route = Route("by-team", "main", (Match(headers=(("x-team", "1"),)),))
        sent = self.sent(b"X-Team, X-Other", (b"X-Team", b"1"), (b"X-Other", b"2"), route=route)
        assert b"X-Team: 1" in sent
        assert b"X-Other" not in sent

    def test_what_a_split_goes_by_stays(self) -> None:
        sent = self.sent(b"X-Team", (b"X-Team", b"1"), route=Route("r", split=Split((), "header", "x-team")))
        assert b"X-Team: 1" in sent

    def test_what_the_balancer_goes_by_stays(self) -> None:
        outbound = Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id")
        request = Request(b"GET", b"/", [(b"Connection", b"x-team"), (b"X-Team", b"1")], time.monotonic(), PEER, host=b"a")
        outbound.identify(request)
        request.upstream = Upstream("u", StaticSource(()), balance=Balance(policy="hash", by="header", name="x-team"))
        assert b"X-Team: 1" in outbound.head(request, b"/", b"a", b"a").data
