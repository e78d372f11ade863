"""Warnings: what is legal but unwise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import config
from gateway.config.advice.general import ADVICE
from gateway.config.advice.shadows import shadowed_matches
from gateway.config.advice.subject import Whole
from gateway.model import Config, Route
from gateway.routing.overlap import Extent
from gateway.routing.router import Router
from tests.long import times
from tests.unit.config.reading import at, mistake, read, server, with_route, with_upstream
from tests.unit.routing.test_router import HOSTS, PATHS, some_routes

ROOT = Path(__file__).resolve().parents[3]


def warnings(text: str, **environ: str) -> list[str]:
    return list(read(text, **environ).warnings)


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\n",
        with_route("match: {methods: [GET, HEAD]}"),
        with_route("match: {methods: [POST]}"),
        with_upstream("{endpoints: [https://10.0.0.1]}"),
        with_upstream("{endpoints: [https://a], host: upstream}"),
        with_upstream("{endpoints: [http://a]}"),
        server("drain: 24s"),
        server("{drain: 0, graceful: 1s}"),
    ],
)
def test_nothing_to_warn_of(text: str) -> None:
    assert warnings(text) == []


def test_get_without_head() -> None:
    text = with_route("match: [{path: /a}, {methods: [GET, POST]}]")
    assert warnings(text) == [
        f"{at(text, '[GET')}: routes[0].match[1].methods: has GET without HEAD: a HEAD finds no route here"
    ]


def test_a_header_that_is_dropped() -> None:
    text = with_route("match: {headers: {X_A: 1}}")
    assert warnings(text) == [
        f"{at(text, '{X_A')}: routes[0].match.headers: x_a never matches: header names with _ are dropped"
    ]


def test_the_client_s_host_over_tls() -> None:
    text = with_upstream("{endpoints: [http://a, https://b, 'https://[::1]']}")
    assert warnings(text) == [
        f"{at(text, 'https://b')}: upstreams.u.endpoints[1]: "
        "gets the client's Host, not b (host: upstream if it serves by name)"
    ]
    whole = with_upstream("{endpoints: [https://b]}").replace("upstream: u}", "upstream: u, host: upstream}")
    assert warnings(whole) == []
    assert warnings(with_upstream("{endpoints: [https://b]}") + "defaults: {host: x.example}\n") == []
    told_again = warnings(
        with_upstream("{endpoints: [{url: https://b}], host: upstream}").replace("u}", "u, host: preserve}")
    )
    assert [one.split(": ")[1] for one in told_again] == ["upstreams.u.endpoints[0].url"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_writes_that_may_be_repeated(method: str) -> None:
    retry = f"retry: {{methods: [GET, {method}]}}"
    for text, place in (
        (f"version: 1\ndefaults: {{{retry}}}\n", "defaults"),
        (with_upstream(f"{{consul: s, {retry}}}"), "upstreams.u"),
        (with_route(retry), "routes[0]"),
    ):
        assert warnings(text) == [f"{at(text, method)}: {place}.retry.methods[1]: {method} may be carried out twice"]


def test_an_unused_upstream() -> None:
    text = "version: 1\nupstreams:\n  a: {consul: s}\n  b:\n    consul: s\nroutes: [{name: r, upstream: a}]\n"
    assert warnings(text) == ["f:4:3: upstreams.b: no route leads to this upstream"]


def test_a_host_s_router_that_is_not_trusted() -> None:
    told = "DYNO is set and no proxy is trusted: every client looks like the host's router (private)"
    assert warnings("version: 1\n", DYNO="web.1") == [f"f:1:1: {told}"]
    assert warnings(server("trusted_proxies: []"), DYNO="web.1") == [f"f:3:20: server.trusted_proxies: {told}"]
    assert warnings("version: 1\n", DYNO="") == []
    assert warnings("version: 1\n", DYNO="web.1", GATEWAY_TRUSTED_PROXIES="private") == []
    assert warnings(server("trusted_proxies: [private]"), DYNO="web.1") == []


@pytest.mark.parametrize("drain", ["25s", "30s"])
def test_a_drain_that_leaves_no_time(drain: str) -> None:
    assert warnings(server(f"drain: {drain}")) == [
        "f:3:10: server.drain: is not shorter than graceful: nothing is left to finish requests in"
    ]


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_everybody_is_trusted(everybody: str) -> None:
    text = server(f"trusted_proxies: [private, '{everybody}']")
    assert warnings(text) == [
        f"f:3:30: server.trusted_proxies[1]: {everybody} is everybody: any client may say who it is"
    ]
    assert warnings(server("trusted_proxies: [10.0.0.0/8, '::1']")) == []


# -- routes that never win -------------------------------------------------------------------


def test_a_header_that_nothing_is_found_by() -> None:
    told = "no request has it: header names with _ are dropped"
    text = with_upstream("{consul: s, balance: {hash: {by: 'header:X_A'}}}")
    assert warnings(text) == [f"{at(text, chr(39) + 'header')}: upstreams.u.balance.hash.by: {told}"]
    text = with_route("split: {by: 'header:X_A', to: [{upstream: u}]}").replace("upstream: u, ", "", 1)
    assert warnings(text) == [f"{at(text, chr(39) + 'header')}: routes[0].split.by: {told}"]
    for by in ("cookie:a_b", "header:X-A"):
        assert warnings(text.replace("header:X_A", by)) == []


@pytest.mark.parametrize(
    "given",
    [
        "upstream: a",
        "split: [{upstream: a}]",
        "upstream: b, mirror: {upstream: a}",
        "upstream: c",
        "split: [{upstream: b, weight: 1}, {upstream: c, weight: 0}]",
    ],
)
def test_ways_to_an_upstream(given: str) -> None:
    head = "version: 1\nupstreams:\n  a: {consul: s}\n  b: {consul: s}\n  c: {consul: s, fallback: a}\nroutes:\n"
    unused = {one.split(": ")[1] for one in warnings(f"{head}  - {{name: r, {given}}}\n")}
    assert "upstreams.a" not in unused
    assert unused <= {"upstreams.b", "upstreams.c"}
    answered = warnings(f"{head}  - {{name: r, respond: {{}}}}\n")
    assert [one.split(": ")[1] for one in answered] == ["upstreams.a", "upstreams.b", "upstreams.c"]


def test_the_client_s_host_over_tls_in_every_way() -> None:
    for way in ("split: [{upstream: u}]", "upstream: v, mirror: {upstream: u}", "upstream: w"):
        text = (
            "version: 1\nupstreams:\n  u: {endpoints: [https://b]}\n  v: {consul: s}\n"
            f"  w: {{consul: s, fallback: u}}\nroutes:\n  - {{name: r, {way}}}\n"
        )
        assert [one for one in warnings(text) if "upstreams.u." in one] == [
            "f:3:19: upstreams.u.endpoints[0]: gets the client's Host, not b (host: upstream if it serves by name)"
        ]


def routed(*routes: str) -> str:
    """A document whose routes are given in flow style; the first is in line 5."""
    lines = "".join(f"  - {{name: r{number}, upstream: u, {route}}}\n" for number, route in enumerate(routes))
    return f"version: 1\nupstreams:\n  u: {{endpoints: [http://10.0.0.1:80]}}\nroutes:\n{lines}"


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("priority: 1", "match: {path: /a}"),
        ("priority: 1", "match: {regex: '/a+', headers: {a: 1}}"),
        ("priority: 1, match: {prefix: /a}", "match: {prefix: /a/b/c}"),
        ("priority: 1, match: {prefix: /a}", "match: {path: /a}"),
        ("priority: 1, match: {host: '*.b.c'}", "match: {host: a.b.c, prefix: /x}"),
        ("priority: 1, match: {host: '*.c'}", "match: {host: '*.b.c'}"),
        ("match: {path: /a, methods: [PUT, POST]}", "match: {path: '/%61', methods: [PUT]}"),
        ("match: {regex: '/a+'}", "match: {regex: '/a+', query: {v: 1}}"),
        ("match: {methods: [GET, HEAD, PUT]}", "match: {methods: [PUT]}"),
        ("priority: 1, match: {headers: {a: 1}}", "match: {headers: {a: 1, b: 2}}"),
    ],
)
def test_a_match_that_never_wins(wide: str, narrow: str) -> None:
    text = routed(wide, narrow)
    told = "never wins: route r0 in line 5 comes before it and takes all that it matches"
    assert warnings(text) == [f"{at(text, narrow.partition('match: ')[2])}: routes[1].match: {told}"]
    # The other way round each has requests of its own, or the order decides anew.
    assert all("route r0" not in one for one in warnings(routed(narrow, wide.removeprefix("priority: 1, "))))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("match: {prefix: /a}", "match: {prefix: /ab}"),
        ("priority: 1, match: {prefix: /a}", "match: {prefix: /}"),
        ("priority: 1, match: {host: '*.c'}", "match: {host: c}"),
        ("priority: 1, match: {host: a}", "match: {}"),
        ("priority: 1, match: {methods: [GET, HEAD]}", "match: {methods: [GET, HEAD, PUT]}"),
        ("priority: 1, match: {headers: {a: 1}}", "match: {headers: {a: 2}}"),
        ("priority: 1, match: {regex: '/a.*'}", "match: {path: /ab}"),  # true, and not decided
        ("match: [{path: /a}, {prefix: /a}]", "match: {prefix: /b}"),
        ("match: [{path: /a}, {path: /a, query: {v: 1}}]", "match: {path: /b}"),
    ],
)
def test_matches_that_may_win(first: str, second: str) -> None:
    assert warnings(routed(first, second)) == []


@pytest.mark.parametrize(
    ("redirect", "warned"),
    [("scheme: https", 0), ("host: www.a.b", 0), ("port: 8443", 0), ("path: /new", 1), ("prefix: /new, scheme: https", 1)],
)
def test_a_redirect_to_itself_leaves_requests_to_others(redirect: str, warned: int) -> None:
    text = routed("match: {prefix: /}, priority: 1", "match: {prefix: /a}")
    assert len(warnings(text.replace("upstream: u", f"redirect: {{{redirect}}}", 1))) == warned


def test_one_of_several_matches_never_wins() -> None:
    text = routed("match: {prefix: /a}, priority: 1", "match: [{prefix: /b}, {prefix: /a/b}]")
    assert [one.split(": ")[1] for one in warnings(text)] == ["routes[1].match[1]"]


def test_looking_for_shadows_does_not_take_the_square() -> None:
    """Hosts and paths are looked up: what is compared stays few, however many routes there are."""
    compared = 0
    covers = Extent.covers

    def counted(wide: Extent, narrow: Extent) -> bool:
        nonlocal compared
        compared += 1
        return covers(wide, narrow)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extent, "covers", counted)
        routes = [f"match: {{host: h{number}.example, prefix: /a/{number}}}" for number in range(500)]
        assert warnings(routed("match: {prefix: /}", *routes)) == []
    assert compared <= 500


@settings(max_examples=times(200), deadline=None)
@given(
    some_routes,
    st.sampled_from([b"GET", b"POST", b"HEAD"]),
    st.sampled_from([host.encode() for host in HOSTS]),
    st.sampled_from([path.encode() for path in PATHS]),
    st.sampled_from([b"", b"x=1", b"y=2&x=1"]),
    st.lists(st.tuples(st.sampled_from([b"x", b"y"]), st.sampled_from([b"1", b"2"])), max_size=2),
)
def test_what_is_said_to_never_win_never_does(
    routes: list[Route], method: bytes, host: bytes, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Without those matches every request goes where it went."""
    whole = cast(Whole, SimpleNamespace(config=Config("", {}, tuple(routes))))
    never = {breach.path[1::2] for breach in shadowed_matches(whole)}
    left = [
        replace(route, matches=tuple(match for number, match in enumerate(route.matches) if (place, number) not in never))
        for place, route in enumerate(routes)
    ]
    first, second = (Router(some).match(method, host, path, query, headers) for some in (routes, left))
    assert (first and first.name) == (second and second.name)


@pytest.mark.parametrize(("methods", "place"), [("[TRACE]", 0), ("[GET, HEAD, CONNECT]", 2)])
def test_methods_that_never_come(methods: str, place: int) -> None:
    (told,) = warnings(with_route(f"match: {{methods: {methods}}}"))
    method = "TRACE" if place == 0 else "CONNECT"
    assert told.endswith(f"routes[0].match.methods[{place}]: never matches: {method} is answered with 405")


@pytest.mark.parametrize("regex", ["users", r"users/\d+", "^users/.*", "u"])
def test_an_expression_without_the_slash(regex: str) -> None:
    text = with_route(f"match: {{regex: '{regex}'}}")
    told = "never matches: it is for the whole path, which begins with a slash"
    assert warnings(text) == [f"{at(text, chr(39) + regex)}: routes[0].match.regex: {told}"]


@pytest.mark.parametrize("regex", ["/users", "^/users", ".*users", "a?/x", "a*/x", "a|/x", "(?i)/x", "[/]x", r"\/x"])
def test_expressions_that_may_match(regex: str) -> None:
    assert warnings(with_route(f"match: {{regex: '{regex}'}}")) == []


def test_strip_prefix_without_a_prefix() -> None:
    for match in ("", "match: {}, ", "match: {host: a}, "):
        text = with_route(f"{match}strip_prefix: true")
        assert warnings(text) == [f"{at(text, 'strip_prefix')}: routes[0].strip_prefix: does nothing: no match has a prefix"]
    for match in ("match: {prefix: /a}, ", "match: {path: /a}, ", "match: [{}, {prefix: /a}], "):
        assert warnings(with_route(f"{match}strip_prefix: true")) == []


@pytest.mark.parametrize("given", ["match: {path: /a}, redirect: {path: /a}", "match: {prefix: /a}, redirect: {prefix: /a}"])
def test_a_redirect_to_where_one_is(given: str) -> None:
    text = f"version: 1\nroutes:\n  - {{name: r, {given}}}\n"
    key = "path" if "path" in given else "prefix"
    told = "does nothing: it leads to what was asked for"
    assert warnings(text) == [f"f:3:{text.splitlines()[2].rindex(key) + 1}: routes[0].redirect.{key}: {told}"]
    for other in ("redirect: {path: /a}", given.replace("redirect: {", "redirect: {scheme: https, ")):
        assert warnings(f"version: 1\nroutes:\n  - {{name: r, {other}}}\n") == []


def test_what_a_redirect_lets_pass_is_for_the_next_route() -> None:
    secure = "  - {name: https, priority: 1, redirect: {scheme: https}}\n"
    app = "  - {name: app, upstream: u}\n"
    head = "version: 1\nupstreams: {u: {consul: s}}\nroutes:\n"
    assert warnings(head + secure + app) == []
    # Of two with the same matches the first is asked first.
    assert warnings(head + secure.replace("priority: 1, ", "") + app) == []
    told = mistake(head + app + secure.replace("priority: 1, ", ""))
    assert told.startswith("f:5:5: routes[1]: can never be told apart from route app in line 4")
    moved = "  - {name: moved, redirect: {path: /x}}\n"
    assert "can never be told apart" in mistake(head + moved + app)


# -- time limits that do not fit each other ------------------------------------------------------


def test_tries_that_multiply() -> None:
    text = with_route("retry: {attempts: 3, when: [timeout]}")
    told = "3 tries of 30 s each (timeouts.response)"
    assert warnings(text) == [
        f"{at(text, 'when')}: routes[0].retry.when: {told}: clients may give up before, after 60 s or so (set timeouts.total)"
    ]
    text = with_route("retry: {attempts: 3, when: [timeout]}, timeouts: {total: 40s}")
    assert warnings(text) == [
        f"{at(text, 'when')}: routes[0].retry.when: {told} do not fit into timeouts.total, 40 s"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "retry: {attempts: 3}",
        "retry: {attempts: 3}, timeouts: {total: 40s}",
        "retry: {attempts: 1}, timeouts: {total: 3s}",
        "retry: {when: [timeout]}",
        "retry: {when: [timeout]}, timeouts: {total: 60s}",
        "retry: {attempts: 3, when: [timeout]}, timeouts: {response: 5s, total: 15s}",
        "retry: {attempts: 3, when: [timeout]}, timeouts: {response: 0}",
    ],
)
def test_tries_that_fit(text: str) -> None:
    assert warnings(with_route(text)) == []


def test_what_routes_share_is_told_once() -> None:
    text = "defaults: {retry: {attempts: 3, when: [timeout]}}\n" + routed("match: {path: /a}", "match: {path: /b}")
    assert [one.split(": ")[1] for one in warnings(text)] == ["defaults.retry.when"]


def test_a_total_that_is_over_before_connect() -> None:
    text = with_route("timeouts: {total: 1s}")
    told = "is over (1 s) before timeouts.connect (2 s): no other endpoint is ever tried"
    assert warnings(text) == [f"{at(text, 'total')}: routes[0].timeouts.total: {told}"]
    for fits in (
        "timeouts: {total: 3s}",
        "timeouts: {total: 1s, connect: 300ms}",
        "timeouts: {total: 1s}, retry: {attempts: 1}",
        "timeouts: {total: 1s}, retry: {when: [stale]}",
    ):
        assert warnings(with_route(fits)) == [], fits


def test_a_grace_that_cuts_waits() -> None:
    text = with_route("timeouts: {response: 40s}") + "server: {graceful: 30s}\n"
    told = "a stopping worker breaks off after 28 s what may wait 40 s for an answer"
    assert warnings(text) == [f"{at(text, '30s')}: server.graceful: {told}"]
    assert warnings(with_route("timeouts: {response: 40s}")) == []
    assert warnings(with_route("timeouts: {response: 40s, total: 20s}") + "server: {graceful: 30s}\n") == []
    assert warnings(with_route("timeouts: {response: 40s}") + "server: {graceful: 45s}\n") == []
    assert warnings(with_route("timeouts: {response: 0}") + "server: {graceful: 5s}\n") == []


@pytest.mark.parametrize("idle", ["75s", "1h", "0"])
def test_connections_that_are_kept_for_long(idle: str) -> None:
    text = with_upstream(f"{{consul: s, pool: {{idle_timeout: {idle}}}}}")
    told = "most servers close idle connections after 75 s or sooner: ours will be stale"
    assert warnings(text) == [f"{at(text, 'idle_timeout')}: upstreams.u.pool.idle_timeout: {told}"]
    assert warnings(with_upstream("{consul: s, pool: {idle_timeout: 74s}}")) == []
    above = f"defaults: {{pool: {{idle_timeout: {idle}}}}}\n"
    assert [one.split(": ")[1] for one in warnings(with_route("") + above)] == ["defaults.pool.idle_timeout"]


@pytest.mark.parametrize("key", ["when: [reset]", "statuses: [503]", "methods: [GET]", "budget: 5%", "buffer: 1KiB", "backoff: 1s"])
def test_retries_that_never_happen(key: str) -> None:
    text = with_route(f"retry: {{attempts: 1, {key}}}")
    name = key.partition(":")[0]
    assert warnings(text) == [f"{at(text, name)}: routes[0].retry.{name}: has no effect: retry.attempts is 1"]
    assert warnings(with_route(f"retry: {{attempts: 2, {key}}}")) == []
    # Switched off for one route: what is written above is for the others.
    assert warnings(with_route("retry: {attempts: 1}") + f"defaults: {{retry: {{{key}}}}}\n") == []


def test_retries_that_happen_for_another_upstream() -> None:
    head = "version: 1\nupstreams:\n  a: {consul: s, retry: {attempts: 1}}\n  b: {consul: s}\nroutes:\n"
    split = "  - {name: r, split: [{upstream: a}, {upstream: b}], retry: {statuses: [503]}}\n"
    assert warnings(head + split) == []
    assert len(warnings(head.replace("b: {consul: s}", "b: {consul: s, retry: {attempts: 1}}") + split)) == 1
    # A hedged try is paid for out of the budget.
    text = with_route("retry: {attempts: 1, budget: 5%, hedge: true}")
    assert [one.split(": ")[1] for one in warnings(text)] == ["routes[0].retry.hedge"]


def test_nobody_waits_for_a_mirror() -> None:
    text = (
        "version: 1\nupstreams:\n  a: {consul: s}\n  b: {consul: s, timeouts: {response: 1h}, retry: {attempts: 9, when: [timeout]}}\n"
        "routes:\n  - {name: r, upstream: a, mirror: {upstream: b}}\nserver: {graceful: 33s}\n"
    )
    assert warnings(text) == []
    assert len(warnings(text.replace("upstream: a, mirror: {upstream: b}", "split: [{upstream: a}, {upstream: b}]"))) == 2


# -- worse days -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        (
            "balance: {sticky: {cookie: c}}",
            "balance.sticky",
            "has no secret: its cookies are worth nothing after a restart, nor to other gateways",
        ),
        (
            "health: {timeout: 10s}",
            "health.timeout",
            "timeout is not shorter than health.interval (10 s, 10 s)",
        ),
        (
            "health: {interval: 1s}",
            "health.interval",
            "timeout is not shorter than health.interval (2 s, 1 s)",
        ),
        (
            "breaker: {min_requests: 2}",
            "breaker.min_requests",
            "a single failure among 2 requests closes the upstream to everybody",
        ),
        (
            "breaker: {error_rate: 5%}",
            "breaker.error_rate",
            "a single failure among 20 requests closes the upstream to everybody",
        ),
        ("eject: {max_ejected: 100%}", "eject.max_ejected", "all requests may end up on the last endpoint that is left"),
        (
            "deadline_header: X-Left, timeouts: {response: 0}",
            "deadline_header",
            "tells nothing: neither timeouts.response nor timeouts.total is set",
        ),
        (
            "retry: {attempts: 1, hedge: true}",
            "retry.hedge",
            "does nothing: retry.attempts is 1",
        ),
    ],
)
def test_settings_for_worse_days(given: str, key: str, told: str) -> None:
    text = with_upstream(f"{{consul: s, {given}}}")
    last = key.rpartition(".")[2]
    assert warnings(text) == [f"{at(text, last + ':')}: upstreams.u.{key}: {told}"]
    shared = f"version: 1\ndefaults: {{{given}}}\nupstreams:\n  u: {{consul: s}}\n  v: {{consul: s}}\n"
    routes = "routes:\n  - {name: r, upstream: u, match: {host: a}}\n  - {name: s, upstream: v, match: {host: b}}\n"
    assert [one.split(": ", 1)[1] for one in warnings(shared + routes)] == [f"defaults.{key}: {told}"]


@pytest.mark.parametrize(
    "given",
    [
        "balance: {sticky: {cookie: c, secret: s}}",
        "health: {interval: 2500ms}",
        "health: {}",
        "breaker: {}",
        "breaker: {min_requests: 3}",
        "eject: {max_ejected: 90%}",
        "eject: null",
        "deadline_header: X-Left",
        "deadline_header: X-Left, timeouts: {response: 0, total: 5s}",
        "retry: {hedge: true}",
        "concurrency: null",
        "concurrency: {queue: 0}",
    ],
)
def test_settings_that_make_sense(given: str) -> None:
    assert warnings(with_upstream(f"{{consul: s, {given}}}")) == []


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("match: {prefix: /a}", "match: {prefix: /b}", True),
        ("match: {prefix: /a}", "match: {host: h}", True),
        ("match: {host: h, path: /a}", "match: [{host: g}, {host: h}]", True),
        ("match: {host: g}", "match: {host: h}", False),
    ],
)
def test_upstreams_that_set_the_same_cookie(first: str, second: str, shared: bool) -> None:
    text = (
        "version: 1\nupstreams:\n"
        "  u: {consul: s, balance: {sticky: {cookie: c, secret: s}}}\n"
        "  v: {consul: s, balance: {sticky: {cookie: c, secret: t}}}\n"
        "  w: {consul: s, balance: {sticky: {cookie: d, secret: t}}}\nroutes:\n"
        f"  - {{name: r, upstream: u, {first}}}\n  - {{name: s, upstream: v, {second}}}\n"
        "  - {name: t, upstream: w, match: {path: /w}}\n"
    )
    told = "upstream u sets the cookie c, too: each takes clients from the other's endpoints"
    assert warnings(text) == ([f"f:4:28: upstreams.v.balance.sticky: {told}"] if shared else [])


def test_a_body_without_a_type() -> None:
    text = "version: 1\nroutes: [{name: r, respond: {body: hello, headers: {X: y}}}]\n"
    told = "has no Content-Type: clients guess what it is (respond.headers)"
    assert warnings(text) == [f"{at(text, 'hello')}: routes[0].respond.body: {told}"]
    assert warnings(text.replace("X: y", "content-type: text/plain")) == []
    assert warnings(text.replace("body: hello, ", "")) == []


def test_a_queue_without_a_limit() -> None:
    text = with_upstream("{consul: s, concurrency: {limit: 0, queue: 5}}")
    told = "does nothing: without concurrency.limit nobody waits"
    assert warnings(text) == [f"{at(text, 'queue')}: upstreams.u.concurrency.queue: {told}"]
    above = "defaults: {concurrency: {queue: 5}}\n"
    assert warnings(with_upstream("{consul: s, concurrency: null}") + above) == []


# -- no false alarms ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gateway.yaml", "gateway.heroku.yaml"])
def test_what_is_shipped_is_wise(name: str) -> None:
    text = (ROOT / "conf" / name).read_bytes()
    assert config.loads(text, name, {"BACKEND_URL": "https://backend.example"}).warnings == ()


def examples() -> list[str]:
    """The whole documents among the examples of the README and the docs."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    return [block for block in blocks if block.startswith("version: 1") and "routes:" in block]


def test_examples_are_wise() -> None:
    assert len(examples()) >= 2
    for text in examples():
        assert config.loads(text.encode(), "example", {}).warnings == (), text


def test_warnings_stand_in_the_order_of_the_file() -> None:
    text = (
        "version: 1\nroutes: [{name: r, upstream: b, match: {methods: [GET]}}]\n"
        "upstreams:\n  a: {consul: s}\n  b: {consul: s}\nserver:\n  drain: 1h\n"
    )
    assert [one.split(":")[1] for one in warnings(text, DYNO="1")] == ["2", "4", "7", "7"]


def test_warnings_do_not_make_configurations_differ() -> None:
    text = with_route("match: {methods: [GET]}")
    assert read(text, DYNO="1") == read(text)


def test_every_advice_is_given() -> None:
    assert len(ADVICE) == len({advise.__name__ for advise in ADVICE}) == 33
