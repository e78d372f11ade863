"""One request head: bytes in, judged fields out.

Rule: what is read here has one reading only. llhttp (strict) checks the syntax of every
line; what it leaves open is decided here, before anybody sees the request: the version,
the form of the target, Host, and above all the framing (RFC 9112 §6.3), which nothing
behind this module judges again.

llhttp is given exactly the bytes of one head, its empty line included, so that it never
sees a body or the next request. A `HeadParser` keeps its result in its own attributes
until the next head: one serves all connections of a worker, because nothing waits
between `parse` and the use of what it found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    ExpectationFailed,
    HeaderTooLarge,
    UnsupportedCoding,
    UnsupportedMethod,
    UnsupportedVersion,
    UriTooLong,
)
from gateway.http.messages import Header, Headers
from gateway.http.request_head import FieldLines, tokens
from gateway.http.target import host
from gateway.http.target import parse as parse_target
from gateway.model import ServerLimits

# Fed to llhttp as they are. It knows a list of methods only; any other token is fed as
# POST, which means nothing special to it, and keeps its own name (RFC 9110 §9.1).
_PLAIN_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})
_STAND_IN = b"POST"
# Longer than any registered method (UPDATEREDIRECTREF is 17, BASELINE-CONTROL 16).
_LONGEST_METHOD = 64

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CONNECT = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+):[0-9]{1,5}")

# White space behind a field's value, which is no part of it (RFC 9112 §5.1); llhttp leaves it
# there, and refuses some codings for it. A line of nothing else is left to be refused.
_TRAILING = re.compile(rb"(?<=[^\r\n \t])[ \t]++(?=\r\n)")

# The fields that say something to a server (and one that llhttp takes for Connection).
_MEANT_FOR_US = frozenset(
    {b"host", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"}
)


# A request line that needs no second look.
_usual_line = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/[!\"$-~]*+) HTTP/1\.1").fullmatch
# What `_usual` leaves to llhttp: these change how it reads on.
_UNUSUAL = frozenset({b"transfer-encoding", b"upgrade"})


# What a client sent before, when that was of the plainest form: the bytes of its head, where
# its field lines begin, the fields, and the one Host. Empty for one that sends others each time.
Before = tuple[bytes, int, tuple[Header, ...], bytes] | tuple[()]


class HeadParser:
    """Reads one head after another; see the module's rule."""

    __slots__ = (
        "_complete",
        "_header_limit",
        "_headers_limit",
        "_line_limit",
        "_lines",
        "_llhttp",
        "_max_body",
        "_noted",
        "chunked",
        "content_length",
        "expects_continue",
        "headers",
        "host",
        "http11",
        "keep_alive",
        "method",
        "target",
        "upgrade",
    )

    def __init__(self, limits: ServerLimits) -> None:
        self._line_limit = limits.request_line or inf
        self._header_limit = limits.header or inf
        self._headers_limit = limits.headers or inf
        self._max_body = limits.body or inf
        self._llhttp: HttpRequestParser | None = None
        # Field lines met before, with the lower-case names of those that are meant for us.
        self._lines = FieldLines(lambda name: name if name in _MEANT_FOR_US else None)
        # Lower-case name → values of the fields that are meant for us, as they come.
        self._noted: dict[bytes, list[bytes]] = {}
        self._complete = False
        self.method = self.target = b""
        self.headers: Headers = []
        # The one Host, as it came; empty for none.
        self.host = b""
        self.http11 = self.keep_alive = True
        self.content_length: int | None = None
        self.chunked = False
        self.expects_continue = False
        # The one token of Upgrade when a tunnel could be made of the request.
        self.upgrade: bytes | None = None

    # -- llhttp's callbacks -----------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        lower = name.lower()
        if lower in _MEANT_FOR_US:
            noted = self._noted
            if lower in noted:
                noted[lower].append(value)
            else:
                noted[lower] = [value]

    def on_headers_complete(self) -> None:
        self._complete = True

    # -- one head ---------------------------------------------------------------------

    def parse(self, head: bytes, before: Before | None = None) -> Before | None:
        """Judge `head`: the bytes from the first of the method to the empty line.

        `before` is what this gave for the head before it on the same connection: many clients
        send the same field lines again and again, which then mean what they meant. Raises a
        `ClientError`, after which the connection cannot be used any more: where the next
        request begins is not known.
        """
        self.content_length = self.upgrade = None
        self.chunked = self.expects_continue = False
        if before:
            again = self._again(head, *before)
            if again is not None:
                return again
            before = ()
        is_usual = self._usual(head)
        if not is_usual:
            self._parse(head)
        noted = self._noted
        self._judge_host(noted.get(b"host", ()))
        self.keep_alive = self.http11
        if len(noted) > 1 or b"host" not in noted:
            self._judge_framing()
            self._judge_connection()
            if b"expect" in noted and self.http11:  # ignored from HTTP/1.0 (RFC 9110 §10.1.1)
                self._judge_expect()
        elif is_usual and before is None:
            return (head, head.index(b"\r\n"), tuple(self.headers), self.host)
        return before

    def _again(self, head: bytes, lines: bytes, at: int, headers: tuple[Header, ...], host: bytes) -> Before | None:
        """Read a head that differs in its request line alone; None: it differs in more."""
        if at:
            lines = lines[at:]
        if not head.endswith(lines):
            return None
        line = head[: -len(lines)]
        found = _usual_line(line)
        if found is None or len(line) > self._line_limit:
            return None
        self.method, self.target = found.groups()
        self.http11 = self.keep_alive = True
        self.headers = [*headers]
        self.host = host
        return lines, 0, headers, host

    def _usual(self, head: bytes) -> bool:
        """Read a head of the usual form by a table of lines met before; False: it is not of
        that form, or too large, and llhttp has to judge it."""
        lines = head[:-4].split(b"\r\n")
        line = lines.pop(0)
        found = _usual_line(line)
        if (
            found is None
            or len(line) > self._line_limit
            or len(head) - len(line) - 4 > self._header_limit
            or len(lines) > self._headers_limit
        ):
            return False
        known = self._lines.table.get
        headers: Headers = []
        noted: dict[bytes, list[bytes]] = {}
        for line in lines:
            entry = known(line) or self._lines.learn(line)
            if entry is None:
                return False
            meaning, field = entry
            headers.append(field)
            if meaning is not None:
                if meaning in _UNUSUAL:
                    return False
                if meaning in noted:
                    noted[meaning].append(field[1])
                else:
                    noted[meaning] = [field[1]]
        self.method, self.target = found.groups()
        self.http11 = True
        self.headers = headers
        self._noted = noted
        return True

    def _parse(self, head: bytes) -> None:
        """Read any head by llhttp."""
        self.headers = []
        self.method = self.target = b""
        end = head.index(b"\r\n")
        if end > self._line_limit:
            raise UriTooLong(f"request line of {end} bytes")
        if len(head) - end - 4 > self._header_limit:
            raise HeaderTooLarge(f"header lines of {len(head) - end - 4} bytes")
        self.request_line(head[:end])
        if self.method not in _PLAIN_METHODS:
            self._odd_method()
            head = _STAND_IN + head[len(self.method) :]
        if b" \r\n" in head or b"\t\r\n" in head:
            head = _TRAILING.sub(b"", head)
        self._noted = {}
        self._feed(head)
        if len(self.headers) > self._headers_limit:
            raise HeaderTooLarge(f"{len(self.headers)} header lines")

    def request_line(self, line: bytes) -> None:
        parts = line.split(b" ")
        if len(parts) != 3:
            raise BadRequest(f"request line {line[:200]!r}")
        self.method, self.target, version = parts
        if version == b"HTTP/1.1":
            self.http11 = True
        elif version == b"HTTP/1.0":
            self.http11 = False
        elif _VERSION.fullmatch(version):
            raise UnsupportedVersion(f"version {version!r}")
        else:
            raise BadRequest(f"version {version[:80]!r}")
        target = self.target
        if target[:1] == b"/":
            # A fragment is no part of a request; what it would hide differs by server.
            if b"#" in target:
                raise BadRequest("a fragment in the target")
        elif target == b"*":
            if self.method != b"OPTIONS":
                raise BadRequest(f"target * with {self.method[:_LONGEST_METHOD]!r}")
        elif self.method != b"CONNECT":
            parse_target(target)

    def _odd_method(self) -> None:
        if len(self.method) > _LONGEST_METHOD or not _TOKEN.fullmatch(self.method):
            raise BadRequest(f"method {self.method[:_LONGEST_METHOD]!r}")
        if self.method == b"CONNECT":
            if not _CONNECT.fullmatch(self.target):
                raise BadRequest(f"CONNECT to {self.target[:200]!r}")
            raise UnsupportedMethod("CONNECT")

    def _feed(self, head: bytes) -> None:
        llhttp, self._llhttp = self._llhttp, None
        self._complete = False
        try:
            if llhttp is None:
                llhttp = HttpRequestParser(self)
            llhttp.feed_data(head)
        except HttpParserUpgrade:
            # The end of llhttp's work on a head with an upgrade. Where a body begins and
            # ends is decided here, not by what it says is left over.
            return
        except HttpParserError as error:
            # llhttp refuses some codings on its own; they have an answer of their own.
            if b"transfer-encoding" in self._noted and b"content-length" not in self._noted and self.http11:
                self._judge_codings(self._noted[b"transfer-encoding"])
            raise BadRequest(str(error)) from None
        if not self._complete:
            raise BadRequest("the head does not end where it should")
        # Host alone: llhttp is at the start of a message again. After an error, an
        # upgrade, any kind of Connection, or before a body it must not be fed again.
        if len(self._noted) == 1 and b"host" in self._noted and self.http11:
            self._llhttp = llhttp

    def _judge_host(self, hosts: Sequence[bytes]) -> None:
        # RFC 9112 §3.2: 400 for none, several, or an invalid one
        self.host = b""
        if len(hosts) == 1:
            self.host = hosts[0]
            host(self.host)
        elif hosts or self.http11:
            raise BadRequest(f"Host {hosts[:3]!r}")

    def _judge_framing(self) -> None:
        lengths = self._noted.get(b"content-length")
        codings = self._noted.get(b"transfer-encoding")
        if codings is not None:
            if not self.http11:
                raise BadRequest("Transfer-Encoding in HTTP/1.0")
            if lengths is not None:
                raise BadRequest("Transfer-Encoding and Content-Length")
            self._judge_codings(codings)
            self.chunked = True
        elif lengths is not None:
            if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
                raise BadRequest(f"Content-Length {lengths[:3]!r}")
            self.content_length = int(lengths[0])
            if self.content_length > self._max_body:
                raise BodyTooLarge(f"Content-Length {self.content_length}")

    def _judge_codings(self, codings: list[bytes]) -> None:
        """Exactly one `chunked` passes. A list that says where the body ends but names
        what we do not know is 501 (RFC 9112 §6.1), anything else 400 (§6.3)."""
        named = [coding.strip(b" \t") for coding in b",".join(codings).lower().split(b",")]
        if named == [b"chunked"]:
            return
        if b"chunked" not in named[:-1] and all(_TOKEN.fullmatch(coding) for coding in named):
            raise UnsupportedCoding(f"Transfer-Encoding {codings[:3]!r}")
        raise BadRequest(f"Transfer-Encoding {codings[:3]!r}")

    def _judge_connection(self) -> None:
        lines = self._noted.get(b"connection")
        if lines is None:
            return
        options = [option.strip(b" \t") for option in b",".join(lines).lower().split(b",")]
        if b"close" in options:
            self.keep_alive = False
        elif b"keep-alive" in options:
            self.keep_alive = True
        if b"upgrade" in options and self.method == b"GET" and self.http11:
            upgrades = self._noted.get(b"upgrade", ())
            if not self.chunked and not self.content_length and len(upgrades) == 1 and _TOKEN.fullmatch(upgrades[0]):
                self.upgrade = upgrades[0].lower()

    def _judge_expect(self) -> None:
        """RFC 9110 §10.1.1: a list (§5.6.1), in which empty members count for nothing."""
        expected = b",".join(self._noted[b"expect"])
        members = set(tokens(expected))
        if not members:
            return
        if members != {b"100-continue"}:
            raise ExpectationFailed(f"Expect {expected[:80]!r}")
        self.expects_continue = self.chunked or bool(self.content_length)
