"""Group C: bodies pass as they come, both ways; what breaks off never looks whole; who leaves is noticed."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from gateway.testing import Act, Exchange, RawClient, Truncated, answer, chunk, chunked, head
from tests.conformance.harness import request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "streaming"
UPSTREAM_TLS = True
CHUNKED = b"Transfer-Encoding: chunked"


def post(target: bytes, *lines: bytes) -> bytes:
    return request(target, *lines, method=b"POST")


class TestAnswersAsTheyCome:
    @pytest.mark.parametrize("line", [CHUNKED, b"Content-Length: 5", b"X: until the end"])
    def test_the_head_before_any_body(self, scene, upstream, line):
        go = threading.Event()
        upstream.answer([head(200, b"X-Early: yes", line), go, chunked(b"hello") if line is CHUNKED else b"hello", Act.CLOSE])
        with scene.client() as client:
            client.send(request())
            response = client.read_head()
            assert (response.status, response.header(b"x-early")) == (200, b"yes")
            go.set()
            assert b"hello" in client.read_until(b"hello")

    @pytest.mark.parametrize("line", [CHUNKED, b"Content-Length: 120", b"Content-Type: text/event-stream"])
    def test_events_one_by_one(self, scene, upstream, line):
        """The next event is sent only once the client has seen the one before."""
        seen = [threading.Event() for _ in range(10)]

        def events(exchange: Exchange) -> None:
            exchange.send(head(200, line))
            for number, event in enumerate(seen):
                data = b"data: %04d\n\n" % number
                exchange.send(chunk(data) if line is CHUNKED else data)
                assert event.wait(10)
            exchange.send(b"0\r\n\r\n" if line is CHUNKED else b"")
            exchange.wire.close()

        upstream.answer(events)
        with scene.client() as client:
            client.send(request())
            client.read_head()
            for number, event in enumerate(seen):
                piece = client.read_until(b"\n\n")
                assert b"data: %04d" % number in piece
                event.set()

    def test_chunked_in_chunked_out(self, scene, upstream):
        pieces = [b"a", b"b" * 5000, b"c" * 100_000, b"\r\n0\r\n\r\n"]
        upstream.answer([head(200, CHUNKED), b"1;ext=1;q=\"a\"\r\na\r\n", *map(chunk, pieces[1:]), b"000;last\r\n\r\n"])
        with scene.client() as client:
            response = client.request(request())
            assert (response.body, response.framing) == (b"".join(pieces), "chunked")
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"

    def test_sizes_in_any_spelling(self, scene, upstream):
        upstream.answer([head(200, CHUNKED), b"0005\r\nhello\r\nA\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"])
        assert scene.ask(request()).body == b"hello01234567890123456789"

    @pytest.mark.parametrize("cut", range(1, 40, 3))
    def test_chunk_borders_are_not_packet_borders(self, scene, upstream, cut):
        data = head(200, CHUNKED)[-4:] + chunked(b"hello", b"world wide", b"!")
        upstream.answer([head(200, CHUNKED)[:-4], data[:cut], 0.005, data[cut:]])
        assert scene.ask(request()).body == b"helloworld wide!"

    def test_until_the_end_of_the_connection(self, scene, upstream):
        upstream.answer([head(200), b"hello", 0.01, b" world", Act.CLOSE])
        assert scene.ask(request()).body == b"hello world"

    def test_an_empty_chunked_body(self, scene, upstream):
        upstream.answer(head(200, CHUNKED) + chunked())
        with scene.client() as client:
            assert client.request(request()).body == b""
            assert client.request(request()).body == b""


class TestCutAnswers:
    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize(
        "script",
        [
            [head(200, b"Content-Length: 10"), b"hello"],
            [head(200, b"Content-Length: 10"), 0.02, b"hello", 0.02],
            [head(200, b"Content-Length: 10")],
            [head(200, b"Content-Length: 1000000"), b"x" * 300_000, 0.05],
            [head(200, CHUNKED), chunk(b"hello")],
            [head(200, CHUNKED), 0.02, chunk(b"hello"), 0.02],
            [head(200, CHUNKED), chunk(b"hello"), b"5\r\nwor"],
            [head(200, CHUNKED), chunk(b"hello"), b"5"],
            [head(200, CHUNKED), chunk(b"hello"), b"0\r\n"],
            [head(200, CHUNKED)],
        ],
    )
    def test_never_look_whole(self, scene, upstream, script, end):
        upstream.answer([*script, 0.02, end])
        with scene.client() as client:
            client.send(request(b"/cut"))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()
            assert client.ended()
        assert len(upstream.requests) == 1, "tried again after the head was there"

    def test_are_logged(self, scene, upstream):
        upstream.answer([head(200, b"Content-Length: 10"), b"hello", 0.02, Act.CLOSE])
        with scene.client() as client:
            client.send(request(b"/cut-logged"))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()
        record = scene.gateway.logged("/cut-logged")
        assert (record["status"], record["reason"], record["attempts"]) == (200, "upstream_truncated", 1)
        assert record["cause"]

    def test_a_reset_without_a_length_is_no_end(self, scene, upstream):
        upstream.answer([head(200), b"hello", 0.05, Act.RESET])
        with scene.client() as client:
            client.send(request())
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()


class TestMoreThanTheAnswer:
    """What is behind an answer belongs to nobody, and its connection is not used again."""

    @pytest.mark.parametrize("gap", [0.0, 0.05])
    @pytest.mark.parametrize(
        "first",
        [
            head(200, b"Content-Length: 5") + b"hello",
            head(200, CHUNKED) + chunked(b"hello"),
        ],
    )
    @pytest.mark.parametrize("extra", [b"x", b"\r\n", answer(b"second") + answer(b"third"), head(100), b"0\r\n\r\n"])
    def test_is_dropped(self, scene, upstream, first, gap, extra):
        upstream.queue([first + extra] if not gap else [first, gap, extra, Act.HANG])
        upstream.answer(answer(b"after"))
        with scene.client() as client:
            response = client.request(request())
            assert response.body == b"hello"
            if gap:
                # The gateway has seen the stray bytes and ended their connection.
                upstream.wait_aborted()
            assert client.request(request(b"/after")).body == b"after"
        assert upstream.requests[0].connection != upstream.requests[1].connection

    @pytest.mark.parametrize("gap", [0.0, 0.05])
    @pytest.mark.parametrize(
        ("method", "status", "line"),
        [
            (b"HEAD", 200, b"Content-Length: 5"), (b"HEAD", 200, CHUNKED), (b"GET", 204, b"Content-Length: 5"),
            (b"GET", 204, b"X: y"), (b"GET", 304, b"Content-Length: 5"), (b"GET", 304, b"X: y"), (b"GET", 204, CHUNKED),
            (b"GET", 304, CHUNKED),
        ],
    )  # fmt: skip
    def test_a_body_where_none_may_be(self, scene, upstream, method, status, line, gap):
        body = chunked(b"hello") if line is CHUNKED else b"hello"
        upstream.queue([head(status, line) + body] if not gap else [head(status, line), gap, body, Act.HANG])
        upstream.answer(answer(b"after"))
        with scene.client() as client:
            response = client.request(request(method=method))
            # A message that contradicts itself may also be refused
            assert response.status in (status, 502)
            if gap:
                upstream.wait_aborted()
            assert client.request(request(b"/after")).body == b"after"
        assert upstream.requests[0].connection != upstream.requests[1].connection

    @pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
    def test_stray_bytes_after_the_next_request_was_sent(self, scene, upstream, method, status):
        """They may spoil that request, but are never its answer."""
        upstream.queue(head(status, b"Content-Length: 5"))
        upstream.answer([b"hello", answer(b"after")])
        with scene.client() as client:
            assert client.request(request(method=method)).status == status
            response = client.request(request(b"/after"))
            if response.status == 200:
                assert response.body == b"after"
            else:
                assert response.header(b"gateway-error") == b"bad_response"

    def test_no_answer_of_one_client_reaches_another(self, scene, upstream):
        """A stray answer that is there before the next request is sent belongs to nobody. (One that comes after it
        cannot be told from the true answer: RFC 9112 §9.3 has no other bond than the order.)"""
        evil = answer(b"stolen")
        upstream.serve(b"/hostile", [answer(b"hostile") + evil])
        upstream.serve(b"/late", [answer(b"late"), 0.01, evil, Act.HANG])
        upstream.serve(b"/plain", lambda exchange: exchange.send(answer(exchange.request.target)))
        with scene.client() as attacker, scene.client() as victim:
            for number in range(20):
                attacker.request(request([b"/hostile", b"/late"][number % 2]))
                # The gateway ends the connection of a late one once it has seen that.
                upstream.wait_aborted((number + 1) // 2)
                assert victim.request(request(b"/plain/%d" % number)).body == b"/plain/%d" % number


class TestUploadsAsTheyCome:
    @pytest.mark.parametrize("is_chunked", [True, False])
    def test_each_piece_before_the_next(self, scene, upstream, is_chunked):
        reached: list[threading.Event] = [threading.Event() for _ in range(5)]

        def read(exchange: Exchange) -> None:
            for number, event in enumerate(reached):
                while b"piece%d" % number not in exchange.request.body:
                    assert exchange.read_piece()
                event.set()
            if is_chunked:
                while not exchange.request.body.endswith(b"0\r\n\r\n"):
                    assert exchange.read_piece()
            exchange.request.complete = True
            exchange.send(answer(b"done"))

        upstream.answer(read)
        with scene.client() as client:
            client.send(post(b"/up", CHUNKED if is_chunked else b"Content-Length: 30"))
            for number, event in enumerate(reached):
                client.send(chunk(b"piece%d" % number) if is_chunked else b"piece%d" % number)
                assert event.wait(10), f"piece {number} did not reach the upstream"
            client.send(b"0\r\n\r\n" if is_chunked else b"")
            assert client.read_response().body == b"done"

    @pytest.mark.parametrize("pieces", [[], [b"a"], [b"hello", b"\r\n0\r\n\r\n", b"x" * 70_000], [b"y"] * 200])
    def test_chunked(self, scene, upstream, pieces):
        scene.ask(post(b"/", CHUNKED) + chunked(*pieces))
        seen = upstream.wait_complete()
        assert seen.body == b"".join(pieces)
        assert len(seen.values(b"content-length") + seen.values(b"transfer-encoding")) <= 1
        if pieces:
            assert len(seen.values(b"content-length") + seen.values(b"transfer-encoding")) == 1

    def test_chunk_extensions_stay_here(self, scene, upstream):
        scene.ask(post(b"/", CHUNKED) + b"5;secret=1\r\nhello\r\n0;x\r\n\r\n")
        assert upstream.wait_complete().body == b"hello"
        assert not [wire for wire in upstream.connections if b"secret" in wire.received]

    def test_the_connection_goes_on_behind_it(self, scene, upstream):
        with scene.client() as client:
            client.send(post(b"/one", CHUNKED) + chunked(b"hello") + request(b"/two"))
            assert [client.read_response().status for _ in range(2)] == [200, 200]
        assert [seen.target for seen in upstream.requests] == [b"/one", b"/two"]

    @pytest.mark.parametrize("end", ["close", "reset"])
    @pytest.mark.parametrize("start", [b"Content-Length: 10\r\n\r\nhello", CHUNKED + b"\r\n\r\n5\r\nhello\r\n",
                                       CHUNKED + b"\r\n\r\nA\r\nhello", b"Content-Length: 100000\r\n\r\n" + b"x" * 70_000])  # fmt: skip
    def test_one_that_breaks_off_is_never_whole_upstream(self, scene, upstream, start, end):
        with scene.client() as client:
            client.send(post(b"/broken")[:-2] + start)
            upstream.wait(1)
            getattr(client, end)()
        upstream.wait_aborted()
        assert not upstream.aborted[0].complete
        assert len(upstream.requests) == 1
        record = scene.gateway.logged("/broken")
        assert (record["status"], record["reason"]) in [(499, "client_closed"), (400, "bad_request")]

    @pytest.mark.parametrize("status", [413, 401, 200])
    @pytest.mark.parametrize("end", [Act.CLOSE, Act.HANG])
    def test_an_early_answer_reaches_the_client(self, scene, upstream, status, end):
        def early(exchange: Exchange) -> None:
            while len(exchange.request.body) < 64 * 1024:
                exchange.read_piece()
            exchange.send(answer(b"early", b"Connection: close", status=status))
            exchange.run([end])

        upstream.queue(early)
        with scene.client() as client:
            client.send(post(b"/early", b"Content-Length: 100000000"))
            sender = threading.Thread(target=_pour, args=(client,), daemon=True)
            sender.start()
            response = client.read_response()
            assert (response.status, response.body) == (status, b"early")
        sender.join(10)
        assert scene.ask(request(b"/after")).body == b"ok"

    def test_an_early_answer_on_a_kept_connection(self, scene, upstream):
        """The upstream answers and reads on: its connection may only be used again when the body was whole."""

        def early(exchange: Exchange) -> None:
            exchange.send(answer(b"early"))
            exchange.read_body()

        upstream.queue(early)
        with scene.client() as client:
            client.send(post(b"/early", b"Content-Length: 10") + b"hello")
            assert client.read_response().body == b"early"
        upstream.answer(answer(b"after"))
        assert scene.ask(request(b"/after")).body == b"after"
        assert upstream.requests[-1].target == b"/after"


def _pour(client: RawClient) -> None:
    try:
        for _ in range(1600):
            client.send(b"x" * 65536)
    except (OSError, AttributeError):
        pass  # the gateway has answered; a TLS socket of gevent that is closed meanwhile has nothing left to write to


class TestTrailers:
    @pytest.mark.parametrize("announced", [True, False])
    def test_of_answers_are_no_headers(self, scene, upstream, announced):
        lines = [b"Trailer: X-Sum, Set-Cookie"] if announced else []
        trailers = [b"X-Sum: 1", b"Set-Cookie: evil=1"]
        upstream.answer([head(200, CHUNKED, *lines), chunked(b"hello", trailers=trailers)])
        with scene.client() as client:
            response = client.request(request(b"/", b"TE: trailers", b"Connection: TE"))
            assert response.body == b"hello"
            assert response.values(b"x-sum") == response.values(b"set-cookie") == []
            assert {name.lower() for name, _ in response.trailers} <= {b"x-sum"}
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"

    @pytest.mark.parametrize("trailer", [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Host: evil.test", b"Connection: close"])
    def test_that_may_not_be_there_do_no_harm(self, scene, upstream, trailer):
        """RFC 9110 §6.5.1: refused or ignored."""
        upstream.queue([head(200, CHUNKED), chunked(b"hello", trailers=[trailer])])
        with scene.client() as client:
            client.send(request(b"/", method=b"POST", body=b""))
            try:
                response = client.read_response()
                assert (response.status, response.body) == (200, b"hello") or response.header(b"gateway-error") == b"bad_response"
                assert response.values(b"host") == []
            except (Truncated, ConnectionResetError):
                pass  # refused after the head had gone on
        assert scene.ask(request()).body == b"ok"

    def test_of_requests_take_no_effect(self, scene, upstream):
        trailers = [b"Host: evil.test", b"Content-Length: 3", b"Transfer-Encoding: x", b"Authorization: evil",
                    b"X-Forwarded-For: 6.6.6.6", b"X-Sum: 1", b"Connection: close", b"Cookie: evil=1"]  # fmt: skip
        with scene.client() as client:
            response = client.request(post(b"/trailers", CHUNKED, b"Trailer: X-Sum") + chunked(b"hello", trailers=trailers))
            assert response.status in (200, 400)
            if response.status == 200:
                assert client.request(request(b"/after")).body == b"ok"
        seen = [it for it in upstream.requests if it.target == b"/trailers" and it.complete]
        for it in seen:
            assert it.header(b"host") == b"example.test"
            assert it.values(b"authorization") == it.values(b"cookie") == it.values(b"x-sum") == []
            assert it.header(b"x-forwarded-for") == b"127.0.0.1"
            assert {name.lower() for name, _ in it.trailers} <= {b"x-sum"}


class TestClientGone:
    @stock_limit("client-gone")
    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_before_the_head(self, scene, upstream, end):
        upstream.answer([Act.HANG])
        target = b"/patient/gone-" + end.encode()
        with scene.client() as client:
            client.send(request(target))
            upstream.wait(1)
            getattr(client, end)()
        upstream.wait_aborted(within=3)
        record = scene.gateway.logged(target.decode())
        assert (record["status"], record["reason"]) == (499, "client_closed")

    @stock_limit("client-gone-silent-stream")
    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_in_the_middle_of_a_silent_stream(self, scene, upstream, end):
        upstream.answer([head(200, CHUNKED), chunk(b"hello"), Act.HANG])
        target = b"/left-" + end.encode()
        with scene.client() as client:
            client.send(request(target))
            client.read_until(b"hello\r\n")
            getattr(client, end)()
        upstream.wait_aborted(within=3)
        assert scene.gateway.logged(target.decode())["reason"] == "client_closed"

    def test_while_bytes_flow(self, scene, upstream):
        def pour(exchange: Exchange) -> None:
            exchange.send(head(200, CHUNKED))
            while True:
                exchange.send(chunk(b"x" * 10_000))

        upstream.answer(pour)
        with scene.client() as client:
            client.send(request(b"/flow"))
            client.read_exactly(100_000)
            client.reset()
        upstream.wait_aborted(within=3)
        record = scene.gateway.logged("/flow")
        assert record["reason"] == "client_closed"
        assert record["bytes_out"] >= 50_000

    def test_a_half_close_is_not_gone(self, scene, upstream):
        go = threading.Event()
        upstream.answer([go, head(200, CHUNKED), chunk(b"hel"), 0.05, chunked(b"lo")])
        with scene.client() as client:
            client.send(request())
            upstream.wait(1)
            client.half_close()
            time.sleep(0.1)  # long enough to be seen, far below `half_close`
            go.set()
            assert client.read_response().body == b"hello"
            assert client.ended()

    def test_a_half_close_behind_the_request(self, scene, upstream):
        upstream.answer([0.2, answer(b"hello")])
        with scene.client() as client:
            client.send(request())
            client.half_close()
            assert client.read_response().body == b"hello"


class TestSlowReader:
    SIZE = 64 << 20

    def test_memory_stays_flat_and_the_upstream_is_held(self, scene, upstream):
        sent = [0]
        finished = threading.Event()

        def pour(exchange: Exchange) -> None:
            exchange.send(head(200, b"Content-Length: %d" % self.SIZE))
            # The kernel's own buffers would hide much of what this looks for
            exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            while sent[0] < self.SIZE:
                exchange.send(b"x" * 65536)
                sent[0] += 65536
            finished.set()

        upstream.queue(pour)
        before = scene.gateway.resident()
        with scene.client(receive_buffer=65536) as slow:
            slow.send(request(b"/slow-reader"))
            slow.read_head()
            last = -1
            while sent[0] != last:  # until the upstream is blocked
                last = sent[0]
                time.sleep(0.3)
            assert not finished.is_set(), "the whole body was taken from the upstream"
            assert scene.gateway.resident() - before < 20 << 20
            assert scene.ask(request(b"/meanwhile")).body == b"ok"
            total = len(slow.buffer)
            slow.take(total)
            while total < self.SIZE:
                total += len(slow.read_some())
                slow.received.clear()
            assert finished.wait(10)
