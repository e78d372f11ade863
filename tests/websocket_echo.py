"""A WebSocket server in a process of its own: what comes goes back, fragment by fragment.

On "close CODE REASON" it closes with those. It writes a line when it listens, and one for each connection
that ended: the code and reason that it saw.

python -m tests.websocket_echo [CERTIFICATE]
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Sequence

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def echo(connection: ServerConnection) -> None:
    try:
        while True:
            fragments = aiter(connection.recv_streaming())
            first = await anext(fragments)
            if isinstance(first, str) and first.startswith("close "):
                _, code, reason = first.split(" ", 2)
                await connection.close(int(code), reason)
                break

            async def all_of_it(first: str | bytes = first, fragments: AsyncIterator[str | bytes] = fragments) -> AsyncIterator[str | bytes]:
                yield first
                async for fragment in fragments:
                    yield fragment

            await connection.send(all_of_it())  # type: ignore[arg-type]
    except ConnectionClosed:
        pass  # told below
    await connection.wait_closed()
    tell(code=connection.close_code, reason=connection.close_reason)


def choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The last that the client offers; none when it offers none."""
    return offered[-1] if offered else None


async def main(certificate: str | None) -> None:
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    async with serve(
        echo, "127.0.0.1", 0, ssl=context, select_subprotocol=choose, max_size=None, ping_interval=None, backlog=1024,
    ) as server:  # fmt: skip
        tell(port=next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
