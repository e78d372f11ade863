"""A short soak with reloads; `scripts/soak reloads` is the long one. And: what it is there to find, it finds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gateway.testing import RawClient, Wire, answer, chunked, head
from tests.conformance.harness import certificate
from tests.reload_soak import WORKERS, reload_soak
from tests.soak_clients import Load
from tests.soak_orders import Faults, Order, answered, owned
from tests.soak_reloads import History
from tests.soak_upstream import Ledger, Upstream

WARM_UP = 900
REQUESTS = 1_800


def test_every_byte_reaches_whom_it_belongs_to_and_nothing_is_left_over(tmp_path: Path) -> None:
    with reload_soak(tmp_path, seed=1) as soak:
        assert soak.gateway.errors().count("Door: direct") == WORKERS
        soak.run(WARM_UP)
        before = soak.held()
        soak.run(REQUESTS)
        after = soak.held()
        lines = soak.finish(before, after)
        print(*soak.counted(lines, after), sep="\n")
        assert soak.load.made >= WARM_UP + REQUESTS
        assert not soak.faults.total, "\n".join(soak.faults.lines())


@pytest.fixture(params=["plain", "TLS"])
def upstream(request: pytest.FixtureRequest) -> Iterator[tuple[Upstream, Ledger, Faults]]:
    faults = Faults()
    ledger = Ledger(faults)
    made = Upstream("upstream", ledger, certificate().server if request.param == "TLS" else None)
    yield made, ledger, faults
    made.close()


def _send(upstream: Upstream, *data: bytes) -> bytes:
    """Send it and the FIN; what the upstream answers until it closes."""
    tls = certificate().client if upstream.url.startswith("https") else None
    with RawClient(upstream.port, tls=tls) as client:
        for piece in data:
            client.send(piece)
        client.half_close()
        try:
            return client.read_to_end()
        except ConnectionResetError:
            return bytes(client.buffer)


class TestAnUpstreamNotices:
    def test_nothing_where_all_is_right(self, upstream: tuple[Upstream, Ledger, Faults]) -> None:
        server, ledger, faults = upstream
        one, other = Order(1, "main", "PUT", 30_000), Order(2, "main", "POST", 700, chunked=True)
        found = _send(server, one.head(), one.body, other.head(), chunked(other.body[:10], other.body[10:]))
        assert found.count(b"HTTP/1.1 200") == 2
        assert (faults.lines(), ledger.heads, ledger.whole_bodies) == ([], 2, 2)

    @pytest.mark.parametrize("act", ["ok", "busy-small", "early"])
    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_another_clients_head_inside_a_body(
        self, upstream: tuple[Upstream, Ledger, Faults], act: str, is_chunked: bool
    ) -> None:
        server, _, faults = upstream
        order, other = Order(1, "main", "PUT", 7_000, is_chunked, acts=(act,)), Order(2, "main")
        begun = b"%x\r\n%s" % (7_000, order.body[:2_500]) if is_chunked else order.body[:2_500]
        _send(server, order.head(), begun, other.head())
        assert list(faults.counts) == ["bytes of something else in a body"]
        assert "GET /main/00000002" in faults.examples["bytes of something else in a body"][0]

    def test_a_body_that_breaks_off_is_no_fault(self, upstream: tuple[Upstream, Ledger, Faults]) -> None:
        server, ledger, faults = upstream
        order = Order(1, "main", "PUT", 7_000)
        _send(server, order.head(), order.body[:6_999])
        assert (faults.lines(), ledger.heads, ledger.whole_bodies) == ([], 1, 0)

    def test_a_chunked_body_that_ends_too_early(self, upstream: tuple[Upstream, Ledger, Faults]) -> None:
        server, _, faults = upstream
        order = Order(1, "main", "PUT", 7_000, chunked=True)
        _send(server, order.head(), chunked(order.body[:6_999]))
        assert list(faults.counts) == ["a body cut short that looks whole"]

    @pytest.mark.parametrize("rest", [owned(1, 100), b"\r\n", b"\x17\x03\x03\x00\x20" + bytes(32)])
    def test_what_is_no_request_behind_one(self, upstream: tuple[Upstream, Ledger, Faults], rest: bytes) -> None:
        server, _, faults = upstream
        _send(server, Order(1, "main").head() + rest)
        assert list(faults.counts) == ["no request where one must begin"]

    def test_anothers_fields(self, upstream: tuple[Upstream, Ledger, Faults]) -> None:
        server, _, faults = upstream
        _send(server, Order(1, "main").head().replace(b"X-Soak: 00000001", b"X-Soak: 00000002"))
        assert list(faults.counts) == ["a head with another's fields"]

    def test_two_versions_in_one_target(self, upstream: tuple[Upstream, Ledger, Faults]) -> None:
        server, _, faults = upstream
        _send(server, Order(1, "c3/c4").head())
        assert list(faults.counts) == ["two versions of the configuration in one request"]


class TestAClientNotices:
    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (answer(answered(2, "ok", b"", 9), b"X-Soak: 00000001"), "wrong bytes in an answer"),
            (answer(answered(1, "ok", b"", 9), b"X-Soak: 00000002"), "another client's answer"),
            (answer(answered(1, "ok", b"", 9)[:-1] + b"x", b"X-Soak: 00000001"), "wrong bytes in an answer"),
            (
                head(200, b"Content-Length: 500", b"X-Soak: 00000001") + answered(1, "ok", b"", 900)[:300],
                "an answer broke off",
            ),
            (answer(b"", b"Gateway-Error: no_route", status=404), "failed by a reload"),
            (answer(b"", b"Gateway-Error: pool_full", status=503), "status 503 pool_full"),
            (b"", "the connection broke without an answer"),
            (b"HTTP/1.1 200 OK\r\nContent", "the connection broke without an answer"),
        ],
    )
    def test_an_answer_that_is_wrong(self, data: bytes, fault: str) -> None:
        mine, theirs = socket.socketpair()
        faults = Faults()
        load = Load(0, 1, History(), faults)
        client = RawClient.__new__(RawClient)
        Wire.__init__(client, mine)
        theirs.sendall(data)
        theirs.close()
        load._answer(client, Order(1, "main"), 0.0, True)
        client.close()
        assert list(faults.counts) == [fault]


def test_an_answer_that_is_right_is_no_fault() -> None:
    mine, theirs = socket.socketpair()
    faults = Faults()
    load = Load(0, 1, History(), faults)
    client = RawClient.__new__(RawClient)
    Wire.__init__(client, mine)
    order = Order(1, "main", "PUT", 700)
    sender = gevent.spawn(theirs.sendall, answer(answered(1, "ok", order.body, 9_000), b"X-Soak: 00000001"))
    assert load._answer(client, order, 0.0, True) == (True, True)
    sender.get()
    client.close()
    theirs.close()
    assert (faults.lines(), load.log.lines) == ([], {1: 200})
