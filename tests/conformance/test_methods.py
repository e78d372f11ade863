"""Group A, methods, statuses, versions and bodies."""

from __future__ import annotations

import os

import pytest

from gateway.testing import Act, answer, chunked, head
from tests.conformance.harness import check_problem, request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "standard"
ALLOWED = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


class TestHead:
    def test_a_length_is_told_and_the_connections_go_on(self, scene, upstream):
        upstream.answer(head(200, b"Content-Length: 12"))
        with scene.client() as client:
            for _ in range(2):
                response = client.request(request(method=b"HEAD"))
                assert (response.status, response.header(b"content-length")) == (200, b"12")
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"
        assert len({seen.connection for seen in upstream.requests}) == 1

    def test_chunked(self, scene, upstream):
        upstream.answer(head(200, b"Transfer-Encoding: chunked"))
        with scene.client() as client:
            assert client.request(request(method=b"HEAD")).status == 200
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"

    def test_neither(self, scene, upstream):
        upstream.answer(head(200, b"X: y"))
        response = scene.ask(request(method=b"HEAD"))
        assert (response.status, response.values(b"content-length")) == (200, [])

    @pytest.mark.parametrize("status", [204, 304])
    def test_no_body_statuses(self, scene, upstream, status):
        upstream.answer(head(status, b'ETag: "a"'))
        with scene.client() as client:
            response = client.request(request())
            assert (response.status, response.header(b"etag")) == (status, b'"a"')
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"

    def test_a_304_tells_the_length(self, scene, upstream):
        upstream.answer(head(304, b"Content-Length: 12", b'ETag: "a"'))
        assert scene.ask(request()).values(b"content-length") in ([b"12"], [])


class TestBodies:
    @pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS", b"HEAD", b"PROPFIND"])
    def test_any_method_may_have_one(self, scene, upstream, method):
        with scene.client() as client:
            upstream.answer(answer(b"ok") if method != b"HEAD" else head(200, b"Content-Length: 2"))
            assert client.request(request(method=method, body=b"hello")).status == 200
            seen = upstream.wait_complete()
            assert (seen.method, seen.body) == (method, b"hello")
            assert seen.values(b"content-length") + seen.values(b"transfer-encoding") in ([b"5"], [b"chunked"])
            upstream.answer(answer(b"after"))
            assert client.request(request(b"/after")).body == b"after"
        assert [seen.target for seen in upstream.requests] == [b"/", b"/after"]

    @pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH"])
    def test_length_zero(self, scene, upstream, method):
        scene.ask(request(method=method, body=b""))
        assert upstream.last.header(b"content-length") == b"0"
        assert upstream.last.values(b"transfer-encoding") == []

    def test_a_post_without_framing_has_no_body(self, scene, upstream):
        scene.ask(request(method=b"POST"))
        assert (upstream.last.complete, upstream.last.body) == (True, b"")
        assert upstream.last.values(b"content-length") in ([], [b"0"])

    def test_a_get_without_framing_gets_none(self, scene, upstream):
        scene.ask(request())
        assert upstream.last.values(b"content-length") + upstream.last.values(b"transfer-encoding") == []

    def test_a_mebibyte(self, scene, upstream):
        body = os.urandom(1 << 20)
        upstream.answer(lambda exchange: exchange.send(answer(exchange.read_body())))
        response = scene.ask(request(method=b"POST", body=body))
        assert upstream.last.body == body
        assert upstream.last.header(b"content-length") == b"%d" % len(body)
        assert response.body == body


class TestMethods:
    def test_options_is_the_upstreams(self, scene, upstream):
        upstream.answer(answer(b"mine", b"Allow: A, B"))
        response = scene.ask(request(b"/x", method=b"OPTIONS"))
        assert (response.status, response.body, response.header(b"allow")) == (200, b"mine", b"A, B")

    @pytest.mark.parametrize("method", [b"PROPFIND", b"PURGE", b"M-SEARCH", b"REPORT", b"PATCH", b"DELETE", b"QUERY", b"BREW",
                                        b"LINK", b"MKCOL", b"PRI"])  # fmt: skip
    def test_any_token(self, scene, upstream, method):
        scene.ask(request(method=method))
        assert upstream.last.method == method

    @stock_limit("method-tokens")
    @pytest.mark.parametrize("method", [b"get", b"X", b"Get", b"A" * 30, b"a!b#c'", b"_"])
    def test_any_token_at_all(self, scene, upstream, method):
        """Method names are case-sensitive (RFC 9110 §9.1)."""
        scene.ask(request(method=method))
        assert upstream.last.method == method

    def test_trace(self, scene, upstream):
        response = scene.ask(request(b"/trace", b"Cookie: secret", method=b"TRACE"))
        check_problem(response, 405, "unsupported_method")
        assert response.values(b"allow") == [ALLOWED]
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"a:80", b"/x", b"a", b"http://a/", b"a:", b":80", b"[::1]:443"])
    def test_connect(self, scene, upstream, target):
        with scene.client() as client:
            client.send(request(target, method=b"CONNECT", host=b"a:80") + request(b"/inner"))
            response = client.read_response()
            assert response.status in (400, 405)
            assert client.ended()
        assert upstream.requests == []

    def test_connect_is_named(self, scene):
        response = scene.ask(request(b"a:80", method=b"CONNECT", host=b"a:80"))
        check_problem(response, 405, "unsupported_method")
        assert response.values(b"allow") == [ALLOWED]

    def test_options_of_the_server(self, scene, upstream):
        response = scene.ask(request(b"*", method=b"OPTIONS"))
        assert (response.status, response.body, upstream.requests) == (204, b"", [])

    @pytest.mark.parametrize(
        ("target", "seen"),
        [(b"http://a.test", b"*"), (b"HTTP://a.test:80", b"*"), (b"http://a.test/", b"/"), (b"http://a.test?x", b"/?x")],
    )
    def test_options_of_the_upstream(self, scene, upstream, target, seen):
        """RFC 9112 §3.2.4: absolute-form without path and query is about the server, whose asterisk-form it becomes."""
        assert scene.ask(request(target, method=b"OPTIONS", host=b"a.test")).status == 200
        assert (upstream.last.method, upstream.last.target) == (b"OPTIONS", seen)
        assert scene.ask(request(target)).status == 200
        assert upstream.last.target == seen.replace(b"*", b"/")


class TestStatuses:
    @pytest.mark.parametrize("status", [200, 201, 203, 226, 299, 300, 345, 400, 402, 418, 451, 499, 500, 507, 599, 600, 999])
    def test_odd_ones(self, scene, upstream, status):
        upstream.answer(answer(b"body", status=status))
        response = scene.ask(request())
        assert (response.status, response.body) == (status, b"body")

    @pytest.mark.parametrize("reason", [b"", b"Fine", b"It's  all (right): 100% \xe9"])
    def test_reason_phrases(self, scene, upstream, reason):
        upstream.answer(head(200, b"Content-Length: 0", reason=reason))
        assert scene.ask(request()).status == 200

    @pytest.mark.parametrize("reason", [b"Fine", b"It's  all (right): 100%"])
    def test_reason_phrases_pass(self, scene, upstream, reason):
        upstream.answer(head(200, b"Content-Length: 0", reason=reason))
        assert scene.ask(request()).reason == reason

    @pytest.mark.parametrize("status", [500, 501, 502, 503, 504])
    def test_the_upstreams_own_errors(self, scene, upstream, status):
        upstream.answer(answer(b"<h1>mine</h1>", b"Content-Type: text/html", b"Retry-After: 5", status=status))
        response = scene.ask(request())
        assert (response.status, response.body) == (status, b"<h1>mine</h1>")
        assert response.header(b"retry-after") == b"5"
        assert response.values(b"gateway-error") == []

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirects_are_the_clients_to_follow(self, scene, upstream, status):
        upstream.answer(answer(b"", b"Location: http://elsewhere.test/", status=status))
        response = scene.ask(request())
        assert (response.status, response.header(b"location")) == (status, b"http://elsewhere.test/")
        assert len(upstream.requests) == 1


class TestManyHeaders:
    @pytest.mark.parametrize("number", [101, 200])
    def test_more_than_a_hundred(self, scene, upstream, number):
        upstream.answer(answer(b"ok", *[b"X-%d: y" % n for n in range(number)]))
        response = scene.ask(request())
        assert (response.status, response.body) == (200, b"ok")
        assert sum(name.lower().startswith(b"x-") for name, _ in response.headers) >= number

    def test_more_than_allowed(self, scene, upstream):
        upstream.answer(answer(b"ok", *[b"X-%d: y" % n for n in range(300)]))
        check_problem(scene.ask(request()), 502, "bad_response")

    def test_a_long_head(self, scene, upstream):
        upstream.answer(answer(b"ok", b"X: " + b"a" * 60_000))
        assert scene.ask(request()).header(b"x") == b"a" * 60_000

    @pytest.mark.parametrize("line", [b"X: " + b"a" * 70_000, b"X: " + b"a" * 2_000_000])
    def test_a_head_longer_than_allowed(self, scene, upstream, line):
        upstream.answer([head(200, b"Content-Length: 2", line), b"ok"])
        check_problem(scene.ask(request()), 502, "bad_response")

    def test_a_longer_head_where_that_is_allowed(self, scene, upstream):
        upstream.answer([head(200, b"Content-Length: 2", b"X: " + b"a" * 200_000), b"ok"])
        assert scene.ask(request(b"/wide")).header(b"x") == b"a" * 200_000


class TestOldClients:
    def test_the_upstream_speaks_1_1_and_the_client_1_0(self, scene, upstream):
        upstream.answer([head(200, b"Transfer-Encoding: chunked"), chunked(b"hel", b"lo")])
        with scene.client() as client:
            response = client.request(request(version=b"HTTP/1.0"))
            assert (response.body, response.values(b"transfer-encoding")) == (b"hello", [])
            assert client.ended()
        assert upstream.last.version == b"HTTP/1.1"

    def test_closes_by_default(self, scene, upstream):
        with scene.client() as client:
            assert client.request(request(version=b"HTTP/1.0")).body == b"ok"
            assert client.ended()

    def test_keep_alive_when_asked_for(self, scene, upstream):
        with scene.client() as client:
            response = client.request(request(b"/", b"Connection: keep-alive", version=b"HTTP/1.0"))
            assert response.body == b"ok"
            if [value.lower() for value in response.values(b"connection")] == [b"keep-alive"]:
                assert client.request(request(version=b"HTTP/1.0")).body == b"ok"
            else:
                assert client.ended()

    def test_no_host(self, scene, upstream):
        response = scene.ask(request(host=None, version=b"HTTP/1.0"))
        assert response.status in (200, 400, 404)
        assert len(upstream.last.values(b"host")) == 1 if response.status == 200 else upstream.requests == []

    def test_an_old_upstream(self, scene, upstream):
        upstream.answer([b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end", Act.CLOSE])
        assert scene.ask(request()).body == b"until the end"
        upstream.answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
        for _ in range(2):
            assert scene.ask(request()).body == b"ok"
        assert len({seen.connection for seen in upstream.requests}) == 3, "an HTTP/1.0 connection was used again"
