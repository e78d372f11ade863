"""Large bodies through one worker process: every byte exact, memory flat, nothing held back."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gateway.testing import FakeUpstream, RawClient, chunk, head, parse_head
from tests import long
from tests.conformance.harness import GatewayProcess, doors
from tests.exchanges import finish, soon

MEBI = 1024 * 1024
# Beyond every buffer between the two ends, and three times what memory may grow by.
SIZE = long.either(64 * MEBI, 1024 * MEBI)
# Peak RSS grows by less than this.
GROWTH = 20 * MEBI
BLOCK = random.Random(1).randbytes(MEBI)
CHUNKED = b"Transfer-Encoding: chunked"


def checksum(times: int = SIZE // MEBI) -> tuple[int, int]:
    """(length, CRC-32) of the block so many times."""
    crc = 0
    for _ in range(times):
        crc = zlib.crc32(BLOCK, crc)
    return times * MEBI, crc


class Received:
    """Bytes of a body as they came, without their framing."""

    def __init__(self) -> None:
        self.size = 0
        self.crc = 0

    def add(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)

    @property
    def told(self) -> tuple[int, int]:
        return self.size, self.crc

    def read(self, sock: socket.socket, rest: bytes, length: int | None) -> None:
        """A body by its length, or (None) by chunks, to its end."""
        if length is None:
            self._read_chunks(sock, bytearray(rest))
            return
        self.add(rest)
        while self.size < length:
            data = sock.recv(MEBI)
            assert data, f"ended at {self.size}"
            self.add(data)

    def _read_chunks(self, sock: socket.socket, held: bytearray) -> None:
        def more() -> None:
            data = sock.recv(MEBI)
            assert data, f"ended at {self.size}"
            held.extend(data)

        while True:
            while (end := held.find(b"\r\n")) < 0:
                more()
            size = int(bytes(held[:end]), 16)
            while len(held) < end + 4 + size:
                more()
            with memoryview(held) as view:
                self.add(view[end + 2 : end + 2 + size])
            assert held[end + 2 + size : end + 4 + size] == b"\r\n"
            del held[: end + 4 + size]
            if not size:
                return


def receive(sock: socket.socket) -> tuple[bytes, Received]:
    """A whole message: (head, body)."""
    held = b""
    while (end := held.find(b"\r\n\r\n") + 4) < 4:
        data = sock.recv(65536)
        assert data, held
        held += data
    headers = {name.lower(): value for name, value in parse_head(held[:end])[1]}
    body = Received()
    length = headers.get(b"content-length")
    if length is not None or b"transfer-encoding" in headers:
        body.read(sock, held[end:], int(length) if length is not None else None)
    return held[:end], body


def send(sock: socket.socket, chunked: bool) -> None:
    piece = chunk(BLOCK) if chunked else BLOCK
    for _ in range(SIZE // MEBI):
        sock.sendall(piece)
    if chunked:
        sock.sendall(b"0\r\n\r\n")


def framing(chunked: bool) -> bytes:
    return CHUNKED if chunked else b"Content-Length: %d" % SIZE


class Service:
    """An upstream that keeps of what it receives the checksum alone."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received: list[Received] = []
        # Bytes of an answer that the gateway's side has taken.
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while True:
                    told, body = receive(sock)
                    self.received.append(body)
                    if told.startswith(b"GET /down"):
                        chunked = told.startswith(b"GET /down-chunked")
                        sock.sendall(head(200, framing(chunked)))
                        send(sock, chunked)
                    elif told.startswith(b"GET /endless"):
                        sock.sendall(head(200, CHUNKED))
                        piece = chunk(BLOCK)
                        while True:
                            sock.sendall(piece)
                            self.sent += MEBI
                    else:
                        sock.sendall(head(200, b"Content-Length: 2") + b"ok")
            except (OSError, AssertionError):
                return  # the gateway hung up

    def close(self) -> None:
        self.listener.close()


class Memory:
    """What one process has resident, now and at most since `forget`."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def forget(self) -> None:
        (self._folder / "clear_refs").write_text("5")

    @property
    def now(self) -> int:
        return self._field("VmRSS")

    @property
    def peak(self) -> int:
        return self._field("VmHWM")

    def _field(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", (self._folder / "status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture(scope="module")
def events() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture(scope="module", params=doors(), ids=lambda door: door.name)
def gateway(request, service, events, tmp_path_factory) -> Iterator[GatewayProcess]:
    config = {
        "version": 1,
        "upstreams": {
            "service": {"endpoints": [f"http://127.0.0.1:{service.port}"]},
            "events": {"endpoints": [events.url]},
        },
        "routes": [
            {"name": "events", "match": {"prefix": "/events"}, "upstream": "events"},
            {"name": "all", "match": {"prefix": "/"}, "upstream": "service"},
        ],
    }
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in config.items())
    process = GatewayProcess(text, tmp_path_factory.mktemp("bodies"), request.param)
    with RawClient(process.port) as client:  # what the first request loads is not the bodies'
        assert client.request(b"POST /warm HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").body == b"ok"
    yield process
    process.stop()


@pytest.fixture
def memory(gateway) -> Iterator[Memory]:
    made = Memory(gateway.worker_pids()[0])
    made.forget()
    before = made.now
    yield made
    assert made.peak - before < GROWTH


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
def test_a_large_body_up(gateway, service, memory, chunked):
    service.received.clear()
    with RawClient(gateway.port, timeout=60) as client:
        client.send(b"POST /up HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing(chunked))
        send(client.sock, chunked)
        response = client.read_response()
    assert (response.status, response.body) == (200, b"ok")
    assert [body.told for body in service.received] == [checksum()]


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "chunked"])
def test_a_large_body_down(gateway, memory, chunked):
    with RawClient(gateway.port, timeout=60) as client:
        client.send(b"GET /down%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"-chunked" if chunked else b""))
        told, body = receive(client.sock)
    assert told.startswith(b"HTTP/1.1 200")
    assert body.told == checksum()


def test_a_slow_reader_holds_the_upstream_back(gateway, service, memory):
    """The upstream would send without end; what it gets rid of is what the sockets between hold."""
    service.sent = 0
    with RawClient(gateway.port, receive_buffer=4096) as client:
        client.send(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_head().status == 200
        for _ in range(20):
            client.read_some()
            gevent.sleep(0.01)

        def stands() -> bool:
            before = service.sent
            gevent.sleep(0.3)
            return service.sent == before

        soon(stands)
        held = service.sent
        assert held < 64 * MEBI
        # Others are served meanwhile.
        with RawClient(gateway.port) as other:
            assert other.request(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n").body == b"ok"
        assert service.sent == held


def test_events_pass_one_by_one(gateway, events):
    """Each is at the client before the next one is sent."""
    arrived = [threading.Event() for _ in range(10)]

    def stream(exchange):
        exchange.send(head(200, b"Content-Type: text/event-stream", CHUNKED))
        for number, seen in enumerate(arrived):
            exchange.send(chunk(b"data: %d\n\n" % number))
            assert seen.wait(10)
        exchange.send(b"0\r\n\r\n")

    events.answer(stream)
    with RawClient(gateway.port) as client:
        client.send(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_head().status == 200
        for number, seen in enumerate(arrived):
            assert client.read_until(b"data: %d\n\n" % number).count(b"data:") == 1
            seen.set()
        client.read_until(b"0\r\n\r\n")


def test_pieces_of_an_upload_pass_one_by_one(gateway, events):
    """Each is at the upstream before the next one is sent."""
    arrived = [threading.Event() for _ in range(10)]

    def read(exchange):
        seen = b""
        for number, event in enumerate(arrived):
            while b"piece %d;" % number not in seen:
                seen += exchange.read_piece()
            event.set()
        exchange.wire.read_until(b"0\r\n\r\n") if b"0\r\n\r\n" not in seen[-16:] else None
        exchange.request.complete = True
        exchange.send(head(200, b"Content-Length: 0"))

    events.answer(read)
    with RawClient(gateway.port) as client:
        client.send(b"POST /events HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % CHUNKED)
        for number, event in enumerate(arrived):
            client.send(chunk(b"piece %d;" % number))
            assert event.wait(10)
        client.send(b"0\r\n\r\n")
        assert client.read_response().status == 200


def test_a_hundred_uploads_at_once(gateway, service, memory):
    """Memory is flat in the number of bytes, and modest in the number of bodies."""
    service.received.clear()
    size = 2 * MEBI

    def upload():
        with RawClient(gateway.port, timeout=60) as client:
            client.send(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            client.send(BLOCK + BLOCK)
            return client.read_response().status

    assert finish(gevent.spawn(upload) for _ in range(100)) == [200] * 100
    assert {body.told for body in service.received} == {checksum(2)}
    assert len(service.received) == 100
