"""Mixed requests with aborts, hedges and retries through a real gateway while its configuration is rewritten.

Rule: every byte reaches whom it belongs to, no request fails by a reload, and afterwards the gateway holds what it held
after its warm-up. What each part must do stands in the modules: `soak_orders` (requests and their bytes),
`soak_upstream`, `soak_clients`, `soak_reloads` (configurations), `soak_held` (what a worker holds), `soak_log`.

python -m tests.reload_soak NUMBER [SEED]
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import gevent
from gevent.event import Event

from gateway.testing import RawClient
from tests.conformance.harness import Door, GatewayProcess, certificate
from tests.gateway_process import version
from tests.soak_clients import ABORTS, KINDS, Load, stopped
from tests.soak_load import MARGIN
from tests.soak_log import Lines, compare
from tests.soak_orders import ACTS, Faults
from tests.soak_reloads import Reloader, Servers
from tests.soak_upstream import Ledger, Upstream

WORKERS = 2
# Requests before the first look, or a quarter of all if that is more: every kind has come, and caches are full. The
# slowest is the access log's: it keeps routes and upstreams of some 300 versions.
WARM_UP = 3_000
# A request is hedged when it takes longer than nearly all others: a short run may have none.
ENOUGH_FOR_HEDGES = 20_000
# Seconds that the gateway has to come to rest: idle connections, lingering ones, the last reload.
_REST = 30.0
_DIRECT = Door("direct", "gateway.server.worker.GatewayWorker", own=True, app="tests.soak_held:app()")
_HELD = b"GET /soak/held HTTP/1.1\r\nHost: soak.test\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Held:
    """What one worker holds. `gates`, `endpoints`: requests in flight by the counts of each; `left_states`: upstreams
    that no snapshot names and that are still known; `blocks`: what Python's allocator has given out."""

    pid: int
    version: str
    status_version: str
    status_error: str
    in_flight: int
    gates: int
    queued: int
    endpoints: int
    upstream_connections: int
    left_states: int
    greenlets: int
    client_connections: int
    descriptors: int
    resident: int
    blocks: int
    hedged: int
    hedge_won: int

    def __str__(self) -> str:
        return (
            f"worker {self.pid}: {self.resident / 2**20:.1f} MiB, {self.blocks} blocks, {self.descriptors} descriptors, "
            f"{self.greenlets} greenlets, {self.upstream_connections} upstream connections, in flight {self.gates} (gates), "
            f"{self.endpoints} (endpoints), {self.in_flight} (status), {self.left_states} upstreams left over"
        )

    @property
    def busy(self) -> list[str]:
        """What must be none when nothing goes on; the one client connection is the question's own."""
        names = ("in_flight", "gates", "queued", "endpoints", "upstream_connections", "left_states")
        found = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name)]
        return found + ([f"client_connections {self.client_connections}"] if self.client_connections > 1 else [])


def grown(before: Held, after: Held, margin: int) -> list[str]:
    """What is more than it was; `margin`: bytes of memory that may be."""
    found = [
        f"{name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in ("descriptors", "greenlets")
        if getattr(after, name) > getattr(before, name)
    ]
    if after.resident > before.resident + margin:
        found.append(
            f"memory: {before.resident} bytes before, {after.resident} after ({before.blocks} and {after.blocks} blocks)"
        )
    return found


class ReloadSoak:
    """A gateway, its upstreams, the clients and who rewrites the configuration."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.faults = Faults()
        self.ledger = Ledger(self.faults)
        plain = [Upstream(f"plain{number}", self.ledger) for number in range(3)]
        secure = [Upstream(f"secure{number}", self.ledger, certificate().server) for number in range(2)]
        self.upstreams = [*plain, *secure]
        _, authority = certificate().write(folder)
        again = shutil.copy(authority, folder / "authority-again.pem")
        servers = Servers(
            (plain[0].url, plain[1].url, plain[2].url),
            (secure[0].url, secure[1].url),
            (authority, Path(again)),
            folder / "access.log",
        )
        self.reloader = Reloader(folder / "gateway.yaml", servers, Random(f"{seed}:reloads"))
        text = self.reloader.first()
        # The harness writes the line of the access log itself.
        above, _, below = text.partition(f"access_log: {{path: {json.dumps(str(servers.log))}}}\n")
        try:
            self.gateway = GatewayProcess(above + below, folder, _DIRECT, workers=WORKERS)
        except BaseException:
            self._close_upstreams()
            raise
        self.load = Load(self.gateway.port, seed, self.reloader.history, self.faults)
        self.reloader.settle()
        self._await(lambda: self._in_force(), "the first version")

    def close(self) -> None:
        self.gateway.stop()
        self._close_upstreams()

    def _close_upstreams(self) -> None:
        for upstream in self.upstreams:
            upstream.close()

    def run(self, number: int) -> None:
        """So many requests while the configuration is rewritten; then the settled version again."""
        stop = Event()
        reloads = gevent.spawn(self.reloader.run, stop)
        try:
            self.load.run(number)
        finally:
            stopped(stop, reloads)
            self.reloader.settle()

    def held(self) -> list[Held]:
        """What each worker holds once nothing goes on. Notes as a fault what does not come to rest."""
        if not self._await(self._in_force, "the last version"):
            wanted = version(self.reloader.text)
            for one in self._ask():
                self.faults.add(
                    "the last valid file is not in force",
                    f"{wanted}: {one.version}, status {one.status_version} {one.status_error!r}",
                )
        self._await(lambda: not any(one.busy for one in self._ask()), "rest")
        found = self._ask()
        for one in found:
            for what in one.busy:
                self.faults.add(f"not at rest: {what.split()[0]}", f"worker {one.pid}: {what}")
        return found

    def _in_force(self) -> bool:
        wanted = version(self.reloader.text)
        return all((one.version, one.status_version, one.status_error) == (wanted, wanted, "") for one in self._ask())

    def _await(self, holds: Callable[[], bool], what: str) -> bool:
        """Whether it holds within a while. The workers cannot say so themselves, so they are asked again and again."""
        until = time.monotonic() + _REST
        while not holds():
            if time.monotonic() > until:
                print(f"waited {_REST:g} s in vain for {what}", flush=True)
                return False
            gevent.sleep(0.1)
        return True

    def _ask(self) -> list[Held]:
        """What every worker holds, by new connections until each has answered one."""
        found: dict[int, Held] = {}
        workers = set(self.gateway.worker_pids())
        until = time.monotonic() + _REST
        while not workers <= found.keys():
            if time.monotonic() > until:
                raise AssertionError(
                    f"no answer from {sorted(workers - found.keys())}:\n{self.gateway.errors()[-3000:]}"
                )
            with RawClient(self.gateway.port, timeout=_REST) as client:
                response = client.request(_HELD)
            if response.status != 200:
                raise AssertionError(f"{response.status} for what is held: {response.body!r}")
            told: dict[str, Any] = json.loads(response.body)
            found[told["pid"]] = Held(**{one.name: told[one.name] for one in fields(Held)})
        return [found[pid] for pid in sorted(workers)]

    def finish(self, before: list[Held], after: list[Held]) -> Lines:
        """Everything that can be judged at the end."""
        for one, other in zip(before, after, strict=False):
            for what in grown(one, other, MARGIN):
                self.faults.add(f"grown: {what.split(':')[0]}", f"worker {other.pid}: {what}")
        if [one.pid for one in before] != [one.pid for one in after]:
            self.faults.add("a worker was replaced", self.gateway.errors()[-1000:])
        errors = self.gateway.errors()
        for story in tracebacks(errors):
            self.faults.add("a traceback in the error log", story)
        self.gateway.stop()
        lines = compare(self.gateway.log_path, self.load.log, self.reloader.history.of_version, self.faults)
        for what in self._missing(lines, after):
            self.faults.add("never happened", what)
        return lines

    def _swaps(self) -> int:
        return len(re.findall(r"configuration [0-9a-f]+ -> [0-9a-f]+", self.gateway.errors()))

    def _missing(self, lines: Lines, after: list[Held]) -> Iterator[str]:
        """What the soak is for and did not meet: then it has shown nothing."""
        for title, wanted, counts in (
            ("request", KINDS, self.load.kinds),
            ("abort", ABORTS, self.load.aborts),
            ("act", ACTS, self.ledger.acts),
        ):
            yield from (f"{title}: {name}" for name in wanted if not counts[name])
        others = {
            "a valid file": self.reloader.valid,
            "an invalid file": sum(self.reloader.invalid.values()),
            "a swap behind the first": self._swaps() - WORKERS,
            "a retry": lines.retries,
            "a pipelined request": self.load.pipelined,
            "a route that was away": self.load.guests_absent,
            "a whole body": self.ledger.whole_bodies,
        }
        if self.load.made >= ENOUGH_FOR_HEDGES:
            others["a hedge"] = sum(one.hedged for one in after)
        yield from (name for name, times in others.items() if times <= 0)

    def counted(self, lines: Lines, after: list[Held]) -> Iterator[str]:
        """What happened, a line each."""
        load, ledger, reloader = self.load, self.ledger, self.reloader
        for title, counts in (
            ("requests", load.kinds),
            ("aborted", load.aborts),
            ("answers", load.statuses),
            ("acts of upstreams", ledger.acts),
        ):
            yield f"{title}: {sum(counts.values())}"
            yield from (f"{times:>7}  {name}" for name, times in sorted(counts.items()))
        yield f"reloads: {reloader.valid} valid files, {self._swaps()} swaps in {WORKERS} workers, invalid files {dict(sorted(reloader.invalid.items()))}"
        yield f"heads at upstreams: {ledger.heads}; whole bodies that were right: {ledger.whole_bodies}; pipelined: {load.pipelined}; no_route while away: {load.guests_absent}"
        hedges = f"hedges: {sum(one.hedged for one in after)}, won {sum(one.hedge_won for one in after)}"
        yield f"retries: {lines.retries}; {hedges}; on reused connections: {lines.reused}"
        yield (
            f"log lines: {lines.records} = {len(lines.times)} of {load.made} requests + {lines.own} of the gateway's own paths + {lines.headless} of "
            f"{load.log.broken_heads} heads that broke off; {sum(status is None for status in load.log.lines.values())} requests need no line"
        )


def tracebacks(errors: str) -> list[str]:
    """The tracebacks of a log, each with its last line."""
    found = []
    for part in errors.split("Traceback (most recent call last):")[1:]:
        lines = part.splitlines()
        last = next((line for line in lines[1:] if line and not line.startswith((" ", "\t"))), "")
        found.append(f"{last} … {' '.join(line.strip() for line in lines[1:] if line.startswith('  File'))[-300:]}")
    return found


@contextmanager
def reload_soak(folder: Path, seed: int) -> Iterator[ReloadSoak]:
    soak = ReloadSoak(folder, seed)
    try:
        yield soak
    finally:
        soak.close()


def main(number: int, seed: int) -> int:
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, reload_soak(Path(folder), seed) as soak:
        soak.run(max(WARM_UP, number // 4))
        before = after = soak.held()
        began = time.monotonic()
        print(f"after {soak.load.made} requests:", *before, sep="\n  ", flush=True)
        for _ in range(4):
            soak.run(number // 4)
            after = soak.held()
            print(
                f"after {soak.load.made} requests, {time.monotonic() - began:.0f} s, {soak.faults.total} faults:",
                *after,
                sep="\n  ",
                flush=True,
            )
            if soak.faults.too_many:
                break
        lines = soak.finish(before, after)
        print(*soak.counted(lines, after), sep="\n")
        print(f"FAULTS: {soak.faults.total}" if soak.faults.total else "no fault")
        print(*soak.faults.lines(), sep="\n")
        return 1 if soak.faults.total else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SystemRandom().randrange(2**32)))
