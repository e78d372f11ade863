"""Which requests may become a tunnel (RFC 9110 §7.8).

Rule: the request names one protocol that its route allows, in HTTP/1.1, has no body, and comes
through a door that can hand its socket over. The parser finds what browsers send: a GET with a
token. Routes that allow more than WebSocket also take a protocol with a version (`SPDY/3.1`:
kubectl exec) and other methods (POST with `tcp`: docker attach). WebSocket is GET alone (RFC
6455 §4.1).
"""

from __future__ import annotations

from gateway.http.messages import Request
from gateway.http.request_head import tokens
from gateway.model import WEBSOCKET


def protocol(request: Request, allowed: frozenset[bytes]) -> bytes | None:
    """The protocol that a request may switch to, as the client spelled it."""
    token = request.upgrade
    if token is not None:
        return token if token in allowed else None
    # Only a door that can send 1xx to an HTTP/1.1 client can make a tunnel.
    if allowed is WEBSOCKET or request.interim is None:
        return None
    if request.body is not None or request.content_length or request.chunked:
        return None
    named = [value for name, value in request.headers if name.lower() == b"upgrade"]
    if len(named) != 1:
        return None
    spelled = named[0].strip(b" \t")
    lower = spelled.lower()
    if lower not in allowed or lower in WEBSOCKET:
        return None
    for name, value in request.headers:
        if name.lower() == b"connection" and b"upgrade" in tokens(value):
            return spelled
    return None
