"""Where endpoints come from: one file for each kind of source, and the table of them."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from gateway.model import ConsulSource, DiscoverySettings, DnsSrvSource, EtcdSource, StaticSource, Upstream
from gateway.providers import consul, dns_srv, etcd, static
from gateway.providers.base import Emit, Provider, Remembering, Status, Stop, Update, one_line
from gateway.registries.pacing import Clock, Random

__all__ = ["Emit", "Provider", "Remembering", "Status", "Stop", "Update", "depends_on", "make", "one_line"]


def make(
    upstream: Upstream,
    settings: DiscoverySettings,
    clock: Clock = time.monotonic,
    random: Random = random.random,
) -> Provider | None:
    """The provider of an upstream; None when its endpoints are all literal addresses, so
    that nothing has to run."""
    match upstream.source:
        case ConsulSource() as source:
            return consul.make(upstream, source, settings, clock, random)
        case DnsSrvSource() as source:
            return dns_srv.make(upstream, source, settings, clock, random)
        case EtcdSource() as source:
            return etcd.make(upstream, source, settings, clock, random)
        case StaticSource() as source:
            return static.make(upstream, source, settings, clock, random)


def depends_on(upstream: Upstream, settings: DiscoverySettings) -> tuple[object, ...]:
    """All that the provider of an upstream is made of: while it stays equal, the provider goes
    on when the configuration changes."""
    asked: object = settings.dns
    if isinstance(upstream.source, ConsulSource):
        asked = (replace(settings.consul, registration=None), settings.dns)
    elif isinstance(upstream.source, EtcdSource):
        asked = (settings.etcd, settings.dns)
    return (upstream.source, upstream.scheme, upstream.tls, settings.deny, asked)
