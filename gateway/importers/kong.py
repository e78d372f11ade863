"""Kong's declarative file, format 1.1 to 3.0: services, routes, upstreams and targets.

Rule: Kong's defaults are written down where they are not ours (`strip_path` is on,
`preserve_host` off). Plugins and consumers are notes. A plugin that is not known to let every
request pass closes its routes; one that answers in their place does so here, if it can be said how.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.config.document import Mapping, Sequence
from gateway.errors import ConfigError, Mistake
from gateway.importers import prefixes, regexes
from gateway.importers.draft import HTTPS_IS_KNOWN, Draft, DraftRoute, DraftUpstream, Note, Rank, Ranked, duration
from gateway.importers.source_fields import Fields, read
from gateway.model import Match

# Plugins that refuse requests on purpose; their comment says so.
GUARDS = frozenset(
    {
        "acl", "basic-auth", "bot-detection", "header-cert-auth", "hmac-auth", "ip-restriction", "jwt", "jwt-signer",
        "key-auth", "key-auth-enc", "ldap-auth", "ldap-auth-advanced", "mtls-auth", "oauth2", "oauth2-introspection",
        "opa", "openid-connect", "redirect", "request-termination", "request-validator", "saml", "session",
    }
)  # fmt: skip
# Plugins that forward every request to the route's own service, but for limits of rate and size.
# Any other plugin, known to Kong or not, may refuse a request, answer it or send it elsewhere.
HARMLESS = frozenset(
    {
        "ai-rate-limiting-advanced", "correlation-id", "cors", "datadog", "file-log", "graphql-proxy-cache-advanced",
        "graphql-rate-limiting-advanced", "http-log", "jq", "kafka-log", "loggly", "opentelemetry", "prometheus",
        "proxy-cache", "proxy-cache-advanced", "rate-limiting", "rate-limiting-advanced",
        "request-size-limiting", "request-transformer", "request-transformer-advanced", "response-ratelimiting",
        "response-transformer", "response-transformer-advanced", "service-protection",
        "statsd", "statsd-advanced", "syslog", "tcp-log", "tls-metadata-headers", "udp-log", "upstream-timeout",
        "websocket-size-limit", "zipkin",
    }
)  # fmt: skip
# A route may have this many matches: hosts × paths × header values.
MOST = 1000
_LATER = " (not in this version)"
_NOTHING = ", so nothing of it is carried over"
# More kinds of condition than any route has: a match with it wins over all others.
_FIRST = 100
_META = ("id", "tags", "created_at", "updated_at", "ws_id")
_IS_URL = re.compile(
    r"(?P<protocol>[a-z]+)://(?P<host>\[[^\]]*\]|[^/:?#]*)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?\Z"
)
# Before format 3.0 a path with anything else in it was a pattern.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/%-]*\Z")
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 307, 308)
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
        # What those of them answer that answer everything, as keys of a route; None: it cannot be said.
        self._answers: dict[str, dict[str, Any] | None] = {}
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
        given = fields.take("plugins")
        known = isinstance(given, Sequence) and all(isinstance(item, Mapping) for item in given.items)
        if given is not None and not known:
            # Kong refuses such a file; a plugin that is not understood may be a guard.
            self._guards.setdefault(owner, []).append("plugins")
        for plugin in fields.each("plugins", "plugin"):
            name = plugin.text("name") or "without a name"
            enabled = plugin.flag("enabled", True)
            whose = self._owner(plugin, owner)
            config = plugin.fields("config") if name in ANSWERS else None
            plugin.take("config")
            answer = None if not enabled or name not in ANSWERS else ANSWERS[name](config)
            if answer is not None:
                # Told apart by its place: of several each answers for its own.
                name = f"{name}, line {plugin.line}"
                self._answers[name] = answer
            else:
                plugin.note(f"{name} is not carried over{_LATER if enabled else ' (it is off)'}")
            if enabled and (answer is not None or name not in HARMLESS):
                self._guards.setdefault(whose, []).append(name)
        self._filters(fields, owner)

    def _filters(self, fields: Fields, owner: tuple[str, str]) -> None:
        """Note chains of WebAssembly filters, which are code of one's own: they may refuse a request."""
        given = fields.peek("filter_chains")
        if given is not None and not isinstance(given, Sequence):
            self._guards.setdefault(owner, []).append("filter_chains")
        for chain in fields.each("filter_chains", "filter chain"):
            chain.note(f"it is not carried over{_LATER}")
            if chain.flag("enabled", True):
                self._guards.setdefault(self._owner(chain, owner), []).append("filter_chains")

    def _owner(self, fields: Fields, owner: tuple[str, str]) -> tuple[str, str]:
        """What a plugin or a filter chain belongs to: what it names, else where it stands."""
        for scope in ("service", "route"):
            of = _reference(fields, scope)
            owner = (scope, self._names.get(of, of)) if of else owner
        return owner

    def _guarding(self, service: str | None, route: str, ident: str | None) -> list[str]:
        """The plugins that stand before a route's service."""
        service = self._names.get(service or "", service or "")
        owners = (("", ""), ("service", service), ("route", route), ("route", ident or ""))
        return list(dict.fromkeys(name for whose in owners for name in self._guards.get(whose, ())))

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
        upstream.settings |= _balance(fields) | _health(fields, protocol)
        fields.take("slots")
        _meta(fields)
        fields.rest()

    # -- routes --------------------------------------------------------------------------

    def _route(self, given: Fields, service: str | None, unnamed: str) -> None:
        notes: list[Note] = []
        name = given.text("name") or unnamed
        ident = given.text("id")
        fields = given.within(notes, f"route {name}")
        self._plugins(fields, ("route", name))
        found = self._services.get(service) if service else None
        guards = self._guarding(service, name, ident)
        ranked = self._ranked(fields, bool(guards))
        stripped = fields.flag("strip_path", True)
        preserved = fields.flag("preserve_host", False)
        handling = fields.text("path_handling") or "v0"
        protocols = set(fields.texts("protocols")) or {"http", "https"}
        moved = fields.whole("https_redirect_status_code")
        for key in ("request_buffering", "response_buffering"):
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
        if "https" in protocols and "http" not in protocols:
            self._https_only(fields, name, ranked, moved, bool(guards) or found is None)
        if handling != "v0":
            fields.note(f"path_handling {handling}: paths are joined by one slash, as v0 does", "path_handling")
        route = DraftRoute(name, "", ranked, {}, notes, given.line)
        answer = self._answers.get(guards[0]) if len(guards) == 1 else None
        if answer is not None:
            route.settings = dict(answer)
            self.draft.routes.append(route)
            return
        if guards:
            route.closed = _guarded(guards)
        if found is None:
            route.closed = f"its service {service} could not be carried over" if service else "it has no service"
        else:
            route.upstream = found[0].name
            route.settings = _rewriting([one.match for one in ranked], fields.texts("paths"), stripped, found[1])
        if preserved:
            route.settings["host"] = "preserve"
        self.draft.routes.append(route)

    def _https_only(self, fields: Fields, name: str, ranked: list[Ranked], moved: int | None, closed: bool) -> None:
        """Keep plain http from the service: a redirect in front, also where Kong answers 426."""
        told: list[Note] = []
        if moved not in _REDIRECTS and closed:
            fields.note("protocols: plain http meets this route too; Kong answered with 426", "protocols")
            return
        if moved not in _REDIRECTS:
            told.append(Note(fields.line, "plain http is redirected to https; Kong answered with 426"))
        first = [Ranked(one.match, (*one.rank[:-1], 0)) for one in ranked]
        to = {"status": moved if moved in _REDIRECTS else 308, "scheme": "https"}
        self.draft.routes.append(DraftRoute(name, "", first, {"redirect": to}, told, fields.line))
        self.draft.note(0, HTTPS_IS_KNOWN)

    def _ranked(self, fields: Fields, guarded: bool) -> list[Ranked]:
        """The matches of a route. Where it is `guarded`, a condition that cannot be expressed is
        left out and the match stays: the route is closed, and may refuse more than Kong's did."""
        hosts, given, methods = fields.texts("hosts"), fields.texts("paths"), fields.texts("methods")
        headers = fields.fields("headers")
        choices = _header_choices(headers, guarded) if headers is not None else [{}]
        priority = fields.whole("regex_priority") or 0
        asked = [fields.take(key) for key in ("snis", "sources", "destinations")]
        if any(node is not None and getattr(node, "size", 2) > 1 for node in asked):
            fields.note("snis, sources and destinations have no counterpart" + ("" if guarded else _NOTHING))
            if not guarded:
                return []
        if fields.text("expression") is not None:
            fields.note("an expression is not carried over (traditional matches are)", "expression")
            # Its requests are not known, so all are shut.
            return [Ranked(Match(), _rank(_FIRST, True, 0, "prefix", 0, 0))] if guarded else []
        if len(hosts or "-") * len(given or "-") * len(choices) > MOST:
            fields.note(f"has more than {MOST} matches")
            return []
        weight = sum(map(bool, (hosts, given, methods, choices != [{}])))
        plain = bool(hosts) and not any("*" in host for host in hosts)
        found = []
        for path in given or ["/"]:
            kind, text = self._path(path)
            for host in [_host(fields, host) for host in hosts] or [None]:
                if host == "" and not guarded:
                    continue
                for choice in choices:
                    match = Match(
                        host=host or None,
                        prefix=text if given and kind == "prefix" else None,
                        regex=text if kind == "regex" else None,
                        methods=frozenset(method.upper() for method in methods),
                        headers=tuple(choice.items()),
                    )
                    found.append(Ranked(match, _rank(weight, plain, len(choice), kind, priority, len(path))))
        return found

    def _path(self, path: str) -> tuple[str, str]:
        if path.startswith("~"):
            return "regex", regexes.whole(path[1:], anchored=True)
        if self._old and not _PLAIN_PATH.match(path):
            return "regex", regexes.whole(path, anchored=True)
        return "prefix", path


def _rank(weight: int, plain: bool, headers: int, kind: str, priority: int, length: int) -> Rank:
    """Kong's order: more kinds of condition; hosts without wildcards; more headers; patterns
    by their priority; longer prefixes. The last number is for what stands before a route."""
    pattern = kind == "regex"
    return (-weight, not plain, -min(headers, 255), not pattern, -priority if pattern else -length, 2)


def _rewriting(matches: list[Match], given: list[str], stripped: bool, base: str) -> dict[str, Any]:
    """The keys of a route for what Kong makes of a path; `given`: the paths that it names."""
    before = base if base.rstrip("/") else ""
    if not stripped or not given:
        return prefixes.settings(matches, (), before)
    if all(match.regex is None for match in matches):
        return prefixes.settings(matches, sorted(set(given), key=len, reverse=True), before)
    # A pattern is cut off as far as it goes, a prefix as it stands.
    choice = "|".join(_cut(path) for path in given)
    template = before.rstrip("/").replace("\\", "\\\\")
    return {"rewrite": {"regex": f"(?:{choice})(?P<beyond>.*)", "to": f"{template}\\g<beyond>"}}


def _cut(path: str) -> str:
    if not path.startswith("~") and _PLAIN_PATH.match(path):
        return regexes.path(path.rstrip("/"))
    return regexes.spelled(path.removeprefix("~")).removeprefix("^").removesuffix("$")


def _host(fields: Fields, host: str) -> str | None:
    """A host to match; empty for one that no match has."""
    bare = re.sub(r":[0-9]+\Z", "", host)
    if bare != host:
        fields.note(f"host {host}: the port is not looked at", "hosts")
    if "*" in bare and not re.match(r"\*\.[^*]+\Z", bare):
        fields.note(f"host {host} is left out: a wildcard stands for the first labels", "hosts")
        return ""
    return bare.lower()


def _guarded(guards: list[str]) -> str:
    """Why a route with these plugins is closed."""
    known = [name for name in guards if name in GUARDS or name.partition(",")[0] in ANSWERS]
    unknown = [name for name in guards if name not in known]
    parts = [f"{', '.join(known)} guarded it, and is not in this version"] if known else []
    if unknown:
        parts.append(f"{', '.join(unknown)} may refuse or divert requests, and is not in this version")
    return "; ".join(parts)


def _header_choices(headers: Fields, guarded: bool) -> list[dict[str, str]]:
    """Every way in which all headers have one of their values."""
    choices: list[dict[str, str]] = [{}]
    for name in headers.names():
        values = headers.texts(name)
        if any(value.startswith("~*") for value in values):
            told = "so any value is meant here" if guarded else "so they match nothing here"
            headers.note(f"patterns of {name} have no counterpart, {told}", name)
            if guarded:
                continue
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


# -- how targets are picked, and whether they are well ---------------------------------------

# What `algorithm` is called here.
_ALGORITHMS = {"round-robin": "round_robin", "least-connections": "least_requests", "latency": "ewma"}
# What `hash_on` is called here, and the key that names it.
_HASHES = {"header": "hash_on_header", "cookie": "hash_on_cookie", "query_arg": "hash_on_query_arg"}
_KINDS = {"ip": "client_ip", "path": "path", "header": "header", "cookie": "cookie", "query_arg": "query"}


def _balance(fields: Fields) -> dict[str, Any]:
    hashed = fields.text("hash_on") or "none"
    algorithm = fields.text("algorithm") or ("round-robin" if hashed == "none" else "consistent-hashing")
    if algorithm == "consistent-hashing":
        by = _KINDS.get(hashed)
        named = fields.text(_HASHES[hashed]) if hashed in _HASHES else None
        fields.take("hash_on_cookie_path")
        if (fields.text("hash_fallback") or "none") != "none":
            fields.note("hash_fallback is not carried over: without a value targets take turns", "hash_fallback")
        if by is None or (hashed in _HASHES and not named):
            fields.note(f"hash_on {hashed} is not carried over: targets take turns", "hash_on")
            return {}
        if by == "cookie":
            fields.note("Kong sets the cookie where there is none; here the application has to", "hash_on")
        return {"balance": {"hash": {"by": f"{by}:{named}" if named else by}}}
    if hashed != "none":
        fields.note(f"hash_on is not carried over: algorithm {algorithm} does not ask for it", "hash_on")
    if algorithm == "sticky-sessions":
        cookie = fields.text("sticky_sessions_cookie")
        fields.take("sticky_sessions_cookie_path")
        return {"balance": {"sticky": {"cookie": cookie}}} if cookie else {}
    if algorithm not in _ALGORITHMS:
        fields.note(f"algorithm {algorithm} is not carried over: targets take turns", "algorithm")
    balance = _ALGORITHMS.get(algorithm, "round_robin")
    return {} if balance == "round_robin" else {"balance": balance}


# What counts as bad unless the file says otherwise.
_BAD = (429, 404, 500, 501, 502, 503, 504, 505)


def _health(fields: Fields, protocol: str) -> dict[str, Any]:
    """Active checks that ask good and bad targets alike, and take every kind of failure for one."""
    given = fields.fields("healthchecks")
    if given is None:
        return {}
    active = given.fields("active")
    given.rest({"passive": ": eject is on, and counts in another way", "threshold": ": all bad endpoints are tried"})
    if active is None:
        return {}
    good, bad = active.fields("healthy"), active.fields("unhealthy")
    interval, again = (None if part is None else part.number("interval") for part in (good, bad))
    if not interval and not again:
        return {}
    kind = active.text("type") or "http"
    failures = [None if bad is None else bad.whole(key) for key in ("http_failures", "tcp_failures", "timeouts")]
    counted = failures[1:] if kind == "tcp" else failures
    successes = None if good is None else good.whole("successes")
    why = ""
    if kind not in ("tcp", protocol):
        why = f"it is for {kind}"
    elif not interval or not again:
        why = "it asks only those that are well, or only those that are not"
    elif not all(counted) or not successes:
        why = "not every answer counts"
    if why:
        given.note(f"active is not carried over: {why}", "active")
        return {}
    if interval != again or len(set(counted)) > 1:
        active.note("intervals or numbers of failures differ, and the first of them holds for all")
    timeout = active.number("timeout")
    check: dict[str, Any] = {"interval": duration((interval or 0) * 1000), "timeout": duration((timeout or 1) * 1000)}
    check |= {"healthy": successes, "unhealthy": counted[0]}
    if kind == "tcp":
        check["tcp"] = True
    else:
        check |= _asked(active, good, bad)
    active.take("concurrency")
    active.rest()
    return {"health": check}


def _asked(active: Fields, good: Fields | None, bad: Fields | None) -> dict[str, Any]:
    """What is asked over HTTP. An answer that is in neither list changes nothing there; here it is good."""
    check: dict[str, Any] = {"path": active.text("http_path") or "/"}
    lists = [[] if part is None else part.texts("http_statuses") for part in (good, bad)]
    fine, wrong = ({int(one) for one in some if one.isdecimal()} for some in lists)
    check["status"] = _ranges(set(range(200, 600)) - ((wrong or set(_BAD)) - fine))
    headers = active.fields("headers")
    if headers is not None:
        check["headers"] = {name: ", ".join(headers.texts(name)) for name in headers.names()}
    return check


def _ranges(statuses: set[int]) -> list[int | str]:
    first = sorted(one for one in statuses if one - 1 not in statuses)
    last = sorted(one for one in statuses if one + 1 not in statuses)
    return [low if low == high else f"{low}-{high}" for low, high in zip(first, last, strict=True)]


# -- plugins that answer ---------------------------------------------------------------------


def _terminated(config: Fields | None) -> dict[str, Any] | None:
    """request-termination: always the same answer, unless something must trigger it."""
    if config is None:
        return {"respond": {"status": 503}}
    status = config.whole("status_code")
    message, body, kind = config.text("message"), config.text("body"), config.text("content_type")
    if config.text("trigger") is not None or config.flag("echo", False):
        return None
    respond: dict[str, Any] = {"status": 503 if status is None else status}
    if message is not None:
        body, kind = json.dumps({"message": message}), "application/json; charset=utf-8"
    if body:
        respond |= {"body": body, "headers": {"Content-Type": kind or "application/json; charset=utf-8"}}
    config.rest()
    return {"respond": respond}


def _redirected(config: Fields | None) -> dict[str, Any] | None:
    """redirect: to one URL, or to its host with the path that was asked for."""
    found = None if config is None else _IS_URL.match(config.text("location") or "")
    if config is None or found is None or found["protocol"] not in _PORTS or not found["host"]:
        return None
    status = config.whole("status_code")
    to: dict[str, Any] = {"status": 301 if status is None else status}
    to |= {"scheme": found["protocol"], "host": found["host"]}
    if found["port"]:
        to["port"] = int(found["port"])
    if not config.flag("keep_incoming_path", False):
        config.note("the query of a request stays, which Kong leaves out", "location")
        to["path"] = found["path"] or "/"
    config.rest()
    return {"redirect": to}


# A plugin -> what it answers, as keys of a route; None when that cannot be said.
ANSWERS = {"redirect": _redirected, "request-termination": _terminated}


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
