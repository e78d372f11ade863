"""Where the configuration is: a local file, a key of a registry, or both.

Rule: GATEWAY_CONFIG names it, else ./conf/gateway.yaml, else /etc/gateway/gateway.yaml. A
key is `consul://host:port/key` or `etcd://host:port/key`; with a file before it, joined by a
comma, the file says all that may not come from a registry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from gateway.config.document import LIMIT
from gateway.errors import ConfigError, Mistake

PLACES = (os.path.join("conf", "gateway.yaml"), "/etc/gateway/gateway.yaml")
REGISTRIES = ("consul://", "etcd://")
_PORTS = {"consul": 8500, "etcd": 2379}


@dataclass(frozen=True, slots=True)
class Key:
    """A key that holds a document. `registry`: consul or etcd; `place`: `host:port`."""

    registry: str
    place: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}://{self.place}/{self.name}"


@dataclass(frozen=True, slots=True)
class Where:
    """`named`: as it was given, which is what messages call it."""

    named: str
    file: str | None = None
    key: Key | None = None

    def absolute(self) -> str:
        """The same for a process in another directory."""
        parts = [] if self.file is None else [os.path.abspath(self.file)]
        return ",".join([*parts, str(self.key)] if self.key is not None else parts)


def find(environ: Mapping[str, str]) -> str:
    """What names the configuration; ConfigError when there is none."""
    named = environ.get("GATEWAY_CONFIG")
    if named:
        return named
    for place in PLACES:
        if os.path.exists(place):
            return place
    told = f"no configuration: set GATEWAY_CONFIG, or write ./{PLACES[0]} or {PLACES[1]}"
    raise ConfigError(told, [Mistake(0, 0, "", told)])


def parse(named: str) -> Where:
    """What a name stands for; ConfigError when it stands for nothing."""
    if not any(registry in named for registry in REGISTRIES) and ("," not in named or os.path.exists(named)):
        return Where(named, file=named)
    file: str | None = None
    key: Key | None = None
    for part in (part.strip() for part in named.split(",")):
        if part.startswith(REGISTRIES):
            if key is not None:
                raise _refused(named, "two keys of registries (one)")
            key = _key(named, part)
        elif not part or file is not None:
            raise _refused(named, "several files (a file, a key of a registry, or one of each joined by a comma)")
        else:
            file = part
    return Where(named, file, key)


def _key(named: str, part: str) -> Key:
    allowed = "consul://host:8500/key, etcd://host:2379/key"
    try:
        url = urlsplit(part)
        port = url.port or _PORTS[url.scheme]
    except ValueError as error:
        raise _refused(named, f"{error} ({allowed})") from error
    if "@" in url.netloc:
        raise _refused(named, "no user and password here (a local file's discovery section, or the environment)")
    # etcd's keys may begin with a slash, and as a rule do: the second of two is the key's.
    name = unquote(url.path.removeprefix("/"))
    if not url.hostname or not name or url.query or url.fragment:
        raise _refused(named, f"{part} names no key ({allowed})")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return Key(url.scheme, f"{host}:{port}", name)


def read(path: str) -> bytes:
    """The bytes of a local file, at most one more than a configuration may have."""
    try:
        with open(path, "rb") as file:
            return file.read(LIMIT + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from error


def _refused(path: str, message: str) -> ConfigError:
    return ConfigError.found(path, [Mistake(0, 0, "", message)])
