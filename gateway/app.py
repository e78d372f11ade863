"""The gateway itself: everything put together, one request from end to end.

Rule: `line` is the straight line of docs/architecture.md; both doors (`flask_door`) call it. Making a
Gateway starts nothing and opens nothing: greenlets start with `start`, in the worker.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import os
import random
import socket
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from gateway import config as files
from gateway.admin import Admin
from gateway.balancers import Balancer, balancer
from gateway.buffers.memory import Buffers
from gateway.checks.prober import Prober
from gateway.config import siblings_copy
from gateway.config.source import Where, parse
from gateway.config.watch import ConfigStatus, Watch
from gateway.errors import BadPath, BadRequest, GatewayError, NoRoute, NotReady, Overloaded, UnsupportedMethod
from gateway.flask_door import FlaskDoor
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.hedge import race
from gateway.forwarding.mirror import Copies
from gateway.forwarding.route_actions import Shaper
from gateway.health.candidate import Candidate, EndpointState
from gateway.health.overload import RETRY_AFTER, Overload
from gateway.health.retry_budget import Budget
from gateway.http import target
from gateway.http.messages import Request, Response
from gateway.http.request_head import Outbound, check_max_forwards
from gateway.http.target import AmbiguousTarget
from gateway.http.trusted_proxies import Trust
from gateway.model import AccessLogSettings, Config, ConsulSettings, Endpoint, Key, StaticSource, Upstream
from gateway.registries import registration
from gateway.routing import readings
from gateway.routing.router import Router
from gateway.runtime import garbage
from gateway.runtime.background import Background, Task
from gateway.runtime.hub import Slices, off_hub, parts
from gateway.telemetry import log_lines
from gateway.telemetry.access_log import AccessLog
from gateway.transport import Transport, probe
from gateway.transport.pool import EndpointPool
from gateway.transport.transport import ContextKey, Contexts, pool_key
from gateway.upstreams import saved_endpoints
from gateway.upstreams.alike import alike
from gateway.upstreams.own_addresses import Listeners
from gateway.upstreams.snapshot import Difference, Group, Snapshot, Turn
from gateway.upstreams.state import UpstreamState
from gateway.upstreams.store import Store

log = logging.getLogger("gateway")

# How often idle connections are looked at.
SWEEP = 1.0
# How often endpoints are saved, when they changed.
SAVE = 1.0
# Groups before the one in force whose endpoints are remembered while a configuration is coming.
MOST_PASSING = 4
# Sections of the configuration that a process keeps for life.
FIXED = ("server", "admin", "access_log")


def create_app(config: Config | str | None = None) -> Gateway:
    """The gateway for a configuration: one that is loaded already, or one that is followed
    from where it stands: what a text names, or (None) what GATEWAY_CONFIG names. Raises
    ConfigError; with None only when no worker of this master ever had a good one."""
    log_lines.install()
    where: Where | None = None
    if config is None:
        where = parse(files.find(os.environ))
        config = files.latest()
    elif isinstance(config, str):
        where = parse(config)
        config = files.starting({**os.environ, "GATEWAY_CONFIG": config})
    for warning in config.warnings:
        log.warning("%s", warning)
    return Gateway(config, where)


class Gateway(FlaskDoor):
    """A Flask app whose catch-all forwards. Views and blueprints come before routes."""

    def __init__(self, config: Config, where: Where | None = None) -> None:
        log_lines.install()
        super().__init__()
        self.settings = config
        self.server = config.server
        self.draining = False
        name = _name(config.server.name, "")
        self._own_prefix = config.server.own_prefix.encode("latin-1") if config.server.own_prefix else None
        self._outbound = Outbound(config.server, name, Trust(config.server.trusted_proxies), _RequestIds())
        self.buffers = Buffers(config.server.limits.buffers)
        self._forwarder = Forwarder(self._outbound, race, buffers=self.buffers, latest=self._latest)
        self.transport = Transport(self._hop(name))
        self._copies = Copies(self._outbound, self.transport)
        self._shaper = Shaper(self._outbound, self._forwarder.forward, self._copies.copy, random.random)
        self._states: dict[str, UpstreamState] = {}
        # Upstreams with endpoints that are gone but for the requests that still use them.
        self._leaving: set[str] = set()
        # By upstream: applies its new settings once the snapshot that is being built is in force.
        self._changes: dict[str, Callable[[], None]] = {}
        # Left to do after swaps: candidates that are gone, as their upstream was; groups with other settings.
        self._gone: list[tuple[Upstream, tuple[Candidate, ...]]] = []
        self._changed: list[Group] = []
        # Configurations that are being prepared; their TLS contexts must not be dropped.
        self._preparing: list[Config] = []
        self.transport.adopt(self.transport.contexts(config.upstreams.values()))
        # Why the newest configuration is not in force: the error of the watch and that of the store.
        self._troubles = {"watch": "", "store": ""}
        self._troubled_at: float | None = None
        self._where = where
        self._watch: Watch | None = None
        self._later: list[str] = []
        # Configurations are taken one after the other: the last call wins, however long each takes.
        self._reloading = BoundedSemaphore(1)
        self._configured = Event()
        self._saving = saved_endpoints.Saving(off_hub)
        # For siblings that start later; it need not survive the machine.
        self._sharing = saved_endpoints.Saving(off_hub, durable=False)
        # Listed in /-/status.
        self.background = Background()
        self._announcer = registration.Announcer(self._registration_for, self.background)
        self._read_fields(config)
        self.store = Store(
            config, self._join, self._swapped, partial(self._trouble_of, "store"), self.background, self._settle
        )
        ask = partial(probe.ask, self.transport)
        self.prober = Prober(lambda: self.store.current.groups, ask, background=self.background)
        self._access_log: AccessLog | None = None
        self.overload = Overload(config.server.overload, self.background)
        self.admin = Admin(self, config.admin) if config.admin is not None else None
        self.name_in_via = name.decode("latin-1")
        # Under gunicorn, the other workers of this gateway.
        self.run_directory: str | None = None
        self.siblings: registration.Siblings | None = None
        self._bind = ""
        self._greenlets: list[Task] = []

    # -- life ---------------------------------------------------------------------------

    def start(self, worker: int | str = 0, bind: str = "", persist: bool = False) -> None:
        """Start the greenlets of this worker and wait, bounded, for first answers. `bind`:
        the addresses that are listened on, which tell gateways of one host apart. `persist`: an
        access log that cannot be opened is tried again; otherwise it raises OSError."""
        garbage.seldom()
        garbage.one_arena()
        self.buffers.clean(one.buffer for one in self.store.config.upstreams.values())
        name = _name(self.server.name, bind)
        self._outbound.rename(name)
        self.transport.rename(self._hop(name))
        self.name_in_via = name.decode("latin-1")
        if self.admin is not None:
            self.admin.start(worker)
        # Metrics are made of the log's records, also where none is written.
        logged = self.settings.access_log or AccessLogSettings(path=None)
        observer = self.admin.metrics if self.admin is not None else None
        self._access_log = AccessLog(logged, worker, observer=observer, background=self.background)
        self._access_log.start(persist)
        self._bind = bind
        own = self.admin.listens() if self.admin is not None else ()
        self.store.refuse(Listeners([*bind.split(","), *own]).refusal)
        began = time.monotonic()
        if self._where is not None:
            self._watch = Watch(
                self._where, self.settings, self.reconfigure, self.trouble, run_directory=self.run_directory,
                in_force=lambda: self.store.current.version, background=self.background,
            )  # fmt: skip
            self._watch.begin()
            self._greenlets.append(self.background.start("configuration", self._watch.run))
        if self.store.current.version:
            self.store.restore(self._saved(self.store.config, self.store.waiting, restart=True))
        self._greenlets.append(self.background.start("endpoints file", self._save))
        self._announcer.start(self.store.config.discovery.consul)
        self.store.start()
        self.prober.start(self.run_directory)
        wait = self.settings.discovery.wait
        if not self.settings.version and not self._configured.wait(max(0.0, began + wait - time.monotonic())):
            log.warning("no configuration yet from %s after %s s: everything is answered 503", self.settings.path, wait)
        self._greenlets.append(self.background.start("sweep", self._sweep))
        self.overload.start()

    def _saved(self, config: Config, names: Collection[str], restart: bool) -> dict[str, tuple[Endpoint, ...]]:
        """What siblings know of these upstreams; after a `restart` also what was known before it."""
        found: dict[str, tuple[Endpoint, ...]] = {}
        with garbage.spared():
            for path in (self._shared_endpoints, config.discovery.snapshot if restart else None):
                wanted = {name: config.upstreams[name] for name in names if name not in found}
                if path is not None and any(map(saved_endpoints.source_of, wanted.values())):
                    found |= saved_endpoints.load(path, wanted, config.discovery.deny, Slices())
            garbage.settle(sum(map(len, found.values())))
        return found

    @property
    def _shared_endpoints(self) -> str | None:
        return None if self.run_directory is None else os.path.join(self.run_directory, siblings_copy.ENDPOINTS)

    def _save(self) -> None:
        while True:
            gevent.sleep(SAVE)
            current = self.store.current
            unknown = frozenset(self.store.waiting)
            self._saving.turn(current.config.discovery.snapshot, current, unknown)
            self._sharing.turn(self._shared_endpoints, current, unknown)

    def _hop(self, name: bytes) -> bytes:
        """Our entry for Via in answers."""
        return b"1.1 " + name if self.server.via in ("both", "response") else b""

    def stop(self) -> None:
        """End the greenlets, close idle connections and write out the log."""
        self._announcer.stop()
        for task in self._greenlets:
            task.kill(block=False)
        self._greenlets.clear()
        if self._watch is not None:
            self._watch.stop()
        self.store.stop()
        self.prober.stop()
        self._saving.close()
        self._sharing.close()
        self.overload.stop()
        self._copies.stop()
        self.transport.close()
        if self._access_log is not None:
            self._access_log.stop()
        if self.admin is not None:
            self.admin.stop()

    def reopen(self) -> None:
        """Open the access log's file anew (after it was rotated). Safe in a signal handler."""
        if self._access_log is not None:
            self._access_log.reopen()

    def _registration_for(self, consul: ConsulSettings) -> registration.Registration | None:
        return registration.make(
            consul, self._bind, self.server.own_prefix, self._unready, lambda: self.draining, self.siblings,
            time.monotonic, self.background,
        )  # fmt: skip

    @property
    def _registration(self) -> registration.Registration | None:
        return self._announcer.registration

    def _unready(self) -> str:
        return "" if self.store.ready else "not ready: endpoints are still looked up"

    def _sweep(self) -> None:
        while True:
            gevent.sleep(SWEEP)
            self.transport.expire()
            turn = Slices()
            self._copies.sweep(self.store.current, turn)
            self.store.tidy(turn)
            # Left alone, what watching a thousand services leaves gathers until the collector
            # holds the hub for tens of milliseconds.
            gc.collect(1)

    # -- configurations ----------------------------------------------------------------

    def reconfigure(self, config: Config) -> None:
        """Put another configuration in force while requests go on; its new upstreams are looked
        up first. What gunicorn or the whole process was set up with stays until the workers
        are replaced. Raises ConfigError when it cannot be used. After any exception nothing has changed."""
        with self._reloading:
            self._reconfigure(config)

    def _reconfigure(self, config: Config) -> None:
        self._preparing.append(config)
        try:
            old_contexts = self.transport.known_contexts
            usable, router, contexts = off_hub(lambda: self._ready_for(config, old_contexts))
            self.transport.adopt(contexts)
            before = self.store.config.upstreams
            known = self._saved(usable, self.store.unknown(usable), restart=not self.store.current.version)
            self.store.reconfigure(usable, router, known)
            new = (one.source for name, one in usable.upstreams.items() if before.get(name) is not one)
            garbage.settle(sum(len(source.endpoints) for source in new if isinstance(source, StaticSource)))
        finally:
            self._preparing.remove(config)
            self._prune()
        # Cleared here and not at the swap: by then an even newer document may be broken.
        self.trouble("")
        later = [name for name in FIXED if getattr(config, name) != getattr(self.settings, name)]
        if later and later != self._later:
            log.warning("changed and in force after the next SIGHUP or restart: %s", ", ".join(later))
        self._later = later

    def _ready_for(self, config: Config, known: Collection[ContextKey]) -> tuple[Config, Router, Contexts]:
        """Prepare a configuration: what can come into force of it, the router and the missing TLS contexts. Runs on
        a thread and therefore changes nothing."""
        fixed = {name: getattr(self.settings, name) for name in FIXED}
        usable = replace(alike(config, self.store.config), **fixed)
        return usable, Router(config.routes), self.transport.contexts(config.upstreams.values(), known)

    def _prune(self) -> None:
        """Drop the TLS contexts that neither the configuration in force nor a coming one uses."""
        used = (self.store.config, *self.store.coming, *self._preparing)
        self.transport.prune(upstream for config in used for upstream in config.upstreams.values())

    def trouble(self, error: str) -> None:
        """A newer configuration cannot be used, and why; "" when that is over."""
        self._trouble_of("watch", error)

    def _trouble_of(self, where: str, error: str) -> None:
        if error != self._troubles[where]:
            self._troubles[where] = error
            self._troubled_at = time.time() if any(self._troubles.values()) else None

    @property
    def config_status(self) -> ConfigStatus:
        """The configuration in force, and why a newer one is not."""
        error = "\n".join(filter(None, self._troubles.values()))
        current = self.store.current
        return ConfigStatus(current.version, current.config.path, self.store.adopted_at, error, self._troubled_at)

    # -- snapshots ----------------------------------------------------------------------

    def _join(
        self, upstream: Upstream, endpoints: tuple[Endpoint, ...], before: Group | None, turn: Turn
    ) -> tuple[tuple[Candidate, ...], UpstreamState]:
        """Candidates and state for an upstream of the snapshot that is being built. Changes nothing that the
        snapshot in force uses: new settings are applied after the swap. What did not change since the group
        `before` is taken over."""
        state = self._states.get(upstream.name)
        if state is None:
            state = UpstreamState(upstream, self._balancer(upstream), Budget(time.monotonic))
            self._states[upstream.name] = state
        # If the snapshot never comes into force, `_forget` drops the state.
        self._leaving.add(upstream.name)
        now = time.monotonic()
        members = before.members if before is not None and before.upstream is upstream else {}
        make = partial(self._pool, upstream)
        found: list[Candidate] = []
        # What is known of those that are not taken over, by key: two may have the same.
        known: dict[Key, EndpointState] = {}
        for endpoint in parts(endpoints, turn):
            key = endpoint.key
            candidate = members.get(key)
            if candidate is None or candidate.endpoint is not endpoint:
                if key not in known:
                    known[key] = state.take(endpoint, now, upstream.slow_start)
                candidate = Candidate(endpoint, known[key], make=make)
            found.append(candidate)
        candidates = tuple(found)
        garbage.settle(len(known))
        self._changes.pop(upstream.name, None)
        balancer = state.balancer
        if upstream is not state.upstream:
            self._changes[upstream.name], balancer = state.change(upstream, self._balancer)
        state.outliers.prepare(candidates, now, turn)
        balancer.prepare(candidates, turn)
        return candidates, state

    def _balancer(self, upstream: Upstream) -> Balancer:
        return balancer(upstream, random.random, self._outbound.scheme)

    def _pool(self, upstream: Upstream, endpoint: Endpoint) -> EndpointPool:
        """The pool of an endpoint, for its first request. That may belong to a snapshot which
        is in force no more: then the newer settings count, or nothing is kept."""
        garbage.settle(garbage.POOL)
        group = self._naming(upstream, endpoint)
        if group is not None:
            return self.transport.pool(group.upstream, endpoint)
        pool = self.transport.pool(upstream, endpoint)
        self.transport.drop([pool_key(upstream, endpoint)])
        return pool

    def _naming(self, upstream: Upstream, endpoint: Endpoint) -> Group | None:
        """The group in force, if connections to an endpoint as `upstream` has it may be used in it."""
        group = self.store.current.groups.get(upstream.name)
        member = group.find(endpoint.key, endpoint.server_name) if group is not None else None
        if group is None or member is None:
            return None
        return group if pool_key(group.upstream, member.endpoint) == pool_key(upstream, endpoint) else None

    def _latest(self, group: Group) -> Group:
        """The group in force of the same upstream; `group` itself where that has other settings by now, or is gone: a
        request keeps the settings that it began with."""
        found = self.store.current.groups.get(group.upstream.name)
        return found if found is not None and found.upstream is group.upstream else group

    def _read_fields(self, config: Config) -> None:
        """Find out whether routes or balancers read fields that only a trusted peer may set."""
        self._outbound.replaced = config.deadline_headers()
        self._reads_forwarding = self._outbound.resolves(config.fields())

    def _swapped(self, old: Snapshot | None, new: Snapshot, changed: Mapping[str, Difference]) -> None:
        """Apply a snapshot that has just come into force. `_settle` does what takes long."""
        self._leaving.update(changed)
        for name, different in changed.items():
            group, before = new.groups.get(name), old.groups.get(name) if old is not None else None
            change = self._changes.pop(name, None)
            if change is not None and group is not None:
                change()
            self._states[name].adopt({} if group is None else group.members)
            if before is not None and different.gone:
                self._gone.append((before.upstream, different.gone))
            if group is not None and before is not None and group.upstream is not before.upstream:
                self._changed.append(group)
        if old is None or old.config is new.config:
            return
        self._read_fields(new.config)
        self._configured.set()
        self._announcer.follow(new.config.discovery.consul)
        if self._watch is not None:
            self._watch.wake()
        self._prune()

    def _settle(self, turn: Turn) -> None:
        """Drain the endpoints that are in force no more, and have others take over the settings that are. What an
        exception keeps it from is left for the next call."""
        while self._gone:
            upstream, candidates = first = self._gone[0]
            self._drain(upstream, candidates, turn)
            # Another greenlet may have done the same meanwhile.
            self._gone[:] = [one for one in self._gone if one is not first]
        while self._changed:
            group = self._changed[0]
            self._configure(group, turn)
            self._changed[:] = [one for one in self._changed if one is not group]
        self._forget(self.store.current, turn)

    def _drain(self, upstream: Upstream, candidates: Iterable[Candidate], turn: Turn) -> None:
        """Close the idle connections of endpoints that are gone; those in use are closed when they come back."""
        for candidate in parts(candidates, turn):
            if self._naming(upstream, candidate.endpoint) is None:
                self.transport.drop([pool_key(upstream, candidate.endpoint)])

    def _configure(self, group: Group, turn: Turn) -> None:
        """Have the pools of an upstream take over its settings."""
        for candidate in parts(group.candidates, turn):
            pool = self.transport.known(group.upstream, candidate.endpoint)
            if pool is not None and self.store.current.groups.get(group.upstream.name) is group:
                pool.configure(group.upstream)

    def _forget(self, snapshot: Snapshot, turn: Turn = lambda: None) -> None:
        """Drop the state of endpoints that `snapshot` (in force) does not name, once their last request has ended.
        What is known of an upstream is kept while a configuration with it is coming."""
        for name in list(self._leaving):
            state = self._states.get(name)
            if state is None or (self.store.is_coming(name) and len(state.passing) <= MOST_PASSING):
                continue
            state.forget(turn)
            if not state.others and not state.passing and not self.store.is_coming(name):
                self._leaving.discard(name)
                if name not in self.store.current.groups:
                    self._states.pop(name, None)

    # -- the straight line --------------------------------------------------------------

    def line(self, request: Request, views: bool) -> Response | None:
        """The answer to a request whose client is known; None for a view's, if `views`. Raises GatewayError."""
        snapshot, method = self.store.current, request.method
        request.config_version = snapshot.version
        if method == b"TRACE" or method == b"CONNECT":
            raise UnsupportedMethod(method.decode("latin-1"))
        asked, path = target.read(request.target)
        asked_host = asked.authority
        if asked_host is None:
            asked_host = request.host or request.header(b"host") or b""
        elif method == b"OPTIONS":
            asked = target.for_server(asked, request.target)
        request.host = asked_host
        # HTTP/1.0 may come without a Host: routes without a host have it.
        host = target.host(asked_host) if asked_host else b""
        if path == b"*":
            return self._asterisk(request)
        own = self._own_prefix
        if own is not None and (path.startswith(own) or path == own[:-1]):
            return self._own(request, path)
        if method == b"OPTIONS" and check_max_forwards(request):
            return Response(204, b"No Content", [], bodyless=True)
        if self._views and self._by_view(request, asked.path, path, views):
            return None
        if self.overload.shedding:
            raise self._shed()
        if self._reads_forwarding:
            request.fields = self._outbound.view(request, asked_host)
        route = snapshot.router.match(method, host, path, asked.query, request.fields)
        if route is None:
            raise _no_route(snapshot, host, path)
        if isinstance(asked, AmbiguousTarget):
            readings.check(snapshot.router, snapshot.config.server, request, route, (), asked, path, host)
        request.route = route
        if not route.plain:
            return self._shaper.answer(request, route, snapshot, asked, path, host, asked_host)
        group = snapshot.groups[route.upstream]
        request.upstream = group.upstream
        return self._forwarder.forward(request, route, group, asked, path, asked_host)

    def _by_view(self, request: Request, raw: bytes, path: bytes, views: bool) -> bool:
        """Whether a Flask view answers. Raises BadPath."""
        if views and self._has_view(request, raw):
            return True
        # Flask keeps single-dot segments: without this `/./view` would pass a view on its way to a route.
        if path != raw and target.has_dots(raw) and self._has_view(request, path):
            raise BadPath(f"a single-dot segment in the path of a view: {raw[:80]!r}")
        return False

    def _shed(self) -> GatewayError:
        """The event loop is late: count a rejected request."""
        self.overload.shed += 1
        return Overloaded(f"the hub is {self.overload.lag:.3f} s late", retry_after=RETRY_AFTER)

    def _asterisk(self, request: Request) -> Response:
        """`OPTIONS *` is about the server, which is the gateway (RFC 9110 §9.3.7)."""
        if request.method != b"OPTIONS":
            raise BadRequest("a target of * is for OPTIONS alone")
        return Response(204, b"No Content", [], bodyless=True)

    def _own(self, request: Request, path: bytes) -> Response:
        """The gateway's own paths: on any Host, before routes and views, never forwarded."""
        assert self._own_prefix is not None
        name = path[len(self._own_prefix) :]
        if name == b"healthz" or name == b"readyz":
            return self.health(request, name)
        if self.admin is not None and self.admin.is_inline:
            return self.admin.inline(request, name)
        raise NoRoute(f"{path[:80]!r} is none of the gateway's own paths")

    def health(self, request: Request, name: bytes) -> Response:
        """`healthz`: the process lives. `readyz`: it may be sent requests."""
        if name == b"healthz":
            return _plain(request, 200, b"OK", b"ok\n")
        if self.draining:
            return _plain(request, 503, b"Service Unavailable", b"draining\n")
        if not self.store.ready:
            told = b"not_ready: no configuration yet\n"
            if self.store.current.version:
                told = b"not_ready: no answer yet for %d upstream(s)\n" % len(list(self.store.waiting))
            return _plain(request, 503, b"Service Unavailable", told)
        return _plain(request, 200, b"OK", b"ready\n")

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        """The exchange is over, well or badly: one log line."""
        if error is not None:
            request.fail(error)
        if self._access_log is None:
            return
        status = response.status if response is not None else error.status if error is not None else 0
        took = time.monotonic() - request.started
        # A request that was rejected before it took a snapshot has none.
        version = request.config_version or self.store.current.version
        self._access_log.record(request, status, bytes_out, took, version)

    # -- for those who watch ------------------------------------------------------------

    def identify(self, request: Request) -> None:
        """Give a request its id and the client's address."""
        self._outbound.identify(request)

    def trusts(self, peer: str) -> bool:
        """Whether a peer is one of `server.trusted_proxies`."""
        return self._outbound.trusts(peer)

    def in_flight(self) -> int:
        """Requests that an upstream has, those of endpoints that are gone included."""
        return sum(state.in_flight for state in self._states.values())

    def access_log_losses(self) -> tuple[int, int]:
        """Records dropped and lines lost."""
        return (self._access_log.dropped, self._access_log.lost) if self._access_log is not None else (0, 0)

def _no_route(snapshot: Snapshot, host: bytes, path: bytes) -> GatewayError:
    """Why no route was found."""
    if not snapshot.version:
        return NotReady("there is no configuration yet")
    return NoRoute(f"no route for {host.decode('latin-1')} {path[:200].decode('latin-1')}")


def _plain(request: Request, status: int, reason: bytes, body: bytes) -> Response:
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Cache-Control", b"no-store")]
    bodyless = request.method == b"HEAD"
    return Response(
        status, reason, headers, content_length=len(body), data=b"" if bodyless else body, bodyless=bodyless
    )


def _name(given: str | None, bind: str) -> bytes:
    """By default gw- and 8 hex digits of a hash of host name and bind: the same for all
    workers of one gateway and, most likely, for no other."""
    if given is None:
        seed = f"{socket.gethostname()} {bind}"
        given = f"gw-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
    return given.encode("latin-1")


class _RequestIds:
    """Request ids: 16 random hex digits for this process, 16 that count. Unique, not secret."""

    __slots__ = ("__weakref__", "_count", "_prefix")

    def __init__(self) -> None:
        self._renew()
        # Made before the fork (--preload), each worker must have a prefix of its own.
        this = weakref.ref(self)

        def renew() -> None:
            ids = this()
            if ids is not None:
                ids._renew()

        os.register_at_fork(after_in_child=renew)

    def _renew(self) -> None:
        self._prefix = os.urandom(8).hex().encode()
        self._count = itertools.count(1)

    def __call__(self) -> bytes:
        return b"%b%016x" % (self._prefix, next(self._count))


__all__ = ["Gateway", "create_app"]
