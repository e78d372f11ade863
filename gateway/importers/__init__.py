"""Configurations of other gateways as ours: one module for each, a table of them here.

Rule: an importer reads one document and gives a `Draft`. It opens no connection, and no file
except those that an nginx configuration includes, if that is a file itself.
Input is bounded (bytes, depth, alternatives) and never believed: what comes out passes our
own check, what could not be carried over stands in it as a comment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.config.document import LIMIT
from gateway.errors import ConfigError, Mistake
from gateway.importers import fabio, kong, nginx, traefik
from gateway.importers.accepted import finished
from gateway.importers.draft import Draft

# Name -> from the bytes of a document and its name to a draft; ConfigError when it is none.
SOURCES: dict[str, Callable[[bytes, str], Draft]] = {
    "traefik": traefik.convert,
    "kong": kong.convert,
    "fabio": fabio.convert,
    "nginx": nginx.convert,
}


def imported(source: str, data: bytes, name: str, path: Path | None = None) -> str:
    """The text of our file for a document of another gateway. `path`: where the document is, if
    it is a file; files that it includes are read then.

    Raises `ConfigError` when it cannot be read, or when nothing in it could be carried over.
    """
    if len(data) > LIMIT:
        raise ConfigError.found(name, [Mistake(0, 0, "", f"is longer than {LIMIT // 1024 // 1024} MiB")])
    draft = nginx.convert(data, name, path) if source == "nginx" else SOURCES[source](data, name)
    return finished(draft, name)
