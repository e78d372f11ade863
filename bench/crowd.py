"""One worker whose registry has one service of very many instances: `python -m bench.crowd PORT INSTANCES`.

Rule: as bench.watching, but with traffic: a request a time to the large upstream, and another to
one beside it, while the large one changes. Each phase is measured until a while after its change is in
force, so that what is left to do then counts, too. Prints one JSON object.
"""

from gevent import monkey

monkey.patch_all()

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection

import gevent

from bench.proc import status_kib
from bench.registry import ITEM, service_name
from bench.watching import Lag
from gateway.app import Gateway, create_app
from gateway.config import loads
from gateway.http.messages import Request
from gateway.model import Endpoint

# Seconds between two requests to each of the two upstreams, and those that a phase goes on for after its change.
PACE = 0.005
AFTER = 2.5


def config_text(port: int, balance: str = "round_robin") -> bytes:
    return f"""
version: 1
access_log: null
admin: null
server: {{overload: null}}
discovery: {{wait: 120s, consul: {{address: "http://127.0.0.1:{port}", poll: 5s}}}}
upstreams:
  crowd: {{consul: {service_name(0)}, balance: {balance}}}
  beside: {{endpoints: ["http://127.0.0.1:{port}"]}}
routes:
  - {{name: crowd, match: {{prefix: /crowd}}, upstream: crowd, strip_prefix: true}}
  - {{name: beside, match: {{prefix: /beside}}, upstream: beside, strip_prefix: true}}
""".encode()


class Traffic:
    """One request after the other for a path; `longest`: seconds that one took, `served`: how many,
    `failed`: of which so many had another answer than the upstream's."""

    def __init__(self, gateway: Gateway, path: bytes) -> None:
        self._gateway = gateway
        self._path = path
        self.longest = 0.0
        self.served = 0
        self.failed = 0
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            request = Request(b"GET", self._path, [(b"Host", b"bench")], began, "127.0.0.1", host=b"bench")
            response = self._gateway.handle(request)
            assert response is not None
            body = response.data
            while response.stream is not None and (piece := response.stream.read()):
                body += piece
            self._gateway.finish(request, response, len(body), None)
            if response.status != 200 or body != ITEM:
                self.failed += 1
            self.longest = max(self.longest, time.monotonic() - began)
            self.served += 1
            gevent.sleep(PACE)


class Stage:
    """The worker, what it is asked, and what its registry is told."""

    def __init__(self, port: int, balance: str) -> None:
        self._registry = HTTPConnection("127.0.0.1", port)
        self.gateway = create_app(loads(config_text(port, balance), "bench", {}))
        self.lag = Lag(cpu=True)
        self.beside: Traffic | None = None

    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.gateway.store.current.groups["crowd"].endpoints

    def phase(self, change: str, done: Callable[[tuple[Endpoint, ...]], bool]) -> tuple[float, float, float]:
        """The longest hold of the hub, the seconds until the change was in force, CPU seconds of both."""
        self._registry.request("POST", f"/change?service=0{change}")
        # In the registry's own process, before it answers.
        self._registry.getresponse().read()
        self.lag.take()
        used, began = time.process_time(), time.monotonic()
        while not done(self.endpoints()):
            gevent.sleep(0.005)
            if time.monotonic() - began > 60:
                raise SystemExit(f"not in force after 60 s: {change}")
        took = time.monotonic() - began
        gevent.sleep(AFTER)
        return self.lag.take(), took, time.process_time() - used


def measure(port: int, instances: int, balance: str = "round_robin") -> dict[str, float]:
    empty = status_kib(os.getpid(), "VmRSS")
    stage = Stage(port, balance)
    gateway = stage.gateway
    # As a worker does (gateway/server/settings.py, post_worker_init): but for the wait, which would hold up traffic.
    began = time.monotonic()
    starting = gevent.spawn(gateway.start)
    gevent.sleep(0.05)
    gc.collect()
    gc.freeze()
    gevent.sleep(0.01)
    stage.beside = beside = Traffic(gateway, b"/beside/item")
    stage.lag.take()
    starting.get()
    figures = {"first_s": time.monotonic() - began}
    crowd = Traffic(gateway, b"/crowd/item")
    gevent.sleep(AFTER)
    figures["first_hold_ms"] = stage.lag.take() * 1000
    if len(stage.endpoints()) != instances:
        raise SystemExit(f"{len(stage.endpoints())} endpoints")
    figures["kib"] = (status_kib(os.getpid(), "VmRSS") - empty) / instances
    half = instances // 2
    for name, change, done in (
        ("one", "", lambda now: now[0].weight == 2),
        ("all", "&all=1", lambda now: now[-1].weight == 2),
        ("half", f"&count={half}", lambda now: len(now) == half),
        ("back", f"&count={instances}", lambda now: len(now) == instances),
    ):
        hold, took, used = stage.phase(change, done)
        figures |= {f"{name}_hold_ms": hold * 1000, f"{name}_s": took, f"{name}_cpu_s": used}
    figures["beside_ms"] = beside.longest * 1000
    figures["served"] = beside.served
    figures["failed"] = beside.failed + crowd.failed
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for traffic in (beside, crowd):
        if traffic.greenlet.dead:
            raise SystemExit("requests did not go on")
    gateway.stop()
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])), flush=True)
