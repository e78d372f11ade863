"""Everything that requests are answered by at one moment: frozen, whole, swapped at once.

Rule: `build` is a function of the configuration and what providers said last; the same
input gives an equal snapshot. A request takes the snapshot once and never looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from gateway.errors import DnsError, GatewayError, NoEndpoint
from gateway.health.candidate import Candidate
from gateway.health.state import UpstreamState
from gateway.model import Config, DnsSrvSource, Endpoint, StaticSource, Upstream
from gateway.router import Router

# Lines of one change in the log: the first answers of a thousand upstreams are no news.
LINES = 50


@dataclass(frozen=True, slots=True)
class Known:
    """What providers said of one upstream: the last good group (None: there was never one),
    what is wrong now, and why an empty group has none of the endpoints that were named."""

    endpoints: tuple[Endpoint, ...] | None = None
    error: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One upstream with the endpoints that may get requests (weight above 0)."""

    upstream: Upstream
    endpoints: tuple[Endpoint, ...]
    error: str
    candidates: tuple[Candidate, ...] = field(compare=False)
    state: UpstreamState = field(compare=False)
    refused: str = ""

    def absence(self) -> GatewayError:
        """Why there is no endpoint: 502 when a name could not be looked up, else 503."""
        if self.error and isinstance(self.upstream.source, StaticSource | DnsSrvSource):
            return DnsError(f"upstream {self.upstream.name}: {self.error}")
        why = "; ".join(filter(None, (self.refused, self.error)))
        return NoEndpoint(f"upstream {self.upstream.name} has no endpoint{f': {why}' if why else ''}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`version` is the configuration's; `groups` by name of the upstream."""

    version: str
    config: Config
    groups: Mapping[str, Group]
    router: Router = field(compare=False)


Join = Callable[[Upstream, tuple[Endpoint, ...]], tuple[tuple[Candidate, ...], UpstreamState]]


def group(upstream: Upstream, known: Known, before: Group | None, join: Join) -> Group:
    """The group of one upstream. `before`, when nothing is different; its candidates, when
    only the texts are. `join` gives endpoints what is learnt about them and the way to them."""
    endpoints = known.endpoints or ()
    if before is not None and before.upstream == upstream and before.endpoints == endpoints:
        same = (before.error, before.refused) == (known.error, known.refused)
        return before if same else replace(before, error=known.error, refused=known.refused)
    candidates, state = join(upstream, tuple(one for one in endpoints if one.weight > 0))
    return Group(upstream, endpoints, known.error, candidates, state, known.refused)


def build(config: Config, router: Router, known: Mapping[str, Known], join: Join) -> Snapshot:
    """The snapshot for `config` and what is `known` by upstream."""
    groups = {
        name: group(upstream, known.get(name, Known()), None, join) for name, upstream in config.upstreams.items()
    }
    return Snapshot(config.version, config, groups, router)


def differences(old: Snapshot, new: Snapshot, names: Iterable[str] | None = None) -> list[str]:
    """What changed, a line each, for the log; `names`: the upstreams that may have."""
    lines = [f"configuration {old.version} -> {new.version}"] if old.version != new.version else []
    among = new.groups.keys() | old.groups.keys() if names is None else names
    different = [name for name in sorted(among) if _endpoints(old, name) != _endpoints(new, name)]
    lines += [_difference(name, _endpoints(old, name), _endpoints(new, name)) for name in different[:LINES]]
    if len(different) > LINES:
        lines.append(f"and {len(different) - LINES} upstreams more")
    return lines


def _endpoints(snapshot: Snapshot, name: str) -> tuple[Endpoint, ...]:
    return snapshot.groups[name].endpoints if name in snapshot.groups else ()


def _difference(name: str, before: tuple[Endpoint, ...], after: tuple[Endpoint, ...]) -> str:
    gone = sorted({endpoint.address for endpoint in set(before) - set(after)})
    come = sorted({endpoint.address for endpoint in set(after) - set(before)})
    told = [f"+{address}" for address in come] + [f"-{address}" for address in gone]
    shown = " ".join(told[:20]) or "another order"
    return f"upstream {name}: {shown}{' …' if len(told) > 20 else ''} ({len(after)} now)"
