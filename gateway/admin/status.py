"""What is told at `/-/status`: each worker by itself, and the upstreams of all together.

Rule: `of_worker` and `of_upstreams` read what is there and change nothing; `merged` is a
function of what the workers said. Durations are seconds, points in time seconds since 1970.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isfinite
from typing import Any, Protocol

from gateway.admin.observed import Observed
from gateway.model import ConsulSource, DnsSrvSource, EtcdSource, Source, StaticSource
from gateway.net.tunnel import Pump
from gateway.runtime.background import Task
from gateway.runtime.hub import in_order, parts
from gateway.upstreams.snapshot import Group, Turn
from gateway.upstreams.state import UpstreamState

Part = dict[str, Any]

# Endpoints in one part.
ROWS = 100
# What an endpoint may be, from good to bad.
STATES = ("up", "drained", "trial", "ejected", "unhealthy")


class Hosting(Protocol):
    """What a gunicorn worker knows of itself; others than ours know less."""

    door: tuple[str, str]
    open_connections: int
    closed_connections: dict[str, int]


def of_worker(
    gateway: Observed, slot: int | str, hosting: Hosting | None, started: float, wrong_tokens: int = 0
) -> Part:
    """One worker, in short. `started`: of the monotonic clock; `wrong_tokens`: on its admin listener."""
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
        # Closed for others or refused, by kind.
        "connections_closed": getattr(hosting, "closed_connections", None),
        "in_flight": gateway.in_flight(),
        "tunnels": Pump.running,
        # Whether it is this one that asks endpoints whether they are well.
        "checks_health": gateway.prober.checking,
        "overload": {
            "shedding": gateway.overload.shedding,
            "lag_s": round(gateway.overload.lag, 3),
            "shed": gateway.overload.shed,
        },
        # Bodies of slow clients: bytes in memory and in files at this moment, and how many bodies were held or not.
        "buffers": {"held": gateway.buffers.held, "spooled": gateway.buffers.spooled, **gateway.buffers.counts},
        "access_log": {"dropped": dropped, "lost": lost},
        "admin": {"wrong_tokens": wrong_tokens},
        "background": [_task(task) for task in gateway.background],
    }


def _task(task: Task) -> Part:
    """A background greenlet: how often it ran again after a fault, and the last one."""
    return {
        "name": task.name,
        "running": not task.dead,
        "restarts": task.restarts,
        "error": task.last_error,
        "error_at": task.last_error_at,
    }


def of_upstreams(gateway: Observed, turn: Turn = lambda: None) -> Iterator[Part]:
    """The upstreams of one worker, one after the other. Where there are many endpoints, the further parts of an
    upstream hold endpoints alone."""
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
        part |= _of_state(group.state)
        rows = _endpoints(group, turn)
        part["endpoints"] = list(islice(rows, ROWS))
        yield part
        while more := list(islice(rows, ROWS)):
            yield {"upstream": name, "endpoints": more}


def _of_state(state: UpstreamState) -> Part:
    """What protects the upstream, and what was decided so far."""
    gate, breaker = state.gate, state.breaker
    return {
        "breaker": None if breaker is None else breaker.state,
        "panic": state.outliers.panic,
        "gate": {
            "limit": round(gate.limit) if isfinite(gate.limit) else None,
            "in_flight": gate.in_flight,
            "queued": gate.queued,
        },
        "decisions": decisions(state),
    }


def decisions(state: UpstreamState) -> dict[str, int]:
    """How often what was decided, since the worker began; a word for each decision."""
    found, gate = dict(state.decisions), state.gate
    if gate.waited:
        found["queued"] = gate.waited
    if gate.refused:
        found["over_limit"] = gate.refused
    return found


def _endpoints(group: Group, turn: Turn) -> Iterator[list[Any]]:
    """Address, weight, requests in flight, state, why and since when (None: it was never another
    one). Those that differ in their path alone as one, in the worst of their states."""
    found: dict[str, list[Any]] = {}
    for endpoint in parts(group.endpoints, turn):
        row = found.setdefault(endpoint.address, [endpoint.address, 0, 0, "drained", "weight 0", None])
        row[1] += endpoint.weight
        if not endpoint.weight and (drained := group.state.find(endpoint.key)) is not None:
            row[2] += drained.in_flight
    for candidate in parts(group.candidates, turn):
        row, state = found[candidate.endpoint.address], candidate.state
        row[2] += state.in_flight
        # Where one of them gets requests, the address is not drained.
        if row[3] == "drained" or _worse(state.state, row[3]):
            row[3:] = state.state, state.why, state.since or None
    yield from found.values()


def _worse(state: str, than: str) -> bool:
    return STATES.index(state) > STATES.index(than)


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
    """One document of what each worker said: its own part, then those of each upstream."""
    workers: list[Part] = []
    upstreams: dict[str, Part] = {}
    for own, *said in answers:
        workers.append(own)
        for part in said:
            _add(upstreams, part, own["slot"])
    workers.sort(key=_by_slot)
    for told in upstreams.values():
        endpoints = told["endpoints"]
        told["endpoints"] = [_settled(endpoints.pop(address)) for address in in_order(endpoints, lambda: None)]
    return {"workers": workers, "upstreams": dict(sorted(upstreams.items()))}


def _by_slot(one: Part) -> tuple[bool, Any]:
    return isinstance(one["slot"], str), one["slot"]


def _add(upstreams: dict[str, Part], part: Part, slot: int | str) -> None:
    told = upstreams.get(part["upstream"])
    if told is None:
        told = upstreams[part["upstream"]] = {
            "source": part["source"],
            "waiting": [],
            "discovery": [],
            "breaker": [],
            "panic": [],
            "gate": [],
            "decisions": Counter(),
            "endpoints": {},
        }
    if "source" in part:
        _add_head(told, part, slot)
    for address, weight, in_flight, state, why, since in part["endpoints"]:
        # Fewer workers than there are: they do not agree, or not yet.
        fresh = {"address": address, "weight": weight, "in_flight": 0, "workers": 0, "states": []}
        endpoint = told["endpoints"].setdefault(address, fresh)
        endpoint["workers"] += 1
        endpoint["in_flight"] += in_flight
        endpoint["states"].append({"slot": slot, "state": state, "why": why, "since": since})


def _add_head(told: Part, part: Part, slot: int | str) -> None:
    """What the first part of an upstream says of it besides its endpoints."""
    if part["waiting"]:
        told["waiting"].append(slot)
    if "discovery" in part:
        told["discovery"].append({"slot": slot, **part["discovery"]})
    if part["breaker"] is not None:
        told["breaker"].append({"slot": slot, "state": part["breaker"]})
    if part["panic"]:
        told["panic"].append(slot)
    told["gate"].append({"slot": slot, **part["gate"]})
    told["decisions"].update(part["decisions"])


def _settled(endpoint: Part) -> Part:
    """An endpoint in the worst state that a worker has it in, as the first of those has it; all of
    them where they are not of one mind."""
    states = sorted(endpoint.pop("states"), key=_by_slot)
    worst = max(states, key=lambda one: STATES.index(one["state"]))
    endpoint |= {key: worst[key] for key in ("state", "why", "since")}
    if any(one["state"] != worst["state"] for one in states):
        endpoint["states"] = states
    return endpoint
