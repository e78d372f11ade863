"""WebSockets of a real library through a real gateway: what the one side says is what the other hears."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gateway.testing import PATIENCE, RawClient
from tests.conformance.harness import ROOT, GatewayProcess, doors

DIRECT = next(door for door in doors() if door.name == "direct")
TUNNELS = 300

# Frames of RFC 6455 §5.2: an empty masked ping, and its answer.
PING = b"\x89\x80\0\0\0\0"
PONG = b"\x8a\x00"
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class EchoServer:
    """`tests.websocket_echo` and what it tells."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.websocket_echo", *([str(certificate)] if certificate else [])],
            cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.port: int = self.next()["port"]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))

    def next(self) -> dict[str, Any]:
        return self._told.get(timeout=3 * PATIENCE)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def echo_server(certificate: Path | None = None) -> Iterator[EchoServer]:
    server = EchoServer(certificate)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def gateway(folder: Path, port: int, *, secure: int = 0, ca: Path | None = None, graceful: str = "25s") -> Iterator[GatewayProcess]:
    config = f"""
version: 1
server: {{name: gw, overload: 0, graceful: {graceful}}}
upstreams:
  plain: {{endpoints: ["http://127.0.0.1:{port}"]}}
  brief: {{endpoints: ["http://127.0.0.1:{port}"], timeouts: {{tunnel: 1s}}}}
  never: {{endpoints: ["http://127.0.0.1:{port}"], upgrade: []}}
routes:
  - {{name: ws, match: {{prefix: /ws}}, upstream: plain}}
  - {{name: brief, match: {{prefix: /brief}}, upstream: brief}}
  - {{name: never, match: {{prefix: /never}}, upstream: never}}
"""
    if ca is not None:
        config = config.replace("routes:", f"""\
  secure: {{endpoints: ["https://localhost:{secure}"], tls: {{ca: {json.dumps(str(ca))}}}}}
routes:
  - {{name: secure, match: {{prefix: /secure}}, upstream: secure}}""")
    process = GatewayProcess(config, folder, DIRECT)
    try:
        yield process
        assert "Traceback" not in process.errors()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with echo_server() as running:
        yield running


@pytest.fixture(scope="module")
def running(server: EchoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway before a plain and a TLS server."""
    folder = tmp_path_factory.mktemp("websocket")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    with echo_server(folder / "server.pem") as secure, gateway(folder, server.port, secure=secure.port, ca=folder / "ca.pem") as process:
        yield process


def client(process: GatewayProcess, path: str = "/ws", **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{process.port}{path}", max_size=None, ping_interval=None, close_timeout=PATIENCE, **options)


def quiet(connection: ClientConnection) -> str | bytes:
    return connection.recv(timeout=4 * PATIENCE)


def ended(server: EchoServer) -> tuple[int, str]:
    told = server.next()
    return told["code"], told["reason"]


class TestMessages:
    @pytest.mark.parametrize("path", ["/ws", "/secure"])
    def test_text_binary_and_nothing(self, running: GatewayProcess, path: str) -> None:
        with client(running, path) as connection:
            for message in ("hello", "größer ✓", "", b"\x00\xff\r\n\r\n", b"", "x" * 70_000):
                connection.send(message)
                assert quiet(connection) == message

    @pytest.mark.parametrize("compression", [None, "deflate"])
    @pytest.mark.parametrize("path", ["/ws", "/secure"])
    def test_sixteen_mebibytes(self, running: GatewayProcess, path: str, compression: str | None) -> None:
        message = os.urandom(1024 * 1024) * 16
        with client(running, path, compression=compression) as connection:
            connection.send(message)
            assert quiet(connection) == message

    def test_fragments_stay_fragments(self, running: GatewayProcess) -> None:
        with client(running, compression=None) as connection:
            connection.send(["one", "two", "", "three" * 10_000])
            found = list(connection.recv_streaming())
            # The end of a fragmented message is an empty fragment of its own (the library's way).
            assert [piece for piece in found if piece] == ["one", "two", "three" * 10_000]

    def test_many_messages_in_order(self, running: GatewayProcess) -> None:
        with client(running) as connection:
            sender = gevent.spawn(lambda: [connection.send(str(number)) for number in range(2_000)])
            assert [quiet(connection) for _ in range(2_000)] == [str(number) for number in range(2_000)]
            sender.get()

    def test_ping_and_pong(self, running: GatewayProcess) -> None:
        with client(running) as connection:
            for _ in range(3):
                assert connection.ping().wait(PATIENCE)

    def test_several_at_once(self, running: GatewayProcess) -> None:
        def talk(number: int) -> None:
            with client(running) as connection:
                for turn in range(20):
                    connection.send(f"{number} {turn}" * 50)
                    assert quiet(connection) == f"{number} {turn}" * 50

        talks = [gevent.spawn(talk, number) for number in range(20)]
        gevent.joinall(talks, raise_error=True)


class TestHandshake:
    def test_subprotocol(self, running: GatewayProcess) -> None:
        with client(running, subprotocols=["first", "second"]) as connection:
            assert connection.subprotocol == "second"
        with client(running) as connection:
            assert connection.subprotocol is None

    def test_where_none_is_allowed_it_is_a_request(self, running: GatewayProcess) -> None:
        with pytest.raises(InvalidStatus) as refused:
            client(running, "/never")
        # The server's own words to a request without an Upgrade.
        assert refused.value.response.status_code == 426


class TestEnds:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[tuple[EchoServer, GatewayProcess]]:
        """A server whose ends are those of this test alone."""
        with echo_server() as server, gateway(tmp_path, server.port) as process:
            yield server, process

    def test_codes_of_the_client(self, own: tuple[EchoServer, GatewayProcess]) -> None:
        server, process = own
        for code, reason in ((1000, ""), (1001, "away"), (3000, "x" * 123), (4999, "größer")):
            with client(process) as connection:
                connection.close(code, reason)
            assert ended(server) == (code, reason)

    def test_codes_of_the_server(self, own: tuple[EchoServer, GatewayProcess]) -> None:
        server, process = own
        for code, reason in ((1000, "done"), (1011, "broken"), (4000, "own")):
            with client(process) as connection:
                connection.send(f"close {code} {reason}")
                with pytest.raises(ConnectionClosed) as closed:
                    quiet(connection)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
            assert ended(server) == (code, reason)

    def test_a_client_that_vanishes(self, own: tuple[EchoServer, GatewayProcess]) -> None:
        server, process = own
        with RawClient(process.port) as raw:
            raw.send(HANDSHAKE)
            assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            raw.reset()
        assert ended(server)[0] == 1006

    def test_silence_ends_a_tunnel_and_speaking_keeps_it(self, own: tuple[EchoServer, GatewayProcess]) -> None:
        server, process = own
        with client(process, "/brief") as connection:
            for _ in range(5):
                gevent.sleep(0.25)
                connection.send("still here")
                assert quiet(connection) == "still here"
            with pytest.raises(ConnectionClosedError) as closed:
                quiet(connection)
            assert closed.value.rcvd is None
        assert ended(server)[0] == 1006

    def test_a_worker_that_leaves_waits_for_tunnels(self, own: tuple[EchoServer, GatewayProcess]) -> None:
        server, process = own
        with client(process) as connection:
            process.process.send_signal(signal.SIGTERM)
            process._await(lambda: "Handling signal: term" in process.errors(), "the master to hear it")
            for message in ("one", "two"):
                connection.send(message)
                assert quiet(connection) == message
        assert ended(server) == (1000, "")
        assert process.process.wait(3 * PATIENCE) == 0
        assert "graceful timeout" not in process.errors()

    def test_but_not_for_ever(self, server: EchoServer, tmp_path: Path) -> None:
        with gateway(tmp_path, server.port, graceful="4s") as process, client(process) as connection:
            process.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosedError) as closed:
                quiet(connection)
            assert closed.value.rcvd is None
            assert process.process.wait(3 * PATIENCE) == 0
            assert "1 connections are broken off" in process.errors()


def test_idle_tunnels_hold(server: EchoServer, tmp_path: Path) -> None:
    with gateway(tmp_path, server.port) as process, ExitStack() as stack:
        before = process.open_sockets()
        tunnels = [stack.enter_context(RawClient(process.port)) for _ in range(TUNNELS)]
        for tunnel in tunnels:
            tunnel.send(HANDSHAKE)
        for tunnel in tunnels:
            assert tunnel.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert process.open_sockets() > 2 * TUNNELS
        for _ in range(2):
            for tunnel in tunnels:
                tunnel.send(PING)
            for tunnel in tunnels:
                assert tunnel.read_exactly(len(PONG)) == PONG
        for tunnel in tunnels:
            tunnel.close()
        process._await(lambda: process.open_sockets() <= before, "the tunnels to end")
