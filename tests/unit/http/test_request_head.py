"""Header fields on their way through: cases A of the peers' suites, without sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, BadResponse, LoopDetected
from gateway.http import request_head
from gateway.http.messages import BufferedBody, Headers, Request
from gateway.http.request_head import Outbound, check_max_forwards, inbound
from gateway.http.trusted_proxies import Trust
from gateway.model import ServerSettings


def outbound(**settings: Any) -> Outbound:
    server = ServerSettings(**settings)
    return Outbound(server, b"gw-test", Trust(server.trusted_proxies), lambda: b"id-1")


def request(headers: Headers, method: bytes = b"GET", **given: Any) -> Request:
    given.setdefault("peer", "192.0.2.7")
    return Request(method, b"/x", headers, started=0.0, **given)


def sent(headers: Headers, gateway: Outbound | None = None, host: bytes = b"a.example", **given: Any) -> Headers:
    """The fields that the upstream would see."""
    gateway = gateway or outbound()
    asked = request(headers, **given)
    gateway.identify(asked)
    head = gateway.head(asked, b"/x", host, host).data
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert lines[0].endswith(b" /x HTTP/1.1")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]


def values(fields: Headers, name: bytes) -> list[bytes]:
    return [value for field, value in fields if field.lower() == name]


def names(fields: Headers) -> list[bytes]:
    return [field.lower() for field, _ in fields]


TRUSTING = {"trusted_proxies": ("192.0.2.0/24",)}


def test_the_usual_head_byte_for_byte() -> None:
    asked = request([(b"Host", b"a.example:8000"), (b"User-Agent", b"x"), (b"accept", b"*/*")])
    gateway = outbound()
    gateway.identify(asked)
    head = gateway.head(asked, b"/y?z", b"a.example:8000", b"b.example")
    assert head.shareable
    assert head.data == (
        b"GET /y?z HTTP/1.1\r\nHost: b.example\r\nUser-Agent: x\r\naccept: */*\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: a.example:8000\r\n"
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Port: 8000\r\nX-Real-IP: 192.0.2.7\r\n"
        b"Via: 1.1 gw-test\r\nX-Request-Id: id-1\r\n\r\n"
    )


@pytest.mark.parametrize("name", [b"Proxy", b"proxy", b"PROXY"])
def test_a_proxy_field_is_dropped(name: bytes) -> None:
    """httpoxy: behind CGI it would be the setting HTTP_PROXY."""
    fields = sent([(name, b"http://evil.test/"), (b"Proxy-Status", b"x")], outbound(**TRUSTING))
    assert values(fields, b"proxy") == []
    assert values(fields, b"proxy-status") == [b"x"]


def test_several_cookies_are_one_where_the_first_stood() -> None:
    fields = sent([(b"cookie", b"a=1"), (b"X", b"y"), (b"Cookie", b"b=2; c=3"), (b"COOKIE", b"d"), (b"Z", b"")])
    assert fields[1:4] == [(b"cookie", b"a=1; b=2; c=3; d"), (b"X", b"y"), (b"Z", b"")]


def test_hop_by_hop_fields_go() -> None:
    fields = sent(
        [
            (b"Connection", b"close"),
            (b"TE", b"trailers"),
            (b"Proxy-Connection", b"x"),
            (b"Upgrade", b"foo"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Proxy-Authorization", b"Basic x"),
            (b"Trailer", b"X"),
            (b"HTTP2-Settings", b"x"),
            (b"X-Stays", b"1"),
        ]
    )
    gone = {b"connection", b"te", b"proxy-connection", b"upgrade", b"keep-alive", b"proxy-authorization", b"trailer"}
    assert not gone & set(names(fields))
    assert b"http2-settings" not in names(fields)
    assert (b"X-Stays", b"1") in fields


def test_what_connection_names_goes() -> None:
    fields = sent(
        [
            (b"Connection", b"Upgrade, X-Tok"),
            (b"X-Tok", b"1"),
            (b"Connection", b"X-Some"),
            (b"x-some", b"2"),
            (b"X-Other", b"3"),
            (b"Cookie", b"a=1"),
        ]
    )
    assert b"x-tok" not in names(fields)
    assert b"x-some" not in names(fields)
    assert (b"X-Other", b"3") in fields
    assert (b"Cookie", b"a=1") in fields


@pytest.mark.parametrize("value", [b"", b",", b" , ,"])
def test_an_empty_connection_is_no_error(value: bytes) -> None:
    assert b"connection" not in names(sent([(b"Connection", value)]))


def test_connection_cannot_take_away_what_the_gateway_says() -> None:
    named = b"Foo,X-Forwarded-For,X-Forwarded-Host,X-Forwarded-Proto,X-Real-IP,Via,Host,X-Request-Id,Content-Length"
    fields = sent(
        [(b"Connection", named), (b"Foo", b"1")], method=b"POST", content_length=1, body=BufferedBody(b"x")
    )
    assert b"foo" not in names(fields)
    for name in named.lower().split(b",")[1:]:
        assert len(values(fields, name)) == 1, name


def test_an_untrusted_peers_claims_are_replaced() -> None:
    fields = sent(
        [
            (b"Forwarded", b"for=1.2.3.4"),
            (b"X-Forwarded-For", b"1.2.3.4"),
            (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", b"evil.example"),
            (b"X-Forwarded-Port", b"1"),
            (b"X-Forwarded-Prefix", b"/p"),
            (b"X-Forwarded-Uri", b"/u"),
            (b"X-Forwarded-Method", b"PUT"),
            (b"X-Forwarded-Tls-Client-Cert", b"x"),
            (b"X-Real-IP", b"1.2.3.4"),
            (b"X-Request-Start", b"t=1"),
            (b"X-Request-Id", b"theirs"),
        ]
    )
    assert values(fields, b"x-forwarded-for") == [b"192.0.2.7"]
    assert values(fields, b"x-forwarded-proto") == [b"http"]
    assert values(fields, b"x-forwarded-host") == [b"a.example"]
    assert values(fields, b"x-forwarded-port") == [b"80"]
    assert values(fields, b"x-real-ip") == [b"192.0.2.7"]
    assert values(fields, b"x-request-id") == [b"id-1"]
    for name in (b"forwarded", b"x-forwarded-prefix", b"x-forwarded-uri", b"x-forwarded-method", b"x-request-start"):
        assert values(fields, name) == []
    assert values(fields, b"x-forwarded-tls-client-cert") == []


@pytest.mark.parametrize("trusted", [{}, TRUSTING])
def test_nobody_else_says_that_a_request_is_a_copy(trusted: dict[str, Any]) -> None:
    fields = sent([(b"gateway-MIRROR", b"shadow"), (b"X-A", b"1")], outbound(**trusted))
    assert values(fields, b"gateway-mirror") == []
    assert values(fields, b"x-a") == [b"1"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(b"https", "https"), (b" HTTPS , http", "https"), (b"http", "http"), (b"wss", "http"), (b"", "http")],
)
def test_the_scheme_that_the_client_sees(given: bytes, expected: str) -> None:
    asked = request([(b"X-Forwarded-Proto", given)])
    assert outbound(**TRUSTING).scheme(asked) == expected
    assert outbound().scheme(asked) == "http"


def test_a_trusted_peers_claims_are_kept_and_extended() -> None:
    fields = sent(
        [
            (b"X-Forwarded-For", b"203.0.113.9"),
            (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", b"shop.example"),
            (b"X-Forwarded-Port", b"8443"),
            (b"X-Forwarded-Prefix", b"/p"),
            (b"X-Request-Start", b"t=1"),
            (b"X-Request-Id", b"theirs_1.x-Y"),
            (b"Forwarded", b"for=203.0.113.9"),
        ],
        outbound(**TRUSTING),
    )
    assert values(fields, b"x-forwarded-for") == [b"203.0.113.9, 192.0.2.7"]
    assert values(fields, b"x-forwarded-proto") == [b"https"]
    assert values(fields, b"x-forwarded-host") == [b"shop.example"]
    assert values(fields, b"x-forwarded-port") == [b"8443"]
    assert values(fields, b"x-forwarded-prefix") == [b"/p"]
    assert values(fields, b"x-request-start") == [b"t=1"]
    assert values(fields, b"x-request-id") == [b"theirs_1.x-Y"]
    assert values(fields, b"x-real-ip") == [b"203.0.113.9"]
    assert values(fields, b"forwarded") == [b'for=203.0.113.9, for=192.0.2.7;host="a.example";proto=http']


@pytest.mark.parametrize("bad", [b"", b"a b", b"x" * 129, b"a\xe9", b"a,b"])
def test_a_trusted_request_id_must_look_like_one(bad: bytes) -> None:
    assert values(sent([(b"X-Request-Id", bad)], outbound(**TRUSTING)), b"x-request-id") == [b"id-1"]


def test_forwarded_is_written_when_asked_for() -> None:
    fields = sent([], outbound(forwarded=True), peer="2001:db8::1", scheme="https")
    assert values(fields, b"forwarded") == [b'for="[2001:db8::1]";host="a.example";proto=https']


@pytest.mark.parametrize(
    ("host", "scheme", "port"),
    [(b"a", "http", b"80"), (b"a", "https", b"443"), (b"a:81", "http", b"81"), (b"[::1]:82", "http", b"82"), (b"[::1]", "https", b"443")],
)  # fmt: skip
def test_the_port_is_that_of_the_host_or_the_schemes(host: bytes, scheme: str, port: bytes) -> None:
    assert values(sent([], host=host, scheme=scheme), b"x-forwarded-port") == [port]


def test_a_unix_peer_has_no_address() -> None:
    fields = sent([], peer="")
    assert values(fields, b"x-forwarded-for") == []
    assert values(fields, b"x-real-ip") == []


def test_via_is_appended_in_one_field() -> None:
    assert values(sent([(b"Via", b"1.0 foo"), (b"Via", b"1.1 bar (x)")]), b"via") == [
        b"1.0 foo, 1.1 bar (x), 1.1 gw-test"
    ]
    assert values(sent([], http11=False), b"via") == [b"1.0 gw-test"]


@pytest.mark.parametrize(
    "field",
    [(b"Via", b"1.1 gw-test"), (b"via", b"1.0 a, 1.1 gw-test (x), 1.1 b"), (b"CDN-Loop", b"a, gw-test; v=1")],
)
def test_a_loop_is_found(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(LoopDetected):
        sent([field])


@pytest.mark.parametrize("value", [b"1.1 gw-test2", b"1.1 xgw-test", b"gw-test", b"1.1 a (gw-test)"])
def test_what_only_looks_like_a_loop_is_none(value: bytes) -> None:
    assert values(sent([(b"Via", value)]), b"via") == [value + b", 1.1 gw-test"]


@pytest.mark.parametrize("via", ["off", "response"])
def test_without_via_loops_are_found_by_cdn_loop(via: str) -> None:
    gateway = outbound(via=via)
    fields = sent([], gateway)
    assert values(fields, b"via") == []
    assert values(fields, b"cdn-loop") == [b"gw-test"]
    assert values(sent([(b"CDN-Loop", b"other")], gateway), b"cdn-loop") == [b"other, gw-test"]
    with pytest.raises(LoopDetected):
        sent(fields, gateway)


def test_cookies_are_one_line_joined_by_semicolons() -> None:
    fields = sent([(b"Cookie", b"a=1"), (b"X", b"y"), (b"cookie", b"b=2"), (b"COOKIE", b"c=3")])
    assert values(fields, b"cookie") == [b"a=1; b=2; c=3"]


def test_duplicates_keep_order_number_and_case() -> None:
    came = [(b"X-a", b"1"), (b"x-A", b""), (b"X-B", b"\x85v\xa0"), (b"X-a", b"1, 2")]
    assert [field for field in sent(came) if field[0].lower() in (b"x-a", b"x-b")] == came


def test_underscored_names_are_dropped_and_counted() -> None:
    gateway = outbound()
    fields = sent([(b"X_Auth_User", b"spoof"), (b"X-Auth-User", b"legit"), (b"X_forwarded_proto", b"x")], gateway)
    assert values(fields, b"x-auth-user") == [b"legit"]
    assert all(b"_" not in name for name in names(fields))
    assert gateway.underscores == 2


def test_nothing_is_invented() -> None:
    invented = {b"user-agent", b"accept-encoding", b"accept", b"max-forwards", b"connection", b"content-length"}
    assert not invented & set(names(sent([])))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"content_length": 0}, (b"Content-Length", b"0")),
        ({"content_length": 3, "body": BufferedBody(b"abc")}, (b"Content-Length", b"3")),
        ({"chunked": True, "body": BufferedBody(b"abc")}, (b"Transfer-Encoding", b"chunked")),
    ],
)
def test_the_framing_is_written_anew(given: dict[str, Any], field: tuple[bytes, bytes]) -> None:
    fields = sent([(b"content-length", b"99"), (b"transfer-encoding", b"x")], method=b"POST", **given)
    assert [one for one in fields if one[0] in (b"Content-Length", b"Transfer-Encoding")] == [field]
    assert not {b"content-length", b"transfer-encoding"} & {name for name, _ in fields}


def test_max_forwards_counts_down_on_options_alone() -> None:
    assert values(sent([(b"Max-Forwards", b"5")], method=b"OPTIONS"), b"max-forwards") == [b"4"]
    assert values(sent([(b"Max-Forwards", b"5")]), b"max-forwards") == [b"5"]
    assert check_max_forwards(request([(b"max-forwards", b"0")], b"OPTIONS"))
    assert not check_max_forwards(request([(b"max-forwards", b"1")], b"OPTIONS"))
    assert not check_max_forwards(request([], b"OPTIONS"))
    with pytest.raises(BadRequest):
        check_max_forwards(request([(b"max-forwards", b"-1")], b"OPTIONS"))


@pytest.mark.parametrize(("value", "shareable"), [(b"NTLM x", False), (b"negotiate x", False), (b"Bearer x", True)])
def test_connection_bound_authentication_is_noticed(value: bytes, shareable: bool) -> None:
    asked = request([(b"Authorization", value)])
    assert outbound().head(asked, b"/", b"a", b"a").shareable is shareable
    assert inbound([(b"WWW-Authenticate", value)], b"").shareable is shareable


def test_trace_id_is_taken_from_traceparent() -> None:
    asked = request([(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")])
    outbound().head(asked, b"/", b"a", b"a")
    assert asked.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_an_upgrade_is_asked_for_in_the_head() -> None:
    asked = request([(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"websocket")])
    head = outbound().head(asked, b"/", b"a", b"a", upgrade=b"websocket")
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head.data
    assert head.data.lower().count(b"upgrade: ") == 1


@given(st.lists(st.tuples(st.from_regex(rb"[A-Za-z0-9_-]{1,80}", fullmatch=True), st.binary(max_size=20)), max_size=30))
def test_any_fields_make_one_well_formed_head(fields: Headers) -> None:
    clean = [(name, value.translate(None, b"\r\n\0")) for name, value in fields]
    asked = request([*clean, (b"Connection", b"x-a")])
    gateway = outbound()
    try:
        gateway.identify(asked)
        head = gateway.head(asked, b"/", b"a", b"a").data
    except LoopDetected:
        return
    lines = head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert all(b":" in line for line in lines[1:-2])
    assert sum(line.lower().startswith(b"host:") for line in lines) == 1


# -- answers ------------------------------------------------------------------------------


def test_answers_lose_what_is_hop_by_hop_and_nothing_else() -> None:
    judged = inbound(
        [
            (b"Server", b"x"),
            (b"Connection", b"keep-alive, X-Gone"),
            (b"X-Gone", b"1"),
            (b"Keep-Alive", b"timeout=5, max=10"),
            (b"Proxy-Authenticate", b"Basic"),
            (b"Trailer", b"X-T"),
            (b"Set-Cookie", b"a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
            (b"set-cookie", b"b=2"),
            (b"Content-Length", b"12"),
            (b"Gateway-Error", b"no_route"),
            (b"Date", b"today"),
        ],
        b"1.1 gw",
    )
    assert judged.headers == [
        (b"Server", b"x"),
        (b"Set-Cookie", b"a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"set-cookie", b"b=2"),
        (b"Date", b"today"),
        (b"Via", b"1.1 gw"),
    ]
    assert judged.content_length == 12
    assert judged.keep_alive == 5
    assert judged.persistent
    assert judged.gateway_error == b"no_route"


def test_connection_close_ends_the_connection() -> None:
    assert not inbound([(b"Connection", b"Close")], b"").persistent
    assert inbound([(b"X", b"y")], b"").persistent


@pytest.mark.parametrize(
    "codings",
    [[b"foo"], [b"gzip, chunked"], [b"chunked", b"chunked"], [b"chunked, chunked"], [b"identity"], [b""], [b"xchunked"]],
)
def test_a_transfer_encoding_but_chunked_is_refused(codings: list[bytes]) -> None:
    with pytest.raises(BadResponse):
        inbound([(b"Transfer-Encoding", coding) for coding in codings], b"")


def test_chunked_is_taken_from_http_1_1_alone() -> None:
    assert inbound([(b"Transfer-Encoding", b"Chunked")], b"").chunked
    with pytest.raises(BadResponse):
        inbound([(b"Transfer-Encoding", b"chunked")], b"", http11=False)


def test_via_of_answers() -> None:
    assert inbound([(b"Via", b"1.1 a")], b"1.1 gw").headers == [(b"Via", b"1.1 a, 1.1 gw")]
    assert inbound([(b"Via", b"1.1 a")], b"").headers == [(b"Via", b"1.1 a")]
    assert inbound([], b"").headers == []


def test_a_table_of_names_that_is_full_starts_anew() -> None:
    """Names that a client makes up fill it; those of the next requests are remembered all the same."""
    kinds = request_head._Kinds(lambda name: len(name))
    for number in range(request_head._MAX_NAMES):
        kinds.learn(b"X-%d" % number)
    assert len(kinds.table) == request_head._MAX_NAMES
    assert kinds.learn(b"Accept") == 6
    assert kinds.table == {b"Accept": 6}


def test_a_name_that_is_too_long_is_not_remembered() -> None:
    kinds = request_head._Kinds(lambda name: len(name))
    for size in (request_head._MAX_NAME, request_head._MAX_NAME + 1):
        assert kinds.learn(b"x" * size) == size
    assert [len(name) for name in kinds.table] == [request_head._MAX_NAME]
