"""A microservice API gateway for a WSGI stack: Flask, gunicorn, gevent, urllib3.

Public names are loaded when they are first used: `gateway run` validates a file without
importing ssl or urllib3, because gevent must patch before they are imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.app import Gateway, create_app

__version__ = "0.1.0"

__all__ = ["Gateway", "__version__", "create_app"]


def __getattr__(name: str) -> Any:
    if name in ("Gateway", "create_app"):
        from gateway import app

        return getattr(app, name)
    raise AttributeError(f"module 'gateway' has no attribute {name!r}")
