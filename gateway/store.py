"""The one reference to the snapshot in force, and how the next one comes about.

Rule: updates are kept by upstream, a burst of them makes one snapshot, and the reference
is replaced in one assignment. An update without endpoints keeps the last good group for
ever; only its error is remembered. Equal to what is in force: nothing happens.

A new configuration comes into force in the same way. What it leaves as it is keeps its
provider and its group; what is new in it is looked up first, for `discovery.wait` at most,
while the old configuration goes on answering. Of several that come in a burst, the last.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event

from gateway.model import Config, DiscoverySettings, Endpoint, StaticSource, Upstream
from gateway.providers import Provider, Remembering, Update, depends_on, make
from gateway.router import Router
from gateway.snapshot import Group, Join, Known, Snapshot, differences, group
from gateway.turns import breathe

log = logging.getLogger("gateway.store")

# How long a burst of updates may gather before a snapshot is made of it.
COALESCE = 0.02
# A snapshot of thousands of endpoints is made in slices: requests wait no longer than this.
SLICE = 0.005

# The snapshot before (None: there was none), the new one, and the upstreams that differ.
OnSwap = Callable[["Snapshot | None", Snapshot, Collection[str]], None]
# Why a discovered endpoint may not be one; "" when it may.
Refusal = Callable[[Endpoint], str]


@dataclass(slots=True, eq=False)
class Feed:
    """Where one upstream's endpoints come from, and what was said last. `made_of`: what the
    provider depends on. Literal addresses have no provider."""

    upstream: Upstream
    made_of: tuple[object, ...]
    provider: Provider | None
    known: Known
    stop: Event = field(default_factory=Event)
    greenlet: Any = None
    refused: frozenset[str] = frozenset()

    @property
    def waiting(self) -> bool:
        """There was never a good answer; an empty group is one."""
        return self.known.endpoints is None

    def remember(self) -> None:
        """Have the provider know that there were endpoints before its time."""
        if self.known.endpoints and isinstance(self.provider, Remembering):
            self.provider.remember()

    def end(self) -> None:
        self.stop.set()
        if self.greenlet is not None:
            self.greenlet.kill(block=False)
            self.greenlet = None


@dataclass(slots=True, eq=False)
class _Coming:
    """A configuration that is not in force yet: its upstreams are being looked up."""

    config: Config
    router: Router
    feeds: dict[str, Feed]
    deadline: float

    def due(self) -> bool:
        return time.monotonic() >= self.deadline or not any(feed.waiting for feed in self.feeds.values())


class Store:
    """`current` is the snapshot in force: take it once a request.

    `on_swap` is told of each new snapshot, right after it came into force. `refusal` judges
    every endpoint that a provider finds. `ready`: every upstream has had a good answer once;
    that is never taken back.
    """

    def __init__(self, config: Config, join: Join, on_swap: OnSwap) -> None:
        self._join = join
        self._on_swap = on_swap
        self.refusal: Refusal = lambda endpoint: ""
        self.ready = False
        self._feeds: dict[str, Feed] = {}
        self._coming: _Coming | None = None
        # The feeds of the newest configuration, while they are gathered and afterwards.
        self._newest: dict[str, Feed] = {}
        self._dirty: set[str] = set()
        self._waiting: set[str] = set()
        self._changed = Event()
        self._answered = Event()
        self._follower: Any = None
        router = Router(config.routes)
        self.current = Snapshot("", Config("", {}, ()), {}, router)
        self._adopt(_Coming(config, router, self._prepare(config, {}), 0.0), None)

    @property
    def config(self) -> Config:
        return self.current.config

    @property
    def providers(self) -> Mapping[str, Provider]:
        """By upstream; literal addresses have none."""
        return {name: feed.provider for name, feed in self._feeds.items() if feed.provider is not None}

    @property
    def waiting(self) -> Iterable[str]:
        """Upstreams that have not had one good answer; an empty group is one."""
        return sorted(self._waiting)

    # -- updates ------------------------------------------------------------------------

    def emit(self, update: Update) -> None:
        """Take what a provider says. Cheap, and callable from any greenlet."""
        feed = self._feeds.get(update.upstream)
        if feed is not None:
            self._take(feed, update)

    def _take(self, feed: Feed, update: Update) -> None:
        endpoints = feed.known.endpoints
        if update.endpoints is not None:
            endpoints = self._allowed(feed, update.endpoints)
        feed.known = Known(endpoints, update.error)
        if self._feeds.get(feed.upstream.name) is feed:
            self._dirty.add(feed.upstream.name)
        self._changed.set()

    def _allowed(self, feed: Feed, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        reasons = {endpoint: reason for endpoint in endpoints if (reason := self.refusal(endpoint))}
        refused = frozenset(reasons.values())
        for reason in sorted(refused - feed.refused):
            log.warning("upstream %s: not an endpoint: %s", feed.upstream.name, reason)
        feed.refused = refused
        return tuple(endpoint for endpoint in endpoints if endpoint not in reasons) if reasons else endpoints

    def restore(self, saved: Mapping[str, tuple[Endpoint, ...]]) -> None:
        """Take endpoints from before a restart for upstreams without an answer so far."""
        for name, endpoints in saved.items():
            feed = self._feeds.get(name)
            if feed is not None and feed.waiting:
                self._take(feed, Update(name, endpoints))
                feed.remember()
        self.apply()

    def apply(self) -> bool:
        """Make a snapshot of what is known and put it in force; False when it is the same.

        It ends after a `SLICE` of time; what it did not come to is left for the next call."""
        self._changed.clear()
        coming = self._coming
        if coming is not None and coming.due():
            self._coming = None
            try:
                return self._adopt(coming, self.current)
            except BaseException:
                _end(coming.feeds, self._feeds, self._newest if self._newest is not coming.feeds else {})
                raise
        old = self.current
        began = time.monotonic()
        seen: list[str] = []
        changed = {}
        while self._dirty and (not seen or time.monotonic() - began < SLICE):
            name = self._dirty.pop()
            before = old.groups[name]
            after = group(before.upstream, self._feeds[name].known, before, self._join)
            if after is not before:
                changed[name] = after
            seen.append(name)
        if changed:
            groups = dict(old.groups)
            groups.update(changed)
            self._swap(old, Snapshot(old.version, old.config, groups, old.router), changed)
        self._note_answers(seen)
        if self._dirty:
            # The rest is for the next turn: upstreams do not depend on one another.
            self._changed.set()
        return bool(changed)

    def _swap(self, old: Snapshot | None, new: Snapshot, changed: Collection[str]) -> None:
        self.current = new
        if old is not None:
            for line in differences(old, new, changed):
                log.info("%s", line)
        self._on_swap(old, new, changed)

    def _note_answers(self, names: Iterable[str]) -> None:
        self._waiting.difference_update([name for name in names if not self._feeds[name].waiting])
        if not self._waiting:
            self._answered.set()
            # Without a version there is no configuration yet.
            self.ready = self.ready or bool(self.current.version)

    def _pauses(self) -> Callable[[], None]:
        """To be called between two pieces of work: lets requests go on when it took long."""
        if self._follower is None:
            # Nothing is served yet, and there may be no hub to go to.
            return lambda: None
        began = time.monotonic()

        def pause() -> None:
            nonlocal began
            if time.monotonic() - began > SLICE:
                breathe()
                began = time.monotonic()

        return pause

    # -- configurations -----------------------------------------------------------------

    def reconfigure(
        self, config: Config, router: Router | None = None, saved: Mapping[str, tuple[Endpoint, ...]] | None = None
    ) -> None:
        """Put another configuration in force as soon as its new upstreams are looked up, or
        `discovery.wait` is over. It replaces one that is still waiting. `router`: the one
        for its routes, where it is made already; `saved`: endpoints from before a restart.
        Raises ConfigError and changes nothing when it cannot be used."""
        router = Router(config.routes) if router is None else router
        # The one that is waiting has had its time: nothing of it comes into force meanwhile.
        before, self._coming = self._coming, None
        feeds = self._prepare(config, before.feeds if before is not None else {})
        for name, endpoints in (saved or {}).items():
            if feeds[name].waiting:
                feeds[name].known = Known(self._allowed(feeds[name], endpoints))
                feeds[name].remember()
        deadline = time.monotonic() + config.discovery.wait
        if before is not None:
            # A storm of configurations must not put them off for ever.
            deadline = min(deadline, before.deadline)
            _end(before.feeds, feeds, self._feeds)
        self._coming = _Coming(config, router, feeds, deadline)
        if self._follower is None:
            self._coming.deadline = 0.0
            self.apply()
            return
        for feed in feeds.values():
            self._run(feed)
        self._changed.set()

    def _prepare(self, config: Config, coming: Mapping[str, Feed]) -> dict[str, Feed]:
        """The feeds of a configuration: those that are there already where nothing that
        concerns them is different."""
        pause = self._pauses()
        # Known from the beginning: what is in it is not ended while this pauses.
        found = self._newest = {}
        for name, upstream in config.upstreams.items():
            made_of = depends_on(upstream, config.discovery)
            kept = [feed for feed in (coming.get(name), self._feeds.get(name)) if feed and feed.made_of == made_of]
            found[name] = kept[0] if kept else self._feed(upstream, made_of, config.discovery)
            pause()
        return found

    def _feed(self, upstream: Upstream, made_of: tuple[object, ...], settings: DiscoverySettings) -> Feed:
        provider = make(upstream, settings)
        if provider is None:
            assert isinstance(upstream.source, StaticSource)
            return Feed(upstream, made_of, None, Known(upstream.source.endpoints))
        before = self._feeds.get(upstream.name)
        if before is not None and _same_group(before.upstream, upstream):
            # Asked in another way, or by another registry: what is known stays until it answers.
            feed = Feed(upstream, made_of, provider, Known(before.known.endpoints))
            feed.remember()
            return feed
        return Feed(upstream, made_of, provider, Known())

    def _adopt(self, coming: _Coming, old: Snapshot | None) -> bool:
        """Build the snapshot of a configuration and put it in force."""
        pause = self._pauses()
        groups: dict[str, Group] = {}
        used: dict[str, Known] = {}
        changed: set[str] = set()
        for name, upstream in coming.config.upstreams.items():
            before = old.groups.get(name) if old is not None else None
            used[name] = coming.feeds[name].known
            groups[name] = group(upstream, used[name], before, self._join)
            if groups[name] is not before:
                changed.add(name)
            pause()
        if old is not None:
            changed |= old.groups.keys() - groups.keys()
        gone, self._feeds = self._feeds, coming.feeds
        # What was said while the groups were made is for the next snapshot.
        self._dirty = {name for name, known in used.items() if self._feeds[name].known is not known}
        if self._dirty:
            self._changed.set()
        _end(gone, self._feeds, self._newest)
        self._waiting = set(self._feeds)
        self._answered.clear()
        self._swap(old, Snapshot(coming.config.version, coming.config, groups, coming.router), changed)
        self._note_answers(self._feeds.keys() - self._dirty)
        return True

    # -- greenlets ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the providers and wait for their first answers, at most `discovery.wait`."""
        self._follower = gevent.spawn(self._follow)
        for feed in self._feeds.values():
            self._run(feed)
        wait = self.config.discovery.wait
        if self._waiting and not self._answered.wait(wait):
            log.warning("no answer yet for %s after %s s: serving what is known", _some(self._waiting), wait)

    def stop(self) -> None:
        _end(self._feeds)
        if self._coming is not None:
            _end(self._coming.feeds)
        if self._follower is not None:
            self._follower.kill(block=False)
            self._follower = None

    def _run(self, feed: Feed) -> None:
        if feed.provider is not None and feed.greenlet is None:
            feed.stop.clear()
            feed.greenlet = gevent.spawn(feed.provider.run, lambda update: self._take(feed, update), feed.stop)

    def _follow(self) -> None:
        while True:
            coming = self._coming
            self._changed.wait(None if coming is None else max(0.0, coming.deadline - time.monotonic()))
            gevent.sleep(COALESCE)
            try:
                self.apply()
                while self._dirty:
                    breathe()
                    self.apply()
                # What a group is made of gathers where the collector looks seldom, until one
                # look takes tens of milliseconds: a little each time holds nobody up.
                gc.collect(1)
            except Exception:
                # What is in force stays; the next update tries again.
                log.exception("no snapshot could be made of the latest update")


def _end(feeds: Mapping[str, Feed], *kept: Mapping[str, Feed]) -> None:
    """End those feeds that none of `kept` has."""
    for name, feed in feeds.items():
        if all(others.get(name) is not feed for others in kept):
            feed.end()


def _same_group(one: Upstream, other: Upstream) -> bool:
    """Whether both find the same endpoints, wherever they are looked up."""
    return (one.source, one.scheme, one.tls) == (other.source, other.scheme, other.tls)


def _some(names: Collection[str]) -> str:
    """A list fit for a log line."""
    shown = sorted(names)[:10]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
