"""Names among endpoints: looked up off the hub, each address one endpoint, the weight shared.

Rule: a name that cannot be looked up keeps the addresses that it last had. The system's
look-up runs on one of a few threads that all upstreams of the process share, at most one a name at any
time; waiting for it is bounded, and one that is slower than that is not asked again but collected in a
later round, so that no name holds up the others. DNS servers that the configuration names are asked by us, and
say how long an answer is good.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import gevent
from gevent import monkey
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from gateway.model import DnsSettings, Endpoint
from gateway.net.ip import address
from gateway.registries import RegistryError
from gateway.registries.dns import LEAST_TTL, Addresses, shared
from gateway.registries.pacing import JITTER, Backoff, Clock, Random, spread

# An answer is kept for 30 s at most (what interface.md promises): it is asked again in the
# first round after this, and rounds are never more than 10 s apart.
FRESH = 20.0
# With a shorter `discovery.dns.ttl`, rounds are that much closer, and an answer is good for this share of it.
FRESH_SHARE = FRESH / 30.0
# How long a round waits for look-ups; glibc itself may take 5 s for each server it tries.
PATIENCE = 2.0
# How long a round waits for all of its names: a little longer, so that a look-up that gives up says why.
ROUND = PATIENCE + 0.5
# Threads for look-ups in one process, whatever the number of upstreams.
THREADS = 16

_getaddrinfo = monkey.get_original("socket", "getaddrinfo")


class LookupFailed(Exception):
    """A name has no addresses, or they could not be had in time."""


@dataclass(slots=True, eq=False)
class _Lookup:
    """A look-up on a thread. `ended`: when it finished, in monotonic seconds; infinity until then."""

    result: AsyncResult
    clock: Clock
    ended: float = math.inf

    def end(self, result: AsyncResult) -> None:
        self.ended = self.clock()


class Threads:
    """getaddrinfo on threads that nothing else uses: gevent's own ten, which every other
    look-up and file of the process shares, can all be taken by one dead DNS server.

    Greenlets that look up the same name at the same time share one look-up."""

    def __init__(self, most: int = THREADS, clock: Clock = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._pool: ThreadPool | None = None
        self._running: dict[str, _Lookup] = {}

    def __call__(self, name: str) -> tuple[str, ...]:
        # Starting waits, too, when every thread is taken.
        patience = gevent.Timeout(PATIENCE)
        lookup: _Lookup | None = None
        try:
            with patience:
                lookup = self._lookup(name)
                found = lookup.result.get()
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            raise LookupFailed(f"{name}: no answer in {PATIENCE:g} s") from None
        except (OSError, ValueError) as error:
            self._collected(name, lookup)
            raise LookupFailed(f"{name}: {error}") from error
        self._collected(name, lookup)
        # One address comes once for each of its entries in a hosts file.
        return tuple(sorted({info[4][0] for info in found}))

    def _collected(self, name: str, lookup: _Lookup | None) -> None:
        """Forget a finished look-up, unless another waiter has already started a newer one."""
        if lookup is not None and self._running.get(name) is lookup:
            del self._running[name]

    def _lookup(self, name: str) -> _Lookup:
        running = self._running.get(name)
        # An old result can remain if its upstream was removed before it was collected.
        if running is None or self._clock() - running.ended > FRESH:
            running = self._running[name] = _Lookup(self._start(name), self._clock)
            running.result.rawlink(running.end)
        return running

    def _start(self, name: str) -> AsyncResult:
        # Made on first use: threads do not survive the fork of a worker.
        if self._pool is None:
            self._pool = ThreadPool(self._most)
        # A name in bytes keeps the IDNA codec, and the import of it, off the thread.
        # AI_ADDRCONFIG: no IPv6 addresses where there is no IPv6, as every browser does.
        flags = socket.AI_ADDRCONFIG
        return self._pool.spawn(_getaddrinfo, name.encode("idna"), None, 0, socket.SOCK_STREAM, 0, flags)


# Shared by all upstreams of the process. The threads start on first use.
_threads = Threads()

# What a look-up says: addresses, with the time that they are good for where that is known.
LookUp = Callable[[str], Addresses | tuple[str, ...]]


@dataclass(slots=True)
class _Known:
    """`asking`: the look-up that is under way."""

    backoff: Backoff | None
    asking: gevent.Greenlet | None = None
    addresses: tuple[str, ...] = ()
    due: float = -math.inf
    error: str = ""


class Names:
    """The addresses of some names, as fresh as was said of them (`FRESH` where nothing was) and
    as old as they must be.

    With `random` the names have a pace of their own, which `due` tells: an answer's TTL, and
    after a failure 1 s to 30 s, or `longest`: servers that are back are seen as soon as a change
    would be. Without it a name that failed is asked for in the next round. `longest`: seconds that an answer is kept
    at most; `interval` is how often names without a pace are to be looked at for that.
    """

    def __init__(
        self, look_up: LookUp, clock: Clock, random: Random | None = None, longest: float = math.inf
    ) -> None:
        self._look_up = look_up
        self._clock = clock
        self._random = random
        self._longest = longest
        self._known: dict[str, _Known] = {}

    @property
    def paced(self) -> bool:
        return self._random is not None

    @property
    def interval(self) -> float:
        """Seconds between two rounds, however these are spread."""
        return self._longest / (1 + JITTER)

    def refresh(
        self, names: Iterable[str], told: Mapping[str, tuple[str, ...]] | None = None, until: float = -math.inf
    ) -> tuple[str, ...]:
        """Ask for what is due, all at once; returns an error for each name that failed or takes longer than `ROUND`,
        whose answer is for a later round.

        `told`: addresses that came along with another answer, and are good `until` then.
        Names that are not wanted any more are forgotten.
        """
        before = self._known
        self._known = {name: before.get(name) or _Known(self._backoff()) for name in names}
        _end(before[name] for name in before.keys() - self._known.keys())
        told = told or {}
        for name in self._known.keys() & told.keys():
            self._keep(self._known[name], told[name], until)
        # Rounds are never closer than the least TTL: what is due before the next one is due now.
        now = self._clock() + (LEAST_TTL if self.paced else 0.0)
        asking = []
        for name, known in self._known.items():
            if known.due <= now and name not in told and known.asking is None:
                known.asking = gevent.spawn(self._ask, name, known)
                asking.append(known.asking)
        gevent.joinall(asking, timeout=ROUND, raise_error=True)
        return tuple(error for name, known in self._known.items() if (error := self._trouble(name, known)))

    def close(self) -> None:
        """End the look-ups that are under way."""
        _end(self._known.values())

    @staticmethod
    def _trouble(name: str, known: _Known) -> str:
        if known.error or known.asking is None:
            return known.error
        return f"{name}: no answer in {PATIENCE:g} s"

    @property
    def due(self) -> float:
        """When the next name is to be asked for, by the clock."""
        soon = self._clock() + LEAST_TTL
        return min((soon if known.asking else known.due for known in self._known.values()), default=math.inf)

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known of a name; empty when it was never answered."""
        known = self._known.get(name)
        return known.addresses if known else ()

    def _ask(self, name: str, known: _Known) -> None:
        try:
            self._look(name, known)
        finally:
            known.asking = None

    def _look(self, name: str, known: _Known) -> None:
        try:
            found = self._look_up(name)
        except (LookupFailed, RegistryError) as error:
            known.error = str(error)
            pause = known.backoff.failed() if known.backoff else 0.0
            known.due = min(self._until(self._longest), self._clock() + pause)
            return
        if isinstance(found, Addresses):
            hosts = sorted({*found.hosts, *_of_version(known.addresses, found.unknown)})
            self._keep(known, tuple(hosts), self._until(found.ttl))
        else:
            self._keep(known, found, self._clock() + min(FRESH, self._longest * FRESH_SHARE))

    @staticmethod
    def _keep(known: _Known, addresses: tuple[str, ...], until: float) -> None:
        known.addresses, known.due, known.error = addresses, until, ""
        if known.backoff:
            known.backoff.succeeded()

    def _until(self, ttl: float) -> float:
        """When an answer is old; a little early, so that workers drift apart."""
        early = spread(ttl / (1 + JITTER), self._random) if self._random else ttl
        return self._clock() + max(LEAST_TTL, early)

    def _backoff(self) -> Backoff | None:
        return Backoff(self._random) if self._random else None


def make(settings: DnsSettings, clock: Clock, random: Random) -> Names:
    """Names that are looked up as the configuration says."""
    if settings.servers:
        return Names(shared(settings).addresses, clock, random, settings.ttl)
    return Names(_threads, clock, longest=settings.ttl)


def _end(names: Iterable[_Known]) -> None:
    for known in names:
        if known.asking is not None:
            known.asking.kill(block=False)


def _of_version(addresses: Iterable[str], version: int | None) -> tuple[str, ...]:
    """Those of one version of IP; none when there is no version."""
    return tuple(host for host in addresses if version == (6 if ":" in host else 4))


def is_name(endpoint: Endpoint) -> bool:
    return address(endpoint.host) is None


def expand(endpoints: Iterable[Endpoint], addresses: Callable[[str], tuple[str, ...]]) -> tuple[Endpoint, ...]:
    """Every name replaced by its addresses, sharing its weight; the others as they are.

    Weights are whole numbers, so all of them are multiplied by what makes every share whole.
    A name without addresses is left out: its share goes to the others.
    """
    groups: list[tuple[Endpoint, tuple[str, ...]]] = []
    for endpoint in endpoints:
        found = addresses(endpoint.host) if is_name(endpoint) else (endpoint.host,)
        if found:
            groups.append((endpoint, found))
    factor = math.lcm(*(len(found) for _, found in groups))
    if factor == 1:
        return tuple(_at(endpoint, found[0], endpoint.weight) for endpoint, found in groups)
    shares = [endpoint.weight * factor // len(found) for endpoint, found in groups]
    common = math.gcd(*shares) or 1
    return tuple(
        _at(endpoint, host, share // common)
        for (endpoint, found), share in zip(groups, shares, strict=True)
        for host in found
    )


def _at(endpoint: Endpoint, host: str, weight: int) -> Endpoint:
    """An endpoint at an address; the name stays what TLS verifies."""
    if host == endpoint.host:
        return endpoint if weight == endpoint.weight else replace(endpoint, weight=weight)
    server_name = endpoint.server_name
    if server_name is None and endpoint.scheme == "https":
        server_name = endpoint.host
    return replace(endpoint, host=host, weight=weight, server_name=server_name)
