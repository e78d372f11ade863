"""What the schema cannot say: rules between one key and another.

Rule: one generator for each rule; it tells every breach with its path. Rules see the
document without its broken parts, so that a mistake in one route hides none in another;
names are taken from the raw data, because a broken route still has its name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gateway import target
from gateway.config import kinds
from gateway.config.document import Node, locate
from gateway.config.environment import Overrides
from gateway.config.schema import Document, Match, Rewrite, Route, StaticEndpoint, Upstream
from gateway.config.urls import is_address
from gateway.config.verdict import Path


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
    """A route's upstream exists."""
    upstreams = draft.data.get("upstreams", {})
    if not isinstance(upstreams, dict):
        return
    known = ", ".join(sorted(upstreams)[:10]) or "none is defined"
    for path, route in draft.raw_routes():
        name = route.get("upstream")
        if isinstance(name, str) and name not in upstreams:
            yield Breach((*path, "upstream"), f"there is no upstream {name} (allowed: {known})")


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
    """A match names a header once, in whatever case."""
    for path, route in draft.raw_routes():
        matches = route.get("match")
        entries = matches if isinstance(matches, list) else [matches]
        for number, entry in enumerate(entries):
            headers = entry.get("headers") if isinstance(entry, dict) else None
            seen: set[str] = set()
            for name in headers if isinstance(headers, dict) else ():
                if name.lower() in seen:
                    yield Breach((*path, "match", number, "headers", name), "given twice, in another case", key=True)
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
    """No endpoint is in `discovery.deny`."""
    if "discovery" not in draft.whole:
        return
    networks = [ipaddress.ip_network(network) for network in draft.document.discovery.deny]
    for path, upstream in draft.upstreams():
        for at, endpoint in endpoint_paths(path, upstream):
            if not is_address(endpoint.url.host):
                continue
            address = ipaddress.ip_address(endpoint.url.host)
            plain = getattr(address, "ipv4_mapped", None) or address
            denied = next((network for network in networks if plain in network), None)
            if denied is not None:
                yield Breach(at, f"{plain} is in {denied}, which discovery.deny forbids")


# -- routes ----------------------------------------------------------------------------


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
            if len(given) > 1:
                yield Breach((*at, given[1]), f"stands beside {given[0]} (one of path, prefix, regex)", key=True)


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
            rewrite.regex.sub(rewrite.to, b"")
        except (re.error, IndexError) as error:
            yield Breach((*path, "to"), f"does not fit the regular expression: {error}")


def cuttable_prefix(draft: Draft) -> Breaches:
    """Where a prefix is taken off or replaced, each match has one."""
    for path, route in draft.routes():
        replaced = route.rewrite is not None and route.rewrite.prefix is not None
        if not (route.strip_prefix or replaced) or all(match.regex is None for match in route.match):
            continue
        at = (*path, "rewrite", "prefix") if replaced else (*path, "strip_prefix")
        yield Breach(at, "a match by regex has no prefix (rewrite: {regex, to})", key=True)


Twin = tuple[int, str | None, str, bytes | str, frozenset[str], frozenset[tuple[str, str]], frozenset[tuple[str, str]]]


def _twin(route: Route, match: Match) -> Twin:
    """Equal for matches that hold for the same requests with the same precedence."""
    kind: str
    value: bytes | str
    if match.path is not None:
        kind, value = "path", target.written(match.path)
    elif match.regex is not None:
        kind, value = "regex", match.regex
    else:
        kind, value = "prefix", target.written_prefix(match.prefix or "/")
    headers, query = frozenset(match.headers.items()), frozenset(match.query.items())
    return (route.priority, match.host, kind, value, frozenset(match.methods), headers, query)


def distinct_routes(draft: Draft) -> Breaches:
    """No route is hidden for ever by one that matches the very same requests."""
    seen: dict[Twin, Path] = {}
    for path, route in draft.routes():
        for at, match in match_paths(path, route):
            twin = _twin(route, match)
            first = seen.setdefault(twin, path)
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
    elif not token and not kinds.admin_is_local(bind):
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
    unique_names,
    unique_headers,
    one_source,
    etcd_login,
    tls_is_used,
    tls_files,
    unique_endpoints,
    allowed_endpoints,
    one_path_condition,
    one_rewriting,
    cuttable_prefix,
    distinct_routes,
    outside_own_prefix,
    reachable_readyz,
    guarded_admin,
)
