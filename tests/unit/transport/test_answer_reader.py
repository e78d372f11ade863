"""AnswerReader: what llhttp and we make of an upstream's bytes, fed piece by piece, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadResponse
from gateway.http import request_head
from gateway.http.messages import Response
from gateway.model import AnswerLimits
from gateway.testing import answer, chunk, chunked, head
from gateway.transport.answer import PIECE, AnswerReader
from tests.long import times

CHUNKED = b"Transfer-Encoding: chunked"
OK = b"HTTP/1.1 200 OK\r\n"


class Script:
    """Stands in for a Stream: gives one piece a `recv`, then the end."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.limits: list[float | None] = []
        self.sizes: list[int] = []

    def recv(self, size: int, timeout: float | None) -> bytes:
        self.limits.append(timeout)
        self.sizes.append(size)
        return self.pieces.pop(0) if self.pieces else b""


class Read:
    """One answer read from pieces to its end."""

    READER = AnswerReader

    def __init__(self, *pieces: bytes, method: bytes = b"GET", limits: AnswerLimits | None = None) -> None:
        self.stream = Script(*pieces)
        self.reader = self.READER(self.stream)  # type: ignore[arg-type]
        self.interim: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        self.next(method, limits or AnswerLimits())

    def next(self, method: bytes = b"GET", limits: AnswerLimits | None = None) -> None:
        """The answer to the next request over the same connection."""
        reader = self.reader
        reader.begin(limits or AnswerLimits())
        self.judged = reader.read_head(method == b"HEAD", lambda *seen: self.interim.append(seen), b"")
        self.body = b""
        while piece := reader.read_body(None):
            self.body += piece

    @property
    def told(self) -> tuple[int, bytes, bool]:
        return self.reader.status, self.body, self.reader.persistent


def fields(read: Read) -> list[tuple[bytes, bytes]]:
    """What goes on to the client, however it was kept."""
    return Response(200, b"", read.judged.headers, block=read.judged.block).headers


def split(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


WHOLE = [
    (answer(b"hello"), (200, b"hello", True)),
    (answer(), (200, b"", True)),
    (answer(b"hello", b"Connection: close"), (200, b"hello", False)),
    (answer(b"hello", b"Connection: x, Close"), (200, b"hello", False)),
    (head(200, CHUNKED) + chunked(b"hel", b"lo"), (200, b"hello", True)),
    (head(200, CHUNKED) + chunked(b"a" * 300), (200, b"a" * 300, True)),
    (head(200, CHUNKED) + chunked(), (200, b"", True)),
    (head(200, CHUNKED) + chunked(b"x", trailers=[b"T: 1"]), (200, b"x", True)),
    (head(200, CHUNKED) + b"5;ext=1;q=\"a\"\r\nhello\r\n0\r\n\r\n", (200, b"hello", True)),
    (head(204), (204, b"", True)),
    (head(204, b"Content-Length: 5"), (204, b"", True)),
    (head(304, b"Content-Length: 5"), (304, b"", True)),
    (head(304, CHUNKED), (304, b"", True)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", (200, b"hi", False)),
    (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", (200, b"hi", True)),
    (head(999, b"Content-Length: 2", reason=b"") + b"hi", (999, b"hi", True)),
    (head(100) + answer(b"hi"), (200, b"hi", True)),
    (head(103, b"Link: </a>") + head(102) + head(103, b"Link: </b>") + answer(b"hi"), (200, b"hi", True)),
]


@pytest.mark.parametrize(("data", "told"), WHOLE)
def test_whole_answers(data, told):
    assert Read(data).told[:2] == told[:2]


@pytest.mark.parametrize(("data", "told"), WHOLE)
def test_whole_answers_byte_by_byte(data, told):
    assert Read(*split(data)).told == told


@pytest.mark.parametrize(("data", "told"), [one for one in WHOLE if one[1][2]])
def test_two_on_one_connection_however_they_are_cut(data, told):
    for at in range(1, len(data)):
        read = Read(data[:at], data[at:], answer(b"next"))
        assert read.told == told, at
        read.next()
        assert read.told == (200, b"next", True)


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
@settings(max_examples=times(150))
def test_any_chunks_in_any_pieces(pieces, data):
    wire = head(200, CHUNKED) + chunked(*[piece for piece in pieces if piece])
    cuts = sorted(data.draw(st.lists(st.integers(1, len(wire) - 1), max_size=8)))
    parts = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if a < b]
    assert Read(*parts).told == (200, b"".join(pieces), True)


def test_until_the_end_of_the_connection():
    assert Read(head(200), b"hel", b"lo").told == (200, b"hello", False)
    assert Read(b"HTTP/1.0 200 OK\r\n\r\nhello").told == (200, b"hello", False)


REFUSED = {
    "no HTTP": b"hello world\r\n\r\n",
    "HTTP/0.9": b"<html></html>",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.9": b"HTTP/1.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status under 100": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "bell in the reason": b"HTTP/1.1 200 O\x07K\r\nContent-Length: 0\r\n\r\n",
    "a line feed in a folded line": OK + b"A: b\n c\nContent-Length: 0\n\n",
    "a line feed behind two returns": OK + b"A: b\r\r\nContent-Length: 0\r\n\r\n",
    "CR in a value": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": OK + b"A: b\0c\r\nContent-Length: 0\r\n\r\n",
    "folded line": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "folded Content-Length": OK + b"Content-Length: 1\r\n\t0\r\n\r\n",
    "no colon": OK + b"Abc\r\nContent-Length: 0\r\n\r\n",
    "no name": OK + b": x\r\nContent-Length: 0\r\n\r\n",
    "space in a name": OK + b"Bad Name: x\r\nContent-Length: 0\r\n\r\n",
    "space before the first name": OK + b" X: y\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of two lengths": OK + b"Content-Length: 3, 4\r\n\r\nabcd",
    "a list with an empty length": OK + b"Content-Length: 3,\r\n\r\nabc",
    "lengths in a list and a line": OK + b"Content-Length: 3, 3\r\nContent-Length: 4\r\n\r\nabcd",
    "lengths of one value and two spellings": OK + b"Content-Length: 3, 03\r\n\r\nabc",
    "the same bad length twice": OK + b"Content-Length: +3, +3\r\n\r\nabc",
    "the same endless length twice": OK + b"Content-Length: 9999999999999999999, 9999999999999999999\r\n\r\nabc",
    "signed length": OK + b"Content-Length: +3\r\n\r\nabc",
    "negative length": OK + b"Content-Length: -3\r\n\r\nabc",
    "empty length": OK + b"Content-Length:\r\n\r\nabc",
    "hexadecimal length": OK + b"Content-Length: 0x3\r\n\r\nabc",
    "endless length": OK + b"Content-Length: 99999999999999999999\r\n\r\nabc",
    "two lengths and chunked": OK + b"Content-Length: 3, 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad length and chunked": OK + b"Content-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length and an unknown coding": OK + b"Content-Length: 3\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "a length and two codings": OK + b"Content-Length: 3\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a length and chunked under HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": OK + b"Transfer-Encoding: foo\r\n\r\nabc",
    "coding beside chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "nearly chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nabc",
    "chunked under HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size of letters": head(200, CHUNKED) + b"zz\r\nabc\r\n0\r\n\r\n",
    "chunk size with 0x": head(200, CHUNKED) + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with a sign": head(200, CHUNKED) + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size behind a space": head(200, CHUNKED) + b" 3\r\nabc\r\n0\r\n\r\n",
    "chunk size with a space inside": head(200, CHUNKED) + b"3 3\r\nabc\r\n0\r\n\r\n",
    "chunk size with a return": head(200, CHUNKED) + b"3\r\r\nabc\r\n0\r\n\r\n",
    "no chunk size": head(200, CHUNKED) + b";a\r\nabc\r\n0\r\n\r\n",
    "an extension without a name": head(200, CHUNKED) + b"3;=a\r\nabc\r\n0\r\n\r\n",
    "an extension without a value": head(200, CHUNKED) + b"3;a=\r\nabc\r\n0\r\n\r\n",
    "an extension with an open quote": head(200, CHUNKED) + b'3;a="b\r\nabc\r\n0\r\n\r\n',
    "two words in an extension": head(200, CHUNKED) + b"3;a b\r\nabc\r\n0\r\n\r\n",
    "a NUL in an extension": head(200, CHUNKED) + b"3;a\0\r\nabc\r\n0\r\n\r\n",
    "a space before a chunk's line end": head(200, CHUNKED) + b"3\r\nabc \r\n0\r\n\r\n",
    "a chunk ended by a line feed": head(200, CHUNKED) + b"3\r\nabc\n0\r\n\r\n",
    "a trailer ended by a line feed": head(200, CHUNKED) + b"3\r\nabc\r\n0\r\nA: b\n\r\n",
    "a body ended by a line feed": head(200, CHUNKED) + b"3\r\nabc\r\n0\r\n\n",
    "a trailer without a colon": head(200, CHUNKED) + b"3\r\nabc\r\n0\r\nA\r\n\r\n",
    "a folded trailer": head(200, CHUNKED) + b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "chunk size beyond 64 bits": head(200, CHUNKED) + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk longer than its size": head(200, CHUNKED) + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk line ended by a line feed": head(200, CHUNKED) + b"3\nabc\r\n0\r\n\r\n",
    "interim with a body": b"HTTP/1.1 104 X\r\nContent-Length: 3\r\n\r\nabc" + answer(b"hi"),
    "101 without a protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\nabc",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_malformed_answers_are_refused(data):
    with pytest.raises((BadResponse, EOFError)) as seen:
        Read(data)
    assert isinstance(seen.value, BadResponse)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_malformed_answers_are_refused_byte_by_byte(data):
    with pytest.raises(BadResponse):
        Read(*split(data))


CUT = {
    "inside a length": head(200, b"Content-Length: 10") + b"hello",
    "before the last chunk": head(200, CHUNKED) + chunk(b"hello"),
    "inside a chunk": head(200, CHUNKED) + b"a\r\nhello",
    "after the last chunk's size": head(200, CHUNKED) + chunk(b"hello") + b"0\r\n",
    "inside the trailers": head(200, CHUNKED) + chunk(b"hello") + b"0\r\nT: 1\r\n",
}


@pytest.mark.parametrize("data", CUT.values(), ids=CUT)
def test_a_cut_body_is_not_whole(data):
    for pieces in ([data], split(data)):
        with pytest.raises(EOFError):
            Read(*pieces)


@pytest.mark.parametrize("data", [OK + b"A: b\r\n", b"HTTP/1.1 2", head(103)])
def test_a_cut_head_is_no_answer(data):
    with pytest.raises(EOFError):
        Read(data)


SPACED = b"HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length \t: 5\r\nX-B: 2\r\n\r\nhello"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 1000])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_white_space_before_a_colon_is_removed(size, method):
    """RFC 9112 §5.1."""
    data = SPACED if method == b"GET" else SPACED[:-5]
    read = Read(*[data[at : at + size] for at in range(0, len(data), size)], method=method)
    assert (b"X-A", b"1") in read.judged.headers
    assert (b"X-B", b"2") in read.judged.headers
    assert read.judged.content_length == 5
    assert read.body == (b"hello" if method == b"GET" else b"")


def test_a_spaced_transfer_encoding_frames_the_body():
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n" + chunked(b"hello", b" : x")
    assert Read(data).body == b"hello : x"
    assert Read(*split(data)).body == b"hello : x"


TOLERATED = {
    "blanks behind a size": (head(200, CHUNKED) + b"3 \r\nabc\r\n2\t \t\r\nde\r\n0  \r\n\r\n", True),
    "blanks around an extension": (head(200, CHUNKED) + b"5 ; a = b ;\tc;d = \"x;\\\" y\" \r\nabcde\r\n0 ; a\r\n\r\n", True),
    "empty extensions": (head(200, CHUNKED) + b"5;\r\nabcde\r\n0;; ;a;\r\n\r\n", True),
    "the same length twice": (OK + b"Content-Length: 5\r\nX: y\r\nContent-length: 5\r\n\r\nabcde", True),
    "a list of lengths": (OK + b"Content-Length: 5, 5 ,5\r\n\r\nabcde", True),
    "lists in lines": (OK + b"Content-Length: 5,5\r\nContent-Length : 5\r\n\r\nabcde", True),
    "length, then chunked": (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", False),
    "chunked, then length": (OK + b"Transfer-Encoding: Chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", False),
    "chunked and a list of lengths": (OK + b"Content-Length: 3, 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", False),
    "line feeds alone": (b"HTTP/1.1 200 OK\nX: y\nContent-Length: 5\n\nabcde", False),
    "one line feed alone": (OK + b"X: y\nContent-Length: 5\r\n\r\nabcde", False),
    "a line feed behind the status": (b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nabcde", False),
    "a line feed at the end of the head": (OK + b"Content-Length: 5\r\n\nabcde", False),
    "a line feed before the end of the head": (OK + b"Content-Length: 5\n\r\nabcde", False),
    "line feeds, then chunks": (b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\r\nabcde\r\n0\r\n\r\n", False),
    "line feeds in an interim answer": (b"HTTP/1.1 103 E\nX: z\n\n" + answer(b"abcde"), False),
    "an unusual head behind an interim answer": (head(102) + b"HTTP/1.1 200 OK\nContent-Length: 5, 5\n\nabcde", False),
    "all at once": (b"HTTP/1.1 200 OK\nTransfer-Encoding : chunked\r\nContent-Length : 7,7\n\r\n5 ;\r\nabcde\r\n0\r\n\r\n", False),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("data", "kept"), TOLERATED.values(), ids=TOLERATED)
def test_what_other_proxies_accept(data, kept, size):
    read = Read(*[data[at : at + size] for at in range(0, len(data), size)])
    assert read.told == (200, b"abcde", kept)
    assert fields(read) in ([], [(b"X", b"y")])


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("size", [1, 1000])
def test_unusual_heads_without_a_body(method, size):
    status = 200 if method == b"HEAD" else 204
    for lines, kept in (
        (b"Content-Length: 5, 5\r\n", True),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", False),
        (b"X: y\n", False),
    ):
        data = b"HTTP/1.1 %d X\r\n%b\r\n" % (status, lines)
        read = Read(*[data[at : at + size] for at in range(0, len(data), size)], method=method)
        assert read.told == (status, b"", kept)


def test_line_ends_of_a_body_are_no_head():
    data = head(200, b"Content-Length: 7") + b"\n\na\r\n\r\n"
    for pieces in ([data], split(data)):
        assert Read(*pieces).told == (200, b"\n\na\r\n\r\n", True)


def test_a_page_is_refused_at_once():
    """What does not begin as an answer is not waited for, whatever its line ends."""
    reader = AnswerReader(Script(b"<html>\n", b"never read"))  # type: ignore[arg-type]
    with pytest.raises(BadResponse):
        reader.read_head(False, None, b"")


def test_a_bad_head_that_breaks_off_is_no_short_one():
    with pytest.raises(BadResponse):
        Read(OK + b"Content-Length: 5, 5\r\nX: \0\r\n")


SURPLUS = [
    answer(b"hello") + answer(b"stolen"),
    answer(b"hello") + b"x",
    answer(b"hello") + b"\r\n",
    head(200, CHUNKED) + chunked(b"hello") + answer(b"stolen"),
    head(200, CHUNKED) + chunked(b"hello") + b"\0",
    head(200, CHUNKED) + chunked(b"hello") + b"\r\n",
    answer(b"hello") + answer(b"stolen") + answer(b"stolen too"),
]


@pytest.mark.parametrize("data", SURPLUS)
def test_what_follows_an_answer_is_nobodys(data):
    read = Read(data)
    assert read.told == (200, b"hello", False)


def test_what_follows_a_long_answer_is_nobodys():
    read = Read(head(200, b"Content-Length: 10") + b"hello", b"world" + answer(b"stolen"))
    assert read.told == (200, b"helloworld", False)


@pytest.mark.parametrize("status", [204, 304])
def test_a_body_where_none_may_be(status):
    read = Read(head(status, b"Content-Length: 5") + b"hello")
    assert read.told == (status, b"", False)


HEADS = [b"Content-Length: 12", CHUNKED, b"X: nothing told"]


@pytest.mark.parametrize("line", HEADS)
def test_answers_to_head_have_no_body(line):
    read = Read(*split(head(200, line)), method=b"HEAD")
    assert read.told == (200, b"", True)
    read.stream.pieces = [answer(b"next")]
    read.next()
    assert read.told == (200, b"next", True)


@pytest.mark.parametrize("line", HEADS)
def test_a_body_sent_to_head_spoils_the_connection(line):
    assert Read(head(200, line) + b"hello", method=b"HEAD").told == (200, b"", False)


def test_answers_to_head_keep_to_the_rules():
    assert not Read(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", method=b"HEAD").reader.persistent
    assert not Read(head(200, b"Connection: close"), method=b"HEAD").reader.persistent
    with pytest.raises(BadResponse):
        Read(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n", method=b"HEAD")
    read = Read(*split(head(103, b"Link: </a>") + head(200, b"Content-Length: 3")), method=b"HEAD")
    assert read.told == (200, b"", True)
    assert read.interim == [(103, [(b"Link", b"</a>")])]


@pytest.mark.parametrize("pieces", [1, 1000])
def test_interim_answers_in_order_and_apart(pieces):
    data = head(103, b"Link: </a>") + head(102) + head(103, b"Link: </a>", b"Link: </b>") + answer(b"x", b"X: y")
    read = Read(*[data[at : at + pieces] for at in range(0, len(data), pieces)])
    assert read.interim == [
        (103, [(b"Link", b"</a>")]),
        (102, []),
        (103, [(b"Link", b"</a>"), (b"Link", b"</b>")]),
    ]
    assert read.judged.headers == [(b"X", b"y")]


@pytest.mark.parametrize("one_packet", [True, False])
def test_interim_answers_without_end(one_packet):
    many = [head(102)] * 101 + [answer(b"x")]
    with pytest.raises(BadResponse, match="interim"):
        Read(b"".join(many)) if one_packet else Read(*many)
    assert Read(*many[1:]).body == b"x"


def test_trailers_are_not_headers():
    data = head(200, CHUNKED, b"Trailer: X-T") + chunked(b"x", trailers=[b"X-T: 1", b"Content-Type: text/evil"])
    for pieces in ([data], split(data)):
        assert Read(*pieces).judged.headers == []  # Trailer goes with them


def test_values_lose_the_white_space_round_them_alone():
    read = Read(OK + b"A:\t b c \t\r\nEmpty:\r\nBytes: \x85x\xa0\r\nContent-Length: 0\r\n\r\n")
    assert read.judged.headers == [(b"A", b"b c"), (b"Empty", b""), (b"Bytes", b"\x85x\xa0")]


class TestLimits:
    SMALL = AnswerLimits(header=1000, headers=10)

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_bytes_of_a_head(self, method):
        def of(size):
            return head(200, b"X: " + b"a" * size, b"Content-Length: 0")

        inside = 1000 - sum(len(line) for line in (b"X: \r\n", b"Content-Length: 0\r\n"))
        Read(of(inside), method=method, limits=self.SMALL)
        for pieces in ([of(inside + 1)], split(of(inside + 40))):
            with pytest.raises(BadResponse, match="larger"):
                Read(*pieces, method=method, limits=self.SMALL)

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_number_of_lines(self, method):
        lines = [b"A: b"] * 9
        Read(head(200, b"Content-Length: 0", *lines), method=method, limits=self.SMALL)
        with pytest.raises(BadResponse, match="fields"):
            Read(head(200, b"Content-Length: 0", *lines, b"A: b"), method=method, limits=self.SMALL)

    def test_a_head_without_end(self):
        with pytest.raises(BadResponse, match="larger"):
            Read(OK, *[b"A: b\r\n"] * 1000, limits=self.SMALL)
        with pytest.raises(BadResponse, match="larger"):
            Read(OK + b"X: ", *[b"a" * 100] * 100, limits=self.SMALL)

    def test_the_body_is_no_head(self):
        assert len(Read(answer(b"x" * 5000), limits=self.SMALL).body) == 5000

    def test_null_is_no_limit(self):
        read = Read(head(200, *[b"A: " + b"b" * 100] * 2000, b"Content-Length: 0"), limits=AnswerLimits(0, 0))
        assert len(fields(read)) == 2000

    @pytest.mark.parametrize("endless", [b"5;" + b"x" * 2000, chunk(b"a") + b"0\r\n" + b"T: x\r\n" * 400])
    def test_chunk_extensions_and_trailers(self, endless):
        pieces = [endless[at : at + 100] for at in range(0, len(endless), 100)]
        with pytest.raises(BadResponse, match="extensions or trailers"):
            Read(head(200, CHUNKED), *pieces, limits=self.SMALL)

    def test_many_small_chunks_are_a_body(self):
        read = Read(head(200, CHUNKED), *[chunk(b"a")] * 3000, chunked(), limits=self.SMALL)
        assert len(read.body) == 3000


class TestBuffers:
    """A read asks for what is to come of the body, and one byte more, which would be too many."""

    def test_no_larger_than_what_is_to_come(self):
        read = Read(head(200, b"Content-Length: 100"), b"x" * 60, b"y" * 40)
        assert read.stream.sizes[1:] == [101, 41]
        assert read.told == (200, b"x" * 60 + b"y" * 40, True)

    def test_nor_than_what_is_wanted(self):
        stream = Script(head(200, b"Content-Length: 100"), b"x" * 50, b"y" * 50)
        reader = AnswerReader(stream)  # type: ignore[arg-type]
        reader.read_head(False, None, b"")
        assert reader.read_body(None, 100) + reader.read_body(None, 99) == b"x" * 50 + b"y" * 50
        assert stream.sizes[1:] == [100, 51]

    @pytest.mark.parametrize("coded", [CHUNKED, b"X: y"])
    def test_what_is_to_come_may_not_be_known(self, coded):
        read = Read(head(200, coded), *([chunked(b"x")] if coded == CHUNKED else [b"x"]))
        assert set(read.stream.sizes[1:]) == {PIECE}
        assert read.body == b"x"

    def test_the_one_too_many(self):
        read = Read(head(200, b"Content-Length: 4"), b"ab", b"cde")
        assert read.told == (200, b"abcd", False)
        assert read.stream.sizes[2] == 3


class TestClock:
    def test_the_limit_is_for_the_whole_head(self):
        stream = Script(*split(answer(b"x")))
        reader = AnswerReader(stream)  # type: ignore[arg-type]
        reader.limit(100.0, None)
        reader.read_head(False, None, b"")
        given = [limit for limit in stream.limits if limit is not None]
        assert len(given) == len(stream.limits)
        assert given == sorted(given, reverse=True)
        assert given[0] > given[-1]

    def test_bytes_that_keep_coming_do_not_stop_it(self):
        reader = AnswerReader(Script(*split(answer(b"x"))))  # type: ignore[arg-type]
        reader.limit(0.0, None)
        with pytest.raises(TimeoutError):
            reader.read_head(False, None, b"")

    def test_the_deadline_wins_when_it_is_sooner(self):
        reader = AnswerReader(Script())  # type: ignore[arg-type]
        reader.limit(100.0, 0.0)
        assert reader.left == 0.0
        reader.limit(None, None)
        assert reader.left is None


class TestUsualHeads:
    """A usual head is read by a table of lines. Whatever that reads, the parser would have read the same."""

    class ByParser(Read):
        class READER(AnswerReader):
            def _usual(self, data: bytes, hop: bytes) -> None:
                return None

    @staticmethod
    def story(by: type[Read], data: bytes) -> object:
        try:
            read = by(data)
        except (BadResponse, EOFError) as error:
            return type(error)
        told = read.reader.status, read.reader.reason, read.body, read.reader.persistent
        return told, fields(read), read.judged._replace(headers=[], block=b"")

    def agree(self, data: bytes) -> None:
        parsed = self.story(self.ByParser, data)
        # The second time every line is known.
        assert self.story(Read, data) == parsed
        assert self.story(Read, data) == parsed

    @pytest.mark.parametrize(
        "line",
        [
            b"X: y",
            b"X:y",
            b"X:  y",
            b"X: y ",
            b"X: ",
            b"X:",
            b"X : y",
            b": y",
            b"X",
            b"X: a\x00b",
            b"X: a\rb",
            b"X: a\nb",
            b"X: a\x7fb",
            b"X: \xe9",
            b"X: a\tb",
            b" X: y",
            b"X\xe9: y",
            b"Content-Length: 5",
            b"Content-Length: 4",
            b"content-length: 5",
            b"Content-Length: +5",
            b"Content-Length: 5, 5",
            b"Content-Length: 5555555555555555555555",
            b"Transfer-Encoding: chunked",
            b"transfer-encoding: Chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Connection: keep-alive",
            b"Connection: close",
            b"Connection: X-Gone",
            b"Connection: upgrade",
            b"Keep-Alive: timeout=5",
            b"Keep-Alive: timeout=5, max=100",
            b"Keep-Alive: max=100",
            b"Keep-Alive: 5",
            b"Via: 1.1 other",
            b"Gateway-Error: no_endpoint",
            b"Upgrade: h2c",
            b"Trailer: X",
            b"Proxy-Connection: close",
            b"WWW-Authenticate: NTLM",
            b"WWW-Authenticate: Basic",
            b"Date: Sun, 22 Nov 2026 19:12:10 GMT",
        ],
    )
    @pytest.mark.parametrize("length", [[], [b"Content-Length: 5"]])
    @pytest.mark.parametrize("body", [b"", b"hell", b"hello", b"hello\r\n", b"hello\r\n\r\n", b"hello!",
                                      b"5\r\nhello\r\n0\r\n\r\n", b"5 ;\r\nhello\r\n0\r\nT: x\r\n\r\n!", b"5\r\nhel"])  # fmt: skip
    def test_lines(self, line: bytes, length: list[bytes], body: bytes) -> None:
        self.agree(head(200, *length, line, b"X-Gone: 1") + body)
        self.agree(head(200, line, *length) + body)

    @pytest.mark.parametrize(
        "first",
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 ",
            b"HTTP/1.1 200",
            b"HTTP/1.1 204 No Content",
            b"HTTP/1.1 304 Not Modified",
            b"HTTP/1.1 599 Odd \xe9",
            b"HTTP/1.1 999 Odd",
            b"HTTP/1.1 099 Odd",
            b"HTTP/1.1 2000 Odd",
            b"HTTP/1.1 200 O\x00K",
            b"HTTP/1.1 200 O\tK",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.0 200 OK",
            b"HTTP/2.0 200 OK",
            b"http/1.1 200 OK",
            b"HTTP/1.1 200 OK ",
        ],
    )
    def test_status_lines(self, first: bytes) -> None:
        self.agree(first + b"\r\nContent-Length: 5\r\n\r\nhello")

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=12),
                st.sampled_from([b"X: y", b"Content-Length: 3", b"Connection: keep-alive", b"Date: now", b"a:b", b""]),
                st.tuples(st.sampled_from([b"X", b"Content-Length", b"Connection"]), st.binary(max_size=6)).map(
                    b": ".join
                ),
            ),
            max_size=5,
        ),
        st.binary(max_size=8),
    )
    @settings(max_examples=times(500), deadline=None)
    def test_anything(self, lines: list[bytes], body: bytes) -> None:
        self.agree(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"Content-Length: 5", b"", body]))

    def test_the_table_stays_small(self) -> None:
        for number in range(5000):
            Read(head(200, b"Content-Length: 0", b"X: %d" % number))
        assert len(request_head._answer_lines.table) <= request_head._MAX_LINES
        long = b"X: " + b"y" * 1000
        Read(head(200, b"Content-Length: 0", long))
        assert long not in request_head._answer_lines.table
