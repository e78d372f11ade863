"""How a worker leaves: at SIGTERM, at a reload and after max_requests, and that nobody pays for it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import RawClient, Truncated
from tests.integration.worker_process import Load, WorkerProcess, get
from tests.services import wait_until_read


def leaving(worker: WorkerProcess) -> None:
    """Send SIGTERM and wait until the worker has heard it."""
    worker.send_signal(signal.SIGTERM)
    worker.until(lambda: "Handling signal: term" in worker.errors(), "the master to hear it")


def refused(port: int) -> bool:
    try:
        with RawClient(port):
            return False
    except ConnectionRefusedError:
        return True


class TestTermination:
    def test_what_is_under_way_is_finished(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker:
            held, streamed, idle = worker.client(), worker.client(), worker.client()
            held.send(get("/hold?2"))
            streamed.send(get("/ticks?20,0.1"))
            assert streamed.read_head().header(b"connection") is None
            assert idle.request(get("/hello")).status == 200
            began = time.monotonic()
            leaving(worker)
            assert idle.ended()
            assert time.monotonic() - began > 0.5  # not before its moment of grace
            response = held.read_response()
            assert (response.body, response.header(b"connection")) == (b"held", b"close")
            assert streamed.read_until(b"0\r\n\r\n").count(b"tick") == 20
            assert held.ended()
            assert streamed.ended()
            assert worker.wait() == 0
            assert "graceful timeout" not in worker.errors()
            assert {each["error"] for each in worker.exchanges()} == {None}

    def test_at_once_when_nothing_is_left(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker:
            assert not refused(worker.port)
            leaving(worker)
            # Not after the graceful timeout, which is 30 s.
            assert worker.wait(within=15) == 0
            assert refused(worker.port)

    @pytest.mark.alone  # within the second that an idle connection has
    def test_a_request_on_an_idle_connection_in_its_moment_of_grace(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker, worker.client() as client:
            assert client.request(get("/ready")).body == b"ready"
            os.kill(worker.worker_pids()[0], signal.SIGTERM)
            time.sleep(0.4)
            response = client.request(get("/ready"))
            assert (response.body, response.header(b"connection")) == (b"draining", b"close")
            assert client.ended()

    def test_a_half_sent_request_is_served(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker, worker.client() as client:
            raw = get("/hello")
            client.send(raw[:10])
            wait_until_read(client.sock)
            leaving(worker)
            time.sleep(1.5)
            client.send(raw[10:])
            response = client.read_response()
            assert (response.body, response.header(b"connection")) == (b"hello", b"close")
            assert worker.wait() == 0

    def test_the_deadline_breaks_what_is_left(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--graceful-timeout", "4") as worker:
            held, streamed, tunnel, half = (worker.client() for _ in range(4))
            held.send(get("/hold?60"))
            streamed.send(get("/ticks?1000,0.1"))
            streamed.read_until(b"tick")
            tunnel.send(get("/tunnel", "Connection: Upgrade", "Upgrade: echo"))
            assert tunnel.read_response().status == 101
            half.send(b"GET / HT")
            began = time.monotonic()
            leaving(worker)
            # The worker itself says so: it was not killed by its master.
            response = held.read_response()
            assert (response.status, response.header(b"gateway-error")) == (503, b"draining")
            with pytest.raises(Truncated):
                streamed.read_until(b"0\r\n\r\n")
            assert tunnel.ended()
            assert half.ended()
            assert worker.wait() == 0
            assert time.monotonic() - began > 1.5  # two seconds before gunicorn's own deadline
            assert worker.ended("/ticks?1000,0.1")["error"] == "draining"
            assert worker.ended("/hold?60")["status"] == 503
            worker.ended("/tunnel")
            assert "Traceback" not in worker.errors()

    def test_lingering_ends(self, tmp_path: Path) -> None:
        """A client that goes on with its upload does not hold the worker."""
        with WorkerProcess(tmp_path, "--graceful-timeout", "8") as worker, worker.client() as client:
            client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
            assert client.read_response(b"POST").status == 413
            leaving(worker)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while worker.process.poll() is None:
                    client.send(b"x")
                    time.sleep(0.05)
            assert worker.wait() == 0
            assert "broken off" not in worker.errors()

    @pytest.mark.alone  # within the drain
    def test_accepting_goes_on_while_it_drains(self, tmp_path: Path) -> None:
        """Told to the worker alone, as the master closes its sockets when it is told."""
        with WorkerProcess(tmp_path, settings={"drain": 1.5}) as worker:
            pid = worker.worker_pids()[0]
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
            with worker.client() as client:
                response = client.request(get("/ready"))
                assert (response.body, response.header(b"connection")) == (b"draining", b"close")
            assert worker.ask(get("/pid")).body == b"%d" % pid
            worker.until(lambda: worker.worker_pids() not in ([pid], []), "another worker")
            assert worker.ask(get("/ready")).body == b"ready"

    def test_one_that_is_told_before_it_has_listeners(self, tmp_path: Path) -> None:
        """It accepts while it drains, and keeps no connection."""
        with WorkerProcess(tmp_path, app="told_to_leave", settings={"drain": 4.0}) as worker, worker.client() as client:
            response = client.request(get("/hello"))
            assert (response.status, response.header(b"connection")) == (200, b"close")

    def test_an_idle_connection_does_not_hold_it(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker:
            fresh, used = worker.client(), worker.client()
            assert used.request(get("/hello")).status == 200
            leaving(worker)
            assert worker.wait(within=15) == 0
            assert fresh.ended()
            assert used.ended()

    def test_quit_is_at_once(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path) as worker, worker.client() as client:
            client.send(get("/hold?60"))
            wait_until_read(client.sock)
            worker.send_signal(signal.SIGQUIT)
            worker.wait()
            assert client.ended()


def under_load(worker: WorkerProcess, during: Any) -> Load:
    loads = [Load(port) for port in worker.ports]
    try:
        during()
    finally:
        for load in loads:
            load.stop()
    assert [load.failed for load in loads] == [[]]
    return loads[0]


class TestUnderLoad:
    def test_a_reload_costs_no_request(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, workers=2) as worker:

            def reload_twice() -> None:
                for _ in range(2):
                    before = set(worker.worker_pids())
                    time.sleep(0.3)
                    worker.send_signal(signal.SIGHUP)
                    worker.until(lambda before=before: len(set(worker.worker_pids()) - before) == 2, "new workers")
                    worker.until(lambda before=before: not before & set(worker.worker_pids()), "the old ones to leave")
                time.sleep(0.3)

            assert under_load(worker, reload_twice).answered > 100

    @pytest.mark.parametrize("workers", [1, 2])
    def test_max_requests_cost_no_request(self, tmp_path: Path, workers: int) -> None:
        arguments = ["--max-requests", "300", "--max-requests-jitter", "50"]
        with WorkerProcess(tmp_path, *arguments, workers=workers) as worker:

            def wait() -> None:
                worker.until(lambda: worker.errors().count("Autorestarting") >= 3, "three restarts", within=60)

            assert under_load(worker, wait).answered > 600

    def test_a_stream_is_finished_by_a_worker_that_is_worn(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--max-requests", "5") as worker, worker.client() as client:
            client.send(get("/ticks?20,0.1"))
            client.read_until(b"tick")
            before = worker.worker_pids()
            for _ in range(10):
                worker.ask(get("/hello"))
            worker.until(lambda: "Autorestarting" in worker.errors(), "the worker is worn")
            assert client.read_until(b"0\r\n\r\n").count(b"tick") == 19
            worker.until(lambda: not set(before) & set(worker.worker_pids()), "another worker")
            assert {each["error"] for each in worker.exchanges()} == {None}

    def test_a_worker_that_is_worn_is_not_draining(self, tmp_path: Path) -> None:
        """The service goes on: a readiness check must not see one worker's turn."""
        with WorkerProcess(tmp_path, "--max-requests", "1") as worker, worker.client() as client:
            client.send(get("/ready") + get("/ready"))
            response = client.read_response()
            assert (response.body, response.header(b"connection")) == (b"ready", b"close")
            assert client.ended()
            assert worker.ask(get("/ready")).body == b"ready"
