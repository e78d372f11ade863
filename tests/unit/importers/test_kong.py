"""What becomes of Kong's declarative file."""

from __future__ import annotations

import json

import pytest

from gateway.commands.wording import told_end
from gateway.errors import ConfigError
from gateway.model import Balance, HealthCheck, Redirect, Respond
from tests.imported import Imported, Went

CONFIG = r"""
_format_version: "3.0"
_transform: true
services:
- name: users
  url: http://users.internal:8080/base
  retries: 3
  connect_timeout: 2000
  read_timeout: 30500
  tags: [a]
  routes:
  - {name: main, hosts: [api.example.com, "*.example.org", "shop.*"], paths: [/users, /people], methods: [GET, POST]}
  - {name: raw, paths: ["~/u/(?<id>\\d+)", /raw], strip_path: false, preserve_host: true}
  - {name: cut, paths: ["~/cut/\\d+"], regex_priority: 5}
  - {name: cut-less, paths: ["~/cut/.*"], regex_priority: 1}
- {name: plain, host: plain.internal, port: 9000}
- {name: pay, host: pay-group, protocol: https, tls_verify: true, plugins: [{name: key-auth}, {name: rate-limiting}]}
- {name: stock, host: stock-group}
- {name: tcpish, protocol: tcp, host: x, port: 99}
- {name: off, host: off.internal, enabled: false}
routes:
- {name: keep, service: {name: plain}, paths: [/keep], strip_path: false}
- {name: root, service: plain, paths: [/], methods: [PUT]}
- {name: order, service: plain, paths: [/order]}
- {name: hosted, service: stock, hosts: [hosted.example], strip_path: true}
- {name: deeper, service: stock, paths: [/order/deeper/still]}
- {name: beta, service: stock, paths: [/order], headers: {x-beta: ["1", "2"]}}
- {name: shorter-path-but-host, service: stock, hosts: [api.example.com], paths: [/u]}
- {name: sni, service: plain, paths: [/sni], snis: [x]}
- {name: guarded, service: pay, paths: [/pay]}
- {name: nothing, paths: [/nothing]}
- {name: bytcp, service: tcpish, paths: [/tcp]}
- {name: off, service: off, paths: [/off]}
- {name: stream, service: plain, protocols: [tcp], destinations: [{port: 1}]}
- {name: apart, service: plain, paths: [/apart], protocols: [https], path_handling: v1}
upstreams:
- name: pay-group
  targets: [{target: "10.0.0.1:8443"}]
- name: stock-group
  algorithm: least-connections
  host_header: stock.example
  targets: [{target: "10.0.0.1:81", weight: 50}, {target: "10.0.0.2:82"}, {target: 10.0.0.3}]
  healthchecks: {active: {type: http, healthy: {interval: 5}}, passive: {}}
consumers: [{username: bob, keyauth_credentials: [{key: very-secret}]}]
plugins: [{name: cors, route: keep}, {name: prometheus}, {name: ip-restriction, route: apart}]
"""


@pytest.fixture(scope="module")
def sample() -> Imported:
    return Imported("kong", CONFIG)


USERS, PLAIN, STOCK = "users.internal:8080", "plain.internal:9000", "10.0.0.1:81"


@pytest.mark.parametrize(
    ("target", "host", "method", "expected"),
    [
        ("/users/1?q", "api.example.com", "GET", Went(USERS, "/base/1?q", USERS)),
        ("/users", "api.example.com", "GET", Went(USERS, "/base", USERS)),
        ("/people/a%2Fb", "x.example.org", "POST", Went(USERS, "/base/a%2Fb", USERS)),
        ("/users/1", "api.example.com", "DELETE", Went("")),
        ("/users/1", "shop.example", "GET", Went("")),
        ("/u/12/x", "any.example", "GET", Went(USERS, "/base/u/12/x", "any.example")),
        ("/raw/x", "any.example", "GET", Went(USERS, "/base/raw/x", "any.example")),
        ("/cut/12/x", "any.example", "GET", Went(USERS, "/base/x", USERS)),
        ("/cut/12", "any.example", "GET", Went(USERS, "/base", USERS)),
        ("/cut/xx/x", "any.example", "GET", Went(USERS, "/base", USERS)),
        ("/keep/x", "any.example", "GET", Went(PLAIN, "/keep/x", PLAIN)),
        ("/x/y", "any.example", "PUT", Went(PLAIN, "/x/y", PLAIN)),
        ("/order/x", "any.example", "GET", Went(PLAIN, "/x", PLAIN)),
        ("/order/deeper/still/x", "any.example", "GET", Went(STOCK, "/x", "stock.example")),
        ("/anything", "hosted.example", "GET", Went(STOCK, "/anything", "stock.example")),
        ("/pay/x", "any.example", "GET", Went("closed")),
        ("/apart/x", "any.example", "GET", Went("closed")),
        ("/nothing", "any.example", "GET", Went("closed")),
        ("/off", "any.example", "GET", Went("closed")),
        ("/tcp", "any.example", "GET", Went("closed")),
        ("/sni", "any.example", "GET", Went("")),
        # More kinds of condition win over a longer path.
        ("/u/12", "api.example.com", "GET", Went(STOCK, "/12", "stock.example")),
    ],
)
def test_a_request_goes_where_kong_sends_it(
    target: str, host: str, method: str, expected: Went, sample: Imported
) -> None:
    assert sample.ask(target, host, method) == expected


@pytest.mark.parametrize("value", ["1", "2"])
def test_headers(value: str, sample: Imported) -> None:
    assert sample.ask("/order/x", headers=[(b"X-Beta", value.encode())]) == Went(STOCK, "/x", "stock.example")
    # Two kinds of condition before one, whatever the length of the path.
    assert sample.ask("/order/deeper/still/x", headers=[(b"X-Beta", b"1")]).target == "/deeper/still/x"


def test_options_of_a_service(sample: Imported) -> None:
    users = sample.config.upstreams["users"]
    assert (users.timeouts.connect, users.timeouts.response, users.timeouts.idle) == (2.0, 30.5, 30.5)
    assert users.retry.attempts == 4
    pay = sample.config.upstreams["pay"]
    assert pay.tls is not None
    assert pay.tls.verify


@pytest.mark.parametrize(
    "told",
    [
        "line 12: route main: host shop.* is left out",
        "plugin: rate-limiting is not carried over (not in this version)",
        "plugin: cors is not carried over",
        "consumers is not carried over",
        "service tcpish: left out: protocol tcp is not http",
        "service off: left out: it is not enabled",
        "route sni: snis, sources and destinations have no counterpart",
        "route nothing: closed: it has no service".replace("route nothing: ", ""),
        "closed: key-auth guarded it, and is not in this version; to open it: upstream: pay",
        "closed: ip-restriction guarded it, and is not in this version; to open it: upstream: plain",
        "closed: its service off could not be carried over",
        "route stream: left out: its protocols are tcp",
        "route apart: protocols: plain http meets this route too",
        "route apart: path_handling v1",
        "upstream healthchecks: active is not carried over: it asks only those that are well",
        "upstream healthchecks: passive is not carried over: eject is on",
    ],
)
def test_what_is_lost_is_told(told: str, sample: Imported) -> None:
    assert told in sample.comments


def test_secrets_are_not_repeated(sample: Imported) -> None:
    assert "very-secret" not in sample.text


def test_json_and_older_formats() -> None:
    document = {
        "_format_version": "2.1",
        "services": [{"name": "s", "url": "https://s.internal", "routes": [{"paths": ["/a/\\d+", "/b"]}]}],
        "plugins": [{"name": "jwt", "enabled": False}],
    }
    found = Imported("kong", json.dumps(document))
    assert found.ask("/a/12/x") == Went("s.internal:443", "/x", "s.internal")
    assert found.ask("/b/x") == Went("s.internal:443", "/x", "s.internal")
    assert found.ask("/a/x") == Went("")
    tls = found.config.upstreams["s"].tls
    assert tls is not None
    assert not tls.verify
    assert "Kong does not verify certificates" in found.comments
    assert "jwt is not carried over (it is off)" in found.comments


def test_a_plugin_for_everything_closes_everything() -> None:
    text = CONFIG.replace("{name: prometheus}", "{name: openid-connect}")
    found = Imported("kong", text)
    assert {route.upstream for route in found.config.routes} == {"closed"}


def test_a_plugin_is_found_by_ids() -> None:
    text = """
_format_version: "3.0"
services: [{id: s1, name: s, host: s}, {id: t1, name: t, host: t}]
routes:
- {id: r1, name: a, service: {id: s1}, paths: [/a]}
- {id: r2, name: b, service: {id: t1}, paths: [/b]}
- {id: r3, name: c, service: {id: s1}, paths: [/c]}
plugins: [{name: acl, service: {id: t1}}, {name: jwt, route: {id: r3}}]
"""
    found = Imported("kong", text)
    assert [found.ask(path).to for path in ("/a", "/b", "/c")] == ["s:80", "closed", "closed"]


# -- targets ---------------------------------------------------------------------------------


def balanced(given: str, protocol: str = "http") -> Imported:
    return Imported(
        "kong",
        f"""
_format_version: "3.0"
services: [{{name: s, host: group, protocol: {protocol}, routes: [{{name: r, paths: [/r]}}]}}]
upstreams: [{{name: group, {given}, targets: [{{target: "10.0.0.1:80"}}]}}]
""",
    )


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        ("algorithm: round-robin", Balance(), ""),
        ("algorithm: least-connections", Balance("least_requests"), ""),
        ("algorithm: latency", Balance("ewma"), ""),
        ("algorithm: nope", Balance(), "algorithm nope is not carried over"),
        ("hash_on: ip", Balance("hash", "client_ip"), ""),
        ("algorithm: consistent-hashing, hash_on: path", Balance("hash", "path"), ""),
        ("hash_on: header, hash_on_header: X-User", Balance("hash", "header", "x-user"), ""),
        ("hash_on: query_arg, hash_on_query_arg: q", Balance("hash", "query", "q"), ""),
        ("hash_on: cookie, hash_on_cookie: c, hash_on_cookie_path: /", Balance("hash", "cookie", "c"), "Kong sets the cookie"),
        ("hash_on: header", Balance(), "hash_on header is not carried over: targets take turns"),
        ("hash_on: consumer", Balance(), "hash_on consumer is not carried over: targets take turns"),
        ("hash_on: ip, hash_fallback: header", Balance("hash", "client_ip"), "hash_fallback is not carried over"),
        ("algorithm: latency, hash_on: ip", Balance("ewma"), "hash_on is not carried over: algorithm latency does not"),
        ("algorithm: sticky-sessions, sticky_sessions_cookie: c", Balance("sticky", name="c"), ""),
    ],
)
def test_balancers(given: str, expected: Balance, told: str) -> None:
    found = balanced(given)
    assert found.config.upstreams["s"].balance == expected
    assert told in found.comments
    assert told or "is not carried over" not in found.comments


BOTH = "healthy: {interval: 5, successes: 2}, unhealthy: {interval: 5, http_failures: 3, tcp_failures: 3, timeouts: 3}"
NOT_BAD = frozenset(range(200, 600)) - {404, 429, 500, 501, 502, 503, 504, 505}


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        (BOTH, HealthCheck(b"/", False, 5.0, 1.0, 2, 3, NOT_BAD)),
        (
            f"type: http, http_path: /up, timeout: 2.5, concurrency: 5, headers: {{X-A: [b]}}, {BOTH}".replace(
                "timeouts: 3", "timeouts: 3, http_statuses: [500, 302]"
            ).replace("successes: 2", "successes: 2, http_statuses: [200, 302]"),
            HealthCheck(b"/up", False, 5.0, 2.5, 2, 3, frozenset(range(200, 600)) - {500}, None, ((b"X-A", b"b"),)),
        ),
        (f"type: tcp, {BOTH}".replace("http_failures: 3, ", ""), HealthCheck(b"/healthz", True, 5.0, 1.0, 2, 3)),
        (BOTH.replace("timeouts: 3", "timeouts: 1"), HealthCheck(b"/", False, 5.0, 1.0, 2, 3, NOT_BAD)),
        ("type: http", None),
        ("healthy: {interval: 5, successes: 2}", None),
        (BOTH.replace("timeouts: 3", "timeouts: 0"), None),
        (f"type: grpc, {BOTH}", None),
        (f"type: https, {BOTH}", None),
    ],
)
def test_active_health(active: str, expected: HealthCheck | None) -> None:
    found = balanced(f"healthchecks: {{active: {{{active}}}}}")
    assert found.config.upstreams["s"].health == expected
    assert ("active is not carried over" in found.comments) == (expected is None and active != "type: http")
    assert ("the first of them holds for all" in found.comments) == ("timeouts: 1" in active)


# -- answers ---------------------------------------------------------------------------------


def answering(*plugins: str, route: str = "") -> Imported:
    return Imported(
        "kong",
        f"""
_format_version: "3.0"
services:
- name: s
  url: http://s.internal
  routes: [{{name: r, paths: [/r]{route}, plugins: [{", ".join(plugins)}]}}, {{name: q, paths: [/q]}}]
""",
    )


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        ("request-termination", Respond(503)),
        ("request-termination, config: {status_code: 410}", Respond(410)),
        (
            "request-termination, config: {status_code: 403, message: So long}",
            Respond(403, b'{"message": "So long"}', ((b"Content-Type", b"application/json; charset=utf-8"),)),
        ),
        (
            "request-termination, config: {status_code: 200, body: x, content_type: text/plain}",
            Respond(200, b"x", ((b"Content-Type", b"text/plain"),)),
        ),
    ],
)
def test_plugins_that_answer(plugin: str, expected: Respond) -> None:
    found = answering(f"{{name: {plugin}}}")
    assert found.route("r").respond == expected
    # As there, a prefix is one of bytes.
    assert [found.ask(path).to for path in ("/r/x", "/rx", "/q")] == [f"{expected.status} fixed"] * 2 + ["s.internal:80"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("location: 'https://new.example/x'", Redirect(301, "https", "new.example", None, b"/x")),
        ("location: 'http://new.example:81', status_code: 307", Redirect(307, "http", "new.example", 81, b"/")),
        ("location: 'https://new.example/x', keep_incoming_path: true", Redirect(301, "https", "new.example")),
    ],
)
def test_redirects(config: str, expected: Redirect) -> None:
    found = answering(f"{{name: redirect, config: {{{config}}}}}")
    assert found.route("r").redirect == expected
    assert ("the query of a request stays" in found.comments) == (expected.path is not None)


@pytest.mark.parametrize(
    "plugins",
    [
        ["{name: request-termination, config: {trigger: x}}"],
        ["{name: request-termination, config: {echo: true}}"],
        ["{name: request-termination, config: {status_code: 99}}"],
        ["{name: request-termination}", "{name: key-auth}"],
        ["{name: redirect, config: {location: /x}}"],
        ["{name: redirect, config: {location: 'https://a/x', status_code: 300}}"],
        ["{name: redirect}"],
    ],
)
def test_what_cannot_be_answered_is_closed(plugins: list[str]) -> None:
    found = answering(*plugins)
    assert found.ask("/r").to == "closed"
    assert found.ask("/q").to == "s.internal:80"


def test_a_plugin_that_is_off_answers_nothing() -> None:
    assert answering("{name: request-termination, enabled: false}").ask("/r").to == "s.internal:80"


def test_https_only() -> None:
    found = answering(route=", protocols: [https], https_redirect_status_code: 308")
    assert [(route.name, told_end(route)) for route in found.config.routes if route.name != "q"] == [
        ("r", "-> 308 https://*"),
        ("r-2", "s"),
    ]
    assert "a redirect to https never ends" in found.comments
    assert "Kong answered with 426" in answering(route=", protocols: [https]").comments


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("services: []\n", "sample:1:1: has no _format_version"),
        ('_format_version: "3.0"\n', "nothing in it could be carried over from kong"),
        ('_format_version: "3.0"\nservices: [1]\n', "nothing in it"),
        ("{", "is not YAML"),
    ],
)
def test_what_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Imported("kong", text)
    assert told in str(error.value)
