"""What is known of endpoints and upstreams, kept from one snapshot to the next.

Rule: it hangs on (upstream, scheme, host, port, base path), never on weight, so that a
re-weighting or a reload forgets nothing. What no snapshot names any more is forgotten once
its last request has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.model import Endpoint

if TYPE_CHECKING:
    from gateway.balancers import Balancer
    from gateway.retry import Budget


class EndpointState:
    """What is learnt about one endpoint of one upstream. `in_flight`: requests whose answer's
    body has not ended. `credit`: its place among weighted ones (balancers.round_robin); None
    for a newcomer."""

    __slots__ = ("credit", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self.credit: float | None = None

    def leave(self) -> None:
        """A request has ended."""
        self.in_flight -= 1


class Candidate:
    """An endpoint in one snapshot, with what is known of it and the way to reach it.

    `pool` is the transport's; whatever it is, only the forwarder calls it. Where `make` is
    given, it is made when it is first looked at: of thousands of endpoints most never get a
    request in one worker.
    """

    __slots__ = ("_make", "endpoint", "pool", "state")
    pool: Any

    def __init__(
        self, endpoint: Endpoint, state: EndpointState, pool: Any = None, make: Callable[[], Any] | None = None
    ) -> None:
        self.endpoint = endpoint
        self.state = state
        self._make = make
        if make is None:
            self.pool = pool

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there: the pool, once.
        if name != "pool" or self._make is None:
            raise AttributeError(name)
        self.pool = self._make()
        return self.pool


@dataclass(slots=True, eq=False)
class UpstreamState:
    """What one upstream keeps across snapshots."""

    balancer: Balancer
    budget: Budget
    endpoints: dict[tuple[str, str, int, bytes], EndpointState]

    def endpoint(self, endpoint: Endpoint) -> EndpointState:
        return self.endpoints.setdefault(endpoint.key, EndpointState())

    def forget(self, keep: set[tuple[str, str, int, bytes]]) -> None:
        """Drop what is known of endpoints that are gone and have no request left."""
        for key, state in list(self.endpoints.items()):
            if key not in keep and state.in_flight == 0:
                del self.endpoints[key]
