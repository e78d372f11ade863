"""The gateway in Consul's list: workers of a real gunicorn, a real agent."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import services
from tests.services import ROOT, Consul, Server, free_port

CONFIG = """\
version: 1
admin: null
access_log: null
server: {{drain: {drain}, overload: 0}}
discovery:
  consul:
    address: {consul}
    registration: {{service: edge, address: 127.0.0.1, tags: [public], interval: 1s, check: {check}}}
upstreams: {{u: {{endpoints: ["http://127.0.0.1:1"]}}}}
routes: [{{name: all, upstream: u}}]
"""


class Running:
    """A gateway of two workers."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    def until(self, text: str, times: int = 1) -> None:
        self.server.wait_until(lambda: self.server.output().count(text) >= times, text)

    def announcing(self) -> int:
        """The worker that announced last."""
        found = re.findall(r"\[(\d+)\] \[INFO\] announced to Consul", self.server.output())
        return int(found[-1])


@contextmanager
def running(folder: Path, consul: str, check: str = "ttl", drain: str = "0s") -> Iterator[Running]:
    file = folder / "gateway.yaml"
    file.write_text(CONFIG.format(consul=consul, check=check, drain=drain))
    port = free_port()
    command = [sys.executable, "-m", "gateway", "run", "-c", str(file), "-b", f"127.0.0.1:{port}", "-w", "2"]
    server = Server(command, cwd=ROOT)
    try:
        server.start()
        gateway = Running(server, port)
        gateway.until("Door: ", 2)
        yield gateway
    finally:
        server.close()


def listed(consul: Consul, port: int) -> list[tuple[str, list[str]]]:
    """Where the gateway on a port is listed as passing, and its tags."""
    services = [entry["Service"] for entry in consul.call("GET", "/v1/health/service/edge?passing")]
    return [(told["Address"], told["Tags"]) for told in services if told["Port"] == port]


def known(consul: Consul, port: int) -> set[str]:
    """The ids under which the gateway on a port is known."""
    services = consul.call("GET", "/v1/agent/services").values()
    return {told["ID"] for told in services if (told["Service"], told["Port"]) == ("edge", port)}


def test_one_entry_for_all_workers_through_reloads_and_deaths(tmp_path: Path, consul: Consul) -> None:
    with running(tmp_path, consul.address, drain="2s") as gateway:
        here = [("127.0.0.1", ["public"])]
        services.wait_until(lambda: listed(consul, gateway.port) == here, "the gateway is listed")
        (ident,) = known(consul, gateway.port)
        assert ident.startswith("edge-")
        # Workers are replaced, and whoever asks Consul meanwhile sees nothing of it.
        gateway.server.send(signal.SIGHUP)
        gone = []
        while gateway.server.output().count("announced to Consul") < 2:
            gone += [found for found in [listed(consul, gateway.port)] if found != here]
        assert gone == []
        # The worker that sees to it dies: another one does.
        os.kill(gateway.announcing(), signal.SIGKILL)
        gateway.until("announced to Consul", 3)
        assert known(consul, gateway.port) == {ident}
        assert listed(consul, gateway.port) == here
        # It leaves the list when it begins to drain, not when it has ended.
        gateway.server.send(signal.SIGTERM)
        services.wait_until(lambda: known(consul, gateway.port) == set(), "the gateway is not listed any more")
        assert gateway.server.process is not None
        assert gateway.server.process.poll() is None
        assert gateway.server.stop() == 0


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGQUIT])
def test_ended_at_once_it_is_taken_back_too(tmp_path: Path, consul: Consul, last: signal.Signals) -> None:
    with running(tmp_path, consul.address, check="http") as gateway:
        services.wait_until(lambda: listed(consul, gateway.port) != [], "Consul has asked readyz")
        gateway.server.stop(last)
        assert known(consul, gateway.port) == set(), gateway.server.output()


def test_an_agent_that_is_away_at_first_and_comes_back_without_its_memory(tmp_path: Path) -> None:
    agent = Consul()
    try:
        with running(tmp_path, agent.address) as gateway:
            gateway.until("the gateway is not announced to Consul")
            for _ in range(2):
                agent.up()
                services.wait_until(lambda: listed(agent, gateway.port) != [], "the gateway is listed (again)")
                agent.down()
            # Nobody to tell: it ends all the same.
            assert gateway.server.stop(timeout=10) == 0
    finally:
        agent.server.close()


RELOADED = """\
version: 1
admin: null
access_log: null
discovery: {{wait: {wait}, consul: {{address: {consul}{registration}}}, etcd: {{endpoints: ["http://127.0.0.1:1"]}}}}
upstreams:
  u: {{endpoints: ["http://127.0.0.1:1"]}}
{upstream}routes: [{{name: {route}, upstream: u}}]
"""
REGISTERED = ", registration: {service: edge, address: 127.0.0.1, tags: [public], interval: 2s, check: ttl}"


def test_it_follows_the_configuration_in_force(tmp_path: Path, consul: Consul) -> None:
    """A configuration that waits for its upstream (etcd is away) is not in force, and so not announced."""

    def write(route: str, registration: str, upstream: str = "", wait: str = "0s") -> None:
        new = tmp_path / "new"
        new.write_text(
            RELOADED.format(
                consul=consul.address, route=route, registration=registration, upstream=upstream, wait=wait
            )
        )
        new.rename(tmp_path / "gateway.yaml")

    with running(tmp_path, consul.address) as gateway:
        services.wait_until(lambda: listed(consul, gateway.port) != [], "the gateway is listed")
        write("none", "")
        # In force in both workers: until then the second one announces the gateway again.
        gateway.until(" -> ", 2)
        services.wait_until(lambda: known(consul, gateway.port) == set(), "the gateway is not listed any more")
        write("waiting", REGISTERED, "  n: {etcd: /nobody/}\n", wait="60s")
        # Its look-up has begun in both workers: it was loaded, and waits.
        gateway.until("upstream n: discovery failed", 2)
        assert known(consul, gateway.port) == set()
        assert gateway.server.output().count(" -> ") == 2
        write("next", REGISTERED)
        services.wait_until(lambda: listed(consul, gateway.port) == [("127.0.0.1", ["public"])], "it is listed again")
        assert gateway.server.stop() == 0
        assert known(consul, gateway.port) == set()
