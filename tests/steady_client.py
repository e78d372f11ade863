"""A client that asks a hundred times a second, and how long each answer took.

Rule: a process of its own, blocking sockets, the standard library: what is measured is not its own work. It runs
before all others of its core if that is allowed, so that it does not wait for those who make the load.

python tests/steady_client.py PORT...: asks GET /ok of each port in turn, over one connection each, until its input
ends; then prints, as JSON, the seconds that each answer took by port and what failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time

_ASK = b"GET /ok HTTP/1.1\r\nHost: a.test\r\n\r\n"
_PAUSE = 0.01
_PATIENCE = 20.0


def _ask(sock: socket.socket) -> None:
    sock.sendall(_ASK)
    got = b""
    while not got.endswith(b"\r\n\r\nok"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"the answer ended: {got!r}")
        got += data
    if not got.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"a wrong answer: {got!r}")


def run(ports: list[int]) -> dict[str, object]:
    took: dict[int, list[float]] = {port: [] for port in ports}
    with contextlib.ExitStack() as stack:
        try:
            socks = [(port, stack.enter_context(socket.create_connection(("127.0.0.1", port), _PATIENCE))) for port in ports]
            while not select.select([sys.stdin], [], [], _PAUSE)[0]:
                for port, sock in socks:
                    began = time.perf_counter()
                    _ask(sock)
                    took[port].append(time.perf_counter() - began)
        except OSError as error:
            return {"took": took, "failed": f"{type(error).__name__}: {error}"}
    return {"took": took, "failed": ""}


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    json.dump(run([int(port) for port in sys.argv[1:]]), sys.stdout)
