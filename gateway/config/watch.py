"""Which configuration is in force, and what is wrong with a newer one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """`loaded_at`, `error_at`: Unix time. `error`: why what stands in `path` now is not in
    force, "" when it is; it says every mistake, one a line."""

    version: str
    path: str
    loaded_at: float
    error: str = ""
    error_at: float | None = None
