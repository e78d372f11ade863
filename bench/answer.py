"""Reading an HTTP/1.1 answer, enough to judge what a gateway gave back.

Rule: blocking, small, strict about what it needs: a status, a framing, a whole body.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.proc import BenchError, Program

HOST = "bench.test"


@dataclass(frozen=True, slots=True)
class Answer:
    """`size` is what the answer measured on the wire, head and framing included."""

    status: int
    body: bytes
    size: int


def request(method: str, path: str, body: bytes | None = None, headers: str = "") -> bytes:
    """One request as it goes on the wire."""
    length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{length}{headers}\r\n".encode() + (body or b"")


def head_fields(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Status and fields, names in lower case, of a head without its empty line."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise BenchError(f"not an HTTP answer: {first[:80]!r}")
    pairs = (line.partition(b":") for line in lines)
    return int(parts[1]), {name.lower(): value.strip() for name, _, value in pairs}


class Reader:
    """Answers from one connection, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._taken = 0

    def answer(self) -> Answer:
        """The next answer, whole."""
        self._taken = 0
        status, headers = head_fields(self.head())
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            body = self._chunks()
        elif b"content-length" in headers:
            body = self._take(int(headers[b"content-length"]))
        else:
            raise BenchError("an answer without framing on a connection that is to be kept")
        return Answer(status, body, self._taken)

    def head(self) -> bytes:
        """The next head."""
        return self._until(b"\r\n\r\n")

    def rest(self) -> bytes:
        """What came behind what was asked for."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            parts.append(self._take(size))
            self._take(2)
        self._until(b"\r\n")
        return b"".join(parts)

    def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            self._more()
        data = self._take(end + len(mark))
        return data[:end]

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._taken += size
        return data

    def _more(self) -> None:
        data = self._sock.recv(1 << 18)
        if not data:
            raise BenchError(f"the connection ended inside an answer, after {bytes(self._buffer[-80:])!r}")
        self._buffer += data


def ask(port: int, data: bytes, timeout: float = 30.0) -> Answer:
    """One request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(data)
        return Reader(sock).answer()


def wait_until_right(program: Program, port: int, data: bytes, body: bytes, patience: float) -> Answer:
    """Ask until the answer is right: the program has started. Fails with what it printed."""
    deadline = time.monotonic() + patience
    last = "nothing listened"
    while time.monotonic() < deadline and program.running:
        try:
            answer = ask(port, data, timeout=5)
        except (ConnectionError, TimeoutError, BenchError) as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if answer.status == 200 and answer.body == body:
                return answer
            last = f"status {answer.status}, body {answer.body[:80]!r}"
        time.sleep(0.05)
    raise BenchError(f"{program.name} gave no right answer ({last}); it printed:\n{program.tail()}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def render(template: Path, target: Path, **values: object) -> Path:
    """A configuration file from its template (`$name`)."""
    target.write_text(Template(template.read_text()).substitute(values))
    return target
