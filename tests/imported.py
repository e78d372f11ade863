"""What a configuration made by `gateway import` does with a request, without a socket.

Rule: the file is read as any other; the answer is the router's and the target's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway import config, importers
from gateway.commands.wording import told_end
from gateway.errors import ClientError
from gateway.http import target as targets
from gateway.http.messages import Headers
from gateway.model import Config, ConsulSource, Endpoint, Route, StaticSource
from gateway.routing.router import Router


class Went(NamedTuple):
    """Where a request went: the upstream's first address (or service), the target and the
    Host that it gets. Nowhere: `to` is empty, or `closed`. What has no upstream, or several:
    `to` tells it as `gateway routes` does."""

    to: str
    target: str = ""
    host: str = ""


class Imported:
    """A configuration of another gateway, carried over."""

    def __init__(self, source: str, text: str | bytes, path: Path | None = None) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.text = importers.imported(source, data, "sample", path)
        self.config: Config = config.loads(self.text.encode(), "imported", {})
        self._router = Router(self.config.routes)

    @property
    def comments(self) -> str:
        return "\n".join(line.strip() for line in self.text.splitlines() if line.lstrip().startswith("#"))

    def route(self, name: str) -> Route:
        return next(route for route in self.config.routes if route.name == name)

    def ask(self, target: str, host: str = "any.example", method: str = "GET", headers: Headers | None = None) -> Went:
        read = targets.parse(target.encode())
        try:
            normal = targets.normal(read.path)
        except ClientError:
            return Went("")
        name = targets.host(host.encode())
        route = self._router.match(method.encode(), name, normal, read.query, headers or [])
        if route is None:
            return Went("")
        if not route.upstream:
            return Went(told_end(route))
        source = self.config.upstreams[route.upstream].source
        if isinstance(source, ConsulSource):
            endpoint = Endpoint("http", "127.0.0.1", 80)
            return Went(source.service, targets.outbound(route, endpoint, read, normal).decode())
        assert isinstance(source, StaticSource)
        endpoint = source.endpoints[0]
        if route.upstream == "closed":
            return Went("closed")
        sent = {"preserve": host, "upstream": endpoint.authority.decode()}.get(route.host, route.host)
        return Went(endpoint.address, targets.outbound(route, endpoint, read, normal).decode(), sent)
