"""The main job as a drill: real Consul, real services, the real gateway, steady load, things that die.

Two services of three instances each, every one a process of its own with an HTTP check in Consul, and the
gateway with two workers. `users` has the retry that every upstream has; `orders` has none (attempts: 1).

Rule: what happens is said as it happens, what came of it is asserted. A person watches it by
`scripts/main-job`; tests/integration/test_main_job.py runs the same steps faster.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import services
from tests.consul_agent import CountingWire, LastingConsul
from tests.services import Server, wait_until

WORKERS = 2
INSTANCES = 3
SERVICES = ("users", "orders")
# 10 clients, ten requests a second each: steady, and easy on the machine.
CLIENTS = 10
PAUSE = 0.1

CONFIG = """\
version: 1
server: {{overload: 0}}
discovery: {{consul: {{address: "{consul}", poll: {poll}s}}}}
access_log: {{path: "{log}"}}
upstreams:
  users: {{consul: users}}
  orders: {{consul: orders, retry: {{attempts: 1}}}}
routes:
  - {{name: users, match: {{prefix: /users}}, upstream: users}}
  - {{name: orders, match: {{prefix: /orders}}, upstream: orders}}
"""


# -- load -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as its client saw it. `cut`: it broke off after the head had come."""

    began: float
    method: str
    service: str
    status: int = 0
    instance: str = ""
    error: str = ""
    cut: bool = False

    @property
    def failed(self) -> bool:
        return self.status != 200 or bool(self.error)


class Load:
    """Clients with kept connections that ask for both services, one request in five a POST."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._done: list[Outcome] = []
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)

    def outcomes(self, since: float = 0.0) -> list[Outcome]:
        """The requests that began then or later and are over."""
        return [outcome for outcome in list(self._done) if outcome.began >= since]

    def _client(self, number: int) -> None:
        connection = self._connection()
        turn = number
        while not self._stop.wait(PAUSE):
            turn += 1
            outcome = self._ask(connection, "POST" if turn % 5 == 0 else "GET", SERVICES[turn % 2])
            self._done.append(outcome)
            # Now and then a new connection, so that both workers get their share.
            if outcome.failed or turn % 20 == 0:
                connection.close()
                connection = self._connection()
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=35)

    def _ask(self, connection: http.client.HTTPConnection, method: str, service: str) -> Outcome:
        began = time.monotonic()
        status = 0
        try:
            connection.request(method, f"/{service}/x", body=b"x" * 100 if method == "POST" else None)
            answer = connection.getresponse()
            status = answer.status
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return Outcome(began, method, service, status, error=repr(error), cut=status != 0)
        if status != 200:
            return Outcome(began, method, service, status, error=body.decode(errors="replace"))
        return Outcome(began, method, service, status, instance=json.loads(body)["instance"])


# -- services ---------------------------------------------------------------------------


class Instance:
    """One process of a service, on the same port whenever it runs."""

    def __init__(self, service: str, number: int, port: int) -> None:
        self.service = service
        self.name = f"{service}-{number}"
        self.port = port
        self.server = Server([sys.executable, "-m", "tests.instance", str(port), self.name], cwd=services.ROOT)

    def up(self) -> None:
        self.server.start()

    def ready(self) -> None:
        self.server.wait_until(lambda: services.accepts(self.port), f"{self.name} listens")

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)

    def register(self, agent: services.Consul) -> None:
        url = f"http://127.0.0.1:{self.port}/healthz"
        agent.register(self.service, self.name, self.port, check={"HTTP": url, "Interval": "1s", "Timeout": "1s"})


# -- the drill --------------------------------------------------------------------------


class Drill:
    """Everything that runs, and the steps that are taken with it."""

    def __init__(
        self, agent: services.Consul, wire: CountingWire, folder: Path, poll: float, say: Callable[[str], None]
    ):
        self.agent = agent
        self.wire = wire
        self.poll = poll
        self._say = say
        self._start = time.monotonic()
        ports = iter(services.free_ports(len(SERVICES) * INSTANCES + 1))
        self.port = next(ports)
        self.instances = {
            instance.name: instance
            for instance in (Instance(s, n, next(ports)) for s in SERVICES for n in range(1, INSTANCES + 1))
        }
        self.log = folder / "access.log"
        config = folder / "gateway.yaml"
        config.write_text(CONFIG.format(consul=wire.address, poll=f"{poll:g}", log=self.log))
        command = [sys.executable, "-m", "gunicorn", "-c", "conf/gunicorn.conf.py", "-w", str(WORKERS)]
        self.gateway = Server(
            [*command, "-b", f"127.0.0.1:{self.port}", "gateway:create_app()"],
            cwd=services.ROOT,
            env={**_environ(), "GATEWAY_CONFIG": str(config), "GATEWAY_ADMIN": "127.0.0.1:0"},
        )
        self.load = Load(self.port)

    def say(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._start:6.1f} s  {text}")

    # starting

    def up(self) -> None:
        for instance in self.instances.values():
            instance.up()
        for instance in self.instances.values():
            instance.ready()
            instance.register(self.agent)
        self._all_pass()
        self.say(f"Consul reports {len(self.instances)} instances of {len(SERVICES)} services as passing")
        self.gateway.start()
        self.gateway.wait_until(self._ready, "the gateway is ready")
        # Ready is what one worker says: the others may still be starting.
        self.everyone_polled(0.0)
        self.say(f"the gateway is ready on port {self.port}, {WORKERS} workers")

    def close(self) -> None:
        for server in (self.gateway, *(instance.server for instance in self.instances.values())):
            server.close()

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/-/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _passing(self) -> set[str]:
        return {name for service in SERVICES for name in self.agent.passing(service)}

    def _all_pass(self) -> None:
        wait_until(lambda: self._passing() == set(self.instances), "every instance passes")

    # the steps

    def steady(self, seconds: float) -> None:
        """Nothing happens: every instance serves, nothing fails, Consul is asked once a poll and not for traffic."""
        since = time.monotonic()
        time.sleep(seconds)
        self.report("steady", since)
        self.nothing_failed(since)
        assert self.serving(since) == set(self.instances)
        self.polls_are_bounded(since)

    def kill(self, *names: str) -> None:
        """Instances die. What they had in hand may be lost; a GET with the default retry never is."""
        since = time.monotonic()
        for name in names:
            self.instances[name].kill()
        self.say(f"{' and '.join(names)} killed")
        wait_until(lambda: not self._passing() & set(names), "Consul sees them critical")
        critical = time.monotonic()
        self.say(f"Consul reports them critical, {critical - since:.1f} s later")
        self.everyone_polled(critical)
        known = time.monotonic()
        time.sleep(1.5)
        self.report(f"before every worker knew ({known - since:.1f} s)", since, known)
        self.report("after", known)
        last = max((o.began for o in self.load.outcomes(since) if o.failed), default=since)
        self.say(f"the last request that failed began {last - critical:+.1f} s from then (a poll is {self.poll:g} s)")
        lost = [
            o
            for o in self.load.outcomes(since)
            if o.failed and o.service == "users" and o.method == "GET" and not o.cut
        ]
        assert lost == []
        self.nothing_failed(known)
        assert not self.serving(known) & set(names)

    def bring_back(self, *names: str) -> None:
        """The same instances again: they get traffic, and nothing fails meanwhile."""
        since = time.monotonic()
        for name in names:
            self.instances[name].up()
        self._all_pass()
        self.say(f"{' and '.join(names)} started again and passing, {time.monotonic() - since:.1f} s later")
        wait_until(lambda: set(names) <= self.serving(since), "they get traffic")
        self.say(f"they get traffic, {time.monotonic() - since:.1f} s later")
        self.everyone_polled(time.monotonic())
        self.nothing_failed(since)

    def without_consul(self, seconds: float, away: Callable[[], None], back: Callable[[], None], what: str) -> None:
        """Consul is away: traffic does not notice, not even when it comes back."""
        since = time.monotonic()
        away()
        self.say(f"Consul {what}")
        time.sleep(seconds)
        self.report(f"{seconds:g} s without Consul", since)
        back()
        returned = time.monotonic()
        self.say("Consul answers again")
        self.everyone_polled(returned)
        self.report("and back", returned)
        self.nothing_failed(since)
        assert self.serving(since) == set(self.instances)

    def forgotten(self) -> None:
        """Consul has come back without its memory; nobody has registered yet, then all do."""
        assert self._passing() == set()
        self.everyone_polled(time.monotonic())
        self.say("every worker has seen the empty registry")
        for instance in self.instances.values():
            instance.register(self.agent)
        self._all_pass()
        self.say("every instance has registered anew and passes")

    def everyone_polled(self, since: float) -> None:
        """Wait until every worker has dealt with an answer for each service that it asked for since then."""
        began = time.monotonic()
        for service in SERVICES:
            while not self.wire.everyone_polled(service, since, WORKERS):
                assert time.monotonic() < began + 60, f"not every worker polls {service}"
                time.sleep(0.02)

    # what came of it

    def nothing_failed(self, since: float) -> None:
        outcomes = self.load.outcomes(since)
        assert outcomes
        assert [outcome for outcome in outcomes if outcome.failed] == []

    def serving(self, since: float) -> set[str]:
        return {outcome.instance for outcome in self.load.outcomes(since) if outcome.instance}

    def polls_are_bounded(self, since: float) -> None:
        """Each worker asks once a poll (less a tenth of jitter) for each service, and for nothing else."""
        elapsed = time.monotonic() - since
        polls = self.wire.polls(since)
        most = WORKERS * (elapsed / (0.9 * self.poll) + 1)
        asked = Counter(poll.service for poll in polls)
        self.say(
            f"{len(polls)} requests to Consul in {elapsed:.1f} s for {len(self.load.outcomes(since))} requests served "
            f"({WORKERS} workers x {len(SERVICES)} services / {self.poll:g} s = {self._rate() * elapsed:.0f})"
        )
        assert set(asked) == set(SERVICES)
        assert all(count <= most for count in asked.values()), (asked, most)
        # The busiest machine still polls; how often is not for a clock to judge.
        assert min(asked.values()) >= WORKERS

    def _rate(self) -> float:
        return WORKERS * len(SERVICES) / self.poll

    def report(self, what: str, since: float, until: float | None = None) -> None:
        """One line of what the clients saw."""
        outcomes = [o for o in self.load.outcomes(since) if until is None or o.began < until]
        seconds = (until or time.monotonic()) - since
        failed = Counter(f"{o.service} {o.method} {o.status or o.error}" for o in outcomes if o.failed)
        served = Counter(o.instance for o in outcomes if o.instance)
        shares = ", ".join(f"{name} {served[name]}" for name in sorted(self.instances))
        self.say(
            f"{what}: {len(outcomes)} requests ({len(outcomes) / seconds:.0f}/s), {failed.total()} failed"
            f"{' ' + str(dict(failed)) if failed else ''}; {shares}"
        )


def _environ() -> dict[str, str]:
    """Without what would steer gunicorn, the gateway or a client of Consul from outside."""
    foreign = ("GUNICORN", "GATEWAY", "CONSUL", "WEB_CONCURRENCY", "PORT", "FORWARDED", "LISTEN")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@contextlib.contextmanager
def running(agent: services.Consul, folder: Path, poll: float, say: Callable[[str], None]) -> Iterator[Drill]:
    """A drill under load, everything up; all of it gone afterwards."""
    with CountingWire(agent.port) as wire:
        drill = Drill(agent, wire, folder, poll, say)
        try:
            drill.up()
            with drill.load:
                yield drill
        except BaseException:
            say(f"the gateway said:\n{drill.gateway.output()[-6000:]}")
            raise
        finally:
            drill.close()


def watch(folder: Path) -> None:
    """The whole job at its real pace: the default poll of 5 s, Consul away for 15 s."""

    def say(text: str) -> None:
        print(text, flush=True)

    with LastingConsul.start() as agent, running(agent, folder, 5.0, say) as drill:
        drill.steady(20)
        drill.kill("users-1", "orders-1")
        drill.bring_back("users-1", "orders-1")
        drill.without_consul(15, agent.kill, agent.up, "killed (SIGKILL)")
        drill.without_consul(15, agent.freeze, agent.thaw, "hangs (SIGSTOP)")
        outcomes = drill.load.outcomes()
        failed = Counter(f"{o.service} {o.method}" for o in outcomes if o.failed)
        drill.say(f"in all {len(outcomes)} requests, {failed.total()} failed {dict(failed) if failed else ''}")
