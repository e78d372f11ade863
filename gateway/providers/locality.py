"""Whether a registry runs on this machine: only then do loopback addresses from it make sense.

Rule: names are not looked up, so a registry that is given by a name other than this
machine's own counts as another machine. The result only decides about a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.model import DnsSettings, Endpoint
from gateway.net import machine
from gateway.net.ip import address, forms
from gateway.registries import dns_servers


def foreign_loopback(endpoints: Iterable[Endpoint], is_here: Callable[[], bool]) -> tuple[str, ...]:
    """A warning for each loopback endpoint that a registry on another machine names. `is_here`: whether the registry
    is on this one; called only if there are such endpoints."""
    doubtful = [one for one in endpoints if _is_loopback(one)]
    if not doubtful or is_here():
        return ()
    return tuple(f"{one.address} is a loopback address, but the registry is on another machine" for one in doubtful)


def _is_loopback(endpoint: Endpoint) -> bool:
    if ":" not in endpoint.host and not endpoint.host.startswith("127."):
        # Nearly all, of which there may be thousands: no need to parse them.
        return False
    found = address(endpoint.host)
    return found is not None and any(form.is_loopback for form in forms(found))


def dns_is_here(settings: DnsSettings) -> bool:
    """Whether the DNS servers that are asked are on this machine."""
    return machine.has_all(settings.servers or dns_servers.of_system())
