"""`kubectl exec` as it is on the wire: a POST without a body that becomes SPDY/3.1, with one SPDY stream each for errors,
input and output (k8s.io/client-go, tools/remotecommand; moby/spdystream).

The API server ends the connection as soon as the command has, which may be while the client still sends input.
"""

from __future__ import annotations

import fcntl
import json
import struct
import termios
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.testing import PATIENCE, Act, Exchange, answer, head
from tests.conformance.harness import check_problem, request

SCENE = "standard"
UPSTREAM_TLS = True
pytestmark = pytest.mark.own_worker("gunicorn's worker has no upgrades")

PROTOCOLS = [b"v4.channel.k8s.io", b"v3.channel.k8s.io", b"v2.channel.k8s.io", b"channel.k8s.io"]
TARGET = b"/exec/api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&command=cat&container=c&stdin=true&stdout=true"
ASK = (
    b"User-Agent: kubectl/v1.30.0 (linux/amd64) kubernetes/7c48c2b", b"Authorization: Bearer secret", b"Connection: Upgrade",
    b"Content-Length: 0", b"Upgrade: SPDY/3.1", *(b"X-Stream-Protocol-Version: " + one for one in PROTOCOLS), b"Accept-Encoding: gzip",
)  # fmt: skip
SWITCH = head(101, b"Connection: Upgrade", b"Upgrade: SPDY/3.1", b"X-Stream-Protocol-Version: v4.channel.k8s.io")
SYN_STREAM, SYN_REPLY, GOAWAY, FIN = 1, 2, 7, 1
# More than the client's sockets hold, and less than the gateway's do.
OUTPUT = b"".join(b"%07d\n" % line for line in range(12 * 1024))


@dataclass(frozen=True)
class Frame:
    """`kind`: of a control frame; 0 is data. `stream`: 0 for none. `data`: names and values, or bytes."""

    kind: int
    stream: int
    data: bytes
    flags: int = 0


class Spdy:
    """One end of a SPDY/3.1 connection; `wire` has `send` and `read_exactly`."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        # One compressor for all names and values of a direction.
        self._deflate, self._inflate = zlib.compressobj(), zlib.decompressobj()

    def send(self, frame: Frame) -> None:
        data = frame.data
        if frame.kind in (SYN_STREAM, SYN_REPLY):
            packed = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            data = struct.pack("!I", frame.stream) + (b"\0" * 6 if frame.kind == SYN_STREAM else b"") + packed
        first = struct.pack("!HH", 0x8003, frame.kind) if frame.kind else struct.pack("!I", frame.stream)
        self._wire.send(first + struct.pack("!I", frame.flags << 24 | len(data)) + data)

    def read(self) -> Frame:
        first, last = struct.unpack("!II", self._wire.read_exactly(8))
        data, flags = self._wire.read_exactly(last & 0xFFFFFF), last >> 24
        if not first >> 31:
            return Frame(0, first, data, flags)
        assert first >> 16 == 0x8003
        kind = first & 0xFFFF
        if kind not in (SYN_STREAM, SYN_REPLY):
            return Frame(kind, 0, data, flags)
        names = self._inflate.decompress(data[10 if kind == SYN_STREAM else 4 :])
        return Frame(kind, struct.unpack("!I", data[:4])[0], names, flags)


def fields(**given: str) -> bytes:
    """SPDY/3 §2.6.10."""
    parts = [part.encode() for pair in given.items() for part in pair]
    return struct.pack("!I", len(given)) + b"".join(struct.pack("!I", len(part)) + part for part in parts)


def serve(spdy: Spdy, output: bytes = b"") -> None:
    """As the API server does for `cat`: accept three streams, send the input back and then `output`, report success."""
    streams: dict[bytes, int] = {}
    while len(streams) < 3:
        frame = spdy.read()
        assert frame.kind == SYN_STREAM
        spdy.send(Frame(SYN_REPLY, frame.stream, fields()))
        streams[frame.data] = frame.stream
    numbers = {name: streams[fields(streamtype=name)] for name in ("error", "stdin", "stdout")}
    while True:
        frame = spdy.read()
        if frame.stream == numbers["stdin"]:
            spdy.send(Frame(0, numbers["stdout"], frame.data))
            if frame.flags & FIN or output:
                break
    for start in range(0, len(output), 32768):
        spdy.send(Frame(0, numbers["stdout"], output[start : start + 32768]))
    spdy.send(Frame(0, numbers["stdout"], b"", FIN))
    spdy.send(Frame(0, numbers["error"], json.dumps({"status": "Success"}).encode(), FIN))
    spdy.send(Frame(GOAWAY, 0, struct.pack("!II", 5, 0)))


def start(client: Any) -> Spdy:
    """What kubectl does before it sends input."""
    response = client.request(request(TARGET, *ASK, method=b"POST"), b"POST")
    assert (response.status, response.header(b"upgrade")) == (101, b"SPDY/3.1")
    assert response.values(b"x-stream-protocol-version") == [b"v4.channel.k8s.io"]
    spdy = Spdy(client)
    for number, name in enumerate(("error", "stdin", "stdout")):
        spdy.send(Frame(SYN_STREAM, 2 * number + 1, fields(streamtype=name)))
    return spdy


def results(spdy: Spdy) -> tuple[bytes, dict[str, str]]:
    """The output, and how the command ended; up to the server's GOAWAY."""
    got = {3: b"", 5: b"", 1: b""}
    while (frame := spdy.read()).kind != GOAWAY:
        if not frame.kind:
            got[frame.stream] += frame.data
    return got[5], json.loads(got[1])


def test_exec(scene, upstream):
    """Input, output and the status of a command."""

    def api_server(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        serve(Spdy(exchange.wire))
        exchange.wire.close()

    upstream.answer(api_server)
    with scene.client() as client:
        spdy = start(client)
        for number in range(50):
            spdy.send(Frame(0, 3, b"line %d\n" % number))
        spdy.send(Frame(0, 3, b"", FIN))
        assert results(spdy) == (b"".join(b"line %d\n" % number for number in range(50)), {"status": "Success"})
        assert client.ended()
    seen = upstream.last
    assert (seen.method, seen.target, seen.header(b"upgrade"), seen.header(b"connection").lower()) == (
        b"POST", TARGET, b"SPDY/3.1", b"upgrade",
    )  # fmt: skip
    assert seen.values(b"x-stream-protocol-version") == PROTOCOLS
    assert (seen.header(b"authorization"), seen.header(b"accept-encoding")) == (b"Bearer secret", b"gzip")


@pytest.mark.parametrize("end", ["close", "cut_off", "reset"])
def test_the_command_ends_while_input_is_sent(scene, upstream, end):
    """All of its output, and its status, reach a client that reads late."""
    ended = threading.Event()

    def api_server(exchange: Exchange) -> None:
        exchange.send(SWITCH)
        serve(Spdy(exchange.wire), OUTPUT)
        # What its own kernel holds, a reset would drop.
        sock, deadline = exchange.wire.sock, time.monotonic() + PATIENCE
        while any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))) and time.monotonic() < deadline:
            time.sleep(0.001)
        getattr(exchange.wire, end)()
        ended.set()

    upstream.answer(api_server)
    with scene.client(receive_buffer=4096) as client:
        spdy = start(client)
        spdy.send(Frame(0, 3, b"begin\n"))
        client.send(struct.pack("!II", 3, 16384) + b"m" * 16384)
        assert ended.wait(PATIENCE)
        assert results(spdy) == (b"begin\n" + OUTPUT, {"status": "Success"})


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_is_an_answer(scene, upstream, status):
    """RBAC says no: kubectl prints the Status object, and the connection stays."""
    told = json.dumps({"kind": "Status", "status": "Failure", "code": status}).encode()
    upstream.queue(answer(told, b"Content-Type: application/json", status=status))
    with scene.client() as client:
        response = client.request(request(TARGET, *ASK, method=b"POST"), b"POST")
        assert (response.status, response.body) == (status, told)
        assert client.request(request(b"/after")).body == b"ok"


def test_an_api_server_that_switches_to_something_else(scene, upstream):
    upstream.answer([head(101, b"Connection: Upgrade", b"Upgrade: websocket"), Act.HANG])
    with scene.client() as client:
        check_problem(client.request(request(TARGET, *ASK, method=b"POST"), b"POST"), 502, "bad_response")
    upstream.wait_aborted()
