"""This machine: which names and which addresses are its own.

Rule: the kernel is asked about addresses, because any table of our own would be out of date
some day. No name is looked up.
"""

from __future__ import annotations

import _socket
import functools
import ipaddress
import socket
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from gateway.net.ip import Address, address

# Seconds for which an answer of the kernel is kept: thousands of endpoints may have the port
# of a listener, and a question costs some 20 us.
KEPT = 60.0
# Any port will do, as nothing is sent (RFC 863: discard).
_DISCARD = 9


def has_name(name: str) -> bool:
    """Whether a name means this machine: `localhost` (RFC 6761 §6.3) or its host name."""
    labels = name.lower().removesuffix(".")
    return labels == "localhost" or labels.endswith(".localhost") or labels == socket.gethostname().lower()


def has_address(found: Address) -> bool:
    """Whether packets to an address stay on this machine."""
    return found.is_loopback or _has(found, int(time.monotonic() / KEPT))


def has_all(urls: Iterable[str]) -> bool:
    """Whether each of some servers, `http://host:port` or `host:port`, is on this machine. A name other than this
    machine's own counts as another machine."""
    return all(_has_host(urlsplit(url if "://" in url else f"//{url}").hostname or "") for url in urls)


def _has_host(host: str) -> bool:
    found = address(host)
    return has_name(host) if found is None else has_address(found)


@functools.lru_cache(maxsize=65536)
def _has(found: Address, when: int) -> bool:
    """`when`: makes the answer expire.

    A packet to this machine comes from the very address that it goes to, or from the loopback. (Trying to bind the
    address proves nothing: with the sysctl ip_nonlocal_bind, common beside floating addresses, every bind succeeds.)
    """
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    # gevent's connect would pass even an address through its resolver, and switch greenlets.
    probe = _socket.socket(family, socket.SOCK_DGRAM)
    try:
        probe.connect((str(found), _DISCARD))
        source = ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return False
    finally:
        probe.close()
    return source == found or source.is_loopback
