"""Which configuration is in force, and what is wrong with a newer one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import gevent

Result = TypeVar("Result")


def off_hub(call: Callable[[], Result]) -> Result:
    """What a call returns or raises; it is made on a thread, so that requests go on."""

    def guarded() -> tuple[Result | None, Exception | None]:
        # gevent prints a traceback for whatever a thread raises.
        try:
            return call(), None
        except Exception as error:
            return None, error

    result: Result
    result, error = gevent.get_hub().threadpool.apply(guarded)
    if error is not None:
        raise error
    return result


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """`loaded_at`, `error_at`: Unix time. `error`: why what stands in `path` now is not in
    force, "" when it is; it says every mistake, one a line."""

    version: str
    path: str
    loaded_at: float
    error: str = ""
    error_at: float | None = None
