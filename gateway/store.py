"""The one reference to the snapshot in force, and how the next one comes about.

Rule: updates are kept by upstream, a burst of them makes one snapshot, and the reference
is replaced in one assignment. An update without endpoints keeps the last good group for
ever; only its error is remembered. Equal to what is in force: nothing happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event

from gateway.model import Config, StaticSource
from gateway.providers import Provider, Update, make
from gateway.router import Router
from gateway.snapshot import Join, Known, Snapshot, build, differences

log = logging.getLogger("gateway.store")

# How long a burst of updates may gather before a snapshot is made of it.
COALESCE = 0.02


class Store:
    """`current` is the snapshot in force: take it once a request.

    `on_swap` is told each new snapshot, right after it came into force.
    """

    def __init__(self, config: Config, join: Join, on_swap: Callable[[Snapshot], None]) -> None:
        self.config = config
        self._router = Router(config.routes)
        self._join = join
        self._on_swap = on_swap
        self.providers: dict[str, Provider] = {}
        self._known: dict[str, Known] = {}
        for upstream in config.upstreams.values():
            provider = make(upstream, config.discovery)
            if provider is not None:
                self.providers[upstream.name] = provider
            elif isinstance(upstream.source, StaticSource):
                self._known[upstream.name] = Known(upstream.source.endpoints)
        self._waiting = set(self.providers)
        self._changed = Event()
        self._answered = Event()
        self._stop = Event()
        self._greenlets: list[Any] = []
        self.current: Snapshot = self._build()
        self._on_swap(self.current)

    # -- updates ------------------------------------------------------------------------

    def emit(self, update: Update) -> None:
        """Take what a provider says. Cheap, and callable from any greenlet."""
        before = self._known.get(update.upstream, Known())
        endpoints = before.endpoints if update.endpoints is None else update.endpoints
        self._known[update.upstream] = Known(endpoints, update.error)
        self._changed.set()

    def apply(self) -> bool:
        """Make a snapshot of what is known and put it in force; False when it is the same."""
        self._changed.clear()
        made = self._build()
        old = self.current
        if made != old:
            for line in differences(old, made):
                log.info("%s", line)
            self.current = made
            self._on_swap(made)
        self._waiting = {name for name in self._waiting if self._known.get(name, Known()).endpoints is None}
        if not self._waiting:
            self._answered.set()
        return made != old

    def _build(self) -> Snapshot:
        return build(self.config, self._router, self._known, self._join)

    # -- greenlets ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the providers and wait for their first answers, at most `discovery.wait`."""
        self._stop.clear()
        for provider in self.providers.values():
            self._greenlets.append(gevent.spawn(provider.run, self.emit, self._stop))
        self._greenlets.append(gevent.spawn(self._follow))
        if self._waiting and not self._answered.wait(self.config.discovery.wait):
            log.warning(
                "no answer yet for %s after %s s: serving what is known",
                ", ".join(sorted(self._waiting)),
                self.config.discovery.wait,
            )

    def stop(self) -> None:
        self._stop.set()
        gevent.killall(self._greenlets, block=False)
        self._greenlets.clear()

    def _follow(self) -> None:
        while True:
            self._changed.wait()
            gevent.sleep(COALESCE)
            try:
                self.apply()
            except Exception:
                # What is in force stays; the next update tries again.
                log.exception("no snapshot could be made of the latest update")

    @property
    def waiting(self) -> Iterable[str]:
        """Upstreams that have not had one good answer; an empty group is one."""
        return sorted(self._waiting)
