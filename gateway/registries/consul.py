"""Consul's HTTP API, as much of it as the gateway needs: health, one key, the agent's services.

Rule: an answer is Consul's and whole, or it is a `RegistryError`. One instance keeps one
connection and asks one thing at a time; what is under way is given up, and its connection
closed, when the asking greenlet is killed.

python-consul2 builds the queries (`Health`, `KV`, `Agent`); its
client is not used, because there the environment beats the arguments, proxies and redirects
are followed with the token, and nothing is bounded. py-consul, its younger sibling of the
same import name, does as well.
"""

from __future__ import annotations

import base64
import functools
import importlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import consul.base
import gevent
import urllib3
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from gateway.model import ConsulSettings, ConsulSource, ConsulTls
from gateway.registries import RefusedError, RegistryError, one_line
from gateway.registries.json_pieces import SMALL, Body, Pieces, parts
from gateway.runtime.hub import Slices

log = logging.getLogger("gateway.registries")

# py-consul keeps them in modules of their own.
_apis: Any = consul.base.Consul
if not hasattr(_apis, "Health"):
    _apis = importlib.import_module("consul.api")
    _apis = SimpleNamespace(Agent=_apis.agent.Agent, Health=_apis.health.Health, KV=_apis.kv.KV)

# An answer for which nothing is waited is given up after the poll interval, within these bounds.
LEAST_TIMEOUT, MOST_TIMEOUT = 1.0, 5.0
# Consul adds up to a sixteenth to the wait of a blocking query, so that they do not end together.
WAIT_SPREAD = 1 / 16
# The largest answer. 10,000 instances with a dozen checks each are some 30 MB.
MOST_BYTES = 64 * 1024 * 1024
# The largest instance in an answer: Consul allows 41 KB of metadata and 4 KB of output a check.
MOST_ENTRY = 512 * 1024

# An index is a number of 64 bits.
MOST_DIGITS = 20

_PIECE = 256 * 1024
_HERE = {"127.0.0.1", "::1", "localhost"}

# An agent takes `limits.http_max_conns_per_client` connections (200) from one address. Those
# beyond it are answered with 429, or by older agents closed without a word. From then on and
# for so long this process asks without waiting and closes each connection, so that there is
# room for everybody.
CROWDED = 600.0


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer. The library's own callbacks would not do: they insist on an index, and take `{}`
    for a key that is not there."""

    code: int
    headers: Mapping[str, Any]
    body: Body
    told: str

    def in_pieces(self, turn: Callable[[], object]) -> object:
        """What the body holds; a large list is an iterator of its entries."""
        if isinstance(self.body, list):
            pieces = Pieces(self.body, turn, MOST_ENTRY)
            if pieces.next() == "[":
                return self._entries(pieces)
        return self.decoded()

    def decoded(self) -> object:
        try:
            return json.loads(_whole(self.body))
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{self.told}: not JSON: {_text(self.body)}") from error

    def _entries(self, pieces: Pieces) -> Iterator[object]:
        try:
            yield from pieces.elements()
            pieces.end()
        except RegistryError as error:
            raise RegistryError(f"{self.told}: {error}: {_text(self.body)}") from error

    def index(self) -> int | None:
        """`X-Consul-Index`, at least 1 as Consul's rules have it; None when there is none."""
        told = self.headers.get("X-Consul-Index", "")
        return max(1, int(told)) if told.isascii() and told.isdigit() and len(told) <= MOST_DIGITS else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the health API. `index` None: the registry gave none to wait with.
    `body` is what came; `payload` decodes it, by `in_pieces` where that is given. `filtered`: without
    the instances that the token may not see."""

    body: Body
    index: int | None
    known_leader: bool
    decode: Callable[[], object] = field(compare=False)
    filtered: bool = False
    in_pieces: Callable[[Callable[[], object]], object] | None = field(default=None, compare=False)

    def payload(self, turn: Callable[[], object] | None = None) -> object:
        """What the body holds. With a `turn`, which is called between two entries, a large list is an
        iterator. Raises `RegistryError`, or its iterator does, when the body is not JSON."""
        return self.decode() if turn is None or self.in_pieces is None else self.in_pieces(turn)


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """What a key holds; None: there is no such key. `index` as in `Answer`."""

    value: bytes | None
    index: int | None


@dataclass(slots=True)
class Room:
    """Whether an agent has room for connections that wait; shared by all that ask it."""

    crowded_until: float = 0.0
    # When anybody was last answered.
    answered: float = 0.0

    def refuse(self, agent: str) -> None:
        if not self.crowded:
            log.warning(
                "%s takes no more connections from here (limits.http_max_conns_per_client): it is asked without "
                "waiting for changes for %g minutes",
                agent,
                CROWDED / 60,
            )
        self.crowded_until = time.monotonic() + CROWDED

    @property
    def crowded(self) -> bool:
        return time.monotonic() < self.crowded_until


@functools.cache
def _room(address: str) -> Room:
    return Room()


class ConsulApi:
    """Has the attributes that python-consul2 asks of its agent: `http`, `token`, `dc`, `consistency`.

    Every method raises `RegistryError` when there is no whole answer in time.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self.http = self
        self.token = settings.token or None
        self.dc = settings.datacenter
        self.consistency = "default"
        address = settings.address.rstrip("/")
        address = address if "://" in address else f"http://{address}"
        # For logs: without user and password.
        self._shown = address.rsplit("@", 1)[-1] if "@" in address else address
        self._stale = settings.stale
        self._timeout = min(max(settings.poll, LEAST_TIMEOUT), MOST_TIMEOUT)
        self._address = address
        self._tls = _tls_arguments(settings.tls) if address.startswith("https:") else {}
        self._pool = self._new_pool()
        self._room = _room(address)
        self._within = self._timeout
        self._turned_away: float | None = None
        self._health, self._kv, agent = _apis.Health(self), _apis.KV(self), _apis.Agent(self)
        self._services, self._checks = agent.service, agent.check

    def _new_pool(self) -> urllib3.HTTPConnectionPool:
        # No proxies of the environment: the registry is where the configuration says.
        return urllib3.connection_from_url(self._address, maxsize=1, retries=False, **self._tls)

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        self._pool.close()
        self._pool = self._new_pool()

    # -- questions ----------------------------------------------------------------------

    def passing(self, source: ConsulSource, index: int | None = None, wait: float = 0.0) -> Answer:
        """The passing instances of a service. With an `index` the answer comes when the
        registry is past it, or after `wait` seconds (and a sixteenth) at the latest."""
        crowded = self._room.crowded
        asked = self._waiting(None if crowded else index, wait)
        reply = self._health.service(source.service, passing=True, tag=source.tag, **asked)
        return Answer(
            body=reply.body,
            # Without an index nobody waits, and holds a connection while waiting.
            index=None if crowded else reply.index(),
            known_leader=reply.headers.get("X-Consul-KnownLeader", "true").lower() != "false",
            filtered=reply.headers.get("X-Consul-Results-Filtered-By-ACLs", "").lower() == "true",
            decode=reply.decoded,
            in_pieces=reply.in_pieces,
        )

    def key(self, name: str, index: int | None = None, wait: float = 0.0) -> KeyAnswer:
        """What a key holds; waits like `passing`."""
        crowded = self._room.crowded
        asked = self._waiting(None if crowded else index, wait)
        reply = self._kv.get(name.lstrip("/"), **asked)
        value = None if reply.code == 404 else self._value(reply.body)
        return KeyAnswer(value, None if crowded else reply.index())

    def _value(self, body: Body) -> bytes:
        """The value in a key's answer."""
        try:
            (entry,) = json.loads(_whole(body))
            # A key without a value is there all the same.
            return base64.b64decode(entry["Value"] or "", validate=True)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise RegistryError(f"{self._shown}: not a key's value: {_text(body)}") from error

    def _waiting(self, index: int | None, wait: float) -> dict[str, Any]:
        """The arguments of a blocking query; of a plain one when there is no index."""
        self._within = self._timeout
        if index is None:
            return {}
        self._within += wait * (1 + WAIT_SPREAD)
        return {"index": index, "wait": f"{max(1, round(wait * 1000))}ms"}

    # -- this gateway as a service ------------------------------------------------------

    def register(self, service: Mapping[str, Any], within: float | None = None) -> None:
        """Announce a service to the agent; keys as in Consul's API, in lower case. One that
        is there already is replaced."""
        self._within = within or self._timeout
        self._services.register(
            service["name"],
            service_id=service["id"],
            address=service.get("address"),
            port=service["port"],
            tags=service.get("tags"),
            check=service["check"],
        )

    def deregister(self, ident: str, within: float | None = None) -> None:
        self._within = within or self._timeout
        self._services.deregister(quote(ident, safe=""))

    def report(self, ident: str, passing: bool, note: str) -> None:
        """The state of a service's TTL check. Raises `RefusedError`, or in older agents another
        `RegistryError`, when the agent does not know it."""
        self._within = self._timeout
        tell = self._checks.ttl_pass if passing else self._checks.ttl_fail
        tell(quote(f"service:{ident}", safe=""), notes=note)

    def registered(self, ident: str) -> bool:
        """Whether the agent knows a service."""
        self._within = self._timeout
        headers = {"X-Consul-Token": self.token} if self.token else {}
        path = f"/v1/agent/service/{quote(ident, safe='')}"
        return self._exchange("GET", path, headers, None, missing=True).code != 404

    # -- what python-consul2 calls ------------------------------------------------------

    def get(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: list[tuple[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
        **_: object,
    ) -> _Reply:
        """A query sent; the reply is decoded by whoever wants to."""
        query = [*(params or ()), *([("stale", "")] if self._stale else ())]
        target = f"{quote(path)}?{urlencode(query)}" if query else quote(path)
        # A key that is not there is an answer, a service that is not there an empty list.
        return self._exchange("GET", target, headers, None, missing=path.startswith("/v1/kv/"))

    def put(
        self,
        callback: Callable[[Any], Any],
        path: str,
        params: list[tuple[str, Any]] | None = None,
        data: str | None = None,
        headers: dict[str, str] | None = None,
        **_: object,
    ) -> _Reply:
        query = f"?{urlencode(params)}" if params else ""
        body = data.encode() if data is not None else b""
        return self._exchange("PUT", path + query, headers, body)

    def prepare_headers(self, token: str | None = None) -> dict[str, str]:
        """What py-consul asks of its agent."""
        sent = token or self.token
        return {"X-Consul-Token": sent} if sent else {}

    # -- the wire -----------------------------------------------------------------------

    def _exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        missing: bool = False,
    ) -> _Reply:
        """One request and its whole answer within `_within` seconds."""
        late = gevent.Timeout(self._within)
        try:
            with late:
                status, fields, got = self._send(method, target, headers or {}, body)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            raise RegistryError(f"{self._shown}: no answer in {self._within:g} s") from None
        except (HTTPError, OSError) as error:
            root = _root(error)
            if isinstance(root, ConnectionResetError):
                self._closed()
            raise RegistryError(f"{self._shown}: {one_line(f'{type(root).__name__}: {root}')}") from error
        self._turned_away = None
        self._room.answered = time.monotonic()
        if status == 429:
            self._room.refuse(self._shown)
        if status != 200 and not (missing and status == 404):
            kind = RefusedError if 400 <= status < 500 else RegistryError
            raise kind(f"{self._shown}: HTTP {status}: {_text(got)}")
        return _Reply(status, fields, got, self._shown)

    def _closed(self) -> None:
        """The agent has closed a connection without an answer. When it has closed the one before,
        too, and answered others meanwhile, then it has no room for this one."""
        if self._turned_away is not None and self._turned_away < self._room.answered:
            self._room.refuse(self._shown)
        self._turned_away = time.monotonic()

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, Any], Body]:
        # On one machine packing costs both sides more than it saves.
        coding = "identity" if self._pool.host in _HERE else "gzip"
        sent = {**headers, "Accept-Encoding": coding, "User-Agent": "wsgi-gateway"}
        if self._room.crowded:
            sent["Connection"] = "close"
        answer = self._pool.urlopen(
            method,
            target,
            body=body,
            headers=sent,
            redirect=False,
            preload_content=False,
            timeout=self._within,
        )
        try:
            got: list[bytes] = []
            size = 0
            for piece in Slices().over(answer.stream(_PIECE, decode_content=True)):
                got.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise RegistryError(f"{self._shown}: the answer is larger than {MOST_BYTES} bytes")
        except BaseException:
            # What is left of the answer must not be read as the next one's.
            answer.close()
            raise
        finally:
            answer.release_conn()
        return answer.status, answer.headers, b"".join(got) if size <= SMALL else got


def _tls_arguments(tls: ConsulTls) -> dict[str, Any]:
    """urllib3's arguments. Files are read when a connection is made, so that renewed ones are used."""
    found: dict[str, Any] = {"ca_certs": tls.ca, "cert_file": tls.cert, "key_file": tls.key}
    if not tls.verify:
        found["cert_reqs"] = "CERT_NONE"
        # urllib3 would print one with each connection; `gateway check` and the log have said so.
        urllib3.disable_warnings(InsecureRequestWarning)
    return {name: value for name, value in found.items() if value is not None}


def _whole(body: Body) -> bytes:
    return b"".join(body) if isinstance(body, list) else body


def _text(body: Body) -> str:
    """The beginning of a foreign text, fit for a log line: printable, on one line, short."""
    body = next(parts(body), b"")
    return one_line(body[:1000].decode("utf-8", "replace"))


def _root(error: BaseException) -> BaseException:
    """The cause under the layers of urllib3, whose texts name objects by address."""
    found: BaseException = error
    while found.__context__ is not None:
        found = found.__context__
    return found
