"""Flask at the gateway's edge: views, hooks, error handlers, and the door for servers that speak WSGI.

Rule: what middlewares and agents replace are methods of this class or of Flask's. The fast door (`handle`) is open as
long as none of them is replaced and nothing is registered that has to see every request. What goes through Flask has
one log line all the same, and an answer that Flask does not return is given back.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import flask
from flask import Flask, signals
from werkzeug.exceptions import BadHost, HTTPException
from werkzeug.routing import RequestRedirect

from gateway import flask_answers
from gateway.buffers.memory import Buffers
from gateway.errors import BadRequest, ClientClosed, GatewayError, InternalError
from gateway.flask_answers import Disconnected
from gateway.http import problem, target
from gateway.http.messages import Request, Response
from gateway.server import wsgi_environ
from gateway.server.instrumented import Replaced, replaced
from gateway.server.kept_body import BodyFailed, KeptBody
from gateway.telemetry.active_span import propagate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from gateway.admin import Admin
    from gateway.model import ServerSettings

log = logging.getLogger("gateway")

_SIGNALS = (
    signals.request_started,
    signals.request_finished,
    signals.request_tearing_down,
    signals.got_request_exception,
    signals.appcontext_pushed,
    signals.appcontext_popped,
    signals.appcontext_tearing_down,
)

# blinker keeps each of these for the life of its signal.
_RECEIVERS = tuple(signal.receivers for signal in _SIGNALS)

# The modules that write the steps of `instrumented.STEPS` when nobody has replaced one.
_HOMES = frozenset({"flask.app", "flask.sansio.app", __name__})


class FlaskDoor(Flask):
    """A Flask app whose catch-all forwards. Views and blueprints come before routes."""

    server: ServerSettings
    buffers: Buffers
    _own_prefix: bytes | None
    admin: Admin | None

    def __init__(self) -> None:
        # Flask's own static route would take /static away from upstreams.
        super().__init__("gateway", static_folder=None)
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False
        self.url_map.redirect_defaults = False
        # Not empty once a view is registered (a property of Map that makes a list says so, too).
        self._views = self.url_map._rules_by_endpoint
        # Not empty once an error handler is registered on the app.
        self._error_handlers = self.error_handler_spec[None]

    # -- what the gateway adds -----------------------------------------------------------

    @abstractmethod
    def line(self, request: Request, views: bool) -> Response | None:
        """The answer to a request whose client is known; None when a view has it and `views` says so. Raises
        GatewayError, or whatever fault the gateway has."""

    @abstractmethod
    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        """The exchange is over, well or badly: one log line."""

    @abstractmethod
    def identify(self, request: Request) -> None:
        """Give a request its id and the client's address."""

    # -- the fast door -------------------------------------------------------------------

    def handle(self, request: Request) -> Response | None:
        """The answer to a request; None when a Flask view (or hook) has it. Never raises an
        ordinary fault: it is an answer, too."""
        if self._hooked():
            return None
        return self._handle(request, views=True)

    def _handle(self, request: Request, views: bool) -> Response | None:
        if not request.request_id:
            self.identify(request)
        try:
            return self.line(request, views)
        except GatewayError as error:
            return self.answer(error, request)
        except Exception as failure:
            return self.answer(_fault(failure, request), request)

    def answer(self, error: GatewayError, request: Request | None) -> Response:
        """The one place where an error becomes an answer: an error handler of the app makes it, or `problem`."""
        made = self._made(error, request)
        if self._error_handlers and request is not None and not isinstance(error, ClientClosed):
            return flask_answers.page(self, error, request, made)
        return made

    def _made(self, error: GatewayError, request: Request | None) -> Response:
        if request is not None:
            if not request.request_id:
                # A door refused it before it was a request.
                self.identify(request)
            request.fail(error)
        return problem.answer(error, request)

    def direct_door(self) -> str | None:
        """Why a server may not hand requests to `handle` but must call the WSGI app; None
        when it may: the app is a Gateway, and nothing was put round or into it."""
        found = replaced(self, FlaskDoor, _HOMES)
        return str(found[0]) if found else self._hooked()

    def _hooked(self) -> str | None:
        """Whether something was registered that must see every request, and what."""
        if (
            self.before_request_funcs
            or self.after_request_funcs
            or self.teardown_request_funcs
            or self.teardown_appcontext_funcs
            or self.url_value_preprocessors
        ):
            return "request hooks are registered"
        if any(_RECEIVERS):
            listened = next(signal.name for signal in _SIGNALS if signal.receivers)
            return f"the signal {listened} has receivers"
        return None

    @cached_property
    def _inside(self) -> Replaced | None:
        """A step that is only reached through Flask, and that somebody has replaced by the first request."""
        return next((one for one in replaced(self, FlaskDoor, _HOMES) if one.inside), None)

    def _has_view(self, request: Request, path: bytes) -> bool:
        """Whether a view that was registered has this percent-encoded path and method. Raises BadRequest for a Host
        that Flask cannot read, such as one with a label of more than 63 bytes (RFC 1035 §2.3.4)."""
        decoded = unquote_to_bytes(path).decode("utf-8", "replace")
        try:
            adapter = self.url_map.bind(request.host.decode("latin-1") or "localhost", url_scheme=request.scheme)
        except BadHost as error:
            raise BadRequest(f"{request.host[:80]!r} is no host") from error
        try:
            adapter.match(decoded, method=request.method.decode("latin-1"))
        except RequestRedirect:
            return True
        except HTTPException:
            return False
        return True

    # -- WSGI ----------------------------------------------------------------------------

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The door for other WSGI servers, and for Flask's own views and hooks."""
        if self.admin is not None and self.admin.came_in(environ):
            return self._by_admin(self.admin, environ, start_response)
        exchange = environ.setdefault("gateway.exchange", wsgi_environ.Exchange())
        try:
            request = wsgi_environ.request(environ, time.monotonic(), self.server.limits.body)
        except GatewayError as error:
            return self._refuse(error, environ, start_response)
        environ["gateway.request"] = request
        if self._hooked() or self._inside:
            probed = self._probed(request)
            if probed is not None:
                return self._write(request, probed, start_response, exchange)
            if request.body is not None:
                # Hooks and agents may read it, and it is forwarded all the same.
                request.body = kept = KeptBody(request.body, Disconnected)
                environ["wsgi.input"] = environ["gateway.input"] = kept.file
            return self._by_flask(request, environ, start_response, exchange)
        propagate(request)
        response = self._admitted(request) or self._handle(request, views=True)
        if response is None:
            return self._by_flask(request, environ, start_response, exchange)
        return self._write(request, response, start_response, exchange)

    def _probed(self, request: Request) -> Response | None:
        """The answer to `healthz` and `readyz`, which no hook stands in front of: who asks for them has no
        credentials. None: it is another request."""
        try:
            path = target.read(request.target)[1]
        except GatewayError:
            return None
        own = self._own_prefix
        if own is None or path not in (own + b"healthz", own + b"readyz"):
            return None
        return self._admitted(request) or self._handle(request, views=False)

    def _by_admin(self, admin: Admin, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A request on the admin listener of a server that has no door for it."""
        try:
            response = admin.handle(wsgi_environ.request(environ, time.monotonic(), self.server.limits.body))
        except GatewayError as error:
            response = problem.answer(error, None)
        wsgi_environ.start(response, start_response)
        return wsgi_environ.WsgiAnswer(response, lambda sent, error: None, wsgi_environ.Exchange())

    def _admitted(self, request: Request) -> Response | None:
        """What our own worker has checked and other servers have not."""
        missing = self._missing(request)
        return None if missing is None else self.answer(missing, request)

    def _missing(self, request: Request) -> GatewayError | None:
        if request.http11 and not request.header(b"host"):
            return BadRequest("an HTTP/1.1 request without Host")
        return None

    def _write(
        self, request: Request, response: Response, start_response: StartResponse, exchange: wsgi_environ.Exchange
    ) -> Iterable[bytes]:
        def finish(sent: int, error: GatewayError | None) -> None:
            exchange.finished = True
            self.finish(request, response, sent, error)

        wsgi_environ.start(response, start_response)
        exchange.answer = wsgi_environ.WsgiAnswer(response, finish, exchange, self.buffers)
        return exchange.answer

    def _refuse(
        self, error: GatewayError, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """An answer to what could not be made a Request, or was one before a middleware replaced its body."""
        parsed = environ.get("gateway.request")
        bare = parsed if isinstance(parsed, Request) else Request(
            environ["REQUEST_METHOD"].encode("latin-1"),
            str(environ.get("RAW_URI", "/")).encode("latin-1"),
            [],
            started=time.monotonic(),
            peer=environ.get("REMOTE_ADDR") or "",
        )
        self.identify(bare)
        return self._write(bare, self.answer(error, bare), start_response, environ["gateway.exchange"])

    # -- through Flask -------------------------------------------------------------------

    def _by_flask(
        self, request: Request, environ: WSGIEnvironment, start_response: StartResponse, exchange: wsgi_environ.Exchange
    ) -> Iterable[bytes]:
        """What Flask makes of a request: the answer of a view or a hook, or our own (`dispatch_request`)."""
        seen = Response(0, b"", [])

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            seen.status = int(status[:3])
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        if not request.request_id:
            self.identify(request)
        try:
            counted = wsgi_environ.Counted(super().wsgi_app(environ, start), exchange)
        except BaseException:
            _release(request, exchange)
            raise

        def finish() -> None:
            _release(request, exchange)
            exchange.finished = True
            error = exchange.failure or (exchange.answer.error if exchange.answer is not None else None)
            if exchange.status is not None:
                seen.status = exchange.status
            # An error that was answered is noted already.
            noted = error is None or error.reason == request.reason
            sent = counted.sent if exchange.sent is None else exchange.sent
            self.finish(request, seen, sent, None if noted else error)

        exchange.finish = finish
        return counted

    def dispatch_request(self) -> Any:
        """Flask's dispatch with the gateway as the catch-all: what no view has is forwarded."""
        asked = flask.request
        request: Request = asked.environ["gateway.request"]
        if asked.routing_exception is None or isinstance(asked.routing_exception, RequestRedirect):
            if isinstance(request.body, KeptBody):
                request.body.stop()
            return super().dispatch_request()
        try:
            answer = self._forwarded(request, asked)
        except GatewayError as error:
            made = self._made(error, request)
            if self._error_handlers and not isinstance(error, ClientClosed):
                asked.environ["gateway.reason"] = error.reason
                raise flask_answers.http_error(error, made) from error
            answer = made
        exchange: wsgi_environ.Exchange = asked.environ["gateway.exchange"]
        # `_by_flask` writes the log line, whatever becomes of this answer.
        exchange.answer = wsgi_environ.WsgiAnswer(answer, lambda sent, error: None, exchange, self.buffers)
        return flask_answers.forwarded(exchange.answer)

    def _forwarded(self, request: Request, asked: flask.Request) -> Response:
        """The answer to a request that no view has. Raises GatewayError."""
        if asked.environ["wsgi.input"] is not asked.environ.get("gateway.input", asked.environ["wsgi.input"]):
            wsgi_environ.take_input(request, asked.environ, self.server.limits.body)
        if self._views and isinstance(asked.routing_exception, BadHost):
            raise BadRequest(f"{request.host[:80]!r} is no host")
        missing = self._missing(request)
        if missing is not None:
            raise missing
        propagate(request)
        try:
            response = self.line(request, views=False)
        except GatewayError:
            raise
        except Exception as failure:
            raise _fault(failure, request) from failure
        assert response is not None
        return response

    def handle_user_exception(self, e: Exception) -> Any:
        """Flask's; a body that cannot be had is the client's fault, not one of the application."""
        if isinstance(e, BodyFailed) and not isinstance(e, Disconnected):
            e = Disconnected(str(e))
        return super().handle_user_exception(e)

    def process_response(self, response: flask.Response) -> flask.Response:
        """Flask's after_request hooks; an answer of ours that they have replaced by one that is complete is not kept
        waiting for the end of that."""
        given = super().process_response(response)
        environ = flask.request.environ
        if "gateway.reason" in environ:
            # The page of an error handler.
            given.headers.setdefault("Gateway-Error", environ["gateway.reason"])
        exchange = environ.get("gateway.exchange")
        if exchange is not None and exchange.answer is not None and given.is_sequence:
            exchange.answer.drop()
        return given


def _release(request: Request, exchange: wsgi_environ.Exchange) -> None:
    """Give back what an exchange through Flask still holds."""
    try:
        if exchange.answer is not None:
            exchange.answer.drop()
    finally:
        if isinstance(request.body, KeptBody):
            request.body.stop()


def _fault(failure: Exception, request: Request) -> InternalError:
    """The error for an exception that is none of ours; the log has its traceback."""
    log.error("request %s failed", request.request_id.decode("latin-1"), exc_info=failure)
    return InternalError("a fault of the gateway; see its log")
