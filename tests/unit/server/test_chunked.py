"""The chunked coding: one reading, however the bytes are split, and none for anything odd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest, BodyTooLarge, ClientError, HeaderTooLarge
from gateway.model import ServerLimits
from gateway.server.chunked import ChunkedDecoder

HELLO = b"5\r\nhello\r\n0\r\n\r\n"


def decode(*pieces: bytes, limits: ServerLimits | None = None) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder(limits or ServerLimits())
    return b"".join(decoder.feed(piece) for piece in pieces), decoder


def outcome(*pieces: bytes) -> object:
    """Everything that can be told from outside, or the kind of error."""
    try:
        body, decoder = decode(*pieces)
    except ClientError as error:
        return type(error)
    return body, decoder.done, decoder.rest if decoder.done else None, decoder.trailers


class TestBodies:
    @pytest.mark.parametrize(
        ("coded", "body"),
        [
            (HELLO, b"hello"),
            (b"0\r\n\r\n", b""),
            (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
            (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
            (b"a\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
            (b"0005\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
            (b"5;name\r\nhello\r\n0;a=b;c=\"d \\\" e\"\r\n\r\n", b"hello"),
        ],
    )
    def test_are_decoded(self, coded: bytes, body: bytes) -> None:
        found, decoder = decode(coded)
        assert (found, decoder.done, decoder.rest) == (body, True, b"")

    def test_what_follows_is_the_next_request(self) -> None:
        found, decoder = decode(HELLO + b"GET / HTTP/1.1\r\n")
        assert found == b"hello"
        assert decoder.rest == b"GET / HTTP/1.1\r\n"

    @pytest.mark.parametrize("end", range(len(HELLO)))
    def test_are_not_done_before_the_last_byte(self, end: int) -> None:
        _, decoder = decode(HELLO[:end])
        assert not decoder.done

    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
    def test_any_split_is_the_same(self, chunks: list[bytes], data: st.DataObject) -> None:
        coded = b"".join(b"%x;x=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nT: 1\r\n\r\n"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=8)))
        pieces = [coded[a:b] for a, b in zip([0, *cuts], [*cuts, len(coded)], strict=True)]
        body, decoder = decode(*pieces)
        assert body == b"".join(chunks)
        assert decoder.done
        assert decoder.trailers == [(b"T", b"1")]

    @given(st.data())
    def test_any_split_of_anything_is_the_same(self, data: st.DataObject) -> None:
        parts = st.sampled_from(
            [b"5", b"\r\n", b"\r", b"\n", b"hello", b"0", b";a=b", b"X: y", b" ", b"g", b"\x00", b'"', b"\r\n\r\n"]
        )
        coded = b"".join(data.draw(st.lists(parts, max_size=14)))
        whole = outcome(coded)
        by_one = outcome(*(coded[at : at + 1] for at in range(len(coded))))
        if isinstance(whole, tuple) and whole[1]:
            consumed = len(coded) - len(whole[2])
            by_one = outcome(*(coded[at : at + 1] for at in range(consumed)))
            assert by_one[:2] == whole[:2]
        else:
            assert by_one == whole

    @given(st.binary(max_size=200))
    def test_nothing_but_client_errors(self, junk: bytes) -> None:
        outcome(junk)
        outcome(b"5\r\n" + junk)
        outcome(b"0\r\n" + junk)


SIZES = [
    b"0x5", b"+5", b"-5", b"6_0", b" 5", b"5 ", b"\t5", b"5\t", b"", b"5g", b"g", b"5.0", b"5,5", b"0" * 16 + b"5",
    b"f" * 16, b"f" * 17, b"ffffffffffffffffff", b"5\x00", b"\x005", b"5;", b"5 ;a", b"5; a", b"5;a =b", b"5;a= b",
    b"5;=b",
    b"5;a\x00b", b"5;a\rb", b"5;a\nb", b"5;a=\"b", b"5;;", b"5:a", b"5\x0b", b"\xb25", b"5\r", b"5\xa0", b"0x0",
    b"-0",
]  # fmt: skip


class TestWhatIsRefused:
    @pytest.mark.parametrize("size", SIZES)
    def test_sizes(self, size: bytes) -> None:
        assert outcome(size + b"\r\nhello\r\n0\r\n\r\n") is BadRequest

    @pytest.mark.parametrize("size", SIZES)
    def test_sizes_of_a_second_chunk(self, size: bytes) -> None:
        assert outcome(b"1\r\na\r\n" + size + b"\r\nhello\r\n0\r\n\r\n") is BadRequest

    @pytest.mark.parametrize(
        "coded",
        [
            b"5\nhello\r\n0\r\n\r\n",  # a bare LF behind the size …
            b"5\r\nhello\n0\r\n\r\n",  # … behind the data
            b"5\r\nhello\r\n0\n\r\n",
            b"5\r\nhello\r\n0\r\n\n",
            b"5\rhello\r\n0\r\n\r\n",  # a bare CR
            b"5\r\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\rX0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",  # nothing behind the data
            b"5\r\nhelloX\r\n0\r\n\r\n",  # more data than its size
            b"5\r\nhello world\r\n0\r\n\r\n",
            b"5\r\nhell\r\n0\r\n\r\n",  # less
            b"5\r\nhello\r\n\r\n0\r\n\r\n",
            b"0\r\nX\r\n\r\n",  # trailers that are none
            b"0\r\n: x\r\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\n X: y\r\n\r\n",
            b"0\r\nX: a\r\n b\r\n\r\n",
            b"0\r\nX: a\x00\r\n\r\n",
            b"0\r\nX: a\rb\r\n\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
        ],
    )
    def test_lines(self, coded: bytes) -> None:
        assert outcome(coded) is BadRequest
        assert outcome(*(coded[at : at + 1] for at in range(len(coded)))) is BadRequest

    @pytest.mark.parametrize("part", [b"5\n", b"5\r\nhello\n", b"5\r\nhelloX", b"0\r\nX: y\n", b"5\r\nhello\rX"])
    def test_at_once_though_the_line_is_not_complete(self, part: bytes) -> None:
        assert outcome(part) is BadRequest


class TestTrailers:
    def test_are_kept_apart(self) -> None:
        coded = b"0\r\nHost: evil\r\nContent-Length: 5\r\nEmpty:\r\nX: \t a b \t\r\n\r\n"
        _, decoder = decode(coded)
        assert decoder.done
        assert decoder.trailers == [(b"Host", b"evil"), (b"Content-Length", b"5"), (b"Empty", b""), (b"X", b"a b")]

    def test_are_bounded_in_bytes(self) -> None:
        limits = ServerLimits(header=100)
        line = b"X: " + b"y" * 60 + b"\r\n"
        assert decode(b"0\r\n" + line, limits=limits)[0] == b""
        with pytest.raises(HeaderTooLarge):
            decode(b"0\r\n" + line + line, limits=limits)
        with pytest.raises(HeaderTooLarge):  # before its end has come
            decode(b"0\r\nX: " + b"y" * 100, limits=limits)

    def test_are_bounded_in_number(self) -> None:
        limits = ServerLimits(headers=2)
        assert decode(b"0\r\nA: 1\r\nB: 2\r\n\r\n", limits=limits)[1].done
        with pytest.raises(HeaderTooLarge):
            decode(b"0\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n", limits=limits)


class TestLimits:
    def test_a_body_is_refused_when_its_size_is_announced(self) -> None:
        limits = ServerLimits(body=10)
        assert decode(b"a\r\n0123456789\r\n0\r\n\r\n", limits=limits)[1].done
        with pytest.raises(BodyTooLarge):
            decode(b"b\r\n", limits=limits)
        with pytest.raises(BodyTooLarge):
            decode(b"5\r\nhello\r\n6\r\n", limits=limits)

    def test_extensions_of_one_chunk(self) -> None:
        limits = ServerLimits(chunk_extensions=100)
        assert decode(b"5;" + b"x" * 99 + b"\r\nhello", limits=limits)[0] == b"hello"
        with pytest.raises(BadRequest):
            decode(b"5;" + b"x" * 100 + b"\r\n", limits=limits)
        with pytest.raises(BadRequest):  # before its end has come
            decode(b"5;" + b"x" * 300, limits=limits)

    def test_extensions_of_one_chunk_behind_much_body(self) -> None:
        """They are held until they are whole, and nothing else of a body is."""
        limits = ServerLimits(chunk_extensions=100)
        body = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        assert decode(body + b"5;" + b"x" * 99 + b"\r\nhello", limits=limits)[0] == b"x" * 1000 + b"hello"
        with pytest.raises(BadRequest):
            decode(body + b"5;" + b"x" * 300, limits=limits)

    def test_extensions_may_not_outweigh_the_body(self) -> None:
        limits = ServerLimits(chunk_extensions=100)
        chunk = b"1;" + b"x" * 39 + b"\r\na\r\n"
        assert decode(chunk * 2, limits=limits)[0] == b"aa"
        with pytest.raises(BadRequest):
            decode(chunk * 3, limits=limits)
        signed = b"100;signature=" + b"0" * 60 + b"\r\n" + b"x" * 256 + b"\r\n"
        assert len(decode(signed * 100, limits=limits)[0]) == 25600

    def test_zero_is_no_limit(self) -> None:
        none = ServerLimits(header=0, headers=0, chunk_extensions=0)
        coded = b"5;" + b"x" * 9000 + b"\r\nhello\r\n0\r\n" + b"X: y\r\n" * 9000 + b"\r\n"
        assert decode(coded, limits=none)[1].done
