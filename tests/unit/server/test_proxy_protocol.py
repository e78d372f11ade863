"""The PROXY protocol's two versions, whole, in parts, and wrong."""

from __future__ import annotations

import socket

import pytest

from gateway.errors import BadRequest
from gateway.server.proxy_protocol import Preamble, read

REQUEST = b"GET / HTTP/1.1\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def binary(command: int, family: int, addresses: bytes, version: int = 2) -> bytes:
    return SIGNATURE + bytes([version << 4 | command, family]) + len(addresses).to_bytes(2, "big") + addresses


PORT = 12345
V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + b"\x30\x39\x01\xbb"
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + b"\x30\x39\x01\xbb"

GOOD = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    (binary(1, 0x11, V4), "192.0.2.7"),
    (binary(1, 0x11, V4 + b"\x04\x00\x03abc"), "192.0.2.7"),
    (binary(1, 0x21, V6), "2001:db8::7"),
    (binary(0, 0x00, b""), None),
    (binary(0, 0x11, V4), None),
    (binary(1, 0x00, b""), None),
    # Valid families that are not TCP: as if they were UNSPEC (§2.2).
    (binary(1, 0x12, V4), None),
    (binary(1, 0x22, V6), None),
    (binary(1, 0x31, b"x" * 216), None),
    (binary(1, 0x32, b"x" * 216), None),
    (binary(1, 0x12, b""), None),
]


@pytest.mark.parametrize(("raw", "peer"), GOOD)
def test_whole(raw: bytes, peer: str | None) -> None:
    assert read(raw + REQUEST, "auto") == Preamble(len(raw), peer, PORT if peer else 0)


@pytest.mark.parametrize("raw", [raw for raw, _ in GOOD])
def test_in_parts(raw: bytes) -> None:
    assert all(read(raw[:end], "auto") is None for end in range(1, len(raw)))


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
def test_none_is_allowed(mode: str) -> None:
    assert read(REQUEST, mode) == Preamble(0, None)


def test_only_the_version_that_is_spoken() -> None:
    assert read(GOOD[0][0], "v2") == Preamble(0, None)
    assert read(GOOD[4][0], "v1") == Preamble(0, None)


@pytest.mark.parametrize(
    "raw",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 12345\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 65536\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 443\r\n",
        b"PROXY TCP4 192.0.2.777 192.0.2.1 1 443\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1 443\r\n",
        b"PROXY TCP4  192.0.2.7 192.0.2.1 1 443\r\n",
        b"PROXY TCP4 192.0.2.7\0 192.0.2.1 1 443\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 1 443\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY UNKNOWN " + b"1" * 200 + b"\r\n",
        binary(1, 0x11, V4[:11]),
        binary(1, 0x21, V6[:35]),
        binary(2, 0x11, V4),
        binary(1, 0x11, V4, version=1),
        binary(1, 0x13, V4),
        binary(1, 0x41, V4),
        binary(1, 0x30, V4),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_wrong(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read(raw, "auto")
