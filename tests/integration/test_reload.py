"""A configuration that changes under running workers: files and keys in every way, what is in
flight meanwhile, registries that are away."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.testing import FakeUpstream, answer, chunk, head
from tests.consul_agent import LastingConsul
from tests.etcd_server import Cluster
from tests.gateway_process import GatewayProcess, version
from tests.services import Consul, wait_until


def document(*routes: str, upstream: str, more: str = "") -> str:
    """A route `/name` for each name, to one upstream."""
    listed = "".join(f"  - {{name: {name}, match: {{prefix: /{name}}}, upstream: main}}\n" for name in routes)
    return f"version: 1\n{more}upstreams:\n  main: {upstream}\nroutes:\n{listed}"


def static(service: FakeUpstream) -> str:
    return f"{{endpoints: ['{service.url}']}}"


@pytest.fixture
def service() -> Iterator[FakeUpstream]:
    with FakeUpstream() as made:
        yield made


# -- a file -------------------------------------------------------------------------------


def rename(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.rename(path)


def truncate(path: Path, text: str) -> None:
    path.write_text(text)


def switch(path: Path, text: str) -> None:
    """As Kubernetes does: the link stays, a directory on its way becomes another."""
    folder = path.parent / f"..{version(text)}"
    folder.mkdir()
    (folder / path.name).write_text(text)
    new = path.parent / "..new"
    new.symlink_to(folder.name)
    new.rename(path.parent / "..data")
    if not path.is_symlink():
        path.unlink()
        path.symlink_to(f"..data/{path.name}")


def test_every_worker_follows_a_file(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(document("start", upstream=static(service)))
    with GatewayProcess(tmp_path, str(path), workers=4) as gateway:
        gateway.until("/start", 200)
        ways: list[Callable[[Path, str], None]] = [rename, truncate, switch, switch]
        for number, write in enumerate(ways):
            text = document(f"way{number}", upstream=static(service))
            write(path, text)
            gateway.follows(text)
            gateway.until(f"/way{number}", 200)
            gateway.until("/start", 404)

        # Invalid: the old one stays, with one line from each worker. One bad route of many is enough.
        broken = document("good", "bad", upstream=static(service)).replace("prefix: /bad", "prefix: bad")
        rename(path, broken)
        gateway.logged("routes[1].match.prefix")
        gateway.until("/way3", 200)
        gateway.until("/good", 404)
        # A worker that starts now has what its siblings have, and never what the master began with.
        os.kill(gateway.pids()[0], signal.SIGKILL)
        gateway.logged("Door: ", 5)
        gateway.logged("is that of the other workers", 1)
        for _ in range(40):
            assert (gateway.get("/way3")[0], gateway.get("/start")[0]) == (200, 404)
        os.utime(path)
        path.unlink()
        gateway.logged("cannot be read: No such file or directory")
        gateway.until("/way3", 200)

        # A storm: the last one wins.
        for number in range(10):
            text = document(f"storm{number}", upstream=static(service))
            rename(path, text)
            threading.Event().wait(0.2)
        gateway.follows(text)
        gateway.until("/storm9", 200)
        gateway.logged("can be used again")
        # The fifth is that of the worker that came later.
        assert gateway.output().count("INFO] the configuration in") == 4
        assert len(re.findall(r"ERROR.*routes\[1\].match.prefix", gateway.output())) <= 6

        # What runs a gateway has always known how to reload it.
        text = document("hup", upstream=static(service), more="server: {via: off}\n")
        rename(path, text)
        gateway.follows(text)
        gateway.logged("changed and in force after the next SIGHUP or restart: server")
        before = gateway.output().count("Door: ")
        gateway.server.send(signal.SIGHUP)
        gateway.logged("Door: ", before + 4)
        gateway.until("/hup", 200)
        gateway.until("/storm9", 404)


def test_what_is_in_flight_survives(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    old = document("slow", "stream", "tunnel", upstream=static(service))
    path.write_text(old)
    go = threading.Event()
    service.serve(b"/slow", [go, answer(b"late")])
    service.serve(b"/stream", [head(200, b"Transfer-Encoding: chunked"), chunk(b"one"), go, chunk(b"two"), b"0\r\n\r\n"])
    service.serve(b"/tunnel", [head(101, b"Connection: Upgrade", b"Upgrade: websocket"), b"hello", go, b"bye"])
    with FakeUpstream(answer(b"other")) as other, GatewayProcess(tmp_path, str(path)) as gateway:
        with gateway.client() as slow, gateway.client() as stream, gateway.client() as tunnel:
            slow.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            stream.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            tunnel.send(b"GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert stream.read_head().status == 200
            assert stream.read_until(b"one\r\n").endswith(b"one\r\n")
            assert tunnel.read_head().status == 101
            assert tunnel.read_exactly(5) == b"hello"
            service.wait(3)
            # Their route, their upstream's endpoint and then everything goes.
            for text in (document("fresh", upstream=static(other)), "version: 1\n"):
                rename(path, text)
                gateway.follows(text)
            gateway.until("/slow", 404)
            go.set()
            assert slow.read_response().body == b"late"
            assert stream.read_until(b"0\r\n\r\n").endswith(b"two\r\n0\r\n\r\n")
            assert tunnel.read_exactly(3) == b"bye"
        # Kept: the version that each began with decided where it went.
        wait_until(lambda: sum(one["route"] == "slow" for one in gateway.requests()) == 1, "the slow one is logged")


# -- keys ---------------------------------------------------------------------------------


def starts_without_its_registry(gateway: GatewayProcess) -> None:
    for _ in range(4):
        assert gateway.get("/first")[:2] == (503, "not_ready")
        assert gateway.get("/-/readyz")[0] == 503
        assert gateway.get("/-/healthz")[0] == 200


def follows_a_key(gateway: GatewayProcess, put: Callable[[str | None], None], service: FakeUpstream) -> None:
    """From no key at all, through good and bad documents, to no key again."""
    first, second = (document(name, upstream=static(service)) for name in ("first", "second"))
    put(first)
    gateway.until("/first", 200)
    gateway.until("/-/readyz", 200)
    put("version: 1\nserver: {own_prefix: null}\n")
    gateway.logged("server: is for the local file")
    gateway.until("/first", 200)
    put(second)
    gateway.until("/second", 200)
    gateway.until("/first", 404)
    put(None)
    gateway.logged("there is no such key")
    gateway.until("/second", 200)
    gateway.until("/-/readyz", 200)
    for number in range(10):
        put(document(f"storm{number}", upstream=static(service)))
    gateway.until("/storm9", 200)


def key(agent: Consul, method: str, value: bytes) -> None:
    url = f"{agent.address}/v1/kv/gateway/config"
    with urllib.request.urlopen(urllib.request.Request(url, value, method=method), timeout=10) as told:
        assert told.read().strip() == b"true"


def test_a_key_of_consul(tmp_path: Path, service: FakeUpstream) -> None:
    agent = Consul()
    local = tmp_path / "local.yaml"
    local.write_text("version: 1\ndiscovery: {wait: 500ms, consul: {poll: 1s}}\n")
    with contextlib.closing(agent.server):
        named = f"{local},consul://127.0.0.1:{agent.port}/gateway/config"
        with GatewayProcess(tmp_path, named) as gateway:
            starts_without_its_registry(gateway)
            agent.up()

            def put(text: str | None) -> None:
                key(agent, "DELETE" if text is None else "PUT", (text or "").encode())

            follows_a_key(gateway, put, service)
            # Away for a while: nobody notices.
            agent.down()
            gateway.until("/storm9", 200)
            gateway.until("/-/readyz", 200)
            # Not even the workers of a new master.
            with gateway.successor():
                assert gateway.server.stop() == 0
                gateway.until("/storm9", 200)
                gateway.until("/-/readyz", 200)


def test_a_key_of_etcd(tmp_path: Path, service: FakeUpstream) -> None:
    with Cluster.start() as cluster:
        member = cluster.members[0]
        member.kill()
        named = f"{member.url.replace('http', 'etcd')}/conf/gateway"
        with GatewayProcess(tmp_path, named) as gateway:
            starts_without_its_registry(gateway)
            member.up()

            def put(text: str | None) -> None:
                if text is None:
                    member.delete("conf/gateway")
                else:
                    member.put("conf/gateway", text)

            follows_a_key(gateway, put, service)
            member.kill()
            gateway.until("/storm9", 200)


# -- endpoints over a restart -------------------------------------------------------------


def test_endpoints_survive_a_restart_while_consul_is_away(tmp_path: Path, service: FakeUpstream) -> None:
    saved = tmp_path / "endpoints.json"
    path = tmp_path / "gateway.yaml"
    with LastingConsul.start() as agent:
        agent.register("user-svc", "u1", service.port)
        more = f"discovery: {{snapshot: {saved}, wait: 200ms, consul: {{address: '{agent.address}', poll: 1s}}}}\n"
        path.write_text(document("users", upstream="{consul: user-svc}", more=more))
        with GatewayProcess(tmp_path, str(path), workers=3) as gateway:
            gateway.until("/users", 200)
            wait_until(saved.exists, "the endpoints are saved")
        agent.kill()
        with GatewayProcess(tmp_path, str(path)) as gateway:
            # At once: nothing is waited for.
            for _ in range(8):
                assert gateway.get("/users")[0] == 200
                assert gateway.get("/-/readyz")[0] == 200
            gateway.logged("1 endpoints of 1 upstreams from")
            # Consul is back, and says something else.
            agent.up()
            agent.deregister("u1")
            with FakeUpstream(answer(b"moved")) as other:
                agent.register("user-svc", "u2", other.port)
                wait_until(lambda: gateway.get("/users")[2] == b"moved", "the new endpoint is used")
                gateway.until("/users", 200)
                wait_until(lambda: str(other.port) in saved.read_text(), "the new endpoint is saved")
                agent.kill()
        # Damaged: told, and the gateway starts without.
        saved.write_bytes(saved.read_bytes().replace(b'"weight":1', b'"weight":9'))
        with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
            gateway.logged("are not used: damaged: its checksum does not fit")
            assert gateway.get("/users")[:2] == (503, "no_endpoint")
            assert gateway.get("/-/readyz")[0] == 503


def test_a_new_upstream_is_looked_up_before_its_route_is_there(
    tmp_path: Path, service: FakeUpstream, consul: Consul
) -> None:
    """No answer is 503: the route is not there (404) until its endpoints are. And the gateway's own
    listener, which is registered as an instance, is none of them."""
    path = tmp_path / "gateway.yaml"
    more = f"discovery: {{consul: {{address: '{consul.address}'}}}}\n"
    path.write_text(document("old", upstream=static(service), more=more))
    with GatewayProcess(tmp_path, str(path)) as gateway:
        consul.register("reload-svc", "r1", service.port)
        consul.register("reload-svc", "r2", gateway.port)
        text = document("new", upstream="{consul: reload-svc}", more=more)
        rename(path, text)
        seen = []
        while not seen or seen[-1] != 200 or gateway.output().count(f" -> {version(text)}") < 2:
            seen.append(gateway.get("/new")[0])
        assert set(seen) == {404, 200}
        gateway.logged("is this gateway itself")
        for _ in range(10):
            status, _, body = gateway.get("/new")
            assert (status, body) == (200, b"ok")

        def used() -> list[str]:
            return [one["endpoint"] for one in gateway.requests() if one["status"] == 200]

        wait_until(lambda: len(used()) >= 10, "the requests are logged")
        assert set(used()) == {f"127.0.0.1:{service.port}"}


def test_workers_that_missed_a_good_version_take_it_from_the_others(tmp_path: Path, service: FakeUpstream) -> None:
    """A broken file replaces a good one before every worker has seen that. One worker is stopped meanwhile."""
    path = tmp_path / "gateway.yaml"
    path.write_text(document("a", upstream=static(service)))
    with GatewayProcess(tmp_path, str(path)) as gateway:
        gateway.until("/a", 200)
        stopped, _ = gateway.pids()
        os.kill(stopped, signal.SIGSTOP)
        try:
            text = document("b", upstream=static(service))
            rename(path, text)
            gateway.logged(f" -> {version(text)}", 1)
            rename(path, text + "nonsense: 1\n")
            gateway.logged("nonsense: unknown key", 1)
        finally:
            os.kill(stopped, signal.SIGCONT)
        gateway.until("/b", 200)
        gateway.logged(f"the configuration {version(text)} is that of the other workers", 1)
