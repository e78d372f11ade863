"""Every regular expression that code of the gateway compiles, and strings that make a bad one slow.

Rule: a pattern is bad when one search takes more than linear time. The strings come from the parse tree of the
pattern: for each repeat the shortest way to reach it, then something that it matches many times, then an end that
makes the match fail. The length doubles; a pattern whose time quadruples is bad.
"""

from __future__ import annotations

import _sre
import ast
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from re import _compiler  # type: ignore[attr-defined]
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from tests.startup import pattern_recorder

# What may be done with a compiled pattern.
_METHODS = ("match", "fullmatch", "search", "sub", "subn", "findall", "finditer", "split")

ROOT = Path(__file__).resolve().parent.parent
_STARTUP = str(Path(pattern_recorder.__file__).parent)

# -- gathering ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where code of the gateway compiles a pattern."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.removeprefix(pattern_recorder.GATEWAY)}:{self.line}"


# (pattern, flags) -> a place that compiles it.
Gathered = dict[tuple[str | bytes, int], Place]


def record(path: str) -> None:
    """Note what this process compiles, and every Python process that is started from here: `path` is the file in
    which they write it down (tests/startup). Before anything of the gateway is imported."""
    pattern_recorder.record(path)
    os.environ["TESTS_PATTERNS"] = path
    original = subprocess.Popen.__init__

    def start(self: Any, *given: Any, env: dict[str, str] | None = None, **more: Any) -> None:
        known = dict(os.environ if env is None else env)
        # A run of tests inside a test has a record of its own.
        known.setdefault("TESTS_PATTERNS", path)
        known["PYTHONPATH"] = os.pathsep.join(filter(None, [_STARTUP, known.get("PYTHONPATH")]))
        original(self, *given, env=known, **more)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def here() -> tuple[Gathered, Gathered]:
    """What this process has compiled by `re` and by google-re2."""
    found: dict[str, Gathered] = {"re": {}, "re2": {}}
    for (library, pattern, flags), place in pattern_recorder.compiled.items():
        found[library][pattern, flags] = Place(*place)
    return found["re"], found["re2"]


def written() -> tuple[Gathered, Gathered]:
    """What functions of the gateway have compiled in any process that writes to the same file as this one."""
    found: dict[str, Gathered] = {"re": {}, "re2": {}}
    path = Path(os.environ["TESTS_PATTERNS"])
    for line in sorted(set(path.read_text(encoding="ascii").splitlines())) if path.exists() else ():
        library, pattern, flags, file, number = ast.literal_eval(line)
        found[library].setdefault((pattern, flags), Place(file, number))
    return found["re"], found["re2"]


def literals() -> Iterator[tuple[str | bytes, Place]]:
    """Patterns that stand as text in a call of `re` without flags, whether a test runs that line or not."""
    for path in sorted(Path(pattern_recorder.GATEWAY).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            first = node.args[0]
            of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            flagged = node.func.attr == "compile" and (len(node.args) > 1 or node.keywords)
            if of_re and not flagged and isinstance(first, ast.Constant) and node.func.attr in ("compile", *_METHODS):
                yield first.value, Place(str(path), node.lineno)


# -- how a pattern is used ------------------------------------------------------------------

@lru_cache(None)
def _uses(file: str) -> dict[int, frozenset[str]]:
    """Line -> the methods by which the patterns compiled there are used. A pattern whose use is not
    plain to see is not listed."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: dict[int, frozenset[str]] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re"):
            continue
        used = {node.func.attr} & set(_METHODS)
        if node.func.attr == "compile":
            used = _uses_of_compiled(node, parents, tree)
        if used:
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                found[line] = found.get(line, frozenset()) | used
    return found


def _uses_of_compiled(call: ast.Call, parents: dict[ast.AST, ast.AST], tree: ast.AST) -> set[str]:
    parent = parents[call]
    if isinstance(parent, ast.Attribute):
        return {parent.attr} & set(_METHODS)
    if not (isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name)):
        return set()
    name = parent.targets[0].id
    attributes = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]
    others = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name and not isinstance(parents[node], (ast.Attribute, ast.Assign))
    ]
    # A public name may be used in other modules, one that is passed on in any way.
    return set() if others or (not name.startswith("_") and not attributes) else set(attributes) & set(_METHODS)


def methods(place: Place) -> frozenset[str]:
    """How the pattern compiled there is used; `search`, the hardest, where that is not known."""
    return _uses(place.file).get(place.line) or frozenset({"search"})


# -- strings from a parse tree -------------------------------------------------------------

# Nothing is longer than this while a string is put together.
_LONGEST = 4000
_MOST_STRINGS = 120


class _Tree:
    """The strings that lead to each repeat of one pattern."""

    def __init__(self, pattern: str | bytes, flags: int) -> None:
        self.root = sre_parser.parse(pattern, flags & ~re.DEBUG)
        self._flags = self.root.state.flags
        self.characters = self._representatives()

    def _representatives(self) -> str:
        """One character of each kind that the sets and literals of the pattern tell apart."""
        kinds: dict[tuple[bool, ...], str] = {}
        tests = [item for item in self._walk(self.root) if item[0] in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)]
        for code in (*range(0x61, 0x7B), *range(0x30, 0x3A), *range(0x20, 0x7F), *range(0x20), *range(0x7F, 0x100)):
            kinds.setdefault(tuple(self._accepts(test, chr(code)) for test in tests), chr(code))
        return "".join(kinds.values())

    def _walk(self, items: Any) -> Iterator[Any]:
        for item in items:
            yield item
            for part in self._parts(item):
                yield from self._walk(part)

    @staticmethod
    def _parts(item: Any) -> list[Any]:
        kind, value = item
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            return [value[2]]
        if kind is sre.SUBPATTERN:
            return [value[3]]
        if kind is sre.BRANCH:
            return list(value[1])
        if kind in (sre.ASSERT, sre.ASSERT_NOT):
            return [value[1]]
        if kind is sre.ATOMIC_GROUP:
            return [value]
        if kind is sre.GROUPREF_EXISTS:
            return [part for part in value[1:] if part is not None]
        return []

    def _accepts(self, item: Any, character: str) -> bool:
        """Whether a set or literal takes a character: asked of the library, so that flags count."""
        state = sre_parser.State()
        state.flags = self._flags
        if self._flags & re.UNICODE == 0 and ord(character) > 255:
            return False
        subject: str | bytes = character if isinstance(self.root.state.str, str) else character.encode("latin-1")
        alone = sre_parser.SubPattern(state, [item])
        return _matcher(alone, self.root.state.str).fullmatch(subject) is not None

    def shortest(self, items: Any, prefer: str = "a") -> str:
        """A short string that the items match, made of `prefer` where they allow it."""
        return "".join(self._one(item, prefer) for item in items)[:_LONGEST]

    def _one(self, item: Any, prefer: str) -> str:
        kind, value = item
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            choices = [prefer, *self.characters]
            return next((one for one in choices if self._accepts(item, one)), chr(value) if kind is sre.LITERAL else "")
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            least, _, inner = value
            return self.shortest(inner, prefer) * min(int(least), 16)
        if kind is sre.BRANCH:
            return self.shortest(value[1][0], prefer)
        if kind in (sre.SUBPATTERN, sre.ATOMIC_GROUP):
            return self.shortest(self._parts(item)[0], prefer)
        return ""

    def pumps(self, inner: Any) -> set[str]:
        """Strings that one turn of a repeat matches."""
        found = {self.shortest(inner, one) for one in self.characters}
        for item in self._walk(inner):
            if item[0] is sre.BRANCH:
                found |= {self.shortest(branch, one) for branch in item[1][1] for one in self.characters[:4]}
            elif item[0] in (sre.MAX_REPEAT, sre.MIN_REPEAT) and item[1][1] > 1:
                found |= {self.shortest(inner, one) + self.shortest(item[1][2], one) for one in self.characters[:4]}
        return found - {""}

    def repeats(self, items: Any = None, before: str = "") -> Iterator[tuple[str, set[str]]]:
        """Each repeat without a small bound: what leads to it, and what it takes."""
        for item in self.root if items is None else items:
            kind, value = item
            if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT) and int(value[1]) > 16:
                yield before, self.pumps(value[2])
            for part in self._parts(item):
                yield from self.repeats(part, before)
            before += self._one(item, "a")


def _matcher(alone: Any, like: str | bytes) -> Any:
    """A compiled pattern of one item of a parse tree, as `re` makes one of a whole tree."""
    code = _compiler._code(alone, alone.state.flags)
    return _sre.compile("" if isinstance(like, str) else b"", alone.state.flags, code, 0, {}, ())


# What makes a match fail behind a repeat, whatever it was.
_ENDS = ("\x00", "!", "\n", "\xff", " ", "")


@dataclass(frozen=True)
class Hostile:
    """A family of strings, one for each length: `before`, then `pump` again and again, then `end`."""

    before: str
    pump: str
    end: str

    def of(self, length: int, text: bool) -> str | bytes:
        made = self.before + self.pump * (length // len(self.pump) + 1) + self.end
        return made if text else made.encode("latin-1")


def hostile(pattern: str | bytes, flags: int) -> list[Hostile]:
    """The families of strings for one pattern; fewer where there are very many."""
    tree = _Tree(pattern, flags)
    found: dict[Hostile, None] = {}
    for before, pumps in tree.repeats():
        for pump in sorted(pumps):
            for end in _ENDS:
                found[Hostile(before, pump, end)] = None
            # Many beginnings of the match, each of which fails.
            if before:
                found[Hostile("", before + pump, "\x00")] = None
    for character in tree.characters:
        found[Hostile("", character, "\x00")] = None
    every = list(found)
    step = max(1, -(-len(every) // _MOST_STRINGS))
    return every[::step] if step > 1 else every


# -- measuring --------------------------------------------------------------------------------


class TooSlow(BaseException):
    """Stops a match that would take for ever."""


# Of CPU, for one call; a linear pattern takes a thousandth of it.
_PATIENCE = 0.5
_LAST = 8192
# Below this nothing quadratic can hide: its 8,192 * 8,192 / 2 steps would take longer.
_QUICK = 0.004


def _took(call: Callable[[], object]) -> float:
    """Seconds of CPU. Raises TooSlow beyond what is endured."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _PATIENCE)
    began = time.thread_time()
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return time.thread_time() - began


def growth(make: Callable[[int], Callable[[], object]]) -> str:
    """What is wrong with how the time of `make(length)()` grows; empty when it is linear. What is
    exponential ends by its patience."""
    try:
        if _took(make(_LAST)) < _QUICK:
            return ""
        spent = {one: min(_took(make(one)) for _ in range(5)) for one in (_LAST // 8, _LAST // 4, _LAST // 2, _LAST)}
        # Over two doublings at once, and twice: 4 is linear, 16 is quadratic.
        factors = [spent[one] / max(spent[one // 4], 1e-6) for one in (_LAST, _LAST // 2)]
    except TooSlow:
        return f"more than {_PATIENCE} s of CPU for a length of {_LAST}"
    return f"four times the length takes {min(factors):.1f} times as long" if min(factors) > 8 else ""


def slow_string(pattern: str | bytes, flags: int, used: frozenset[str]) -> str:
    """The first strings for which a pattern is slow, in words; empty for none."""
    regex = re.compile(pattern, flags)
    text = isinstance(pattern, str)
    replacement = "" if text else b""
    for family in hostile(pattern, flags):
        for method in sorted(used):
            arguments = (replacement,) if method in ("sub", "subn") else ()

            def make(length: int, method: str = method, family: Hostile = family, arguments: Any = arguments) -> Any:
                subject = family.of(length, text)
                call = getattr(regex, method)
                # An iterator does nothing by itself.
                return lambda: list(call(subject)) if method == "finditer" else call(*arguments, subject)

            wrong = growth(make)
            if wrong:
                return f"{method} of {family.before!r} + {family.pump!r} * n + {family.end!r}: {wrong}"
    return ""


def slow_re2(source: str | bytes) -> str:
    """The same of a pattern of google-re2, matched as the gateway does. What `re` cannot read of it gives no
    strings; the library promises linear time."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    regex = re2.compile(source, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            families = hostile(source, 0)
    except re.error:
        return ""
    for family in families:
        wrong = growth(lambda length, family=family: lambda: regex.fullmatch(family.of(length, False)))  # type: ignore[misc]
        if wrong:
            return f"fullmatch of {family.before!r} + {family.pump!r} * n + {family.end!r}: {wrong}"
    return ""
