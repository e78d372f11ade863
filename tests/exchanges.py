"""Requests sent through the transport alone: no door, no router, no Flask. Rule: what is asked and what
came back are values; the upstream is `gateway.testing.FakeUpstream` or a socket that the test scripts itself.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gevent
from gevent import Greenlet, monkey

from gateway.http.messages import BufferedBody, Headers, Request, RequestBody, Response
from gateway.http.request_head import Head
from gateway.model import AnswerLimits, Endpoint, PoolSettings, StaticSource, Timeouts, TlsSettings, Upstream
from gateway.net.read_size import PIECE
from gateway.transport import EndpointPool, Transport

# Nothing here waits so long unless a test is about to fail.
TIMEOUTS = Timeouts(connect=5.0, write=5.0, response=5.0, idle=5.0)


def hold_up_the_hub(seconds: float) -> None:
    """Sleep as a view does that computes: no greenlet runs meanwhile."""
    monkey.get_original("time", "sleep")(seconds)


class Pieces:
    """A request body that comes piece by piece; an exception among the pieces is raised, an event-like
    thing (with `wait`) is waited for."""

    complete = False

    def __init__(self, *pieces: object, expects_continue: bool = False) -> None:
        self._pieces = iter(pieces)
        self.expects_continue = expects_continue
        # How much was wanted at each read.
        self.asked: list[int] = []
        self.ended = False

    @property
    def reads(self) -> int:
        return len(self.asked)

    def read(self, most: int = PIECE) -> bytes:
        self.asked.append(most)
        self.expects_continue = False
        for piece in self._pieces:
            if isinstance(piece, bytes):
                return piece
            if isinstance(piece, BaseException):
                raise piece
            piece.wait()  # type: ignore[attr-defined]
        self.ended = True
        return b""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Headers
    reused: bool


def request(
    method: bytes = b"GET",
    body: RequestBody | bytes | None = None,
    *,
    length: int | None = None,
    chunked: bool = False,
    interim: Callable[[int, Headers], None] | None = None,
) -> Request:
    if isinstance(body, bytes):
        body, length = BufferedBody(body), None if chunked else len(body)
    return Request(
        method, b"/", [], started=time.monotonic(), body=body, content_length=length, chunked=chunked, interim=interim
    )


def head(asked: Request, target: bytes = b"/", upgrade: bytes | None = None, shareable: bool = True) -> Head:
    lines = [asked.method + b" " + target + b" HTTP/1.1", b"Host: service"]
    if asked.content_length is not None:
        lines.append(b"Content-Length: %d" % asked.content_length)
    elif asked.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if asked.body is not None and asked.body.expects_continue:
        lines.append(b"Expect: 100-continue")
    if upgrade is not None:
        lines += [b"Connection: Upgrade", b"Upgrade: " + upgrade]
    return Head(b"\r\n".join([*lines, b"", b""]), shareable, upgrade)


class Line:
    """One endpoint's pool, and requests over it."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeouts: Timeouts = TIMEOUTS,
        pool: PoolSettings | None = None,
        limits: AnswerLimits | None = None,
        tls: TlsSettings | None = None,
        server_name: str | None = None,
    ) -> None:
        scheme = "https" if tls is not None else "http"
        self.upstream = Upstream(
            "service",
            StaticSource(()),
            scheme=scheme,
            timeouts=timeouts,
            pool=pool or PoolSettings(),
            limits=limits or AnswerLimits(),
            tls=tls,
        )
        self.endpoint = Endpoint(scheme, host, port, server_name=server_name)
        self.timeouts = timeouts
        self.transport = Transport(b"")
        self.pool: EndpointPool = self.transport.pool(self.upstream, self.endpoint)

    def send(
        self,
        asked: Request | None = None,
        *,
        target: bytes = b"/",
        replayable: bool = True,
        fresh: bool = False,
        total: float | None = None,
        upgrade: bytes | None = None,
        shareable: bool = True,
    ) -> Response:
        asked = asked or request()
        deadline = None if total is None else asked.started + total
        return self.pool.send(
            asked,
            head(asked, target, upgrade, shareable),
            self.timeouts,
            replayable=replayable,
            fresh=fresh,
            deadline=deadline,
        )

    def ask(self, asked: Request | None = None, **how: object) -> Answer:
        """A whole exchange."""
        asked = asked or request()
        response = self.send(asked, **how)  # type: ignore[arg-type]
        return Answer(response.status, whole(response), response.headers, asked.reused)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(open, idle, waiting)."""
        return self.pool.open, len(self.pool._idle), len(self.pool._waiting)

    def close(self) -> None:
        self.transport.close()


def whole(response: Response) -> bytes:
    """The body to its end."""
    pieces = [response.data]
    while response.stream is not None and (piece := response.stream.read()):
        pieces.append(piece)
    return b"".join(pieces)


def soon(holds: Callable[[], bool], within: float = 10.0) -> None:
    """Let others run until `holds()`."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s")
        gevent.sleep(0.002)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def greenlets() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, Greenlet) and not thing.dead)


def finish(running: Iterable[Greenlet]) -> list[object]:
    """What each greenlet returned, or the exception that ended it."""
    running = list(running)
    gevent.joinall(running, timeout=30)
    assert all(one.dead for one in running)
    return [one.value if one.successful() else one.exception for one in running]
