"""Group D, upstreams that fail: which answer the client gets, what the log says, and that nothing leaks."""

from __future__ import annotations

import threading
import time

import pytest

from gateway.testing import Act, Exchange, Truncated, answer, chunk, chunked, head
from tests.conformance.harness import check_problem, request

SCENE = "standard"
UPSTREAM_TLS = True
CHUNKED = b"Transfer-Encoding: chunked"
POST = request(b"/fault", method=b"POST", body=b"x")


def fails(scene, data, status, reason):
    """The gateway answers with that problem, logs it with a cause, and is well afterwards."""
    response = scene.ask(data)
    problem = check_problem(response, status, reason)
    target = data.split(b" ")[1].decode()
    record = scene.gateway.logged(target, where=lambda it: it["request_id"] == problem["request_id"])
    assert (record["status"], record["reason"]) == (status, reason)
    assert record["cause"]
    scene.upstreams["main"].answer(answer(b"after"))
    assert scene.ask(request(b"/after")).body == b"after"
    return record


class TestConnecting:
    @pytest.mark.parametrize("method", [b"GET", b"POST"])
    def test_refused(self, scene, method):
        record = fails(scene, request(b"/refused/x", method=method, body=b"abc"), 502, "connect_refused")
        assert record["upstream"] == "refused"
        assert "refused" in record["cause"].lower()

    def test_blackhole(self, scene):
        # The kernel alone would try for two minutes, which is longer than this client waits.
        fails(scene, request(b"/silent/x"), 504, "connect_timeout")

    @pytest.mark.parametrize("target", [b"/refused/x", b"/unrouted"])
    def test_head_gets_a_head(self, scene, target):
        with scene.client() as client:
            response = client.request(request(target, method=b"HEAD"))
            reason = "connect_refused" if target == b"/refused/x" else "no_route"
            check_problem(response, response.status, reason, b"HEAD")
            assert int(response.header(b"content-length") or 0) > 0
            assert client.request(request()).body == b"ok"

    def test_is_not_negotiated(self, scene):
        check_problem(scene.ask(request(b"/unrouted", b"Accept: text/html")), 404, "no_route")


class TestNoAnswer:
    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    def test_hangs_up(self, scene, upstream, end):
        upstream.answer([end])
        record = fails(scene, POST, 502, "upstream_reset")
        assert record["attempts"] == 1
        assert len([it for it in upstream.requests if it.method == b"POST"]) == 1

    def test_hangs_up_on_a_get(self, scene, upstream):
        upstream.answer([Act.CLOSE])
        record = fails(scene, request(b"/get-hang-up"), 502, "upstream_reset")
        assert 1 <= record["attempts"] <= 2

    def test_hangs_up_before_the_request_is_whole(self, scene, upstream):
        def hang_up(exchange: Exchange) -> None:
            exchange.read_piece()
            exchange.wire.reset()

        upstream.answer(hang_up)
        response = scene.ask(request(b"/fault", method=b"POST", body=b"x" * 3_000_000))
        check_problem(response, 502, "upstream_reset")
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nX: ", head(200, b"X: y")[:-2]])
    def test_half_a_head(self, scene, upstream, part, end):
        upstream.answer([part, 0.03, end])
        fails(scene, request(b"/half-head"), 502, "upstream_reset")
        assert len([it for it in upstream.requests if it.target == b"/half-head"]) == 1, "tried again although bytes had come"

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nX: y\r\n", head(100, reason=b"Continue")])
    def test_stalls(self, scene, upstream, part):
        upstream.answer([part, Act.HANG])
        fails(scene, request(b"/quick/stalled"), 504, "response_timeout")
        upstream.wait_aborted()
        assert len([it for it in upstream.requests if it.target.startswith(b"/quick")]) == 1

    def test_no_limit(self, scene, upstream):
        upstream.answer([1.0, answer(b"late")])
        assert scene.ask(request(b"/patient")).body == b"late"

    @pytest.mark.parametrize("script", [[Act.HANG], [b"HTTP/1.1 200 OK\r\n", Act.HANG]])
    def test_deadline(self, scene, upstream, script):
        upstream.answer(script)
        fails(scene, request(b"/deadline"), 504, "deadline_exceeded")
        upstream.wait_aborted()

    def test_the_deadline_does_not_cut_a_body(self, scene, upstream):
        upstream.answer([head(200, b"Content-Length: 4"), b"o", 0.8, b"k", 0.3, b"!!"])
        assert scene.ask(request(b"/deadline")).body == b"ok!!"


class TestStreamsThatStall:
    @pytest.mark.parametrize("line", [CHUNKED, b"Content-Length: 10", b"X: until the end"])
    def test_are_broken(self, scene, upstream, line):
        upstream.answer([head(200, line), chunk(b"hello") if line is CHUNKED else b"hello", Act.HANG])
        target = b"/quick/idle-%d" % len(line)
        with scene.client() as client:
            client.send(request(target))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()
        upstream.wait_aborted()
        record = scene.gateway.logged(target.decode())
        assert (record["status"], record["reason"]) == (200, "upstream_stalled")

    def test_a_steady_drip_is_not(self, scene, upstream):
        drip = [step for _ in range(6) for step in (0.3, chunk(b"x"))]
        upstream.answer([head(200, CHUNKED), *drip, chunked()])
        assert scene.ask(request(b"/quick/drip")).body == b"xxxxxx"

    @pytest.mark.parametrize("script", [answer(b"done"), head(200, CHUNKED) + chunked(b"done")])
    def test_a_whole_body_needs_no_end_of_the_connection(self, scene, upstream, script):
        upstream.answer(script)  # and keeps the connection
        assert scene.ask(request(b"/whole")).body == b"done"


BAD_HEADS = [
    b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n: no name\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX\x00Y: x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded: first\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\x7f\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
]
BAD_FRAMING = [
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5, 6",
    b"Content-Length: -1",
    b"Content-Length: +5",
    b"Content-Length: 0x5",
    b"Content-Length: 5 5",
    b"Content-Length: 5a",
    b"Content-Length: 1e1",
    b"Content-Length: \xb2",
    b"Content-Length: 99999999999999999999999999",
    b"Transfer-Encoding: foo",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:",
    b"Transfer-Encoding: chunked;a=b",
    b"Transfer-Encoding: ,chunked",
]
BAD_STATUS_LINES = [
    b"HTTP/0.9 200 OK", b"HTTP/2.0 200 OK", b"HTTP/3 200 OK", b"ICY 200 OK", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK", b"HTTP/1.1 abc OK", b"HTTP/1.1 -20 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 099 OK", b"http/1.1 200 OK",
    b"HTTP/1.1\t200 OK", b"HTTP /1.1 200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 200 O\x00K", b"220 mail.test ESMTP", b"GET / HTTP/1.1",
    b"\x15\x03\x01\x00\x02\x02\x16", b"<html>", b"HTTP/11 200 OK", b"HTTP/1.1 1200 OK",
]  # fmt: skip


class TestMalformedAnswers:
    @pytest.mark.parametrize("data", BAD_HEADS)
    def test_heads(self, scene, upstream, data):
        """Refused, or read with the harm taken out; never passed on, and nothing behind it is swallowed."""
        upstream.answer([data, Act.CLOSE])
        response = scene.ask(request(b"/bad-head", method=b"POST", body=b"x"))
        if response.status != 200:
            check_problem(response, 502, "bad_response")
        assert response.values(b"set-cookie") == []
        assert b"evil" not in response.body

    def test_a_bare_lf_ends_a_line(self, scene, upstream):
        """RFC 9112 §2.2; what follows is a field of its own, as for other proxies, and never part of a value."""
        upstream.answer([b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\nContent-Length: 0\r\n\r\n"])
        response = scene.ask(request())
        assert (response.status, response.values(b"x"), response.values(b"y")) == (200, [b"a"], [b"b"])

    @pytest.mark.parametrize("data", BAD_HEADS[:6])
    def test_hopeless_heads_are_refused(self, scene, upstream, data):
        upstream.answer([data, Act.CLOSE])
        fails(scene, POST, 502, "bad_response")

    @pytest.mark.parametrize("lines", BAD_FRAMING)
    def test_framing(self, scene, upstream, lines):
        upstream.answer([b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\n" + b"5\r\nhello\r\n0\r\n\r\n", Act.CLOSE])
        fails(scene, POST, 502, "bad_response")

    @pytest.mark.parametrize("lines", [b"Content-Length: 5, 5", b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 05"])
    def test_a_length_said_twice(self, scene, upstream, lines):
        """RFC 9110 §8.6: refused, or one length; never a wait for the end of the connection."""
        upstream.answer([b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\nhello", Act.HANG])
        response = scene.ask(request(b"/quick/twice", method=b"POST", body=b"x"))
        if response.status == 200:
            assert (response.body, response.header(b"content-length")) == (b"hello", b"5")
            upstream.hang_up()  # kept by the gateway, and nobody listens there any more
        else:
            check_problem(response, 502, "bad_response")

    def test_an_empty_length(self, scene, upstream):
        upstream.answer([b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", Act.CLOSE])
        fails(scene, POST, 502, "bad_response")

    @pytest.mark.parametrize("lines", [(b"Content-Length: 3", CHUNKED), (CHUNKED, b"Content-Length: 3"),
                                       (b"Content-Length: 15", CHUNKED)])  # fmt: skip
    def test_length_and_chunked(self, scene, upstream, lines):
        """RFC 9112 §6.3: refused, or chunked alone."""
        upstream.queue([head(200, *lines) + chunked(b"hello")])
        with scene.client() as client:
            response = client.request(POST)
            if response.status == 200:
                assert response.body == b"hello"
            else:
                check_problem(response, 502, "bad_response")
        assert scene.ask(request(b"/after")).body == b"ok"

    def test_chunked_in_http_1_0(self, scene, upstream):
        upstream.answer([b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello"), Act.CLOSE])
        response = scene.ask(POST)
        if response.status == 200:
            assert response.body == b"hello"
        else:
            check_problem(response, 502, "bad_response")

    @pytest.mark.parametrize("line", BAD_STATUS_LINES)
    def test_status_lines(self, scene, upstream, line):
        upstream.answer([line + b"\r\nContent-Length: 0\r\n\r\n", Act.CLOSE])
        fails(scene, POST, 502, "bad_response")

    @pytest.mark.parametrize("line", [b"HTTP/1.9 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 200 "])
    def test_odd_status_lines(self, scene, upstream, line):
        upstream.answer([line + b"\r\nContent-Length: 2\r\n\r\nok", Act.CLOSE])
        response = scene.ask(POST)
        if response.status == 200:
            assert (response.body, response.version) == (b"ok", b"HTTP/1.1")
        else:
            check_problem(response, 502, "bad_response")

    def test_a_head_without_an_end(self, scene, upstream):
        def pour(exchange: Exchange) -> None:
            exchange.send(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100_000):
                exchange.send(b"X: %s\r\n" % (b"a" * 100))

        upstream.answer(pour)
        fails(scene, POST, 502, "bad_response")

    @pytest.mark.parametrize(
        "bad",
        [
            b"x\r\nhello\r\n", b"\r\nhello\r\n", b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n", b"-5\r\nhello\r\n", b" 5\r\nhello\r\n",
            b"5_0\r\nhello\r\n", b"5\r\nhelloX\r\n", b"5\r\nhello0\r\n\r\n", b"5\nhello\n0\n\n", b"fffffffffffffffff\r\nhello\r\n",
            b"5;ext\nx\r\nhello\r\n", b"5\r\nhello\n\r0\r\n\r\n",
        ],
    )  # fmt: skip
    def test_chunks(self, scene, upstream, bad):
        go = threading.Event()
        upstream.answer([head(200, CHUNKED), chunk(b"good"), go, bad + b"0\r\n\r\n", Act.CLOSE])
        with scene.client() as client:
            client.send(request(b"/bad-chunk"))
            while b"good" not in client.buffer:
                assert client.fill()
            go.set()
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()
        record = scene.gateway.logged("/bad-chunk")
        assert record["status"] == 200
        assert record["reason"] in ("bad_response", "upstream_truncated")
        upstream.answer(answer(b"after"))
        assert scene.ask(request(b"/after")).body == b"after"

    def test_a_bad_first_chunk_in_the_heads_packet(self, scene, upstream):
        """Nothing was passed on yet: a 502 or a broken answer, never a whole one."""
        upstream.answer([head(200, CHUNKED) + b"x\r\nhello\r\n0\r\n\r\n", Act.CLOSE])
        with scene.client() as client:
            client.send(POST)
            try:
                response = client.read_response()
            except (Truncated, ConnectionResetError):
                return
            check_problem(response, 502, "bad_response")


class TestPoolLimits:
    def test_full(self, scene, upstream):
        go = threading.Event()
        upstream.queue([go, answer(b"first")])
        with scene.client() as first:
            first.send(request(b"/narrow/first"))
            upstream.wait(1)
            check_problem(scene.ask(request(b"/narrow/second")), 503, "pool_full")
            go.set()
            assert first.read_response().body == b"first"
        assert scene.ask(request(b"/narrow/third")).body == b"ok"
        assert [it.target for it in upstream.requests] == [b"/narrow/first", b"/narrow/third"]

    def test_who_waits_is_served(self, scene, upstream):
        upstream.queue([0.2, answer(b"first")])
        with scene.client() as first, scene.client() as second:
            first.send(request(b"/narrow/first"))
            upstream.wait(1)
            second.send(request(b"/narrow/second"))
            assert (first.read_response().body, second.read_response().body) == (b"first", b"ok")

    @pytest.mark.parametrize("script", [[Act.CLOSE], [b"junk\r\n\r\n"], [head(200, b"Content-Length: 9"), b"x", 0.02, Act.CLOSE],
                                        [head(200, CHUNKED), b"zz\r\n", Act.CLOSE]])  # fmt: skip
    def test_a_failure_gives_its_place_back(self, scene, upstream, script):
        for _ in range(3):
            upstream.queue(script)
            with scene.client() as client:
                client.send(request(b"/narrow/failing", method=b"POST", body=b""))
                try:
                    assert client.read_response().status == 502
                except (Truncated, ConnectionResetError):
                    pass  # after the head
            assert scene.ask(request(b"/narrow/after")).body == b"ok"


class TestNothingLeaks:
    FAILURES = (
        [Act.CLOSE], [Act.RESET], [b"junk\r\n\r\n"], [b"HTTP/1.1 200 OK\r\nX", Act.CLOSE],
        [head(200, b"Content-Length: 9"), b"x", Act.CLOSE], [head(200, b"Content-Length: 9"), b"x", Act.RESET],
        [head(200, CHUNKED), chunk(b"x"), Act.CLOSE], [head(200, CHUNKED), b"zz\r\n"], [answer(b"ok") + b"more"],
        [head(101), Act.CLOSE], [head(204, b"Content-Length: 5") + b"hello"],
    )  # fmt: skip

    def test_after_many_failures(self, scene, upstream):
        scene.ask(request())
        before = scene.gateway.open_sockets()
        for number in range(330):
            upstream.queue(self.FAILURES[number % len(self.FAILURES)])
            with scene.client() as client:
                client.send(request(b"/leak", method=b"POST", body=b"x"))
                try:
                    client.read_response()
                except (Truncated, ConnectionResetError):
                    pass  # broken off, as it should
        deadline = time.monotonic() + 10
        while scene.gateway.open_sockets() > before + 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert scene.gateway.open_sockets() <= before + 5

    def test_after_many_clients_that_left(self, scene, upstream):
        before = scene.gateway.open_sockets()
        upstream.answer([0.1, answer(b"x" * 100_000)])
        for number in range(100):
            with scene.client() as client:
                client.send(request(b"/leak"))
                if not number:  # the others may be gone before the upstream has heard of them
                    upstream.wait(1)
                client.reset()
        deadline = time.monotonic() + 10
        while scene.gateway.open_sockets() > before + 110 and time.monotonic() < deadline:
            time.sleep(0.05)
        # up to a hundred connections to the upstream may be kept; none of the clients'
        upstream.hang_up()
        upstream.answer(answer(b"after"))
        assert scene.ask(request(b"/after")).body == b"after"
        # A worker that cannot see that they left tries again what was hung up: that ends here, and not in the next test.
        seen = -1
        while seen != len(upstream.requests):
            seen = len(upstream.requests)
            time.sleep(0.3)
