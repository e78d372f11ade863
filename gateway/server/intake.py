"""How many client connections one kind of listener has, and which is closed for a new one.

Rule: at `limits.connections` a newcomer takes the place of a connection that does nothing:
first one that never sent a byte (for SILENT_LONG_ENOUGH), then one that only lingers after its
last answer, then the one that has been idle longest, if for IDLE_LONG_ENOUGH. A connection inside a head, a body or
an answer and a tunnel keep their place. If there is none to close, accepting stops until there
is: other workers and the kernel's queue take over.

Everything is O(1): each kind is a dict in order of age, so an attacker who fills the limit
makes accepting no slower.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Protocol

# An idle connection this young probably has its next request on the way, a new one its first byte.
IDLE_LONG_ENOUGH = 1.0
SILENT_LONG_ENOUGH = 0.1
# Candidates of one kind that are looked at for one newcomer: each one before it was just written to.
_LOOKED_AT = 8
# Two connections of one IPv6 /64 are one client's (RFC 6177 §2: the least that a site gets).
_CLIENT_BITS = 64


class Closable(Protocol):
    """A connection that may be closed for another one."""

    # Monotonic seconds since when it has been idle; None: it is not.
    idle_since: float | None

    def make_room(self) -> bool:
        """Close it; False, and nothing happens, when it is not idle any more."""
        ...


class Places:
    """The connections that may be closed, by kind, the oldest first; and how many were.

    `silent`: not one byte came. `lingering`: the last answer is out, and the rest of a request is
    read and dropped. `idle`: between two requests. `closed` counts by kind, and `per_client` those
    refused for `limits.connections_per_client`, `full` how often accepting stopped.
    """

    __slots__ = ("closed", "idle", "lingering", "silent")

    def __init__(self) -> None:
        self.silent: dict[Closable, None] = {}
        self.lingering: dict[Closable, None] = {}
        self.idle: dict[Closable, None] = {}
        self.closed: Counter[str] = Counter(silent=0, lingering=0, idle=0, per_client=0, full=0)

    def may_make_room(self, now: float) -> bool:
        """Whether there is one to close; it may turn out to be busy."""
        return (
            bool(self.lingering)
            or _has(self.silent, now, SILENT_LONG_ENOUGH)
            or _has(self.idle, now, IDLE_LONG_ENOUGH)
        )

    def make_room(self, now: float) -> bool:
        """Close one connection; False when none may be."""
        return (
            (_has(self.silent, now, SILENT_LONG_ENOUGH) and self._close(self.silent, "silent"))
            or self._close(self.lingering, "lingering")
            or (_has(self.idle, now, IDLE_LONG_ENOUGH) and self._close(self.idle, "idle"))
        )

    def _close(self, kind: dict[Closable, None], name: str) -> bool:
        for _ in range(_LOOKED_AT):
            oldest = next(iter(kind), None)
            if oldest is None:
                return False
            del kind[oldest]
            if oldest.make_room():
                self.closed[name] += 1
                return True
        return False


class Intake:
    """The connections of the data listeners, or of the admin listener.

    `most`, `per_client`: how many there may be, in all and of one client address (0: no limit).
    `exempt`: whether an address may have more of them (a trusted proxy).
    """

    def __init__(
        self, places: Places, most: float, per_client: int = 0, exempt: Callable[[str], bool] = lambda peer: False
    ) -> None:
        self.places = places
        self.most = most
        self.open = 0
        # Closed for another one, but their greenlets have not ended yet.
        self._ending = 0
        self._per_client = per_client
        self._exempt = exempt
        self._by_client: dict[str, int] = {}
        self._starts: list[Callable[[], None]] = []

    def listen(self, start: Callable[[], None]) -> None:
        """`start` makes a listener accept again; harmless when it does."""
        self._starts.append(start)

    def start(self) -> None:
        for start in self._starts:
            start()

    def room(self) -> bool:
        """Whether one more may be accepted. Closes nothing: perhaps there is none to accept."""
        if self.open - self._ending < self.most or self.places.may_make_room(monotonic()):
            return True
        self.places.closed["full"] += 1
        return False

    def admit(self, peer: str) -> str | None:
        """Count a new connection, and close another one for it if there are too many; None when its client
        has too many. Else the word to give to `ended`.

        If every candidate has just become busy, there is one more than `most` until one ends.
        """
        client = ""
        if self._per_client and peer and not self._exempt(peer):
            client = _client(peer)
            number = self._by_client.get(client, 0)
            if number >= self._per_client:
                self.places.closed["per_client"] += 1
                return None
            self._by_client[client] = number + 1
        if self.open - self._ending >= self.most and self.places.make_room(monotonic()):
            self._ending += 1
        self.open += 1
        return client

    def ended(self, client: str, for_another: bool) -> None:
        """A connection is over. `for_another`: it was closed to make room."""
        self.open -= 1
        if for_another:
            self._ending -= 1
        if client:
            left = self._by_client[client] - 1
            if left:
                self._by_client[client] = left
            else:
                del self._by_client[client]
        if self.open - self._ending == self.most - 1:
            self.start()


def _has(kind: dict[Closable, None], now: float, long_enough: float) -> bool:
    """Whether the oldest of a kind has been idle for so many seconds."""
    oldest = next(iter(kind), None)
    since = None if oldest is None else oldest.idle_since
    return since is not None and now - since >= long_enough


def _client(peer: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one."""
    if ":" not in peer:
        return peer
    address = ipaddress.IPv6Address(peer.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - _CLIENT_BITS):x}"
