"""One connection to an endpoint: urllib3's, with our own connecting and our own stream.

Rule: connect by IP address with one limit over TCP and TLS together, and say exactly what
failed. urllib3 keeps the TLS wrapping (contexts, server names, verification); nothing of
http.client's sending and reading is used: it rewrites, buffers and mistakes 103 for an
answer.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from typing import Any, Self

from gevent import get_hub, getcurrent
from gevent import socket as gsocket
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from gateway.errors import (
    ConnectRefused,
    ConnectReset,
    ConnectTimeout,
    DnsError,
    GatewayError,
    NoNetworkRoute,
    Overloaded,
    TlsError,
)
from gateway.net.stream import LATE, Stream, wrap
from gateway.transport.answer import AnswerReader

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EACCES, errno.EPERM}
# The second is what the kernel says of the other side of a connection that was reset.
_RESET = {errno.ECONNRESET, errno.ENOTCONN}
# The gateway's own machine has none left: not the upstream's fault.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class _Opened:
    """What both kinds of connection share; `open` comes before everything else."""

    host: str
    port: int
    sock: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stream: Stream
        self.reader: AnswerReader
        # Exchanges completed on it; monotonic seconds when the last one ended.
        self.served = 0
        self.idle_since = 0.0
        # From the upstream's Keep-Alive: seconds it may be idle, None when not said.
        self.idle_limit: float | None = None
        self._opening_limit: float | None = None

    def open(self, address: str, timeout: float | None) -> None:
        """Connect, TLS included, within `timeout` seconds. Raises a ConnectError."""
        began = time.monotonic()
        self._opening_limit = timeout
        try:
            self.connect()  # type: ignore[attr-defined]
        except GatewayError:
            raise
        except BaseException as error:
            self._abandon()
            took = time.monotonic() - began
            if isinstance(error, (OSError, HTTPError, ssl.CertificateError)):
                raise explain_connect(error, address, took, "tls handshake") from error
            raise
        self.stream = wrap(self.sock)
        self.reader = AnswerReader(self.stream)

    def _abandon(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _new_conn(self) -> Any:
        """A connected gevent socket (urllib3 calls this from `connect`)."""
        began = time.monotonic()
        address = f"{self.host}:{self.port}"
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            sock = gsocket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise explain_connect(error, address, 0.0, "socket") from error
        try:
            _connect(sock, self.host, self.port, family, self._opening_limit)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise explain_connect(error, address, time.monotonic() - began, "dial tcp") from error
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # From here on a TLS connection's own limit counts.
        sock.settimeout(None)
        return sock


def _connect(sock: Any, host: str, port: int, family: int, timeout: float | None) -> None:
    """Connect without a look-up: under gevent even an IP literal would go through the
    resolver's thread pool. Raises OSError, TimeoutError; DnsError for a name."""
    try:
        packed = socket.inet_pton(family, host)
    except OSError as error:
        raise DnsError(f"{host!r} is a name that was not looked up") from error
    failed = sock._sock.connect_ex((host, port) if packed else host)
    if failed == errno.EINPROGRESS:
        sock.settimeout(timeout)
        sock._wait(sock._write_event)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, errno.errorcode.get(failed, "unknown"))
    # On loopback a dial to a port of the ephemeral range that nobody listens on can meet
    # itself (TCP's simultaneous open): that is nobody, too.
    if sock.getsockname() == sock.getpeername():
        raise OSError(errno.ECONNREFUSED, "connected to itself")


def explain_connect(error: BaseException, address: str, took: float, phase: str) -> GatewayError:
    """The error of the tree for a failed dial, with endpoint, phase, duration and errno."""
    # OpenSSL has numbers of its own.
    number = None if isinstance(error, ssl.SSLError) else getattr(error, "errno", None)
    name = errno.errorcode.get(number, "") if isinstance(number, int) else ""
    cause = f"{phase} {address}: {name or type(error).__name__}: {error} after {took * 1000:.1f} ms"
    if isinstance(error, TimeoutError):
        return ConnectTimeout(cause)
    if isinstance(error, (ssl.SSLError, ssl.CertificateError, HTTPError)) or phase == "tls handshake":
        return TlsError(cause)
    if number in _EXHAUSTED:
        return Overloaded(cause)
    if number in _NO_ROUTE:
        return NoNetworkRoute(cause)
    if number == errno.ETIMEDOUT:
        return ConnectTimeout(cause)
    if number in _RESET:
        return ConnectReset(cause)
    return ConnectRefused(cause)


class PlainConnection(_Opened, HTTPConnection):
    """http"""


class TlsConnection(_Opened, HTTPSConnection):
    """https"""

    def connect(self) -> None:
        # The socket's own timeout is for each wait: a handshake that comes byte by byte
        # would never pass it.
        with _Limit(self._opening_limit):
            super().connect()


class _Limit:
    """A `with` block that ends by TimeoutError after `seconds` (None: never).

    A handshake goes to and fro. If the limit passes while the hub is held up (it was paused, or a view
    held it), the other side could not do its part: once, it gets as long as the hub was late.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timer: Any = None
        self._extended = False

    def __enter__(self) -> Self:
        self._greenlet = getcurrent()
        if self._seconds is not None:
            self._start(self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.close()

    def _start(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        # Behind the sockets, as gevent's own Timeout: what came is looked at first.
        self._timer = get_hub().loop.timer(seconds, priority=-1)
        self._timer.start(self._passed, update=True)

    def _passed(self) -> None:
        late = time.monotonic() - self._due
        if late <= LATE or self._extended:
            self._greenlet.throw(TimeoutError("timed out"))
            return
        self._extended = True
        self._timer.close()
        self._start(late)


Connection = PlainConnection | TlsConnection
