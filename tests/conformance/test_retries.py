"""Group D, retries: what is tried again, where, and above all what is not (RFC 9110 §9.2.2)."""

from __future__ import annotations

import pytest

from gateway.testing import Act, Exchange, Truncated, answer, chunk, chunked, head
from tests.conformance.harness import check_problem, request

SCENE = "retries"
UPSTREAM_TLS = True
CHUNKED = b"Transfer-Encoding: chunked"


def hits(*upstreams):
    return [seen.target for fake in upstreams for seen in fake.requests]


def warm(scene, prefix=b""):
    """Leave a connection in the pool."""
    assert scene.ask(request(prefix + b"/warm")).status == 200


class TestStale:
    """The upstream closes a kept connection at the moment that it is used again."""

    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
    def test_idempotent_is_tried_again(self, scene, upstream, method, end):
        warm(scene)
        upstream.queue([end])
        target = b"/stale-%s-%s" % (method, end.name.encode())
        response = scene.ask(request(target, method=method))
        assert response.status == 200
        assert hits(upstream) == [b"/warm", target, target]
        assert upstream.requests[1].connection != upstream.requests[2].connection
        assert scene.gateway.logged(target.decode())["attempts"] == 2

    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize("method", [b"POST", b"PATCH", b"DELETE", b"PUT", b"LOCK"])
    def test_others_are_not(self, scene, upstream, method, end):
        warm(scene)
        upstream.queue([end])
        check_problem(scene.ask(request(b"/stale", method=method, body=b"pay")), 502, "upstream_reset")
        assert hits(upstream) == [b"/warm", b"/stale"]

    def test_a_connection_that_was_closed_before_is_not_used(self, scene, upstream):
        """The upstream's FIN is seen at checkout, so that even a POST is safe."""
        warm(scene)
        upstream.hang_up()
        for wire in upstream.connections:
            assert wire.closed
        assert scene.ask(request(b"/fresh", method=b"POST", body=b"pay")).status == 200
        assert hits(upstream) == [b"/warm", b"/fresh"]

    def test_not_once_a_byte_has_come(self, scene, upstream):
        warm(scene)
        upstream.queue([b"H", 0.02, Act.CLOSE])
        check_problem(scene.ask(request(b"/a-byte")), 502, "upstream_reset")
        assert hits(upstream) == [b"/warm", b"/a-byte"]


class TestReset:
    """A fresh connection that ends without a byte."""

    def test_get_is_tried_again(self, scene, upstream):
        upstream.hang_up()
        upstream.queue([Act.RESET])
        assert scene.ask(request(b"/reset")).status == 200
        assert hits(upstream) == [b"/reset"] * 2

    def test_post_is_not(self, scene, upstream):
        upstream.hang_up()
        upstream.queue([Act.RESET])
        check_problem(scene.ask(request(b"/reset", method=b"POST", body=b"pay")), 502, "upstream_reset")
        assert hits(upstream) == [b"/reset"]

    def test_attempts_are_tries_in_all(self, scene, upstream):
        upstream.answer([Act.RESET])
        check_problem(scene.ask(request(b"/reset-all")), 502, "upstream_reset")
        assert hits(upstream) == [b"/reset-all"] * 2
        assert scene.gateway.logged("/reset-all")["attempts"] == 2

    def test_one_attempt_is_none_again(self, scene, upstream):
        upstream.queue([Act.RESET])
        check_problem(scene.ask(request(b"/once")), 502, "upstream_reset")
        assert hits(upstream) == [b"/once"]


class TestConnect:
    """Nothing was sent: any method may go elsewhere."""

    @pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH"])
    def test_another_endpoint_gets_the_whole_body(self, scene, upstream, method):
        body = b"intact" * 5000
        for _ in range(6):
            response = scene.ask(request(b"/half", method=method, body=body))
            assert response.status == 200
        assert upstream.bodies == [body] * 6

    def test_a_chunked_body_too(self, scene, upstream):
        for _ in range(4):
            assert scene.ask(request(b"/half", CHUNKED, method=b"POST") + chunked(b"hello")).status == 200
        assert upstream.bodies == [b"hello"] * 4

    def test_a_body_larger_than_any_buffer_too(self, scene, upstream):
        """Nothing of it was read when the connection failed."""
        body = b"x" * 500_000
        for _ in range(4):
            assert scene.ask(request(b"/half", method=b"POST", body=body)).status == 200
        assert upstream.bodies == [body] * 4

    def test_all_down(self, scene):
        check_problem(scene.ask(request(b"/down")), 502, "connect_refused")

    def test_host_is_the_endpoints_on_each_try(self, scene, upstream):
        for _ in range(4):
            assert scene.ask(request(b"/half-named")).status == 200
        assert {seen.header(b"host") for seen in upstream.requests} == {upstream.authority.encode()}

    def test_the_request_id_is_the_same_on_each_try(self, scene, upstream):
        upstream.queue([Act.RESET])
        upstream.hang_up()
        scene.ask(request(b"/same-id"))
        first, second = upstream.requests
        assert first.header(b"x-request-id") == second.header(b"x-request-id")
        assert first.headers == second.headers


class TestStatuses:
    def test_exhausted_is_the_last_upstreams_answer(self, scene, upstream):
        for fake in scene.upstreams.values():
            fake.answer(answer(b"busy", b"Retry-After: 1", status=503))
        response = scene.ask(request(b"/pair"))
        assert (response.status, response.body, response.header(b"retry-after")) == (503, b"busy", b"1")
        assert response.values(b"gateway-error") == []
        assert len(hits(*scene.upstreams.values())) == 2

    @pytest.mark.parametrize("bad", [answer(b"busy", status=503), [Act.HANG], [Act.RESET]])
    def test_the_other_endpoint_is_next(self, scene, upstream, bad):
        scene.upstreams["other"].answer(bad)
        for _ in range(4):
            assert scene.ask(request(b"/pair")).body == b"ok"
        assert scene.upstreams["other"].requests
        assert len(upstream.requests) == 4

    def test_not_for_other_methods(self, scene, upstream):
        for fake in scene.upstreams.values():
            fake.answer(answer(b"busy", status=503))
        assert scene.ask(request(b"/pair", method=b"POST", body=b"pay")).status == 503
        assert len(hits(*scene.upstreams.values())) == 1

    def test_not_for_other_statuses(self, scene, upstream):
        for fake in scene.upstreams.values():
            fake.answer(answer(b"broken", status=500))
        assert scene.ask(request(b"/pair")).status == 500
        assert len(hits(*scene.upstreams.values())) == 1

    def test_the_refused_answers_connection_is_clean(self, scene, upstream):
        busy = [head(503, CHUNKED), chunk(b"long"), 0.05, chunked(b"body")]
        scene.upstreams["other"].answer(busy)
        for _ in range(4):
            assert scene.ask(request(b"/pair")).body == b"ok"
        scene.upstreams["other"].answer(answer(b"ok"))
        for _ in range(4):
            assert scene.ask(request(b"/pair")).body == b"ok"


class TestBodies:
    def test_a_small_one_is_sent_again(self, scene, upstream):
        upstream.queue([Act.RESET])
        upstream.hang_up()
        assert scene.ask(request(b"/puts", method=b"PUT", body=b"small")).status == 200
        assert upstream.bodies == [b"small", b"small"]

    def test_a_large_one_is_not(self, scene, upstream):
        upstream.queue([Act.RESET])
        upstream.hang_up()
        check_problem(scene.ask(request(b"/puts", method=b"PUT", body=b"x" * 5000)), 502, "upstream_reset")
        assert len(upstream.requests) == 1

    def test_a_large_one_works(self, scene, upstream):
        assert scene.ask(request(b"/puts", method=b"PUT", body=b"x" * 500_000)).status == 200
        assert upstream.bodies == [b"x" * 500_000]

    def test_a_body_that_fails_is_no_failure_of_the_upstream(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/puts/cut", b"Content-Length: 100", method=b"PUT") + b"half")
            client.half_close()
            # An answer is owed to nobody; if one comes, it says that it was the client's fault
            try:
                left = client.read_to_end()
            except ConnectionResetError:
                left = b""
            assert not left or left.startswith(b"HTTP/1.1 400")
        record = scene.gateway.logged("/puts/cut")
        assert record["reason"] in ("client_closed", "bad_request")
        assert not [seen for seen in upstream.requests if seen.complete]


class TestOncePassedOn:
    @pytest.mark.parametrize("end", [Act.CLOSE, Act.RESET])
    def test_no_second_try(self, scene, upstream, end):
        upstream.answer([head(200, b"Content-Length: 10"), b"hello", 0.03, end])
        with scene.client() as client:
            client.send(request(b"/passed-on"))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.read_response()
        assert hits(upstream).count(b"/passed-on") == 1

    def test_a_1xx_that_was_passed_on_is_a_byte(self, scene, upstream):
        upstream.answer([head(103, b"Link: </a>"), 0.03, Act.CLOSE])
        check_problem(scene.ask(request(b"/hinted")), 502, "upstream_reset")
        assert hits(upstream) == [b"/hinted"]


def test_round_robin_over_two(scene, upstream):
    for _ in range(10):
        scene.ask(request(b"/pair"))
    assert len(upstream.requests) == len(scene.upstreams["other"].requests) == 5


def test_an_early_refusal_is_not_tried_again(scene, upstream):
    def refuse(exchange: Exchange) -> None:
        exchange.send(answer(b"no", b"Connection: close", status=503))
        exchange.wire.close()

    for fake in scene.upstreams.values():
        fake.answer(refuse)
    response = scene.ask(request(b"/pair", method=b"POST", body=b"x" * 300_000))
    assert (response.status, response.body) == (503, b"no")
    assert len(hits(*scene.upstreams.values())) == 1
