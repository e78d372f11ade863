"""Keys for worse days: how endpoints are picked, left alone and asked, and how much is let through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway import model
from gateway.config import schema
from tests.unit.config.reading import at, mistake, mistakes, read, route, server, upstream, with_route, with_upstream


def layered(defaults: str, given: str) -> model.Upstream:
    """An upstream below some defaults."""
    return upstream_of(f"version: 1\ndefaults: {{{defaults}}}\nupstreams:\n  u: {{consul: s{given}}}\n")


def upstream_of(text: str) -> model.Upstream:
    return read(text).upstreams["u"]


# -- how an endpoint is picked -------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("round_robin", model.Balance()),
        ("least_requests", model.Balance("least_requests")),
        ("ewma", model.Balance("ewma")),
        ("{hash: {by: client_ip}}", model.Balance("hash", "client_ip")),
        ("{hash: {by: path}}", model.Balance("hash", "path")),
        ("{hash: {by: 'header:X-User'}}", model.Balance("hash", "header", "x-user")),
        ("{hash: {by: 'cookie:Session'}}", model.Balance("hash", "cookie", "Session")),
        ("{hash: {by: 'query:user id'}}", model.Balance("hash", "query", "user id")),
        ("{sticky: {cookie: gw}}", model.Balance("sticky", name="gw")),
        ("{sticky: {cookie: gw, secret: null}}", model.Balance("sticky", name="gw")),
        ("{sticky: {cookie: gw, secret: 's p'}, hash: null}", model.Balance("sticky", name="gw", secret="s p")),
    ],
)
def test_balancers(written: str, expected: model.Balance) -> None:
    assert upstream(f"{{consul: s, balance: {written}}}").balance == expected
    assert layered(f"balance: {written}", "").balance == expected
    assert layered(f"balance: {written}", ", balance: ewma").balance == model.Balance("ewma")


WORDS = "round_robin | least_requests | ewma | {hash: {by}} | {sticky: {cookie}}"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("random", f'must be one of {WORDS}, not "random"'),
        ("hash", f'must be one of {WORDS}, not "hash"'),
        ("null", f"must be one of {WORDS}, not null"),
        ("[ewma]", f"must be one of {WORDS}, not a list"),
        ("{}", "needs exactly one of hash, sticky"),
        ("{hash: {by: path}, sticky: {cookie: c}}", "needs exactly one of hash, sticky"),
    ],
)
def test_what_is_no_balancer(written: str, told: str) -> None:
    for place, text in (
        ("defaults", f"version: 1\ndefaults: {{balance: {written}}}\n"),
        ("upstreams.u", with_upstream(f"{{consul: s, balance: {written}}}")),
    ):
        assert mistake(text) == f"{at(text, written)}: {place}.balance: {told}"


@pytest.mark.parametrize(
    "by", ["ip", "header", "'header:'", "'header:a b'", "'cookie:a;b'", "'query:'", "'path:x'", "'client_ip:1'", "5", "null"]
)
def test_what_nothing_is_hashed_by(by: str) -> None:
    text = with_upstream(f"{{consul: s, balance: {{hash: {{by: {by}}}}}}}")
    assert mistake(text).startswith(f"{at(text, by)}: upstreams.u.balance.hash.by: must be ")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{cookie: 'a b'}", 'sticky.cookie: must be a token, not "a b"'),
        ("{}", "sticky.cookie: is required"),
        ("{cookie: c, secret: 17171717}", "sticky.secret: must be text (in quotes"),
    ],
)
def test_bad_cookies(given: str, told: str) -> None:
    found = mistake(with_upstream(f"{{consul: s, balance: {{sticky: {given}}}}}"))
    assert f"upstreams.u.balance.{told}" in found
    # It may be a secret for all that.
    assert "1717" not in found


def test_a_secret_is_in_no_text_of_the_model() -> None:
    assert "hush" not in repr(upstream("{consul: s, balance: {sticky: {cookie: c, secret: hush}}}"))


# -- sections that null switches off ----------------------------------------------------------


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ("", "", model.Eject()),
        ("eject: {}", "", model.Eject()),
        ("eject: {for: 20s, statuses: [503, 500]}", "", model.Eject(out_for=20.0, statuses=frozenset({500, 503}))),
        ("eject: {for: 20s}", ", eject: {window: 5s}", model.Eject(out_for=20.0, window=5.0)),
        ("eject: null", "", None),
        ("", ", eject: null", None),
        ("eject: null", ", eject: {consecutive: 0}", model.Eject(consecutive=0)),
        ("eject: {for: 20s}", ", eject: {error_rate: 0%, max_ejected: 100%}", model.Eject(0, out_for=20.0, error_rate=0.0, max_ejected=1.0, )),
    ],
)
def test_passive_health(defaults: str, given: str, expected: model.Eject | None) -> None:
    if "error_rate: 0%" in given:
        given = given.replace("{", "{consecutive: 0, ")
    assert layered(defaults, given).eject == expected


OK = frozenset(range(200, 400))


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ("", "", None),
        ("", ", health: {}", model.HealthCheck()),
        ("", ", health: {tcp: true, interval: 1s}", model.HealthCheck(tcp=True, interval=1.0)),
        ("health: {path: /up, interval: 1s}", ", health: {timeout: 500ms}", model.HealthCheck(b"/up", interval=1.0, timeout=0.5)),
        ("health: {path: /up}", ", health: null", None),
        ("health: null", ", health: {healthy: 1}", model.HealthCheck(healthy=1)),
        # What is said nearer is meant, though it leaves the other kind of check.
        ("health: {path: /up, interval: 1s}", ", health: {tcp: true}", model.HealthCheck(b"/up", tcp=True, interval=1.0)),
        ("health: {tcp: true, interval: 1s}", ", health: {path: '/up?a=1'}", model.HealthCheck(b"/up?a=1", interval=1.0)),
        ("health: {tcp: true}", ", health: {interval: 1s}", model.HealthCheck(tcp=True, interval=1.0)),
        ("", ", health: {status: [204]}", model.HealthCheck(statuses=frozenset({204}))),
        ("", ", health: {status: [200-202, 404, '418-418']}", model.HealthCheck(statuses=frozenset({200, 201, 202, 404, 418}))),
        (
            "",
            ", health: {host: 'a.example:81', headers: {X-A: 1.10, User-Agent: gateway}}",
            model.HealthCheck(host="a.example:81", headers=((b"X-A", b"1.10"), (b"User-Agent", b"gateway"))),
        ),
    ],
)
def test_active_health(defaults: str, given: str, expected: model.HealthCheck | None) -> None:
    found = layered(defaults, given).health
    assert found == expected
    if expected == model.HealthCheck():
        assert expected.statuses == OK


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ("", "", None),
        ("breaker: {}", "", model.Breaker()),
        ("breaker: {open_for: 1s}", ", breaker: {error_rate: 0.5%}", model.Breaker(0.005, open_for=1.0)),
        ("breaker: {}", ", breaker: null", None),
        ("", ", breaker: {min_requests: 1, window: 100ms}", model.Breaker(min_requests=1, window=0.1)),
    ],
)
def test_breakers(defaults: str, given: str, expected: model.Breaker | None) -> None:
    assert layered(defaults, given).breaker == expected


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ("", "", model.Concurrency()),
        ("concurrency: {limit: 5}", ", concurrency: {queue: 0}", model.Concurrency(5, 0)),
        ("concurrency: {limit: 0}", "", model.Concurrency(0)),
        ("concurrency: {limit: null, queue_timeout: 2s}", "", model.Concurrency(0, queue_timeout=2.0)),
        ("concurrency: {queue: 5}", ", concurrency: null", model.Concurrency(0, 5)),
        ("concurrency: null", "", model.Concurrency(0)),
        ("concurrency: null", ", concurrency: {limit: 7, adaptive: true}", model.Concurrency(7, adaptive=True)),
    ],
)
def test_concurrency(defaults: str, given: str, expected: model.Concurrency) -> None:
    assert layered(defaults, given).concurrency == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("eject: {consecutive: -1}", "eject.consecutive: must be a whole number"),
        ("eject: {consecutive: null}", "eject.consecutive: must be a whole number"),
        ("eject: {error_rate: 0.5}", "eject.error_rate: must be a percentage"),
        ("eject: {min_requests: 0}", "eject.min_requests: must be a whole number"),
        ("eject: {for: 99ms}", "eject.for: must be a duration of at least 100ms"),
        ("eject: {statuses: [404]}", "eject.statuses[0]: must be a whole number, not 404 (500 to 599)"),
        ("eject: {for: 10s, max_for: 5s}", "eject.for: for is longer than max_for (for 10 s, max_for 5 s)"),
        ("eject: 5", "eject: must be a mapping"),
        ("health: {path: up}", "health.path: must be a path"),
        ("health: {interval: 1ms}", "health.interval: must be a duration of at least 100ms"),
        ("health: {timeout: 0}", "health.timeout: must be a duration of at least 1ms"),
        ("health: {unhealthy: 0}", "health.unhealthy: must be a whole number"),
        ("health: {status: []}", "health.status: is empty: no answer would be good"),
        ("health: {status: ['204']}", "health.status[0]: must be a status or a range of them"),
        ("health: {status: [199]}", "health.status[0]: must be a status or a range of them"),
        ("health: {status: [300-200]}", "health.status[0]: must be a status or a range of them"),
        ("health: {status: [true]}", "health.status[0]: must be a status or a range of them"),
        ("health: {status: 200}", "health.status: must be a list"),
        ("health: {host: 'a b'}", "health.host: must be a host"),
        ("health: {headers: {Host: a}}", "health.headers.Host: the key must be a header that can be set"),
        ("health: {headers: {content-length: 5}}", "health.headers.content-length: the key must be a header"),
        ("health: {headers: {X: é}}", "health.headers.X: must be a header value in ASCII"),
        ("health: {tcp: true, path: /x}", "health.path: stands beside tcp: true, which asks nothing"),
        ("health: {tcp: true, headers: {}}", "health.headers: stands beside tcp: true, which asks nothing"),
        ("breaker: {error_rate: 0%}", "breaker.error_rate: must be a percentage above 0%"),
        ("breaker: {open_for: 0}", "breaker.open_for: must be a duration of at least 100ms"),
        ("breaker: {for: 1s}", "breaker.for: unknown key"),
        ("concurrency: {queue: null}", "concurrency.queue: must be a whole number"),
        ("concurrency: {limit: -1}", "concurrency.limit: must be a whole number"),
        ("concurrency: {limit: 0, adaptive: true}", "concurrency: adaptive needs a limit, below which it stays"),
        ("deadline_header: 'a b'", "deadline_header: must be a token"),
        ("deadline_header: X-Forwarded-For", "deadline_header: must be a header that can be set"),
        ("deadline_header: Connection", "deadline_header: must be a header that can be set"),
        ("slow_start: 5", "slow_start: must be a duration"),
        ("retry: {hedge: 1}", "retry.hedge: must be true or false"),
        ("retry: {backoff: 5}", "retry.backoff: must be a duration"),
    ],
)
def test_what_is_refused_is_refused_at_each_level(given: str, told: str) -> None:
    for place, text in (
        ("defaults", f"version: 1\ndefaults: {{{given}}}\n"),
        ("upstreams.u", with_upstream(f"{{consul: s, {given}}}")),
    ):
        assert f": {place}.{told}" in mistake(text)


def test_rules_are_asked_of_what_is_in_force() -> None:
    text = "version: 1\ndefaults: {eject: {for: 10m, max_for: 20m}}\nupstreams:\n  u: {consul: s, eject: {max_for: 1m}}\n"
    found = upstream_of(text).eject
    assert found is not None
    assert (found.out_for, found.max_for) == (60.0, 60.0)
    text = "version: 1\ndefaults: {concurrency: {adaptive: true}}\nupstreams:\n  u: {consul: s, concurrency: null}\n"
    assert mistake(text).startswith(f"{at(text, 'concurrency: null')}: upstreams.u.concurrency: adaptive needs")
    assert upstream_of(text.replace(": null", ": {limit: 5}")).concurrency.adaptive
    # What is written above is told there, once, and what could not be read is not judged by.
    text = "version: 1\ndefaults: {eject: {for: 10m, max_for: 1m}}\nupstreams:\n  u: {consul: s, eject: {window: 1s}}\n"
    assert mistake(text).startswith("f:2:20: defaults.eject.for: ")
    assert mistake(text.replace("10m", "10m, x: 1")).startswith("f:2:30: defaults.eject.x: ")


# -- single keys ------------------------------------------------------------------------------


def test_single_keys() -> None:
    found = layered("slow_start: 30s, deadline_header: X-Left, retry: {hedge: true}", ", slow_start: null")
    assert (found.slow_start, found.deadline_header) == (0.0, "X-Left")
    assert found.retry == model.RetryPolicy(hedge=True)
    assert layered("slow_start: 30s", "").slow_start == 30.0
    assert layered("deadline_header: X-Left", ", deadline_header: null").deadline_header is None
    assert upstream("{consul: s, retry: {backoff: 1s}}").retry.backoff == 1.0


def test_a_route_s_own_header_for_its_deadline() -> None:
    assert route("deadline_header: X-Mine").deadline_header == "X-Mine"
    text = with_route("deadline_header: null") + "defaults: {deadline_header: X-All}\n"
    assert read(text).routes[0].deadline_header is None
    assert read(text.replace("deadline_header: null", "priority: 1")).routes[0].deadline_header == "X-All"


@pytest.mark.parametrize(("written", "expected"), [("1s", 1.0), ("0", None), ("null", None)])
def test_how_late_a_worker_may_be(written: str, expected: float | None) -> None:
    assert read(server(f"overload: {written}")).server.overload == expected


# -- fallbacks --------------------------------------------------------------------------------


def fallbacks(**to: str) -> str:
    """Upstreams with fallbacks, and routes to all of them."""
    lines = "".join(f"  {name}: {{consul: s, fallback: {other}}}\n" for name, other in to.items())
    routes = "".join(f"  - {{name: {name}, upstream: {name}, match: {{path: /{name}}}}}\n" for name in to)
    return f"version: 1\nupstreams:\n{lines}  end: {{consul: e}}\nroutes:\n{routes}"


def test_a_route_goes_on_to_fallbacks() -> None:
    text = fallbacks(a="b", b="end", c="null") + "defaults: {timeouts: {connect: 1s}}\n"
    a, b, c = read(text.replace("b: {consul", "b: {timeouts: {connect: 3s}, host: upstream, consul")).routes
    assert a.fallback is not None
    assert b.fallback is not None
    last = replace(b.fallback, name="a", matches=a.matches, index=0, line=a.line)
    assert a.fallback == replace(b, name="a", matches=a.matches, index=0, line=a.line, fallback=last)
    assert [one.upstream for one in a.branches] == ["a", "b", "end"]
    assert [one.timeouts.connect for one in a.branches] == [1.0, 3.0, 1.0]
    assert [one.host for one in a.branches] == ["preserve", "upstream", "preserve"]
    assert c.fallback is None
    assert a.upstreams == ("a",)


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ({"a": "nope"}, ["f:3:28: upstreams.a.fallback: there is no upstream nope (allowed: a, end)"]),
        ({"a": "a"}, ["f:3:28: upstreams.a.fallback: leads back to the upstream itself (a -> a)"]),
        (
            {"a": "b", "b": "c", "c": "a", "d": "a"},
            ["f:3:28: upstreams.a.fallback: leads back to the upstream itself (a -> b -> c -> a)"],
        ),
        (
            {"a": "b", "b": "b", "c": "c"},
            [
                "f:4:28: upstreams.b.fallback: leads back to the upstream itself (b -> b)",
                "f:5:28: upstreams.c.fallback: leads back to the upstream itself (c -> c)",
            ],
        ),
        ({"a": "5"}, ['f:3:28: upstreams.a.fallback: must be text, not 5 (write "5")']),
        ({"a": "[end]"}, ["f:3:28: upstreams.a.fallback: must be text, not a list"]),
        ({"a": "{b: c}"}, ["f:3:28: upstreams.a.fallback: must be text, not a mapping"]),
    ],
)
def test_bad_fallbacks(to: dict[str, str], told: list[str]) -> None:
    assert mistakes(fallbacks(**to)) == told


def test_a_line_of_fallbacks_is_short() -> None:
    to = {f"u{number}": f"u{number + 1}" for number in range(7)} | {"u7": "end"}
    assert len(read(fallbacks(**to)).routes[0].branches) == 9
    more = {f"u{number}": f"u{number + 1}" for number in range(8)} | {"u8": "end"}
    assert mistake(fallbacks(**more)).endswith("upstreams.u0.fallback: has more than 8 fallbacks behind it")
    far = {f"u{number}": f"u{(number + 1) % 3000}" for number in range(3000)}
    assert all(one.endswith("has more than 8 fallbacks behind it") for one in mistakes(fallbacks(**far)))


def test_defaults_have_no_fallback() -> None:
    assert "defaults.fallback: unknown key" in mistake("version: 1\ndefaults: {fallback: a}\n")


# -- JSON Schema ------------------------------------------------------------------------------


def test_the_json_schema_of_balancers() -> None:
    told = schema.json_schema()["$defs"]["Defaults"]["properties"]["balance"]
    assert told["anyOf"] == [
        {"type": "string", "enum": ["round_robin", "least_requests", "ewma"]},
        {"$ref": "#/$defs/Balance"},
    ]
    assert set(schema.json_schema()["$defs"]["Eject"]["properties"]) == set(schema.Eject.keys())


@pytest.mark.parametrize(
    ("given", "times"),
    [("{}", (10.0, 300.0)), ("{for: 10m}", (600.0, 600.0)), ("{max_for: 5s}", (5.0, 5.0)), ("{for: 1s, max_for: 2s}", (1.0, 2.0))],
)
def test_of_two_times_the_one_that_is_not_written_gives_way(given: str, times: tuple[float, float]) -> None:
    found = upstream(f"{{consul: s, eject: {given}}}").eject
    assert found is not None
    assert (found.out_for, found.max_for) == times
