"""One exchange after another over loopback: what an answer is, which error a failure is, and that nothing of
one answer ever reaches another request."""

from __future__ import annotations

import random
import socket
import threading

import gevent
import pytest
from gevent import event

from gateway.errors import (
    BadResponse,
    ClientClosed,
    ConnectRefused,
    ConnectReset,
    GatewayError,
    NoNetworkRoute,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
    UpstreamTruncated,
)
from gateway.testing import Act, FakeUpstream, Wire, answer, chunk, chunked, head
from gateway.transport.pool import FRESH
from tests.exchanges import Line, Pieces, finish, request, soon, whole

CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake
        assert fake.violations == []


@pytest.fixture
def line(upstream):
    made = Line(upstream.host, upstream.port)
    yield made
    made.close()
    soon(lambda: made.counts == (0, 0, 0))


class TestReuse:
    @pytest.mark.parametrize(
        "script",
        [answer(b"hi"), head(200, CHUNKED) + chunked(b"h", b"i"), [head(200, b"Content-Length: 2"), 0.02, b"hi"]],
    )
    def test_a_whole_answer_leaves_its_connection(self, upstream, line, script):
        upstream.answer(script)
        assert [line.ask().reused for _ in range(5)] == [False, True, True, True, True]
        assert len(upstream.connections) == 1

    @pytest.mark.parametrize(
        "script",
        [
            answer(b"hi", b"Connection: close"),
            b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            [head(200) + b"hi", Act.CLOSE],
            answer(b"hi") + b"x",
            answer(b"hi") + answer(b"stolen"),
            answer(b"hi") + b"\r\n",
            head(200, CHUNKED) + chunked(b"hi") + answer(b"stolen") * 2,
            answer(b"hi", b"WWW-Authenticate: Negotiate abc"),
        ],
    )
    def test_a_doubtful_one_does_not(self, upstream, line, script):
        upstream.answer(script)
        for _ in range(3):
            got = line.ask()
            assert (got.status, got.body, got.reused) == (200, b"hi", False)

    def test_one_that_a_request_bound_to_a_user_does_not(self, upstream, line):
        line.ask(shareable=False)
        assert not line.ask().reused

    @pytest.mark.parametrize("gap", [0.0, 0.02])
    @pytest.mark.parametrize(("method", "told"), [(b"HEAD", b"Content-Length: 7"), (b"GET", b"")])
    def test_a_body_where_none_may_be(self, upstream, line, method, told, gap):
        """In the same packet and a little later."""
        first = head(200, told) if method == b"HEAD" else head(304, b"Content-Length: 7")
        upstream.queue([first + b"garbage"] if not gap else [first, gap, b"garbage"])
        assert line.ask(request(method)).body == b""
        if gap:
            soon(lambda: line.counts == (0, 0, 0))
        got = line.ask()
        assert (got.status, got.body, got.reused) == (200, b"ok", False)

    def test_a_body_that_comes_after_the_next_request(self, upstream, line):
        """Nobody can tell it from an answer; it is no HTTP, though."""

        def late(exchange):
            exchange.send(head(200, b"Content-Length: 7"))
            exchange.wire.fill()  # the next request
            exchange.send(b"garbage")

        upstream.queue(late)
        line.ask(request(b"HEAD"))
        with pytest.raises(BadResponse):
            line.ask()
        assert line.ask().body == b"ok"

    def test_an_answer_nobody_asked_for_ends_an_idle_connection(self, upstream, line):
        said = event.Event()

        def twice(exchange):
            exchange.send(answer(b"mine"))
            said.wait()
            exchange.send(answer(b"stolen"))
            exchange.hang()

        upstream.queue(twice)
        assert line.ask().body == b"mine"
        said.set()
        soon(lambda: line.counts == (0, 0, 0))
        assert line.ask().body == b"ok"

    def test_a_connection_closed_while_idle_is_dropped_at_once(self, upstream, line):
        line.ask()
        assert line.counts == (1, 1, 0)
        upstream.hang_up()
        soon(lambda: line.counts == (0, 0, 0))

    def test_the_freshest_is_lent_first(self, upstream, line):
        upstream.answer([head(200, b"Content-Length: 2"), 0.03, b"ok"])
        finish(gevent.spawn(line.ask) for _ in range(3))
        assert line.counts == (3, 3, 0)
        last = line.pool._idle[-1]
        line.ask()
        assert line.pool._idle[-1] is last

    def test_what_may_not_be_replayed_takes_a_fresh_connection(self, upstream, line):
        line.ask()
        assert line.ask(request(b"POST", b"x"), replayable=False).reused
        line.pool._idle[-1].idle_since -= FRESH
        assert not line.ask(request(b"POST", b"x"), replayable=False).reused
        assert line.counts == (2, 2, 0)
        for connection in line.pool._idle:
            connection.idle_since -= FRESH
        assert line.ask().reused

    def test_early_bytes_of_an_answer_in_many_packets(self, upstream, line):
        data = head(200, CHUNKED) + chunked(b"hello", b"world")
        upstream.answer([step for at in range(len(data)) for step in (data[at : at + 1], 0.0)])
        assert line.ask().body == b"helloworld"
        assert line.ask().reused

    def test_interim_answers_go_on_at_once(self, upstream, line):
        seen, go = [], threading.Event()
        upstream.answer([head(103, b"Link: </a>"), go, head(102), head(103), answer(b"x")])

        def interim(status, headers):
            seen.append((status, headers))
            go.set()

        assert line.ask(request(interim=interim)).body == b"x"
        assert seen == [(103, [(b"Link", b"</a>")]), (102, []), (103, [])]
        assert line.ask().reused

    @pytest.mark.parametrize("gap", [0.0, 0.03])
    def test_interim_answers_nobody_listens_to(self, upstream, line, gap):
        upstream.answer([head(103), gap, head(100), gap, answer(b"x")])
        for reused in (False, True):
            got = line.ask()
            assert (got.body, got.reused) == (b"x", reused)


class TestFailures:
    """Which error, and whether the request may be sent again."""

    def refused(self, line, asked=None, **how):
        with pytest.raises(GatewayError) as seen:
            line.ask(asked, **how)
        soon(lambda: line.counts[0] == line.counts[1])
        return seen.value

    @pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
    def test_a_fresh_connection_without_a_byte(self, upstream, line, act):
        upstream.answer([act])
        error = self.refused(line)
        assert type(error) is UpstreamReset
        assert (error.reason, error.retry_as, error.may_have_been_sent) == ("upstream_reset", "reset", True)

    @pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
    def test_a_reused_connection_without_a_byte(self, upstream, line, act):
        line.ask()
        upstream.answer([act])
        error = self.refused(line)
        assert type(error) is UpstreamStale
        assert (error.reason, error.retry_as, error.may_have_been_sent) == ("upstream_reset", "stale", True)

    @pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize("reused", [True, False])
    def test_in_the_middle_of_the_head(self, upstream, line, act, reused):
        if reused:
            line.ask()
        upstream.answer([b"HTTP/1.1 200 OK\r\nX: ", 0.02, act])
        error = self.refused(line)
        assert type(error) is UpstreamCut
        assert (error.reason, error.retry_as) == ("upstream_reset", None)

    def test_after_an_interim_answer(self, upstream, line):
        upstream.answer([head(103), Act.CLOSE])
        assert type(self.refused(line)) is UpstreamCut

    @pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
    @pytest.mark.parametrize(
        "begun",
        [head(200, b"Content-Length: 10") + b"hello", head(200, CHUNKED) + chunk(b"hello"), head(200, CHUNKED) + b"5"],
    )
    def test_in_the_middle_of_the_body(self, upstream, line, act, begun):
        upstream.answer([begun, 0.02, act])
        error = self.refused(line)
        assert isinstance(error, UpstreamTruncated)
        assert line.endpoint.address in error.cause

    def test_a_reset_ends_no_body_properly(self, upstream, line):
        upstream.answer([head(200) + b"hello", 0.02, Act.RESET])
        assert isinstance(self.refused(line), UpstreamTruncated)

    @pytest.mark.parametrize("wrong", [b"ZZ\r\n", b"5\r\nhellooo\r\n", b"fffffffffffffffff\r\n"])
    def test_a_bad_chunk_after_the_head(self, upstream, line, wrong):
        upstream.answer([head(200, CHUNKED) + chunk(b"good"), 0.03, wrong, Act.HANG])
        response = line.send()
        assert response.data == b"good"
        with pytest.raises(UpstreamTruncated):
            whole(response)
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()

    @pytest.mark.parametrize(
        "bad", [b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\nA b\n\n", head(200, CHUNKED) + b"ZZ\r\n", head(101)]
    )
    def test_malformed(self, upstream, line, bad):
        upstream.answer([bad, Act.HANG])
        error = self.refused(line)
        assert isinstance(error, BadResponse)
        assert (error.status, error.reason, error.retry_as) == (502, "bad_response", None)
        assert line.endpoint.address in error.cause
        upstream.wait_aborted()

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        line = Line("127.0.0.1", port)
        error = self.refused(line)
        assert isinstance(error, ConnectRefused)
        assert not error.may_have_been_sent
        assert "ECONNREFUSED" in error.cause
        assert f"127.0.0.1:{port}" in error.cause

    def test_a_connection_that_is_reset_before_it_is_used(self):
        """Somebody listens there, so that nobody refused; and nothing was sent."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            line = Line(*listener.getsockname())
            asking = gevent.spawn(line.ask)
            gevent.sleep(0)  # now it dials; it learns what came of it at the hub's next turn
            Wire(listener.accept()[0]).reset()
            with pytest.raises(ConnectReset) as seen:
                asking.get()
        error = seen.value
        assert (error.status, error.reason, error.retry_as, error.may_have_been_sent) == (502, "upstream_reset", "connect", False)
        assert line.counts == (0, 0, 0)

    def test_no_way_there(self):
        """Nobody may send to the broadcast address over TCP: refused by our own kernel, at once."""
        error = self.refused(Line("255.255.255.255", 80))
        assert isinstance(error, NoNetworkRoute)
        assert not error.may_have_been_sent

    def test_ipv6(self):
        with FakeUpstream(host="::1") as fake:
            line = Line("::1", fake.port)
            assert line.ask().body == b"ok"
            line.close()

    def test_the_client_goes_away_while_we_wait(self, upstream, line):
        """The door throws into the greenlet that sends."""
        upstream.answer([Act.HANG])
        asking = gevent.spawn(line.ask)
        upstream.wait(1)
        gevent.get_hub().loop.run_callback(asking.throw, ClientClosed("gone"))
        assert isinstance(finish([asking])[0], ClientClosed)
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()

    def test_the_client_goes_away_while_the_answer_comes(self, upstream, line):
        upstream.answer([head(200, b"Content-Length: 10") + b"hello", Act.HANG])
        line.send().stream.close()
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()

    def test_closing_twice_counts_once(self, upstream, line):
        ended = []
        upstream.answer([head(200, b"Content-Length: 10") + b"hello", Act.HANG])
        response = line.send()
        response.stream.on_end = lambda: ended.append(1)
        response.stream.close()
        response.stream.close()
        with pytest.raises(UpstreamTruncated):  # and never b"", the proper end
            response.stream.read()
        assert (ended, line.counts) == ([1], (0, 0, 0))


class TestNobodyGetsAnothersAnswer:
    def hostile(self, chooser):
        """An upstream that answers properly, or adds what it should not."""

        def script(exchange):
            exchange.read_body()
            name = exchange.request.target[1:]
            proper = answer(b"for " + name)
            chunks = head(200, CHUNKED) + chunked(b"for ", name)
            evil = answer(b"stolen from " + name)
            choice = chooser.randrange(12)
            if choice == 0:
                exchange.run([proper + evil])
            elif choice == 1:
                exchange.run([proper, evil, evil])
            elif choice == 2:
                exchange.run([proper, evil, Act.CLOSE])
            elif choice == 3:
                exchange.run([chunks + evil + evil])
            elif choice == 4:
                exchange.run([head(204) + evil])
            elif choice == 5:
                exchange.run([proper[:-1], 0.002, Act.RESET])
            elif choice == 6:
                exchange.run([head(103) + proper, evil])
            elif choice == 7:
                exchange.run([b"HTTP/1.0 200 OK\r\n\r\nfor " + name, Act.CLOSE])
            elif choice == 8:
                exchange.run([b"HTTP/1.1 200 OK\r\nContent-Length : %d\r\n\r\nfor %s" % (len(name) + 4, name) + evil])
            elif choice == 9:
                exchange.run([proper + b"\r\n"])
            else:
                exchange.send(chooser.choice([proper, chunks]))

        return script

    @pytest.mark.parametrize("seed", range(4))
    def test_many_clients_one_hostile_upstream(self, seed):
        """Whatever comes back for /N says N, or nothing. An answer sent after a proper one, before the next
        request, must have ended the connection."""
        chooser = random.Random(seed)
        with FakeUpstream(self.hostile(chooser)) as fake:
            line = Line(fake.host, fake.port)
            seen: list[bytes] = []

            def client(number):
                for turn in range(40):
                    name = b"%d-%d" % (number, turn)
                    method = b"POST" if turn % 3 == 0 else b"GET"
                    body = Pieces(b"x" * 100) if turn % 6 == 0 else b"y" if turn % 3 == 0 else None
                    asked = request(method, body, length=100 if turn % 6 == 0 else None)
                    try:
                        got = line.ask(asked, target=b"/" + name)
                    except (UpstreamReset, UpstreamTruncated):
                        continue
                    seen.append(got.body)
                    assert got.body in (b"for " + name, b""), seen[-1]
                    gevent.sleep(chooser.choice([0, 0.001, 0.004]))

            assert finish(gevent.spawn(client, number) for number in range(4)) == [None] * 4
            assert len(seen) > 80
            line.close()
            soon(lambda: line.counts == (0, 0, 0))

    def test_an_answer_that_fills_the_buffer_hides_nothing(self):
        """What is behind it was not read, and the next request comes without a turn of the hub."""
        for size in (16 * 1024, 64 * 1024, 16 * 1024 + 64 * 1024):
            begun = head(200, b"Content-Length: %d" % size)
            body = b"x" * (size - len(begun))
            data = head(200, b"Content-Length: %d" % len(body)) + body
            assert len(data) == size
            with FakeUpstream(data + answer(b"stolen")) as fake:
                line = Line(fake.host, fake.port)
                for _ in range(3):
                    assert line.ask().body == body
                line.close()
