"""What is so at this moment, for Prometheus: made of the merged status when somebody asks.

Rule: pure. Nothing is kept, so that what is gone (an endpoint, an upstream, a worker) has
no series from the next scrape on. Labels are worker slots, upstreams and endpoints; the
version in `gateway_config_info` has as many values as there are workers at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from gateway.telemetry import counter_file, metrics

Part = dict[str, Any]


def of_status(status: Part, now: float) -> Iterator[Metric]:
    """`now`: seconds since 1970."""
    answered = [worker for worker in status["workers"] if "problem" not in worker]
    silent = len(status["workers"]) - len(answered)
    yield _gauge("gateway_workers", "Workers that say how they are.", len(answered))
    yield _gauge("gateway_workers_silent", "Workers that do not answer.", silent)
    yield from _of_workers(answered, now)
    yield from _of_upstreams(status["upstreams"])


def _gauge(name: str, told: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, told)
    family.add_metric([], value)
    return family


def _family(name: str, told: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, told, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _of_workers(workers: list[Part], now: float) -> Iterator[Metric]:
    label = ("worker",)
    by_slot = [((str(worker["slot"]),), worker) for worker in workers]

    def each(name: str, told: str, key: str) -> Metric:
        return _family(name, told, label, ((slot, float(worker[key])) for slot, worker in by_slot))

    yield each("gateway_ready", "Whether each upstream has had an answer once.", "ready")
    yield each("gateway_draining", "Whether the worker is leaving.", "draining")
    yield each("gateway_uptime_seconds", "Since the worker began.", "uptime_s")
    yield each("gateway_requests_in_flight", "Requests that an upstream has.", "in_flight")
    yield each("gateway_tunnels_open", "Upgraded connections.", "tunnels")
    yield _family(
        "gateway_overloaded",
        "1: new requests are refused, as the hub is late.",
        label,
        ((slot, float(worker["overload"]["shedding"])) for slot, worker in by_slot),
    )
    yield _family(
        "gateway_hub_lag_seconds",
        "How late the hub was at the last look.",
        label,
        ((slot, worker["overload"]["lag_s"]) for slot, worker in by_slot),
    )
    for key, where in (("held", "memory"), ("spooled", "temporary files")):
        yield _family(
            f"gateway_buffers_{key}_bytes",
            f"What is held of bodies for slow clients in {where}.",
            label,
            ((slot, worker["buffers"][key]) for slot, worker in by_slot),
        )
    yield _family(
        "gateway_connections",
        "Client connections of the data listeners.",
        label,
        ((slot, worker["connections"]) for slot, worker in by_slot if worker["connections"] is not None),
    )
    yield _family(
        "gateway_config_info",
        "The version of the configuration in force.",
        ("worker", "version"),
        (((*slot, worker["config"]["version"]), 1.0) for slot, worker in by_slot),
    )
    yield _family(
        "gateway_config_age_seconds",
        "Since the configuration in force was loaded.",
        label,
        ((slot, max(now - worker["config"]["loaded_at"], 0.0)) for slot, worker in by_slot),
    )
    yield _family(
        "gateway_config_loaded_timestamp_seconds",
        "When the configuration in force was loaded.",
        label,
        ((slot, worker["config"]["loaded_at"]) for slot, worker in by_slot),
    )
    yield _family(
        "gateway_config_last_reload_successful",
        "0: what is there now cannot be used, and the one before stays in force.",
        label,
        ((slot, float(not worker["config"]["error"])) for slot, worker in by_slot),
    )


def _of_upstreams(upstreams: dict[str, Part]) -> Iterator[Metric]:
    label = ("upstream",)
    yield _family(
        "gateway_upstream_endpoints",
        "Endpoints that any worker knows of.",
        label,
        (((name,), len(told["endpoints"])) for name, told in upstreams.items()),
    )
    yield _family(
        "gateway_upstream_waiting",
        "Workers without one answer yet.",
        label,
        (((name,), len(told["waiting"])) for name, told in upstreams.items()),
    )
    yield _family(
        "gateway_discovery_age_seconds",
        "Since the last good answer, of the worker for which it is longest ago.",
        label,
        (((name,), max(ages)) for name, told in upstreams.items() if (ages := _ages(told))),
    )
    yield _family(
        "gateway_discovery_failing",
        "Workers whose last look-up failed.",
        label,
        (
            ((name,), sum(1 for one in told["discovery"] if one["error"]))
            for name, told in upstreams.items()
            if told["discovery"]
        ),
    )
    yield _family(
        "gateway_upstream_breaker_open",
        "Workers whose circuit is open or half open; none without a breaker.",
        label,
        (
            ((name,), sum(1 for one in told["breaker"] if one["state"] != "closed"))
            for name, told in upstreams.items()
            if told["breaker"]
        ),
    )
    yield _family(
        "gateway_upstream_panic",
        "Workers for which no endpoint works, so that all are tried.",
        label,
        (((name,), len(told["panic"])) for name, told in upstreams.items()),
    )
    for key, what in (("in_flight", "that have a place"), ("queued", "that wait for one")):
        yield _family(
            f"gateway_upstream_{key}",
            f"Requests to the upstream {what}.",
            label,
            (((name,), sum(one[key] for one in told["gate"])) for name, told in upstreams.items()),
        )
    yield _family(
        "gateway_upstream_limit",
        "How many requests may have a place, of all workers together; none where there is no limit.",
        label,
        (
            ((name,), sum(one["limit"] for one in told["gate"]))
            for name, told in upstreams.items()
            if all(one["limit"] is not None for one in told["gate"])
        ),
    )
    by_endpoint = ("upstream", "endpoint")
    rows = [((name, one["address"]), one) for name, told in upstreams.items() for one in told["endpoints"]]
    yield _family(
        "gateway_endpoint_up",
        "1: every worker that knows of it sends requests there.",
        by_endpoint,
        ((labels, float(one["state"] == "up")) for labels, one in rows),
    )
    yield _family(
        "gateway_endpoint_in_flight",
        "Requests that it has.",
        by_endpoint,
        ((labels, one["in_flight"]) for labels, one in rows),
    )


def _ages(told: Part) -> list[float]:
    return [one["age_s"] for one in told["discovery"] if one["age_s"] is not None]


class Scrape:
    """One scrape, as prometheus_client takes it: counters from files, gauges from the status."""

    def __init__(self, folders: list[str], status: Part, now: float) -> None:
        self._folders = folders
        self._status = status
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield from of_status(self._status, self._now)
        known = {
            (name, one["address"]) for name, told in self._status["upstreams"].items() for one in told["endpoints"]
        }
        known.add((counter_file.OTHER, counter_file.OTHER))
        for metric in counter_file.collect(self._folders):
            if metric.name == metrics.ENDPOINTS.name:
                metric.samples = [
                    sample
                    for sample in metric.samples
                    if (sample.labels["upstream"], sample.labels["endpoint"]) in known
                ]
            yield metric
