"""What the environment sets over the file.

Rule: flags beat environment beats file; a variable that is empty says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from gateway.config import kinds
from gateway.errors import Mistake


@dataclass(frozen=True, slots=True)
class Overrides:
    """None: the environment says nothing of it."""

    trusted_proxies: tuple[str, ...] | None
    consul_address: str | None
    consul_token: str | None
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
        consul_token=environ.get("CONSUL_HTTP_TOKEN") or None,
        admin=read("GATEWAY_ADMIN", admin),
        admin_token=read("GATEWAY_ADMIN_TOKEN", kinds.bearer_token),
    )
    return found, mistakes


def _trusted(value: str) -> tuple[str, ...]:
    return tuple(kinds.trusted(word) for word in re.split(r"[\s,]+", value.strip()))


def admin(value: str) -> str:
    """What GATEWAY_ADMIN and `gateway run --admin` take."""
    return value if value == "off" else kinds.admin_bind(value)


def _address(value: str) -> str:
    """Consul's own tools take `host:port` for `http://host:port`."""
    return kinds.registry(value if "://" in value else f"http://{value}")
