"""Error handlers of the app are asked for the gateway's own errors, at the fast door and behind Flask's hooks."""

from __future__ import annotations

import json
import time
from typing import Any

import flask
import pytest
from werkzeug.exceptions import HTTPException

from gateway.app import Gateway
from gateway.errors import (
    BadRequest,
    ClientClosed,
    ConnectRefused,
    GatewayError,
    LoopDetected,
    NoRoute,
    PoolFull,
    UnsupportedMethod,
)
from gateway.http.messages import Request, Response
from tests.unit.test_app import config


class Failing(Gateway):
    """Each request ends by this error, or has this answer."""

    def __init__(self, outcome: Exception | Response) -> None:
        super().__init__(config())
        self.outcome = outcome
        self.logged: list[tuple[int, str, str]] = []

    def line(self, request: Request, views: bool) -> Response | None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        assert response is not None
        self.logged.append((response.status, request.reason, request.cause))


def fast(app: Failing, method: bytes = b"GET", target: bytes = b"/x?y=1") -> Response:
    headers = [(b"Host", b"a.example"), (b"X-Seen", b"yes"), (b"Content-Length", b"3")]
    answer = app.handle(Request(method, target, headers, started=time.monotonic(), peer="192.0.2.1"))
    assert answer is not None
    return answer


def slow(app: Failing, method: str = "GET") -> Any:
    """Through Flask, for a hook is there."""
    app.before_request(lambda: None)
    return app.test_client().open("/x?y=1", method=method, buffered=True, headers={"X-Seen": "yes"})


def fields(response: Response) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in response.headers}


@pytest.mark.parametrize("key", [404, HTTPException, Exception])
def test_a_page_of_ones_own(key: Any) -> None:
    app = Failing(NoRoute("no route for a.example"))
    seen: list[tuple[str, str, str, str]] = []

    @app.errorhandler(key)
    def page(error: HTTPException) -> tuple[str, int]:
        asked, cause = flask.request, error.__cause__
        assert isinstance(cause, GatewayError)
        seen.append((cause.reason, asked.path, asked.args["y"], asked.headers["X-Seen"]))
        return f"{error.code} {error.description}", 404

    answer = fast(app)
    assert (answer.status, answer.data) == (404, b"404 No route matches this request.")
    assert fields(answer)["Content-Type"].startswith("text/html")
    assert fields(answer)["Gateway-Error"] == "no_route"
    again = slow(app)
    assert (again.data, again.headers["Gateway-Error"]) == (answer.data, "no_route")
    assert seen == [("no_route", "/x", "1", "yes")] * 2
    assert app.logged == [(404, "no_route", "no route for a.example")]


@pytest.mark.parametrize(
    ("error", "key"),
    [(ConnectRefused("x"), 502), (PoolFull("x"), 503), (BadRequest("x"), 400), (UnsupportedMethod("x"), 405)],
)
def test_handlers_by_status(error: GatewayError, key: int) -> None:
    app = Failing(error)
    app.register_error_handler(key, lambda error: ("mine", 200))
    app.register_error_handler(404, lambda error: ("not this one", 200))
    assert fast(app).data == b"mine"
    assert slow(app).data == b"mine"


def test_the_way_that_flasks_documentation_has() -> None:
    app = Failing(ConnectRefused("192.0.2.7"))

    @app.errorhandler(HTTPException)
    def as_json(error: HTTPException) -> Any:
        response: Any = error.get_response()
        response.data = json.dumps({"code": error.code, "name": error.name, "was": json.loads(response.get_data())})
        response.content_type = "application/json"
        return response

    answer = fast(app)
    told = json.loads(answer.data)
    assert (told["code"], told["name"], told["was"]["reason"]) == (502, "Bad Gateway", "connect_refused")
    assert fields(answer)["Content-Type"] == "application/json"
    assert [name for name, _ in answer.headers].count(b"Gateway-Error") == 1
    again = slow(app)
    assert (again.status_code, again.get_json()["was"]["reason"]) == (502, "connect_refused")
    assert again.content_length == len(again.data)


@pytest.mark.parametrize("same", [lambda error: error, lambda error: error.get_response()])
def test_a_handler_that_passes_it_on(same: Any) -> None:
    app = Failing(PoolFull("x", retry_after=7))
    plain = fast(app)
    app.register_error_handler(Exception, same)
    answer = fast(app)
    assert (answer.status, answer.data) == (plain.status, plain.data.replace(b"0" * 15 + b"1", b"0" * 15 + b"2"))
    assert {**fields(answer), "Retry-After": "7"} == fields(answer)
    again = slow(app)
    assert (again.status_code, again.get_json()["reason"], again.headers["Retry-After"]) == (503, "pool_full", "7")


def test_a_handler_for_another_status_is_not_asked() -> None:
    app = Failing(NoRoute("x"))
    app.register_error_handler(502, lambda error: ("mine", 200))
    assert fields(fast(app))["Gateway-Error"] == "no_route"
    assert slow(app).headers["Gateway-Error"] == "no_route"


def test_one_that_flask_knows_no_status_of() -> None:
    app = Failing(LoopDetected("x"))
    app.register_error_handler(HTTPException, lambda error: (f"{error.code}", error.code))
    assert (fast(app).status, slow(app).status_code) == (508, 508)


def test_an_upstreams_answer_is_none_of_the_gateways_errors() -> None:
    app = Failing(Response(404, b"Not Found", [], data=b"theirs", content_length=6))
    app.register_error_handler(404, lambda error: ("mine", 404))
    app.register_error_handler(Exception, lambda error: ("mine", 404))
    assert fast(app).data == b"theirs"
    assert slow(app).data == b"theirs"


def test_nobody_is_asked_for_a_client_that_has_left() -> None:
    app = Failing(ClientClosed("reset"))
    app.register_error_handler(Exception, lambda error: ("mine", 200))
    assert (fast(app).status, fast(app).data) == (499, b"")


def test_a_fault_of_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    app = Failing(ZeroDivisionError("bug"))
    app.register_error_handler(500, lambda error: (error.description, 500))
    assert fast(app).data == b"The gateway failed."
    assert slow(app).data == b"The gateway failed."
    assert caplog.text.count("ZeroDivisionError: bug") >= 2


@pytest.mark.parametrize("status", [200, 204, 304])
def test_head_and_answers_without_a_body(status: int) -> None:
    app = Failing(NoRoute("x"))
    app.register_error_handler(404, lambda error: ("mine", status))
    answer = fast(app, b"HEAD")
    assert (answer.status, answer.data, answer.bodyless) == (status, b"", True)
    assert answer.content_length == (4 if status == 200 else None)
    assert (fast(app).bodyless, slow(app, "HEAD").data) == (status != 200, b"")


@pytest.mark.parametrize(
    "given", [RuntimeError("bug"), ("bad header", 200, {"X-Bad": "\u20ac"}), None], ids=["raises", "header", "nothing"]
)
def test_a_handler_that_fails_leaves_the_gateways_answer(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = Failing(NoRoute("x"))

    @app.errorhandler(404)
    def page(error: HTTPException) -> Any:
        if isinstance(given, Exception):
            raise given
        return given

    answer = fast(app)
    assert (answer.status, fields(answer)["Gateway-Error"]) == (404, "no_route")
    assert "the error handler for 404 no_route failed" in caplog.text


def test_a_handler_may_stream_and_is_closed() -> None:
    app = Failing(NoRoute("x"))
    closed: list[str] = []

    @app.errorhandler(404)
    def page(error: HTTPException) -> flask.Response:
        response = flask.Response((piece for piece in ("a", "b")), 404)
        response.call_on_close(lambda: closed.append("closed"))
        return response

    assert (fast(app).data, closed) == (b"ab", ["closed"])
    assert (slow(app).data, closed) == (b"ab", ["closed"] * 2)


def test_hooks_see_the_page() -> None:
    app = Failing(NoRoute("x"))
    app.register_error_handler(404, lambda error: ("mine", 404))

    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-Hook"] = response.get_data(as_text=True)
        return response

    assert slow(app).headers["X-Hook"] == "mine"
    assert app.logged == [(404, "no_route", "x")]


@pytest.mark.parametrize("target", [b"-", b"*", b"http://other.example/x?y=1", b"/%ff%2f?a=%ff"])
def test_any_target_can_be_shown(target: bytes) -> None:
    app = Failing(BadRequest("x"))
    app.register_error_handler(400, lambda error: (flask.request.path, 400))
    assert fast(app, b"-", target).status == 400


def test_error_handlers_leave_the_fast_door_open() -> None:
    app = Failing(Response(200, b"OK", [], data=b"ok"))
    app.register_error_handler(404, lambda error: "mine")
    assert app.direct_door() is None
    assert fast(app) is app.outcome


def test_a_request_that_never_was_one() -> None:
    """What the worker refuses while it reads: no target, no Host."""
    app = Failing(NoRoute("x"))
    app.register_error_handler(400, lambda error: ("mine", 400))
    bare = Request(b"-", b"-", [], started=time.monotonic(), peer="")
    answer = app.answer(BadRequest("no request"), bare)
    assert (answer.data, answer.close) == (b"mine", True)
    assert fields(app.answer(BadRequest("x"), None))["Gateway-Error"] == "bad_request"
