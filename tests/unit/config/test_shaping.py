"""What becomes of a route's requests: forwarded, shared out, copied, sent elsewhere, answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway import model
from gateway.config import schema
from tests.unit.config.reading import at, mistake, mistakes, read

UPSTREAMS = """\
version: 1
defaults: {timeouts: {connect: 1s, response: 9s}}
upstreams:
  a: {consul: a, timeouts: {response: 10s}, host: upstream, fallback: c}
  b: {consul: b, retry: {attempts: 4}, upgrade: []}
  c: {consul: c, deadline_header: X-Left}
routes:
"""


def shaped(given: str) -> str:
    return f"{UPSTREAMS}  - {{name: r, {given}}}\n"


def shape(given: str) -> model.Route:
    return read(shaped(given)).routes[0]


def plain(upstream: str, given: str = "") -> model.Route:
    """The route as it would be if that upstream were its only one."""
    return shape(f"upstream: {upstream}{given}")


# -- split ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "[{upstream: a, weight: 95}, {upstream: b}]",
        "{to: [{upstream: a, weight: 95}, {upstream: b}]}",
        "{by: null, to: [{upstream: a, weight: 95}, {upstream: b, weight: 1}]}",
    ],
)
@pytest.mark.parametrize("more", ["", ", host: x.example, timeouts: {idle: 5s}, retry: {attempts: 1}, strip_prefix: true, match: {prefix: /p}"])
def test_a_split_is_a_route_for_each_upstream(written: str, more: str) -> None:
    found = shape(f"split: {written}{more}")
    assert found.split == model.Split((model.Share(plain("a", more), 95), model.Share(plain("b", more), 1)))
    assert (found.upstream, found.upstreams) == ("", ("a", "b"))
    assert [one.upstream for one in found.branches] == ["a", "c", "b"]
    assert found.timeouts.connect == 1.0
    assert hash(found) == hash(shape(f"split: {written}{more}"))


@pytest.mark.parametrize(
    ("by", "kind", "name"),
    [("cookie:Session", "cookie", "Session"), ("header:X-User", "header", "x-user")],
)
def test_a_split_by_what_a_request_says(by: str, kind: str, name: str) -> None:
    split = shape(f"split: {{by: '{by}', to: [{{upstream: a}}, {{upstream: b}}]}}").split
    assert split is not None
    assert (split.by, split.name) == (kind, name)
    assert [share.weight for share in split.shares] == [1, 1]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[]", "routes[0].split: needs an upstream with a weight above 0"),
        ("{to: []}", "routes[0].split.to: needs an upstream with a weight above 0"),
        ("{}", "routes[0].split.to: is required"),
        ("[{upstream: a, weight: 0}]", "routes[0].split: needs an upstream with a weight above 0"),
        ("[{upstream: a}, {upstream: a}]", "routes[0].split[1].upstream: a is in this list already"),
        ("[{weight: 1}]", "routes[0].split[0].upstream: is required"),
        ("[{upstream: a, weight: 65536}]", "routes[0].split[0].weight: must be a whole number, not 65536 (0 to 65535)"),
        ("[{upstream: x}]", "routes[0].split[0].upstream: there is no upstream x (allowed: a, b, c)"),
        ("{to: [{upstream: x}]}", "routes[0].split.to[0].upstream: there is no upstream x (allowed: a, b, c)"),
        ("a", "routes[0].split: must be a mapping"),
        ("[a]", "routes[0].split[0]: must be a mapping"),
        ("{by: path, to: [{upstream: a}]}", 'routes[0].split.by: must be one of cookie:NAME | header:NAME, not "path"'),
        ("{by: 'query:a', to: [{upstream: a}]}", 'routes[0].split.by: must be one of cookie:NAME | header:NAME, not "query:a"'),
    ],
)
def test_bad_splits(written: str, told: str) -> None:
    assert mistake(shaped(f"split: {written}")).split(": ", 1)[1] == told


# -- mirror -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "expected"), [("", 1.0), (", percent: 10", 0.1), (", percent: 10%", 0.1), (", percent: 0.5", 0.005), (", percent: 0", 0.0)]
)
def test_a_mirror_is_a_route_for_its_upstream(percent: str, expected: float) -> None:
    found = shape(f"upstream: b, mirror: {{upstream: a{percent}}}, strip_prefix: true, match: {{prefix: /p}}")
    # Copies go nowhere else.
    copied = replace(plain("a", ", strip_prefix: true, match: {prefix: /p}"), fallback=None)
    assert found.mirror == model.Mirror(copied, expected)
    assert [one.upstream for one in found.branches] == ["b"]


def test_shares_and_fallbacks_have_the_mirror() -> None:
    found = shape("split: [{upstream: a}, {upstream: b}], mirror: {upstream: c}")
    assert found.mirror is not None
    assert found.mirror.route.mirror is None
    assert [one.mirror for one in found.branches] == [found.mirror] * 3
    # The same upstream once more is a way to put load on it.
    assert shape("upstream: a, mirror: {upstream: a}").mirror is not None


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{upstream: x}", "mirror.upstream: there is no upstream x (allowed: a, b, c)"),
        ("{percent: 5}", "mirror.upstream: is required"),
        ("{upstream: b, percent: 101}", "mirror.percent: must be a percentage, not 101 (0% to 100%)"),
        ("{upstream: b, percent: -1}", "mirror.percent: must be a percentage, not -1 (0% to 100%)"),
        ("{upstream: b, percent: .nan}", "mirror.percent: must be a percentage, not .nan (0% to 100%)"),
        ("{upstream: b, percent: true}", "mirror.percent: must be a percentage, not true (0% to 100%)"),
        ("{upstream: b, percent: '10'}", 'mirror.percent: must be a percentage, not "10" (0% to 100%)'),
        ("b", "mirror: must be a mapping"),
    ],
)
def test_bad_mirrors(written: str, told: str) -> None:
    assert mistake(shaped(f"upstream: a, mirror: {written}")).split(": ", 1)[1] == f"routes[0].{told}"


# -- redirect ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{path: /new}", model.Redirect(path=b"/new")),
        ("{path: /new, status: 308}", model.Redirect(308, path=b"/new")),
        ("{scheme: https}", model.Redirect(scheme="https")),
        ("{scheme: https, host: New.Example., port: 8443}", model.Redirect(302, "https", "new.example", 8443)),
        ("{host: '[::1]', prefix: /v2/}", model.Redirect(host="[::1]", prefix=b"/v2/")),
    ],
)
def test_redirects(written: str, expected: model.Redirect) -> None:
    found = shape(f"redirect: {written}")
    assert found == model.Route("r", redirect=expected, line=8)
    assert (found.upstreams, found.branches) == ((), ())


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{}", "redirect: needs at least one of path, prefix, scheme, host, port"),
        ("{status: 301}", "redirect: needs at least one of path, prefix, scheme, host, port"),
        ("{path: /a, prefix: /b}", "redirect.prefix: stands beside path (one of them)"),
        ("{path: /a, status: 300}", "redirect.status: must be one of 301, 302, 303, 307, 308, not 300"),
        ("{path: /a, status: '301'}", 'redirect.status: must be one of 301, 302, 303, 307, 308, not "301"'),
        ("{path: a}", 'redirect.path: must be a path, not "a" (from the first slash, printable ASCII, the rest percent-encoded, without #)'),
        ("{path: '/a?b'}", 'redirect.path: must be a path without ?, not "/a?b"'),
        ("{scheme: ftp}", 'redirect.scheme: must be one of http | https, not "ftp"'),
        ("{host: '*.a'}", 'redirect.host: must be a host without a wildcard, not "*.a"'),
        ("{port: 0}", "redirect.port: must be a whole number, not 0 (1 to 65535)"),
    ],
)
def test_bad_redirects(written: str, told: str) -> None:
    assert mistake(shaped(f"redirect: {written}")).split(": ", 1)[1] == f"routes[0].{told}"


@pytest.mark.parametrize("match", ["{path: /a}", "{regex: /a}", "[{prefix: /a}, {path: /b}]"])
def test_a_redirected_prefix_needs_one(match: str) -> None:
    told = mistake(shaped(f"match: {match}, redirect: {{prefix: /b}}"))
    assert told.endswith("routes[0].redirect.prefix: needs matches by prefix (redirect: {path})")
    assert shape("match: [{prefix: /a}, {host: h}], redirect: {prefix: /b}").redirect is not None


# -- respond ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{}", model.Respond()),
        ("{status: 204}", model.Respond(204)),
        (
            '{status: 200, body: "User-agent: *", headers: {Content-Type: text/plain, X-N: 1.10}}',
            model.Respond(200, b"User-agent: *", ((b"Content-Type", b"text/plain"), (b"X-N", b"1.10"))),
        ),
        ("{status: 503, body: é}", model.Respond(503, "é".encode())),
    ],
)
def test_fixed_answers(written: str, expected: model.Respond) -> None:
    found = shape(f"respond: {written}")
    assert found == model.Route("r", respond=expected, line=8)
    assert (found.upstreams, found.branches) == ((), ())


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{status: 101}", "respond.status: must be a whole number, not 101 (200 to 599)"),
        ("{body: 5}", 'respond.body: must be text, not 5 (write "5")'),
        ("{status: 204, body: x}", "respond.body: an answer 204 has none"),
        ("{status: 304, body: x}", "respond.body: an answer 304 has none"),
        (
            "{headers: {Content-Length: 5}}",
            'respond.headers.Content-Length: the key must be a header that can be set, not "Content-Length" '
            "(not one that frames a message or that is the gateway's)",
        ),
        ('{headers: {X: "a\\r\\nb"}}', "respond.headers.X: must be a header value, not "),
        ("{headers: {X: é}}", 'respond.headers.X: must be a header value in ASCII, not "é"'),
        ("hello", "respond: must be a mapping"),
    ],
)
def test_bad_answers(written: str, told: str) -> None:
    assert mistake(shaped(f"respond: {written}")).split(": ", 1)[1].startswith(f"routes[0].{told}")


# -- one of them ------------------------------------------------------------------------------


def test_a_route_has_an_end() -> None:
    for text in ("version: 1\nroutes:\n  - {name: r}\n", "version: 1\nroutes:\n  - {name: r, upstream: null}\n"):
        assert mistake(text) == "f:3:5: routes[0]: needs exactly one of upstream, split, redirect, respond"


def test_a_route_has_one_end() -> None:
    text = shaped("respond: {}, upstream: a, redirect: {path: /x}")
    told = "(one of upstream, split, redirect, respond)"
    assert mistakes(text) == [
        f"{at(text, 'respond')}: routes[0].respond: stands beside upstream {told}",
        f"{at(text, 'redirect')}: routes[0].redirect: stands beside upstream {told}",
    ]


@pytest.mark.parametrize("end", ["redirect: {path: /x}", "respond: {}"])
@pytest.mark.parametrize(
    "given",
    [
        "mirror: {upstream: a}",
        "strip_prefix: true",
        "rewrite: {path: /y}",
        "timeouts: {response: 1s}",
        "retry: {attempts: 1}",
        "host: upstream",
        "upgrade: []",
        "deadline_header: X-Left",
    ],
)
def test_what_is_for_upstreams_does_not_stand_beside_an_answer(end: str, given: str) -> None:
    key = given.partition(":")[0]
    text = shaped(f"{end}, {given}")
    told = f"is for what an upstream gets, and {end.partition(':')[0]} sends nothing"
    assert mistake(text) == f"f:8:{text.splitlines()[7].index(given) + 1}: routes[0].{key}: {told}"


def test_what_says_nothing_may_stand_beside_an_answer() -> None:
    nothing = "mirror: null, strip_prefix: false, rewrite: null, filters: [], deadline_header: null, priority: 1"
    assert shape(f"respond: {{}}, {nothing}").respond == model.Respond()


def test_the_json_schema_takes_a_split_as_a_list() -> None:
    found = schema.json_schema()["$defs"]
    told = found["Route"]["properties"]["split"]["anyOf"]
    parts = {"type": "array", "items": {"$ref": "#/$defs/Part"}}
    assert told[0].items() >= parts.items()
    assert told[1:] == [{"$ref": "#/$defs/Split"}, {"type": "null"}]
