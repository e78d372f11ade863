"""The head of an answer as bytes.

Rule: pure, but for the clock that `Date` needs. A door says how the body is framed and
what becomes of the connection; everything else is written as it stands in the response.
"""

from __future__ import annotations

from http import HTTPStatus
from time import gmtime, time

from gateway.http.messages import Headers

CLOSE = b"Connection: close\r\n"
# What an HTTP/1.0 client asks for and has to be promised (RFC 9112 §9.3).
KEEP = b"Connection: keep-alive\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_colon = b": ".join
_lines = b"\r\n".join
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Upstreams choose their reason phrases, so the cache is bounded: emptied when it is full.
_MOST_STATUS_LINES = 512
_status_lines: dict[tuple[int, bytes], bytes] = {}


def _status_line(status: int, reason: bytes) -> bytes:
    if len(_status_lines) >= _MOST_STATUS_LINES:
        _status_lines.clear()
    line = _status_lines[status, reason] = b"HTTP/1.1 %d %b\r\n" % (status, reason)
    return line


class _Clock:
    """`Date` (RFC 9110 §6.6.1), made once a second."""

    second = -1
    line = b""


def _date() -> bytes:
    second = int(time())
    if second != _Clock.second:
        now = gmtime(second)
        _Clock.line = (
            f"Date: {_DAYS[now.tm_wday]}, {now.tm_mday:02d} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
            f"{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d} GMT\r\n"
        ).encode("ascii")
        _Clock.second = second
    return _Clock.line


def fields(headers: Headers) -> bytes:
    """Header fields as lines, joined by CRLF."""
    return _lines(map(_colon, headers))


def head(status: int, reason: bytes, lines: bytes, framing: bytes, connection: bytes) -> bytes:
    """A final answer's head. `lines`: header fields as of `fields`. `framing` and
    `connection`: whole lines, or nothing."""
    line = _status_lines.get((status, reason)) or _status_line(status, reason)
    if not lines:
        return b"".join((line, _date(), framing, connection, b"\r\n"))
    # An answer has one Date: the one it came with, else ours. (`in` asks bytes for a number
    # first, by an exception.)
    if lines.find(b"\nDate: ") >= 0 or (b"\n" + lines.lower()).find(b"\ndate: ") >= 0:
        return b"".join((line, lines, b"\r\n", framing, connection, b"\r\n"))
    return b"".join((line, lines, b"\r\n", _date(), framing, connection, b"\r\n"))


def interim(status: int, headers: Headers) -> bytes:
    """A whole 1xx answer."""
    try:
        phrase = HTTPStatus(status).phrase.encode("ascii")
    except ValueError:  # not registered: the phrase may be empty (RFC 9112 §4)
        phrase = b""
    lines = (b"%b: %b\r\n" % header for header in headers)
    return b"".join((b"HTTP/1.1 %d %b\r\n" % (status, phrase), *lines, b"\r\n"))
