"""Copies of requests on the wire: they say that they are copies, and whatever becomes of them is nobody's matter.

The copy is the same modified request, body included; a slow or failing mirror does not delay or alter
the answer.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import replace

import gevent
import pytest

from gateway.balancers import RoundRobin
from gateway.errors import ClientClosed, UpstreamReset
from gateway.forwarding import mirror
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.hedge import race
from gateway.forwarding.mirror import Copies
from gateway.forwarding.route_actions import Shaper
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.retry_budget import Budget
from gateway.http import target as targets
from gateway.http.messages import BufferedBody, Request
from gateway.http.request_head import Outbound
from gateway.http.trusted_proxies import Trust
from gateway.model import (
    Buffering,
    Config,
    Endpoint,
    Match,
    Mirror,
    PoolSettings,
    RetryPolicy,
    Route,
    ServerSettings,
    StaticSource,
    Timeouts,
    TlsSettings,
    Upstream,
)
from gateway.routing.router import Router
from gateway.testing import Act, FakeUpstream, answer, chunked, head
from gateway.transport import Transport
from gateway.upstreams.snapshot import Group, Snapshot
from gateway.upstreams.state import UpstreamState
from tests.exchanges import Pieces, greenlets, soon, whole

TIMEOUTS = Timeouts(connect=5.0, write=5.0, response=5.0, idle=5.0)
# Nothing is waited for as long by a test that passes.
LONG = 10.0


class World:
    """A route to `main`, copied to `copy`; and one to `copy` itself."""

    def __init__(
        self, main: FakeUpstream, *copies: int, retry: RetryPolicy | None = None, pool: PoolSettings | None = None
    ) -> None:
        self._settings = pool or PoolSettings()
        self.transport = Transport(b"")
        policy = retry or RetryPolicy(buffer=1000)
        match = (Match(prefix="/strip"),)
        to_copy = Route("shadow", "copy", match, strip_prefix=True, host="inside.test", timeouts=TIMEOUTS, retry=policy)
        self.route = Route("shadow", "main", match, timeouts=TIMEOUTS, retry=policy, mirror=Mirror(to_copy))
        self.direct = Route("direct", "copy", timeouts=TIMEOUTS, retry=policy)
        groups = {"main": self._group("main", main.port), "copy": self._group("copy", *copies)}
        self.snapshot = Snapshot("v", Config("v", {}, ()), groups, Router([self.route]))
        self.decisions = groups["copy"].state.decisions
        outbound = Outbound(ServerSettings(), b"gw", Trust(()), lambda: b"id")
        self.forwarder = Forwarder(outbound, race, gevent.sleep)
        self.copies = Copies(outbound, self.transport)
        self.shaper = Shaper(outbound, self.forwarder.forward, self.copies.copy, lambda: 0.5)
        self.outbound = outbound

    def _group(self, name: str, *ports: int) -> Group:
        endpoints = tuple(Endpoint("http", "127.0.0.1", port) for port in ports)
        # Short bodies stream: these tests are about what an upstream has of one that still comes.
        streams = Buffering(request=0)
        upstream = Upstream(name, StaticSource(endpoints), timeouts=TIMEOUTS, pool=self._settings, buffer=streams)
        state = UpstreamState(upstream, RoundRobin(lambda: 0.0), Budget(time.monotonic))
        pools = (Candidate(one, EndpointState(state.gate), self.transport.pool(upstream, one)) for one in endpoints)
        return Group(upstream, endpoints, "", tuple(pools), state)

    def send(self, method=b"GET", path=b"/strip/x?y=%2f", headers=(), body=None, length=None, route=None):
        """The answer, its body still to be read."""
        if isinstance(body, bytes):
            body, length = BufferedBody(body), len(body)
        asked = Request(method, path, list(headers), time.monotonic(), "192.0.2.1", host=b"a.test", body=body,
                        content_length=length, chunked=body is not None and length is None)  # fmt: skip
        route = asked.route = route or self.route
        self.outbound.identify(asked)
        target, normal = targets.read(path)
        if route.plain:
            return self.forwarder.forward(asked, route, self.snapshot.groups[route.upstream], target, normal, b"a.test")
        return self.shaper.answer(asked, route, self.snapshot, target, normal, b"a.test", b"a.test")

    def ask(self, *args, **how) -> bytes:
        return whole(self.send(*args, **how))

    @property
    def counted(self) -> dict[str, int]:
        """What became of copies."""
        return {word: number for word, number in self.decisions.items() if word.startswith("mirror")}

    def counts(self, **expected: int) -> None:
        """So many copies, and no others: mirrored, failed, dropped."""
        soon(lambda: sum(self.counted.values()) >= sum(expected.values()))
        names = {"mirrored": "mirrored", "failed": "mirror_failed", "dropped": "mirror_dropped"}
        assert self.counted == {names[key]: number for key, number in expected.items()}

    def idle(self) -> bool:
        """Nothing of the copies' is under way any more."""
        state = self.snapshot.groups["copy"].state
        return state.gate.in_flight == 0 and all(
            candidate.state.in_flight == 0 for candidate in self.snapshot.groups["copy"].candidates
        )

    def close(self) -> None:
        self.copies.stop()
        self.transport.close()


@pytest.fixture
def main():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def copy():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def world(main, copy):
    running = greenlets()
    made = World(main, copy.port)
    yield made
    made.close()
    soon(made.idle)
    soon(lambda: greenlets() <= running)


# -- what is sent ----------------------------------------------------------------------------


def test_a_copy_is_the_request_as_it_is_for_its_upstream(world, main, copy):
    headers = [(b"Accept", b"a/b"), (b"gateway-mirror", b"forged"), (b"Connection", b"keep-alive"), (b"X-A", b"1"),
               (b"x-a", b"2"), (b"Expect", b"100-continue")]  # fmt: skip
    assert world.ask(headers=headers) == b"ok"
    world.counts(mirrored=1)
    first, second = main.requests[0], copy.requests[0]
    assert (first.target, second.target) == (b"/strip/x?y=%2f", b"/x?y=%2f")
    assert (first.header(b"host"), second.header(b"host")) == (b"a.test", b"inside.test")
    assert first.values(b"gateway-mirror") == []
    assert second.header(b"gateway-mirror") == b"shadow"
    assert second.header(b"x-forwarded-prefix") == b"/strip"
    apart = (b"host", b"gateway-mirror", b"x-forwarded-prefix")
    assert [field for field in second.headers if field[0].lower() not in apart] == [
        field for field in first.headers if field[0].lower() != b"host"
    ]


@pytest.mark.parametrize("length", [True, False], ids=["by length", "chunked"])
@pytest.mark.parametrize("pieces", [(b"pay", b"ment"), (b"x" * 1000,), ()])
def test_a_body_is_copied(world, main, copy, pieces, length):
    body = b"".join(pieces)
    given = Pieces(*pieces) if body or not length else None
    assert world.ask(b"POST", body=given, length=len(body) if length else None) == b"ok"
    world.counts(mirrored=1)
    soon(lambda: copy.requests[0].complete)
    assert (copy.requests[0].body, copy.requests[0].method) == (body, b"POST")
    assert copy.requests[0].header(b"content-length") == b"%d" % len(body)
    assert main.bodies == [body]


def test_a_body_that_is_here_is_copied(world, main, copy):
    assert world.ask(b"PUT", body=b"whole") == b"ok"
    world.counts(mirrored=1)
    assert main.bodies == copy.bodies == [b"whole"]


def test_a_body_that_is_sent_twice_is_copied_once(main, copy):
    world = World(main, copy.port, retry=RetryPolicy(methods=frozenset({b"PUT"}), budget=1.0))
    main.queue([Act.RESET])
    assert world.ask(b"PUT", body=b"again") == b"ok"
    world.counts(mirrored=1)
    assert main.bodies == [b"again", b"again"]
    assert copy.bodies == [b"again"]
    world.close()


@pytest.mark.parametrize("length", [True, False], ids=["by length", "chunked"])
def test_a_larger_body_has_no_copy(world, main, copy, length):
    pieces = (b"x" * 900, b"y" * 101)
    assert world.ask(b"POST", body=Pieces(*pieces), length=1001 if length else None) == b"ok"
    world.counts(dropped=1)
    assert main.bodies == [b"".join(pieces)]
    assert copy.connections == []


def test_a_body_that_breaks_off_has_no_copy(world, main, copy):
    with pytest.raises(ClientClosed):
        world.send(b"POST", body=Pieces(b"half", ClientClosed("gone")), length=8)
    world.counts(dropped=1)
    assert copy.connections == []


def test_a_body_that_was_not_wanted_has_no_copy(world, main, copy):
    """The upstream answers before it has read it."""
    never = gevent.event.Event()
    main.answer(lambda exchange: exchange.send(answer(b"no", b"Connection: close", status=413)))
    assert world.ask(b"POST", body=Pieces(b"half", never), length=8) == b"no"
    world.counts(dropped=1)
    assert copy.connections == []


def test_an_upload_that_outlives_the_answers_head_is_copied(world, main, copy):
    """The answer begins at once, and its body ends after the request's."""
    more = gevent.event.Event()

    def early(exchange):
        exchange.send(head(200, b"Content-Length: 2"))
        exchange.read_body()
        exchange.send(b"ok")

    main.answer(early)
    response = world.send(b"POST", body=Pieces(b"half", more, b"more"), length=8)
    assert world.counted == {}
    more.set()
    assert whole(response) == b"ok"
    world.counts(mirrored=1)
    assert copy.bodies == [b"halfmore"]


# -- whatever becomes of it ------------------------------------------------------------------


def test_a_slow_mirror_delays_nothing(world, main, copy):
    go = threading.Event()
    copy.answer([go, answer(b"late")])
    for _ in range(5):
        assert world.ask() == b"ok"
    # All of them are answered before any copy is.
    assert world.counted == {}
    go.set()
    world.counts(mirrored=5)


def test_a_hanging_mirror_takes_no_more_than_its_room(world, main, copy, monkeypatch):
    monkeypatch.setattr(mirror, "UNDER_WAY", 2)
    monkeypatch.setattr(mirror, "WAITING", 3)
    go = threading.Event()
    copy.answer([go, answer(b"late")])
    for _ in range(10):
        assert world.ask() == b"ok"
    assert world.counted == {"mirror_dropped": 5}
    go.set()
    world.counts(dropped=5, mirrored=5)
    assert world.ask() == b"ok"
    world.counts(dropped=5, mirrored=6)


def test_a_dead_mirror_alters_nothing_and_is_told_once(main, caplog):
    with FakeUpstream() as gone:
        port = gone.port
    world = World(main, port)
    with caplog.at_level(logging.WARNING, "gateway.forwarding.mirror"):
        for _ in range(5):
            assert world.ask() == b"ok"
        world.counts(failed=5)
    assert len([record for record in caplog.records if record.name == "gateway.forwarding.mirror"]) == 1
    assert "copies to upstream copy fail: dial tcp 127.0.0.1" in caplog.text
    world.close()


def test_a_mirror_without_endpoints_alters_nothing(main):
    world = World(main)
    assert world.ask() == b"ok"
    world.counts(failed=1)
    world.close()


@pytest.mark.parametrize("bad", [[Act.RESET], [b"garbage\r\n\r\n"], answer(b"broken", status=500)])
def test_a_mirror_that_fails_gets_it_once_and_nobody_notices(world, main, copy, bad):
    copy.answer(bad)
    assert world.ask() == b"ok"
    world.counts(**({"mirrored": 1} if isinstance(bad, bytes) else {"failed": 1}))
    assert len(copy.requests) == 1


def test_its_timeouts_are_those_of_its_own_route(main, copy):
    world = World(main, copy.port)
    given = world.route.mirror.route
    world.route = replace(world.route, mirror=Mirror(replace(given, timeouts=replace(TIMEOUTS, response=0.05))))
    copy.answer([Act.HANG])
    assert world.ask() == b"ok"
    world.counts(failed=1)
    world.close()


def test_the_request_fails_as_it_would_have(world, main, copy):
    main.answer([Act.RESET])
    with pytest.raises(UpstreamReset):
        world.send(b"POST", body=b"pay")
    world.counts(mirrored=1)


def test_a_fault_of_ours_costs_one_copy(world, monkeypatch, caplog):
    def fail(self, *given):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(mirror._Marked, "send", fail)
        assert world.ask() == b"ok"
        world.counts(failed=1)
    assert "a bug" in caplog.text
    assert world.ask() == b"ok"
    world.counts(failed=1, mirrored=1)


# -- connections -----------------------------------------------------------------------------


def test_copies_have_connections_of_their_own(main, copy):
    """Where traffic has one connection at most, a copy that hangs does not take it."""
    world = World(main, copy.port, pool=PoolSettings(max_connections=1))
    go = threading.Event()
    copy.answer(lambda exchange: exchange.send(answer(b"ok")) if exchange.request.target == b"/direct" else go.wait(LONG))
    assert world.ask() == b"ok"
    soon(lambda: len(copy.requests) == 1)
    assert world.ask(path=b"/direct", route=world.direct) == b"ok"
    assert copy.requests[1].connection != copy.requests[0].connection
    # It is no copy, though it goes to the same endpoint.
    assert copy.requests[1].values(b"gateway-mirror") == []
    go.set()
    world.close()


@pytest.mark.parametrize(
    ("script", "reused"),
    [
        (answer(b"x" * 100_000), True),
        ([head(200, b"Transfer-Encoding: chunked"), chunked(b"a", b"b")], True),
        (answer(b"x" * (mirror.ANSWER_BYTES + 200_000)), False),
        ([head(200, b"Content-Length: 10"), b"half", Act.CLOSE], False),
    ],
    ids=["long", "chunked", "too long", "cut"],
)
def test_an_answer_is_read_to_its_end_within_bounds(world, main, copy, script, reused):
    copy.answer(script)
    for number in (1, 2):
        assert world.ask() == b"ok"
        world.counts(mirrored=number)
        soon(world.idle)
    assert (copy.requests[0].connection == copy.requests[1].connection) is reused


def test_an_answer_without_end_is_left(world, main, copy, monkeypatch):
    monkeypatch.setattr(mirror, "ANSWER_SECONDS", 0.05)
    copy.answer([head(200, b"Transfer-Encoding: chunked"), Act.HANG])
    assert world.ask() == b"ok"
    world.counts(mirrored=1)
    soon(world.idle)


def test_pools_go_with_their_endpoints(world, main, copy):
    assert world.ask() == b"ok"
    world.counts(mirrored=1)
    soon(lambda: not any(lane.busy for lane in world.copies._lanes.values()))
    (pool,) = world.copies._transport._by_endpoint.values()
    world.copies.sweep(world.snapshot)
    assert (pool.retired, pool.open) == (False, 1)
    gone = replace(world.snapshot, groups={"main": world.snapshot.groups["main"]})
    world.copies.sweep(gone)
    assert (pool.retired, pool.open) == (True, 0)
    assert (world.copies._transport._by_endpoint, world.copies._lanes, world.copies._known) == ({}, {}, set())
    # One that was under way still finds the way there, but nothing is kept.
    assert world.ask() == b"ok"
    world.counts(mirrored=2)
    soon(world.idle)
    world.copies.sweep(gone)
    assert (world.copies._transport._by_endpoint, world.copies._known) == ({}, set())


def test_stop_drops_what_waits_and_ends_what_is_under_way(world, main, copy, monkeypatch):
    monkeypatch.setattr(mirror, "UNDER_WAY", 1)
    copy.answer([Act.HANG])
    for _ in range(3):
        assert world.ask() == b"ok"
    soon(lambda: len(copy.requests) == 1)
    world.copies.stop()
    soon(world.idle)
    assert len(copy.requests) == 1
    assert world.counted == {}


def test_tls_contexts_are_those_of_the_traffic():
    """They take long to make, and a copy must not keep the hub."""
    upstream = Upstream("u", StaticSource(()), scheme="https", tls=TlsSettings())
    traffic = Transport(b"")
    traffic.prepare(upstream)
    beside = Transport(b"", traffic)
    endpoint = Endpoint("https", "127.0.0.1", 1)
    assert beside.pool(upstream, endpoint) is not traffic.pool(upstream, endpoint)
    contexts = [one.pool(upstream, endpoint).conn_kw["ssl_context"] for one in (traffic, beside)]
    assert contexts[0] is contexts[1]
    assert beside._contexts == {}


def test_many_at_once_with_mirrors_of_every_mood(main, copy):
    """Nothing is lost on the way, and every copy is accounted for."""
    seeded = random.Random(3)
    moods = [answer(b"ok"), answer(b"no", status=503), [Act.RESET], [b"HTTP/1.1 200 OK\r\nConte", Act.CLOSE]]
    copy.queue(*(seeded.choice(moods) for _ in range(60)))
    world = World(main, copy.port)
    answers = [gevent.spawn(world.ask, b"POST", body=b"%d" % number) for number in range(60)]
    gevent.joinall(answers, timeout=LONG)
    assert [one.value for one in answers] == [b"ok"] * 60
    soon(lambda: sum(world.counted.values()) == 60)
    assert world.decisions["mirrored"]
    assert world.decisions["mirror_failed"]
    soon(world.idle)
    world.close()
