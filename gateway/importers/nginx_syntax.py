"""nginx's configuration language: words, quotes, comments, blocks.

Rule: words as nginx reads them, each directive with the line that it begins in. What the
words mean is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.errors import ConfigError, Mistake

DEPTH = 64
_SPACE = " \t\r\n"
# What a backslash stands for before these; before anything else it stays.
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}


@dataclass(slots=True)
class Directive:
    """`block` is None where a `;` ends the directive."""

    name: str
    words: list[str]
    line: int
    block: list[Directive] | None = None


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


def parse(text: str, name: str) -> list[Directive]:
    """The directives of a document; ConfigError with the line where it is none."""
    blocks = [_Open()]
    words: list[_Token] = []
    tokens = _tokens(text, name)
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


def _tokens(text: str, name: str) -> Iterator[_Token]:
    place, line, end = 0, 1, len(text)
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
        else:
            word, beyond = _quoted(text, place, name, line) if letter in "\"'" else _bare(text, place)
            yield _Token("word", word, line)
            line += text.count("\n", place, beyond)
            place = beyond


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
