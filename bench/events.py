"""Many event streams at once: how long an event is under way, and that none is lost.

Rule: each event carries its number and the moment it was written (the clock is the same:
one machine); a gap in a stream's numbers fails the run.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import time
from array import array

from bench.answer import Reader, head_fields, request
from bench.paced import Latency, close, summary
from bench.proc import BenchError

EVENT = re.compile(rb"id: (\d+)\ndata: (\d+)\n\n")


class Stream:
    """What has come on one connection and was not read yet."""

    __slots__ = ("last", "rest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.last: int | None = None

    def feed(self, data: bytes) -> list[int]:
        """The moments at which the events in this piece were written."""
        self.rest += data
        stamps = []
        end = 0
        for match in EVENT.finditer(self.rest):
            number = int(match[1])
            if self.last is not None and number != self.last + 1:
                raise BenchError(f"event {number} came behind event {self.last}")
            self.last = number
            stamps.append(int(match[2]))
            end = match.end()
        self.rest = self.rest[end:]
        return stamps


def open_streams(port: int, path: str, count: int) -> list[Stream]:
    """Open them one after the other; each has its head when this returns."""
    streams: list[Stream] = []
    data = request("GET", path, headers="Accept: text/event-stream\r\n")
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            streams.append(Stream(sock))
            sock.sendall(data)
            reader = Reader(sock)
            status, fields = head_fields(reader.head())
            if status != 200 or fields.get(b"content-type") != b"text/event-stream":
                raise BenchError(f"not an event stream: {status} {fields}")
            streams[-1].feed(reader.rest())
    except BaseException:
        close([stream.sock for stream in streams])
        raise
    return streams


def listen(streams: list[Stream], seconds: float) -> Latency:
    """Read every stream for so long; events written before that are counted but not timed."""
    by_fd = {stream.sock.fileno(): stream for stream in streams}
    taken = array("q")
    gc.disable()
    with select.epoll() as epoll:
        for fd, stream in by_fd.items():
            stream.sock.setblocking(False)
            epoll.register(fd, select.EPOLLIN)
        start = time.monotonic_ns()
        end = start + round(seconds * 1e9)
        while (now := time.monotonic_ns()) < end:
            for fd, _ in epoll.poll((end - now) / 1e9):
                data = by_fd[fd].sock.recv(1 << 16)
                if not data:
                    raise BenchError("an event stream ended")
                came = time.monotonic_ns()
                taken.extend(came - stamp for stamp in by_fd[fd].feed(data) if stamp >= start)
    gc.enable()
    due = len(streams) * (seconds - 1)
    if len(taken) < due:
        raise BenchError(f"{len(taken)} events came, at least {due:.0f} were due")
    return summary(taken)
