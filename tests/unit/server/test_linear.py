"""Loops over what a client or an upstream sends take linear time, also where a limit was switched off."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from gateway.errors import BadRequest, BadResponse
from gateway.http import target
from gateway.http.messages import Request
from gateway.http.request_head import Outbound, inbound, received_by, tokens
from gateway.http.trusted_proxies import Trust
from gateway.model import AnswerLimits, Endpoint, Match, Route, ServerLimits, ServerSettings
from gateway.routing import router
from gateway.server import proxy_protocol
from gateway.server.chunked import ChunkedDecoder
from gateway.server.connection import Connection, Place, Shared
from gateway.server.parser import HeadParser
from gateway.transport.answer import AnswerReader
from gateway.transport.chunks import AnswerChunks
from tests import patterns
from tests.unit.server.wire import RecordingDoor, ScriptedStream, echo

NO_LIMITS = ServerLimits(request_line=0, header=0, headers=0, chunk_extensions=0)
TRUSTED = ServerSettings(limits=NO_LIMITS, trusted_proxies=("192.0.2.0/24",), via="both")

Job = Callable[[], object]


class Drops(ScriptedStream):
    """Each byte of what arrives comes alone."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._bytes = deque(data)

    def recv(self, size: int, timeout: float | None) -> bytes:
        return bytes((self._bytes.popleft(),)) if self._bytes else b""


def _connection(data: bytes) -> Job:
    def run() -> None:
        shared = Shared(RecordingDoor(echo), None, TRUSTED, HeadParser(NO_LIMITS), worn=lambda: None)  # type: ignore[arg-type]
        Connection(shared, Drops(data), Place("http", 8000), "192.0.2.1", 1, "auto").run()  # type: ignore[arg-type]

    return run


def _chunks(data: bytes, piece: int = 1) -> Job:
    def run() -> None:
        decoder = ChunkedDecoder(NO_LIMITS)
        for at in range(0, len(data), piece):
            decoder.feed(data[at : at + piece])

    return run


def _refused(job: Job) -> Job:
    def run() -> None:
        with pytest.raises(BadRequest):
            job()

    return run


def _head(*fields: tuple[bytes, bytes]) -> Job:
    def run() -> None:
        outbound = Outbound(TRUSTED, b"gw", Trust(TRUSTED.trusted_proxies), lambda: b"id")
        request = Request(b"GET", b"/", list(fields), 0.0, peer="192.0.2.1")
        outbound.identify(request)
        outbound.head(request, b"/", b"a", b"a")

    return run


def _answer(data: bytes) -> Job:
    def run() -> None:
        reader = AnswerReader(Drops(data))  # type: ignore[arg-type]
        reader.begin(AnswerLimits(header=0, headers=0))
        reader.read_head(False, None, b"")

    return run


def _coded(data: bytes, piece: int = 1) -> Job:
    def run() -> None:
        decoder = AnswerChunks(0)
        pieces: list[bytes] = []
        for at in range(0, len(data), piece):
            decoder.feed(data[at : at + piece], pieces)

    return run


def _no_answer(job: Job) -> Job:
    def run() -> None:
        with pytest.raises(BadResponse):
            job()

    return run


ENDPOINT = Endpoint("http", "127.0.0.1", 80)
STRIPPING = Route("r", "u", (Match(prefix="/a"),), strip_prefix=True)

JOBS: dict[str, Callable[[int], Job]] = {
    "a request line byte by byte": lambda n: _connection(b"GET /" + b"a" * n),
    "header lines byte by byte": lambda n: _connection(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * (n // 5)),
    "a head byte by byte": lambda n: _connection(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * n + b"\r\n\r\n"),
    "a PROXY line byte by byte": lambda n: _connection(b"PROXY UNKNOWN " + b"a" * n),
    "many small requests": lambda n: _chunks(b"1\r\na\r\n" * (n // 6), 4096),
    "a trailer byte by byte": lambda n: _chunks(b"0\r\na:" + b" " * n),
    "an extension byte by byte": lambda n: _chunks(b"1;" + b"a" * n),
    "a trailer of white space": lambda n: _refused(_chunks(b"0\r\na:" + b" " * n + b"\x01\r\n", 1 << 20)),
    "many trailers": lambda n: _chunks(b"0\r\n" + b"a:b\r\n" * (n // 5), 1 << 20),
    "Via": lambda n: _head((b"Via", b"a" * n)),
    "Via of commas": lambda n: _head((b"Via", b"1.0 a, " * (n // 7))),
    "Via of white space": lambda n: _head((b"Via", b"a" + b" \t" * (n // 2))),
    "many lines of Via": lambda n: _head(*[(b"Via", b"1.1 a")] * (n // 12)),
    "CDN-Loop": lambda n: _head((b"CDN-Loop", b"a;, " * (n // 4))),
    "cookies behind other fields": lambda n: _head(*[(b"A", b"")] * (n // 2), *[(b"Cookie", b"a=1")] * (n // 2)),
    "Connection names": lambda n: _head((b"Connection", b"a," * (n // 2)), *[(b"B", b"")] * (n // 2)),
    "X-Forwarded-For": lambda n: _head((b"X-Forwarded-For", b"192.0.2.1, " * (n // 11))),
    "many X-Forwarded-For": lambda n: _head(*[(b"X-Forwarded-For", b"192.0.2.1")] * (n // 12)),
    "Forwarded": lambda n: _head((b"Forwarded", b'for="[::1]";' * (n // 12))),
    "a list": lambda n: lambda: tokens(b" ,\t" * (n // 3)),
    "entries of Via": lambda n: lambda: received_by(b" \ta" * (n // 3)),
    "a query": lambda n: lambda: router._parameters(b"%61+&=" * (n // 6)),
    "a path": lambda n: lambda: target.read(b"/%2e%41//;%" * (n // 11) + b"?"),
    "a cookie": lambda n: lambda: Request(b"GET", b"/", [(b"Cookie", b" a=b;" * (n // 5))], 0.0).cookie(b"c"),
    "fields of an answer": lambda n: lambda: inbound([(b"Connection", b"a,b")] * (n // 10), b"1.1 gw"),
    "an answer byte by byte": lambda n: _answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: " + b"a" * n + b"\r\n\r\n"),
    "chunks of an answer": lambda n: _coded(b"1\r\na\r\n" * (n // 6), 4096),
    "a chunk line of an answer byte by byte": lambda n: _coded(b"1" + b" ;a" * (n // 3)),
    "a chunk line of an answer that is none": lambda n: _no_answer(_coded(b'1;a="' + b"\\a;" * (n // 3) + b"\r\n", 1 << 20)),
    "empty extensions of an answer": lambda n: _no_answer(_coded(b"1" + b"; " * (n // 2) + b"\0\r\n", 1 << 20)),
    "quoted extensions of an answer": lambda n: _no_answer(_coded(b"1" + b';a="b"' * (n // 6) + b"\0\r\n", 1 << 20)),
    "trailers of an answer byte by byte": lambda n: _coded(b"0\r\n" + b"a:b\r\n" * (n // 5)),
    "line feeds in an answer": lambda n: _answer(b"HTTP/1.1 200 OK\n" + b"a:b\n" * (n // 4) + b"Content-Length: 0\n\n"),
    "lengths of an answer": lambda n: _answer(b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 0, 0\r\n" * (n // 22) + b"\r\n"),
    "a list of lengths of an answer": lambda n: _answer(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0," * (n // 2) + b"0\r\n\r\n"),
    "dots in a path": lambda n: lambda: target.read(b"/./%2e//x" * (n // 9)),
    "a path of dots": lambda n: lambda: target.read(b"/." * (n // 2)),
    "a prefix behind dots": lambda n: lambda: target.outbound(
        STRIPPING, ENDPOINT, target.parse(b"/./" * (n // 3) + b"a/b" + b"/.//" * (n // 4)), b"/a/b/"
    ),
    "an answer to be put right": lambda n: _answer(b"HTTP/1.1 200 OK\r\nA : b\r\nX: " + b"a" * n + b"\r\nContent-Length: 0\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_twice_the_bytes_take_twice_the_time(name: str) -> None:
    assert patterns.growth(JOBS[name]) == ""


def test_a_proxy_line_is_refused_at_its_limit() -> None:
    """No more than 107 bytes of it are kept, however it arrives."""
    begun = b"PROXY " + b"a" * 101
    assert proxy_protocol.read(begun[:-1], "auto") is None
    with pytest.raises(BadRequest, match="too long"):
        proxy_protocol.read(begun, "auto")
