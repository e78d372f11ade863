"""Which module may import which: the architecture as data, read from the source with ast.

Rule: a wing that is not in the table fails, so that a new one is placed on purpose. Imports inside functions and
those under `if TYPE_CHECKING:` count, too: who needs a type knows the module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeGuard

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gateway"

# From the ground up. A module imports its own wing and lower floors, nothing on its own floor or above. Modules at
# the root of the package count as wings of one file.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "patterns", "runtime"),
    ("model", "net"),
    ("http", "registries"),
    ("routing", "health", "transport", "buffers", "telemetry"),
    ("config", "balancers", "hosting"),
    ("providers", "importers", "server"),
    ("upstreams",),
    ("forwarding", "checks", "admin"),
    ("commands", "flask_answers"),
    ("flask_door",),
    ("app", "testing"),
    ("__init__", "__main__"),
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS, 1) for wing in wings}
# At the root of the package, `__init__` and `__main__` included.
MOST_AT_THE_ROOT = 8

# They take all they need as arguments: no clock, no socket, no framework. Modules or wings.
PURE = {"errors", "model", "patterns", "routing", "net.ip", "forwarding.retry", "forwarding.replay"}
PURE |= {f"http.{name}" for name in ("messages", "target", "request_head", "trusted_proxies", "problem", "upgrades")}
PURE |= {"upstreams.snapshot", "forwarding.route_actions"}
PURE |= {f"commands.{name}" for name in ("wording", "imagined_request", "explain", "diff")}
BANNED_IN_PURE = {"urllib3", "flask", "gevent", "gunicorn", "os", "socket", "time", "ssl", "threading", "subprocess"}

# They read the clock, and are otherwise like them: the transport is an argument.
PURE_BUT_TIME = {"forwarding.forwarder", "forwarding.attempt", "forwarding.attempts"}

# Library -> which wings or modules alone may import it. The fakes of testing stand in for anything.
OWNERS: dict[str, set[str]] = {
    "re2": {"patterns"},
    "urllib3": {"transport", "registries"},
    "gunicorn": {"server", "hosting"},
    "flask": {"flask_door", "flask_answers"},
    "werkzeug": {"flask_door", "flask_answers"},
    "click": {"commands.cli"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "yaml": {"config"},
    "consul": {"providers", "registries"},
    "dns": {"registries"},
    "httptools": {"transport", "server", "registries"},
    "prometheus_client": {"telemetry", "admin"},
    "gevent": {
        "runtime",
        "net",
        "registries",
        "health.overload",
        "health.gate",
        "transport",
        "buffers",
        "telemetry",
        "config.remote_key",
        "config.watch",
        "hosting",
        "providers",
        "server",
        "upstreams",
        "forwarding.hedge",
        "forwarding.kept",
        "forwarding.mirror",
        "checks",
        "admin",
        "commands.cli",  # to patch, for `check --live`
        "commands.live_check",
        "app",
    },
}


def imports(source: str, module: str, package: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that the source of `module` imports, by its absolute name, and whether the import runs (it does
    not under `if TYPE_CHECKING:`)."""
    here = module.split(".") if package else module.split(".")[:-1]
    tree = ast.parse(source)
    idle = {id(node) for branch in ast.walk(tree) if _type_checking(branch) for each in branch.body for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in idle) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                # `from gateway.http import target` imports gateway.http.target: told apart by what there is.
                full = f"{target}.{alias.name}"
                yield full if target == "gateway" or full in MODULES else target, id(node) not in idle


def _type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is(name: str, table: set[str]) -> bool:
    """Whether a table names a module, or its wing."""
    return name in table or name.partition(".")[0] in table


def faults(name: str, source: str, package: bool = False) -> list[str]:
    """What one module imports against the rules; `name` is without `gateway.`."""
    own = name.partition(".")[0]
    if own not in FLOOR:
        return [f"{name}: place {own} in FLOORS (tests/project/test_imports.py)"]
    found = []
    full = "gateway" if name == "__init__" else f"gateway.{name}"
    for target, runs in imports(source, full, package or name == "__init__"):
        top, _, rest = target.partition(".")
        if top == "gateway":
            theirs = rest.partition(".")[0] or "__init__"
            if theirs != own and FLOOR.get(theirs, len(FLOORS)) >= FLOOR[own]:
                found.append(f"{name} imports {target}")
            continue
        if not runs:
            continue
        pure, but_time = _is(name, PURE), _is(name, PURE_BUT_TIME)
        if top in BANNED_IN_PURE and (pure or (but_time and top != "time")):
            found.append(f"{name} is pure and imports {top}")
        if top in OWNERS and own != "testing" and not _is(name, OWNERS[top]):
            found.append(f"{name} imports {top}, which is for {', '.join(sorted(OWNERS[top]))}")
    return found


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another, directly or by others, by `graphlib`."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found.append((".".join(parts), path))
    return found


MODULES = {f"gateway.{name}" for name, _ in modules()}


@pytest.mark.parametrize(("name", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_follow_the_architecture(name: str, path: Path) -> None:
    assert faults(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == []


def test_no_modules_import_one_another() -> None:
    """The lazy names of `gateway/__init__.py` are for users of the package."""
    arrows = {}
    for name, path in modules():
        full = f"gateway.{name}"
        source = path.read_text(encoding="utf-8")
        found = {target for target, _ in imports(source, full, path.name == "__init__.py")} & MODULES
        arrows[full] = found - {full, "gateway.__init__"}
    assert circles(arrows) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert len(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == 1


def test_few_files_stand_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_ROOT


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("errors", "from gateway.model import Route", "errors imports gateway.model"),
        ("http.request_head", "import socket", "http.request_head is pure and imports socket"),
        ("http.request_head", "def f():\n    from time import monotonic", "http.request_head is pure and imports time"),
        ("forwarding.forwarder", "import time\nimport gevent", "forwarding.forwarder is pure and imports gevent"),
        ("transport.pool", "from gateway.forwarding import retry", "transport.pool imports gateway.forwarding.retry"),
        ("transport.pool", "from ..forwarding.retry import pause", "transport.pool imports gateway.forwarding.retry"),
        ("transport.pool", "from gateway.health import gate", "transport.pool imports gateway.health.gate"),
        ("providers.consul", "from gateway import app", "providers.consul imports gateway.app"),
        ("providers.consul", "from .. import upstreams", "providers.consul imports gateway.upstreams"),
        ("health.outlier", "try:\n    import flask\nexcept ImportError:\n    raise", "imports flask"),
        ("app", "import gunicorn.arbiter", "imports gunicorn"),
        ("server.worker", "if TYPE_CHECKING:\n    from gateway.app import Gateway", "server.worker imports gateway.app"),
        ("routing.router", "if TYPE_CHECKING:\n    pass\nelse:\n    import gevent", "routing.router is pure and imports gevent"),
        ("helpers", "", "place helpers in FLOORS"),
    ],
)
def test_a_fault_is_found(name: str, source: str, fault: str) -> None:
    assert any(fault in found for found in faults(name, source)), faults(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("forwarding.retry", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gevent"),
        ("providers.consul", "from gateway.providers.base import Update\nfrom . import base\nimport consul.base"),
        ("server.settings", "from gateway.config import load"),
        ("app", "import gevent\nfrom gateway.transport import Transport"),
        ("flask_door", "import flask\nfrom gateway.server import wsgi_environ"),
        ("transport.pool", "import urllib3"),
    ],
)
def test_what_is_allowed_is_no_fault(name: str, source: str) -> None:
    assert faults(name, source) == []
