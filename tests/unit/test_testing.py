"""The fakes themselves, over loopback: what they record, what they refuse to read, how they end things."""

from __future__ import annotations

import threading
from http import HTTPStatus

import pytest

from gateway.model import Endpoint
from gateway.testing import (
    Act,
    Exchange,
    FakeClock,
    FakeProvider,
    FakeUpstream,
    Malformed,
    RawClient,
    Truncated,
    answer,
    chunk,
    chunked,
    head,
)

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def client(upstream):
    with RawClient(upstream.port) as raw:
        yield raw


def test_answers_and_records(upstream, client):
    response = client.request(b"GET /x?y HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nx-one: 2\r\n\r\n")
    assert (response.status, response.reason, response.body, response.framing) == (200, b"OK", b"ok", "length")
    seen = upstream.wait_complete()
    assert (seen.method, seen.target, seen.version) == (b"GET", b"/x?y", b"HTTP/1.1")
    assert seen.headers == [(b"Host", b"a"), (b"X-One", b"1"), (b"x-one", b"2")]
    assert seen.values(b"X-ONE") == [b"1", b"2"]
    with pytest.raises(Malformed):
        seen.header(b"x-one")
    assert upstream.connections[0].received.startswith(b"GET /x?y HTTP")


def test_keeps_the_connection_and_numbers_it(upstream, client):
    client.request(GET)
    client.request(GET)
    with RawClient(upstream.port) as other:
        other.request(GET)
    assert [request.connection for request in upstream.requests] == [0, 0, 1]


def test_bodies_by_length_and_chunked(upstream, client):
    client.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    client.send_pieces(
        [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"he"), chunk(b"llo"),
         b"0\r\nX-T: 1\r\n\r\n"], gap=0.0)  # fmt: skip
    client.read_response()
    assert upstream.bodies == [b"hello", b"hello"]
    assert all(request.complete for request in upstream.requests)
    assert upstream.last.trailers == [(b"X-T", b"1")]


def test_queue_then_path_then_default(upstream, client):
    upstream.queue(answer(b"first"))
    upstream.serve(b"/path", answer(b"path"))
    upstream.answer(answer(b"default"))
    assert client.request(GET.replace(b"/x", b"/path/y")).body == b"path"
    assert client.request(GET).body == b"first"
    assert client.request(GET).body == b"default"
    upstream.forget()
    assert client.request(GET).body == b"ok"
    assert len(upstream.requests) == 1


def test_steps(upstream, client):
    go = threading.Event()
    upstream.queue([head(200, b"Transfer-Encoding: chunked"), chunk(b"a"), go, 0.01, chunk(b"b"), Act.RESET])
    client.send(GET)
    assert client.read_head().status == 200
    assert client.read_exactly(6) == chunk(b"a")
    go.set()
    assert client.read_exactly(6) == chunk(b"b")
    with pytest.raises(ConnectionResetError):
        client.read_to_end()


def test_a_function_decides_before_the_body_came(upstream, client):
    def early(exchange: Exchange) -> None:
        exchange.send(answer(b"no", status=413))
        exchange.wire.close()

    upstream.queue(early)
    response = client.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    assert (response.status, response.reason) == (413, HTTPStatus(413).phrase.encode())
    assert not upstream.last.complete
    assert client.ended(within=5)


def test_a_body_that_breaks_off_is_an_aborted_request(upstream, client):
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
    upstream.wait(1)
    client.close()
    upstream.wait_aborted()
    assert upstream.aborted[0].body == b"hel"
    assert not upstream.aborted[0].complete


def test_hanging_ends_when_the_peer_hangs_up(upstream, client):
    upstream.queue([Act.HANG])
    client.send(GET)
    upstream.wait(1)
    client.reset()
    upstream.wait_aborted()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\nHost: a\r\n\r\n\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"GET /x HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nX: \0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_violation(upstream, client, raw):
    client.send(raw)
    assert client.ended(within=5)
    assert len(upstream.violations) == 1


class TestReading:
    """RawClient is as strict as the upstream."""

    def test_interim_answers_and_trailers(self, upstream, client):
        upstream.queue([head(103, b"Link: </a>"), head(200, b"Transfer-Encoding: chunked"),
                        chunked(b"a", b"b", trailers=[b"X-T: 1"])])  # fmt: skip
        response = client.request(GET)
        assert [interim.status for interim in response.interim] == [103]
        assert (response.body, response.framing, response.trailers) == (b"ab", "chunked", ((b"X-T", b"1"),))

    @pytest.mark.parametrize("status", [204, 304])
    def test_no_body(self, upstream, client, status):
        upstream.queue(head(status))
        assert client.request(GET).framing == "none"

    def test_head_has_no_body(self, upstream, client):
        upstream.queue(head(200, b"Content-Length: 5"))
        response = client.request(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (response.framing, response.header(b"content-length")) == ("none", b"5")

    def test_until_the_connection_ends(self, upstream, client):
        upstream.queue([head(200), b"abc", Act.CLOSE])
        assert (client.request(GET).body, client.ended()) == (b"abc", True)

    def test_a_short_length(self, upstream, client):
        upstream.queue([head(200, b"Content-Length: 5"), b"abc", Act.CLOSE])
        with pytest.raises(Truncated) as broken:
            client.request(GET)
        assert broken.value.partial == b"abc"
        assert broken.value.response is not None
        assert broken.value.response.status == 200

    def test_missing_last_chunk(self, upstream, client):
        upstream.queue([head(200, b"Transfer-Encoding: chunked"), chunk(b"abc"), b"5\r\nx", Act.CLOSE])
        with pytest.raises(Truncated) as broken:
            client.request(GET)
        assert broken.value.partial == b"abcx"

    def test_two_lengths(self, upstream, client):
        upstream.queue([head(200, b"Content-Length: 1", b"Content-Length: 1"), b"a"])
        with pytest.raises(Malformed):
            client.request(GET)

    def test_not_ended(self, client):
        assert not client.ended(within=0.05)


def test_half_close_is_seen_and_answered(upstream, client):
    client.send(GET)
    client.half_close()
    assert client.read_response().body == b"ok"
    assert client.ended()


def test_closing_the_fake_ends_what_hangs(upstream):
    upstream.answer([Act.HANG])
    with RawClient(upstream.port) as client:
        client.send(GET)
        upstream.wait(1)
        upstream.close()
        assert client.ended()
        with pytest.raises(ConnectionRefusedError):
            RawClient(upstream.port)


def test_waiting_in_vain_says_what_was_there(upstream):
    with pytest.raises(AssertionError, match="0 requests"):
        upstream.wait(1, within=0.05)


def test_clock():
    clock = FakeClock(10.0)
    clock.sleep(1.5)
    assert clock.advance(2) == clock() == 13.5
    assert clock.slept == [1.5]


def test_provider_says_what_it_is_told():
    provider = FakeProvider("users")
    with pytest.raises(AssertionError, match="users"):
        provider.give()
    updates, stop = [], threading.Event()
    thread = threading.Thread(target=provider.run, args=(updates.append, stop), daemon=True)
    thread.start()
    assert provider.running.wait(5)
    endpoint = Endpoint("http", "127.0.0.1", 80)
    provider.give(endpoint)
    provider.give()
    provider.fail("down")
    assert [(u.upstream, u.endpoints, u.error) for u in updates] == [
        ("users", (endpoint,), ""), ("users", (), ""), ("users", None, "down")]  # fmt: skip
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
