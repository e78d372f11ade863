"""What workers say of themselves, put together; and the gauges made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from gateway.admin import gauges, status
from gateway.app import Gateway
from gateway.model import (
    AccessLogSettings,
    Breaker,
    Concurrency,
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
    found |= {"draining": False, "connections": 3, "in_flight": 2, "tunnels": 1, "checks_health": False}
    found["overload"] = {"shedding": False, "lag_s": 0.002, "shed": 0}
    found["buffers"] = {"held": 7, "spooled": 9}
    return found | more


def upstream(name: str, *endpoints: list[Any], **more: Any) -> dict[str, Any]:
    """`endpoints`: address, weight, in flight, state, and perhaps why and since when."""
    rows = [[*row, "", None][:6] for row in endpoints]
    gate = {"limit": 1024, "in_flight": 0, "queued": 0}
    state = {"breaker": None, "panic": False, "gate": gate, "decisions": {}}
    return {"upstream": name, "source": "consul", "waiting": False, **state, "endpoints": rows, **more}


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
        {"address": "10.0.0.1:80", "weight": 3, "in_flight": 3, "workers": 2, "state": "up", "why": "", "since": None},
        {"address": "10.0.0.2:80", "weight": 1, "in_flight": 4, "workers": 1, "state": "up", "why": "", "since": None},
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


def test_an_endpoint_is_what_it_is_for_the_worker_that_has_it_worst() -> None:
    answers = [
        [worker(2), upstream("a", ["h:1", 1, 0, "ejected", "refused", 7.0], ["h:2", 0, 0, "drained", "weight 0"])],
        [worker(0), upstream("a", ["h:1", 1, 0, "up"], ["h:2", 0, 0, "drained", "weight 0"])],
        [worker(1), upstream("a", ["h:1", 1, 0, "ejected", "reset", 8.0], ["h:2", 0, 0, "drained", "weight 0"])],
    ]
    found = status.merged(answers)
    first, second = found["upstreams"]["a"]["endpoints"]
    assert (first["state"], first["why"], first["since"]) == ("ejected", "reset", 8.0)
    assert first["states"] == [
        {"slot": 0, "state": "up", "why": "", "since": None},
        {"slot": 1, "state": "ejected", "why": "reset", "since": 8.0},
        {"slot": 2, "state": "ejected", "why": "refused", "since": 7.0},
    ]
    # They are of one mind.
    assert second["state"] == "drained"
    assert "states" not in second
    up = samples(list(gauges.of_status(found, 0.0)))
    assert up['gateway_endpoint_up{endpoint="h:1",upstream="a"}'] == 0.0
    assert up['gateway_endpoint_up{endpoint="h:2",upstream="a"}'] == 0.0


@pytest.mark.parametrize("worst", range(1, len(status.STATES)))
def test_each_state_is_worse_than_those_before_it(worst: int) -> None:
    rows = [["h:1", 1, 0, state] for state in status.STATES[: worst + 1]]
    answers = [[worker(slot), upstream("a", row)] for slot, row in enumerate(reversed(rows))]
    assert status.merged(answers)["upstreams"]["a"]["endpoints"][0]["state"] == status.STATES[worst]


def test_what_protects_an_upstream_is_told_by_worker_and_added_up() -> None:
    gates = [{"limit": 10, "in_flight": 10, "queued": 3}, {"limit": 20, "in_flight": 1, "queued": 0}]
    found = status.merged(
        [
            [worker(0), upstream("a", breaker="open", panic=True, gate=gates[0], decisions={"ejected": 2, "panic": 1})],
            [worker(1), upstream("a", breaker="closed", gate=gates[1], decisions={"ejected": 1}), upstream("b")],
        ]
    )
    told = found["upstreams"]["a"]
    assert told["breaker"] == [{"slot": 0, "state": "open"}, {"slot": 1, "state": "closed"}]
    assert told["panic"] == [0]
    assert told["gate"] == [{"slot": 0, **gates[0]}, {"slot": 1, **gates[1]}]
    assert told["decisions"] == {"ejected": 3, "panic": 1}
    json.dumps(found)
    counted = samples(list(gauges.of_status(found, 0.0)))
    of_a = {"breaker_open": 1, "panic": 1, "in_flight": 11, "queued": 3, "limit": 30}
    assert {key: counted[f'gateway_upstream_{key}{{upstream="a"}}'] for key in of_a} == of_a
    assert 'gateway_upstream_breaker_open{upstream="b"}' not in counted


def test_no_limit_has_no_series() -> None:
    gate = {"limit": None, "in_flight": 1, "queued": 0}
    counted = samples(list(gauges.of_status(status.merged([[worker(0), upstream("a", gate=gate)]]), 0.0)))
    assert 'gateway_upstream_limit{upstream="a"}' not in counted
    assert counted['gateway_upstream_in_flight{upstream="a"}'] == 1.0


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
    assert parts["file"]["endpoints"] == [
        ["10.0.0.1:80", 3, 0, "up", "", None],
        ["10.0.0.2:80", 0, 0, "drained", "weight 0", None],
    ]
    assert parts["file"]["gate"] == {"limit": 1024, "in_flight": 0, "queued": 0}
    assert (parts["file"]["breaker"], parts["file"]["panic"], parts["file"]["decisions"]) == (None, False, {})
    assert "discovery" not in parts["file"]
    assert parts["consul"]["discovery"] == {"age_s": None, "error": ""}
    json.dumps([own, *parts.values()])


def test_states_of_a_gateway_s_endpoints() -> None:
    endpoints = (
        Endpoint("http", "10.0.0.1", 80, base_path=b"/a"),
        Endpoint("http", "10.0.0.1", 80, base_path=b"/b"),
        Endpoint("http", "10.0.0.2", 80, weight=0),
        Endpoint("http", "10.0.0.2", 80, base_path=b"/b"),
    )
    upstream = Upstream("u", StaticSource(endpoints), breaker=Breaker(), concurrency=Concurrency(limit=0))
    gateway = Gateway(Config("v1", {"u": upstream}, (), access_log=AccessLogSettings(path=None)))
    group = gateway.store.current.groups["u"]
    bad = group.candidates[1]
    group.state.outliers.check(bad, False, "it said 503", 1.0)
    bad.state.in_flight = 2
    assert group.state.breaker is not None
    group.state.gate.waited, group.state.gate.refused = 3, 2
    group.state.decisions["circuit_opened"] += 1
    (part,) = status.of_upstreams(gateway)
    first, second = part["endpoints"]
    assert first == ["10.0.0.1:80", 2, 2, "unhealthy", "it said 503", bad.state.since]
    assert second == ["10.0.0.2:80", 1, 0, "up", "", None]
    assert part["gate"]["limit"] is None
    assert part["breaker"] == "closed"
    assert part["decisions"] == {
        "unhealthy": 1, "queued": 3, "over_limit": 2, "circuit_opened": 1, "circuit_refused": 0,
    }  # fmt: skip


def test_one_that_drains_is_told_with_its_requests() -> None:
    def config(weight: int) -> Config:
        endpoints = (Endpoint("http", "10.0.0.1", 80, weight=weight), Endpoint("http", "10.0.0.2", 80))
        return Config(f"v{weight}", {"u": Upstream("u", StaticSource(endpoints))}, (), access_log=None)

    gateway = Gateway(config(1))
    gateway.store.current.groups["u"].candidates[0].state.in_flight = 2
    gateway.store.reconfigure(config(0))
    (part,) = status.of_upstreams(gateway)
    assert part["endpoints"][0] == ["10.0.0.1:80", 0, 2, "drained", "weight 0", None]


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
