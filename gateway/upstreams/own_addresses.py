"""Where this gateway itself listens: such an address is never an endpoint, whatever names it,
because requests to it would go round and round.

Rule: an endpoint is judged by its port, then by each form of its address and by the name that
it was written with. What cannot be told apart from a listener counts as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.model import Config, Endpoint, StaticSource
from gateway.net import machine
from gateway.net.ip import Address, address, forms


@dataclass(frozen=True, slots=True)
class _Place:
    """`host` None: every address of this machine, of both families."""

    shown: str
    host: Address | None
    port: int

    def covers(self, found: Address) -> bool:
        """Whether what is sent to an address at this port arrives here."""
        if found.is_unspecified:
            # The kernel takes it for a loopback address; which one depends on the socket.
            return True
        if self.host is None or (self.host.is_unspecified and self.host.version == 6):
            return machine.has_address(found)
        if self.host.is_unspecified:
            return found.version == 4 and machine.has_address(found)
        return found == self.host


class Listeners:
    """The addresses listened on: `http://127.0.0.1:8000`, `0.0.0.0:8000`, `:8000`; `unix:…` and `fd://…` have no port
    that an endpoint could name. Raises ValueError for a text that is none of these."""

    def __init__(self, names: Iterable[str]) -> None:
        places = (_place(name) for name in names if name)
        self._places = tuple(place for place in places if place is not None)
        self._ports = frozenset(place.port for place in self._places)

    def refusal(self, endpoint: Endpoint) -> str:
        """The reason why an endpoint may not be one; "" if it may."""
        if endpoint.port not in self._ports:
            return ""
        found = address(endpoint.host)
        addresses = forms(found) if found is not None else ()
        is_ours = any(map(machine.has_name, _names(endpoint)))
        for place in self._places:
            if place.port == endpoint.port and (is_ours or any(map(place.covers, addresses))):
                return f"{endpoint.address} is this gateway itself, which listens on {place.shown}"
        return ""


def _place(name: str) -> _Place | None:
    """None without a port."""
    url = urlsplit(name if "://" in name else f"http://{name}")
    if not url.port:
        return None
    # A name may have any address, so every address counts.
    return _Place(url.netloc, address(url.hostname or ""), url.port)


def _names(endpoint: Endpoint) -> tuple[str, str]:
    """What an endpoint was written as, and what it is dialled as."""
    written = endpoint.authority.decode("latin-1")
    return written.rpartition(":")[0] or written, endpoint.host


def planned(config: Config, bind: Iterable[str]) -> Listeners:
    """Where a gateway of this configuration will listen. `bind`: the addresses for clients."""
    return Listeners([*bind, *([config.admin.bind] if config.admin is not None else [])])


def warnings(config: Config, listeners: Listeners) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The endpoints of the file that will not be used, each as its path in the file and the reason."""
    for upstream in config.upstreams.values():
        if not isinstance(upstream.source, StaticSource):
            continue
        for number, endpoint in enumerate(upstream.source.endpoints):
            if reason := listeners.refusal(endpoint):
                yield ("upstreams", upstream.name, "endpoints", number, "url"), f"is not used: {reason}"
