"""What workers say of themselves, put together; and the gauges made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from gateway.admin import gauges, status
from gateway.app import Gateway
from gateway.model import (
    AccessLogSettings,
    Config,
    ConsulSource,
    DnsSrvSource,
    Endpoint,
    EtcdSource,
    Match,
    Route,
    StaticSource,
    Upstream,
)
from gateway.telemetry.access_log import Record
from gateway.telemetry.metrics import Metrics


def worker(slot: int, **more: Any) -> dict[str, Any]:
    config = {"version": "v1", "path": "f", "loaded_at": 100.0, "error": "", "error_at": None}
    found: dict[str, Any] = {"slot": slot, "pid": 1000 + slot, "uptime_s": 5.0, "config": config, "ready": True}
    found |= {"draining": False, "connections": 3, "in_flight": 2, "tunnels": 1}
    return found | more


def upstream(name: str, *endpoints: list[Any], **more: Any) -> dict[str, Any]:
    return {"upstream": name, "source": "consul", "waiting": False, "endpoints": list(endpoints), **more}


def samples(metrics: list[Metric]) -> dict[str, float]:
    class Given:
        def collect(self) -> list[Metric]:
            return metrics

    registry = CollectorRegistry()
    registry.register(Given())  # type: ignore[arg-type]
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_workers_stand_by_slot_and_endpoints_are_added_up() -> None:
    found = status.merged(
        [
            [worker(1), upstream("b", ["10.0.0.2:80", 1, 4, "up"], ["10.0.0.1:80", 3, 1, "up"])],
            [worker(0), upstream("b", ["10.0.0.1:80", 3, 2, "up"]), upstream("a")],
        ]
    )
    assert [each["slot"] for each in found["workers"]] == [0, 1]
    assert list(found["upstreams"]) == ["a", "b"]
    assert found["upstreams"]["b"]["endpoints"] == [
        {"address": "10.0.0.1:80", "weight": 3, "in_flight": 3, "state": "up", "workers": 2},
        {"address": "10.0.0.2:80", "weight": 1, "in_flight": 4, "state": "up", "workers": 1},
    ]


def test_whom_discovery_fails_is_told_by_slot() -> None:
    found = status.merged(
        [
            [worker(0), upstream("a", discovery={"age_s": 3.0, "error": ""})],
            [worker(1), upstream("a", waiting=True, discovery={"age_s": None, "error": "refused"})],
        ]
    )
    told = found["upstreams"]["a"]
    assert told["waiting"] == [1]
    assert told["discovery"] == [{"slot": 0, "age_s": 3.0, "error": ""}, {"slot": 1, "age_s": None, "error": "refused"}]


def test_an_endpoint_that_any_worker_keeps_away_from_is_not_up() -> None:
    answers = [
        [worker(0), upstream("a", ["h:1", 1, 0, "up"])],
        [worker(1), upstream("a", ["h:1", 1, 0, "ejected"])],
        [worker(2), upstream("a", ["h:1", 1, 0, "up"])],
    ]
    found = status.merged(answers)
    assert found["upstreams"]["a"]["endpoints"][0]["state"] == "ejected"
    assert samples(list(gauges.of_status(found, 0.0)))['gateway_endpoint_up{endpoint="h:1",upstream="a"}'] == 0.0


def test_a_worker_that_does_not_answer_is_named() -> None:
    found = status.merged([[worker(0)], [{"slot": 1, "problem": "no answer within 2 s"}]])
    assert found["workers"][1] == {"slot": 1, "problem": "no answer within 2 s"}
    counted = samples(list(gauges.of_status(found, 0.0)))
    assert (counted["gateway_workers"], counted["gateway_workers_silent"]) == (1.0, 1.0)


def test_gauges() -> None:
    failed = {"version": "v2", "path": "f", "loaded_at": 150.0, "error": "f:1: bad", "error_at": 160.0}
    found = status.merged(
        [
            [worker(0), upstream("a", ["h:1", 1, 2, "up"], discovery={"age_s": 3.0, "error": ""})],
            [worker(1, config=failed), upstream("a", ["h:1", 1, 5, "up"], discovery={"age_s": 9.0, "error": "x"})],
        ]
    )
    counted = samples(list(gauges.of_status(found, 200.0)))
    assert counted['gateway_config_info{version="v1",worker="0"}'] == 1.0
    assert counted['gateway_config_info{version="v2",worker="1"}'] == 1.0
    assert counted['gateway_config_age_seconds{worker="0"}'] == 100.0
    assert counted['gateway_config_last_reload_successful{worker="0"}'] == 1.0
    assert counted['gateway_config_last_reload_successful{worker="1"}'] == 0.0
    assert counted['gateway_discovery_age_seconds{upstream="a"}'] == 9.0
    assert counted['gateway_discovery_failing{upstream="a"}'] == 1.0
    assert counted['gateway_endpoint_in_flight{endpoint="h:1",upstream="a"}'] == 7.0
    assert counted['gateway_connections{worker="0"}'] == 3.0
    assert counted['gateway_requests_in_flight{worker="1"}'] == 2.0
    assert counted['gateway_tunnels_open{worker="1"}'] == 1.0


def test_what_is_not_known_has_no_series() -> None:
    found = status.merged([[worker(0, connections=None), upstream("a", discovery={"age_s": None, "error": ""})]])
    counted = samples(list(gauges.of_status(found, 0.0)))
    assert not [name for name in counted if name.startswith(("gateway_connections", "gateway_discovery_age"))]


def test_a_gateway_tells_of_itself() -> None:
    endpoints = (
        Endpoint("http", "10.0.0.1", 80, base_path=b"/a"),
        Endpoint("http", "10.0.0.1", 80, base_path=b"/b", weight=2),
        Endpoint("http", "10.0.0.2", 80, weight=0),
    )
    upstreams = {
        "file": Upstream("file", StaticSource(endpoints)),
        "consul": Upstream("consul", ConsulSource("s")),
        "dns": Upstream("dns", DnsSrvSource("_http._tcp.a.example")),
        "etcd": Upstream("etcd", EtcdSource("/s/")),
    }
    routes = (Route("all", "file", (Match(prefix="/"),)),)
    gateway = Gateway(Config("v1", upstreams, routes, access_log=AccessLogSettings(path=None), path="file.yaml"))
    own = status.of_worker(gateway, 3, None, 0.0)
    assert (own["slot"], own["door"]["kind"], own["connections"], own["ready"]) == (3, "wsgi", None, False)
    assert (own["config"]["version"], own["config"]["path"], own["config"]["error"]) == ("v1", "file.yaml", "")
    parts = {part["upstream"]: part for part in status.of_upstreams(gateway)}
    assert [parts[name]["source"] for name in upstreams] == ["endpoints", "consul", "dns_srv", "etcd"]
    assert [parts[name]["waiting"] for name in upstreams] == [False, True, True, True]
    assert parts["file"]["endpoints"] == [["10.0.0.1:80", 3, 0, "up"], ["10.0.0.2:80", 0, 0, "up"]]
    assert "discovery" not in parts["file"]
    assert parts["consul"]["discovery"] == {"age_s": None, "error": ""}
    json.dumps([own, *parts.values()])


def test_counters_of_endpoints_that_are_gone_are_left_out(tmp_path: Path) -> None:
    def record(endpoint: Endpoint) -> Record:
        went = (b"GET", b"", b"", Route("r", "a"), Upstream("a", StaticSource(())), endpoint, 200, "", "")
        return (0.0, b"", "", "", *went, 0, 0, 0.1, 0.0, 0.0, 0.0, 1, False, "v")

    counted = Metrics(str(tmp_path), 0, lambda: ((), (), ()))
    counted.observe([record(Endpoint("http", "10.0.0.1", port)) for port in (1, 2)])
    counted.close()
    found = status.merged([[worker(0), upstream("a", ["10.0.0.1:1", 1, 0, "up"])]])
    names = samples(list(gauges.Scrape([str(tmp_path)], found, 0.0).collect()))
    of_endpoints = [name for name in names if name.startswith("gateway_endpoint_requests_total")]
    assert of_endpoints == ['gateway_endpoint_requests_total{endpoint="10.0.0.1:1",status="2xx",upstream="a"}']
    # What they had is still in what the route had.
    assert names['gateway_requests_total{method="GET",route="r",status="200",upstream="a"}'] == 2.0
