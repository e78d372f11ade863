"""What a slow, silent or vanished client costs: each limit by its name, and how its end is told."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.testing import RawClient
from tests.integration.worker_process import WorkerProcess, get
from tests.services import wait_until_read

SETTINGS = {
    "timeouts": {"header": 0.5, "body": 0.5, "write": 0.5, "keepalive": 0.5, "half_close": 0.3},
    "window": 1.0,
    "min_rate": 1000,
}
POST = b"POST /count?%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("limits"), settings=SETTINGS) as process:
        yield process
        # Whatever the tests did: nothing is left of it.
        assert process.ask(get("/hello")).status == 200
    assert "Traceback" not in process.errors()


class TestHeads:
    def test_a_head_that_drips(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            for byte in get("/hello", "X: " + "y" * 1000):
                try:
                    client.send(bytes([byte]))
                except OSError:
                    break
                if client.ended(within=0.02):
                    break
            else:
                pytest.fail("the head was read to its end")
            assert bytes(client.received).startswith(b"HTTP/1.1 408 ")

    def test_silence(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            assert client.read_to_end() == b""

    def test_an_idle_connection(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            assert client.request(get("/hello")).status == 200
            assert client.read_to_end() == b""

    def test_waiting_for_the_gateway_is_not_idling(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            assert client.request(get("/hold?1")).body == b"held"
            assert client.request(get("/hello")).status == 200


class TestBodies:
    def test_without_progress(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(POST % (b"stuck", 5) + b"hel")
            assert client.read_response().status == 408
        ended = worker.ended("/count?stuck")
        assert (ended["status"], ended["reason"], ended["bytes_in"]) == (408, "request_timeout", 3)

    def test_each_piece_is_progress(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(POST % (b"slow", 4000))
            for _ in range(4):
                time.sleep(0.3)
                client.send(b"x" * 1000)
            assert client.read_response().body == b"4000"

    def test_drops_that_are_less_than_the_rate(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(POST % (b"drip", 1000))
            for _ in range(20):
                client.send(b"x")
                if client.ended(within=0.1):
                    break
            assert bytes(client.received).startswith(b"HTTP/1.1 408 ")
        assert worker.ended("/count?drip")["reason"] == "request_timeout"


class TestAnswers:
    def test_a_client_that_takes_nothing(self, worker: WorkerProcess) -> None:
        with worker.client(receive_buffer=4096) as client:
            client.send(get("/flood?1000000"))
            ended = worker.ended("/flood?1000000")
            assert ended["error"] == "write_timeout"
            assert ended["bytes_out"] < 100_000_000
            # Cut: not left to the kernel, which would offer the client what it holds for minutes.
            with pytest.raises(ConnectionResetError):
                client.read_to_end()

    def test_one_that_takes_too_little(self, worker: WorkerProcess) -> None:
        """Each piece is progress, so that `write` never ends it; `min_rate` does."""
        with worker.client(receive_buffer=4096) as client:
            client.send(get("/flood?1000001"))
            for _ in range(100):
                time.sleep(0.1)
                if not client.sock.recv(10):
                    break
                if any(each["target"] == "/flood?1000001" for each in worker.exchanges()):
                    break
            assert worker.ended("/flood?1000001")["error"] == "write_timeout"

    def test_one_that_is_slow_and_steady(self, worker: WorkerProcess) -> None:
        with worker.client(receive_buffer=65536) as client:
            client.send(get("/flood?40"))
            client.read_until(b"\r\n\r\n")
            got = len(client.buffer)
            for _ in range(25):
                time.sleep(0.1)
                got += len(client.sock.recv(65536))
            got += len(client.read_to_end())
            assert got > 40 * 65536
        assert worker.ended("/flood?40")["error"] is None

    def test_pauses_of_the_gateway_are_not_the_clients(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            assert client.request(get("/ticks?2,1")).body == b"tick\ntick\n"


class TestClientsThatLeave:
    def test_a_reset_ends_the_exchange_at_once(self, worker: WorkerProcess) -> None:
        client = worker.client()
        client.send(get("/hold?60"))
        wait_until_read(client.sock)
        client.reset()
        ended = worker.ended("/hold?60")
        assert (ended["status"], ended["error"], ended["bytes_out"]) == (None, "client_closed", 0)

    def test_a_reset_inside_a_stream(self, worker: WorkerProcess) -> None:
        client = worker.client()
        client.send(get("/ticks?1000,0.5"))
        client.read_until(b"tick\n")
        client.reset()
        ended = worker.ended("/ticks?1000,0.5")
        assert (ended["status"], ended["error"]) == (200, "client_closed")

    def test_an_end_is_waited_for(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/hold?0.1"))
            client.half_close()
            assert client.read_response().body == b"held"
            assert client.read_to_end() == b""

    def test_but_not_for_long(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/hold?61"))
            client.half_close()
            assert client.ended()
            assert not client.received
        assert worker.ended("/hold?61")["error"] == "client_closed"

    def test_nor_inside_a_stream(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/ticks?1000,0.1"))
            client.half_close()
            assert client.ended()
        assert worker.ended("/ticks?1000,0.1")["error"] == "client_closed"

    def test_inside_a_body(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(POST % (b"cut", 5) + b"hel")
            client.half_close()
            assert client.ended()
            assert not client.received
        ended = worker.ended("/count?cut")
        assert (ended["status"], ended["error"], ended["bytes_in"]) == (None, "client_closed", 3)

    @pytest.mark.parametrize("size", [5, 200_000, 3_000_000])
    @pytest.mark.parametrize("together", [True, False])
    def test_after_a_body(self, worker: WorkerProcess, size: int, together: bool) -> None:
        target = f"/swallow?{size}{together}"
        client = worker.client()
        head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
        client.send(head + b"x" * size if together else head)
        if not together:
            wait_until_read(client.sock)
            client.send(b"x" * size)
        wait_until_read(client.sock)
        client.reset()
        ended = worker.ended(target)
        assert (ended["status"], ended["error"], ended["bytes_in"]) == (None, "client_closed", size)

    @pytest.mark.parametrize("end", [RawClient.reset, RawClient.half_close])
    def test_behind_a_pipelined_request(self, worker: WorkerProcess, end: Callable[[RawClient], None]) -> None:
        target = f"/hold?{62 + len(end.__name__)}"
        with worker.client() as client:
            client.send(get(target))
            wait_until_read(client.sock)
            client.send(get("/hello"))
            time.sleep(0.05)  # nobody reads them: they wait behind the first
            end(client)
            assert worker.ended(target)["error"] == "client_closed"

    def test_pipelined_bytes_are_not_an_end(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/hold?0.5"))
            client.send(get("/hello"))
            assert [client.read_response().body for _ in range(2)] == [b"held", b"hello"]

    def test_pipelined_bytes_cost_nothing_while_they_wait(self, worker: WorkerProcess) -> None:
        """The hub must not be told again and again of what nobody reads yet."""
        with worker.client() as client:
            before = _cpu(worker)
            client.send(get("/hold?1"))
            client.send(get("/hello"))
            assert [client.read_response().body for _ in range(2)] == [b"held", b"hello"]
            assert _cpu(worker) - before < 0.5


class TestPatience:
    @pytest.mark.parametrize(("half_close", "answered"), [(None, True), (0, False)])
    def test_of_half_close(
        self, tmp_path_factory: pytest.TempPathFactory, half_close: float | None, answered: bool
    ) -> None:
        settings = {"timeouts": {"half_close": half_close}}
        with (
            WorkerProcess(tmp_path_factory.mktemp("patience"), settings=settings) as worker,
            worker.client() as client,
        ):
            client.send(get("/hold?1.5"))
            client.half_close()
            assert client.ended()
            assert client.received.endswith(b"held") is answered


class TestManySlowOnes:
    def test_do_not_disturb_the_others(self, worker: WorkerProcess) -> None:
        slow: list[RawClient] = []
        try:
            for start in (b"GET / HT", POST % (b"many", 9) + b"x", get("/flood?1000002")):
                for _ in range(100):
                    client = worker.client(receive_buffer=4096)
                    client.send(start)
                    slow.append(client)
            for _ in range(20):
                assert worker.ask(get("/hello")).status == 200
            assert all(client.ended() for client in slow[:200])
            worker.ended("/flood?1000002", 100)
            worker.ended("/count?many", 100)
        finally:
            for client in slow:
                client.close()


class TestExhaustion:
    def test_of_descriptors(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A worker that has none left serves on with those it has, and takes more when they are back."""
        with WorkerProcess(tmp_path_factory.mktemp("exhausted")) as worker:
            pid = worker.worker_pids()[0]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, 40))
            clients = [worker.client() for _ in range(60)]
            assert clients[0].request(get("/hello")).status == 200
            worker.until(lambda: "no connection can be accepted" in worker.errors(), "the warning")
            for client in clients[1:]:
                client.close()
            assert worker.ask(get("/hello")).status == 200
            assert clients[0].request(get("/hello")).status == 200
            clients[0].close()


class TestJunk:
    def test_of_every_kind_at_once(self, worker: WorkerProcess) -> None:
        """Whatever comes: an answer or an end, and the worker lives."""
        kinds = [b"", b"\x00" * 100, b"\xff" * 70_000, b"GET " + b"a" * 70_000, b"\r\n" * 100, b"A" * 5]
        kinds += [b"GET / HTTP/1.1\r\n" * 9, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
        threads = [threading.Thread(target=_throw, args=(worker.port, kind)) for kind in kinds * 5]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert worker.ask(get("/hello")).status == 200


def _throw(port: int, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        try:
            sock.sendall(raw)
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass  # cut, as it may be


def _cpu(worker: WorkerProcess) -> float:
    fields = Path(f"/proc/{worker.worker_pids()[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
