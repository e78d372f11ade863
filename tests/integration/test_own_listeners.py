"""Endpoints that are the gateway itself, or that `discovery.deny` excludes, from every source: never dialled, and the
gateway serves all the same."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import FakeUpstream
from tests.consul_agent import LastingConsul
from tests.dns_server import DnsServer
from tests.etcd_server import Cluster
from tests.gateway_process import GatewayProcess
from tests.services import Consul, free_port, wait_until

# Ways to write 127.0.0.1, or this machine, in a URL.
HERE = [
    "127.0.0.1", "[::ffff:127.0.0.1]", "[::7f00:1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "0.0.0.0", "[::]",
    "[::ffff:0.0.0.0]", "localhost", "LocalHost", socket.gethostname(),
]  # fmt: skip
# What Consul, etcd and DNS give as an address, of the same.
ADDRESSES = ["127.0.0.1", "::ffff:127.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::"]


@pytest.fixture
def service() -> Iterator[FakeUpstream]:
    with FakeUpstream() as made:
        yield made


def document(upstreams: dict[str, Any], **discovery: Any) -> str:
    """A route `/name` to each upstream."""
    routes = [{"name": name, "match": {"prefix": f"/{name}"}, "upstream": name} for name in upstreams]
    return json.dumps({"version": 1, "discovery": discovery, "upstreams": upstreams, "routes": routes})


def is_nobody(gateway: GatewayProcess, path: str) -> None:
    """Requests are answered with 503 as there is no endpoint, and the log says why."""
    seen = len([one for one in gateway.requests() if one["target"] == path])
    assert gateway.get(path)[:2] == (503, "no_endpoint")

    def logged() -> list[dict[str, Any]]:
        return [one for one in gateway.requests() if one["target"] == path]

    wait_until(lambda: len(logged()) > seen, "the request is logged")
    assert "is this gateway itself, which listens on" in logged()[-1]["cause"]


def used(gateway: GatewayProcess) -> set[str]:
    return {one["endpoint"] for one in gateway.requests() if one["status"] == 200}


def serves(gateway: GatewayProcess, path: str, service: FakeUpstream) -> None:
    """Every request gets its answer from this service."""
    for _ in range(6):
        assert gateway.get(path)[0] == 200
    wait_until(lambda: used(gateway) != set(), "the requests are logged")
    assert used(gateway) == {service.authority}


# -- the file ------------------------------------------------------------------------------


def test_of_the_file(tmp_path: Path, service: FakeUpstream) -> None:
    path, admin = tmp_path / "gateway.yaml", free_port()
    gateway = GatewayProcess(tmp_path, str(path), workers=1, GATEWAY_ADMIN=f"127.0.0.1:{admin}")
    upstreams = {f"u{number}": {"endpoints": [f"http://{host}:{gateway.port}/base"]} for number, host in enumerate(HERE)}
    upstreams["admin"] = {"endpoints": [f"http://localhost:{admin}", f"http://[::ffff:127.0.0.1]:{admin}"]}
    upstreams["both"] = {"endpoints": [f"http://0.0.0.0:{gateway.port}", service.url, f"http://localhost:{gateway.port}"]}
    path.write_text(document(upstreams))
    with gateway:
        for name in upstreams.keys() - {"both"}:
            is_nobody(gateway, f"/{name}")
        serves(gateway, "/both", service)
        assert gateway.get("/-/readyz")[0] == 200
        gateway.logged("upstream both: not an endpoint: ", 2)
    command = [sys.executable, "-m", "gateway", "check", str(path), "-b", f"127.0.0.1:{gateway.port}"]
    check = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"GATEWAY_ADMIN": f"127.0.0.1:{admin}"})
    assert check.returncode == 0, check.stderr
    assert check.stderr.count("is this gateway itself") == len(HERE) + 4


@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]"])
def test_a_listener_on_every_address(bind: str, tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    gateway = GatewayProcess(tmp_path, str(path), workers=1)
    command = gateway.server.command
    command[command.index("-b") + 1] = f"{bind}:{gateway.port}"
    here = [*HERE, "127.9.9.9", *(["[::1]"] if bind == "[::]" else [])]
    upstreams = {f"u{number}": {"endpoints": [f"http://{host}:{gateway.port}"]} for number, host in enumerate(here)}
    upstreams["other"] = {"endpoints": [service.url]}
    path.write_text(document(upstreams))
    with gateway:
        for name in upstreams.keys() - {"other"}:
            is_nobody(gateway, f"/{name}")
        serves(gateway, "/other", service)


def test_a_reload_that_adds_one(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    gateway = GatewayProcess(tmp_path, str(path))
    path.write_text(document({"u": {"endpoints": [service.url]}}))
    with gateway:
        assert gateway.get("/u")[0] == 200
        own = f"http://[::ffff:127.0.0.1]:{gateway.port}"
        text = document({"u": {"endpoints": [own, service.url]}, "own": {"endpoints": [own]}})
        path.write_text(text)
        gateway.follows(text)
        gateway.logged("upstream own: not an endpoint: ")
        serves(gateway, "/u", service)
        for _ in range(4):
            is_nobody(gateway, "/own")
        # And back: the service serves alone again.
        text = document({"u": {"endpoints": [service.url]}, "own": {"endpoints": [service.url]}})
        path.write_text(text)
        gateway.follows(text)
        assert gateway.get("/own")[0] == 200


def test_a_name_that_leads_here_or_into_what_is_denied(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    gateway = GatewayProcess(tmp_path, str(path), workers=1)
    with DnsServer() as server:
        server.zone("me.test 0 A 127.0.0.1\nmeta.test 0 A 169.254.169.254\nmeta.test 0 AAAA 64:ff9b::a9fe:a9fe")
        upstreams = {
            "me": {"endpoints": [f"http://me.test:{gateway.port}"]},
            "meta": {"endpoints": ["http://meta.test"]},
            "both": {"endpoints": [f"http://me.test:{gateway.port}", "http://meta.test", f"http://me.test:{service.port}"]},
        }
        path.write_text(document(upstreams, dns={"servers": [server.address]}))
        with gateway:
            is_nobody(gateway, "/me")
            assert gateway.get("/meta")[:2] == (503, "no_endpoint")
            gateway.logged("upstream meta: not an endpoint: 169.254.169.254 is in 169.254.0.0/16")
            wait_until(lambda: any(one["target"] == "/meta" for one in gateway.requests()), "the request is logged")
            (request,) = [one for one in gateway.requests() if one["target"] == "/meta"]
            assert "169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes" in request["cause"]
            serves(gateway, "/both", service)


# -- registries ----------------------------------------------------------------------------


def test_of_consul(tmp_path: Path, service: FakeUpstream) -> None:
    path, admin = tmp_path / "gateway.yaml", free_port()
    gateway = GatewayProcess(tmp_path, str(path), workers=1, GATEWAY_ADMIN=f"127.0.0.1:{admin}")
    with Consul.start() as consul:
        for number, address in enumerate([*ADDRESSES, "localhost"]):
            consul.register("own-svc", f"own{number}", gateway.port, Address=address)
        consul.register("own-svc", "admin", admin)
        consul.register("denied-svc", "denied", 80, Address="169.254.169.254")
        path.write_text(document({"own": {"consul": "own-svc"}, "denied": {"consul": "denied-svc"}}, consul={"address": consul.address}))
        with gateway:
            is_nobody(gateway, "/own")
            assert gateway.get("/denied")[:2] == (503, "no_endpoint")
            # Consul is local: loopback addresses are as they should be.
            assert "loopback" not in gateway.output()
            consul.register("own-svc", "other", service.port)
            gateway.until("/own", 200)
            serves(gateway, "/own", service)


def test_of_etcd(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    gateway = GatewayProcess(tmp_path, str(path), workers=1)
    with Cluster.start() as cluster:
        (member,) = cluster.members
        for number, address in enumerate([*ADDRESSES, "localhost"]):
            host = f"[{address}]" if ":" in address else address
            member.put(f"/own/{number}", f"{host}:{gateway.port}")
        path.write_text(document({"own": {"etcd": "/own/"}}, etcd={"endpoints": list(cluster.urls)}))
        with gateway:
            is_nobody(gateway, "/own")
            member.put("/own/other", service.authority)
            gateway.until("/own", 200)
            serves(gateway, "/own", service)


def test_of_srv_records(tmp_path: Path, service: FakeUpstream) -> None:
    path = tmp_path / "gateway.yaml"
    gateway = GatewayProcess(tmp_path, str(path), workers=1)
    target = "\n".join(f"a.test 0 {'AAAA' if ':' in address else 'A'} {address}" for address in ADDRESSES)
    own = f"_own.test 0 SRV 0 0 {gateway.port} a.test."
    with DnsServer() as server:
        server.zone(f"{own}\n{target}")
        path.write_text(document({"own": {"dns_srv": "_own.test"}}, dns={"servers": [server.address]}))
        with gateway:
            is_nobody(gateway, "/own")
            server.zone(f"{own}\n{target}\n_own.test 0 SRV 0 0 {service.port} b.test.\nb.test 0 A 127.0.0.1")
            gateway.until("/own", 200)
            serves(gateway, "/own", service)


# -- the snapshot file ---------------------------------------------------------------------


def test_of_the_snapshot_file(tmp_path: Path, service: FakeUpstream) -> None:
    """What is saved is somebody else's listener at first, then the gateway's own, then denied."""
    saved, path = tmp_path / "endpoints.json", tmp_path / "gateway.yaml"
    second = GatewayProcess(tmp_path, str(path), workers=1)
    upstreams = {name: {"consul": f"{name}-svc"} for name in ("own", "both")}
    with LastingConsul.start() as agent:
        agent.register("own-svc", "own", second.port)
        agent.register("both-svc", "both", second.port)
        agent.register("both-svc", "other", service.port)
        consul = {"address": agent.address, "poll": "1s"}
        path.write_text(document(upstreams, snapshot=str(saved), wait="200ms", consul=consul))
        with GatewayProcess(tmp_path, str(path), workers=1):
            wait_until(lambda: saved.exists() and saved.read_text().count(f'"port":{second.port}') == 2, "both are saved")
        kept = saved.read_bytes()
        agent.kill()
    with second:
        second.logged("3 endpoints of 2 upstreams from")
        second.logged("upstream own: not an endpoint: ")
        is_nobody(second, "/own")
        serves(second, "/both", service)
    saved.write_bytes(kept)
    path.write_text(document(upstreams, snapshot=str(saved), wait="200ms", consul=consul, deny=["::ffff:127.0.0.1"]))
    with GatewayProcess(tmp_path, str(path), workers=1) as third:
        third.logged("upstream own: not an endpoint any more: 127.0.0.1 is in 127.0.0.1/32, which discovery.deny excludes")
        assert third.get("/own")[:2] == (503, "no_endpoint")
        assert third.get("/both")[:2] == (503, "no_endpoint")
