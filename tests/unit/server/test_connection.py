"""One connection, without a socket: borders, framing both ways, limits, and that every exchange ends once."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadPath, ClientClosed, Draining, UpstreamStalled
from gateway.http.messages import Request, Response
from gateway.model import ServerLimits, ServerSettings, ServerTimeouts
from gateway.server import connection
from gateway.server.body import of_chunks
from tests.unit.server import wire
from tests.unit.server.wire import Pieces, ScriptedStream, answers_in, echo, read_all, serve

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def statuses(raw: bytes) -> list[int]:
    return [status for status, _, _ in answers_in(raw)]


def bodies(raw: bytes) -> list[bytes]:
    return [body for _, _, body in answers_in(raw)]


class TestOneAfterAnother:
    def test_kept_alive(self) -> None:
        stream, door = serve(GET, GET, LAST)
        assert bodies(stream.sent) == [b"GET /a ", b"GET /a ", b"GET /last "]
        assert door.finished == [(b"/a", 200, 7, None), (b"/a", 200, 7, None), (b"/last", 200, 10, None)]
        assert [headers.get(b"connection") for _, headers, _ in answers_in(stream.sent)] == [None, None, b"close"]

    def test_pipelined_in_order(self) -> None:
        stream, _ = serve(GET + POST + b"hello" + CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + LAST)
        assert bodies(stream.sent) == [b"GET /a ", b"POST /p hello", b"POST /c hi", b"GET /last "]

    def test_nothing_after_the_last(self) -> None:
        stream, _ = serve(LAST + GET)
        assert bodies(stream.sent) == [b"GET /last "]

    def test_a_good_one_and_a_bad_one(self) -> None:
        stream, door = serve(GET + b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        assert statuses(stream.sent) == [200, 400]
        assert answers_in(stream.sent)[1][1][b"connection"] == b"close"
        assert [end[1] for end in door.finished] == [200, 400]
        assert len(door.seen) == 1

    @given(st.data())
    def test_however_the_bytes_are_split(self, data: st.DataObject) -> None:
        raw = b"\r\n" + GET + POST + b"hello" + CHUNKED + b"2;x\r\nhi\r\n0\r\nT: 1\r\n\r\n" + b"\r\n" + LAST
        cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=10, unique=True)))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        stream, door = serve(*pieces)
        assert bodies(stream.sent) == [b"GET /a ", b"POST /p hello", b"POST /c hi", b"GET /last "]
        assert [request.bytes_in for request in door.seen] == [0, 5, 2, 0]

    def test_http_1_0(self) -> None:
        stream, _ = serve(b"GET /a HTTP/1.0\r\n\r\n", GET)
        assert [headers[b"connection"] for _, headers, _ in answers_in(stream.sent)] == [b"close"]
        stream, _ = serve(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", LAST)
        assert [headers[b"connection"] for _, headers, _ in answers_in(stream.sent)] == [b"keep-alive", b"close"]

    def test_the_answer_may_end_it(self) -> None:
        stream, _ = serve(GET, GET, answers=lambda request: Response(200, b"OK", [], close=True))
        assert len(answers_in(stream.sent)) == 1

    def test_a_worker_that_leaves_ends_it(self) -> None:
        stream, _ = serve(GET, GET, closing=True)
        assert [headers[b"connection"] for _, headers, _ in answers_in(stream.sent)] == [b"close"]

    def test_requests_are_counted(self) -> None:
        told: list[int] = []
        serve(GET, GET, GET, LAST, left=3, worn=lambda: told.append(1))
        assert told == [1]


class TestHeads:
    @pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\r\n" * 8])
    def test_empty_lines_before_are_skipped(self, before: bytes) -> None:
        assert bodies(serve(before + LAST)[0].sent) == [b"GET /last "]
        assert bodies(serve(before, LAST)[0].sent) == [b"GET /last "]

    def test_but_not_for_ever(self) -> None:
        assert statuses(serve(b"\r\n" * 9 + LAST)[0].sent) == [400]

    @pytest.mark.parametrize(
        "start",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
            b"GET /\r\n",  # HTTP/0.9
            b"hello\r\n",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nHost: a\n",
            b"\nGET / HTTP/1.1\r\n",
            b" GET / HTTP/1.1\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\n",
        ],
    )
    def test_what_can_become_none_is_refused_at_once(self, start: bytes) -> None:
        stream, door = serve(start, TimeoutError("never asked for more"))
        assert statuses(stream.sent) == [400]
        assert door.seen == []
        for end in range(1, len(start) + 1):
            assert statuses(serve(start[:end], start[end:], TimeoutError())[0].sent) in ([400], [408])

    def test_the_preface_of_http_2(self) -> None:
        assert statuses(serve(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0].sent) == [505]
        assert statuses(serve(b"PRI * HTTP/2.0\r\n", TimeoutError())[0].sent) == [505]

    def test_limits_hold_before_the_end(self) -> None:
        settings = ServerSettings(limits=ServerLimits(request_line=100, header=100))
        assert statuses(serve(b"GET /" + b"a" * 100, TimeoutError(), settings=settings)[0].sent) == [414]
        assert statuses(serve(b"GET / HTTP/1.1\r\nX: " + b"a" * 103, TimeoutError(), settings=settings)[0].sent) == [431]
        just = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 85 + b"\r\n"
        for end in range(1, len(just)):
            assert statuses(serve(just[:end], just[end:] + b"\r\n", settings=settings)[0].sent) == [200]

    def test_time_is_for_the_whole_head(self) -> None:
        stream, door = serve(b"GET / HT", b"TP/1.1\r\n", TimeoutError())
        assert statuses(stream.sent) == [408]
        assert door.finished == [(b"-", 408, len(bodies(stream.sent)[0]), "request_timeout")]
        assert stream.limits[0] == 5.0
        assert 5.0 >= stream.limits[1] >= stream.limits[2] >= 0.0

    def test_the_first_byte_has_less_time_than_the_next_request(self) -> None:
        """A connection that never sends anything is not kept as long as one that has proved to be a client."""
        stream, _ = serve(GET, TimeoutError())
        assert stream.limits == [5.0, 75.0]
        assert serve(TimeoutError())[0].limits == [5.0]

    def test_a_proxy_of_ours_opens_connections_ahead(self) -> None:
        stream = wire.ScriptedStream(TimeoutError())
        wire.serve_stream(stream, opens_ahead=True)
        assert stream.limits == [75.0]

    @pytest.mark.parametrize("arrivals", [[TimeoutError()], [b""], [ConnectionResetError()], [b"\r\n", TimeoutError()], [b"\r\n"]])
    def test_silence_is_answered_with_silence(self, arrivals: list[bytes | Exception]) -> None:
        stream, door = serve(*arrivals)
        assert stream.sent == b""
        assert door.finished == []

    @pytest.mark.parametrize(
        ("arrivals", "status"),
        [
            ([b"HEAD / HTTP/1.1\r\nX: ", b"x" * 101], 431),
            ([b"HEAD / HTTP/1.1\r\nX: " + b"x" * 101 + b"\r\n\r\n"], 431),
            ([b"HEAD /" + b"x" * 101 + b" HTTP/1.1\r\n\r\n"], 414),
            ([b"HE", b"AD /", b"x" * 101], 414),
            ([b"HEAD / HTTP/1.1\nHost: a\n\n"], 400),
            ([b"HEAD / HTTP/1.1\r\n", TimeoutError()], 408),
            ([b"HEAD / HTTP/1.1\r\n"], 400),
        ],
    )
    def test_a_refused_head_request_is_answered_without_a_body(
        self, arrivals: list[bytes | Exception], status: int
    ) -> None:
        limits = ServerLimits(request_line=100, header=100)
        stream, _ = serve(*arrivals, settings=ServerSettings(limits=limits))
        assert stream.sent.startswith(b"HTTP/1.1 %d " % status)
        assert stream.sent.endswith(b"\r\n\r\n")

    def test_half_a_head(self) -> None:
        assert statuses(serve(b"GET / HTTP/1.1\r\nHo")[0].sent) == [400]
        assert serve(b"GET / HTTP/1.1\r\nHo", ConnectionResetError())[0].sent == b""

    def test_of_what_was_refused_the_line_is_logged(self) -> None:
        _, door = serve(b"PUT /x?y HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n")
        assert [(end[0], end[1]) for end in door.finished] == [(b"/x?y", 400)]


class TestBodies:
    @pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE", b"OPTIONS", b"ODD"])
    def test_by_length(self, method: bytes) -> None:
        raw = method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
        for arrivals in ([raw + b"hello" + LAST], [raw, b"hello", LAST], [raw + b"he", b"l", b"lo" + LAST]):
            stream, door = serve(*arrivals)
            assert bodies(stream.sent) == [method + b" / hello", b"GET /last "]
            assert (door.seen[0].content_length, door.seen[0].chunked, door.seen[0].bytes_in) == (5, False, 5)

    def test_what_is_here_is_handed_over_whole(self) -> None:
        _, door = serve(POST + b"hello")
        assert door.seen[0].body is not None
        assert door.seen[0].body.complete
        _, door = serve(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
        assert door.seen[0].body is not None
        assert door.seen[0].body.complete

    def test_a_length_of_0_is_no_body(self) -> None:
        _, door = serve(POST.replace(b"5", b"0"))
        assert (door.seen[0].body, door.seen[0].content_length) == (None, 0)

    @pytest.mark.parametrize("arrivals", [[POST + b"hel"], [CHUNKED + b"5\r\nhel"], [CHUNKED + b"5\r\nhello\r\n0\r\n"], [POST]])
    def test_cut_short_is_never_whole(self, arrivals: list[bytes]) -> None:
        stream, door = serve(*arrivals)
        assert stream.sent == b""
        assert stream.aborted
        assert [end[1:] for end in door.finished] == [(None, 0, "client_closed")]

    def test_reset_inside(self) -> None:
        stream, door = serve(POST + b"hel", ConnectionResetError())
        assert stream.sent == b""
        assert [end[3] for end in door.finished] == ["client_closed"]

    def test_without_progress(self) -> None:
        stream, door = serve(POST + b"hel", TimeoutError())
        assert statuses(stream.sent) == [408]
        assert stream.limits[1] == 10.0
        assert door.finished[0][3] == "request_timeout"

    @pytest.mark.parametrize(("wanted", "sizes"), [(65536, [65536, 60100, 16384]), (100, [100, 100, 100])])
    def test_no_more_is_read_than_wanted(self, wanted: int, sizes: list[int]) -> None:
        """Nor a large buffer made for the little that is to come; a small one may hold the next request, too."""
        first, second = 40_000, 60_000
        arrivals = [b"a" * min(size, wanted) for size in (first, second)]
        left = sum(map(len, arrivals)) + 100
        raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % left

        def read(request: Request) -> Response:
            body = request.body
            assert body is not None
            return Response(200, b"OK", [], data=b"".join(iter(lambda: body.read(wanted), b"")))

        stream, _ = serve(raw, *arrivals, b"b" * 100, LAST, answers=lambda request: read(request) if request.body else echo(request))
        assert bodies(stream.sent) == [b"".join(arrivals) + b"b" * 100, b"GET /last "]
        assert stream.sizes[1:4] == sizes

    def test_bad_chunks_at_once(self) -> None:
        stream, door = serve(CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n" + GET)
        assert statuses(stream.sent) == [400]
        assert door.seen == []

    def test_bad_chunks_later(self) -> None:
        stream, door = serve(CHUNKED + b"5\r\nhel", b"loX\r\n0\r\n\r\n" + GET)
        assert statuses(stream.sent) == [400]
        assert len(door.seen) == 1

    def test_too_large(self) -> None:
        settings = ServerSettings(limits=ServerLimits(body=4))
        assert statuses(serve(POST + b"hello" + GET, settings=settings)[0].sent) == [413]
        assert statuses(serve(CHUNKED + b"5\r\n", b"hello\r\n0\r\n\r\n" + GET, settings=settings)[0].sent) == [413]
        assert statuses(serve(CHUNKED, b"4\r\nhell\r\n1\r\n", GET, settings=settings)[0].sent) == [413]

    def test_others_run_between_reads_of_next_to_nothing_but_chunk_sizes(self) -> None:
        """A thousand lines cost about a millisecond; what a stream reads at once may be sixty times that."""
        eager = []
        stream = ScriptedStream(b"1\r\nx\r\n" * 2000, b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        client = SimpleNamespace(stream=stream, pending=b"", settings=ServerSettings(), answering=False, sent=0)
        body = of_chunks(client, expects_continue=False)
        for size in (2000, 1000):
            stream.eager = True
            assert len(body.read()) == size
            eager.append(stream.eager)
        assert eager == [False, True]

    def test_trailers_are_no_headers(self) -> None:
        _, door = serve(CHUNKED + b"0\r\nHost: evil\r\nContent-Length: 7\r\n\r\n" + LAST)
        assert [request.target for request in door.seen] == [b"/c", b"/last"]
        assert door.seen[0].headers == [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")]


EXPECT = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")


class TestContinue:
    def test_when_the_body_is_wanted(self) -> None:
        stream, _ = serve(EXPECT, b"hello", LAST)
        assert statuses(stream.sent) == [100, 200, 200]

    def test_not_when_it_is_not(self) -> None:
        stream, _ = serve(EXPECT, GET, answers=lambda request: Response(401, b"Unauthorized", []))
        assert statuses(stream.sent) == [401]
        assert answers_in(stream.sent)[0][1][b"connection"] == b"close"

    def test_not_when_it_is_here(self) -> None:
        stream, _ = serve(EXPECT + b"hello", LAST)
        assert statuses(stream.sent) == [200, 200]
        stream, _ = serve(EXPECT + b"he", b"llo", LAST)
        assert statuses(stream.sent) == [200, 200]

    def test_not_for_http_1_0(self) -> None:
        stream, _ = serve(EXPECT.replace(b"1.1", b"1.0"), b"hello")
        assert statuses(stream.sent) == [200]

    def test_other_expectations(self) -> None:
        stream, door = serve(EXPECT.replace(b"100-continue", b"more"), b"hello")
        assert statuses(stream.sent) == [417]
        assert door.seen == []


class TestUnreadBodies:
    """Answers that nobody read the body for must not leave it to be read as a request."""

    @staticmethod
    def refuse(request: Request) -> Response:
        return Response(404, b"Not Found", [])

    def test_small_ones_are_drained(self) -> None:
        for arrivals in (
            [POST + b"hello" + GET],
            [POST, b"hello", GET],
            [CHUNKED + b"5\r\nhel", b"lo\r\n0\r\n\r\n" + GET],
            [CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n", GET],
        ):
            stream, door = serve(*arrivals, answers=self.refuse)
            assert statuses(stream.sent) == [404, 404]
            assert [request.target for request in door.seen][1:] == [b"/a"]

    def test_large_ones_are_not(self) -> None:
        raw = POST.replace(b"5\r\n", b"500000\r\n")
        stream, door = serve(raw, b"x" * 9000, GET, answers=self.refuse)
        assert statuses(stream.sent) == [404]
        assert answers_in(stream.sent)[0][1][b"connection"] == b"close"
        assert len(door.seen) == 1

    def test_endless_ones_neither(self) -> None:
        stream, door = serve(CHUNKED, *[b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 200, GET, answers=self.refuse)
        assert statuses(stream.sent) == [404]
        assert len(door.seen) == 1
        assert stream.ended

    def test_bad_ones_neither(self) -> None:
        stream, door = serve(CHUNKED, b"zz\r\n" + GET, answers=self.refuse)
        assert statuses(stream.sent) == [404]
        assert len(door.seen) == 1

    def test_what_comes_behind_an_error_is_read_and_thrown_away(self) -> None:
        stream, _ = serve(b"GET / HTTP/1.1\r\nX : y\r\n\r\n", GET, GET)
        assert statuses(stream.sent) == [400]
        assert stream.unread == []
        assert stream.ended
        assert not stream.aborted


class TestAnswers:
    def test_a_stream_of_known_length(self) -> None:
        body = Pieces(b"lo, ", b"world")
        stream, door = serve(LAST, answers=lambda _: Response(200, b"OK", [], content_length=12, data=b"hel", stream=body))
        assert bodies(stream.sent) == [b"hello, world"]
        assert door.finished == [(b"/last", 200, 12, None)]
        assert body.closed

    @pytest.mark.parametrize(("room", "asked"), [(2 << 20, 1 << 20), (100_000, 100_000), (5, 1 << 10), (-9, 1 << 10)])
    def test_pieces_are_as_large_as_the_client_keeps_up(self, room: int, asked: int) -> None:
        first = min(asked, 65536)
        body = Pieces(b"x" * first, b"y" * asked, b"z")
        serve(LAST, answers=lambda _: Response(200, b"OK", [], data=b"", stream=body), room=room)
        # A full piece: more is there; one that is not full was all that there was.
        assert body.asked == [first, asked, asked, first]

    @pytest.mark.parametrize(("room", "asked"), [(2 << 20, 120 << 10), (100_000, 100_000), (5, 1 << 10)])
    def test_the_first_one_is_larger_where_the_length_is_told(self, room: int, asked: int) -> None:
        body = Pieces(b"x" * 10)
        serve(LAST, answers=lambda _: Response(200, b"OK", [], content_length=10, stream=body), room=room)
        assert body.asked[0] == asked

    def test_what_is_out_is_not_held_while_more_is_awaited(self) -> None:
        response = Response(200, b"OK", [], data=b"a" * 9000)
        response.stream = body = Pieces(b"b" * 9000, b"c", at_read=lambda: held.append(len(response.data)))
        held: list[int] = []
        serve(LAST, answers=lambda _: response)
        assert held == [0, 0, 0]
        assert body.closed

    def test_a_client_that_took_a_megabyte_is_given_more_ahead(self) -> None:
        for megabytes, more in ((1, False), (2, True)):
            pieces = Pieces(*[b"x" * 65536] * (16 * megabytes - 1))
            stream, _ = serve(LAST, answers=lambda _, body=pieces: Response(200, b"OK", [], stream=body))
            assert stream.further_ahead is more

    def test_a_stream_of_unknown_length(self) -> None:
        body = Pieces(b"x" * 17, b"y")
        stream, door = serve(LAST, answers=lambda _: Response(200, b"OK", [], data=b"hel", stream=body))
        [(_, headers, coded)] = answers_in(stream.sent)
        assert headers[b"transfer-encoding"] == b"chunked"
        assert b"content-length" not in headers
        assert coded == b"3\r\nhel\r\n11\r\n" + b"x" * 17 + b"\r\n1\r\ny\r\n0\r\n\r\n"
        assert door.finished == [(b"/last", 200, 21, None)]

    def test_a_stream_for_http_1_0(self) -> None:
        stream, _ = serve(
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", GET, answers=lambda _: Response(200, b"OK", [], stream=Pieces(b"ab", b"c"))
        )
        [(_, headers, body)] = answers_in(stream.sent)
        assert (headers[b"connection"], body) == (b"close", b"abc")
        assert b"transfer-encoding" not in headers
        assert not stream.aborted

    def test_an_empty_stream(self) -> None:
        stream, _ = serve(LAST, answers=lambda _: Response(200, b"OK", [], stream=Pieces()))
        assert stream.sent.endswith(b"\r\n\r\n0\r\n\r\n")

    @pytest.mark.parametrize(
        ("request_", "response", "length"),
        [
            (LAST.replace(b"GET", b"HEAD"), Response(200, b"OK", [], content_length=12, bodyless=True), b"12"),
            (LAST.replace(b"GET", b"HEAD"), Response(200, b"OK", [], data=b"hello"), b"5"),
            (LAST.replace(b"GET", b"HEAD"), Response(200, b"OK", [], bodyless=True), None),
            (LAST, Response(204, b"No Content", [], bodyless=True), None),
            (LAST, Response(204, b"No Content", [], content_length=0), None),
            (LAST, Response(304, b"Not Modified", [], content_length=7, bodyless=True), b"7"),
        ],
    )
    def test_without_body(self, request_: bytes, response: Response, length: bytes | None) -> None:
        stream, _ = serve(request_, answers=lambda _: response)
        head, _, rest = stream.sent.partition(b"\r\n\r\n")
        assert rest == b""
        found = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        assert found == ([length] if length else [])
        assert b"chunked" not in head

    def test_an_unread_stream_of_a_head_is_given_back(self) -> None:
        body = Pieces(b"x")
        serve(LAST.replace(b"GET", b"HEAD"), answers=lambda _: Response(200, b"OK", [], stream=body))
        assert body.closed

    @pytest.mark.parametrize("length", [None, 10])
    def test_a_stream_that_breaks_never_looks_complete(self, length: int | None) -> None:
        body = Pieces(b"hello", UpstreamStalled("silence"))
        stream, door = serve(GET, GET, answers=lambda _: Response(200, b"OK", [], content_length=length, stream=body))
        assert b"\r\n0\r\n\r\n" not in stream.sent
        assert stream.sent.count(b"HTTP/1.1") == 1
        assert not stream.ended
        assert body.closed
        assert door.finished == [(b"/a", 200, 5, "upstream_stalled")]

    @pytest.mark.parametrize("end", [b"", UpstreamStalled("silence")])
    def test_a_fault_while_it_is_given_back_ends_the_connection_after_the_answer(self, end: bytes | Exception) -> None:
        body = Pieces(b"hello", end)
        body.close = Mock(side_effect=RuntimeError("out of order"))  # type: ignore[method-assign]
        stream, door = serve(GET, GET, answers=lambda _: Response(200, b"OK", [], content_length=5, stream=body))
        assert stream.sent.count(b"HTTP/1.1") == 1
        assert stream.closed
        first = "internal_error" if end == b"" else "upstream_stalled"
        assert door.finished == [(b"/a", 200, 5, first)]

    def test_not_even_for_http_1_0(self) -> None:
        body = Pieces(b"hello", UpstreamStalled("silence"))
        stream, _ = serve(b"GET / HTTP/1.0\r\n\r\n", answers=lambda _: Response(200, b"OK", [], stream=body))
        assert stream.aborted

    @pytest.mark.parametrize("pieces", [[b"hell"], [b"hello", b"!"], []])
    def test_nor_one_of_another_length(self, pieces: list[bytes]) -> None:
        stream, door = serve(GET, GET, answers=lambda _: Response(200, b"OK", [], content_length=5, stream=Pieces(*pieces)))
        assert len(answers_in(stream.sent)) == 1
        assert not stream.ended
        assert door.finished[0][3] in ("upstream_truncated", "bad_response")
        assert bodies(stream.sent)[0] in (b"hell", b"hello", b"")

    def test_a_fault_in_a_stream(self) -> None:
        stream, door = serve(GET, GET, answers=lambda _: Response(200, b"OK", [], stream=Pieces(RuntimeError("bug"))))
        assert not stream.ended
        assert door.finished == [(b"/a", 200, 0, "internal_error")]

    def test_a_client_that_does_not_take_it(self) -> None:
        body = Pieces(b"x" * 1000, b"y" * 1000)
        stream, door = serve(GET, GET, answers=lambda _: Response(200, b"OK", [], stream=body), breaks_after=1500)
        assert stream.closed
        assert body.closed
        assert door.finished[0][3] == "client_closed"
        assert len(door.finished) == 1

    @pytest.mark.parametrize(("taken", "error"), [(100_000, None), (1000, "write_timeout"), (0, "write_timeout")])
    def test_what_a_client_takes_of_one_write_is_told_by_the_kernel(
        self, monkeypatch: pytest.MonkeyPatch, taken: int, error: str | None
    ) -> None:
        """TLS says nothing of a write that does not go out whole, and the kernel is as full after it as before."""
        now = 100.0

        class ByRecords(ScriptedStream):
            queued = 0

            def send_some(self, data: bytes | memoryview) -> int:
                self.queued = 1_000_000
                return super().send_some(data)

            def wait_writable(self, timeout: float | None) -> None:
                nonlocal now
                now += 5.0
                self.queued -= taken
                super().wait_writable(timeout)

            def unsent(self) -> int:
                return self.queued

        monkeypatch.setattr(connection, "monotonic", lambda: now)
        monkeypatch.setattr(wire, "ScriptedStream", ByRecords)
        _, door = serve(LAST, stuck=20)
        assert [end[3] for end in door.finished] == [error]

    def test_interim_answers(self) -> None:
        def hinting(request: Request) -> Response:
            assert request.interim is not None
            request.interim(103, [(b"Link", b"</a>")])
            return echo(request)

        stream, _ = serve(LAST, answers=hinting)
        assert statuses(stream.sent) == [103, 200]
        assert answers_in(stream.sent)[0][1] == {b"link": b"</a>"}

    def test_none_for_http_1_0(self) -> None:
        _, door = serve(b"GET / HTTP/1.0\r\n\r\n")
        assert door.seen[0].interim is None


class TestFaults:
    def test_an_error_that_handle_let_out(self) -> None:
        def fail(request: Request) -> Response:
            raise BadPath("dots")

        stream, door = serve(LAST, answers=fail)
        assert statuses(stream.sent) == [400]
        assert door.finished[0][3] == "bad_path"

    def test_a_bug(self) -> None:
        def fail(request: Request) -> Response:
            raise RuntimeError("bug")

        stream, door = serve(GET, LAST, answers=fail)
        assert statuses(stream.sent) == [500, 500]
        assert [end[3] for end in door.finished] == ["internal_error"] * 2
        assert b"bug" not in stream.sent

    def test_a_client_that_left_gets_no_answer(self) -> None:
        def fail(request: Request) -> Response:
            raise ClientClosed("gone")

        stream, door = serve(GET, GET, answers=fail)
        assert stream.sent == b""
        assert door.finished == [(b"/a", None, 0, "client_closed")]

    def test_an_upstreams_own_499_is_an_answer(self) -> None:
        stream, _ = serve(LAST, answers=lambda _: Response(499, b"Odd", [], data=b"x"))
        assert statuses(stream.sent) == [499]

    def test_draining_is_answered_as_long_as_nothing_was(self) -> None:
        def fail(request: Request) -> Response:
            raise Draining("over")

        stream, _ = serve(LAST, answers=fail)
        assert statuses(stream.sent) == [503]

    def test_a_body_that_fails_inside_an_answer(self) -> None:
        def answer(request: Request) -> Response:
            return Response(200, b"OK", [], content_length=len(read_all(request)))

        stream, door = serve(POST + b"hel", TimeoutError(), answers=answer)
        assert statuses(stream.sent) == [408]
        assert len(door.finished) == 1


class TestTimeouts:
    def test_each_by_its_name(self) -> None:
        settings = ServerSettings(timeouts=ServerTimeouts(header=3.0, body=4.0, keepalive=6.0))
        stream, _ = serve(b"GET / HTTP/1.1\r\n", b"Host: a\r\n\r\n", POST, b"hello", settings=settings)
        first, header, again, body, last = stream.limits[:5]
        assert (first, again, body, last) == (3.0, 6.0, 4.0, 6.0)
        assert header is not None
        assert 2.0 < header <= 3.0

    def test_null_is_none(self) -> None:
        settings = ServerSettings(timeouts=ServerTimeouts(header=None, body=None, keepalive=None))
        stream, _ = serve(b"GET / HTTP/1.1\r\n", b"Host: a\r\n\r\n", POST, b"hello", settings=settings)
        assert set(stream.limits[:5]) == {None}


class TestLingering:
    POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"

    @staticmethod
    def refuse(request: Request) -> Response:
        return Response(500, b"Internal Server Error", [], data=b"early")

    @pytest.mark.parametrize(("most", "read"), [(9, 1), (10, 1), (11, 2), (20, 2), (21, 3), (0, 4)])
    def test_bytes(self, most: int, read: int) -> None:
        """0 is no limit, as elsewhere; the fourth read is the end."""
        settings = ServerSettings(limits=ServerLimits(linger=most))
        stream, door = serve(self.POST, b"x" * 10, b"x" * 10, b"x" * 10, answers=self.refuse, settings=settings)
        assert len(stream.limits) == 1 + read
        assert door.finished == [(b"/", 500, 5, None)]

    def test_seconds_without_a_byte(self) -> None:
        stream, _ = serve(self.POST, b"x", TimeoutError(), b"x", answers=self.refuse)
        assert stream.limits[1:] == [5.0, 5.0]

    def test_seconds_in_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.server.connection.LINGER_SECONDS", 2.0)
        stream, _ = serve(self.POST, b"x", b"x", answers=self.refuse)
        assert all(limit is not None and limit <= 2.0 for limit in stream.limits[1:])
        monkeypatch.setattr("gateway.server.connection.LINGER_SECONDS", 0.0)
        stream, _ = serve(self.POST, b"x", b"x", answers=self.refuse)
        assert len(stream.limits) == 1
