"""The same questions through every door: a test that takes `scene` runs once for each.

A module names its scene (`SCENE`, a key of `scenes.SCENES`); gateways are started when first asked for and
live until the run ends. `@case("16")` ties a test to a case; what gunicorn's own worker cannot do is in
`stock_worker_limits.LIMITS` alone, and expected to fail there: a limit that no longer holds fails the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.testing import FakeUpstream
from tests.conformance.harness import Door, Scene, doors
from tests.conformance.harness import scene as started
from tests.conformance.scenes import SCENES
from tests.conformance.stock_worker_limits import LIMITS

Get = Callable[[str, Door], Scene]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(number): the case that the test shows")
    config.addinivalue_line("markers", "own_worker(reason, door=None): only our own worker is asked, or one door of it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        own = metafunc.definition.get_closest_marker("own_worker")
        only = own.kwargs.get("door") if own is not None else None
        chosen = [door for door in doors() if (door.own or own is None) and only in (None, door.name)]
        metafunc.parametrize("door", chosen, ids=[door.name for door in chosen], scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        door = callspec.params.get("door") if callspec else None
        if door is None or door.own:
            continue
        for marker in item.iter_markers("case"):
            if marker.args[0] in LIMITS:
                item.add_marker(pytest.mark.xfail(reason=LIMITS[marker.args[0]], strict=True))


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
