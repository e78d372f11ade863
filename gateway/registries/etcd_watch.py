"""A watch of etcd: one HTTP answer that does not end, read as it comes.

Rule: whoever reads decides how long to wait; a wait that ends without news, or a greenlet
that is killed while it waits, leaves nothing half read. That is why the socket is read
here: http.client forgets what it was at when it is interrupted, and urllib3 hangs up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import gevent
import httptools

from gateway.registries import RegistryError, one_line
from gateway.registries.etcd_wire import Event, Lines, Notice, notice, refused
from gateway.runtime.hub import Slices

# A connection whose other end has vanished without a word (no process, no route) is found dead
# by the kernel after this many seconds of silence, and as many more of asking three times.
SILENCE = 15
# The head of an answer, and the text of an error, are no longer than this.
MOST_HEAD = 64 * 1024


class Body:
    """The body in the bytes of an HTTP answer, whatever its framing; what httptools calls."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head = 0
        self._came = bytearray()
        self.started = False
        self.complete = False

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def feed(self, data: bytes) -> bytes:
        """What of the body is in the next bytes. Raises `RegistryError` when they are no HTTP."""
        self._head += 0 if self.started else len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise RegistryError(f"not HTTP: {one_line(error)}") from error
        if self._head > MOST_HEAD and not self.started:
            raise RegistryError(f"the head of an answer is larger than {MOST_HEAD} bytes")
        came, self._came = bytes(self._came), bytearray()
        return came

    def on_headers_complete(self) -> None:
        self.started = True

    def on_body(self, data: bytes) -> None:
        self._came += data

    def on_message_complete(self) -> None:
        self.complete = True


class Watch:
    """What happens to a key, or below a prefix, from a revision on.

    `take` waits for events; iterating takes for ever, `()` meaning that nothing is new and the
    member answers. Both raise `Compacted`, or another `RegistryError`, when the watch is over.
    """

    def __init__(self, sock: socket.socket, tick: float) -> None:
        self._sock = sock
        self._tick = tick
        self._body = Body()
        self._lines = Lines()
        self._parts: tuple[Event, ...] = ()
        self._early: tuple[Event, ...] = ()
        self._alive: Callable[[], None] = lambda: None

    def begin(self, request: bytes) -> None:
        """Ask, and wait until etcd says that it watches."""
        self._sock.sendall(request)
        created = False
        while not created:
            for said in self._notices(self._receive()):
                created = created or said.created
                self._early += self._whole(said)

    def trust(self, alive: Callable[[], None]) -> None:
        """What to ask when nothing has come for a while: it raises when the member is not there."""
        self._alive = alive

    def take(self, patience: float) -> tuple[Event, ...]:
        """The next events; none when there was nothing for so many seconds."""
        if self._early:
            taken, self._early = self._early, ()
            return taken
        data: bytes | None = None
        with gevent.Timeout(patience, False):
            data = self._receive()
        if data is None:
            self._alive()
            return ()
        # Not within the time limit: a large message is read with pauses, and none may be lost.
        return tuple(event for said in self._notices(data) for event in self._whole(said))

    def __iter__(self) -> Iterator[tuple[Event, ...]]:
        while True:
            yield self.take(self._tick)

    def _receive(self) -> bytes:
        """The next bytes. The only place that waits for them."""
        try:
            received: bytes = self._sock.recv(65536)
        except OSError as error:
            raise RegistryError(f"the watch broke: {one_line(error)}") from error
        return received

    def _notices(self, data: bytes) -> list[Notice]:
        """What these bytes say."""
        body = self._body.feed(data) if data else b""
        over = not data or self._body.complete
        if self._body.started and self._body.status != 200:
            if body or over:
                raise refused(self._body.status, body)
            return []
        turn = Slices()
        notices = [notice(line, turn) for line in self._lines.feed(body)]
        if over and not notices:
            raise RegistryError(f"the watch ended{' in the middle of a message' if self._lines.partial else ''}")
        return notices

    def _whole(self, said: Notice) -> tuple[Event, ...]:
        """What one revision changed is told together, even if it comes in parts."""
        events = self._parts + said.events
        self._parts = events if said.part else ()
        return () if said.part else events

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def opened(
    url: str, path: str, body: bytes, headers: dict[str, str], *, tick: float, patience: float, tls: Callable[[], Any]
) -> Watch:
    """A watch that etcd has confirmed within `patience` seconds; `tls` makes the context of an
    https member. Raises `RegistryError` or OSError."""
    late = gevent.Timeout(patience)
    sock: socket.socket | None = None
    try:
        with late:
            parts = urlsplit(url)
            host, secure = parts.hostname or "", parts.scheme == "https"
            sock = _connected(host, parts.port or (443 if secure else 80))
            _keep_alive(sock)
            if secure:
                sock = tls().wrap_socket(sock, server_hostname=host)
            watch = Watch(sock, tick)
            watch.begin(_request(parts.netloc, path, body, headers))
            return watch
    except BaseException as error:
        if sock is not None:
            sock.close()
        if error is late:
            raise RegistryError(f"no watch within {patience:g} s") from None
        raise


def _connected(host: str, port: int) -> socket.socket:
    """A look-up is a thread's work, even that of an address, and there may be a thousand watches."""
    try:
        socket.inet_aton(host)
    except OSError:
        return socket.create_connection((host, port))
    sock = socket.socket()
    try:
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _request(authority: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    fields = {"Host": authority, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE), ("TCP_KEEPINTVL", SILENCE // 3), ("TCP_KEEPCNT", 3)):
        option = getattr(socket, name, None)  # Linux's names
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
