"""The gateway's answers inside Flask: what after_request hooks and error handlers see of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.exceptions import ClientDisconnected, HTTPException, default_exceptions
from werkzeug.wsgi import ClosingIterator

from gateway.errors import ClientClosed, GatewayError
from gateway.http.messages import Request, Response
from gateway.server import wsgi_environ
from gateway.server.kept_body import BodyFailed

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger("gateway")

_BODILESS = (204, 304)


class Disconnected(BodyFailed, ClientDisconnected):
    """The client left inside the body that a hook reads, in the words that Flask and its agents know."""

    def __init__(self, told: str) -> None:
        ClientDisconnected.__init__(self)
        BodyFailed.__init__(self, told)


class Forwarded(flask.Response):
    """A forwarded answer: its headers are the upstream's, nothing is added. As Flask's own answers that stream a file
    (`send_file`), it does not read its body into memory unless a hook sets `direct_passthrough` to False."""

    default_mimetype = None
    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        answer = self.response
        if isinstance(answer, wsgi_environ.WsgiAnswer) and answer.response.tunnel is not None:
            return ClosingIterator(answer, self.close)
        iterable = super().get_app_iter(environ)
        # A body that passes through is handed out bare there, so that nobody would call `call_on_close`'s functions.
        return ClosingIterator(iterable, self.close) if iterable is answer else iterable


def forwarded(answer: wsgi_environ.WsgiAnswer) -> Forwarded:
    """An answer of the gateway as Flask's hooks see it, its body still to come."""
    response = answer.response
    made = Forwarded(answer, *_head(response), direct_passthrough=True)
    # A hook that reads the body of an answer to HEAD gets nothing, which is not the length of what GET would get.
    made.automatically_set_content_length = response.content_length is not None or not response.bodyless
    return made


def _head(response: Response) -> tuple[str, list[tuple[str, str]]]:
    seen: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        seen.append((status, headers))

    wsgi_environ.start(response, start)
    return seen[0]


def http_error(error: GatewayError, made: Response) -> HTTPException:
    """An error of the gateway as Flask's error handlers know it: by its status, with the answer that the gateway has
    `made` as its response. Raise it from `error`, whose `reason` is the word of the log."""
    return _exception(error.status)(error.detail, Forwarded([made.data], *_head(made)))


@cache
def _exception(status: int) -> type[HTTPException]:
    """werkzeug's class for a status; 508 and such have none, and no handler of their own."""
    return default_exceptions.get(status) or type(f"HTTP{status}", (HTTPException,), {"code": status})


def page(app: flask.Flask, error: GatewayError, request: Request, made: Response) -> Response:
    """What an error handler of the app makes of an error outside Flask's own dispatch; `made` where there is none or it
    fails. The handler sees the request without its body."""
    asked = http_error(error, made)
    asked.__cause__ = error
    try:
        environ = wsgi_environ.environ(request)
        with app.request_context(environ):
            given = app.handle_http_exception(asked)
            if given is asked:
                return made
            answer = app.make_response(given)
            try:
                return _converted(answer, environ, request, made)
            finally:
                answer.close()
    except ClientClosed:
        return made
    except Exception:
        log.exception("the error handler for %s %s failed", error.status, error.reason)
        return made
    finally:
        # The two lead to each other, and to this frame.
        asked.__cause__ = asked.__traceback__ = None


def _converted(answer: flask.Response, environ: WSGIEnvironment, request: Request, made: Response) -> Response:
    """A handler's answer for a server that does not speak WSGI. `Gateway-Error` stays, for those who count."""
    answer.direct_passthrough = False
    data = answer.get_data()
    given = answer.get_wsgi_headers(environ)
    headers = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in given
        if name.lower() not in ("content-length", "connection", "transfer-encoding")
    ]
    if "Gateway-Error" not in given:
        headers += [field for field in made.headers if field[0] == b"Gateway-Error"]
    bodyless = answer.status_code in _BODILESS
    reason = answer.status.partition(" ")[2].encode("latin-1")
    return Response(
        answer.status_code,
        reason,
        headers,
        content_length=None if bodyless else len(data),
        data=b"" if bodyless or request.method == b"HEAD" else data,
        bodyless=bodyless or request.method == b"HEAD",
        close=made.close,
    )


