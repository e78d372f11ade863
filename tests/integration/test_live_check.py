"""`gateway check --live`: registries and endpoints that are there, are not, or do not answer."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway import config
from gateway.commands import live_check
from gateway.hosting.gunicorn_settings import AS_ROOT
from gateway.model import Endpoint
from gateway.testing import Act, FakeUpstream, answer, head
from gateway.upstreams.own_addresses import Listeners
from tests import services
from tests.conformance.harness import refused_port, silent_port
from tests.dns_server import DnsServer
from tests.etcd_server import Cluster
from tests.exchanges import open_files, soon

ROOT = Path(__file__).resolve().parents[2]


def document(upstreams: dict[str, Any], **sections: Any) -> str:
    routes = [{"name": name, "match": {"prefix": f"/{name}"}, "upstream": name} for name in upstreams]
    return json.dumps({"version": 1, **sections, "upstreams": upstreams, "routes": routes})


def checked(upstreams: dict[str, Any], whole: float = 20.0, **sections: Any) -> dict[str, list[tuple[str, str, str]]]:
    settings = config.loads(document(upstreams, **sections).encode(), "f", {})
    found = live_check.check(settings, whole)
    assert [one.upstream for one in found] == list(upstreams)
    return {one.upstream: [(each.verdict, each.address, each.told) for each in one.findings] for one in found}


@pytest.mark.parametrize(
    ("script", "pool", "verdict", "told"),
    [
        (answer(b"x"), {}, "ok", "does not say how long it keeps idle connections"),
        (answer(b"x", b"Keep-Alive: timeout=60, max=5"), {}, "ok", "keeps idle connections 60 s"),
        (answer(b"x", b"Keep-Alive: timeout=5"), {}, "warning",
         "keeps idle connections 5 s; pool.idle_timeout is 30 s (make it less)"),
        (answer(b"x", b"Keep-Alive: timeout=5"), {"idle_timeout": "5s"}, "warning",
         "keeps idle connections 5 s; pool.idle_timeout is 5 s (make it less)"),
        (answer(b"x", b"Keep-Alive: timeout=5"), {"idle_timeout": "4s"}, "ok", "keeps idle connections 5 s"),
        (answer(b"x", b"Keep-Alive: timeout=5"), {"idle_timeout": None}, "warning",
         "keeps idle connections 5 s; pool.idle_timeout is not limited (make it less)"),
        (head(404, b"Content-Length: 0"), {}, "ok", "does not say how long it keeps idle connections"),
        (head(500, b"Content-Length: 0"), {}, "ok", "does not say how long it keeps idle connections"),
        ([b"SSH-2.0-x\r\n\r\n"], {}, "warning", "does not answer HEAD as HTTP: "),
        ([Act.RESET], {}, "ok", "does not answer HEAD ("),
    ],
)  # fmt: skip
def test_an_endpoint_that_is_there(script: Any, pool: dict[str, Any], verdict: str, told: str) -> None:
    with FakeUpstream(script) as fake:
        (found,) = checked({"u": {"endpoints": [f"{fake.url}/base?k=v"], "pool": pool}})["u"]
        assert found[:2] == (verdict, fake.authority)
        assert found[2].startswith(told)
        (asked,) = fake.requests
        assert (asked.method, asked.target, asked.header(b"host")) == (b"HEAD", b"/base?k=v", fake.authority.encode())


def test_own_listeners_are_not_asked() -> None:
    with FakeUpstream(answer(b"x")) as own, FakeUpstream(answer(b"x")) as other:
        text = document({"alone": {"endpoints": [own.url]}, "both": {"endpoints": [f"http://localhost:{own.port}", other.url]}})
        listeners = Listeners([f"127.0.0.1:{own.port}"])
        found = live_check.check(config.loads(text.encode(), "f", {}), 20.0, listeners.refusal)
        assert not own.requests
        assert len(other.requests) == 1
        alone, both = found
        assert [(each.verdict, each.address) for each in alone.findings] == [("warning", own.authority), ("wrong", "")]
        assert (alone.findings[0].told, alone.wrong) == (f"is not used: {listeners.refusal(Endpoint('http', '127.0.0.1', own.port))}", True)
        assert [(each.verdict, each.address) for each in both.findings] == [("warning", own.authority), ("ok", other.authority)]


def test_denied_addresses_are_named() -> None:
    with DnsServer() as server:
        server.zone("meta.test 0 A 169.254.169.254")
        found = checked({"u": {"endpoints": ["http://meta.test"]}}, discovery={"dns": {"servers": [server.address]}})
    assert found["u"] == [("wrong", "", "has no endpoint; 169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes")]


@pytest.mark.parametrize(
    ("health", "script", "verdict", "told"),
    [
        ({"path": "/up"}, answer(b"x"), "ok", "does not say how long"),
        ({"path": "/up"}, head(404, b"Content-Length: 0"), "wrong", "its health check fails: GET /up was answered 404"),
        ({"path": "/up", "status": [404]}, head(404, b"Content-Length: 0"), "ok", "does not say how long"),
        ({"path": "/up"}, [Act.RESET], "wrong", "its health check fails: upstream_reset: no answer from"),
        ({"tcp": True}, head(404, b"Content-Length: 0"), "ok", "does not say how long"),
    ],
)  # fmt: skip
def test_what_a_health_check_asks(health: dict[str, Any], script: Any, verdict: str, told: str) -> None:
    with FakeUpstream(script) as fake:
        (found,) = checked({"u": {"endpoints": [fake.url], "health": health}})["u"]
        assert found[0] == verdict
        assert found[2].startswith(told)
        targets = [(asked.method, asked.target) for asked in fake.requests]
        assert targets == ([(b"HEAD", b"/")] if "tcp" in health else [(b"HEAD", b"/"), (b"GET", b"/up")])


def test_a_literal_host_is_asked_for() -> None:
    with FakeUpstream(answer(b"x")) as fake:
        checked({"u": {"endpoints": [fake.url], "host": "inside.test"}})
        assert (fake.last.target, fake.last.header(b"host")) == (b"/", b"inside.test")


def test_endpoints_that_are_not_there() -> None:
    with FakeUpstream(answer(b"x")) as fake, refused_port() as refused, silent_port() as silent:
        urls = [fake.url, f"http://127.0.0.1:{refused}", {"url": f"http://127.0.0.1:{silent}"}]
        found = checked({"u": {"endpoints": urls, "timeouts": {"connect": "200ms"}}})["u"]
    assert [one[0] for one in found] == ["ok", "wrong", "wrong"]
    assert found[1][2].startswith("connect_refused: dial tcp ")
    assert found[2][2].startswith("connect_timeout: dial tcp ")


def test_what_takes_no_traffic_is_not_asked() -> None:
    with FakeUpstream(answer(b"x")) as fake, refused_port() as refused:
        drained = {"url": f"http://127.0.0.1:{refused}", "weight": 0}
        assert [one[0] for one in checked({"u": {"endpoints": [fake.url, drained]}})["u"]] == ["ok"]
        assert checked({"u": {"endpoints": [drained]}})["u"] == [("wrong", "", "has no endpoint")]


def test_tls_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("service.example").configure_cert(context)
    with FakeUpstream(answer(b"x"), tls=context) as fake, FakeUpstream(answer(b"x")) as plain:
        url, ca = f"https://{fake.authority}", str(tmp_path / "ca.pem")
        found = checked(
            {
                "known": {"endpoints": [url], "tls": {"ca": ca, "server_name": "service.example"}},
                "other-name": {"endpoints": [url], "tls": {"ca": ca, "server_name": "other.example"}},
                "unknown": {"endpoints": [url]},
                "any": {"endpoints": [url], "tls": {"verify": False}},
                "no-tls-there": {"endpoints": [f"https://{plain.authority}"]},
                "tls-there": {"endpoints": [f"http://{fake.authority}"]},
                "no-ca": {"endpoints": [url], "tls": {"ca": str(Path(__file__))}},
            }
        )
    verdicts = {name: findings[0][0] for name, findings in found.items()}
    assert verdicts.pop("tls-there") in ("ok", "warning")  # a server may say what is wrong, or just hang up
    assert verdicts == {"known": "ok", "other-name": "wrong", "unknown": "wrong", "any": "ok", "no-tls-there": "wrong", "no-ca": "wrong"}  # fmt: skip
    assert found["unknown"][0][2].startswith("tls_error: tls handshake ")
    assert found["no-ca"][0][2].startswith("tls: ")


def test_names() -> None:
    with FakeUpstream(answer(b"x")) as fake:
        found = checked(
            {
                "there": {"endpoints": [f"http://localhost:{fake.port}"]},
                "nowhere": {"endpoints": ["http://nowhere.invalid:1"]},
                "both": {"endpoints": [f"http://localhost:{fake.port}", "http://nowhere.invalid:1"]},
            }
        )
    assert ("ok", fake.authority) in [one[:2] for one in found["there"]]
    assert [one[:2] for one in found["nowhere"]] == [("wrong", "")]
    assert found["nowhere"][0][2].startswith("nowhere.invalid: ")
    assert {one[0] for one in found["both"]} >= {"ok", "wrong"}


def test_consul(consul: services.Consul) -> None:
    with FakeUpstream(answer(b"x", b"Keep-Alive: timeout=75")) as fake, refused_port() as refused:
        consul.register("live-check", "live-check-1", fake.port)
        consul.register("live-check-down", "live-check-2", refused)
        address = {"consul": {"address": consul.address}}
        services_asked = {name: {"consul": name} for name in ("live-check", "live-check-down", "live-check-none")}
        found = checked(services_asked, discovery=address)
        assert found["live-check"] == [("ok", fake.authority, "keeps idle connections 75 s")]
        assert [one[:2] for one in found["live-check-down"]] == [("wrong", f"127.0.0.1:{refused}")]
        assert found["live-check-none"] == [("wrong", "", "has no endpoint")]
        away = checked({"u": {"consul": "live-check"}}, discovery={"consul": {"address": f"http://127.0.0.1:{refused}"}})
    assert away["u"][0][:2] == ("wrong", "")
    assert f"127.0.0.1:{refused}" in away["u"][0][2]


def test_dns_srv() -> None:
    with DnsServer() as server, FakeUpstream(answer(b"x")) as fake:
        server.zone(f"_http._tcp.there.test 20 SRV 10 1 {fake.port} a.test.\na.test 20 A 127.0.0.1")
        asked = {name: {"dns_srv": f"_http._tcp.{name}.test"} for name in ("there", "nowhere")}
        found = checked(asked, discovery={"dns": {"servers": [server.address]}})
    assert found["there"][0][:2] == ("ok", fake.authority)
    assert [one[:2] for one in found["nowhere"]] == [("wrong", "")]


def test_etcd() -> None:
    with Cluster.start() as cluster, FakeUpstream(answer(b"x")) as fake, refused_port() as refused:
        cluster.members[0].put("/services/there/1", fake.authority)
        cluster.members[0].put("/services/down/1", f"http://127.0.0.1:{refused}")
        asked = {name: {"etcd": f"/services/{name}/"} for name in ("there", "down", "none")}
        found = checked(asked, discovery={"etcd": {"endpoints": list(cluster.urls)}})
    assert found["there"][0][:2] == ("ok", fake.authority)
    assert [one[:2] for one in found["down"]] == [("wrong", f"127.0.0.1:{refused}")]
    assert found["none"] == [("wrong", "", "has no endpoint")]


def test_the_whole_is_bounded() -> None:
    """Nobody waits for what does not answer: what is known by then is told."""
    with FakeUpstream(answer(b"x")) as fake, silent_port() as silent:
        hangs = {"endpoints": [f"http://127.0.0.1:{silent}"], "timeouts": {"connect": "1h"}}
        files = open_files()
        found = checked({"hangs": hangs, "there": {"endpoints": [fake.url]}}, whole=1.0)
        assert found["hangs"] == [("wrong", f"127.0.0.1:{silent}", "not known after 1 s")]
        assert found["there"][0][0] == "ok"
        soon(lambda: open_files() <= files)


def test_more_endpoints_than_are_asked_at_once() -> None:
    with FakeUpstream(answer(b"x")) as fake:
        urls = [f"{fake.url}/{number}" for number in range(live_check.AT_ONCE + 8)]
        found = checked({"u": {"endpoints": urls}})["u"]
        assert [one[0] for one in found] == ["ok"] * len(urls)
        assert len({request.connection for request in fake.requests}) == len(urls)


# -- the command ---------------------------------------------------------------------------


def run(path: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "gateway", "check", str(path), "--live"],
        env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    with FakeUpstream(answer(b"x")) as fake, refused_port() as refused:
        path.write_text(document({"u": {"endpoints": [fake.url]}}))
        good = run(path)
        path.write_text(document({"u": {"endpoints": [fake.url, f"http://127.0.0.1:{refused}"]}}))
        bad = run(path)
    told = f"  ok  {fake.authority}  does not say how long it keeps idle connections\n"
    as_root = f"warning: {AS_ROOT}\n" if os.geteuid() == 0 else ""
    assert (good.returncode, good.stderr) == (0, as_root)
    assert good.stdout == f"ok: 1 route, 1 upstream\nupstream u ({fake.url})\n{told}"
    assert bad.returncode == 1
    assert f"  wrong  127.0.0.1:{refused}  connect_refused: " in bad.stdout


def test_the_command_does_not_ask_for_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    with FakeUpstream(answer(b"x")) as fake:
        path.write_text(document({"u": {"endpoints": [fake.url], "nope": 1}}))
        found = run(path)
        assert fake.requests == []
    assert (found.returncode, found.stdout) == (1, "")
    assert "unknown key" in found.stderr


def test_addresses_of_both_families() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback here")
    with FakeUpstream(answer(b"x"), host="::1") as fake:
        assert [one[0] for one in checked({"u": {"endpoints": [fake.url]}})["u"]] == ["ok"]
