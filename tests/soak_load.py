"""Mixed requests with faults of every kind through a real gateway, and what it holds before and after.

Rule: nineteen of twenty requests are well and must be answered rightly; one of twenty goes wrong, on the one side
or the other, and must end as it should. Afterwards the gateway holds what it held after its warm-up.

python -m tests.soak_load NUMBER
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import contextlib
import gc
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import gevent
from gevent import Greenlet
from gevent.server import StreamServer

from gateway.app import Gateway, create_app
from gateway.server.connection import Connection
from gateway.testing import RawClient, Truncated, Wire, answer, chunked, head, parse_head, values
from tests import fuzzing
from tests.conformance.harness import Door, GatewayProcess

CLIENTS = 24
FAULTS = 0.05
# Requests before the first look: caches are full, and every kind of fault has happened.
WARM_UP = 1500
# A connection is used so often, then another is opened.
_USES = 40
_BIG = b"0123456789abcdef" * 8192
_SWITCH = head(101, b"Upgrade: websocket", b"Connection: Upgrade")
_DIRECT = Door("direct", "gateway.server.worker.GatewayWorker", own=True, app="tests.soak_load:app()")

CONFIG = """
version: 1
server: {{name: gw, overload: 0, timeouts: {{header: 1s, body: 500ms, half_close: 200ms}}}}
upstreams:
  main:
    endpoints: ["http://127.0.0.1:{port}"]
    timeouts: {{response: 1s, idle: 400ms, tunnel: 2s}}
    pool: {{idle_timeout: 1s}}
routes:
  - {{name: main, match: {{prefix: /}}, upstream: main}}
"""

# -- inside the gateway's process ---------------------------------------------------------


def app() -> Gateway:
    """The gateway with one view more: what it holds."""
    made = create_app()

    @made.get("/soak/held")
    def held() -> dict[str, int]:
        gc.collect()
        candidates = [each for group in made.store.current.groups.values() for each in group.candidates]
        things = gc.get_objects()
        return {
            "in_flight": sum(each.state.in_flight for each in candidates),
            "upstream_connections": sum(each.pool.open for each in candidates),
            "greenlets": sum(1 for thing in things if isinstance(thing, Greenlet) and not thing.dead),
            "client_connections": sum(1 for thing in things if type(thing) is Connection),
            "blocks": sys.getallocatedblocks(),
        }

    return made


# -- the upstream ---------------------------------------------------------------------------


class _Upstream:
    """Does what the target's first segment says."""

    def __init__(self) -> None:
        self._server = StreamServer(("127.0.0.1", 0), self._serve, backlog=512)
        self._server.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.stop(timeout=0)

    def _serve(self, sock: socket.socket, _: Any) -> None:
        wire = Wire(sock, timeout=30.0)
        try:
            for _ in range(_USES):
                if not self._one(wire):
                    break
                wire.received.clear()
        except (OSError, Truncated):
            pass  # the gateway ended it, as some of the faults want
        finally:
            wire.close()

    def _one(self, wire: Wire) -> bool:
        """One request; whether there may be another."""
        line, fields = parse_head(wire.read_until(b"\r\n\r\n"))
        what = line.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2].decode()
        if what == "early":
            wire.send(answer(b"early", b"Connection: close", status=403))
            return False
        body = self._body(wire, fields)
        act: Callable[[Wire, bytes], bool] = getattr(self, f"_do_{what}", self._do_ok)
        return act(wire, body)

    @staticmethod
    def _body(wire: Wire, fields: list[tuple[bytes, bytes]]) -> bytes:
        if values(fields, b"transfer-encoding"):
            body = b""
            while size := int(wire.read_until(b"\r\n"), 16):
                body += wire.read_exactly(size)
                wire.read_exactly(2)
            wire.read_exactly(2)
            return body
        lengths = values(fields, b"content-length")
        return wire.read_exactly(int(lengths[0])) if lengths else b""

    @staticmethod
    def _do_ok(wire: Wire, body: bytes) -> bool:
        wire.send(answer(b"ok %d" % len(body)))
        return True

    @staticmethod
    def _do_big(wire: Wire, body: bytes) -> bool:
        wire.send(head(200, b"Transfer-Encoding: chunked") + chunked(_BIG, _BIG))
        return True

    @staticmethod
    def _do_last(wire: Wire, body: bytes) -> bool:
        wire.send(answer(b"last", b"Connection: close"))
        return False

    @staticmethod
    def _do_slow(wire: Wire, body: bytes) -> bool:
        gevent.sleep(0.05)
        wire.send(answer(b"slow"))
        return True

    @staticmethod
    def _do_reset(wire: Wire, body: bytes) -> bool:
        wire.reset()
        return False

    @staticmethod
    def _do_garbage(wire: Wire, body: bytes) -> bool:
        wire.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n" * 4)
        return False

    @staticmethod
    def _do_hang(wire: Wire, body: bytes) -> bool:
        wire.ended()
        return False

    @staticmethod
    def _do_stall(wire: Wire, body: bytes) -> bool:
        wire.send(head(200, b"Content-Length: 1000") + b"some")
        wire.ended()
        return False

    @staticmethod
    def _do_cut(wire: Wire, body: bytes) -> bool:
        wire.send(head(200, b"Content-Length: 1000") + b"some")
        return False

    @staticmethod
    def _do_badchunk(wire: Wire, body: bytes) -> bool:
        wire.send(head(200, b"Transfer-Encoding: chunked") + b"4\r\nsome\r\nzz\r\n")
        return False

    @staticmethod
    def _do_tunnel(wire: Wire, body: bytes) -> bool:
        wire.send(_SWITCH)
        while data := wire.read_some():
            wire.send(data)
        return False


# -- the clients ------------------------------------------------------------------------------


class Unexpected(AssertionError):
    """An exchange ended otherwise than it should."""


def _raw(target: str, *lines: str, method: str = "GET") -> bytes:
    return "".join(line + "\r\n" for line in (f"{method} {target} HTTP/1.1", "Host: a.test", *lines, "")).encode()


_CHUNKED = "Transfer-Encoding: chunked"
_UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")

# What is well: weight, the request, the status and body that it must have.
GOOD: list[tuple[int, bytes, int, bytes]] = [
    (60, _raw("/ok"), 200, b"ok 0"),
    (5, _raw("/ok", method="HEAD"), 200, b""),
    (12, _raw("/ok", "Content-Length: 1024", method="POST") + b"x" * 1024, 200, b"ok 1024"),
    (6, _raw("/ok", _CHUNKED, method="POST") + chunked(b"x" * 700, b"y" * 800), 200, b"ok 1500"),
    (2, _raw("/ok", "Content-Length: 300000", method="PUT") + b"x" * 300_000, 200, b"ok 300000"),
    (3, _raw("/big"), 200, _BIG * 2),
    (6, _raw("/last"), 200, b"last"),
    (2, _raw("/slow"), 200, b"slow"),
    (3, _raw("/-/healthz"), 200, b"ok\n"),
    (1, _raw("/a/../b"), 400, b""),
]
_WEIGHTS = [weight for weight, *_ in GOOD]


def good(client: RawClient, rng: Random) -> bool:
    """One request that is well; whether the connection is kept."""
    _, raw, status, body = rng.choices(GOOD, _WEIGHTS)[0]
    got = client.request(raw)
    if got.status != status or (status == 200 and got.body != body):
        raise Unexpected(f"{raw[:40]!r}: {got.status} {got.body[:200]!r}")
    return got.header(b"connection") != b"close"


def _answered(target: str, *statuses: int, lines: tuple[str, ...] = (), method: str = "GET", body: bytes = b"") -> Callable[[RawClient, Random], None]:
    def fault(client: RawClient, rng: Random) -> None:
        got = client.request(_raw(target, *lines, method=method) + body)
        if got.status not in statuses:
            raise Unexpected(f"{target}: {got.status}, not {statuses}")

    return fault


def _broken(target: str) -> Callable[[RawClient, Random], None]:
    """The head came, so that only a broken connection says the truth."""

    def fault(client: RawClient, rng: Random) -> None:
        try:
            got = client.request(_raw(target))
        except (Truncated, ConnectionResetError):
            return
        if got.status != 502:
            raise Unexpected(f"{target}: looks whole: {got.status}")

    return fault


def _gone(raw: bytes, read: int = 0, reset: bool = True) -> Callable[[RawClient, Random], None]:
    """A client that leaves, after it read so much."""

    def fault(client: RawClient, rng: Random) -> None:
        client.send(raw)
        if read:
            client.read_exactly(read)
        if rng.random() < 0.5:
            gevent.sleep(rng.random() * 0.03)
        if reset:
            client.reset()
        else:
            client.close()

    return fault


def _malformed(client: RawClient, rng: Random) -> None:
    """Anything; that it ends is all that is asked."""
    with contextlib.suppress(ConnectionError):
        client.send(fuzzing.made(rng, fuzzing.REQUESTS))
        client.half_close()
        client.read_to_end()


def _tunnel(client: RawClient, rng: Random) -> None:
    client.send(_raw("/tunnel", *_UPGRADE) + b"early")
    if not client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ") or client.read_exactly(5) != b"early":
        raise Unexpected("no tunnel")
    client.send(b"more" * 1000)
    if client.read_exactly(4000) != b"more" * 1000:
        raise Unexpected("no echo")
    end = rng.randrange(3)
    if end == 0:
        client.reset()
    elif end == 1:
        client.half_close()
        if client.read_to_end():
            raise Unexpected("something behind the echo")


FAULTY: dict[str, Callable[[RawClient, Random], None]] = {
    "upstream resets": _answered("/reset", 502),
    "upstream resets an upload": _answered("/reset", 502, lines=("Content-Length: 1000",), method="POST", body=b"x" * 1000),
    "upstream sends garbage": _answered("/garbage", 502),
    "upstream hangs": _answered("/hang", 504),
    "upstream answers early": _answered("/early", 403, lines=("Content-Length: 1000",), method="POST", body=b"x" * 1000),
    "upstream stalls": _broken("/stall"),
    "upstream cuts its answer": _broken("/cut"),
    "upstream breaks its chunks": _broken("/badchunk"),
    "client leaves before the answer": _gone(_raw("/slow")),
    "client closes before the answer": _gone(_raw("/hang"), reset=False),
    "client leaves inside the answer": _gone(_raw("/big"), read=1000),
    "client leaves inside its head": _gone(_raw("/ok")[:20]),
    "client leaves inside its body": _gone(_raw("/ok", "Content-Length: 9000", method="POST") + b"x" * 5000),
    "client closes inside its body": _gone(_raw("/ok", _CHUNKED, method="POST") + b"5\r\nhel", reset=False),
    "client stalls inside its body": _answered("/ok", 408, lines=("Content-Length: 9000",), method="POST", body=b"x"),
    "client breaks its chunks": _answered("/ok", 400, lines=(_CHUNKED,), method="POST", body=b"5\r\nhello\r\nzz\r\n"),
    "client sends anything": _malformed,
    "upgrade": _tunnel,
    "upgrade refused": _answered("/ok", 200, lines=_UPGRADE),
}


class Load:
    """CLIENTS at once until `number` requests were made."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._seed = seed
        self._left = 0
        self._round = 0
        self.made = 0
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, number: int) -> None:
        self._left = number
        self._round += 1
        clients = [gevent.spawn(self._client, Random(f"{self._seed}:{self._round}:{each}")) for each in range(CLIENTS)]
        gevent.joinall(clients, raise_error=True)

    def _take(self) -> bool:
        self._left -= 1
        if self._left < 0 or len(self.wrong) > 20:
            return False
        self.made += 1
        return True

    def _client(self, rng: Random) -> None:
        faulty = list(FAULTY)
        while self._left > 0 and len(self.wrong) <= 20:
            with RawClient(self._port, timeout=20.0) as client:
                for _ in range(_USES):
                    if not self._take():
                        return
                    kind = rng.choice(faulty) if rng.random() < FAULTS else ""
                    if not self._do(kind, client, rng):
                        break

    def _do(self, kind: str, client: RawClient, rng: Random) -> bool:
        try:
            if not kind:
                return good(client, rng)
            self.faults[kind] += 1
            FAULTY[kind](client, rng)
        except (Unexpected, Truncated, OSError) as error:
            self.wrong.append(f"{kind or 'well'}: {type(error).__name__}: {error}")
        return False


# -- the whole ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What the gateway holds when nothing goes on."""

    resident: int
    descriptors: int
    in_flight: int
    upstream_connections: int
    greenlets: int
    client_connections: int
    # What Python's allocator has given out: exact where resident memory only follows.
    blocks: int

    @property
    def told(self) -> str:
        return (
            f"{self.resident / 2**20:.1f} MiB, {self.descriptors} descriptors, {self.in_flight} in flight, "
            f"{self.upstream_connections} upstream connections, {self.greenlets} greenlets, {self.client_connections} client connections, {self.blocks} blocks"
        )


class Soak:
    """A gateway, its upstream and the load."""

    def __init__(self, folder: Path, upstream_port: int, seed: int = 1) -> None:
        self.gateway = GatewayProcess(CONFIG.format(port=upstream_port), folder, _DIRECT)
        self.load = Load(self.gateway.port, seed)

    def held(self) -> Held:
        """Once every connection has ended; the one client connection is this question's own."""
        self.gateway._await(lambda: self._ask()["upstream_connections"] == 0, "upstream connections to end")
        answered = self._ask()
        self.gateway._await(lambda: self.gateway.open_connections() == 0, "every connection to be closed")
        pid = self.gateway.worker_pids()[0]
        return Held(resident=self.gateway.resident(), descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())), **answered)

    def _ask(self) -> dict[str, int]:
        with RawClient(self.gateway.port) as client:
            found: dict[str, int] = json.loads(client.request(_raw("/soak/held")).body)
            return found

    def ready(self) -> bool:
        with RawClient(self.gateway.port) as client:
            return client.request(_raw("/-/readyz")).status == 200


@contextmanager
def soaked(folder: Path) -> Iterator[Soak]:
    upstream = _Upstream()
    soak = None
    try:
        soak = Soak(folder, upstream.port)
        yield soak
    finally:
        if soak is not None:
            soak.gateway.stop()
        upstream.close()


def grown(before: Held, after: Held, margin: int) -> list[str]:
    """What is more than it was; `margin`: bytes of memory that may be."""
    found = []
    if after.resident > before.resident + margin:
        found.append(f"memory: {before.resident} bytes before, {after.resident} after")
    for name in ("descriptors", "in_flight", "upstream_connections", "greenlets", "client_connections"):
        was, now = getattr(before, name), getattr(after, name)
        if now > was:
            found.append(f"{name}: {was} before, {now} after")
    return found


# Memory that may be more after any number of requests: what the allocator keeps of its busiest moment.
MARGIN = 8 * 2**20


def main(number: int) -> int:
    with tempfile.TemporaryDirectory() as folder, soaked(Path(folder)) as soak:
        soak.load.run(WARM_UP)
        before = soak.held()
        print(f"after {soak.load.made} requests: {before.told}", flush=True)
        began, after = time.monotonic(), before
        for _ in range(4):
            soak.load.run(number // 4)
            after = soak.held()
            print(f"after {soak.load.made} requests, {time.monotonic() - began:.0f} s: {after.told}", flush=True)
        wrong = soak.load.wrong + grown(before, after, MARGIN)
        if "Traceback" in soak.gateway.errors():
            wrong.append(soak.gateway.errors())
        if not soak.ready():
            wrong.append("not ready any more")
        for kind, times in sorted(soak.load.faults.items()):
            print(f"{times:>7}  {kind}")
        for one in wrong:
            print(one)
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
