"""Reading one answer after another from an upstream's connection, by llhttp.

Rule: strict, and every byte accounted for. An answer's end is either proper (its length
reached, its last chunk seen, the end of the connection where neither was announced) or an
error; a connection is fit for another request only when nothing is left over on it.

One parser serves a connection for its life. It cannot know that a request was HEAD, so
that after such an answer, and after anything unusual, a new one is made. Interim answers
(1xx, RFC 9110 §15.2) are handed on and never taken for the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from gateway.errors import BadResponse
from gateway.exchange import Headers
from gateway.headers import Inbound, inbound
from gateway.model import AnswerLimits
from gateway.stream import Stream

PIECE = 64 * 1024

# A body piece this large goes past the parser when the length is known.
_SPACE_BEFORE_COLON = re.compile(rb"(?m)^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]+:")
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
        "_fed",
        "_in_head",
        "_limits",
        "_parser",
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
        "timeout",
        "upgraded",
    )

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._parser = httptools.HttpResponseParser(self)
        self._limits = AnswerLimits()
        self.begin(self._limits)

    def begin(self, limits: AnswerLimits) -> None:
        """Make ready for the answer to one request."""
        self._limits = limits
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.parsed = False
        self.complete = False
        self.persistent = False
        self.started = False
        self.upgraded: bytes | None = None
        self.interim_seen: list[tuple[int, Headers]] = []
        self._in_head = False
        self._fed = 0
        self._quiet = 0
        self._remaining = -1
        self._chunked = False
        self.timeout: float | None = None

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
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.interim_seen.append((status, self.headers))
            if len(self.interim_seen) > _MAX_INTERIM:
                raise BadResponse(f"more than {_MAX_INTERIM} interim answers")
            return
        self.status = status
        self.parsed = True

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)
        self._quiet = 0

    def on_chunk_header(self) -> None:
        self._quiet = 0

    def on_message_complete(self) -> None:
        if self.parsed:
            self.complete = True
            self.persistent = self._parser.should_keep_alive()

    # -- the head -----------------------------------------------------------------------

    def read_head(self, head_request: bool, interim: Interim | None, hop: bytes) -> Inbound:
        """Read until the answer's head is complete; body bytes that came along are in `pieces`.

        Each wait is limited by `timeout`, which may change meanwhile. Raises TimeoutError,
        OSError, EOFError and BadResponse.
        """
        held = b""
        while True:
            data = self._stream.recv(PIECE, self.timeout)
            if not data:
                raise EOFError("connection closed")
            self.started = True
            self._fed += len(data)
            if head_request:
                held = self._feed_heads(held + data)
            else:
                self._feed(data)
            if self.interim_seen:
                self._hand_on(interim)
            if self.parsed:
                return self._judge(data, head_request, hop)
            if self._fed > self._limits.header > 0:
                raise BadResponse(f"head larger than {self._limits.header} bytes")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
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
        if not self.parsed and not self.interim_seen and self._fed == len(data):
            cleaned = _SPACE_BEFORE_COLON.sub(rb"\1:", data)
            if cleaned != data and b"\r\n\r\n" in data:
                # RFC 9112 §5.1: a proxy removes white space before the colon of an answer.
                self._parser = httptools.HttpResponseParser(self)
                head, _, rest = data.partition(b"\r\n\r\n")
                self._feed(_SPACE_BEFORE_COLON.sub(rb"\1:", head) + b"\r\n\r\n" + rest)
                self.persistent = False
                return
        raise BadResponse(f"{error} in {data[:80]!r}") from error

    def _feed_heads(self, data: bytes) -> bytes:
        """For an answer to HEAD: the parser gets heads only; returns what is no whole head yet."""
        while not self.parsed:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return data
            head, data = data[:end], data[end:]
            self._parser = httptools.HttpResponseParser(self)
            self._feed(head)
            if not self.parsed and not self.interim_seen:
                raise BadResponse(f"no head in {head[:80]!r}")
        keep = self._keep_alive_of_head()
        self.complete = True
        self._parser = httptools.HttpResponseParser(self)
        # A body on an answer to HEAD: the connection cannot be trusted any more.
        self.persistent = keep and not data
        return b""

    def _keep_alive_of_head(self) -> bool:
        return self._parser.get_http_version() == "1.1"

    def _hand_on(self, interim: Interim | None) -> None:
        for status, headers in self.interim_seen:
            if interim is not None:
                interim(status, inbound(headers, b"").headers)
        self.interim_seen = []

    def _judge(self, data: bytes, head_request: bool, hop: bytes) -> Inbound:
        """Check the head as a whole and find out how the body is framed."""
        limits = self._limits
        version = self._parser.get_http_version() if not head_request else "1.1"
        if version not in ("1.1", "1.0"):
            raise BadResponse(f"HTTP/{version}")
        if len(self.headers) > limits.headers > 0:
            raise BadResponse(f"more than {limits.headers} header fields")
        if self._fed > limits.header > 0:
            size = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.header:
                raise BadResponse(f"head larger than {limits.header} bytes")
        judged = inbound(self.headers, hop, version == "1.1")
        self._chunked = judged.chunked
        if not judged.persistent or (version == "1.0" and not self.persistent):
            self.persistent = False
        length = judged.content_length
        if self.complete:
            if self.persistent and not head_request and self._stray(data, judged):
                self.persistent = False
        elif length is not None:
            # From here on the body goes past the parser, which is not used again.
            self._remaining = length - sum(map(len, self.pieces))
            self.persistent = judged.persistent and version == "1.1"
            self._parser = httptools.HttpResponseParser(self)
        return judged

    def _stray(self, data: bytes, judged: Inbound) -> bool:
        """Whether blank lines follow the answer: llhttp passes over them without a word."""
        if judged.chunked:
            return data.endswith(b"\r\n\r\n\r\n")
        if len(data) != self._fed:
            return False
        return len(data) > data.find(b"\r\n\r\n") + 4 + sum(map(len, self.pieces))

    # -- the body -----------------------------------------------------------------------

    def read_body(self, timeout: float | None) -> bytes:
        """The next piece; b"" when the answer is complete. Raises TimeoutError,
        ConnectionError, BadResponse, and EOFError when the connection ended too early."""
        while not self.pieces:
            if self.complete:
                return b""
            data = self._stream.recv(PIECE, timeout)
            if not data:
                self._end_of_stream()
            elif self._remaining >= 0:
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


class _Surplus(Exception):
    """Stops the parser at the first byte behind a complete answer."""
