"""The fakes, shipped for everyone who tests a gateway: FakeUpstream, RawClient, FakeProvider, FakeClock.

Rule: bytes, not opinions. FakeUpstream and RawClient speak over real loopback sockets, keep every byte that
came, and read HTTP/1.1 by the letter of RFC 9112, so that what a lenient library would forgive fails a test.
Only the standard library's `socket` and `threading` are used: the fakes work in plain processes and in those
that gevent has patched.

    with FakeUpstream() as upstream:
        upstream.answer([head(200, b"Content-Length: 5"), 0.1, b"hel", Act.RESET])
        ...
        assert upstream.requests[0].target == b"/x"
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http.client import responses as phrases
from typing import TYPE_CHECKING, Any, Self

from gateway.net.stream import deaf

if TYPE_CHECKING:
    from gateway.model import Endpoint
    from gateway.providers.base import Emit, Stop

Header = tuple[bytes, bytes]

# Long enough for a busy machine, short enough that a hanging test says so itself.
PATIENCE = 5.0

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Malformed(AssertionError):
    """What came is not HTTP/1.1 (RFC 9112, read strictly)."""


class Truncated(AssertionError):
    """A message broke off; `partial` is what there was of it (the body, once the head was complete)."""

    def __init__(self, what: str, partial: bytes = b"", response: RawResponse | None = None) -> None:
        super().__init__(f"{what}: ended after {partial[-200:]!r}")
        self.partial = partial
        self.response = response


# -- one connection --------------------------------------------------------------------


class Wire:
    """A connected socket with a buffer and the record of every byte that came."""

    def __init__(self, sock: socket.socket, timeout: float = PATIENCE) -> None:
        sock.settimeout(timeout)
        with contextlib.suppress(OSError):  # not a TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = bytearray()
        self.received = bytearray()
        self.closed = False
        # TLS ended without a close_notify: whatever its end delimits may have been cut (RFC 8446 §6.1).
        self.cut = False

    def fill(self) -> bool:
        """One `recv`; False at the end of the stream."""
        try:
            data = self.sock.recv(65536)
        except ssl.SSLZeroReturnError:
            return False  # what the end is called behind our own close_notify
        except ssl.SSLEOFError:
            self.cut = True
            return False
        self.buffer += data
        self.received += data
        return bool(data)

    def take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_until(self, end: bytes) -> bytes:
        """Everything up to and with `end`."""
        while (found := self.buffer.find(end)) < 0:
            if not self.fill():
                raise Truncated(f"waiting for {end!r}", bytes(self.buffer))
        return self.take(found + len(end))

    def read_exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not self.fill():
                raise Truncated(f"waiting for {size} bytes", bytes(self.buffer))
        return self.take(size)

    def read_some(self) -> bytes:
        """What is here, else what comes next; `b""` at the end of the stream."""
        if not self.buffer:
            self.fill()
        return self.take(len(self.buffer))

    def read_to_end(self) -> bytes:
        """Everything until the other side shuts down; a reset raises ConnectionResetError, and so does the
        end of TLS without a close_notify."""
        while self.fill():
            pass
        if self.cut:
            raise ConnectionResetError("TLS ended without a close_notify")
        return self.take(len(self.buffer))

    def ended(self, within: float = PATIENCE) -> bool:
        """Whether the other side ends the connection (FIN or RST) within that time."""
        deadline = time.monotonic() + within
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.fill():
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            if not self.closed:
                self.sock.settimeout(PATIENCE)
        return False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def half_close(self) -> None:
        """FIN (under TLS behind a close_notify): nothing more will be sent, reading goes on."""
        timeout = self.sock.gettimeout()
        self._notify(keep=True)
        # Told by a close_notify, the other side may be gone by now.
        with contextlib.suppress(OSError) if isinstance(self.sock, ssl.SSLSocket) else contextlib.nullcontext():
            self._shutdown(socket.SHUT_WR)
        self.sock.settimeout(timeout)

    def reset(self) -> None:
        """RST instead of FIN (SO_LINGER with zero seconds)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.closed = True
        self.sock.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._notify(keep=False)
            self._end()

    def cut_off(self) -> None:
        """Close without a close_notify."""
        if not self.closed:
            self.closed = True
            self._end()

    def _end(self) -> None:
        # Wakes a reader in another thread, which `close` alone does not.
        with contextlib.suppress(OSError):
            self._shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _shutdown(self, how: int) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            # Its own would forget its TLS, and read what comes as it is on the wire.
            super(ssl.SSLSocket, self.sock).shutdown(how)
        else:
            self.sock.shutdown(how)

    def _notify(self, keep: bool) -> None:
        """Send TLS's close_notify without waiting for the other side's. `keep`: what has come is still wanted,
        and would be lost by that."""
        if not isinstance(self.sock, ssl.SSLSocket):
            return
        with contextlib.suppress(OSError), deaf(self.sock):
            self.sock.setblocking(False)
            with contextlib.suppress(OSError):
                while keep and self.fill():
                    pass
            # `unwrap` would forget the TLS once the other side's has come, in which others may be reading.
            tls: Any = self.sock
            if tls._sslobj is not None:  # a test has unwrapped it itself
                tls._sslobj.shutdown()


# -- HTTP/1.1 by the letter -------------------------------------------------------------


def head(status: int, *lines: bytes, reason: bytes | None = None) -> bytes:
    """The head of an answer, its empty line included."""
    phrase = phrases.get(status, "").encode() if reason is None else reason
    return b"".join([b"HTTP/1.1 %d %s\r\n" % (status, phrase), *(line + b"\r\n" for line in lines), b"\r\n"])


def answer(body: bytes = b"", *lines: bytes, status: int = 200) -> bytes:
    """A whole answer with its Content-Length."""
    return head(status, b"Content-Length: %d" % len(body), *lines) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(*pieces: bytes, trailers: Sequence[bytes] = ()) -> bytes:
    """A whole chunked body."""
    return b"".join([*map(chunk, pieces), b"0\r\n", *(line + b"\r\n" for line in trailers), b"\r\n"])


def parse_head(raw: bytes) -> tuple[bytes, list[Header]]:
    """Start line and header lines of a head that ends with its empty line."""
    lines = raw[:-4].split(b"\r\n")
    for line in lines:
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise Malformed(f"bare CR, LF or NUL in {line!r}")
    return lines[0], [_field(line) for line in lines[1:]]


def _field(line: bytes) -> Header:
    name, colon, value = line.partition(b":")
    if not colon or not name or not _TOKEN.issuperset(name):
        raise Malformed(f"not a header line: {line!r}")
    return name, value.strip(b" \t")


def values(headers: Iterable[Header], name: bytes) -> list[bytes]:
    """Every value of a header, its name in any case."""
    wanted = name.lower()
    return [value for field_name, value in headers if field_name.lower() == wanted]


def _length(headers: list[Header]) -> int | None:
    """Content-Length, which must be there once at most and be digits (RFC 9110 §8.6)."""
    lengths = values(headers, b"content-length")
    if not lengths:
        return None
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise Malformed(f"Content-Length {lengths!r}")
    return int(lengths[0])


def framing(headers: list[Header]) -> tuple[bool, int | None]:
    """(chunked, length) of a message; both at once and any other coding are malformed."""
    codings, length = values(headers, b"transfer-encoding"), _length(headers)
    if codings and length is not None:
        raise Malformed("Transfer-Encoding beside Content-Length")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise Malformed(f"Transfer-Encoding {codings!r}")
    return bool(codings), length


def read_chunk(wire: Wire) -> bytes:
    """One chunk's data; `b""` for the last chunk, whose trailers are still to be read."""
    line = wire.read_until(b"\r\n")[:-2]
    size = line.split(b";", 1)[0]
    if not size or not _HEX.issuperset(size):
        raise Malformed(f"chunk size line {line!r}")
    data = wire.read_exactly(int(size, 16))
    if data and wire.read_exactly(2) != b"\r\n":
        raise Malformed("a chunk longer than its size")
    return data


def read_trailers(wire: Wire) -> list[Header]:
    lines = []
    while (line := wire.read_until(b"\r\n")) != b"\r\n":
        lines.append(_field(line[:-2]))
    return lines


# -- the upstream's side ----------------------------------------------------------------


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One request as it reached the upstream. `connection` numbers the connections from 0;
    `complete` is False until the end of the body was there."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[Header]
    head: bytes
    connection: int
    body: bytes = b""
    trailers: list[Header] = field(default_factory=list)
    complete: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return values(self.headers, name)

    def header(self, name: bytes) -> bytes | None:
        """The only value of a header; None when there is none, an error when there are more."""
        found = self.values(name)
        if len(found) > 1:
            raise Malformed(f"{name!r} came {len(found)} times: {found!r}")
        return found[0] if found else None


class Act(Enum):
    """What a script's list can do besides sending (bytes), pausing (seconds) and waiting (an event)."""

    CLOSE = "FIN and no more (under TLS behind a close_notify)"
    CUT = "FIN without a close_notify"
    HALF_CLOSE = "FIN, but go on reading"
    RESET = "RST"
    HANG = "say nothing more until the peer hangs up"


class Exchange:
    """One request in the hands of a script: read its body, send what you like, end it how you like."""

    def __init__(self, wire: Wire, request: ReceivedRequest, changed: Callable[[], None]) -> None:
        self.wire = wire
        self.request = request
        self.peer_closed = False
        self._changed = changed

    def read_body(self) -> bytes:
        """The whole body; the request then counts as complete."""
        if not self.request.complete:
            is_chunked, length = framing(self.request.headers)
            if is_chunked:
                while data := read_chunk(self.wire):
                    self._got(data)
                self.request.trailers = read_trailers(self.wire)
            else:
                self._read_length(length or 0)
            self.request.complete = True
            self._changed()
        return self.request.body

    def read_piece(self) -> bytes:
        """Some bytes of the body as they come off the wire, chunk framing included."""
        data = self.wire.read_some()
        self._got(data)
        return data

    def _read_length(self, length: int) -> None:
        while (left := length - len(self.request.body)) > 0:
            if not self.wire.buffer and not self.wire.fill():
                raise Truncated("the body", self.request.body)
            self._got(self.wire.take(left))

    def _got(self, data: bytes) -> None:
        self.request.body += data
        self._changed()

    def send(self, data: bytes) -> None:
        self.wire.send(data)

    def hang(self) -> None:
        """Say nothing until the peer hangs up."""
        while not self.wire.closed and not self.wire.ended():
            pass
        self.peer_closed = True
        self._changed()

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._do(step)

    def _do(self, step: Step) -> None:
        if isinstance(step, bytes):
            self.send(step)
        elif isinstance(step, threading.Event):
            step.wait(PATIENCE)
        elif isinstance(step, Act):
            {
                Act.CLOSE: self.wire.close,
                Act.CUT: self.wire.cut_off,
                Act.HALF_CLOSE: self.wire.half_close,
                Act.RESET: self.wire.reset,
                Act.HANG: self.hang,
            }[step]()
        else:
            time.sleep(step)


Step = bytes | float | threading.Event | Act
Script = bytes | Sequence[Step] | Callable[[Exchange], None]


class FakeUpstream:
    """An HTTP/1.1 server on an ephemeral loopback port that does what it is told.

    A script says what happens with one request: bytes are sent as they are; a list is done step by step
    (bytes, seconds, an event to wait for, an `Act`), both after the request's body was read; a function gets
    the `Exchange` before the body was read and does everything itself. `answer(...)` sets the script for all
    that follow, `queue(...)` one for each of the next requests, `serve(prefix, ...)` one for a path. The
    connection is kept when the script did not end it and the body was read.

    Kept: `requests` as parsed, `connections` with every byte (`.received`), `aborted` (the requests whose
    connection the gateway ended while a script still hung), `violations`: what was not HTTP/1.1.
    """

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1",
                 tls: ssl.SSLContext | None = None, port: int = 0) -> None:  # fmt: skip
        self.requests: list[ReceivedRequest] = []
        self.connections: list[Wire] = []
        self.aborted: list[ReceivedRequest] = []
        self.violations: list[str] = []
        self._default: Script = script if script is not None else answer(b"ok")
        self._queue: deque[Script] = deque()
        self._paths: dict[bytes, Script] = {}
        self._tls = tls
        self._condition = threading.Condition()
        self._stopping = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.authority}"

    # what it is told

    def answer(self, script: Script) -> None:
        """The script for every request from now on that nothing nearer is set for."""
        self._default = script

    def queue(self, *scripts: Script) -> None:
        """One script each for the next requests."""
        self._queue.extend(scripts)

    def serve(self, path: bytes, script: Script) -> None:
        """The script for targets that begin with `path`; the longest one wins, and wins over the queue."""
        self._paths[path] = script

    def forget(self, script: Script | None = None) -> None:
        """Back to the beginning: no scripts, nothing recorded. Connections that are open stay so, and stay listed."""
        with self._condition:
            self._queue.clear()
            self._paths.clear()
            self.requests.clear()
            self.connections[:] = [wire for wire in self.connections if not wire.closed]
            for wire in self.connections:
                wire.received.clear()
            self.aborted.clear()
            self.violations.clear()
        self._default = script if script is not None else answer(b"ok")

    # what it saw

    def until(self, holds: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait until `holds()`; it is asked again whenever something came."""
        with self._condition:
            if not self._condition.wait_for(holds, within):
                raise AssertionError(f"not within {within} s; {len(self.requests)} requests: {self.requests!r}")

    def wait(self, number: int, within: float = PATIENCE) -> list[ReceivedRequest]:
        """The requests, once the heads of so many have come."""
        self.until(lambda: len(self.requests) >= number, within)
        return self.requests

    def wait_complete(self, within: float = PATIENCE) -> ReceivedRequest:
        """The last request, once the whole of it has come."""
        self.until(lambda: bool(self.requests) and self.requests[-1].complete, within)
        return self.requests[-1]

    def wait_aborted(self, number: int = 1, within: float = PATIENCE) -> None:
        self.until(lambda: len(self.aborted) >= number, within)

    def hang_up(self) -> None:
        """FIN on every open connection, the gateway's idle ones included."""
        for wire in self.connections:
            wire.close()

    @property
    def last(self) -> ReceivedRequest:
        return self.requests[-1]

    @property
    def bodies(self) -> list[bytes]:
        return [request.body for request in self.requests]

    def close(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # how it works

    def _accept(self) -> None:
        number = 0
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._connection, args=(sock, number), daemon=True).start()
            number += 1

    def _connection(self, sock: socket.socket, number: int) -> None:
        try:
            # An idle connection belongs to the gateway's pool: only the gateway or `close` ends it.
            wire = Wire(self._tls.wrap_socket(sock, server_side=True) if self._tls else sock, timeout=600)
        except OSError:
            sock.close()
            return  # no TLS handshake
        try:
            self._note(lambda: self.connections.append(wire))
            while self._one(wire, number):
                pass
        except Malformed as error:
            told = str(error)
            self._note(lambda: self.violations.append(told))
        except (Truncated, OSError):
            pass  # the gateway hung up: `requests[i].complete` tells
        finally:
            wire.close()
            self._note(lambda: None)

    def _one(self, wire: Wire, number: int) -> bool:
        """Serve one request; False when the connection is over."""
        if not wire.buffer and not wire.fill():
            return False
        request = _read_request(wire, number)
        exchange = Exchange(wire, request, lambda: self._note(lambda: None))
        self._note(lambda: self.requests.append(request))
        try:
            self._run(self._choose(request), exchange)
        except (Truncated, OSError):
            if not wire.closed:
                exchange.peer_closed = True
        if exchange.peer_closed:
            self._note(lambda: self.aborted.append(request))
        return request.complete and not wire.closed and not exchange.peer_closed

    def _choose(self, request: ReceivedRequest) -> Script:
        for path in sorted(self._paths, key=len, reverse=True):
            if request.target.startswith(path):
                return self._paths[path]
        with self._condition:
            return self._queue.popleft() if self._queue else self._default

    def _run(self, script: Script, exchange: Exchange) -> None:
        if callable(script):
            script(exchange)
            return
        exchange.read_body()
        exchange.run([script] if isinstance(script, bytes) else script)

    def _note(self, change: Callable[[], object]) -> None:
        with self._condition:
            change()
            self._condition.notify_all()


def _read_request(wire: Wire, number: int) -> ReceivedRequest:
    raw = wire.read_until(b"\r\n\r\n")
    line, headers = parse_head(raw)
    words = line.split(b" ")
    if len(words) != 3 or not all(words) or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed(f"request line {line!r}")
    is_chunked, length = framing(headers)
    return ReceivedRequest(words[0], words[1], words[2], headers, raw, number,
                           complete=not is_chunked and not length)  # fmt: skip


# -- the client's side -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawResponse:
    """One answer as it came. `framing`: length, chunked, eof or none; `interim`: the 1xx before it."""

    version: bytes
    status: int
    reason: bytes
    headers: list[Header]
    head: bytes
    body: bytes = b""
    framing: str = "none"
    trailers: tuple[Header, ...] = ()
    interim: tuple[RawResponse, ...] = ()

    def values(self, name: bytes) -> list[bytes]:
        return values(self.headers, name)

    def header(self, name: bytes) -> bytes | None:
        """The only value of a header; None when there is none, an error when there are more."""
        found = self.values(name)
        if len(found) > 1:
            raise Malformed(f"{name!r} came {len(found)} times: {found!r}")
        return found[0] if found else None


class RawClient(Wire):
    """A client that sends exactly what it is given and reads answers by the letter."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, timeout: float = PATIENCE,
                 tls: ssl.SSLContext | None = None, receive_buffer: int = 0) -> None:  # fmt: skip
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:  # to be a slow reader, a small one: set before the handshake or the window is agreed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(timeout)
        try:
            sock.connect((host, port))
            if tls:
                sock = tls.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
            super().__init__(sock, timeout)
        except BaseException:
            sock.close()
            raise
        self.local_port: int = sock.getsockname()[1]

    def send_pieces(self, pieces: Iterable[bytes], gap: float = 0.02) -> None:
        """Each piece in a packet of its own."""
        for piece in pieces:
            self.send(piece)
            time.sleep(gap)

    def request(self, data: bytes, method: bytes | None = None) -> RawResponse:
        """Send one request and read its answer."""
        self.send(data)
        return self.read_response(method or data.split(b" ", 1)[0])

    def read_response(self, method: bytes = b"GET") -> RawResponse:
        """The final answer, 1xx collected on the way (101 is final)."""
        interim: list[RawResponse] = []
        while True:
            response = self.read_head()
            if response.status >= 200 or response.status == 101:
                return self._with_body(response, method, tuple(interim))
            interim.append(response)

    def read_head(self) -> RawResponse:
        """One head, 1xx or final, without a body."""
        raw = self.read_until(b"\r\n\r\n")
        line, headers = parse_head(raw)
        version, _, rest = line.partition(b" ")
        code, space, reason = rest.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(code) != 3 or not code.isdigit() or not space:
            raise Malformed(f"status line {line!r}")
        return RawResponse(version, int(code), reason, headers, raw)

    def _with_body(self, got: RawResponse, method: bytes, interim: tuple[RawResponse, ...]) -> RawResponse:
        def made(how: str, body: bytes = b"", trailers: tuple[Header, ...] = ()) -> RawResponse:
            return RawResponse(got.version, got.status, got.reason, got.headers, got.head, body, how, trailers, interim)

        is_chunked, length = framing(got.headers)
        if got.status in (101, 204, 304) or method == b"HEAD":
            return made("none")
        try:
            if is_chunked:
                return made("chunked", self._chunks(), tuple(read_trailers(self)))
            if length is not None:
                return made("length", self.read_exactly(length))
            return made("eof", self.read_to_end())
        except Truncated as error:
            error.response = made("truncated", error.partial)
            raise

    def _chunks(self) -> bytes:
        body = b""
        try:
            while data := read_chunk(self):
                body += data
        except (Truncated, OSError) as error:
            partial = error.partial if isinstance(error, Truncated) else b""
            raise Truncated("the chunked body", body + partial) from error
        return body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- time and discovery ----------------------------------------------------------------


class FakeClock:
    """Time that passes when it is told to: call it for the time, `sleep` and `advance` move it on."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


class FakeProvider:
    """A provider that says what it is told: `give` the whole new group, or `fail` to look it up.

    Both reach whoever called `run`, at once and in the caller's thread; `running` is set from then on.
    """

    def __init__(self, upstream: str) -> None:
        # Not at the top: who only needs a FakeUpstream should not import a registry's client.
        from gateway.providers.base import Status

        self.upstream = upstream
        self.status = Status()
        self.running = threading.Event()
        self._emit: Emit | None = None

    def run(self, emit: Emit, stop: Stop) -> None:
        self._emit = emit
        self.running.set()
        while not stop.is_set():
            stop.wait(60)
        self.running.clear()

    def give(self, *endpoints: Endpoint) -> None:
        """A good answer; no endpoints at all is one too."""
        self._tell(tuple(endpoints), "")

    def fail(self, error: str = "connection refused") -> None:
        """The registry cannot be asked."""
        self._tell(None, error)

    def _tell(self, endpoints: tuple[Endpoint, ...] | None, error: str) -> None:
        from gateway.providers.base import Update

        if self._emit is None:
            raise AssertionError(f"nobody runs the provider of {self.upstream!r}")
        self.status.last_error = error
        self._emit(Update(self.upstream, endpoints, error))
