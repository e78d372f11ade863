"""The same questions through every door: a test that takes `scene` runs once for each.

A module names its scene (`SCENE`, a key of `scenes.SCENES`); gateways are started when first asked for and
live until the run ends. `@case("16")` ties a test to a case; what gunicorn's own worker cannot do is in
`stock_worker_limits.LIMITS` alone, and expected to fail there: a limit that no longer holds fails the run.

With TLS on the client's side every test runs, but of a long list of parameters only some; with TLS on the
upstream's side the modules run that say so (`UPSTREAM_TLS`). What cannot be under TLS says why
(`@pytest.mark.no_tls`, `no_upstream_tls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.testing import FakeUpstream
from tests.conformance.harness import Door, Scene, doors, tls_doors
from tests.conformance.harness import scene as started
from tests.conformance.scenes import SCENES
from tests.conformance.stock_worker_limits import LIMITS

# Of the parameters of one test, so many are asked under TLS: the first, the last, and some between.
TLS_SAMPLE = 2

Get = Callable[[str, Door], Scene]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(number): the case that the test shows")
    config.addinivalue_line("markers", "own_worker(reason, door=None): only our own worker is asked, or one door of it")
    config.addinivalue_line("markers", "no_tls(reason): not by clients that speak TLS")
    config.addinivalue_line("markers", "no_upstream_tls(reason): not with upstreams that speak TLS")


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
    under_tls: dict[str, list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        door = callspec.params.get("door") if callspec else None
        if not isinstance(door, Door):
            continue
        if door.tls:
            under_tls.setdefault(item.nodeid.partition("[")[0], []).append(item)
        if not door.own:
            for marker in item.iter_markers("case"):
                if marker.args[0] in LIMITS:
                    item.add_marker(pytest.mark.xfail(reason=LIMITS[marker.args[0]], strict=True))
    dropped = {item for same in under_tls.values() for item in same if item not in _sample(same)}
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


def _sample(same: list[pytest.Item]) -> list[pytest.Item]:
    """Evenly spread over a list, its ends included."""
    if len(same) <= TLS_SAMPLE:
        return same
    return [same[round(number * (len(same) - 1) / (TLS_SAMPLE - 1))] for number in range(TLS_SAMPLE)]


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
    for fake in now.upstreams.values():
        fake.forget()
    yield now
    assert {name: fake.violations for name, fake in now.upstreams.items() if fake.violations} == {}


@pytest.fixture
def upstream(scene: Scene) -> FakeUpstream:
    return scene.upstreams["main"]
