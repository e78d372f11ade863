"""Which module may import which: the architecture as data, read from the source with ast.

Rule: a module that is not in the tables fails, so that a new one is placed on purpose.
Imports inside functions count; those under `if TYPE_CHECKING:` do not, as nothing runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gateway"

ANYTHING = {"*"}
VALUES = {"errors", "model"}
EXCHANGE = VALUES | {"exchange"}

# Module, or package (all of its modules) -> what of ours it may import, itself always.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "patterns": set(),
    "ip": set(),
    "machine": {"ip"},
    "model": {"patterns"},
    "log_lines": {"errors"},
    # pure
    "trust": VALUES,
    "target": VALUES | {"patterns"},
    "exchange": VALUES,
    "retry": EXCHANGE,
    "replay": EXCHANGE,
    "kept": EXCHANGE,
    "upgrades": EXCHANGE | {"headers"},
    "attempt": EXCHANGE | {"headers", "target", "health", "upgrades"},
    "attempts": EXCHANGE | {"attempt", "target", "retry", "replay", "kept", "health", "upgrades"},
    "headers": EXCHANGE | {"trust"},
    "problem": EXCHANGE,
    "router": VALUES | {"patterns", "target"},
    "snapshot": VALUES | {"router", "target", "health", "turns"},
    "buffers": EXCHANGE | {"stream"},
    "forwarder": EXCHANGE | {"attempt", "attempts", "buffers", "headers", "target", "snapshot", "health"},
    "readings": EXCHANGE | {"router", "target"},
    "shaping": EXCHANGE | {"headers", "problem", "readings", "target", "snapshot", "upgrades"},
    # what commands tell, of the same functions
    "wording": VALUES,
    "asking": EXCHANGE | {"target", "readings", "router", "headers", "wording"},
    "explain": EXCHANGE
    | {"asking", "wording", "config", "server", "trust", "headers", "router", "retry", "forwarder", "snapshot", "health"}
    | {"readings", "shaping", "target", "upgrades"},
    "overlap": VALUES | {"target"},
    "diff": EXCHANGE | {"asking", "wording", "overlap", "target", "router", "telemetry", "shaping"},
    "live_check": VALUES | {"providers", "transport", "health", "wording"},
    # waiting and bytes
    "stream": {"errors"},
    "tunnel": EXCHANGE | {"stream", "turns"},
    "hedge": set(),
    "turns": set(),
    "garbage": set(),
    "alike": VALUES | {"providers"},
    "background": set(),
    "portions": EXCHANGE | {"stream"},
    "transport": EXCHANGE | {"headers", "stream", "portions", "tunnel"},
    "mirror": EXCHANGE | {"forwarder", "hedge", "headers", "health", "snapshot", "target", "transport", "turns"},
    "wsgi": EXCHANGE | {"buffers"},
    "kept_body": EXCHANGE,
    "instrumented": set(),
    "flask_answers": EXCHANGE | {"kept_body", "wsgi"},
    "flask_door": EXCHANGE | {"buffers", "flask_answers", "instrumented", "kept_body", "problem", "target", "telemetry", "wsgi"},
    "server": EXCHANGE | {"buffers", "log_lines", "stream", "portions", "turns", "target", "headers", "problem"}
    | {"instrumented", "kept_body", "wsgi"},
    # gunicorn reads this one: it needs to know what the file says
    "server.settings": {"errors", "model", "server", "config"},
    # what is learnt from elsewhere
    "registries": VALUES | {"turns"},
    "providers": VALUES | {"ip", "machine", "registries", "turns", "garbage"},
    # a key holds a URL, which is read as the file's are
    "providers.etcd": VALUES | {"ip", "machine", "registries", "config", "turns", "garbage"},
    "config": VALUES
    | {"ip", "patterns", "wording", "target", "trust", "router", "readings", "overlap", "registries", "background"}
    | {"turns", "garbage", "machine"},
    "importers": VALUES | {"config", "patterns", "router", "target", "overlap"},
    "store": VALUES | {"ip", "snapshot", "router", "providers", "turns", "garbage", "background", "health"},
    "saved": VALUES | {"ip", "snapshot", "providers", "registries", "turns"},
    "listeners": VALUES | {"ip", "machine"},
    "registration": VALUES | {"registries", "providers", "background"},
    # what hangs on a route or an upstream
    "balancers": EXCHANGE | {"health", "target", "turns"},
    "filters": EXCHANGE,
    "health": EXCHANGE | {"background", "turns"},
    "telemetry": EXCHANGE | {"turns", "background"},
    # where all of it meets
    "testing": ANYTHING,
    "app": ANYTHING,
    "admin": ANYTHING,
    "cli": ANYTHING,
    "__init__": ANYTHING,
    "__main__": {"cli"},
}

# They take all they need as arguments: no clock, no socket, no framework.
PURE = {"errors", "model", "trust", "target", "exchange", "retry", "replay", "headers", "problem", "router", "snapshot"}
PURE |= {"ip", "patterns", "readings", "shaping", "wording", "asking", "explain", "overlap", "diff", "upgrades"}
BANNED_IN_PURE = {"urllib3", "flask", "gevent", "gunicorn", "os", "socket", "time", "ssl", "threading", "subprocess"}

# It reads the clock, and is otherwise like them: the transport is an argument.
PURE_BUT_TIME = {"forwarder", "attempt", "attempts"}

# Library -> who alone may import it. The fakes of testing stand in for anything.
OWNERS: dict[str, set[str]] = {
    "re2": {"patterns"},
    "urllib3": {"transport", "registries"},
    "gunicorn": {"server"},
    "flask": {"flask_door", "flask_answers"},
    "werkzeug": {"flask_door", "flask_answers"},
    "click": {"cli"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "yaml": {"config"},
    "consul": {"providers", "registries"},
    "dns": {"registries"},
    "httptools": {"transport", "server", "registries"},
    "prometheus_client": {"telemetry", "admin"},
    "gevent": {
        "stream",
        "tunnel",
        "hedge",
        "kept",
        "buffers",
        "turns",
        "background",
        "transport",
        "mirror",
        "server",
        "registries",
        "providers",
        "registration",
        "config",
        "store",
        "health",
        "telemetry",
        "live_check",
        "cli",  # to patch, for `check --live`
        "app",
        "admin",
    },
}


def imports(source: str, module: str, package: bool = False) -> Iterator[str]:
    """Every module that the source of `module` imports when it runs, by its absolute name."""
    here = module.split(".") if package else module.split(".")[:-1]
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = ".".join([*base, node.module] if node.module else base)
            # `from gateway import headers` imports gateway.http.request_head: told apart by what there is.
            yield from (f"{target}.{alias.name}" if target == "gateway" else target for alias in node.names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _type_checking(node.test):
            for each in node.orelse:
                yield each
                yield from _running(each)
            continue
        yield node
        yield from _running(node)


def _type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def rule(name: str, table: dict[str, set[str]]) -> set[str] | None:
    """What the table says of a module of ours: of itself, or of its package."""
    return table.get(name, table.get(name.split(".")[0]))


def faults(name: str, source: str, package: bool = False) -> list[str]:
    """What one module imports against the rules; `name` is without `gateway.`."""
    allowed = rule(name, ALLOWED)
    if allowed is None:
        return [f"{name}: place it in ALLOWED (tests/project/test_imports.py)"]
    own = name.split(".")[0]
    found = []
    full = "gateway" if name == "__init__" else f"gateway.{name}"
    for target in imports(source, full, package or name == "__init__"):
        top, _, rest = target.partition(".")
        if top == "gateway":
            theirs = rest.split(".")[0] or "__init__"
            if theirs not in allowed | {own} and allowed is not ANYTHING:
                found.append(f"{name} imports {target}")
            continue
        banned = BANNED_IN_PURE if own in PURE else BANNED_IN_PURE - {"time"} if own in PURE_BUT_TIME else set()
        if top in banned:
            found.append(f"{name} is pure and imports {top}")
        if top in OWNERS and own not in OWNERS[top] | {"testing"}:
            found.append(f"{name} imports {top}, which is for {', '.join(sorted(OWNERS[top]))}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found.append((".".join(parts), path))
    return found


@pytest.mark.parametrize(("name", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_follow_the_architecture(name: str, path: Path) -> None:
    assert faults(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("errors", "from gateway.model import Route", "errors imports gateway.model"),
        ("headers", "import socket", "headers is pure and imports socket"),
        ("headers", "def f():\n    from time import monotonic", "headers is pure and imports time"),
        ("forwarder", "import time\nimport gevent", "forwarder is pure and imports gevent"),
        ("forwarder", "from gateway.transport import Transport", "forwarder imports gateway.transport"),
        ("forwarder", "from gateway import transport", "forwarder imports gateway.transport"),
        ("forwarder", "from .transport.pool import EndpointPool", "forwarder imports gateway.transport.pool"),
        ("providers.consul", "from ..store import Store", "providers.consul imports gateway.upstreams.store"),
        ("providers.consul", "from .. import store", "providers.consul imports gateway.upstreams.store"),
        ("health.outlier", "try:\n    import flask\nexcept ImportError:\n    raise", "imports flask"),
        ("app", "import gunicorn.arbiter", "imports gunicorn"),
        ("server.worker", "from gateway.config import load", "server.worker imports gateway.config"),
        ("router", "if TYPE_CHECKING:\n    pass\nelse:\n    import gevent", "router is pure and imports gevent"),
        ("helpers", "", "place it in ALLOWED"),
    ],
)
def test_a_fault_is_found(name: str, source: str, fault: str) -> None:
    assert any(fault in found for found in faults(name, source)), faults(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("router", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gateway.app import Gateway"),
        ("providers.consul", "from gateway.providers.base import Update\nfrom . import base\nimport consul.base"),
        ("server.settings", "from gateway.config import load"),
        ("app", "import gevent\nfrom gateway.transport import Transport"),
        ("flask_door", "import flask\nfrom gateway import wsgi"),
        ("transport.pool", "import urllib3"),
    ],
)
def test_what_is_allowed_is_no_fault(name: str, source: str) -> None:
    assert faults(name, source) == []
