"""The access log: one JSON object a line for every request, written off the request path.

Rule: `record` does no more than keep a tuple. A greenlet turns tuples into lines, a few
at a time so that the hub is never held, and a native thread writes them, so that a pipe
that nobody reads stops neither the hub nor a request. What does not fit is dropped and
counted, never waited for. Every exit that runs Python code flushes.

Whoever counts requests (`Observer`) is given the same records, a batch at a time and off the
request path, whether they fit into the queue or not, and also when no log is written.

A text that is not known is null, a number that is not known 0; `time` is when the request
ended. Lines are ASCII.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as _quote
from typing import Final, Protocol

from gevent import monkey
from gevent.event import AsyncResult, Event
from gevent.threadpool import ThreadPool

from gateway.http.messages import Request
from gateway.model import AccessLogSettings, Endpoint, Route, Upstream
from gateway.runtime.background import Background, Task
from gateway.runtime.hub import breathe
from gateway.telemetry.log_file import LogFile
from gateway.telemetry.redact import MASK, masking, masking_causes

log = logging.getLogger("gateway.access_log")

# Records that wait at most, and the bytes of targets and hosts that clients put into them.
QUEUE: Final = 65_536
QUEUE_BYTES: Final = 64 * 1024 * 1024
# Seconds between two batches.
_TICK = 0.05
# What is turned into lines without a pause, records and bytes of targets: at 4 µs a record,
# and up to 0.1 µs a byte where a hostile target is searched for secrets, below 1 ms.
_SLICE = 50
_SLICE_BYTES = 4 * 1024
# Characters of one write.
_BATCH = 1024 * 1024
# Seconds between two lines that say that records were dropped.
_TELL = 10.0
# Seconds that the last lines are waited for when the interpreter ends without `stop`.
_LAST = 1.0

# Pieces of lines that are made once: so many of a kind, none of a host and method longer than this.
_MOST_KEPT = 4096
# Versions of the configuration whose pieces are kept: the one in force, and those that long requests began with.
_MOST_VERSIONS = 4
_LONGEST_ASKED = 256

_allocate_lock = monkey.get_original("_thread", "allocate_lock")

# W3C Trace Context §3.2: versions after 00 may have more behind the flags.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_THREE = tuple(f"{n:03d}" for n in range(1000))
_MILLIS = tuple(f".{n:03d}Z" for n in range(1000))

# What `record` keeps: nothing that is large or still changes.
Record = tuple[
    float,  # time
    bytes,  # request_id
    str,  # trace_id
    str,  # client
    bytes,  # method
    bytes,  # host
    bytes,  # target
    Route | None,
    Upstream | None,
    Endpoint | None,
    int,  # status
    str,  # reason
    str,  # cause
    int,  # bytes_in
    int,  # bytes_out
    float,  # duration
    float,  # queue
    float,  # connect
    float,  # first_byte
    int,  # attempts
    bool,  # reused
    str,  # config_version
]


class Observer(Protocol):
    """Who is given the records of ended requests, to count them."""

    def observe(self, records: Sequence[Record]) -> None: ...

    def tick(self, dropped: int, lost: int) -> None:
        """Some time has passed; so many records were dropped, and lines lost, so far."""
        ...


def trace_id(request: Request) -> str:
    """The trace that a request's `traceparent` says it belongs to; "" for none or a bad one."""
    for name, value in request.headers:
        if len(name) == 11 and name.lower() == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            return found[1].decode("ascii") if found else ""
    return ""


class AccessLog:
    """The access log of one worker. `start` after the fork, `stop` when requests have ended.

    `dropped`: records that found the queue full. `lost`: lines that could not be written.
    """

    def __init__(
        self,
        settings: AccessLogSettings,
        worker: int | str,
        clock: Callable[[], float] = time.time,
        observer: Observer | None = None,
        background: Background | None = None,
    ) -> None:
        if settings.format != "json":
            raise ValueError(f"access_log.format: {settings.format!r} is not known (json)")
        self.dropped = 0
        self.lost = 0
        self._path = settings.path
        self._clock = clock
        self._line = _formatter(settings, worker)
        self._queue: deque[Record] = deque()
        self._observer = observer
        self._limit = QUEUE if settings.path is not None or observer is not None else 0
        self._held = 0
        # Lines on their way: formatted, then handed to the thread. They are kept here, not
        # in a greenlet's frame, so that whoever flushes at the end finds them.
        self._lines: list[str] = []
        self._batch = b""
        # The write of the batch that is in progress.
        self._written: AsyncResult | None = None
        # Held by the thread that uses the file.
        self._writing = _allocate_lock()
        self._file: LogFile | None = None
        self._reopen = False
        self._background = background or Background()
        self._greenlet: Task | None = None
        # A separate task, so that an exception in the metrics does not delay lines.
        self._ticker: Task | None = None
        self._stopping = Event()
        self._pid = 0
        self._failing = False
        self._told = 0
        self._told_at = float("-inf")

    # -- on the request path ----------------------------------------------------------

    def record(self, request: Request, status: int, bytes_out: int, duration_s: float, config_version: str) -> None:
        """Keep what the line of an ended request needs."""
        target = request.target
        host = request.host
        held = self._held + len(target) + len(host)
        queue = self._queue
        if len(queue) >= self._limit or held > QUEUE_BYTES:
            self._drop(request, status, bytes_out, duration_s)
            return
        self._held = held
        endpoint = request.endpoint
        queue.append(
            (
                self._clock(),
                request.request_id,
                # A request that was forwarded had its headers read on the way.
                request.trace_id or (trace_id(request) if endpoint is None else ""),
                request.client,
                request.method,
                host,
                target,
                request.route,
                request.upstream,
                endpoint,
                status,
                request.reason,
                request.cause,
                request.bytes_in,
                bytes_out,
                duration_s,
                request.queue_s,
                request.connect_s,
                request.first_byte_s,
                request.attempts,
                request.reused,
                config_version,
            )
        )

    def _drop(self, request: Request, status: int, bytes_out: int, duration_s: float) -> None:
        """There is no room: no line, but it is counted like any other."""
        if self._path is not None:
            self.dropped += 1
        if self._observer is not None:
            route, upstream, endpoint = request.route, request.upstream, request.endpoint
            went = (request.method, b"", b"", route, upstream, endpoint, status, request.reason, "")
            took = (request.bytes_in, bytes_out, duration_s, 0.0, 0.0, 0.0, request.attempts, request.reused, "")
            self._observe([(0.0, b"", "", "", *went, *took)])

    # -- begin and end ----------------------------------------------------------------

    def start(self, persist: bool = False) -> None:
        """Open the log and begin to write. When it cannot be opened: OSError, or (`persist`) the lines are lost,
        and it is tried again with every batch."""
        if not self._limit:
            return
        if self._path is not None:
            self._file = self._open(self._path, persist)
        self._pid = os.getpid()
        atexit.register(self._at_exit)
        self._greenlet = self._background.start("access log", partial(self._run, self._file, ThreadPool(1)))
        if self._observer is not None:
            self._ticker = self._background.start("metrics", partial(self._tick, self._observer))

    def _open(self, path: str, persist: bool) -> LogFile:
        file = LogFile(path)
        try:
            file.open()
        except OSError as error:
            if not persist:
                raise
            log.error("access log %s: %s; lines are lost until it can be opened", path, error)
            self._failing = True
        return file

    def reopen(self) -> None:
        """Before the next lines are written, let go of a file that was moved away (SIGUSR1)."""
        self._reopen = True

    def stop(self, timeout: float = 2.0) -> None:
        """Write what is left, within `timeout` seconds; what comes later is dropped and counted."""
        task, self._greenlet = self._greenlet, None
        if task is None:
            return
        deadline = time.monotonic() + timeout
        self._limit = 0
        self._stopping.set()
        task.join(timeout)
        task.kill(block=False)
        if self._ticker is not None:
            self._ticker.kill(block=False)
            self._ticker = None
        self._finish(deadline)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """The interpreter ends and nobody called `stop`: no hub can be relied on."""
        if os.getpid() == self._pid:  # a child that was forked off has a copy of the queue
            self._finish(time.monotonic() + _LAST)

    def _finish(self, deadline: float) -> None:
        """Write all that is left from right here, without waiting beyond the deadline."""
        file, self._file = self._file, None
        while self._queue:
            self._format()
        if self._observer is not None:
            try:
                self._observer.tick(self.dropped, self.lost)
            except Exception as error:
                self._fault("the last requests could not be counted", error)
        if file is None:
            return
        # Our thread may still be stuck in a write: then nobody reads, and it keeps the file.
        if self._writing.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._batch += self._take_lines()
            self._note(*self._write(file, deadline))
            file.close()
        else:
            self.lost += (self._batch + self._take_lines()).count(b"\n")
            log.warning("access log %s: still blocked at the end, %d lines lost", self._path, self.lost)
        self._tell(always=True)

    # -- the greenlet -----------------------------------------------------------------

    def _run(self, file: LogFile | None, pool: ThreadPool) -> None:
        # After a restart, finish the write that was interrupted.
        self._settle(file, pool)
        while not self._stopping.wait(_TICK):
            self._drain(file, pool)
        self._drain(file, pool)
        pool.kill()

    def _tick(self, observer: Observer) -> None:
        while not self._stopping.wait(_TICK):
            observer.tick(self.dropped, self.lost)

    def _fault(self, what: str, error: Exception) -> None:
        """Log an internal error and show it in status; the log goes on."""
        if self._greenlet is not None:
            self._greenlet.note(error, what)
        else:
            log.error("%s", what, exc_info=error)

    def _settle(self, file: LogFile | None, pool: ThreadPool) -> None:
        """Write the batch, if there is one, and wait until it is written."""
        if file is None:
            return
        if self._written is None and (self._batch or self._reopen):
            self._written = pool.spawn(self._write_off_hub, file)
        written = self._written
        if written is None:
            return
        while not written.ready():
            written.wait(1.0)
            self._tell()
        self._written = None
        self._note(*written.get())

    def _drain(self, file: LogFile | None, pool: ThreadPool) -> None:
        """What is queued now goes out; what comes meanwhile waits, so that writes stay large."""
        left = len(self._queue)
        while left > 0 or self._reopen:
            size = 0
            while left > 0 and size < _BATCH:
                number, characters = self._format()
                left -= number
                size += characters
                breathe()
            if file is None:
                self._reopen = False
                continue
            self._batch = self._take_lines()
            self._settle(file, pool)
        self._tell()

    def _format(self) -> tuple[int, int]:
        """Turn the oldest records into lines; how many, and how many characters."""
        queue = self._queue
        records: list[Record] = []
        held = 0
        while queue and len(records) < _SLICE and held < _SLICE_BYTES:
            record = queue.popleft()
            records.append(record)
            held += len(record[5]) + len(record[6])
        self._held -= held
        if self._observer is not None:
            self._observe(records)
        if self._path is None:
            return len(records), 0
        try:
            lines = "".join(map(self._line, records))
        except Exception as error:
            self.lost += len(records)
            self._fault("records could not be turned into lines", error)
            return len(records), 0
        self._lines.append(lines)
        return len(records), len(lines)

    def _observe(self, records: Sequence[Record]) -> None:
        assert self._observer is not None
        try:
            self._observer.observe(records)
        except Exception as error:
            self._fault("requests could not be counted", error)

    def _take_lines(self) -> bytes:
        lines, self._lines = self._lines, []
        return "".join(lines).encode("ascii")

    def _note(self, lost: int, error: OSError | None) -> None:
        """Count what was lost; say it when it begins and when it is over."""
        self.lost += lost
        if error is not None and not self._failing:
            log.warning("access log %s: %s; %d lines lost", self._path, error, lost)
        elif error is None and self._failing:
            log.warning("access log %s: written again; %d lines were lost so far", self._path, self.lost)
        self._failing = error is not None

    def _tell(self, always: bool = False) -> None:
        """Say how many records were dropped, now and then."""
        now = time.monotonic()
        if self.dropped > self._told and (always or now - self._told_at >= _TELL):
            log.warning(
                "access log %s: dropped %d records, %d in all: they came faster than they could be written",
                self._path,
                self.dropped - self._told,
                self.dropped,
            )
            self._told, self._told_at = self.dropped, now

    # -- the native thread ------------------------------------------------------------

    def _write_off_hub(self, file: LogFile) -> tuple[int, OSError | None]:
        with self._writing:
            return self._write(file, None)

    def _write(self, file: LogFile, deadline: float | None) -> tuple[int, OSError | None]:
        """Write the batch; the caller holds `_writing`."""
        stale: OSError | None = None
        if self._reopen:
            self._reopen = False
            try:
                file.open()
            except OSError as error:
                stale = error  # the old file stays in use
        lost, failed = file.write(self._batch, deadline)
        self._batch = b""
        return lost, failed or stale


def _text(value: str) -> str:
    return _quote(value) if value else "null"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


class _Version:
    """Pieces of the lines of one version of the configuration, made once. They hold its routes and upstreams."""

    __slots__ = ("_end", "endings", "places")

    def __init__(self, version: str, worker: int | str) -> None:
        number = worker if isinstance(worker, int) else _quote(worker)
        self._end = f',"worker":{number},"config_version":{_quote(version)}}}\n'
        # By identity, as to hash a route is dear; what it is the identity of is kept with the text.
        self.places: dict[tuple[int, int, int], tuple[str, object, object, object]] = {}
        self.endings: dict[tuple[int, bool], str] = {}

    def place(self, route: Route | None, upstream: Upstream | None, endpoint: Endpoint | None) -> str:
        """Where a request went. There are as many as the configuration and the registries make."""
        places = self.places
        if len(places) >= _MOST_KEPT:
            places.clear()
        text = (
            f',"route":{_text(route.name if route is not None else "")}'
            f',"upstream":{_text(upstream.name if upstream is not None else "")}'
            f',"endpoint":{_text(endpoint.address if endpoint is not None else "")},"status":'
        )
        places[id(route), id(upstream), id(endpoint)] = (text, route, upstream, endpoint)
        return text

    def end(self, key: tuple[int, bool]) -> str:
        """How a line ends after so many attempts, the last on a reused connection or not."""
        attempts, reused = key
        text = self.endings[key] = f',"attempts":{attempts},"reused":{"true" if reused else "false"}{self._end}'
        return text


def _formatter(settings: AccessLogSettings, worker: int | str) -> Callable[[Record], str]:
    """A function that makes the line of a record; what seldom changes is made once."""
    mask, mask_cause = masking(settings.redact), masking_causes(settings.redact)
    # The versions that requests were served by lately, the newest last.
    versions: dict[str, _Version] = {}
    askers: dict[tuple[str, bytes, bytes], str] = {}
    stamp_of = -1
    stamp = ""

    def begin(name: str) -> _Version:
        """A version that has had no line, or none for long."""
        if len(versions) >= _MOST_VERSIONS:
            del versions[next(iter(versions))]
        version = versions[name] = _Version(name, worker)
        return version

    def ask(key: tuple[str, bytes, bytes]) -> str:
        """Who asked whom. Clients choose hosts and methods, so long ones are not remembered, and either may be
        anything where the request was refused for it."""
        client, method, host = key
        verb, sign, _ = method.decode("latin-1").partition("=")
        if sign:
            # No method has one (RFC 9110 §9.1): what was to be a target may stand here.
            verb = f"{verb}={MASK}"
        text = (
            f',"client":{_text(client)},"method":{_text(verb)}'
            f',"host":{_text(mask_cause(host.decode("latin-1")))},"target":'
        )
        if len(host) + len(method) <= _LONGEST_ASKED:
            if len(askers) >= _MOST_KEPT:
                askers.clear()
            askers[key] = text
        return text

    def line(record: Record) -> str:
        nonlocal stamp_of, stamp
        (
            now,
            request_id,
            trace,
            client,
            method,
            host,
            target,
            route,
            upstream,
            endpoint,
            status,
            reason,
            cause,
            bytes_in,
            bytes_out,
            duration,
            queue,
            connect,
            first_byte,
            attempts,
            reused,
            config_version,
        ) = record
        second = int(now)
        if second != stamp_of:
            stamp_of, stamp = second, time.strftime('{"time":"%Y-%m-%dT%H:%M:%S', time.gmtime(second))
        shown = target.decode("latin-1")
        if "?" in shown or ";" in shown or "#" in shown or shown[:1] != "/":
            shown = mask(shown)
        key = (client, method, host)
        asker = askers.get(key) or ask(key)
        version = versions.get(config_version) or begin(config_version)
        known = version.places.get((id(route), id(upstream), id(endpoint)))
        where = known[0] if known else version.place(route, upstream, endpoint)
        failed = f'{_text(reason)},"cause":{_text(mask_cause(cause))}' if reason or cause else 'null,"cause":null'
        # Milliseconds with three digits. Python's own formatting of a float takes twice as long.
        took, first = int(duration * 1_000_000 + 0.5), int(first_byte * 1_000_000 + 0.5)
        way = (attempts, reused)
        ending = version.endings.get(way) or version.end(way)
        return (
            f'{stamp}{_MILLIS[int((now - second) * 1000)]}","request_id":'
            f'{_quote(request_id.decode("latin-1")) if request_id else "null"}'
            f',"trace_id":{_quote(trace) if trace else "null"}{asker}{_quote(shown) if shown else "null"}{where}'
            f'{status},"reason":{failed},"bytes_in":{bytes_in},"bytes_out":{bytes_out}'
            f',"duration_ms":{took // 1000}.{_THREE[took % 1000]}'
            f',"queue_ms":{_ms(queue) if queue else 0},"connect_ms":{_ms(connect) if connect else 0}'
            f',"first_byte_ms":{first // 1000}.{_THREE[first % 1000]}{ending}'
        )

    return line
