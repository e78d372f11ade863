"""The chunked coding of an upstream's answer (RFC 9112 §7.1), as tolerant as other proxies are.

Rule: bytes in, body bytes out, no I/O. However the bytes are split, the result is the same. Blanks around a chunk size
and around the parts of an extension, and empty extensions, are accepted; anything else outside the grammar is an
error, a bare LF included. Extensions and trailers are dropped. Requests have a decoder of their own, which is stricter
(gateway.server.chunked).
"""

from __future__ import annotations

import re
from math import inf

from gateway.errors import BadResponse

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# A group is never possessive here: Python before 3.11.5 matches some of those wrongly (CPython issue 106052).
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_VALUE = rb"=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb")[ \t]*+"
_EXTENSIONS = rb"(?:;[ \t]*+(?:" + _TOKEN + rb"[ \t]*+(?:" + _VALUE + rb")?)?)*"
# 15 digits: 2^60 bytes.
_size_line = re.compile(rb"([0-9A-Fa-f]{1,15}+)[ \t]*+" + _EXTENSIONS).fullmatch
_trailer_line = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*+").fullmatch
# Sizes met before, without blanks and extensions. Upstreams choose them, so the table is emptied when it is full.
_plain_size = re.compile(rb"[0-9A-Fa-f]{1,15}").fullmatch
_MOST_SIZES = 4096
_sizes: dict[bytes, int] = {}
_HEX = frozenset(b"0123456789abcdefABCDEF")

# Which line comes next, when it is not data.
_SIZE, _END_OF_CHUNK, _TRAILER = range(3)


class AnswerChunks:
    """Decodes one chunked body; `done` once its last line was there. `limit`: bytes of one chunk line, and of all
    trailers together; 0 for no limit."""

    __slots__ = ("_held", "_left", "_limit", "_next", "_trailers", "done")

    def __init__(self, limit: int) -> None:
        self._limit = limit or inf
        # The beginning of a line whose end is still to come.
        self._held = bytearray()
        # Bytes that are missing of the current chunk.
        self._left = 0
        self._next = _SIZE
        self._trailers = 0
        self.done = False

    def feed(self, data: bytes, pieces: list[bytes]) -> int:
        """Append the body bytes in `data` to `pieces`. Returns the number of bytes behind the body's end. Raises
        BadResponse."""
        at, end = 0, len(data)
        if self._held:
            at = self._complete_line(data)
        while at < end and not self.done:
            left = self._left
            if left:
                piece = data[at : at + left]
                pieces.append(piece)
                at += len(piece)
                self._left = left = left - len(piece)
                if left:
                    return 0
                if not data.startswith(b"\r\n", at):
                    self._next = _END_OF_CHUNK
                    continue
                at += 2
                self._next = _SIZE
            if self._next == _SIZE:
                at = self._plain_chunks(data, at, pieces)
                if self._left or at == end:
                    continue
            line_end = data.find(b"\n", at) + 1
            if not line_end:
                self._hold(data[at:])
                return 0
            self._read_line(data[at:line_end])
            at = line_end
        return end - at

    def _plain_chunks(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take the chunks from `at` that are whole and have plain sizes, and the size of the one behind them. Returns
        where an unusual line begins, or the data of a chunk that is not whole."""
        known, find, append = _sizes.get, data.find, pieces.append
        while True:
            line_end = find(b"\r\n", at, at + 17)
            if line_end < 0:
                return at
            text = data[at:line_end]
            size = known(text) or _learn_size(text)
            if not size:
                return at
            begin = line_end + 2
            at = begin + size
            if not data.startswith(b"\r\n", at):
                self._left = size
                return begin
            append(data[begin:at])
            at += 2

    def _complete_line(self, data: bytes) -> int:
        """Add to the held beginning of a line. Returns where the line ends in `data`."""
        end = data.find(b"\n") + 1
        if not end:
            self._hold(data)
            return len(data)
        line = bytes(self._held) + data[:end]
        self._held.clear()
        self._read_line(line)
        return end

    def _hold(self, part: bytes) -> None:
        """Keep the beginning of a line; rejects one that can no longer become valid."""
        held = self._held
        held += part
        self._check_length(len(held))
        if self._next == _END_OF_CHUNK and held != b"\r":
            raise BadResponse("a chunk is longer than its size")
        if self._next == _SIZE and held[0] not in _HEX:
            raise BadResponse(f"chunk size {bytes(held[:80])!r}")

    def _check_length(self, length: int) -> None:
        if self._trailers + length > self._limit:
            raise BadResponse(f"more than {self._limit} bytes of chunk extensions or trailers")

    def _read_line(self, line: bytes) -> None:
        self._check_length(len(line))
        if not line.endswith(b"\r\n"):
            raise BadResponse(f"a bare LF in the chunked body, behind {line[:80]!r}")
        if self._next == _SIZE:
            found = _size_line(line[:-2])
            if found is None:
                raise BadResponse(f"chunk size {line[:80]!r}")
            self._begin_chunk(int(found[1], 16))
        elif self._next == _END_OF_CHUNK:
            if line != b"\r\n":
                raise BadResponse("a chunk is longer than its size")
            self._next = _SIZE
        elif line == b"\r\n":
            self.done = True
        elif _trailer_line(line[:-2]) is None:
            raise BadResponse(f"trailer {line[:80]!r}")
        else:
            self._trailers += len(line)

    def _begin_chunk(self, size: int) -> None:
        self._left = size
        if not size:
            self._next = _TRAILER


def _learn_size(text: bytes) -> int:
    """A plain size, to be found in the table from now on; 0 for any other line, that of the last chunk included."""
    if _plain_size(text) is None:
        return 0
    size = int(text, 16)
    if len(_sizes) >= _MOST_SIZES:
        _sizes.clear()
    _sizes[text] = size
    return size
