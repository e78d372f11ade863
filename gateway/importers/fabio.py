"""fabio's routes: its own commands, or services with `urlprefix-` tags.

Three forms are read, told apart by how they begin:

    route add web example.com/shop http://10.0.0.1:8080/ weight 0.2 tags "a" opts "strip=/shop"
    web: urlprefix-example.com/shop strip=/shop        (a service, and one of its tags)
    {…} or […]                                         (JSON of Consul's catalogue, agent or health API)

Rule: of `route add` the endpoints are fixed; of tags the service stays in Consul, where the
gateway finds its instances as fabio did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.config.document import Leaf, Mapping, Node, Sequence, parse
from gateway.errors import ConfigError, Mistake
from gateway.importers import prefixes, regexes
from gateway.importers.draft import HTTPS_IS_KNOWN, Draft, DraftRoute, DraftUpstream, Note, Ranked
from gateway.importers.source_fields import decoded
from gateway.model import Match

TAG = "urlprefix-"
GUARDS = frozenset({"auth", "allow", "deny"})
# Weights are whole numbers here and shares of 1 there.
WHOLE = 1000
_ADD = re.compile(
    r"route\s+add\s+(?P<service>\S+)\s+(?P<source>\S+)\s+(?P<url>\S+)(?:\s+weight\s+(?P<weight>\S+))?"
    r"(?:\s+tags\s+\"(?P<tags>[^\"]*)\")?(?:\s+opts\s+\"(?P<opts>[^\"]*)\")?\Z"
)
_TAGGED = re.compile(r"(?P<service>[^\s:]+)\s*:\s*(?P<tag>\S.*)\Z")
_LATER = " (not in this version)"
_PORT = re.compile(r":([0-9]+)\Z")
# The magic of fabio's glob matcher, and what it takes from its environment.
_MAGIC = re.compile(r"[*?\[\]{}$].*", re.DOTALL)


@dataclass(slots=True)
class _Target:
    """One line, or one tag: `url` is None where Consul knows the instances."""

    line: int
    service: str
    source: str
    url: str | None = None
    weight: float = 0.0
    opts: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The host of its source, without a port."""
        return _PORT.sub("", self.source.partition("/")[0]).lower()

    @property
    def port(self) -> str:
        """The port of its source: `80` is plain http there, `443` is https."""
        found = _PORT.search(self.source.partition("/")[0])
        return found[1] if found is not None else ""


def convert(data: bytes, name: str) -> Draft:
    made = Draft("fabio")
    text = decoded(data, name)
    if text.lstrip()[:1] in ("{", "["):
        targets = list(_of_consul(data, name))
    else:
        targets = list(_of_lines(text, name, made))
    alike: dict[str, DraftUpstream] = {}
    groups = _grouped(targets)
    # Hosts whose requests may be forwarded when they come by https; "" has those of all hosts.
    hosts = {group[0].host for group in groups if group[0].port != "80" and "redirect" not in group[0].opts}
    for group in groups:
        _route(made, group, alike, hosts)
    return made


# -- reading -----------------------------------------------------------------------------


def _of_lines(text: str, name: str, made: Draft) -> Iterator[_Target]:
    wrong: list[Mistake] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        added, tagged = _ADD.match(line), _TAGGED.match(line)
        if added is not None:
            weight = _share(added["weight"])
            if weight is None:
                wrong.append(Mistake(number, 1, "", f"weight {added['weight']} is no number"))
            opts = _opts(added["opts"] or "")
            yield _Target(number, added["service"], added["source"], added["url"], weight or 0.0, opts)
        elif re.match(r"route\s+(del|weight)\s", line):
            command = " ".join(line.split()[:2])
            made.note(number, f"{command} is not carried over: it changes routes that were added before")
        elif tagged is not None and tagged["tag"].startswith(TAG):
            yield _tag(number, tagged["service"], tagged["tag"])
        elif tagged is None or line.startswith("route"):
            wrong.append(Mistake(number, 1, "", "is neither a route command nor `service: urlprefix-…`"))
        else:
            made.note(number, f"a tag of {tagged['service']} without {TAG} says nothing to fabio")
    if wrong:
        raise ConfigError.found(name, wrong)


def _of_consul(data: bytes, name: str) -> Iterator[_Target]:
    root, mistakes = parse(data)
    if mistakes or root is None:
        raise ConfigError.found(name, mistakes or [Mistake(1, 1, "", "is empty")])
    found = list(_services(root))
    if not found:
        told = f"holds no service of Consul's catalogue, agent or health API with a tag {TAG}…"
        raise ConfigError.found(name, [Mistake(1, 1, "", told)])
    # Each instance has the tags of its service again.
    seen: set[tuple[str, str]] = set()
    for service, leaf in found:
        if (service, leaf.text) not in seen:
            seen.add((service, leaf.text))
            yield _tag(leaf.line, service, leaf.text.strip())


def _services(node: Node) -> Iterator[tuple[str, Leaf]]:
    """Every pair of a service's name and one of its tags, in whichever answer it stands."""
    if isinstance(node, Sequence):
        for item in node.items:
            yield from _services(item)
        return
    if not isinstance(node, Mapping):
        return
    given = {key: entry.node for key, entry in node.entries.items()}
    inner = given.get("Service")
    named = given.get("ServiceName", inner)
    if isinstance(inner, Mapping):
        yield from _services(inner)
    elif isinstance(named, Leaf):
        yield from _tags(named.text, given.get("ServiceTags", given.get("Tags")))
    else:
        for key, value in given.items():
            if isinstance(value, Sequence):
                yield from _tags(key, value)
            else:
                yield from _services(value)


def _tags(service: str, tags: Node | None) -> Iterator[tuple[str, Leaf]]:
    for tag in tags.items if isinstance(tags, Sequence) else ():
        if isinstance(tag, Leaf) and tag.text.strip().startswith(TAG):
            yield service, tag


def _tag(line: int, service: str, tag: str) -> _Target:
    source, _, opts = tag[len(TAG) :].strip().partition(" ")
    return _Target(line, service, source, opts=_opts(opts))


def _opts(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (one.partition("=") for one in text.split())}


def _share(text: str | None) -> float | None:
    try:
        share = float(text or 0)
    except ValueError:
        return None
    return share if 0 <= share < 1e6 else 0.0


# -- one route ---------------------------------------------------------------------------


def _grouped(targets: list[_Target]) -> list[list[_Target]]:
    """Targets of one host and path share its requests."""
    groups: dict[str, list[_Target]] = {}
    for target in targets:
        host, slash, path = target.source.partition("/")
        groups.setdefault(host.lower() + slash + path, []).append(target)
    return list(groups.values())


def _route(made: Draft, group: list[_Target], alike: dict[str, DraftUpstream], hosts: set[str]) -> None:
    first = group[0]
    notes: list[Note] = []
    guards = sorted({key for target in group for key in GUARDS & target.opts.keys()})
    why = _left_out(first)
    if "redirect" in first.opts and _goes_to_https(first) and (first.port == "80" or (why and hosts)):
        made.routes.append(_to_https(made, first, hosts))
        return
    if why and guards and first.opts.get("proto", "http") in ("http", "https"):
        route = DraftRoute(first.service, "", [Ranked(_wider(first))], {}, [], first.line)
        route.closed = f"{', '.join(guards)} guarded it, and is not in this version; {why}, so it meets more"
        made.routes.append(route)
        return
    if why:
        for target in group:
            made.note(target.line, f"{target.service} {target.source} is left out: {why}")
        return
    for target in group[1:]:
        if target.opts != first.opts:
            told = f"opts of {target.service} differ from those in line {first.line}, which hold for all"
            notes.append(Note(target.line, told))
    host, _, path = first.source.partition("/")
    match = Match(host=host.lower() or None, prefix=f"/{path}")
    opts = dict(first.opts)
    settings = prefixes.settings([match], [opts["strip"]] if opts.get("strip") else [], opts.get("prepend", ""))
    policy = opts.get("host", "")
    if policy:
        settings["host"] = "upstream" if policy == "dst" else policy
    if "redirect" in opts:
        route = DraftRoute(first.service, "", [Ranked(match)], {"redirect": _redirect(first)}, notes, first.line)
    else:
        route = DraftRoute(first.service, "", [Ranked(match)], settings, notes, first.line)
        names = [_upstream(made, part, notes, alike).name for part in _parts(group)]
        if len(names) == 1:
            route.upstream = names[0]
        else:
            settings["split"] = [{"upstream": name, "weight": 1} for name in names]
            told = "services of one path have equal shares here, and there each instance has one"
            notes.append(Note(first.line, told))
    if guards:
        route.closed = f"{', '.join(guards)} guarded it, and is not in this version"
    known = GUARDS | {"strip", "prepend", "host", "proto", "tlsskipverify", "weight", "redirect"}
    notes += [Note(first.line, f"{key} is not carried over") for key in opts if key not in known]
    notes += [Note(first.line, f"{key} is not carried over{_LATER}") for key in guards]
    made.routes.append(route)


def _goes_to_https(target: _Target) -> bool:
    url = target.opts["redirect"].partition(",")[2] or target.url or ""
    return url.startswith("https://")


def _to_https(made: Draft, target: _Target, hosts: set[str]) -> DraftRoute:
    """A redirect of plain http to https, before all other routes of its host: there it has a port
    of its own. To the same host and path where more cannot be said."""
    to = None if _MAGIC.search(target.source) else _redirect(target)
    notes: list[Note] = []
    if to is not None and to.get("host") == target.host and "path" not in to:
        del to["host"]
    if to is None or (len(to) > 2 and target.host in hosts):
        code = target.opts["redirect"].partition(",")[0]
        to = {"status": int(code) if code in _REDIRECTS else 302, "scheme": "https"}
        notes.append(Note(target.line, "to https with the same host and path; fabio sent to another URL"))
    made.note(0, HTTPS_IS_KNOWN)
    return DraftRoute(target.service, "", [Ranked(_wider(target))], {"priority": 1, "redirect": to}, notes, target.line)


def _wider(target: _Target) -> Match:
    """A match that meets what a source meets, and more where that has a port or a pattern."""
    host = "" if _MAGIC.search(target.host) else target.host
    path = f"/{target.source.partition('/')[2]}"
    if _MAGIC.search(path):
        return Match(host=host or None, regex=f"{regexes.path(_MAGIC.sub('', path))}.*")
    return Match(host=host or None, prefix=path)


def _parts(group: list[_Target]) -> list[list[_Target]]:
    """What is one upstream each: targets with addresses together, and each service of Consul."""
    parts: dict[str, list[_Target]] = {}
    for target in group:
        if target.url is not None:
            parts.setdefault("", []).append(target)
        else:
            parts.setdefault(target.service, [target])
    return list(parts.values())


def _left_out(target: _Target) -> str:
    host, slash, path = target.source.partition("/")
    proto = target.opts.get("proto", "http")
    if "redirect" in target.opts and _redirect(target) is None:
        return "its redirect cannot be expressed"
    if proto not in ("http", "https"):
        return f"proto={proto}: requests of HTTP are what goes through"
    if not slash:
        return "there is no slash behind the host"
    if target.port:
        return f"a port ({target.port}) is not looked at here"
    if "$" in target.source:
        return "it takes something from fabio's environment"
    if "*" in host.removeprefix("*.") or any(letter in path for letter in "*[]{}"):
        return "a pattern (of fabio's glob matcher) has no counterpart"
    return ""


_REDIRECTS = ("301", "302", "303", "307", "308")
_REDIRECT = re.compile(
    r"(?P<scheme>https?)://(?P<host>\$host|\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/?\$path|/[^?#$]*)?\Z"
)


def _redirect(target: _Target) -> dict[str, Any] | None:
    """Where clients are sent; None where that cannot be said."""
    code, _, url = target.opts["redirect"].partition(",")
    found = _REDIRECT.match(url or target.url or "")
    path = "" if found is None else found["path"] or "/"
    asked = path.endswith("$path")
    # What is stripped there is taken off the path in the URL.
    if found is None or not code.isdecimal() or (asked and "strip" in target.opts):
        return None
    to: dict[str, Any] = {"status": int(code), "scheme": found["scheme"]}
    if not found["host"].startswith("$"):
        to["host"] = found["host"]
    if found["port"]:
        to["port"] = int(found["port"])
    # Else the query of a request stays, which fabio leaves out.
    return to if asked else {**to, "path": path}


def _upstream(made: Draft, group: list[_Target], notes: list[Note], alike: dict[str, DraftUpstream]) -> DraftUpstream:
    """The upstream of a group; one for all groups that have the very same."""
    first = group[0]
    https = first.opts.get("proto") == "https" or (first.url or "").startswith("https:")
    verify = first.opts.get("tlsskipverify") != "true"
    settings: dict[str, Any] = {}
    if first.url is None:
        settings["consul"] = first.service
        if first.opts.get("weight"):
            notes.append(Note(first.line, "weight is not carried over: Consul's own weights count"))
        if https:
            policy = first.opts.get("host", "")
            named = policy if policy not in ("", "dst") else f"{first.service}.service.consul"
            settings["tls"] = {"server_name": named}
            notes.append(Note(first.line, "tls.server_name must be the name in the service's certificate"))
    else:
        settings["endpoints"] = _endpoints(group, https, notes)
    if https and not verify:
        settings.setdefault("tls", {})["verify"] = False
    key = repr(settings)
    if key not in alike:
        alike[key] = made.upstream(first.service)
        alike[key].settings = settings
    return alike[key]


def _endpoints(group: list[_Target], https: bool, notes: list[Note]) -> list[dict[str, Any]]:
    shares = _weights([target.weight for target in group])
    found: dict[str, int] = {}
    for target, share in zip(group, shares, strict=True):
        scheme, mark, rest = (target.url or "").partition("://")
        authority, _, beyond = rest.partition("/")
        path, question, query = beyond.partition("?")
        if path:
            notes.append(Note(target.line, f"the path of {target.url} is left out: fabio sends the request's own"))
        if https and scheme == "http":
            scheme = "https"
        url = f"{scheme}{mark}{authority}" + (f"/?{query}" if question else "")
        found[url] = found.get(url, 0) + share
    if len(set(found.values())) == 1:
        return [{"url": url} for url in found]
    return [{"url": url, "weight": weight} for url, weight in found.items()]


def _weights(shares: list[float]) -> list[int]:
    """Shares of 1 as whole numbers: targets without one divide what the others leave."""
    fixed = sum(shares)
    free = sum(1 for share in shares if not share)
    if fixed > 1:
        shares = [share / fixed for share in shares]
    left = max(0.0, 1 - fixed) / free if free else 0.0
    return [round((share or left) * WHOLE) for share in shares]
