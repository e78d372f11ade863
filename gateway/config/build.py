"""From the schema's sections to the model: defaults, then upstream, then route.

Rule: the nearest wins, key by key. A section gives only what the file wrote in it; where
nothing is written the model's own defaults stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from gateway import model
from gateway.config.environment import Overrides
from gateway.config.schema import (
    Balance,
    Concurrency,
    Defaults,
    Document,
    Eject,
    Etcd,
    Excluded,
    HealthCheck,
    Match,
    Redirect,
    Registration,
    Respond,
    Retry,
    Rewrite,
    Route,
    Section,
    Upstream,
)

Settings = TypeVar("Settings")


def overlay(base: Settings, section: Section) -> Settings:
    """`base` with what a section of the file says instead."""
    written = {key: getattr(section, key) for key in section.model_fields_set}
    return replace(base, **written) if written else base  # type: ignore[type-var]  # all are dataclasses


def _retry(base: model.RetryPolicy, section: Retry) -> model.RetryPolicy:
    written: dict[str, Any] = {key: getattr(section, key) for key in section.model_fields_set}
    if "methods" in written:
        written["methods"] = frozenset(method.encode() for method in written["methods"])
    for key in ("when", "statuses"):
        if key in written:
            written[key] = frozenset(written[key])
    return replace(base, **written) if written else base


def _nearest(section: Section, key: str, otherwise: Any) -> Any:
    return getattr(section, key) if key in section.model_fields_set else otherwise


def _upgrade(section: Section, otherwise: frozenset[bytes]) -> frozenset[bytes]:
    found = frozenset(_nearest(section, "upgrade", otherwise))
    return model.WEBSOCKET if found == model.WEBSOCKET else found


def _switched(
    level: Section, key: str, base: Settings | None, first: Settings, lay: Callable[[Settings, Any], Settings] = overlay
) -> Settings | None:
    """A section that null switches off. Where it was off, one that is written begins with `first`."""
    if key not in level.model_fields_set:
        return base
    section = getattr(level, key)
    return None if section is None else lay(first if base is None else base, section)


def eject(level: Defaults | Upstream, base: model.Eject | None) -> model.Eject | None:
    return _switched(level, "eject", base, model.Eject(), _eject)


def _eject(base: model.Eject, section: Eject) -> model.Eject:
    found = overlay(base, section)
    written = section.model_fields_set
    # What is written here is meant; what is not gives way to it.
    if "max_for" not in written:
        found = replace(found, max_for=max(found.max_for, found.out_for))
    elif "out_for" not in written:
        found = replace(found, out_for=min(found.out_for, found.max_for))
    return replace(found, statuses=frozenset(found.statuses))


# What is asked over HTTP only.
HTTP_CHECK = ("path", "status", "host", "headers")


def _health(base: model.HealthCheck, section: HealthCheck) -> model.HealthCheck:
    written: dict[str, Any] = {key: getattr(section, key) for key in section.model_fields_set}
    if "status" in written:
        written["statuses"] = frozenset(status for some in written.pop("status") for status in some)
    if "headers" in written:
        written["headers"] = tuple((name.encode(), value) for name, value in written["headers"].items())
    if "tcp" not in written and not section.model_fields_set.isdisjoint(HTTP_CHECK):
        # Further away it may say tcp; here it says what to ask.
        written["tcp"] = False
    return replace(base, **written) if written else base


def concurrency(level: Defaults | Upstream, base: model.Concurrency) -> model.Concurrency:
    section: Concurrency | None = _nearest(level, "concurrency", Concurrency())
    return replace(base, limit=0) if section is None else overlay(base, section)


def _balance(given: str | Balance) -> model.Balance:
    if isinstance(given, str):
        return model.Balance(given)
    if given.hash is not None:
        return model.Balance("hash", *given.hash.by)
    assert given.sticky is not None, "rules.one_balance"
    return model.Balance("sticky", name=given.sticky.cookie, secret=given.sticky.secret)


# -- upstreams -------------------------------------------------------------------------


def defaults(document: Document) -> model.Upstream:
    """What every upstream begins with."""
    return _settled(model.Upstream("", model.StaticSource(())), document.defaults)


def upstream(name: str, given: Upstream, base: model.Upstream) -> model.Upstream:
    source = _source(given)
    scheme = _scheme(given)
    return replace(
        _settled(base, given),
        name=name,
        source=source,
        scheme=scheme,
        tls=_tls(given, source, scheme),
        fallback=given.fallback,
    )


def _settled(base: model.Upstream, given: Defaults | Upstream) -> model.Upstream:
    """`base` with what one level of the file says instead."""
    balance = _nearest(given, "balance", None)
    return replace(
        base,
        host=_nearest(given, "host", base.host),
        balance=base.balance if balance is None else _balance(balance),
        timeouts=overlay(base.timeouts, given.timeouts),
        pool=overlay(base.pool, given.pool),
        retry=_retry(base.retry, given.retry),
        limits=overlay(base.limits, given.limits),
        buffer=overlay(base.buffer, given.buffer),
        upgrade=_upgrade(given, base.upgrade),
        eject=eject(given, base.eject),
        health=_switched(given, "health", base.health, model.HealthCheck(), _health),
        breaker=_switched(given, "breaker", base.breaker, model.Breaker()),
        concurrency=concurrency(given, base.concurrency),
        slow_start=_nearest(given, "slow_start", base.slow_start),
        deadline_header=_nearest(given, "deadline_header", base.deadline_header),
    )


def _source(given: Upstream) -> model.Source:
    if given.consul is not None:
        return model.ConsulSource(given.consul, given.tag)
    if given.dns_srv is not None:
        return model.DnsSrvSource(given.dns_srv)
    if given.etcd is not None:
        return model.EtcdSource(_folder(given.etcd))
    name = given.tls.server_name if given.tls is not None else None
    return model.StaticSource(
        tuple(
            replace(one.url, weight=one.weight, server_name=one.url.server_name and (name or one.url.server_name))
            for one in given.endpoints or ()
        )
    )


def _folder(path: str) -> str:
    """`/svc/a` means what is below it, and not `/svc/ab`."""
    return path if path.endswith("/") else f"{path}/"


def _scheme(given: Upstream) -> str:
    """How discovered endpoints are spoken to; an URL has its own."""
    if given.scheme is not None:
        return given.scheme
    return "http" if given.tls is None else "https"


def _tls(given: Upstream, source: model.Source, scheme: str) -> model.TlsSettings | None:
    """The settings of every upstream that speaks TLS; None where none is spoken."""
    schemes = {one.scheme for one in source.endpoints} if isinstance(source, model.StaticSource) else {scheme}
    # What stands in etcd may be a URL of either kind, today or tomorrow.
    if "https" not in schemes and not isinstance(source, model.EtcdSource):
        return None
    return model.TlsSettings() if given.tls is None else overlay(model.TlsSettings(), given.tls)


# -- routes ----------------------------------------------------------------------------


def route(
    given: Route, index: int, line: int, upstreams: Mapping[str, model.Upstream], base: model.Upstream
) -> model.Route:
    """A route of the file. `base`: what upstreams begin with."""
    plain = model.Route(
        name=given.name,
        matches=tuple(map(match, given.match)),
        priority=given.priority,
        strip_prefix=given.strip_prefix,
        ambiguous_paths=given.ambiguous_paths,
        rewrite=None if given.rewrite is None else _rewrite(given.rewrite),
        redirect=None if given.redirect is None else _redirect(given.redirect),
        respond=None if given.respond is None else _respond(given.respond),
        index=index,
        line=line,
    )
    if given.redirect is not None or given.respond is not None:
        return plain
    if given.mirror is not None:
        copied = _leading_to(upstreams[given.mirror.upstream], plain, given)
        plain = replace(plain, mirror=model.Mirror(copied, given.mirror.percent))

    def towards(name: str) -> model.Route:
        to = upstreams[name]
        fallback = None if to.fallback is None else towards(to.fallback)
        return replace(_leading_to(to, plain, given), fallback=fallback)

    if given.split is None:
        assert given.upstream is not None, "rules.one_end"
        return towards(given.upstream)
    shares = tuple(model.Share(towards(part.upstream), part.weight) for part in given.split.to)
    return replace(_leading_to(base, plain, given), split=model.Split(shares, *(given.split.by or ())))


def _leading_to(to: model.Upstream, plain: model.Route, given: Route) -> model.Route:
    """A route as it is for one upstream."""
    return replace(
        plain,
        upstream=to.name,
        host=_nearest(given, "host", to.host),
        timeouts=overlay(to.timeouts, given.timeouts),
        retry=_retry(to.retry, given.retry),
        upgrade=_upgrade(given, to.upgrade),
        deadline_header=_nearest(given, "deadline_header", to.deadline_header),
    )


def match(given: Match | Excluded) -> model.Match:
    excluded = given.excluded if isinstance(given, Match) else None
    return model.Match(
        host=given.host,
        path=given.path,
        prefix=given.prefix,
        regex=given.regex,
        methods=frozenset(given.methods),
        headers=tuple(given.headers.items()),
        query=tuple(given.query.items()),
        excluded=None if excluded is None else match(excluded),
    )


def _rewrite(given: Rewrite) -> model.Rewrite:
    return model.Rewrite(prefix=given.prefix, path=given.path, regex=given.regex, to=given.to)


def _redirect(given: Redirect) -> model.Redirect:
    return model.Redirect(given.status, given.scheme, given.host, given.port, given.path, given.prefix)


def _respond(given: Respond) -> model.Respond:
    headers = tuple((name.encode(), value) for name, value in given.headers.items())
    return model.Respond(given.status, given.body.encode(), headers)


# -- the whole -------------------------------------------------------------------------


def config(document: Document, over: Overrides, *, version: str, path: str, line: Callable[[int], int]) -> model.Config:
    """The configuration that a faultless document stands for; `line` tells where the route
    of that number is."""
    base = defaults(document)
    upstreams = {name: upstream(name, given, base) for name, given in document.upstreams.items()}
    routes = tuple(
        route(given, index, line(index), upstreams, base) for index, given in enumerate(document.routes)
    )
    return model.Config(
        version=version,
        upstreams=upstreams,
        routes=routes,
        server=_server(document, over),
        admin=_admin(document, over),
        access_log=_access_log(document),
        discovery=_discovery(document, over),
        path=path,
    )


def _server(document: Document, over: Overrides) -> model.ServerSettings:
    given = document.server
    trusted = tuple(given.trusted_proxies) if over.trusted_proxies is None else over.trusted_proxies
    return model.ServerSettings(
        name=given.name,
        trusted_proxies=trusted,
        timeouts=overlay(model.ServerTimeouts(), given.timeouts),
        min_rate=given.min_rate,
        limits=overlay(model.ServerLimits(), given.limits),
        graceful=given.graceful,
        drain=given.drain,
        overload=given.overload,
        request_id=given.request_id,
        own_prefix=given.own_prefix,
        via=given.via,
        forwarded=given.forwarded,
        ambiguous_paths=given.ambiguous_paths,
    )


def _admin(document: Document, over: Overrides) -> model.AdminSettings | None:
    given = document.admin
    if over.admin == "off" or (given is None and over.admin is None):
        return None
    base = model.AdminSettings() if given is None else overlay(model.AdminSettings(), given)
    return model.AdminSettings(bind=over.admin or base.bind, token=over.admin_token or base.token)


def _access_log(document: Document) -> model.AccessLogSettings | None:
    given = document.access_log
    if given is None:
        return None
    return model.AccessLogSettings(
        path=given.path, format=given.format, redact=frozenset(name.lower() for name in given.redact)
    )


def _etcd(given: Etcd) -> model.EtcdSettings:
    return model.EtcdSettings(tuple(given.endpoints), given.username, given.password, given.poll)


def _registration(given: Registration | None) -> model.RegistrationSettings | None:
    if given is None:
        return None
    return replace(overlay(model.RegistrationSettings(), given), tags=tuple(given.tags))


def _consul_address(address: str, over: Overrides) -> str:
    """With CONSUL_HTTP_SSL plain http is never used, whatever the address says."""
    return address.replace("http://", "https://", 1) if over.consul_tls.required else address


def _discovery(document: Document, over: Overrides) -> model.DiscoverySettings:
    given = document.discovery
    consul = overlay(model.ConsulSettings(), given.consul)
    return model.DiscoverySettings(
        consul=replace(
            consul,
            address=_consul_address(over.consul_address or consul.address, over),
            token=over.consul_token or consul.token,
            tls=over.consul_tls,
            registration=_registration(given.consul.registration),
        ),
        etcd=_etcd(given.etcd),
        dns=model.DnsSettings(servers=tuple(given.dns.servers), ttl=given.dns.ttl),
        wait=given.wait,
        deny=tuple(given.deny),
        snapshot=given.snapshot,
    )
