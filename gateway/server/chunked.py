"""The chunked coding of request bodies (RFC 9112 §7.1), strictly.

Rule: bytes in, body bytes out, no I/O. However the bytes are split, the result is the
same. Whatever another server might read differently is an error: sizes are plain hex
digits, every line ends with CRLF, chunk extensions follow the grammar (without the
"bad whitespace" that the RFC lets a recipient tolerate) and are dropped, trailers follow
the grammar of header lines, are kept apart and never become headers.
"""

from __future__ import annotations

import re

from gateway.errors import BadRequest, BodyTooLarge, HeaderTooLarge
from gateway.http.messages import Headers
from gateway.model import ServerLimits

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# 15 digits: 2^60 bytes, far from where a size could overflow anywhere behind us.
_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
_LONGEST_SIZE = 15
# Which line comes next, when it is not data.
_SIZE_LINE, _END_OF_CHUNK, _TRAILER_LINE = range(3)
# Possessive, so that each byte is looked at once: white space may belong to either part.
_TRAILER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([\t -~\x80-\xff]*+)")


class ChunkedDecoder:
    """Takes the bytes of one chunked body; `done` once its last line was there."""

    __slots__ = (
        "_extensions",
        "_held",
        "_left",
        "_limits",
        "_line",
        "_trailer_bytes",
        "done",
        "lines",
        "rest",
        "size",
        "trailers",
    )

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        # The beginning of a line whose end is still to come.
        self._held = bytearray()
        self._line = _SIZE_LINE
        # What the current chunk still holds.
        self._left = 0
        self._extensions = 0
        self._trailer_bytes = 0
        # Lines read so far, which is what a body costs.
        self.lines = 0
        # Bytes of body announced so far.
        self.size = 0
        self.done = False
        # What came behind the body: the beginning of the next request.
        self.rest = b""
        self.trailers: Headers = []

    def feed(self, data: bytes) -> bytes:
        """The body bytes that `data` completes; `BadRequest`, `BodyTooLarge` and
        `HeaderTooLarge` when it cannot go on."""
        if self._held:
            whole = self._completed(data)
            if whole is None:
                return b""
            data = whole
        at = 0
        pieces: list[bytes] = []
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                at += len(piece)
                self._left -= len(piece)
                pieces.append(piece)
                if not self._left:
                    self._line = _END_OF_CHUNK
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._held += data[at:]
                self._check_held(0)
                break
            self._take(data[at:end])
            at = end + 2
        if self.done:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _completed(self, data: bytes) -> bytes | None:
        """The held beginning of a line together with `data`; None while the line has no end.
        Each byte is searched once, however small the pieces are."""
        held = self._held
        searched = len(held)
        held += data
        if held.find(b"\r\n", searched - 1) < 0:
            self._check_held(searched)
            return None
        self._held = bytearray()
        return bytes(held)

    def _check_held(self, searched: int) -> None:
        """Refuse the beginning of a line that can no longer become one. `searched`: how many of its
        bytes were checked before."""
        held = self._held
        if held.find(b"\n", searched) >= 0:
            raise BadRequest("a bare LF in the chunked body")
        length = len(held) - held.endswith(b"\r")
        if self._line == _END_OF_CHUNK:
            if length:
                raise BadRequest("a chunk is longer than its size")
        elif self._line == _SIZE_LINE:
            self._room_for_extensions(length - _LONGEST_SIZE)
        else:
            self._room_for_trailer(length)

    def _take(self, line: bytes) -> None:
        self.lines += 1
        if self._line == _SIZE_LINE:
            self._size_line(line)
        elif self._line == _TRAILER_LINE:
            self._trailer_line(line)
        elif line:
            raise BadRequest("a chunk is longer than its size")
        else:
            self._line = _SIZE_LINE

    def _size_line(self, line: bytes) -> None:
        if len(line) > _LONGEST_SIZE:
            self._room_for_extensions(len(line) - _LONGEST_SIZE)
        found = _SIZE.fullmatch(line)
        if found is None:
            raise BadRequest(f"chunk size line {line[:80]!r}")
        digits, extensions = found.groups()
        if extensions:
            self._room_for_extensions(len(extensions))
            self._extensions += len(extensions)
        self._left = int(digits, 16)
        if not self._left:
            self._line = _TRAILER_LINE
            return
        self.size += self._left
        if self._limits.body and self.size > self._limits.body:
            raise BodyTooLarge(f"chunks of {self.size} bytes")

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._room_for_trailer(len(line))
        found = _TRAILER.fullmatch(line)
        if found is None:
            raise BadRequest(f"trailer line {line[:80]!r}")
        self._trailer_bytes += len(line) + 2
        name, value = found.groups()
        self.trailers.append((name, value.rstrip(b" \t")))
        if self._limits.headers and len(self.trailers) > self._limits.headers:
            raise HeaderTooLarge(f"{len(self.trailers)} trailer lines")

    def _room_for_extensions(self, more: int) -> None:
        """Extensions may be as much as the limit, and as much as the body itself: what
        is dropped must not be most of what is read. Those of one chunk, which are held
        until they are whole, may not be more than the limit."""
        limit = self._limits.chunk_extensions
        if limit and more > 0 and (more > limit or self._extensions + more > limit + self.size):
            raise BadRequest(f"chunk extensions of more than {self._extensions + more} bytes")

    def _room_for_trailer(self, more: int) -> None:
        limit = self._limits.header
        if limit and self._trailer_bytes + more + 2 > limit:
            raise HeaderTooLarge(f"trailers of more than {limit} bytes")
