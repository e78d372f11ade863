"""Traefik's rules, read by their grammar and turned into matches.

Rule: a condition that a match cannot express takes its whole alternative with it: to leave
the condition out would send more requests to the service than Traefik did.

    rule = and {"||" and};  and = not {"&&" not};  not = "!" not | "(" rule ")" | call
    call = name "(" [text {"," text}] ")";  text = `…` | "…"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from gateway.errors import ClientError
from gateway.http import target
from gateway.importers import regexes as patterns
from gateway.model import Match
from gateway.patterns import PatternError
from gateway.patterns import compile as compile_pattern

DEPTH = 64
# `||` inside `&&` multiplies; no honest rule comes near.
ALTERNATIVES = 256

_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-z][A-Za-z0-9]*)|(?P<mark>&&|\|\||[!(),])|`(?P<raw>[^`]*)`|\"(?P<text>(?:[^\"\\]|\\.)*)\")"
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class RuleError(Exception):
    """The text is no rule, or one that unfolds to too much."""


class InexpressibleError(Exception):
    """A condition that no match of ours has."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One condition: the function's name in lower case and its arguments."""

    name: str
    arguments: tuple[str, ...]
    negated: bool = False

    @property
    def told(self) -> str:
        return f"{'!' if self.negated else ''}{self.name}({', '.join(f'`{one}`' for one in self.arguments)})"


# Alternatives, each a list of conditions that must all hold.
Alternatives = list[list[Leaf]]


class _Reader:
    def __init__(self, rule: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while rule[place:].strip():
            found = _TOKEN.match(rule, place)
            if found is None:
                raise RuleError(f"is not understood at {rule[place : place + 20].strip()!r}")
            kind = found.lastgroup or ""
            value = found[kind]
            self._tokens.append(
                ("text", _ESCAPE.sub(r"\1", value)) if kind == "text" else ("text" if kind == "raw" else kind, value)
            )
            place = found.end()
        self._next = 0

    def rule(self) -> Alternatives:
        found = self._or(False, 0)
        if self._next < len(self._tokens):
            raise RuleError(f"goes on with {self._tokens[self._next][1]!r} where it should end")
        return found

    def _peek(self, mark: str) -> bool:
        return self._next < len(self._tokens) and self._tokens[self._next] == ("mark", mark)

    def _accept(self, mark: str) -> bool:
        if self._peek(mark):
            self._next += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            got = self._tokens[self._next][1] if self._next < len(self._tokens) else "its end"
            raise RuleError(f"has {got} where {mark} should be")

    def _or(self, negated: bool, depth: int) -> Alternatives:
        parts = [self._and(negated, depth)]
        while self._accept("||"):
            parts.append(self._and(negated, depth))
        return _all(parts) if negated else _any(parts)

    def _and(self, negated: bool, depth: int) -> Alternatives:
        parts = [self._not(negated, depth)]
        while self._accept("&&"):
            parts.append(self._not(negated, depth))
        return _any(parts) if negated else _all(parts)

    def _not(self, negated: bool, depth: int) -> Alternatives:
        if depth > DEPTH:
            raise RuleError(f"is nested deeper than {DEPTH} levels")
        if self._accept("!"):
            return self._not(not negated, depth + 1)
        if self._accept("("):
            found = self._or(negated, depth + 1)
            self._expect(")")
            return found
        return self._call(negated)

    def _call(self, negated: bool) -> Alternatives:
        kind, name = self._tokens[self._next] if self._next < len(self._tokens) else ("", "its end")
        if kind != "word":
            raise RuleError(f"has {name} where a condition should be")
        self._next += 1
        self._expect("(")
        arguments: list[str] = []
        while not self._accept(")"):
            if arguments:
                self._expect(",")
            if self._next >= len(self._tokens) or self._tokens[self._next][0] != "text":
                raise RuleError(f"{name} has an argument that is no text")
            arguments.append(self._tokens[self._next][1])
            self._next += 1
        return _call(name.lower(), tuple(arguments), negated)


# Conditions that take any of several values, as version 2 had them; each is one of its own.
_EITHER = frozenset({"host", "hostheader", "hostregexp", "path", "pathprefix", "method", "clientip"})


def _call(name: str, arguments: tuple[str, ...], negated: bool) -> Alternatives:
    if name == "query" and arguments and "=" in arguments[0]:
        pairs = [[[Leaf(name, tuple(one.partition("=")[::2]), negated)]] for one in arguments]
        return _any(pairs) if negated else _all(pairs)
    if name not in _EITHER or len(arguments) < 2:
        return [[Leaf(name, arguments, negated)]]
    leaves = [[[Leaf(name, (one,), negated)]] for one in arguments]
    return _all(leaves) if negated else _any(leaves)


def _any(parts: list[Alternatives]) -> Alternatives:
    found = [conditions for part in parts for conditions in part]
    if len(found) > ALTERNATIVES:
        raise RuleError(f"unfolds to more than {ALTERNATIVES} alternatives")
    return found


def _all(parts: list[Alternatives]) -> Alternatives:
    found: Alternatives = [[]]
    for part in parts:
        if len(found) * len(part) > ALTERNATIVES:
            raise RuleError(f"unfolds to more than {ALTERNATIVES} alternatives")
        found = [[*left, *right] for left in found for right in part]
    return found


def read(rule: str) -> Alternatives:
    """A rule as alternatives of conditions. RuleError when it is none."""
    return _Reader(rule).rule()


# -- from conditions to a match ----------------------------------------------------------


@dataclass(slots=True)
class _Gathered:
    """Conditions while they are put together. `regexes` are of the whole path."""

    host: str | None = None
    paths: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    regexes: list[str] = field(default_factory=list)
    methods: frozenset[str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def match(conditions: list[Leaf]) -> tuple[Match, list[str]]:
    """The match that asks for all of the conditions, and notes on where it differs.
    `InexpressibleError` when there is none."""
    gathered, without = _Gathered(), _Gathered()
    for leaf in conditions:
        put = _PUT.get(leaf.name)
        if put is None or (leaf.negated and not leaf.name.startswith("path")):
            raise InexpressibleError(leaf.told)
        try:
            put(without if leaf.negated else gathered, leaf)
        except ValueError:
            raise InexpressibleError(f"{leaf.told} with these arguments") from None
    if gathered.methods is not None and not gathered.methods:
        raise InexpressibleError("two methods at once, which no request has")
    found = Match(
        host=gathered.host,
        methods=gathered.methods or frozenset(),
        headers=tuple(gathered.headers.items()),
        query=tuple(gathered.query.items()),
        excluded=_excluded(without),
        **_path(gathered),
    )
    return found, gathered.notes


def _one(leaf: Leaf) -> str:
    (value,) = leaf.arguments
    return value


def _host(gathered: _Gathered, leaf: Leaf) -> None:
    host = _one(leaf).lower().rstrip(".")
    if gathered.host not in (None, host):
        raise InexpressibleError("two hosts at once, which no request has")
    gathered.host = host


# A pattern that stands for any host, or for any label (or labels) before a fixed domain.
_ANY_HOST = re.compile(r"\^?(?:\.\*|\.\+|\{[a-z]+:\.[*+]\})\$?\Z")
_SUBDOMAIN = re.compile(
    r"\^?(?P<label>\.\+|\[\^\.\]\+|\[a-zA-Z0-9-\]\+|\[a-z0-9-\]\+|\[a-z\]\+|\\w\+|\{[a-z]+:[^{}]+\})\\?\.(?P<domain>(?:[A-Za-z0-9-]|\\?\.)+)\$?\Z"
)


def _host_pattern(gathered: _Gathered, leaf: Leaf) -> None:
    pattern = _one(leaf)
    if _ANY_HOST.match(pattern):
        return
    found = _SUBDOMAIN.match(pattern)
    if found is None:
        raise InexpressibleError(leaf.told)
    host = "*." + found["domain"].replace("\\", "").lower()
    if gathered.host not in (None, host):
        raise InexpressibleError("two conditions on the host")
    gathered.host = host
    if found["label"] != ".+":
        gathered.notes.append(f"{leaf.told} became {host}, which takes any label, and several")


_TEMPLATE = re.compile(r"\{[A-Za-z0-9_]*(?::(?P<pattern>(?:[^{}]|\{[0-9,]*\})*))?\}")


def _templated(text: str) -> str:
    """A path of version 2 with `{name:pattern}` in it, as a pattern."""
    found, last = "", 0
    for part in _TEMPLATE.finditer(text):
        found += patterns.escaped(text[last : part.start()]) + f"(?:{patterns.spelled(part['pattern'] or '[^/]+')})"
        last = part.end()
    return found + patterns.escaped(text[last:])


def _exact(gathered: _Gathered, leaf: Leaf) -> None:
    text = _one(leaf)
    if _TEMPLATE.search(text):
        gathered.regexes.append(_templated(text))
    else:
        gathered.paths.append(text)


def _prefix(gathered: _Gathered, leaf: Leaf) -> None:
    text = _one(leaf)
    if _TEMPLATE.search(text):
        gathered.regexes.append(f"{_templated(text)}.*")
    else:
        gathered.prefixes.append(text)


def _path_pattern(gathered: _Gathered, leaf: Leaf) -> None:
    gathered.regexes.append(patterns.whole(_one(leaf)))


def _methods(gathered: _Gathered, leaf: Leaf) -> None:
    method = frozenset({_one(leaf).upper()})
    gathered.methods = method if gathered.methods is None else gathered.methods & method


def _header(gathered: _Gathered, leaf: Leaf) -> None:
    name, value = leaf.arguments
    if gathered.headers.setdefault(name.lower(), value) != value:
        raise InexpressibleError(f"two values of the header {name}")


def _query(gathered: _Gathered, leaf: Leaf) -> None:
    name, value = leaf.arguments
    if "*" in value or gathered.query.setdefault(name, value) != value:
        raise InexpressibleError(leaf.told)


_PUT: dict[str, Callable[[_Gathered, Leaf], None]] = {
    "host": _host,
    "hostheader": _host,
    "hostregexp": _host_pattern,
    "path": _exact,
    "pathprefix": _prefix,
    "pathregexp": _path_pattern,
    "method": _methods,
    "header": _header,
    "headers": _header,
    "query": _query,
}


class _PathConditions(TypedDict, total=False):
    path: str
    prefix: str
    regex: str


def _path(gathered: _Gathered) -> _PathConditions:
    """The conditions on the path that hold where all of the gathered ones do."""
    found: _PathConditions = {}
    if gathered.prefixes:
        found["prefix"] = max(gathered.prefixes, key=len)
        if not all(found["prefix"].startswith(one) for one in gathered.prefixes):
            raise InexpressibleError("two prefixes at once, which no path has")
    regexes = list(dict.fromkeys(gathered.regexes))
    if gathered.paths:
        exact, *others = dict.fromkeys(gathered.paths)
        if others or not exact.startswith(found.get("prefix", "")) or not all(_takes(one, exact) for one in regexes):
            raise InexpressibleError("conditions on the path that no path meets")
        return {"path": exact}
    if len(regexes) > 1:
        raise InexpressibleError("two regular expressions at once")
    if regexes:
        found["regex"] = regexes[0]
    return found


def _takes(regex: str, path: str) -> bool:
    """Whether a pattern takes a literal path; False for a pattern that is none."""
    try:
        return compile_pattern(regex, groups=False).fullmatch(target.written(path)) is not None
    except (PatternError, ClientError):
        return False


def _excluded(without: _Gathered) -> Match | None:
    """Paths of which none may match. A prefix becomes a pattern: it is one of bytes in Traefik, and
    one of whole segments here."""
    exact = list(dict.fromkeys(without.paths))
    regexes = [*map(patterns.beginning, without.prefixes), *without.regexes]
    if len(exact) > 1:
        regexes += map(patterns.path, exact)
    if not exact and not regexes:
        return None
    return Match(
        path=exact[0] if len(exact) == 1 else None,
        regex=patterns.either(list(dict.fromkeys(regexes))) if regexes else None,
    )
