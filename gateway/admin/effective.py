"""The configuration in force, fit to be shown: everything resolved, secrets masked.

Rule: pure. What may be a secret is masked by where it stands (`token`, `password`, `secret`), by the
name that it goes with (headers and queries that routes match), or by its form (user names
and passwords in URLs, values of query parameters that the access log masks).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from gateway.model import AccessLogSettings, Config, Endpoint
from gateway.patterns import Pattern
from gateway.telemetry.redact import MASK, masking

_SECRET_KEYS = frozenset({"token", "password", "secret"})
# Names of headers, and of query parameters, whose values are mostly credentials.
_SECRET_NAMES = re.compile(r"auth|cookie|token|secret|password|passwd|signature|credential|session|api[-_]?key", re.I)
_PAIRS = frozenset({"headers", "query"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Mask = Callable[[str], str]


def shown(config: Config) -> dict[str, Any]:
    """The configuration as plain values for JSON. Seconds and bytes, as the model has them."""
    redact = (config.access_log or AccessLogSettings()).redact
    plain = _plain(config, masking(redact))
    assert isinstance(plain, dict)
    # They are sentences about a file, and repeat what is in it.
    del plain["warnings"]
    return plain


def _plain(value: Any, mask: Mask) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _text(value, mask)
        case bytes():
            return _text(value.decode("latin-1"), mask)
        case re.Pattern() | Pattern():
            return _plain(value.pattern, mask)
        case Endpoint():
            return _endpoint(value, mask)
        case Mapping():
            return {str(key): _plain(one, mask) for key, one in value.items()}
        case frozenset() | set():
            return sorted((_plain(one, mask) for one in value), key=str)
        case list() | tuple():
            return [_plain(one, mask) for one in value]
    assert is_dataclass(value), type(value)
    return {field.name: _field(field.name, getattr(value, field.name), mask) for field in fields(value) if field.init}


def _field(name: str, value: Any, mask: Mask) -> Any:
    if name in _SECRET_KEYS and isinstance(value, str):
        return MASK if value else value
    if name in _PAIRS and isinstance(value, tuple):
        named = ((key.decode("latin-1") if isinstance(key, bytes) else key, one) for key, one in value)
        return {key: MASK if _SECRET_NAMES.search(key) else _plain(one, mask) for key, one in named}
    return _plain(value, mask)


def _endpoint(endpoint: Endpoint, mask: Mask) -> dict[str, Any]:
    query = f"?{endpoint.query.decode('latin-1')}" if endpoint.query else ""
    path = mask(endpoint.base_path.decode("latin-1") + query) if endpoint.base_path else mask(f"/{query}")[1:]
    found: dict[str, Any] = {"url": f"{endpoint.scheme}://{endpoint.address}{path}", "weight": endpoint.weight}
    if endpoint.server_name:
        found["server_name"] = endpoint.server_name
    return found


def _text(value: str, mask: Mask) -> str:
    """A URL without its credentials; any other text as it is."""
    return mask(value) if _URL.match(value) else value
