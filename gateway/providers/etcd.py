"""Endpoints that stand in etcd: each key below a prefix is one, and is gone with its lease.

Rule: everything is read once, then what changes is heard from a watch; whenever the watch is
over, for whatever reason, everything is read again, so that nothing that happened in between
is missed. Where no watch can be had it is read every `poll` seconds.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from gateway.config import urls
from gateway.model import DiscoverySettings, Endpoint, EtcdSource, Upstream
from gateway.net.ip import networks
from gateway.net.machine import has_all
from gateway.providers.addresses import allowed, host
from gateway.providers.base import Emit, Journal, Status, Stop, Update, log, one_line, until_set
from gateway.providers.locality import foreign_loopback
from gateway.providers.names import Names, expand, is_name
from gateway.providers.names import make as make_names
from gateway.registries import RegistryError, etcd
from gateway.registries.dns import LEAST_TTL
from gateway.registries.pacing import Backoff, Clock, Random, TokenBucket, spread
from gateway.runtime import garbage
from gateway.runtime.hub import Slices, breathe, in_order, parts

# An endpoint takes no more than this to write down.
MOST_VALUE = 4096
MOST_WEIGHT = 65535
# Names are looked up again this often at least, as for other sources.
NAMES = 10.0
# A watch that broke after it had held is soon taken up again, but not by all workers at once.
HERD = 1.0

Turn = Callable[[], object]

_PLACE = re.compile(r"[^/?#@\s]+:[0-9]+\Z")


class BadValue(ValueError):
    """What a key holds cannot be an endpoint; the text says why without quoting it."""


def endpoint(value: bytes, upstream: Upstream) -> Endpoint:
    """The endpoint that a key's value is: `host:port`, a URL, or JSON `{"url": …, "weight": …}`."""
    if len(value) > MOST_VALUE:
        raise BadValue(f"holds more than {MOST_VALUE} bytes")
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise BadValue("is not UTF-8") from None
    if not text.startswith("{"):
        return _place(text, upstream)
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise BadValue("is not JSON") from None
    url, weight = told.get("url"), told.get("weight", 1)
    if not isinstance(url, str):
        raise BadValue("has no url")
    if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= MOST_WEIGHT:
        raise BadValue(f"has a weight that is no whole number from 0 to {MOST_WEIGHT}")
    return replace(_place(url.strip(), upstream), weight=weight)


def _place(text: str, upstream: Upstream) -> Endpoint:
    if "://" not in text:
        if not _PLACE.match(text):
            raise BadValue("is neither host:port, nor a URL, nor JSON with a url")
        text = f"{upstream.scheme}://{text}"
    try:
        found = urls.endpoint(text)
    except ValueError as error:
        raise BadValue(str(error)) from None
    name = found.server_name
    if name and upstream.tls and upstream.tls.server_name:
        name = upstream.tls.server_name
    # An IPv4 address may be written as an IPv6 one.
    place = host(found.host) or found.host
    if (place, name) == (found.host, found.server_name):
        return found
    return replace(found, host=place, server_name=name)


@dataclass(slots=True)
class Folder:
    """What stands below a prefix, each value read once; a value that is no endpoint costs itself
    only, and two keys with one endpoint are one."""

    upstream: Upstream
    prefix: bytes
    _values: dict[bytes, bytes] = field(default_factory=dict)
    _read: dict[bytes, Endpoint | BadValue] = field(default_factory=dict)

    def replace(self, pairs: Mapping[bytes, bytes], turn: Turn) -> None:
        """The whole of it; `turn` is called between two parts of the work."""
        for key in parts(self._values.keys() - pairs.keys(), turn):
            self._forget(key)
        for key, value in parts(pairs.items(), turn):
            self._take(key, value)

    def apply(self, events: Iterable[etcd.Event], turn: Turn = lambda: None) -> None:
        for event in parts(events, turn):
            if event.value is None:
                self._forget(event.key)
            else:
                self._take(event.key, event.value)

    def _take(self, key: bytes, value: bytes) -> None:
        # A key that is the folder itself, as some tools make one, is not in it.
        if key == self.prefix or self._values.get(key) == value:
            return
        try:
            self._read[key] = endpoint(value, self.upstream)
        except BadValue as error:
            self._read[key] = error
        # Set last: after an exception the same value must be read again.
        self._values[key] = value

    def _forget(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._read.pop(key, None)

    def __bool__(self) -> bool:
        return bool(self._values)

    def endpoints(self, turn: Turn = lambda: None) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
        """The endpoints in a stable order, and why keys were left out."""
        found: dict[tuple[str, str, int, bytes], Endpoint] = {}
        reasons: list[str] = []
        for key, read in parts(self._read.items(), turn):
            if isinstance(read, BadValue):
                reasons.append(f"key {one_line(key.decode('utf-8', 'replace'), 100)} {read}")
                continue
            other = found.get(read.key)
            if other is None or (other.weight, other.query) < (read.weight, read.query):
                found[read.key] = read
        return tuple(found[place] for place in in_order(found, turn)), tuple(reasons)


class Api(Protocol):
    """The part of `EtcdApi` that a provider needs."""

    def prefix(self, prefix: str) -> etcd.Range: ...

    def watch(self, key: str, revision: int, *, prefix: bool) -> etcd.Watch: ...


class EtcdProvider:
    """What stands below one prefix."""

    def __init__(
        self,
        upstream: Upstream,
        source: EtcdSource,
        api: Api,
        settings: DiscoverySettings,
        names: Names,
        clock: Clock,
        random: Random,
    ) -> None:
        self.upstream = upstream.name
        self._prefix = source.prefix
        self._api = api
        self._members = settings.etcd.endpoints
        self._poll = settings.etcd.poll
        self._deny = networks(settings.deny)
        self._names = names
        self._clock = clock
        self._random = random
        self._journal = Journal(upstream, clock)
        self._backoff = Backoff(random)
        self._updates = TokenBucket(clock)
        self._folder = Folder(upstream, source.prefix.encode())
        self._memory = Memory()
        self._told: Update | None = None
        self._named = False
        self._unwatched = ""

    @property
    def status(self) -> Status:
        return self._journal.status

    def run(self, emit: Emit, stop: Stop) -> None:
        # After a restart the store has recorded an error: emit the endpoints again.
        self._told = None
        try:
            with until_set(stop):
                while not stop.is_set():
                    stop.wait(self._round(emit, stop))
        finally:
            self._names.close()

    def _round(self, emit: Emit, stop: Stop) -> float:
        """Everything once, then what changes until the watch is over; the pause before the next."""
        try:
            revision = self._list(emit)
        except RegistryError as error:
            self._fail(emit, str(error))
            return self._pause()
        except Exception as error:
            self._fault(emit, error)
            return self._pause()
        began = self._clock()
        try:
            with self._api.watch(self._prefix, revision + 1, prefix=True) as watch:
                self._follow(watch, emit, stop)
        except etcd.Compacted as error:
            breathe()
            log.info("upstream %s: %s: reading everything again", self.upstream, error)
        except RegistryError as error:
            breathe()
            self._not_watching(str(error))
        except Exception as error:
            self._fault(emit, error)
        if self._clock() - began < self._poll:
            return self._pause()
        self._backoff.succeeded()
        return self._random() * min(self._poll, HERD)

    def _pause(self) -> float:
        """After a failure: longer and longer, but never longer than between two polls, so that
        a registry that is back is found then at the latest."""
        return min(self._backoff.failed(), spread(self._poll, self._random))

    def _list(self, emit: Emit) -> int:
        with garbage.spared():
            listing = self._api.prefix(self._prefix)
            breathe()
            self._memory.judge(listing, some_known=bool(self._folder))
            self._folder.replace(listing.pairs, Slices())
            self._tell(emit)
            garbage.settle(len(listing.pairs))
        return listing.revision

    def _follow(self, watch: etcd.Watch, emit: Emit, stop: Stop) -> None:
        due: float | None = None
        while not stop.is_set():
            events = watch.take(self._patience() if due is None else max(0.0, due - self._clock()))
            self._watching()
            if events:
                with garbage.spared():
                    self._folder.apply(events, Slices())
                    garbage.settle(len(events))
                self._memory.revision = events[-1].revision
                if due is None:
                    # A burst is one update, and a storm of them two a second.
                    due = self._clock() + self._updates.take()
            if due is None:
                self._idle(emit)
            elif due <= self._clock():
                due = None
                self._tell(emit)

    def _patience(self) -> float:
        """How long nothing need happen until something is to be done again."""
        if self._named and self._names.paced:
            return min(self._poll, max(LEAST_TTL, self._names.due - self._clock()))
        return min(self._poll, NAMES, self._names.interval if self._named else NAMES)

    def _idle(self, emit: Emit) -> None:
        """Nothing is new in etcd, which answers."""
        if self._named:
            self._tell(emit)
        else:
            self._journal.success()

    # -- what is said -------------------------------------------------------------------

    def _tell(self, emit: Emit) -> None:
        """What is known, if that is new."""
        turn = Slices()
        told, bad = self._folder.endpoints(turn)
        names = [e.host for e in parts(told, turn) if is_name(e)]
        self._named = bool(names)
        errors = self._names.refresh(names)
        found = expand(parts(told, turn), self._names.addresses) if names else told
        if errors and not found:
            self._fail(emit, "; ".join(errors))
            return
        endpoints, refused = allowed(parts(found, turn), self._deny)
        self._journal.refused((*bad, *errors, *refused))
        self._journal.doubtful(foreign_loopback(endpoints, lambda: has_all(self._members)))
        self._journal.success()
        self._say(emit, Update(self.upstream, endpoints, refused=() if endpoints else refused))

    def _say(self, emit: Emit, update: Update) -> None:
        if update != self._told:
            emit(update)
            # Set last: if `emit` raises, the update must be emitted again.
            self._told = update

    def _fail(self, emit: Emit, error: str) -> None:
        self._journal.failure(error)
        self._say(emit, Update(self.upstream, None, error))

    def _fault(self, emit: Emit, error: Exception) -> None:
        # A greenlet that dies is worse than whatever this was: it would never be noticed.
        self._fail(emit, self._journal.fault(error))

    def _not_watching(self, error: str) -> None:
        if error != self._unwatched:
            log.warning("upstream %s: reading everything again: %s", self.upstream, error)
        self._unwatched = error

    def _watching(self) -> None:
        if self._unwatched:
            log.info("upstream %s: watching", self.upstream)
        self._unwatched = ""


@dataclass(slots=True)
class Memory:
    """Whether an empty answer means that there is no endpoint. It is doubted when some were known
    and the store's revision went back or its cluster became another one: it has been made
    anew and has forgotten everything. This holds until it names something."""

    cluster: str = ""
    revision: int = 0
    forgot: bool = False

    def judge(self, listing: etcd.Range, some_known: bool) -> None:
        """Raises `RegistryError` when an empty answer is not to be believed."""
        back = listing.revision < self.revision or listing.cluster != self.cluster
        self.cluster, self.revision = listing.cluster, listing.revision
        self.forgot = some_known and not listing.pairs and (self.forgot or back)
        if self.forgot:
            raise RegistryError("an empty answer from a registry that lost its memory")


def make(
    upstream: Upstream,
    source: EtcdSource,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> EtcdProvider:
    api = etcd.shared(settings.etcd)
    return EtcdProvider(upstream, source, api, settings, make_names(settings.dns, clock, random), clock, random)
