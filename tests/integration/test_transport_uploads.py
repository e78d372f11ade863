"""Request bodies: sent while the answer is awaited, never looking complete when they are not."""

from __future__ import annotations

import random
import threading

import gevent
import pytest
from gevent import event

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    ClientClosed,
    Draining,
    RequestTimeout,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
)
from gateway.http.messages import BufferedBody
from gateway.model import Timeouts
from gateway.testing import Act, FakeUpstream, Truncated, answer, head
from gateway.transport import exchange as exchanges
from gateway.transport.upload import WrongLength
from tests.exchanges import Line, Pieces, finish, greenlets, request, soon, whole

MEGABYTE = b"x" * 65536 * 16
BOTH = pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "by length"])


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def line(upstream):
    running = greenlets()
    made = Line(upstream.host, upstream.port)
    yield made
    made.close()
    soon(lambda: made.counts == (0, 0, 0))
    upstream.close()
    soon(lambda: greenlets() <= running)


def post(*pieces: object, chunked: bool, length: int | None = None, expects: bool = False):
    told = length if length is not None else sum(len(piece) for piece in pieces if isinstance(piece, bytes))
    body = Pieces(*pieces, expects_continue=expects)
    return request(b"POST", body, chunked=chunked, length=None if chunked else told)


class TestWhole:
    @BOTH
    def test_pieces(self, upstream, line, chunked):
        generator = random.Random(7)
        pieces = [generator.randbytes(generator.randrange(1, 70_000)) for _ in range(40)]
        for reused in (False, True):
            got = line.ask(post(*pieces, chunked=chunked))
            assert (got.body, got.reused) == (b"ok", reused)
            assert upstream.last.complete
            assert upstream.last.body == b"".join(pieces)
        assert upstream.violations == []

    @BOTH
    def test_pieces_grow_while_the_upstream_takes_them(self, upstream, line, chunked):
        length = 8 * 1024 * 1024

        class Fast(Pieces):
            """All that is wanted is there."""

            left = length

            def read(self, most: int = 0) -> bytes:
                self.asked.append(most)
                self.left, size = max(self.left - most, 0), min(self.left, most)
                return b"x" * size

        body = Fast()
        line.ask(request(b"POST", body, chunked=chunked, length=None if chunked else length))
        assert len(upstream.last.body) == length
        assert body.asked[0] <= 65536 < max(body.asked) <= 1024 * 1024

    @BOTH
    @pytest.mark.parametrize("data", [b"x", b"", MEGABYTE])
    def test_here_already(self, upstream, line, chunked, data):
        asked = request(b"POST", BufferedBody(data), chunked=chunked, length=None if chunked else len(data))
        assert line.ask(asked).body == b"ok"
        assert upstream.last.complete
        assert upstream.last.body == data
        assert line.ask().reused

    @BOTH
    def test_here_already_in_more_than_one_piece(self, upstream, line, chunked):
        class Two(Pieces):
            complete = True

        asked = request(b"POST", Two(b"hello ", b"world"), chunked=chunked, length=None if chunked else 11)
        assert line.ask(asked).body == b"ok"
        assert upstream.wait_complete().body == b"hello world"

    def test_an_empty_chunked_body(self, upstream, line):
        assert line.ask(post(chunked=True)).body == b"ok"
        assert upstream.last.body == b""
        assert upstream.last.complete

    def test_pieces_go_on_as_they_come(self, upstream, line):
        """One framing at the upstream, and nothing waits for the rest."""
        go = event.Event()
        asking = gevent.spawn(line.ask, post(b"first", go, b"second", chunked=True))
        upstream.until(lambda: bool(upstream.requests) and upstream.last.body == b"first")
        go.set()
        assert finish([asking])[0].body == b"ok"
        assert upstream.last.values(b"content-length") == []

    @BOTH
    def test_both_ways_at_once(self, upstream, line, chunked):
        """An upstream that answers each piece as it comes (an echo)."""
        size = 40 * 65536

        def echo(exchange):
            exchange.send(head(200, b"Content-Length: %d" % size))
            body = b""
            while len(body) < size:
                old = len(body)
                if chunked:
                    from gateway.testing import read_chunk

                    body += read_chunk(exchange.wire)
                else:
                    body += exchange.read_piece()
                exchange.send(body[old:])
            if chunked:
                exchange.wire.read_until(b"0\r\n\r\n")
            exchange.request.complete = True

        upstream.answer(echo)
        pieces = [bytes([number]) * 65536 for number in range(40)]
        assert whole(line.send(post(*pieces, chunked=chunked))) == b"".join(pieces)


EARLY = answer(b"too much", status=413)


class TestEarlyAnswers:
    """The upstream answers before it has read the request."""

    @BOTH
    @pytest.mark.parametrize("after", [Act.CLOSE, Act.RESET, Act.HANG])
    def test_reaches_the_client(self, upstream, line, chunked, after):
        def refuse(exchange):
            exchange.read_piece()
            exchange.send(EARLY)
            # A reset throws away what the other side has not read: give it the time.
            gevent.sleep(0.05)
            exchange.run([after])

        upstream.answer(refuse)
        body = Pieces(*[MEGABYTE] * 100)
        asked = request(b"POST", body, chunked=chunked, length=None if chunked else 100 * len(MEGABYTE))
        got = line.ask(asked)
        assert (got.status, got.body) == (413, b"too much")
        assert not body.ended
        assert line.counts == (0, 0, 0)
        assert not upstream.last.complete

    @BOTH
    def test_with_a_client_that_is_slow_to_send(self, upstream, line, chunked):
        never = event.Event()
        upstream.answer(lambda exchange: (exchange.read_piece(), exchange.send(EARLY), exchange.hang()))
        assert line.ask(post(b"x", never, chunked=chunked, length=100)).status == 413
        upstream.wait_aborted()
        assert not upstream.last.complete

    def test_with_a_body_that_was_here_already(self, upstream, line):
        def refuse(exchange):
            exchange.send(EARLY)
            gevent.sleep(0.05)
            exchange.run([Act.RESET])

        upstream.answer(refuse)
        got = line.ask(request(b"POST", MEGABYTE * 32))
        assert got.status == 413
        assert line.counts == (0, 0, 0)

    @BOTH
    def test_while_its_body_still_comes_the_upload_goes_on(self, upstream, line, chunked):
        go = event.Event()

        def early(exchange):
            exchange.read_piece()
            exchange.send(head(200, b"Content-Length: 10") + b"hello")
            exchange.read_body() if not chunked else exchange.wire.read_until(b"0\r\n\r\n")
            exchange.request.complete = True
            exchange.send(b"world")

        upstream.answer(early)
        response = line.send(post(b"first", go, b"second", chunked=chunked))
        assert (response.status, response.data) == (200, b"hello")
        go.set()
        assert whole(response) == b"helloworld"
        assert line.counts == (1, 1, 0)

    def test_before_a_byte_of_the_body(self, upstream, line):
        never = event.Event()
        upstream.answer(lambda exchange: (exchange.send(EARLY), exchange.hang()))
        assert line.ask(post(never, chunked=False, length=5)).status == 413
        upstream.wait_aborted()

    @pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
    @BOTH
    def test_none_at_all(self, upstream, line, act, chunked):
        upstream.answer(lambda exchange: (exchange.read_piece(), exchange.run([act])))
        with pytest.raises(UpstreamReset) as seen:
            line.ask(request(b"POST", Pieces(*[MEGABYTE] * 100), chunked=chunked, length=None if chunked else 100 << 20))
        assert type(seen.value) is UpstreamReset
        assert seen.value.may_have_been_sent

    def test_none_at_all_over_a_reused_connection(self, upstream, line):
        line.ask()
        upstream.answer([Act.RESET])
        with pytest.raises(UpstreamStale):
            line.ask(post(b"x", chunked=True))

    def test_half_a_head(self, upstream, line):
        upstream.answer(lambda exchange: (exchange.read_piece(), exchange.run([b"HTTP/1.1 4", 0.02, Act.CLOSE])))
        with pytest.raises(UpstreamCut):
            line.ask(request(b"POST", Pieces(*[MEGABYTE] * 100), length=100 << 20))


class TestClientsThatFail:
    @pytest.mark.parametrize("error", [ClientClosed(), RequestTimeout(), BadRequest(), BodyTooLarge(), Draining()])
    @BOTH
    def test_the_upstream_sees_a_broken_upload(self, upstream, line, error, chunked):
        with pytest.raises(type(error)) as seen:
            line.ask(post(b"half", error, chunked=chunked, length=8))
        assert seen.value is error
        upstream.until(lambda: all(wire.closed or wire.ended(0.01) for wire in upstream.connections))
        assert not upstream.last.complete
        assert b"0\r\n\r\n" not in upstream.connections[0].received

    @BOTH
    def test_so_is_the_break_when_the_answer_is_given_up(self, upstream, line, chunked):
        ends, never = [], event.Event()

        def early(exchange):
            exchange.send(head(200, b"Content-Length: 9"))
            try:
                exchange.read_body()
            except (Truncated, OSError) as error:
                ends.append(type(error))
            exchange.run([Act.CLOSE])

        upstream.answer(early)
        response = line.send(post(b"half", never, chunked=chunked, length=8))
        response.stream.close()
        soon(lambda: bool(ends))
        assert ends == [ConnectionResetError]

    @BOTH
    def test_the_break_is_a_reset(self, upstream, line, chunked):
        """A FIN could be taken for the end of a body by who is lax about lengths."""
        ends = []

        def read(exchange):
            try:
                exchange.read_body()
            except (Truncated, OSError) as error:
                ends.append(type(error))
            exchange.run([Act.CLOSE])

        upstream.answer(read)
        with pytest.raises(ClientClosed):
            line.ask(post(b"half", ClientClosed(), chunked=chunked, length=8))
        soon(lambda: bool(ends))
        assert ends == [ConnectionResetError]

    def test_while_the_answer_comes(self, upstream, line):
        go = event.Event()
        upstream.answer(
            lambda exchange: (exchange.read_piece(), exchange.send(head(200, b"Content-Length: 9") + b"x"), exchange.hang())
        )
        response = line.send(post(b"half", go, ClientClosed(), chunked=True))
        gevent.get_hub().loop.run_callback(go.set)
        with pytest.raises(ClientClosed):
            whole(response)
        assert line.counts == (0, 0, 0)

    def test_a_fault_of_ours_ends_the_wait_too(self, upstream, line, capsys):
        with pytest.raises(UpstreamReset):
            line.ask(post(b"half", ZeroDivisionError("a bug"), chunked=True))
        assert "a bug" in capsys.readouterr().err

    @pytest.mark.parametrize("error", [ClientClosed("gone"), gevent.Timeout(1), gevent.GreenletExit()])
    def test_an_exception_thrown_into_who_waits(self, upstream, line, error):
        never = event.Event()
        upstream.answer(lambda exchange: exchange.hang())
        asking = gevent.spawn(line.ask, post(b"half", never, chunked=True))
        soon(lambda: len(upstream.connections) == 1 and b"half" in upstream.connections[0].received)
        gevent.get_hub().loop.run_callback(asking.throw, error)
        soon(lambda: asking.dead)
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()
        assert not upstream.last.complete


class TestExpect:
    """`Expect: 100-continue` (RFC 9110 §10.1.1)."""

    @BOTH
    def test_the_body_waits_for_100(self, upstream, line, chunked):
        said = []

        def script(exchange):
            gevent.sleep(0.05)
            said.append(bytes(exchange.wire.received[len(exchange.request.head) :]))
            exchange.send(head(100))
            exchange.read_body()
            exchange.send(answer(b"ok"))

        upstream.answer(script)
        asked = post(b"body", chunked=chunked, expects=True)
        assert line.ask(asked).body == b"ok"
        assert said == [b""]
        assert upstream.last.body == b"body"
        assert line.counts == (1, 1, 0)

    def test_a_refusal_instead(self, upstream, line):
        upstream.answer(lambda exchange: (exchange.send(answer(b"no", status=417)), exchange.hang()))
        asked = post(b"body", chunked=False, expects=True)
        assert line.ask(asked).status == 417
        assert asked.body.reads == 0
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()
        assert upstream.last.body == b""

    @pytest.mark.parametrize("first", [b"", head(103), b"HTTP/1.1 2"])
    @pytest.mark.parametrize("method", [b"POST", b"HEAD"])
    def test_silence_is_not_waited_for_for_ever(self, upstream, line, monkeypatch, first, method):
        """Also after another interim answer, and inside a head that comes slowly."""
        monkeypatch.setattr(exchanges, "CONTINUE_WAIT", 0.05)

        def script(exchange):
            exchange.send(first)
            exchange.read_body()
            rest = head(200, b"Content-Length: 0")
            exchange.send(rest[len(first) :] if first.startswith(b"HTTP/1.1 2") else rest)

        upstream.answer(script)
        asked = request(method, Pieces(b"body", expects_continue=True), length=4)
        assert line.ask(asked).status == 200
        assert upstream.last.body == b"body"

    def test_a_late_100_is_not_passed_on(self, upstream, line, monkeypatch):
        """Reading the body has given the client its own already."""
        monkeypatch.setattr(exchanges, "CONTINUE_WAIT", 0.05)
        seen = []

        def script(exchange):
            exchange.read_body()
            exchange.send(head(100) + head(103) + answer(b"ok"))

        upstream.answer(script)
        asked = request(
            b"POST", Pieces(b"body", expects_continue=True), length=4, interim=lambda *told: seen.append(told[0])
        )
        assert line.ask(asked).body == b"ok"
        assert seen == [103]

    @pytest.mark.parametrize("gap", [0.0, 0.02])
    def test_a_second_100_starts_no_second_upload(self, upstream, line, gap):
        def script(exchange):
            exchange.run([head(100), gap, head(100)])
            exchange.read_body()
            exchange.send(answer(b"ok"))

        upstream.answer(script)
        pieces = [b"%03d" % number for number in range(100)]
        assert line.ask(post(*pieces, chunked=True, expects=True)).body == b"ok"
        assert upstream.last.body == b"".join(pieces)
        assert upstream.violations == []

    def test_a_long_upload_is_not_cut_by_the_wait(self, upstream, line, monkeypatch):
        monkeypatch.setattr(exchanges, "CONTINUE_WAIT", 0.05)
        go = threading.Event()
        threading.Timer(0.3, go.set).start()
        asked = post(b"a", go, b"b", chunked=True, expects=True)
        assert line.ask(asked).body == b"ok"
        assert upstream.last.body == b"ab"

    def test_total_over_everything(self, upstream, line):
        line.timeouts = Timeouts(response=None)
        upstream.answer([answer(b"ok")])
        assert line.ask(post(b"body", chunked=True), total=5.0).body == b"ok"


class TestCounted:
    """A body that is not as long as its head announces never looks like a whole one to the upstream."""

    @pytest.mark.parametrize("pieces", [(b"abc",), (b"abc", b"def")])
    def test_shorter_than_announced(self, upstream, line, pieces):
        with pytest.raises(WrongLength, match="shorter"):
            line.ask(post(*pieces, chunked=False, length=10))
        upstream.wait_aborted()
        assert not upstream.last.complete
        assert line.counts == (0, 0, 0)

    def test_longer_than_announced(self, upstream, line):
        """What is too much is never sent: the upstream would read it as the next request."""
        upstream.answer(lambda exchange: exchange.hang())
        with pytest.raises(WrongLength, match="longer"):
            line.ask(post(b"abc", b"GET /smuggled", chunked=False, length=5))
        upstream.wait_aborted()
        assert b"GET" not in upstream.last.body
        assert line.counts == (0, 0, 0)

    @pytest.mark.parametrize("length", [2, 4])
    def test_one_that_is_here_already(self, upstream, line, length):
        with pytest.raises(WrongLength):
            line.ask(request(b"POST", BufferedBody(b"abc"), length=length))
        assert upstream.requests == []
        assert line.counts == (0, 0, 0)

    @BOTH
    def test_a_connection_comes_back_only_when_both_directions_are_complete(self, upstream, line, chunked):
        """The answer is whole, the request is not: another request on this connection would be read as its rest."""
        go = event.Event()

        def early(exchange):
            exchange.read_piece()
            exchange.send(answer(b"early"))
            exchange.hang()

        upstream.queue(early)
        got = line.ask(post(b"first", go, b"second", chunked=chunked, length=11))
        assert got.body == b"early"
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()
        assert not line.ask().reused
