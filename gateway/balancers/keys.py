"""What of a request says where it belongs: read from it as it came.

Rule: a key is bytes; of several values the first counts, and an empty one is none.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.http.messages import Request
from gateway.http.target import decoded, parse

Key = Callable[[Request], bytes]


def key(by: str, name: str) -> Key:
    """Reads the key of a request (model.Balance): empty where it has none."""
    if by == "client_ip":
        return _client
    if by == "path":
        return _path
    return {"header": header, "cookie": cookie, "query": query}[by](name)


def _client(request: Request) -> bytes:
    return request.client.encode("latin-1")


def _path(request: Request) -> bytes:
    target = request.target
    return target.partition(b"?")[0] if target.startswith(b"/") else parse(target).path


def header(name: str) -> Key:
    wanted = name.encode("latin-1")
    return lambda request: request.field(wanted) or b""


def cookie(name: str) -> Key:
    wanted = name.encode("latin-1")
    return lambda request: request.cookie(wanted)


def query(name: str) -> Key:
    wanted = name.encode()

    def value(request: Request) -> bytes:
        for pair in request.target.partition(b"?")[2].split(b"&"):
            given, _, text = pair.partition(b"=")
            if decoded(given) == wanted:
                return decoded(text)
        return b""

    return value
