"""Reading one answer after another from an upstream's connection, by llhttp.

Rule: strict, and every byte accounted for. An answer's end is either proper (its length
reached, its last chunk seen, the end of the connection where neither was announced) or an
error; a connection is fit for another request only when nothing is left over on it.

A parser is made for the first answer that needs one and serves the connection from then on.
It cannot know that a request was HEAD, so that it is dropped after such an answer, and after
anything unusual. Interim answers (1xx, RFC 9110 §15.2) are handed on and never taken for the
answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http.client import responses
from math import inf

import httptools

from gateway.errors import AnswerTooLarge, BadResponse
from gateway.exchange import PIECE, Headers
from gateway.headers import Inbound, inbound, usual
from gateway.model import AnswerLimits
from gateway.stream import Stream, monotonic

# A head and a small body fit; a buffer is made for each read, so a small one is cheaper.
_HEAD_PIECE = 16 * 1024

_SPACE_BEFORE_COLON = re.compile(rb"(?m)^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]+:")
# The same, or what may become it when the rest of its line has come.
_MAYBE_SPACE_BEFORE_COLON = re.compile(rb"(?m)^[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]+(?::|\Z)")
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

Interim = Callable[[int, Headers], None]


class AnswerReader:
    """The state of one connection's answers; also the parser's callback object.

    `status`, `reason`, `headers`, `pieces` (body bytes read and not yet taken), `complete`
    (the answer's end was seen), `started` (at least one byte came), `persistent` (the connection
    may serve another request when complete), `upgraded` (bytes behind a 101's head).
    """

    __slots__ = (
        "_chunked",
        "_due",
        "_fed",
        "_fresh_limit",
        "_held",
        "_in_head",
        "_interims",
        "_limits",
        "_parser",
        "_pieces_of_head",
        "_quiet",
        "_remaining",
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
        "upgraded",
    )

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # Many connections never need one, and it takes a kilobyte.
        self._parser: httptools.HttpResponseParser | None = None
        self._limits = AnswerLimits()
        # What came of a head that is not whole yet.
        self._pieces_of_head: list[bytes] = []
        # Set when a message begins, or ends.
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.interim_seen: list[tuple[int, Headers]] = []
        self._in_head = False
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
        self._quiet = 0
        self._remaining = -1
        self._chunked = False
        self._interims = 0
        self._due = inf
        # What `limit` said, until it is asked for: it need not be reckoned back from `_due`.
        self._fresh_limit: float | None = None
        # Bytes of a head that goes to the parser when it is whole; None when each piece goes at once.
        self._held: bytearray | None = None
        if self._pieces_of_head:
            self._pieces_of_head = []

    def end(self) -> None:
        """The connection is closed. The parser refers to this object, which only the collector would find."""
        self._parser = None

    # -- what the parser calls ----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            # Something follows an answer that nobody asked for.
            self.persistent = False
            raise _Surplus
        self._in_head = True
        self.headers = []
        self.reason = b""

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            if value[-1:] in b" \t" and value:
                value = value.rstrip(b" \t")
            self.headers.append((name, value))
        # Else it is a trailer (RFC 9110 §6.5): dropped, never merged into the headers.

    def on_headers_complete(self) -> None:
        self._in_head = False
        assert self._parser is not None, "it called"
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            if status < 100:
                raise BadResponse(f"status {status}")
            self._interims += 1
            if self._interims > _MAX_INTERIM:
                raise BadResponse(f"more than {_MAX_INTERIM} interim answers")
            self.interim_seen.append((status, self.headers))
            return
        self.status = status
        self.parsed = True

    def on_body(self, data: bytes) -> None:
        if not self.parsed:
            # RFC 9110 §15.2: none has one. llhttp knows that of 100, 102 and 103 alone.
            raise BadResponse("an interim answer with a body")
        self.pieces.append(data)
        self._quiet = 0

    def on_chunk_header(self) -> None:
        self._quiet = 0

    def on_message_complete(self) -> None:
        if self.parsed:
            assert self._parser is not None, "it called"
            self.complete = True
            self.persistent = self._parser.should_keep_alive()

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
        if head_request and self._held is None:
            self._held = bytearray()
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
                raise EOFError("connection closed")
            self.started = True
            if self._fed == 0 and self._held is None:
                judged = self._usual(data, hop)
                if judged is not None:
                    return judged
            self._fed += len(data)
            if self._held is None:
                self._feed(data)
            else:
                self._hold(self._held, data, head_request)
            if self.interim_seen:
                self._hand_on(interim)
            if self.parsed:
                return self._judge(data, head_request, hop)
            if self._fed > self._limits.header > 0:
                raise AnswerTooLarge(f"head larger than {self._limits.header} bytes")
            if self._held is None:
                self._pieces_of_head.append(data)

    def _usual(self, data: bytes, hop: bytes) -> Inbound | None:
        """Read a head that came in one piece, is framed by its length and says nothing unusual,
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
        length = judged.content_length
        assert length is not None, "what has no length is not usual"
        end += 4
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

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A 101: what follows its head is the other protocol's.
            self.upgraded = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._parser_failed(error, data)

    def _parser_failed(self, error: httptools.HttpParserError, data: bytes) -> None:
        self.persistent = False
        cause = error.__context__
        if isinstance(cause, BadResponse):
            raise cause
        if self.complete:
            # The answer is whole; what follows it is not ours to read.
            if self.status == 101 and self.upgraded is None:
                raise BadResponse("101 without an Upgrade") from error
            return
        if not self.parsed and not self._interims and self._held is None:
            so_far = b"".join([*self._pieces_of_head, data])
            if _MAYBE_SPACE_BEFORE_COLON.search(so_far) is not None:
                self._held = bytearray()
                self._hold(self._held, so_far, head_request=False)
                return
        raise BadResponse(f"{error} in {data[:80]!r}") from error

    def _hold(self, held: bytearray, data: bytes, head_request: bool) -> None:
        """Feed whole heads alone: the parser must not see what follows an answer to HEAD,
        and an unusual head is put right first."""
        seen = max(len(held) - 3, 0)
        held += data
        while not self.parsed:
            end = held.find(b"\r\n\r\n", seen) + 4
            if end < 4:
                return
            # RFC 9112 §5.1: a proxy removes white space before the colon of an answer.
            head = _SPACE_BEFORE_COLON.sub(rb"\1:", held[:end])
            del held[:end]
            seen = 0
            self._parser = None
            self._feed(head)
            if not self.parsed and not self.interim_seen:
                raise BadResponse(f"no head in {head[:80]!r}")
        if head_request:
            # A body on an answer to HEAD: the connection cannot be trusted any more.
            self.persistent = not held
            self.complete = True
        elif held:
            self._feed(bytes(held))

    def _hand_on(self, interim: Interim | None) -> None:
        for status, headers in self.interim_seen:
            if interim is not None:
                interim(status, inbound(headers, b"").headers)
        self.interim_seen = []

    def _judge(self, data: bytes, head_request: bool, hop: bytes) -> Inbound:
        """Check the head as a whole and find out how the body is framed."""
        limits, parser = self._limits, self._parser
        assert parser is not None, "it has read the head"
        # The parser makes a new string of it, which the usual head need not pay.
        usual = self._fed == len(data) and not self._interims and data.startswith(b"HTTP/1.1 ")
        version = "1.1" if usual else parser.get_http_version()
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
        self._chunked = judged.chunked
        if not judged.persistent or (version == "1.0" and (head_request or not self.persistent)):
            self.persistent = False
        length = judged.content_length
        if head_request:
            # It waits for a body that does not come.
            self._parser = None
        if self.complete:
            if self.persistent and not head_request and self._stray(data, judged):
                self.persistent = False
        elif length is not None:
            # From here on the body goes past the parser, which is not used again.
            self._remaining = length - sum(map(len, self.pieces))
            self.persistent = judged.persistent and version == "1.1"
            self._parser = None
        return judged

    def _stray(self, data: bytes, judged: Inbound) -> bool:
        """Whether blank lines follow the answer: llhttp passes over them without a word."""
        if judged.chunked:
            return data.endswith(b"\r\n\r\n\r\n")
        if len(data) != self._fed or self._interims:
            return False
        return len(data) > data.find(b"\r\n\r\n") + 4 + sum(map(len, self.pieces))

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
            else:
                self._quiet += len(data)
                self._feed(data)
                if self.complete and self.persistent and data.endswith(b"\r\n\r\n\r\n"):
                    self.persistent = False
                if self._quiet > self._limits.header > 0:
                    raise BadResponse(f"more than {self._limits.header} bytes of chunk extensions or trailers")
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
        self.pieces.append(data)
        if self._remaining == 0:
            self.complete = True

    def _end_of_stream(self) -> None:
        self.persistent = False
        if self._chunked:
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


class _Surplus(Exception):
    """Stops the parser at the first byte behind a complete answer."""
