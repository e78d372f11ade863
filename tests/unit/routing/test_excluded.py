"""`match.not`, and `prefix` together with `regex`: what commands and the check say of them (issue 12)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config as files
from gateway.commands.diff import changes, replay
from gateway.commands.explain import explain
from gateway.commands.imagined_request import question
from gateway.errors import ConfigError
from gateway.model import Config, Match, Route
from gateway.routing.match_text import told_match
from gateway.routing.overlap import Extent, apart
from gateway.routing.router import Router, precedence


def loaded(*matches: Any, names: str = "abcdefgh") -> Config:
    routes = [{"name": names[place], "match": match, "upstream": "u"} for place, match in enumerate(matches)]
    document = {"version": 1, "upstreams": {"u": {"endpoints": ["http://192.0.2.9:80"]}}, "routes": routes}
    return files.loads(json.dumps(document).encode(), "f", {})


def why(config: Config, url: str, method: str = "GET", headers: tuple[tuple[str, str], ...] = ()) -> str:
    found = explain(config, question(method, url, headers))
    (lost,) = found.lost
    return lost.why


@pytest.mark.parametrize(
    ("excluded", "url", "method", "expected"),
    [
        ({"host": "a.example"}, "http://a.example/x", "GET", "not: the host a.example is a.example"),
        ({"host": "*.example"}, "http://a.b.example/x", "GET", "not: the host a.b.example is *.example"),
        ({"path": "/x"}, "/x", "GET", "not: the path is /x"),
        ({"prefix": "/x"}, "/x/y", "GET", "not: the path /x/y is under /x"),
        ({"regex": "/[xy]"}, "/y", "GET", "not: the path /y matches /[xy]"),
        ({"methods": ["GET", "PUT"]}, "/x", "PUT", "not: the method is PUT"),
        ({"headers": {"X-A": "1"}}, "/x", "GET", "not: the header x-a is '1'"),
        ({"query": {"v": "1"}}, "/x?v=1", "GET", "not: the query has v=1"),
        ({"prefix": "/p", "path": "/q", "methods": ["POST"]}, "/q", "GET", "not: the path is /q"),
    ],
)
def test_explain_says_which_condition_of_not_held(excluded: Any, url: str, method: str, expected: str) -> None:
    assert why(loaded({"not": excluded}), url, method, (("X-A", "1"),)) == expected


def test_explain_says_which_of_prefix_and_regex_failed() -> None:
    config = loaded({"prefix": "/a", "regex": ".*x"})
    assert why(config, "/b/x") == "the path /b/x is not under /a"
    assert why(config, "/a/y") == "the path /a/y does not match .*x"
    assert explain(config, question("GET", "/a/x")).route == "a"


def test_it_is_written_as_one_line() -> None:
    match = Match(
        host="h.example", prefix="/a", regex=".*x", methods=frozenset({"GET"}),
        excluded=Match(path="/p", prefix="/q", methods=frozenset({"PUT", "POST"}), headers=(("x", "1"),), query=(("v", "2"),)),
    )  # fmt: skip
    assert told_match(match) == "h.example /a ~ .*x GET not (= /p, /q, POST,PUT, x: 1, ?v=2)"


def test_a_match_with_both_ranks_as_a_regex() -> None:
    both, regex, prefix, exact = Match(prefix="/a/b/c", regex=".*"), Match(regex="/a.*"), Match(prefix="/a/b/c/d"), Match(path="/a")

    def rank(match: Match, index: int = 0) -> tuple[int, ...]:
        return precedence(Route("r", "u", index=index), match)

    assert rank(exact, 9) < rank(both, 1) < rank(regex, 2) < rank(prefix)
    assert rank(both) == rank(Match(regex="x"))
    assert rank(Match(prefix="/a")) == rank(Match(prefix="/a", excluded=Match(path="/a/b")))


def mistakes(*matches: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*matches)
    return [f"{one.key}: {one.message}" for one in caught.value.mistakes]


def test_what_the_check_refuses() -> None:
    assert mistakes({"not": {"colour": 1}})[0].startswith("routes[0].match.not.colour: unknown key")
    assert mistakes({"not": {"not": {"path": "/a"}}})[0].startswith("routes[0].match.not.not: unknown key")
    assert mistakes({"not": {"regex": "("}})[0].startswith("routes[0].match.not.regex: is no regular expression")
    assert mistakes({"not": {"regex": "(?!a)"}})[0].startswith("routes[0].match.not.regex: has (?!, and RE2 has no look-ahead")
    assert mistakes({"not": {"headers": {"A": "1", "a": "2"}}}) == ["routes[0].match.not.headers.a: given twice, in another case"]
    same = {"prefix": "/a", "not": {"path": "/a/b", "methods": ["GET"]}}
    assert "can never be told apart from route a" in mistakes(same, {**same, "prefix": "/a/"})[0]


def test_routes_that_differ_in_what_they_exclude_are_two() -> None:
    assert loaded({"prefix": "/a", "not": {"path": "/a/b"}}, {"prefix": "/a", "not": {"path": "/a/c"}}, {"prefix": "/a"}).routes
    assert loaded({"regex": "/a.*", "prefix": "/a"}, {"regex": "/a.*", "prefix": "/a/b"}).routes


def test_strip_prefix_and_redirect_take_a_prefix_beside_a_regex() -> None:
    document = {
        "version": 1,
        "upstreams": {"u": {"endpoints": ["http://192.0.2.9:80"]}},
        "routes": [
            {"name": "a", "match": {"prefix": "/a", "regex": ".*x"}, "strip_prefix": True, "upstream": "u"},
            {"name": "b", "match": {"prefix": "/b", "regex": ".*x"}, "redirect": {"prefix": "/c"}},
        ],
    }
    config = files.loads(json.dumps(document).encode(), "f", {})
    assert explain(config, question("GET", "/a/x")).sent[0].lines[0] == "GET /x HTTP/1.1"
    assert "Location: http://localhost/c/x" in explain(config, question("GET", "/b/x")).answer


class TestOverlap:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (Match(prefix="/a", excluded=Match(prefix="/a/b")), Match(prefix="/a/b/c")),
            (Match(excluded=Match(host="*.example")), Match(host="a.example")),
            (Match(excluded=Match(methods=frozenset({"GET", "PUT"}))), Match(methods=frozenset({"GET"}))),
            (Match(excluded=Match(headers=(("x", "1"),))), Match(headers=(("x", "1"), ("y", "2")))),
            (Match(excluded=Match(regex="/a.*")), Match(regex="/a.*")),
            (Match(prefix="/a", regex=".*"), Match(prefix="/b", regex="/b.*")),
            (Match(prefix="/a", regex=".*"), Match(path="/b")),
        ],
    )
    def test_apart(self, one: Match, other: Match) -> None:
        assert apart(one, other)
        assert apart(other, one)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (Match(prefix="/a", excluded=Match(prefix="/a/b")), Match(prefix="/a")),
            (Match(excluded=Match(methods=frozenset({"GET"}))), Match(methods=frozenset({"GET", "PUT"}))),
            (Match(prefix="/a", regex=".*"), Match(prefix="/a/b", regex=".*x")),
            (Match(regex=".*"), Match(path="/b")),
        ],
    )
    def test_not_apart(self, one: Match, other: Match) -> None:
        assert not apart(one, other)
        assert not apart(other, one)

    @pytest.mark.parametrize(
        ("wide", "narrow", "expected"),
        [
            (Match(prefix="/a"), Match(prefix="/a", excluded=Match(path="/a/b")), True),
            (Match(prefix="/a", excluded=Match(path="/a/b")), Match(prefix="/a"), False),
            (Match(prefix="/a", excluded=Match(path="/a/b")), Match(prefix="/a/c"), True),
            (Match(excluded=Match(path="/b")), Match(excluded=Match(path="/b", prefix="/c")), True),
            (Match(excluded=Match(path="/b", prefix="/c")), Match(excluded=Match(path="/b")), False),
            (Match(regex=".*x"), Match(prefix="/a", regex=".*x"), True),
            (Match(prefix="/a", regex=".*x"), Match(regex=".*x"), False),
            (Match(prefix="/a", regex=".*x"), Match(prefix="/a/b", regex=".*x"), True),
            (Match(prefix="/a"), Match(prefix="/a/b", regex=".*x"), True),
        ],
    )
    def test_covers(self, wide: Match, narrow: Match, expected: bool) -> None:
        assert Extent.of(wide).covers(Extent.of(narrow)) is expected


@pytest.mark.parametrize(
    ("matches", "told"),
    [
        (({"prefix": "/a", "not": {"prefix": "/"}},), "never matches: / takes all that the match does"),
        (({"prefix": "/a/b", "not": {"prefix": "/a"}},), "never matches: /a takes all that the match does"),
        (({"methods": ["PUT"], "not": {"methods": ["PUT", "GET"]}},), "never matches: GET,PUT takes all"),
        (({"not": {"regex": "a.*"}},), "excludes nothing: it is for the whole path"),
        (({"not": {"headers": {"X_A": "1"}}},), "x_a excludes nothing"),
        (({"prefix": "/a"}, {"prefix": "/a/", "not": {"path": "/a/b"}}), "never wins: route a"),
        (({"regex": ".*x"}, {"regex": ".*x", "prefix": "/a"}), "never wins: route a"),
    ],
)
def test_check_warns(matches: Any, told: str) -> None:
    assert any(told in warning for warning in loaded(*matches).warnings)


def test_check_does_not_warn_of_what_is_needed() -> None:
    config = loaded(
        {"prefix": "/a", "not": {"path": "/a/b"}}, {"prefix": "/a"}, {"regex": ".*y", "prefix": "/b"}, {"regex": ".*y"}
    )
    assert not [warning for warning in config.warnings if "never" in warning or "excludes nothing" in warning]


def test_diff_tells_of_it() -> None:
    old, new = loaded({"prefix": "/a"}), loaded({"prefix": "/a", "not": {"methods": ["PUT"]}})
    (change,) = changes(old, new)
    assert (change.key, change.old, change.new) == ("match", "* /a", "* /a not (PUT)")
    line = json.dumps({"method": "PUT", "host": "a", "target": "/a/x"}).encode()
    assert [group.new for group in replay(old, new, [line]).groups] == ["404 no_route"]
    assert replay(old, loaded({"not": {"headers": {"A": "1"}}}), []).blind == ("a",)


# -- against the plainest reading ----------------------------------------------------------

_CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["/a", "/a/b", "/b"]),
        "prefix": st.sampled_from(["/a", "/b", "/a/b"]),
        "regex": st.sampled_from(["/a.*", ".*b", "/[ab]"]),
        "methods": st.sampled_from([frozenset({"GET"}), frozenset({"PUT", "GET"})]),
        "host": st.sampled_from(["a.example", "*.example"]),
        "query": st.sampled_from([(("v", "1"),), (("v", "1"), ("w", "2"))]),
    },
)


@given(
    _CONDITIONS,
    st.sampled_from([b"/a", b"/a/b", b"/b", b"/ab", b"/"]),
    st.sampled_from([b"GET", b"PUT", b"POST"]),
    st.sampled_from([b"a.example", b"example", b"b"]),
    st.sampled_from([None, b"v=1", b"w=2&v=0"]),
)
def test_none_of_the_conditions_may_match(
    conditions: dict[str, Any], path: bytes, method: bytes, host: bytes, query: bytes | None
) -> None:
    """A match that excludes something holds where no match of one of the conditions alone does."""
    excluded = Match(**conditions)

    def holds(match: Match) -> bool:
        return Router([Route("r", "u", (match,))]).match(method, host, path, query, []) is not None

    assert holds(Match(excluded=excluded)) == (not any(holds(one) for one in excluded.alone()))
