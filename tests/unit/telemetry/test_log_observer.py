"""The access log gives its records to who counts them: all of them, whatever becomes of the lines."""

from __future__ import annotations

from collections.abc import Sequence

import gevent
import pytest

from gateway.http.messages import Request
from gateway.model import AccessLogSettings, Endpoint, Route, StaticSource, Upstream
from gateway.telemetry import access_log
from gateway.telemetry.access_log import AccessLog, Record


class Seen:
    def __init__(self, fault: Exception | None = None) -> None:
        self.records: list[Record] = []
        self.ticks: list[tuple[int, int]] = []
        self._fault = fault

    def observe(self, records: Sequence[Record]) -> None:
        self.records += records
        if self._fault is not None:
            raise self._fault

    def tick(self, dropped: int, lost: int) -> None:
        self.ticks.append((dropped, lost))


def asked(target: bytes = b"/x?token=1") -> Request:
    request = Request(b"PUT", target, [], started=0.0)
    request.route, request.upstream = Route("r", "u"), Upstream("u", StaticSource(()))
    request.endpoint = Endpoint("http", "10.0.0.1", 80)
    request.bytes_in, request.attempts, request.reason = 7, 2, "upstream_reset"
    return request


def counted(record: Record) -> tuple[object, ...]:
    """What is made a metric of a record."""
    return (record[4], record[7], record[8], record[9], record[10], record[11], *record[13:16], record[19])


def test_records_come_without_a_log() -> None:
    seen = Seen()
    log = AccessLog(AccessLogSettings(path=None), 0, observer=seen)
    log.start()
    request = asked()
    for _ in range(250):
        log.record(request, 502, 9, 0.5, "v")
    with gevent.Timeout(30):
        while not seen.ticks or len(seen.records) < 250:
            gevent.sleep(0.01)
    expected = (b"PUT", request.route, request.upstream, request.endpoint, 502, "upstream_reset", 7, 9, 0.5, 2)
    assert {counted(each) for each in seen.records} == {expected}
    log.record(request, 502, 9, 0.5, "v")
    log.stop()
    assert len(seen.records) == 251
    assert (log.dropped, log.lost) == (0, 0)


def test_nothing_is_kept_for_nobody() -> None:
    log = AccessLog(AccessLogSettings(path=None), 0)
    log.start()
    log.record(asked(), 200, 0, 0.0, "v")
    assert not log._queue
    assert log._greenlet is None
    log.stop()


def test_what_is_dropped_is_counted_like_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "QUEUE", 3)
    seen = Seen()
    log = AccessLog(AccessLogSettings(path="/dev/null"), 0, observer=seen)
    request = asked()
    for _ in range(5):
        log.record(request, 502, 9, 0.5, "v")
    assert log.dropped == 2
    assert len(seen.records) == 2
    log.start()
    log.stop()
    assert len(seen.records) == 5
    assert len({counted(each) for each in seen.records}) == 1
    assert seen.ticks[-1] == (2, 0)


def test_a_fault_of_who_counts_ends_no_log(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen(RuntimeError("bug"))
    log = AccessLog(AccessLogSettings(path="/dev/null"), 0, observer=seen)
    log.record(asked(), 200, 0, 0.0, "v")
    log.start()
    log.stop()
    assert "could not be counted" in caplog.text
    assert log.lost == 0
