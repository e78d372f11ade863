"""What gunicorn serves in the worker's tests: a door that does as it is told, and WSGI applications.

Rule: read by the gunicorn of `worker_process`, which says by environment variables what settings to use and
where to write down how each exchange ended.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.validate import validator

import flask
import gevent

from gateway.buffers.memory import Buffers
from gateway.errors import BodyTooLarge, GatewayError, UpstreamStalled
from gateway.http import problem
from gateway.http.messages import Headers, Request, Response
from gateway.model import ServerLimits, ServerSettings, ServerTimeouts
from gateway.server.pace import Pace

PIECE = b"x" * 65536


def _settings() -> ServerSettings:
    given = json.loads(os.environ.get("WORKER_TEST_SETTINGS", "{}"))
    Pace.window = given.pop("window", Pace.window)
    timeouts = ServerTimeouts(**given.pop("timeouts", {}))
    return ServerSettings(timeouts=timeouts, limits=ServerLimits(**given.pop("limits", {})), **given)


class Pieces:
    """A body that takes its time."""

    most = 65536
    on_end: Callable[[], None] | None = None
    on_wait: Callable[[], None] | None = None
    buffering = None
    sent = True

    def __init__(self, number: int, gap: float, piece: bytes = b"tick\n", end: GatewayError | None = None) -> None:
        self._left = number
        self._gap = gap
        self._piece = piece
        self._end = end

    def read(self) -> bytes:
        if not self._left:
            if self._end is not None:
                raise self._end
            return b""
        self._left -= 1
        if self._gap:
            gevent.sleep(self._gap)
        return self._piece

    def close(self) -> None:
        pass


class Echo:
    """A tunnel to nowhere: what the client sends comes back."""

    on_end: Callable[[], None] | None = None

    def run(self, client: Any, early: bytes) -> tuple[int, int]:
        count = 0
        while early or (early := client.recv(65536, 5.0)):
            client.send(b"[" + early + b"]", 5.0)
            count += len(early)
            early = b""
        return count, count

    def close(self) -> None:
        pass


class Told:
    """In place of a Gateway: the target says what is to happen."""

    def __init__(self) -> None:
        self.server = _settings()
        self.draining = False
        self.buffers = Buffers(0)
        path = os.environ.get("WORKER_TEST_LOG")
        # One write of one line each: whole, whoever else writes.
        self._log = open(path, "a", buffering=1) if path else None  # noqa: SIM115 - as long as the process

    def direct_door(self) -> str | None:
        return os.environ.get("WORKER_TEST_CLOSED_DOOR")

    def handle(self, request: Request) -> Response | None:
        path, _, query = request.target.partition(b"?")
        told: Callable[[Request, bytes], Response | None] = getattr(self, "do_" + path[1:].decode(), _not_found)
        return told(request, query)

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        if self._log is not None:
            ended = {
                "target": request.target.decode("latin-1"),
                "peer": request.peer,
                "scheme": request.scheme,
                "status": response.status if response else None,
                "bytes_in": request.bytes_in,
                "bytes_out": bytes_out,
                "error": error.reason if error else None,
                "reason": request.reason,
                "pid": os.getpid(),
            }
            self._log.write(json.dumps(ended) + "\n")

    def identify(self, request: Request) -> None:
        request.request_id = b"told"

    def answer(self, error: GatewayError, request: Request) -> Response:
        request.fail(error)
        return problem.answer(error, request)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("X-Door", "wsgi")])
        return [environ["gateway.request"].target]

    # -- what a target can tell -------------------------------------------------------

    def do_hello(self, request: Request, query: bytes) -> Response:
        return _ok(b"hello")

    def do_pid(self, request: Request, query: bytes) -> Response:
        return _ok(b"%d" % os.getpid())

    def do_ready(self, request: Request, query: bytes) -> Response:
        return _ok(b"draining" if self.draining else b"ready")

    def do_flask(self, request: Request, query: bytes) -> Response | None:
        return None

    def do_hold(self, request: Request, query: bytes) -> Response:
        gevent.sleep(float(query))
        return _ok(b"held")

    def do_echo(self, request: Request, query: bytes) -> Response:
        body = []
        while request.body is not None and (piece := request.body.read()):
            body.append(piece)
        return _ok(b"".join(body))

    def do_count(self, request: Request, query: bytes) -> Response:
        count = 0
        while request.body is not None and (piece := request.body.read()):
            count += len(piece)
        return _ok(b"%d" % count)

    def do_swallow(self, request: Request, query: bytes) -> Response:
        self.do_count(request, query)
        gevent.sleep(60)
        return _ok(b"")

    def do_refuse(self, request: Request, query: bytes) -> Response:
        return self.answer(BodyTooLarge("as told"), request)

    def do_ticks(self, request: Request, query: bytes) -> Response:
        number, gap = query.split(b",")
        return Response(200, b"OK", [], stream=Pieces(int(number), float(gap)))

    def do_flood(self, request: Request, query: bytes) -> Response:
        return Response(200, b"OK", [], stream=Pieces(int(query), 0.0, PIECE))

    def do_break(self, request: Request, query: bytes) -> Response:
        length = int(query) if query else None
        return Response(200, b"OK", [], content_length=length, stream=Pieces(2, 0.0, end=UpstreamStalled("as told")))

    def do_hints(self, request: Request, query: bytes) -> Response:
        if request.interim is not None:
            request.interim(103, [(b"Link", b"</a>")])
        return _ok(b"hinted")

    def do_tunnel(self, request: Request, query: bytes) -> Response:
        if request.upgrade is None:
            return _ok(b"no tunnel")
        headers: Headers = [(b"X-Tunnel", b"1")]
        return Response(101, b"Switching Protocols", headers, tunnel=Echo())


def _ok(data: bytes) -> Response:
    return Response(200, b"OK", [(b"Content-Type", b"text/plain")], data=data)


def _not_found(request: Request, query: bytes) -> Response:
    return Response(404, b"Not Found", [], data=b"not found")


told = Told()


class ToldToLeave(Told):
    """Its worker gets SIGTERM before it has listeners."""

    def direct_door(self) -> str | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().direct_door()


told_to_leave = ToldToLeave()


def _plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    if environ["PATH_INFO"] == "/exit":
        raise SystemExit(3)
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    data = repr((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["REMOTE_ADDR"], body)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
    return [data]


plain = validator(_plain)  # type: ignore[arg-type]

flasked = flask.Flask(__name__)


@flasked.route("/hello/<name>", methods=["GET", "POST"])
def hello(name: str) -> dict[str, Any]:
    return {"name": name, "form": flask.request.form.to_dict(), "host": flask.request.host, "args": flask.request.args}


@flasked.route("/upload", methods=["POST"])
def upload() -> str:
    given = flask.request.files["file"]
    return f"{given.filename} {len(given.read())}"


@flasked.route("/stream")
def stream() -> flask.Response:
    return flask.Response(f"{number}\n" for number in range(5))


@flasked.route("/bug")
def bug() -> str:
    raise RuntimeError("bug")
