"""The same drills for every registry: it hangs, is killed, and is replaced by one that talks nonsense; while it is
away, every worker and the master are replaced.

Rule: the gateway is a process of its own with two workers and traffic all the while. Not one
request fails, whatever the registry does, and after each return a change is in force.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from gateway.testing import Act, FakeUpstream, Script, answer, head
from tests import dns_server
from tests.consul_agent import LastingConsul
from tests.dns_server import DnsServer
from tests.dnsmasq_server import Dnsmasq
from tests.etcd_server import Cluster
from tests.gateway_process import GatewayProcess
from tests.services import wait_until
from tests.traffic import Traffic

CONFIG = """\
version: 1
server: {{overload: 0}}
discovery: {discovery}
access_log: null
upstreams:
  stock: {source}
routes:
  - {{name: stock, upstream: stock}}
"""
FAILED = "discovery failed, what is known stays"
HEALED = "discovery works again"
# A change is in force within one poll, which is one second here; the rest is for machines that
# have other things to do.
SOON = 10.0


# -- what a registry is to the drill --------------------------------------------------------


class Registry(Protocol):
    """A real server, and what a gateway has to be told to ask it."""

    discovery: str
    source: str

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def kill(self) -> None: ...

    def up(self) -> None:
        """Again, with what was in it."""

    def put(self, *instances: FakeUpstream) -> None:
        """All instances from now on."""

    def nonsense(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        """A server in its place that gives wrong answers; gives how many it gave."""


class InConsul:
    source = "{consul: stock}"

    def __init__(self, agent: LastingConsul) -> None:
        self._agent = agent
        self._listed: set[str] = set()
        self.discovery = f"{{consul: {{address: '{agent.address}', poll: 1s}}}}"
        self.freeze, self.thaw, self.kill, self.up = agent.freeze, agent.thaw, agent.kill, agent.up

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Registry]:
        with LastingConsul.start() as agent:
            yield cls(agent)

    def put(self, *instances: FakeUpstream) -> None:
        wanted = {instance.authority: instance.port for instance in instances}
        for ident in wanted.keys() - self._listed:
            self._agent.register("stock", ident, wanted[ident])
        for ident in self._listed - wanted.keys():
            self._agent.deregister(ident)
        self._listed = set(wanted)

    def nonsense(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        return http_nonsense(self._agent.port)


class InEtcd:
    source = "{etcd: /services/stock}"

    def __init__(self, cluster: Cluster) -> None:
        self._member = cluster.members[0]
        self._listed: set[str] = set()
        self.discovery = f"{{etcd: {{endpoints: ['{self._member.url}'], poll: 1s}}}}"
        self.freeze, self.thaw = self._member.freeze, self._member.thaw
        self.kill, self.up = self._member.kill, self._member.up

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Registry]:
        with Cluster.start() as cluster:
            yield cls(cluster)

    def put(self, *instances: FakeUpstream) -> None:
        wanted = {instance.authority for instance in instances}
        keys: dict[str, str | None] = {f"/services/stock/{ident}": None for ident in self._listed - wanted}
        keys |= {f"/services/stock/{ident}": ident for ident in wanted - self._listed}
        self._member.change(**keys)
        self._listed = wanted

    def nonsense(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        return http_nonsense(int(self._member.url.rpartition(":")[2]))


class InDns:
    """dnsmasq takes other records only when it starts."""

    source = "{dns_srv: _http._tcp.stock.test}"

    def __init__(self, server: Dnsmasq) -> None:
        self._server = server
        self._records: tuple[str, ...] = ()
        self.discovery = f"{{dns: {{servers: ['{server.address}'], ttl: 1s}}}}"
        self.freeze, self.thaw, self.kill = server.freeze, server.thaw, server.down

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Registry]:
        with Dnsmasq.start() as server:
            yield cls(server)

    def up(self) -> None:
        self._server.up(*self._records)

    def put(self, *instances: FakeUpstream) -> None:
        records = [f"srv-host=_http._tcp.stock.test,here.test,{instance.port},0,1" for instance in instances]
        self._records = ("host-record=here.test,127.0.0.1", *records)
        self._server.restart(*self._records)

    @contextlib.contextmanager
    def nonsense(self) -> Iterator[Callable[[], int]]:
        faults = itertools.cycle(
            [dns_server.rcode("SERVFAIL"), dns_server.garbage, dns_server.half, dns_server.rcode("REFUSED"), dns_server.referral]
        )
        with DnsServer(port=self._server.port) as server:
            for kind in ("SRV", "A", "AAAA"):
                server.fault(lambda message, protocol: next(faults)(message, protocol), kind)
            yield server.count


@contextlib.contextmanager
def http_nonsense(port: int) -> Iterator[Callable[[], int]]:
    """In turn; an odd number, so that two who ask by turns get all of them."""
    wrong: list[Script] = [
        answer(b"<html><title>Log in</title></html>", b"Content-Type: text/html", b"X-Consul-Index: 1"),
        answer(b"rpc error making call: EOF", status=500),
        [head(200, b"Content-Type: application/json", b"Content-Length: 500"), b'[{"Node": {"Node', Act.CLOSE],
        [b"\x16\x03\x01\x00\x05hello\r\n\r\n", Act.CLOSE],
        answer(b'{"kvs": "none"}', b"Content-Type: application/json"),
    ]
    with FakeUpstream(wrong[1], port=port) as server:
        server.queue(*wrong * 20)
        yield lambda: len(server.requests)


# -- the drill ------------------------------------------------------------------------------


class Journal:
    """What the workers log, each worker counted once: one may have several troubles in a row."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._from = 0

    def since_now(self) -> None:
        self._from = len(self._gateway.output())

    def by_every_worker(self, text: str) -> None:
        def said() -> set[str]:
            lines = self._gateway.output()[self._from :].splitlines()
            return {found[0] for line in lines if text in line and (found := re.findall(r"\[(\d+)\]", line))}

        wait_until(lambda: len(said()) == self._gateway.workers, f"{text}\n{self._gateway.output()}")


@pytest.mark.parametrize("kind", [InConsul, InEtcd, InDns])
def test_traffic_never_notices_an_outage(kind: type[InConsul | InEtcd | InDns], tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(kind.start())
        one, two, three, four, five = (
            stack.enter_context(FakeUpstream(answer(name))) for name in (b"one", b"two", b"three", b"four", b"five")
        )
        registry.put(one, two)
        (tmp_path / "gateway.yaml").write_text(CONFIG.format(discovery=registry.discovery, source=registry.source))
        gateway = stack.enter_context(GatewayProcess(tmp_path, str(tmp_path / "gateway.yaml")))
        journal = Journal(gateway)
        traffic = stack.enter_context(Traffic(gateway))
        traffic.reach(b"one", b"two")

        # It hangs: connections stay open and nothing comes.
        journal.since_now()
        registry.freeze()
        journal.by_every_worker(FAILED)
        traffic.some_more()
        registry.thaw()
        journal.by_every_worker(HEALED)
        registry.put(two, three)
        traffic.reach(b"two", b"three", within=SOON)

        # It is killed, and comes back with what it knew.
        journal.since_now()
        registry.kill()
        journal.by_every_worker(FAILED)
        traffic.some_more()
        registry.up()
        journal.by_every_worker(HEALED)
        traffic.reach(b"two", b"three")
        registry.put(three, four)
        traffic.reach(b"three", b"four", within=SOON)

        # Another server has its place.
        journal.since_now()
        registry.kill()
        with registry.nonsense() as given:
            wait_until(lambda: given() >= 5, "each wrong answer is had")
            journal.by_every_worker(FAILED)
            traffic.some_more()
        registry.up()
        journal.by_every_worker(HEALED)
        traffic.reach(b"three", b"four")
        registry.put(four, five)
        traffic.reach(b"four", b"five", within=SOON)

        assert set(traffic.answers) == {(200, "")}, (traffic.answers, gateway.output())
        assert gateway.get("/-/readyz")[0] == 200


@pytest.mark.parametrize("kind", [InConsul, InEtcd, InDns])
def test_processes_replaced_while_the_registry_is_away_know_its_endpoints(
    kind: type[InConsul | InEtcd | InDns], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(kind.start())
        one, two = (stack.enter_context(FakeUpstream(answer(name))) for name in (b"one", b"two"))
        registry.put(one, two)
        (tmp_path / "gateway.yaml").write_text(CONFIG.format(discovery=registry.discovery, source=registry.source))
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        gateway = GatewayProcess(tmp_path, str(tmp_path / "gateway.yaml"), TMPDIR=temporary)
        stack.enter_context(gateway)
        wait_until(lambda: bool(list(Path(temporary).glob("*/endpoints"))), "workers that start later find endpoints")
        registry.kill()
        Journal(gateway).by_every_worker(FAILED)
        traffic = stack.enter_context(Traffic(gateway))
        traffic.reach(b"one", b"two")

        def replaced(workers: int, replace: Callable[[], None]) -> None:
            before = gateway.output().count("Door: ")
            replace()
            gateway.logged("Door: ", before + workers)
            traffic.reach(b"one", b"two")

        for pid in gateway.pids():
            replaced(1, lambda: os.kill(pid, signal.SIGKILL))  # noqa: B023
        replaced(2, lambda: gateway.server.send(signal.SIGHUP))
        wait_until(lambda: len(gateway.pids()) == 2, "the old workers have left")
        with gateway.successor():
            traffic.reach(b"one", b"two")
            assert gateway.server.stop() == 0
            traffic.reach(b"one", b"two")
            # A killed worker leaves its clients without an answer; no client is refused.
            assert {status for status, _ in traffic.answers} <= {0, 200}, (traffic.answers, gateway.output())
