"""No gateway at all: the least that a WSGI application under gunicorn can cost.

Rule: the same answer that the upstream gives, made on the spot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.upstream import JSON

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One fixed answer."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(JSON)))])
    return [JSON]
