"""The PROXY protocol, versions 1 and 2: who is really on the other side of a balancer.

Rule: pure. Only the first bytes of a connection are ever looked at, and only when gunicorn's
`proxy_protocol` says so; that the peer is one of `proxy_allow_ips` is the caller's question.
(https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt)
"""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from gateway.errors import BadRequest

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = len(_SIGNATURE) + 4
# "a 108-byte buffer is always enough" for a version 1 line (§2.1), its zero byte included.
_LONGEST_LINE = 107
# Addresses take 216 bytes at most; the rest are TLVs that nobody here reads.
_LONGEST_BINARY = 4096
_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5})")
# Family and transport of version 2 (§2.2). Only TCP's addresses are used. The others must be accepted and mean
# UNSPEC (0): UDP over IPv4 and IPv6, UNIX stream and datagram.
_INET, _INET6 = 0x11, 0x21
_UNUSED_FAMILIES = frozenset({0x12, 0x22, 0x31, 0x32})


class Preamble(NamedTuple):
    """What stood before the first request. `peer` None: address and port of the connection itself count (a health
    check of the balancer, a family without them, or no PROXY header at all)."""

    length: int
    peer: str | None
    port: int = 0


def read(data: bytes | bytearray, mode: str) -> Preamble | None:
    """Read a preamble at the beginning of `data`; None when more bytes are needed.

    `mode` is gunicorn's: v1, v2 or auto. No preamble is allowed, as it is there.
    """
    if mode in ("v2", "auto") and _begins(data, _SIGNATURE):
        return _binary(data)
    if mode in ("v1", "auto") and _begins(data, b"PROXY "):
        return _line(data)
    return Preamble(0, None)


def _begins(data: bytes | bytearray, mark: bytes) -> bool:
    """Whether `data` begins with `mark`, or may still do so with more bytes."""
    return data.startswith(mark) or mark.startswith(data)


def _line(data: bytes | bytearray) -> Preamble | None:
    end = data.find(b"\r\n", 0, _LONGEST_LINE + 1)
    if end < 0 and len(data) < _LONGEST_LINE:
        return None
    if end < 0 or end > _LONGEST_LINE - 2:
        raise BadRequest("PROXY line too long")
    line = bytes(data[:end])
    if line.startswith(b"PROXY UNKNOWN"):
        return Preamble(end + 2, None)
    found = _LINE.fullmatch(line)
    if found is None or int(found[4]) > 65535 or int(found[5]) > 65535:
        raise BadRequest(f"PROXY line {line!r}")
    family = socket.AF_INET if found[1] == b"TCP4" else socket.AF_INET6
    for address in (found[2], found[3]):
        try:
            socket.inet_pton(family, address.decode("latin-1"))
        except OSError as error:
            raise BadRequest(f"PROXY line {line!r}") from error
    return Preamble(end + 2, found[2].decode("ascii"), int(found[4]))


def _binary(data: bytes | bytearray) -> Preamble | None:
    if len(data) < _FIXED:
        return None
    version_command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    if version_command >> 4 != 2 or length > _LONGEST_BINARY:
        raise BadRequest("PROXY header of an unknown version or size")
    if len(data) < _FIXED + length:
        return None
    command = version_command & 0x0F
    if command == 0:  # LOCAL: the balancer speaks for itself
        return Preamble(_FIXED + length, None)
    if command != 1:
        raise BadRequest(f"PROXY command {command}")
    # Both addresses, then both ports.
    block = data[_FIXED : _FIXED + length]
    if family == _INET and length >= 12:
        peer, port = socket.inet_ntop(socket.AF_INET, block[:4]), block[8:10]
        return Preamble(_FIXED + length, peer, int.from_bytes(port, "big"))
    if family == _INET6 and length >= 36:
        peer, port = socket.inet_ntop(socket.AF_INET6, block[:16]), block[32:34]
        return Preamble(_FIXED + length, peer, int.from_bytes(port, "big"))
    if family >> 4 == 0 or family in _UNUSED_FAMILIES:  # UNSPEC
        return Preamble(_FIXED + length, None)
    raise BadRequest(f"PROXY address family {family:#x}")
