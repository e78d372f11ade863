from gevent import monkey

monkey.patch_all()

"""What every test shares. Rule: gevent has patched before anything else is imported."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# Tests run against this checkout, installed or not.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests import long, patterns, services

# Before anything of the gateway is imported: a test at the end of the run looks at all of them. With several pytest
# processes at once the file is that of all.
if "TESTS_PATTERNS" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="patterns-")
    os.environ["TESTS_PATTERNS"] = str(Path(_folder.name) / "compiled")
patterns.record(os.environ["TESTS_PATTERNS"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also what takes hours: 1 GiB bodies, the long fuzz and soak")
    parser.addoption(
        "--again",
        action="store_true",
        help="these tests run on another interpreter as well: fewer examples, nothing marked one_interpreter",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: runs behind all other tests, whose traces it looks at")
    config.addinivalue_line("markers", "one_interpreter(reason): not again on other interpreters")
    if config.getoption("again"):
        long.begin_again()
    if config.getoption("long"):
        long.begin()
    # In CI hypothesis has a profile of its own, with the same examples each time.
    usual = settings.get_profile(settings.get_current_profile_name())
    # A busy machine is slow; that is no failure.
    settings.register_profile(
        "tests",
        usual,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=long.times(usual.max_examples),
    )
    settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("again"):
        dropped = [item for item in items if item.get_closest_marker("one_interpreter")]
        items[:] = [item for item in items if item not in set(dropped)]
        config.hook.pytest_deselected(items=dropped)
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
