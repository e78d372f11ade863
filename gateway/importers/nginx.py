"""nginx: `server` blocks with `location` and `proxy_pass`, and the `upstream` blocks they name.

Rule: a location is carried over when `proxy_pass` says plainly where its requests go, or
`return` what they are answered (nginx_answers). What decides about a request and has no
counterpart (a guard, rewriting that starts over, other answers made by nginx) closes the
location, so that no other one gets its requests.

The order in which locations win is nginx's: exact ones; the longest prefix if it is `^~`;
patterns as they stand; the longest prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.importers import nginx_answers, nginx_groups, nginx_guards, nginx_includes, nginx_ports, regexes
from gateway.importers.draft import HTTPS_IS_KNOWN, Draft, DraftRoute, DraftUpstream, Note, Ranked
from gateway.importers.nginx_guards import ANSWERS, Level
from gateway.importers.nginx_ports import Served
from gateway.importers.nginx_syntax import Directive
from gateway.model import Match

_LATER = " (not in this version)"
_SAME = "to https with the same host and path"
# Behind every kind of location in a rank.
_LAST = 9
_OURS = ": the gateway does this by itself"
# They may stand beside a proxy_pass without a word in the matter.
_HARMLESS_ANSWERS = frozenset({"root", "index", "autoindex"})
# Headers that the gateway writes, or deals with, on its own.
OUR_HEADERS = frozenset(
    {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "forwarded",
     "connection", "upgrade"}
)  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,9})([kKmMgG]?)\Z")
_UNITS = {"": "B", "k": "KiB", "m": "MiB", "g": "GiB"}
_PASS = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]+)(?P<uri>/.*)?\Z")
_MIRRORED = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#$]+)\$request_uri\Z")


@dataclass(slots=True)
class _Location:
    """`kind`: =, ^~, ~, ~* or nothing. `order`: where it stands among patterns. `around`:
    the path of the location that it stands in, if it does."""

    kind: str
    path: str
    directive: Directive
    level: Level
    order: tuple[int, int]
    around: str = ""


def convert(data: bytes, name: str, path: Path | None = None) -> Draft:
    """A configuration, or what `nginx -T` prints, as a draft. `path`: where the document is, if
    it is a file; what it includes is read where it is there."""
    top, read = nginx_includes.read(data, name, path)
    draft = _Import(top).draft
    for file in read:
        draft.note(0, f"{file} was read from disk; comments have the line of its include")
    return draft


class _Import:
    def __init__(self, top: list[Directive]) -> None:
        self.draft = Draft("nginx")
        self._groups: dict[str, Directive] = {}
        self._made: dict[tuple[Any, ...], DraftUpstream] = {}
        self._used: set[str] = set()
        self._bodies: list[tuple[Directive, str]] = []
        outer = Level(top, main=any(one.name == "http" for one in top))
        levels = [outer, *(Level(http.block or [], outer) for http in outer.own("http"))]
        for level in levels:
            for group in level.own("upstream"):
                self._groups[" ".join(group.words)] = group
        servers = [(server, level) for level in levels for server in level.own("server")]
        if not servers and any(one.name == "location" for one in top):
            # What an `include` inside of a server would bring.
            servers = [(Directive("server", [], 1, top), Level([]))]
            levels = []
        self._servers = len(servers)
        self._names = [one for server, _ in servers for one in server.block or [] if one.name == "server_name"]
        opened = [Level(server.block or [], level) for server, level in servers]
        self._hosts_of = [self._hosts(level) for level in opened]
        self._served = [
            Served(
                server.line,
                hosts,
                _names(level),
                _is_patterned(level),
                any(one.name in ANSWERS - _HARMLESS_ANSWERS for one in level.block),
                *nginx_ports.listening([one for one in level.block if one.name == "listen"]),
            )
            for (server, _), hosts, level in zip(servers, self._hosts_of, opened, strict=True)
        ]
        nginx_ports.reachable(self._served, self.draft.notes)
        for number, (server, _) in enumerate(servers):
            self._server(server, opened[number], number)
        self.draft.routes = nginx_ports.placed(self._served)
        for level in levels:
            self._common(level)
        self._body_limit()
        for group_name, group in self._groups.items():
            if group_name not in self._used:
                told = f"upstream {group_name} is left out: no location that was carried over leads to it"
                self.draft.note(group.line, told)

    def _common(self, level: Level) -> None:
        """What stands outside of servers; locations have looked at what they take from it."""
        level.asked |= {id(one) for one in level.block if one.name in ("http", "events", "server", "upstream")}
        self._note_body(level)
        for directive in level.rest():
            self.draft.note(directive.line, nginx_groups.lost(directive))

    # -- servers -------------------------------------------------------------------------

    def _server(self, given: Directive, level: Level, number: int) -> None:
        notes = self.draft.notes
        hosts = self._hosts_of[number]
        if not hosts and self._served[number].patterned:
            self._redirects_of_patterns(level, number)
        answer = next((one for one in level.block if one.name in ANSWERS - _HARMLESS_ANSWERS), None)
        locations = list(self._locations(level))
        self._note_body(level)
        moved = self._moved(level, number)
        self._plain_http(level, number)
        rewrites = level.own("rewrite")
        everywhere = next(filter(None, map(nginx_answers.as_return, rewrites)), None)
        answer = answer if everywhere is None else everywhere
        if everywhere is None:
            self._rewritten_first(rewrites, hosts, number)
        if answer is not None:
            level.own(answer.name)
            self._answers_all(answer, level, [host for host in hosts if host not in moved], number)
        elif not hosts:
            notes.append(Note(given.line, "the server is left out: it has no name that could be carried over"))
        else:
            for location in locations:
                self._location(location, hosts, locations, number)
            if self._servers == 1 and None not in hosts:
                told = "a request for any other host gets 404 here; nginx gives it to its first server"
                notes.append(Note(given.line, told))
            if None not in hosts and not any(one.kind == "" and one.path == "/" for one in locations):
                self._no_location(given, hosts, number)
        for directive in level.rest():
            notes.append(Note(directive.line, nginx_groups.lost(directive)))

    def _no_location(self, given: Directive, hosts: list[str | None], number: int) -> None:
        """What becomes of requests that meet no location: nginx answers 404. Where another server has
        routes for wider hosts, the requests would be forwarded there."""
        alone, wider = self._alone(hosts, number)
        others = [served for nth, served in enumerate(self._served) if nth != number]
        if not wider or not alone or all(served.answers for served in others if served.hosts):
            told = "a request that meets no location goes on to routes for any host, if there are such"
            self.draft.notes.append(Note(given.line, told))
            return
        matches = [Ranked(Match(host=host, prefix="/"), (*nginx_ports.by_host(host), _LAST)) for host in alone]
        name, settings = f"{_first_name(alone) or 'any'}-rest", {"respond": {"status": 404}}
        route = DraftRoute(name, "", matches, settings, line=given.line)
        self._served[number].routes.append(route)

    def _alone(self, hosts: list[str | None], number: int) -> tuple[list[str | None], bool]:
        """The hosts that no other server has, and whether another server has routes for wider hosts."""
        others = [served for nth, served in enumerate(self._served) if nth != number]
        alone = [host for host in hosts if not any(host in served.hosts for served in others)]
        return alone, any(host is None or host.startswith("*.") for served in others for host in served.hosts)

    def _answers_all(self, answer: Directive, level: Level, hosts: list[str | None], number: int) -> None:
        """Carry over what a server answers to all requests for some hosts. Where there is another
        server for one, on another port, only a redirect from http to https leaves it its requests."""
        end = nginx_answers.returned(answer, level.last, _first_name(self._hosts_of[number]))
        others = {host for nth, some in enumerate(self._hosts_of) if nth != number for host in some}
        route = DraftRoute(f"{_first_name(hosts) or 'any'}-answer", "", [], end or {}, line=answer.line)
        to_https = end is not None and nginx_ports.to_https(route)
        kept = [host for host in hosts if end is not None and (to_https or host not in others)]
        self._instead(answer, [host for host in hosts if host not in kept], number)
        if not kept:
            return
        if "respond" in route.settings:
            found = nginx_guards.of_answers(nginx_guards.guards(level), redirected=False)
            route.closed = nginx_guards.reason(found)
        route.matches = [Ranked(Match(host=host, prefix="/"), (*nginx_ports.by_host(host), -1)) for host in kept]
        if to_https:
            self.draft.note(0, HTTPS_IS_KNOWN)
            if None in kept and others - {None}:
                told = "hosts with a server of their own are not redirected, where that has the same port"
                route.notes.append(Note(answer.line, told))
        self._served[number].routes.append(route)

    def _instead(self, answer: Directive, hosts: list[str | None], number: int) -> None:
        """What becomes of an answer to all requests that cannot be carried over for these hosts.
        One that sends to https does so to the same host and path. Any other closes the hosts that
        would else meet another server's routes."""
        if not hosts:
            return
        names = ", ".join(host or "any" for host in hosts)
        status = nginx_answers.status_to_https(answer)
        if status is None or self._served[number].secure:
            alone, wider = self._alone(hosts, number)
            if alone and wider:
                matches = [Ranked(Match(host=host, prefix="/"), (*nginx_ports.by_host(host), -1)) for host in alone]
                name, why = f"{_first_name(alone) or 'any'}-answer", f"{answer.name} answers"
                self._served[number].routes.append(DraftRoute(name, "", matches, line=answer.line, closed=why))
                names = ", ".join(host or "any" for host in hosts if host not in alone)
            if names:
                told = f"left out: {answer.name} answers all requests that come for {names} by one of its ports"
                self.draft.note(answer.line, told)
            return
        self._to_https(answer, status, hosts, number, exact=False)

    def _to_https(self, answer: Directive, status: int, hosts: list[str | None], number: int, *, exact: bool) -> None:
        """Redirect plain http for hosts, and let https pass. `exact`: nginx keeps host and path, too."""
        matches = [Ranked(Match(host=host, prefix="/"), (*nginx_ports.by_host(host), -1)) for host in hosts]
        if not matches:
            return
        settings = {"redirect": {"status": status, "scheme": "https"}}
        route = DraftRoute(f"{_first_name(hosts) or 'any'}-answer", "", matches, settings, line=answer.line)
        if not exact:
            route.notes.append(Note(answer.line, f"{_SAME}; nginx sent clients to {answer.words[-1]}"))
        self.draft.note(0, HTTPS_IS_KNOWN)
        self._served[number].routes.append(route)

    def _redirects_of_patterns(self, level: Level, number: int) -> None:
        """Where only patterns name a server, redirects to https are carried over for all hosts."""
        status = next(filter(None, map(nginx_answers.status_to_https, _inside(level.block))), None)
        if status is not None and not self._served[number].secure:
            answer = Directive("return", ["a URL of https, for names by a pattern"], self._served[number].line)
            self._to_https(answer, status, [None], number, exact=False)

    def _rewritten_first(self, rewrites: list[Directive], hosts: list[str | None], number: int) -> None:
        """Shut the paths that a server rewrites before it looks for a location: that may be a guarded one."""
        for one in rewrites:
            pattern = regexes.whole(one.words[0] if one.words else "")
            matches = [Ranked(Match(host=host, regex=pattern), (*nginx_ports.by_host(host), -1)) for host in hosts]
            why = "rewrite changes these paths before a location is looked for"
            if matches:
                self._served[number].routes.append(DraftRoute("rewrite", "", matches, line=one.line, closed=why))

    def _plain_http(self, level: Level, number: int) -> None:
        """Carry over `if ($scheme = http) { return https://… }`."""
        for one in list(level.block):
            inside = one.block or []
            if len(inside) == 1 and nginx_answers.is_plain_http(one):
                answer = nginx_answers.as_return(inside[0]) if inside[0].name == "rewrite" else inside[0]
                status = None if answer is None else nginx_answers.status_to_https(answer)
                if answer is not None and status is not None:
                    level.block = [other for other in level.block if other is not one]
                    end = nginx_answers.returned(answer, level.last, _first_name(self._hosts_of[number]))
                    self._to_https(answer, status, self._hosts_of[number], number, exact=_same_host(end))
    def _moved(self, level: Level, number: int) -> set[str | None]:
        """The hosts that `if ($host = NAME) { return … }` redirects, as certbot writes it."""
        moved: set[str | None] = set()
        served = self._served[number]
        for one in list(level.block):
            host, inside = nginx_answers.host_of(one), one.block or []
            if host is None or len(inside) != 1 or not nginx_ports.answers(host, served, self._served):
                continue
            level.block = [other for other in level.block if other is not one]
            moved.add(host)
            self._answers_all(inside[0], level, [host], number)
        return moved

    def _hosts(self, level: Level) -> list[str | None]:
        listening = [word for one in level.block if one.name == "listen" for word in one.words[1:]]
        default = "default_server" in listening or "default" in listening
        given = level.own("server_name")
        names = [(word.lower(), one.line) for one in given for word in one.words]
        hosts: list[str | None] = []
        for name, line in names:
            if name in ("", "_"):
                continue
            if name.startswith("~") or name.endswith(".*") or "$" in name or "*" in name[1:]:
                self.draft.note(line, f"server_name {name} has no counterpart: exact names and *.example.com have")
            elif name.startswith("."):
                hosts += [name[1:], f"*{name}"]
            else:
                hosts.append(name)
        catches_all = default or not names or all(name in ("", "_") for name, _ in names)
        if not catches_all:
            return list(dict.fromkeys(hosts))
        # Routes for any host have the server's own names too, unless a wildcard is nearer.
        others = any(
            "*" in word or word.startswith(".") for one in self._names if one not in given for word in one.words
        )
        return [*dict.fromkeys(hosts), None] if others else [None]

    def _locations(self, level: Level, around: str = "", depth: int = 0) -> Iterator[_Location]:
        """The locations of a server, and those within them, which win over them."""
        for number, one in enumerate(level.own("location")):
            words = one.words
            if len(words) == 1 and words[0][:2] == "^~":
                words = ["^~", words[0][2:]]
            elif len(words) == 1 and words[0][:1] in ("=", "~"):
                mark = "~*" if words[0].startswith("~*") else words[0][0]
                words = [mark, words[0].removeprefix(mark)]
            kind, path = ("", words[0]) if len(words) == 1 else (words[0], words[1]) if len(words) == 2 else ("", "")
            if path.startswith("@") or not path or kind not in ("", "=", "^~", "~", "~*"):
                told = f"location {' '.join(one.words)} is left out: no request meets it by itself"
                self.draft.note(one.line, told)
            else:
                inner = Level(one.block or [], level)
                yield _Location(kind, path, one, inner, (-depth, number), around)
                # Within a pattern no other paths than its own can stand.
                yield from self._locations(inner, path if kind in ("", "^~") else around, depth + 1)

    # -- locations -----------------------------------------------------------------------

    def _location(
        self, location: _Location, hosts: list[str | None], all_of_them: list[_Location], number: int
    ) -> None:
        level = location.level
        matches = [one for host in hosts for one in _matches(location, host, all_of_them)]
        route = DraftRoute(_name(location), "", matches, line=location.directive.line)
        route.closed = self._passed(location, level, route, number)
        guards = nginx_guards.guards(level)
        if route.answered:
            guards = nginx_guards.of_answers(guards, redirected="redirect" in route.settings)
        elif not route.closed:
            self._mirrored(level, route, all_of_them)
        if guards:
            told = nginx_guards.reason(guards)
            route.closed = f"{route.closed}; {told}" if route.closed else told
        self._note_body(level)
        shut = {id(one) for one in guards}
        route.notes += [Note(one.line, f"{one.name} is not carried over") for one in guards]
        route.notes += [Note(one.line, nginx_groups.lost(one)) for one in level.rest() if id(one) not in shut]
        self._served[number].routes.append(route)

    def _mirrored(self, level: Level, route: DraftRoute, locations: list[_Location]) -> None:
        """Where the requests of a location are copied to: by way of another one."""
        for one in level.find("mirror"):
            there = next((other for other in locations if [other.path] == one.words and other.kind in ("", "=")), None)
            passed = [] if there is None else [inner for inner in there.level.block if inner.name == "proxy_pass"]
            target = _MIRRORED.match(" ".join(passed[0].words)) if passed else None
            if one.words == ["off"]:
                continue
            if there is None or target is None:
                route.notes.append(Note(one.line, nginx_groups.lost(one)))
            elif "mirror" in route.settings:
                route.notes.append(Note(one.line, "mirror is not carried over: a route has one"))
            else:
                upstream = self._upstream(target["scheme"], target["authority"], there.level)
                route.settings["mirror"] = {"upstream": upstream.name}
        level.find("mirror_request_body")

    def _passed(self, location: _Location, level: Level, route: DraftRoute, number: int) -> str:
        """Fill in where a location's requests go; why that cannot be said, else nothing."""
        passed, rewrites = level.own("proxy_pass"), level.own("rewrite")
        answer = next((one for one in level.block if one.name in ANSWERS - _HARMLESS_ANSWERS), None)
        answer = next(filter(None, map(nginx_answers.as_return, rewrites)), answer)
        if answer is not None:
            level.own(answer.name)
            end = nginx_answers.returned(answer, level.last, _first_name(self._hosts_of[number]))
            status = nginx_answers.status_to_https(answer)
            if status is not None and self._servers > 1 and not self._served[number].secure and not _same_host(end):
                route.notes.append(Note(answer.line, f"{_SAME}; nginx sent clients to {answer.words[-1]}"))
                end = {"redirect": {"status": status, "scheme": "https"}}
            if end is None:
                return f"{answer.name} answers"
            if "respond" in end:
                nginx_answers.add_headers(end, answer, level.find("add_header"))
            route.settings = end
            return ""
        if not passed or not passed[0].words:
            return "it has no proxy_pass"
        where = passed[0].words[0]
        target = _PASS.match(where)
        if "$" in where or target is None or target["authority"].startswith("unix:"):
            # Whoever opens the route finds the path as it was.
            route.settings = (_rewritten(rewrites) if rewrites else None) or {}
            return f"proxy_pass {where} names no host" + (" but a variable" if "$" in where else "")
        settings = _rewritten(rewrites) if rewrites else _replaced(location, target["uri"])
        if settings is None:
            told = "rewrite is carried over when there is one, with break, and no variables"
            return told if rewrites else f"the path in proxy_pass {where} cannot be put in place of this one"
        route.upstream = self._upstream(target["scheme"], target["authority"], level).name
        policy = _host_policy(level, target["authority"] if target["authority"] in self._groups else "", route.notes)
        if policy != "preserve":
            settings["host"] = policy
        route.settings = settings | _options(level, route.notes)
        return ""

    # -- upstreams -----------------------------------------------------------------------

    def _upstream(self, scheme: str, authority: str, level: Level) -> DraftUpstream:
        tls = nginx_groups.tls(level) if scheme == "https" else None
        key = (scheme, authority, None if tls is None else tuple(tls.items()))
        if key in self._made:
            return self._made[key]
        group = self._groups.get(authority)
        upstream = self._made[key] = self.draft.upstream(authority)
        if group is None:
            upstream.settings["endpoints"] = [{"url": f"{scheme}://{authority}"}]
        else:
            self._used.add(authority)
            nginx_groups.group(upstream, group, scheme)
        if tls is not None:
            upstream.settings["tls"] = tls
            if not tls.get("verify", True):
                upstream.notes.append(Note(0, "nginx verifies no certificate unless proxy_ssl_verify is on"))
        return upstream

    # -- the limit on bodies ---------------------------------------------------------------

    def _note_body(self, level: Level) -> None:
        for one in level.own("client_max_body_size"):
            found = _SIZE.match(one.words[0]) if one.words else None
            self._bodies.append((one, f"{int(found[1])}{_UNITS[found[2].lower()]}" if found else ""))

    def _body_limit(self) -> None:
        """One limit holds for the whole gateway, so it is carried over when there is one."""
        sizes = {size for _, size in self._bodies}
        if len(sizes) == 1 and "" not in sizes:
            size = sizes.pop()
            self.draft.server = {"limits": {"body": "0B" if size == "0B" else size}}
            return
        for one, _ in self._bodies:
            told = "client_max_body_size is not carried over: server.limits.body is one limit for all, and these differ"
            self.draft.note(one.line, told)


def _name(location: _Location) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "-", location.path).strip("-")
    return words or "root"


def _same_host(end: dict[str, Any] | None) -> bool:
    """Whether a redirect leaves the host and the path as they are."""
    return end is not None and set(end.get("redirect", {})) <= {"status", "scheme"}


def _inside(block: list[Directive]) -> Iterator[Directive]:
    """All directives of a block and of those in it; a rewrite of every path to a URL as `return`."""
    for one in block:
        yield (nginx_answers.as_return(one) if one.name == "rewrite" else None) or one
        yield from _inside(one.block or [])


def _is_patterned(level: Level) -> bool:
    """Whether a server has names that are patterns."""
    names = [word for one in level.block if one.name == "server_name" for word in one.words]
    return any(name.startswith("~") or name.endswith(".*") for name in names)


def _names(level: Level) -> list[tuple[str, ...]]:
    """The names of a server that can be hosts here; `.example.com` stands for two."""
    words = (word.lower() for one in level.block if one.name == "server_name" for word in one.words)
    dotted = ((word[1:], f"*{word}") if word.startswith(".") else (word,) for word in words)
    return [names for names in dotted if names[0] not in ("", "_") and not re.search(r"[~$]|\.\*\Z", names[0])]


def _first_name(hosts: list[str | None]) -> str:
    """What `$server_name` is: the first name, as far as there is one."""
    return next((host for host in hosts if host is not None and not host.startswith("*")), "")


# -- which requests ------------------------------------------------------------------------


def _matches(location: _Location, host: str | None, others: list[_Location]) -> list[Ranked]:
    """The matches of a location, and their place in nginx's order."""
    by_host = nginx_ports.by_host(host)
    if location.kind == "=":
        return [Ranked(Match(host=host, path=_raw(location.path)), (*by_host, 0, 0))]
    if location.kind in ("~", "~*"):
        found = regexes.whole(location.path, insensitive=location.kind == "~*")
        inside = _raw(location.around) if location.around else None
        rank = (*by_host, 2, *location.order)
        match = Match(host=host, prefix=inside, regex=found)
        return [Ranked(one, rank) for one in _where_patterns_count(match, others)]
    first = location.kind == "^~" and not _under(location, others)
    return [Ranked(Match(host=host, prefix=_raw(location.path)), (*by_host, 1 if first else 3, -len(location.path)))]


def _raw(path: str) -> str:
    """A path as a request has it: nginx writes it decoded."""
    return path.replace("%", "%25")


def _under(location: _Location, others: list[_Location]) -> list[_Location]:
    """Longer prefixes, in which patterns are tried although the shorter one is `^~`."""
    return [
        one for one in others
        if one.kind == "" and one.path.startswith(location.path) and len(one.path) > len(location.path)
    ]  # fmt: skip


def _where_patterns_count(match: Match, others: list[_Location]) -> Iterator[Match]:
    """The match of a pattern, without the paths of prefixes that are `^~`, and once more for each
    longer prefix under those, where patterns count again."""
    shut = [one.path for one in others if one.kind == "^~" and _under(one, others)]
    yield _without(match, shut)
    open_again = {under.path for one in others if one.kind == "^~" for under in _under(one, others)}
    for path in sorted(open_again):
        inside = _both(match.prefix, _raw(path))
        if inside is not None:
            yield _without(replace(match, prefix=inside), [one for one in shut if one.startswith(path)])


def _without(match: Match, beginnings: list[str]) -> Match:
    """A match that leaves out paths with certain beginnings."""
    if not beginnings:
        return match
    return replace(match, excluded=Match(regex=regexes.either([regexes.beginning(one) for one in beginnings])))


def _both(one: str | None, other: str) -> str | None:
    """The longer of two prefixes, one of which is under the other; None for others."""
    if one is None or other.startswith(one):
        return other
    return one if one.startswith(other) else None


# -- what becomes of the path -----------------------------------------------------------------


def _rewritten(rewrites: list[Directive]) -> dict[str, Any] | None:
    """The keys of a route for `rewrite` directives; None when there are none that say it."""
    words = rewrites[0].words
    if len(rewrites) > 1 or len(words) != 3 or words[2] != "break":
        return None
    if re.search(r"\$[a-z_{]", words[1]) or not words[1].startswith(("/", "$")):
        return None
    return {"rewrite": {"regex": regexes.whole(words[0]), "to": regexes.groups(words[1])}}


def _replaced(location: _Location, uri: str | None) -> dict[str, Any] | None:
    """The same for the path in `proxy_pass`, which takes the place of the location's."""
    if uri is None:
        return {}
    if "?" in uri or "#" in uri or location.kind in ("~", "~*"):
        return None
    path = location.path
    if uri == path:
        return {}
    if location.kind == "=":
        return {"rewrite": {"path": uri}}
    if path.endswith("/") == uri.endswith("/"):
        return {"rewrite": {"prefix": uri}}
    return {"rewrite": {"regex": f"{regexes.path(path)}(.*)", "to": uri.replace("\\", "\\\\") + "\\1"}}


# -- options ----------------------------------------------------------------------------------


def _options(level: Level, notes: list[Note]) -> dict[str, Any]:
    """Timeouts and retries that hold for a location."""
    timeouts: dict[str, Any] = {}
    for name, ours in (
        ("proxy_connect_timeout", ("connect",)),
        ("proxy_send_timeout", ("write",)),
        ("proxy_read_timeout", ("response", "idle")),
    ):
        one = level.last(name)
        length = nginx_groups.time(" ".join(one.words)) if one is not None else None
        if length is not None:
            timeouts |= dict.fromkeys(ours, length)
        elif one is not None:
            notes.append(Note(one.line, f"{name} is no time, and left out"))
    retry = _retry(level, notes)
    return {key: value for key, value in (("timeouts", timeouts), ("retry", retry)) if value}


# Conditions of proxy_next_upstream -> ours.
_CONDITIONS = {"error": ["connect", "stale", "reset"], "timeout": ["timeout"]}


def _retry(level: Level, notes: list[Note]) -> dict[str, Any]:
    retry: dict[str, Any] = {}
    given = level.last("proxy_next_upstream")
    if given is not None and "off" in given.words:
        return {"attempts": 1}
    when: list[str] = []
    statuses: list[int] = []
    for word in given.words if given is not None else ():
        if word in _CONDITIONS:
            when += _CONDITIONS[word]
        elif re.match(r"http_[45][0-9][0-9]\Z", word):
            statuses.append(int(word[5:]))
        else:
            notes.append(Note(given.line if given else 0, f"proxy_next_upstream {word} is not carried over"))
    if given is not None:
        retry = {"when": when} | ({"statuses": statuses} if statuses else {})
    tries = level.last("proxy_next_upstream_tries")
    if tries is not None and tries.words and tries.words[0].isdecimal() and int(tries.words[0][:9]) > 0:
        retry["attempts"] = int(tries.words[0][:9])
    return retry


def _host_policy(level: Level, group: str, notes: list[Note]) -> str:
    """The Host that an upstream gets, and notes on the other headers that are set."""
    policy = group or "upstream"
    for one in level.find("proxy_set_header"):
        name, value = one.words[0] if one.words else "", one.words[1] if len(one.words) > 1 else ""
        if name.lower() == "host":
            policy = "preserve" if value in _CLIENTS_HOST else value
            if value == "$proxy_host":
                policy = group or "upstream"
            elif "$" in policy:
                notes.append(Note(one.line, f"Host {value} became the client's: it takes a variable"))
                policy = "preserve"
        elif name.lower() in OUR_HEADERS:
            notes.append(Note(one.line, f"proxy_set_header {name} is not carried over{_OURS}"))
        else:
            notes.append(Note(one.line, f"proxy_set_header {name} is not carried over{_LATER}"))
    return policy


_CLIENTS_HOST = frozenset({"$host", "$http_host", "$host:$server_port", "${host}", "${http_host}"})
