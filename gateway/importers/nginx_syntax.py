"""nginx's configuration language: words, quotes, comments, blocks.

Rule: words as nginx reads them, each directive with the line that it begins in. What the
words mean is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.errors import ConfigError, Mistake

DEPTH = 64
# Blocks that hold code.
_LUA = "_by_lua_block"
_LUA_MARK = re.compile(r"(?:--)?\[=*\[|--|[\"'{}]")
_LUA_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_SPACE = " \t\r\n"
# What a backslash stands for before these; before anything else it stays.
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}


@dataclass(slots=True)
class Directive:
    """`block` is None where a `;` ends the directive. `known`: of an `include` that was not
    read, that it says nothing of who may ask."""

    name: str
    words: list[str]
    line: int
    block: list[Directive] | None = None
    known: bool = False


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind`: word, {, } or ;."""

    kind: str
    text: str
    line: int


@dataclass(slots=True)
class _Open:
    """A block that is still open, and the directive whose block it is."""

    directives: list[Directive] = field(default_factory=list)
    line: int = 0


def parse(text: str, name: str, first_line: int = 1) -> list[Directive]:
    """The directives of a document; ConfigError with the line where it is none. `first_line`:
    the number of the line that the text begins with."""
    blocks = [_Open()]
    words: list[_Token] = []
    tokens = _tokens(text, name, first_line)
    for token in tokens:
        if token.kind == "word":
            words.append(token)
        elif token.kind == ";":
            if not words:
                raise _wrong(name, token.line, "a ; with nothing before it")
            blocks[-1].directives.append(_directive(words))
            words = []
        elif token.kind == "{":
            if not words:
                raise _wrong(name, token.line, "a { with nothing before it")
            if len(blocks) > DEPTH:
                raise _wrong(name, token.line, f"nested deeper than {DEPTH} levels")
            opened = _directive(words)
            opened.block = []
            blocks[-1].directives.append(opened)
            blocks.append(_Open(opened.block, opened.line))
            words = []
        else:
            if words:
                raise _not_ended(name, words[0])
            if len(blocks) == 1:
                raise _wrong(name, token.line, "a } that closes nothing")
            blocks.pop()
    if words:
        raise _not_ended(name, words[0])
    if len(blocks) > 1:
        raise _wrong(name, blocks[-1].line, "a { that is never closed")
    return blocks[0].directives


def _directive(words: list[_Token]) -> Directive:
    return Directive(words[0].text, [word.text for word in words[1:]], words[0].line)


def _tokens(text: str, name: str, line: int) -> Iterator[_Token]:
    place, end = 0, len(text)
    # The first word of a directive.
    head = ""
    while place < end:
        letter = text[place]
        if letter in _SPACE:
            line += letter == "\n"
            place += 1
        elif letter == "#":
            place = text.find("\n", place)
            place = end if place < 0 else place
        elif letter in "{};":
            yield _Token(letter, letter, line)
            place += 1
            if letter == "{" and head.endswith(_LUA):
                beyond = _lua_end(text, place, name, line)
                line += text.count("\n", place, beyond)
                place = beyond
            head = ""
        else:
            word, beyond = _quoted(text, place, name, line) if letter in "\"'" else _bare(text, place)
            yield _Token("word", word, line)
            head = head or word
            line += text.count("\n", place, beyond)
            place = beyond


def _lua_end(text: str, place: int, name: str, line: int) -> int:
    """Where the brace stands that closes a block of Lua, which is skipped: braces in Lua's
    strings and comments do not count (Lua 5.1 §2.1)."""
    depth = 1
    start = place
    while (found := _LUA_MARK.search(text, place)) is not None:
        mark, place = found[0], found.end()
        if mark in "{}":
            depth += 1 if mark == "{" else -1
            if not depth:
                return found.start()
            continue
        if mark in "\"'":
            string = _LUA_STRING.match(text, found.start())
            place = -1 if string is None else string.end()
        else:
            end = "\n" if mark == "--" else f"]{'=' * mark.count('=')}]"
            closed = text.find(end, place)
            place = closed + len(end) if closed >= 0 else -1
        if place < 0:
            raise _wrong(name, line + text.count("\n", start, found.start()), f"a {mark} in Lua that is never closed")
    raise _wrong(name, line, "a { that is never closed")


def _quoted(text: str, start: int, name: str, line: int) -> tuple[str, int]:
    quote, place, found = text[start], start + 1, []
    while place < len(text) and text[place] != quote:
        piece, place = _letter(text, place)
        found.append(piece)
    if place >= len(text):
        raise _wrong(name, line, f"a {quote} that is never closed")
    beyond = place + 1
    if beyond < len(text) and text[beyond] not in _SPACE and text[beyond] not in ";{)":
        raise _wrong(name, line + text.count("\n", start, beyond), f"{text[beyond]!r} right behind a closing {quote}")
    return "".join(found), beyond


def _bare(text: str, place: int) -> tuple[str, int]:
    found: list[str] = []
    while place < len(text) and text[place] not in _SPACE and text[place] != ";":
        # `${name}` is part of the word; any other brace opens a block.
        if text[place] == "{" and found[-1:] != ["$"]:
            break
        piece, place = _letter(text, place)
        found.append(piece)
    return "".join(found), place


def _letter(text: str, place: int) -> tuple[str, int]:
    if text[place] == "\\" and place + 1 < len(text):
        after = text[place + 1]
        return _ESCAPES.get(after, "\\" + after), place + 2
    return text[place], place + 1


def _not_ended(name: str, word: _Token) -> ConfigError:
    # In what is no configuration of nginx a word may be the whole of it.
    shown = word.text if len(word.text) <= 80 else f"{word.text[:79]}…"
    return _wrong(name, word.line, f"{shown} is not ended by a ;")


def _wrong(name: str, line: int, told: str) -> ConfigError:
    return ConfigError.found(name, [Mistake(line, 1, "", told)])
