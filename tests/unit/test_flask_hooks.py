"""Flask hooks on what is forwarded: an answer that is replaced, read or rewritten is given back and logged once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest

from gateway.app import Gateway
from gateway.errors import GatewayError, UpstreamTruncated
from gateway.http.messages import Request, Response
from tests.unit.server.wire import Pieces
from tests.unit.test_app import config

Hook = Callable[[flask.Response], flask.Response]


class Forwarding(Gateway):
    """Every request is forwarded to an upstream that answers `status` and these pieces."""

    def __init__(self, *pieces: bytes | Exception, status: int = 200, length: int | None = None) -> None:
        super().__init__(config())
        self.body = Pieces(*pieces)
        self.sent: list[bytes] = []
        self.logged: list[tuple[int, int, str]] = []
        self._given = (status, length)

    def line(self, request: Request, views: bool) -> Response | None:
        status, length = self._given
        while request.body is not None and (piece := request.body.read()):
            self.sent.append(piece)
        bodyless = request.method == b"HEAD" or status in (204, 304)
        headers = [(b"X-From", b"upstream"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
        return Response(status, b"Told", headers, content_length=length, stream=self.body, bodyless=bodyless)

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        assert response is not None
        self.logged.append((response.status, bytes_out, "" if error is None else error.reason))


def get(app: Forwarding, path: str = "/x", method: str = "GET", **more: Any) -> Any:
    return app.test_client().open(path, method=method, buffered=True, **more)


def read_nothing(response: flask.Response) -> flask.Response:
    return response


def test_an_answer_that_nobody_touches() -> None:
    app = Forwarding(b"one", b"two")
    app.after_request(read_nothing)
    answer = get(app)
    assert (answer.status_code, answer.data) == (200, b"onetwo")
    assert answer.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
    assert (app.body.closed, app.logged) == (1, [(200, 6, "")])


@pytest.mark.parametrize("replaced", [flask.Response("sorry", 503), "streamed"])
def test_an_answer_that_is_replaced(replaced: Any) -> None:
    app = Forwarding(b"never read", status=503)
    closed_while_sending: list[int] = []

    def pieces() -> Iterator[bytes]:
        closed_while_sending.append(app.body.closed)
        yield b"sorry"

    @app.after_request
    def page(response: flask.Response) -> flask.Response:
        return flask.Response(pieces(), 503) if replaced == "streamed" else replaced

    answer = get(app)
    assert (answer.status_code, answer.data) == (503, b"sorry")
    assert (app.body.closed, app.body.asked, app.logged) == (1, [], [(503, 5, "")])
    # One that may yet read the upstream's is left to the end.
    assert closed_while_sending == ([0] if replaced == "streamed" else [])


def test_an_answer_that_is_rewritten_as_it_passes() -> None:
    app = Forwarding(b"one", b"two")

    @app.after_request
    def shout(response: flask.Response) -> flask.Response:
        body = response.response
        response.response = (piece.upper() for piece in body)  # type: ignore[union-attr]
        return response

    assert get(app).data == b"ONETWO"
    assert (app.body.closed, app.logged) == (1, [(200, 6, "")])


def test_one_that_breaks_off_as_it_is_rewritten() -> None:
    app = Forwarding(b"one", UpstreamTruncated("cut"))

    @app.after_request
    def shout(response: flask.Response) -> flask.Response:
        body = response.response
        return flask.Response(piece.upper() for piece in body)  # type: ignore[union-attr]

    with pytest.raises(ConnectionResetError):
        get(app)
    assert app.body.closed == 1


def test_get_data_fails_as_for_a_file() -> None:
    """Flask's own answers that stream a file refuse it in the same words."""
    app = Forwarding(b"never read")

    @app.after_request
    def look(response: flask.Response) -> flask.Response:
        if request_is("/x"):
            response.get_data()
        return response

    assert get(app).status_code == 500
    assert (app.body.closed, app.logged[0][0], len(app.logged)) == (1, 500, 1)


def request_is(path: str) -> bool:
    return flask.request.path == path


@pytest.mark.parametrize("length", [6, None])
def test_get_data_once_the_hook_says_so(length: int | None) -> None:
    app = Forwarding(b"one", b"two", length=length)
    seen: list[bytes] = []

    @app.after_request
    def look(response: flask.Response) -> flask.Response:
        response.direct_passthrough = False
        seen.append(response.get_data())
        return response

    assert get(app).data == b"onetwo"
    assert (seen, app.body.closed, app.logged) == ([b"onetwo"], 1, [(200, 6, "")])


@pytest.mark.parametrize("how", ["set_data", "data", "direct"])
@pytest.mark.parametrize(("method", "length"), [("GET", 10), ("GET", None), ("HEAD", 10)])
def test_set_data_corrects_the_length(how: str, method: str, length: int | None) -> None:
    app = Forwarding(b"a long one", length=length)

    @app.after_request
    def change(response: flask.Response) -> flask.Response:
        if how != "direct":
            response.direct_passthrough = False
        if how == "data":
            response.data = b"{}"
        else:
            response.set_data(b"{}")
        return response

    answer = get(app, method=method)
    assert (answer.headers.getlist("Content-Length"), answer.headers["X-From"]) == (["2"], "upstream")
    body = b"{}" if method == "GET" else b""
    assert (answer.data, app.body.closed, app.body.asked, app.logged) == (body, 1, [], [(200, len(body), "")])


@pytest.mark.parametrize("length", [10, None])
def test_the_length_that_head_tells_is_left_alone(length: int | None) -> None:
    app = Forwarding(length=length)

    @app.after_request
    def look(response: flask.Response) -> flask.Response:
        response.direct_passthrough = False
        assert response.get_data() == b""
        return response

    assert get(app, method="HEAD").headers.get("Content-Length") == (length and str(length))


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_call_on_close_at_the_bodys_end(method: str, status: int) -> None:
    app = Forwarding(b"one", b"two", status=status)
    reads: list[int] = []

    @app.after_request
    def note(response: flask.Response) -> flask.Response:
        response.call_on_close(lambda: reads.append(len(app.body.asked)))
        return response

    assert get(app, method=method).status_code == status
    bodyless = method == "HEAD" or status != 200
    assert reads == ([0] if bodyless else [3])
    assert (app.body.closed, app.logged) == (1, [(status, 0 if bodyless else 6, "")])


@pytest.mark.parametrize("testing", [True, False])
def test_a_hook_that_fails(testing: bool) -> None:
    app = Forwarding(b"never read")
    app.testing = testing

    @app.after_request
    def bug(response: flask.Response) -> flask.Response:
        raise RuntimeError("bug")

    if testing:
        # Flask lets it through: the server answers.
        with pytest.raises(RuntimeError):
            get(app)
    else:
        assert get(app).status_code == 500
        assert [status for status, _, _ in app.logged] == [500]
    assert app.body.closed == 1


def test_a_client_that_does_not_read_to_the_end() -> None:
    app = Forwarding(b"one", b"two")
    closed: list[str] = []

    @app.after_request
    def note(response: flask.Response) -> flask.Response:
        response.call_on_close(lambda: closed.append("closed"))
        return response

    answer = app.test_client().get("/x")
    pieces = answer.iter_encoded()
    assert next(piece for piece in pieces if piece) == b"one"
    answer.close()
    assert (app.body.closed, app.logged) == (1, [(200, 3, "client_closed")])
    assert closed == ["closed"]


def test_headers_and_status_that_a_hook_changes() -> None:
    app = Forwarding(b"one", status=500)

    @app.after_request
    def change(response: flask.Response) -> flask.Response:
        response.status_code = 418
        response.headers["X-Hook"] = "1"
        del response.headers["X-From"]
        return response

    answer = get(app)
    assert (answer.status_code, answer.data, answer.headers["X-Hook"]) == (418, b"one", "1")
    assert "X-From" not in answer.headers
    assert app.logged == [(418, 3, "")]


# -- what hooks read of a request ------------------------------------------------------------

FORM = b"a=1&b=%20x"
MULTIPART = (
    b'--s\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--s\r\nContent-Disposition: form-data; name="f"; filename="f.bin"\r\n\r\n'
    + b"x" * 700_000
    + b"\r\n--s--\r\nepilogue"
)


def readers() -> dict[str, tuple[str, bytes, Callable[[], object], object]]:
    asked = flask.request
    return {
        "nothing": ("text/plain", b"abc", lambda: None, None),
        "form": ("application/x-www-form-urlencoded", FORM, lambda: asked.form.to_dict(), {"a": "1", "b": " x"}),
        "files": ("multipart/form-data; boundary=s", MULTIPART, lambda: len(asked.files["f"].read()), 700_000),
        "get_data": ("text/plain", b"abc", lambda: asked.get_data(), b"abc"),
        "uncached": ("text/plain", b"abc", lambda: asked.get_data(cache=False), b"abc"),
        "json": ("application/json", b"[1]", lambda: asked.get_json(), [1]),
        "part": ("text/plain", b"abc" * 100_000, lambda: asked.stream.read(4), b"abca"),
        "line": ("text/plain", b"abc\ndef", lambda: asked.stream.readline(), b"abc\n"),
        "input": ("text/plain", b"abc", lambda: asked.environ["wsgi.input"].read(), b"abc"),
    }


@pytest.mark.parametrize("how", list(readers()))
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_a_hook_has_read_is_forwarded_whole(how: str, chunked: bool) -> None:
    app = Forwarding(b"ok")
    content_type, body, _, expected = readers()[how]
    found: list[object] = []

    @app.before_request
    def look() -> None:
        found.append(readers()[how][2]())

    more: dict[str, Any] = {}
    if chunked:
        more["environ_overrides"] = {
            "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "",
        }  # fmt: skip
    answer = get(app, "/x", "POST", data=body, content_type=content_type, **more)
    assert (answer.status_code, b"".join(app.sent), found) == (200, body, [expected])


def test_a_form_beyond_flasks_limit_is_refused() -> None:
    """A hook that judges the form must not see an empty one in its place."""
    app = Forwarding(b"ok")
    app.before_request(lambda: flask.request.form and None)
    body = b'--s\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 600_000 + b"\r\n--s--\r\n"
    answer = get(app, "/x", "POST", data=body, content_type="multipart/form-data; boundary=s")
    assert (answer.status_code, app.sent) == (413, [])


def test_a_body_that_an_agent_put_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datadog's does so inside Flask's wsgi_app."""
    import io

    inside = flask.Flask.wsgi_app

    def agent(self: flask.Flask, environ: Any, start: Any) -> Any:
        data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = io.BytesIO(data)
        return inside(self, environ, start)

    monkeypatch.setattr(flask.Flask, "wsgi_app", agent)
    app = Forwarding(b"ok")
    assert get(app, "/x", "POST", data=b"abc").status_code == 200
    assert app.sent == [b"abc"]


def test_views_read_their_bodies_for_themselves() -> None:
    app = Forwarding()

    @app.post("/view")
    def view() -> dict[str, str]:
        return flask.request.form.to_dict()

    app.before_request(lambda: flask.request.get_data() and None if flask.request.args else None)
    for path in ("/view", "/view?read"):
        assert get(app, path, "POST", data={"a": "1"}).get_json() == {"a": "1"}
