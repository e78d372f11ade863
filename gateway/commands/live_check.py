"""Is what the configuration names there? Registries, endpoints, and how long they keep connections.

Rule: what a worker would do, once: each provider gives one answer, each endpoint is
connected to with the transport's own connection (TLS and verification included) and asked
`HEAD` of its base path, which changes nothing, and what its health check asks. Everything is
bounded, and runs at once as far as `AT_ONCE` allows; what is not known in time is told as that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gevent
from gevent.event import AsyncResult, Event
from gevent.pool import Pool

from gateway.checks import check as health
from gateway.commands.wording import columns, told_source
from gateway.errors import BadResponse, ConfigError, GatewayError
from gateway.model import Config, DiscoverySettings, Endpoint, HealthCheck, StaticSource, Upstream
from gateway.providers import Update, make
from gateway.transport import Transport, probe
from gateway.transport.connection import Connection

# Connections and look-ups at any time, and seconds for all of them together.
AT_ONCE = 32
WHOLE = 30.0
# A provider gives up an attempt after 5 s at most (providers/consul.py, providers/names.py).
LOOK_UP = 6.0
# For connections where timeouts.connect sets no limit, and for the answer to HEAD.
CONNECT, ANSWER = 5.0, 2.0

OK, WARNING, WRONG = "ok", "warning", "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one endpoint (or, without an address, of the upstream)."""

    verdict: str
    address: str
    told: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out about one upstream."""

    upstream: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> bool:
        return any(finding.verdict == WRONG for finding in self.findings)


# Why an endpoint may not be one; "" when it may.
Refusal = Callable[[Endpoint], str]


def check(config: Config, whole: float = WHOLE, refusal: Refusal = lambda endpoint: "") -> list[Checked]:
    """Ask for every upstream of a configuration, within `whole` seconds. Endpoints that `refusal` refuses are not
    connected to, as the gateway would not use them."""
    pool = Pool(AT_ONCE)
    transport = Transport(b"")
    groups = {
        upstream.name: _Group(upstream, config.discovery, transport, refusal) for upstream in config.upstreams.values()
    }
    late = gevent.Timeout(whole)
    try:
        with late:
            for _ in pool.imap_unordered(_Group.look_up, groups.values()):
                pass
            for _ in pool.imap_unordered(_Task.run, [task for group in groups.values() for task in group.tasks]):
                pass
    except gevent.Timeout as timeout:
        if timeout is not late:
            raise
    finally:
        pool.kill()
        transport.close()
    return [group.checked(whole) for group in groups.values()]


class _Group:
    """One upstream while it is looked at."""

    def __init__(
        self, upstream: Upstream, discovery: DiscoverySettings, transport: Transport, refusal: Refusal
    ) -> None:
        self.upstream = upstream
        self._refusal = refusal
        self._discovery = discovery
        self.transport = transport
        self.tasks: list[_Task] = []
        self._findings: list[Finding] = []
        self._looked_up = False

    def look_up(self) -> None:
        update = _first_update(self.upstream, self._discovery)
        self._looked_up = True
        # What takes no traffic may well be down.
        endpoints = self._judged([endpoint for endpoint in update.endpoints or () if endpoint.weight])
        if update.error:
            self._findings.append(Finding(WRONG, "", update.error))
        elif not endpoints:
            self._findings.append(Finding(WRONG, "", "; ".join(("has no endpoint", *update.refused))))
        try:
            self.transport.prepare(self.upstream)
        except ConfigError as error:
            self._findings.append(Finding(WRONG, "", str(error)))
            return
        self.tasks = [_Task(self, endpoint) for endpoint in endpoints]

    def _judged(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        """The endpoints that would be used; the others are findings."""
        reasons = {endpoint: reason for endpoint in endpoints if (reason := self._refusal(endpoint))}
        self._findings += [Finding(WARNING, one.address, f"is not used: {why}") for one, why in reasons.items()]
        return [endpoint for endpoint in endpoints if endpoint not in reasons]

    def checked(self, whole: float) -> Checked:
        """What is known by now."""
        late = f"not known after {whole:g} s"
        findings = list(self._findings)
        if not self._looked_up:
            findings.append(Finding(WRONG, "", late))
        findings += [task.found or Finding(WRONG, task.endpoint.address, late) for task in self.tasks]
        return Checked(self.upstream.name, told_source(self.upstream.source), tuple(findings))


def _first_update(upstream: Upstream, discovery: DiscoverySettings) -> Update:
    """The first thing that the provider of an upstream says."""
    provider = make(upstream, discovery)
    if provider is None:
        assert isinstance(upstream.source, StaticSource)
        return Update(upstream.name, upstream.source.endpoints)
    said: Any = AsyncResult()
    stop = Event()

    def emit(update: Update) -> None:
        if not said.ready():
            said.set(update)

    running = gevent.spawn(provider.run, emit, stop)
    try:
        return cast(Update, said.get(timeout=LOOK_UP))
    except gevent.Timeout:
        return Update(upstream.name, None, f"no answer in {LOOK_UP:g} s")
    finally:
        stop.set()
        running.kill(block=False)


class _Task:
    """One endpoint: connect, shake hands, ask HEAD and, where there is a health check, that."""

    def __init__(self, group: _Group, endpoint: Endpoint) -> None:
        self._group = group
        self.endpoint = endpoint
        self.found: Finding | None = None

    def run(self) -> None:
        self.found = self._look()
        check = self._group.upstream.health
        if check is not None and not check.tcp and self.found.verdict != WRONG:
            fault = self._checked(check)
            if fault:
                self.found = self._finding(WRONG, f"its health check fails: {fault}")

    def _checked(self, check: HealthCheck) -> str:
        """What is wrong with the answer to a health check; "" when it is good."""
        upstream, endpoint = self._group.upstream, self.endpoint
        try:
            return health.fault(
                check,
                probe.ask(self._group.transport, upstream, endpoint, health.question(check, endpoint), check.timeout),
            )
        except GatewayError as error:
            return f"{error.reason}: {error.cause}"

    def _look(self) -> Finding:
        upstream, endpoint = self._group.upstream, self.endpoint
        pool = self._group.transport.pool(upstream, endpoint)
        # As the pool itself makes them; nobody else uses this one.
        connection = cast(Connection, pool._new_conn())
        try:
            connection.open(endpoint.address, upstream.timeouts.connect or CONNECT)
        except GatewayError as error:
            return self._finding(WRONG, f"{error.reason}: {error.cause}")
        try:
            return self._judge(_kept_for(connection, upstream, endpoint))
        except BadResponse as error:
            return self._finding(WARNING, f"does not answer HEAD as HTTP: {error.cause}")
        except (OSError, EOFError, GatewayError) as error:
            told = f"does not answer HEAD ({error}), so that it cannot be said how long it keeps idle connections"
            return self._finding(OK, told)
        finally:
            connection.stream.close()

    def _judge(self, kept: int | None) -> Finding:
        ours = self._group.upstream.pool.idle_timeout
        if kept is None:
            return self._finding(OK, "does not say how long it keeps idle connections")
        if ours is not None and ours < kept:
            return self._finding(OK, f"keeps idle connections {kept} s")
        told = "not limited" if ours is None else f"{ours:g} s"
        return self._finding(WARNING, f"keeps idle connections {kept} s; pool.idle_timeout is {told} (make it less)")

    def _finding(self, verdict: str, told: str) -> Finding:
        return Finding(verdict, self.endpoint.address, told)


def _kept_for(connection: Connection, upstream: Upstream, endpoint: Endpoint) -> int | None:
    """The seconds for which an endpoint says that it keeps idle connections; None: it does not say.

    Servers may say so only to those who ask for `keep-alive` in so many words (RFC 2068 §19.7.1.1).
    """
    host = endpoint.authority if upstream.host in ("preserve", "upstream") else upstream.host.encode("latin-1")
    path = (endpoint.base_path or b"/") + (b"?" + endpoint.query if endpoint.query else b"")
    request = b"HEAD %b HTTP/1.1\r\nHost: %b\r\nConnection: keep-alive\r\n\r\n"
    connection.stream.send(request % (path, host or endpoint.address.encode("latin-1")), ANSWER)
    connection.reader.begin(upstream.limits)
    connection.reader.limit(ANSWER, None)
    return connection.reader.read_head(True, None, b"").keep_alive


def told(found: Sequence[Checked]) -> Iterator[str]:
    """What was found, as lines of text."""
    for one in found:
        yield f"upstream {one.upstream} ({one.source})"
        rows = [(finding.verdict, finding.address or "-", finding.told) for finding in one.findings]
        yield from (f"  {line}" for line in columns(rows))
