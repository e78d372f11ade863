"""A worker that has all the connections it may have: who makes room, over plain TCP and TLS; the admin
listener's is in test_admin.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.testing import PATIENCE, RawClient
from tests.conformance.harness import certificate
from tests.integration.worker_process import WorkerProcess, get

MOST = 4
SETTINGS = {"limits": {"connections": MOST, "connections_per_client": 0}, "timeouts": {"header": 30.0, "body": 30.0}}
POST = b"POST /count?x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path, settings=SETTINGS) as process:
        yield process
    assert "Traceback" not in process.errors()


def alive(client: RawClient) -> bool:
    """Whether a request is still answered."""
    try:
        return client.request(get("/hello")).status == 200
    except (OSError, AssertionError):
        return False


def test_silent_ones_make_room_for_all_who_speak(worker: WorkerProcess) -> None:
    """Idle sockets keep nobody out, as many as there are."""
    with ExitStack() as stack:
        silent = [stack.enter_context(worker.client()) for _ in range(MOST * 3)]
        for _ in range(MOST * 2):
            assert worker.ask(get("/hello")).status == 200
        assert sum(client.ended(within=PATIENCE) for client in silent[:MOST]) == MOST


def test_the_one_idle_longest_makes_room(worker: WorkerProcess) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(worker.client()) for _ in range(MOST)]
        for client in clients:
            assert client.request(get("/hello")).status == 200
        time.sleep(1.1)  # idle for long enough: the rule is about time
        # A request makes it the youngest.
        assert clients[0].request(get("/hello")).status == 200
        assert worker.ask(get("/hello")).status == 200
        assert clients[1].ended(within=PATIENCE)
        assert alive(clients[0])
        assert alive(clients[3])


def test_lingering_ones_make_room(worker: WorkerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(2 * MOST):
            client = stack.enter_context(worker.client())
            client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
            assert client.read_response(b"POST").status == 413
        assert worker.ask(get("/hello")).status == 200


def test_who_is_inside_a_head_a_body_or_an_answer_keeps_its_place(worker: WorkerProcess) -> None:
    with ExitStack() as stack:
        heads, body, answer, idle = (stack.enter_context(worker.client()) for _ in range(MOST))
        heads.send(b"GET /hello HTTP/1.1\r\n")
        body.send(POST + b"he")
        answer.send(get("/hold?3"))
        assert idle.request(get("/hello")).status == 200
        time.sleep(1.1)  # idle for long enough: the rule is about time
        with worker.client() as newcomer:
            assert newcomer.request(get("/hello")).status == 200
            assert idle.ended(within=PATIENCE)
            # Nobody is left who may be closed: the next one waits until somebody ends.
            with worker.client() as waiting:
                waiting.send(get("/hello"))
                newcomer.send(get("/hold?1"))
                heads.send(b"Host: a\r\n\r\n")
                assert heads.read_response().status == 200
                body.send(b"llo")
                assert body.read_response().body == b"5"
                assert answer.read_response().status == 200
                heads.close()
                assert waiting.read_response().status == 200


def test_a_silent_tunnel_keeps_its_place(worker: WorkerProcess) -> None:
    with ExitStack() as stack:
        tunnel, idle, *others = (stack.enter_context(worker.client()) for _ in range(MOST))
        tunnel.send(get("/tunnel", "Connection: Upgrade", "Upgrade: Echo"))
        assert tunnel.read_response().status == 101
        assert idle.request(get("/hello")).status == 200
        for client in others:
            client.send(POST + b"he")
        time.sleep(1.1)  # idle for long enough: the rule is about time
        assert worker.ask(get("/hello")).status == 200
        assert idle.ended(within=PATIENCE)
        tunnel.send(b"ping")
        assert tunnel.read_exactly(6) == b"[ping]"


def test_tls_handshakes_that_do_not_come_make_room(tmp_path: Path) -> None:
    both, _ = certificate().write(tmp_path)
    arguments = ("--certfile", str(both), "--keyfile", str(both))
    with WorkerProcess(tmp_path, *arguments, settings=SETTINGS) as worker, ExitStack() as stack:
        silent = [stack.enter_context(worker.client()) for _ in range(MOST * 2)]
        for _ in range(MOST):
            with worker.client(tls=certificate().client) as client:
                assert client.request(get("/hello")).status == 200
        assert all(client.ended(within=PATIENCE) for client in silent[:MOST])
    assert "Traceback" not in worker.errors()


def test_a_client_has_only_so_many(tmp_path: Path) -> None:
    settings = {"limits": {"connections": 100, "connections_per_client": 2}}
    with WorkerProcess(tmp_path, settings=settings) as worker, ExitStack() as stack:
        first, second = (stack.enter_context(worker.client()) for _ in range(2))
        assert alive(first)
        assert alive(second)
        with worker.client() as third:
            assert third.ended(within=PATIENCE)
        first.close()
        worker.until(lambda: _asks(worker), "a place to be free")


def _asks(worker: WorkerProcess) -> bool:
    try:
        return bool(worker.ask(get("/hello")).status == 200)
    except (OSError, AssertionError):
        return False
