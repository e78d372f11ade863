"""A failed request leaves nothing for the garbage collector: an error that is kept where its own traceback leads
keeps the whole exchange, body included, until a collection that holds up every other request.

Rule: each failure is brought about by a real peer, twenty times with the collector off; then it finds nothing of ours.
"""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gateway import config as files
from gateway.app import Gateway
from gateway.net.stream import Stream
from gateway.server.connection import Connection, Place, Shared
from gateway.server.parser import HeadParser
from gateway.testing import Act, Exchange, FakeUpstream, RawClient, answer, chunk, head
from tests.exchanges import soon

TIMES = 20
CONFIG = """
version: 1
admin: null
access_log: {{path: null}}
defaults:
  eject: null
  # Short uploads stream.
  buffer: {{request: 0}}
  timeouts: {{connect: 200ms, response: 50ms, write: 200ms, idle: 50ms}}
  retry: {{attempts: 2, statuses: [503], methods: [GET, PUT], backoff: 1ms, budget: 100%}}
upstreams:
  u: {{endpoints: ["{url}"]}}
  once: {{endpoints: ["{url}"], retry: {{attempts: 1}}}}
  refused: {{endpoints: ["http://127.0.0.1:{refused}"]}}
  tls: {{endpoints: ["https://127.0.0.1:{port}"]}}
  narrow: {{endpoints: ["{url}"], pool: {{max_connections: 1, queue_timeout: 10ms}}}}
  gate: {{endpoints: ["{url}"], concurrency: {{limit: 1, queue: 1, queue_timeout: 10ms}}}}
  total: {{endpoints: ["{url}"], timeouts: {{total: 30ms}}}}
  hedged: {{endpoints: ["{url}/1", "{url}/2"], retry: {{attempts: 2, hedge: true, budget: 100%}}}}
routes:
  - {{name: once, match: {{prefix: /once}}, upstream: once}}
  - {{name: refused, match: {{prefix: /refused}}, upstream: refused}}
  - {{name: tls, match: {{prefix: /tls}}, upstream: tls}}
  - {{name: narrow, match: {{prefix: /narrow}}, upstream: narrow}}
  - {{name: gate, match: {{prefix: /gate}}, upstream: gate}}
  - {{name: total, match: {{prefix: /total}}, upstream: total}}
  - {{name: hedged, match: {{prefix: /hedged}}, upstream: hedged}}
  - {{name: u, match: {{prefix: /u}}, upstream: u}}
"""


class World:
    """A gateway in this process, a listener with the worker's own connections, and one upstream."""

    def __init__(self, fake: FakeUpstream, refused: int) -> None:
        self.fake = fake
        config = files.loads(CONFIG.format(url=fake.url, port=fake.port, refused=refused).encode(), "x", {})
        self.gateway = Gateway(config)
        self.gateway.start()
        self._shared = Shared(
            self.gateway, None, config.server, HeadParser(config.server.limits), worn=lambda: None  # type: ignore[arg-type]
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = gevent.spawn(self._accept)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            gevent.spawn(Connection(self._shared, Stream(sock), Place("http", self.port), "127.0.0.1").run)
            del sock

    def ask(self, target: bytes, method: bytes = b"GET", *lines: bytes, body: bytes = b"") -> None:
        with RawClient(self.port) as client:
            raw = [method + b" " + target + b" HTTP/1.1", b"Host: a", b"Connection: close", *lines, b"", body]
            client.send(b"\r\n".join(raw))
            try:
                client.read_to_end()
            except ConnectionResetError:
                pass  # what the failure under test does to the client

    def quiet(self) -> bool:
        return not self._shared.connections and not self.gateway.in_flight()

    def close(self) -> None:
        self._accepting.kill()
        self._listener.close()
        self.gateway.stop()


@pytest.fixture
def world() -> Iterator[World]:
    with FakeUpstream() as fake, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        made = World(fake, nobody.getsockname()[1])
        yield made
        made.close()


@contextmanager
def another(world: World, target: bytes) -> Iterator[None]:
    """While another request is in progress, without an answer."""
    world.fake.queue([Act.HANG])
    with RawClient(world.port) as client:
        before = len(world.fake.requests)
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        world.fake.until(lambda: len(world.fake.requests) > before)
        yield
        client.reset()
    soon(world.quiet)


def refused(world: World) -> None:
    world.ask(b"/refused")


def no_route(world: World) -> None:
    world.ask(b"/nothing")


def reset(world: World) -> None:
    world.fake.answer([Act.RESET])
    world.ask(b"/u")


def cut_in_the_head(world: World) -> None:
    world.fake.answer([b"HTTP/1.1 200 O", Act.CLOSE])
    world.ask(b"/u")


def no_http(world: World) -> None:
    world.fake.answer([b"nonsense\r\n\r\n"])
    world.ask(b"/u")


def no_answer(world: World) -> None:
    world.fake.answer([Act.HANG])
    world.ask(b"/once")


def past_the_deadline(world: World) -> None:
    world.fake.answer([Act.HANG])
    world.ask(b"/total")


def no_tls(world: World) -> None:
    world.ask(b"/tls")


def body_cut(world: World) -> None:
    world.fake.answer([head(200, b"Content-Length: 10") + b"half", Act.CLOSE])
    world.ask(b"/u")


def body_stalled(world: World) -> None:
    world.fake.answer([head(200, b"Content-Length: 10") + b"half", Act.HANG])
    world.ask(b"/u")


def upload_reset(world: World) -> None:
    def reset(exchange: Exchange) -> None:
        exchange.read_piece()
        exchange.wire.reset()

    world.fake.answer(reset)
    with RawClient(world.port) as client:
        client.send(b"POST /u HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 4000)
        client.read_response()


def client_leaves_inside_its_body(world: World) -> None:
    with RawClient(world.port) as client:
        before = len(world.fake.requests)
        client.send(b"PUT /u HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 4000)
        world.fake.until(lambda: len(world.fake.requests) > before)
        client.reset()


def client_leaves_before_its_answer(world: World) -> None:
    world.fake.answer([Act.HANG])
    with RawClient(world.port) as client:
        before = len(world.fake.requests)
        client.send(b"GET /once HTTP/1.1\r\nHost: a\r\n\r\n")
        world.fake.until(lambda: len(world.fake.requests) > before)
        client.reset()


def client_leaves_inside_its_answer(world: World) -> None:
    world.fake.answer([head(200, b"Content-Length: 10000000") + b"x" * 1_000_000, Act.HANG])
    with RawClient(world.port) as client:
        client.send(b"GET /u HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_exactly(1000)
        client.reset()


def bad_chunks(world: World) -> None:
    with RawClient(world.port) as client:
        client.send(b"PUT /u HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"good"))
        client.send(b"zz\r\n")
        client.read_response()


def busy_and_then_reset(world: World) -> None:
    world.fake.queue(answer(b"busy", status=503), [Act.RESET])
    world.ask(b"/u")


def early_answer_to_an_upload(world: World) -> None:
    def early(exchange: Exchange) -> None:
        exchange.read_piece()
        exchange.send(answer(b"no", status=503))
        exchange.hang()

    world.fake.answer(early)
    with RawClient(world.port) as client:
        client.send(b"PUT /u HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 4000)
        client.read_response()


def pool_full(world: World) -> None:
    with another(world, b"/narrow"):
        world.ask(b"/narrow")


def gate_full(world: World) -> None:
    with another(world, b"/gate"):
        world.ask(b"/gate")


def reset_and_then_well(world: World) -> None:
    world.fake.queue([Act.RESET])
    world.ask(b"/u")


def busy_and_then_well(world: World) -> None:
    def early(exchange: Exchange) -> None:
        exchange.read_piece()
        exchange.send(answer(b"busy", status=503))
        exchange.read_body()

    world.fake.queue(early)
    with RawClient(world.port) as client:
        before = len(world.fake.requests)
        client.send(b"PUT /u HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 4000)
        world.fake.until(lambda: len(world.fake.requests) > before + 1)
        client.send(b"x" * 5000)
        assert client.read_response().status == 200


def hedge_won(world: World) -> None:
    state = world.gateway.store.current.groups["hedged"].state
    state.usual()
    assert state.latencies is not None
    state.latencies.p95 = 0.001
    world.fake.queue([Act.HANG])
    world.ask(b"/hedged")


def both_hedged_attempts_fail(world: World) -> None:
    state = world.gateway.store.current.groups["hedged"].state
    state.usual()
    assert state.latencies is not None
    state.latencies.p95 = 0.001
    world.fake.answer([0.02, Act.RESET])
    world.ask(b"/hedged")


FAILURES: list[Callable[[World], None]] = [
    refused, no_route, reset, cut_in_the_head, no_http, no_answer, past_the_deadline, no_tls, body_cut, body_stalled,
    upload_reset, client_leaves_inside_its_body, client_leaves_before_its_answer, client_leaves_inside_its_answer,
    bad_chunks, busy_and_then_reset, early_answer_to_an_upload, pool_full, gate_full, both_hedged_attempts_fail,
    hedge_won, reset_and_then_well, busy_and_then_well,
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: one.__name__)
def test_nothing_is_left_to_collect(world: World, failure: Callable[[World], None]) -> None:
    """What is first met (tables, imports, log handlers) may leave something once."""
    failure(world)
    soon(world.quiet)
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            failure(world)
        soon(world.quiet)
        time.sleep(0)  # the last greenlets end
        found = _garbage()
    finally:
        gc.enable()
    assert found == []


def _garbage() -> list[str]:
    """What of an exchange only a collection finds, by type: requests, answers, errors, connections. The fakes'
    own errors do not count."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kept: list[Any] = [thing for thing in gc.garbage if _is_ours(thing)]
        return sorted({f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in kept})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def _is_ours(thing: Any) -> bool:
    module = type(thing).__module__
    return module.startswith("gateway.") and not module.startswith("gateway.testing")
