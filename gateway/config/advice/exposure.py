"""Advice: short secrets, unverified upstreams, credentials over plain http, loopback endpoints from elsewhere.

Rule: a short secret is reported only if other machines can try it. Messages never quote a secret.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from gateway.config import scalar_types, urls
from gateway.config.advice.resilience import place
from gateway.config.advice.subject import Whole
from gateway.config.advice.timing import once
from gateway.config.rules import SHORTEST_TOKEN, Breach, Breaches, endpoint_paths
from gateway.model import Config
from gateway.net import ip


def short_token(whole: Whole) -> Breaches:
    admin = whole.config.admin
    if admin is None or admin.bind == "inline" or scalar_types.admin_is_local(admin.bind):
        return
    if 0 < len(admin.token) < SHORTEST_TOKEN:
        message = f"is shorter than {SHORTEST_TOKEN} characters, and others reach {admin.bind}"
        yield Breach(("admin", "token"), message)


def short_secrets(whole: Whole) -> Breaches:
    if not is_served_beyond(whole.config, whole.environ):
        return
    message = f"is shorter than {SHORTEST_TOKEN} characters: who guesses it can choose the endpoint"
    yield from once(
        (place(whole, one, ("balance", "sticky", "secret")), message)
        for one in whole.config.upstreams.values()
        if one.balance.policy == "sticky" and 0 < len(one.balance.secret or "") < SHORTEST_TOKEN
    )


def is_served_beyond(config: Config, environ: Mapping[str, str]) -> bool:
    """Whether clients come from other machines, as far as the configuration and the environment
    tell: the address to listen on is given by a flag, or by PORT."""
    admin = config.admin.bind if config.admin is not None and config.admin.bind != "inline" else "unix:"
    proxies = (network for network in config.server.trusted_proxies if network not in ("unix", "loopback"))
    return bool(environ.get("PORT")) or not scalar_types.admin_is_local(admin) or any(map(_is_remote, proxies))


def _is_remote(network: str) -> bool:
    return network == "private" or not ipaddress.ip_network(network, strict=False).is_loopback


def unverified_upstreams(whole: Whole) -> Breaches:
    for path, upstream in whole.draft.upstreams():
        if upstream.tls is not None and not upstream.tls.verify:
            message = "false: whoever is on the way can answer as the upstream (tls.ca for an authority of your own)"
            yield Breach((*path, "tls", "verify"), message)


def unverified_consul(whole: Whole) -> Breaches:
    consul = whole.config.discovery.consul
    if not consul.tls.verify and consul.address.startswith("https:"):
        message = "is not verified (CONSUL_HTTP_SSL_VERIFY): whoever is on the way can answer as Consul (CONSUL_CACERT)"
        yield Breach(("discovery", "consul", "address"), message)


def secrets_in_clear(whole: Whole) -> Breaches:
    """A registry's credentials over plain http."""
    discovery = whole.config.discovery
    if discovery.consul.token and (clear := _in_clear([discovery.consul.address])):
        yield Breach(("discovery", "consul", "address"), f"the token goes to {clear} in clear (https)")
    if discovery.etcd.password and (clear := _in_clear(discovery.etcd.endpoints)):
        yield Breach(("discovery", "etcd", "endpoints"), f"the password goes to {clear} in clear (https)")


def foreign_loopback(whole: Whole) -> Breaches:
    """Endpoints on this machine in a document that a registry on another machine holds."""
    for path, upstream in whole.draft.upstreams() if whole.is_remote else ():
        for at, endpoint in endpoint_paths(path, upstream):
            if _is_loopback(endpoint.url.host):
                yield Breach(at, "leads to the gateway's own machine, but the registry is on another one")


def _is_loopback(host: str) -> bool:
    found = ip.address(host)
    if found is None:
        return host == "localhost" or host.endswith(".localhost")
    return any(form.is_loopback or form.is_unspecified for form in ip.forms(found))


def _in_clear(addresses: Iterable[str]) -> str:
    """The first host that is spoken to by plain http and is not this machine."""
    for address in addresses:
        if address.startswith("http://"):
            authority = address.removeprefix("http://").partition("/")[0].rpartition("@")[2]
            host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
            local = host == "localhost" or (urls.is_address(host) and ipaddress.ip_address(host).is_loopback)
            if not local:
                return host
    return ""
