"""A fault thrown into each background task of a gateway: each goes on, does its work, and is listed in status."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gateway import app as app_module
from gateway import config as files
from gateway.admin import status
from gateway.admin.peers import Peers
from gateway.app import Gateway
from gateway.config import source
from gateway.http.messages import Request
from gateway.providers import Update
from gateway.registries import RegistryError
from gateway.runtime import background
from gateway.runtime.background import Task
from tests.unit.upstreams.test_store import ONE, until

CONFIG = """\
version: 1
admin: {{bind: "127.0.0.1:9"}}
access_log: {{path: {folder}/access.log, format: json}}
discovery:
  wait: 0s
  snapshot: {folder}/endpoints.json
  consul: {{address: "http://127.0.0.1:1", registration: {{service: gw, address: 192.0.2.1, port: 80}}}}
defaults: {{health: {{path: /healthz}}}}
upstreams:
  users: {{consul: user-svc}}
routes:
  - {{name: {route}, match: {{prefix: /users}}, upstream: users}}
"""
TASKS = [
    "status for other workers",
    "access log",
    "metrics",
    "configuration",
    "endpoints file",
    "registration",
    "announcer",
    "store",
    "provider users",
    "health checks",
    "sweep",
    "overload",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "gateway.yaml").write_text(CONFIG.format(folder=tmp_path, route="first"))
    return tmp_path


@pytest.fixture
def gateway(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(app_module, "SWEEP", 0.01)
    monkeypatch.setattr(app_module, "SAVE", 0.01)
    path = f"{folder}/gateway.yaml"
    made = Gateway(files.load(path, {}), source.parse(path))
    assert made.admin is not None
    made.admin.host(str(folder / "run"), None, None)
    made.start()
    yield made
    made.stop()
    gevent.sleep(0)
    assert list(made.background) == []


def task(gateway: Gateway, name: str) -> Task:
    (found,) = (one for one in gateway.background if one.name == name)
    return found


def hit(gateway: Gateway, name: str, error: BaseException) -> None:
    """Throw a fault into a task until it has begun again. One that is caught on the way (a failed question to
    the registry, a failed look at the file) is reported there, and does not restart it."""
    found = task(gateway, name)
    before = found.restarts
    with gevent.Timeout(10, AssertionError(f"{name} was not started again")):
        while found.restarts == before:
            # What is thrown at a greenlet that never ran would end it unseen.
            gevent.sleep(0.001)
            found._greenlet.kill(error, block=False)
            with gevent.Timeout(0.3, False):
                while found.restarts == before:
                    gevent.sleep(0.001)
    assert not found.dead
    assert str(error) in found.last_error


def ask(gateway: Gateway) -> None:
    request = Request(b"GET", b"/users", [(b"Host", b"a")], time.monotonic(), "192.0.2.1", host=b"a")
    gateway.finish(request, gateway.handle(request), 0, None)


def told(gateway: Gateway) -> dict[str, Any]:
    assert gateway.admin is not None
    _, body = gateway.admin._status(Request(b"GET", b"/-/status", [], 0.0))
    found: dict[str, Any] = json.loads(body)
    return found


def test_every_task_is_listed(gateway: Gateway) -> None:
    (worker,) = told(gateway)["workers"]
    assert [one["name"] for one in worker["background"]] == TASKS
    for one in worker["background"]:
        assert one == {"name": one["name"], "running": True, "restarts": 0, "error": "", "error_at": None}


@pytest.mark.parametrize("error", [RuntimeError("thrown in"), gevent.Timeout(7)], ids=["fault", "timeout"])
@pytest.mark.parametrize("name", TASKS)
def test_each_goes_on_after_a_fault(gateway: Gateway, folder: Path, name: str, error: BaseException) -> None:
    for _ in range(3):
        hit(gateway, name, error)
    listed = {one["name"]: one for one in told(gateway)["workers"][0]["background"]}
    assert listed.keys() == set(TASKS)
    assert all(one["running"] for one in listed.values())
    WORK[name](gateway, folder)


# What each task does, seen from outside after it was hit.


def _status(gateway: Gateway, folder: Path) -> None:
    other = Peers(str(folder / "run"), 1, tuple)
    (_, answer) = other.ask()
    assert answer[0]["slot"] == 0


def _access_log(gateway: Gateway, folder: Path) -> None:
    ask(gateway)
    until(lambda: (folder / "access.log").read_text().count("\n") == 1)


def _metrics(gateway: Gateway, folder: Path) -> None:
    assert gateway.admin is not None
    assert gateway.admin.metrics is not None
    flushed = gateway.admin.metrics._flushed
    until(lambda: gateway.admin.metrics._flushed > flushed)  # type: ignore[union-attr]


def _configuration(gateway: Gateway, folder: Path) -> None:
    (folder / "new").write_text(CONFIG.format(folder=folder, route="second"))
    (folder / "new").rename(folder / "gateway.yaml")
    until(lambda: gateway.store.config.routes[0].name == "second")
    assert gateway.config_status.error == ""


def _endpoints_file(gateway: Gateway, folder: Path) -> None:
    gateway.store.emit(Update("users", (ONE,)))
    until(lambda: (folder / "endpoints.json").exists() and ONE.host in (folder / "endpoints.json").read_text())


def _registration(gateway: Gateway, folder: Path) -> None:
    assert gateway._registration is not None
    looks: list[bool] = []
    gateway._registration.look = lambda: looks.append(True)  # type: ignore[method-assign]
    until(lambda: looks)


def _announcer(gateway: Gateway, folder: Path) -> None:
    text = CONFIG.format(folder=folder, route="second").replace("service: gw", "service: other")
    gateway.reconfigure(files.loads(text.encode(), "x", {}))
    until(lambda: gateway._registration is not None and gateway._registration._settings.service == "other")


def _store(gateway: Gateway, folder: Path) -> None:
    gateway.store.emit(Update("users", (ONE,)))
    until(lambda: gateway.store.current.groups["users"].candidates)


def _provider(gateway: Gateway, folder: Path) -> None:
    provider: Any = gateway.store.providers["users"]
    asked: list[bool] = []

    class Counting:
        def passing(self, *given: Any) -> Any:
            asked.append(True)
            raise RegistryError("away")

        def close(self) -> None:
            """Nothing is open."""

    provider._registry = Counting()
    until(lambda: asked)


def _health_checks(gateway: Gateway, folder: Path) -> None:
    gateway.store.emit(Update("users", (ONE,)))
    until(lambda: gateway.prober._targets.get("users"))


def _sweep(gateway: Gateway, folder: Path) -> None:
    swept: list[bool] = []
    gateway.transport.expire = lambda: swept.append(True)  # type: ignore[method-assign]
    until(lambda: len(swept) > 1)


def _overload(gateway: Gateway, folder: Path) -> None:
    looked = gateway.overload._last
    until(lambda: gateway.overload._last not in (None, looked))


WORK: dict[str, Callable[[Gateway, Path], None]] = {
    "status for other workers": _status,
    "access log": _access_log,
    "metrics": _metrics,
    "configuration": _configuration,
    "endpoints file": _endpoints_file,
    "registration": _registration,
    "announcer": _announcer,
    "store": _store,
    "provider users": _provider,
    "health checks": _health_checks,
    "sweep": _sweep,
    "overload": _overload,
}


def test_what_a_task_itself_raises_is_listed(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in the sweep")

    gateway.transport.expire = fail  # type: ignore[method-assign]
    until(lambda: task(gateway, "sweep").restarts > 2)
    listed = {one["name"]: one for one in told(gateway)["workers"][0]["background"]}
    assert listed["sweep"]["error"] == "ZeroDivisionError: in the sweep"
    assert listed["sweep"]["error_at"] <= time.time()
    assert listed["sweep"]["restarts"] > 2
    assert caplog.text.count("background task sweep: failed and starts again") == 1


def test_stopping_ends_tasks_that_fail_for_ever(gateway: Gateway) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    gateway.transport.expire = fail  # type: ignore[method-assign]
    until(lambda: task(gateway, "sweep").restarts > 2)
    sweep = task(gateway, "sweep")
    gateway.stop()
    until(lambda: sweep.dead)


def test_status_shows_of_each_worker_its_own(gateway: Gateway) -> None:
    (part,) = (part for part in [status.of_worker(gateway, 3, None, 0.0)])
    found = status.merged([[part], [{**part, "slot": 4, "background": []}]])
    assert [len(worker["background"]) for worker in found["workers"]] == [len(TASKS), 0]
