"""Endpoints that SRV records name (RFC 2782), asked for again when they are old.

Rule: "there is none" empties the group, a failure never does: the records and each target's
addresses stay as they last were, on their own. Only the best priority that has a usable
endpoint gets requests. What is kept, and for how long, is what the records' TTLs say, within
`LEAST_TTL` and `discovery.dns.ttl`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from gateway.model import DiscoverySettings, DnsSrvSource, Endpoint, Upstream
from gateway.net.ip import Network, networks
from gateway.providers.addresses import allowed, host
from gateway.providers.base import Emit, Journal, Status, Stop, Update, one_line, until_set
from gateway.providers.locality import dns_is_here, foreign_loopback
from gateway.providers.names import Names, expand, is_name
from gateway.registries import RegistryError
from gateway.registries.dns import LEAST_TTL, Addresses, Service, Srv, shared
from gateway.registries.pacing import JITTER, Backoff, Clock, Random, spread
from gateway.runtime.hub import breathe

# -- records --------------------------------------------------------------------------


def levels(records: Iterable[Srv], upstream: Upstream) -> tuple[list[tuple[Endpoint, ...]], tuple[str, ...]]:
    """The endpoints of each priority, the best first, hosts still by name; and why records
    cannot be endpoints."""
    usable: list[Srv] = []
    bad: list[str] = []
    for record in sorted(records):
        trouble = _trouble(record)
        if trouble:
            bad.append(trouble)
        else:
            usable.append(record)
    return [_level(list(level), upstream) for _, level in groupby(usable, lambda record: record.priority)], tuple(bad)


def _trouble(record: Srv) -> str:
    if record.port == 0:
        return one_line(f"target {record.target!r}: port 0")
    return "" if host(record.target) else one_line(f"target {record.target!r}: no name of a host")


def _level(records: list[Srv], upstream: Upstream) -> tuple[Endpoint, ...]:
    ordered = sorted(records, key=lambda record: (record.target, record.port))
    return tuple(
        _endpoint(record, weight, upstream) for record, weight in zip(ordered, weights(ordered), strict=True)
    )


def weights(records: list[Srv]) -> list[int]:
    """Shares of one priority that give each record the chance that RFC 2782's selection gives
    it: its weight of the sum + 1, where that 1 is for those of weight 0 together."""
    idle = sum(record.weight == 0 for record in records)
    if idle in (0, len(records)):
        return [max(1, record.weight) for record in records]
    return [record.weight * idle if record.weight else 1 for record in records]


def _endpoint(record: Srv, weight: int, upstream: Upstream) -> Endpoint:
    place = host(record.target) or ""
    name = upstream.tls.server_name if upstream.tls else None
    return Endpoint(
        scheme=upstream.scheme,
        host=place,
        port=record.port,
        weight=weight,
        authority=f"[{place}]:{record.port}".encode() if ":" in place else f"{place}:{record.port}".encode(),
        server_name=name or (place if upstream.scheme == "https" else None),
    )


def merged(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """One endpoint for each address and port, whatever number of records lead there, with the
    weight of all of them; weights as small as they can be."""
    found: dict[tuple[str, str, int, bytes], Endpoint] = {}
    for endpoint in endpoints:
        same = found.get(endpoint.key)
        found[endpoint.key] = endpoint if same is None else replace(same, weight=same.weight + endpoint.weight)
    common = math.gcd(*(endpoint.weight for endpoint in found.values())) or 1
    return tuple(replace(endpoint, weight=endpoint.weight // common) for endpoint in found.values())


def best(
    groups: Iterable[tuple[Endpoint, ...]], addresses: Callable[[str], tuple[str, ...]], deny: tuple[Network, ...]
) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """The endpoints of the first priority that has one which may be dialled, and why others,
    up to there, may not."""
    refused: list[str] = []
    for group in groups:
        endpoints, reasons = allowed(expand(group, addresses), deny)
        refused += reasons
        if endpoints:
            return merged(endpoints), tuple(refused)
    return (), tuple(refused)


# -- the loop -------------------------------------------------------------------------


class Dns(Protocol):
    """What is asked; `registries.dns.DnsApi` is one."""

    def srv(self, name: str) -> Service: ...

    def addresses(self, name: str) -> Addresses: ...


class DnsSrvProvider:
    """The targets of one service's SRV records."""

    def __init__(
        self,
        upstream: Upstream,
        name: str,
        dns: Dns,
        settings: DiscoverySettings,
        clock: Clock,
        random: Random,
    ) -> None:
        self.upstream = upstream.name
        self._of = upstream
        self._name = name
        self._dns = dns
        self._deny = networks(settings.deny)
        self._settings = settings.dns
        self._longest = settings.dns.ttl
        self._names = Names(dns.addresses, clock, random, self._longest)
        self._clock = clock
        self._random = random
        self._journal = Journal(upstream, clock)
        self._backoff = Backoff(random)
        self._service: Service | None = None
        self._error = ""
        self._due = -math.inf

    @property
    def status(self) -> Status:
        return self._journal.status

    def run(self, emit: Emit, stop: Stop) -> None:
        try:
            with until_set(stop):
                while not stop.is_set():
                    emit(self._round())
                    stop.wait(max(LEAST_TTL, min(self._due, self._names.due) - self._clock()))
        finally:
            self._names.close()

    def _round(self) -> Update:
        try:
            return self._look()
        except Exception as error:
            # A look-up that dies is worse than whatever this was: it would never be noticed.
            told = self._journal.fault(error)
            self._due = self._clock() + self._backoff.failed()
            self._journal.failure(told)
            return Update(self.upstream, None, told)

    def _look(self) -> Update:
        # Rounds are never closer than the least TTL: what is due before the next one is due now.
        told = self._records() if self._due <= self._clock() + LEAST_TTL else None
        service = self._service
        if service is None:
            self._journal.failure(self._error)
            return Update(self.upstream, None, self._error)
        groups, bad = levels(service.records, self._of)
        named = (endpoint.host for group in groups for endpoint in group if is_name(endpoint))
        errors = self._names.refresh(named, told, self._due)
        # A service of a thousand targets is worked through in parts, with others in between.
        breathe()
        endpoints, refused = best(groups, self._names.addresses, self._deny)
        self._journal.refused((*bad, *refused))
        self._journal.doubtful(foreign_loopback(endpoints, lambda: dns_is_here(self._settings)))
        error = "; ".join(filter(None, (self._error, *errors)))
        if error:
            self._journal.failure(error)
        else:
            self._journal.success()
        if errors and not endpoints:
            # Records whose targets cannot be looked up are no empty group: what was known stays.
            return Update(self.upstream, None, error)
        return Update(self.upstream, endpoints, error, () if endpoints else refused)

    def _records(self) -> dict[str, tuple[str, ...]]:
        """Ask for the records; the addresses that came along. A failure leaves them as they are."""
        try:
            service = self._dns.srv(self._name)
        except RegistryError as error:
            self._error = str(error)
            self._due = min(self._until(self._longest), self._clock() + self._backoff.failed())
            return {}
        self._service = service
        self._error = ""
        self._backoff.succeeded()
        self._due = self._until(service.ttl)
        return dict(service.addresses)

    def _until(self, ttl: float) -> float:
        """When an answer is old; a little early, so that workers drift apart."""
        return self._clock() + max(LEAST_TTL, spread(ttl / (1 + JITTER), self._random))


def make(
    upstream: Upstream,
    source: DnsSrvSource,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> DnsSrvProvider:
    return DnsSrvProvider(upstream, source.name, shared(settings.dns), settings, clock, random)
