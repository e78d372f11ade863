"""Kong's declarative file, format 1.1 to 3.0: services, routes, upstreams and targets.

Rule: Kong's defaults are written down where they are not ours (`strip_path` is on,
`preserve_host` off). Plugins and consumers are notes; a plugin that guards a route closes it.
"""

from __future__ import annotations

import re
from typing import Any

from gateway.errors import ConfigError, Mistake
from gateway.importers import paths, patterns
from gateway.importers.draft import Draft, DraftRoute, DraftUpstream, Note, Rank, Ranked, duration
from gateway.importers.fields import Fields, read
from gateway.model import Match

# Plugins without which a route lets in what it kept out.
GUARDS = frozenset(
    {
        "acl", "basic-auth", "bot-detection", "header-cert-auth", "hmac-auth", "ip-restriction", "jwt", "jwt-signer",
        "key-auth", "key-auth-enc", "ldap-auth", "ldap-auth-advanced", "mtls-auth", "oauth2", "oauth2-introspection",
        "opa", "openid-connect", "request-termination", "request-validator", "saml", "session",
    }
)  # fmt: skip
# A route may have this many matches: hosts × paths × header values.
MOST = 1000
_LATER = " (not in this version)"
_META = ("id", "tags", "created_at", "updated_at", "ws_id")
_IS_URL = re.compile(
    r"(?P<protocol>[a-z]+)://(?P<host>\[[^\]]*\]|[^/:?#]*)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?\Z"
)
# Before format 3.0 a path with anything else in it was a pattern.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/%-]*\Z")
_PORTS = {"http": 80, "https": 443}
# Kong's read timeout is between two reads, the first of the head included.
_TIMEOUTS = (
    ("connect_timeout", ("connect",)),
    ("write_timeout", ("write",)),
    ("read_timeout", ("response", "idle")),
)


def convert(data: bytes, name: str) -> Draft:
    fields = Fields(read(data, name), "", [])
    if fields.take("_format_version") is None:
        raise ConfigError.found(name, [Mistake(1, 1, "", "has no _format_version, so it is no declarative file")])
    return _Import(fields).draft


class _Import:
    def __init__(self, top: Fields) -> None:
        self.draft = Draft("kong")
        top = top.within(self.draft.notes)
        try:
            self._old = float(top.text("_format_version") or "3") < 3
        except ValueError:
            self._old = False
        top.take("_transform")
        # Plugins that guard, by ("service" or "route", name or id); by ("", "") those that guard all.
        self._guards: dict[tuple[str, str], list[str]] = {}
        self._names: dict[str, str] = {}
        self._groups = {one.text("name") or "": one for one in top.each("upstreams", "upstream")}
        self._targets = list(top.each("targets", "target"))
        self._services: dict[str, tuple[DraftUpstream, str] | None] = {}
        services = list(top.each("services", "service"))
        routes = list(top.each("routes", "route"))
        for service in services:
            self._names[service.text("id") or ""] = service.text("name") or ""
        self._plugins(top, ("", ""))
        for service in services:
            self._service(service)
        for number, route in enumerate(routes, 1):
            self._route(route, self._service_of(route), f"route-{number}")
        for group in self._groups.values():
            _meta(group)
            group.rest()
        top.rest(dict.fromkeys(("consumers", "consumer_groups", "certificates", "ca_certificates", "vaults"), _LATER))

    # -- plugins -------------------------------------------------------------------------

    def _plugins(self, fields: Fields, owner: tuple[str, str]) -> None:
        """Note the plugins of something; those that guard are kept by whom they guard."""
        for plugin in fields.each("plugins", "plugin"):
            name = plugin.text("name") or "without a name"
            enabled = plugin.flag("enabled", True)
            whose = owner
            for scope in ("service", "route"):
                of = _reference(plugin, scope)
                whose = (scope, self._names.get(of, of)) if of else whose
            plugin.take("config")
            plugin.note(f"{name} is not carried over{_LATER if enabled else ' (it is off)'}")
            if enabled and name in GUARDS:
                self._guards.setdefault(whose, []).append(name)

    def _closed(self, service: str | None, route: str, ident: str | None) -> str:
        """What guarded a route and cannot be carried over; empty when nothing did."""
        service = self._names.get(service or "", service or "")
        owners = (("", ""), ("service", service), ("route", route), ("route", ident or ""))
        names = [name for whose in owners for name in self._guards.get(whose, ())]
        return f"{', '.join(dict.fromkeys(names))} guarded it, and is not in this version" if names else ""

    # -- services ------------------------------------------------------------------------

    def _service_of(self, route: Fields) -> str | None:
        return _reference(route, "service")

    def _service(self, given: Fields) -> None:
        notes: list[Note] = []
        name = given.text("name") or f"service-{len(self._services) + 1}"
        ident = given.text("id")
        fields = given.within(notes, f"service {name}")
        self._plugins(fields, ("service", name))
        nested = list(fields.each("routes", "route"))
        enabled = fields.flag("enabled", True)
        made = self._upstream(name, fields) if enabled else None
        if not enabled:
            fields.note("left out: it is not enabled")
        _meta(fields)
        fields.rest({"client_certificate": ": set tls.cert and tls.key", "ca_certificates": ": set tls.ca"})
        if made is None:
            self.draft.notes += notes
        else:
            made[0].notes += notes
        self._services[name] = made
        if ident:
            self._services[ident] = made
        for number, route in enumerate(nested, 1):
            self._route(route, name, f"{name}-{number}")

    def _upstream(self, name: str, fields: Fields) -> tuple[DraftUpstream, str] | None:
        """The upstream of a service, and the path that it puts before every other."""
        url = fields.text("url")
        protocol, host, port, path = (fields.text(key) for key in ("protocol", "host", "port", "path"))
        if url is not None:
            found = _IS_URL.match(url)
            if found is None:
                fields.note("left out: its url is none", "url")
                return None
            protocol, host, port, path = found["protocol"], found["host"], found["port"], found["path"]
        protocol = protocol or "http"
        if protocol not in _PORTS or not host:
            why = f"protocol {protocol} is not http" if host else "it has no host"
            fields.note(f"left out: {why}")
            return None
        upstream = self.draft.upstream(name)
        # Without an url Kong's default is 80, whatever the protocol.
        default = str(_PORTS[protocol] if url is not None else 80)
        self._endpoints(upstream, protocol, host, port or default)
        if upstream.settings.get("host") is None:
            upstream.settings["host"] = "upstream"
        _limits(upstream, fields)
        verified = fields.flag("tls_verify", False)
        fields.take("tls_verify_depth")
        if protocol == "https" and not verified:
            upstream.settings["tls"] = {"verify": False}
            upstream.notes.append(Note(fields.line, "Kong does not verify certificates unless tls_verify says so"))
        return upstream, (path or "/")

    def _endpoints(self, upstream: DraftUpstream, protocol: str, host: str, port: str) -> None:
        group = self._groups.get(host)
        if group is None:
            shown = "" if port == str(_PORTS[protocol]) else f":{port}"
            upstream.settings["endpoints"] = [{"url": f"{protocol}://{host}{shown}"}]
            return
        fields = group.within(upstream.notes)
        endpoints = []
        apart = (one for one in self._targets if _reference(one, "upstream") == host)
        for target in [*fields.each("targets", "target"), *apart]:
            of = target.within(upstream.notes)
            address, weight = of.text("target"), of.whole("weight")
            _meta(of)
            of.take("upstream")
            of.rest()
            if address:
                # A target without a port listens on 8000.
                bare = address if re.search(r":[0-9]+\Z", address) and not address.endswith("::") else f"{address}:8000"
                endpoints.append({"url": f"{protocol}://{bare}", "weight": 100 if weight is None else weight})
        upstream.settings["endpoints"] = endpoints
        literal = fields.text("host_header")
        if literal:
            upstream.settings["host"] = literal
        algorithm = fields.text("algorithm")
        if algorithm not in (None, "round-robin"):
            fields.note(f"algorithm {algorithm} is not carried over: round robin is what there is", "algorithm")
        fields.take("slots")
        _meta(fields)
        fields.rest({"healthchecks": _LATER, "hash_on": _LATER})

    # -- routes --------------------------------------------------------------------------

    def _route(self, given: Fields, service: str | None, unnamed: str) -> None:
        notes: list[Note] = []
        name = given.text("name") or unnamed
        ident = given.text("id")
        fields = given.within(notes, f"route {name}")
        self._plugins(fields, ("route", name))
        found = self._services.get(service) if service else None
        ranked = self._ranked(fields)
        stripped = fields.flag("strip_path", True)
        preserved = fields.flag("preserve_host", False)
        handling = fields.text("path_handling") or "v0"
        protocols = set(fields.texts("protocols")) or {"http", "https"}
        for key in ("https_redirect_status_code", "request_buffering", "response_buffering"):
            fields.take(key)
        _meta(fields)
        fields.rest({"snis": _LATER, "sources": _LATER, "destinations": _LATER})
        why = "nothing that it matches could be carried over"
        if not protocols & {"http", "https"}:
            why = f"its protocols are {', '.join(sorted(protocols))}"
        if not ranked or not protocols & {"http", "https"}:
            fields.note(f"left out: {why}")
            self.draft.notes += notes
            return
        if protocols == {"https"}:
            fields.note("protocols: plain http meets this route too; Kong answered with a redirect or 426", "protocols")
        if handling != "v0":
            fields.note(f"path_handling {handling}: paths are joined by one slash, as v0 does", "path_handling")
        route = DraftRoute(name, "", ranked, {}, notes, given.line, self._closed(service, name, ident))
        if found is None:
            route.closed = f"its service {service} could not be carried over" if service else "it has no service"
        else:
            route.upstream = found[0].name
            route.settings = _rewriting([one.match for one in ranked], fields.texts("paths"), stripped, found[1])
        if preserved:
            route.settings["host"] = "preserve"
        self.draft.routes.append(route)

    def _ranked(self, fields: Fields) -> list[Ranked]:
        hosts, given, methods = fields.texts("hosts"), fields.texts("paths"), fields.texts("methods")
        headers = fields.fields("headers")
        choices = _header_choices(headers) if headers is not None else [{}]
        priority = fields.whole("regex_priority") or 0
        guarded = any(fields.texts(key) for key in ("snis",)) or fields.take("sources") or fields.take("destinations")
        if guarded:
            fields.note("snis, sources and destinations have no counterpart, so nothing of it is carried over")
            return []
        if fields.text("expression") is not None:
            fields.note("an expression is not carried over (traditional matches are)", "expression")
            return []
        if len(hosts or "-") * len(given or "-") * len(choices) > MOST:
            fields.note(f"has more than {MOST} matches")
            return []
        weight = sum(map(bool, (hosts, given, methods, choices != [{}])))
        plain = bool(hosts) and not any("*" in host for host in hosts)
        found = []
        for path in given or ["/"]:
            kind, text = self._path(path)
            for host in [_host(fields, host) for host in hosts] or [None]:
                if host == "":
                    continue
                for choice in choices:
                    match = Match(
                        host=host,
                        prefix=text if given and kind == "prefix" else None,
                        regex=text if kind == "regex" else None,
                        methods=frozenset(method.upper() for method in methods),
                        headers=tuple(choice.items()),
                    )
                    found.append(Ranked(match, _rank(weight, plain, len(choice), kind, priority, len(path))))
        return found

    def _path(self, path: str) -> tuple[str, str]:
        if path.startswith("~"):
            return "regex", patterns.whole(path[1:], anchored=True)
        if self._old and not _PLAIN_PATH.match(path):
            return "regex", patterns.whole(path, anchored=True)
        return "prefix", path


def _rank(weight: int, plain: bool, headers: int, kind: str, priority: int, length: int) -> Rank:
    """Kong's order: more kinds of condition; hosts without wildcards; more headers; patterns
    by their priority; longer prefixes."""
    pattern = kind == "regex"
    return (-weight, not plain, -min(headers, 255), not pattern, -priority if pattern else -length)


def _rewriting(matches: list[Match], given: list[str], stripped: bool, base: str) -> dict[str, Any]:
    """The keys of a route for what Kong makes of a path; `given`: the paths that it names."""
    before = base if base.rstrip("/") else ""
    if not stripped or not given:
        return paths.settings(matches, (), before)
    if all(match.regex is None for match in matches):
        return paths.settings(matches, sorted(set(given), key=len, reverse=True), before)
    # A pattern is cut off as far as it goes, a prefix as it stands.
    choice = "|".join(_cut(path) for path in given)
    template = before.rstrip("/").replace("\\", "\\\\")
    return {"rewrite": {"regex": f"(?:{choice})(?P<beyond>.*)", "to": f"{template}\\g<beyond>"}}


def _cut(path: str) -> str:
    if not path.startswith("~") and _PLAIN_PATH.match(path):
        return patterns.path(path.rstrip("/"))
    return patterns.python(path.removeprefix("~")).removeprefix("^").removesuffix("$")


def _host(fields: Fields, host: str) -> str | None:
    """A host to match; empty for one that no match has."""
    bare = re.sub(r":[0-9]+\Z", "", host)
    if bare != host:
        fields.note(f"host {host}: the port is not looked at", "hosts")
    if "*" in bare and not re.match(r"\*\.[^*]+\Z", bare):
        fields.note(f"host {host} is left out: a wildcard stands for the first labels", "hosts")
        return ""
    return bare.lower()


def _header_choices(headers: Fields) -> list[dict[str, str]]:
    """Every way in which all headers have one of their values."""
    choices: list[dict[str, str]] = [{}]
    for name in headers.names():
        values = headers.texts(name)
        if any(value.startswith("~*") for value in values):
            headers.note(f"patterns of {name} have no counterpart, so they match nothing here", name)
            values = [value for value in values if not value.startswith("~*")]
        choices = [{**choice, name.lower(): value} for choice in choices for value in values]
        if len(choices) > MOST:
            headers.note(f"has more than {MOST} combinations")
            return []
    return choices


def _limits(upstream: DraftUpstream, fields: Fields) -> None:
    timeouts: dict[str, Any] = {}
    for key, ours in _TIMEOUTS:
        milliseconds = fields.whole(key)
        if milliseconds is not None and milliseconds > 0:
            timeouts |= dict.fromkeys(ours, duration(milliseconds))
    if timeouts:
        upstream.settings["timeouts"] = timeouts
    retries = fields.whole("retries")
    if retries is not None and retries >= 0:
        upstream.settings["retry"] = {"attempts": retries + 1}


def _reference(fields: Fields, key: str) -> str | None:
    """What something belongs to: by name, or as a mapping with its name or id."""
    node = fields.take(key)
    if node is None:
        return None
    inner = fields.fields(key) if hasattr(node, "entries") else None
    return fields.text(key) if inner is None else inner.text("name") or inner.text("id")


def _meta(fields: Fields) -> None:
    """Kong's book-keeping says nothing of what happens to a request."""
    for key in _META:
        fields.take(key)
