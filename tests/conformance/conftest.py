"""The same questions through every door: a test that takes `scene` runs once for each.

A module names its scene (`SCENE`, a key of `scenes.SCENES`); gateways are started when first asked for and
live until the run ends. What gunicorn's own worker cannot do is in `stock_worker_limits.LIMITS` alone; tests of
it (`@stock_limit(label)`) are expected to fail there, and a limit that no longer holds fails the run.

With TLS on the client's side every test runs, but of a long list of parameters only some; with TLS on the
upstream's side the modules run that say so (`UPSTREAM_TLS`). What cannot be under TLS says why
(`@pytest.mark.no_tls`, `no_upstream_tls`).

The WSGI door parses the same bytes with the same parser as the direct one. In modules whose tables are about that
parser (`WSGI_SAMPLED`) it runs a sample of each list of parameters; a test whose values go through the environ runs
them all (`@pytest.mark.whole_wsgi`). With --long every door runs everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.runtime.hub import breathe
from gateway.testing import FakeUpstream
from tests.conformance.harness import Door, Scene, doors, tls_doors
from tests.conformance.harness import scene as started
from tests.conformance.scenes import SCENES

# Of the parameters of one test, so many run under TLS and at the WSGI door: the first, the last, and some between.
TLS_SAMPLE = 2
WSGI_SAMPLE = 3

Get = Callable[[str, Door], Scene]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xfail_on_stock_worker(reason): gunicorn's own worker cannot do it (stock_limit)")
    config.addinivalue_line("markers", "own_worker(reason, door=None): only our own worker is asked, or one door of it")
    config.addinivalue_line("markers", "no_tls(reason): not by clients that speak TLS")
    config.addinivalue_line("markers", "no_upstream_tls(reason): not with upstreams that speak TLS")
    config.addinivalue_line("markers", "whole_wsgi(reason): every parameter at the WSGI door, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        chosen = [door for door in doors() + tls_doors() if _fits(door, metafunc)]
        metafunc.parametrize("door", chosen, ids=[door.name for door in chosen], scope="session")


def _fits(door: Door, metafunc: pytest.Metafunc) -> bool:
    marker = metafunc.definition.get_closest_marker
    own = marker("own_worker")
    if own is not None and (not door.own or own.kwargs.get("door", door.name) != door.name):
        return False
    if door.tls and marker("no_tls"):
        return False
    return not door.upstream_tls or (getattr(metafunc.module, "UPSTREAM_TLS", False) and not marker("no_upstream_tls"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Test and size of the sample -> its parameters at the doors where not all of them run.
    sampled: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        door = callspec.params.get("door") if callspec else None
        if not isinstance(door, Door):
            continue
        if not config.getoption("long") and (size := _sample_size(door, item)):
            sampled.setdefault((item.nodeid.partition("[")[0], size), []).append(item)
        if not door.own:
            for marker in item.iter_markers("xfail_on_stock_worker"):
                item.add_marker(pytest.mark.xfail(reason=marker.args[0], strict=True))
    dropped = {item for (_, size), same in sampled.items() for item in same if item not in _sample(same, size)}
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


def _sample_size(door: Door, item: pytest.Item) -> int:
    """How many parameters of a test run at this door; 0: all."""
    if door.tls:
        return TLS_SAMPLE
    whole = door.name != "wsgi" or item.get_closest_marker("whole_wsgi")
    return WSGI_SAMPLE if not whole and getattr(getattr(item, "module", None), "WSGI_SAMPLED", False) else 0


def _sample(same: list[pytest.Item], size: int) -> list[pytest.Item]:
    """Evenly spread over a list, its ends included."""
    if len(same) <= size:
        return same
    return [same[round(number * (len(same) - 1) / (size - 1))] for number in range(size)]


@pytest.fixture(scope="session")
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    running: dict[tuple[str, str], Scene] = {}
    with ExitStack() as stack:

        def get(name: str, door: Door) -> Scene:
            key = (name, door.name)
            if key not in running:
                config, upstreams = SCENES[name]
                folder = tmp_path_factory.mktemp(f"{name}-{door.name}")
                running[key] = stack.enter_context(started(config, upstreams, folder, door))
            return running[key]

        yield get


@pytest.fixture
def scene(request: pytest.FixtureRequest, _scenes: Get, door: Door) -> Iterator[Scene]:
    """The module's gateway with every upstream as new; at the end: nothing but HTTP/1.1 reached them."""
    now = _scenes(request.module.SCENE, door)
    # What the test before left in the upstreams' sockets is theirs before they forget.
    breathe()
    for fake in now.upstreams.values():
        fake.forget()
    yield now
    assert {name: fake.violations for name, fake in now.upstreams.items() if fake.violations} == {}


@pytest.fixture
def upstream(scene: Scene) -> FakeUpstream:
    return scene.upstreams["main"]
