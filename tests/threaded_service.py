"""A WSGI service as most are: each request takes a thread from its first byte to its last.

GET /NUMBER: an answer of so many bytes. POST: the length of the body, once all of it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] == "POST":
        body = b"%d" % len(environ["wsgi.input"].read())
    else:
        body = bytes(int(environ["PATH_INFO"].strip("/") or 2))
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
    return [body]
