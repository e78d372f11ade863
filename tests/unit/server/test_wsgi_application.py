"""WSGI on our worker: the environ, start_response to the letter, and what happens when an application fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from gevent import GreenletExit, Timeout

from gateway.errors import ClientClosed, GatewayError, TunnelFault, UpstreamTruncated
from gateway.http.messages import Request, Response
from gateway.server.wsgi_application import WsgiApplication
from gateway.server.wsgi_environ import WsgiAnswer
from tests.unit.server.wire import Pieces, RecordingDoor, ScriptedStream, answers_in, serve

GET = b"GET /a%20b?c=%20d HTTP/1.1\r\nHost: a.test:8000\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nConnection: close\r\n\r\n"

Start = Callable[..., Callable[[bytes], None]]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]
BASE = {
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "SERVER_SOFTWARE": "test",
}


def run(app: App, *arrivals: bytes | Exception, **more: Any) -> tuple[ScriptedStream, RecordingDoor]:
    return serve(*arrivals, answers=lambda _: None, application=WsgiApplication(app, BASE), **more)


def environ_for(*arrivals: bytes, **more: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        seen.update(environ)
        seen["body"] = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return []

    run(app, *arrivals, **more)
    return seen


@pytest.mark.parametrize(
    ("preamble", "peer", "port"),
    [
        (b"PROXY TCP4 198.51.100.7 192.0.2.1 40001 443\r\n", "198.51.100.7", "40001"),
        (b"PROXY UNKNOWN\r\n", "192.0.2.1", "1234"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc6\x33\x64\x07\xc0\x00\x02\x01\x9c\x41\x01\xbb", "198.51.100.7", "40001"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c\xc6\x33\x64\x07\xc0\x00\x02\x01\x9c\x41\x01\xbb", "192.0.2.1", "1234"),
        (b"", "192.0.2.1", "1234"),
    ],
)
def test_address_and_port_of_the_client_are_those_of_the_proxy_header(preamble: bytes, peer: str, port: str) -> None:
    seen = environ_for(preamble + GET, proxy_protocol="auto")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (peer, port)


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.closed += 1


def answering(*pieces: bytes | Exception, headers: list[tuple[str, str]] | None = None) -> tuple[App, Closing]:
    body = Closing(*pieces)

    def app(environ: dict[str, Any], start_response: Start) -> Closing:
        start_response("200 OK", headers or [])
        return body

    return app, body


class TestEnviron:
    def test_of_a_plain_request(self) -> None:
        environ = environ_for(GET)
        assert environ["REQUEST_METHOD"] == "GET"
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("", "/a b", "c=%20d")
        assert environ["RAW_URI"] == environ["REQUEST_URI"] == "/a%20b?c=%20d"
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", "8000")
        assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.1", "1234")
        assert environ["HTTP_HOST"] == "a.test:8000"
        assert environ["wsgi.url_scheme"] == "http"
        assert environ["wsgi.input_terminated"] is True
        assert environ["gateway.request"].target == b"/a%20b?c=%20d"
        assert environ["body"] == b""
        assert "CONTENT_TYPE" not in environ
        assert "CONTENT_LENGTH" not in environ

    def test_bytes_are_latin_1(self) -> None:
        environ = environ_for(b"GET /%c3%a9%ff HTTP/1.1\r\nHost: a\r\nX: \xe9\xff\r\n\r\n")
        assert environ["PATH_INFO"] == "/\xc3\xa9\xff"
        assert environ["HTTP_X"] == "\xe9\xff"

    def test_several_lines_are_joined(self) -> None:
        environ = environ_for(
            b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\nCookie: a=1\r\nCookie: b=2\r\nX_A: 3\r\n\r\n"
        )
        assert environ["HTTP_X_A"] == "1,2"
        assert environ["HTTP_COOKIE"] == "a=1; b=2"

    def test_of_a_body(self) -> None:
        environ = environ_for(POST.replace(b"Host", b"Content-Type: a/b\r\nExpect: 100-continue\r\nHost") + b"hello world")
        assert (environ["CONTENT_LENGTH"], environ["CONTENT_TYPE"], environ["body"]) == ("11", "a/b", b"hello world")
        assert not {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_EXPECT"} & set(environ)

    def test_of_a_chunked_body(self) -> None:
        raw = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        environ = environ_for(raw, b"5\r\nhello\r\n", b"0\r\nX: y\r\n\r\n")
        assert environ["body"] == b"hello"
        assert "CONTENT_LENGTH" not in environ
        assert "HTTP_X" not in environ

    def test_absolute_form(self) -> None:
        environ = environ_for(b"GET http://b.test/x?y HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["HTTP_HOST"]) == ("/x", "y", "b.test")

    def test_asterisk_form(self) -> None:
        assert environ_for(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")["PATH_INFO"] == ""

    def test_a_proxy_field_is_no_setting(self) -> None:
        """httpoxy (CVE-2016-5385)."""
        seen = environ_for(b"GET / HTTP/1.1\r\nHost: a\r\nProxy: http://evil.test/\r\nX: 1\r\nConnection: close\r\n\r\n")
        assert "HTTP_PROXY" not in seen
        assert seen["HTTP_X"] == "1"

    def test_headers_cannot_pose_as_the_servers_own(self) -> None:
        environ = environ_for(b"GET /x HTTP/1.1\r\nHost: a\r\nScript-Name: /admin\r\nPath-Info: /y\r\nRemote-Addr: z\r\n\r\n")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["REMOTE_ADDR"]) == ("", "/x", "192.0.2.1")

    def test_is_what_pep_3333_asks_for(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            environ["wsgi.input"].read(3)
            environ["wsgi.input"].readline(1)
            environ["wsgi.input"].readlines()
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
            return [b"ok"]

        checked: App = validator(app)  # type: ignore[assignment]
        for raw in (GET, POST + b"hello world", b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
            stream, _ = run(checked, raw)
            assert [(status, body) for status, _, body in answers_in(stream.sent)] == [(200, b"ok")]


class TestInput:
    def test_is_a_file(self) -> None:
        found: list[Any] = []

        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            given = environ["wsgi.input"]
            found.extend([given.read(2), given.readline(), given.readline(2), list(given), given.read(), given.read(1)])
            start_response("200 OK", [])
            return []

        run(app, POST, b"ab", b"c\nde", b"f\ng\n", b"h")
        assert found == [b"ab", b"c\n", b"de", [b"f\n", b"g\n", b"h"], b"", b""]

    def test_a_cut_body_is_an_error_and_not_its_end(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            body = environ["wsgi.input"].read()
            start_response("200 OK", [])
            return [body]

        stream, door = run(app, POST + b"hello")
        assert stream.sent == b""
        assert door.finished == [(b"/", None, 0, None)]
        stream, _ = run(app, POST + b"hello", TimeoutError())
        assert answers_in(stream.sent)[0][0] == 408


class TestStartResponse:
    def test_one_piece_has_a_length(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            start_response("201 Made", [("X-A", "1"), ("X-A", "2")])
            return [b"hello"]

        [(status, headers, body)] = answers_in(run(app, GET)[0].sent)
        assert (status, headers[b"content-length"], body) == (201, b"5", b"hello")
        assert b"HTTP/1.1 201 Made\r\nX-A: 1\r\nX-A: 2\r\n" in run(app, GET)[0].sent

    def test_several_are_chunked(self) -> None:
        app, body = answering(b"ab", b"", b"c")
        assert run(app, GET)[0].sent.endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        assert body.closed == 1

    def test_the_head_waits_for_the_first_byte(self) -> None:
        stream: list[ScriptedStream] = []

        def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b""
            start_response("500 Late", [], (ValueError, ValueError("x"), None))
            yield b"sorry"

        stream.append(run(app, GET)[0])
        assert stream[0].sent.startswith(b"HTTP/1.1 500 Late\r\n")

    def test_no_piece_is_an_empty_body(self) -> None:
        app, body = answering()
        [(status, headers, _)] = answers_in(run(app, GET)[0].sent)
        assert (status, headers[b"content-length"]) == (200, b"0")
        assert body.closed == 1

    def test_write(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            write = start_response("200 OK", [])
            write(b"ab")
            write(b"c")
            return [b"d"]

        assert run(app, GET)[0].sent.endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n1\r\nd\r\n0\r\n\r\n")

    @pytest.mark.parametrize("method", [b"HEAD", b"GET"])
    @pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
    def test_without_body(self, method: bytes, status: str) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            start_response(status, [("Content-Length", "5")])
            return [b"hello"]

        head, _, rest = run(app, GET.replace(b"GET", method))[0].sent.partition(b"\r\n\r\n")
        assert rest == (b"hello" if (method, status) == (b"GET", "200 OK") else b"")
        assert (b"Content-Length: 5" in head) is (status != "204 No Content")

    def test_hop_by_hop_fields_are_ours(self) -> None:
        headers = [("Transfer-Encoding", "chunked"), ("Keep-Alive", "x"), ("Upgrade", "y"), ("Connection", "x, Close")]
        app, _ = answering(b"x", headers=headers)
        stream, door = run(app, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        [(_, found, _)] = answers_in(stream.sent)
        assert set(found) == {b"date", b"transfer-encoding", b"connection"}
        assert found[b"connection"] == b"close"
        assert len(door.seen) == 1

    def test_twice_is_an_error(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            start_response("200 OK", [])
            start_response("200 OK", [])
            return []

        assert answers_in(run(app, GET)[0].sent)[0][0] == 500

    def test_with_exc_info_after_the_head_it_raises(self) -> None:
        raised: list[BaseException] = []

        def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"x"
            try:
                start_response("500 Late", [], (ValueError, ValueError("first"), None))
            except ValueError as error:
                raised.append(error)
                raise

        stream, _ = run(app, GET)
        assert [str(error) for error in raised] == ["first"]
        assert b"500" not in stream.sent
        assert b"0\r\n\r\n" not in stream.sent
        assert not stream.ended

    def test_never_is_an_error(self) -> None:
        assert answers_in(run(lambda environ, start: [b"x"], GET)[0].sent)[0][0] == 500

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            ("OK", []), ("20 OK", []), ("200 O\r\nK", []), ("099 X", []), ("200 OK", [("X", "a\r\nb")]), ("200 OK", [("X", "a\x00")]),
            ("200 OK", [("X Y", "a")]), ("200 OK", [("", "a")]), ("200 OK", [("X", "\u20ac")]), ("200 OK", [("Content-Length", "-1")]),
            ("200 OK", [("Content-Length", "5, 5")]), ("200 OK", [("Content-Length", "5"), ("Content-Length", "6")]),
        ],
    )  # fmt: skip
    def test_what_cannot_be_sent_is_an_error(self, status: str, headers: list[tuple[str, str]]) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            start_response(status, headers)
            return [b"x"]

        [(found, _, body)] = answers_in(run(app, GET)[0].sent)
        assert found == 500
        assert b"Error" in body

    @pytest.mark.parametrize("pieces", [[], [b"abc"], [b"abcdef"]])
    def test_a_length_that_is_seen_to_be_wrong_is_an_error(self, pieces: list[bytes]) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            start_response("200 OK", [("Content-Length", "5")])
            return pieces

        stream, _ = run(app, GET)
        assert [status for status, _, _ in answers_in(stream.sent)] == [500]

    @pytest.mark.parametrize("pieces", [[b"abc"], [b"ab", b"c"], [b"abcd", b"ef"]])
    def test_a_length_that_is_wrong_breaks_the_connection(self, pieces: list[bytes]) -> None:
        app, body = answering(*pieces, headers=[("Content-Length", "5")])
        stream, _ = run(app, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert stream.sent.count(b"HTTP/1.1") == 1
        assert not stream.ended
        assert body.closed == 1


class TestFailures:
    def test_before_the_head(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            raise RuntimeError("secret")

        stream, door = run(app, GET.replace(b"Connection: close\r\n", b"") * 2)
        assert [status for status, _, _ in answers_in(stream.sent)] == [500, 500]
        assert b"secret" not in stream.sent
        assert [end[1] for end in door.finished] == [500, 500]

    @pytest.mark.parametrize("failure", [SystemExit(3), GreenletExit(), Timeout()])
    def test_of_a_kind_that_would_end_more_than_the_request(self, failure: BaseException) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            raise failure

        stream, door = run(app, GET.replace(b"Connection: close\r\n", b"") * 2)
        assert [status for status, _, _ in answers_in(stream.sent)] == [500, 500]
        assert [end[1] for end in door.finished] == [500, 500]

    def test_before_the_first_piece(self) -> None:
        app, body = answering(RuntimeError("bug"))
        assert answers_in(run(app, GET)[0].sent)[0][0] == 500
        assert body.closed == 1

    def test_inside_the_body(self) -> None:
        app, body = answering(b"x", RuntimeError("bug"))
        stream, _ = run(app, GET)
        assert b"0\r\n\r\n" not in stream.sent
        assert not stream.ended
        assert body.closed == 1

    def test_in_close(self) -> None:
        class Bad(Closing):
            def close(self) -> None:
                super().close()
                raise RuntimeError("bug")

        body = Bad(b"x")

        def app(environ: dict[str, Any], start_response: Start) -> Closing:
            start_response("200 OK", [])
            return body

        run(app, GET)
        assert body.closed == 1

    def test_a_client_that_is_gone(self) -> None:
        app, body = answering(b"x" * 100, b"y" * 100)
        stream, _ = run(app, GET, breaks_after=150)
        assert stream.closed
        assert body.closed == 1

    def test_an_unread_body_is_drained(self) -> None:
        app, _ = answering(b"x")
        stream, door = run(app, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", b"GET", GET)
        assert len(door.seen) == 2
        assert stream.sent.count(b"HTTP/1.1 200") == 2


def _bare(iterable: Iterable[bytes]) -> Iterable[bytes]:
    return iterable


def _wrapped(iterable: Any) -> Iterable[bytes]:
    """As an agent does."""
    try:
        yield from iterable
    finally:
        iterable.close()


@pytest.mark.parametrize("wrap", [_bare, _wrapped])
class TestGatewaysAnswers:
    """What a Gateway gives a server, known by the exchange in the environ, whatever is wrapped around it."""

    def app(
        self, response: Response, wrap: Callable[[Any], Iterable[bytes]]
    ) -> tuple[Callable[..., Iterable[bytes]], list[tuple[int, str]]]:
        ended: list[tuple[int, str]] = []

        def finish(sent: int, error: GatewayError | None) -> None:
            ended.append((sent, "" if error is None else error.reason))

        def app(environ: dict[str, Any], start_response: Start) -> Any:
            exchange = environ["gateway.exchange"]
            exchange.answer = WsgiAnswer(response, finish, exchange)
            start_response(f"{response.status} Told", [("X-Hook", "1")])
            return wrap(exchange.answer)

        return app, ended

    def test_the_head_goes_out_at_once(self, wrap: Callable[[Any], Iterable[bytes]]) -> None:
        sent_before: list[bytes] = []
        stream = ScriptedStream(GET)
        late = Pieces(b"late", at_read=lambda: sent_before.append(bytes(stream.sent)))
        app, ended = self.app(Response(200, b"OK", [], stream=late), wrap)
        serve_on(stream, WsgiApplication(app, BASE))
        assert sent_before[0].startswith(b"HTTP/1.1 200 Told\r\n")
        assert ended == [(4, "")]
        assert late.closed == 1

    def test_a_break_is_quiet_and_cuts(
        self, wrap: Callable[[Any], Iterable[bytes]], caplog: pytest.LogCaptureFixture
    ) -> None:
        cut = Pieces(b"y", UpstreamTruncated("broke off"))
        app, ended = self.app(Response(200, b"OK", [], data=b"x", stream=cut), wrap)
        stream, _ = run(app, GET)
        assert stream.sent.endswith(b"1\r\nx\r\n1\r\ny\r\n")
        assert not stream.ended
        assert ended == [(2, "upstream_truncated")]
        assert caplog.records == []

    def test_a_client_that_left_is_no_exception_for_what_is_wrapped_around(
        self, wrap: Callable[[Any], Iterable[bytes]], caplog: pytest.LogCaptureFixture
    ) -> None:
        noticed: list[BaseException] = []

        def agent(iterable: Any) -> Iterable[bytes]:
            try:
                yield from wrap(iterable)
            except Exception as error:
                noticed.append(error)
                raise

        left = Pieces(b"y", ClientClosed("reset"))
        app, ended = self.app(Response(200, b"OK", [], data=b"x", stream=left), agent)
        stream, _ = run(app, GET)
        assert noticed == []
        assert stream.closed
        assert not stream.ended
        assert ended == [(2, "client_closed")]
        assert caplog.records == []

    def test_one_that_nobody_closes_is_given_back(self, wrap: Callable[[Any], Iterable[bytes]]) -> None:
        unread = Pieces(b"never read")
        app, ended = self.app(Response(503, b"Bad", [], stream=unread), wrap)

        def replacing(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            app(environ, lambda *given: lambda data: None)
            start_response("503 Mine", [])
            return [b"sorry"]

        stream, _ = run(replacing, GET)
        assert answers_in(stream.sent)[0][0] == 503
        assert unread.closed == 1
        assert ended == [(0, "")]

    @pytest.mark.parametrize("ends", ["well", "badly"])
    def test_a_tunnel(self, wrap: Callable[[Any], Iterable[bytes]], ends: str) -> None:
        tunnel = Tunnelled(TunnelFault("fault", 3, 7) if ends == "badly" else None)
        response = Response(101, b"Switching Protocols", [(b"Upgrade", b"WebSocket")], tunnel=tunnel)
        app, ended = self.app(response, wrap)
        stream, _ = run(app, GET)
        head = bytes(stream.sent).partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nUpgrade: WebSocket" in head
        assert b"\r\nX-Hook: 1" in head
        assert tunnel.closed
        assert ended == [(7, "internal_error" if ends == "badly" else "")]

    def test_a_tunnel_that_a_hook_has_refused(self, wrap: Callable[[Any], Iterable[bytes]]) -> None:
        tunnel = Tunnelled(None)
        response = Response(101, b"Switching Protocols", [], tunnel=tunnel)
        app, ended = self.app(response, wrap)

        def refusing(environ: dict[str, Any], start_response: Start) -> Any:
            return app(environ, lambda status, headers: start_response("403 No", headers))

        stream, _ = run(refusing, GET)
        assert answers_in(stream.sent)[0][0] == 403
        assert tunnel.closed
        assert ended == [(0, "")]


class Tunnelled:
    """A tunnel that carries 3 bytes from the client and 7 to it."""

    on_end: Callable[[], None] | None = None

    def __init__(self, fault: TunnelFault | None) -> None:
        self._fault = fault
        self.closed = False

    def run(self, client: Any, early: bytes) -> tuple[int, int]:
        if self._fault is not None:
            raise self._fault
        return 3, 7

    def close(self) -> None:
        self.closed = True


class TestErrors:
    def test_an_applications_own_error_of_that_kind_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        app, _ = answering(b"x", ConnectionResetError(104, "broke off"))
        stream, _ = run(app, GET)
        assert not stream.ended
        assert len(caplog.records) == 1

    def test_an_error_of_ours_before_the_head_has_its_status(self) -> None:
        def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
            raise UpstreamTruncated("x")

        assert answers_in(run(app, GET)[0].sent)[0][0] == 502


def serve_on(stream: ScriptedStream, application: WsgiApplication) -> None:
    from gateway.model import ServerSettings
    from gateway.server.connection import Connection, Place, Shared
    from gateway.server.parser import HeadParser

    settings = ServerSettings()

    def nothing(request: Request) -> None:
        return None

    shared = Shared(RecordingDoor(nothing), application, settings, HeadParser(settings.limits), lambda: None)
    Connection(shared, stream, Place("http", 8000, "127.0.0.1"), "192.0.2.1").run()  # type: ignore[arg-type]
