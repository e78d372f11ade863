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

from gateway.importers import patterns
from gateway.model import Match

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
class _Path:
    """A condition on the path, in the kind that it has in a match and as a pattern that
    looks ahead from the beginning."""

    kind: str
    text: str
    ahead: str
    negated: bool


@dataclass(slots=True)
class _Gathered:
    """Conditions that must all hold, while they are put together."""

    host: str | None = None
    paths: list[_Path] = field(default_factory=list)
    methods: frozenset[str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def match(conditions: list[Leaf]) -> tuple[Match, list[str]]:
    """The match that asks for all of the conditions, and notes on where it differs.
    `InexpressibleError` when there is none."""
    gathered = _Gathered()
    for leaf in conditions:
        put = _PUT.get(leaf.name)
        if put is None or (leaf.negated and not leaf.name.startswith("path")):
            raise InexpressibleError(leaf.told)
        try:
            put(gathered, leaf)
        except ValueError:
            raise InexpressibleError(f"{leaf.told} with these arguments") from None
    if gathered.methods is not None and not gathered.methods:
        raise InexpressibleError("two methods at once, which no request has")
    found = Match(
        host=gathered.host,
        methods=gathered.methods or frozenset(),
        headers=tuple(gathered.headers.items()),
        query=tuple(gathered.query.items()),
        **_path(gathered.paths),
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
        found += patterns.escaped(text[last : part.start()]) + f"(?:{patterns.python(part['pattern'] or '[^/]+')})"
        last = part.end()
    return found + patterns.escaped(text[last:])


def _exact(gathered: _Gathered, leaf: Leaf) -> None:
    text = _one(leaf)
    if _TEMPLATE.search(text):
        one = _templated(text)
        gathered.paths.append(_Path("regex", one, f"{one}$", leaf.negated))
    else:
        gathered.paths.append(_Path("path", text, f"{patterns.path(text)}$", leaf.negated))


def _prefix(gathered: _Gathered, leaf: Leaf) -> None:
    text = _one(leaf)
    if _TEMPLATE.search(text):
        one = _templated(text)
        gathered.paths.append(_Path("regex", f"{one}.*", one, leaf.negated))
    else:
        gathered.paths.append(_Path("prefix", text, patterns.path(text), leaf.negated))


def _path_pattern(gathered: _Gathered, leaf: Leaf) -> None:
    one = patterns.whole(_one(leaf))
    gathered.paths.append(_Path("regex", one, f"{one}$", leaf.negated))


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


def _path(paths: list[_Path]) -> dict[str, str]:
    """The one condition on the path that says as much as all of them."""
    wanted = [one for one in paths if not one.negated]
    if not paths or (len(paths) == 1 and wanted):
        return {one.kind: one.text for one in wanted}
    first = wanted[0] if wanted else _Path("prefix", "", "", False)
    ahead = "".join(f"(?!{one.ahead})" if one.negated else f"(?={one.ahead})" for one in paths if one is not first)
    rest = {"path": first.ahead.removesuffix("$"), "prefix": f"{first.ahead}.*", "regex": first.text}[first.kind]
    return {"regex": ahead + rest}
