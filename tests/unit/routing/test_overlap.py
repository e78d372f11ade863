"""How matches relate, against the router: whatever is said must hold for every request."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.model import Match, Route
from gateway.routing.overlap import Extent, apart
from gateway.routing.router import Router
from tests.long import times
from tests.unit.routing.test_router import HOSTS, PATHS, some_matches


def covers(wide: Match, narrow: Match) -> bool:
    return Extent.of(wide).covers(Extent.of(narrow))


def match(**conditions: object) -> Match:
    for key in ("headers", "query"):
        conditions[key] = tuple(dict(conditions.get(key, {})).items())  # type: ignore[call-overload]
    return Match(**{**conditions, "methods": frozenset(conditions.get("methods", ()))})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({}, {}),
        ({}, {"host": "a", "path": "/x", "methods": ["GET"], "headers": {"a": "1"}}),
        ({"prefix": "/"}, {"regex": "/x+"}),
        ({"host": "A.example."}, {"host": "a.example"}),
        ({"host": "*.example"}, {"host": "a.b.example"}),
        ({"host": "*.example"}, {"host": "*.b.example"}),
        ({"prefix": "/a/"}, {"prefix": "//a"}),
        ({"prefix": "/a"}, {"prefix": "/a/b"}),
        ({"prefix": "/a"}, {"path": "/%61"}),
        ({"path": "/a"}, {"path": "/%61"}),
        ({"regex": "/a+"}, {"regex": "/a+", "methods": ["GET"]}),
        ({"methods": ["GET", "PUT"]}, {"methods": ["PUT"]}),
        ({"headers": {"a": "1"}}, {"headers": {"b": "2", "a": "1"}}),
        ({"query": {"a": "1"}}, {"query": {"b": "2", "a": "1"}}),
    ],
)
def test_covers(wide: dict[str, object], narrow: dict[str, object]) -> None:
    assert covers(match(**wide), match(**narrow))
    assert not apart(match(**wide), match(**narrow))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({"host": "a"}, {}),
        ({"host": "*.example"}, {"host": "example"}),
        ({"host": "*.b.example"}, {"host": "*.example"}),
        ({"prefix": "/a"}, {"prefix": "/ab"}),
        ({"prefix": "/a"}, {"prefix": "/"}),
        ({"prefix": "/a"}, {"regex": "/a/.*"}),
        ({"path": "/a"}, {"prefix": "/a"}),
        ({"path": "/a"}, {"path": "/a/"}),
        ({"regex": "/.*"}, {"path": "/a"}),
        ({"methods": ["GET"]}, {}),
        ({"methods": ["GET"]}, {"methods": ["GET", "PUT"]}),
        ({"headers": {"a": "1"}}, {"headers": {"a": "2"}}),
        ({"query": {"a": "1"}}, {}),
    ],
)
def test_does_not_cover(wide: dict[str, object], narrow: dict[str, object]) -> None:
    assert not covers(match(**wide), match(**narrow))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"host": "a"}, {"host": "b"}),
        ({"host": "*.a"}, {"host": "a"}),
        ({"host": "*.a"}, {"host": "*.b"}),
        ({"path": "/a"}, {"path": "/b"}),
        ({"path": "/a"}, {"prefix": "/a/b"}),
        ({"prefix": "/a"}, {"prefix": "/ab"}),
        ({"methods": ["GET"]}, {"methods": ["PUT"]}),
        ({"headers": {"a": "1"}}, {"headers": {"a": "2"}}),
        ({"query": {"a": "1"}}, {"query": {"a": "2"}}),
    ],
)
def test_apart(one: dict[str, object], other: dict[str, object]) -> None:
    assert apart(match(**one), match(**other))
    assert apart(match(**other), match(**one))


def test_what_is_around() -> None:
    assert Extent.of(match(host="a.b.c")).hosts == {"a.b.c", "*.b.c", "*.c", None}
    assert Extent.of(match(host="*.b.c")).hosts == {"*.b.c", "*.c", None}
    assert Extent.of(match(host="[::1]")).hosts == {"[::1]", None}
    assert Extent.of(match()).hosts == {None}
    assert Extent.of(match(host="*.EXAMPLE.")).host == "*.example"
    assert Extent.of(match(prefix="/a/b/")).prefixes == {b"/a/b", b"/a", b""}
    assert Extent.of(match(path="/a")).prefixes == {b"/a", b""}
    assert Extent.of(match(regex="/a")).prefixes == {b""}


@settings(max_examples=times(300), deadline=None)
@given(
    some_matches,
    some_matches,
    st.sampled_from([b"GET", b"POST", b"HEAD"]),
    st.sampled_from([*HOSTS, ""]),
    st.sampled_from(PATHS),
    st.lists(st.sampled_from(["x=1", "y=2", "x=2", "z="]), max_size=3).map("&".join),
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["1", "2", "1, 2", ""])), max_size=3, unique_by=lambda p: p[0]),
)
def test_no_request_says_otherwise(
    one: Match, other: Match, method: bytes, name: str, path: str, query: str, lines: list[tuple[str, str]]
) -> None:
    headers = [(field.encode(), value.encode()) for field, value in lines]

    def holds(tried: Match) -> bool:
        router = Router([Route("r", "u", matches=(tried,))])
        return router.match(method, name.encode(), path.encode(), query.encode(), headers) is not None

    if covers(one, other):
        assert not holds(other) or holds(one)
    if apart(one, other):
        assert not (holds(one) and holds(other))
