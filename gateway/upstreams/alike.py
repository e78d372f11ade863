"""What a new configuration has in common with the one in force, as the same objects.

Rule: equal endpoints, sources and upstreams are replaced by those in force, so that whatever compares both is done
with them at once. It takes long where there are tens of thousands of endpoints, and is meant for a thread.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.model import Config, Endpoint, StaticSource, Upstream
from gateway.providers.names import is_name


def alike(new: Config, old: Config) -> Config:
    """The new configuration, made of parts of the old one where they are equal."""
    upstreams = {name: _upstream(upstream, old.upstreams.get(name)) for name, upstream in new.upstreams.items()}
    return replace(new, upstreams=upstreams)


def _upstream(new: Upstream, old: Upstream | None) -> Upstream:
    if not isinstance(new.source, StaticSource):
        return old if old is not None and new == old else new
    before = old.source if old is not None and isinstance(old.source, StaticSource) else None
    source = _source(new.source, before)
    if old is not None and source is before and replace(new, source=source) == old:
        return old
    return replace(new, source=source)


def _source(new: StaticSource, old: StaticSource | None) -> StaticSource:
    known: dict[Endpoint, Endpoint] = {one: one for one in old.endpoints} if old is not None else {}
    endpoints = tuple(known.get(one, one) for one in new.endpoints)
    if old is not None and len(endpoints) == len(old.endpoints) and all(map(_is, endpoints, old.endpoints)):
        return old
    return StaticSource(endpoints, literal=not any(map(is_name, endpoints)))


def _is(one: object, other: object) -> bool:
    return one is other
