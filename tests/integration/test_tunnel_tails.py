"""What one side of a tunnel had sent before it broke still reaches the other side while the gateway's configuration or its
workers change: a reload, SIGHUP, SIGTERM, and the end of a worker's time."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.testing import PATIENCE, Exchange, FakeUpstream, RawClient, Wire, answer, head
from tests.gateway_process import GatewayProcess
from tests.services import wait_until

# Seconds after which a gateway takes no more: its sockets and its own buffer are full.
FULL = 0.5
SWITCH = head(101, b"Connection: Upgrade", b"Upgrade: websocket")
ASK = b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONFIG = """
version: 1
server: {{graceful: {graceful}}}
upstreams: {{{name}: {{endpoints: ["{url}"]}}}}
routes: [{{name: r, match: {{host: a.test}}, upstream: {name}}}, {{name: local, match: {{host: 127.0.0.1}}, upstream: {name}}}]
"""


def config(upstream: FakeUpstream, name: str = "u", graceful: str = "25s") -> str:
    return CONFIG.format(name=name, url=upstream.url, graceful=graceful)


def fill(sock: socket.socket) -> bytes:
    """Send until the gateway takes no more; what its kernel has received, which a reset does not drop."""
    sent, piece = b"", os.urandom(65536)
    while True:
        sock.sendall(piece)
        sent += piece
        began = time.monotonic()
        while left := int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder):
            if time.monotonic() - began > FULL:
                return sent[:-left]
            time.sleep(0.001)


class Tail:
    """A tunnel in which one side has sent `data` and was reset, and the other side has not read it yet. `of`: which side."""

    def __init__(self, gateway: GatewayProcess, upstream: FakeUpstream, of: str) -> None:
        self.of = of
        self._broken, self._read, self._done = threading.Event(), threading.Event(), threading.Event()
        self._got = self.data = b""
        upstream.answer(self._upstream)
        self.client = RawClient(gateway.port, timeout=3 * PATIENCE)
        assert self.client.request(ASK).status == 101
        if of == "client":
            self.data = fill(self.client.sock)
            self.client.reset()
        else:
            assert self._broken.wait(3 * PATIENCE)

    def _upstream(self, exchange: Exchange) -> None:
        wire = exchange.wire
        if self.of == "client":
            exchange.send(SWITCH)
            self._read.wait(3 * PATIENCE)
            self._got = self._up_to_the_end(wire)
            self._done.set()
            return
        exchange.send(SWITCH)
        self.data = fill(wire.sock)
        wire.reset()
        self._broken.set()

    def take(self) -> bytes:
        """What the other side reads, from now to the end."""
        self._read.set()
        if self.of == "upstream":
            return self._up_to_the_end(self.client)
        assert self._done.wait(3 * PATIENCE)
        return self._got

    def close(self) -> None:
        self._read.set()
        self.client.close()

    def _up_to_the_end(self, wire: Wire) -> bytes:
        got = bytearray()
        with suppress(ConnectionResetError):
            while len(got) < len(self.data) and (piece := wire.read_some()):
                got += piece
        return bytes(got)


SIDES = pytest.mark.parametrize("of", ["client", "upstream"])


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        yield fake


@SIDES
def test_a_reload_that_removes_its_upstream(of: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(config(upstream))
    with FakeUpstream(answer(b"other")) as other, GatewayProcess(tmp_path, str(path), workers=1) as gateway:
        tail = Tail(gateway, upstream, of)
        text = config(other, "other")
        path.write_text(text)
        gateway.follows(text)
        # What follows the new configuration is served by it, beside the tail.
        assert gateway.get("/")[2] == b"other"
        assert tail.take() == tail.data
        tail.close()
        gateway.logged('"target":"/ws"')


@SIDES
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_worker_that_leaves(number: signal.Signals, of: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    """It delivers the tail first, and ends as soon as that is done."""
    path = tmp_path / "gateway.yaml"
    path.write_text(config(upstream))
    with GatewayProcess(tmp_path, str(path), workers=1) as gateway, gateway.client() as idle:
        assert idle.request(b"GET /nothing HTTP/1.1\r\nHost: b.test\r\n\r\n").status == 404
        tail = Tail(gateway, upstream, of)
        (old,) = gateway.pids()
        gateway.server.send(number)
        # A worker that leaves closes its idle connections first.
        assert idle.ended()
        assert Path(f"/proc/{old}").exists()
        assert tail.take() == tail.data
        tail.close()
        wait_until(lambda: not Path(f"/proc/{old}").exists(), "the worker has left")
        assert "broken off" not in gateway.output()
        assert "Traceback" not in gateway.output()


@SIDES
def test_a_tail_that_is_not_taken_ends_with_the_worker_s_time(of: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(config(upstream, graceful="4s"))
    with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
        tail = Tail(gateway, upstream, of)
        end(gateway)
        got = tail.take()
        assert len(got) < len(tail.data)
        assert tail.data.startswith(got)
        tail.close()


def end(gateway: GatewayProcess) -> None:
    """Stop it, and wait for its worker, which breaks the tunnel off and logs that once."""
    (worker,) = gateway.pids()
    gateway.server.send(signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker has left")
    assert "1 connections are broken off" in gateway.output()
    (record,) = [one for one in gateway.requests() if one["target"] == "/ws"]
    assert record["status"] == 101
    assert "Traceback" not in gateway.output()


@pytest.mark.parametrize("half_closed", ["nobody", "client", "upstream"])
def test_a_silent_tunnel_ends_with_the_worker_s_time(half_closed: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    path, ended, over = tmp_path / "gateway.yaml", threading.Event(), threading.Event()
    path.write_text(config(upstream, graceful="4s"))

    def wait(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        if half_closed == "upstream":
            exchange.wire.half_close()
        if half_closed == "client":
            assert exchange.wire.read_to_end() == b""
        ended.set()
        over.wait(4 * PATIENCE)

    upstream.answer(wait)
    with GatewayProcess(tmp_path, str(path), workers=1) as gateway, gateway.client() as client:
        assert client.request(ASK).status == 101
        if half_closed == "client":
            client.half_close()
        assert ended.wait(PATIENCE)
        assert half_closed != "upstream" or client.read_some() == b""
        end(gateway)
        assert client.ended()
        over.set()
