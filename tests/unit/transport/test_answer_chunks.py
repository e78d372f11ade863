"""The chunked coding of answers: whatever is split how, the same result; what requests may send, answers may as well."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import BadResponse, ClientError
from gateway.model import ServerLimits
from gateway.server.chunked import ChunkedDecoder
from gateway.transport.chunks import AnswerChunks
from tests.long import times

TELLING = [
    b"0", b"1", b"2", b"5", b"a", b"0\r\n\r\n", b"1\r\nx\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b";", b"; ", b"=", b"a=b", b'"', b'"x"',
    b"\\", b"A: b", b":", b"hello", b"\0", b"\xe9",
]  # fmt: skip
wires = st.lists(st.sampled_from(TELLING), max_size=14).map(b"".join)

Result = tuple[bytes, int] | str


def decoded(wire: bytes, size: int = 1 << 20, limit: int = 0) -> Result:
    """Body and the bytes behind it; "more" or "error" for an unfinished or a bad one."""
    decoder = AnswerChunks(limit)
    pieces: list[bytes] = []
    for at in range(0, len(wire), size):
        try:
            surplus = decoder.feed(wire[at : at + size], pieces)
        except BadResponse:
            return "error"
        if decoder.done:
            return b"".join(pieces), len(wire[at + size :]) + surplus
    assert all(pieces), "an empty piece would pass for the end"
    return "more"


def strictly(wire: bytes) -> Result:
    """The same by the decoder of requests."""
    decoder = ChunkedDecoder(ServerLimits())
    try:
        body = decoder.feed(wire)
    except ClientError:
        return "error"
    return (body, len(decoder.rest)) if decoder.done else "more"


@given(wires, st.integers(1, 9))
@settings(max_examples=times(500), deadline=None)
@example(b"1 \r\nx\r\n0\r\n\r\n", 1)
@example(b'1;a="\n"\r\n', 3)
def test_however_it_is_split(wire: bytes, size: int) -> None:
    whole = decoded(wire)
    split = decoded(wire, size)
    # The beginning of a bad line may be enough to reject it, or not yet.
    assert split == whole or {split, whole} == {"more", "error"}
    if whole not in ("more", "error"):
        assert split == whole


@given(wires)
@settings(max_examples=times(500), deadline=None)
def test_what_requests_may_send(wire: bytes) -> None:
    strict = strictly(wire)
    if strict not in ("error", "more"):
        assert decoded(wire) == strict


@given(wires)
@settings(max_examples=times(500), deadline=None)
def test_blanks_are_all_that_is_tolerated(wire: bytes) -> None:
    """A body without blanks and empty extensions is one that requests may send, too."""
    found = decoded(wire)
    if found in ("error", "more"):
        return
    assert isinstance(found, tuple)
    lines = wire[: len(wire) - found[1]].split(b"\r\n")
    if all(re.fullmatch(rb"[^; \t]*(;[^; \t]+)*", line) for line in lines):
        assert strictly(wire) == found


def test_limits_hold_before_the_end_of_a_line() -> None:
    assert decoded(b"1;" + b"a" * 50, limit=100) == "more"
    assert decoded(b"1;" + b"a" * 100, limit=100) == "error"
    assert decoded(b"1;" + b"a" * 100 + b"\r\n", limit=100) == "error"
    assert decoded(b"0\r\n" + b"A: b\r\n" * 16, limit=100) == "more"
    for size in (1, 5, 1000):
        assert decoded(b"0\r\n" + b"A: b\r\n" * 17, size, limit=100) == "error"
    many = b"1;" + b"a" * 90 + b"\r\nx\r\n"
    assert decoded(many * 50 + b"0\r\n\r\n", limit=100) == (b"x" * 50, 0)
