"""The master's part of the admin listener: one socket, opened once, for all of its workers.

Rule: it is kept apart from gunicorn's own listeners, so that no `--bind`, no change of one
and no inherited socket takes its place. What cannot be opened costs the admin listener
alone: the data listeners go on, and the log says it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Mapping
from typing import Any

from gevent import monkey
from gunicorn import sock, util

# What a master hands to the one that takes its place (SIGUSR2): the descriptor, and where it
# is bound, which is empty when it was inherited.
HANDED_OVER = "GATEWAY_ADMIN_FD"
# systemd's name for it (FileDescriptorName=, sd_listen_fds_with_names(3)).
NAME = "admin"
# Its owner and group; gunicorn's umask of 0 would let in everybody.
_MODE = 0o660

_RawSocket = monkey.get_original("socket", "socket")


class AdminListener:
    """`listener` is one of gunicorn's sockets, None when there is none."""

    def __init__(self) -> None:
        self.listener: Any = None
        self._bind: str | None = None
        self._inherited = False

    def open(self, bind: str | None, token: str, cfg: Any, log: Any) -> None:
        """Listen where the configuration says; None: nowhere. One that is there already, or was
        inherited, stays; a socket that others reach is not served without a token."""
        if self._inherited:
            if self.listener is not None and not token and not is_local(self.listener.getsockname()):
                log.error("The inherited admin listener %s can be reached by others and needs a token", self.listener)
                self.close()
            return
        if bind == self._bind:
            return
        self.close()
        self._bind = bind
        if bind is None:
            return
        try:
            self.listener = _listen(bind, cfg, log)
        except (OSError, ValueError) as error:
            log.error("No admin listener: %s: %s. The gateway runs without status and metrics", bind, error)
        else:
            log.info("Admin listener: %s", self.listener)

    def adopt(self, listener: Any, log: Any, bind: str = "") -> None:
        """Take a socket that was inherited. `bind`: where the master before this one bound it,
        so that it goes when the configuration says something else."""
        self.listener, self._bind, self._inherited = listener, bind or None, not bind
        log.info("Admin listener: %s (inherited)", listener)

    def hand_over(self) -> str | None:
        """What `handed_over` understands."""
        return None if self.listener is None else f"{self.listener.fileno()} {self._bind or ''}"

    def close(self, unlink: bool = True) -> None:
        listener, self.listener = self.listener, None
        if listener is None:
            return
        name = listener.getsockname()
        listener.close()
        if unlink and not self._inherited and isinstance(name, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def is_local(name: Any) -> bool:
    """Whether only this machine reaches a socket of that name."""
    if not isinstance(name, tuple):
        return True
    address = ipaddress.ip_address(name[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def handed_over(told: str, cfg: Any, log: Any) -> tuple[Any, str] | None:
    """The socket that the master before this one handed over, and where it is bound."""
    fd, _, bind = told.partition(" ")
    return (_of_descriptor(int(fd), cfg, log), bind) if fd.isdecimal() else None


def of_systemd(environ: Mapping[str, str], pid: int) -> int | None:
    """Which of the sockets that systemd passes is the admin listener, counted from 0."""
    if environ.get("LISTEN_PID") != str(pid):
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return names.index(NAME) if NAME in names else None


def _listen(bind: str, cfg: Any, log: Any) -> Any:
    address = util.parse_address(bind)
    if isinstance(address, tuple):
        kind = sock.TCP6Socket if util.is_ipv6(address[0]) else sock.TCPSocket
        return kind(address, cfg, log)
    if _answers(address):
        raise OSError("another process listens there")
    return _UnixSocket(address, cfg, log)


class _UnixSocket(sock.UnixSocket):  # type: ignore[misc]
    """gunicorn's, with its mode from the first moment: bind(2) makes the file, the umask its mode."""

    def bind(self, given: Any) -> None:
        before = os.umask(0o777 & ~_MODE)
        try:
            given.bind(self.cfg_addr)
        finally:
            os.umask(before)
        util.chown(self.cfg_addr, self.conf.uid, self.conf.gid)


def _answers(path: str) -> bool:
    """Whether somebody listens on a unix socket: gunicorn would take it away from them."""
    with _RawSocket(sock.socket.AF_UNIX, sock.socket.SOCK_STREAM) as probe:
        return bool(probe.connect_ex(path) == 0)


def _of_descriptor(fd: int, cfg: Any, log: Any) -> Any:
    with _RawSocket(fileno=os.dup(fd)) as probe:
        name = probe.getsockname()
    if not isinstance(name, tuple):
        return sock.UnixSocket(name, cfg, log, fd=fd)
    return (sock.TCP6Socket if util.is_ipv6(name[0]) else sock.TCPSocket)(name, cfg, log, fd=fd)
