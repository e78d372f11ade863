"""Endpoints that Consul's health API reports as passing, watched with blocking queries.

Rule: an answer counts only when it is Consul's and whole. Whatever else happens (refused,
late, 500, 403, a login page, half a list) is an error, and an error is not an update. An
empty list is doubted when the registry has just been away or has lost its memory, because
on its return every service is critical or unknown for a while: `Belief` says for how long.

The registry is asked to answer when something changed, or after `poll` seconds. One that
does not wait, or gives nothing to wait with, is asked every `poll` seconds.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from gateway.model import ConsulSource, DiscoverySettings, Endpoint, Upstream
from gateway.net.ip import networks
from gateway.net.machine import has_all
from gateway.providers.addresses import allowed, host
from gateway.providers.base import Emit, Journal, Status, Stop, Update, one_line, until_set
from gateway.providers.locality import foreign_loopback
from gateway.providers.names import Names, expand, is_name
from gateway.providers.names import make as make_names
from gateway.registries import RefusedError, RegistryError
from gateway.registries.consul import Answer, ConsulApi
from gateway.registries.dns import LEAST_TTL
from gateway.registries.json_pieces import Body, parts
from gateway.registries.pacing import JITTER, QUESTIONS_A_SECOND, Backoff, Clock, Random, TokenBucket, spread
from gateway.runtime import garbage, hub
from gateway.runtime.hub import Slices

# An empty answer after a failure is doubted for so many polls, and so many seconds at least: checks need their first
# interval (10 s are usual) before anything passes, however short `poll` is.
DOUBTED = 3
LEAST_DOUBT = 15.0
# Names among the addresses are looked up after an answer when they are due, and no answer
# tells when they change: nothing is waited for longer than this, or than they are good.
NAMES_WAIT = 10.0
# An agent takes no more; the catalogue takes any number, and balancers reckon with floats.
MOST_WEIGHT = 65535


# -- decoding -------------------------------------------------------------------------


class _BadEntryError(Exception):
    """An entry of a health answer cannot be an endpoint."""


def decode(
    payload: object,
    upstream: Upstream,
    turn: Callable[[], object] = lambda: None,
    before: Mapping[tuple[str, int], Endpoint] | None = None,
) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """The endpoints of a health answer in a stable order, and why entries were left out.

    One bad entry costs itself only; two entries with one address are one endpoint. `payload`: a
    list, or an iterator of its entries. `turn` is called between two entries. `before`: endpoints
    that were known; what did not change is the same object, so that comparing is quick.
    """
    if not isinstance(payload, list | Iterator):
        raise RegistryError(f"the answer is not a list but: {one_line(payload)}")
    known = before or {}
    found: dict[tuple[str, int], Endpoint] = {}
    reasons: list[str] = []
    for entry in payload:
        turn()
        try:
            endpoint = _endpoint(entry, upstream)
        except _BadEntryError as error:
            reasons.append(str(error))
            continue
        place = (endpoint.host, endpoint.port)
        other = found.get(place)
        if other is None or other.weight < endpoint.weight:
            same = known.get(place)
            found[place] = same if same is not None and same == endpoint else endpoint
    return tuple(found[place] for place in hub.in_order(found, turn)), tuple(reasons)


def _endpoint(entry: object, upstream: Upstream) -> Endpoint:
    service = _object(entry, "Service")
    node = _object(entry, "Node")
    told = service.get("Address") or node.get("Address")
    place = host(told) if isinstance(told, str) else None
    port = service.get("Port")
    if place is None:
        raise _BadEntryError(f"{_name(service, node)}: bad address {one_line(repr(told), 80)}")
    if not _whole(port) or not 0 < port < 65536:
        raise _BadEntryError(f"{_name(service, node)}: bad port {one_line(repr(port), 80)}")
    return Endpoint(
        scheme=upstream.scheme,
        host=place,
        port=port,
        weight=_weight(service),
        authority=f"[{place}]:{port}".encode() if ":" in place else f"{place}:{port}".encode(),
        server_name=upstream.tls.server_name if upstream.tls else None,
    )


def _weight(service: Mapping[str, Any]) -> int:
    """`Weights.Passing`: 0 drains, 1 where nothing sensible is said (Consul's own default)."""
    passing = _object(service, "Weights").get("Passing")
    return min(passing, MOST_WEIGHT) if _whole(passing) and passing >= 0 else 1


def _object(entry: object, key: str) -> Mapping[str, Any]:
    """A member that ought to be an object; an empty one when it is missing or null."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(service: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    return one_line(f"service {service.get('ID')!r} on node {node.get('Node')!r}")


@dataclass(slots=True)
class Belief:
    """Whether an empty answer means that there is no instance, judged by what came before it.

    It is doubted when nothing is to be lost by doubting, that is while instances are known, and
    - the server knows no leader: it may not have read its own log yet;
    - the index went back: the registry counts from 1 again and has forgotten everything. This
      holds until it names an instance;
    - the registry was away until now: then for `patience` seconds.
    """

    patience: float
    index: int | None = None
    some_known: bool = False
    forgot: bool = False
    away: bool = False
    # Since when answers after a failure have been empty.
    since: float | None = None

    def failed(self) -> None:
        """No answer at all."""
        self.away, self.since = True, None

    def doubt(self, answer: Answer, empty: bool, now: float) -> str:
        """Why an empty answer is not to be believed; "" when it is."""
        before = self.index
        if answer.index is not None:
            self.index = answer.index
        if not empty:
            self.some_known, self.forgot, self.away = True, False, False
            return ""
        if not self.some_known:
            return ""
        if before is not None and answer.index is not None and answer.index < before:
            self.forgot = True
        if self.forgot:
            return "an empty answer from a registry that lost its memory"
        if not answer.known_leader:
            return "an empty answer from a server that knows no leader"
        if self.away:
            if self.since is None:
                self.since = now
            if now - self.since < self.patience:
                return "an empty answer from a registry that was away until now"
        self.some_known = self.away = False
        return ""


def following(asked: int | None, got: int | None) -> int | None:
    """The index to wait for next; None: ask without waiting. An index that goes back means that
    the registry counts anew (developer.hashicorp.com/consul/api-docs/features/blocking)."""
    if got is None or (asked is not None and got < asked):
        return None
    return got


# -- the loop -------------------------------------------------------------------------


class Registry(Protocol):
    """What is needed of `ConsulApi`."""

    def passing(self, source: ConsulSource, index: int | None, wait: float) -> Answer: ...

    def close(self) -> None: ...


class ConsulProvider:
    """The passing instances of one service."""

    def __init__(
        self,
        upstream: Upstream,
        source: ConsulSource,
        registry: Registry,
        settings: DiscoverySettings,
        names: Names,
        clock: Clock,
        random: Random,
    ) -> None:
        self.upstream = upstream.name
        self._of = upstream
        self._source = source
        self._registry = registry
        self._address = settings.consul.address
        self._poll = settings.consul.poll
        self._deny = networks(settings.deny)
        self._names = names
        self._clock = clock
        self._random = random
        self._journal = Journal(upstream, clock)
        self._belief = Belief(max(LEAST_DOUBT, DOUBTED * self._poll))
        self._backoff = Backoff(random)
        # Whoever set a shorter poll wants more.
        self._bucket = TokenBucket(clock, max(QUESTIONS_A_SECOND, 1 / self._poll))
        self._index: int | None = None
        self._said: Update | None = None
        # The last answer: its fingerprint, what it said, and why entries were left out.
        self._digest = b""
        self._told: tuple[Endpoint, ...] = ()
        self._bad: tuple[str, ...] = ()
        self._named = False
        self._endpoints: tuple[Endpoint, ...] = ()
        self._refused: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        return self._journal.status

    def remember(self) -> None:
        """Instances are known from before: an empty first answer is doubted like any later one."""
        self._belief.some_known = True

    def run(self, emit: Emit, stop: Stop) -> None:
        # After a restart the store has recorded an error: emit the endpoints again.
        self._said = None
        try:
            with until_set(stop):
                while not stop.is_set():
                    pause = self._round(emit)
                    # The next question counts, whether or not it has to wait anyway.
                    stop.wait(max(pause, self._bucket.take()))
        finally:
            self._names.close()
            self._registry.close()

    def _round(self, emit: Emit) -> float:
        """One question and what follows from it; the pause before the next."""
        began = self._clock()
        asked, wait = self._index, self._wait()
        try:
            answer = self._registry.passing(self._source, asked, wait)
            doubt = self._read(answer)
        except RegistryError as error:
            return self._failed(str(error), emit, refused=isinstance(error, RefusedError))
        except Exception as error:
            # A watch that dies is worse than whatever this was: it would never be noticed.
            return self._failed(self._journal.fault(error), emit, refused=True)
        self._backoff.succeeded()
        if doubt:
            self._journal.failure(doubt)
            self._say(Update(self.upstream, None, doubt), emit)
        else:
            self._journal.success()
            self._say(Update(self.upstream, self._endpoints, refused=self._refused), emit)
        self._index = following(asked, answer.index)
        took = self._clock() - began
        if answer.index is None or (answer.index == asked and took < wait):
            # There is nothing to wait with, or nobody waited.
            return max(0.0, spread(self._poll, self._random) - took)
        return 0.0

    def _wait(self) -> float:
        """How long the registry may take until something changes."""
        if not self._named:
            return self._poll
        fresh = max(LEAST_TTL, self._names.due - self._clock()) if self._names.paced else self._names.interval
        return min(self._poll, fresh, NAMES_WAIT)

    def _failed(self, error: str, emit: Emit, refused: bool) -> float:
        self._belief.failed()
        self._journal.failure(error)
        self._say(Update(self.upstream, None, error), emit)
        # What happened meanwhile is not to be waited for.
        self._index = None
        pause = self._backoff.failed()
        if refused:
            return pause
        # A registry that is away is asked as often as an idle one: its return is seen within
        # one poll, and is no greater load to it than being watched.
        return min(pause, spread(self._poll / (1 + JITTER), self._random))

    def _say(self, update: Update, emit: Emit) -> None:
        if update != self._said:
            emit(update)
            # Set last: if `emit` raises, the update must be emitted again.
            self._said = update

    def _read(self, answer: Answer) -> str:
        """Take what an answer says; returns why it is doubted, "" when it is believed."""
        turn = Slices()
        digest = _fingerprint(answer.body, turn)
        news = digest != self._digest
        if news:
            with garbage.spared():
                self._decode(answer, turn)
        hidden = answer.filtered and not self._told
        doubt = "" if hidden else self._belief.doubt(answer, not self._told, self._clock())
        if news or self._named:
            self._judge(turn)
        # Set last: after an exception the same answer must be decoded again.
        self._digest = digest
        if hidden:
            raise RefusedError("there are instances, but the token may not read them")
        return doubt

    def _decode(self, answer: Answer, turn: Slices) -> None:
        before = {(one.host, one.port): one for one in hub.parts(self._told, turn)}
        self._told, self._bad = decode(answer.payload(turn), self._of, turn, before)
        fresh = [one for one in hub.parts(self._told, turn) if before.get((one.host, one.port)) is not one]
        garbage.settle(len(fresh))
        self._named = any(map(is_name, hub.parts(self._told, turn)))

    def _judge(self, turn: Slices) -> None:
        """From what the registry said to what may be dialled."""
        # An agent may be told a name in the place of an address.
        told = self._told if self._named else ()
        errors = self._names.refresh(e.host for e in hub.parts(told, turn) if is_name(e))
        found = expand(self._told, self._names.addresses) if self._named else self._told
        if errors and not found:
            raise RegistryError("; ".join(errors))
        self._endpoints, refused = allowed(hub.parts(found, turn), self._deny)
        self._refused = () if self._endpoints else refused
        self._journal.refused((*self._bad, *errors, *refused))
        self._journal.doubtful(foreign_loopback(hub.parts(self._endpoints, turn), lambda: has_all([self._address])))


def _fingerprint(body: Body, turn: Slices) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in turn.over(parts(body)):
        digest.update(part)
    return digest.digest()


def make(
    upstream: Upstream,
    source: ConsulSource,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> ConsulProvider:
    api = ConsulApi(settings.consul)
    return ConsulProvider(upstream, source, api, settings, make_names(settings.dns, clock, random), clock, random)
