"""What `gateway explain` finds out, as far as no running gateway is needed to know better."""

from __future__ import annotations

from textwrap import dedent

import pytest

from gateway import config
from gateway.commands.explain import Explanation, explain, told
from gateway.commands.imagined_request import Question, question
from gateway.config.origins import Origins
from gateway.model import Config, StaticSource, Upstream
from tests.unit.routing.test_router import as_endpoint, as_route
from tests.unit.routing_cases import TABLES, Table


def explained(text: str, method: str, url: str, *headers: tuple[str, str], peer: str = "192.0.2.1") -> Explanation:
    document = dedent(text).encode()
    found = config.loads(document, "f", {})
    return explain(found, question(method, url, headers, peer), Origins.of(document, "f"))


def routes(*lines: str) -> str:
    listed = "\n".join(f"  - {{{line}, upstream: u}}" for line in lines)
    return f"version: 1\nserver: {{name: gw}}\nupstreams:\n  u: {{endpoints: [http://10.0.0.1:80]}}\nroutes:\n{listed}\n"


# -- the question -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "target", "scheme"),
    [
        ("/x?y", b"localhost", b"/x?y", "http"),
        ("http://a.example:81/x%2f?y", b"a.example:81", b"/x%2f?y", "http"),
        ("HTTPS://a.example", b"a.example", b"/", "https"),
        ("http://a.example?x=/y", b"a.example", b"/?x=/y", "http"),
        ("ftp://a.example/x", b"localhost", b"ftp://a.example/x", "http"),
        ("*", b"localhost", b"*", "http"),
        ("/caf\xe9", b"localhost", b"/caf\xc3\xa9", "http"),
    ],
)
def test_an_url_as_a_client_would_ask_it(url: str, host: bytes, target: bytes, scheme: str) -> None:
    asked = question("GET", url)
    assert (asked.host, asked.target, asked.scheme) == (host, target, scheme)


def test_a_host_header_replaces_the_url_s() -> None:
    asked = question("GET", "http://a/x", [("X-A", "1"), ("host", "b"), ("Host", "c")])
    assert asked.head == b"GET /x HTTP/1.1\r\nHost: b\r\nX-A: 1\r\nHost: c\r\n\r\n"


@pytest.mark.parametrize("bad", [("GET\r\n", "/", "v"), ("GET", "/\n", "v"), ("GET", "/", "v\r\nX: y")])
def test_a_line_holds_no_line_end(bad: tuple[str, str, str]) -> None:
    method, url, value = bad
    with pytest.raises(ValueError, match="line end"):
        explained(routes("name: r"), method, url, ("X-A", value))


# -- who serves it, and why others do not ---------------------------------------------------


@pytest.mark.parametrize(
    ("match", "why"),
    [
        ("{host: b.example}", "the host a.example is not b.example"),
        ("{host: '*.b.example', path: /no}", "the host a.example is not *.b.example"),
        ("{path: /x/y}", "the path /x is not /x/y"),
        ("{prefix: /y, methods: [PUT]}", "the path /x is not under /y"),
        ("{regex: '/[0-9]+'}", "the path /x does not match /[0-9]+"),
        ("{methods: [PUT, DELETE]}", "the method GET is not DELETE or PUT"),
        ("{headers: {X-A: 1, X-B: 2}}", "the header x-b is missing, not '2'"),
        ("{headers: {X-A: 2}}", "the header x-a is '1', not '2'"),
        ("{query: {v: 1, w: 2}}", "the query has no w=2 as its first"),
    ],
)
def test_the_first_condition_that_fails(match: str, why: str) -> None:
    text = routes(f"name: lost, match: {match}", "name: won, priority: -1")
    found = explained(text, "GET", "http://a.example/x?v=1", ("X-A", "1"))
    assert found.route == "won"
    assert [(lost.route, lost.why, lost.place) for lost in found.lost] == [("lost", why, "f:6")]


@pytest.mark.parametrize(
    ("winner", "loser", "why"),
    [
        ("priority: 5", "match: {path: /x}", "its priority is 0, not 5"),
        ("match: {host: a.b.c}", "match: {host: '*.b.c'}", "an exact host comes before a wildcard"),
        ("match: {host: '*.b.c'}", "match: {path: /x}", "a wildcard comes before no host"),
        ("match: {host: '*.b.c'}", "match: {host: '*.c', path: /x}", "the wildcard *.b.c is longer"),
        ("match: {path: /x}", "match: {regex: '/.*'}", "an exact path comes before a regex"),
        ("match: {regex: '/.*'}", "match: {prefix: /x}", "a regex comes before a prefix"),
        ("match: {regex: '/.*'}", "match: {regex: '/x'}", "regexes come in file order"),
        ("match: {prefix: /x}", "match: {methods: [GET]}", "the prefix /x is longer"),
        ("match: {methods: [GET, HEAD]}", "match: {headers: {x-a: 1}}", "a match with methods comes before one without"),
        ("match: {headers: {x-a: 1}}", "match: {query: {v: 1}}", "more headers come first"),
        ("match: {query: {v: 1}}", "priority: 0", "more query parameters come first"),
        ("match: {methods: [GET]}", "match: {methods: [GET, HEAD]}", "it stands later in the file"),
    ],
)
def test_the_rule_that_beats_a_match(winner: str, loser: str, why: str) -> None:
    text = routes(f"name: won, {winner}", f"name: lost, {loser}")
    found = explained(text, "GET", "http://a.b.c/x?v=1", ("X-A", "1"))
    assert (found.route, [lost.why for lost in found.lost]) == ("won", [f"matches too, but {why}"])


def test_each_match_of_a_losing_route_has_its_line_and_the_winner_s_others_have_none() -> None:
    text = routes("name: lost, match: [{path: /y}, {path: /z}]", "name: won, match: [{prefix: /}, {path: /x}, {path: /w}]")
    found = explained(text, "GET", "/x")
    assert (found.route, found.match, found.place) == ("won", "* = /x", "f:7")
    assert [lost.match for lost in found.lost] == ["* = /y", "* = /z"]


def test_no_route_tells_why_of_every_one() -> None:
    found = explained(routes("name: a, match: {path: /a}", "name: b, match: {path: /b}"), "GET", "/c")
    assert (found.forwarded, found.status, found.reason, found.route) == (False, 404, "no_route", "")
    assert [lost.route for lost in found.lost] == ["a", "b"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_loser_has_a_reason(table: Table) -> None:
    """With the order of matches being the router's own, which `explain` asserts."""
    made = tuple(as_route(dict(spec), index) for index, spec in enumerate(table.routes))
    upstreams = {route.name: Upstream(route.name, StaticSource((as_endpoint(table),))) for route in made}
    settings = Config("v", upstreams, made)
    for case in table.cases:
        fields = tuple((name.encode(), value.encode()) for name, value in case.headers)
        asked = Question(case.method.encode(), case.target.encode("latin-1"), case.host.encode("latin-1"), fields)
        found = explain(settings, asked)
        assert found.route == (case.route or ""), case.id
        assert all(lost.why and lost.route != found.route for lost in found.lost)
        if found.forwarded:
            assert {lost.route for lost in found.lost} == set(upstreams) - {found.route}
            assert found.sent[0].lines[0] == f"{case.method} {case.expected_target} HTTP/1.1"


# -- what never gets to a route ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "headers", "status", "reason"),
    [
        ("GET", "/a/../b", [], 400, "bad_path"),
        ("GET", "/a%00", [], 400, "bad_path"),
        ("GET", "/a#b", [], 400, "bad_request"),
        ("GET", "/a b", [], 400, "bad_request"),
        ("GET", "http://a,b/", [], 400, "bad_request"),
        ("GE(T", "/", [], 400, "bad_request"),
        ("TRACE", "/", [], 405, "unsupported_method"),
        ("CONNECT", "a:80", [], 405, "unsupported_method"),
        ("POST", "/", [("Transfer-Encoding", "gzip")], 501, "unsupported_coding"),
        ("POST", "/", [("Expect", "cake")], 417, "expectation_failed"),
        ("GET", "/" + "x" * 20000, [], 414, "uri_too_long"),
        ("GET", "/", [("X", "y" * 40000)], 431, "header_too_large"),
        ("GET", "/", [("Via", "1.1 gw")], 508, "loop_detected"),
        ("OPTIONS", "*", [], 204, ""),
        ("OPTIONS", "/", [("Max-Forwards", "0")], 204, ""),
        ("GET", "/-/status", [], None, ""),
        ("GET", "/-", [], None, ""),
    ],
)  # fmt: skip
def test_what_the_gateway_answers_itself(
    method: str, url: str, headers: list[tuple[str, str]], status: int | None, reason: str
) -> None:
    found = explained(routes("name: r"), method, url, *headers)
    assert (found.forwarded, found.status, found.reason) == (False, status, reason)
    assert found.detail
    assert found.sent == ()


def test_an_upstream_whose_endpoints_all_have_weight_0() -> None:
    text = routes("name: r").replace("[http://10.0.0.1:80]", "[{url: 'http://10.0.0.1', weight: 0}]")
    found = explained(text, "GET", "/")
    assert (found.route, found.forwarded, found.status, found.reason) == ("r", False, 503, "no_endpoint")


# -- what is sent ----------------------------------------------------------------------------


def test_the_head_that_an_upstream_gets() -> None:
    text = routes("name: r, strip_prefix: true, match: {prefix: /a}")
    (sent,) = explained(text, "POST", "https://h.example/a/b?c", ("content-length", "3"), ("X_Y", "1")).sent
    assert sent.endpoints == ("http://10.0.0.1:80",)
    assert sent.lines == (
        "POST /b?c HTTP/1.1",
        "Host: h.example",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Host: h.example",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Port: 443",
        "X-Real-IP: 192.0.2.1",
        "Via: 1.1 gw",
        "X-Request-Id: <new id>",
        "X-Forwarded-Prefix: /a",
        "Content-Length: 3",
    )


def test_endpoints_that_get_the_same_stand_together() -> None:
    endpoints = "[http://10.0.0.1, http://10.0.0.2, http://10.0.0.3/base]"
    text = routes("name: r").replace("[http://10.0.0.1:80]", endpoints)
    found = explained(text, "GET", "/x")
    assert [(sent.endpoints, sent.lines[0]) for sent in found.sent] == [
        (("http://10.0.0.1:80", "http://10.0.0.2:80"), "GET /x HTTP/1.1"),
        (("http://10.0.0.3:80",), "GET /base/x HTTP/1.1"),
    ]


def test_what_a_registry_knows_stands_in_brackets() -> None:
    text = "version: 1\nupstreams: {u: {consul: user-svc, host: upstream}}\nroutes: [{name: r, upstream: u}]\n"
    found = explained(text, "GET", "/")
    assert found.source == "consul user-svc"
    assert "Host: <address:port>" in found.sent[0].lines
    assert "Via: 1.1 <gateway>" in found.sent[0].lines


def test_a_trusted_peer_is_believed() -> None:
    text = routes("name: r").replace("{name: gw}", "{name: gw, trusted_proxies: [10.0.0.0/8]}")
    fields = (("X-Forwarded-For", "1.2.3.4"), ("X-Request-Id", "given"))
    lines = explained(text, "GET", "/", *fields, peer="10.1.1.1").sent[0].lines
    assert {"X-Forwarded-For: 1.2.3.4, 10.1.1.1", "X-Real-IP: 1.2.3.4", "X-Request-Id: given"} <= set(lines)
    assert "X-Forwarded-For: 192.0.2.1" in explained(text, "GET", "/", *fields).sent[0].lines


def test_an_upgrade_goes_on_where_it_may() -> None:
    fields = (("Connection", "Upgrade"), ("Upgrade", "websocket"))
    assert "Upgrade: websocket" in explained(routes("name: r"), "GET", "/", *fields).sent[0].lines
    lines = explained(routes("name: r, upgrade: []"), "GET", "/", *fields).sent[0].lines
    assert not any("pgrade" in line for line in lines)


# -- what holds, and which line says so -----------------------------------------------------------

LEVELS = """\
version: 1
defaults:
  timeouts: {connect: 1s, idle: 10s}
  retry: {attempts: 3}
upstreams:
  u:
    endpoints: [http://10.0.0.1]
    host: upstream
    timeouts:
      idle: 20s
      total: 1h
    pool: {idle_timeout: 500ms}
routes:
  - name: r
    upstream: u
    rewrite: {prefix: /v2}
    timeouts: {total: 0}
    retry:
      methods: [GET]
"""


def test_the_nearest_line_that_sets_something() -> None:
    found = explained(LEVELS, "GET", "/")
    settings = {setting.name: (setting.value, setting.place) for setting in found.settings}
    assert settings["upstream"] == ("u", "f:15")
    assert settings["upstreams.u"] == ("http://10.0.0.1:80", "f:6")
    assert settings["rewrite"] == ("prefix /v2", "f:16")
    assert settings["host"] == ("upstream", "f:8")
    assert settings["timeouts.connect"] == ("1s", "f:3")
    assert settings["timeouts.idle"] == ("20s", "f:10")
    assert settings["timeouts.total"] == ("off", "f:17")
    assert settings["timeouts.response"] == ("30s", "built-in")
    assert settings["timeouts.tunnel"] == ("1h", "built-in")
    assert settings["retry.attempts"] == ("3", "f:4")
    assert settings["retry.methods"] == ("[GET]", "f:19")
    assert settings["retry.budget"] == ("20%", "built-in")
    assert settings["retry.buffer"] == ("64KiB", "built-in")
    assert settings["pool.idle_timeout"] == ("500ms", "f:12")
    assert "strip_prefix" not in settings


@pytest.mark.parametrize(
    ("retry", "method", "headers", "expected"),
    [
        ("{}", "GET", [], {"connect": "", "stale": "", "reset": "", "timeout": "timeout is not in retry.when"}),
        ("{attempts: 1}", "GET", [], dict.fromkeys(("connect", "stale", "reset", "timeout"), "retry.attempts is 1")),
        ("{when: [reset]}", "GET", [], {"connect": "connect is not in retry.when", "stale": "stale is not in retry.when",
                                        "reset": "", "timeout": "timeout is not in retry.when"}),
        ("{}", "POST", [], {"connect": "", "stale": "POST is not in retry.methods", "reset": "POST is not in retry.methods",
                            "timeout": "timeout is not in retry.when"}),
        ("{when: [timeout], statuses: [503]}", "GET", [("Content-Length", "70000")],
         {"connect": "connect is not in retry.when", "stale": "stale is not in retry.when", "reset": "reset is not in retry.when",
          "timeout": "the body of 70000 bytes does not fit retry.buffer (65536 bytes)",
          "status 503": "the body of 70000 bytes does not fit retry.buffer (65536 bytes)"}),
        ("{when: [timeout], statuses: [502, 503]}", "GET", [("Transfer-Encoding", "chunked")],
         {"connect": "connect is not in retry.when", "stale": "stale is not in retry.when", "reset": "reset is not in retry.when",
          "timeout": "the length of a chunked body is not known before",
          "status 502": "the length of a chunked body is not known before",
          "status 503": "the length of a chunked body is not known before"}),
        ("{when: [timeout], statuses: [503]}", "GET", [("Content-Length", "3")],
         {"connect": "connect is not in retry.when", "stale": "stale is not in retry.when",
          "reset": "reset is not in retry.when", "timeout": "", "status 503": ""}),
    ],
)  # fmt: skip
def test_whether_it_is_tried_again(
    retry: str, method: str, headers: list[tuple[str, str]], expected: dict[str, str]
) -> None:
    found = explained(routes(f"name: r, retry: {retry}"), method, "/", *headers)
    assert {one.after: one.why for one in found.retries} == expected
    assert all(one.again is (one.why == "") for one in found.retries)


# -- as text ---------------------------------------------------------------------------------


def test_the_text_names_everything() -> None:
    text = "\n".join(told(explained(LEVELS, "GET", "http://h/x")))
    for part in ("GET /x of h", "route      r  f:14  (* /)", "upstream   u", "GET /v2/x HTTP/1.1", "f:10", "built-in"):
        assert part in text
    refused = list(told(explained(LEVELS, "GET", "/../x")))
    assert refused[1].startswith("answered by the gateway: 400 bad_path: ")
    own = list(told(explained(LEVELS, "GET", "/-/healthz")))
    assert own[1] == "answered by the gateway: /-/ is the gateway's own (server.own_prefix)"


# -- what else becomes of requests ---------------------------------------------------------------

SHAPED = """\
version: 1
server: {name: gw}
defaults: {eject: {for: 20s}}
upstreams:
  a: {endpoints: [http://10.0.0.1], fallback: c, balance: {sticky: {cookie: gw, secret: hush}}}
  b: {endpoints: [http://10.0.0.2], timeouts: {response: 1s}, eject: null, health: {path: /up}}
  c: {consul: c-svc, retry: {attempts: 1}, deadline_header: X-Left}
  none: {endpoints: [{url: http://10.0.0.9, weight: 0}]}
  helped: {endpoints: [{url: http://10.0.0.9, weight: 0}], fallback: a}
routes:
  - {name: split, match: {path: /split}, split: [{upstream: a, weight: 95}, {upstream: b, weight: 5}]}
  - name: value
    match: {path: /value}
    split: {by: cookie:exp, to: [{upstream: a, weight: 1}, {upstream: b, weight: 1}]}
  - {name: copied, match: {path: /copied}, upstream: b, mirror: {upstream: c, percent: 10}, strip_prefix: true}
  - {name: none, match: {path: /none}, upstream: none}
  - {name: helped, match: {path: /helped}, upstream: helped}
  - {name: https, match: {prefix: /h}, redirect: {scheme: https, status: 308}}
  - {name: site, match: {prefix: /h}, upstream: b}
  - {name: gone, match: {path: /gone}, redirect: {path: /new}}
  - {name: nowhere, match: {path: /nowhere}, redirect: {path: /nowhere}}
  - {name: fixed, match: {path: /fixed}, respond: {status: 410, body: gone, headers: {X-A: b}}}
  - {name: void, match: {path: /void}, split: [{upstream: none}, {upstream: b, weight: 0}]}
"""


def shaped(method: str, url: str, *headers: tuple[str, str]) -> Explanation:
    return explained(SHAPED, method, url, *headers)


def ways(found: Explanation) -> list[tuple[str, str, str, bool]]:
    return [(way.kind, way.upstream, way.when, bool(way.sent)) for way in found.ways]


def test_the_shares_of_a_split() -> None:
    found = shaped("GET", "/split")
    assert (found.forwarded, found.route, found.upstream, found.sent, found.settings) == (True, "split", "", (), ())
    assert ways(found) == [
        ("share", "a", "95%", True),
        ("fallback", "c", "when a has no endpoint", True),
        ("share", "b", "5%", True),
    ]
    first, second, third = found.ways
    assert first.sent[0].endpoints == ("http://10.0.0.1:80",)
    assert first.sent[0].lines[0] == "GET /split HTTP/1.1"
    settings = {one.name: (one.value, one.place) for one in first.settings}
    assert settings["upstream"] == ("a", "f:11")
    assert settings["eject.for"] == ("20s", "f:3")
    assert settings["fallback"] == ("c", "f:5")
    # What cookies are signed with is in nothing that is told.
    assert settings["balance"] == ("sticky by cookie:gw", "f:5")
    assert "hush" not in repr(found)
    settings = {one.name: (one.value, one.place) for one in third.settings}
    assert (settings["eject"], settings["health.path"]) == (("off", "f:6"), ("/up", "f:6"))
    assert settings["breaker"] == ("off", "built-in")
    assert settings["concurrency.limit"] == ("1024", "built-in")
    assert settings["slow_start"] == ("0s", "built-in")
    assert settings["timeouts.response"] == ("1s", "f:6")
    settings = {one.name: (one.value, one.place) for one in second.settings}
    assert settings["upstream"] == ("c", "f:5")
    assert settings["deadline_header"] == ("X-Left", "f:7")
    assert {one.after: one.again for one in second.retries}["connect"] is False
    assert {one.after: one.again for one in first.retries}["connect"] is True


@pytest.mark.parametrize(("value", "upstream"), [("one", "a"), ("two", "b")])
def test_a_value_decides_whose_share_a_request_is(value: str, upstream: str) -> None:
    found = shaped("GET", "/value", ("Cookie", f"exp={value}"))
    assert [one for one in ways(found) if one[0] == "share"] == [
        ("share", name, "by its cookie exp" if name == upstream else "not this request", name == upstream)
        for name in ("a", "b")
    ]
    # Without a value it is left to chance.
    assert [one[2] for one in ways(shaped("GET", "/value")) if one[0] == "share"] == ["50%", "50%"]


def test_what_the_value_decides_is_what_the_gateway_does() -> None:
    """Asked often, with values that are spread."""
    found = [shaped("GET", "/value", ("Cookie", f"exp={number}")) for number in range(40)]
    chosen = {next(way.upstream for way in one.ways if way.when == "by its cookie exp") for one in found}
    assert chosen == {"a", "b"}


def test_a_mirror() -> None:
    found = shaped("POST", "/copied", ("Content-Length", "3"))
    assert (found.upstream, ways(found)) == ("b", [("mirror", "c", "10% of them", True)])
    assert found.sent[0].lines[0] == "POST / HTTP/1.1"
    lines = found.ways[0].sent[0].lines
    assert lines[0] == "POST / HTTP/1.1"
    assert {"Gateway-Mirror: copied", "Content-Length: 3", "X-Left: <milliseconds>"} <= set(lines)
    names = {one.name for one in found.ways[0].settings}
    assert "retry.buffer" in names
    assert not {"retry.attempts", "fallback"} & names
    assert found.ways[0].retries == ()
    assert ("mirror", "10% copied to c", "f:15") in [(one.name, one.value, one.place) for one in found.settings]


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ([("Content-Length", "70000")], "no copy: the body of 70000 bytes does not fit its retry.buffer"),
        ([("Connection", "Upgrade"), ("Upgrade", "websocket")], "no copy: it is an upgrade"),
    ],
)
def test_what_is_not_copied(headers: list[tuple[str, str]], when: str) -> None:
    assert ways(shaped("GET", "/copied", *headers)) == [("mirror", "c", when, False)]


def test_a_copy_of_a_body_without_a_length() -> None:
    lines = shaped("POST", "/copied", ("Transfer-Encoding", "chunked")).ways[0].sent[0].lines
    assert "Content-Length: <length>" in lines
    assert not any(line.startswith("Transfer-Encoding") for line in lines)


def test_upstreams_without_an_endpoint() -> None:
    found = shaped("GET", "/none")
    assert (found.forwarded, found.status, found.reason) == (False, 503, "no_endpoint")
    found = shaped("GET", "/helped")
    assert (found.forwarded, found.sent, found.detail) == (True, (), "upstream helped has no endpoint")
    assert ways(found) == [
        ("fallback", "a", "when helped has no endpoint", True),
        ("fallback", "c", "when a has no endpoint", True),
    ]
    found = shaped("GET", "/void")
    assert (found.forwarded, found.status, found.reason) == (False, 503, "no_endpoint")


def test_a_redirect() -> None:
    found = shaped("GET", "http://h.example:81/gone?q")
    assert (found.forwarded, found.status, found.reason, found.detail) == (False, 302, "", "redirect")
    assert found.answer == ("HTTP/1.1 302 Found", "Location: http://h.example:81/new?q")
    assert (found.route, found.sent) == ("gone", ())


def test_a_redirect_to_what_was_asked_for_is_passed() -> None:
    found = shaped("GET", "http://h.example/h")
    assert (found.route, found.status, found.answer[1]) == ("https", 308, "Location: https://h.example/h")
    found = shaped("GET", "https://h.example/h")
    assert (found.route, found.forwarded, found.sent[0].lines[0]) == ("site", True, "GET /h HTTP/1.1")
    assert {lost.route: lost.why for lost in found.lost}["https"] == "matches, but its redirect leads to what was asked for"
    found = shaped("GET", "/nowhere")
    assert (found.status, found.reason, found.route) == (404, "no_route", "")
    assert {lost.route: lost.why for lost in found.lost}["nowhere"].startswith("matches, but its redirect")


def test_a_fixed_answer() -> None:
    found = shaped("GET", "/fixed")
    assert (found.forwarded, found.status, found.detail) == (False, 410, "respond, 4 bytes")
    assert found.answer == ("HTTP/1.1 410 Gone", "X-A: b")


@pytest.mark.parametrize("timeouts", ["{total: 5s}", "{response: 0, total: 5s}", "{}"])
def test_the_time_that_is_left_depends_on_the_moment(timeouts: str) -> None:
    found = explained(routes(f"name: r, deadline_header: X-Left, timeouts: {timeouts}"), "GET", "/")
    assert "X-Left: <milliseconds>" in found.sent[0].lines


def test_no_time_is_left_where_none_was_given() -> None:
    text = routes("name: r, deadline_header: X-Left, timeouts: {response: 0}")
    assert not any("X-Left" in line for line in explained(text, "GET", "/").sent[0].lines)


def test_the_text_tells_what_several_upstreams_share_once() -> None:
    text = "\n".join(told(shaped("GET", "/split")))
    for part in (
        "share      a  (http://10.0.0.1:80)  95%",
        "fallback   c  (consul c-svc)  when a has no endpoint",
        "sent to http://10.0.0.2:80 (b, 5%)",
        "settings of b, where they differ",
        "tried again after, by c",
    ):
        assert part in text
    assert text.count("timeouts.connect") == 1
    assert text.count("timeouts.response") == 2
    assert "tried again after, by b" not in text
    answered = "\n".join(told(shaped("GET", "/gone")))
    assert "answered by the gateway: 302: redirect\n  HTTP/1.1 302 Found\n  Location: http://localhost/new\n" in answered
    assert "now: upstream helped has no endpoint" in "\n".join(told(shaped("GET", "/helped")))
    assert "copied to http://<address>:0 (c, 10% of them)" in "\n".join(told(shaped("GET", "/copied")))
