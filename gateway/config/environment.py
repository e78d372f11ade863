"""What the environment sets over the file.

Rule: flags beat environment beats file; a variable that is empty says nothing. The variables of Consul's own tools mean
what they mean there (developer.hashicorp.com/consul/commands#environment-variables).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from gateway.config import scalar_types
from gateway.errors import Mistake
from gateway.model import ConsulTls

# Characters of a token or of certificates.
MOST_CONTENT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Overrides:
    """None: the environment says nothing of it."""

    trusted_proxies: tuple[str, ...] | None
    consul_address: str | None
    consul_token: str | None
    consul_tls: ConsulTls
    # Where the admin listener is, as `gateway run --admin` has it; "off": nowhere.
    admin: str | None
    admin_token: str | None


def overrides(environ: Mapping[str, str]) -> tuple[Overrides, list[Mistake]]:
    """What is set, and what is wrong with it."""
    mistakes: list[Mistake] = []

    def read(name: str, kind: Callable[[str], Any]) -> Any:
        value = environ.get(name, "")
        if not value:
            return None
        try:
            return kind(value)
        except PydanticCustomError as error:
            mistakes.append(Mistake(0, 0, name, f"{error.message()} (environment)"))
            return None

    found = Overrides(
        trusted_proxies=read("GATEWAY_TRUSTED_PROXIES", _trusted),
        consul_address=read("CONSUL_HTTP_ADDR", _address),
        # The file beats the variable with the token itself (Consul's api.NewClient).
        consul_token=read("CONSUL_HTTP_TOKEN_FILE", _token_in) or environ.get("CONSUL_HTTP_TOKEN") or None,
        consul_tls=ConsulTls(
            required=bool(read("CONSUL_HTTP_SSL", _flag)),
            ca=read("CONSUL_CACERT", _readable),
            cert=read("CONSUL_CLIENT_CERT", _readable),
            key=read("CONSUL_CLIENT_KEY", _readable),
            verify=read("CONSUL_HTTP_SSL_VERIFY", _flag) is not False,
        ),
        admin=read("GATEWAY_ADMIN", admin),
        admin_token=read("GATEWAY_ADMIN_TOKEN", scalar_types.bearer_token),
    )
    names = ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY")
    for name, other in (names, names[::-1]):
        if environ.get(name) and not environ.get(other):
            mistakes.append(Mistake(0, 0, name, f"needs {other} as well (environment)"))
    return found, mistakes


def _trusted(value: str) -> tuple[str, ...]:
    return tuple(scalar_types.trusted(word) for word in re.split(r"[\s,]+", value.strip()))


def admin(value: str) -> str:
    """What GATEWAY_ADMIN and `gateway run --admin` take."""
    return value if value == "off" else scalar_types.admin_bind(value)


def _flag(value: str) -> bool:
    """What Go's strconv.ParseBool takes, as Consul's tools do."""
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise scalar_types.wrong("is neither true nor false")


def _readable(path: str) -> str:
    """A file, which is read anew for each connection."""
    _content(path)
    return path


def _token_in(path: str) -> str:
    token = _content(path).strip()
    if not token.isprintable():
        raise scalar_types.wrong(f"{path} holds no token")
    return token


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MOST_CONTENT)
    except OSError as error:
        raise scalar_types.wrong(f"{path} cannot be read: {error.strerror or error}") from error


def _address(value: str) -> str:
    """Consul's own tools take `host:port` for `http://host:port`."""
    return scalar_types.registry(value if "://" in value else f"http://{value}")
