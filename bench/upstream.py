"""What stands behind the gateways: nginx for plain answers, a small asyncio server for uploads and event streams.

Rule: cheaper than any gateway, and its answers are known to the byte.
Run as `python -m bench.upstream PORT` it is the second one: `GET …/events` is an endless
event stream, anything else takes a body and tells how much came (and its CRC-32 with `?crc=1`).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import httptools

from bench.answer import free_port, render, request, wait_until_right
from bench.proc import BenchError, Program

JSON = b'{"id": 4711, "name": "bench item", "price": 12.5, "currency": "EUR", "in_stock": true, "tags": []}'
FILES = {"100k": 100 * 1024, "10m": 10 * 1024 * 1024}
HERE = Path(__file__).parent


def content(size: int) -> bytes:
    """Bytes that do not compress and are the same in every run."""
    return random.Random(size).randbytes(size)


def told(received: int, crc: int | None = None) -> bytes:
    """What the second upstream answers to a body."""
    checked = f', "crc32": {crc}' if crc is not None else ""
    return f'{{"received": {received}{checked}}}'.encode()


@dataclass(frozen=True, slots=True)
class Place:
    """Where things may be put and run in one run of the harness."""

    directory: Path
    root: Path
    core: int
    env: dict[str, str]

    def start(self, name: str, command: list[str], core: int, **extra: str) -> Program:
        """Start a program that prints into this directory."""
        return Program(name, command, core, self.directory / f"{name}.log", cwd=self.root, env={**self.env, **extra})


def nginx_user() -> str:
    """As root, workers stay root: they read the harness's own directory. Else the directive may not be there."""
    return "user root;" if os.getuid() == 0 else ""


def start_nginx(place: Place) -> tuple[Program, int]:
    """The first upstream and its port."""
    for name, size in FILES.items():
        (place.directory / f"{name}.bin").write_bytes(content(size))
    port = free_port()
    config = render(
        HERE / "peers" / "upstream.conf",
        place.directory / "upstream.conf",
        dir=place.directory,
        port=port,
        json=JSON.decode(),
        user=nginx_user(),
    )
    program = place.start(
        "upstream", ["nginx", "-p", str(place.directory), "-e", "stderr", "-c", str(config)], place.core
    )
    return started(program, port, JSON)


def start_streaming(place: Place) -> tuple[Program, int]:
    """The second upstream and its port."""
    port = free_port()
    program = place.start("streaming", [sys.executable, "-m", "bench.upstream", str(port)], place.core)
    return started(program, port, told(0))


def start_registry(place: Place, services: int, instances: int) -> tuple[Program, int]:
    """The scripted registry and its port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.registry", str(port), str(services), str(instances)]
    program = place.start("registry", command, place.core)
    return started(program, port, b'{"answered": 0}', "/stats")


def started(program: Program, port: int, body: bytes, path: str = "/") -> tuple[Program, int]:
    """Wait until it answers; it does not outlive a failure to."""
    try:
        wait_until_right(program, port, request("GET", path), body, 15)
    except BaseException:
        program.stop()
        raise
    return program, port


class Streaming(asyncio.BufferedProtocol):
    """One connection of the second upstream. All read into one buffer, which is used up at once."""

    _buffer = bytearray(1024 * 1024)

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._received = 0
        self._crc: int | None = None
        self._events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise BenchError("a stream transport was expected")
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._parser.feed_data(memoryview(self._buffer)[:nbytes])
        except httptools.HttpParserError as error:
            print(f"bad request: {error}", flush=True)
            self._transport.abort()

    def on_url(self, url: bytes) -> None:
        """Called by the parser; a request begins."""
        self._url = url
        self._received = 0
        self._crc = 0 if url.endswith(b"?crc=1") else None

    def on_body(self, data: bytes) -> None:
        """Called by the parser for each piece of a body."""
        self._received += len(data)
        if self._crc is not None:
            self._crc = zlib.crc32(data, self._crc)

    def on_message_complete(self) -> None:
        """Called by the parser; the request is whole."""
        if self._url.endswith(b"/events"):
            self._begin()
            return
        body = told(self._received, self._crc)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def _begin(self) -> None:
        # X-Accel-Buffering: how an application tells nginx that this must not wait in a buffer.
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self._next = asyncio.get_running_loop().time()
        self._event()

    def _event(self) -> None:
        if self._transport.is_closing():
            return
        event = f"id: {self._events}\ndata: {time.monotonic_ns()}\n\n".encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._events += 1
        # By the schedule, not by when the last one went out: one a second, spread as the streams began.
        self._next += 1.0
        asyncio.get_running_loop().call_at(self._next, self._event)


async def serve(port: int) -> None:
    """The second upstream, until it is told to stop."""
    server = await asyncio.get_running_loop().create_server(Streaming, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
