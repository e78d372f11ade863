"""Endpoints that the file names: looked up in the background, a literal address as it is.

Rule: `expand` puts what is known of the names into the list of the file; a name that has
never been answered is simply not there yet, and as long as none has and no endpoint is a
literal, the look-up as a whole has failed.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

from gateway.model import DiscoverySettings, Endpoint, StaticSource, Upstream
from gateway.net.ip import networks
from gateway.providers.addresses import allowed, host
from gateway.providers.base import Emit, Journal, Status, Stop, Update, until_set
from gateway.providers.names import Names, expand, is_name
from gateway.providers.names import make as make_names
from gateway.registries.dns import LEAST_TTL
from gateway.registries.pacing import Backoff, Clock, Random, spread

# With its jitter under the 30 s that an answer may be kept.
INTERVAL = 27.0


class StaticProvider:
    """The endpoints of one upstream in the file, at least one of which is a name."""

    def __init__(
        self,
        upstream: Upstream,
        endpoints: tuple[Endpoint, ...],
        settings: DiscoverySettings,
        names: Names,
        clock: Clock,
        random: Random,
    ) -> None:
        self.upstream = upstream.name
        self._endpoints = endpoints
        self._deny = networks(settings.deny)
        self._names = names
        self._interval = min(INTERVAL, names.interval)
        self._clock = clock
        self._random = random
        self._journal = Journal(upstream, clock)
        self._backoff = Backoff(random)

    @property
    def status(self) -> Status:
        return self._journal.status

    def run(self, emit: Emit, stop: Stop) -> None:
        try:
            with until_set(stop):
                while not stop.is_set():
                    emit(self._round())
                    stop.wait(self._pause())
        finally:
            self._names.close()

    def _round(self) -> Update:
        errors = self._names.refresh(e.host for e in self._endpoints if is_name(e))
        error = "; ".join(errors)
        if error:
            self._journal.failure(error)
        else:
            self._backoff.succeeded()
            self._journal.success()
        found = expand(self._endpoints, self._names.addresses)
        if error and not found:
            return Update(self.upstream, None, error)
        endpoints, refused = allowed(found, self._deny)
        self._journal.refused(refused)
        return Update(self.upstream, endpoints, error, () if endpoints else refused)

    def _pause(self) -> float:
        if self._names.paced:
            return max(LEAST_TTL, self._names.due - self._clock())
        if not self.status.last_error:
            return spread(self._interval, self._random)
        return min(spread(self._interval, self._random), self._backoff.failed())


def make(
    upstream: Upstream,
    source: StaticSource,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> StaticProvider | None:
    """None when every endpoint is a literal address: nothing has to run then."""
    literal = source.literal if source.literal is not None else not any(map(is_name, source.endpoints))
    if literal:
        return None
    endpoints = source.endpoints
    spelt = tuple(replace(e, host=host(e.host) or e.host) for e in endpoints)
    return StaticProvider(upstream, spelt, settings, make_names(settings.dns, clock, random), clock, random)
