"""What changes from one configuration to another, and which real requests would notice.

Rule: pure: two configurations (and the lines of an access log) in, differences out. The
model is compared, not the text: what is spelt otherwise and means the same is no change.
A replayed request goes through both routers as it would through a gateway; it goes
*elsewhere* when route, upstream, the target that is sent or the gateway's own answer differ.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

from gateway.commands.imagined_request import Answered, Asked, asked
from gateway.commands.wording import (
    columns,
    text,
    told_balance,
    told_end,
    told_mirror,
    told_rewrite,
    told_source,
    told_value,
    values,
)
from gateway.errors import BadPath, GatewayError, NoRoute
from gateway.forwarding.route_actions import location
from gateway.http import target as targets
from gateway.http.messages import Request
from gateway.model import (
    Balance,
    Breaker,
    Config,
    Eject,
    Endpoint,
    HealthCheck,
    Match,
    Rewrite,
    Route,
    StaticSource,
    Upstream,
)
from gateway.routing.match_text import told_match
from gateway.routing.overlap import Extent
from gateway.routing.router import Router
from gateway.telemetry.redact import MASK

# Sections that stay as they are until the workers are replaced (`Gateway.reconfigure`).
AT_START = frozenset({"server", "admin", "access_log"})
_SECRETS = frozenset({"token", "password"})
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `kind`: added, removed, changed or order; `of`: route, upstream, or the
    section; `key` is empty for a whole route or upstream. `restart`: it takes effect at the
    next SIGHUP or restart only."""

    kind: str
    of: str
    name: str
    key: str
    old: str
    new: str
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that went to `old` and would go to `new`."""

    old: str
    new: str
    number: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """`refused`: requests that were refused for what no route decides (their form, their size,
    a gateway that was busy), and are not replayed. `unreadable`: lines that are no record of a
    request. `logged_elsewhere`: requests that the log saw on another route than the old
    configuration gives them. `blind`: routes with conditions on headers, which a log does not
    hold. `masked`: requests with values masked."""

    requests: int = 0
    elsewhere: int = 0
    refused: int = 0
    unreadable: int = 0
    logged_elsewhere: int = 0
    masked: int = 0
    blind: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    changes: tuple[Change, ...]
    replay: Replay | None = None


# -- configurations -----------------------------------------------------------------------


def changes(old: Config, new: Config) -> Iterator[Change]:
    """Every difference: routes, their order, upstreams, everything else."""
    yield from _routes(old, new)
    yield from _order(old, new)
    yield from _upstreams(old, new)
    for field in fields(Config):
        if field.name not in ("version", "path", "warnings", "upstreams", "routes"):
            restart = field.name in AT_START
            for key, was, now in _section(getattr(old, field.name), getattr(new, field.name)):
                yield Change("changed", field.name, "", key, was, now, restart)


def _section(old: object, new: object) -> Iterator[tuple[str, str, str]]:
    """The keys of a section that differ; of one that was switched off or on, nothing else."""
    if (old is None) != (new is None):
        yield ("", "off", "on") if old is None else ("", "on", "off")
    else:
        yield from _unequal(_flat(old, ""), _flat(new, ""))


def _routes(old: Config, new: Config) -> Iterator[Change]:
    before, after = ({route.name: route for route in config.routes} for config in (old, new))
    for name in (name for name in before if name not in after):
        yield Change("removed", "route", name, "", _told_route(before[name]), "")
    for name, route in after.items():
        was = before.get(name)
        if was is None:
            yield Change("added", "route", name, "", "", _told_route(route))
            continue
        for key, one, other in (*_unequal(_flat_route(was), _flat_route(route)), *_resettled(old, new, was, route)):
            yield Change("changed", "route", name, key, one, other)


def _resettled(old: Config, new: Config, was: Route, route: Route) -> Iterator[tuple[str, str, str]]:
    """What holds now for the upstreams of a route; with their names where it is not all of them."""
    pairs = list(_pairs(_heads(was), _heads(route)))
    found: dict[tuple[str, str, str], list[str]] = {}
    for before, after in pairs:
        same = before.upstream == after.upstream
        inherited = _inherited(old.upstreams[before.upstream], new.upstreams[after.upstream]) if same else {}
        for key, one, other in _unequal(_flat_settings(before), _flat_settings(after)):
            # What follows from the upstream's own change is told there.
            if inherited.get(key) != (one, other):
                found.setdefault((key, one, other), []).append(after.upstream)
    for (key, one, other), upstreams in found.items():
        yield key if len(upstreams) == len(pairs) else f"{key} ({', '.join(upstreams)})", one, other


def _heads(route: Route) -> tuple[Route, ...]:
    """The route as it is for each of its upstreams, fallbacks left out."""
    if route.split is not None:
        return tuple(share.route for share in route.split.shares)
    return (route,) if route.upstream else ()


def _pairs(old: Sequence[Route], new: Sequence[Route]) -> Iterator[tuple[Route, Route]]:
    """Those of the same upstream; where each side has one upstream, these."""
    if len(old) == len(new) == 1:
        yield old[0], new[0]
        return
    before = {one.upstream: one for one in old}
    yield from ((before[one.upstream], one) for one in new if one.upstream in before)


def _told_route(route: Route) -> str:
    return f"{_told_matches(route.matches)} {'to ' if route.upstreams else ''}{told_end(route)}"


def _told_matches(matches: tuple[Match, ...]) -> str:
    return " | ".join(map(told_match, matches))


def _inherited(old: Upstream, new: Upstream) -> dict[str, tuple[str, str]]:
    return {key: (was, now) for key, was, now in _unequal(_flat_upstream(old), _flat_upstream(new))}


def _upstreams(old: Config, new: Config) -> Iterator[Change]:
    for name in (name for name in old.upstreams if name not in new.upstreams):
        yield Change("removed", "upstream", name, "", told_source(old.upstreams[name].source), "")
    for name, upstream in new.upstreams.items():
        was = old.upstreams.get(name)
        if was is None:
            yield Change("added", "upstream", name, "", "", told_source(upstream.source))
            continue
        for key, one, other in _unequal(_flat_upstream(was), _flat_upstream(upstream)):
            yield Change("changed", "upstream", name, key, one, other)


# -- sections as keys and values ------------------------------------------------------------

# Dotted key -> the value, and how it is told.
Flat = dict[str, tuple[object, str]]


def _flat(value: object, key: str) -> Flat:
    """A section of the model, key by key."""
    if isinstance(value, Balance):
        return {key: (value, told_balance(value))}
    if isinstance(value, Eject | HealthCheck | Breaker):
        keys = {f"{key}.{name}": (one, told) for name, one, told in values(value)}
        whole = ", ".join(f"{name.rpartition('.')[2]}: {told}" for name, (_, told) in keys.items())
        return {key: (True, f"{{{whole}}}"), **keys}
    if isinstance(value, Rewrite) or not is_dataclass(value):
        last = key.rpartition(".")[2]
        shown = ("***" if value else "none") if last in _SECRETS else told_value(last, value)
        return {key: (value, shown)}
    found: Flat = {}
    for field in fields(value):
        found |= _flat(getattr(value, field.name), f"{key}.{field.name}" if key else field.name)
    return found


def _flat_route(route: Route) -> Flat:
    """What a route says for all of its upstreams."""
    split, mirror = route.split, route.mirror
    end: object = route.upstream or route.redirect or route.respond
    kind = "upstream" if route.upstream else "redirect" if route.redirect is not None else "respond"
    if split is not None:
        kind, end = "split", (split.by, split.name, [(share.route.upstream, share.weight) for share in split.shares])
    copied = None if mirror is None else (mirror.route.upstream, mirror.percent)
    return {
        "match": (route.matches, _told_matches(route.matches)),
        "priority": (route.priority, str(route.priority)),
        kind: (end, told_end(route)),
        "mirror": (copied, "none" if mirror is None else told_mirror(mirror)),
        "ambiguous_paths": (route.ambiguous_paths, route.ambiguous_paths or "(the server's)"),
        "strip_prefix": (route.strip_prefix, told_value("strip_prefix", route.strip_prefix)),
        "rewrite": (_plain(route.rewrite), "none" if route.rewrite is None else told_rewrite(route)),
    }


def _flat_settings(route: Route) -> Flat:
    """What holds for one upstream of a route."""
    found: Flat = {}
    for key in ("host", "timeouts", "retry", "upgrade", "deadline_header"):
        found |= _flat(getattr(route, key), key)
    return found


def _plain(rewrite: Rewrite | None) -> object:
    # Compiled patterns are the same when what was compiled is.
    return rewrite and (rewrite.prefix, rewrite.path, rewrite.regex and rewrite.regex.pattern, rewrite.to)


def _flat_upstream(upstream: Upstream) -> Flat:
    found = {key: one for key, one in _flat(upstream, "").items() if key != "name" and not key.startswith("source")}
    kind = "endpoints" if isinstance(upstream.source, StaticSource) else "source"
    return found | {kind: (upstream.source, told_source(upstream.source))}


def _unequal(old: Flat, new: Flat) -> Iterator[tuple[str, str, str]]:
    """Keys whose values differ, with both as they are told."""
    nothing = (None, "(unset)")
    for key in {**old, **new}:
        section = key.rpartition(".")[0]
        if section in old and section in new and old[section][0] != new[section][0]:
            # Switched off or on as a whole.
            continue
        (was, told), (now, retold) = old.get(key, nothing), new.get(key, nothing)
        if was != now or (key in old) != (key in new):
            yield key, told, retold if told != retold else f"{retold} (another)"


# -- the order ------------------------------------------------------------------------------


def _order(old: Config, new: Config) -> Iterator[Change]:
    """Pairs of matches that can meet one request and have changed places."""
    before, after = (Router(config.routes).ordered() for config in (old, new))
    places = {(route.name, match): place for place, (route, match) in enumerate(after)}
    kept = [(route.name, match) for route, match in before if (route.name, match) in places]
    now = [places[one] for one in kept]
    extents = [Extent.of(match) for _, match in kept]
    told: set[tuple[str, str]] = set()
    for moved in sorted(set(range(len(kept))) - _in_order(now)):
        for other in range(len(kept)):
            first, second = min(moved, other), max(moved, other)
            pair = (kept[first][0], kept[second][0])
            if now[first] <= now[second] or extents[first].apart(extents[second]):
                continue
            if pair[0] != pair[1] and pair not in told:
                told.add(pair)
                one, later = pair
                yield Change("order", "route", f"{one}, {later}", "order", f"{one} first", f"{later} first")


def _in_order(places: list[int]) -> set[int]:
    """The indices of a longest increasing subsequence: what did not move."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for index, place in enumerate(places):
        at = bisect_left(tails, place)
        before.append(ends[at - 1] if at else -1)
        if at == len(tails):
            tails.append(place)
            ends.append(index)
        else:
            tails[at], ends[at] = place, index
    found: set[int] = set()
    index = ends[-1] if ends else -1
    while index >= 0:
        found.add(index)
        index = before[index]
    return found


# -- requests -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Where a request goes. `sent`: the target without what an endpoint adds."""

    told: str
    route: str = ""
    sent: bytes = b""


class _Side:
    """One configuration, asked where requests go."""

    _endpoint = Endpoint("http", "", 0)

    def __init__(self, config: Config) -> None:
        self._server = config.server
        self._router = Router(config.routes)
        self._told = {route.name: f"{route.name} ({told_end(route)})" for route in config.routes}

    def outcome(self, request: Request) -> _Outcome:
        try:
            seen = asked(request, self._server)
            if isinstance(seen, Answered):
                return _Outcome("the gateway itself")
            route = seen.served_by(self._router)
            passed: list[Route] = []
            while route is not None:
                refusal = seen.ambiguity(self._router, route, self._server, passed)
                if refusal is not None:
                    raise refusal
                sent = self._sent(route, seen, request.scheme)
                if sent is not None:
                    return _Outcome(self._told[route.name], route.name, sent)
                passed.append(route)
                route = self._router.after(
                    passed, request.method, seen.host, seen.path, seen.target.query, request.headers
                )
            raise NoRoute
        except GatewayError as error:
            return _Outcome(f"{error.status} {error.reason}")

    def _sent(self, route: Route, seen: Asked, scheme: str) -> bytes | None:
        """The target that an upstream gets, or where a redirect leads; None where that is what
        was asked for."""
        if route.redirect is not None:
            place = seen.target, seen.path, seen.host, seen.authority
            return location(route.redirect, route, *place, scheme)
        return b"" if route.respond is not None else targets.outbound(route, self._endpoint, seen.target, seen.path)


def replay(old: Config, new: Config, lines: Iterable[bytes]) -> Replay:
    """Where the requests of an access log would go. Lines are read one by one; what is kept
    grows with the number of routes only."""
    before, after = _Side(old), _Side(new)
    requests = refused = unreadable = masked = logged_elsewhere = 0
    numbers: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        record = _record(line)
        if record is None:
            unreadable += 1
            continue
        request, logged, reason = record
        if logged is None and reason is not None and reason not in _DECIDED_BY_PATH:
            refused += 1
            continue
        requests += 1
        masked += f"={MASK}".encode() in request.target
        was = before.outcome(request)
        if logged is not None and was.route != logged:
            # A log does not hold the scheme, which redirects go by.
            request.scheme = "https"
            again = before.outcome(request)
            request.scheme = "https" if again.route == logged else "http"
            was = again if again.route == logged else was
        now = after.outcome(request)
        tells = logged is not None or reason == NoRoute.reason
        logged_elsewhere += tells and (logged or "") != was.route
        if was == now:
            continue
        group = (was.told, now.told if was.told != now.told else f"{now.told}, another target")
        numbers[group] = numbers.get(group, 0) + 1
        known = examples.setdefault(group, [])
        if len(known) < EXAMPLES:
            known.append(_example(request, was, now))
    groups = [Group(*group, number, tuple(examples[group])) for group, number in numbers.items()]
    return Replay(
        requests=requests,
        elsewhere=sum(numbers.values()),
        refused=refused,
        unreadable=unreadable,
        logged_elsewhere=logged_elsewhere,
        masked=masked,
        blind=_blind(old, new),
        groups=tuple(sorted(groups, key=lambda group: (-group.number, group.old, group.new))),
    )


# The refusals of requests without a route that another configuration might not repeat.
_DECIDED_BY_PATH = frozenset({NoRoute.reason, BadPath.reason})


def _record(line: bytes) -> tuple[Request, str | None, str | None] | None:
    """The request of a log line, its route and the reason of a refusal; None when it holds none."""
    try:
        record = json.loads(line)
        method, host, target = (record[key] for key in ("method", "host", "target"))
        request = Request(
            method.encode("latin-1"), target.encode("latin-1"), [], started=0.0, host=(host or "").encode("latin-1")
        )
        return request, record.get("route"), record.get("reason")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _example(request: Request, was: _Outcome, now: _Outcome) -> str:
    asked_for = f"{text(request.method)} {text(request.host) or '(no host)'} {_short(request.target)}"
    return asked_for if was.told != now.told else f"{asked_for}: {_short(was.sent)} -> {_short(now.sent)}"


def _short(target: bytes, limit: int = 120) -> str:
    return text(target) if len(target) <= limit else f"{text(target[:limit])}…"


def _blind(*configs: Config) -> tuple[str, ...]:
    routes = (route for config in configs for route in config.routes)
    return tuple(sorted({route.name for route in routes if any(map(_by_headers, route.matches))}))


def _by_headers(match: Match) -> bool:
    return bool(match.headers or (match.excluded is not None and match.excluded.headers))


# -- as text --------------------------------------------------------------------------------

_SIGNS = {"added": "+", "removed": "-", "changed": "~", "order": "~"}


def told(found: Difference) -> Iterator[str]:
    """Differences as lines of text."""
    if not found.changes:
        yield "nothing changes"
    rows = [(_SIGNS[one.kind], f"{one.of} {one.name}".rstrip(), one.key, _told_values(one)) for one in found.changes]
    yield from columns(rows)
    if found.replay is not None:
        yield ""
        yield from _told_replay(found.replay)


def _told_values(change: Change) -> str:
    if change.kind in ("added", "removed"):
        return change.old or change.new
    return f"{change.old} -> {change.new}" + ("  (at the next restart or SIGHUP)" if change.restart else "")


def _told_replay(found: Replay) -> Iterator[str]:
    yield f"{found.elsewhere} of {found.requests} requests go elsewhere"
    for group in found.groups:
        yield f"  {group.number}  {group.old} -> {group.new}"
        yield from (f"      {example}" for example in group.examples)
    if found.refused:
        yield f"  requests that were refused for other reasons than their route, and not replayed: {found.refused}"
    if found.unreadable:
        yield f"  lines that hold no request: {found.unreadable}"
    if found.logged_elsewhere:
        yield f"  requests that the log saw on another route than OLD gives them: {found.logged_elsewhere}"
    if found.masked:
        yield f"  requests whose targets hold values that the log masks ({MASK}): {found.masked}"
    if found.blind:
        yield f"  a log holds no headers: matches that ask for some took no part (routes: {', '.join(found.blind)})"
