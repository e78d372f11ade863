"""Group C: 1xx answers and `Expect` (RFC 9110 §10.1.1, §15.2)."""

from __future__ import annotations

import threading

import pytest

from gateway.testing import Act, Exchange, answer, head
from tests.conformance.harness import check_problem, request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "streaming"
UPSTREAM_TLS = True
EXPECT = b"Expect: 100-continue"


class TestExpect:
    def test_one_100_and_then_the_answer(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/", EXPECT, b"Content-Length: 5", method=b"POST"))
            interim = client.read_head()
            assert interim.status == 100
            client.send(b"hello")
            response = client.read_response()
            assert (response.status, response.interim) == (200, ())
            assert client.request(request(b"/after")).status == 200
        assert upstream.requests[0].body == b"hello"

    def test_the_body_may_come_without_waiting(self, scene, upstream):
        with scene.client() as client:
            response = client.request(request(b"/", EXPECT, method=b"POST", body=b"hello"))
            assert response.status == 200
            assert len(response.interim) <= 1
            assert client.request(request(b"/after")).interim == ()
        assert upstream.requests[0].body == b"hello"

    @pytest.mark.parametrize("word", [b"100-Continue", b"100-CONTINUE"])
    def test_in_any_case(self, scene, upstream, word):
        with scene.client() as client:
            client.send(request(b"/", b"Expect: " + word, b"Content-Length: 2", method=b"PUT"))
            assert client.read_head().status == 100
            client.send(b"hi")
            assert client.read_response().status == 200

    def test_without_a_body(self, scene, upstream):
        response = scene.ask(request(b"/", EXPECT))
        assert response.status == 200
        assert len(response.interim) <= 1

    def test_an_upstream_that_says_100_too(self, scene, upstream):
        def eager(exchange: Exchange) -> None:
            exchange.send(head(100, reason=b"Continue"))
            exchange.read_body()
            exchange.send(answer(b"ok"))

        upstream.answer(eager)
        with scene.client() as client:
            client.send(request(b"/", EXPECT, b"Content-Length: 5", method=b"POST"))
            assert client.read_head().status == 100
            client.send(b"hello")
            response = client.read_response()
            assert (response.status, response.interim) == (200, ())

    @stock_limit("continue-upstream-refuses")
    @pytest.mark.parametrize("status", [401, 413, 417])
    def test_the_upstreams_refusal_comes_instead(self, scene, upstream, status):
        def refuse(exchange: Exchange) -> None:
            exchange.send(answer(b"no", b"Connection: close", status=status))
            exchange.wire.close()

        upstream.queue(refuse)
        with scene.client() as client:
            client.send(request(b"/early", EXPECT, b"Content-Length: 5", method=b"POST"))
            response = client.read_response()
            assert (response.status, response.body, response.interim) == (status, b"no", ())

    @stock_limit("continue-gateway-refuses")
    @pytest.mark.parametrize(("target", "status", "reason"), [(b"/unrouted", 404, "no_route"), (b"/a/../b", 400, "bad_path"),
                                                             (b"/refused", 502, "connect_refused")])  # fmt: skip
    def test_the_gateways_refusal_comes_instead(self, scene, target, status, reason):
        with scene.client() as client:
            client.send(request(target, EXPECT, b"Content-Length: 5", method=b"POST"))
            response = client.read_response()
            check_problem(response, status, reason)
            assert response.interim == ()
            assert client.ended(), "whether a body follows is not known"

    def test_of_an_http_1_0_client(self, scene, upstream):
        with scene.client() as client:
            response = client.request(request(b"/", EXPECT, method=b"POST", body=b"hello", version=b"HTTP/1.0"))
            assert (response.status, response.interim) == (200, ())
        assert upstream.requests[0].body == b"hello"

    @stock_limit("expect-list")
    @pytest.mark.parametrize("value", [b"100-continue, 100-continue", b",", b""])
    def test_a_list(self, scene, upstream, value):
        """RFC 9110 §10.1.1: a list, of which an empty one expects nothing."""
        with scene.client() as client:
            response = client.request(request(b"/", b"Expect: " + value, method=b"POST", body=b"hello"))
            assert response.status == 200
        assert upstream.wait_complete().body == b"hello"

    @pytest.mark.parametrize("value", [b"200-ok", b"100-continue, other", b"x"])
    def test_anything_else(self, scene, upstream, value):
        with scene.client() as client:
            client.send(request(b"/", b"Expect: " + value, b"Content-Length: 5", method=b"POST"))
            response = client.read_response()
            assert response.status == 417
            if scene.door.own:
                check_problem(response, 417, "expectation_failed")
        assert upstream.requests == []


HINT = head(103, b"Link: </a.css>; rel=preload", reason=b"Early Hints")
PROCESSING = head(102, reason=b"Processing")


class TestInterim:
    @pytest.mark.parametrize("gap", [0.0, 0.05])
    @pytest.mark.parametrize("interim", [HINT, PROCESSING, head(100, reason=b"Continue"), head(199, b"X: y", reason=b"Odd")])
    def test_then_the_answer_and_the_next_one(self, scene, upstream, interim, gap):
        final = answer(b"first")
        upstream.queue([interim + final] if not gap else [interim, gap, final])
        upstream.answer(answer(b"second"))
        with scene.client() as client:
            response = client.request(request())
            assert (response.status, response.body) == (200, b"first")
            assert client.request(request()).body == b"second"
        assert scene.ask(request()).body == b"second"

    @stock_limit("interim-answers")
    def test_a_hint_reaches_the_client_at_once(self, scene, upstream):
        go = threading.Event()
        upstream.answer([HINT, go, answer(b"ok")])
        with scene.client(timeout=2) as client:
            client.send(request())
            interim = client.read_head()
            assert (interim.status, interim.header(b"link")) == (103, b"</a.css>; rel=preload")
            go.set()
            assert client.read_response().body == b"ok"

    @stock_limit("early-hints")
    def test_each_in_order(self, scene, upstream):
        links = [b"Link: </a>", b"Link: </b>", b"Link: </c>"]
        upstream.answer(
            [PROCESSING, head(103, *links[:1]), head(103, *links[:2]), 0.02, head(200, b"Content-Length: 2", *links), b"ok"]
        )
        response = scene.ask(request())
        assert [it.status for it in response.interim] == [102, 103, 103]
        assert [len(it.values(b"link")) for it in response.interim] == [0, 1, 2]
        assert response.values(b"link") == [b"</a>", b"</b>", b"</c>"]
        assert response.body == b"ok"

    @stock_limit("early-hints")
    def test_hop_by_hop_fields_do_not_pass(self, scene, upstream):
        upstream.answer([head(103, b"Link: </a>", b"Connection: X-Hop, keep-alive", b"X-Hop: 1", b"Keep-Alive: timeout=5"),
                         answer(b"ok")])  # fmt: skip
        response = scene.ask(request())
        assert response.interim[0].header(b"link") == b"</a>"
        assert response.interim[0].values(b"x-hop") + response.interim[0].values(b"keep-alive") == []

    def test_not_to_an_http_1_0_client(self, scene, upstream):
        upstream.answer([PROCESSING, HINT, answer(b"ok")])
        response = scene.ask(request(version=b"HTTP/1.0"))
        assert (response.status, response.body, response.interim) == (200, b"ok", ())

    def test_five_100s(self, scene, upstream):
        upstream.queue([head(100, reason=b"Continue") * 5 + answer(b"first")])
        with scene.client() as client:
            assert client.request(request()).body == b"first"
            assert client.request(request()).body == b"ok"

    @stock_limit("hints-then-nothing")
    def test_hints_and_then_nothing(self, scene, upstream):
        upstream.answer([HINT * 5, Act.HANG])
        with scene.client() as client:
            client.send(request(b"/patient/hints"))
            upstream.wait(1)
            client.close()
        upstream.wait_aborted(within=3)
        assert scene.gateway.logged("/patient/hints")["status"] == 499

    def test_hints_and_then_the_end(self, scene, upstream):
        upstream.answer([HINT, Act.CLOSE])
        check_problem(scene.ask(request(method=b"POST", body=b"x")), 502, "upstream_reset")

    def test_a_flood_of_hints_is_bounded(self, scene, upstream):
        """Either all of them pass or the upstream is given up; the gateway does not read for ever."""
        upstream.answer([HINT * 5000, answer(b"ok")])
        response = scene.ask(request())
        assert response.status in (200, 502)

    def test_a_hint_with_a_body_of_its_own(self, scene, upstream):
        """A 1xx has no body (RFC 9110 §15.2): what follows is no answer."""
        upstream.answer([head(103, b"Content-Length: 5") + b"hello" + answer(b"ok"), Act.CLOSE])
        response = scene.ask(request(method=b"POST", body=b"x"))
        assert response.status == 502


class TestUnasked101:
    @pytest.mark.parametrize("lines", [(b"Upgrade: websocket", b"Connection: Upgrade"), ()])
    def test_is_a_bad_answer(self, scene, upstream, lines):
        upstream.answer([head(101, *lines) + b"raw bytes", Act.HANG])
        with scene.client() as client:
            client.send(request())
            check_problem(client.read_response(), 502, "bad_response")
        upstream.wait_aborted()
