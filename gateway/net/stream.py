"""One connected socket under gevent, with waits that cost little.

Rule: one greenlet reads a stream and one (perhaps the same) writes it; every wait has a
limit. What gevent's own socket does for each wait (a Waiter, starting and stopping a
watcher, which is an epoll_ctl each, and a Timeout object) is paid here once a connection:

* The read watcher stays started for the life of the stream. While nobody reads, a
  readable socket is itself news (a client that hung up, an idle upstream connection that
  was closed): the watcher stops and `on_readable` is told.
* A limit is a number kept on the stream. One timer a thread (`Deadlines`) looks at the
  streams whose limit may have passed; moving a limit into the future costs an assignment.

The raw calls are for plain gevent sockets alone, chosen by exact type: on a TLS socket
they would write plaintext into the stream, and a peek sees session tickets and takes a
good connection for a dirty one. `TlsStream` does the same through the TLS layer.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import logging
import socket
import ssl
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

from gevent import Greenlet, Timeout, get_hub, getcurrent, monkey
from gevent import socket as gsocket

_READ = 1
_WRITE = 2
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_RESET = struct.pack("ii", 1, 0)
# What the kernel takes of an answer ahead of what it can send (tcp(7), TCP_NOTSENT_LOWAT), and not the
# megabytes that a socket's buffer grows to, which slow readers could make thousands of: so much from
# the beginning, and enough for the largest pieces once a client has proved to be fast.
AHEAD = 128 * 1024
_FURTHER_AHEAD = 2 * 1024 * 1024
# ioctl: bytes in the send queue that were not sent yet (Linux: sockios.h, SIOCOUTQNSD).
_NOT_SENT = 0x894B
# TLS: the most that a record holds, and how much is kept at a half-close (more than the kernel
# holds of one connection).
_RECORD = 16 * 1024
_MOST_AHEAD = 16 * 1024 * 1024
# A packet filter (Linux: socket(7), bpf(4)) of one instruction: return 0, which is to drop it.
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)
_DROP_ALL = struct.pack("HP", 1, ctypes.addressof(_DROP))

# Who was waited for so many seconds does not keep up.
_NOT_FAST = 0.1

# So many seconds behind a limit the hub was held up by something else.
LATE = 0.1
# A timer's, so that sockets are looked at before it runs (`turns`).
_SOON = 1e-9

monotonic = time.monotonic
log = logging.getLogger("gateway.net.stream")


class Deadlines:
    """The limits of all streams of one hub: a heap of instants and one timer.

    A stream is looked at when the earliest limit it ever asked for passes, not at each
    change of its limit, so that a connection reused a thousand times within its limit is
    looked at once. Instants are rounded up to `tick`, and those further away to about a
    hundredth of their distance: that bounds how often the timer runs and how many instants
    there are, however many connections come and go within a limit of an hour.
    """

    tick = 0.01
    # The thread's own, not the greenlet's, which gevent's patch would make of it: one for
    # each connection, kept until its timer runs out.
    _of_thread = monkey.get_original("threading", "local")()

    def __init__(self) -> None:
        self._loop = get_hub().loop
        self._due: dict[int, set[Stream]] = {}
        self._heap: list[int] = []
        self._timer = self._loop.timer(0.0, 0.0)
        self._set_for = inf

    @classmethod
    def current(cls) -> Deadlines:
        """The one of this thread's hub (made anew after a fork made a new loop)."""
        found: Deadlines | None = getattr(cls._of_thread, "deadlines", None)
        if found is None or found._loop is not get_hub().loop:
            found = cls._of_thread.deadlines = cls()
        return found

    def arm(self, stream: Stream, deadline: float) -> None:
        """Look at `stream` when `deadline` (monotonic seconds) has passed."""
        if stream.slot:
            self.forget(stream)
        exact = int(deadline / self.tick) + 1
        away = max(exact - int(monotonic() / self.tick), 0) // 100
        step = 1 << away.bit_length() >> 1 or 1
        slot = -(-exact // step) * step
        stream.armed = deadline
        stream.slot = slot
        streams = self._due.get(slot)
        if streams is not None:
            streams.add(stream)
            return
        self._due[slot] = {stream}
        heapq.heappush(self._heap, slot)
        if slot < self._set_for:
            self._set(slot)

    def forget(self, stream: Stream) -> None:
        """A closed stream is not kept until a limit passes that may be an hour away."""
        streams = self._due.get(stream.slot)
        if streams is not None:
            streams.discard(stream)
        stream.armed = inf
        stream.slot = 0

    def _set(self, slot: int) -> None:
        self._timer.stop()
        # Until the timer runs: if anything fails here, the next stream that is armed sets it again.
        self._set_for = inf
        # The loop's own clock lags behind by what the current iteration took.
        self._loop.update_now()
        self._timer = self._loop.timer(max(slot * self.tick - monotonic(), 0.0), 0.0)
        self._timer.start(self._run)
        self._set_for = slot

    def _run(self) -> None:
        now = monotonic()
        self._set_for = inf
        while self._heap and self._heap[0] * self.tick <= now:
            for stream in self._due.pop(heapq.heappop(self._heap)):
                # One of them may have been closed by what another's end set off.
                if stream.armed <= now:
                    stream.armed = inf
                    stream.slot = 0
                    try:
                        stream.expire(now)
                    except Exception:
                        # The limits of all other streams still hold.
                        log.exception("a time limit could not be enforced")
        if self._heap:
            self._set(self._heap[0])


class Carrier(Greenlet):  # type: ignore[misc]
    """A greenlet that carries bytes beside a connection's own. It does not remember where it was
    spawned, which takes gevent's more memory than all else about it."""

    spawning_stack_limit = 0


class Stream:
    """A plain TCP or unix socket. Not shared between threads."""

    __slots__ = (
        "_allowed_ahead",
        "_deadline",
        "_deadlines",
        "_hub",
        "_raw",
        "_raw_recv",
        "_raw_send",
        "_reader",
        "_sock",
        "_watcher",
        "_watching",
        "_write_watcher",
        "_writer",
        "armed",
        "closed",
        "eager",
        "held_up",
        "on_readable",
        "slot",
    )

    is_tls = False

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._raw = sock._sock
        self._raw_recv = self._raw.recv
        self._raw_send = self._raw.send
        self._hub = get_hub()
        self._deadlines = Deadlines.current()
        self._reader: Any = None
        self._writer: Any = None
        self._watcher = self._hub.loop.io(self._raw.fileno(), _READ)
        self._write_watcher: Any = None
        self._watching = False
        self._deadline = inf
        self._allowed_ahead = AHEAD
        # When this stream is next looked at by Deadlines; inf when it is not.
        self.armed = inf
        # Where Deadlines keeps it; 0 for nowhere.
        self.slot = 0
        self.closed = False
        # The last read filled its buffer: more is likely there already. Set to False by a reader
        # that never waits, so that others run before it reads again.
        self.eager = False
        # A write has waited for the other side, and not for a moment; for whoever asks to reset.
        self.held_up = False
        # Called from the hub when there is something to read and nobody reads.
        self.on_readable: Callable[[], None] | None = None

    # -- reading ----------------------------------------------------------------------

    def recv(self, size: int, timeout: float | None) -> bytes:
        """Up to `size` bytes as soon as there are some; b"" at the end of the stream.

        Raises TimeoutError after `timeout` seconds (None: no limit) and OSError.
        """
        if not self.eager:
            self.wait_readable(timeout)
        while True:
            try:
                data: bytes = self._raw_recv(size)
            except BlockingIOError:
                self.wait_readable(timeout)
                continue
            self.eager = len(data) == size
            return data

    def wait_readable(self, timeout: float | None) -> None:
        """Return when there is something to read (or the end); TimeoutError as in `recv`."""
        if self.closed:
            raise ConnectionAbortedError("the stream is closed")
        if timeout is None:
            self._deadline = inf
        else:
            deadline = self._deadline = monotonic() + timeout
            if deadline < self.armed:
                self._deadlines.arm(self, deadline)
        if not self._watching:
            self._watching = True
            self._watcher.start(self._readable)
        me = self._reader = getcurrent()
        switch = self._hub.switch
        try:
            while self._reader is me:
                switch()
        finally:
            self._reader = None

    def watch(self) -> None:
        """Tell `on_readable` about the next readable moment, though nobody reads."""
        if not self._watching and not self.closed:
            self._watching = True
            self._watcher.start(self._readable)

    def _readable(self) -> None:
        reader = self._reader
        if reader is not None:
            self._reader = None
            reader.switch()
            return
        self._watching = False
        self._watcher.stop()
        if self.on_readable is not None:
            self.on_readable()

    def expire(self, now: float) -> None:
        """Called by `Deadlines`: end the wait whose limit has passed, or look again later."""
        if self._reader is None:
            return
        if self._deadline > now:
            if self._deadline != inf:
                self._deadlines.arm(self, self._deadline)
            return
        if now - self._deadline > LATE and self._came():
            # The hub was late (it was paused, or a view held it), not the other side: what came
            # meanwhile is read first. The watcher tells of it in this turn.
            return
        self.interrupt(TimeoutError("timed out"))

    def _came(self) -> bool:
        """Whether there is something to read, or the end, or an error."""
        try:
            self._raw_recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def limit(self, timeout: float | None) -> None:
        """Give the wait that is under way (if any) a new limit, counted from now."""
        if self._reader is None:
            return
        self._deadline = inf if timeout is None else monotonic() + timeout
        if self._deadline < self.armed:
            self._deadlines.arm(self, self._deadline)

    def interrupt(self, error: BaseException) -> bool:
        """Raise `error` in the greenlet that waits to read; False when there is none.
        Only from the hub (a watcher's callback)."""
        reader = self._reader
        if reader is None:
            return False
        self._reader = None
        reader.throw(error)
        return True

    @property
    def waiting(self) -> bool:
        """Whether a greenlet waits to read."""
        return self._reader is not None

    def peek(self) -> bytes | None:
        """What could be read now, one byte of it at most: None for nothing, b"" for the end.
        Raises OSError, as for a connection that was reset."""
        try:
            found: bytes = self._raw_recv(1, _PEEK)
        except BlockingIOError:
            return None
        return found

    def poll(self, size: int) -> bytes | None:
        """Up to `size` bytes if some are here: None for nothing, b"" for the end. Raises OSError."""
        try:
            data: bytes = self._raw_recv(size)
        except BlockingIOError:
            return None
        return data

    def is_quiet(self) -> bool:
        """Whether an idle connection is as it was left: open, and nothing came since."""
        if self.closed:
            return False
        try:
            return self.peek() is None
        except OSError:
            return False

    # -- writing ----------------------------------------------------------------------

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        """Send all of it. `timeout` bounds each wait without progress.

        Raises TimeoutError and OSError; how much was sent is not told, so the connection
        is of no use after either.
        """
        try:
            sent = self._raw_send(data)
        except BlockingIOError:
            sent = 0
        if sent != len(data):
            self._send_rest(memoryview(data)[sent:], timeout)

    def send_some(self, data: bytes | memoryview) -> int:
        """Send what goes out without waiting, and say how much that was. Raises OSError."""
        try:
            sent: int = self._raw_send(data)
        except BlockingIOError:
            return 0
        return sent

    def send_parts(self, parts: Sequence[bytes]) -> list[memoryview]:
        """Send several pieces in a row, without copying them into one; what did not go out
        without waiting. Raises OSError."""
        try:
            sent: int = self._raw.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        rest = []
        for part in parts:
            if sent < len(part):
                rest.append(memoryview(part)[sent:])
            sent = max(sent - len(part), 0)
        return rest

    def unsent(self) -> int:
        """Bytes that the other side's kernel has not taken yet; 0 where that is not known."""
        return self._queued(termios.TIOCOUTQ)

    def _queued(self, kind: int) -> int:
        try:
            told = fcntl.ioctl(self._raw.fileno(), kind, b"\0\0\0\0")
        except OSError:
            return 0
        return int.from_bytes(told, sys.byteorder)

    def room(self) -> int:
        """About how many bytes the kernel would take now without anybody waiting."""
        # Half of it is the kernel's own use (socket(7), SO_SNDBUF).
        buffer = int(self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)) // 2
        return min(buffer - self.unsent(), self._allowed_ahead - self._queued(_NOT_SENT))

    def go_further_ahead(self) -> None:
        """The other side keeps up: until it is waited for, the kernel takes more than it can send at once."""
        self._allow_ahead(_FURTHER_AHEAD)

    def _allow_ahead(self, size: int) -> None:
        if self._allowed_ahead != size:
            self._allowed_ahead = size
            with suppress(OSError):  # not TCP
                self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def _send_rest(self, rest: memoryview, timeout: float | None) -> None:
        while rest:
            self.wait_writable(timeout)
            try:
                rest = rest[self._raw_send(rest) :]
            except BlockingIOError:
                continue

    def wait_writable(self, timeout: float | None) -> None:
        """Return when some bytes can be sent; TimeoutError after `timeout` seconds."""
        if self.closed:
            raise ConnectionAbortedError("the stream is closed")
        if self._write_watcher is None:
            self._write_watcher = self._hub.loop.io(self._raw.fileno(), _WRITE)
        self._writer = getcurrent()
        began = monotonic()
        try:
            with Timeout(timeout, TimeoutError("timed out")):
                self._hub.wait(self._write_watcher)
        finally:
            self._writer = None
            if monotonic() - began >= _NOT_FAST:
                self.held_up = True
                self._allow_ahead(AHEAD)

    # -- ending -----------------------------------------------------------------------

    def shutdown_write(self) -> None:
        """Send FIN; what the other side sends can still be read."""
        self.cut_write()

    def cut_write(self) -> None:
        """Send FIN, under TLS without close_notify: an end that is not authentic. A greenlet that
        waits to write gets an error."""
        with suppress(OSError):  # gone already: there is nobody to tell
            self._raw.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; a greenlet that waits to read or write gets ConnectionAbortedError."""
        if self.closed:
            return
        self.closed = True
        self.on_readable = None
        self._watching = False
        self._watcher.stop()
        self._watcher.close()
        if self._write_watcher is not None:
            self._write_watcher.stop()
            self._write_watcher.close()
        if self.armed != inf:
            self._deadlines.forget(self)
        self._sock.close()
        if self._reader is not None or self._writer is not None:
            self._hub.loop.run_callback(self._wake)

    def _wake(self) -> None:
        """Tell who still waits. Somebody else may have woken it by now: then it is not ours."""
        self.interrupt(ConnectionAbortedError("the stream was closed"))
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.throw(ConnectionAbortedError("the stream was closed"))

    def abort(self) -> None:
        """Close with RST instead of FIN: what was sent must not look complete."""
        with suppress(OSError):  # not connected any more: closing is all that is left
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def fileno(self) -> int:
        return int(self._raw.fileno())


class _ClosedTls:
    """Stands in for the SSL object of a closed stream. OpenSSL knows the descriptor by its number
    alone, so that it would read from and write to whatever connection has that number next."""

    def _refuse(self, *_: object) -> Any:
        raise ConnectionAbortedError("the stream is closed")

    read = write = shutdown = _refuse


_CLOSED_TLS = _ClosedTls()


class TlsStream(Stream):
    """A gevent SSLSocket after its handshake.

    Reads and writes go to the SSL object, whose socket never blocks under gevent. A read
    is always tried first: bytes decrypted already do not make the socket readable.
    """

    __slots__ = ("_ahead", "_tls")

    is_tls = True

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._tls = sock._sslobj
        # What was read before our close_notify went out.
        self._ahead: deque[bytes] = deque()
        # A read gives one record at most: whether more is there is never known.
        self.eager = True

    def close(self) -> None:
        self._tls = _CLOSED_TLS
        super().close()

    def recv(self, size: int, timeout: float | None) -> bytes:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if self._ahead:
                return self._ahead.popleft()
            try:
                data: bytes = self._tls.read(size)
            except ssl.SSLZeroReturnError:
                # What a close_notify is called once ours is out, too.
                return b""
            except ssl.SSLWantReadError:
                self.wait_readable(None if deadline is None else max(deadline - monotonic(), 0.0))
                self.eager = True
            except ssl.SSLWantWriteError:
                self.wait_writable(timeout)
            except ssl.SSLEOFError as error:
                # Without close_notify the end is not authentic (RFC 8446 §6.1): a body that
                # is delimited by it may have been cut.
                raise ConnectionResetError("TLS connection ended without close_notify") from error
            else:
                if not self.eager:
                    self.eager = True
                    try:
                        self._let_others_run(timeout)
                    except BaseException:
                        # The next reader gets what this one did not live to return.
                        self._ahead.appendleft(data)
                        raise
                return data

    def _let_others_run(self, timeout: float | None) -> None:
        """A turn of the hub, for one who could read on without waiting: as the reader, since `on_readable`
        would take what comes next before what was read is handed on."""
        timer = self._hub.loop.timer(_SOON)
        timer.start(self._readable)
        try:
            with suppress(TimeoutError):
                self.wait_readable(timeout)
        finally:
            timer.stop()
            timer.close()

    def peek(self) -> bytes | None:
        # A raw peek would show ciphertext, session tickets among it. The layer is asked for
        # one byte instead, which is lost to the reader: for idle connections only.
        try:
            found: bytes = self._tls.read(1)
        except ssl.SSLWantReadError:
            return None
        return found

    def poll(self, size: int) -> bytes | None:
        if self._ahead:
            return self._ahead.popleft()
        try:
            data: bytes = self._tls.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLEOFError as error:
            raise ConnectionResetError("TLS connection ended without close_notify") from error
        return data

    def send(self, data: bytes | memoryview, timeout: float | None) -> None:
        self._send_rest(memoryview(data), timeout)

    def send_some(self, data: bytes | memoryview) -> int:
        try:
            sent: int = self._tls.write(data)
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError as error:
            raise ConnectionAbortedError("the client asks for a TLS renegotiation") from error
        return sent

    def send_parts(self, parts: Sequence[bytes]) -> list[memoryview]:
        # In one piece: a write that did not go out is tried again with all of its bytes.
        whole = memoryview(b"".join(parts))
        sent = self.send_some(whole)
        return [whole[sent:]] if sent < len(whole) else []

    def shutdown_write(self) -> None:
        """Send close_notify, then FIN: without the first, the end may be a cut (RFC 8446 §6.1)."""
        with deaf(self._raw):
            if self._read_ahead():
                with suppress(OSError):  # it waits for the other side's close_notify, or that side is gone
                    self._tls.shutdown()
        super().shutdown_write()

    def _read_ahead(self) -> bool:
        """Take in what has come: `shutdown` looks for the other side's close_notify, and where
        it finds data instead, that and all that follows is lost. False when there is too much."""
        size = 0
        while size < _MOST_AHEAD:
            try:
                data: bytes = self._tls.read(_RECORD)
            except OSError:
                break  # nothing (more) has come; what is wrong, the next read will meet again
            if not data:
                break
            self._ahead.append(data)
            size += len(data)
        else:
            return False
        if self._ahead and self._reader is not None:
            # What it waits for will not make the socket readable any more.
            self._hub.loop.run_callback(self._readable)
        return True

    def _send_rest(self, rest: memoryview, timeout: float | None) -> None:
        while rest:
            try:
                rest = rest[self._tls.write(rest) :]
            except ssl.SSLWantWriteError:
                self.wait_writable(timeout)
            except ssl.SSLWantReadError:
                self.wait_readable(timeout)


@contextmanager
def deaf(sock: Any) -> Iterator[None]:
    """What arrives meanwhile is as if it were lost on the way: the other side sends it again.
    Between the last read of a TLS connection and its `shutdown`, which looks for itself, it
    would be lost for good."""
    with suppress(OSError):  # not on Linux: then it may happen
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _DROP_ALL)
    try:
        yield
    finally:
        with suppress(OSError):  # none was there, or the socket is gone
            sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def wrap(sock: Any) -> Stream:
    """The right stream for a connected gevent socket, TLS or not."""
    if type(sock) is gsocket.socket:
        return Stream(sock)
    return TlsStream(sock)
