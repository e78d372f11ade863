"""Endpoints that Consul's health API reports as passing, asked every `poll` seconds.

Rule: an answer counts only when it is Consul's and whole. Whatever else happens (refused,
late, 500, 403, a login page, half a list) is an error, and an error is not an update. An
empty list is doubted when the registry has just been away or has lost its memory, because
on its return every service is critical or unknown for a while: `Belief` says for how long.

python-consul2 builds the query (`Consul.Health`); its client is not used, because there the
environment beats the arguments, proxies and redirects are followed with the token, and
nothing is bounded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import quote, urlencode

import gevent
import requests
from consul.base import Consul, Response

from gateway.model import ConsulSettings, ConsulSource, DiscoverySettings, Endpoint, Upstream
from gateway.providers.addresses import allowed, host, networks
from gateway.providers.base import Clock, Emit, Journal, Random, Status, Stop, Update, log, one_line, spread
from gateway.providers.names import Names, Threads, expand, is_name
from gateway.registries import RegistryError

# A request is given up after the poll interval, within these bounds.
LEAST_TIMEOUT, MOST_TIMEOUT = 1.0, 5.0
# 10,000 instances with a dozen checks each are some 30 MB.
MOST_BYTES = 64 * 1024 * 1024

# So many empty answers are doubted after a failure: checks need their first interval (10 s
# are usual) before anything passes.
DOUBTED = 3


class DoubtfulError(RegistryError):
    """An empty answer that may well be the registry's fault."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the health API. `index` is None when the registry gave none."""

    payload: object
    index: int | None
    known_leader: bool


class HealthApi:
    """GET /v1/health/service/<name>?passing over one connection that is kept.

    Has the attributes that `Consul.Health` asks of its agent: `http`, `token`, `dc`.
    """

    def __init__(self, settings: ConsulSettings, timeout: float) -> None:
        self.http = self
        self.token = settings.token or None
        self.dc = settings.datacenter
        address = settings.address.rstrip("/")
        self._address = address if "://" in address else f"http://{address}"
        # For logs: without user and password.
        self._shown = self._address.rsplit("@", 1)[-1]
        self._stale = settings.stale
        self._timeout = timeout
        self._session = requests.Session()
        # No proxies, no .netrc: the registry is where the configuration says.
        self._session.trust_env = False
        self._health = Consul.Health(self)
        self._headers: Mapping[str, str] = {}

    def passing(self, source: ConsulSource) -> Answer:
        """Raises `RegistryError` when there is no whole answer in time."""
        late = gevent.Timeout(self._timeout)
        try:
            with late:
                _, payload = self._health.service(source.service, passing=True, tag=source.tag)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            raise RegistryError(f"{self._shown}: no answer in {self._timeout:g} s") from None
        except OSError as error:
            # requests' own errors are OSErrors, too.
            raise RegistryError(f"{self._shown}: {_root(error)}") from error
        index = self._headers.get("X-Consul-Index", "")
        return Answer(
            payload=payload,
            index=int(index) if index.isascii() and index.isdigit() else None,
            known_leader=self._headers.get("X-Consul-KnownLeader", "true").lower() != "false",
        )

    def get(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """What `Consul.Health` calls to have its query sent and its answer decoded."""
        query = [*(params or ()), *([("stale", "")] if self._stale else ())]
        url = f"{self._address}{quote(path)}?{urlencode(query)}"
        timeout = self._timeout
        with self._session.get(url, headers=headers, timeout=timeout, allow_redirects=False, stream=True) as answer:
            body = self._body(answer)
            if answer.status_code != requests.codes.ok:
                raise RegistryError(f"{self._shown}: HTTP {answer.status_code}: {one_line(_text(body))}")
            self._headers = answer.headers
        try:
            # The library insists on an index, which a poll has no use for.
            return callback(Response(answer.status_code, {"X-Consul-Index": None}, body, body))
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{self._shown}: not JSON: {one_line(_text(body))}") from error

    def _body(self, answer: requests.Response) -> bytes:
        body = bytearray()
        for piece in answer.iter_content(65536):
            body += piece
            if len(body) > MOST_BYTES:
                raise RegistryError(f"{self._shown}: the answer is larger than {MOST_BYTES} bytes")
        return bytes(body)


def _text(body: bytes) -> str:
    return body[:1000].decode("utf-8", "replace")


def _root(error: BaseException) -> str:
    """The cause under the layers of requests and urllib3, whose texts name objects by address."""
    found: BaseException = error
    while found.__context__ is not None:
        found = found.__context__
    return one_line(f"{type(found).__name__}: {found}")


# -- decoding -------------------------------------------------------------------------


class _BadEntryError(Exception):
    """An entry of a health answer cannot be an endpoint."""


def decode(payload: object, upstream: Upstream) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """The endpoints of a health answer in a stable order, and why entries were left out.

    One bad entry costs itself only; two entries with one address are one endpoint.
    """
    if not isinstance(payload, list):
        raise RegistryError(f"the answer is not a list but: {one_line(payload)}")
    found: dict[tuple[str, int], Endpoint] = {}
    reasons: list[str] = []
    for entry in payload:
        try:
            endpoint = _endpoint(entry, upstream)
        except _BadEntryError as error:
            reasons.append(str(error))
            continue
        place = (endpoint.host, endpoint.port)
        other = found.get(place)
        if other is None or other.weight < endpoint.weight:
            found[place] = endpoint
    return tuple(found[place] for place in sorted(found)), tuple(reasons)


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
    return passing if _whole(passing) and passing >= 0 else 1


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
    - the registry was away until now: then `DOUBTED` times.
    """

    index: int | None = None
    some_known: bool = False
    forgot: bool = False
    doubts: int = 0

    def failed(self) -> None:
        """No answer at all."""
        self.doubts = DOUBTED

    def judge(self, answer: Answer, empty: bool) -> None:
        """Raises `DoubtfulError` when an empty answer is not to be believed."""
        before = self.index
        if answer.index is not None:
            self.index = answer.index
        if not empty:
            self.some_known, self.forgot, self.doubts = True, False, 0
            return
        if not self.some_known:
            return
        if before is not None and answer.index is not None and answer.index < before:
            self.forgot = True
        if self.forgot:
            raise DoubtfulError(f"an empty answer from a registry that lost its memory (index {answer.index})")
        if not answer.known_leader:
            raise DoubtfulError("an empty answer from a server that knows no leader")
        if self.doubts > 0:
            self.doubts -= 1
            raise DoubtfulError("an empty answer from a registry that was away until now")
        self.some_known = False


# -- the loop -------------------------------------------------------------------------


class ConsulProvider:
    """The passing instances of one service."""

    def __init__(
        self,
        upstream: Upstream,
        ask: Callable[[], Answer],
        settings: DiscoverySettings,
        names: Names,
        clock: Clock,
        random: Random,
    ) -> None:
        self.upstream = upstream.name
        self._of = upstream
        self._ask = ask
        self._poll = settings.consul.poll
        self._deny = networks(settings.deny)
        self._names = names
        self._random = random
        self._journal = Journal(upstream, clock)
        self._belief = Belief()

    @property
    def status(self) -> Status:
        return self._journal.status

    def run(self, emit: Emit, stop: Stop) -> None:
        while not stop.is_set():
            emit(self._round())
            stop.wait(spread(self._poll, self._random))

    def _round(self) -> Update:
        self._journal.attempt()
        try:
            endpoints = self._endpoints()
        except DoubtfulError as error:
            return self._failed(str(error))
        except RegistryError as error:
            self._belief.failed()
            return self._failed(str(error))
        except Exception as error:
            # A poll that dies is worse than whatever this was: it would never be noticed.
            log.exception("upstream %s: discovery failed for a reason of our own", self.upstream)
            return self._failed(one_line(f"{type(error).__name__}: {error}"))
        self._journal.success()
        return Update(self.upstream, endpoints)

    def _failed(self, error: str) -> Update:
        self._journal.failure(error)
        return Update(self.upstream, None, error)

    def _endpoints(self) -> tuple[Endpoint, ...]:
        answer = self._ask()
        told, bad = decode(answer.payload, self._of)
        self._belief.judge(answer, empty=not told)
        # An agent may be told a name in the place of an address.
        errors = self._names.refresh(e.host for e in told if is_name(e))
        found = expand(told, self._names.addresses)
        if errors and not found:
            raise RegistryError("; ".join(errors))
        endpoints, refused = allowed(found, self._deny)
        self._journal.refused((*bad, *errors, *refused))
        return endpoints


def make(
    upstream: Upstream,
    source: ConsulSource,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> ConsulProvider:
    api = HealthApi(settings.consul, min(max(settings.consul.poll, LEAST_TIMEOUT), MOST_TIMEOUT))
    return ConsulProvider(upstream, lambda: api.passing(source), settings, Names(Threads(), clock), clock, random)
