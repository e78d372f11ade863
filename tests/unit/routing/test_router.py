"""The router against the tables of `routing_cases`, and against an obvious one."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ClientError, ConfigError
from gateway.http import target as targets
from gateway.http.messages import Headers, Request
from gateway.model import Endpoint, Match, Rewrite, Route, ServerSettings
from gateway.routing import readings
from gateway.routing.router import Router, precedence
from tests.long import times
from tests.unit.routing_cases import TABLES, Case, Table


def as_match(spec: dict[str, Any]) -> Match:
    return Match(
        host=spec.get("host"),
        path=spec.get("path"),
        prefix=spec.get("prefix"),
        regex=spec.get("regex"),
        methods=frozenset(spec.get("methods", ())),
        headers=tuple((name.lower(), value) for name, value in spec.get("headers", {}).items()),
        query=tuple(spec.get("query", {}).items()),
        excluded=as_match(spec["not"]) if "not" in spec else None,
    )


def as_route(spec: dict[str, Any], index: int) -> Route:
    matches = spec["match"] if isinstance(spec["match"], list) else [spec["match"]]
    rewrite = spec.get("rewrite")
    return Route(
        name=spec["name"],
        upstream=spec["name"],
        matches=tuple(as_match(match) for match in matches),
        priority=spec.get("priority", 0),
        strip_prefix=spec.get("strip_prefix", False),
        ambiguous_paths=spec.get("ambiguous_paths"),
        rewrite=None
        if rewrite is None
        else Rewrite(
            **{key: re.compile(value.encode()) if key == "regex" else value.encode() for key, value in rewrite.items()}
        ),
        index=index,
    )


def as_router(table: Table) -> Router:
    return Router([as_route(dict(spec), index) for index, spec in enumerate(table.routes)])


def as_endpoint(table: Table) -> Endpoint:
    base_path, _, query = table.endpoint.encode().partition(b"?")
    return Endpoint("http", "127.0.0.1", 80, base_path=base_path, query=query)


def ask(router: Router, case: Case) -> tuple[Route | None, targets.Target, bytes]:
    parsed, path = targets.read(case.target.encode("latin-1"))
    host = targets.host(case.host.encode("latin-1") if parsed.authority is None else parsed.authority)
    headers = [(name.encode(), value.encode()) for name, value in case.headers]
    route = router.match(case.method.encode(), host, path, parsed.query, headers)
    if route is not None:
        request = Request(case.method.encode(), parsed.raw, headers, 0.0)
        readings.check(router, ServerSettings(), request, route, (), parsed, path, host)
    return route, parsed, path


ROWS = [pytest.param(table, case, id=f"{table.name}: {case.id}") for table in TABLES for case in table.cases]


def served(table: Table, case: Case) -> tuple[str | None, bytes]:
    """The name of the route and the target that its upstream gets."""
    route, parsed, path = ask(as_router(table), case)
    if route is None:
        return None, b""
    return route.name, targets.outbound(route, as_endpoint(table), parsed, path)


@pytest.mark.parametrize(("table", "case"), ROWS)
def test_table(table: Table, case: Case) -> None:
    if case.refused is not None:
        with pytest.raises(ClientError) as caught:
            served(table, case)
        assert (caught.value.status, caught.value.reason) == (400, case.refused)
        return
    name, target = served(table, case)
    assert name == case.route
    if name is not None:
        assert target == case.expected_target.encode("latin-1")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_after_goes_down_the_same_order(table: Table) -> None:
    """Without the routes that came before, the next is found as if they were not in the file."""
    routes = [as_route(dict(spec), index) for index, spec in enumerate(table.routes)]
    router = Router(routes)
    for case in table.cases:
        if case.refused is not None:
            continue
        first, parsed, path = ask(router, case)
        headers = [(name.encode(), value.encode()) for name, value in case.headers]
        host = targets.host(case.host.encode("latin-1") if parsed.authority is None else parsed.authority)
        asked = (case.method.encode(), host, path, parsed.query, headers)
        assert router.after([], *asked) is first
        passed: list[Route] = []
        while first is not None:
            passed.append(first)
            first = router.after(passed, *asked)
            rest = Router([one for one in routes if one not in passed])
            assert first is rest.match(*asked)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_route_of_a_table_serves_something(table: Table) -> None:
    assert {spec["name"] for spec in table.routes} == {case.route for case in table.cases} - {None}


# -- precedence -----------------------------------------------------------------------


def route(name: str, index: int = 0, priority: int = 0, **match: Any) -> Route:
    return as_route({"name": name, "match": match, "priority": priority}, index)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ({"priority": 1}, {"host": "a.example", "path": "/x", "methods": ["GET"]}),
        ({"host": "a.example"}, {"host": "*.a.example", "path": "/x"}),
        ({"host": "*.b.example"}, {"host": "*.example", "path": "/x"}),
        ({"host": "*.example"}, {"path": "/x"}),
        ({"path": "/x"}, {"regex": "/x", "methods": ["GET"], "index": -1}),
        ({"regex": "/x"}, {"regex": "/xyz+", "methods": ["GET"], "index": 1}),
        ({"regex": "/x"}, {"prefix": "/x/y/z", "methods": ["GET"], "index": -1}),
        ({"prefix": "/x/y"}, {"prefix": "/x", "methods": ["GET"], "headers": {"a": "1"}, "index": -1}),
        ({"prefix": "/x", "methods": ["GET"]}, {"prefix": "/x/", "headers": {"a": "1"}, "index": -1}),
        ({"headers": {"a": "1", "b": "2"}}, {"headers": {"a": "1"}, "query": {"a": "1"}, "index": -1}),
        ({"query": {"a": "1", "b": "2"}}, {"query": {"a": "1"}, "index": -1}),
        ({"query": {"a": "1"}}, {"index": -1}),
        ({"prefix": "/"}, {"index": 1}),
    ],
)
def test_precedence(winner: dict[str, Any], loser: dict[str, Any]) -> None:
    first, second = route("winner", **winner), route("loser", **loser)
    for routes in ([first, second], [second, first]):
        assert [one.name for one, _ in Router(routes).ordered()] == ["winner", "loser"]
        assert sorted(routes, key=lambda one: precedence(one, one.matches[0])) == [first, second]


def test_matches_of_one_route_take_their_own_places() -> None:
    wide = as_route({"name": "wide", "match": [{"prefix": "/"}, {"path": "/a/b"}]}, 0)
    narrow = route("narrow", 1, prefix="/a")
    assert [(one.name, match.path) for one, match in Router([wide, narrow]).ordered()] == [
        ("wide", "/a/b"),
        ("narrow", None),
        ("wide", None),
    ]


def test_no_routes() -> None:
    assert Router([]).match(b"GET", b"a", b"/", None, []) is None
    assert Router([]).ordered() == []


def test_the_route_itself_comes_back() -> None:
    only = route("only")
    assert Router([only]).match(b"GET", b"", b"/", None, []) is only


def test_a_request_without_host_meets_hostless_routes_only() -> None:
    routes = [route("wildcard", 0, host="*.example"), route("hostless", 1, prefix="/x")]
    assert Router(routes).match(b"GET", b"", b"/x", None, []) is routes[1]
    assert Router(routes).match(b"GET", b"", b"/y", None, []) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"match": {"prefix": "/a/../b"}},
        {"match": {"path": "a"}},
        {"match": {"path": "/a%00"}},
        {"match": {"regex": "("}},
        {"match": {"host": "a b"}},
        {"match": {"host": "*."}},
        {"match": {}, "rewrite": {"regex": "/(a)", "to": r"/\2"}},
        {"match": {}, "rewrite": {"regex": "/(a)", "to": r"/\g<b>"}},
    ],
    ids=str,
)
def test_what_cannot_be_a_route_is_a_config_error(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="route 'bad'"):
        Router([route("good"), as_route({"name": "bad", **spec}, 1)])


# -- cost -----------------------------------------------------------------------------


def calls(function: Callable[[], object]) -> int:
    """How many functions, Python's and C's, are called."""
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    previous = sys.getprofile()
    # The end of something else's objects would be counted, too.
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(previous)
        gc.enable()
    return counted


@pytest.mark.parametrize("kind", ["prefix", "path", "host", "wildcard"])
def test_the_number_of_routes_does_not_matter(kind: str) -> None:
    def cost(number: int) -> int:
        specs: dict[str, Callable[[int], dict[str, str]]] = {
            "prefix": lambda index: {"prefix": f"/service-{index}"},
            "path": lambda index: {"path": f"/service-{index}/x"},
            "host": lambda index: {"host": f"h{index}.example", "prefix": "/"},
            "wildcard": lambda index: {"host": f"*.h{index}.example", "prefix": "/"},
        }
        routes = [route(str(index), index, **specs[kind](index)) for index in range(number)]
        router, wanted = Router(routes), number // 2
        host = f"{'x.' if kind == 'wildcard' else ''}h{wanted}.example".encode()
        path = f"/service-{wanted}/x".encode()
        assert router.match(b"GET", host, path, None, []) is routes[wanted]
        return calls(lambda: router.match(b"GET", host, path, None, []))

    assert cost(10) == cost(2000)


def test_the_depth_of_a_path_and_of_a_host_does_not_matter() -> None:
    router = Router([route("deep", 0, prefix="/a/b/c"), route("wildcard", 1, host="*.a.example", prefix="/z")])

    def cost(times: int) -> int:
        return calls(lambda: router.match(b"GET", b"a." * times + b"a.example", b"/a" * times, None, []))

    assert cost(4) == cost(5000)


# -- against an obvious router --------------------------------------------------------


def meets(match: Match, method: str, host: str, path: str, query: bytes | None, headers: Headers) -> bool:
    if match.host is not None:
        if match.host.startswith("*."):
            if not host.endswith(match.host[1:]) or host == match.host[1:]:
                return False
        elif host != match.host:
            return False
    if match.path is not None and path != targets.normal(match.path.encode()).decode():
        return False
    if match.regex is not None and not re.fullmatch(match.regex, path):
        return False
    if match.prefix is not None:
        prefix = [part for part in targets.normal(match.prefix.encode()).decode().split("/") if part]
        if [part for part in path.split("/") if part][: len(prefix)] != prefix:
            return False
    if match.methods and method not in match.methods:
        return False
    for name, value in match.headers:
        lines = [line.decode() for field, line in headers if field.decode().lower() == name]
        if not lines or ", ".join(lines) != value:
            return False
    parameters: dict[str, str] = {}
    for name, value in parse_qsl((query or b"").decode(), keep_blank_values=True):
        parameters.setdefault(name, value)
    return all(parameters.get(name) == value for name, value in match.query)


def obvious(
    routes: list[Route], method: str, host: str, path: str, query: bytes | None, headers: Headers
) -> Route | None:
    """All that match, then one rule of precedence after the other."""
    left = [(one, match) for one in routes for match in one.matches if meets(match, method, host, path, query, headers)]

    def keep(measure: Callable[[Route, Match], int]) -> None:
        best = max((measure(one, match) for one, match in left), default=0)
        left[:] = [(one, match) for one, match in left if measure(one, match) == best]

    keep(lambda one, match: one.priority)
    keep(lambda one, match: 0 if match.host is None else 1 if match.host.startswith("*") else 2)
    keep(lambda one, match: len(match.host or ""))
    keep(lambda one, match: 2 if match.path is not None else 1 if match.regex is not None else 0)
    keep(lambda one, match: -routes.index(one) if match.regex is not None else 0)
    keep(lambda one, match: len([part for part in (match.prefix or "").split("/") if part]))
    keep(lambda one, match: bool(match.methods))
    keep(lambda one, match: len(match.headers))
    keep(lambda one, match: len(match.query))
    return left[0][0] if left else None


HOSTS = ("a.example", "b.a.example", "c.b.a.example", "example", "other")
PATHS = ("/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/a%2Fb", "/b", "/b/a/b")
some_hosts = st.none() | st.sampled_from([*HOSTS, *(f"*.{host}" for host in HOSTS)])
some_pairs = st.dictionaries(st.sampled_from("xyz"), st.sampled_from(["1", "2", "1, 2", ""]), max_size=2)
some_matches = st.builds(
    lambda host, path, methods, headers, query: Match(
        host=host, methods=frozenset(methods), headers=tuple(headers.items()), query=tuple(query.items()), **path
    ),
    some_hosts,
    st.one_of(
        st.just({}),
        st.fixed_dictionaries({"path": st.sampled_from([*PATHS, "/%61//b"])}),
        st.fixed_dictionaries({"prefix": st.sampled_from([*PATHS, "//a", "/%61/b/"])}),
        st.fixed_dictionaries({"regex": st.sampled_from(["/a.*", "/[ab]", ".*b", "/a/b|/b", "/"])}),
    ),
    st.sets(st.sampled_from(["GET", "POST"])),
    some_pairs,
    some_pairs,
)
some_routes = st.lists(
    st.tuples(st.lists(some_matches, min_size=1, max_size=3), st.sampled_from([0, 0, 0, 5, -1])), max_size=12
).map(
    lambda specs: [
        Route(str(index), "u", matches=tuple(matches), priority=priority, index=index)
        for index, (matches, priority) in enumerate(specs)
    ]
)


@settings(max_examples=times(200), deadline=None)
@given(
    some_routes,
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "HEAD"]),
            st.sampled_from([*HOSTS, ""]),
            st.sampled_from(PATHS),
            st.none() | st.lists(st.sampled_from(["x=1", "y=2", "x=2", "z", "x=1%2C+2", "%78=1"])).map("&".join),
            st.lists(st.tuples(st.sampled_from("xyzXY"), st.sampled_from(["1", "2", ""])), max_size=4),
        ),
        min_size=1,
        max_size=10,
    ),
)
def test_agrees_with_an_obvious_router(
    routes: list[Route], requests: list[tuple[str, str, str, str | None, list[tuple[str, str]]]]
) -> None:
    router = Router(routes)
    for method, host, path, query, lines in requests:
        headers = [(name.encode(), value.encode()) for name, value in lines]
        raw_query = None if query is None else query.encode()
        found = router.match(method.encode(), host.encode(), path.encode(), raw_query, headers)
        assert found is obvious(routes, method, host, path, raw_query, headers)


@given(st.binary(), st.binary(), st.binary(), st.none() | st.binary(), st.lists(st.tuples(st.binary(), st.binary())))
def test_any_bytes_are_answered(
    method: bytes, host: bytes, path: bytes, query: bytes | None, headers: list[tuple[bytes, bytes]]
) -> None:
    routes = [
        route("wildcard", 0, host="*.example", regex="/.*"),
        route("asking", 1, headers={"a": "b"}, query={"a": "b"}),
        route("method", 2, methods=["GET"]),
        route("all", 3),
    ]
    assert Router(routes).match(method, host, path, query, headers) in [None, *routes]


def test_a_header_with_an_underscore_is_none() -> None:
    """It is dropped on the way, and behind CGI it would pass for the other."""
    router = Router([route("wanting", 0, headers={"x_a": "1"}), route("all", 1)])
    found = router.match(b"GET", b"a", b"/", None, [(b"X_A", b"1")])
    assert found is not None
    assert found.name == "all"
