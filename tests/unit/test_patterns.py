"""Regular expressions mean the same in every Python that is supported, and none takes more than linear time."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from gateway.http import target
from gateway.server import chunked
from gateway.telemetry import redact
from tests import long, patterns

pytestmark = pytest.mark.one_interpreter(
    "the text of the patterns is the same, and what makes one slow is the same in every version of re"
)

# So many patterns of configurations are tried; with --long all.
RE2_SAMPLE = 60

SOURCES = sorted(Path(gateway.__file__).parent.rglob("*.py"))
_GROUP = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_group_is_possessive(path: Path) -> None:
    """Before 3.11.5 (Debian 12 has 3.11.2) some of those match wrongly (CPython issue 106052)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(r"\br?b?r?[\"']", line) and "safe=" not in line and _GROUP.search(line)] == []


# -- no pattern takes more than linear time -----------------------------------------------


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
        if not module.name.endswith("__main__"):
            yield module.name


def test_the_record_knows_the_patterns_of_every_module() -> None:
    """The conftest records from before the first import; what stands at the top of a module is in it."""
    for name in _modules():
        importlib.import_module(name)
    known = {pattern for pattern, _ in patterns.here()[0]}
    assert {target._origin_form.__self__.pattern, chunked._TRAILER.pattern, redact._USERINFO.pattern} <= known
    assert len(known) > 80


# What they did before issue 12, or what a user once wrote; each is known to be slow.
_SLOW: list[tuple[str | bytes, str]] = [
    (rb"[^\s,]+[ \t]+([^\s,]+)", "findall"),
    (rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*([\t -~\x80-\xff]*)", "fullmatch"),
    (r"^/(a+)+$", "fullmatch"),
    (r"/([a-z]+)*\.html", "fullmatch"),
    (r"/(\w+/?)+", "fullmatch"),
    (r"/api/(.*)/users/(.*)/x", "fullmatch"),
    (r".*/a.*/b.*\.js", "fullmatch"),
    (r"\s*(?:\"([^\"]*)\"|([A-Za-z0-9_-]+))\s*\.?", "findall"),
    (r"(a|a)*b", "match"),
    (r"[0-9]+x", "search"),
]


@pytest.mark.parametrize(("pattern", "method"), _SLOW)
def test_a_slow_pattern_is_found(pattern: str | bytes, method: str) -> None:
    assert patterns.slow_string(pattern, 0, frozenset({method}))


@pytest.mark.parametrize(
    ("pattern", "method"),
    [(r"/v[0-9]+/.*", "fullmatch"), (r"[0-9]+x", "match"), (rb"(%[0-9A-Fa-f]?)??(%[0-9A-Fa-f]{2})", "sub"), (r"(?:a|bc)*d", "match")],
)
def test_a_linear_pattern_is_not_blamed(pattern: str | bytes, method: str) -> None:
    assert patterns.slow_string(pattern, 0, frozenset({method})) == ""


@pytest.mark.alone  # behind all other bins
@pytest.mark.last
def test_every_pattern_of_this_run_is_linear() -> None:
    """Those of every module, and those that any test of this run had the gateway compile, also in processes that tests
    started: this test runs last."""
    for name in _modules():
        importlib.import_module(name)
    literals = {(pattern, 0): place for pattern, place in patterns.literals()}
    gathered, configured = ({**first, **second} for first, second in zip(patterns.written(), patterns.here(), strict=True))
    slow = []
    for (pattern, flags), place in (literals | gathered).items():
        wrong = patterns.slow_string(pattern, flags, patterns.methods(place))
        if wrong:
            slow.append(f"{place}: {pattern!r}: {wrong}")
    # All are run by one line of the gateway, and re2 promises linear time: some of them show that it keeps the promise.
    step = long.either(max(1, len(configured) // RE2_SAMPLE), 1)
    for (source, _), place in list(configured.items())[::step]:
        wrong = patterns.slow_re2(source)
        if wrong:
            slow.append(f"{place}: {source!r}: {wrong}")
    assert not slow, "\n".join(slow)
