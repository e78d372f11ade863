"""What records add up to, in files that workers share."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from gateway.model import Endpoint, Route, StaticSource, Upstream
from gateway.telemetry import counter_file
from gateway.telemetry.access_log import Record
from gateway.telemetry.metrics import Metrics

ROUTE, UPSTREAM = Route("r", "u"), Upstream("u", StaticSource(()))
ENDPOINT = Endpoint("http", "10.0.0.1", 80)


def record(
    status: int = 200,
    method: bytes = b"GET",
    reason: str = "",
    bytes_in: int = 0,
    bytes_out: int = 0,
    duration: float = 0.001,
    attempts: int = 1,
    route: Route | None = ROUTE,
    upstream: Upstream | None = UPSTREAM,
    endpoint: Endpoint | None = ENDPOINT,
) -> Record:
    went = (method, b"host.example", b"/path?query", route, upstream, endpoint, status, reason, "cause")
    return (0.0, b"id", "", "192.0.2.1", *went, bytes_in, bytes_out, duration, 0.0, 0.0, 0.0, attempts, False, "v")


class InUse:
    def __init__(self) -> None:
        self.routes = {"r"}
        self.upstreams = {"u"}
        self.endpoints = {("u", "10.0.0.1:80")}

    def __call__(self) -> tuple[Collection[str], Collection[str], Collection[tuple[str, str]]]:
        return self.routes, self.upstreams, self.endpoints


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def counted(tmp_path: Path, now: list[float]) -> Iterator[Metrics]:
    made = Metrics(str(tmp_path), 0, InUse(), lambda: now[0])
    yield made
    made.close()


def values(folder: Path) -> dict[tuple[str, ...], float]:
    found = {}
    for metric in counter_file.collect([str(folder)]):
        for sample in metric.samples:
            found[(sample.name, *(sample.labels[name] for name in sorted(sample.labels)))] = sample.value
    return found


def test_records_are_added_up_by_label(counted: Metrics, tmp_path: Path) -> None:
    counted.observe([record(bytes_in=5, bytes_out=7), record(bytes_in=5, bytes_out=7), record(404), record(502, reason="dns_error")])
    counted.observe([record(method=b"POST", attempts=3)])
    counted.flush()
    found = values(tmp_path)
    # Labels by name: method, route, status, upstream.
    assert found["gateway_requests_total", "GET", "r", "200", "u"] == 2
    assert found["gateway_requests_total", "GET", "r", "404", "u"] == 1
    assert found["gateway_requests_total", "POST", "r", "200", "u"] == 1
    assert found["gateway_errors_total", "dns_error", "r", "u"] == 1
    assert found["gateway_request_bytes_total", "r"] == 10
    assert found["gateway_response_bytes_total", "r"] == 14
    assert found["gateway_retries_total", "u"] == 2
    assert found["gateway_endpoint_requests_total", "10.0.0.1:80", "2xx", "u"] == 3
    assert found["gateway_endpoint_requests_total", "10.0.0.1:80", "4xx", "u"] == 1
    assert found["gateway_endpoint_requests_total", "10.0.0.1:80", "5xx", "u"] == 1
    assert found["gateway_request_duration_seconds_count", "r"] == 5


def test_durations(counted: Metrics, tmp_path: Path) -> None:
    counted.observe([record(duration=each) for each in (0.0, 0.005, 0.0051, 0.3, 30.0, 31.0)])
    counted.flush()
    found = values(tmp_path)
    name = "gateway_request_duration_seconds"
    assert [found[f"{name}_bucket", le, "r"] for le in ("0.005", "0.01", "0.25", "0.5", "10.0", "30.0", "+Inf")] == [
        2, 3, 3, 4, 4, 5, 6,
    ]  # fmt: skip
    assert found[f"{name}_sum", "r"] == pytest.approx(61.3101)


def test_a_tunnel_is_counted_and_its_duration_is_not(counted: Metrics, tmp_path: Path) -> None:
    counted.observe([record(101, duration=3600.0)])
    counted.flush()
    found = values(tmp_path)
    assert found["gateway_tunnels_total", "r"] == 1
    assert not [key for key in found if key[0].startswith("gateway_request_duration")]


def test_what_went_nowhere_has_empty_labels(counted: Metrics, tmp_path: Path) -> None:
    counted.observe([record(404, reason="no_route", route=None, upstream=None, endpoint=None, attempts=0)])
    counted.flush()
    found = values(tmp_path)
    assert found["gateway_requests_total", "GET", "", "404", ""] == 1
    assert found["gateway_errors_total", "no_route", "", ""] == 1
    assert not [key for key in found if key[0].startswith("gateway_endpoint")]


def test_what_clients_and_upstreams_say_makes_no_labels(counted: Metrics, tmp_path: Path) -> None:
    counted.observe([record(status, method) for status in (0, 99, 600, 999) for method in (b"get", b"X" * 20, b"\xff")])
    counted.flush()
    labels = {key[1:] for key in values(tmp_path) if key[0] == "gateway_requests_total"}
    assert labels == {("other", "r", "other", "u")}


def test_decisions_go_on_where_a_worker_before_stopped(tmp_path: Path) -> None:
    totals: dict[tuple[str, str], int] = {}

    def made() -> Metrics:
        return Metrics(str(tmp_path), 0, InUse(), decided=lambda: ((*key, number) for key, number in totals.items()))

    first = made()
    for ejected in (2, 2, 5):
        totals["u", "ejected"] = ejected
        totals["", "shed"] = 0
        first.flush()
    assert values(tmp_path)["gateway_decisions_total", "ejected", "u"] == 5
    assert ("gateway_decisions_total", "shed", "") not in values(tmp_path)
    # The upstream went, and another one of its name came.
    totals.clear()
    first.flush()
    totals["u", "ejected"] = 1
    first.flush()
    # Or both between two writes.
    totals["u", "ejected"] = 3
    first.flush()
    totals["u", "ejected"] = 2
    first.close()
    assert values(tmp_path)["gateway_decisions_total", "ejected", "u"] == 5 + 3 + 2
    # Killed, and replaced by one that counts from the beginning.
    totals["u", "ejected"] = 1
    made().close()
    assert values(tmp_path)["gateway_decisions_total", "ejected", "u"] == 11


def test_nothing_is_written_until_it_is_time(counted: Metrics, tmp_path: Path, now: list[float]) -> None:
    counted.observe([record()])
    counted.tick(0, 0)
    assert values(tmp_path) == {}
    now[0] = 10.0
    counted.tick(4, 3)
    found = values(tmp_path)
    assert found["gateway_requests_total", "GET", "r", "200", "u"] == 1
    assert (found["gateway_access_log_dropped_total",], found["gateway_access_log_lost_total",]) == (4, 3)
    now[0] = 20.0
    counted.tick(5, 3)
    assert values(tmp_path)["gateway_access_log_dropped_total",] == 5


def test_workers_add_up_and_successors_go_on(tmp_path: Path) -> None:
    for slot in (0, 1, 0, 1, 0):
        # The one before was killed: it did not close what it had.
        worker = Metrics(str(tmp_path), slot, InUse())
        worker.observe([record()] * 10)
        worker.flush()
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "counter_gateway-0.db", "counter_gateway-1.db", "histogram_gateway-0.db", "histogram_gateway-1.db",
    ]  # fmt: skip


def test_a_damaged_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "counter_gateway-0.db").write_bytes(b"\xff\xff\xff\x7f" + b"\xff" * 4096)
    worker = Metrics(str(tmp_path), 0, InUse())
    assert "damaged" in caplog.text
    worker.observe([record()])
    worker.close()
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 1


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x08", b"\0" * 100, b"\xf0\xff\xff\x7f" + bytes(300_000), b"\xf0\xff\xff\xff" + bytes(300_000)],
    ids=["empty", "short", "zeros", "used-beyond-its-end", "used-negative"],
)
def test_whatever_a_predecessor_left_the_counters_work(tmp_path: Path, damage: bytes) -> None:
    for name in ("counter", "histogram"):
        (tmp_path / f"{name}_gateway-0.db").write_bytes(damage)
    worker = Metrics(str(tmp_path), 0, InUse())
    worker.observe([record()])
    worker.close()
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 1


def with_key(path: Path, key: bytes) -> None:
    """A file of one value, whose key has a length that needs no padding."""
    key = key.ljust(len(key) + (-len(key) - 4) % 8)
    value = struct.pack("i", len(key)) + key + struct.pack("dd", 1.0, 0.0)
    path.write_bytes((struct.pack("ii", 8 + len(value), 0) + value).ljust(300_000, b"\0"))


@pytest.mark.parametrize("key", [b"\xff\xfe", b"{", b"[1, 2]", b'["a", "b", 3, "c"]'])
def test_a_file_of_another_slot_that_is_damaged_is_left_out(
    tmp_path: Path, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Metrics(str(tmp_path), 0, InUse())
    worker.observe([record()])
    worker.flush()
    with_key(tmp_path / "counter_gateway-1.db", key)
    for _ in range(2):
        assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 1
    assert [entry.getMessage().split(":")[0] for entry in caplog.records] == [
        f"metrics in {tmp_path}/counter_gateway-1.db are left out"
    ]
    # Its worker begins it anew.
    other = Metrics(str(tmp_path), 1, InUse())
    assert "begin anew" in caplog.text
    other.observe([record()])
    other.close()
    worker.close()
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 2


def test_a_disk_that_is_full_at_the_start(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is counted meanwhile is not lost, and no file is left that others cannot read."""

    def allocate(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(counter_file.os, "posix_fallocate", allocate)
        counted = Metrics(str(tmp_path), 0, InUse(), lambda: now[0])
        for _ in range(3):
            now[0] += 1.0
            counted.observe([record()])
            counted.tick(0, 0)
        assert values(tmp_path) == {}
        assert list(tmp_path.iterdir()) == []
    now[0] += 1.0
    counted.tick(0, 0)
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 3
    assert [entry.getMessage() for entry in caplog.records] == [
        "metrics cannot be written: [Errno 28] No space left on device", "metrics are written again",
    ]  # fmt: skip
    counted.close()


def test_what_is_gone_leaves_the_files_and_what_stays_keeps_its_count(tmp_path: Path, now: list[float]) -> None:
    in_use = InUse()
    counted = Metrics(str(tmp_path), 0, in_use, lambda: now[0])

    def churn(number: int) -> None:
        """One endpoint, one route after the other."""
        endpoint = Endpoint("http", f"10.1.{number // 250}.{number % 250}", 80)
        in_use.endpoints = {("u", "10.0.0.1:80"), ("u", endpoint.address)}
        counted.observe([record(endpoint=endpoint), record(), record(route=Route(f"r{number}", "u"), endpoint=None)])
        now[0] += 1.0
        counted.tick(0, 0)

    most = 0
    for number in range(3000):
        churn(number)
        if not number % 100:
            most = max(most, len(values(tmp_path)))
    counted.close()
    found = values(tmp_path)
    assert found["gateway_requests_total", "GET", "r", "200", "u"] == 6000
    # Of 15 values a route and 1 an endpoint that were written, 3,000 times each.
    assert most < 4 * counter_file._SLACK + 400
    assert not list(tmp_path.glob("*.new"))


def test_there_is_an_end_to_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_file, "MOST", 50)
    counted = Metrics(str(tmp_path), 0, InUse())
    counted.observe([record(endpoint=Endpoint("http", "10.0.0.1", port)) for port in range(1, 500)])
    counted.close()
    found = {key: value for key, value in values(tmp_path).items() if key[0] == "gateway_endpoint_requests_total"}
    assert len(found) <= 51
    assert sum(found.values()) == 499
    assert found["gateway_endpoint_requests_total", "other", "2xx", "other"] > 400


def test_files_grow_without_holes(tmp_path: Path) -> None:
    in_use = InUse()
    in_use.endpoints = {("u", f"10.0.0.1:{port}") for port in range(1, 5000)}
    counted = Metrics(str(tmp_path), 0, in_use)
    counted.observe([record(endpoint=Endpoint("http", "10.0.0.1", port)) for port in range(1, 5000)])
    counted.close()
    told = (tmp_path / "counter_gateway-0.db").stat()
    assert told.st_size >= 1024 * 1024
    assert told.st_blocks * 512 >= told.st_size


def test_a_full_disk_is_said_once(
    counted: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def allocate(descriptor: int, offset: int, length: int) -> None:
        if full:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(counter_file, "_LARGEST", 10**9)
    monkeypatch.setattr(counter_file.os, "posix_fallocate", allocate)
    for _ in range(3):
        counted.observe([record()])
        counted.flush()
    assert caplog.text.count("No space left") == 1
    full = False
    counted.observe([record()])
    counted.flush()
    assert values(tmp_path)["gateway_requests_total", "GET", "r", "200", "u"] == 1
