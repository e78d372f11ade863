"""Load at a constant rate, open loop: a request is due when the clock says so, not when the last one was answered.

Rule: latency counts from the moment a request was due, so that a stall is paid by every
request that should have been sent in it (no coordinated omission). Every answer is
compared.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import struct
import time
from array import array
from collections import deque
from dataclasses import dataclass

from bench.answer import Reader
from bench.proc import BenchError

CONNECTIONS = 64
MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Latency:
    """Of every request of the run, in milliseconds."""

    p50_ms: float
    p99_ms: float
    count: int


def percentile(ordered: array[int], share: float) -> float:
    """The nearest rank of a sorted array, nanoseconds to milliseconds."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


def summary(nanoseconds: array[int]) -> Latency:
    """What a run's latencies come to."""
    ordered = array("q", sorted(nanoseconds))
    return Latency(percentile(ordered, 0.50), percentile(ordered, 0.99), len(ordered))


def complete(data: bytes | bytearray, body: bytes) -> bool:
    """A whole answer is here, and it is right; raises when it can no longer become that."""
    if not data.startswith(b"HTTP/1.1 200 "[: len(data)]):
        raise BenchError(f"a wrong answer: {bytes(data[:120])!r}")
    if data.endswith(body):
        return True
    if len(data) > MOST:
        raise BenchError(f"an answer without its end: {bytes(data[:120])!r}")
    return data.endswith(b"0\r\n\r\n") and body in data


class Ticker:
    """A timer with a descriptor (timerfd_create(2)): epoll's own timeout is not finer than a millisecond."""

    ABSOLUTE = 1

    def __init__(self, first_ns: int, period_ns: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        setting = struct.pack("qqqq", *divmod(period_ns, 10**9), *divmod(first_ns, 10**9))
        if libc.timerfd_settime(self.fd, self.ABSOLUTE, setting, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """Be readable again only at the next tick."""
        os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)


class Pace:
    """One run: connections that are free, requests that are due, answers that are awaited."""

    def __init__(self, socks: list[socket.socket], data: bytes, body: bytes, rate: float, seconds: float) -> None:
        self._data = data
        self._body = body
        self._period = max(1, round(1e9 / rate))
        self._total = max(1, round(rate * seconds))
        self._socks = {sock.fileno(): sock for sock in socks}
        self._free = list(self._socks)
        self._due: deque[int] = deque()
        self._sent_for: dict[int, int] = {}
        self._partial: dict[int, bytearray] = {}
        self._issued = 0
        self._taken = array("q")

    def run(self, patience: float) -> array[int]:
        """The latency of every request, in nanoseconds."""
        start = time.monotonic_ns() + 20_000_000
        end = start + self._total * self._period + round(patience * 1e9)
        ticker = Ticker(start, self._period)
        epoll = select.epoll()
        try:
            for fd in (ticker.fd, *self._socks):
                epoll.register(fd, select.EPOLLIN)
            while len(self._taken) < self._total:
                for fd, _ in epoll.poll(1.0):
                    if fd == ticker.fd:
                        ticker.clear()
                    else:
                        self._receive(fd)
                now = time.monotonic_ns()
                if now > end:
                    raise BenchError(f"only {len(self._taken)} of {self._total} answers came at a constant rate")
                self._issue(start, now)
        finally:
            epoll.close()
            ticker.close()
        return self._taken

    def _issue(self, start: int, now: int) -> None:
        while self._issued < self._total and (due := start + self._issued * self._period) <= now:
            self._due.append(due)
            self._issued += 1
        while self._due and self._free:
            self._send(self._free.pop(), self._due.popleft())

    def _send(self, fd: int, due: int) -> None:
        self._sent_for[fd] = due
        if self._socks[fd].send(self._data) != len(self._data):
            raise BenchError("a small request did not fit the socket's buffer")

    def _receive(self, fd: int) -> None:
        data: bytes | bytearray = self._socks[fd].recv(MOST)
        if not data:
            raise BenchError("a connection was closed under constant load")
        if fd in self._partial:
            data = self._partial.pop(fd) + data
        if complete(data, self._body):
            self._taken.append(time.monotonic_ns() - self._sent_for.pop(fd))
            self._free.append(fd)
        else:
            self._partial[fd] = bytearray(data)


def connections(port: int, count: int, data: bytes, body: bytes) -> list[socket.socket]:
    """Connections that have each had one right answer."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            socks.append(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(data)
            answer = Reader(sock).answer()
            if answer.status != 200 or answer.body != body:
                raise BenchError(f"a wrong answer: {answer.status} {answer.body[:120]!r}")
    except BaseException:
        close(socks)
        raise
    return socks


def close(socks: list[socket.socket]) -> None:
    """Close them all."""
    for sock in socks:
        sock.close()


def run(port: int, data: bytes, body: bytes, rate: float, seconds: float) -> Latency:
    """`rate` requests a second for so long."""
    socks = connections(port, CONNECTIONS, data, body)
    gc.disable()
    try:
        for sock in socks:
            sock.setblocking(False)
        return summary(Pace(socks, data, body, rate, seconds).run(patience=10))
    finally:
        gc.enable()
        close(socks)


def alive(socks: list[socket.socket], data: bytes, body: bytes) -> int:
    """How many of these connections still give a right answer."""
    right = 0
    for sock in socks:
        try:
            sock.sendall(data)
            answer = Reader(sock).answer()
        except (OSError, BenchError):
            continue  # a connection that was closed while it rested is what is being counted
        right += answer.status == 200 and answer.body == body
    return right
