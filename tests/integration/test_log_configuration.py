"""gunicorn's ways to say where lines go: the gateway's own follow them, and no request's target is told in clear."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_process import GunicornProcess, version
from tests.services import wait_until

CONFIG = """version: 1
routes: [{name: all, match: {prefix: /}, respond: {status: 204}}]
"""
OTHER = CONFIG.replace("all", "other")

# What people copy from gunicorn's documentation.
GIVEN: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"formed": {"format": "FORMED %(levelname)s %(name)s %(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "formed", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["out"]},
    "loggers": {
        name: {"level": "INFO", "handlers": [], "propagate": True} for name in ("gunicorn.error", "gunicorn.access")
    },
}
INI = """
[loggers]
keys=root,error,access
[handlers]
keys=out
[formatters]
keys=formed
[logger_root]
level=INFO
handlers=out
[logger_error]
level=INFO
handlers=
propagate=1
qualname=gunicorn.error
[logger_access]
level=INFO
handlers=out
propagate=0
qualname=gunicorn.access
[handler_out]
class=StreamHandler
formatter=formed
args=(sys.stdout,)
[formatter_formed]
format=FORMED %(levelname)s %(name)s %(message)s
"""


def by_ini(folder: Path) -> list[str]:
    (folder / "log.ini").write_text(INI)
    return ["--log-config", str(folder / "log.ini")]


def by_json(folder: Path) -> list[str]:
    (folder / "log.json").write_text(json.dumps(GIVEN))
    return ["--log-config-json", str(folder / "log.json")]


def by_settings(folder: Path) -> list[str]:
    """With somebody's own settings file, which is what the other ways have no need of."""
    (folder / "mine.py").write_text(f"from gateway.server.settings import *\nlogconfig_dict = {GIVEN!r}\n")
    return ["-c", str(folder / "mine.py")]


@pytest.fixture
def named(tmp_path: Path) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)
    return str(path)


Ways = Callable[[Path], list[str]]


@pytest.mark.parametrize("way", [by_ini, by_json, by_settings])
@pytest.mark.parametrize("worker", ["gateway.server.worker.GatewayWorker", "gevent"])
def test_own_lines_follow_and_gunicorns_access_log_stays_off(
    tmp_path: Path, named: str, way: Ways, worker: str
) -> None:
    with GunicornProcess(tmp_path, named, *way(tmp_path), "-k", worker) as gateway:
        for text, signals in ((OTHER, ()), (CONFIG, (signal.SIGHUP,))):
            for number in signals:
                before = gateway.pids()
                gateway.server.send(number)
                wait_until(lambda old=before: gateway.serves() and not set(old) & set(gateway.pids()), "it is replaced")  # type: ignore[misc]
            assert gateway.get("/x?access_token=SECRET")[0] == 204
            Path(named).write_text(text)
            gateway.logged(f" -> {version(text)}")
        assert gateway.server.stop() == 0
        output, requests = gateway.output(), gateway.requests()
    lines = output.splitlines()
    assert "SECRET" not in output
    assert [line["target"] for line in requests].count("/x?access_token=***") == 2
    changes = [line for line in lines if " -> " in line]
    assert len(changes) == 2
    assert all(line.startswith("FORMED INFO gateway.upstreams.store configuration ") for line in changes)
    if worker != "gevent":
        assert "FORMED INFO gunicorn.error Door: direct" in lines


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """What has come to a syslog server at `log` so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.setblocking(False)
        seen: list[str] = []

        def read() -> list[str]:
            try:
                while True:
                    seen.append(server.recv(65536).decode(errors="replace"))
            except BlockingIOError:
                return seen

        yield read


def test_own_lines_go_to_syslog_and_gunicorns_access_log_does_not(
    tmp_path: Path, named: str, syslog: Callable[[], list[str]]
) -> None:
    flags = ["--log-syslog", "--log-syslog-to", f"unix://{tmp_path}/log#dgram", "--log-syslog-prefix", "gw"]
    with GunicornProcess(tmp_path, named, *flags) as gateway:
        assert gateway.get("/x?access_token=SECRET")[0] == 204
        Path(named).write_text(OTHER)
        wait_until(lambda: any(" -> " in line for line in syslog()), "the change is there")
        before = gateway.pids()
        gateway.server.send(signal.SIGHUP)
        wait_until(lambda: gateway.serves() and not set(before) & set(gateway.pids()), "the worker is replaced")
        assert gateway.get("/x?access_token=SECRET")[0] == 204
        Path(named).write_text(CONFIG)
        wait_until(lambda: sum(" -> " in line for line in syslog()) == 2, "so is that after a reload")
        assert gateway.server.stop() == 0
        output = gateway.output()
    told = syslog()
    assert "SECRET" not in "".join(told) + output
    assert all("gunicorn.gw.error: " in line for line in told)
    assert any(line.rstrip("\0").endswith("Door: direct") for line in told)
