"""One instance of a service that can go wrong in every way: a process of its own, told what to do on a Unix socket.

python -m tests.chaos.instance NAME ADDRESS PORT FOLDER [CERTIFICATE]

It listens on ADDRESS:PORT, with TLS if there is a CERTIFICATE (a file with key and chain), and takes its orders, one
a line (`FAULT [VALUE]`, answered by `done`), on FOLDER/NAME.sock. The id of each POST goes to FOLDER/NAME.posts
when its head has come, whatever happens then and even if the process is killed in the next moment.

Rule: a fault is of the connection or of the answer; what went before it, and comes after it, is well.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from tests.chaos import said

# How long an answer takes, and a stream from one piece to the next.
LATENCY = 0.01
BETWEEN = 0.02
BACKLOG = 511
# So much of an answer comes before it breaks off: within its head, or within its body.
_IN_HEAD = 20
_IN_BODY = 400
_GARBAGE = b"\x16\x03\x01 this is no HTTP\r\n\r\n" * 4

# Faults that begin with the end of the connections that are idle, else they would only come later.
_OF_CONNECTIONS = frozenset({"refuse", "close", "handshake"})


class Instance:
    """The listener, its connections and the fault in force (`well` is none)."""

    def __init__(self, name: str, address: str, port: int, folder: Path, tls: ssl.SSLContext | None) -> None:
        self.name = name
        self.fault = "well"
        self.value = 0.0
        self.random = random.Random(name)
        self.connections: set[Connection] = set()
        self.posts = os.open(folder / f"{name}.posts", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._at = (address, port)
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._fillers: list[socket.socket] = []
        self._begun: set[asyncio.Task[None]] = set()
        self.listen()

    # orders

    def order(self, line: str) -> None:
        fault, _, value = line.partition(" ")
        before, self.fault, self.value = self.fault, fault, float(value or 0)
        if before == "queue":
            self._accept_again()
        if fault == "refuse":
            self._deafen()
        elif self._listener is None:
            self.listen()
        if fault == "queue":
            self._stop_accepting()
        if fault in _OF_CONNECTIONS:
            for connection in list(self.connections):
                connection.leave_when_idle()

    def listen(self) -> None:
        self._listener = socket.create_server(self._at, backlog=BACKLOG)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _deafen(self) -> None:
        """Nobody listens any more: connections are refused."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _stop_accepting(self) -> None:
        """Nobody accepts or reads, and the queue is so full that the kernel drops every SYN."""
        assert self._listener is not None
        self._loop.remove_reader(self._listener.fileno())
        self._listener.listen(0)
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self._at)
            self._fillers.append(sock)

    def _accept_again(self) -> None:
        for sock in self._fillers:
            sock.close()
        self._fillers.clear()
        # What it did not read is lost with the connections.
        for connection in list(self.connections):
            connection.reset()
        if self._listener is not None:
            self._listener.listen(BACKLOG)
            self._loop.add_reader(self._listener.fileno(), self._accept)

    # connections

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it left again
        if self.fault == "close":
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._begin(sock))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _begin(self, sock: socket.socket) -> None:
        if self.fault == "handshake":
            await asyncio.sleep(self.value)
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self), sock, ssl=self._tls)
        except OSError:
            sock.close()  # a peer that did not wait for the end of the handshake

    def note_post(self, ident: str) -> None:
        os.write(self.posts, f"{ident}\n".encode())


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._busy = False
        self._noted = False
        self._leaving = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._instance.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._instance.connections.discard(self)

    def leave_when_idle(self) -> None:
        self._leaving = True
        if not self._busy:
            self._transport.close()

    def reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._busy and self._instance.fault != "queue":
            self._next()

    def _next(self) -> None:
        """Begin with a request if the whole of it is here."""
        head, found, _ = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        ident = target.rpartition("/")[2]
        length = _content_length(fields)
        whole = len(head) + 4 + length
        if method == "POST" and not self._noted:
            # Its head is looked at again with every piece of its body.
            self._noted = True
            self._instance.note_post(ident)
        if len(self._received) < whole:
            return
        body = bytes(self._received[len(head) + 4 : whole])
        del self._received[:whole]
        self._noted = False
        self._busy = True
        fault = self._instance.fault
        latency = LATENCY * (self._instance.value if fault == "slow" else 1.0)
        self._loop.call_later(latency, self._answer, method, ident, body)

    def _answer(self, method: str, ident: str, body: bytes) -> None:
        instance = self._instance
        fault = instance.fault
        if self._transport.is_closing() or fault in ("hang", "queue"):
            return
        if fault == "garbage":
            self._transport.write(_GARBAGE)
            self._transport.close()
            return
        if fault == "errors" and instance.random.random() < instance.value:
            self._send(said.OWN_FAILURE, ident, said.failure(instance.name, ident))
        elif method == "POST":
            self._send(200, ident, said.to_upload(instance.name, ident, body))
        elif ident.startswith("stream"):
            self._send_stream(ident)
        else:
            self._send(200, ident, said.answer("get", instance.name, ident))

    def _head(self, status: int, ident: str, framing: str) -> bytes:
        phrase = "OK" if status == 200 else "Failed"
        fields = f"X-Instance: {self._instance.name}\r\nX-Id: {ident}\r\n{framing}\r\n"
        return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\n{fields}\r\n".encode()

    def _send(self, status: int, ident: str, body: bytes) -> None:
        head = self._head(status, ident, f"Content-Length: {len(body)}")
        if not self._broken(head, body):
            self._transport.write(head + body)
            self._done()

    def _broken(self, head: bytes, body: bytes) -> bool:
        """Whether a fault of the answer has taken care of it."""
        fault = self._instance.fault
        if fault == "reset_in_head":
            self._transport.write(head[:_IN_HEAD])
        elif fault in ("reset_in_body", "hang_in_body"):
            # Less than all, even of a short answer.
            self._transport.write(head + body[: min(_IN_BODY, len(body) - 10)])
        else:
            return False
        if fault != "hang_in_body":
            # In a moment, or the reset would overtake what was sent.
            self._loop.call_later(0.005, self.reset)
        return True

    def _send_stream(self, ident: str) -> None:
        head = self._head(200, ident, "Transfer-Encoding: chunked")
        first, *rest = said.pieces(self._instance.name, ident)
        if not self._broken(head, _chunk(first) + _chunk(rest[0])):
            self._transport.write(head + _chunk(first))
            self._loop.call_later(BETWEEN, self._more, rest)

    def _more(self, rest: list[bytes]) -> None:
        if self._transport.is_closing() or self._instance.fault == "queue":
            return
        self._transport.write(_chunk(rest[0]))
        if len(rest) > 1:
            self._loop.call_later(BETWEEN, self._more, rest[1:])
            return
        self._transport.write(b"0\r\n\r\n")
        self._done()

    def _done(self) -> None:
        self._busy = False
        if self._leaving:
            self._transport.close()
        elif self._received:
            self._next()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _content_length(fields: list[str]) -> int:
    for field in fields:
        name, _, value = field.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


class Orders(asyncio.Protocol):
    """One order and its confirmation."""

    def __init__(self, order: Callable[[str], None]) -> None:
        self._order = order
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\n"):
            self._order(self._received.decode().strip())
            self._transport.write(b"done\n")
            self._transport.close()


async def main(name: str, address: str, port: int, folder: Path, certificate: str) -> None:
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    instance = Instance(name, address, port, folder, tls)
    path = folder / f"{name}.sock"
    path.unlink(missing_ok=True)
    server = await asyncio.get_running_loop().create_unix_server(lambda: Orders(instance.order), path)
    await server.serve_forever()


if __name__ == "__main__":
    _, name, address, port, folder, *more = sys.argv
    asyncio.run(main(name, address, int(port), Path(folder), "".join(more)))
