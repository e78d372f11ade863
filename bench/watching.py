"""One worker's discovery seen from inside: `python -m bench.watching PORT SERVICES CHANGES SECONDS`.

Rule: the gateway runs here as in a worker (patched, its greenlets started), with one upstream
for each service of the registry at PORT and no traffic. A greenlet that wants to run every
millisecond tells how long others held the hub. Prints one JSON object.
"""

from gevent import monkey

monkey.patch_all()

import gc
import json
import os
import resource
import sys
import time
from http.client import HTTPConnection

import gevent

from bench.proc import status_kib
from bench.registry import service_name
from gateway.app import Gateway, create_app
from gateway.config import loads

POLL = 5


def config_text(port: int, services: int) -> bytes:
    lines = [
        "version: 1",
        "access_log: null",
        "admin: null",
        f'discovery: {{wait: 60s, consul: {{address: "http://127.0.0.1:{port}", poll: {POLL}s}}}}',
        "upstreams:",
        *(f"  u{number:05d}: {{consul: {service_name(number)}}}" for number in range(services)),
        "routes:",
        *(f"  - {{name: r{n:05d}, match: {{prefix: /r{n:05d}}}, upstream: u{n:05d}}}" for n in range(services)),
    ]
    return "\n".join(lines).encode()


class Lag:
    """The longest time that the hub was held, in seconds, since it was last asked. `cpu`: only time in which
    this process ran counts, so that other programs on the core do not."""

    def __init__(self, cpu: bool = False) -> None:
        self._cpu = cpu
        self.longest = 0.0
        gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            due, used = time.monotonic() + 0.001, time.process_time()
            gevent.sleep(0.001)
            late = time.monotonic() - due
            self.longest = max(self.longest, min(late, time.process_time() - used) if self._cpu else late)

    def take(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest


def answered(registry: HTTPConnection) -> int:
    registry.request("GET", "/stats")
    return int(json.loads(registry.getresponse().read())["answered"])


def weight(gateway: Gateway, service: int) -> int:
    return gateway.store.current.groups[f"u{service:05d}"].endpoints[0].weight


def change(gateway: Gateway, registry: HTTPConnection, service: int) -> float:
    """Let one service change; the seconds until the worker had it."""
    before = weight(gateway, service)
    began = time.monotonic()
    registry.request("POST", f"/change?service={service}")
    registry.getresponse().read()
    while weight(gateway, service) == before:
        gevent.sleep(0.001)
    return time.monotonic() - began


def measure(port: int, services: int, changes: int, seconds: float) -> dict[str, float]:
    text = config_text(port, services)
    empty = status_kib(os.getpid(), "VmRSS")
    began = time.monotonic()
    gateway = create_app(loads(text, "bench", {}))
    lag = Lag()
    gateway.start()
    first = time.monotonic() - began
    # As a worker does (gateway/server/settings.py, post_worker_init).
    gc.collect()
    gc.freeze()
    if list(gateway.store.waiting):
        raise SystemExit("not every service was answered for")
    endpoints = sum(len(group.endpoints) for group in gateway.store.current.groups.values())
    resident = status_kib(os.getpid(), "VmRSS")
    start_hold = lag.take()
    registry = HTTPConnection("127.0.0.1", port)
    # Two rounds of polls, so that what is spread by jitter is spread.
    gevent.sleep(POLL)
    lag.take()
    asked, used, since = answered(registry), time.process_time(), time.monotonic()
    gevent.sleep(seconds)
    took = time.monotonic() - since
    idle = (time.process_time() - used) / took
    rate = (answered(registry) - asked) / took
    idle_hold = lag.take()
    used, since = time.process_time(), time.monotonic()
    delays = [change(gateway, registry, (number * 37) % services) for number in range(changes)]
    spent = time.process_time() - used - idle * (time.monotonic() - since)
    figures = {
        "first_s": first,
        "change_cpu_ms": max(spent, 0.0) / changes * 1000,
        "change_ms": sorted(delays)[len(delays) // 2] * 1000,
        "hold_ms": lag.take() * 1000,
        "idle_hold_ms": idle_hold * 1000,
        "start_hold_ms": start_hold * 1000,
        "kib": (resident - empty) / endpoints,
        "asked_per_s": rate,
        "idle_cpu_share": idle * 100,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    gateway.stop()
    return figures


if __name__ == "__main__":
    port, services, changes = map(int, sys.argv[1:4])
    print(json.dumps(measure(port, services, changes, float(sys.argv[4]))), flush=True)
