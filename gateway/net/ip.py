"""IP addresses and networks, and the IPv4 address that stands inside an IPv6 one.

Rule: pure. `2002:a9fe:a9fe::` and `::ffff:169.254.169.254` lead to 169.254.169.254 where a
kernel or a translator unwraps them, so whoever judges an address judges each of its `forms`.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

# IPv6 networks whose addresses hold an IPv4 address, and how many bits stand behind it.
_EMBEDDING: tuple[tuple[ipaddress.IPv6Network, int], ...] = (
    (_MAPPED, 0),  # IPv4-mapped (RFC 4291 §2.5.5.2)
    (ipaddress.IPv6Network("::/96"), 0),  # IPv4-compatible (RFC 4291 §2.5.5.1)
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated (RFC 2765 §2.1)
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052 §2.1)
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),  # a network's own NAT64 (RFC 8215), laid out as a /96
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056 §2)
)
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


@functools.lru_cache(maxsize=16384)  # an endpoint's address is asked for several times in a row
def address(text: str) -> Address | None:
    """The IP address that a text is, None when it is something else."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is None:
        # ::ffff:10.0.0.1 is dialled as 10.0.0.1 (RFC 4291 §2.5.5.2).
        return found.ipv4_mapped or found
    return found


@functools.lru_cache(maxsize=16384)
def forms(found: Address) -> tuple[Address, ...]:
    """An address, and the IPv4 address inside it if there is one."""
    if isinstance(found, ipaddress.IPv4Address) or found.is_unspecified or found.is_loopback:
        return (found,)
    for network, behind in _EMBEDDING:
        if found in network:
            return (found, ipaddress.IPv4Address(int(found) >> behind & 0xFFFFFFFF))
    return (found,)


def networks(written: Iterable[str]) -> tuple[Network, ...]:
    """Networks as `address` spells addresses: an IPv4-mapped one is the IPv4 network."""
    return tuple(map(_network, written))


def _network(text: str) -> Network:
    found = ipaddress.ip_network(text, strict=False)
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        inside = ipaddress.IPv4Address(int(found.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((inside, found.prefixlen - _MAPPED.prefixlen))
    return found


def never(found: Address) -> str:
    """The reason why no endpoint may have this address, whatever is denied: a zone or several hosts; "" if one may.

    0.0.0.0 and :: are for the caller to judge.
    """
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None:
        # RFC 4007 §11: a zone has a meaning on one machine only.
        return f"{found} has a zone"
    several = (form for form in forms(found) if form.is_multicast or form == _BROADCAST)
    return next((f"{_shown(found, form)} is not an address of one host" for form in several), "")


def denied(found: Address, deny: Iterable[Network]) -> str:
    """The network of `discovery.deny` that a form of an address is in, as a reason; "" if there is none."""
    for form in forms(found):
        for network in deny:
            if form.version == network.version and form in network:
                return f"{_shown(found, form)} is in {network}, which discovery.deny excludes"
    return ""


def _shown(found: Address, form: Address) -> str:
    return f"{found}" if form == found else f"{found} ({form})"
