"""Long work lets sockets have their turn."""

from __future__ import annotations

import socket

import gevent
from gevent import socket as gsocket

from gateway.runtime.hub import breathe


def test_what_came_to_a_socket_is_seen_to() -> None:
    ours, theirs = gsocket.socketpair()
    with ours, theirs:
        reading = gevent.spawn(ours.recv, 10)
        breathe()
        # The plain call: nothing else runs while it sends.
        socket.socket.send(theirs, b"hello")
        breathe()
        breathe()
        assert reading.value == b"hello"
