"""WSGI on our worker: for Flask's views, for hooks, and for any other application.

Rule: PEP 3333, complete. The request that was parsed goes along as `gateway.request`, so
that a Gateway loses nothing on this way; everything it answers is written by the same
`Connection`. Names with "_" are left out: they could not be told from those with "-".
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from gateway.errors import ClientClosed, GatewayError
from gateway.http import target
from gateway.http.messages import Headers, Request, Response
from gateway.server.body import ArrivingBody
from gateway.server.connection import Connection, without_body
from gateway.server.kept_body import RawBody
from gateway.server.wsgi_environ import Exchange

if TYPE_CHECKING:
    from types import TracebackType

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

_STATUS = re.compile(r"([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
# Between us and the next hop, so not the application's (PEP 3333, "Other HTTP Features").
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# Expect is answered by the first read of wsgi.input; HTTP_PROXY would pass for a setting (httpoxy, CVE-2016-5385).
_NOT_IN_ENVIRON = frozenset({"EXPECT", "PROXY"})


def split_target(raw: bytes) -> tuple[str, str]:
    """PATH_INFO and QUERY_STRING of a target; the path of `*` is empty, as it is no path."""
    asked = target.parse(raw)
    path = b"" if asked.path == b"*" else asked.path
    return unquote_to_bytes(path).decode("latin-1"), (asked.query or b"").decode("latin-1")


def environ_of(request: Request, connection: Connection, base: dict[str, Any]) -> dict[str, Any]:
    """The environ of a request. Raises `BadRequest` for a target that is none."""
    asked = target.parse(request.target)
    path, query = split_target(request.target)
    place = connection.place
    environ = dict(base)
    body: Any = io.BytesIO() if request.body is None else io.BufferedReader(RawBody(request.body))
    raw = request.target.decode("latin-1")
    environ.update(
        {
            "REQUEST_METHOD": request.method.decode("latin-1"),
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "RAW_URI": raw,
            "REQUEST_URI": raw,
            "SERVER_NAME": place.address or "localhost",
            "SERVER_PORT": str(place.port),
            "SERVER_PROTOCOL": "HTTP/1.1" if request.http11 else "HTTP/1.0",
            "REMOTE_ADDR": request.peer,
            "REMOTE_PORT": str(connection.peer_port),
            "wsgi.url_scheme": request.scheme,
            "wsgi.input": body,
            "gateway.request": request,
            # By which it is seen that a middleware has put another in its place.
            "gateway.input": body,
            "gateway.exchange": Exchange(watched=True),
        }
    )
    if request.scheme == "https":
        environ["HTTPS"] = "on"
    _add_headers(environ, request.headers)
    if asked.authority is not None:  # it replaces Host (RFC 9112 §3.2.2)
        environ["HTTP_HOST"] = asked.authority.decode("latin-1")
    return environ


def _add_headers(environ: dict[str, Any], headers: Headers) -> None:
    values: dict[str, list[str]] = {}
    for name, value in headers:
        if b"_" in name:
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        if key in _NOT_IN_ENVIRON:
            continue
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        values.setdefault(key, []).append(value.decode("latin-1"))
    for key, texts in values.items():
        # RFC 9110 §5.3, and RFC 6265 §5.4 for the one exception
        environ[key] = ("; " if key == "HTTP_COOKIE" else ",").join(texts)


class _Answer:
    """What an application says by `start_response`, and by `write` if it is an old one."""

    def __init__(self, connection: Connection, request: Request, body: ArrivingBody | None) -> None:
        self._connection = connection
        self._request = request
        self._body = body
        self.response: Response | None = None
        self.begun = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self.begun and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no circle through the traceback
        elif self.response is not None:
            raise AssertionError("start_response was called twice without exc_info")
        self.response = _response(status, headers)
        return self._write

    def _write(self, data: bytes) -> None:
        """PEP 3333's `write`: sent at once, even when it is empty."""
        if not self.begun:
            self.begin()
        if data:
            self.more(data)

    def begin(self, data: bytes = b"", complete: bool = False) -> None:
        """Send the head with the first piece. `complete`: there is no more than `data`."""
        response = self.response
        if response is None:
            raise AssertionError("the application did not call start_response")
        if self._connection.gone is not None:  # the application may have caught that
            raise self._connection.gone
        self.begun = True
        if data or complete:
            response.data = data
        self._connection.begin(self._request, response, self._body, complete)

    def more(self, data: bytes) -> None:
        assert self.response is not None
        if not without_body(self._request, self.response):
            self._connection.more(data)

    def end(self) -> None:
        assert self.response is not None
        if not without_body(self._request, self.response):
            self._connection.end()


def _response(status: str, headers: list[tuple[str, str]]) -> Response:
    """The head of an answer from what `start_response` was given. Raises ValueError."""
    found = _STATUS.fullmatch(status)
    if found is None:
        raise ValueError(f"status {status!r}")
    length: int | None = None
    close = False
    kept: Headers = []
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"header {name!r}: {value!r}")
        lower = name.lower()
        if lower == "content-length":
            if not _LENGTH.fullmatch(value.strip(" ")) or length not in (None, int(value)):
                raise ValueError(f"Content-Length {value!r}")
            length = int(value)
        elif lower == "connection":
            close = close or "close" in [option.strip(" \t") for option in value.lower().split(",")]
        elif lower not in _HOP_BY_HOP:
            kept.append((name.encode("latin-1"), value.strip(" \t").encode("latin-1")))
    reason = (found[2] or "").encode("latin-1")
    return Response(int(found[1]), reason, kept, content_length=length, close=close)


class WsgiApplication:
    """One WSGI callable, served on connections of ours."""

    def __init__(
        self,
        application: Callable[..., Iterable[bytes]],
        base: dict[str, Any],
        begins: Callable[[Request], None] | None = None,
        finished: Callable[[Request, dict[str, Any], Response | None, int], None] | None = None,
    ) -> None:
        self._application = application
        # What is the same for every request (gunicorn's `base_environ`).
        self._base = base
        # gunicorn's hooks and access log, when somebody looks.
        self._begins = begins
        self._finished = finished

    def serve(self, connection: Connection, request: Request, body: ArrivingBody | None) -> None:
        """Call the application and write what it answers, well or badly."""
        answer = _Answer(connection, request, body)
        environ: dict[str, Any] = {}
        exchange = Exchange()
        iterable: Any = None
        failure: BaseException | None = None
        told: GatewayError | None = None
        # Whether a middleware answers in front of the gateway, which gives each request that it sees an id.
        unseen = False
        # Everything that an application raises ends its request alone: SystemExit would end the
        # worker, and by its status gunicorn's master, too.
        try:
            try:
                if self._begins is not None:
                    self._begins(request)
                environ = environ_of(request, connection, self._base)
                exchange = environ["gateway.exchange"]
                iterable = self._application(environ, answer.start_response)
                self._pass_on(iterable, answer, connection, request, exchange)
                unseen = not request.request_id
            except BaseException as error:
                failure = error
                unseen = not request.request_id
                told = self._fail(error, answer, connection, request, body)
            finally:
                _note(exchange, told, answer, connection, body)
                try:
                    if hasattr(iterable, "close"):
                        iterable.close()
                finally:
                    exchange.end()
        except BaseException as error:  # from close, or on top of a failure
            connection.failed(error)
            connection.break_off()
        if iterable is None and failure is not None and not exchange.finished:
            connection.shared.door.finish(request, answer.response, connection.sent, None)
            return
        if unseen and not exchange.finished:
            connection.shared.door.finish(request, answer.response, connection.sent, told or connection.gone)
        if self._finished is not None:
            self._finished(request, environ, answer.response, connection.sent)

    def _pass_on(
        self, iterable: Any, answer: _Answer, connection: Connection, request: Request, exchange: Exchange
    ) -> None:
        # A Gateway's own answer, unless another was given in its place.
        own = exchange.answer if exchange.answer is not None and not exchange.answer.ended else None
        carried = False
        alone = _is_alone(iterable)
        # Held, so that a failure below is noted before the iterator learns of its end.
        pieces = iter(iterable)
        try:
            for piece in pieces:
                if own is not None and own.response.tunnel is not None and _switches(answer) and not carried:
                    carried = answer.begun = True
                    _carry(own.response, answer, connection, request, exchange)
                elif not answer.begun:
                    # PEP 3333: the head waits for the first byte; a gateway's answer does not.
                    if piece or (own is not None and answer.response is not None):
                        answer.begin(piece, complete=alone)
                elif piece:
                    answer.more(piece)
        except ConnectionResetError:
            # How a Gateway tells any server that an answer broke off.
            if own is None or own.error is None:
                raise
        if own is not None and own.error is not None:
            raise own.error
        if connection.gone is not None:
            # Thrown into the iterable, which ended without a word.
            raise connection.gone
        if carried:
            return
        if not answer.begun:
            answer.begin(complete=True)
        else:
            answer.end()

    def _fail(
        self,
        error: BaseException,
        answer: _Answer,
        connection: Connection,
        request: Request,
        body: ArrivingBody | None,
    ) -> GatewayError:
        """The application failed, or the client did while it ran: what the log is to say."""
        if connection.gone is not None:
            connection.discard(None)
            return connection.gone
        if isinstance(error, ClientClosed):
            connection.discard(None)
            return error
        known: GatewayError
        if connection.answering:
            known = error if isinstance(error, GatewayError) else connection.failed(error)
            connection.break_off()
            return known
        if body is not None and body.error is not None:
            known = body.error  # what the application made of it does not matter
        elif isinstance(error, GatewayError):
            known = error
        else:
            known = connection.failed(error)
        if isinstance(known, ClientClosed):
            connection.discard(None)
            return known
        answer.response = connection.shared.door.answer(known, request)
        connection.write(request, answer.response, body)
        return known


def _switches(answer: _Answer) -> bool:
    """Whether the application said 101: a hook may have given a tunnel another status."""
    return answer.response is not None and answer.response.status == 101


def _carry(
    own: Response, answer: _Answer, connection: Connection, request: Request, exchange: Exchange
) -> None:
    """Open the tunnel of a Gateway's answer, with the header fields that the application has made of it."""
    assert answer.response is not None
    # WSGI has no hop-by-hop fields.
    own.headers = answer.response.headers + [field for field in own.headers if field[0].lower() == b"upgrade"]
    try:
        connection.open_tunnel(request, own)
    except OSError as error:
        raise ClientClosed(f"the tunnel broke: {error}") from error
    finally:
        exchange.sent = connection.sent


def _note(
    exchange: Exchange, told: GatewayError | None, answer: _Answer, connection: Connection, body: ArrivingBody | None
) -> None:
    """Let a Gateway know what it cannot see: how it went here."""
    missing = body.error if body is not None else None
    exchange.failure = told or connection.gone or missing
    if exchange.failure is not None:
        exchange.sent = connection.sent
        # Whatever an application says to a client that left inside its body: nobody hears it.
        if not answer.begun or isinstance(missing, ClientClosed):
            exchange.status = exchange.failure.status


def _is_alone(iterable: Any) -> bool:
    """Whether the one piece that is yielded is the whole body (PEP 3333, "Handling the
    Content-Length Header")."""
    try:
        return len(iterable) == 1
    except TypeError:
        return False
