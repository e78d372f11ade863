"""Where this gateway itself listens: such an address is never an endpoint that a registry
names, because requests to it would go round and round.

Rule: the kernel is asked whether an address is this machine's, as every table of our own
would be out of date some day.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from gateway.model import Endpoint
from gateway.providers.addresses import address


class Listeners:
    """The addresses listened on, as gunicorn writes them: `http://127.0.0.1:8000`, `unix:…`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._places = frozenset(place for place in map(_place, names) if place is not None)
        self._ports = frozenset(port for _, port in self._places)

    def refusal(self, endpoint: Endpoint) -> str:
        """Why an endpoint may not be one; "" when it may."""
        if endpoint.port not in self._ports:
            return ""
        host = address(endpoint.host)
        for listened, port in self._places:
            if port == endpoint.port and host is not None:
                here = address(listened)
                if here == host or (here is not None and here.is_unspecified and _reaches(here.version, str(host))):
                    return f"{endpoint.address} is this gateway itself, which listens on {listened}"
        return ""


def _place(name: str) -> tuple[str, int] | None:
    try:
        url = urlsplit(name if "://" in name else f"http://{name}")
        host, port = url.hostname, url.port
    except ValueError:
        return None
    return (host, port) if host and port else None


def _reaches(version: int, host: str) -> bool:
    """Whether a listener on every address (0.0.0.0, or :: which is both families') has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if version == 4 and family == socket.AF_INET6:
        return False
    # Only an address of this machine can be bound; a datagram socket disturbs nobody.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True
