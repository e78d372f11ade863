"""A body that may be read twice: by hooks through a file, then by the transport."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import ClientClosed
from gateway.http.messages import Request
from gateway.server import kept_body, wsgi_environ
from gateway.server.kept_body import BodyFailed, KeptBody, RawBody


class Arriving:
    """A `RequestBody` of given pieces; an exception among them is raised."""

    complete = False
    expects_continue = True

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = list(pieces)
        self.reads = 0

    def read(self, most: int = 65536) -> bytes:
        self.reads += 1
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


def rest(body: KeptBody, most: int = 65536) -> list[bytes]:
    return list(iter(lambda: body.read(most), b""))


READS: dict[str, Callable[[Any], bytes]] = {
    "nothing": lambda file: b"",
    "one byte": lambda file: file.read(1),
    "across": lambda file: file.read(4),
    "all": lambda file: file.read(),
    "beyond": lambda file: file.read(100) + file.read(100),
    "line": lambda file: file.readline(),
}


@pytest.mark.parametrize("how", list(READS))
@pytest.mark.parametrize("most", [2, 65536])
def test_what_was_read_comes_again(how: str, most: int) -> None:
    body = KeptBody(Arriving(b"abc", b"de\nf", b"ghi"))
    assert b"abcde\nfghi".startswith(READS[how](body.file))
    assert b"".join(rest(body, most)) == b"abcde\nfghi"


def test_nothing_is_read_before_it_is_asked_for() -> None:
    arriving = Arriving(b"abc", b"def")
    body = KeptBody(arriving)
    assert (arriving.reads, body.complete, body.expects_continue) == (0, False, True)
    body.file.read(1)
    assert arriving.reads == 1
    assert body.read() == b"abc"
    assert arriving.reads == 1


@pytest.mark.parametrize("size", [kept_body.IN_MEMORY, kept_body.IN_MEMORY + 1])
def test_large_ones_go_to_a_file(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    body = KeptBody(Arriving(*(data[start : start + 65536] for start in range(0, size, 65536))))
    assert body.file.read() == data
    kept: Any = body._kept
    assert kept._rolled is (size > kept_body.IN_MEMORY)
    assert b"".join(rest(body)) == data
    assert (body._kept, kept.closed) == (None, True)


def test_a_view_keeps_nothing() -> None:
    body = KeptBody(Arriving(b"abc", b"def"))
    assert body.file.read(1) == b"a"
    body.stop()
    assert body.file.read() == b"bcdef"
    assert body._kept is None


def test_a_client_that_leaves_inside_its_body() -> None:
    body = KeptBody(Arriving(b"abc", ClientClosed("reset"), ClientClosed("reset")))
    with pytest.raises(BodyFailed, match="reset"):
        body.file.read()
    assert body.read() == b"abc"
    with pytest.raises(ClientClosed):
        body.read()


class Proxy:
    """As New Relic puts around wsgi.input."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("around", [lambda file: file, Proxy, lambda file: Proxy(Proxy(file))])
def test_a_proxy_around_our_input_is_ours(around: Callable[[Any], Any]) -> None:
    body = Arriving(b"abc")
    request = Request(b"POST", b"/", [], started=0.0, content_length=3, body=body)
    ours = io.BufferedReader(RawBody(body))
    environ = {"gateway.request": request, "gateway.input": ours, "wsgi.input": around(ours), "CONTENT_LENGTH": "3"}
    assert wsgi_environ.request(environ, 0.0, 0).body is body


@pytest.mark.parametrize("around", [lambda file: file, Proxy])
@pytest.mark.parametrize("other", [b"xyz", b""])
def test_another_input_is_not(around: Callable[[Any], Any], other: bytes) -> None:
    body = Arriving(b"abc")
    request = Request(b"POST", b"/", [], started=0.0, content_length=3, body=body)
    environ = {
        "gateway.request": request,
        "gateway.input": io.BufferedReader(RawBody(body)),
        "wsgi.input": around(io.BytesIO(other)),
        "CONTENT_LENGTH": str(len(other)),
    }
    found = wsgi_environ.request(environ, 0.0, 0).body
    assert (b"" if found is None else found.read()) == other
