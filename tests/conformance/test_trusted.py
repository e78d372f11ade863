"""Group A from a trusted proxy: what it says of its client is believed and handed on."""

from __future__ import annotations

import pytest

from tests.conformance.harness import request

SCENE = "trusted"


def seen_for(scene, upstream, *lines):
    scene.ask(request(b"/trusted", *lines))
    return b", ".join(upstream.last.values(b"x-forwarded-for"))


class TestFor:
    @pytest.mark.parametrize(
        ("lines", "seen"),
        [
            ((), b"127.0.0.1"),
            ((b"X-Forwarded-For: 1.2.3.4",), b"1.2.3.4, 127.0.0.1"),
            ((b"X-Forwarded-For: 1.2.3.4, 5.6.7.8", b"x-forwarded-for: 9.9.9.9"), b"1.2.3.4, 5.6.7.8, 9.9.9.9, 127.0.0.1"),
        ],
    )
    def test_is_extended(self, scene, upstream, lines, seen):
        found = seen_for(scene, upstream, *lines)
        assert [part.strip() for part in found.split(b",")] == [part.strip() for part in seen.split(b",")]

    @pytest.mark.parametrize(
        ("value", "client"),
        [
            (b"1.2.3.4", b"1.2.3.4"),
            (b"6.6.6.6, 1.2.3.4", b"1.2.3.4"),
            (b"6.6.6.6, 1.2.3.4, 10.0.0.1", b"1.2.3.4"),
            (b"2001:db8::1", b"2001:db8::1"),
            (b"10.0.0.2, 10.0.0.1", b"10.0.0.2"),
            (b"6.6.6.6, not an address", b"127.0.0.1"),
            (b"6.6.6.6, unknown, 10.0.0.1", b"10.0.0.1"),
            (b"", b"127.0.0.1"),
        ],
    )
    def test_the_clients_address(self, scene, upstream, value, client):
        target = b"/client-%d" % (hash(value) % 1_000_000)
        scene.ask(request(target, b"X-Forwarded-For: " + value))
        assert upstream.last.header(b"x-real-ip") == client
        assert scene.gateway.logged(target.decode())["client"] == client.decode()


class TestProtoHostPort:
    @pytest.mark.parametrize(
        ("lines", "proto", "host", "port"),
        [
            ((), None, b"example.test", None),
            ((b"X-Forwarded-Proto: https",), b"https", b"example.test", b"443"),
            ((b"X-Forwarded-Proto: https", b"X-Forwarded-Port: 8443"), b"https", b"example.test", b"8443"),
            ((b"X-Forwarded-Host: public.test",), None, b"public.test", None),
        ],
    )
    def test_are_believed(self, scene, upstream, lines, proto, host, port):
        """None: what the client spoke to the gateway."""
        scene.ask(request(b"/", *lines))
        seen = upstream.last
        assert seen.header(b"x-forwarded-proto") == (proto or scene.door.scheme)
        assert seen.header(b"x-forwarded-host") == host
        assert seen.header(b"x-forwarded-port") == (port or scene.door.default_port)
        assert seen.header(b"host") == b"example.test"

    def test_an_underscore_is_not(self, scene, upstream):
        scene.ask(request(b"/", b"X_Forwarded_Proto: https"))
        assert upstream.last.header(b"x-forwarded-proto") == scene.door.scheme


class TestForwardedField:
    def test_is_extended_when_there_was_one(self, scene, upstream):
        scene.ask(request(b"/", b"Forwarded: for=1.2.3.4;proto=https"))
        (first, *_, last) = b", ".join(upstream.last.values(b"forwarded")).split(b",")
        assert first == b"for=1.2.3.4;proto=https"
        assert b"for=127.0.0.1" in last.lower()

    def test_is_not_begun(self, scene, upstream):
        scene.ask(request())
        assert upstream.last.values(b"forwarded") == []


class TestRequestId:
    @pytest.mark.parametrize("given", [b"abc", b"A.b_c-9", b"x" * 128])
    def test_is_kept(self, scene, upstream, given):
        scene.ask(request(b"/id-kept", b"X-Request-Id: " + given))
        assert upstream.last.header(b"x-request-id") == given
        scene.gateway.logged("/id-kept", where=lambda record: record["request_id"] == given.decode())

    @pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"a/b", b"a,b", b"\xff", b'"'])
    def test_an_ill_formed_one_is_replaced(self, scene, upstream, given):
        scene.ask(request(b"/", b"X-Request-Id: " + given))
        assert upstream.last.header(b"x-request-id") not in (None, given, b"")


@pytest.mark.parametrize("line", [b"PROXY TCP4 6.6.6.6 127.0.0.1 1 80\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"])
def test_a_proxy_protocol_line_is_not_http(scene, upstream, line):
    with scene.client() as client:
        client.send(line + request())
        response = client.read_response() if not line.startswith(b"\r\n") else None
        if response is not None:
            assert response.status == 400
        assert client.ended()
    assert upstream.requests == []
