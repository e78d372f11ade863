"""What may stand where an endpoint's host stands: an IP address in one spelling, or a name.

Rule: pure. Every address that came from a registry or a resolver goes through here before
it becomes an endpoint, so that `discovery.deny` sees the address that would be dialled.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable

from gateway.model import Endpoint

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 1123 §2.1 with the underscore that service names in the wild have; a trailing dot is
# the root (RFC 1034 §3.1).
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_NAME_LENGTH = 253


@functools.lru_cache(maxsize=16384)  # an endpoint's address is asked for several times in a row
def address(text: str) -> Address | None:
    """The IP address that a text is, None when it is something else."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    # ::ffff:10.0.0.1 is dialled as 10.0.0.1 (RFC 4291 §2.5.5.2).
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def host(text: str) -> str | None:
    """The one spelling of a host: an address, or a name in lower case; None when it is neither."""
    found = address(text)
    if found is not None:
        return str(found)
    if len(text.rstrip(".")) <= _NAME_LENGTH and _NAME.fullmatch(text):
        return text.lower()
    return None


def networks(deny: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(cidr, strict=False) for cidr in deny)


def refusal(endpoint: Endpoint, deny: Iterable[Network]) -> str:
    """Why an endpoint's address may not be dialled; "" when it may."""
    found = address(endpoint.host)
    if found is None:
        return f"{endpoint.host} is not an address"
    if found.is_unspecified or found.is_multicast:
        # 0.0.0.0 would be this very machine.
        return f"{found} is not an address of one host"
    for network in deny:
        if found.version == network.version and found in network:
            return f"{found} is in {network}, which discovery.deny excludes"
    return ""


def allowed(endpoints: Iterable[Endpoint], deny: tuple[Network, ...]) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """The endpoints that may be dialled, and why the others may not."""
    kept: list[Endpoint] = []
    reasons: list[str] = []
    for endpoint in endpoints:
        reason = refusal(endpoint, deny)
        if reason:
            reasons.append(reason)
        else:
            kept.append(endpoint)
    return tuple(kept), tuple(reasons)
