"""A steady load on a gateway whose workers are replaced all the time: by SIGHUP, and by max_requests.

Rule: no request fails, on a kept connection or a new one, with a body or inside a long stream. Longer than the
tests of `test_worker_leaving`, and with the gateway as it ships.

python -m tests.restart_load [SECONDS]
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer

from gateway.testing import RawClient, RawResponse, Truncated, Wire, answer, chunk, head, parse_head, values
from tests.conformance.harness import GatewayProcess, doors

WORKERS = 2
HUP_EVERY = 3.0
WORN = {"GUNICORN_CMD_ARGS": "--max-requests 200 --max-requests-jitter 50"}
# A stream outlives more than one reload.
_TICKS = 40
_TICK = 0.1
_PAUSE = 0.01
# What a client has at the end for its last request: more than one of its waits, and than a stream.
_LAST = 60.0
_BODY = b"x" * 1024
_DIRECT = next(door for door in doors() if door.name == "direct")

CONFIG = """
version: 1
server: {{name: gw, overload: 0}}
admin: null
upstreams:
  main: {{endpoints: ["http://127.0.0.1:{port}"]}}
routes:
  - {{name: main, match: {{prefix: /}}, upstream: main}}
"""

_GET = b"GET /get HTTP/1.1\r\nHost: a.test\r\n\r\n"
_POST = b"POST /post HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
_STREAM = b"GET /stream HTTP/1.1\r\nHost: a.test\r\n\r\n"


class _Upstream:
    """Says how long the body was that came; ticks for a while on /stream."""

    def __init__(self) -> None:
        self._server = StreamServer(("127.0.0.1", 0), self._serve, backlog=512)
        self._server.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.stop(timeout=0)

    def _serve(self, sock: socket.socket, _: Any) -> None:
        wire = Wire(sock, timeout=600.0)
        try:
            while True:
                self._one(wire)
                wire.received.clear()
        except (OSError, Truncated):
            pass  # the worker is gone
        finally:
            wire.close()

    @staticmethod
    def _one(wire: Wire) -> None:
        line, fields = parse_head(wire.read_until(b"\r\n\r\n"))
        body = b"".join(wire.read_exactly(int(length)) for length in values(fields, b"content-length"))
        if line.split(b" ")[1] != b"/stream":
            wire.send(answer(b"%d" % len(body)))
            return
        wire.send(head(200, b"Transfer-Encoding: chunked"))
        for _ in range(_TICKS):
            gevent.sleep(_TICK)
            wire.send(chunk(b"tick"))
        wire.send(b"0\r\n\r\n")


class Kind:
    """One kind of client: what it asks, what it must get, and whether it keeps its connection."""

    def __init__(self, name: str, clients: int, raw: bytes, body: bytes, keep: bool = True) -> None:
        self.name = name
        self.clients = clients
        self._raw = raw
        self._body = body
        self._keep = keep
        self.answered = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self, port: int, stop: Event) -> None:
        while not stop.is_set():
            try:
                with RawClient(port, timeout=40.0) as client:
                    self._use(client, stop)
            except (OSError, Truncated) as error:
                self.failed.append(f"{self.name}: {type(error).__name__}: {error}")

    def _use(self, client: RawClient, stop: Event) -> None:
        while not stop.wait(_PAUSE):
            began = time.monotonic()
            response: RawResponse = client.request(self._raw)
            self.slowest = max(self.slowest, time.monotonic() - began)
            if (response.status, response.body) != (200, self._body):
                self.failed.append(f"{self.name}: {response.status} {response.body[:200]!r}")
            self.answered += 1
            client.received.clear()
            if not self._keep or response.header(b"connection") == b"close":
                return

    @property
    def told(self) -> str:
        return f"{self.answered} {self.name} (slowest {self.slowest:.2f} s)"


def kinds() -> list[Kind]:
    return [
        Kind("GET, kept connections", 6, _GET, b"0"),
        Kind("POST, kept connections", 4, _POST, b"%d" % len(_BODY)),
        Kind("GET, new connections", 4, _GET, b"0", keep=False),
        Kind("POST, new connections", 2, _POST, b"%d" % len(_BODY), keep=False),
        Kind("streams", 4, _STREAM, b"tick" * _TICKS),
    ]


def loaded(name: str, seconds: float, environ: dict[str, str], act: Callable[[GatewayProcess], None]) -> list[str]:
    """A load for so long, `act` being done every few seconds; what was wrong."""
    upstream = _Upstream()
    gateway = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            gateway = GatewayProcess(CONFIG.format(port=upstream.port), Path(folder), _DIRECT, workers=WORKERS, environ=environ)
            stop, load = Event(), kinds()
            clients = [gevent.spawn(kind.run, gateway.port, stop) for kind in load for _ in range(kind.clients)]
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                gevent.sleep(HUP_EVERY)
                act(gateway)
            stop.set()
            gevent.joinall(clients, timeout=_LAST, raise_error=True)
            errors = gateway.errors()
            begun = errors.count("Booting worker") - WORKERS
            print(f"{name}: {begun} workers replaced; " + ", ".join(kind.told for kind in load), flush=True)
            wrong = [failure for kind in load for failure in kind.failed]
            if not all(client.dead for client in clients):
                wrong.append("clients still wait for an answer")
            if begun < seconds / HUP_EVERY / 2:
                wrong.append(f"only {begun} workers were replaced")
            wrong += [line for line in errors.splitlines() if "Traceback" in line or "broken off" in line or "SIGKILL" in line]
            return [f"{name}: {one}" for one in wrong]
    finally:
        if gateway is not None:
            gateway.stop()
        upstream.close()


def main(seconds: float) -> int:
    wrong = loaded("SIGHUP", seconds, {}, lambda gateway: gateway.process.send_signal(signal.SIGHUP))
    wrong += loaded("max_requests", seconds, WORN, lambda gateway: None)
    wrong += loaded("both", seconds, WORN, lambda gateway: gateway.process.send_signal(signal.SIGHUP))
    for one in wrong:
        print(one)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
