"""Names among endpoints: looked up off the hub, each address one endpoint, the weight shared.

Rule: a name that cannot be looked up keeps the addresses that it last had. A look-up runs on
a thread of its own, at most one a name at any time; waiting for it is bounded, and one that
is slower than that is not asked again but collected in a later round.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import gevent
from gevent import monkey
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from gateway.model import Endpoint
from gateway.providers.addresses import address
from gateway.providers.base import Clock

# An answer is kept for 30 s at most (what interface.md promises): it is asked again in the
# first round after this, and rounds are never more than 10 s apart.
FRESH = 20.0
# How long a round waits for look-ups; glibc itself may take 5 s for each server it tries.
PATIENCE = 2.0

_getaddrinfo = monkey.get_original("socket", "getaddrinfo")


class LookupFailed(Exception):
    """A name has no addresses, or they could not be had in time."""


class Threads:
    """getaddrinfo on threads that nothing else uses: gevent's own ten, which every other
    look-up and file of the process shares, can all be taken by one dead DNS server."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._pool: ThreadPool | None = None
        self._running: dict[str, AsyncResult] = {}

    def __call__(self, name: str) -> tuple[str, ...]:
        # Starting waits, too, when every thread is taken.
        patience = gevent.Timeout(PATIENCE)
        try:
            with patience:
                found = self._lookup(name).get()
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            raise LookupFailed(f"{name}: no answer in {PATIENCE:g} s") from None
        except (OSError, ValueError) as error:
            self._running.pop(name, None)
            raise LookupFailed(f"{name}: {error}") from error
        del self._running[name]
        # One address comes once for each of its entries in a hosts file.
        return tuple(sorted({info[4][0] for info in found}))

    def _lookup(self, name: str) -> AsyncResult:
        running = self._running.get(name)
        if running is None:
            running = self._running[name] = self._start(name)
        return running

    def _start(self, name: str) -> AsyncResult:
        # Made on first use: threads do not survive the fork of a worker.
        if self._pool is None:
            self._pool = ThreadPool(self._most)
        # A name in bytes keeps the IDNA codec, and the import of it, off the thread.
        # AI_ADDRCONFIG: no IPv6 addresses where there is no IPv6, as every browser does.
        flags = socket.AI_ADDRCONFIG
        return self._pool.spawn(_getaddrinfo, name.encode("idna"), None, 0, socket.SOCK_STREAM, 0, flags)


@dataclass(slots=True)
class _Known:
    addresses: tuple[str, ...] = ()
    asked: float = -math.inf
    error: str = ""


class Names:
    """The addresses of some names, as fresh as `FRESH` says and as old as they must be."""

    def __init__(self, look_up: Callable[[str], tuple[str, ...]], clock: Clock) -> None:
        self._look_up = look_up
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def refresh(self, names: Iterable[str]) -> tuple[str, ...]:
        """Ask for what is not fresh, all at once; returns an error for each name that failed.

        Names that are not wanted any more are forgotten.
        """
        self._known = {name: self._known.get(name) or _Known() for name in names}
        due = [name for name, known in self._known.items() if known.asked + FRESH <= self._clock()]
        gevent.joinall([gevent.spawn(self._ask, name) for name in due], raise_error=True)
        return tuple(known.error for known in self._known.values() if known.error)

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known of a name; empty when it was never answered."""
        known = self._known.get(name)
        return known.addresses if known else ()

    def _ask(self, name: str) -> None:
        known = self._known[name]
        try:
            known.addresses = self._look_up(name)
        except LookupFailed as error:
            known.error = str(error)
            return
        known.error = ""
        known.asked = self._clock()


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
