"""One listening socket: takes connections as they come.

Rule: nothing here waits. A worker that has its limit of connections stops taking more, so
that they go to another worker or wait in the kernel; it goes on when one has ended.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from gevent import get_hub
from gevent import socket as gsocket

from gateway.net.stream import AHEAD

log = logging.getLogger(__name__)

_READ = 1
# Seconds until the next look when the system lacks descriptors or memory, or there is no room.
_BREATHER = 0.1
# Seconds between two warnings of that.
_WARN_EVERY = 10.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Calls `take(socket, address)` for each connection, from the hub: it may not wait.

    `room` is asked before each accept. `a_turn`: how many are taken before others of this
    worker run; 1 where workers share a socket, or the first that wakes takes them all.
    """

    def __init__(
        self, listener: Any, take: Callable[[Any, Any], None], room: Callable[[], bool], a_turn: int
    ) -> None:
        listener.setblocking(0)
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            # The connections that are accepted inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, AHEAD)
        self._listener = listener
        self._raw = listener._sock
        self._take = take
        self._room = room
        self._a_turn = a_turn
        self._loop = get_hub().loop
        self._watcher = self._loop.io(self._raw.fileno(), _READ)
        # Repeating, for `again`: one that fires once fires at once when it is started a second time.
        self._timer = self._loop.timer(_BREATHER, _BREATHER)
        self._exhausted_logged = -inf
        self._closed = False

    def start(self) -> None:
        """Accept, or accept again."""
        if not self._closed and not self._watcher.active:
            self._watcher.start(self._ready)

    def close(self) -> None:
        """Accept no more. What waits in the kernel is left to other workers."""
        if self._closed:
            return
        self._closed = True
        for watcher in (self._watcher, self._timer):
            watcher.stop()
            watcher.close()
        self._listener.close()

    def _ready(self) -> None:
        for _ in range(self._a_turn):
            if not self._room():
                self._watcher.stop()
                # One that can be closed for a newcomer may turn up without any that ends.
                self._timer.again(self._look_again)
                return
            try:
                descriptor, address = self._raw._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._warn(error)
                    self._watcher.stop()
                    self._timer.again(self._look_again)
                    return
                continue  # that one went away while it waited (accept(2), "Error handling")
            sock = gsocket.socket(self._raw.family, self._raw.type, self._raw.proto, fileno=descriptor)
            self._take(sock, address)

    def _look_again(self) -> None:
        self._timer.stop()
        self.start()

    def _warn(self, error: OSError) -> None:
        now = monotonic()
        if now - self._exhausted_logged >= _WARN_EVERY:
            self._exhausted_logged = now
            log.warning("no connection can be accepted for now: %s", error)
