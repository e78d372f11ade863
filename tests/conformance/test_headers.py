"""Group A, headers: what goes, what stays, what the gateway adds (RFC 9110 §7.6), from an untrusted client."""

from __future__ import annotations

import gzip

import pytest

from gateway.testing import answer
from tests.conformance.harness import check_problem, request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "standard"
OWN = {b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-real-ip",
       b"x-request-id", b"via"}  # fmt: skip


def names(headers):
    return {name.lower() for name, _ in headers}


class TestHopByHop:
    def test_baseline(self, scene, upstream):
        scene.ask(request(b"/", b"Connection: close", b"TE: trailers", b"Proxy-Connection: x", b"Upgrade: foo"))
        seen = upstream.last
        assert names(seen.headers).isdisjoint({b"proxy-connection", b"upgrade"})
        assert b"close" not in seen.values(b"connection")
        assert seen.values(b"te") in ([], [b"trailers"])

    def test_the_clients_close_is_the_clients_alone(self, scene, upstream):
        with scene.client() as client:
            assert client.request(request(b"/", b"Connection: close")).status == 200
            assert client.ended()
        scene.ask(request())
        assert [seen.connection for seen in upstream.requests] == [upstream.requests[0].connection] * 2

    def test_named_by_connection(self, scene, upstream):
        scene.ask(request(b"/", b"Connection: Upgrade, X-Tok", b"connection: X-Some,,", b"X-Tok: 1", b"x-some: 2",
                          b"X-Other: 3"))  # fmt: skip
        assert names(upstream.last.headers).isdisjoint({b"x-tok", b"x-some", b"upgrade"})
        assert upstream.last.header(b"x-other") == b"3"

    def test_named_by_the_upstreams_connection(self, scene, upstream):
        upstream.answer(answer(b"ok", b"Connection: X-Tok, keep-alive", b"X-Tok: 1", b"X-Other: 2"))
        response = scene.ask(request())
        assert names(response.headers).isdisjoint({b"x-tok"})
        assert response.header(b"x-other") == b"2"

    @pytest.mark.parametrize("value", [b"", b",", b" , ,"])
    def test_empty_connection(self, scene, upstream, value):
        upstream.answer(answer(b"ok", b"Connection:" + value))
        response = scene.ask(request(b"/", b"Connection:" + value))
        assert response.status == 200
        assert upstream.last.values(b"connection") == []
        assert value.strip() not in response.values(b"connection")

    def test_connection_cannot_name_what_the_gateway_adds(self, scene, upstream):
        named = b"Foo,Bar,X-Forwarded-For,X-Forwarded-Host,X-Forwarded-Proto,X-Real-IP,Via,X-Request-Id"
        scene.ask(request(b"/", b"Connection: " + named, b"Foo: 1", b"Bar: 2"))
        assert names(upstream.last.headers) >= OWN
        assert names(upstream.last.headers).isdisjoint({b"foo", b"bar"})

    def test_connection_cannot_name_framing_or_host(self, scene, upstream):
        scene.ask(request(b"/", b"Connection: Host, Content-Length, Transfer-Encoding", method=b"POST", body=b"hello"))
        assert upstream.last.header(b"host") == b"example.test"
        assert upstream.last.body == b"hello"

    @pytest.mark.parametrize("te", [b"gzip", b"trailers, gzip;q=0.5", b"deflate, trailers;q=0.1"])
    def test_te(self, scene, upstream, te):
        scene.ask(request(b"/", b"Connection: TE", b"TE: " + te))
        assert upstream.last.values(b"te") in ([], [b"trailers"])

    def test_proxy_and_keep_alive_both_ways(self, scene, upstream):
        lines = [b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic", b"Proxy-Authorization: Basic eA==",
                 b"Proxy-Connection: keep-alive"]  # fmt: skip
        upstream.answer(answer(b"ok", *lines))
        response = scene.ask(request(b"/", *lines))
        hop = {line.split(b":")[0].lower() for line in lines}
        assert names(upstream.last.headers).isdisjoint(hop)
        # Keep-Alive to the client may be the gateway's own word
        assert b"timeout=5" not in response.values(b"keep-alive")
        assert names(response.headers).isdisjoint(hop - {b"keep-alive"})


class TestForwarded:
    """What an untrusted client says of itself is not believed."""

    def test_for_is_replaced(self, scene, upstream):
        scene.ask(request(b"/", b"X-Forwarded-For: 1.2.3.4"))
        assert upstream.last.header(b"x-forwarded-for") == b"127.0.0.1"

    def test_spoofed(self, scene, upstream):
        scene.ask(request(b"/", b"Forwarded: for=6.6.6.6", b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https",
                          b"X-Forwarded-Host: evil.test", b"X-Forwarded-Port: 666", b"X-Forwarded-Prefix: /evil",
                          b"X-Forwarded-Uri: /evil", b"X-Forwarded-Method: EVIL", b"X-Real-IP: 6.6.6.6",
                          b"X-Forwarded-Tls-Client-Cert: evil"))  # fmt: skip
        seen = upstream.last
        assert seen.header(b"x-forwarded-for") == seen.header(b"x-real-ip") == b"127.0.0.1"
        assert seen.header(b"x-forwarded-proto") == scene.door.scheme
        assert seen.header(b"x-forwarded-host") == b"example.test"
        assert seen.header(b"x-forwarded-port") == scene.door.default_port
        assert b"evil" not in seen.head
        assert b"6.6.6.6" not in seen.head
        assert b"forwarded" not in names(seen.headers)

    def test_port_of_the_host(self, scene, upstream):
        scene.ask(request(b"/", host=b"example.test:8443"))
        assert upstream.last.header(b"x-forwarded-port") == b"8443"
        assert upstream.last.header(b"x-forwarded-host") == b"example.test:8443"

    @pytest.mark.parametrize("name", [b"X_forwarded_proto", b"X_Forwarded_For", b"x_real_ip", b"X-Forwarded_Proto"])
    def test_underscore_alias(self, scene, upstream, name):
        scene.ask(request(b"/", name + b": evil"))
        assert b"evil" not in upstream.last.head

    @pytest.mark.parametrize("order", [1, -1])
    def test_underscore_twin(self, scene, upstream, order):
        response = scene.ask(request(b"/", *[b"X-Auth-User: legit", b"X_Auth_User: spoof"][::order]))
        assert response.status in (200, 400)
        assert b"spoof" not in b"".join(seen.head for seen in upstream.requests)

    def test_dot_alias(self, scene, upstream):
        scene.ask(request(b"/", b"Remote-User: legit", b"Remote.User: other"))
        assert upstream.last.values(b"remote-user") == [b"legit"]

    @pytest.mark.parametrize("line", [b"Script-Name: /admin", b"SCRIPT_NAME: /admin", b"Path-Info: /admin",
                                      b"PATH_INFO: /admin", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin"])  # fmt: skip
    def test_no_header_shifts_the_path(self, scene, upstream, line):
        scene.ask(request(b"/strip/x", line))
        assert upstream.last.target == b"/x"


class TestVia:
    @pytest.mark.parametrize(
        ("lines", "seen"),
        [
            ((), b"1.1 gw"),
            ((b"Via: 1.0 foo",), b"1.0 foo, 1.1 gw"),
            ((b"Via: 1.0 foo (gw 1.1)", b"Via: HTTP/1.1 bar:80"), b"1.0 foo (gw 1.1), HTTP/1.1 bar:80, 1.1 gw"),
        ],
    )
    def test_requests(self, scene, upstream, lines, seen):
        scene.ask(request(b"/", *lines))
        assert b", ".join(upstream.last.values(b"via")).replace(b",HTTP", b", HTTP") == seen

    def test_a_client_of_http_1_0(self, scene, upstream):
        scene.ask(request(version=b"HTTP/1.0"))
        assert upstream.last.header(b"via") == b"1.0 gw"

    def test_answers(self, scene, upstream):
        upstream.answer(answer(b"ok", b"Via: 1.1 inner"))
        assert b", ".join(scene.ask(request()).values(b"via")) == b"1.1 inner, 1.1 gw"

    @pytest.mark.parametrize("via", [b"1.1 gw", b"1.0 foo, 1.1 gw, 1.1 bar", b"HTTP/1.1 gw (comment)"])
    def test_a_loop_is_refused(self, scene, upstream, via):
        check_problem(scene.ask(request(b"/loop", b"Via: " + via)), 508, "loop_detected")
        assert upstream.requests == []
        assert scene.gateway.logged("/loop")["reason"] == "loop_detected"

    @pytest.mark.parametrize("via", [b"1.1 gw2", b"1.1 other (gw)", b"1.1 a.gw"])
    def test_another_name_is_no_loop(self, scene, upstream, via):
        assert scene.ask(request(b"/", b"Via: " + via)).status == 200


class TestMaxForwards:
    def test_zero_is_answered_here(self, scene, upstream):
        response = scene.ask(request(b"/x", b"Max-Forwards: 0", method=b"OPTIONS"))
        assert (response.status, upstream.requests) == (204, [])

    @pytest.mark.parametrize(("method", "sent", "seen"), [(b"OPTIONS", b"5", [b"4"]), (b"OPTIONS", b"1", [b"0"]),
                                                         (b"GET", b"5", [b"5"]), (b"GET", b"0", [b"0"])])  # fmt: skip
    def test_counted_down_on_options_alone(self, scene, upstream, method, sent, seen):
        scene.ask(request(b"/x", b"Max-Forwards: " + sent, method=method))
        assert upstream.last.values(b"max-forwards") == seen

    def test_never_added(self, scene, upstream):
        scene.ask(request(b"/x", method=b"OPTIONS"))
        assert upstream.last.values(b"max-forwards") == []


class TestNothingInvented:
    def test_request(self, scene, upstream):
        scene.ask(request())
        assert names(upstream.last.headers) == OWN

    def test_own_words_stay(self, scene, upstream):
        scene.ask(request(b"/", b"User-Agent: me", b"Accept-Encoding: br;q=1, *;q=0", b"Accept: text/x"))
        seen = upstream.last
        assert seen.header(b"user-agent") == b"me"
        assert seen.header(b"accept-encoding") == b"br;q=1, *;q=0"
        assert seen.header(b"accept") == b"text/x"

    def test_answer(self, scene, upstream):
        scene.ask(request())
        response = scene.ask(request())
        assert names(response.headers) - {b"date", b"server", b"connection", b"keep-alive", b"x-request-id"} == {
            b"content-length", b"via"}  # fmt: skip

    def test_no_content_type_is_made_up(self, scene, upstream):
        assert scene.ask(request()).values(b"content-type") == []


class TestOpaque:
    def test_compressed_body(self, scene, upstream):
        body = gzip.compress(b"hello" * 1000)
        upstream.answer(answer(body, b"Content-Encoding: gzip", b'ETag: W/"a"'))
        response = scene.ask(request(b"/", b"Accept-Encoding: gzip"))
        assert response.body == body
        assert response.header(b"content-encoding") == b"gzip"
        assert response.header(b"content-length") == b"%d" % len(body)
        assert response.header(b"etag") == b'W/"a"'

    def test_a_coding_that_lies(self, scene, upstream):
        upstream.answer(answer(b"not brotli", b"Content-Encoding: br"))
        assert scene.ask(request()).body == b"not brotli"

    def test_no_transform(self, scene, upstream):
        upstream.answer(answer(b"x" * 10000, b"Cache-Control: no-transform", b"Content-Type: text/html"))
        response = scene.ask(request(b"/", b"Accept-Encoding: gzip, br"))
        assert (response.body, response.values(b"content-encoding")) == (b"x" * 10000, [])

    def test_conditionals_are_the_upstreams(self, scene, upstream):
        upstream.answer(answer(b"new", b'ETag: "a"', b"Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"))
        lines = [b'If-None-Match: "a"', b"If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT", b'If-Match: "b"']
        response = scene.ask(request(b"/", *lines))
        assert (response.status, response.body) == (200, b"new")
        assert {line.split(b":")[0].lower() for line in lines} <= names(upstream.last.headers)

    def test_ranges_are_the_upstreams(self, scene, upstream):
        upstream.answer(answer(b"el", b"Content-Range: bytes 1-2/5", status=206))
        response = scene.ask(request(b"/", b"Range: bytes=1-2", b'If-Range: "a"'))
        assert (response.status, response.body, response.header(b"content-range")) == (206, b"el", b"bytes 1-2/5")
        assert upstream.last.header(b"range") == b"bytes=1-2"
        upstream.answer(answer(b"all of it"))
        assert scene.ask(request(b"/", b"Range: bytes=1-2")).body == b"all of it"


class TestLines:
    """Case, order and number of header lines."""

    @stock_limit("cookie-lines")
    def test_cookies(self, scene, upstream):
        scene.ask(request(b"/", b"Cookie: a=1", b"X: y", b"Cookie: b=2"))
        assert b"; ".join(upstream.last.values(b"cookie")) == b"a=1; b=2"

    def test_set_cookies(self, scene, upstream):
        cookies = [b"a=1; Path=/", b"b=2; Expires=Sun, 06 Nov 2094 08:49:37 GMT; HttpOnly", b"a=3"]
        upstream.answer(answer(b"ok", *[b"Set-Cookie: " + cookie for cookie in cookies]))
        assert scene.ask(request()).values(b"set-cookie") == cookies

    @stock_limit("name-case")
    def test_case_of_requests(self, scene, upstream):
        scene.ask(request(b"/", b"x-lower: 1", b"X-MiXed: 2", b"X-UPPER: 3"))
        assert {(b"x-lower", b"1"), (b"X-MiXed", b"2"), (b"X-UPPER", b"3")} <= set(upstream.last.headers)

    def test_case_of_answers(self, scene, upstream):
        upstream.answer(answer(b"ok", b"x-lower: 1", b"X-MiXed: 2", b"ETAG: 3"))
        assert {(b"x-lower", b"1"), (b"X-MiXed", b"2"), (b"ETAG", b"3")} <= set(scene.ask(request()).headers)

    @stock_limit("line-order")
    def test_duplicates_of_requests(self, scene, upstream):
        scene.ask(request(b"/", b"X-A: 1", b"X-B: 2", b"x-a: 3", b"Accept: a", b"Accept: b"))
        sent = [(b"X-A", b"1"), (b"X-B", b"2"), (b"x-a", b"3"), (b"Accept", b"a"), (b"Accept", b"b")]
        assert [line for line in upstream.last.headers if line in sent] == sent

    def test_no_value_is_lost(self, scene, upstream):
        scene.ask(request(b"/", b"X-A: 1", b"X-B: 2", b"X-A: 3"))
        assert b",".join(upstream.last.values(b"x-a")).replace(b" ", b"") == b"1,3"

    def test_duplicates_of_answers(self, scene, upstream):
        lines = [b"X-A: 1", b"X-B: 2", b"X-A: 3", b"WWW-Authenticate: Basic", b"WWW-Authenticate: Bearer", b"X-A: 1"]
        upstream.answer(answer(b"no", *lines, status=401))
        response = scene.ask(request())
        sent = [tuple(line.split(b": ")) for line in lines]
        assert [line for line in response.headers if line in sent] == sent

    def test_long_value(self, scene, upstream):
        scene.ask(request(b"/", b"X-Long: " + b"a" * 8000))
        assert upstream.last.header(b"x-long") == b"a" * 8000

    def test_longer_value(self, scene, upstream):
        scene.ask(request(b"/", b"X-Long: " + b"a" * 30_000))
        assert upstream.last.header(b"x-long") == b"a" * 30_000

    @pytest.mark.parametrize("value", [b"\x85admin\xa0", b"caf\xc3\xa9", b"\xff\xfe\x80", b"a\tb"])
    def test_bytes_above_ascii(self, scene, upstream, value):
        upstream.answer(answer(b"ok", b"X-Back: " + value))
        response = scene.ask(request(b"/", b"X: " + value))
        if response.status != 400:
            assert upstream.last.header(b"x") == value
            assert response.header(b"x-back") == value

    def test_empty_value(self, scene, upstream):
        upstream.answer(answer(b"ok", b"X-Back:", b"X-Blank:  "))
        response = scene.ask(request(b"/", b"X-Empty:", b"X-Blank:   "))
        assert upstream.last.header(b"x-empty") == upstream.last.header(b"x-blank") == b""
        assert response.header(b"x-back") == response.header(b"x-blank") == b""

    def test_allow_of_a_405(self, scene, upstream):
        upstream.answer(answer(b"no", b"Allow: BREW, WHEN", status=405))
        response = scene.ask(request(b"/", method=b"POST", body=b""))
        assert (response.status, response.header(b"allow"), response.body) == (405, b"BREW, WHEN", b"no")


class TestDateAndServer:
    DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"

    @stock_limit("own-date")
    def test_the_upstreams_date(self, scene, upstream):
        upstream.answer(answer(b"ok", b"Date: " + self.DATE))
        assert scene.ask(request()).header(b"date") == self.DATE

    def test_a_missing_date_is_added(self, scene, upstream):
        assert scene.ask(request()).header(b"date")

    @stock_limit("own-server")
    def test_the_upstreams_server(self, scene, upstream):
        upstream.answer(answer(b"ok", b"Server: inner/1"))
        assert scene.ask(request()).header(b"server") == b"inner/1"

    @stock_limit("own-server")
    def test_none_is_made_up_for_the_upstream(self, scene, upstream):
        assert scene.ask(request()).values(b"server") == []


class TestHost:
    @pytest.mark.parametrize(("path", "host"), [(b"/x", b"example.test"), (b"/literal", b"inside.test"),
                                               (b"/named", b"$upstream")])  # fmt: skip
    def test_policy(self, scene, upstream, path, host):
        scene.ask(request(path))
        assert upstream.last.header(b"host") == host.replace(b"$upstream", upstream.authority.encode())
        assert upstream.last.header(b"x-forwarded-host") == b"example.test"

    @pytest.mark.parametrize("host", [b"Example.TEST", b"example.test:80", b"example.test:8080", b"[::1]:8080", b"1.2.3.4"])
    def test_preserved_as_written(self, scene, upstream, host):
        scene.ask(request(b"/", host=host))
        assert upstream.last.header(b"host") == host


class TestRequestId:
    def test_made_told_and_logged(self, scene, upstream):
        scene.ask(request(b"/id-made"))
        made = upstream.last.header(b"x-request-id")
        assert made
        assert scene.gateway.logged("/id-made")["request_id"] == made.decode()

    def test_untrusted_is_replaced(self, scene, upstream):
        scene.ask(request(b"/", b"X-Request-Id: mine", b"x-request-id: too"))
        assert upstream.last.header(b"x-request-id") not in (None, b"mine", b"too", b"mine,too")

    def test_no_two_are_the_same(self, scene, upstream):
        with scene.client() as client:
            for _ in range(20):
                client.request(request())
        assert len({seen.header(b"x-request-id") for seen in upstream.requests}) == 20

    def test_in_the_problem_and_the_log(self, scene):
        problem = check_problem(scene.ask(request(b"/unrouted/id")), 404, "no_route")
        assert scene.gateway.logged("/unrouted/id")["request_id"] == problem["request_id"]

    def test_trace_context(self, scene, upstream):
        trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        scene.ask(request(b"/traced", b"traceparent: " + trace, b"tracestate: a=b"))
        assert upstream.last.header(b"traceparent") == trace
        assert upstream.last.header(b"tracestate") == b"a=b"
        assert scene.gateway.logged("/traced")["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


class TestUpstreamsGatewayError:
    def test_is_not_passed_on(self, scene, upstream):
        upstream.answer(answer(b"down", b"Gateway-Error: connect_refused", b"X-Its: own", status=502))
        response = scene.ask(request(b"/chained"))
        assert (response.status, response.body, response.header(b"x-its")) == (502, b"down", b"own")
        assert response.values(b"gateway-error") == []
