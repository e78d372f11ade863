"""What the admin listener reads of a gateway, so that it need not know the class that puts everything together.

Rule: only what `door`, `status` and `gauges` use. All of it is read; nothing is changed by way of it.
"""

from __future__ import annotations

from typing import Protocol

from gateway.buffers.memory import Buffers
from gateway.config.watch import ConfigStatus
from gateway.health.overload import Overload
from gateway.http.messages import Request, Response
from gateway.runtime.background import Background
from gateway.upstreams.store import Store


class Checking(Protocol):
    """The prober of a worker. `checking`: this worker is the one that probes endpoints."""

    @property
    def checking(self) -> bool: ...


class Observed(Protocol):
    """A gateway in one worker process."""

    background: Background
    buffers: Buffers
    draining: bool
    name_in_via: str
    overload: Overload
    store: Store

    @property
    def config_status(self) -> ConfigStatus: ...

    @property
    def prober(self) -> Checking: ...

    def access_log_losses(self) -> tuple[int, int]:
        """Records dropped and lines lost."""
        ...

    def health(self, request: Request, name: bytes) -> Response:
        """The answer of `healthz` or `readyz`."""
        ...

    def identify(self, request: Request) -> None:
        """Give a request its id and the client's address."""
        ...

    def in_flight(self) -> int:
        """Requests that upstreams have."""
        ...
