"""What the schema cannot say: rules between one key and another.

Rule: one generator for each rule; it tells every breach with its path. Rules see the
document without its broken parts, so that a mistake in one route hides none in another;
names are taken from the raw data, because a broken route still has its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gateway import model, patterns
from gateway.config import build, scalar_types
from gateway.config.document import Node, locate
from gateway.config.environment import Overrides
from gateway.config.schema import Balance, Defaults, Document, Match, Rewrite, Route, StaticEndpoint, Upstream
from gateway.config.schema_mistakes import Path
from gateway.http import target
from gateway.net import ip


@dataclass(frozen=True, slots=True)
class Draft:
    """A document before it is believed. `numbers`: the place in the file of each route
    of `document`. `whole`: the top-level sections in which nothing is broken. `over`: what
    the environment sets instead."""

    root: Node
    data: dict[str, Any]
    document: Document
    numbers: tuple[int, ...]
    whole: frozenset[str]
    over: Overrides

    def routes(self) -> Iterator[tuple[Path, Route]]:
        for number, route in zip(self.numbers, self.document.routes, strict=True):
            yield ("routes", number), route

    def raw_routes(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        routes = self.data.get("routes")
        for number, route in enumerate(routes if isinstance(routes, list) else ()):
            if isinstance(route, dict):
                yield ("routes", number), route

    def raw_upstreams(self) -> Iterator[tuple[str, dict[str, Any]]]:
        upstreams = self.data.get("upstreams")
        for name, upstream in (upstreams if isinstance(upstreams, dict) else {}).items():
            if isinstance(upstream, dict):
                yield name, upstream

    def upstreams(self) -> Iterator[tuple[Path, Upstream]]:
        for name, upstream in self.document.upstreams.items():
            yield ("upstreams", name), upstream

    def line(self, path: Path) -> int:
        return locate(self.root, path).line


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule broken. `key`: the place is that of the key, not of its value."""

    path: Path
    message: str
    key: bool = False


Breaches = Iterator[Breach]


# -- names -----------------------------------------------------------------------------


def known_upstreams(draft: Draft) -> Breaches:
    """The upstreams that routes and upstreams name exist."""
    upstreams = draft.data.get("upstreams", {})
    if not isinstance(upstreams, dict):
        return
    known = ", ".join(sorted(upstreams)[:10]) or "none is defined"
    for path, name in _named_upstreams(draft):
        if _is_text(name) and name not in upstreams:
            yield Breach(path, f"there is no upstream {name} (allowed: {known})")


def _is_text(value: object) -> bool:
    """What is none is told by the schema."""
    return isinstance(value, str) and isinstance(getattr(value, "value", value), str)


def _named_upstreams(draft: Draft) -> Iterator[tuple[Path, object]]:
    for name, upstream in draft.raw_upstreams():
        yield ("upstreams", name, "fallback"), upstream.get("fallback")
    for path, route in draft.raw_routes():
        yield (*path, "upstream"), route.get("upstream")
        if isinstance(mirror := route.get("mirror"), dict):
            yield (*path, "mirror", "upstream"), mirror.get("upstream")
        split = route.get("split")
        parts = split.get("to") if isinstance(split, dict) else split
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict):
                yield (*path, "split", "to", number, "upstream"), part.get("upstream")


# Upstreams one after the other: each is a copy of a route, and a try that a client waits for.
MOST_FALLBACKS = 8


def fallbacks_end(draft: Draft) -> Breaches:
    """Going from fallback to fallback comes to an end, and soon."""
    given = ((name, upstream.get("fallback")) for name, upstream in draft.raw_upstreams())
    after = {name: fallback if _is_text(fallback) else None for name, fallback in given}
    told: set[str] = set()
    for name in after:
        way = [name]
        while (step := after.get(way[-1])) in after and step not in way and len(way) < MOST_FALLBACKS + 2:
            way.append(step)
        if step == name and name not in told:
            # One mistake for a circle, not one for each upstream in it.
            told.update(way)
            circle = " -> ".join((*way, name))
            yield Breach(("upstreams", name, "fallback"), f"leads back to the upstream itself ({circle})")
        elif len(way) == MOST_FALLBACKS + 2:
            yield Breach(("upstreams", name, "fallback"), f"has more than {MOST_FALLBACKS} fallbacks behind it")


def unique_names(draft: Draft) -> Breaches:
    """No two routes have one name."""
    seen: dict[str, Path] = {}
    for path, route in draft.raw_routes():
        name = route.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            yield Breach((*path, "name"), f"{name} is the name of the route in line {draft.line(seen[name])} too")
        seen.setdefault(name, path)


def unique_headers(draft: Draft) -> Breaches:
    """A match names a header once, in whatever case; what it excludes does so too."""
    for path, route in draft.raw_routes():
        matches = route.get("match")
        entries = matches if isinstance(matches, list) else [matches]
        for number, entry in enumerate(entries):
            at = (*path, "match", number)
            yield from _headers_given_twice(at, entry)
            yield from _headers_given_twice((*at, "not"), entry.get("not") if isinstance(entry, dict) else None)


def _headers_given_twice(at: Path, entry: object) -> Breaches:
    headers = entry.get("headers") if isinstance(entry, dict) else None
    seen: set[str] = set()
    for name in headers if isinstance(headers, dict) else ():
        if name.lower() in seen:
            yield Breach((*at, "headers", name), "given twice, in another case", key=True)
        seen.add(name.lower())


# -- upstreams -------------------------------------------------------------------------


SOURCES = ("consul", "dns_srv", "etcd", "endpoints")


def one_source(draft: Draft) -> Breaches:
    """An upstream's endpoints come from one source, and the keys that go with it."""
    for path, upstream in draft.upstreams():
        if sum(getattr(upstream, source) is not None for source in SOURCES) != 1:
            yield Breach(path, f"needs exactly one of {', '.join(SOURCES)}", key=True)
            continue
        if upstream.consul is None and upstream.tag is not None:
            yield Breach((*path, "tag"), "is for consul", key=True)
        if upstream.endpoints is not None:
            if not upstream.endpoints:
                yield Breach((*path, "endpoints"), "is empty (at least one URL)")
            if upstream.scheme is not None:
                yield Breach((*path, "scheme"), "is for discovered endpoints; here each URL has its own", key=True)


def etcd_login(draft: Draft) -> Breaches:
    """etcd has at least one member, and a password somebody's name."""
    if "discovery" not in draft.whole:
        return
    path: Path = ("discovery", "etcd")
    given = draft.document.discovery.etcd
    if not given.endpoints:
        yield Breach((*path, "endpoints"), "is empty (at least one URL)")
    if (given.username is None) != (given.password is None):
        yield Breach(path, "username and password go together", key=True)


_UNNAMED = "https over consul needs tls.server_name, the name to verify"


def tls_is_used(draft: Draft) -> Breaches:
    """TLS settings stand where TLS is spoken, and name what they verify."""
    for path, upstream in draft.upstreams():
        if upstream.endpoints is not None:
            schemes = {endpoint.url.scheme for endpoint in upstream.endpoints}
            if upstream.tls is not None and schemes == {"http"}:
                yield Breach((*path, "tls"), "no endpoint of this upstream is https", key=True)
        elif upstream.tls is None:
            # The target of an SRV record and what stands in etcd are names that can be verified.
            if upstream.scheme == "https" and upstream.consul is not None:
                yield Breach((*path, "scheme"), _UNNAMED, key=True)
        elif upstream.etcd is not None:
            # Any URL there may be https, whatever `scheme` says of the others.
            continue
        elif upstream.scheme == "http":
            yield Breach((*path, "tls"), "is for scheme: https", key=True)
        elif upstream.tls.server_name is None and upstream.dns_srv is None:
            yield Breach((*path, "tls"), _UNNAMED, key=True)


def tls_files(draft: Draft) -> Breaches:
    """The files that TLS settings name can be read, and a key has its certificate."""
    for path, upstream in draft.upstreams():
        if upstream.tls is None:
            continue
        for key in ("ca", "cert", "key"):
            file = getattr(upstream.tls, key)
            if file is not None and not (os.path.isfile(file) and os.access(file, os.R_OK)):
                yield Breach((*path, "tls", key), f"there is no file {file} that can be read")
        if upstream.tls.key is not None and upstream.tls.cert is None:
            yield Breach((*path, "tls", "key"), "needs tls.cert, the certificate that it belongs to", key=True)


def endpoint_paths(path: Path, upstream: Upstream) -> Iterator[tuple[Path, StaticEndpoint]]:
    for number, endpoint in enumerate(upstream.endpoints or ()):
        yield (*path, "endpoints", number, "url"), endpoint


def unique_endpoints(draft: Draft) -> Breaches:
    """An upstream names an endpoint once: what is learnt about it hangs on its key."""
    for path, upstream in draft.upstreams():
        seen: set[tuple[str, str, int, bytes]] = set()
        for at, endpoint in endpoint_paths(path, upstream):
            if endpoint.url.key in seen:
                yield Breach(at, "is in this list already (for a larger share: weight)")
            seen.add(endpoint.url.key)


def allowed_endpoints(draft: Draft) -> Breaches:
    """No address among the endpoints is in `discovery.deny`. (Names are judged once they are looked up.)"""
    if "discovery" not in draft.whole:
        return
    deny = ip.networks(draft.document.discovery.deny)
    for path, upstream in draft.upstreams():
        for at, endpoint in endpoint_paths(path, upstream):
            address = ip.address(endpoint.url.host)
            if address is not None and (reason := ip.never(address) or ip.denied(address, deny)):
                yield Breach(at, reason)


# -- staying up ------------------------------------------------------------------------


def _levels(draft: Draft) -> Iterator[tuple[Path, Defaults | Upstream]]:
    """Where it is said how upstreams are treated."""
    yield ("defaults",), draft.document.defaults
    yield from draft.upstreams()


def one_balance(draft: Draft) -> Breaches:
    """Endpoints are picked in one way."""
    for path, level in _levels(draft):
        balance = getattr(level, "balance", None)
        if isinstance(balance, Balance) and (balance.hash is None) == (balance.sticky is None):
            yield Breach((*path, "balance"), "needs exactly one of hash, sticky")


def ejection_times(draft: Draft) -> Breaches:
    """The first time without requests is not longer than the longest."""
    if "defaults" not in draft.whole:
        return
    base = build.eject(draft.document.defaults, model.Eject())
    for path, level in _levels(draft):
        found = build.eject(level, base)
        if level.eject is None or found is None or found.out_for <= found.max_for:
            continue
        times = f"for {found.out_for:g} s, max_for {found.max_for:g} s"
        yield Breach((*path, "eject", "for"), f"for is longer than max_for ({times})", key=True)


def one_kind_of_check(draft: Draft) -> Breaches:
    """A health check asks over HTTP, or it connects only."""
    for path, level in _levels(draft):
        if level.health is None:
            continue
        written = level.health.model_fields_set
        if not level.health.status:
            yield Breach((*path, "health", "status"), "is empty: no answer would be good")
        for key in build.HTTP_CHECK:
            if level.health.tcp and key in written:
                yield Breach((*path, "health", key), "stands beside tcp: true, which asks nothing", key=True)


def adaptive_below_limit(draft: Draft) -> Breaches:
    """A limit that follows the latency has somewhere to begin and to end."""
    if "defaults" not in draft.whole:
        return
    base = build.concurrency(draft.document.defaults, model.Concurrency())
    for path, level in _levels(draft):
        found = build.concurrency(level, base)
        if found.adaptive and not found.limit and "concurrency" in level.model_fields_set:
            yield Breach((*path, "concurrency"), "adaptive needs a limit, below which it stays", key=True)


# -- routes ----------------------------------------------------------------------------


ENDS = ("upstream", "split", "redirect", "respond")
# Keys of a route that say something of what is sent to an upstream.
_OF_SENDING = ("mirror", "strip_prefix", "rewrite", "timeouts", "retry", "host", "upgrade", "deadline_header")


def one_end(draft: Draft) -> Breaches:
    """A request is forwarded, shared out, sent elsewhere or answered; one of them."""
    for path, route in draft.routes():
        given = [key for key in ENDS if getattr(route, key) is not None]
        if not given:
            yield Breach(path, f"needs exactly one of {', '.join(ENDS)}", key=True)
        for key in given[1:]:
            yield Breach((*path, key), f"stands beside {given[0]} (one of {', '.join(ENDS)})", key=True)


def nothing_sent(draft: Draft) -> Breaches:
    """What the gateway answers itself has no upstream to say things about."""
    for path, route in draft.routes():
        answered = next((key for key in ("redirect", "respond") if getattr(route, key) is not None), None)
        if answered is None:
            continue
        for key in _OF_SENDING:
            if key in route.model_fields_set and getattr(route, key) not in (None, False):
                yield Breach((*path, key), f"is for what an upstream gets, and {answered} sends nothing", key=True)


def fair_split(draft: Draft) -> Breaches:
    """The requests of a split go somewhere."""
    for path, route in draft.routes():
        if route.split is None:
            continue
        at = (*path, "split", "to")
        if not any(part.weight for part in route.split.to):
            yield Breach(at, "needs an upstream with a weight above 0")
        seen: set[str] = set()
        for number, part in enumerate(route.split.to):
            if part.upstream in seen:
                yield Breach((*at, number, "upstream"), f"{part.upstream} is in this list already")
            seen.add(part.upstream)


def whole_redirect(draft: Draft) -> Breaches:
    """A redirect leads elsewhere, in one way."""
    for path, route in draft.routes():
        if route.redirect is None:
            continue
        at = (*path, "redirect")
        keys = ("path", "prefix", "scheme", "host", "port")
        given = [key for key in keys if getattr(route.redirect, key) is not None]
        if not given:
            yield Breach(at, "needs at least one of path, prefix, scheme, host, port")
        if given[:2] == ["path", "prefix"]:
            yield Breach((*at, "prefix"), "stands beside path (one of them)", key=True)
        elif "prefix" in given and any(match.path is not None or _only_regex(match) for match in route.match):
            yield Breach((*at, "prefix"), "needs matches by prefix (redirect: {path})", key=True)


# RFC 9110 §15.3.5, §15.3.6, §15.4.5.
_BODILESS = (204, 205, 304)


def answer_without_body(draft: Draft) -> Breaches:
    """Some answers have no body."""
    for path, route in draft.routes():
        if route.respond is not None and route.respond.status in _BODILESS and route.respond.body:
            yield Breach((*path, "respond", "body"), f"an answer {route.respond.status} has none", key=True)


def match_paths(path: Path, route: Route) -> Iterator[tuple[Path, Match]]:
    for number, match in enumerate(route.match):
        yield (*path, "match", number), match


def one_path_condition(draft: Draft) -> Breaches:
    """A match asks for a path in one way."""
    for path, route in draft.routes():
        if not route.match:
            yield Breach((*path, "match"), "is empty and would match nothing (leave it out to match everything)")
        for at, match in match_paths(path, route):
            given = [key for key in ("path", "prefix", "regex") if getattr(match, key) is not None]
            if given[:1] == ["path"] and len(given) > 1:
                yield Breach((*at, given[1]), "stands beside path (one of path, prefix, regex)", key=True)


def something_excluded(draft: Draft) -> Breaches:
    """What a match excludes is something."""
    for path, route in draft.routes():
        for at, match in match_paths(path, route):
            if match.excluded is not None and not any(build.match(match.excluded).alone()):
                yield Breach((*at, "not"), "is empty and would exclude nothing (leave it out)", key=True)


def one_rewriting(draft: Draft) -> Breaches:
    """A path is changed in one way, by groups that exist."""
    for path, route in draft.routes():
        if route.rewrite is None:
            continue
        if route.strip_prefix:
            yield Breach((*path, "rewrite"), "stands beside strip_prefix (one of them)", key=True)
        yield from _rewriting((*path, "rewrite"), route.rewrite)


def _rewriting(path: Path, rewrite: Rewrite) -> Breaches:
    ways = [key for key in ("prefix", "path", "regex") if getattr(rewrite, key) is not None]
    if len(ways) != 1:
        yield Breach(path, "needs exactly one of prefix, path, regex with to")
    if (rewrite.regex is None) != (rewrite.to is None):
        yield Breach(path, "regex and to go together")
    elif rewrite.regex is not None and rewrite.to is not None:
        try:
            patterns.pieces(rewrite.to, rewrite.regex)
        except patterns.PatternError as error:
            yield Breach((*path, "to"), f"does not fit the regular expression: {error}")


def cuttable_prefix(draft: Draft) -> Breaches:
    """Where a prefix is taken off or replaced, each match has one."""
    for path, route in draft.routes():
        replaced = route.rewrite is not None and route.rewrite.prefix is not None
        if not (route.strip_prefix or replaced) or not any(map(_only_regex, route.match)):
            continue
        at = (*path, "rewrite", "prefix") if replaced else (*path, "strip_prefix")
        yield Breach(at, "a match by regex has no prefix (rewrite: {regex, to})", key=True)


def _only_regex(match: Match) -> bool:
    """Whether a match says of the path nothing that can be cut off."""
    return match.regex is not None and match.prefix is None


def one_prefix(draft: Draft) -> Breaches:
    """The prefix that is taken off or replaced is the longest of the route's that the path begins with. So
    one that is longer than another stands beside the same conditions, or fewer: else it would be taken
    off a request that only the shorter one's match has."""
    for path, route in draft.routes():
        replaced = [one.prefix for one in (route.rewrite, route.redirect) if one is not None]
        if len(route.match) < 2 or not (route.strip_prefix or any(one is not None for one in replaced)):
            continue
        cuts: dict[bytes, list[tuple[Path, Match]]] = {}
        for at, match in match_paths(path, route):
            cuts.setdefault(_cut(match), []).append((at, match))
        for cut, longer in cuts.items():
            for end in (place for place in range(len(cut)) if cut[place : place + 1] == b"/"):
                for _, match in cuts.get(cut[:end], ()):
                    if match.path is None and not any(_wider(one, match) for _, one in longer):
                        told = (
                            f"{cut.decode()} would be taken off where match {match.prefix or '/'} of this route holds "
                            "and this one does not (two routes)"
                        )
                        yield Breach(longer[0][0], told)
                        break


def _cut(match: Match) -> bytes:
    return target.written_prefix(match.path or match.prefix or "/")


def _wider(one: Match, other: Match) -> bool:
    """Whether a match holds wherever another one does, but for the path."""
    return (
        one.host in (None, other.host)
        and one.regex in (None, other.regex)
        and (not one.methods or (bool(other.methods) and set(other.methods) <= set(one.methods)))
        and one.headers.items() <= other.headers.items()
        and one.query.items() <= other.query.items()
        and one.excluded in (None, other.excluded)
    )


Pairs = frozenset[tuple[str, str]]
Twin = tuple[
    int, str | None, str, bytes | str, frozenset[str], Pairs, Pairs, frozenset[model.Match] | None
]


def _twin(route: Route, match: Match) -> Twin:
    """Equal for matches that hold for the same requests with the same precedence."""
    kind: str
    value: bytes | str
    if match.path is not None:
        kind, value = "path", target.written(match.path)
    elif match.regex is not None:
        prefix = "" if match.prefix is None else target.written_prefix(match.prefix).decode()
        kind, value = "regex", f"{prefix} {match.regex}"
    else:
        kind, value = "prefix", target.written_prefix(match.prefix or "/")
    headers, query = frozenset(match.headers.items()), frozenset(match.query.items())
    excluded = None if match.excluded is None else frozenset(build.match(match.excluded).alone())
    return (route.priority, match.host, kind, value, frozenset(match.methods), headers, query, excluded)


def _lets_pass(route: Route) -> bool:
    """Requests that have come to where a redirect leads are for the next route: those of
    https, say, behind `redirect: {scheme: https}`."""
    return route.redirect is not None and route.redirect.path is None and route.redirect.prefix is None


def distinct_routes(draft: Draft) -> Breaches:
    """No route is hidden for ever by one that matches the very same requests."""
    seen: dict[Twin, Path] = {}
    for path, route in draft.routes():
        for at, match in match_paths(path, route):
            twin = _twin(route, match)
            first = seen.get(twin, path)
            if first == path and not _lets_pass(route):
                seen[twin] = path
            if first != path:
                other = draft.data["routes"][first[1]]["name"]
                where = f"route {other} in line {draft.line(first)}"
                yield Breach(at, f"can never be told apart from {where} (another match, or another priority)")


def outside_own_prefix(draft: Draft) -> Breaches:
    """No match asks for what is the gateway's own."""
    own = draft.document.server.own_prefix
    if own is None or "server" not in draft.whole:
        return
    for path, route in draft.routes():
        for at, match in match_paths(path, route):
            for key in ("path", "prefix"):
                wanted = getattr(match, key)
                if wanted is not None and target.written(wanted).startswith(own.encode()):
                    yield Breach((*at, key), f"is under server.own_prefix {own}, which the gateway answers itself")


# Guessing must not pay where everybody may try (inline).
SHORTEST_TOKEN = 16


def guarded_admin(draft: Draft) -> Breaches:
    """Nobody but those who may reads what the gateway knows."""
    given, over = draft.document.admin, draft.over
    if "admin" not in draft.whole or over.admin == "off" or (given is None and over.admin is None):
        return
    bind = over.admin or (given.bind if given is not None else "")
    token = over.admin_token or (given.token if given is not None else "")
    where = f"GATEWAY_ADMIN {bind}" if over.admin else bind
    if bind == "inline":
        if len(token) < SHORTEST_TOKEN:
            yield Breach(("admin", "bind"), f"{where} needs a token of {SHORTEST_TOKEN} characters or more")
        if "server" in draft.whole and draft.document.server.own_prefix is None:
            yield Breach(("admin", "bind"), f"{where} needs server.own_prefix, under which it would be")
    elif not token and not scalar_types.admin_is_local(bind):
        yield Breach(("admin", "bind"), f"{where} can be reached by others and needs a token (127.0.0.1:9901)")


def reachable_readyz(draft: Draft) -> Breaches:
    """A check that asks readyz needs one."""
    registration = draft.document.discovery.consul.registration
    if not {"server", "discovery"} <= draft.whole or draft.document.server.own_prefix is not None:
        return
    if registration is not None and registration.check == "http":
        at = ("discovery", "consul", "registration", "check")
        yield Breach(at, "asks for readyz, and server.own_prefix is null (allowed without it: ttl)")


RULES: tuple[Callable[[Draft], Breaches], ...] = (
    known_upstreams,
    fallbacks_end,
    unique_names,
    unique_headers,
    one_source,
    etcd_login,
    tls_is_used,
    tls_files,
    unique_endpoints,
    allowed_endpoints,
    one_balance,
    ejection_times,
    one_kind_of_check,
    adaptive_below_limit,
    one_end,
    nothing_sent,
    fair_split,
    whole_redirect,
    answer_without_body,
    one_path_condition,
    something_excluded,
    one_rewriting,
    cuttable_prefix,
    one_prefix,
    distinct_routes,
    outside_own_prefix,
    reachable_readyz,
    guarded_admin,
)
