"""What requests add up to, for Prometheus: counters and a histogram in files, one set a worker slot.

Rule: nothing here runs while a request does. Records come from the access log's greenlet, a
batch at a time, are added up in memory and written by key every half second. The files are
those of prometheus_client's multiprocess mode, named by the worker's slot and not by its
pid: a worker's successor goes on where it stopped, so that no counter goes back and no file
is added by a restart. A page of a killed worker's file is the kernel's, and is not lost.

Labels are routes, upstreams, endpoints and words of fixed lists, never what a client sends.
What is configured no more leaves the files when they have grown to twice of what is in use.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from gevent.lock import BoundedSemaphore

from gateway.model import Endpoint, Route, Upstream
from gateway.telemetry.access_log import Record
from gateway.telemetry.counter_file import MOST, OTHER, CounterFile, Labels, Series, pause

log = logging.getLogger("gateway.metrics")

# Seconds; the defaults of Prometheus' own clients, less the finest and with a longer end.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LE: Final = (*(str(bound) for bound in BUCKETS), "+Inf")
METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"})
# Seconds between two writes, and so the most that a SIGKILL takes.
_INTERVAL: Final = 0.5

REQUESTS = Series(
    "gateway_requests", "Requests that have ended; status is the answer's.", ("route", "upstream", "method", "status")
)
ERRORS = Series(
    "gateway_errors", "Requests that ended badly, by the reason in Gateway-Error.", ("route", "upstream", "reason")
)
BYTES_IN = Series("gateway_request_bytes", "Bytes of request bodies.", ("route",))
BYTES_OUT = Series("gateway_response_bytes", "Bytes of bodies of answers.", ("route",))
RETRIES = Series("gateway_retries", "Attempts beyond the first.", ("upstream",))
ENDPOINTS = Series(
    "gateway_endpoint_requests",
    "Requests by the endpoint that had them last; status is the class of the answer's.",
    ("upstream", "endpoint", "status"),
)
TUNNELS = Series("gateway_tunnels", "Upgraded connections that have ended.", ("route",))
DECISIONS = Series(
    "gateway_decisions",
    "What was decided to keep requests away from what fails, or to try again; empty upstream: for the whole gateway.",
    ("upstream", "decision"),
)
DROPPED = Series("gateway_access_log_dropped", "Records that found the access log's queue full.", ())
LOST = Series("gateway_access_log_lost", "Lines of the access log that could not be written.", ())
DURATION = Series(
    "gateway_request_duration_seconds", "From the first byte of a request to the last of its answer.", ("route",)
)

_BUCKET, _SUM = f"{DURATION.name}_bucket", f"{DURATION.name}_sum"
# By the name that a value is written under.
_COUNTERS: Final = {
    f"{series.name}_total": series
    for series in (REQUESTS, ERRORS, BYTES_IN, BYTES_OUT, RETRIES, ENDPOINTS, TUNNELS, DECISIONS, DROPPED, LOST)
}

# What is in use: routes, upstreams, and (upstream, endpoint).
InUse = Callable[[], tuple[Collection[str], Collection[str], Collection[tuple[str, str]]]]
# What was decided since the worker began: upstream, decision, how often.
Decided = Callable[[], Iterable[tuple[str, str, int]]]


class _Cell:
    """What the records of one kind add up to since the last write."""

    __slots__ = ("attempts", "bytes_in", "bytes_out", "count", "endpoint", "in_buckets", "route", "seconds", "upstream")

    def __init__(self, route: Route | None, upstream: Upstream | None, endpoint: Endpoint | None) -> None:
        self.route = route
        self.upstream = upstream
        self.endpoint = endpoint
        self.count = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.attempts = 0
        self.seconds = 0.0
        # How many took no longer than each bound of BUCKETS and longer than the one before.
        self.in_buckets = [0] * len(_LE)


class Metrics:
    """The counters of one worker, in `folder`. `in_use` is asked when the files are made anew,
    `decided` before each write."""

    def __init__(
        self,
        folder: str,
        slot: int | str,
        in_use: InUse,
        clock: Callable[[], float] = time.monotonic,
        decided: Decided = tuple,
    ) -> None:
        self._in_use = in_use
        self._decided = decided
        self._clock = clock
        self._counters = CounterFile(Path(folder, f"counter_gateway-{slot}.db"))
        self._histogram = CounterFile(Path(folder, f"histogram_gateway-{slot}.db"))
        # By identity: the cells hold what they are keyed by, and hashing a route is dear.
        self._cells: dict[tuple[int, int, int, bytes, int, str], _Cell] = {}
        self._log = (0, 0)
        self._log_told = (0, 0)
        self._decided_told: dict[tuple[str, str], int] = {}
        self._flushed = clock()
        self._failing = False
        # Writing takes turns with requests, and so may be begun twice.
        self._writing = BoundedSemaphore(1)
        try:
            self._open()
        except OSError as error:
            self._failed(error)

    # -- off the request path: the access log's greenlet --------------------------------

    def observe(self, records: Sequence[Record]) -> None:
        cells = self._cells
        for record in records:
            route, upstream, endpoint, status = record[7], record[8], record[9], record[10]
            key = (id(route), id(upstream), id(endpoint), record[4], status, record[11])
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = _Cell(route, upstream, endpoint)
            cell.count += 1
            cell.bytes_in += record[13]
            cell.bytes_out += record[14]
            cell.attempts += record[19]
            duration = record[15]
            cell.seconds += duration
            cell.in_buckets[bisect_left(BUCKETS, duration)] += 1

    def tick(self, dropped: int, lost: int) -> None:
        """Write, when it is time."""
        self._log = (dropped, lost)
        if self._clock() - self._flushed >= _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write what has been added up. Callable from any greenlet; requests go on meanwhile.
        What a full disk does not take is lost, and said once."""
        try:
            self._open()
            self._flush()
            self._renew()
        except OSError as error:
            self._failed(error)
        else:
            if self._failing:
                log.warning("metrics are written again")
            self._failing = False

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.warning("metrics cannot be written: %s", error)
        self._failing = True

    def _open(self) -> None:
        """The files, until they are open. What was counted so far stays for the next call."""
        with self._writing:
            try:
                self._counters.open()
                self._histogram.open()
            except OSError:
                self._flushed = self._clock()
                if len(self._cells) > MOST:
                    # Cells of configurations that are gone would pile up.
                    self._cells.clear()
                raise

    def _flush(self) -> None:
        with self._writing:
            self._flushed = self._clock()
            cells, self._cells = self._cells, {}
            counts: _Totals = defaultdict(float)
            durations: _Totals = defaultdict(float)
            for number, ((_, _, _, method, status, reason), cell) in enumerate(cells.items(), 1):
                _add_up(counts, durations, cell, method, status, reason)
                pause(number)
            for name, now, before in zip(_LOSSES, self._log, self._log_told, strict=True):
                if now > before:
                    counts[name, ()] += now - before
            self._log_told = self._log
            self._add_decisions(counts)
            for number, ((name, labels), amount) in enumerate(counts.items(), 1):
                self._counters.add(_COUNTERS[name], name, labels, amount)
                pause(number)
            for number, ((name, labels), amount) in enumerate(durations.items(), 1):
                if name == _SUM:
                    self._begin(labels[0])
                self._histogram.add(DURATION, name, labels, amount)
                pause(number)

    def _add_decisions(self, counts: _Totals) -> None:
        """What was decided since the last write. The files hold what was before this worker."""
        before = self._decided_told
        told = self._decided_told = {(upstream, word): number for upstream, word, number in self._decided()}
        for key, number in told.items():
            # An upstream that went and came back counts from the beginning.
            more = number - before.get(key, 0)
            if more:
                counts["gateway_decisions_total", key] += more if more > 0 else number

    def close(self) -> None:
        self.flush()
        with self._writing:
            self._counters.close()
            self._histogram.close()

    def _begin(self, route: str) -> None:
        """A histogram has all of its buckets from the first."""
        if not self._histogram.has(_BUCKET, (route, _LE[-1])):
            for le in _LE:
                self._histogram.add(DURATION, _BUCKET, (route, le), 0.0)

    # -- what is in use no more -----------------------------------------------------------

    def _renew(self) -> None:
        """Leave out what is not configured any more, once it is most of what there is."""
        worn = [values for values in (self._counters, self._histogram) if values.worn]
        if not worn:
            return
        routes, upstreams, endpoints = self._in_use()
        routes, upstreams = {"", OTHER, *routes}, {"", OTHER, *upstreams}
        endpoints = {(OTHER, OTHER), *endpoints}

        def used(labels: dict[str, str]) -> bool:
            if "endpoint" in labels:
                return (labels["upstream"], labels["endpoint"]) in endpoints
            return labels.get("route", "") in routes and labels.get("upstream", "") in upstreams

        with self._writing:
            for values in worn:
                values.renew(used)


_Totals = dict[tuple[str, Labels], float]
_LOSSES = (f"{DROPPED.name}_total", f"{LOST.name}_total")


def _add_up(counts: _Totals, durations: _Totals, cell: _Cell, method: bytes, status: int, reason: str) -> None:
    """What one cell adds to each value."""
    route = cell.route.name if cell.route is not None else ""
    upstream = cell.upstream.name if cell.upstream is not None else ""
    told = method.decode() if method in METHODS else OTHER
    code = str(status) if 100 <= status <= 599 else OTHER
    counts["gateway_requests_total", (route, upstream, told, code)] += cell.count
    if reason:
        counts["gateway_errors_total", (route, upstream, reason)] += cell.count
    if cell.bytes_in:
        counts["gateway_request_bytes_total", (route,)] += cell.bytes_in
    if cell.bytes_out:
        counts["gateway_response_bytes_total", (route,)] += cell.bytes_out
    if cell.endpoint is not None:
        family = f"{code[0]}xx" if code != OTHER else OTHER
        counts["gateway_endpoint_requests_total", (upstream, cell.endpoint.address, family)] += cell.count
    if cell.attempts > cell.count:
        counts["gateway_retries_total", (upstream,)] += cell.attempts - cell.count
    if status == 101:
        # It lasts as long as somebody talks, which is no measure of the gateway.
        counts["gateway_tunnels_total", (route,)] += cell.count
        return
    durations[_SUM, (route,)] += cell.seconds
    for bound, number in zip(_LE, cell.in_buckets, strict=True):
        if number:
            durations[_BUCKET, (route, bound)] += number
