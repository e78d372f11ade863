"""What is told at `/-/status`: each worker by itself, and the upstreams of all together.

Rule: `of_worker` and `of_upstreams` read what is there and change nothing; `merged` is a
function of what the workers said. Durations are seconds, points in time seconds since 1970.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from gateway.model import ConsulSource, DnsSrvSource, EtcdSource, Source, StaticSource
from gateway.snapshot import Group
from gateway.tunnel import Pump

if TYPE_CHECKING:
    from gateway.app import Gateway

Part = dict[str, Any]


class Hosting(Protocol):
    """What a gunicorn worker knows of itself; others than ours know less."""

    door: tuple[str, str]
    open_connections: int


def of_worker(gateway: Gateway, slot: int | str, hosting: Hosting | None, started: float) -> Part:
    """One worker, in short. `started`: of the monotonic clock."""
    status = gateway.config_status
    kind, why = getattr(hosting, "door", ("wsgi", "the server's own worker"))
    dropped, lost = gateway.access_log_losses()
    return {
        "slot": slot,
        "pid": os.getpid(),
        "uptime_s": round(time.monotonic() - started, 3),
        "config": {
            "version": status.version,
            "path": status.path,
            "loaded_at": status.loaded_at,
            "error": status.error,
            "error_at": status.error_at,
        },
        "door": {"kind": kind, "why": why},
        "ready": gateway.store.ready,
        "draining": gateway.draining,
        # Of the data listeners; not known of other workers than ours.
        "connections": getattr(hosting, "open_connections", None),
        "in_flight": gateway.in_flight(),
        "tunnels": Pump.running,
        "access_log": {"dropped": dropped, "lost": lost},
    }


def of_upstreams(gateway: Gateway) -> Iterator[Part]:
    """The upstreams of one worker, one after the other."""
    now = time.monotonic()
    snapshot, providers = gateway.store.current, gateway.store.providers
    waiting = frozenset(gateway.store.waiting)
    for name, group in snapshot.groups.items():
        provider = providers.get(name)
        part: Part = {"upstream": name, "source": source(group.upstream.source), "waiting": name in waiting}
        if provider is not None:
            success = provider.status.last_success
            age = None if success is None else round(max(now - success, 0.0), 3)
            part["discovery"] = {"age_s": age, "error": provider.status.last_error}
        part["endpoints"] = list(_endpoints(group))
        yield part


def _endpoints(group: Group) -> Iterator[list[Any]]:
    """Address, weight, requests in flight, state; those that differ in their path alone as one."""
    found: dict[str, list[Any]] = {}
    for endpoint in group.endpoints:
        row = found.setdefault(endpoint.address, [endpoint.address, 0, 0, "up"])
        row[1] += endpoint.weight
    for candidate in group.candidates:
        found[candidate.endpoint.address][2] += candidate.state.in_flight
    yield from found.values()


_WORDS: dict[type[Source], str] = {
    StaticSource: "endpoints",
    ConsulSource: "consul",
    DnsSrvSource: "dns_srv",
    EtcdSource: "etcd",
}


def source(given: Source) -> str:
    """Where an upstream's endpoints come from, in the configuration's word."""
    return _WORDS[type(given)]


def merged(answers: Iterable[list[Part]]) -> Part:
    """One document of what each worker said: its own part, then one for each upstream."""
    workers: list[Part] = []
    upstreams: dict[str, Part] = {}
    for own, *parts in answers:
        workers.append(own)
        for part in parts:
            _add(upstreams, part, own["slot"])
    workers.sort(key=lambda worker: (isinstance(worker["slot"], str), worker["slot"]))
    for told in upstreams.values():
        told["endpoints"] = [told["endpoints"][address] for address in sorted(told["endpoints"])]
    return {"workers": workers, "upstreams": dict(sorted(upstreams.items()))}


def _add(upstreams: dict[str, Part], part: Part, slot: int | str) -> None:
    told = upstreams.setdefault(
        part["upstream"], {"source": part["source"], "waiting": [], "discovery": [], "endpoints": {}}
    )
    if part["waiting"]:
        told["waiting"].append(slot)
    if "discovery" in part:
        told["discovery"].append({"slot": slot, **part["discovery"]})
    for address, weight, in_flight, state in part["endpoints"]:
        # Fewer workers than there are: they do not agree, or not yet.
        fresh = {"address": address, "weight": weight, "in_flight": 0, "state": state, "workers": 0}
        endpoint = told["endpoints"].setdefault(address, fresh)
        endpoint["workers"] += 1
        endpoint["in_flight"] += in_flight
        if state != "up":
            endpoint["state"] = state
