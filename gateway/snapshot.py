"""Everything that requests are answered by at one moment: frozen, whole, swapped at once.

Rule: `build` is a function of the configuration and what providers said last; the same
input gives an equal snapshot. A request takes the snapshot once and never looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.errors import DnsError, GatewayError, NoEndpoint
from gateway.health.state import Candidate, UpstreamState
from gateway.model import Config, Endpoint, StaticSource, Upstream
from gateway.router import Router


@dataclass(frozen=True, slots=True)
class Known:
    """What providers said of one upstream: the last good group (None: there was never one)
    and what is wrong now."""

    endpoints: tuple[Endpoint, ...] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One upstream with the endpoints that may get requests (weight above 0)."""

    upstream: Upstream
    endpoints: tuple[Endpoint, ...]
    error: str
    candidates: tuple[Candidate, ...] = field(compare=False)
    state: UpstreamState = field(compare=False)

    def absence(self) -> GatewayError:
        """Why there is no endpoint: 502 when a name could not be looked up, else 503."""
        if self.error and isinstance(self.upstream.source, StaticSource):
            return DnsError(f"upstream {self.upstream.name}: {self.error}")
        why = f": {self.error}" if self.error else ""
        return NoEndpoint(f"upstream {self.upstream.name} has no endpoint{why}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`version` is the configuration's; `groups` by name of the upstream."""

    version: str
    config: Config
    groups: Mapping[str, Group]
    router: Router = field(compare=False)


Join = Callable[[Upstream, tuple[Endpoint, ...]], tuple[tuple[Candidate, ...], UpstreamState]]


def build(config: Config, router: Router, known: Mapping[str, Known], join: Join) -> Snapshot:
    """The snapshot for `config` and what is `known` by upstream. `join` gives endpoints what
    is learnt about them and the way to reach them."""
    groups: dict[str, Group] = {}
    for name, upstream in config.upstreams.items():
        what = known.get(name, Known())
        endpoints = what.endpoints or ()
        candidates, state = join(upstream, tuple(one for one in endpoints if one.weight > 0))
        groups[name] = Group(upstream, endpoints, what.error, candidates, state)
    return Snapshot(config.version, config, groups, router)


def differences(old: Snapshot, new: Snapshot) -> list[str]:
    """What changed, a line each, for the log."""
    lines: list[str] = []
    if old.version != new.version:
        lines.append(f"configuration {old.version} -> {new.version}")
    for name in new.groups.keys() | old.groups.keys():
        before = set(old.groups[name].endpoints) if name in old.groups else set()
        after = set(new.groups[name].endpoints) if name in new.groups else set()
        gone = sorted(endpoint.address for endpoint in before - after)
        come = sorted(endpoint.address for endpoint in after - before)
        if gone or come:
            told = [f"+{address}" for address in come] + [f"-{address}" for address in gone]
            lines.append(f"upstream {name}: {' '.join(told[:20])}{' …' if len(told) > 20 else ''} ({len(after)} now)")
    return sorted(lines)
