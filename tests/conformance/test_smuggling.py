"""Group F: requests with more than one reading (RFC 9112 §6.3, §11.2).

For each: the request and, behind it in the same packet, a marker; then another marker on a new connection.
Safe is a refusal that closes the connection with nothing complete at the upstream, or exactly one well-framed
request there. A marker is answered by its own answer or not at all, and no target that the attacker hid in a
body is ever asked for. What reaches the upstream is read strictly: `scene` fails for anything malformed.
"""

from __future__ import annotations

import pytest

from gateway.testing import RawResponse, Truncated, answer, chunked
from tests.conformance.harness import check_refused, request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "standard"
WSGI_SAMPLED = True

REFUSALS = (400, 405, 411, 413, 414, 417, 431, 501, 505)
HIDDEN = b"GET /evil HTTP/1.1\r\nHost: example.test\r\nX: "
MARKER = request(b"/marker")
CHUNKED = b"Transfer-Encoding: chunked"


def head_of(*lines: bytes, method: bytes = b"POST", target: bytes = b"/first") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: example.test", *lines]) + b"\r\n\r\n"


def read_all(client) -> list[RawResponse]:
    """Every answer until the gateway closes. Behind the first one the client has nothing more to say."""
    answers = [client.read_response()]
    try:
        client.half_close()
        while client.buffer or client.fill():
            answers.append(client.read_response())
    except (Truncated, OSError):
        pass  # it has closed
    return answers


def rest(client) -> bytes:
    """What still comes until the gateway ends the connection, with a FIN or a RST."""
    try:
        return client.read_to_end()
    except ConnectionResetError:
        return b""


def safe(scene, raw: bytes, *, body: bytes | None = None) -> list[int]:
    """Send it with a marker behind and judge; `body`: what the one good reading has as its body (None: there is
    no good reading, it must be refused). Returns the statuses."""
    upstream = scene.upstreams["main"]
    upstream.answer(lambda exchange: (exchange.read_body(), exchange.send(answer(exchange.request.target))))
    with scene.client() as client:
        client.send(raw + MARKER)
        if body is None:
            check_refused(scene, client, REFUSALS)
            statuses = [400]
        else:
            answers = read_all(client)
            statuses = [it.status for it in answers]
            assert answers, "no answer at all"
            if statuses[0] == 200:
                assert answers[0].body == b"/first"
                assert [it.body for it in answers[1:]] in ([], [b"/marker"])
            else:
                assert statuses[0] in REFUSALS
                assert len(answers) == 1
    complete = [seen for seen in upstream.requests if seen.complete]
    if statuses[0] == 200:
        assert (complete[0].target, complete[0].body) == (b"/first", body)
        assert [seen.target for seen in complete[1:]] in ([], [b"/marker"])
    else:
        assert complete == [], [(seen.target, seen.body) for seen in complete]
    assert scene.ask(request(b"/after")).body == b"/after"
    assert b"/evil" not in [seen.target for seen in upstream.requests]
    return statuses


class TestTwoFramings:
    @pytest.mark.parametrize("lines", [(b"Content-Length: %d", CHUNKED), (CHUNKED, b"Content-Length: %d"),
                                       (b"Content-Length: %d", b"X: y", b"transfer-encoding: Chunked")])  # fmt: skip
    @pytest.mark.parametrize("length", [0, 3, 5, 6, 1000])
    def test_length_and_chunked(self, scene, lines, length):
        lines = tuple(line % length if b"%d" in line else line for line in lines)
        safe(scene, head_of(*lines) + b"0\r\n\r\n" + HIDDEN)

    def test_an_inner_request_in_a_length(self, scene):
        """TE.CL: whoever goes by the length sees another request."""
        inner = HIDDEN + b"\r\n\r\n"
        safe(scene, head_of(CHUNKED, b"Content-Length: 4") + b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n")

    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_an_inner_request_in_a_body_is_a_body(self, scene, is_chunked):
        inner = HIDDEN + b"\r\n\r\n"
        raw = head_of(CHUNKED) + chunked(inner) if is_chunked else head_of(b"Content-Length: %d" % len(inner)) + inner
        assert safe(scene, raw, body=inner) == [200, 200]

    @pytest.mark.parametrize("lines", [(b"Content-Length: 5", b"Content-Length: 6"), (b"Content-Length: 6", b"content-length: 5"),
                                       (b"Content-Length: 5, 6",), (b"Content-Length: 5, 0",), (b"Content-Length: 5,",),
                                       (b"Content-Length: ,5",), (b"Content-Length: 5", b"Content-Length:")])  # fmt: skip
    def test_lengths_that_differ(self, scene, lines):
        safe(scene, head_of(*lines) + b"hello")

    @pytest.mark.parametrize("lines", [(b"Content-Length: 5", b"Content-Length: 5"), (b"Content-Length: 5, 5",),
                                       (b"Content-Length: 05",), (b"Content-Length: \t5 ",)])  # fmt: skip
    def test_lengths_that_agree(self, scene, lines):
        safe(scene, head_of(*lines) + b"hello", body=b"hello")

    @pytest.mark.parametrize("value", [b"+5", b"-5", b"-0", b"0x5", b"5.0", b"5e0", b"5 5", b"5a", b"five", b'"5"', b"", b" ", b"\xb2",
                                       b"\xd9\xa5", b"5\x0b", b"5;a", b"5_0", b"99999999999999999999", b"18446744073709551621",
                                       b"4294967301" * 4, b"0" * 5000 + b"x", b"5\x00"], ids=lambda value: value[:12].hex())  # fmt: skip
    def test_lengths_that_are_none(self, scene, value):
        safe(scene, head_of(b"Content-Length: " + value) + b"hello")

    @pytest.mark.parametrize("name", [b"Content_Length", b"Content-Length_", b"Content-Lengt", b"X-Content-Length"])
    def test_names_that_are_near(self, scene, name):
        """Not a length: the request has no body, and what follows is the marker's."""
        raw = head_of(name + b": 5", method=b"GET")
        safe(scene, raw, body=b"")


CODINGS = [
    b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked,", b"Transfer-Encoding: chunked, ,", b"Transfer-Encoding: , ,chunked",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunkedx", b"Transfer-Encoding: chunk", b"Transfer-Encoding: chunke\xb9",
    b"Transfer-Encoding: chunked;a=b", b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: 'chunked'", b"Transfer-Encoding:",
    b"Transfer-Encoding: chunked chunked", b"Transfer-Encoding: x chunked", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\x0b", b"Transfer-Encoding: \x0cchunked", b"Transfer-Encoding: \x00chunked",
    b"Transfer-Encoding: chunked\x00", b"Transfer-Encoding: \xa0chunked", b"Transfer-Encoding: chunked\x85", b"Transfer-Encoding: \rchunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b"Transfer-Encoding\x0b: chunked", b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding\xa0: chunked", b"Transfer-Encoding\x85: chunked", b" Transfer-Encoding: chunked", b"\tTransfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding\r\n : chunked", b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b"X: y\r\rTransfer-Encoding: chunked",
    b"X:y\x00Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\n folded", b"Transfer Encoding: chunked",
    b"Transfer-Encoding chunked", b"Transfer-Encoding: chunk\red", b"Transfer-Encoding: cHuNkEd\x01", b"\x00Transfer-Encoding: chunked",
    b"\xefTransfer-Encoding: chunked", b":Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\\r\\n", b"Transfer-Encoding: [chunked]",
    b"Transfer-Encoding: {chunked}", b"Transfer-Encoding: chunked, x", b"Transfer-Encoding:: chunked", b"Transfer-Encoding: trailers, chunked",
    b"Transfer-Encoding: deflate, gzip, chunked", b"Transfer-Encoding: chunked=chunked", b"Transfer-Encoding: chunked\x1f",
    b"Transfer-Encoding: \x7fchunked", b"Transfer-Encoding: chunked#", b"Transfer-Encoding: compress", b"Transfer-Encoding: chunked\r",
]  # fmt: skip


class TestCodings:
    @pytest.mark.parametrize("line", CODINGS, ids=lambda line: line.replace(b"Transfer-Encoding", b"TE").decode("unicode_escape").encode("unicode_escape").decode()[:40])
    @pytest.mark.parametrize("length", [(), (b"Content-Length: 5",)], ids=["alone", "with-length"])
    def test_not_exactly_chunked(self, scene, line, length):
        safe(scene, head_of(line, *length) + b"0\r\n\r\n" + HIDDEN)

    @pytest.mark.parametrize("line", [b"Transfer-Encoding: Chunked", b"transfer-encoding: CHUNKED", b"TRANSFER-ENCODING:\t chunked \t",
                                      b"Transfer-Encoding:chunked"])  # fmt: skip
    def test_exactly_chunked_in_any_spelling(self, scene, line):
        assert safe(scene, head_of(line) + chunked(b"hello"), body=b"hello") == [200, 200]

    @pytest.mark.parametrize("line", [b"Transfer_Encoding: chunked", b"Transfer-Encodin: chunked", b"X-Transfer-Encoding: chunked",
                                      b"Transfer-Encoding_: chunked", b"TE: chunked"])  # fmt: skip
    def test_names_that_are_near(self, scene, line):
        safe(scene, head_of(line, b"Content-Length: 5") + b"hello", body=b"hello")

    def test_on_http_1_0(self, scene):
        raw = b"POST /first HTTP/1.0\r\nHost: example.test\r\n" + CHUNKED + b"\r\n\r\n" + b"0\r\n\r\n" + HIDDEN
        safe(scene, raw)


BAD_CHUNKS = [
    b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n", b"-5\r\nhello\r\n", b"-0\r\nhello\r\n", b"1_0\r\nhellohellohello!\r\n", b" 5\r\nhello\r\n",
    b"\t5\r\nhello\r\n", b"\r\nhello\r\n", b"5g\r\nhello\r\n", b"g\r\nhello\r\n", b"0x\r\n\r\n", b"5.0\r\nhello\r\n", b"\xb5\r\nhello\r\n",
    b"5\nhello\r\n", b"5\rhello\r\n", b"5\r\nhello\n", b"5\r\nhello\r", b"5\r\nhello\rX", b"5\r\nhello", b"5\r\nhelloX\r\n", b"5\r\nhelloXX",
    b"5\r\nhello\n\n", b"5\r\nhello\n\r", b"5\r\rhello\r\n", b"5\n\rhello\r\n", b"5;a\nb\r\nhello\r\n", b"5;a\rb\r\nhello\r\n", b"5\x00\r\nhello\r\n",
    b"5;\x00\r\nhello\r\n", b"5\x0b\r\nhello\r\n", b";5\r\nhello\r\n", b"5,5\r\nhello\r\n", b"'5'\r\nhello\r\n", b"5\\r\\n\r\nhello\r\n",
    b"5 5\r\nhello\r\n", b"h\r\nhello\r\n", b"5\r\nhel\r\n", b"5;a=\x7f\r\nhello\r\n", b"5\xa0\r\nhello\r\n",
]  # fmt: skip


HUGE_CHUNKS = [
    pytest.param(size + b"\r\nhello\r\n", marks=stock_limit("huge-chunk-size"), id=size.decode())
    for size in (b"ffffffffffffffff", b"10000000000000005", b"fffffffffffffffffffffffffffffff5")
]


class TestChunks:
    @pytest.mark.parametrize("bad", BAD_CHUNKS + HUGE_CHUNKS, ids=lambda bad: repr(bad)[2:30])
    def test_first(self, scene, bad):
        safe(scene, head_of(CHUNKED) + bad + b"0\r\n\r\n")

    @pytest.mark.parametrize("bad", BAD_CHUNKS, ids=lambda bad: repr(bad)[2:30])
    def test_after_a_good_one(self, scene, upstream, bad):
        """The head has gone on by then: the upstream sees the body break off, never its end."""
        upstream.answer(lambda exchange: (exchange.read_body(), exchange.send(answer(b"whole"))))
        with scene.client() as client:
            client.send(head_of(CHUNKED) + b"5\r\ngood!\r\n")
            upstream.wait(1)
            client.send(bad + b"0\r\n\r\n" + MARKER)
            check_refused(scene, client, REFUSALS)
        assert not [seen for seen in upstream.requests if seen.complete]

    @pytest.mark.parametrize("size", [b"5", b"005", b"00000005", b"5 ", b"5;a", b"5;a=b", b'5;a="b c"', b"5 ;a", b"5;" + b"a" * 1000],
                             ids=lambda size: size[:12].decode())  # fmt: skip
    def test_good_sizes(self, scene, size):
        """A blank or an extension behind the size is legal or harmless: read as five, or refused."""
        raw = head_of(CHUNKED) + size + b"\r\nhello\r\n0\r\n\r\n"
        assert safe(scene, raw, body=b"hello")[0] in ((200,) if size.isdigit() else (200, 400))

    @pytest.mark.parametrize("extension", [b";" + b"a" * 100_000, b";a=" + b"b" * 300_000])
    def test_endless_extensions(self, scene, upstream, extension):
        with scene.client() as client:
            client.send(head_of(CHUNKED) + b"5" + extension + b"\r\nhello\r\n0\r\n\r\n")
            check_refused(scene, client, REFUSALS)
        assert not [seen for seen in upstream.requests if seen.complete]

    @stock_limit("many-chunk-extensions")
    def test_many_small_extensions(self, scene, upstream):
        """One byte of body for a thousand of extensions, again and again."""
        with scene.client() as client:
            try:
                for _ in range(200):
                    client.send(b"1;" + b"a" * 1000 + b"\r\nx\r\n" if client.received or _ else head_of(CHUNKED))
                client.send(b"0\r\n\r\n")
                response = client.read_response()
            except (OSError, Truncated):
                response = None  # cut off while it still sent
            if response is not None:
                assert response.status in REFUSALS
        assert not [seen for seen in upstream.requests if seen.complete]

    @pytest.mark.parametrize("body", [b"", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"5\r\nhello\r\n0", b"5\r\nhello\r\n0\r\n",
                                      b"5\r\nhello\r\n0\r\nX: y\r\n", b"5\r\nhello\r\n0\r\n\r"])  # fmt: skip
    def test_no_end(self, scene, upstream, body):
        with scene.client() as client:
            client.send(head_of(CHUNKED) + body)
            client.half_close()
            left = rest(client)
            assert not left or left.split(b" ")[1] in (b"400", b"408")
        assert not [seen for seen in upstream.requests if seen.complete]

    def test_a_short_length(self, scene, upstream):
        with scene.client() as client:
            client.send(head_of(b"Content-Length: 10") + b"hello")
            client.half_close()
            left = rest(client)
            assert not left or left.split(b" ")[1] in (b"400", b"408")
        assert not [seen for seen in upstream.requests if seen.complete]

    @pytest.mark.parametrize("trailer", [b"X : y", b" X: y", b"X: y\r\n folded", b"no colon", b": y", b"X: a\nb", b"X: a\rb", b"X: a\x00b",
                                         b"X: y\nGET /evil HTTP/1.1"])  # fmt: skip
    def test_malformed_trailers(self, scene, trailer):
        safe(scene, head_of(CHUNKED) + b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n")

    def test_endless_trailers(self, scene, upstream):
        with scene.client() as client:
            client.send(head_of(CHUNKED) + b"0\r\n")
            try:
                for number in range(2000):
                    client.send(b"X-%d: %s\r\n" % (number, b"a" * 100))
                client.send(b"\r\n")
            except OSError:
                pass  # cut off while it still sent
            left = rest(client)
            assert not left or left.split(b" ")[1] in (b"400", b"431")
        assert not [seen for seen in upstream.requests if seen.complete]


class TestBodiesNobodyReads:
    """CL.0: answers that the gateway makes itself must not leave a body to be read as a request."""

    @pytest.mark.parametrize("target", [b"/unrouted", b"/a/../b", b"/refused/x", b"/-/healthz", b"/-/none"])
    @pytest.mark.parametrize("method", [b"POST", b"GET", b"OPTIONS", b"HEAD", b"DELETE"])
    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_is_drained_or_closed(self, scene, upstream, target, method, is_chunked):
        inner = HIDDEN + b"\r\n\r\n"
        raw = head_of(CHUNKED, target=target, method=method) + chunked(inner) if is_chunked else \
            head_of(b"Content-Length: %d" % len(inner), target=target, method=method) + inner  # fmt: skip
        with scene.client() as client:
            client.send(raw + MARKER)
            assert client.read_response(method).status in (200, 204, 400, 404, 405, 502)
            try:
                assert client.read_response().body == b"ok"
            except (Truncated, ConnectionResetError):
                pass  # closed
        # "/first" is what an earlier test broke off, reaching the upstream late
        assert {seen.target for seen in upstream.requests} <= {b"/marker", b"/first"}

    @pytest.mark.parametrize("target", [b"*", b"/x"])
    def test_of_options_answered_here(self, scene, upstream, target):
        inner = HIDDEN + b"\r\n\r\n"
        with scene.client() as client:
            client.send(head_of(b"Max-Forwards: 0", b"Content-Length: %d" % len(inner), target=target, method=b"OPTIONS") + inner + MARKER)
            assert client.read_response(b"OPTIONS").status == 204
            try:
                assert client.read_response().body == b"ok"
            except (Truncated, ConnectionResetError):
                pass  # closed
        # "/first" is what an earlier test broke off, reaching the upstream late
        assert {seen.target for seen in upstream.requests} <= {b"/marker", b"/first"}

    def test_a_large_one_does_not_hide_the_answer(self, scene, upstream):
        """The refusal must be readable although the client still sends (no RST race)."""
        with scene.client() as client:
            client.send(head_of(b"Content-Length: 1000000", target=b"/unrouted") + b"x" * 300_000)
            assert client.read_response().status == 404


class TestPipelining:
    def test_in_order(self, scene, upstream):
        upstream.answer(lambda exchange: exchange.run([0.05 if b"0" in exchange.request.target else 0.0, answer(exchange.request.target)]))
        with scene.client() as client:
            client.send(b"".join(request(b"/%d" % number) for number in range(10)))
            assert [client.read_response().body for _ in range(10)] == [b"/%d" % number for number in range(10)]

    @pytest.mark.parametrize("bad", [b"GET /evil HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"garbage\r\n\r\n", b"\x00\x01\x02\r\n\r\n",
                                     b"GET /evil\r\n\r\n", b"GET /evil HTTP/1.1\r\nX : y\r\n\r\n"])  # fmt: skip
    def test_the_good_one_first_then_the_refusal(self, scene, upstream, bad):
        upstream.answer([0.1, answer(b"good")])
        with scene.client() as client:
            client.send(request(b"/good") + bad + MARKER)
            assert client.read_response().body == b"good"
            check_refused(scene, client, REFUSALS)
        assert [seen.target for seen in upstream.requests] == [b"/good"]

    def test_nothing_is_done_behind_a_close(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/last", b"Connection: close") + MARKER)
            assert client.read_response().status == 200
            assert client.ended()
        assert [seen.target for seen in upstream.requests] == [b"/last"]

    @stock_limit("close-in-a-list")
    def test_a_list_with_close(self, scene, upstream):
        with scene.client() as client:
            assert client.request(request(b"/", b"Connection: keep-alive, Close")).status == 200
            assert client.ended()

    def test_cut_anywhere(self, scene, upstream):
        data = head_of(CHUNKED) + chunked(b"hello", b"wide world") + request(b"/second", method=b"PUT", body=b"body") + MARKER
        for cut in range(1, len(data), 7):
            upstream.forget()
            with scene.client() as client:
                client.send(data[:cut])
                client.send(data[cut:])
                assert [client.read_response().status for _ in range(3)] == [200] * 3
            assert [seen.target for seen in upstream.requests] == [b"/first", b"/second", b"/marker"]
            assert upstream.bodies == [b"hellowide world", b"body", b""]

    def test_a_framing_error_ends_the_connection(self, scene, upstream):
        with scene.client() as client:
            client.send(head_of(b"Content-Length: x") + MARKER)
            response = check_refused(scene, client)
            assert response.header(b"connection") == b"close"
        assert upstream.requests == []

    @stock_limit("refusal-keeps-open")
    def test_a_bad_host_ends_the_connection(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/", host=b"a b") + MARKER)
            assert client.read_response().status == 400
            assert client.ended(within=2)
        assert upstream.requests == []


class TestUpgradeTricks:
    @pytest.mark.parametrize("lines", [(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Connection: Upgrade, HTTP2-Settings"),
                                       (b"Upgrade: h2c", b"Connection: Upgrade"), (b"Upgrade: HTTP/2.0", b"Connection: upgrade"),
                                       (b"Upgrade: TLS/1.0", b"Connection: upgrade"), (b"Upgrade: foo", b"Connection: upgrade")])  # fmt: skip
    def test_no_tunnel(self, scene, upstream, lines):
        with scene.client() as client:
            response = client.request(request(b"/up", *lines))
            assert response.status in (200, 400, 403, 501)
            assert client.request(request(b"/marker")).status == 200 if response.status == 200 else client.ended()
        for seen in upstream.requests:
            assert seen.values(b"upgrade") == seen.values(b"http2-settings") == []

    @pytest.mark.parametrize("token", [b"websocket", b"h2c", b"foo"])
    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_a_body_of_an_upgrade_is_a_body(self, scene, token, is_chunked):
        inner = HIDDEN + b"\r\n\r\n"
        lines = (b"Upgrade: " + token, b"Connection: Upgrade")
        raw = head_of(*lines, CHUNKED) + chunked(inner) if is_chunked else head_of(*lines, b"Content-Length: %d" % len(inner)) + inner
        safe(scene, raw, body=inner)

    def test_the_http_2_preface(self, scene, upstream):
        with scene.client() as client:
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            check_refused(scene, client, REFUSALS)
        assert upstream.requests == []


@pytest.mark.parametrize("target", [b"/x%0d%0aSet-Cookie:%20evil=1", b"/x?%0d%0aSet-Cookie:%20evil=1", b"/unrouted/%0d%0aevil:%201",
                                    b"/unrouted?%0a%0aevil"])  # fmt: skip
def test_no_splitting_by_encoded_line_ends(scene, upstream, target):
    response = scene.ask(request(target))
    assert response.status in (200, 400, 404)
    assert response.values(b"set-cookie") + response.values(b"evil") == []
    for seen in upstream.requests:
        assert seen.target == target
    assert "\n" not in scene.gateway.logged(target.decode())["target"]
