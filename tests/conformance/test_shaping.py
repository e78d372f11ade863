"""Redirects, fixed answers, splits, fallbacks and mirrors, from socket to socket."""

from __future__ import annotations

import threading

import pytest

from gateway.testing import answer, chunked
from tests.conformance.harness import check_problem, request

SCENE = "shaping"
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture
def other(scene):
    return scene.upstreams["other"]


class TestRedirect:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_statuses(self, scene, upstream, status):
        response = scene.ask(request(b"/%d?a=%%2f" % status))
        assert response.status == status
        assert response.header(b"location") == scene.door.scheme + b"://example.test/new?a=%2f"
        assert response.body == b""
        assert upstream.requests == []
        record = scene.gateway.logged(f"/{status}?a=%2f")
        assert (record["status"], record["route"], record["reason"]) == (status, f"moved-{status}", None)

    def test_a_body_is_never_the_next_request(self, scene, upstream):
        with scene.client() as client:
            for data in (request(b"/301", method=b"POST", body=request(b"/evil")),
                         request(b"/tea", CHUNKED, method=b"POST") + chunked(request(b"/evil"))):  # fmt: skip
                client.send(data)
                assert client.read_response().status in (301, 418)
            assert client.request(request(b"/marker")).status == 200
        assert [seen.target for seen in upstream.requests] == [b"/marker"]

    @pytest.mark.parametrize(
        ("target", "host", "to"),
        [
            (b"/302", b"example.test:8080", b"%s://example.test:8080/new"),
            (b"/302", b"example.test:%d", b"%s://example.test/new"),
            (b"/old/a//b", b"[::1]:8080", b"%s://[::1]:8080/new/a//b"),
            (b"/port/x", b"example.test:8080", b"https://example.test:8443/port/x"),
        ],
    )
    def test_ports(self, scene, upstream, target, host, to):
        host = host % int(scene.door.default_port) if b"%" in host else host
        to = to % scene.door.scheme if b"%" in to else to
        assert scene.ask(request(target, host=host)).header(b"location") == to

    def test_no_loop(self, scene, upstream):
        """What is https already is served by the next route."""
        response = scene.ask(request(b"/x?y", host=b"secure.test"))
        if scene.door.tls:
            assert response.status == 200
            assert [seen.target for seen in upstream.requests] == [b"/x?y"]
        else:
            assert (response.status, response.header(b"location")) == (301, b"https://secure.test/x?y")
            assert upstream.requests == []

    def test_a_path_splits_no_answer(self, scene, upstream):
        response = scene.ask(request(b"/old/%0d%0aSet-Cookie:a=b?%0d%0a"))
        assert response.header(b"location") == scene.door.scheme + b"://example.test/new/%0d%0aSet-Cookie:a=b?%0d%0a"
        assert response.values(b"set-cookie") == []


class TestRespond:
    def test_a_fixed_answer(self, scene, upstream):
        with scene.client() as client:
            response = client.request(request(b"/tea"))
            assert (response.status, response.body) == (418, b"short and stout")
            assert response.header(b"content-type") == b"text/plain"
            client.send(request(b"/tea", method=b"HEAD"))
            response = client.read_response(b"HEAD")
            assert (response.status, response.header(b"content-length")) == (418, b"15")
            response = client.request(request(b"/nothing", method=b"POST", body=b"unread"))
            assert (response.status, response.framing) == (204, "none")
            assert client.request(request(b"/marker")).status == 200
        assert [seen.target for seen in upstream.requests] == [b"/marker"]


class TestSplit:
    def test_a_cookie_stays_with_its_upstream(self, scene, upstream, other):
        users = [b"Cookie: a=b; user=u%d" % number for number in range(12)]
        for user in users * 2:
            assert scene.ask(request(b"/split", user)).status == 200
        seen = [sorted(one.header(b"cookie") for one in fake.requests) for fake in (upstream, other)]
        assert all(seen)
        assert seen[0][::2] == seen[0][1::2]
        assert seen[1][::2] == seen[1][1::2]
        assert not set(seen[0]) & set(seen[1])

    def test_weight_0_gets_nothing(self, scene, upstream, other):
        for _ in range(5):
            assert scene.ask(request(b"/drained")).status == 200
        assert (len(upstream.requests), len(other.requests)) == (0, 5)
        assert scene.gateway.logged("/drained")["upstream"] == "other"


class TestFallback:
    def test_another_upstream_stands_in(self, scene, upstream):
        assert scene.ask(request(b"/covered/x")).status == 200
        assert upstream.last.target == b"/x"
        record = scene.gateway.logged("/covered/x")
        assert (record["status"], record["upstream"], record["reason"]) == (200, "main", None)
        assert record["cause"] == "no endpoint of covered, empty-too: main stands in"

    def test_without_one(self, scene, upstream):
        check_problem(scene.ask(request(b"/empty")), 503, "no_endpoint")
        assert upstream.requests == []


class TestMirror:
    @pytest.mark.parametrize("framed", [b"length", b"chunked", b"none"])
    def test_the_same_modified_request(self, scene, upstream, other, framed):
        data = {
            b"length": request(b"/mirror/a?b", b"Gateway-Mirror: mine", method=b"POST", body=b"pay" * 1000),
            b"chunked": request(b"/mirror/a?b", CHUNKED, method=b"POST") + chunked(b"pay" * 999, b"pay"),
            b"none": request(b"/mirror/a?b", b"Accept: x/y"),
        }[framed]
        response = scene.ask(data)
        assert (response.status, response.body) == (200, b"ok")
        other.wait(1)
        copied = other.wait_complete()
        first = upstream.last
        assert (copied.method, copied.target, copied.body) == (first.method, first.target, first.body)
        assert copied.body == (b"" if framed == b"none" else b"pay" * 1000)
        assert copied.header(b"gateway-mirror") == b"mirror"
        assert first.values(b"gateway-mirror") == []
        for name in (b"host", b"accept", b"x-forwarded-for", b"x-forwarded-prefix", b"x-request-id", b"via"):
            assert copied.values(name) == first.values(name)

    def test_slow_or_failing_it_delays_and_alters_nothing(self, scene, upstream, other):
        go = threading.Event()
        other.answer([go, answer(b"late", b"X-Late: yes", status=500)])
        try:
            for target in (b"/mirror/slow", b"/mirror-refused", b"/mirror-none"):
                response = scene.ask(request(target))
                assert (response.status, response.body, response.values(b"x-late")) == (200, b"ok", [])
            other.wait(1)
        finally:
            go.set()
        assert len(upstream.requests) == 3
        assert scene.gateway.logged("/mirror-none")["upstream"] == "main"
        assert [seen.target for seen in other.requests] == [b"/slow"]
        # No lines for copies.
        assert [one["upstream"] for one in scene.gateway.records() if one["target"] == "/mirror/slow"] == ["main"]
