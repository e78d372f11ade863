"""Regular expressions of the configuration: google-re2, whose time is linear in what is matched.

Rule: a pattern is bytes, read as LATIN1, so that `.` takes any byte. It must match the whole of a
path. What RE2 does not have, or reads otherwise than Python's `re`, is refused by name before RE2
sees it; nothing is translated. The library is imported with the first pattern, because most
configurations have none.

Syntax: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

# RE2's own limit on a repeat, and on the product of nested ones.
MOST_REPEATS = 1000
# From so many patterns on, one Set is asked instead of each pattern. Measured: a Set of any size takes
# as long as one pattern, and each of its hits is looked at once more, so that it pays from four on.
SET_FROM = 4
# Patterns of one Set. A larger one takes longer to become ready and more memory at once.
SET_SIZE = 256
# RE2 takes 8 MiB for one pattern; each pattern of a Set adds so much to that.
_BASE_MEMORY = 8 * 1024 * 1024
_MEMORY_OF_ONE = 64 * 1024


class PatternError(ValueError):
    """A pattern that is none, or a template that does not fit its pattern; in words for the user."""


class Found(Protocol):
    """A match: `found[number]` is what a group matched, None for a group that took no part."""

    def __getitem__(self, group: int, /) -> Any: ...


class Expression(Protocol):
    """What the router and the rewriting need of a compiled pattern; `re.Pattern[bytes]` has it too."""

    @property
    def pattern(self) -> bytes: ...
    @property
    def groups(self) -> int: ...
    @property
    def groupindex(self) -> Mapping[str, int]: ...
    @property
    def fullmatch(self) -> Callable[[bytes], Found | None]: ...
    def __hash__(self) -> int: ...


class Pattern:
    """A compiled pattern. Expressions of the same source are equal."""

    __slots__ = ("_regexp", "fullmatch", "groupindex", "groups", "pattern")

    def __init__(self, regexp: Any) -> None:
        self._regexp = regexp
        self.pattern: bytes = regexp.pattern
        self.groups: int = regexp.groups
        self.groupindex: Mapping[str, int] = {name.decode(): number for name, number in regexp.groupindex.items()}
        self.fullmatch: Callable[[bytes], Found | None] = regexp.fullmatch

    def __eq__(self, other: object) -> bool:
        return getattr(other, "pattern", None) == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def __repr__(self) -> str:
        return f"Pattern({self.pattern!r})"


def compile(source: str, groups: bool = True) -> Pattern:
    """The pattern that a text of the configuration is. Raises PatternError, which names what RE2
    does not have. `groups` False: nothing asks what its groups matched, which is cheaper."""
    foreign = _foreign(source)
    if foreign:
        raise PatternError(foreign)
    re2 = _re2()
    try:
        options = _options(re2)
        options.never_capture = not groups
        return Pattern(re2.compile(source.encode(), options))
    except re2.error as error:
        raise PatternError(f"is no regular expression: {_told(error)}") from None


def _re2() -> Any:
    try:
        import re2
    except ImportError as error:
        raise PatternError(f"needs the package google-re2, which cannot be imported ({error})") from None
    return re2


def _options(re2: Any, patterns: int = 1) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    # It would print to stderr; what is wrong is in the exception.
    options.log_errors = False
    options.max_mem = _BASE_MEMORY + _MEMORY_OF_ONE * (patterns - 1)
    return options


def _told(error: Any) -> str:
    told = error.args[0] if error.args else b"unknown"
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    if text.startswith("invalid repetition size"):
        text += f" (at most {MOST_REPEATS:,}, nested ones multiplied)"
    return text


# -- what RE2 does not have ------------------------------------------------------------------

_GROUPS = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "atomic groups",
    "(?#": "comments",
    "(?P=": "back-references",
    "(?P>": "recursion",
    "(?(": "conditional groups",
}
# What says the same in other words of the configuration.
_INSTEAD = {
    "look-ahead": "match.not, or prefix beside regex, may say it",
    "look-behind": "match.not may say it",
    "atomic groups": "a plain group (?:…) matches in linear time too",
    "possessive repeats": "a plain repeat matches in linear time too",
}
_FLAGS = re.compile(r"\(\?([a-zA-Z-]+)[:)]")
_NAMED = re.compile(r"\(\?P?<([A-Za-z0-9_]+)>")
_REPEAT = re.compile(r"\{([0-9]*)(?:(,)([0-9]*))?\}")
# A class as a whole: a bracket that comes first is a member.
_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\^?[a-z]+:\]|[^\]\\])*\]", re.DOTALL)
_BACK_REFERENCE = re.compile(r"\\[1-9][0-9]?")
_OCTAL = re.compile(r"\\[0-7]{3}")


def _foreign(source: str) -> str:
    """What a pattern has that RE2 does not, or takes for something else; empty for nothing. Takes
    linear time."""
    names: set[str] = set()
    at = 0
    while at < len(source):
        letter = source[at]
        if letter == "\\":
            if source.startswith("\\Q", at):
                end = source.find("\\E", at + 2)
                at = len(source) if end < 0 else end + 2
                continue
            wrong = _foreign_escape(source, at)
            at += 2
        elif letter == "[":
            found = _CLASS.match(source, at)
            if found is None:
                return ""  # it is not closed, which RE2 says
            wrong = ""
            at = found.end()
        elif letter == "(":
            wrong = _foreign_group(source, at, names)
            at += 2 if source.startswith("(?", at) else 1
        elif letter in "*+?" or (letter == "{" and _REPEAT.match(source, at)):
            at, wrong = _foreign_repeat(source, at)
        else:
            wrong = ""
            at += 1
        if wrong:
            return wrong
    return ""


def _lacks(what: str, written: str) -> str:
    instead = f"; {_INSTEAD[what]}" if what in _INSTEAD else ""
    return f"has {written}, and RE2 has no {what}{instead}"


def _foreign_escape(source: str, at: int) -> str:
    if source.startswith("\\Z", at):
        return "has \\Z, which RE2 calls \\z (write \\z, or nothing: the whole path must match)"
    reference = _BACK_REFERENCE.match(source, at)
    if reference is not None and not _OCTAL.match(source, at):
        return _lacks("back-references", reference[0])
    return ""


def _foreign_group(source: str, at: int, names: set[str]) -> str:
    for written in (source[at : at + 4], source[at : at + 3]):
        if written in _GROUPS:
            return _lacks(_GROUPS[written], written)
    named = _NAMED.match(source, at)
    if named is not None:
        if named[1] in names:
            return f"has two groups of the name {named[1]}"
        names.add(named[1])
    flags = _FLAGS.match(source, at)
    unknown = "" if flags is None else "".join(letter for letter in flags[1] if letter not in "imsU-")
    return f"has (?{unknown[0]}), and RE2 has no such flag (allowed: i, m, s, U)" if unknown else ""


def _foreign_repeat(source: str, at: int) -> tuple[int, str]:
    """Where a repeat ends, and what is wrong with it."""
    found = _REPEAT.match(source, at) if source[at] == "{" else None
    if found is not None:
        least, comma, most = found.groups()
        if not least and comma:
            return at, f"has {found[0]}, which RE2 takes for text (write {{0,{most}}})"
        if any(len(number) > 4 or int(number) > MOST_REPEATS for number in (least, most) if number):
            return at, f"repeats {found[0]}: RE2 repeats {MOST_REPEATS:,} times at most"
        if not least:
            return found.end(), ""  # `{}` is text
    end = at + 1 if found is None else found.end()
    if source.startswith("+", end):
        return at, _lacks("possessive repeats", source[at : end + 1])
    return end + source.startswith("?", end), ""


# -- templates -------------------------------------------------------------------------------

_REFERENCE = re.compile(rb"\\(?:([1-9][0-9]?)|g<([A-Za-z0-9_]+)>|(\\))|\\([0-9A-Za-z]?)")
_THREE_DIGITS = re.compile(rb"\\[0-7]{3}")


# (template, source of the pattern) -> pieces. A pattern itself would be kept after its configuration is gone.
_taken_apart: dict[tuple[bytes, bytes], tuple[bytes | int, ...]] = {}
_MOST_TEMPLATES = 1024


def pieces(template: bytes, pattern: Expression) -> tuple[bytes | int, ...]:
    """A template taken apart: text, and the numbers of groups. `\\1` to `\\99`, `\\g<1>` and
    `\\g<name>` are groups, two backslashes are one. Raises PatternError for anything else behind
    a backslash, and for a group that the pattern does not have."""
    key = (template, pattern.pattern)
    known = _taken_apart.get(key)
    if known is None:
        if len(_taken_apart) >= _MOST_TEMPLATES:
            _taken_apart.clear()
        known = _taken_apart[key] = tuple(_pieces(template, pattern))
    return known


def _pieces(template: bytes, pattern: Expression) -> Iterator[bytes | int]:
    at = 0
    for found in _REFERENCE.finditer(template):
        if found.start() > at:
            yield template[at : found.start()]
        at = found.end()
        number, name, backslash, unknown = found.groups()
        start = found.start()
        written = template[start : start + 4].decode("latin-1")
        if backslash is not None:
            yield b"\\"
        elif unknown is not None:
            if unknown:
                raise PatternError(f"bad escape {written[:2]} at position {start}")
            yield b"\\"  # in front of punctuation it is text, as ever
        elif number is not None and _THREE_DIGITS.match(template, start):
            raise PatternError(f"{written} at position {start} could be several groups (write \\g<{written[1]}>)")
        else:
            yield _group(name or number, pattern, start + 1 if name is None else start + 3)
    if at < len(template):
        yield template[at:]


def _group(reference: bytes, pattern: Expression, at: int) -> int:
    text = reference.decode("ascii")
    number = int(text) if text.isdigit() and len(text) < 4 else pattern.groupindex.get(text)
    if number is None:
        raise PatternError(f"unknown group name {text!r}")
    if number > pattern.groups:
        raise PatternError(f"invalid group reference {text} at position {at}")
    return number


def expand(found: Found, template: bytes, pattern: Expression) -> bytes:
    """A template with the groups of a match; one that took no part in it is empty."""
    parts = (piece if isinstance(piece, bytes) else found[piece] or b"" for piece in pieces(template, pattern))
    return b"".join(parts)


# -- many patterns ---------------------------------------------------------------------------


class Patterns:
    """Patterns in an order, asked together which of them match."""

    __slots__ = ("_chunks", "_singles")

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._singles = [pattern.fullmatch for pattern in patterns]
        # The numbers of some patterns and their Set; None where RE2 could not make one.
        self._chunks: list[tuple[range, Any]] = []
        if len(patterns) >= SET_FROM:
            for first in range(0, len(patterns), SET_SIZE):
                part = patterns[first : first + SET_SIZE]
                self._chunks.append((range(first, first + len(part)), _set(part)))

    def matching(self, path: bytes) -> list[int]:
        """The numbers of the patterns that match a path, in order."""
        singles = self._singles
        if not self._chunks:
            return [number for number, matches in enumerate(singles) if matches(path)]
        found: list[int] = []
        for numbers, together in self._chunks:
            likely = numbers if together is None else [numbers[one] for one in sorted(together.Match(path) or ())]
            # A hit of a Set is confirmed: the single pattern is what counts.
            found += [number for number in likely if singles[number](path)]
        return found


def _set(patterns: Sequence[Pattern]) -> Any | None:
    """A Set of patterns, ready; None where RE2 cannot make one in its memory. One that is not ready
    must never be asked: it finds nothing, or ends the process."""
    re2 = _re2()
    options = _options(re2, len(patterns))
    options.never_capture = True
    together = re2.Set.FullMatchSet(options)
    try:
        for pattern in patterns:
            together.Add(pattern.pattern)
        together.Compile()
    except re2.error:
        return None
    return together
