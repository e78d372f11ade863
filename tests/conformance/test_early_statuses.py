"""An upstream answers with a status that is retried while the client's upload still runs.

Rule: whatever the first upstream does, an upstream that takes a request for complete has exactly the client's
bytes, and a connection that was not sent all of its request carries no other one.
"""

from __future__ import annotations

import threading

import pytest

from gateway.testing import PATIENCE, Act, Exchange, RawClient, answer, chunk, chunked, head
from tests.conformance.harness import request

SCENE = "early"
UPSTREAM_TLS = True
CHUNKED = b"Transfer-Encoding: chunked"
# Lines that tell where they belong.
BODY = b"".join(b"%06d\n" % number for number in range(1000))
HALF = 2100
MOST_KEPT = 16 * 1024

BUSY = {
    "without its end": head(503, CHUNKED) + chunk(b"busy"),
    "whole": answer(b"busy", status=503),
    "whole and chunked": head(503, CHUNKED) + chunked(b"bu", b"sy"),
    "by the end of the connection": head(503, b"Connection: close") + b"busy",
}
ALL_BUSY = pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)


class Early:
    """A script: answer as soon as the first bytes of the body are here; then read on, as a server does that
    reads the rest of the body before the next request. `answered` is set once the answer is out."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.answered = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        while len(exchange.request.body) < HALF // 2:
            exchange.read_piece()
        exchange.send(self._sent)
        self.answered.set()
        exchange.read_body()


def put(target: bytes, *lines: bytes, body: bytes = BODY) -> bytes:
    return request(target, b"Content-Length: %d" % len(body), *lines, method=b"PUT")


def upload(client: RawClient, raw_head: bytes, early: Early, body: bytes = BODY) -> None:
    """Send half, and the rest once the early answer is out, piece by piece."""
    client.send(raw_head + body[:HALF])
    assert early.answered.wait(PATIENCE)
    client.send_pieces((body[start : start + 1000] for start in range(HALF, len(body), 1000)), gap=0.005)


def ask(scene, target: bytes, early: Early):
    with scene.client() as client:
        upload(client, put(target), early)
        return client.read_response()


@ALL_BUSY
def test_another_endpoint_gets_the_whole_body(scene, upstream, busy):
    """Round robin begins anywhere: whoever is first is busy."""
    early = Early(busy)
    for fake in scene.upstreams.values():
        fake.queue(early)
    answered = ask(scene, b"/pair/x", early)
    if answered.status == 503:
        # Both were first once: the second one was asked as the second attempt.
        answered = ask(scene, b"/pair/x", early)
    assert (answered.status, answered.body) == (200, b"ok")
    whole = [seen for fake in scene.upstreams.values() for seen in fake.requests if seen.complete]
    assert whole
    assert {seen.body for seen in whole} == {BODY}


@ALL_BUSY
@pytest.mark.parametrize("target", [b"/single/x", b"/narrow/x"])
def test_the_same_endpoint_gets_the_whole_body(scene, upstream, busy, target):
    """With `max_connections: 1` the first answer must not keep the only connection."""
    early = Early(busy)
    upstream.queue(early)
    answered = ask(scene, target, early)
    assert (answered.status, answered.body) == (200, b"ok")
    assert len(upstream.requests) == 2
    assert upstream.last.complete
    assert upstream.last.body == BODY
    record = scene.gateway.logged(target.decode())
    assert (record["attempts"], record["status"], record["bytes_in"]) == (2, 200, len(BODY))


@pytest.mark.parametrize("size", [MOST_KEPT, MOST_KEPT + 1])
@pytest.mark.parametrize("framed", ["by its length", "in chunks"])
def test_a_long_answer_is_passed_on_instead(scene, upstream, size, framed):
    busy = b"x" * size
    early = Early(answer(busy, status=503) if framed == "by its length" else head(503, CHUNKED) + chunked(busy))
    upstream.queue(early)
    answered = ask(scene, b"/narrow/long", early)
    if size > MOST_KEPT:
        assert (answered.status, answered.body) == (503, busy)
        assert len(upstream.requests) == 1
    else:
        assert (answered.status, answered.body) == (200, b"ok")
    # Nothing is held back of the only connection.
    assert scene.ask(request(b"/narrow/next")).body == b"ok"


@pytest.mark.parametrize("target", [b"/single/c", b"/narrow/c"])
def test_a_chunked_body_is_not_sent_twice(scene, upstream, target):
    early = Early(BUSY["whole"])
    upstream.queue(early)
    with scene.client() as client:
        client.send(request(target, CHUNKED, method=b"PUT") + chunk(BODY[:HALF]))
        assert early.answered.wait(PATIENCE)
        got = client.read_response()
    assert (got.status, got.body) == (503, b"busy")
    assert len(upstream.requests) == 1
    assert scene.ask(request(b"/narrow/next")).body == b"ok"


@ALL_BUSY
@pytest.mark.parametrize("leave", ["reset", "close"])
@pytest.mark.own_worker("only it notices a client that leaves")
def test_a_client_that_leaves_leaves_nothing_behind(scene, upstream, busy, leave, request_id):
    """It hangs up inside its body, when the first upstream has answered and the second waits for the rest."""
    early = Early(busy)
    upstream.queue(early)
    target = b"/narrow/" + request_id
    with scene.client() as client:
        client.send(put(target) + BODY[:HALF])
        assert early.answered.wait(PATIENCE)
        upstream.until(lambda: len(upstream.requests) == 2)
        getattr(client, leave)()
    assert scene.gateway.logged(target.decode())["reason"] == "client_closed"
    upstream.until(lambda: not any(seen.complete for seen in upstream.requests))
    # The one connection that may be is free again.
    assert scene.ask(put(b"/narrow/next") + BODY).body == b"ok"
    assert upstream.last.body == BODY


def test_the_next_request_is_never_read_as_the_rest_of_a_body(scene, upstream):
    """Both upstreams answer early, and read as many bytes as were announced. What reaches them behind the half of
    this client's body is this client's."""
    early, second = Early(BUSY["without its end"]), Early(answer(b"taken"))
    upstream.queue(early, second)
    with scene.client() as client:
        client.send(put(b"/single/a") + BODY[:HALF])
        assert second.answered.wait(PATIENCE)
        got = client.read_response()
        assert (got.status, got.body) == (200, b"taken")
        # Another client on the same upstream, while the upload of the first is not complete.
        secret = request(b"/single/b", b"Authorization: Bearer secret")
        assert scene.ask(secret).body == b"ok"
    for seen in upstream.requests:
        assert BODY.startswith(seen.body)
        assert b"secret" not in seen.body


@ALL_BUSY
def test_when_all_are_busy_the_last_answer_is_the_clients(scene, upstream, busy):
    early, last = Early(busy), Early(answer(b"still busy", b"Retry-After: 7", status=503))
    upstream.queue(early, last)
    with scene.client() as client:
        client.send(put(b"/twice/x") + BODY[:HALF])
        assert last.answered.wait(PATIENCE)
        got = client.read_response()
    assert (got.status, got.body, got.header(b"retry-after")) == (503, b"still busy", b"7")
    assert scene.ask(request(b"/twice/next")).body == b"ok"


@pytest.mark.parametrize("then", [[Act.RESET], [Act.CLOSE]])
def test_the_kept_answer_goes_out_when_the_next_attempt_fails(scene, upstream, then):
    """It was read whole before: its connection may be gone by now."""
    early = Early(answer(b"busy", b"Retry-After: 7", status=503))

    def fail(exchange: Exchange) -> None:
        exchange.run(then)

    upstream.queue(early, fail)
    with scene.client() as client:
        client.send(put(b"/twice/y") + BODY[:HALF])
        assert early.answered.wait(PATIENCE)
        got = client.read_response()
    assert (got.status, got.body, got.header(b"retry-after")) == (503, b"busy", b"7")


@pytest.fixture
def request_id(request: pytest.FixtureRequest) -> bytes:
    """A word that is another one for each test."""
    return b"%x" % (hash(request.node.nodeid) & 0xFFFFFFFF)
