"""Traefik's file provider: the document with `http.routers`, `services` and `middlewares`.

Rule: a router is carried over whole, or it is closed. A middleware closes its routers where
it guards them, where it changes the request's way and cannot be expressed, and where it is
not known. Client certificates are a guard, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.config import document, units
from gateway.config.document import Mapping, Node, Sequence
from gateway.importers import prefixes, regexes, toml_lines, traefik_ports, traefik_rule
from gateway.importers.draft import HTTPS_IS_KNOWN, Draft, DraftRoute, DraftUpstream, Note, Ranked, duration
from gateway.importers.source_fields import Fields, decoded, read
from gateway.importers.traefik_ports import Router
from gateway.importers.traefik_rule import InexpressibleError, Leaf, RuleError
from gateway.model import Match

# Chains name chains; a loop would not end.
DEPTH = 16
GUARDS = frozenset(
    {"basicauth", "digestauth", "forwardauth", "ipallowlist", "ipwhitelist", "passtlsclientcert", "plugin"}
)
# They forward every request to the router's own service, but for limits of rate and size.
HARMLESS = frozenset(
    {
        "buffering", "circuitbreaker", "compress", "contenttype", "errors", "grpcweb", "headers", "inflightreq",
        "ratelimit",
    }
)  # fmt: skip
# Options of `headers` that refuse requests, or that redirect them to https.
_REFUSING_HEADERS = ("allowedHosts", "sslRedirect", "sslTemporaryRedirect", "sslHost", "sslForceHost")
# `clientAuthType` that lets in clients without a certificate.
_NO_CERTIFICATE = frozenset({"noclientcert", "requestclientcert"})
# What `strategy` is called here. Its least time is one of latency and of requests under way.
STRATEGIES: dict[str, Any] = {
    "wrr": "round_robin",
    "p2c": "least_requests",
    "hrw": {"hash": {"by": "client_ip"}},
    "leasttime": "ewma",
}
_LATER = " (not in this version)"
_TLS = ": TLS ends before the gateway, or in gunicorn (certfile, keyfile)"
_TOML_START = re.compile(r"\s*(?:#.*\n\s*)*(?:\[|[A-Za-z0-9_.\"-]+\s*=)")
# Go's durations; a bare number is seconds.
_GO_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(ns|us|µs|ms|s|m|h)")
_GO_UNITS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}


@dataclass(slots=True)
class _Way:
    """What a router's middlewares make of a request, put together in their order."""

    cut: list[str] = field(default_factory=list)
    added: str = ""
    rewrite: dict[str, Any] | None = None
    retry: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    muddled: str = ""
    # The keys of a redirect, and what guards stand before it.
    redirect: dict[str, Any] | None = None
    before: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.cut or self.added or self.rewrite)


def convert(data: bytes, name: str) -> Draft:
    text = decoded(data, name)
    root = toml_lines.parse(text, name) if _TOML_START.match(text) else read(data, name)
    return _Import(root).draft


class _Import:
    def __init__(self, root: Mapping) -> None:
        self.draft = Draft("traefik")
        top = Fields(root, "", self.draft.notes)
        # Why routers are closed that name this entry of `tls.options`; nothing: they are not.
        self._tls_options = _client_certificates(top.peeked("tls"))
        http = top.fields("http")
        self._middlewares: dict[str, Fields] = {}
        self._services: dict[str, Fields] = {}
        self._transports: dict[str, Fields] = {}
        self._used: set[str] = set()
        # Where requests for a service go, as keys of a route; None where that cannot be said.
        self._ends: dict[str, dict[str, Any] | None] = {}
        # Redirects, other routes, and the routes of routers that redirect, for what those let pass.
        self._redirects: list[Router] = []
        self._others: list[Router] = []
        self._beyond: list[Router] = []
        if http is not None:
            self._middlewares = dict(http.entries("middlewares", "middleware"))
            self._services = dict(http.entries("services", "service"))
            self._transports = dict(http.entries("serversTransports", "serversTransport"))
            for name, router in http.entries("routers", "router"):
                self._router(name, router)
            self.draft.routes = traefik_ports.placed(self._redirects, self._others, self._beyond, self.draft.notes)
            http.rest()
            self._unused()
        top.rest({"tcp": _LATER, "udp": _LATER, "tls": _TLS})

    def _unused(self) -> None:
        for name, service in self._services.items():
            if name not in self._ends:
                service.note("no router that was carried over leads to it, so it is left out")
        for name, middleware in self._middlewares.items():
            if name not in self._used:
                middleware.note("no router uses it, so it is left out")
        for transport in self._transports.values():
            transport.rest()

    # -- routers -------------------------------------------------------------------------

    def _router(self, name: str, given: Fields) -> None:
        notes: list[Note] = []
        fields = given.within(notes)
        rule = fields.text("rule") or ""
        exact, wide = self._ranked(fields, rule)
        way = _Way()
        for middleware in fields.texts("middlewares"):
            self._middleware(middleware, fields, way, 0)
        if not all(isinstance(one, document.Leaf) for one in _items(fields.peek("middlewares"))):
            way.closed.append("its middlewares are not understood")
        service = fields.text("service")
        unverified = self._client_certificate(fields)
        router = Router(DraftRoute(name, "", [], {}, notes, given.line), frozenset(), False, False)
        entries = _items(fields.peek("entryPoints"))
        router.entries = frozenset(one.text for one in entries if isinstance(one, document.Leaf))
        router.secure = fields.peek("tls") is not None
        router.internal = (service or "").endswith("@internal")
        fields.take("ruleSyntax")
        fields.rest({"entrypoints": ": the address to listen on is given by -b or PORT", "tls": _TLS})
        if way.redirect is not None and wide:
            first = [Ranked(one.match, (*one.rank[:-1], 0)) for one in wide]
            redirect = DraftRoute(name, "", first, {"redirect": way.redirect}, [], given.line, way.before)
            self._redirects.append(replace(router, route=redirect))
            self.draft.note(0, HTTPS_IS_KNOWN)
        if unverified:
            way.closed.append(unverified)
        ranked = wide if way.closed else exact
        if not ranked:
            fields.note(f"left out: {'nothing of its rule could be carried over' if rule else 'it has no rule'}")
            self.draft.notes += notes + way.notes
            return
        settings = self._settings(ranked, way) | self._end(service, fields, way)
        upstream, closed = settings.pop("upstream", ""), "; ".join(way.closed)
        router.route = DraftRoute(name, upstream, ranked, settings, notes + way.notes, given.line, closed)
        (self._others if way.redirect is None else self._beyond).append(router)

    def _client_certificate(self, router: Fields) -> str:
        """Why a router asks for client certificates; nothing when it does not."""
        options = router.peeked("tls").text("options")
        bare, _, provider = (options or "default").partition("@")
        if provider not in ("", "file") or (bare != "default" and bare not in self._tls_options):
            return f"tls options {options}, which may ask for client certificates, are not in this document"
        return self._tls_options.get(bare, "")

    def _ranked(self, fields: Fields, rule: str) -> tuple[list[Ranked], list[Ranked]]:
        """The matches of a rule, and those of a rule without the conditions that cannot be
        expressed, which meet more: for what is closed and for redirects to https. A router that
        names no priority has its rule's length."""
        rank = (-(fields.whole("priority") or len(rule)), 2)
        if not rule:
            return [], []
        try:
            alternatives = traefik_rule.read(rule)
        except RuleError as error:
            # Traefik drops a router whose rule is wrong; one that unfolds to too much may guard.
            fields.note(f"its rule {error}", "rule")
            return [], [Ranked(Match(), rank)]
        exact: dict[Match, Ranked] = {}
        wide: dict[Match, Ranked] = {}
        for conditions in alternatives:
            try:
                match, notes = traefik_rule.match(conditions)
            except InexpressibleError as error:
                fields.note(f"an alternative of its rule is left out: no match has {error}", "rule")
                match = _wider(conditions)
                wide.setdefault(match, Ranked(match, rank))
                continue
            for note in notes:
                fields.note(note, "rule")
            for found in (exact, wide):
                found.setdefault(match, Ranked(match, rank))
        return list(exact.values()), list(wide.values())

    def _settings(self, ranked: list[Ranked], way: _Way) -> dict[str, Any]:
        settings = dict(way.retry)
        if way.muddled:
            way.closed.append(way.muddled)
        elif way.rewrite is not None:
            settings["rewrite"] = way.rewrite
        else:
            settings |= prefixes.settings([one.match for one in ranked], way.cut, way.added)
        return settings

    # -- middlewares ---------------------------------------------------------------------

    def _middleware(self, name: str, router: Fields, way: _Way, depth: int) -> None:
        bare, _, provider = name.partition("@")
        given = self._middlewares.get(bare) if provider in ("", "file") else None
        if given is None or depth > DEPTH:
            told = f"middleware {name} is not in this document" if given is None else f"middleware {name} names itself"
            router.note(told, "middlewares")
            way.closed.append(told)
            return
        self._used.add(bare)
        fields = given.within(way.notes)
        for kind in fields.names():
            inner = fields.fields(kind)
            self._kind(kind.lower(), kind, fields, inner, router, way, depth)

    def _kind(
        self, kind: str, spelt: str, outer: Fields, inner: Fields | None, router: Fields, way: _Way, depth: int
    ) -> None:
        if kind in GUARDS:
            outer.note(f"{spelt} is not carried over{_LATER}", spelt)
            way.closed.append(f"{spelt} guarded it, and is not in this version")
        elif kind == "headers" and inner is not None and (given := _refusing(inner)):
            outer.note(f"{spelt} is not carried over{_LATER}", spelt)
            way.closed.append(f"{spelt} ({given}) guarded it, and is not in this version")
        elif kind == "redirectscheme" and inner is not None:
            self._redirect(spelt, inner, way)
        elif kind == "redirectregex":
            outer.note(f"{spelt} is not carried over: it goes by a pattern of the whole URL", spelt)
            way.closed.append(f"{spelt} answers instead of a service where its pattern meets the URL")
        elif kind == "chain" and inner is not None:
            for name in inner.texts("middlewares"):
                self._middleware(name, router, way, depth + 1)
            if not all(isinstance(one, document.Leaf) for one in _items(inner.peek("middlewares"))):
                way.closed.append(f"the middlewares of {spelt} are not understood")
            inner.rest()
        elif kind == "retry" and inner is not None:
            attempts = inner.whole("attempts")
            if attempts is not None and attempts > 0:
                # Traefik counts tries in all, as we do.
                way.retry = {"retry": {"attempts": attempts}}
            inner.rest({"initialinterval": ": retry.backoff is for tries of the same endpoint"})
        elif kind == "circuitbreaker":
            outer.note(f"{spelt} is not carried over: breaker belongs to an upstream, and knows no expressions", spelt)
        elif kind in _PATHS and inner is not None:
            self._path(kind, spelt, inner, way)
            inner.rest({"forceslash": ": a path always begins with a slash"})
        else:
            outer.note(f"{spelt} is not carried over{_LATER}", spelt)
            if kind not in HARMLESS:
                way.closed.append(f"{spelt} may refuse or divert requests, and is not in this version")

    def _redirect(self, spelt: str, inner: Fields, way: _Way) -> None:
        """Whoever is there already goes on, as here."""
        scheme, port, permanent = inner.text("scheme"), inner.whole("port"), inner.flag("permanent", False)
        inner.rest()
        if scheme not in ("http", "https") or way.changed or way.redirect is not None:
            way.closed.append(f"{spelt} cannot be expressed")
            return
        # Traefik answers with 301 and 302 to GET alone, and else with these.
        way.redirect = {"status": 308 if permanent else 307, "scheme": scheme}
        if port is not None:
            way.redirect["port"] = port
        way.before = "; ".join(way.closed)

    def _path(self, kind: str, spelt: str, inner: Fields, way: _Way) -> None:
        already = way.changed
        found = _PATHS[kind](inner, way)
        if not found:
            way.muddled = f"{spelt} cannot be expressed"
        elif already and not (kind == "addprefix" and way.cut and way.rewrite is None):
            way.muddled = "its middlewares change the path more than once"
        if way.muddled:
            inner.note(f"not carried over: {way.muddled}")

    # -- services ------------------------------------------------------------------------

    def _end(self, name: str | None, router: Fields, way: _Way) -> dict[str, Any]:
        """Where requests for a service go, as keys of a route; nothing, and the router closed,
        when that cannot be said."""
        if not name:
            way.closed.append("it has no service")
            return {}
        given, found = self._service(name)
        if given is None:
            way.closed.append(f"service {name} is not in this document")
        elif found is None:
            way.closed.append(f"its service {name} could not be carried over")
        return dict(found or {})

    def _service(self, name: str) -> tuple[Fields | None, dict[str, Any] | None]:
        """A service of the document, and where its requests go."""
        bare, _, provider = name.partition("@")
        given = self._services.get(bare) if provider in ("", "file") else None
        if given is not None and bare not in self._ends:
            # A service that names itself leads nowhere.
            self._ends[bare] = None
            self._ends[bare] = self._kind_of_service(bare, given)
        return given, self._ends.get(bare) if given is not None else None

    def _kind_of_service(self, name: str, given: Fields) -> dict[str, Any] | None:
        kinds = ("loadBalancer", "weighted", "mirroring", "failover")
        balancer, weighted, mirroring, failover = (given.fields(kind) for kind in kinds)
        given.rest({"highestrandomweight": ": a split goes by a cookie or a header"})
        if weighted is not None:
            return self._weighted(weighted)
        if mirroring is not None:
            return self._mirroring(mirroring)
        if failover is not None:
            main = failover.text("service") or ""
            failover.note("fallback is not carried over: here that is for an upstream without any endpoint", "fallback")
            failover.take("fallback")
            failover.rest()
            return self._service(main)[1]
        upstream = None if balancer is None else self._upstream(name, balancer)
        return None if upstream is None else {"upstream": upstream.name}

    def _weighted(self, fields: Fields) -> dict[str, Any] | None:
        parts: list[dict[str, Any]] = []
        for part in fields.each("services", "service"):
            name, weight = part.text("name") or "", part.whole("weight")
            part.rest()
            end = self._service(name)[1]
            if end is None or "upstream" not in end or "mirror" in end:
                fields.note(f"left out: its service {name} cannot be a part of it")
                return None
            parts.append({"upstream": end["upstream"], "weight": 1 if weight is None else weight})
        fields.rest(
            {
                "sticky": ": split.by is for cookies that others set",
                "healthcheck": ": a part without a healthy endpoint keeps its share",
            }
        )
        return {"split": parts} if parts else None

    def _mirroring(self, fields: Fields) -> dict[str, Any] | None:
        end = self._service(fields.text("service") or "")[1]
        mirrors = [(one, one.text("name") or "", one.whole("percent") or 0) for one in fields.each("mirrors", "mirror")]
        for one, _, _ in mirrors:
            one.rest()
        fields.rest(
            {
                "mirrorbody": ": bodies are copied, too",
                "maxbodysize": ": retry.buffer of the mirror's upstream is the limit",
                "healthcheck": ": see health",
            }
        )
        if end is None or "mirror" in end:
            return None
        for one, name, percent in mirrors:
            copied = self._service(name)[1] if percent > 0 else None
            if copied is None or "upstream" not in copied or "mirror" in copied or "mirror" in end:
                why = "there is one mirror of a route" if "mirror" in end else "its service or its percent says nothing"
                one.note(f"{name} is not carried over: {why}")
            else:
                end = {**end, "mirror": {"upstream": copied["upstream"], "percent": percent}}
        return end

    def _upstream(self, name: str, balancer: Fields) -> DraftUpstream | None:
        notes: list[Note] = []
        fields = balancer.within(notes)
        endpoints = list(_servers(fields))
        if not endpoints:
            fields.note("left out: it has no server")
            self.draft.notes += notes
            return None
        upstream = self.draft.upstream(name)
        upstream.notes = notes
        upstream.settings["endpoints"] = endpoints
        if not fields.flag("passHostHeader", True):
            upstream.settings["host"] = "upstream"
        transport = fields.text("serversTransport")
        if transport is not None:
            self._transport(transport, fields, upstream)
        upstream.settings |= _balance(name, fields) | _health(fields)
        fields.rest(
            {
                "passivehealthcheck": ": eject is on, and counts in another way",
                "responseforwarding": ": answers are never held back",
            }
        )
        return upstream

    def _transport(self, name: str, service: Fields, upstream: DraftUpstream) -> None:
        bare, _, provider = name.partition("@")
        given = self._transports.get(bare) if provider in ("", "file") else None
        if given is None:
            service.note(f"serversTransport {name} is not in this document", "serversTransport")
            return
        fields = given.within(upstream.notes)
        tls: dict[str, Any] = {}
        if fields.flag("insecureSkipVerify", False):
            tls["verify"] = False
        server_name = fields.text("serverName")
        if server_name:
            tls["server_name"] = server_name
        if tls and any(one["url"].startswith("https:") for one in upstream.settings["endpoints"]):
            upstream.settings["tls"] = tls
        pool: dict[str, Any] = {}
        idle = fields.whole("maxIdleConnsPerHost")
        if idle is not None and idle > 0:
            pool["max_idle"] = idle
        timeouts = self._timeouts(fields, pool)
        upstream.settings |= {key: value for key, value in (("pool", pool), ("timeouts", timeouts)) if value}
        fields.rest()

    def _timeouts(self, fields: Fields, pool: dict[str, Any]) -> dict[str, Any]:
        given = fields.fields("forwardingTimeouts")
        timeouts: dict[str, Any] = {}
        if given is None:
            return timeouts
        for key, where, ours in (
            ("dialTimeout", timeouts, "connect"),
            ("responseHeaderTimeout", timeouts, "response"),
            ("idleConnTimeout", pool, "idle_timeout"),
        ):
            text = given.text(key)
            length = None if text is None else _go_duration(text)
            if length is not None:
                where[ours] = length
            elif text is not None:
                given.note(f"{key} is no duration, and left out", key)
        given.rest()
        return timeouts


def _refusing(headers: Fields) -> str:
    """Those options of `headers` that refuse or redirect requests; nothing when there is none."""
    given = ((key, headers.peek(key)) for key in _REFUSING_HEADERS)
    return ", ".join(key for key, node in given if any(one for one in _items(node) if not _is_off(one)))


def _is_off(node: Node) -> bool:
    return isinstance(node, document.Leaf) and node.text.lower() in ("", "false")


def _items(node: Node | None) -> list[Node]:
    """The items of a list, or one thing without the list."""
    return node.items if isinstance(node, Sequence) else [] if node is None else [node]


def _client_certificates(tls: Fields) -> dict[str, str]:
    """For each of `tls.options` why it is a guard; nothing when it lets in clients without a certificate."""
    found: dict[str, str] = {}
    for name, options in tls.entries("options", "tls options"):
        auth = options.fields("clientAuth")
        kind = (auth.text("clientAuthType") or "" if auth is not None else "").lower()
        asks = options.peek("clientAuth") is not None and kind not in _NO_CERTIFICATE
        found[name] = f"tls options {name} ask for client certificates, which is not in this version" if asks else ""
    return found


def _wider(conditions: list[Leaf]) -> Match:
    """A match that meets all that the conditions meet: of those that can be expressed."""
    kept: list[Leaf] = []
    match = Match()
    for leaf in conditions:
        try:
            match = traefik_rule.match([*kept, leaf])[0]
        except InexpressibleError:
            continue
        kept.append(leaf)
    return match


def _balance(name: str, fields: Fields) -> dict[str, Any]:
    """How servers are picked. A cookie that is not named has a name of the service's own there."""
    strategy = (fields.text("strategy") or "wrr").lower()
    balance = STRATEGIES.get(strategy)
    if balance is None:
        fields.note("strategy is not carried over: it is not known here", "strategy")
    sticky = fields.fields("sticky")
    cookie = None if sticky is None else sticky.fields("cookie")
    if sticky is not None:
        given = None if cookie is None else cookie.text("name")
        for one in (cookie, sticky):
            if one is not None:
                one.rest({"httponly": ": its cookie always is", "secure": ": its cookie is where https is spoken"})
        if cookie is not None:
            balance = {"sticky": {"cookie": given or f"gw_{re.sub('[^A-Za-z0-9_-]', '_', name)}"}}
    return {} if balance in (None, "round_robin") else {"balance": balance}


def _health(fields: Fields) -> dict[str, Any]:
    """Active checks; what asks elsewhere or otherwise than with GET is not one of ours."""
    given = fields.fields("healthCheck")
    if given is None:
        return {}
    # One answer is enough there, either way.
    check: dict[str, Any] = {"healthy": 1, "unhealthy": 1}
    odd = [
        key
        for key, plain in (("scheme", ()), ("port", ()), ("mode", ("http",)), ("method", ("GET",)))
        if (value := given.text(key)) is not None and value not in plain
    ]
    path, host, status = given.text("path"), given.text("hostname"), given.whole("status")
    for key, ours in (("interval", "interval"), ("timeout", "timeout")):
        text = given.text(key)
        length = None if text is None else _go_duration(text)
        if length is not None:
            check[ours] = length
        elif text is not None:
            given.note(f"{key} is no duration, and left out", key)
    headers = given.fields("headers")
    if headers is not None:
        check["headers"] = {name: headers.text(name) or "" for name in headers.names()}
    given.rest({"followredirects": ": a redirect is an answer like any other", "unhealthyinterval": ": see interval"})
    if odd or path is None or not path.startswith("/"):
        why = f"{', '.join(odd) or 'its path'} cannot be expressed"
        fields.note(f"healthCheck is not carried over: {why}", "healthCheck")
        return {}
    check |= {"path": path}
    check |= {"host": host} if host else {}
    check |= {"status": [status]} if status else {}
    return {"health": check}


def _servers(fields: Fields) -> Iterator[dict[str, Any]]:
    for server in fields.each("servers", "server"):
        url = server.text("url")
        scheme = server.text("scheme")
        port = server.text("port")
        weight = server.whole("weight")
        kept = server.flag("preservePath", False)
        server.rest()
        if not url or scheme or port:
            server.note("left out: a server is given by its url alone")
            continue
        origin, path = _split(url)
        if path not in ("", "/") and not kept:
            server.note("the path of its url is left out: Traefik sends it only with preservePath", "url")
            url = origin
        if url.startswith("h2c:"):
            server.note("h2c became http: requests go on as HTTP/1.1", "url")
            url = "http" + url.removeprefix("h2c")
        yield {"url": url} if weight is None else {"url": url, "weight": weight}


def _split(url: str) -> tuple[str, str]:
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return (f"{scheme}{mark}{authority}", slash + path)


def _go_duration(text: str) -> str | None:
    """One of Go's durations as ours; `0` is off in both."""
    if text.isdecimal() and len(text) < 9:
        return duration(float(text) * 1000) if int(text) else "0s"
    parts = _GO_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    length = duration(sum(float(number) * _GO_UNITS[unit] for number, unit in parts))
    try:
        units.duration(length)
    except ValueError:
        return None
    return length


# -- what middlewares make of a path -----------------------------------------------------


def _strip(inner: Fields, way: _Way) -> bool:
    way.cut = inner.texts("prefixes")
    return bool(way.cut)


def _add(inner: Fields, way: _Way) -> bool:
    way.added = inner.text("prefix") or ""
    return way.added.startswith("/")


def _replace(inner: Fields, way: _Way) -> bool:
    path = inner.text("path") or ""
    way.rewrite = {"path": path}
    return path.startswith("/")


def _replace_pattern(inner: Fields, way: _Way) -> bool:
    found = regexes.replacing(inner.text("regex") or "", inner.text("replacement") or "")
    way.rewrite = {} if found is None else {"regex": found[0], "to": found[1]}
    return found is not None


def _strip_pattern(inner: Fields, way: _Way) -> bool:
    given = inner.texts("regex")
    cut = "|".join(regexes.spelled(one).removeprefix("^") for one in given)
    way.rewrite = {"regex": f"(?:{cut})(?P<beyond>.*)", "to": "\\g<beyond>"}
    return bool(given)


_PATHS = {
    "stripprefix": _strip,
    "addprefix": _add,
    "replacepath": _replace,
    "replacepathregex": _replace_pattern,
    "stripprefixregex": _strip_pattern,
}
