"""Group F: requests that are no HTTP/1.1; limits; and that the server stays up."""

from __future__ import annotations

import pytest

from gateway.testing import Truncated
from tests.conformance.harness import check_refused, request
from tests.conformance.stock_worker_limits import stock_limit
from tests.conformance.test_smuggling import REFUSALS

SCENE = "standard"
WSGI_SAMPLED = True


def refused(scene, raw: bytes) -> None:
    with scene.client() as client:
        client.send(raw + request(b"/marker"))
        check_refused(scene, client, REFUSALS)
    assert {seen.target for seen in scene.upstreams["main"].requests} <= (set() if scene.door.own else {b"/marker"})
    assert scene.ask(request(b"/after")).body == b"ok"


def closed_or_refused(scene, raw: bytes) -> None:
    """For what is not even a line of HTTP: an answer, or just the end."""
    with scene.client() as client:
        try:
            client.send(raw)
            client.half_close()
            left = client.read_to_end()
        except OSError:  # reset, or closed before the half-close
            left = b""
        assert not left or int(left.split(b" ")[1]) in (408, *REFUSALS)
    assert scene.upstreams["main"].requests == []
    assert scene.ask(request(b"/after")).body == b"ok"


def lines(*extra: bytes) -> bytes:
    return b"\r\n".join([b"GET /bad HTTP/1.1", b"Host: example.test", *extra, b"", b""])


class TestHeaderLines:
    @pytest.mark.parametrize(
        "line",
        [
            b"X : y", b"X\t: y", b"X\x85: y", b"X\xa0: y", b"X\x0b: y", b"X\x00: y", b": y", b" : y", b"no colon", b"X y: z", b"X\x00Y: z",
            b"X(Y): z", b"X/Y: z", b'X"Y: z', b"X@Y: z", b"X,Y: z", b"X\xffY: z", b"\x00: y", b"X: a\x00b", b"X: \x00", b"X: a\x01b", b"X: a\x7fb",
            b"X: a\x0bb", b"X: a\x1bb", b"X: a\rb", b"X: a\r", b"X: a\nb", b"X: a\n\nb", b"Na\r\nme: y", b"X[]: y", b"{X}: y", b"X;: y", b"X=: y",
        ],
    )  # fmt: skip
    def test_malformed(self, scene, line):
        refused(scene, lines(line))

    @pytest.mark.parametrize("raw", [
        lines(b"X: a\r\n b"), lines(b"X: a\r\n\tb"), lines(b"X:\r\n b"), lines(b"X: a\r\n \r\n b"),
        b"GET /bad HTTP/1.1\r\n Host: example.test\r\n\r\n", b"GET /bad HTTP/1.1\r\n folded: first\r\nHost: a\r\n\r\n",
        b"GET /bad HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"])  # fmt: skip
    def test_folded(self, scene, raw):
        refused(scene, raw)

    @pytest.mark.parametrize("raw", [
        lines(b"X: y").replace(b"\r\n", b"\r"), b"GET /bad HTTP/1.1\rHost: a\r\n\r\n", b"GET /bad HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET /bad HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n"])  # fmt: skip
    def test_bare_cr(self, scene, raw):
        closed_or_refused(scene, raw)

    @pytest.mark.parametrize("raw", [
        lines(b"X: y").replace(b"\r\n", b"\n"), b"GET /bad HTTP/1.1\nHost: a\r\n\r\n", b"GET /bad HTTP/1.1\r\nHost: a\n\r\n",
        b"GET /bad HTTP/1.1\r\nHost: a\r\n\n", b"GET /bad HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"])  # fmt: skip
    def test_bare_lf(self, scene, raw):
        closed_or_refused(scene, raw)


class TestHostLines:
    @pytest.mark.parametrize("extra", [(), (b"Host: a", b"Host: a"), (b"Host: a", b"host: b"), (b"Host: a, b",), (b"Host:",), (b"Host:  ",),
                                       (b"Host: a b",), (b"Host: a/b",), (b"Host: a?b",), (b"Host: u@a",), (b"Host: a:b",), (b"Host: a:80:80",),
                                       (b"Host: [::1",), (b"Host: ::1",), (b"Host: a\xe4",), (b"Host: a%zz",), (b"Host: <a>",),
                                       (b"Host: a:-1",)])  # fmt: skip
    def test_not_exactly_one_host(self, scene, extra):
        refused(scene, b"\r\n".join([b"GET /bad HTTP/1.1", *extra, b"", b""]))

    def test_two_hosts_by_absolute_form(self, scene):
        refused(scene, b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")

    def test_absolute_form_without_host(self, scene):
        refused(scene, b"GET http://a/ HTTP/1.1\r\n\r\n")


class TestRequestLines:
    @pytest.mark.parametrize(
        "line",
        [
            b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 ", b"GET\t/\tHTTP/1.1", b" GET / HTTP/1.1", b"\tGET / HTTP/1.1",
            b"GET /a b HTTP/1.1", b"GET / x HTTP/1.1", b"hello", b"GET /\x0bHTTP/1.1", b"GET /\x00 HTTP/1.1", b"GET / \x00HTTP/1.1", b"GET / HTTP/1.1\x00",
            b"GET / HTTP", b"GET / HTTP/", b"GET / HTTP/1", b"GET / HTTP/1.", b"GET / HTTP/.1", b"GET / HTTP/1.1x", b"GET / HTTP/1,1", b"GET / HTTP/11",
            b"GET / http/1.1", b"GET / HTTP /1.1", b"GET / HTTPS/1.1", b"GET / XTTP/1.1", b"GET / HTTP/1.10", b"GET / HTTP/01.1", b"GET / HTTP/-1.1",
            b"GET / HTTP/\xb9.1", b"GET / HTTP/9.9", b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"GET / HTTP/3.0", b"GET / ICE/1.0", b"/ GET HTTP/1.1",
        ],
    )  # fmt: skip
    def test_malformed(self, scene, line):
        refused(scene, line + b"\r\nHost: example.test\r\n\r\n")

    @pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/3.0", b"HTTP/0.9", b"HTTP/9.9"])
    def test_other_versions_by_name(self, scene, version):
        with scene.client() as client:
            client.send(b"GET / " + version + b"\r\nHost: example.test\r\n\r\n")
            response = check_refused(scene, client, (400, 505))
            if scene.door.own:
                assert response.header(b"gateway-error") == b"unsupported_version"

    @pytest.mark.parametrize("method", [b"GET:", b"GE(T", b"G\xc3\x89T", b"G\x00T", b"GET\x7f", b"[GET]", b"G,T", b"G/T", b'"GET"', b"A" * 4096,
                                        b"GET\r", b"G\nT", b"{GET}", b"G@T", b"G;T", b"G=T", b"G\\T"], ids=lambda method: repr(method[:8]))  # fmt: skip
    def test_methods(self, scene, method):
        refused(scene, method + b" /bad HTTP/1.1\r\nHost: example.test\r\n\r\n")

    @pytest.mark.parametrize("raw", [b"GET /\r\n", b"GET /\r\n\r\n", b"GET /x\n\n"])
    def test_http_0_9(self, scene, raw):
        closed_or_refused(scene, raw)

    @pytest.mark.parametrize("target", [b"foo/bar", b"example.test:443", b"*", b"s://]ufd/:", b"?x", b"#", b"http:", b"http:/", b"http://",
                                        b"http:///x", b"http://a b/", b"http://u:p@a/", b"http://[::1/", b"http://a:b/", b"ws://a/", b"ftp://a/",
                                        b"\\x", b"%2f", b"./x", b"@a", b":80", b"//"])  # fmt: skip
    def test_targets(self, scene, upstream, target):
        with scene.client() as client:
            client.send(request(target, method=b"GET"))
            response = client.read_response()
        if target == b"//":  # an origin-form like any other
            assert (response.status, upstream.last.target) == (200, b"//")
        else:
            assert response.status == 400
            assert upstream.requests == []

    @pytest.mark.parametrize("lead", [b"\r\n", b"\r\n\r\n"])
    def test_empty_lines_before(self, scene, upstream, lead):
        with scene.client() as client:
            response = client.request(lead + request(b"/led"), b"GET")
            assert response.status in (200, 400)
        assert [seen.target for seen in upstream.requests] == ([b"/led"] if response.status == 200 else [])

    def test_an_empty_line_between_two(self, scene, upstream):
        """RFC 9112 §2.2: a robust server skips at least one CRLF before a request line."""
        with scene.client() as client:
            client.send(request(b"/one", method=b"POST", body=b"x") + b"\r\n" + request(b"/two"))
            assert [client.read_response().status for _ in range(2)] == [200, 200]

    def test_endless_empty_lines(self, scene, upstream):
        with scene.client() as client:
            try:
                for _ in range(200):
                    client.send(b"\r\n" * 1000)
                client.half_close()
                left = client.read_to_end()
            except OSError:
                left = b""
            assert not left or int(left.split(b" ")[1]) in (408, *REFUSALS)
        assert scene.ask(request()).body == b"ok"


class TestFloods:
    def test_too_many_headers(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/bad", *[b"X-%d: y" % number for number in range(150)]))
            response = check_refused(scene, client, (431,))
            if scene.door.own:
                assert response.header(b"gateway-error") == b"header_too_large"
        assert upstream.requests == []

    @pytest.mark.parametrize("extra", [
        [b"X: " + b"a" * 40_000], [b"A" * 40_000 + b": y"],
        pytest.param([b"X-%d: %s" % (n, b"a" * 4000) for n in range(12)], marks=stock_limit("whole-head"))],
        ids=["value", "name", "together"])  # fmt: skip
    def test_too_much_head(self, scene, upstream, extra):
        with scene.client() as client:
            client.send(request(b"/bad", *extra))
            response = check_refused(scene, client, (431,))
            if scene.door.own:
                assert response.header(b"gateway-error") == b"header_too_large"
        assert upstream.requests == []

    def test_as_many_as_allowed(self, scene, upstream):
        assert scene.ask(request(b"/", *[b"X-%d: y" % number for number in range(99)])).status == 200

    def test_a_long_target_passes(self, scene, upstream):
        target = b"/" + b"a" * 8000
        assert scene.ask(request(target)).status == 200
        assert upstream.last.target == target

    @stock_limit("long-target")
    def test_a_longer_target_passes(self, scene, upstream):
        target = b"/" + b"a" * 16_000
        assert scene.ask(request(target)).status == 200
        assert upstream.last.target == target

    @pytest.mark.parametrize("length", [17_000, 500_000])
    def test_too_long_a_target(self, scene, upstream, length):
        with scene.client() as client:
            client.send(b"GET /" + b"a" * length + b" HTTP/1.1\r\nHost: example.test\r\n\r\n")
            response = check_refused(scene, client, (414,))
            if scene.door.own:
                assert response.header(b"gateway-error") == b"uri_too_long"
        assert upstream.requests == []

    @pytest.mark.parametrize("raw", [b"", b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n",
                                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"\xff" * 5000, b"SSH-2.0-x\r\n",
                                     b"\x05\x01\x00", b"EHLO x\r\n", b"a" * 100_000], ids=lambda raw: repr(raw[:12]))  # fmt: skip
    def test_what_is_no_request(self, scene, raw):
        closed_or_refused(scene, raw)

    def test_many_connections_at_once(self, scene, upstream):
        clients = [scene.client() for _ in range(200)]
        try:
            for client in clients:
                client.send(request(b"/crowd")[:-2])
            assert scene.ask(request()).body == b"ok"
            for client in clients:
                client.send(b"\r\n")
            assert {client.read_response().status for client in clients} == {200}
        finally:
            for client in clients:
                client.close()

    def test_nothing_was_worth_a_traceback(self, scene):
        """Asked last: whatever this folder threw at the gateway until now was expected."""
        assert "Traceback" not in scene.gateway.errors(), scene.gateway.errors()[-3000:]


@pytest.mark.parametrize("line", [b"PROXY TCP4 6.6.6.6 127.0.0.1 1 80\r\n", b"PROXY UNKNOWN\r\n"])
def test_a_proxy_line_is_not_http(scene, line):
    refused(scene, line + request(b"/proxied"))


def test_two_content_types(scene, upstream):
    """Which of the two holds is nobody's guess: both pass, or neither."""
    with scene.client() as client:
        try:
            response = client.request(request(b"/", b"Content-Type: a/b", b"Content-Type: c/d", method=b"POST", body=b"x"))
        except Truncated:
            response = None
    assert response is not None
    assert response.status in (200, 400)
    if response.status == 200:
        assert b", ".join(upstream.last.values(b"content-type")).replace(b",c", b", c") == b"a/b, c/d"
