"""A client's side of a connection as a list of what arrives, and a door that writes down what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.errors import GatewayError
from gateway.http import problem
from gateway.http.messages import Request, Response
from gateway.model import ServerSettings
from gateway.server.connection import Connection, Place, Shared
from gateway.server.parser import HeadParser

Arrival = bytes | Exception


class ScriptedStream:
    """Stands in for `stream.Stream`: each read gives the next arrival, then the end."""

    is_tls = False

    def __init__(self, *arrivals: Arrival) -> None:
        self._arrivals = list(arrivals)
        self.sent = b""
        self.closed = self.aborted = self.ended = False
        self.waiting = False
        self.eager = False
        self.on_readable: Any = None
        # The limit of each read.
        self.limits: list[float | None] = []
        # Raised by every write once so many bytes are out.
        self.breaks_after: int | None = None
        # What the kernel would take.
        self.space = 1024 * 1024
        self.held_up = False
        self.further_ahead = False
        # So many writes take nothing before they are waited for.
        self.stuck = 0
        # The sizes of all reads.
        self.sizes: list[int] = []

    def recv(self, size: int, timeout: float | None) -> bytes:
        self.limits.append(timeout)
        self.sizes.append(size)
        if self.closed:
            raise ConnectionAbortedError("closed")
        if not self._arrivals:
            return b""
        arrival = self._arrivals.pop(0)
        if isinstance(arrival, Exception):
            raise arrival
        assert len(arrival) <= size
        return arrival

    def send_some(self, data: bytes | memoryview) -> int:
        if self.breaks_after is not None and len(self.sent) + len(data) > self.breaks_after:
            raise BrokenPipeError("gone")
        if self.stuck:
            return 0
        self.sent += bytes(data)
        return len(data)

    def send_parts(self, parts: Sequence[bytes]) -> list[memoryview]:
        whole = b"".join(parts)
        return [memoryview(whole)[self.send_some(whole) :]]

    def wait_writable(self, timeout: float | None) -> None:
        self.stuck -= 1

    def go_further_ahead(self) -> None:
        self.further_ahead = True

    def room(self) -> int:
        return self.space

    def watch(self) -> None:
        pass

    def interrupt(self, error: BaseException) -> bool:
        return False

    def is_quiet(self) -> bool:
        return not self._arrivals

    def shutdown_write(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    @property
    def unread(self) -> list[Arrival]:
        return self._arrivals


class Pieces:
    """A `ResponseBody` of given pieces; an exception among them is raised."""

    def __init__(self, *pieces: bytes | Exception, at_read: Callable[[], None] = lambda: None) -> None:
        self._pieces = list(pieces)
        self._at_read = at_read
        self.most = 65536
        # What `most` was at each read.
        self.asked: list[int] = []
        self.on_end = None
        self.on_wait = None
        self.buffering = None
        self.sent = True
        self.closed = 0

    def read(self) -> bytes:
        self._at_read()
        self.asked.append(self.most)
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed += 1


class RecordingDoor:
    """Answers by a function; keeps what it was told."""

    def __init__(self, answers: Callable[[Request], Response | None]) -> None:
        self._answers = answers
        self.seen: list[Request] = []
        # (target, status, bytes of body, reason of the error) of each exchange that ended.
        self.finished: list[tuple[bytes, int | None, int, str | None]] = []

    def handle(self, request: Request) -> Response | None:
        self.seen.append(request)
        return self._answers(request)

    def answer(self, error: GatewayError, request: Request) -> Response:
        request.fail(error)
        return problem.answer(error, request)

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        told = error.reason if error is not None else request.reason or None
        self.finished.append((request.target, response.status if response else None, bytes_out, told))


def read_all(request: Request) -> bytes:
    body = b""
    while request.body is not None and (piece := request.body.read()):
        body += piece
    return body


def echo(request: Request) -> Response:
    """The method, target and body of the request."""
    return Response(200, b"OK", [], data=b"%b %b %b" % (request.method, request.target, read_all(request)))


def serve(
    *arrivals: Arrival,
    answers: Callable[[Request], Response | None] = echo,
    settings: ServerSettings | None = None,
    application: Any = None,
    breaks_after: int | None = None,
    room: int = 1024 * 1024,
    stuck: int = 0,
    **shared: Any,
) -> tuple[ScriptedStream, RecordingDoor]:
    """One connection from its first to its last byte."""
    stream = ScriptedStream(*arrivals)
    stream.breaks_after = breaks_after
    stream.space, stream.stuck = room, stuck
    return stream, serve_stream(stream, answers, settings, application, **shared)


def serve_stream(
    stream: ScriptedStream,
    answers: Callable[[Request], Response | None] = echo,
    settings: ServerSettings | None = None,
    application: Any = None,
    opens_ahead: bool = False,
    proxy_protocol: str = "off",
    **shared: Any,
) -> RecordingDoor:
    """The same over a stream that is made already."""
    settings = settings or ServerSettings()
    door = RecordingDoor(answers)
    whole = Shared(
        door, application, settings, HeadParser(settings.limits), **{"worn": lambda: None, **shared}
    )
    place = Place("http", 8000, "127.0.0.1")
    Connection(whole, stream, place, "192.0.2.1", 1234, proxy_protocol, opens_ahead).run()  # type: ignore[arg-type]
    assert stream.closed
    assert not whole.connections
    assert {**whole.places.silent, **whole.places.idle, **whole.places.lingering} == {}
    return door


def answers_in(raw: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """The answers in `raw`: status, headers by lower-case name, body (still coded). Content-Length frames them."""
    found = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        status = int(line.split(b" ")[1])
        length = int(headers[b"content-length"]) if b"content-length" in headers else 0 if status < 200 else len(raw)
        found.append((status, headers, raw[:length]))
        raw = raw[length:]
    return found
