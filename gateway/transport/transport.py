"""Every pool of a worker, by endpoint and TLS settings.

Rule: what an endpoint is for the network decides whether connections may be shared: its
key, the server name and the TLS settings. Pools outlive snapshots; those that no snapshot
names any more are retired.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

from urllib3 import PoolManager

from gateway.errors import NoNetworkRoute
from gateway.model import Endpoint, TlsSettings, Upstream
from gateway.transport import tls
from gateway.transport.connection import Connection, PlainConnection, TlsConnection
from gateway.transport.pool import EndpointPool, TlsEndpointPool

PoolKey = tuple[str, tuple[str, str, int, bytes], str | None, TlsSettings | None]
ContextKey = tuple[str, TlsSettings]
Contexts = dict[ContextKey, Any]


def pool_key(upstream: Upstream, endpoint: Endpoint) -> PoolKey:
    """Where this is equal, connections may be shared."""
    settings = (upstream.tls or TlsSettings()) if endpoint.scheme == "https" else None
    return (upstream.name, endpoint.key, endpoint.server_name, settings)


def _tls(upstream: Upstream) -> TlsSettings | None:
    """How an upstream speaks TLS; None when it speaks none."""
    return upstream.tls or (TlsSettings() if upstream.scheme == "https" else None)


class Transport(PoolManager):
    """urllib3's PoolManager with our pools plugged in. `hop` is our entry for Via in answers.
    `beside`: one with pools of its own, whose TLS contexts this one uses."""

    def __init__(self, hop: bytes, beside: Transport | None = None) -> None:
        super().__init__(num_pools=1)
        self.pool_classes_by_scheme = {"http": EndpointPool, "https": TlsEndpointPool}
        self._hop = hop
        self._beside = beside
        # urllib3's own container drops the least recently used pool; ours are dropped by
        # `drop` alone.
        self._by_endpoint: dict[PoolKey, EndpointPool] = {}
        self._contexts: Contexts = {}

    def rename(self, hop: bytes) -> None:
        """Write another entry into Via from now on."""
        self._hop = hop
        for pool in self._by_endpoint.values():
            pool.hop = hop

    def prepare(self, upstream: Upstream) -> None:
        """Make what takes long (TLS contexts) ahead of traffic. Raises ConfigError."""
        self.adopt(self.contexts([upstream]))

    def contexts(self, upstreams: Iterable[Upstream], known: Collection[ContextKey] = ()) -> Contexts:
        """Make the TLS contexts of upstreams except those that are `known`. Changes nothing in the transport, so
        that it can run on a thread. Raises ConfigError."""
        made: Contexts = {}
        for upstream in upstreams:
            settings = _tls(upstream)
            if settings is not None and (key := (upstream.name, settings)) not in known:
                made[key] = tls.context(settings)
        return made

    @property
    def known_contexts(self) -> frozenset[ContextKey]:
        return frozenset(self._contexts)

    def adopt(self, contexts: Contexts) -> None:
        """Add TLS contexts; an existing one is not replaced."""
        self._contexts = {**contexts, **self._contexts}

    def _context(self, upstream: str, settings: TlsSettings) -> Any:
        if self._beside is not None:
            return self._beside._context(upstream, settings)
        key = (upstream, settings)
        if key not in self._contexts:
            self._contexts[key] = tls.context(settings)
        return self._contexts[key]

    def pool(self, upstream: Upstream, endpoint: Endpoint) -> EndpointPool:
        """The pool of an endpoint, made when it is first asked for. Opens nothing. Raises NoNetworkRoute when it
        cannot be made, so that a fault of one endpoint leads the request to another one."""
        key = pool_key(upstream, endpoint)
        found = self._by_endpoint.get(key)
        if found is None or found.retired:
            try:
                found = self._by_endpoint[key] = self._make(upstream, endpoint, key[3])
            except Exception as error:
                cause = f"no connection to {endpoint.address} can be made: {type(error).__name__}: {error}"
                raise NoNetworkRoute(cause) from error
        found.configure(upstream)
        return found

    def _make(self, upstream: Upstream, endpoint: Endpoint, settings: TlsSettings | None) -> EndpointPool:
        context: dict[str, Any] = {"upstream": upstream, "address": endpoint.address, "hop": self._hop}
        if settings is not None:
            context |= self._of_tls(upstream, endpoint, settings)
        made = self._new_pool(endpoint.scheme, endpoint.host, endpoint.port, context)
        assert isinstance(made, EndpointPool)
        return made

    def _of_tls(self, upstream: Upstream, endpoint: Endpoint, settings: TlsSettings) -> dict[str, Any]:
        """urllib3's TLS arguments for an endpoint."""
        name = settings.server_name or endpoint.server_name or endpoint.host
        found = {"ssl_context": self._context(upstream.name, settings), "server_hostname": name}
        return found if settings.verify else {**found, "assert_hostname": False}

    def known(self, upstream: Upstream, endpoint: Endpoint) -> EndpointPool | None:
        """The existing pool of an endpoint, its settings unchanged; None if there is none."""
        return self._by_endpoint.get(pool_key(upstream, endpoint))

    def fresh(self, upstream: Upstream, endpoint: Endpoint) -> Connection:
        """A connection like those of the endpoint's pool, but outside of any pool; not open yet. It is made
        directly, because making a pool for it costs several times as much."""
        settings = pool_key(upstream, endpoint)[3]
        if settings is None:
            return PlainConnection(endpoint.host, endpoint.port)
        return TlsConnection(endpoint.host, endpoint.port, **self._of_tls(upstream, endpoint, settings))

    def drop(self, keys: Iterable[PoolKey]) -> None:
        """Retire the pools of endpoints that no snapshot names any more."""
        for key in keys:
            pool = self._by_endpoint.pop(key, None)
            if pool is not None:
                pool.retire()

    def prune(self, upstreams: Iterable[Upstream]) -> None:
        """Forget the TLS contexts of all others than these upstreams."""
        if self._contexts:
            named = {(upstream.name, _tls(upstream)) for upstream in upstreams}
            self._contexts = {key: context for key, context in self._contexts.items() if key in named}

    def expire(self) -> None:
        """Close connections that have been idle for too long, everywhere."""
        now = time.monotonic()
        for pool in list(self._by_endpoint.values()):
            pool.expire(now)

    def close(self) -> None:
        self.drop(list(self._by_endpoint))
