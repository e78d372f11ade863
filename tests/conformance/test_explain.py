"""`gateway explain` and the running gateway, asked the same: they agree on every routing case.

Each request of `test_routing` and of the tables in `routing_cases` goes to the gateway as bytes and to
`explain` as the same bytes. What the upstream got is compared with what was foretold byte by byte; only the
request id cannot be foretold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.commands.explain import NEW_ID, Explanation, explain
from gateway.commands.imagined_request import Question
from gateway.testing import PATIENCE, FakeUpstream, RawResponse
from tests.conformance import test_routing as routing
from tests.conformance.harness import Scene, doors
from tests.conformance.harness import scene as started
from tests.unit.routing_cases import TABLES, Case, Table

SCENE = "routing"
# What gunicorn's own parser refuses is not what our worker refuses; what passes our worker's is the same at both of
# its doors, which is for the tests that these are made of.
pytestmark = pytest.mark.own_worker("explain tells what our own worker does", door="direct")


# -- one request, asked twice ------------------------------------------------------------


def question(data: bytes) -> Question:
    """The request that some bytes are."""
    head = data.partition(b"\r\n\r\n")[0]
    line, *fields = head.split(b"\r\n")
    method, _, rest = line.partition(b" ")
    headers = tuple((name, value) for name, _, value in (field.partition(b": ") for field in fields))
    asked = Question(method, rest.removesuffix(b" HTTP/1.1"), None, headers, peer="127.0.0.1")
    assert asked.head == head + b"\r\n\r\n", "the question says something else than the bytes"
    return asked


def foretold(scene: Scene, data: bytes) -> Explanation:
    file = scene.gateway.log_path.with_name("gateway.yaml")
    return explain(config.load(str(file)), question(data))


def check_agreement(told: Explanation, response: RawResponse, upstream: FakeUpstream) -> None:
    if not told.forwarded:
        assert upstream.requests == []
        if told.status is None:
            assert response.header(b"via") is None, "one of the gateway's own paths"
        else:
            reason = response.header(b"gateway-error")
            assert (response.status, (reason or b"").decode()) == (told.status, told.reason)
        return
    received = upstream.last
    identity = received.header(b"x-request-id")
    assert identity
    (sent,) = told.sent
    expected = "\r\n".join([*sent.lines, "", ""]).encode("latin-1")
    assert received.head == expected.replace(NEW_ID, identity)
    assert sent.endpoints == (upstream.url,)


class Explained:
    """A scene in which every request is explained as well."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.gateway, self.upstreams = scene.gateway, scene.upstreams

    def ask(self, data: bytes) -> RawResponse:
        upstream = self.upstreams["main"]
        upstream.requests.clear()
        response = self.scene.ask(data)
        check_agreement(foretold(self.scene, data), response, upstream)
        return response


# -- the cases of test_routing -------------------------------------------------------------


@pytest.fixture
def scene(scene: Scene) -> Explained:
    return Explained(scene)


class TestPaths(routing.TestPaths):
    pass


class TestHeadersQueryMethods(routing.TestHeadersQueryMethods):
    pass


class TestHosts(routing.TestHosts):
    pass


class TestAbsoluteForm(routing.TestAbsoluteForm):
    pass


class TestNoRoute(routing.TestNoRoute):
    pass


class TestForwardedAsItCame(routing.TestForwardedAsItCame):
    pass


class TestRewrites(routing.TestRewrites):
    pass


class TestOwnPaths(routing.TestOwnPaths):
    pass


def test_no_class_of_test_routing_is_left_out() -> None:
    theirs = {name for name, value in vars(routing).items() if name.startswith("Test") and isinstance(value, type)}
    assert theirs == {name for name in globals() if name.startswith("Test")}


# -- the tables ------------------------------------------------------------------------------


def document() -> str:
    """One configuration of all tables: a header tells them apart, which changes nothing in the order of a
    table's own matches."""
    upstreams: dict[str, Any] = {}
    routes: list[dict[str, Any]] = []
    for table in TABLES:
        upstreams[table.name] = {"endpoints": [f"UPSTREAM{table.endpoint}"]}
        for spec in table.routes:
            matches = spec["match"] if isinstance(spec["match"], list) else [spec["match"]]
            marked = [{**match, "headers": {**match.get("headers", {}), "X-Table": table.name}} for match in matches]
            name = f"{table.name}: {spec['name']}"
            routes.append({**spec, "name": name, "match": marked, "upstream": table.name})
    sections = {"version": 1, "server": {"name": "gw"}, "upstreams": upstreams, "routes": routes}
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in sections.items())
    return text.replace("$", "$$").replace("UPSTREAM", "$main")


def request(table: Table, case: Case) -> bytes:
    fields = [("Host", case.host), *case.headers, ("X-Table", table.name)]
    lines = [f"{case.method} {case.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    door = next(door for door in doors() if door.name == "direct")
    with started(document(), ("main",), tmp_path_factory.mktemp("tables"), door) as running:
        yield running


def logged_routes(log: Path, number: int) -> list[str | None]:
    """The routes of the last so many records, once they are there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        records = [json.loads(line) for line in lines if '"/-/readyz"' not in line]
        if len(records) >= number:
            return [record["route"] for record in records[-number:]]
        assert time.monotonic() < deadline, f"{len(records)} records instead of {number}"
        time.sleep(0.02)


def test_the_tables(tables: Scene) -> None:
    upstream = tables.upstreams["main"]
    settings = config.load(str(tables.gateway.log_path.with_name("gateway.yaml")))
    expected: list[str | None] = []
    for table in TABLES:
        for case in table.cases:
            data = request(table, case)
            upstream.requests.clear()
            response = tables.ask(data)
            told = explain(settings, question(data))
            check_agreement(told, response, upstream)
            assert told.reason == (case.refused or ("" if case.route else "no_route")), case.id
            assert told.route == (f"{table.name}: {case.route}" if case.route else ""), case.id
            expected.append(told.route or None)
    assert logged_routes(tables.gateway.log_path, len(expected)) == expected
