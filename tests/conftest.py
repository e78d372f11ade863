from gevent import monkey

monkey.patch_all()

"""What every test shares. Rule: gevent has patched before anything else is imported."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Tests run against this checkout, installed or not.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests import patterns, services

# Before anything of the gateway is imported: a test at the end of the run looks at all of them.
patterns.record()
patterns.record_re2()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: runs behind all other tests, whose traces it looks at")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say by name, last and in colour, which servers were missing: a skip must not pass for a success."""
    if not services.missed:
        return
    terminalreporter.section("WHAT COULD NOT BE HAD", red=True, bold=True)
    for name, tests in sorted(services.missed.items()):
        terminalreporter.line(f"{name}: {len(tests)} test(s) SKIPPED; {services.HOW[name]}", red=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def consul() -> Iterator[services.Consul]:
    """A Consul agent in dev mode on ephemeral ports, one for the whole run."""
    with services.Consul.start() as agent:
        yield agent
