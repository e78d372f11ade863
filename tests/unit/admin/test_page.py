"""docs/operations.md has every metric with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.admin import gauges, status
from gateway.telemetry import metrics
from gateway.telemetry.metrics import Series

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(gateway_[a-z_]+)` \| ([a-z, ]*?) ?\|", re.MULTILINE)


def counters() -> dict[str, set[str]]:
    """By name. A histogram has a name of its own; a counter ends with _total."""
    found = [value for value in vars(metrics).values() if isinstance(value, Series)]
    return {
        each.name if each is metrics.DURATION else f"{each.name}_total": set(each.labels) for each in found
    }


def told() -> dict[str, set[str]]:
    config = {"version": "v", "path": "", "loaded_at": 1.0, "error": "", "error_at": None}
    worker = {"slot": 0, "uptime_s": 1.0, "config": config, "ready": True, "draining": False, "connections": 1}
    worker |= {"in_flight": 0, "tunnels": 0, "overload": {"shedding": False, "lag_s": 0.0}, "buffers": {"held": 0, "spooled": 0}}
    discovery = {"age_s": 1.0, "error": ""}
    endpoints = [["h:1", 1, 0, "up", "", None]]
    state = {"breaker": "closed", "panic": False, "gate": {"limit": 1, "in_flight": 0, "queued": 0}, "decisions": {}}
    upstream = {"upstream": "u", "source": "consul", "waiting": False, "discovery": discovery, "endpoints": endpoints}
    upstream |= state
    found = gauges.of_status(status.merged([[worker, upstream]]), 2.0)
    return {metric.name: set(metric.samples[0].labels) for metric in found}


def test_every_metric_is_on_the_page() -> None:
    page = {name: set(filter(None, labels.split(", "))) for name, labels in ROW.findall(PAGE)}
    assert page == counters() | told()


def test_no_counter_is_forgotten_where_they_are_written() -> None:
    assert {f"{series.name}_total" for series in metrics._COUNTERS.values()} | {metrics.DURATION.name} == set(counters())
