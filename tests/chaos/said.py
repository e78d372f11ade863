"""What an instance answers to a request: known to both sides, byte by byte, from who answers and the request's id.

Rule: no two requests of a run have the same answer, so that one which got another's is found out.
"""

from __future__ import annotations

import zlib

# What a GET fetches, and the pieces that a stream comes in.
GET_SIZE = 1024
PIECES = 8
PIECE_SIZE = 4096

OWN_FAILURE = 500


def _filled(ident: str, size: int) -> bytes:
    word = f"{ident};".encode()
    return (word * (size // len(word) + 1))[:size]


def upload(ident: str) -> bytes:
    """The body of a POST: some hundred bytes up to a few thousand."""
    return _filled(ident, 200 + zlib.crc32(ident.encode()) % 3000)


def pieces(instance: str, ident: str) -> list[bytes]:
    """The pieces of a streamed download."""
    return [f"{instance} {ident}\n".encode(), *(_filled(f"{ident}/{number}", PIECE_SIZE) for number in range(PIECES))]


def to_upload(instance: str, ident: str, body: bytes) -> bytes:
    return f"{instance} {ident} took {len(body)} {zlib.crc32(body)}\n".encode()


def failure(instance: str, ident: str) -> bytes:
    """The body of an instance's own 500."""
    return f"{instance} {ident} failed\n".encode()


def answer(kind: str, instance: str, ident: str, status: int = 200) -> bytes:
    """The whole body that a client has to get."""
    if status == OWN_FAILURE:
        return failure(instance, ident)
    if kind == "stream":
        return b"".join(pieces(instance, ident))
    if kind == "post":
        return to_upload(instance, ident, upload(ident))
    return f"{instance} {ident}\n".encode() + _filled(ident, GET_SIZE)
