"""The best of the Python peers: aiohttp's server and client over uvloop.

Rule: bodies stream both ways, connections are kept as Go keeps them.
Run as `python -m bench.aioproxy PORT UPSTREAM`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class Proxy:
    """One client session for the life of the process."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """The session needs a running loop, so it lives inside the application's life."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self.client:
            yield

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """One request: copy, send, copy back."""
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP)
        headers["X-Forwarded-For"] = request.remote or ""
        headers["X-Forwarded-Proto"] = request.scheme
        headers["X-Forwarded-Host"] = request.host
        body = request.content if request.body_exists else None
        async with self.client.request(
            request.method,
            self.upstream + request.raw_path,
            headers=headers,
            data=body,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as answer:
            kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP)
            if answer.content_length is not None and answer.content_length <= 65536:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def main(port: int, upstream: str) -> None:
    """Serve until told to stop."""
    proxy = Proxy(upstream)

    async def life(_: web.Application) -> AsyncIterator[None]:
        async with proxy.session():
            yield

    app = web.Application(client_max_size=0)
    app.cleanup_ctx.append(life)
    app.router.add_route("*", "/{path:.*}", proxy.forward)
    web.run_app(
        app,
        host="127.0.0.1",
        port=port,
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
        keepalive_timeout=75,
        shutdown_timeout=1,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
