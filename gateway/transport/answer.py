"""Reading one answer after another from an upstream's connection.

Rule: every byte accounted for. An answer's end is either proper (its length reached, its last
chunk seen, the end of the connection where neither was announced) or an error; a connection is
fit for another request only when nothing is left over on it.

Usual heads are read by a table of lines, all others by llhttp, which is strict and sees heads
alone. A head that llhttp rejects is put right first where other proxies accept it: bare LF, white
space before a colon, equal lengths repeated, a length beside `Transfer-Encoding`. Bodies are framed
here. Interim answers (1xx, RFC 9110 §15.2) are handed on and never taken for the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http.client import responses
from math import inf

import httptools

from gateway.errors import AnswerTooLarge, BadResponse
from gateway.http.messages import Headers
from gateway.http.request_head import Inbound, inbound, usual
from gateway.model import AnswerLimits
from gateway.net.read_size import PIECE
from gateway.net.stream import Stream, monotonic
from gateway.transport.chunks import AnswerChunks

# A head and a small body fit; a buffer is made for each read, so a small one is cheaper.
_HEAD_PIECE = 16 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_SPACE_BEFORE_COLON = re.compile(rb"(?m)^(" + _TOKEN + rb")[ \t]++:")
# What `_put_right` may put right in a head or in its beginning, where a colon may still be to come.
_TO_PUT_RIGHT = re.compile(rb"(?mi)(?<!\r)\n|^" + _TOKEN + rb"[ \t]++(?::|\Z)|^content-length:")
# The end of a head whose lines may end with a bare LF.
_HEAD_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
# RFC 9112 §4: a reason is text; llhttp lets control characters through.
_NOT_REASON = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# The status lines of answers that `_usual` reads: final ones that may have a body.
_usual_status = re.compile(rb"HTTP/1\.1 (?!204|304)([2-5][0-9][0-9]) ([ -~\x80-\xff]*+)").fullmatch
# Upstreams choose their reason phrases, so the table is bounded: emptied when it is full.
_MOST_STATUS_LINES = 512
_status_lines: dict[bytes, tuple[int, bytes]] = {}
_USUAL_REASONS = frozenset(phrase.encode() for phrase in responses.values())
# How many interim answers may come before the answer. Go gives up after 5; servers that
# report progress by 102 send more.
_MAX_INTERIM = 100
# Answers without a body, whatever their fields say (RFC 9112 §6.3).
_BODILESS = frozenset({204, 304})

Interim = Callable[[int, Headers], None]


class AnswerReader:
    """The state of one connection's answers; also the parser's callback object.

    `status`, `reason`, `headers`, `pieces` (body bytes read and not yet taken), `complete`
    (the answer's end was seen), `started` (at least one byte came), `persistent` (the connection
    may serve another request when complete), `upgraded` (bytes behind a 101's head).
    """

    __slots__ = (
        "_begun",
        "_chunks",
        "_due",
        "_fed",
        "_fresh_limit",
        "_interims",
        "_limits",
        "_parser",
        "_rejected",
        "_remaining",
        "_searched",
        "_spoiled",
        "_stream",
        "complete",
        "headers",
        "interim_seen",
        "parsed",
        "persistent",
        "pieces",
        "reason",
        "started",
        "status",
        "switched",
        "upgraded",
        "whole",
    )

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # Many connections never need one, and it takes a kilobyte.
        self._parser: httptools.HttpResponseParser | None = None
        self._limits = AnswerLimits()
        # What came of a head that is not whole yet.
        self._begun = bytearray()
        # Set when a message begins, or ends.
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.interim_seen: list[tuple[int, Headers]] = []
        self.begin(self._limits)

    def begin(self, limits: AnswerLimits) -> None:
        """Make ready for the answer to one request."""
        self._limits = limits
        self.pieces: list[bytes] = []
        self.parsed = False
        self.complete = False
        self.persistent = False
        self.started = False
        self.upgraded: bytes | None = None
        self._fed = 0
        self._remaining = -1
        self._chunks: AnswerChunks | None = None
        self._interims = 0
        self._due = inf
        # What `limit` said, until it is asked for: it need not be reckoned back from `_due`.
        self._fresh_limit: float | None = None
        # Why llhttp rejected the head that is to be put right once it is whole, and how much of it was searched for
        # its end.
        self._rejected: BadResponse | None = None
        self._searched = 0
        # Framed in a way that other servers may read otherwise: the connection is not used again.
        self._spoiled = False
        # llhttp has seen the end of a head; its Upgrade is that of a 101.
        self.whole = self.switched = False
        if self._begun:
            self._begun = bytearray()

    def end(self) -> None:
        """The connection is closed. The parser refers to this object, which only the collector would find."""
        self._parser = None

    # -- what the parser calls ----------------------------------------------------------

    def on_message_begin(self) -> None:
        self.headers = []
        self.reason = b""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if value[-1:] in b" \t" and value:
            value = value.rstrip(b" \t")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.whole = True

    # -- the head -----------------------------------------------------------------------

    def limit(self, timeout: float | None, deadline: float | None) -> None:
        """From now on the head must be whole within `timeout` seconds and before `deadline`."""
        if deadline is None:
            self._fresh_limit = timeout
            self._due = inf if timeout is None else monotonic() + timeout
        else:
            self._fresh_limit = None
            self._due = deadline if timeout is None else min(monotonic() + timeout, deadline)

    @property
    def left(self) -> float | None:
        """The seconds that are left for the head; None for no limit."""
        fresh, self._fresh_limit = self._fresh_limit, None
        if fresh is not None:
            return fresh
        return None if self._due == inf else max(self._due - monotonic(), 0.0)

    def read_head(self, head_request: bool, interim: Interim | None, hop: bytes) -> Inbound:
        """Read until the answer's head is complete; body bytes that came along are in `pieces`.

        The whole of it is limited by what `limit` said last, which may change meanwhile.
        Raises TimeoutError, OSError, EOFError and BadResponse.
        """
        # Nearly always one read is enough.
        left, self._fresh_limit = self._fresh_limit, None
        while True:
            if left is None:
                left = self.left
            if left == 0.0:
                # Bytes that come one by one do not stop the clock.
                raise TimeoutError("timed out")
            data = self._stream.recv(_HEAD_PIECE, left)
            left = None
            if not data:
                raise self._rejected or EOFError("connection closed")
            self.started = True
            if self._fed == 0 and not head_request:
                judged = self._usual(data, hop)
                if judged is not None:
                    return judged
            self._fed += len(data)
            rest = self._head(data)
            while rest is not None:
                if self._judge_status():
                    return self._judge(rest, head_request, hop)
                self._hand_on(interim)
                rest = self._head(rest) if rest else None
            if self._fed > self._limits.header > 0:
                raise AnswerTooLarge(f"head larger than {self._limits.header} bytes")

    def _usual(self, data: bytes, hop: bytes) -> Inbound | None:
        """Read a head that came in one piece, is framed by its length or chunked and says nothing unusual,
        by a table of lines met before; the parser is for the others (None)."""
        end = data.find(b"\r\n\r\n")
        limits = self._limits
        if end < 0 or end > limits.header > 0:
            return None
        lines = data[:end].split(b"\r\n")
        status_line = lines.pop(0)
        known = _status_lines.get(status_line) or _learn_status(status_line)
        if known is None or len(lines) > limits.headers > 0:
            return None
        judged = usual(lines, hop)
        if judged is None:
            return None
        self.status, self.reason = known
        self.parsed = True
        end += 4
        length = judged.content_length
        if length is None:
            self.persistent = True
            self._decode_first(data[end:])
            return judged
        left = length - len(data) + end
        if left > 0:
            self._remaining = left
            self.persistent = True
            if end < len(data):
                self.pieces.append(data[end:])
        else:
            self.complete = True
            # More than was told belongs to nobody.
            self.persistent = left == 0
            if length:
                self.pieces.append(data[end : end + length])
        return judged

    def _head(self, data: bytes) -> bytes | None:
        """Take in a piece of a head. Returns the bytes behind the head once it is whole, None before."""
        begun = self._begun
        known = len(begun)
        begun += data
        if self._rejected is None:
            end = begun.find(b"\r\n\r\n", max(known - 3, 0)) + 4
            try:
                self._parse(data if end == 3 else bytes(begun[known:end]))
            except BadResponse as error:
                if not begun.startswith(b"HTTP/") or _TO_PUT_RIGHT.search(begun) is None:
                    raise
                self._rejected = error
                self._searched = 0
            else:
                return None if end == 3 else self._head_ended(end)
        found = _HEAD_END.search(begun, max(self._searched - 2, 0))
        self._searched = len(begun)
        if found is None:
            return None
        head, spoiled = _put_right(bytes(begun[: found.end()]))
        self._spoiled = self._spoiled or spoiled
        self._parser = None
        self._parse(head)
        return self._head_ended(found.end())

    def _head_ended(self, end: int) -> bytes:
        """Be ready for the next head. Returns what follows this one."""
        begun, self._begun = self._begun, bytearray()
        self._rejected = None
        if not self.whole:
            raise BadResponse(f"no head in {bytes(begun[:80])!r}")
        return bytes(begun[end:])

    def _parse(self, data: bytes) -> None:
        """Give llhttp a head, or a piece of one. Raises BadResponse."""
        parser = self._parser
        if parser is None:
            self.whole = self.switched = False
            parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A 101: what follows its head is the other protocol's.
            self.switched = True
        except httptools.HttpParserError as error:
            raise BadResponse(f"{error} in {data[:80]!r}") from error

    def _judge_status(self) -> bool:
        """Whether the head is that of the answer, not of an interim one."""
        parser = self._parser
        assert parser is not None, "it has read the head"
        status = parser.get_status_code()
        if status < 100:
            raise BadResponse(f"status {status}")
        if status >= 200 or status == 101:
            self.status = status
            self.parsed = True
            return True
        # llhttp would take what follows some of these for a body.
        self._parser = None
        self._interims += 1
        if self._interims > _MAX_INTERIM:
            raise BadResponse(f"more than {_MAX_INTERIM} interim answers")
        self.interim_seen.append((status, self.headers))
        return False

    def _hand_on(self, interim: Interim | None) -> None:
        for status, headers in self.interim_seen:
            if interim is not None:
                interim(status, inbound(headers, b"").headers)
        self.interim_seen = []

    def _judge(self, rest: bytes, head_request: bool, hop: bytes) -> Inbound:
        """Check the head as a whole and find out how the body is framed. `rest`: what followed the head."""
        limits, parser = self._limits, self._parser
        assert parser is not None, "it has read the head"
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise BadResponse(f"HTTP/{version}")
        if self.reason not in _USUAL_REASONS and _NOT_REASON.search(self.reason) is not None:
            raise BadResponse(f"reason {self.reason[:80]!r}")
        if len(self.headers) > limits.headers > 0:
            raise AnswerTooLarge(f"more than {limits.headers} header fields")
        if self._fed > limits.header > 0:
            size = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header:
                raise AnswerTooLarge(f"head larger than {limits.header} bytes")
        judged = inbound(self.headers, hop, version == "1.1")
        self.persistent = judged.persistent and not self._spoiled
        kept_by_old = version == "1.0" and not head_request and parser.should_keep_alive()
        # It waits for a body, which goes past it.
        self._parser = None
        if self.status == 101:
            if not self.switched:
                raise BadResponse("101 without an Upgrade")
            self.upgraded = rest
            self.complete = True
        elif head_request or self.status in _BODILESS:
            self.complete = True
            # A body where there is none: the connection cannot be trusted any more.
            self.persistent = self.persistent and not rest
        elif judged.chunked:
            self._decode_first(rest)
        elif judged.content_length is not None:
            self._remaining = judged.content_length
            self._count(rest)
        else:
            self.persistent = False
            if rest:
                self.pieces.append(rest)
        if version == "1.0":
            self.persistent = self.persistent and self.complete and kept_by_old
        return judged

    # -- the body -----------------------------------------------------------------------

    def read_body(self, timeout: float | None, most: int = PIECE) -> bytes:
        """The next piece, of `most` bytes or so; b"" when the answer is complete. Raises TimeoutError,
        ConnectionError, BadResponse, and EOFError when the connection ended too early."""
        while not self.pieces:
            if self.complete:
                return b""
            remaining = self._remaining
            if 0 <= remaining < most:
                # A buffer for what is to come, and one byte that would be too many.
                most = remaining + 1
            data = self._stream.recv(most, timeout)
            if not data:
                self._end_of_stream()
            elif remaining >= 0:
                self._count(data)
            elif self._chunks is not None:
                self._decode(self._chunks, data)
            else:
                self.pieces.append(data)
        if len(self.pieces) == 1:
            return self.pieces.pop()
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)

    def _count(self, data: bytes) -> None:
        surplus = len(data) - self._remaining
        if surplus > 0:
            data = data[: self._remaining]
            self.persistent = False
        self._remaining -= len(data)
        if data:
            self.pieces.append(data)
        if self._remaining == 0:
            self.complete = True

    def _decode_first(self, data: bytes) -> None:
        """Begin a chunked body with what came along with the head."""
        chunks = self._chunks = AnswerChunks(self._limits.header)
        if data:
            self._decode(chunks, data)

    def _decode(self, chunks: AnswerChunks, data: bytes) -> None:
        surplus = chunks.feed(data, self.pieces)
        if chunks.done:
            self.complete = True
            if surplus:
                self.persistent = False

    def _end_of_stream(self) -> None:
        self.persistent = False
        if self._chunks is not None:
            raise EOFError("connection closed before the last chunk")
        if self._remaining >= 0:
            raise EOFError(f"connection closed with {self._remaining} bytes to come")
        self.complete = True


def _learn_status(line: bytes) -> tuple[int, bytes] | None:
    """Status and reason of a usual status line, to be found in the table from now on."""
    found = _usual_status(line)
    if found is None:
        return None
    if len(_status_lines) >= _MOST_STATUS_LINES:
        _status_lines.clear()
    known = _status_lines[line] = (int(found[1]), found[2])
    return known


def _put_right(head: bytes) -> tuple[bytes, bool]:
    """An unusual head as llhttp accepts it, and whether its framing may be read otherwise (RFC 9112 §2.2, §5.1, §6.3).
    Raises BadResponse for lengths that differ."""
    bare = head.count(b"\n") != head.count(b"\r\n")
    if bare:
        head = head.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    lines = _SPACE_BEFORE_COLON.sub(rb"\1:", head).split(b"\r\n")
    names = [line.partition(b":")[0].lower() for line in lines]
    lengths = [line.partition(b":")[2] for line, name in zip(lines, names, strict=True) if name == b"content-length"]
    coded = b"transfer-encoding" in names
    if coded or len(lengths) > 1 or any(b"," in length for length in lengths):
        members = {member.strip(b" \t") for member in b",".join(lengths).split(b",")} if lengths else set()
        if len(members) > 1 or not all(map(_LENGTH, members)):
            raise BadResponse(f"Content-Length {b','.join(lengths)[:80]!r}")
        at = names.index(b"content-length") if lengths else 0
        # The coding counts; else one of the equal lengths.
        kept = [] if coded else [b"Content-Length: " + member for member in members]
        others = [line for line, name in zip(lines[at:], names[at:], strict=True) if name != b"content-length"]
        lines = [*lines[:at], *kept, *others]
    return b"\r\n".join(lines), bare or (coded and bool(lengths))
