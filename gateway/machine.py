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

from gateway.ip import Address

# Seconds for which an answer of the kernel is kept: thousands of endpoints may have the port
# of a listener, and a question costs some 20 us.
KEPT = 60.0
# Any port will do, as nothing is sent (RFC 863: discard).
_DISCARD = 9


def has_name(name: str) -> bool:
    """Whether a name means this machine: `localhost` (RFC 6761 §6.3) or its host name."""
    labels = name.lower().removesuffix(".")
    return labels == "localhost" or labels.endswith(".localhost") or labels == socket.gethostname().lower()


def has_address(address: Address) -> bool:
    """Whether packets to an address stay on this machine."""
    return address.is_loopback or _has(address, int(time.monotonic() / KEPT))


@functools.lru_cache(maxsize=65536)
def _has(address: Address, when: int) -> bool:
    """`when`: makes the answer expire.

    A packet to this machine comes from the very address that it goes to, or from the loopback. (Trying to bind the
    address proves nothing: with the sysctl ip_nonlocal_bind, common beside floating addresses, every bind succeeds.)
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # gevent's connect would pass even an address through its resolver, and switch greenlets.
    probe = _socket.socket(family, socket.SOCK_DGRAM)
    try:
        probe.connect((str(address), _DISCARD))
        source = ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return False
    finally:
        probe.close()
    return source == address or source.is_loopback
