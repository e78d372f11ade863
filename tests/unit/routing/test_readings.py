"""Ambiguous paths: a request goes on only if every reading of its path has the same route (issue 12)."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config as files
from gateway.app import Gateway
from gateway.commands.diff import replay
from gateway.commands.explain import explain, told
from gateway.commands.imagined_request import question
from gateway.errors import ClientError
from gateway.forwarding.route_actions import Shaper
from gateway.http import target
from gateway.http.messages import Request, Response
from gateway.model import Config, Endpoint, Route
from gateway.routing.readings import readings

UPSTREAMS = {"app": {"endpoints": ["http://192.0.2.9:80"]}, "other": {"endpoints": ["http://192.0.2.8:80"]}}
DENY = {"name": "deny", "match": {"prefix": "/admin"}, "respond": {"status": 403}}
ALL = {"name": "all", "upstream": "app"}


def loaded(*routes: dict[str, Any], server: dict[str, Any] | None = None) -> Config:
    document = {"version": 1, "server": server or {}, "admin": None, "access_log": None, "upstreams": UPSTREAMS, "routes": list(routes)}
    return files.loads(json.dumps(document).encode(), "test.yaml", {})


def outcome(config: Config, path: str, host: bytes = b"a.example", **given: Any) -> str:
    """The route of a request and the target that goes on, or the status and reason of its refusal."""
    app = Gateway(config)
    sent: list[bytes] = []

    def forward(request: Request, route: Route, group: Any, asked: target.Target, path: bytes, *_: Any) -> Response:
        sent.append(target.outbound(route, ENDPOINT, asked, path))
        return Response(200, b"OK", [])

    app._forwarder = SimpleNamespace(forward=forward)  # type: ignore[assignment]
    app._shaper = Shaper(app._outbound, forward, app._copies.copy, lambda: 0.0)
    request = Request(b"GET", path.encode("latin-1"), [(b"Host", host)], started=time.monotonic(), peer="192.0.2.1", **given)
    response = app.handle(request)
    assert response is not None
    if sent:
        assert request.route is not None
        return f"{request.route.name} {sent[0].decode('latin-1')}"
    return f"{response.status} {request.reason}".rstrip()


ENDPOINT = Endpoint("http", "192.0.2.9", 80)


@pytest.mark.parametrize(
    "path",
    [
        "/admin%2fusers", "/admin%2Fusers", "/%2fadmin/users", "/%2Fadmin", "/admin%5cusers", "/admin%5Cusers", "/admin\\users",
        "/\\admin", "/%5cadmin", "/admin;x", "/admin;", "/admin%3bx=y/users", "/admin%3B", "/;x%2fadmin", "/;/admin",
        "/x;%2f/..%3b/admin", "/x/..%3b/admin", "/x/..%3Ba/admin", "/..%3b/admin", "/x/.%3b/../admin", "/;a\\admin",
        "/%61dmin%2f", "/admin%2f%2f", "/;%2Fadmin%3bx", "/%3bx/admin/users", "/%3b/%3bx%5cadmin",
    ],
)  # fmt: skip
def test_no_reading_passes_a_guard(path: str) -> None:
    assert outcome(loaded(DENY, ALL), path) in ("400 bad_path", "403")


@pytest.mark.parametrize(
    "path",
    [
        "/@scope%2fname",  # npm
        "/api/queues/%2f/q", "/api/queues/%2F/q",  # RabbitMQ
        "/api/v4/projects/group%2Fproject/issues",  # GitLab
        "/shop;jsessionid=0123", "/shop;jsessionid=01/x;y=z?a;b",
        "/a\\b", "/a%5cb", "/a%3bb", "/a;b%2fc", "/a%252fb", "/x%2Fadmin",
    ],
)  # fmt: skip
def test_what_has_one_route_in_every_reading_goes_on_byte_for_byte(path: str) -> None:
    assert outcome(loaded(DENY, ALL), path) == f"all {path}"


@pytest.mark.parametrize("path", ["/admin/x", "/x", "/x?a%2f..;\\"])
def test_other_paths_are_none_of_its_business(path: str) -> None:
    assert outcome(loaded(DENY, ALL), path) == ("403" if path.startswith("/admin") else f"all {path}")


def test_without_a_route_it_is_404_as_ever() -> None:
    assert outcome(loaded(DENY), "/users%2fx") == "404 no_route"
    assert outcome(loaded(DENY), "/x;y/..%3b") == "404 no_route"
    assert outcome(loaded({**DENY, "match": {"prefix": "/admin/x"}}), "/admin%2fx") == "404 no_route"


def test_a_reading_without_a_route_is_refused() -> None:
    only = {"name": "only", "match": {"path": "/a%2Fb"}, "upstream": "app"}
    assert outcome(loaded(only), "/a%2fb") == "400 bad_path"
    assert outcome(loaded({**only, "match": [{"path": "/a%2Fb"}, {"path": "/a/b"}]}), "/a%2fb") == "only /a%2fb"


def test_the_order_of_both_steps_counts() -> None:
    """`/;x%2fadmin`: slashes first leave `/admin`, parameters first leave `/`."""
    assert {one.path for one in readings(b"/;x%2Fadmin")} == {b"/", b"/admin", b"/;x/admin"}
    root = {"name": "root", "match": {"path": "/"}, "upstream": "app"}
    guarded = {"name": "guarded", "match": {"prefix": "/admin"}, "upstream": "other"}
    assert outcome(loaded(root, guarded, ALL), "/;x%2fadmin") == "400 bad_path"


@pytest.mark.parametrize(
    ("path", "guarded"),
    [
        ("/admin%2fx", "/admin/x"),
        ("/admin%5cx", "/admin/x"),
        ("/admin\\x", "/admin/x"),
        ("/admin%2fx;y", "/admin/x;y"),
        ("/admin%5cx;y", "/admin/x;y"),
        ("/admin\\x%3by", "/admin/x%3By"),
        ("/admin%2fx%3by", "/admin%2Fx"),
        ("/admin%2fx;y", "/admin%2Fx"),
        ("/admin%2fx\\y%5cz;p%2fq", "/admin/x/y/z/q"),  # all slashes, then parameters
        ("/admin%2fx;y%2fz", "/admin/x"),  # parameters, then all slashes
        ("/admin%5cx;y%2fz", "/admin/x"),
    ],
)
def test_each_reading_alone_reaches_a_guard(path: str, guarded: str) -> None:
    """Only one reading is the guarded path: none is left out."""
    guard = {"name": "guard", "match": {"path": guarded}, "respond": {"status": 403}}
    assert [one.path for one in readings(target.normal(path.encode()))].count(guarded.encode()) == 1
    assert outcome(loaded(guard, ALL), path) == "400 bad_path"


@pytest.mark.parametrize(
    ("server", "route", "expected"),
    [
        (None, None, "400 bad_path"),
        ("refuse", None, "400 bad_path"),
        ("forward", None, "all /admin%2fx"),
        (None, "forward", "all /admin%2fx"),
        ("refuse", "forward", "all /admin%2fx"),
        ("forward", "refuse", "400 bad_path"),
        ("forward", "forward", "all /admin%2fx"),
    ],
)
def test_the_switch(server: str | None, route: str | None, expected: str) -> None:
    every = ALL if route is None else {**ALL, "ambiguous_paths": route}
    # That of the route which matches the path as it came, not that of the other reading.
    deny = {**DENY, "ambiguous_paths": "forward" if expected.startswith("400") else "refuse"}
    config = loaded(deny, every, server=None if server is None else {"ambiguous_paths": server})
    assert outcome(config, "/admin%2fx") == expected
    assert outcome(config, "/admin/x") == "403"


def test_dot_segments_and_nul_are_refused_also_with_forward() -> None:
    config = loaded(ALL, server={"ambiguous_paths": "forward"})
    for path in ("/a/../b", "/a%2f..%2fb", "/a/..;/b", "/a%00", "/a\\..\\b"):
        assert outcome(config, path) == "400 bad_path"
    assert outcome(config, "/a/..%3b/b") == "all /a/..%3b/b"


def test_conditions_beside_the_path_count_for_each_reading() -> None:
    deny = {**DENY, "match": {"prefix": "/admin", "host": "b.example"}}
    assert outcome(loaded(deny, ALL), "/admin%2fx") == "all /admin%2fx"
    assert outcome(loaded(deny, ALL), "/admin%2fx", host=b"b.example") == "400 bad_path"


def test_a_redirect_that_is_passed_hides_nothing() -> None:
    """https requests pass the redirect; what the next route is differs by reading."""
    secure = {"name": "secure", "priority": 1, "redirect": {"scheme": "https"}}
    config = loaded(secure, DENY, ALL)
    assert outcome(config, "/admin%2fx", scheme="http") == "302"
    assert outcome(config, "/admin%2fx", scheme="https", port=443) == "400 bad_path"
    assert outcome(config, "/x%2fx", scheme="https", port=443) == "all /x%2fx"


@pytest.mark.parametrize(
    ("route", "warned"),
    [
        ({"match": {"path": "/a%2Fb"}}, True),
        ({"match": {"prefix": "/a;b"}}, True),
        ({"match": {"prefix": "/a/..%3b"}}, True),
        ({"match": {"prefix": "/a\\b"}, "ambiguous_paths": "forward"}, False),
        ({"match": [{"path": "/a%2Fb"}, {"prefix": "/a"}]}, False),
        ({"match": {"prefix": "/a%252Fb"}}, False),
        ({"match": {"prefix": "/a"}}, False),
    ],
)
def test_check_warns_of_a_match_that_is_ambiguous_itself(route: dict[str, Any], warned: bool) -> None:
    warnings = loaded({"name": "r", "upstream": "app", **route}, {**ALL, "upstream": "other"}).warnings
    assert any("requests for it are refused" in warning for warning in warnings) == warned


def test_strip_prefix_keeps_the_bytes() -> None:
    strip = {"name": "strip", "match": {"prefix": "/strip"}, "strip_prefix": True, "upstream": "app"}
    assert outcome(loaded(strip, ALL), "/strip/a%2Fb;c") == "strip /a%2Fb;c"
    assert outcome(loaded(strip, ALL), "/strip%2Fa") == "400 bad_path"


class TestExplain:
    def test_it_shows_the_readings_of_a_refused_request(self) -> None:
        found = explain(loaded(DENY, ALL), question("GET", "/admin%2fusers"))
        assert (found.status, found.reason, found.route, found.forwarded) == (400, "bad_path", "", False)
        assert [(one.how, one.path, one.route, one.same) for one in found.readings] == [
            ("as it came", "/admin%2Fusers", "all", True),
            ("with %2F as a slash", "/admin/users", "deny", False),
        ]
        text = "\n".join(told(found))
        assert "readings of the path" in text
        assert "/admin/users" in text
        assert "route deny" in found.detail

    def test_it_shows_the_readings_of_one_that_goes_on(self) -> None:
        found = explain(loaded(DENY, ALL), question("GET", "/@scope%2fname;x"))
        assert (found.route, found.forwarded) == ("all", True)
        assert {(one.route, one.same) for one in found.readings} == {("all", True)}
        assert found.sent[0].lines[0] == "GET /@scope%2fname;x HTTP/1.1"

    def test_it_names_the_switch(self) -> None:
        found = explain(loaded(DENY, {**ALL, "ambiguous_paths": "forward"}), question("GET", "/admin;/..%3b"))
        assert found.forwarded
        assert ("ambiguous_paths", "forward") in [(one.name, one.value) for one in found.settings]
        assert ("(refused: a .. segment)", "(no route)") in [(one.path, one.route) for one in found.readings]

    @pytest.mark.parametrize("path", ["/x", "/admin/x", "/nowhere"])
    def test_a_plain_path_has_none(self, path: str) -> None:
        assert explain(loaded(DENY, ALL), question("GET", path)).readings == ()


def test_diff_tells_of_requests_that_are_refused_now() -> None:
    line = json.dumps({"method": "GET", "host": "a.example", "target": "/admin%2fx", "route": "all"}).encode()
    found = replay(loaded(ALL), loaded(DENY, ALL), [line])
    assert [(group.old, group.new) for group in found.groups] == [("all (app)", "400 bad_path")]


_PIECES = st.lists(st.sampled_from(["/", "a", "admin", "%2f", "%2F", "%5c", "\\", ";", "%3b", "%3B", ".", "%25", "%", "x", "%41"]), max_size=9)


@given(_PIECES)
def test_the_flag_is_set_for_every_path_with_other_readings(pieces: list[str]) -> None:
    raw = f"/{''.join(pieces)}".encode()
    try:
        asked, path = target.read(raw)
    except ClientError:
        return
    assert asked == target.parse(raw)
    assert path == target.normal(raw)
    others = readings(path)
    assert path not in [one.path for one in others]
    if others:
        assert isinstance(asked, target.AmbiguousTarget)
    for one in others:
        assert one.path is None or target.normal(one.path) == one.path


def test_a_plain_target_costs_no_look() -> None:
    """Of a usual target nothing is asked but its type."""
    for raw in (b"/", b"/a/b.c?x;%2f\\", b"/a,b=c&d:e@f!g$h'i(j)k*l+m"):
        asked, path = target.read(raw)
        assert type(asked) is target.Target
        assert path is not None
