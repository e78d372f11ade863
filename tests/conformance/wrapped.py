"""The gateway as a framework user may deploy it: with a middleware round it, so that requests enter by WSGI."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gateway import create_app

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def app() -> Any:
    gateway = create_app()
    inner: App = gateway.wsgi_app

    def middleware(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return inner(environ, start_response)

    gateway.wsgi_app = middleware
    return gateway
