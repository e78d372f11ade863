"""What changes between two configurations, and which requests of a log notice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from textwrap import dedent

import pytest

from gateway import app, config
from gateway.commands import diff
from gateway.commands.diff import EXAMPLES, Change, Difference, changes, replay, told
from gateway.model import Config

BASE = """\
version: 1
server: {graceful: 25s}
access_log: {path: "-"}
discovery: {consul: {token: one}}
upstreams:
  a: {endpoints: [http://10.0.0.1, http://10.0.0.2]}
  b: {consul: b-svc, timeouts: {response: 5s}}
routes:
  - {name: r, match: {prefix: /r}, upstream: a}
  - {name: s, match: {prefix: /s}, upstream: b, strip_prefix: true}
"""


def read(text: str) -> Config:
    return config.loads(dedent(text).encode(), "f", {})


def changed(*edits: tuple[str, str], base: str = BASE) -> list[tuple[str, ...]]:
    """What is found when parts of the text are replaced."""
    text = base
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    found = changes(read(base), read(text))
    return [(one.kind, f"{one.of} {one.name}".rstrip(), one.key, one.old, one.new) for one in found]


# -- configurations -----------------------------------------------------------------------


def test_nothing_changes() -> None:
    assert changed() == []
    spelt = (("25s", "25000ms"), ("prefix: /r", "prefix: /r"), ("version: 1", "# a comment\nversion: 1"))
    assert changed(*spelt) == []
    assert list(told(Difference(()))) == ["nothing changes"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{name: r, match: {prefix: /r}", "{name: r, match: {prefix: /q}", ("changed", "route r", "match", "* /r", "* /q")),
        ("upstream: a}", "upstream: a, priority: 3}", ("changed", "route r", "priority", "0", "3")),
        ("upstream: a}", "upstream: a, host: x}", ("changed", "route r", "host", "preserve", "x")),
        ("upstream: a}", "upstream: a, timeouts: {total: 1h}}", ("changed", "route r", "timeouts.total", "off", "1h")),
        ("upstream: a}", "upstream: a, retry: {budget: 5%}}", ("changed", "route r", "retry.budget", "20%", "5%")),
        ("strip_prefix: true", "strip_prefix: false", ("changed", "route s", "strip_prefix", "true", "false")),
        ("upstream: a}", "upstream: a, rewrite: {regex: '/(.)', to: '\\1'}}",
         ("changed", "route r", "rewrite", "none", "/(.) to \\1")),
        ("[http://10.0.0.1,", "[", ("changed", "upstream a", "endpoints", "http://10.0.0.1:80 http://10.0.0.2:80",
                                    "http://10.0.0.2:80")),
        ("http://10.0.0.1,", "http://10.0.0.1/x?y,",
         ("changed", "upstream a", "endpoints", "http://10.0.0.1:80 http://10.0.0.2:80",
          "http://10.0.0.1:80/x?y http://10.0.0.2:80")),
        ("consul: b-svc", "consul: b-svc, tag: v2", ("changed", "upstream b", "source", "consul b-svc", "consul b-svc v2")),
        ("response: 5s", "response: 6s", ("changed", "upstream b", "timeouts.response", "5s", "6s")),
        ("graceful: 25s", "graceful: 26s", ("changed", "server", "graceful", "25s", "26s")),
        ("graceful: 25s", "limits: {header: 1KiB}", ("changed", "server", "limits.header", "32KiB", "1KiB")),
        ('access_log: {path: "-"}', "access_log: null", ("changed", "access_log", "", "on", "off")),
        ("token: one", "token: two", ("changed", "discovery", "consul.token", "***", "*** (another)")),
        ("token: one", "token: ''", ("changed", "discovery", "consul.token", "***", "none")),
    ],
)  # fmt: skip
def test_one_change_is_told_once(old: str, new: str, expected: tuple[str, ...]) -> None:
    """Also where routes inherit it from their upstream."""
    assert changed((old, new)) == [expected]


def test_what_comes_and_goes() -> None:
    found = changed(("name: s,", "name: t,"), ("  b: {", "  c: {"), ("upstream: b", "upstream: c"))
    assert found == [
        ("removed", "route s", "", "* /s to b", ""),
        ("added", "route t", "", "", "* /s to c"),
        ("removed", "upstream b", "", "consul b-svc", ""),
        ("added", "upstream c", "", "", "consul b-svc"),
    ]


def test_defaults_are_told_of_every_upstream_once() -> None:
    found = changed(("upstreams:", "defaults: {timeouts: {idle: 1s}}\nupstreams:"))
    assert found == [("changed", f"upstream {name}", "timeouts.idle", "60s", "1s") for name in ("a", "b")]


def test_a_route_that_moves_to_another_upstream_gets_its_settings_too() -> None:
    found = changed(("prefix: /r}, upstream: a", "prefix: /r}, upstream: b"))
    assert ("changed", "route r", "upstream", "a", "b") in found
    assert ("changed", "route r", "timeouts.response", "30s", "5s") in found


def test_what_needs_a_restart() -> None:
    text = BASE.replace("25s", "26s").replace("path: \"-\"", "path: /x").replace("one", "two").replace("5s}", "7s}")
    found = list(changes(read(BASE), read(text)))
    assert {one.of for one in found if one.restart} == {"server", "access_log"}
    assert {one.of for one in found if not one.restart} == {"discovery", "upstream"}
    lines = list(told(Difference(tuple(found))))
    assert sum("(at the next restart or SIGHUP)" in line for line in lines) == 2
    assert not any("two" in line for line in lines)


def test_what_needs_a_restart_is_what_the_gateway_leaves() -> None:
    assert frozenset(app.FIXED) == diff.AT_START


def test_a_rewriting_by_the_same_expression_is_the_same() -> None:
    base = BASE.replace("upstream: a}", r"upstream: a, rewrite: {regex: '/(.*)', to: '/\1'}}")
    assert changed(base=base) == []
    assert changed((r"'/\1'", r"'/x\1'"), base=base)[0][2] == "rewrite"


# -- what becomes of requests, and worse days ---------------------------------------------------

SHAPED = """\
version: 1
upstreams:
  a: {endpoints: [http://10.0.0.1]}
  b: {consul: b-svc, timeouts: {response: 5s}}
routes:
  - {name: r, match: {prefix: /r}, split: [{upstream: a, weight: 95}, {upstream: b, weight: 5}]}
  - {name: s, match: {path: /s}, redirect: {path: /t}}
  - {name: t, match: {path: /t}, respond: {body: one}}
  - {name: u, match: {path: /u}, upstream: a, mirror: {upstream: b, percent: 10}}
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("weight: 5}", "weight: 0}", ("route r", "split", "a 95%, b 5%", "a 100%, b 0%")),
        ("split: [", "split: {by: cookie:x, to: [", ("route r", "split", "a 95%, b 5%", "a 95%, b 5% by cookie:x")),
        ("5}]", "5}], timeouts: {total: 9s}", ("route r", "timeouts.total", "off", "9s")),
        ("5}]", "5}], timeouts: {response: 30s}", ("route r", "timeouts.response (b)", "5s", "30s")),
        ("response: 5s", "response: 6s", ("upstream b", "timeouts.response", "5s", "6s")),
        ("{path: /t}}", "{path: /u}}", ("route s", "redirect", "-> 302 /t", "-> 302 /u")),
        ("{body: one}", "{body: two}", ("route t", "respond", "200 fixed", "200 fixed (another)")),
        ("{body: one}", "{status: 410}", ("route t", "respond", "200 fixed", "410 fixed")),
        ("percent: 10", "percent: 20", ("route u", "mirror", "10% copied to b", "20% copied to b")),
        (", mirror: {upstream: b, percent: 10}", "", ("route u", "mirror", "10% copied to b", "none")),
        ("b-svc", "b-svc, fallback: a", ("upstream b", "fallback", "off", "a")),
        ("b-svc", "b-svc, balance: {sticky: {cookie: c, secret: x}}", ("upstream b", "balance", "round_robin", "sticky by cookie:c")),
        ("b-svc", "b-svc, eject: {for: 11s}", ("upstream b", "eject.for", "10s", "11s")),
        ("b-svc", "b-svc, eject: null", (
            "upstream b", "eject",
            "{consecutive: 5, error_rate: 50%, min_requests: 20, window: 10s, for: 10s, max_for: 300s, max_ejected: 50%, statuses: []}",
            "off",
        )),
        ("b-svc", "b-svc, health: {tcp: true}", (
            "upstream b", "health", "off", "{tcp: true, interval: 10s, timeout: 2s, healthy: 2, unhealthy: 3}"
        )),
        ("b-svc", "b-svc, concurrency: {limit: 5}", ("upstream b", "concurrency.limit", "1024", "5")),
        ("b-svc", "b-svc, slow_start: 30s", ("upstream b", "slow_start", "0s", "30s")),
        ("b-svc", "b-svc, deadline_header: X-Left", ("upstream b", "deadline_header", "off", "X-Left")),
        ("b-svc", "b-svc, retry: {hedge: true}", ("upstream b", "retry.hedge", "false", "true")),
    ],
)  # fmt: skip
def test_one_change_of_what_becomes_of_requests_is_told_once(old: str, new: str, expected: tuple[str, ...]) -> None:
    if new.startswith("split: {"):
        edits = ((old, new), ("5}]", "5}]}"))
    else:
        edits = ((old, new),)
    assert changed(*edits, base=SHAPED) == [("changed", *expected)]


def test_an_upstream_that_becomes_a_split() -> None:
    base = SHAPED.replace("split: [{upstream: a, weight: 95}, {upstream: b, weight: 5}]", "upstream: a")
    found = [one[2:] for one in changes_between(base, SHAPED)]
    assert found == [("upstream", "a", "(unset)"), ("split", "(unset)", "a 95%, b 5%")]
    # What holds for the upstream that both have is compared all the same.
    more = SHAPED.replace("5}]", "5}], host: x")
    found = [one[2:] for one in changes_between(base, more)]
    assert found[-1] == ("host", "preserve", "x")
    nothing = SHAPED.replace("split: [{upstream: a, weight: 95}, {upstream: b, weight: 5}]", "respond: {}")
    assert len(changes_between(SHAPED, nothing)) == 2


def changes_between(old: str, new: str) -> list[tuple[str, ...]]:
    found = changes(read(old), read(new))
    return [(one.kind, f"{one.of} {one.name}".rstrip(), one.key, one.old, one.new) for one in found]


def test_secrets_and_headers_are_compared_and_not_shown() -> None:
    given = "b-svc, balance: {sticky: {cookie: c, secret: hush}}, health: {headers: {X-Key: hush}}"
    base = SHAPED.replace("b-svc", given)
    found = changed(("secret: hush", "secret: hushed"), ("X-Key: hush}", "X-Key: hushed}"), base=base)
    assert found == [
        ("changed", "upstream b", "balance", "sticky by cookie:c", "sticky by cookie:c (another)"),
        ("changed", "upstream b", "health.headers", "[X-Key]", "[X-Key] (another)"),
    ]


def test_routes_that_come_and_go_are_told_by_their_ends() -> None:
    head = "version: 1\nupstreams:\n  a: {endpoints: [http://10.0.0.1]}\n  b: {consul: b-svc, timeouts: {response: 5s}}\n"
    assert [one[-1] for one in changes_between(head, SHAPED)] == [
        "* /r to a 95%, b 5%",
        "* = /s -> 302 /t",
        "* = /t 200 fixed",
        "* = /u to a",
    ]


# -- the order ------------------------------------------------------------------------------

ORDER = """\
version: 1
upstreams: {u: {consul: u}}
routes:
  - {name: one, match: {regex: '/a.*'}, upstream: u}
  - {name: two, match: {regex: '/.*b'}, upstream: u}
  - {name: get, match: {prefix: /m, methods: [GET, HEAD]}, upstream: u}
  - {name: put, match: {prefix: /m, methods: [PUT]}, upstream: u}
"""


def reordered(*names: str) -> list[tuple[str, ...]]:
    head, *routes = ORDER.split("  - ")
    by_name = {route[len("{name: ") :].partition(",")[0]: f"  - {route}" for route in routes}
    found = changes(read(ORDER), read(head + "".join(by_name[name] for name in names)))
    return [(one.kind, one.name, one.old, one.new) for one in found]


def test_an_order_that_matters() -> None:
    assert reordered("two", "one", "get", "put") == [("order", "one, two", "one first", "two first")]


def test_an_order_that_does_not_matter() -> None:
    """Routes that no request can meet both, and those whose order is decided by more than the file."""
    assert reordered("one", "two", "put", "get") == []
    assert reordered("put", "get", "one", "two") == []


def test_an_order_that_a_priority_changes() -> None:
    base = "version: 1\nupstreams: {u: {consul: u}}\nroutes:\n"
    base += "".join(f"  - {{name: {name}, match: {{prefix: /{name}}}, upstream: u}}\n" for name in "xyz")
    base += "  - {name: all, upstream: u}\n"
    found = changed(("name: all,", "name: all, priority: 1,"), base=base)
    assert found == [
        ("changed", "route all", "priority", "0", "1"),
        *(("order", f"route {name}, all", "order", f"{name} first", "all first") for name in "xyz"),
    ]


def test_every_permutation_tells_exactly_the_pairs_that_matter() -> None:
    names = ("one", "two", "get", "put")
    for order in itertools.permutations(names):
        swapped = order.index("two") < order.index("one")
        assert len(reordered(*order)) == swapped, order


# -- replaying a log --------------------------------------------------------------------------


def line(target: str, route: str | None = None, **more: object) -> bytes:
    record = {"method": "GET", "host": "h.example", "target": target, "route": route, "reason": None, **more}
    return json.dumps(record).encode() + b"\n"


NEW = """\
version: 1
upstreams:
  a: {endpoints: [http://10.0.0.1]}
  b: {consul: b-svc}
routes:
  - {name: r, match: {prefix: /r}, upstream: b}
  - {name: s, match: {prefix: /s}, upstream: b}
  - {name: all, match: {prefix: /}, upstream: a}
"""


def test_where_requests_would_go() -> None:
    log = [
        line("/r/1", "r"),
        line("/r/2", "r"),
        line("/s/x?y", "s"),
        line("/else", reason="no_route"),
        line("/../x", reason="bad_path"),
        line("/-/healthz"),
    ]
    found = replay(read(BASE), read(NEW), log)
    assert (found.requests, found.elsewhere, found.unreadable, found.logged_elsewhere) == (6, 4, 0, 0)
    assert [(group.old, group.new, group.number, group.examples) for group in found.groups] == [
        ("r (a)", "r (b)", 2, ("GET h.example /r/1", "GET h.example /r/2")),
        ("404 no_route", "all (a)", 1, ("GET h.example /else",)),
        ("s (b)", "s (b), another target", 1, ("GET h.example /s/x?y: /x?y -> /s/x?y",)),
    ]
    assert "4 of 6 requests go elsewhere" in list(told(Difference((), found)))


def test_requests_that_are_shared_out_or_answered() -> None:
    new = SHAPED.replace("weight: 5}", "weight: 15}").replace("path: /s}, redirect: {path: /t}", "path: /s}, upstream: b")
    found = replay(read(SHAPED), read(new), [line("/r/1", "r"), line("/s", "s"), line("/t", "t"), line("/u", "u")])
    assert [(group.old, group.new) for group in found.groups] == [
        ("r (a 95%, b 5%)", "r (a 86.36%, b 13.64%)"),
        ("s (-> 302 /t)", "s (b)"),
    ]


HTTPS = """\
version: 1
upstreams: {a: {consul: a}, b: {consul: b}}
routes:
  - {name: https, priority: 1, redirect: {scheme: https}}
  - {name: site, upstream: a}
"""


def test_redirects_in_a_replay() -> None:
    """What the log says became of a request tells the scheme, which redirects go by."""
    log = [line("/x", "https"), line("/x", "site")]
    found = replay(read(HTTPS), read(HTTPS), log)
    assert (found.elsewhere, found.logged_elsewhere) == (0, 0)
    moved = replay(read(HTTPS), read(HTTPS.replace("upstream: a}", "upstream: b}")), log)
    assert [(group.old, group.new, group.number) for group in moved.groups] == [("site (a)", "site (b)", 1)]
    other = replay(read(HTTPS), read(HTTPS.replace("scheme: https}", "scheme: https, host: h2.example}")), log)
    assert sorted((group.old, group.new) for group in other.groups) == [
        ("https (-> 302 https://*)", "https (-> 302 https://h2.example)"),
        ("site (a)", "https (-> 302 https://h2.example)"),
    ]


def test_a_redirect_that_leads_elsewhere() -> None:
    base = "version: 1\nroutes:\n  - {name: r, match: {prefix: /a}, redirect: {prefix: /b}}\n"
    found = replay(read(base), read(base.replace("{prefix: /a}", "{prefix: /}")), [line("/a/x", "r")])
    assert found.groups[0].examples == ("GET h.example /a/x: http://h.example/b/x -> http://h.example/b/a/x",)


def test_the_same_configuration_moves_nothing() -> None:
    found = replay(read(BASE), read(BASE), [line("/r"), line("/x"), line("/..")])
    assert (found.requests, found.elsewhere, found.groups) == (3, 0, ())


@pytest.mark.parametrize(
    "bad",
    [b"", b"\n", b"garbage", b"[]", b"null", b"{}", b'{"method": null, "host": "a", "target": "/"}', b"\xff\xfe",
     b'{"method": "GET", "host": 5, "target": "/"}', '{"method": "GET", "host": "\u0100", "target": "/"}'.encode(),
     b"[" * 100_000],
)  # fmt: skip
def test_lines_that_hold_no_request_are_counted(bad: bytes) -> None:
    found = replay(read(BASE), read(NEW), [bad, line("/r", "r")])
    assert (found.requests, found.unreadable, found.elsewhere) == (1, 1, 1)


@pytest.mark.parametrize("reason", ["bad_request", "request_timeout", "header_too_large", "unsupported_method", "draining"])
def test_what_no_route_decides_is_not_replayed(reason: str) -> None:
    """Their method or target may be no such thing, and another configuration refuses them as well."""
    found = replay(read(BASE), read(NEW), [line("/r", reason=reason), line("/r", "r", reason="upstream_reset")])
    assert (found.requests, found.refused, found.elsewhere) == (1, 1, 1)
    assert any("not replayed: 1" in one for one in told(Difference((), found)))


def test_a_request_without_host_is_one() -> None:
    found = replay(read(BASE), read(NEW), [line("/r", host=None)])
    assert found.groups[0].examples == ("GET (no host) /r",)


def test_examples_are_few_and_short() -> None:
    found = replay(read(BASE), read(NEW), (line(f"/r/{number}{'x' * 500}") for number in range(100)))
    (group,) = found.groups
    assert (group.number, len(group.examples)) == (100, EXAMPLES)
    assert all(len(example) < 200 for example in group.examples)


def test_what_a_log_does_not_hold_is_told() -> None:
    text = NEW + "  - {name: beta, match: {headers: {x-beta: 1}}, upstream: b}\n"
    found = replay(read(text), read(NEW), [line("/q?token=***&x=1", "beta"), line("/q", "all")])
    assert (found.blind, found.masked, found.logged_elsewhere, found.elsewhere) == (("beta",), 1, 1, 0)
    text = "\n".join(told(Difference((), found)))
    assert "matches that ask for some took no part (routes: beta)" in text
    assert "requests that the log saw on another route than OLD gives them: 1" in text
    assert "requests whose targets hold values that the log masks (***): 1" in text


def test_lines_are_taken_one_by_one() -> None:
    taken = 0

    def lines() -> Iterator[bytes]:
        nonlocal taken
        for number in range(3):
            assert taken == number
            yield line("/r")
            taken += 1

    assert replay(read(BASE), read(NEW), lines()).requests == 3


def test_changes_can_be_told() -> None:
    found = (Change("added", "route", "x", "", "", "* /x to u"), Change("changed", "route", "y", "priority", "0", "1"))
    assert list(told(Difference(found))) == ["+  route x            * /x to u", "~  route y  priority  0 -> 1"]
