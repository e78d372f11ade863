"""Where the configuration is: which document, and its bytes.

Rule: GATEWAY_CONFIG names it, else ./conf/gateway.yaml, else /etc/gateway/gateway.yaml.
Only local files can be read so far; the other kinds of source are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from gateway.config.document import LIMIT
from gateway.errors import ConfigError, Mistake

PLACES = (os.path.join("conf", "gateway.yaml"), "/etc/gateway/gateway.yaml")
REGISTRIES = ("consul://", "etcd://")


def find(environ: Mapping[str, str]) -> str:
    """The path of the configuration; ConfigError when there is none."""
    named = environ.get("GATEWAY_CONFIG")
    if named:
        return named
    for place in PLACES:
        if os.path.exists(place):
            return place
    told = f"no configuration: set GATEWAY_CONFIG, or write ./{PLACES[0]} or {PLACES[1]}"
    raise ConfigError(told, [Mistake(0, 0, "", told)])


def read(path: str) -> bytes:
    """The bytes of a local file, at most one more than a configuration may have."""
    for part in path.split(","):
        if part.strip().startswith(REGISTRIES):
            raise _refused(path, f"{part.strip().partition(':')[0]}:// is not in this version (a file)")
    if "," in path and not os.path.exists(path):
        raise _refused(path, "several sources are not in this version (one file)")
    try:
        with open(path, "rb") as file:
            return file.read(LIMIT + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from error


def _refused(path: str, message: str) -> ConfigError:
    return ConfigError.found(path, [Mistake(0, 0, "", message)])
