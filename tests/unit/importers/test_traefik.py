"""What becomes of a document of Traefik's file provider."""

from __future__ import annotations

import pytest

from gateway.commands.wording import told_end, told_mirror
from gateway.errors import ConfigError
from gateway.importers import traefik_rule
from gateway.importers.traefik_rule import RuleError
from gateway.model import Balance, HealthCheck, Match
from tests.imported import Imported, Went
from tests.unit.importers.traefik_cases import CONFIG, DIFFERENT, REQUESTS, Ask


@pytest.fixture(scope="module")
def sample() -> Imported:
    return Imported("traefik", CONFIG)


@pytest.mark.parametrize("ask", REQUESTS + DIFFERENT, ids=[ask.id for ask in REQUESTS + DIFFERENT])
def test_a_request_goes_where_traefik_sends_it(ask: Ask, sample: Imported) -> None:
    host = f"{ask.to}.internal" if "/theirs" in ask.target else ask.host
    expected = Went(f"{ask.to}.internal:80", ask.sent or ask.target, host) if ask.to else Went("")
    assert ask.of(sample) == expected


# -- the grammar of rules ------------------------------------------------------------------


def matches(rule: str) -> list[Match]:
    return [traefik_rule.match(conditions)[0] for conditions in traefik_rule.read(rule)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("Host(`a.b`)", [Match(host="a.b")]),
        ('Host("a.b")', [Match(host="a.b")]),
        ("host(`A.b.`)", [Match(host="a.b")]),
        ("Host(`a.b`, `c.d`)", [Match(host="a.b"), Match(host="c.d")]),
        ("Host(`a.b`) || Host(`c.d`) && Path(`/x`)", [Match(host="a.b"), Match(host="c.d", path="/x")]),
        (
            "(Host(`a.b`) || Host(`c.d`)) && (Path(`/x`) || Path(`/y`))",
            [
                Match(host="a.b", path="/x"),
                Match(host="a.b", path="/y"),
                Match(host="c.d", path="/x"),
                Match(host="c.d", path="/y"),
            ],
        ),
        ("Method(`get`)", [Match(methods=frozenset({"GET"}))]),
        ("Method(`GET`, `POST`)", [Match(methods=frozenset({"GET"})), Match(methods=frozenset({"POST"}))]),
        ("Header(`X-A`, `1`)", [Match(headers=(("x-a", "1"),))]),
        ("Headers(`X-A`, `1`) && Headers(`X-A`, `1`)", [Match(headers=(("x-a", "1"),))]),
        ("Query(`a`, `1`)", [Match(query=(("a", "1"),))]),
        ("Query(`a=1`, `b=2`)", [Match(query=(("a", "1"), ("b", "2")))]),
        ("HostRegexp(`.+`)", [Match()]),
        ("HostRegexp(`^.+\\.a\\.b$`)", [Match(host="*.a.b")]),
        ("HostRegexp(`{any:[a-z]+}.a.b`)", [Match(host="*.a.b")]),
        ("PathRegexp(`^/a/[0-9]+$`)", [Match(regex="/a/[0-9]+")]),
        ("PathRegexp(`/a|/b`)", [Match(regex=".*(?:/a|/b).*")]),
        ("Path(`/a/{id}/b`)", [Match(regex="/a/(?:[^/]+)/b")]),
        ("PathPrefix(`/a/{id:[0-9]{2}}`)", [Match(regex="/a/(?:[0-9]{2}).*")]),
        ("PathPrefix(`/a`) && !Path(`/a/b`)", [Match(prefix="/a", excluded=Match(path="/a/b"))]),
        ("!(PathPrefix(`/a`) || Path(`/b`))", [Match(excluded=Match(path="/b", regex="/a.*"))]),
        ("!PathPrefix(`/a`) && !PathPrefix(`/b/`)", [Match(excluded=Match(regex="(?:/a.*)|(?:/b/.*)"))]),
        ("PathPrefix(`/`) && !Path(`/a`) && !Path(`/b`)", [Match(prefix="/", excluded=Match(regex="(?:/a)|(?:/b)"))]),
        ("PathPrefix(`/a`) && !PathRegexp(`\\.php$`)", [Match(prefix="/a", excluded=Match(regex=".*\\.php"))]),
        ("PathPrefix(`/a`) && PathPrefix(`/a/b`)", [Match(prefix="/a/b")]),
        ("Path(`/a/b`) && PathPrefix(`/a`) && PathRegexp(`b$`)", [Match(path="/a/b")]),
        ("Path(`/a`) && !Path(`/b`)", [Match(path="/a", excluded=Match(path="/b"))]),
        ("PathPrefix(`/a`) && PathRegexp(`x$`)", [Match(prefix="/a", regex=".*x")]),
        ("!!Path(`/a`)", [Match(path="/a")]),
    ],
)
def test_rules(rule: str, expected: list[Match]) -> None:
    assert matches(rule) == expected


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("Host(`a`", "its end where , should be"),
        ("Host(`a`) Path(`/b`)", "goes on with 'Path'"),
        ("&& Host(`a`)", "has && where a condition should be"),
        ("Host(`a`) ||", "its end where a condition"),
        ("Host(a)", "argument that is no text"),
        ("Host", "its end where ( should be"),
        ("Host(`a`) & Path(`/b`)", "not understood at '&"),
        ("Host(`a)", "not understood at '`a)'"),
        ("(" * 70 + "Host(`a`)" + ")" * 70, "nested deeper"),
        ("!" * 70 + "Host(`a`)", "nested deeper"),
        (" && ".join(["(Path(`/a`) || Path(`/b`))"] * 9), "more than 256 alternatives"),
    ],
)
def test_what_is_no_rule(rule: str, told: str) -> None:
    with pytest.raises(RuleError) as error:
        traefik_rule.read(rule)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "rule",
    [
        "ClientIP(`10.0.0.0/8`)",
        "HeaderRegexp(`X`, `a.*`)",
        "QueryRegexp(`a`, `b`)",
        "!Host(`a`)",
        "PathRegexp(`a`) && PathRegexp(`b`)",
        "PathPrefix(`/a`) && PathPrefix(`/b`)",
        "Path(`/a`) && Path(`/b`)",
        "Path(`/a`) && PathRegexp(`b`)",
        "Path(`/a`) && PathPrefix(`/b`)",
        "!Method(`GET`)",
        "Host(`a`) && Host(`b`)",
        "Method(`GET`) && Method(`PUT`)",
        "HostRegexp(`^(a|b)\\.example$`)",
        "Query(`a`)",
        "Frobnicate(`a`)",
        "Path()",
    ],
)
def test_a_condition_that_no_match_has_takes_its_alternative_along(rule: str) -> None:
    found = Imported("traefik", document(f"{rule} || Host(`kept.example`)"))
    assert found.ask("/", "other.example").to == ""
    assert found.ask("/", "kept.example").to == "s.internal:80"
    assert "an alternative of its rule is left out" in found.comments


def document(rule: str, more: str = "", service: str = "") -> str:
    rule = rule.replace("\\", "\\\\").replace('"', '\\"')
    return f"""
http:
  routers:
    r: {{rule: "{rule}", service: s, {more}}}
  services:
    s: {{loadBalancer: {{servers: [{{url: "http://s.internal"}}]{service}}}}}
"""


# -- what else there is --------------------------------------------------------------------

TOML = """
# routers
[http.routers.main]
  rule = "Host(`a.example`) && PathPrefix(`/x`)"
  service = "svc"
  entryPoints = ["web"]
  middlewares = ["limit", "strip@file"]
[http.middlewares.limit.rateLimit]
  average = 5
[http.middlewares.strip.stripPrefix]
  prefixes = ["/x"]
[http.services.svc.loadBalancer]
  serversTransport = "st"
  [[http.services.svc.loadBalancer.servers]]
    url = "https://10.0.0.1:8443/ignored"
    weight = 2
  [http.services.svc.loadBalancer.healthCheck]
    path = "/h"
    port = 8080
[http.serversTransports.st]
  insecureSkipVerify = true
  serverName = "inside.example"
  maxIdleConnsPerHost = 7
  [http.serversTransports.st.forwardingTimeouts]
    dialTimeout = "1m30s"
    responseHeaderTimeout = 3
[tcp.routers.x]
  rule = "HostSNI(`*`)"
"""


def test_toml_is_read_and_lines_are_told() -> None:
    found = Imported("traefik", TOML)
    assert found.ask("/x/y", "a.example") == Went("10.0.0.1:8443", "/y", "a.example")
    (upstream,) = found.config.upstreams.values()
    assert upstream.tls is not None
    assert (upstream.tls.verify, upstream.tls.server_name) == (False, "inside.example")
    assert (upstream.timeouts.connect, upstream.timeouts.response, upstream.pool.max_idle) == (90.0, 3.0, 7)
    for told in (
        "# line 6: router main: entryPoints is not carried over",
        "# line 8: middleware limit: rateLimit is not carried over",
        "# line 15: server: the path of its url is left out",
        "# line 17: service svc loadBalancer: healthCheck is not carried over: port cannot be expressed",
        "# line 27: tcp is not carried over",
    ):
        assert told in found.comments


def test_redirects_leave_the_real_router() -> None:
    text = """
http:
  routers:
    web: {rule: "Host(`a.example`)", service: s, entryPoints: [web], middlewares: [https]}
    websecure: {rule: "Host(`a.example`)", service: s, entryPoints: [websecure], tls: {}}
  middlewares: {https: {redirectScheme: {scheme: https}}}
  services: {s: {loadBalancer: {servers: [{url: "http://s.internal"}]}}}
"""
    found = Imported("traefik", text)
    assert [(route.name, told_end(route)) for route in found.config.routes] == [
        ("web", "-> 307 https://*"),
        ("websecure", "s"),
    ]
    assert "without that a redirect to https never ends" in found.comments
    # Without the twin the service is for those who come by https.
    alone = Imported("traefik", "\n".join(line for line in text.splitlines() if "websecure" not in line))
    assert [told_end(route) for route in alone.config.routes] == ["-> 307 https://*", "s"]


@pytest.mark.parametrize(
    ("redirect", "told"),
    [
        ("redirectScheme: {scheme: https, permanent: true, port: 8443}", "-> 308 https://*:8443"),
        ("redirectScheme: {scheme: http}", "-> 307 http://*"),
    ],
)
def test_redirects(redirect: str, told: str) -> None:
    text = document("PathPrefix(`/`)", "middlewares: [m]") + f"  middlewares: {{m: {{{redirect}}}}}\n"
    assert Imported("traefik", text).ask("/x").to == told


@pytest.mark.parametrize(
    ("middlewares", "told"),
    [
        ("{m: {redirectRegex: {regex: a, replacement: b}}}", "redirectRegex answers instead of a service"),
        ("{m: {redirectScheme: {scheme: ftp}}}", "redirectScheme cannot be expressed"),
        ("{m: {stripPrefix: {prefixes: [/a]}}, n: {redirectScheme: {scheme: https}}}", "redirectScheme cannot be expressed"),
    ],
)
def test_redirects_that_cannot_be_expressed(middlewares: str, told: str) -> None:
    names = "[m, n]" if "n: " in middlewares.partition("prefixes")[2] else "[m]"
    text = document("PathPrefix(`/`)", f"middlewares: {names}") + f"  middlewares: {middlewares}\n"
    found = Imported("traefik", text)
    assert found.ask("/a/x") == Went("closed")
    assert told in next(line for line in found.comments.splitlines() if "closed: " in line)


def test_a_guard_before_a_redirect_closes_both() -> None:
    given = "  middlewares: {m: {redirectScheme: {scheme: https}}, g: {basicAuth: {users: []}}}\n"
    before = Imported("traefik", document("PathPrefix(`/`)", "middlewares: [g, m]") + given)
    assert [told_end(route) for route in before.config.routes] == ["closed"]
    after = Imported("traefik", document("PathPrefix(`/`)", "middlewares: [m, g]") + given)
    assert [told_end(route) for route in after.config.routes] == ["-> 307 https://*", "closed"]


@pytest.mark.parametrize("guard", ["basicAuth", "digestAuth", "forwardAuth", "ipAllowList", "ipWhiteList", "plugin"])
def test_a_guarded_router_is_closed_and_not_opened(guard: str) -> None:
    text = document("PathPrefix(`/g`)", "middlewares: [m]") + f"  middlewares: {{m: {{{guard}: {{a: b}}}}}}\n"
    found = Imported("traefik", text)
    assert found.ask("/g/x") == Went("closed")
    assert f"closed: {guard} guarded it, and is not in this version; to open it: upstream: s" in found.comments


OTHERS = """\
    t: {loadBalancer: {servers: [{url: "http://t.internal"}]}}
    split: {weighted: {services: [{name: s, weight: 3}, {name: t}]}}
"""


@pytest.mark.parametrize(
    ("service", "end", "mirror"),
    [
        ("weighted: {services: [{name: s, weight: 3}, {name: t}]}", "s 75%, t 25%", ""),
        ("mirroring: {service: s, mirrors: [{name: t, percent: 10}]}", "s", "10% copied to t"),
        ("mirroring: {service: split, mirrors: [{name: t, percent: 100}]}", "s 75%, t 25%", "100% copied to t"),
        ("mirroring: {service: s, mirrors: [{name: t}]}", "s", ""),
        ("mirroring: {service: s, mirrors: [{name: split, percent: 5}]}", "s", ""),
        ("failover: {service: s, fallback: t}", "s", ""),
        ("failover: {service: split, fallback: t}", "s 75%, t 25%", ""),
        ("weighted: {services: [{name: s}, {name: nope}]}", "closed", ""),
        ("weighted: {services: [{name: s}, {name: split}]}", "closed", ""),
        ("weighted: {services: [{name: w}]}", "closed", ""),
        ("weighted: {services: [{name: s, weight: 70000}, {name: t}]}", "closed", ""),
        ("weighted: {services: [{name: s, weight: 0}]}", "closed", ""),
        ("mirroring: {service: nope}", "closed", ""),
        ("highestRandomWeight: {services: [{name: s}]}", "closed", ""),
    ],
)
def test_services_of_other_kinds(service: str, end: str, mirror: str) -> None:
    text = document("PathPrefix(`/`)").replace("service: s,", "service: w,") + OTHERS + f"    w: {{{service}}}\n"
    (route,) = Imported("traefik", text).config.routes
    assert told_end(route) == end
    assert ("" if route.mirror is None else told_mirror(route.mirror)) == mirror


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ("weighted: {services: [{name: s}], sticky: {cookie: {}}}", "weighted: sticky is not carried over: split.by is for"),
        ("weighted: {services: [{name: s}, {name: nope}]}", "weighted: left out: its service nope cannot be a part of it"),
        ("mirroring: {service: s, maxBodySize: 5, mirrors: [{name: t, percent: 1}]}", "mirroring: maxBodySize is not carried"),
        ("mirroring: {service: s, mirrors: [{name: t, percent: 1}, {name: t, percent: 2}]}", "mirror: t is not carried over: there is one"),
        ("mirroring: {service: s, mirrors: [{name: t}]}", "mirror: t is not carried over: its service or its percent"),
        ("failover: {service: s, fallback: t}", "failover: fallback is not carried over: here that is for an upstream"),
        ("highestRandomWeight: {}", "service w: highestRandomWeight is not carried over: a split goes by"),
    ],
)
def test_what_services_of_other_kinds_lose_is_told(service: str, told: str) -> None:
    text = document("PathPrefix(`/`)").replace("service: s,", "service: w,") + OTHERS + f"    w: {{{service}}}\n"
    assert told in Imported("traefik", text).comments


def test_a_closed_split_can_be_opened_again() -> None:
    text = document("PathPrefix(`/`)", "middlewares: [m]").replace("service: s,", "service: split,") + OTHERS
    found = Imported("traefik", text + "  middlewares: {m: {basicAuth: {users: []}}}\n")
    assert found.ask("/x") == Went("closed")
    assert "to open it: split: [{upstream: s, weight: 3}, {upstream: t, weight: 1}]" in found.comments


def test_upstreams_that_are_refused_take_mirrors_along() -> None:
    bad = OTHERS.replace("http://t.internal", "http://169.254.1.1")
    service = "    w: {mirroring: {service: s, mirrors: [{name: t, percent: 10}]}}\n"
    text = document("PathPrefix(`/`)").replace("service: s,", "service: w,") + bad + service
    found = Imported("traefik", text)
    assert found.ask("/x").to == "s.internal:80"
    assert "nothing is copied: upstream t is left out" in found.comments
    split = document("PathPrefix(`/`)").replace("service: s,", "service: split,") + bad
    assert Imported("traefik", split).ask("/x").to == "closed"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("strategy: wrr", Balance()),
        ("Strategy: p2c", Balance("least_requests")),
        ("strategy: leasttime", Balance("ewma")),
        ("strategy: hrw", Balance("hash", "client_ip")),
        ("strategy: nope", Balance()),
        ("sticky: {cookie: {name: lb}}", Balance("sticky", name="lb")),
        ("sticky: {cookie: {}}", Balance("sticky", name="gw_s")),
        ("sticky: {}", Balance()),
    ],
)
def test_balancers(given: str, expected: Balance) -> None:
    assert Imported("traefik", document("PathPrefix(`/`)", "", f", {given}")).config.upstreams["s"].balance == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("path: /up", HealthCheck(b"/up", healthy=1, unhealthy=1)),
        (
            "path: /up, interval: 5s, timeout: 500ms, hostname: h.example, status: 204, method: GET, headers: {X-A: b}",
            HealthCheck(b"/up", False, 5.0, 0.5, 1, 1, frozenset({204}), "h.example", ((b"X-A", b"b"),)),
        ),
        ("path: /up, port: 81", None),
        ("path: /up, method: HEAD", None),
        ("path: /up, mode: grpc", None),
        ("path: /up, scheme: https", None),
        ("interval: 5s", None),
    ],
)
def test_active_health(given: str, expected: HealthCheck | None) -> None:
    found = Imported("traefik", document("PathPrefix(`/`)", "", f", healthCheck: {{{given}}}"))
    assert found.config.upstreams["s"].health == expected
    assert ("healthCheck is not carried over: " in found.comments) == (expected is None)


def test_what_is_not_in_the_document_is_told() -> None:
    text = document("Path(`/a`)", "middlewares: [m@docker, n]").replace("service: s,", "service: api@internal,")
    found = Imported("traefik", text)
    assert found.ask("/a") == Went("closed")
    for told in ("service api@internal is not in", "middleware m@docker is not in", "middleware n is not in"):
        assert told in found.comments
    assert "service s: no router that was carried over leads to it" in found.comments


def test_a_chain_that_names_itself_ends() -> None:
    text = document("Path(`/a`)", "middlewares: [m]") + "  middlewares: {m: {chain: {middlewares: [m]}}}\n"
    assert Imported("traefik", text).ask("/a") == Went("closed")


def test_retries_and_unknown_keys() -> None:
    more = ", sticky: {cookie: {maxAge: 5, httpOnly: false}}, Strategy: random, passiveHealthCheck: {}"
    text = document("Path(`/a`)", "middlewares: [m, c], observability: {}", more)
    text += "  middlewares: {m: {retry: {attempts: 4, initialInterval: 1s}}, c: {circuitBreaker: {expression: x}}}\n"
    found = Imported("traefik", text)
    assert found.route("r").retry.attempts == 4
    for told in (
        "observability is not carried over",
        "cookie: maxAge is not carried over",
        "cookie: httpOnly is not carried over: its cookie always is",
        "strategy is not carried over: it is not known here",
        "initialInterval is not carried over: retry.backoff is for tries of the same endpoint",
        "passiveHealthCheck is not carried over: eject is on",
        "circuitBreaker is not carried over: breaker belongs to an upstream",
    ):
        assert told in found.comments


def test_the_longer_rule_wins_as_there() -> None:
    """By length: a longer prefix is the shorter rule here."""
    text = """
http:
  routers:
    long: {rule: "PathPrefix(`/a`) && Method(`GET`, `POST`, `PUT`, `PATCH`)", service: one}
    deep: {rule: "PathPrefix(`/a/b`)", service: two}
    tie: {rule: "Path(`/a/b/c`)", service: two, priority: 1000}
  services:
    one: {loadBalancer: {servers: [{url: "http://one"}]}}
    two: {loadBalancer: {servers: [{url: "http://two"}]}}
"""
    found = Imported("traefik", text)
    assert found.ask("/a/b/x").to == "one:80"
    assert found.ask("/a/b/x", method="DELETE").to == "two:80"
    assert found.ask("/a/b/c").to == "two:80"
    assert {route.name: route.priority for route in found.config.routes} == {"tie": 1, "long": 1, "deep": 0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[http\n", "sample:1:6: is not TOML"),
        ("a = " + "[" * 5000, "nested too deep"),
        ("a = " + "{b = " * 70 + "1" + "}" * 70, "nested too deep"),
        ("http: {routers: {a: {rule: x}", "is not YAML"),
        ("http:\n  routers:\n    a: {rule: 1}\n    a: {rule: 2}\n", "sample:4:5: http.routers.a: given twice"),
        ("- a\n", "sample:1:1: must be a mapping"),
        ("", "is empty"),
        ("http: {}\n", "nothing in it could be carried over from traefik"),
        ("http: {routers: {a: {service: s}}}\n", "sample:1:1: router a: left out: it has no rule"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_what_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Imported("traefik", text.encode("latin-1"))
    assert told in str(error.value)
