"""What may stand where an endpoint's host stands: an IP address in one spelling, or a name.

Rule: pure. Every address that came from a registry or a resolver goes through here before
it becomes an endpoint, so that `discovery.deny` sees the address that would be dialled.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from gateway.model import Endpoint
from gateway.net.ip import Address, Network, address, denied, forms, never

# RFC 1123 §2.1 with the underscore that service names in the wild have; a trailing dot is
# the root (RFC 1034 §3.1).
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_NAME_LENGTH = 253


def host(text: str) -> str | None:
    """The one spelling of a host: an address, or a name in lower case; None when it is neither."""
    found = address(text)
    if found is not None:
        return str(found)
    if len(text.rstrip(".")) <= _NAME_LENGTH and _NAME.fullmatch(text):
        return text.lower()
    return None


def refusal(endpoint: Endpoint, deny: Iterable[Network]) -> str:
    """The reason why an endpoint's address may not be dialled; "" if it may."""
    found = address(endpoint.host)
    return f"{endpoint.host} is not an address" if found is None else _unusable(found) or denied(found, deny)


@functools.lru_cache(maxsize=16384)  # the same endpoints come again with each answer
def _unusable(found: Address) -> str:
    if any(form.is_unspecified for form in forms(found)):
        # It would be dialled as this very machine.
        return f"{found} is not an address of one host"
    return never(found)


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
