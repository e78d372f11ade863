"""The one reference to the snapshot in force, and how the next one comes about.

Rule: updates are kept by upstream, a burst of them makes one snapshot, and the reference
is replaced in one assignment. An update without endpoints keeps the last good group for
ever; only its error is remembered. Equal to what is in force: nothing happens.

A new configuration comes into force in the same way. What it leaves as it is keeps its
provider and its group; what is new in it is looked up first, for `discovery.wait` at most,
while the old configuration goes on answering. Of several that come in a burst, the last.

An exception while a snapshot is built changes nothing: the old snapshot stays in force, and the update or the
configuration is kept and retried.

Everything that walks through the endpoints of an upstream pauses every `SLICE` seconds, as there may be tens of
thousands: before a swap to build the groups and to compare them, after it to give up what the old ones had. The
swap itself is one assignment and costs the same for any number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import gevent
from gevent.event import Event

from gateway.model import Config, DiscoverySettings, Endpoint, StaticSource, Upstream
from gateway.net.ip import networks
from gateway.providers import Provider, Remembering, Update, depends_on, make, one_line
from gateway.providers.addresses import allowed
from gateway.routing.router import Router
from gateway.runtime import garbage
from gateway.runtime.background import Background, Task
from gateway.runtime.hub import Discards, breathe, parts
from gateway.upstreams.snapshot import (
    NOTHING,
    Difference,
    Group,
    Join,
    Known,
    Snapshot,
    Turn,
    difference,
    group,
    summary,
)

log = logging.getLogger("gateway.upstreams.store")

# How long a burst of updates may gather before a snapshot is made of it.
COALESCE = 0.02
# A snapshot of thousands of endpoints is made in slices of so many seconds: others run in between. Several
# upstreams, and their providers, may be at work in one turn of the hub.
SLICE = 0.002
# Seconds before a failed swap or update is retried: the pause doubles with each failure in a row.
FIRST_RETRY, LONGEST_RETRY = 0.1, 5.0

# The snapshot before (None: there was none), the new one, and the upstreams that differ, with what is different.
OnSwap = Callable[["Snapshot | None", Snapshot, Mapping[str, Difference]], None]
# Why an endpoint may not be one; "" when it may.
Refusal = Callable[[Endpoint], str]
# Why the newest configuration is not in force; "" once it is, or when a newer one has replaced it.
OnTrouble = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Feed:
    """Where one upstream's endpoints come from, and what was said last. `made_of`: what the
    provider depends on. Literal addresses have no provider."""

    upstream: Upstream
    made_of: tuple[object, ...]
    provider: Provider | None
    known: Known
    stop: Event = field(default_factory=Event)
    greenlet: Task | None = None
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
    """A configuration that is not in force yet: its upstreams are being looked up.

    `deadline`: when it comes into force even if upstreams have not answered. `retry_at`: when it is retried
    after a failure. Both are monotonic seconds."""

    config: Config
    router: Router
    feeds: dict[str, Feed]
    deadline: float
    retry_at: float = 0.0
    faults: int = 0

    def due_at(self) -> float:
        answered = not any(feed.waiting for feed in self.feeds.values())
        return self.retry_at if answered else max(self.deadline, self.retry_at)


class Store:
    """`current` is the snapshot in force: take it once a request.

    `on_swap` is told of each new snapshot, right after it came into force, and must not take long; `settle`, with
    pauses, does the rest: what it did not come to is for its next call. `ready`: every upstream has had a good answer
    once; that is never taken back. `building`: the groups of the snapshot that is being built, by upstream.
    `adopted_at`: when the configuration came into force, in seconds since 1970.
    """

    def __init__(
        self,
        config: Config,
        join: Join,
        on_swap: OnSwap,
        on_trouble: OnTrouble = lambda error: None,
        background: Background | None = None,
        settle: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self._join = join
        self._on_swap = on_swap
        self._settle = settle
        self._discards = Discards()
        self._on_trouble = on_trouble
        self._background = background or Background()
        self._refusal: Refusal = lambda endpoint: ""
        self.ready = False
        self.adopted_at = 0.0
        self.building: Mapping[str, Group] = {}
        self._feeds: dict[str, Feed] = {}
        self._coming: _Coming | None = None
        # The configuration whose snapshot is being built.
        self._adopting: _Coming | None = None
        # The feeds of a newer configuration, while they are gathered.
        self._gathered: dict[str, Feed] = {}
        self._dirty: set[str] = set()
        # Upstreams whose group could not be built, when that is retried, and how often it was.
        self._failed: set[str] = set()
        self._retry_at = 0.0
        self._faults = 0
        self._waiting: set[str] = set()
        self._changed = Event()
        self._answered = Event()
        self._follower: Task | None = None
        router = Router(config.routes)
        self.current = Snapshot("", Config("", {}, ()), {}, router)
        self._adopt(_Coming(config, router, self._gather(config), 0.0), None)
        self._gathered = {}

    @property
    def config(self) -> Config:
        return self.current.config

    @property
    def coming(self) -> tuple[Config, ...]:
        """The configurations that are not in force yet: waiting, or being built."""
        return tuple(one.config for one in (self._coming, self._adopting) if one is not None)

    def is_coming(self, upstream: str) -> bool:
        """Whether a configuration that is not in force yet has this upstream."""
        return any(upstream in config.upstreams for config in self.coming)

    @property
    def providers(self) -> Mapping[str, Provider]:
        """By upstream; literal addresses have none."""
        return {name: feed.provider for name, feed in self._feeds.items() if feed.provider is not None}

    @property
    def waiting(self) -> list[str]:
        """Upstreams that have not had one good answer; an empty group is one."""
        return sorted(self._waiting)

    def unknown(self, config: Config) -> list[str]:
        """The upstreams of a configuration that have to be looked up and have had no good answer so far."""
        pause, found = self._pauses(), []
        for name, upstream in config.upstreams.items():
            pause()
            if isinstance(upstream.source, StaticSource) and upstream.source.literal:
                continue
            feed = self._existing(name, depends_on(upstream, config.discovery))
            if feed is None or feed.waiting:
                found.append(name)
        return found

    # -- updates ------------------------------------------------------------------------

    def emit(self, update: Update) -> None:
        """Take what a provider says. Callable from any greenlet, which pauses where there are many endpoints."""
        feed = self._feeds.get(update.upstream)
        if feed is not None:
            self._take(feed, update)

    def _take(self, feed: Feed, update: Update) -> None:
        if update.endpoints is None:
            feed.known = replace(feed.known, error=update.error)
        else:
            before = feed.known.endpoints or ()
            feed.known = replace(self._judged(feed, update.endpoints, update.refused), error=update.error)
            self._discards.keep(before)
        self._mark(feed)

    def _mark(self, feed: Feed) -> None:
        """Have the group of an upstream rebuilt."""
        if self._feeds.get(feed.upstream.name) is feed:
            self._dirty.add(feed.upstream.name)
        self._changed.set()

    def refuse(self, refusal: Refusal) -> None:
        """Judge every endpoint by `refusal` from now on, and those of the file at once."""
        self._refusal = refusal
        for feed in self._feeds.values():
            if isinstance(feed.upstream.source, StaticSource) and feed.provider is None:
                known = self._judged(feed, feed.upstream.source.endpoints)
                if known != feed.known:
                    feed.known = known
                    self._mark(feed)
        while self._dirty:
            self._step()

    def _judged(self, feed: Feed, endpoints: tuple[Endpoint, ...], refused: tuple[str, ...] = ()) -> Known:
        """The endpoints without those that are refused. `refused`: why there were more."""
        kept = self._allowed(feed, endpoints)
        return Known(kept, refused="" if kept else _reasons((*refused, *feed.refused)))

    def _allowed(self, feed: Feed, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        pause = self._pauses()
        reasons = {endpoint: reason for endpoint in parts(endpoints, pause) if (reason := self._refusal(endpoint))}
        refused = frozenset(reasons.values())
        for reason in sorted(refused - feed.refused):
            log.warning("upstream %s: not an endpoint: %s", feed.upstream.name, reason)
        feed.refused = refused
        if not reasons:
            return endpoints
        return tuple(endpoint for endpoint in parts(endpoints, pause) if endpoint not in reasons)

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

        It ends after a `SLICE` of time; what it did not come to is left for the next call. An upstream whose
        group cannot be built keeps its old group and is tried again; the others are not held up."""
        self._dirty |= self._failed
        self._failed.clear()
        return self._step()

    def _step(self) -> bool:
        self._changed.clear()
        coming = self._coming
        if coming is not None and time.monotonic() >= coming.due_at():
            self._adopt(coming, self.current)
            return True
        old = self.current
        built, changed, different = self._build(old)
        if changed:
            self._swap(old, Snapshot(old.version, old.config, {**old.groups, **changed}, old.router), different)
        # After the swap, so that an exception loses no update.
        self._dirty -= {name for name, known in built.items() if self._feeds[name].known is known}
        self._note_answers(built)
        if self._dirty:
            # The rest is for the next turn: upstreams do not depend on one another.
            self._changed.set()
        if changed:
            self.tidy(self._pauses())
        return bool(changed)

    def _build(self, old: Snapshot) -> tuple[dict[str, Known], dict[str, Group], dict[str, Difference]]:
        """Build the groups of updated upstreams for a `SLICE` of time, or that of one upstream however long it
        takes, with pauses. Returns what each was built of, the groups that differ from those of `old`, and how."""
        pause = self._pauses()
        began = time.monotonic()
        built: dict[str, Known] = {}
        changed: dict[str, Group] = {}
        different: dict[str, Difference] = {}
        for name in tuple(self._dirty):
            before, known = old.groups[name], self._feeds[name].known
            try:
                after = group(before.upstream, known, before, self._join, pause)
                if after is not before:
                    different[name] = difference(name, before, after, pause)
            except Exception as error:
                self._put_off(name, error)
            else:
                built[name] = known
                if after is not before:
                    changed[name] = after
            if time.monotonic() - began >= SLICE:
                break
        return built, changed, different

    def tidy(self, turn: Turn) -> None:
        """Give up what groups before the one in force had. Never raises an ordinary fault."""
        try:
            self._settle(turn)
            self._discards.sweep(turn)
        except Exception as error:
            self._note("a fault after a new snapshot came into force", error)

    def _put_off(self, name: str, error: Exception) -> None:
        """Retry an upstream whose group could not be built after a pause."""
        if not self._failed:
            self._retry_at = time.monotonic() + _pause(self._faults + 1)
        self._dirty.discard(name)
        self._failed.add(name)
        self._note(f"upstream {name}: its latest update is not in force", error)

    def _note(self, what: str, error: Exception) -> None:
        """Log an exception and show it in status; `what` failed."""
        if self._follower is not None:
            self._follower.note(error, what)
        else:
            log.error("%s", what, exc_info=error)

    def _swap(self, old: Snapshot | None, new: Snapshot, changed: Mapping[str, Difference]) -> None:
        self.current = new
        if old is None or old.config is not new.config:
            self.adopted_at = time.time()
        try:
            if old is not None:
                for line in summary(old, new, (changed[name].line for name in sorted(changed))):
                    log.info("%s", line)
                for group in filter(None, map(old.groups.get, changed)):
                    self._discards.keep(group.endpoints)
                    self._discards.keep(group.candidates)
            self._on_swap(old, new, changed)
        except Exception as error:
            # Not raised: the new snapshot is in force, and an exception would say that nothing has changed.
            self._note("a fault after a new snapshot came into force", error)

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
        Raises ConfigError when it cannot be used. After any exception nothing has changed: neither the snapshot in
        force, nor the configuration that is waiting, nor the providers that run. One call at a time."""
        router = Router(config.routes) if router is None else router
        try:
            feeds = self._gather(config)
            for name, endpoints in (saved or {}).items():
                if feeds[name].waiting:
                    feeds[name].known = self._judged(feeds[name], endpoints)
                    feeds[name].remember()
            if self._follower is not None:
                for feed in feeds.values():
                    self._run(feed)
        except BaseException:
            made, self._gathered = self._gathered, {}
            self._end_unused(made)
            raise
        self._gathered = {}
        before, self._coming = self._coming, _Coming(config, router, feeds, self._deadline(config))
        if before is not None:
            self._end_unused(before.feeds)
        if self._follower is None:
            self._adopt(self._coming, self.current)
            return
        self._on_trouble("")
        self._changed.set()

    def _deadline(self, config: Config) -> float:
        """When `config` comes into force at the latest. A storm of configurations must not put them off for ever."""
        own = time.monotonic() + config.discovery.wait
        return own if self._coming is None else min(own, self._coming.deadline)

    def _gather(self, config: Config) -> dict[str, Feed]:
        """The feeds of a configuration: those that are there already where nothing that
        concerns them is different."""
        pause = self._pauses()
        # Known from the beginning: what is in it is not ended while this pauses.
        found: dict[str, Feed] = {}
        self._gathered = found
        for name, upstream in config.upstreams.items():
            made_of = depends_on(upstream, config.discovery)
            kept = self._existing(name, made_of)
            found[name] = self._feed(upstream, made_of, config.discovery) if kept is None else kept
            pause()
        return found

    def _existing(self, name: str, made_of: tuple[object, ...]) -> Feed | None:
        """The feed of an upstream with an equal `made_of`, from the newest configuration that has one."""
        newer = (one.feeds for one in (self._coming, self._adopting) if one is not None)
        for feeds in (*newer, self._feeds):
            feed = feeds.get(name)
            if feed is not None and feed.made_of == made_of:
                return feed
        return None

    def _end_unused(self, feeds: Mapping[str, Feed]) -> None:
        """End the feeds that neither the configuration in force nor a coming one uses."""
        used = [self._feeds, self._gathered]
        used += [one.feeds for one in (self._coming, self._adopting) if one is not None]
        for name, feed in feeds.items():
            if all(others.get(name) is not feed for others in used):
                feed.end()

    def _feed(self, upstream: Upstream, made_of: tuple[object, ...], settings: DiscoverySettings) -> Feed:
        provider = make(upstream, settings)
        if provider is None:
            assert isinstance(upstream.source, StaticSource)
            feed = Feed(upstream, made_of, None, Known())
            feed.known = self._judged(feed, upstream.source.endpoints)
            return feed
        before = self._feeds.get(upstream.name)
        if before is not None and before.known.endpoints is not None and _same_group(before.upstream, upstream):
            # Asked in another way, or by another registry: what is known stays until it answers, except what
            # `discovery.deny` excludes by now.
            feed = Feed(upstream, made_of, provider, Known())
            known = parts(before.known.endpoints, self._pauses())
            feed.known = self._judged(feed, *allowed(known, networks(settings.deny)))
            feed.remember()
            return feed
        return Feed(upstream, made_of, provider, Known())

    def _adopt(self, coming: _Coming, old: Snapshot | None) -> None:
        """Build the snapshot of a configuration and put it in force. After any exception nothing has changed, and
        the configuration is kept to be retried unless a newer one has replaced it."""
        self._coming, self._adopting = None, coming
        try:
            groups, used, changed = self._groups(coming, old)
        except BaseException as error:
            self.building, self._adopting = {}, None
            self._not_adopted(coming, error)
            raise
        # Nothing below switches greenlets, so no exception can be thrown in.
        self._adopting = None
        gone, self._feeds = self._feeds, coming.feeds
        # What was said while the groups were made is for the next snapshot.
        self._dirty = {name for name, known in used.items() if self._feeds[name].known is not known}
        self._failed.clear()
        if self._dirty:
            self._changed.set()
        self._waiting = set(self._feeds)
        self._answered.clear()
        self._swap(old, Snapshot(coming.config.version, coming.config, groups, coming.router), changed)
        self.building = {}
        self._end_unused(gone)
        self._note_answers(self._feeds.keys() - self._dirty)
        if self._coming is None:
            self._on_trouble("")
        if old is not None:
            self.tidy(self._pauses())

    def _groups(
        self, coming: _Coming, old: Snapshot | None
    ) -> tuple[dict[str, Group], dict[str, Known], dict[str, Difference]]:
        """The groups of a configuration, what each was built of, and which upstreams differ from `old`, and how."""
        pause = self._pauses()
        groups: dict[str, Group] = {}
        self.building = groups
        used: dict[str, Known] = {}
        changed: dict[str, Difference] = {}
        for name, upstream in coming.config.upstreams.items():
            before = old.groups.get(name) if old is not None else None
            used[name] = coming.feeds[name].known
            groups[name] = group(upstream, used[name], before, self._join, pause)
            if groups[name] is not before:
                changed[name] = difference(name, before, groups[name], pause) if old is not None else NOTHING
            pause()
        if old is not None:
            for name in old.groups.keys() - groups.keys():
                changed[name] = difference(name, old.groups[name], None, pause)
        return groups, used, changed

    def _not_adopted(self, coming: _Coming, error: BaseException) -> None:
        """Keep a configuration that could not be put in force, or drop it if it is not wanted any more."""
        if self._follower is None or self._coming is not None:
            # The caller gets the exception, or a newer configuration is waiting.
            self._end_unused(coming.feeds)
            return
        coming.faults += 1
        coming.retry_at = time.monotonic() + _pause(coming.faults)
        self._coming = coming
        if isinstance(error, Exception):
            text = f"the configuration {coming.config.version} cannot be put in force and is tried again"
            self._on_trouble(f"{text}: {type(error).__name__}: {error}")

    # -- greenlets ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the providers and wait for their first answers, at most `discovery.wait`."""
        self._follower = self._background.start("store", self._follow)
        for feed in self._feeds.values():
            self._run(feed)
        wait = self.config.discovery.wait
        if self._waiting and not self._answered.wait(wait):
            log.warning("no answer yet for %s after %s s: serving what is known", _some(self._waiting), wait)

    def stop(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.kill(block=False)
        for feeds in (self._feeds, self._gathered, *(one.feeds for one in (self._coming, self._adopting) if one)):
            for feed in feeds.values():
                feed.end()

    def _run(self, feed: Feed) -> None:
        if feed.provider is None or feed.greenlet is not None:
            return
        provider = feed.provider
        feed.stop.clear()

        def run() -> None:
            try:
                provider.run(lambda update: self._take(feed, update), feed.stop)
            except Exception as error:
                # The task restarts the provider; until then the upstream shows the error.
                feed.known = replace(feed.known, error=one_line(f"{type(error).__name__}: {error}"))
                self._mark(feed)
                raise

        feed.greenlet = self._background.start(f"provider {feed.upstream.name}", run)

    def _follow(self) -> None:
        while True:
            self._changed.wait(self._patience())
            gevent.sleep(COALESCE)
            if self._failed and time.monotonic() >= self._retry_at:
                self._dirty |= self._failed
                self._failed.clear()
                self._faults += 1
            with garbage.spared():
                self._turn()
                while self._dirty:
                    breathe()
                    self._turn()
            if not self._failed:
                self._faults = 0

    def _turn(self) -> None:
        try:
            self._step()
        except Exception as error:
            # The snapshot in force stays; the configuration is retried.
            self._note("the newest configuration is not in force", error)
            gevent.sleep(FIRST_RETRY)

    def _patience(self) -> float | None:
        """Seconds until something is due without an update; None: nothing is."""
        if self._dirty:
            # Left by an exception.
            return 0.0
        due = [self._retry_at] if self._failed else []
        if self._coming is not None:
            due.append(self._coming.due_at())
        return max(0.0, min(due) - time.monotonic()) if due else None


def _pause(faults: int) -> float:
    """Seconds before the next attempt after so many faults in a row."""
    return min(FIRST_RETRY * 2.0 ** min(faults - 1, 16), LONGEST_RETRY)


def _same_group(one: Upstream, other: Upstream) -> bool:
    """Whether both find the same endpoints, wherever they are looked up."""
    return (one.source, one.scheme, one.tls) == (other.source, other.scheme, other.tls)


def _reasons(refused: Collection[str]) -> str:
    """Why endpoints are refused, fit for one line."""
    shown = sorted(refused)[:3]
    return "; ".join(shown) + (f"; and {len(refused) - len(shown)} more" if len(refused) > len(shown) else "")


def _some(names: Collection[str]) -> str:
    """A list fit for a log line."""
    shown = sorted(names)[:10]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
