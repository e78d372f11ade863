"""Which nginx server handles a host on which port. The gateway does not distinguish ports.

Rule: a redirect to https precedes every route that the same host has on another port. This
includes hosts that only other servers name, if nginx falls back to the redirecting server on
its port. So plain http is never forwarded where nginx redirected it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gateway.importers import prefixes
from gateway.importers.draft import DraftRoute, Note, Rank, Ranked
from gateway.importers.nginx_syntax import Directive
from gateway.importers.priorities import may_meet

# Position in a rank, after the host's two numbers, that puts redirects to https first.
TURN = 2
_FIRST, _LATER = -1, 0


@dataclass(slots=True)
class Served:
    """One server block. `hosts`: the hosts of its routes (None: any host). `named`: every exact or
    wildcard server_name, as the hosts that it stands for. `patterned`: it also has regular
    expressions as names. `answers`: it answers every request itself. `default_of`: the ports whose
    default server it is. `secure`: it listens with TLS."""

    line: int
    hosts: list[str | None]
    named: list[tuple[str, ...]]
    patterned: bool
    answers: bool
    ports: frozenset[str]
    default_of: frozenset[str]
    secure: bool
    routes: list[DraftRoute] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for names in self.named for name in names]


def by_host(host: str | None) -> Rank:
    """The first numbers of a rank: exact hosts, then longer wildcards, then none."""
    if host is None:
        return (2, 0, _LATER)
    return (1, -len(host), _LATER) if host.startswith("*.") else (0, 0, _LATER)


def listening(given: list[Directive]) -> tuple[frozenset[str], frozenset[str], bool]:
    """The ports of `listen` directives, those with `default_server`, and whether TLS is spoken."""
    ports: dict[str, bool] = {}
    secure = False
    for one in given:
        if not one.words:
            continue
        address, *options = one.words
        last = address.rpartition("]")[2].rpartition(":")[2]
        port = address if address.startswith("unix:") else last if last.isdecimal() else "80"
        ports[port] = ports.get(port, False) or "default_server" in options or "default" in options
        secure = secure or "ssl" in options or "quic" in options or port == "443"
    ports = ports or {"80": False}
    return frozenset(ports), frozenset(port for port, default in ports.items() if default), secure


def to_https(route: DraftRoute) -> bool:
    """Whether a route redirects plain http to the same host and path, and lets https pass."""
    return route.lets_pass and not route.closed and set(route.settings["redirect"]) <= {"status", "scheme"}


def reachable(servers: list[Served], notes: list[Note]) -> None:
    """Take from each server the hosts for which nginx never uses it: another server has the name, or
    is the default, on each of its ports."""
    by_port = _by_port(servers)
    for server in servers:
        lost = [
            host for host in server.hosts if not any(_answering(host, by_port[port]) is server for port in server.ports)
        ]
        if lost:
            names = ", ".join(host or "any other host" for host in lost)
            message = f"nginx never uses this server for {names}: on each of its ports another one goes before"
            notes.append(Note(server.line, message))
            server.hosts[:] = [host for host in server.hosts if host not in lost]


def answers(host: str, server: Served, servers: list[Served]) -> bool:
    """Whether nginx uses a server for a host, on one of its ports."""
    by_port = _by_port(servers)
    return any(_answering(host, by_port[port]) is server for port in server.ports)


def placed(servers: list[Served]) -> list[DraftRoute]:
    """The routes of all servers, with redirects to https in front."""
    by_port = _by_port(servers)
    for server in servers:
        redirects = [route for route in server.routes if to_https(route)]
        if not redirects:
            continue
        twins = {host for other in servers if other is not server for host in other.hosts} & set(server.hosts)
        if twins:
            for route in server.routes:
                _go_first(route, redirects, twins, server.line)
        others = [other for other in servers if other is not server]
        named = sorted({name for other in others for name in other.names} - set(server.hosts))
        # Unknown hosts matter only if another server has routes for them.
        unknown = [None] if None not in server.hosts and any(None in other.hosts for other in others) else []
        strangers = [
            host
            for host in (*named, *unknown)
            if any(_answering(host, by_port[port]) is server for port in server.ports)
        ]
        for route in redirects:
            if strangers:
                _take_along(route, strangers)
            if strangers or twins:
                route.matches += prefixes.by_bytes(route.matches)
    return [route for server in servers for route in server.routes]


def _go_first(route: DraftRoute, redirects: list[DraftRoute], twins: set[str | None], line: int) -> None:
    """Put a redirect, and what nginx takes before it, ahead of what other servers have for the same hosts."""
    redirecting = any(route is one for one in redirects)
    if not redirecting and not any(_before(route, one) for one in redirects):
        return
    route.matches = [_first(one) if one.match.host in twins else one for one in route.matches]
    if not redirecting and not route.closed:
        message = f"holds for all ports of the host here, for those of the server in line {line} there"
        route.notes.append(Note(route.line, message))


def _before(route: DraftRoute, redirect: DraftRoute) -> bool:
    return any(
        one.rank < other.rank and may_meet(one.match, other.match)
        for one in route.matches
        for other in redirect.matches
        if one.match.host == other.match.host
    )


def _first(one: Ranked) -> Ranked:
    return Ranked(one.match, (*one.rank[:TURN], _FIRST, *one.rank[TURN + 1 :]))


def _take_along(route: DraftRoute, strangers: list[str | None]) -> None:
    """Redirect hosts of other servers, too, for which nginx takes this one by its port."""
    redirects = {(one.match.path, one.match.prefix, one.match.regex): one for one in route.matches}
    for one in redirects.values():
        route.matches += [
            _first(Ranked(replace(one.match, host=host), (*by_host(host), *one.rank[TURN + 1 :]))) for host in strangers
        ]
    more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
    shown = ", ".join(host or "any" for host in strangers[:5]) + more
    route.notes.append(Note(route.line, f"redirects hosts of other servers, too, as nginx does by this port: {shown}"))


# -- which server nginx takes --------------------------------------------------------------


@dataclass(slots=True)
class _Port:
    default: Served
    patterned: Served | None = None
    named: dict[str, Served] = field(default_factory=dict)


def _by_port(servers: list[Served]) -> dict[str, _Port]:
    found: dict[str, _Port] = {}
    for server in servers:
        for port in server.ports:
            one = found.setdefault(port, _Port(server))
            if port in server.default_of:
                one.default = server
            if server.patterned and one.patterned is None:
                one.patterned = server
            for names in server.named:
                # nginx ignores a server_name that another server has for the same port.
                if not any(name in one.named for name in names):
                    one.named |= dict.fromkeys(names, server)
    return found


def _answering(host: str | None, port: _Port) -> Served:
    """The server that nginx takes for a host (None: one that no server names): by its name, the
    longest wildcard, a regular expression (assumed to match), or the default."""
    if host is not None and host in port.named:
        return port.named[host]
    labels = (host or "").removeprefix("*.").split(".")
    for first in range(1, len(labels)):
        wildcard = f"*.{'.'.join(labels[first:])}"
        if wildcard in port.named:
            return port.named[wildcard]
    return port.patterned or port.default
