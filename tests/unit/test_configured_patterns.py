"""Patterns of the configuration run on RE2: in linear time, with what it lacks refused by name (issue 12)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config as files
from gateway import patterns
from gateway.errors import ConfigError
from gateway.http import target
from gateway.model import Match, Route
from gateway.routing.router import Router
from tests.patterns import growth
from tests.services import ROOT

FILE = """
version: 1
upstreams: {{u: {{endpoints: ["http://192.0.2.9:80"]}}}}
routes:
- {{name: r, upstream: u, {}}}
"""

FOREIGN = [
    (r"/(?!a).*", "look-ahead"),
    (r"/(?=a).*", "look-ahead"),
    (r"/a(?<=a)b", "look-behind"),
    (r"/a(?<!a)b", "look-behind"),
    (r"/(a)\1", "back-references"),
    (r"/(a)\12", "back-references"),
    (r"/(?P<n>a)(?P=n)", "back-references"),
    (r"/a++", "possessive repeats"),
    (r"/a*+", "possessive repeats"),
    (r"/a?+", "possessive repeats"),
    (r"/(ab){2,}+", "possessive repeats"),
    (r"/(?>a|b)", "atomic groups"),
    (r"/(?#why)a", "comments"),
    (r"(?x)/ a", "(?x)"),
    (r"/(?ix:a)", "(?x)"),
    (r"(?a)/a", "(?a)"),
    (r"(?u)/a", "(?u)"),
    (r"/(a)?(?(1)b|c)", "conditional groups"),
    (r"/a{1001}", "1,000"),
    (r"/a{1,1001}", "1,000"),
    (r"/a{99999999999}", "1,000"),
    (r"/(a{100}){11}", "1,000"),
    (r"/a{,3}", "{0,3}"),
    (r"/a{,}", "{0,}"),
    (r"/a\Z", r"\z"),
    (r"/(?P<n>a)(?P<n>b)", "two groups of the name n"),
    (r"/\N{DASH}", r"\N"),
    (r"/\u0041", r"\u"),
]


def mistakes(route: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        files.loads(FILE.format(route).encode(), "f", {})
    return [f"{mistake.key}: {mistake.message}" for mistake in caught.value.mistakes]


@pytest.mark.parametrize(("source", "named"), FOREIGN)
def test_what_re2_lacks_is_a_mistake_by_name(source: str, named: str) -> None:
    quoted = "'" + source.replace("'", "''") + "'"
    for route in (f"match: {{regex: {quoted}}}", f"rewrite: {{regex: {quoted}, to: /x}}"):
        (mistake,) = mistakes(route)
        assert "regex: " in mistake
        assert named in mistake


@pytest.mark.parametrize(
    "source",
    [
        r"[(?=]+", r"\(?=a", r"\\1", r"\Q(?!\E", r"[]++]+", r"[^]*+]*x", r"\+\+", r"a{1000}", r"(?:a{10}){100}", r"a{}", r"a{x}", r"a+?",
        r"a{2,}?", r"(?i:a)", r"(?s).", r"\x41\101", r"[[:alpha:]+*]+", r"[\]++]+", r"(?P<n>a)(?P<m>b)", r"a\z", r"é",
    ],
)  # fmt: skip
def test_what_looks_alike_is_none(source: str) -> None:
    assert patterns.compile(source).pattern == source.encode()


def test_nothing_is_printed_about_a_bad_pattern(capfd: pytest.CaptureFixture[str]) -> None:
    for source in ("a(", "[b-a]", "a**"):
        with pytest.raises(patterns.PatternError):
            patterns.compile(source)
    assert capfd.readouterr() == ("", "")


def test_bytes_are_latin_1() -> None:
    """In UTF-8 mode a byte that is no character would pass a guard."""
    assert patterns.compile("/admin.*").fullmatch(b"/admin\xff") is not None
    assert patterns.compile("/[^/]").fullmatch(b"/\xe9") is not None


def test_both_ends_are_anchored() -> None:
    one = patterns.compile("a|ab")
    assert one.fullmatch(b"ab") is not None
    assert one.fullmatch(b"abc") is None
    assert one.fullmatch(b"ab\n") is None
    assert patterns.compile("^ab$").fullmatch(b"ab") is not None


def test_without_the_library_the_mistake_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(patterns.PatternError, match="google-re2"):
        patterns.compile("a")


@pytest.mark.parametrize(("route", "imported"), [("match: {prefix: /a}", False), ("match: {regex: /a+}", True)])
def test_the_library_is_imported_with_the_first_pattern(route: str, imported: bool, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE.format(route))
    code = (
        "from gevent import monkey; monkey.patch_all()\nimport sys\nfrom gateway import create_app\n"
        f"create_app({str(path)!r})\nprint('re2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(imported)


# -- the same meaning as before ------------------------------------------------------------

_ATOMS = st.sampled_from(["a", "b", "/", ".", r"\d", r"\w", r"\.", "[ab]", "[^a/]", "(a|b/)", "(?:ab|a)", "(a*)", "(?P<n>b)?", "x{2}", "$", "^"])
_REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "{1,3}"])


@given(st.lists(st.tuples(_ATOMS, _REPEATS), min_size=1, max_size=5), st.text("ab/x1.", max_size=8))
def test_it_matches_what_re_matched(parts: list[tuple[str, str]], text: str) -> None:
    source = "".join(atom + ("" if atom in "$^" or atom.endswith(("}", "?")) else repeat) for atom, repeat in parts)
    if source.count("?P<n>") > 1:
        return
    expected = re.compile(source.encode()).fullmatch(text.encode())
    found = patterns.compile(source).fullmatch(text.encode())
    assert (found is None) == (expected is None)


@pytest.mark.parametrize(
    ("source", "path", "to"),
    [
        (r"^/u/(\d+)", b"/u/12", rb"/users/\1"),
        (r"/(a)(?P<n>b)?(/.*)?", b"/a/x", rb"/\1-\2\g<n>\3\g<1>2"),
        (r"/(a)(?P<n>b)?(/.*)?", b"/ab", rb"/\\\.\1\g<n>x"),
        ("/" + "(.)" * 12, b"/abcdefghijkl", rb"/\12\g<10>\1"),
        (r"/(.*)/(.*)", b"/a/b/c", rb"/\2/\1"),
        (r"/(.*?)/(.*)", b"/a/b/c", rb"/\2/\1"),
        (r"/.*", b"/a", rb"/plain\?x=1"),
    ],
)
def test_a_template_says_what_it_said(source: str, path: bytes, to: bytes) -> None:
    one = patterns.compile(source)
    found = one.fullmatch(path)
    assert found is not None
    before = re.compile(source.encode()).fullmatch(path)
    assert before is not None
    assert patterns.expand(found, to, one) == before.expand(to)
    # A pattern of `re` does as well.
    assert patterns.expand(before, to, before.re) == before.expand(to)


@pytest.mark.parametrize("to", [rb"/\4", rb"/\10", rb"/\g<m>", rb"/\n", rb"/\0", rb"/\123", rb"/\g<1", rb"/\q", rb"/\g<9999>"])
def test_a_template_that_does_not_fit(to: bytes) -> None:
    with pytest.raises(patterns.PatternError):
        patterns.pieces(to, patterns.compile(r"/(a)(?P<n>b)?(/.*)?"))
    (mistake,) = mistakes(rf"rewrite: {{regex: '/(a)(?P<n>b)?(/.*)?', to: '{to.decode()}'}}")
    assert "rewrite.to: does not fit the regular expression" in mistake


# -- many patterns ---------------------------------------------------------------------------

_SOURCES = [rf"/s{number}/v[0-9]+/(.*)" for number in range(patterns.SET_SIZE + 5)] + ["/.*", "/s1/.*", r"/s300/\w+", "/s256/v1/x"]
_PATHS = [b"/", b"/s1/v2/x", b"/s256/v1/x", b"/s260/v9/", b"/s300/a", b"/none", b"/s1/", b"s1"]


@pytest.mark.parametrize("number", [0, 1, patterns.SET_FROM - 1, patterns.SET_FROM, patterns.SET_SIZE, len(_SOURCES)])
def test_many_patterns_find_what_each_finds(number: int) -> None:
    some = [patterns.compile(source, groups=False) for source in _SOURCES[-number:][:number]]
    together = patterns.Patterns(some)
    assert bool(together._chunks) == (number >= patterns.SET_FROM)
    assert all(one is not None for _, one in together._chunks)
    for path in _PATHS:
        assert together.matching(path) == [place for place, one in enumerate(some) if one.fullmatch(path)]


def test_a_set_that_cannot_be_made_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted repeats need more memory than is allowed here: the single patterns are asked instead."""
    sources = [f"/s{number}/[a-z]{{1,200}}/[0-9a-f]{{8,200}}" for number in range(40)]
    some = [patterns.compile(source, groups=False) for source in sources]
    assert patterns.Patterns(some)._chunks[0][1] is not None
    monkeypatch.setattr(patterns, "_BASE_MEMORY", 128 * 1024)
    monkeypatch.setattr(patterns, "_MEMORY_OF_ONE", 0)
    together = patterns.Patterns(some)
    assert together._chunks[0][1] is None
    assert together.matching(b"/s7/abc/0123456789") == [7]
    assert together.matching(b"/s7/abc/") == []


def test_a_hit_of_a_set_is_confirmed() -> None:
    some = [patterns.compile(f"/a{number}", groups=False) for number in range(patterns.SET_FROM)]
    together = patterns.Patterns(some)

    class Lying:
        @staticmethod
        def Match(path: bytes) -> list[int]:
            return [3, 0]

    together._chunks = [(together._chunks[0][0], Lying)]
    assert together.matching(b"/a0") == [0]


@pytest.mark.parametrize("number", [1, 3, 4, 300])
def test_regex_routes_win_in_file_order(number: int) -> None:
    """However many there are, and with routes between them that are none."""
    routes = [Route("exact", "u", (Match(path="/x/0"),), index=0), Route("prefix", "u", (Match(prefix="/x"),), index=1)]
    routes += [Route(f"r{one}", "u", (Match(regex=f"/x/{one}|/y/.*"),), index=2 + one) for one in range(number)]
    router = Router(routes)

    def served(path: bytes) -> str | None:
        route = router.match(b"GET", b"", path, None, [])
        return route and route.name

    assert served(b"/x/0") == "exact"
    assert served(f"/x/{number - 1}".encode()) == (f"r{number - 1}" if number > 1 else "exact")
    assert served(b"/x/999") == "prefix"
    assert served(b"/y/1") == "r0"
    assert served(b"/z") is None


_HOSTILE = [
    (r"^/(a+)+$", b"/", b"a", b"!"),
    (r"/([a-z]+)*\.html", b"/", b"a", b"!"),
    (r"/(\w+/?)+", b"/", b"a", b"!"),
    (r"/api/(.*)/users/(.*)/x", b"/api/", b"/users/", b"y"),
    (r".*/a.*/b.*\.js", b"/a", b"/a/b", b""),
    (r"/v[0-9]+/.*", b"/", b"v1/", b""),
]


@pytest.mark.parametrize(("source", "before", "pump", "end"), _HOSTILE)
@pytest.mark.parametrize("others", [0, 8])
def test_a_hostile_path_takes_linear_time(source: str, before: bytes, pump: bytes, end: bytes, others: int) -> None:
    routes = [Route(f"o{one}", "u", (Match(regex=f"/other{one}/(.*)+"),), index=one) for one in range(others)]
    router = Router([*routes, Route("r", "u", (Match(regex=source),), index=others)])
    asked = (b"GET", b"")
    assert growth(lambda length: lambda: router.match(*asked, before + pump * (length // len(pump)) + end, None, [])) == ""


def test_a_rewriting_takes_linear_time() -> None:
    rewriting = patterns.compile(r"/(.*)/(.*)/(.*)x")
    assert growth(lambda length: lambda: rewriting.fullmatch(b"/" * length)) == ""
    assert target._rooted(b"a") == b"/a"
