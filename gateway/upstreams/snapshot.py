"""Everything that requests are answered by at one moment: frozen, whole, swapped at once.

Rule: `build` is a function of the configuration and what providers said last; the same
input gives an equal snapshot. A request takes the snapshot once and never looks again.

An upstream may have tens of thousands of endpoints. What walks through all of them takes a `turn`, which it
calls between two parts of the work, so that requests go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from heapq import nsmallest

from gateway.errors import DnsError, GatewayError, NoEndpoint
from gateway.health.candidate import Candidate
from gateway.model import Config, DnsSrvSource, Endpoint, Key, StaticSource, TlsSettings, Upstream
from gateway.routing.router import Router
from gateway.runtime.hub import parts
from gateway.upstreams.state import UpstreamState

# Lines of one change in the log: the first answers of a thousand upstreams are no news.
LINES = 50
# Endpoints of one upstream in such a line.
SHOWN = 20

# Called between two parts of long work.
Turn = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Known:
    """What providers said of one upstream: the last good group (None: there was never one),
    what is wrong now, and why an empty group has none of the endpoints that were named."""

    endpoints: tuple[Endpoint, ...] | None = None
    error: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One upstream with the endpoints that may get requests (weight above 0).

    `members`: the candidates by key. `twins`: candidates with the key of another one, which differ from it in
    the server name or the query. Both are worked out where they are not given."""

    upstream: Upstream
    endpoints: tuple[Endpoint, ...]
    error: str
    candidates: tuple[Candidate, ...] = field(compare=False)
    state: UpstreamState = field(compare=False)
    members: Mapping[Key, Candidate] = field(default_factory=dict, compare=False, repr=False)
    twins: tuple[Candidate, ...] = field(default=(), compare=False, repr=False)
    refused: str = ""

    def __post_init__(self) -> None:
        if len(self.members) + len(self.twins) != len(self.candidates):
            members, twins = by_key(self.candidates)
            object.__setattr__(self, "members", members)
            object.__setattr__(self, "twins", twins)

    def find(self, key: Key, server_name: str | None) -> Candidate | None:
        """The candidate with these, which are what matters to a connection besides the upstream's settings."""
        member = self.members.get(key)
        if member is None or member.endpoint.server_name == server_name:
            return member
        alike = (twin for twin in self.twins if twin.endpoint.key == key)
        return next((twin for twin in alike if twin.endpoint.server_name == server_name), None)

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


# Candidates and state for the endpoints of an upstream. The third argument is the group before, of which what did
# not change is taken over.
Join = Callable[
    [Upstream, tuple[Endpoint, ...], "Group | None", Turn], tuple[tuple[Candidate, ...], UpstreamState]
]


def group(
    upstream: Upstream, known: Known, before: Group | None, join: Join, turn: Turn = lambda: None
) -> Group:
    """The group of one upstream. `before`, when nothing is different; its candidates, when
    only the texts are. `join` gives endpoints what is learnt about them and the way to them."""
    endpoints = known.endpoints or ()
    if before is not None and before.upstream == upstream and same(before.endpoints, endpoints, turn):
        texts = (before.error, before.refused) == (known.error, known.refused)
        return before if texts else replace(before, error=known.error, refused=known.refused)
    usable = tuple(one for one in parts(endpoints, turn) if one.weight > 0)
    candidates, state = join(upstream, usable, before, turn)
    return Group(upstream, endpoints, known.error, candidates, state, *by_key(candidates, turn), known.refused)


def by_key(
    candidates: tuple[Candidate, ...], turn: Turn = lambda: None
) -> tuple[dict[Key, Candidate], tuple[Candidate, ...]]:
    """Candidates by key, and those whose key another one has."""
    members: dict[Key, Candidate] = {}
    twins: list[Candidate] = []
    for candidate in parts(candidates, turn):
        if members.setdefault(candidate.endpoint.key, candidate) is not candidate:
            twins.append(candidate)
    return members, tuple(twins)


def same(one: tuple[Endpoint, ...], other: tuple[Endpoint, ...], turn: Turn) -> bool:
    """Whether both are equal; quick where their endpoints are the same objects."""
    if one is other or len(one) != len(other):
        return one is other
    return all(mine is theirs or mine == theirs for mine, theirs in parts(zip(one, other, strict=True), turn))


def build(config: Config, router: Router, known: Mapping[str, Known], join: Join) -> Snapshot:
    """The snapshot for `config` and what is `known` by upstream."""
    groups = {
        name: group(upstream, known.get(name, Known()), None, join) for name, upstream in config.upstreams.items()
    }
    return Snapshot(config.version, config, groups, router)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a swap changes in one upstream. `gone`: candidates whose connections cannot be used any more.
    `line`: of its endpoints, for the log; "" when they are the same in the same order."""

    gone: tuple[Candidate, ...]
    line: str


NOTHING = Difference((), "")


def difference(name: str, old: Group | None, new: Group | None, turn: Turn = lambda: None) -> Difference:
    """What is different between two groups of an upstream; None: it had, or will have, none."""
    before = old.endpoints if old is not None else ()
    after = new.endpoints if new is not None else ()
    gone = tuple(_gone(old, new, turn)) if old is not None else ()
    return Difference(gone, "" if same(before, after, turn) else _line(name, before, after, turn))


def _gone(old: Group, new: Group | None, turn: Turn) -> Iterator[Candidate]:
    rewired = new is not None and (old.upstream.tls or TlsSettings()) != (new.upstream.tls or TlsSettings())
    for candidate in parts(old.candidates, turn):
        endpoint = candidate.endpoint
        stays = new is not None and new.find(endpoint.key, endpoint.server_name) is not None
        if not stays or (rewired and endpoint.scheme == "https"):
            yield candidate


def _line(name: str, before: tuple[Endpoint, ...], after: tuple[Endpoint, ...], turn: Turn) -> str:
    """`+address`, `-address` of what came, went or is another one at the same address; some of many."""
    old, new = _apart(before, after, turn), _apart(after, before, turn)
    come = _others(new, old, turn)
    told = [f"+{address}" for address in come]
    if len(told) <= SHOWN:
        told += [f"-{address}" for address in _others(old, new, turn)]
    shown = " ".join(told[:SHOWN]) or "another order"
    return f"upstream {name}: {shown}{' …' if len(told) > SHOWN else ''} ({len(after)} now)"


def _apart(mine: tuple[Endpoint, ...], theirs: tuple[Endpoint, ...], turn: Turn) -> list[Endpoint]:
    """Endpoints that are not the same objects as any of the others: mostly a few."""
    known = set(map(id, parts(theirs, turn)))
    return [endpoint for endpoint in parts(mine, turn) if id(endpoint) not in known]


def _others(mine: list[Endpoint], theirs: list[Endpoint], turn: Turn) -> list[str]:
    """The addresses of endpoints that the others have not, in order; the first of many."""
    known: dict[Key, Endpoint] = {}
    twins: set[Endpoint] = set()
    for endpoint in parts(theirs, turn):
        if known.setdefault(endpoint.key, endpoint) is not endpoint:
            twins.add(endpoint)

    def others() -> Iterator[str]:
        seen: set[str] = set()
        for endpoint in parts(mine, turn):
            if known.get(endpoint.key) != endpoint and endpoint not in twins and endpoint.address not in seen:
                seen.add(endpoint.address)
                yield endpoint.address

    return nsmallest(SHOWN + 1, others())


def summary(old: Snapshot, new: Snapshot, lines: Iterable[str]) -> list[str]:
    """What changed, a line each, for the log; `lines`: those of the upstreams that did."""
    found = [f"configuration {old.version} -> {new.version}"] if old.version != new.version else []
    different = [line for line in lines if line]
    found += different[:LINES]
    if len(different) > LINES:
        found.append(f"and {len(different) - LINES} upstreams more")
    return found
