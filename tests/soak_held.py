"""The gateway of the reload soak: one view more, which says what this worker holds.

Rule: objects are found by their type among all that live, so that what no snapshot names any more counts as well.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gevent import Greenlet

from gateway.app import Gateway, create_app
from gateway.health.candidate import EndpointState
from gateway.health.gate import Gate
from gateway.server.connection import Connection
from gateway.transport.pool import EndpointPool
from gateway.upstreams.state import UpstreamState


def app() -> Gateway:
    made = create_app()

    @made.get("/soak/held")
    def held() -> dict[str, Any]:
        return _held(made)

    return made


def _held(gateway: Gateway) -> dict[str, Any]:
    # The shipped settings freeze what a worker was started with, which hides it from `get_objects`.
    gc.unfreeze()
    gc.collect()
    things = gc.get_objects()
    gates = [thing for thing in things if type(thing) is Gate]
    states = [thing for thing in things if type(thing) is UpstreamState]
    endpoints = [thing for thing in things if type(thing) is EndpointState]
    pools = [thing for thing in things if isinstance(thing, EndpointPool)]
    decisions: Counter[str] = Counter()
    for state in states:
        decisions.update(state.decisions)
    status = gateway.config_status
    return {
        "pid": os.getpid(),
        "version": gateway.store.current.version,
        "status_version": status.version,
        "status_error": status.error,
        "in_flight": gateway.in_flight(),
        "gates": sum(gate.in_flight for gate in gates),
        "queued": sum(gate.queued for gate in gates),
        "endpoints": sum(endpoint.in_flight for endpoint in endpoints),
        "upstream_connections": sum(pool.open for pool in pools),
        "left_states": len(states) - len(gateway.store.current.groups),
        "greenlets": sum(1 for thing in things if isinstance(thing, Greenlet) and not thing.dead),
        "client_connections": sum(1 for thing in things if type(thing) is Connection),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "resident": int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024,
        "blocks": sys.getallocatedblocks(),
        "hedged": decisions["hedged"],
        "hedge_won": decisions["hedge_won"],
    }
