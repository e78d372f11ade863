"""JSON read piece by piece, so that a large answer of a registry does not hold the event loop.

Rule: the result is what `json.loads` gives. The whole of a large answer takes `json` hundreds of
milliseconds, on whatever thread, because it keeps the interpreter to itself; one element of an
array takes microseconds, and between two of them others run. An element has a limit, because it is
read at once.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice

from gateway.registries import RegistryError

# An answer in one piece, or, so that a large one is never copied, in the pieces in which it came.
Body = bytes | list[bytes]
# Answers up to this size are read at once, in about a millisecond.
SMALL = 128 * 1024
# Bytes of a part.
PART = 64 * 1024

_white = re.compile(r"[ \t\n\r]*+").match
_number = re.compile(r"[0-9.eE+-]*+").match
_decode = json.JSONDecoder().raw_decode


def parts(body: Body) -> Iterator[bytes]:
    """The bytes of an answer in parts of a moderate size, none of them empty."""
    for whole in body if isinstance(body, list) else [body]:
        for at in range(0, len(whole), PART):
            yield whole[at : at + PART]


class Pieces:
    """A cursor over the text of one JSON document. `turn` is called between two pieces. `most`: the
    longest element, in bytes. Every method raises RegistryError for what is no JSON."""

    def __init__(self, body: Body, turn: Callable[[], object], most: int) -> None:
        self._parts = parts(body)
        self._turn = turn
        self._most = most
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._over = False
        # Parts that are decoded at once: twice as many when an element did not fit.
        self._number = 1
        # What is decoded and not read yet begins at `_at`.
        self._text = ""
        self._at = 0

    def next(self) -> str:
        """The next character that is no white space; empty at the end. It is not taken."""
        while True:
            found = _white(self._text, self._at)
            assert found is not None, "white space may be empty"
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> None:
        """Take the next character, which must be the one that is wanted."""
        if self.next() != wanted:
            raise self._broken(f"{wanted!r} is missing")
        self._at += 1

    def value(self) -> object:
        """The next value, whatever it is."""
        self._turn()
        if not self.next():
            raise self._broken("a value is missing")
        while True:
            left = len(self._text) - self._at
            try:
                found, end = _decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # It may go on behind the window.
                if left <= self._most and self._more():
                    continue
                told = f"a value is larger than {self._most} bytes" if left > self._most else str(error)
                raise self._broken(told) from None
            # A number may go on behind the window, too: `1` as `1.5e7`.
            beyond = _number(self._text, end)
            assert beyond is not None, "it may be empty"
            if beyond.end() < len(self._text) or not self._more():
                self._at = end
                self._number = 1
                return found

    def elements(self) -> Iterator[object]:
        """The elements of the array that comes next, one by one."""
        self.take("[")
        if self.next() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.next() != ",":
                break
            self.take(",")
        self.take("]")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next. What follows each is to be read (`value`, `elements`)
        before the next one is asked for."""
        self.take("{")
        if self.next() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._broken("a key is no text")
            self.take(":")
            yield key
            if self.next() != ",":
                break
            self.take(",")
        self.take("}")

    def end(self) -> None:
        """Nothing may follow."""
        if self.next():
            raise self._broken("something follows it")

    def _more(self) -> bool:
        """Decode more of the body; False at its end."""
        if self._over:
            return False
        data = b"".join(islice(self._parts, self._number))
        self._number *= 2
        # Whether it is the end shows when nothing comes.
        self._over = not data
        try:
            text = self._utf8.decode(data, final=self._over)
        except UnicodeDecodeError as error:
            raise self._broken(str(error)) from None
        self._text = self._text[self._at :] + text
        self._at = 0
        return not self._over

    def _broken(self, why: str) -> RegistryError:
        return RegistryError(f"not JSON: {why}")
