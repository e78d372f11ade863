"""Forwarder and transport together against upstreams that fail: what is sent twice, and where it goes."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter

import gevent
import pytest

from gateway.balancers import RoundRobin
from gateway.errors import GatewayError, UpstreamReset, UpstreamStale
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.hedge import race
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.http.messages import BufferedBody, Request
from gateway.http.request_head import Outbound
from gateway.http.target import parse
from gateway.http.trusted_proxies import Trust
from gateway.model import Endpoint, PoolSettings, RetryPolicy, Route, ServerSettings, StaticSource, Timeouts, Upstream
from gateway.testing import Act, FakeUpstream, answer, head
from gateway.transport import Transport
from gateway.upstreams.snapshot import Group
from gateway.upstreams.state import UpstreamState
from tests.exchanges import finish, soon, whole

POLICY = RetryPolicy(attempts=2, budget=1.0)


class World:
    """One upstream of several endpoints behind a forwarder."""

    def __init__(self, *ports: int, policy: RetryPolicy = POLICY) -> None:
        endpoints = tuple(Endpoint("http", "127.0.0.1", port) for port in ports)
        timeouts = Timeouts(connect=5.0, write=5.0, response=5.0, idle=5.0)
        self.route = Route("r", "u", retry=policy, timeouts=timeouts)
        upstream = Upstream("u", StaticSource(endpoints), timeouts=timeouts, retry=policy, pool=PoolSettings())
        self.transport = Transport(b"")
        state = UpstreamState(upstream, RoundRobin(lambda: 0.0), Budget(time.monotonic))
        candidates = tuple(
            Candidate(one, EndpointState(state.gate), self.transport.pool(upstream, one)) for one in endpoints
        )
        self.group = Group(upstream, endpoints, "", candidates, state)
        self.forwarder = Forwarder(Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id"), race)

    def ask(self, method: bytes, target: bytes, body: bytes | None = None) -> bytes:
        asked = Request(
            method,
            target,
            [(b"Host", b"a")],
            started=time.monotonic(),
            body=BufferedBody(body) if body is not None else None,
            content_length=len(body) if body is not None else None,
        )
        self.asked = asked
        return whole(self.forwarder.forward(asked, self.route, self.group, parse(target), target, b"a"))

    def settled(self) -> bool:
        return all(
            one.state.in_flight == 0 and one.pool.open == len(one.pool._idle) for one in self.group.candidates
        )

    def close(self) -> None:
        self.transport.close()


@pytest.fixture
def two():
    with FakeUpstream() as one, FakeUpstream() as other:
        yield one, other


@pytest.fixture
def refused():
    """A port at which nobody listens, and nobody will."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_refused_connection_sends_any_method_elsewhere(two, refused, method):
    world = World(refused, two[0].port)
    for _ in range(4):
        assert world.ask(method, b"/x", b"body" if method == b"POST" else None) == b"ok"
    assert len(two[0].requests) == 4
    world.close()


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_get_that_met_its_end_goes_to_another_endpoint(two, act):
    two[0].answer([act])
    world = World(two[0].port, two[1].port)
    assert [world.ask(b"GET", b"/%d" % turn) for turn in range(6)] == [b"ok"] * 6
    assert len(two[1].requests) == 6
    world.close()


def test_a_stale_connection_is_no_error_even_of_the_only_endpoint():
    """Every idle connection is dead: one stale one is met, then a fresh one is made."""
    with FakeUpstream([head(200, b"Content-Length: 2") + b"ok", 0.02]) as fake:
        world = World(fake.port)
        finish(gevent.spawn(world.ask, b"GET", b"/") for _ in range(5))
        pool = world.group.candidates[0].pool
        assert len(pool._idle) == 5
        fake.queue([Act.RESET])
        assert world.ask(b"GET", b"/again") == b"ok"
        assert world.asked.attempts == 2
        assert not world.asked.reused
        world.close()


@pytest.mark.parametrize("idle", [0.0, 2.0])
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_a_post_that_was_sent_is_not_sent_again(two, idle, act):
    """U counts 1."""
    fake = two[0]
    world = World(fake.port)
    world.ask(b"GET", b"/first")
    for connection in world.group.candidates[0].pool._idle:
        connection.idle_since -= idle
    fake.queue([act])
    with pytest.raises((UpstreamStale, UpstreamReset)) as seen:
        world.ask(b"POST", b"/once", b"body")
    # Idle for so long it takes a fresh connection, so this is no stale one.
    assert type(seen.value) is (UpstreamReset if idle else UpstreamStale)
    assert [request.target for request in fake.requests] == [b"/first", b"/once"]
    world.close()


def test_one_that_ended_while_idle_is_met_by_nobody(two):
    """The hub has told before the next request comes, so that even a POST is fine."""
    fake = two[0]
    world = World(fake.port)
    world.ask(b"GET", b"/")
    fake.hang_up()
    soon(lambda: world.group.candidates[0].pool.open == 0)
    assert world.ask(b"POST", b"/", b"x") == b"ok"
    world.close()


@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random(two, refused, seed):
    """No POST reaches an upstream twice, no GET more often than `attempts`, no answer the wrong request;
    and after everything nothing is in flight or lent."""
    chooser = random.Random(seed)

    def script(exchange):
        body = exchange.read_body()
        target = exchange.request.target
        proper = answer(target + b" " + body)
        exchange.run(
            chooser.choice(
                [
                    [proper],
                    [proper],
                    [proper],
                    [answer(target + b" " + body, b"Connection: close"), Act.CLOSE],
                    [Act.CLOSE],
                    [Act.RESET],
                    [proper[: chooser.randrange(1, len(proper))], Act.CLOSE],
                    [b"no HTTP\r\n\r\n"],
                    [answer(b"again", status=503)],
                    [proper + b"surplus"],
                ]
            )
        )

    for fake in two:
        fake.answer(script)
    policy = RetryPolicy(
        attempts=3, when=frozenset({"connect", "stale", "reset", "timeout"}), statuses=frozenset({503}), budget=1.0
    )
    world = World(two[0].port, refused, two[1].port, policy=policy)
    fine = 0

    def client(number):
        nonlocal fine
        for turn in range(60):
            post = chooser.random() < 0.5
            target = b"/%d-%d-%b" % (number, turn, b"post" if post else b"get")
            try:
                got = world.ask(b"POST" if post else b"GET", target, b"body" if post else None)
            except GatewayError:
                continue
            assert got in (target + b" " + (b"body" if post else b""), b"again")
            fine += 1

    assert finish(gevent.spawn(client, number) for number in range(4)) == [None] * 4
    counts = Counter(request.target for fake in two for request in fake.requests)
    assert {target: number for target, number in counts.items() if target.endswith(b"post") and number > 1} == {}
    assert max(counts.values()) <= 3
    assert fine > 120
    soon(world.settled)
    world.close()
