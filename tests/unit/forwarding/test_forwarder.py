"""Forwarder: which endpoint, how often, and what is counted; the pools are scripted, there is no socket."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from gevent import spawn
from gevent.event import Event

from gateway.buffers.memory import Buffers
from gateway.errors import (
    AnswerTooLarge,
    BadRequest,
    BadResponse,
    BodyTooLarge,
    CircuitOpen,
    ClientClosed,
    ConnectError,
    ConnectRefused,
    ConnectTimeout,
    DeadlineExceeded,
    DnsError,
    Draining,
    GatewayError,
    NoEndpoint,
    Overloaded,
    PoolFull,
    RequestTimeout,
    ResponseTimeout,
    TlsError,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
    UpstreamStalled,
    UpstreamTruncated,
)
from gateway.forwarding import attempts
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.hedge import race
from gateway.forwarding.kept import MOST_KEPT, keep
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.http.messages import BufferedBody, Request, Response
from gateway.http.request_head import Outbound
from gateway.http.target import parse
from gateway.http.trusted_proxies import Trust
from gateway.model import (
    Breaker,
    Concurrency,
    Eject,
    Endpoint,
    RetryPolicy,
    Route,
    ServerSettings,
    StaticSource,
    Timeouts,
    Upstream,
)
from gateway.testing import FakeClock
from gateway.upstreams.snapshot import Group
from gateway.upstreams.state import UpstreamState

EJECT = Eject()
ALL = frozenset({"connect", "stale", "reset", "timeout"})


class InOrder:
    """Always the first that is left."""

    def pick(self, candidates, request):
        return candidates[0]


class Body:
    """An answer's body: pieces, an exception among them is raised; `ended` counts its ends."""

    def __init__(self, *pieces):
        self.on_end = None
        self.pieces = list(pieces)
        self.over = False
        self.ended = 0

    def read(self):
        if self.over or not self.pieces:
            self.close()
            return b""
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            self.close()
            raise piece
        return piece

    def close(self):
        if self.over:
            return
        self.over = True
        self.ended += 1
        on_end, self.on_end = self.on_end, None
        if on_end:
            on_end()


class Arriving:
    """A request's body of which nothing is here yet."""

    complete = expects_continue = False

    def read(self, most=0):
        return b""


class Pool:
    """Does the next thing of its script; reads the body as an upload would."""

    def __init__(self, *script):
        self.script = list(script)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.asked: list[dict] = []

    def send(self, request, head, timeouts, replayable, fresh, deadline):
        self.heads.append(head.data)
        self.asked.append({"replayable": replayable, "fresh": fresh, "deadline": deadline})
        what = self.script.pop(0) if self.script else 200
        if request.body is not None and not isinstance(what, (ConnectError, PoolFull)):
            body = b""
            while piece := request.body.read():
                body += piece
            self.bodies.append(body)
        if isinstance(what, BaseException):
            raise what
        if isinstance(what, Response):
            return what
        return Response(what, b"", [])


class World:
    def __init__(self, *pools, policy=None, host="preserve", total=None, error="", upgrade=("websocket",),
                 eject=EJECT, breaker=None, deadline_header=None):  # fmt: skip
        self.pools = pools
        self.clock = FakeClock()
        self.route = Route(
            "r",
            "u",
            retry=policy or RetryPolicy(attempts=3, when=ALL),
            timeouts=Timeouts(total=total),
            host=host,
            upgrade=frozenset(name.encode() for name in upgrade),
            deadline_header=deadline_header,
        )
        endpoints = tuple(
            Endpoint("http", f"10.0.0.{number}", 80, authority=b"svc-%d:80" % number) for number in range(len(pools))
        )
        upstream = Upstream("u", StaticSource(endpoints), eject=eject, breaker=breaker)
        self.state = UpstreamState(upstream, InOrder(), Budget(self.clock))
        self.candidates = tuple(
            Candidate(endpoint, EndpointState(self.state.gate), pool) for endpoint, pool in zip(endpoints, pools, strict=True)
        )
        self.group = Group(upstream, endpoints, error, self.candidates, self.state)
        self.outbound = Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id")
        self.slept: list[float] = []
        self.forwarder = Forwarder(self.outbound, race, sleep=self.slept.append, jitter=lambda: 1.0)

    def forward(self, request=None, **kw):
        self.request = request or ask(**kw)
        target = parse(b"/x")
        return self.forwarder.forward(self.request, self.route, self.group, target, b"/x", b"shop.example")

    @property
    def sent(self):
        return [len(pool.heads) for pool in self.pools]

    @property
    def in_flight(self):
        return [candidate.state.in_flight for candidate in self.candidates]


def ask(method=b"GET", body=None, upgrade=None, chunked=False, headers=None):
    return Request(
        method,
        b"/x",
        headers or [(b"Host", b"shop.example")],
        started=time.monotonic(),
        peer="192.0.2.1",
        body=BufferedBody(body) if body is not None else None,
        content_length=len(body) if body is not None and not chunked else None,
        chunked=chunked,
        upgrade=upgrade,
    )


class Slow:
    """A request's body of which the rest is not here yet."""

    complete = expects_continue = False

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def read(self, most=0):
        return self.pieces.pop(0) if self.pieces else b""


class TestHeld:
    """Short bodies are here before an endpoint is picked."""

    def ask(self):
        request = ask(method=b"PUT", body=b"onetwo")
        request.body = Slow(b"one", b"two")
        return request

    def test_the_endpoints_are_those_in_force_once_it_is_here(self):
        world, newer = World(Pool()), World(Pool())
        world.forwarder = Forwarder(world.outbound, race, latest=lambda group: newer.group)
        assert world.forward(self.ask()).status == 200
        assert (world.sent, newer.sent, newer.pools[0].bodies) == ([0], [1], [b"onetwo"])

    def test_none_may_be_left_by_then(self):
        world, newer = World(Pool()), World()
        world.forwarder = Forwarder(world.outbound, race, latest=lambda group: newer.group)
        with pytest.raises(GatewayError) as raised:
            world.forward(self.ask())
        assert raised.value.reason == "no_endpoint"

    def test_it_is_what_a_retry_sends_and_given_back_in_the_end(self):
        buffers = Buffers(0)
        policy = RetryPolicy(attempts=2, when=ALL, methods=frozenset({b"PUT"}))
        world = World(Pool(UpstreamReset("reset")), Pool(), policy=policy)
        world.forwarder = Forwarder(world.outbound, race, buffers=buffers)
        assert world.forward(self.ask()).status == 200
        assert [pool.bodies for pool in world.pools] == [[b"onetwo"], [b"onetwo"]]
        assert (buffers.held, buffers.counts["request_held"]) == (0, 1)

    def test_given_back_when_it_fails(self):
        buffers = Buffers(0)
        world = World(Pool(UpstreamReset("reset")), policy=RetryPolicy(attempts=1))
        world.forwarder = Forwarder(world.outbound, race, buffers=buffers)
        with pytest.raises(UpstreamReset):
            world.forward(self.ask())
        assert (buffers.held, world.state.gate.in_flight) == (0, 0)


class TestOnce:
    def test_an_answer(self):
        world = World(Pool(), Pool())
        assert world.forward().status == 200
        assert world.sent == [1, 0]
        assert world.request.endpoint is world.candidates[0].endpoint
        assert (world.request.attempts, world.in_flight) == (1, [0, 0])

    def test_a_body_that_still_comes_is_in_flight(self):
        body = Body()
        world = World(Pool(Response(200, b"", [], stream=body)))
        response = world.forward()
        assert world.in_flight == [1]
        response.stream.close()
        assert world.in_flight == [0]

    def test_a_tunnel_is_in_flight(self):
        tunnel = Body()
        world = World(Pool(Response(101, b"", [], tunnel=tunnel)))
        world.forward(upgrade=b"websocket")
        assert world.in_flight == [1]
        tunnel.close()
        assert world.in_flight == [0]

    @pytest.mark.parametrize("error", [BadResponse(), ClientClosed(), KeyError("fault"), KeyboardInterrupt()])
    def test_whatever_is_raised_is_counted_out(self, error):
        world = World(Pool(error))
        with pytest.raises(type(error)):
            world.forward()
        assert world.in_flight == [0]

    @pytest.mark.parametrize(("error", "kind"), [("", NoEndpoint), ("no such name", DnsError)])
    def test_no_endpoint(self, error, kind):
        with pytest.raises(kind):
            World(error=error).forward()

    @pytest.mark.parametrize(
        ("host", "told"),
        [("preserve", b"shop.example"), ("upstream", b"svc-0:80"), ("inside.example", b"inside.example")],
    )
    def test_host(self, host, told):
        world = World(Pool(), host=host)
        world.forward()
        assert b"\r\nHost: %b\r\n" % told in world.pools[0].heads[0]

    def test_upgrade_only_where_the_route_has_it(self):
        for names, there in ((("websocket",), True), ((), False)):
            world = World(Pool(), upgrade=names)
            world.forward(upgrade=b"websocket")
            assert (b"Upgrade: websocket" in world.pools[0].heads[0]) is there


class TestAgain:
    @pytest.mark.parametrize("method", [b"GET", b"POST", b"PATCH"])
    @pytest.mark.parametrize("error", [ConnectRefused(), TlsError(), PoolFull()])
    def test_nothing_was_sent_any_method_goes_elsewhere(self, method, error):
        world = World(Pool(error), Pool())
        assert world.forward(method=method, body=b"body").status == 200
        assert world.sent == [1, 1]
        assert world.pools[1].bodies == [b"body"]
        assert (world.request.attempts, world.in_flight) == (2, [0, 0])

    @pytest.mark.parametrize("error", [UpstreamStale(), UpstreamReset(), ResponseTimeout()])
    def test_what_may_have_been_sent_only_when_it_may_be_repeated(self, error):
        world = World(Pool(error), Pool())
        assert world.forward().status == 200
        world = World(Pool(error), Pool())
        with pytest.raises(type(error)):
            world.forward(method=b"POST", body=b"x")
        assert world.sent == [1, 0]

    @pytest.mark.parametrize("error", [UpstreamCut(), BadResponse(), DnsError(), ClientClosed()])
    def test_never(self, error):
        world = World(Pool(error), Pool())
        with pytest.raises(type(error)):
            world.forward()
        assert world.sent == [1, 0]

    def test_only_what_the_policy_names(self):
        world = World(Pool(UpstreamReset()), Pool(), policy=RetryPolicy(attempts=3, when=frozenset({"connect"})))
        with pytest.raises(UpstreamReset):
            world.forward()

    def test_every_endpoint_before_one_twice(self):
        world = World(*[Pool(*[ConnectRefused()] * 9) for _ in range(3)], policy=RetryPolicy(attempts=5, when=ALL))
        with pytest.raises(ConnectRefused):
            world.forward()
        assert sorted(world.sent) == [1, 2, 2]
        assert world.request.attempts == 5

    def test_the_only_endpoint_is_tried_again(self):
        world = World(Pool(UpstreamStale()))
        assert world.forward().status == 200
        assert world.sent == [2]

    def test_but_not_waited_for_again_when_it_is_full(self):
        world = World(Pool(PoolFull(), 200))
        with pytest.raises(PoolFull):
            world.forward()
        assert world.sent == [1]

    def test_attempts_are_tries_in_all(self):
        for number in (1, 2, 3):
            world = World(Pool(*[UpstreamReset()] * 9), policy=RetryPolicy(attempts=number, when=ALL))
            with pytest.raises(UpstreamReset):
                world.forward()
            assert world.sent == [number]

    def test_a_dead_connection_is_followed_by_a_fresh_one(self):
        world = World(Pool(UpstreamStale(), 200))
        world.forward()
        assert [how["fresh"] for how in world.pools[0].asked] == [False, True]

    def test_the_first_error_is_the_cause_in_the_log(self):
        world = World(Pool(ConnectRefused("dial tcp one"), ConnectRefused("dial tcp two")))
        world.route = Route("r", "u", retry=RetryPolicy(attempts=2, when=ALL))
        with pytest.raises(ConnectRefused) as seen:
            world.forward()
        world.request.fail(seen.value)
        assert world.request.cause == "dial tcp one; then dial tcp two"


class TestWhatEndsIt:
    def test_the_first_error_is_the_answer(self):
        world = World(Pool(ResponseTimeout("slow")), Pool(ConnectRefused("dial")), policy=RetryPolicy(attempts=2, when=ALL))
        with pytest.raises(ResponseTimeout) as seen:
            world.forward()
        world.request.fail(seen.value)
        assert (world.request.reason, world.request.cause) == ("response_timeout", "slow; then dial")

    def test_a_dead_connection_is_not_what_went_wrong(self):
        """It was only found closed: the answer is what a fresh one met."""
        world = World(Pool(UpstreamStale("closed"), ConnectRefused("dial")), policy=RetryPolicy(attempts=2, when=ALL))
        with pytest.raises(ConnectRefused) as seen:
            world.forward()
        world.request.fail(seen.value)
        assert (world.request.reason, world.request.cause) == ("connect_refused", "closed; then dial")

    @pytest.mark.parametrize("after", [ConnectRefused(), UpstreamReset(), PoolFull(), BadResponse()])
    def test_a_real_answer_is_worth_more_than_an_error(self, after):
        body = Body(b"bu", b"sy")
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(after), policy=RetryPolicy(attempts=2, statuses=frozenset({503})))
        response = world.forward()
        # It was read whole, and holds nothing any more.
        assert (response.status, response.data, response.stream) == (503, b"busy", None)
        assert (body.ended, world.in_flight, world.state.gate.in_flight, world.sent) == (1, [0, 0], 0, [1, 1])
        assert world.request.endpoint is world.candidates[0].endpoint

    def test_of_real_answers_the_last(self):
        first, second = Body(b"1"), Body(b"2")
        world = World(
            Pool(Response(503, b"one", [], stream=first)), Pool(Response(503, b"two", [], stream=second)),
            policy=RetryPolicy(attempts=2, statuses=frozenset({503})),
        )  # fmt: skip
        assert world.forward().reason == b"two"
        # The last one is passed on as it comes.
        assert (first.ended, second.ended, world.in_flight) == (1, 0, [0, 1])

    def test_an_answer_is_released_before_the_next_attempt(self):
        body = Body(b"busy")
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(), policy=TestStatuses.POLICY)
        send, seen = world.pools[1].send, []
        world.pools[1].send = lambda *args: (seen.append((body.ended, world.in_flight)), send(*args))[1]
        world.forward()
        assert seen == [(1, [0, 1])]

    @pytest.mark.parametrize("size", [MOST_KEPT, MOST_KEPT + 1])
    @pytest.mark.parametrize("announced", [True, False])
    def test_an_answer_too_long_to_be_kept_is_passed_on(self, size, announced):
        body = Body(b"x" * (size - 1), b"y")
        length = size if announced else None
        world = World(Pool(Response(503, b"", [], stream=body, content_length=length)), Pool(), policy=TestStatuses.POLICY)
        response = world.forward()
        if size == MOST_KEPT:
            assert (response.status, world.sent, world.state.budget.spent) == (200, [1, 1], 1)
            return
        assert world.state.budget.spent == 0, "no retry was made"
        assert (response.status, world.sent, body.ended, world.in_flight) == (503, [1, 0], 0, [1, 0])
        rest = b"".join(iter(response.stream.read, b""))
        assert response.data + rest == b"x" * (size - 1) + b"y"
        assert (world.in_flight, world.state.gate.in_flight) == ([0, 0], 0)

    @pytest.mark.parametrize("end", [UpstreamTruncated("cut"), UpstreamStalled("stalled"), BadResponse("chunk")])
    @pytest.mark.parametrize("after", [200, ConnectRefused("dial")])
    def test_an_answer_that_breaks_off_is_retried_and_forgotten(self, end, after):
        body = Body(b"bu", end)
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(after), policy=RetryPolicy(attempts=2, statuses=frozenset({503})))
        if after == 200:
            assert world.forward().status == 200
        else:
            with pytest.raises(ConnectRefused) as seen:
                world.forward()
            world.request.fail(seen.value)
            assert world.request.cause == "10.0.0.0:80 answered 503 without the end of its body, retried; then dial"
        assert (body.ended, world.in_flight, world.state.gate.in_flight) == (1, [0, 0], 0)

    @pytest.mark.parametrize("end", [ClientClosed("gone"), Draining("late"), RequestTimeout("slow"), RuntimeError("fault")])
    def test_what_ends_the_request_while_an_answer_is_kept(self, end):
        body = Body(b"bu", end)
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(), policy=TestStatuses.POLICY)
        with pytest.raises(type(end)):
            world.forward()
        assert (body.ended, world.in_flight, world.state.gate.in_flight, world.sent) == (1, [0, 0], 0, [1, 0])

    def test_an_answer_that_does_not_end_is_not_waited_for(self, monkeypatch):
        class Endless(Body):
            def read(self):
                try:
                    Event().wait()
                finally:
                    self.close()

        monkeypatch.setattr(attempts, "keep", partial(keep, within=0.01))
        body = Endless()
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(), policy=TestStatuses.POLICY)
        assert world.forward().status == 200
        assert (body.ended, world.in_flight) == (1, [0, 0])

    def test_a_client_that_leaves_ends_it_all(self):
        body = Body()
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(ClientClosed("gone")), policy=RetryPolicy(attempts=2, statuses=frozenset({503})))
        with pytest.raises(ClientClosed):
            world.forward()
        assert (body.ended, world.in_flight, world.state.gate.in_flight) == (1, [0, 0], 0)


class TestReload:
    def test_a_retry_stays_with_the_snapshot_it_began_with(self):
        """Meanwhile another one came into force: its endpoints have another base path, say."""
        world = World(Pool(UpstreamReset(), 200))
        newer = tuple(Candidate(replace(one.endpoint, base_path=b"/new"), one.state, Pool()) for one in world.candidates)
        send = world.pools[0].send

        def swapped(*args):
            world.state.outliers.look(newer, 0.0)
            return send(*args)

        world.pools[0].send = swapped
        assert world.forward().status == 200
        assert world.sent == [2]
        assert not newer[0].pool.heads


class TestPause:
    def test_before_the_same_endpoint(self):
        world = World(Pool(UpstreamReset(), UpstreamReset(), UpstreamReset(), 200), policy=RetryPolicy(attempts=4, when=ALL, backoff=0.1))
        world.forward()
        assert world.slept == [0.1, 0.2, 0.4]

    def test_not_before_another_one(self):
        world = World(Pool(UpstreamReset()), Pool(UpstreamReset()), Pool())
        world.forward()
        assert world.slept == []

    def test_not_after_a_connection_that_was_merely_old(self):
        world = World(Pool(UpstreamStale(), 200))
        world.forward()
        assert world.slept == []

    def test_never_past_the_deadline(self):
        world = World(Pool(UpstreamReset(), 200), total=100.0, policy=RetryPolicy(attempts=2, when=ALL, backoff=1000.0))
        world.forward()
        assert 99.0 < world.slept[0] <= 100.0


class TestGate:
    def test_one_place_for_a_request_however_often_it_is_tried(self):
        world = World(Pool(ConnectRefused()), Pool(ConnectRefused()), Pool())
        gate, seen = world.state.gate, []
        for pool in world.pools:
            send = pool.send
            pool.send = lambda *args, send=send: (seen.append(gate.in_flight), send(*args))[1]
        world.forward()
        assert (seen, gate.in_flight) == ([1, 1, 1], 0)

    @pytest.mark.parametrize("headers", [[], [(b"Content-Type", b"text/plain")], [(b"X", b"text/event-stream")]])
    def test_until_the_body_ends(self, headers):
        body = Body()
        world = World(Pool(Response(200, b"", headers, stream=body)))
        world.forward()
        assert world.state.gate.in_flight == 1
        body.close()
        assert world.state.gate.in_flight == 0

    def test_no_longer_than_the_upstream_is_waited_for(self):
        body = Body()
        world = World(Pool(Response(200, b"", [], stream=body)))
        world.forward()
        body.on_wait()
        body.on_wait()
        assert (world.state.gate.in_flight, world.in_flight) == (0, [1])
        body.close()
        assert (world.state.gate.in_flight, world.in_flight) == (0, [0])

    @pytest.mark.parametrize(
        "answer",
        [
            lambda body: Response(101, b"", [], tunnel=body),
            lambda body: Response(200, b"", [(b"content-type", b"Text/Event-Stream; charset=utf-8")], stream=body),
            lambda body: Response(200, b"", [], b"Content-Type: text/event-stream\r\nX: y", stream=body),
            lambda body: Response(200, b"", [], b"X: y\r\ncontent-type: text/event-stream", stream=body),
        ],
    )
    def test_what_only_listens_has_no_place(self, answer):
        body = Body()
        world = World(Pool(answer(body)))
        world.forward()
        assert (world.state.gate.in_flight, world.in_flight) == (0, [1])
        body.close()
        assert (world.state.gate.in_flight, world.in_flight) == (0, [0])

    @pytest.mark.parametrize("error", [BadResponse(), ClientClosed(), KeyError("fault"), KeyboardInterrupt()])
    def test_and_whatever_is_raised(self, error):
        world = World(Pool(error))
        with pytest.raises(type(error)):
            world.forward()
        assert world.state.gate.in_flight == 0

    def test_where_there_is_no_place_it_is_overloaded(self):
        world = World(Pool())
        world.state.gate.configure(Concurrency(limit=1, queue=0))
        world.state.gate.in_flight = 1
        with pytest.raises(Overloaded):
            world.forward()
        assert (world.sent, world.state.gate.in_flight) == ([0], 1)


class TestLearnt:
    """What passive health and the breaker are told."""

    BLAMED = (ConnectRefused(), ConnectTimeout(), TlsError(), UpstreamReset(), UpstreamCut(), BadResponse(), ResponseTimeout(), DeadlineExceeded())
    NOT = (UpstreamStale(), PoolFull(), Overloaded(), DnsError(), ClientClosed(), RequestTimeout(), BadRequest(), AnswerTooLarge(), BodyTooLarge())

    @pytest.mark.parametrize(("error", "streak"), [*((one, 1) for one in BLAMED), *((one, 0) for one in NOT)])
    def test_what_speaks_against_an_endpoint(self, error, streak):
        world = World(Pool(error), policy=RetryPolicy(attempts=1))
        with pytest.raises(type(error)):
            world.forward()
        assert world.candidates[0].state.streak == streak

    @pytest.mark.parametrize(("error", "connect", "left", "took", "arriving", "streak"), [
        (DeadlineExceeded(), 2.0, 6.0, 6.0, False, 1),
        # Other tries, a queue or a slow head have used it up.
        (DeadlineExceeded(), 2.0, 4.0, 4.0, False, 0),
        (ConnectTimeout(), 2.0, 1.0, 1.0, False, 0),
        # A slow body has.
        (DeadlineExceeded(), 2.0, 6.0, 6.0, True, 0),
        (ConnectTimeout(), None, 6.0, 6.0, False, 1),
        (ConnectTimeout(), None, 4.0, 4.0, False, 0),
        # These have their own limits.
        (ConnectTimeout(), 2.0, 4.0, 2.0, True, 1),
        (ResponseTimeout(), 2.0, 4.0, 1.0, True, 1),
    ])  # fmt: skip
    def test_what_the_deadline_ends(self, monkeypatch, error, connect, left, took, arriving, streak):
        """A try that begins when so many seconds are `left` of 10."""
        clock = FakeClock()
        monkeypatch.setattr("gateway.forwarding.forwarder.monotonic", clock)
        monkeypatch.setattr("gateway.forwarding.attempt.monotonic", clock)
        world = World(Pool(error), policy=RetryPolicy(attempts=1), total=10.0)
        world.route = replace(world.route, timeouts=replace(world.route.timeouts, connect=connect))
        fails = world.pools[0].send

        def send(*args):
            clock.advance(took)
            fails(*args)

        world.pools[0].send = send
        request = ask(method=b"POST", body=b"x")
        if arriving:
            # Chunked: one of known length would be here before an attempt begins.
            request.body, request.content_length = Arriving(), None
        request.started = clock() + left - 10.0
        with pytest.raises(GatewayError):
            world.forward(request)
        assert world.candidates[0].state.streak == streak

    @pytest.mark.parametrize(("statuses", "streak", "answered"), [((), 0, 1), ((503,), 1, 0), ((502,), 0, 1)])
    def test_statuses_only_where_they_are_named(self, statuses, streak, answered):
        world = World(Pool(503), eject=Eject(statuses=frozenset(statuses)))
        world.forward()
        state = world.candidates[0].state
        assert (state.streak, state.answered) == (streak, answered)

    def test_an_endpoint_that_fails_gets_no_more(self):
        world = World(Pool(*[ConnectRefused()] * 99), Pool())
        for _ in range(20):
            world.forward()
        assert world.sent == [5, 20]

    def test_a_trial_of_one_that_was_out(self):
        world = World(Pool(*[ConnectRefused()] * 5, 200), Pool())
        for _ in range(6):
            world.forward()
        world.candidates[0].state.out_until = 1.0
        world.state.outliers.recheck = 0.0
        assert world.forward().status == 200
        assert world.sent == [6, 6]
        assert world.candidates[0].state.state == "up"

    def test_a_trial_that_fails_is_tried_elsewhere_and_costs_nobody(self):
        world = World(Pool(*[ConnectRefused()] * 99), Pool())
        for _ in range(6):
            world.forward()
        world.candidates[0].state.out_until = 1.0
        world.state.outliers.recheck = 0.0
        assert world.forward().status == 200
        assert world.candidates[0].state.state == "ejected"

    @pytest.mark.parametrize("error", [ClientClosed(), UpstreamStale()])
    def test_a_trial_that_says_nothing(self, error):
        world = World(Pool(*[ConnectRefused()] * 5, error), Pool(), policy=RetryPolicy(attempts=2, when=frozenset({"connect"})))
        for _ in range(6):
            world.forward()
        world.candidates[0].state.out_until = 1.0
        world.state.outliers.recheck = 0.0
        with pytest.raises(type(error)):
            world.forward()
        assert not world.candidates[0].state.on_trial

    def test_the_breaker_counts_tries_and_5xx(self):
        world = World(Pool(500, ConnectRefused(), 200, 404), policy=RetryPolicy(attempts=1), breaker=Breaker(min_requests=2, error_rate=1.0))
        world.forward()
        assert world.state.breaker.state == "closed"
        with pytest.raises(ConnectRefused):
            world.forward()
        assert world.state.breaker.state == "open"
        with pytest.raises(CircuitOpen):
            world.forward()
        assert (world.sent, world.state.gate.in_flight) == ([2], 0)
        # Other settings begin anew, and what was decided stays counted.
        upstream = replace(world.group.upstream, breaker=Breaker(min_requests=5))
        world.state.configure(upstream, lambda upstream: InOrder())
        assert world.state.breaker.state == "closed"
        assert world.state.decisions == {"circuit_opened": 1, "circuit_refused": 1}

    def test_watchers_see_answers_and_failures(self):
        seen = []
        world = World(Pool(ConnectRefused()), Pool(404))
        world.state.watchers = (lambda candidate, request, response, took: seen.append((candidate, response and response.status, took >= 0.0)),)
        world.forward()
        assert seen == [(world.candidates[0], None, True), (world.candidates[1], 404, True)]


class TestDeadlineHeader:
    def sent(self, **kw):
        world = World(Pool(), deadline_header="X-Time-Left", **kw)
        world.forward(headers=[(b"Host", b"shop.example"), (b"x-time-left", b"1"), (b"Accept", b"*/*")])
        lines = world.pools[0].heads[0].split(b"\r\n")
        assert lines[-2:] == [b"", b""]
        assert b"Accept: */*" in lines
        return [line for line in lines if line.lower().startswith(b"x-time-left")]

    def test_the_time_for_the_answer(self):
        assert self.sent() == [b"X-Time-Left: 30000"]

    def test_or_what_is_left_of_the_total(self):
        (line,) = self.sent(total=10.0)
        assert 9_000 < int(line.split()[1]) <= 10_000


class TestHedge:
    POLICY = RetryPolicy(attempts=2, hedge=True, budget=1.0)

    def world(self, *pools, known=True, budget=1.0):
        world = World(*pools, policy=replace(self.POLICY, budget=budget))
        world.state.usual()
        if known:
            world.state.latencies.p95 = 0.01
        return world

    def slow(self, body=None):
        """A pool whose answer does not come."""
        pool = Pool()
        answered = pool.send

        def send(*args):
            answered(*args)
            Event().wait()

        pool.send = send
        return pool

    def test_another_endpoint_is_asked_as_well(self):
        body = Body()
        world = self.world(self.slow(), Pool(Response(200, b"", [], stream=body)))
        response = world.forward()
        assert (response.status, world.sent, world.in_flight) == (200, [1, 1], [0, 1])
        assert world.request.endpoint is world.candidates[1].endpoint
        assert (world.request.attempts, dict(world.state.decisions)) == (2, {"hedged": 1, "hedge_won": 1})
        body.close()
        assert (world.in_flight, world.state.gate.in_flight) == ([0, 0], 0)

    def test_a_quick_answer_is_not_doubled(self):
        world = self.world(Pool(), Pool())
        world.forward()
        assert (world.sent, world.state.decisions) == ([1, 0], {})

    def test_nor_while_it_is_not_known_what_is_slow(self):
        world = self.world(Pool(), Pool(), known=False)
        world.forward()
        assert world.sent == [1, 0]

    def test_within_the_budget(self):
        world = self.world(self.slow(), Pool(), budget=0.2)
        TestBudget().empty(world)
        greenlet = spawn(world.forward)
        greenlet.join(timeout=0.1)
        assert (world.sent, world.state.decisions["retry_over_budget"]) == ([1, 0], 1)
        greenlet.kill()
        assert world.in_flight == [0, 0]

    @pytest.mark.parametrize("kw", [{"method": b"POST"}, {"method": b"HEAD"}, {"body": b"x"}, {"upgrade": b"websocket"}])
    def test_only_a_bare_get(self, kw):
        world = self.world(Pool(), Pool())
        world.state.latencies.p95 = 0.0
        world.forward(**kw)
        assert world.sent == [1, 0]

    @pytest.mark.parametrize("attempts", [2, 3])
    @pytest.mark.parametrize("end", [UpstreamReset(), 503])
    def test_both_are_tries(self, attempts, end):
        """Not one more than `attempts`, of which the second was asked as well."""
        world = self.world(Pool(), Pool(*[end] * 5))
        world.route = replace(world.route, retry=replace(world.route.retry, attempts=attempts, statuses=frozenset({503})))
        first, both = world.pools[0], Event()
        answered, failed = first.send, world.pools[1].send

        def slow(*args):
            both.wait()
            first.script = [end] * 5
            return answered(*args)

        def quick(*args):
            both.set()
            return failed(*args)

        first.send, world.pools[1].send = slow, quick
        if end == 503:
            assert world.forward().status == 503
        else:
            with pytest.raises(UpstreamReset):
                world.forward()
        assert sum(len(pool.heads) for pool in world.pools) == attempts
        assert world.request.attempts == attempts

    def test_the_log_tells_of_both_failures(self):
        world = self.world(Pool(), Pool())
        both = Event()

        def first(*_):
            both.wait()
            raise ResponseTimeout("slow")

        def second(*_):
            both.set()
            raise UpstreamReset("reset")

        world.pools[0].send, world.pools[1].send = first, second
        with pytest.raises(ResponseTimeout) as seen:
            world.forward()
        assert seen.value.cause == "slow; then reset"

    def test_an_error_is_tried_again_as_ever(self):
        world = self.world(Pool(ConnectRefused()), Pool())
        assert world.forward().status == 200
        assert world.sent == [1, 1]


class TestBodies:
    def test_a_kept_body_goes_out_whole_each_time(self):
        policy = RetryPolicy(attempts=3, when=ALL, methods=frozenset({b"PUT"}))
        world = World(Pool(UpstreamReset()), Pool(UpstreamStale()), Pool(), policy=policy)
        assert world.forward(method=b"PUT", body=b"body").status == 200
        assert [pool.bodies for pool in world.pools] == [[b"body"]] * 3

    @pytest.mark.parametrize(("size", "chunked"), [(65, False), (1, True)])
    def test_one_too_large_or_of_unknown_length_is_not(self, size, chunked):
        policy = RetryPolicy(attempts=3, when=ALL, buffer=64)
        world = World(Pool(UpstreamReset()), Pool(), policy=policy)
        with pytest.raises(UpstreamReset):
            world.forward(body=b"x" * size, chunked=chunked)
        assert not world.pools[0].asked[0]["replayable"]

    def test_and_goes_elsewhere_when_nothing_was_sent(self):
        world = World(Pool(ConnectRefused()), Pool(), policy=RetryPolicy(attempts=2, buffer=1))
        world.forward(method=b"POST", body=b"x" * 100_000)
        assert world.pools[1].bodies == [b"x" * 100_000]


class TestStatuses:
    POLICY = RetryPolicy(attempts=3, statuses=frozenset({503}))

    def test_a_named_one_is_tried_elsewhere(self):
        body = Body()
        world = World(Pool(Response(503, b"", [], stream=body)), Pool(), policy=self.POLICY)
        assert world.forward().status == 200
        assert (body.ended, world.in_flight) == (1, [0, 0])

    def test_the_last_one_is_the_answer(self):
        world = World(Pool(*[503] * 9), policy=self.POLICY)
        assert world.forward().status == 503
        assert world.sent == [3]

    @pytest.mark.parametrize(("method", "status"), [(b"POST", 503), (b"GET", 500)])
    def test_others_are_not(self, method, status):
        world = World(Pool(status), Pool(), policy=self.POLICY)
        assert world.forward(method=method, body=b"x").status == status
        assert world.sent == [1, 0]


class TestBudget:
    def empty(self, world):
        while world.state.budget.take(0.0):
            pass

    def test_an_empty_one_ends_it(self):
        for what in (UpstreamReset(), UpstreamStale()):
            world = World(Pool(what), Pool())
            self.empty(world)
            with pytest.raises(GatewayError):
                world.forward()
            assert world.sent == [1, 0]
        world = World(Pool(503), Pool(), policy=TestStatuses.POLICY)
        self.empty(world)
        assert world.forward().status == 503

    def test_a_refused_connection_is_no_load(self):
        world = World(Pool(ConnectRefused()), Pool())
        self.empty(world)
        assert world.forward().status == 200

    def test_an_outage_does_not_double_the_traffic(self):
        world = World(Pool(*[UpstreamReset()] * 5000), policy=RetryPolicy(attempts=2, when=ALL, budget=0.2))
        for _ in range(1000):
            world.clock.advance(0.001)
            with pytest.raises(UpstreamReset):
                world.forward()
        # A fifth more, and the floor's 30 (and 3 a second) for upstreams with little traffic.
        assert world.sent[0] <= 1000 * 1.2 + 34


class TestTotal:
    def test_the_deadline_goes_to_each_attempt(self):
        world = World(Pool(ConnectRefused(), 200), total=7.0)
        world.forward()
        assert [how["deadline"] for how in world.pools[0].asked] == [world.request.started + 7.0] * 2

    def test_none(self):
        world = World(Pool())
        world.forward()
        assert world.pools[0].asked[0]["deadline"] is None

    @pytest.mark.parametrize("error", [ConnectRefused("dial"), ResponseTimeout("read head"), PoolFull("pool")])
    def test_an_error_after_it_is_its_own(self, error):
        world = World(Pool(error), Pool(), total=0.0)
        with pytest.raises(DeadlineExceeded) as seen:
            world.forward()
        assert error.cause in seen.value.cause
        assert world.sent == [1, 0]
