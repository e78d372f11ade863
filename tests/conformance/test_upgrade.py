"""Group C, upgrades: a tunnel when both sides say so, and never otherwise (RFC 9110 §7.8).

An application cannot do this on gunicorn's own worker, so it is our worker that is asked.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import threading
import time

import pytest

from gateway.testing import PATIENCE, Act, Exchange, Truncated, answer, chunked, head
from tests.conformance.harness import check_problem, request

SCENE = "standard"
UPSTREAM_TLS = True
pytestmark = pytest.mark.own_worker("gunicorn's worker has no upgrades")

KEY = (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13")
ASK = (b"Connection: Upgrade", b"Upgrade: websocket", *KEY)
ACCEPT = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
SWITCH = head(101, *ACCEPT, reason=b"Switching Protocols")


def echo(exchange: Exchange) -> None:
    exchange.send(SWITCH)
    while data := exchange.wire.read_some():
        exchange.send(data)
    exchange.wire.half_close()


def opened(client, target: bytes = b"/ws", *lines: bytes):
    response = client.request(request(target, *(lines or ASK)))
    assert response.status == 101, response
    return response


class TestHandshake:
    def test_both_heads(self, scene, upstream):
        upstream.answer([head(101, *ACCEPT, b"Keep-Alive: timeout=5", b"Proxy-Authenticate: x", b"X-Its: own"), Act.HANG])
        with scene.client() as client:
            response = opened(client)
            assert response.header(b"upgrade").lower() == b"websocket"
            assert response.header(b"connection").lower() == b"upgrade"
            assert response.header(b"sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert response.header(b"x-its") == b"own"
            assert response.values(b"keep-alive") + response.values(b"proxy-authenticate") == []
            assert response.values(b"content-length") + response.values(b"transfer-encoding") == []
        seen = upstream.requests[0]
        assert seen.header(b"upgrade").lower() == b"websocket"
        assert seen.header(b"connection").lower() == b"upgrade"
        assert seen.header(b"sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="

    @pytest.mark.parametrize(("target", "seen"), [(b"/ws/%2f?a=%zz", b"/ws/%2f?a=%zz"), (b"/strip/ws?x", b"/ws?x"),
                                                 (b"/based/ws", b"/a%2Fb/ws?sta=tic")])  # fmt: skip
    def test_target(self, scene, upstream, target, seen):
        upstream.answer(echo)
        with scene.client() as client:
            opened(client, target)
        assert upstream.requests[0].target == seen

    @pytest.mark.parametrize(("target", "host"), [(b"/ws", b"example.test"), (b"/literal", b"inside.test")])
    def test_host_and_origin(self, scene, upstream, target, host):
        upstream.answer(echo)
        with scene.client() as client:
            opened(client, target, *ASK, b"Origin: https://example.test", b"Sec-WebSocket-Protocol: a, b")
        seen = upstream.requests[0]
        assert seen.header(b"host") == host
        assert seen.header(b"origin") == b"https://example.test"
        assert seen.header(b"sec-websocket-protocol") == b"a, b"
        assert seen.header(b"x-forwarded-for") == b"127.0.0.1"

    @pytest.mark.parametrize("lines", [
        (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"), (b"connection: UPGRADE", b"UPGRADE: WebSocket"),
        (b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: websocket")])  # fmt: skip
    def test_spellings(self, scene, upstream, lines):
        upstream.answer(echo)
        with scene.client() as client:
            opened(client, b"/ws", *lines, *KEY)
            client.send(b"hi")
            assert client.read_exactly(2) == b"hi"

    @pytest.mark.parametrize("lines", [(b"Upgrade: websocket", *KEY), (b"Connection: Upgrade", *KEY), (b"Connection: close", b"Upgrade: websocket"),
                                       (b"Connection: Upgrade", b"Upgrade: foo"), (b"Connection: Upgrade", b"Upgrade: h2c"),
                                       (b"Connection: Upgrade", b"Upgrade:")])  # fmt: skip
    def test_what_is_no_upgrade_is_a_request(self, scene, upstream, lines):
        with scene.client() as client:
            response = client.request(request(b"/plain", *lines))
            assert response.status in (200, 400)
        for seen in upstream.requests:
            assert seen.values(b"upgrade") == []

    @pytest.mark.parametrize("method", [b"POST", b"PUT", b"HEAD", b"OPTIONS"])
    def test_of_another_method(self, scene, upstream, method):
        upstream.answer([head(101, *ACCEPT), Act.HANG])
        with scene.client() as client:
            client.send(request(b"/ws", *ASK, method=method))
            assert client.read_response(method).status != 101

    def test_of_http_1_0(self, scene, upstream):
        scene.ask(request(b"/ws", *ASK, version=b"HTTP/1.0"))
        assert upstream.last.values(b"upgrade") == []

    @pytest.mark.parametrize("is_chunked", [False, True])
    @pytest.mark.parametrize("method", [b"GET", b"POST"])
    def test_with_a_body(self, scene, upstream, method, is_chunked):
        """No tunnel over an unread body; and the body is never a request."""
        inner = request(b"/evil")
        lines = (*ASK, b"Transfer-Encoding: chunked") if is_chunked else (*ASK, b"Content-Length: %d" % len(inner))
        with scene.client() as client:
            client.send(request(b"/ws", *lines, method=method) + (chunked(inner) if is_chunked else inner) + request(b"/marker"))
            assert client.read_response(method).status in (200, 400)
            try:
                assert client.read_response().status == 200
            except (Truncated, ConnectionResetError):
                pass  # closed
        assert b"/evil" not in [seen.target for seen in upstream.requests]
        assert all(seen.values(b"upgrade") == [] for seen in upstream.requests)


class TestOtherProtocols:
    """What a route's `upgrade` names, by any method: kubectl exec is a POST with SPDY/3.1, docker attach one with tcp."""

    @pytest.mark.parametrize("length", [(), (b"Content-Length: 0",)])
    @pytest.mark.parametrize("token", [b"SPDY/3.1", b"spdy/3.1", b"tcp"])
    @pytest.mark.parametrize("method", [b"POST", b"GET"])
    def test_become_a_tunnel(self, scene, upstream, method, token, length):
        upstream.answer([head(101, b"Connection: Upgrade", b"Upgrade: " + token, b"X-Stream-Protocol-Version: v4.channel.k8s.io")
                         + b"early", b"", Act.HANG])  # fmt: skip
        with scene.client() as client:
            lines = (b"Connection: Upgrade", b"Upgrade: " + token, b"X-Stream-Protocol-Version: v4.channel.k8s.io", *length)
            response = client.request(request(b"/exec/api?command=sh", *lines, method=method))
            assert (response.status, response.header(b"upgrade").lower()) == (101, token.lower())
            assert response.header(b"x-stream-protocol-version") == b"v4.channel.k8s.io"
            assert client.read_exactly(5) == b"early"
        seen = upstream.last
        assert (seen.method, seen.target, seen.header(b"upgrade").lower()) == (method, b"/exec/api?command=sh", token.lower())
        assert seen.header(b"connection").lower() == b"upgrade"

    def test_carry_bytes_both_ways(self, scene, upstream):
        def attach(exchange: Exchange) -> None:
            exchange.send(head(101, b"Connection: Upgrade", b"Upgrade: tcp", b"Content-Type: application/vnd.docker.raw-stream"))
            exchange.send(exchange.wire.read_to_end()[::-1])
            exchange.wire.close()

        upstream.answer(attach)
        with scene.client() as client:
            ask = (b"Content-Type: text/plain", b"Connection: Upgrade", b"Upgrade: tcp")
            client.send(request(b"/exec/attach?stdin=1", *ask, method=b"POST") + b"early ")
            assert client.read_response(b"POST").status == 101
            client.send(b"late")
            client.half_close()
            assert client.read_to_end() == b"etal ylrae"

    @pytest.mark.parametrize("framing", ["length", "chunked", "empty chunked"])
    def test_never_with_a_body(self, scene, upstream, framing):
        inner = b"" if "empty" in framing else request(b"/evil")
        lines = [b"Connection: Upgrade", b"Upgrade: SPDY/3.1"]
        lines.append(b"Content-Length: %d" % len(inner) if framing == "length" else b"Transfer-Encoding: chunked")
        with scene.client() as client:
            client.send(request(b"/exec", *lines, method=b"POST") + (inner if framing == "length" else chunked(inner) if inner else b"0\r\n\r\n"))
            assert client.read_response(b"POST").status == 200
        assert [(seen.target, seen.body, seen.values(b"upgrade")) for seen in upstream.requests] == [(b"/exec", inner, [])]

    @pytest.mark.parametrize(("target", "method", "lines"), [
        (b"/ws", b"POST", (b"Connection: Upgrade", b"Upgrade: SPDY/3.1")), (b"/ws", b"GET", (b"Connection: Upgrade", b"Upgrade: SPDY/3.1")),
        (b"/exec", b"POST", (b"Connection: Upgrade", b"Upgrade: websocket")), (b"/exec", b"POST", (b"Upgrade: SPDY/3.1",)),
        (b"/exec", b"POST", (b"Connection: Upgrade", b"Upgrade: SPDY/3.1, tcp")), (b"/exec", b"POST", (b"Connection: Upgrade", b"Upgrade: SPDY/2")),
        (b"/exec", b"POST", (b"Connection: Upgrade", b"Upgrade: tcp", b"Upgrade: SPDY/3.1"))])  # fmt: skip
    def test_what_is_no_upgrade_is_a_request(self, scene, upstream, target, method, lines):
        with scene.client() as client:
            assert client.request(request(target, *lines, method=method), method).status == 200
        assert upstream.last.values(b"upgrade") == []

    def test_of_http_1_0(self, scene, upstream):
        scene.ask(request(b"/exec", b"Connection: Upgrade", b"Upgrade: tcp", method=b"POST", version=b"HTTP/1.0"))
        assert upstream.last.values(b"upgrade") == []


class TestRefusals:
    @pytest.mark.parametrize("status", [200, 400, 401, 403, 426, 503])
    def test_pass_as_ordinary_answers(self, scene, upstream, status):
        upstream.queue(answer(b"no tunnel", b"X: y", status=status))
        with scene.client() as client:
            response = client.request(request(b"/ws", *ASK))
            assert (response.status, response.body, response.header(b"x")) == (status, b"no tunnel", b"y")
            if [value.lower() for value in response.values(b"connection")] != [b"close"]:
                assert client.request(request(b"/after")).body == b"ok"

    @pytest.mark.parametrize("lines", [(b"Upgrade: foo", b"Connection: Upgrade"), (b"Connection: Upgrade",), (),
                                       (b"Upgrade: h2c", b"Connection: upgrade"), (b"Upgrade: websocket, foo", b"Connection: upgrade")])  # fmt: skip
    def test_a_101_of_another_protocol(self, scene, upstream, lines):
        upstream.answer([head(101, *lines) + b"raw", Act.HANG])
        with scene.client() as client:
            check_problem(client.request(request(b"/ws", *ASK)), 502, "bad_response")
        upstream.wait_aborted()

    def test_an_upstream_that_is_down(self, scene):
        check_problem(scene.ask(request(b"/refused/ws", *ASK)), 502, "connect_refused")


class TestBytes:
    def test_of_the_client_behind_its_handshake(self, scene, upstream):
        upstream.answer(echo)
        with scene.client() as client:
            client.send(request(b"/ws", *ASK) + b"early bird")
            assert client.read_response().status == 101
            assert client.read_exactly(10) == b"early bird"

    def test_of_the_upstream_behind_its_101(self, scene, upstream):
        upstream.answer([SWITCH + b"early bird", Act.HANG])
        with scene.client() as client:
            opened(client)
            assert client.read_exactly(10) == b"early bird"

    def test_large_both_ways(self, scene, upstream):
        data = os.urandom(3_000_000)
        upstream.answer(echo)
        with scene.client() as client:
            opened(client)
            sender = threading.Thread(target=client.send, args=(data,), daemon=True)
            sender.start()
            assert client.read_exactly(len(data)) == data
            sender.join(10)

    def test_many_small(self, scene, upstream):
        upstream.answer(echo)
        with scene.client() as client:
            opened(client)
            for number in range(300):
                client.send(b"%06d" % number)
                assert client.read_exactly(6) == b"%06d" % number

    def test_all_of_it_is_logged(self, scene, upstream):
        upstream.answer(echo)
        with scene.client() as client:
            opened(client, b"/ws-logged")
            client.send(b"hello")
            client.read_exactly(5)
            client.half_close()
            assert client.ended()
        record = scene.gateway.logged("/ws-logged")
        assert (record["status"], record["reason"], record["bytes_in"], record["bytes_out"]) == (101, None, 5, 5)


class TestEnds:
    def test_the_client_ends_its_half(self, scene, upstream):
        def answer_at_the_end(exchange: Exchange) -> None:
            exchange.send(SWITCH)
            data = exchange.wire.read_to_end()
            exchange.send(b"got %d" % len(data))
            exchange.wire.close()

        upstream.answer(answer_at_the_end)
        with scene.client() as client:
            opened(client)
            client.send(b"x" * 1000)
            client.half_close()
            assert client.read_to_end() == b"got 1000"

    def test_the_upstream_ends_its_half(self, scene, upstream):
        got: list[bytes] = []
        done = threading.Event()

        def half(exchange: Exchange) -> None:
            exchange.send(SWITCH + b"last words")
            exchange.wire.half_close()
            got.append(exchange.wire.read_to_end())
            done.set()

        upstream.answer(half)
        with scene.client() as client:
            opened(client)
            assert client.read_to_end() == b"last words"
            client.send(b"still here")
            client.half_close()
            assert done.wait(5)
        assert got == [b"still here"]

    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_the_client_goes(self, scene, upstream, end):
        upstream.answer([SWITCH, Act.HANG])
        with scene.client() as client:
            opened(client)
            getattr(client, end)()
        upstream.wait_aborted()

    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    def test_the_upstream_goes(self, scene, upstream, end):
        upstream.answer([SWITCH, b"bye", 0.05, end])
        with scene.client() as client:
            opened(client)
            assert client.read_exactly(3) == b"bye"
            assert client.ended()

    def test_nothing_is_tried_again_behind_a_101(self, scene, upstream):
        upstream.answer([SWITCH, Act.RESET])
        with scene.client() as client:
            client.send(request(b"/ws", *ASK))
            try:
                client.read_to_end()
            except ConnectionResetError:
                pass  # passed on as it was
        assert len(upstream.requests) == 1

    def test_a_silent_one_ends_at_its_limit(self, scene, upstream):
        upstream.answer([SWITCH, Act.HANG])
        with scene.client() as client:
            opened(client, b"/brief")
            assert client.ended()
        upstream.wait_aborted()


TAIL = os.urandom(100_000)


def wait_queue(sock, kind: int, empty: bool) -> None:
    """Return once a kernel queue of the socket (TIOCOUTQ: unacknowledged, FIONREAD: unread) is, or is not, empty."""
    deadline = time.monotonic() + PATIENCE
    while any(fcntl.ioctl(sock.fileno(), kind, bytes(4))) is empty:
        assert time.monotonic() < deadline, "the queue did not change"
        time.sleep(0.001)


def wait_received(sock) -> None:
    """Return once the gateway's kernel has all that was sent."""
    wait_queue(sock, termios.TIOCOUTQ, empty=True)


def read_up_to(count: int, read_some) -> bytes:
    """What came before the end, a reset included; at most `count` bytes."""
    data = b""
    while len(data) < count:
        try:
            piece = read_some()
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return data


class TestTails:
    """What was received is delivered, however its sender ended (RFC 9110 §9.3.6)."""

    @pytest.mark.parametrize("end", ["close", "reset", "cut_off", "close with a message unread"])
    def test_of_an_upstream_to_a_slow_client(self, scene, upstream, end):
        ended = threading.Event()
        target = b"/ws-tail-" + end.replace(" ", "-").encode()

        def last_words(exchange: Exchange) -> None:
            exchange.send(SWITCH + TAIL)
            wait_received(exchange.wire.sock)
            if "unread" in end:
                wait_queue(exchange.wire.sock, termios.FIONREAD, empty=False)
            getattr(exchange.wire, "cut_off" if "unread" in end else end)()
            ended.set()

        upstream.answer(last_words)
        with scene.client(receive_buffer=4096) as client:
            opened(client, target)
            if "unread" in end:
                client.send(b"message")
            assert ended.wait(PATIENCE)
            assert read_up_to(len(TAIL), client.read_some) == TAIL
            client.half_close()
            assert client.ended()
        record = scene.gateway.logged(target.decode())
        assert (record["status"], record["reason"], record["bytes_out"]) == (101, None, len(TAIL))

    @pytest.mark.parametrize("end", ["close", "reset", "cut_off"])
    def test_of_a_client_to_a_slow_upstream(self, scene, upstream, end):
        ended, done = threading.Event(), threading.Event()
        got: list[bytes] = []

        def read_late(exchange: Exchange) -> None:
            exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            exchange.send(SWITCH)
            assert ended.wait(PATIENCE)
            got.append(read_up_to(len(TAIL), exchange.wire.read_some))
            done.set()

        upstream.answer(read_late)
        with scene.client() as client:
            opened(client)
            client.send(TAIL)
            wait_received(client.sock)
            getattr(client, end)()
            ended.set()
            assert done.wait(PATIENCE)
        assert got == [TAIL]

    def test_both_sides_send_when_the_upstream_resets(self, scene, upstream):
        """What the client still sends can go nowhere, and must not cost what it is to get."""
        ended = threading.Event()

        def last_words(exchange: Exchange) -> None:
            exchange.send(SWITCH + TAIL)
            wait_received(exchange.wire.sock)
            exchange.wire.reset()
            ended.set()

        upstream.answer(last_words)
        with scene.client(receive_buffer=4096) as client:
            opened(client)
            assert ended.wait(PATIENCE)
            got = b""
            for start in range(0, len(TAIL), 10_000):
                client.send(b"m" * 10_000)
                got += client.read_exactly(min(10_000, len(TAIL) - start))
            assert got == TAIL
            assert client.ended()
