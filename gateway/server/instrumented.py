"""Who has replaced, wrapped or overridden what answers requests: middlewares, agents, subclasses.

Rule: types and functions are compared as they really are. A transparent proxy (wrapt, which New Relic and Datadog use)
passes for what it wraps in everything but `type()`, and an agent may have patched Flask before this package was loaded:
so what counts is where the code of each step was written.
"""

from __future__ import annotations

from collections.abc import Collection
from types import FunctionType, MethodType
from typing import Any, NamedTuple

# What Flask runs for each request: whoever replaces one of these wants to see all of them.
STEPS = (
    "__call__",
    "wsgi_app",
    "request_context",
    "full_dispatch_request",
    "preprocess_request",
    "dispatch_request",
    "make_response",
    "finalize_request",
    "process_response",
    "do_teardown_request",
    "do_teardown_appcontext",
)
# What a server can call directly has these methods.
_DOOR = ("handle", "answer", "finish", "direct_door")


class Replaced(NamedTuple):
    """One step that somebody has replaced. `inside`: only what goes through Flask comes to it."""

    step: str
    by: str
    inside: bool

    def __str__(self) -> str:
        return f"{self.step} was replaced by {self.by}"


def replaced(app: object, door: type, homes: Collection[str]) -> list[Replaced]:
    """The steps of a Flask app that are not as Flask and `door`, the class that stands in front of it, have written
    them. `homes`: the names of the modules that may have written one."""
    found = []
    own = vars(app)
    for step in STEPS:
        if step in own:
            found.append(Replaced(step, author(own[step]), step not in ("__call__", "wsgi_app")))
        for kind in type(app).__mro__:
            code = vars(kind).get(step)
            if code is None or kind is object or (type(code) is FunctionType and _home(code) in homes):
                continue
            # `__call__` leads to the door in any case, and so does a wsgi_app in front of it.
            inside = step != "__call__" and not (step == "wsgi_app" and issubclass(kind, door))
            found.append(Replaced(step, author(code), inside))
    return found


def wrapper(app: object) -> str:
    """Who has put a transparent proxy around an application that a server could call directly; "" when nobody has."""
    return "" if all(hasattr(type(app), name) for name in _DOOR) else author(app)


def author(code: Any) -> str:
    """The module that wrote a callable; for one that wraps another, the module of the wrapper."""
    # wrapt's proxies keep here what they call in place of what they wrap.
    inner = getattr(code, "_self_wrapper", code)
    if type(inner) is MethodType:
        inner = inner.__func__
    if type(inner) is FunctionType:
        return _home(inner)
    name = type(inner).__module__
    # That of a proxy is a property, which speaks of what it wraps.
    return name if isinstance(name, str) else type(inner).__name__


def _home(code: FunctionType) -> str:
    return str(code.__globals__.get("__name__", "?"))
