"""scripts/run as a newcomer uses it: two services with the gateway before them, and all of it gone after."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.services import ROOT, Server, free_port

# Making .venv may be part of it.
PATIENCE = 300.0

SERVICE_PORTS = (9101, 9102, 9103)


@pytest.fixture
def ports() -> Iterator[int]:
    """The gateway's port; the services' are fixed, so that runs of this file on one machine take turns."""
    with (Path(tempfile.gettempdir()) / "wsgi-gateway-demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield free_port()


@pytest.fixture
def demo(ports: int) -> Iterator[Server]:
    server = Server([str(ROOT / "scripts" / "run")], cwd=ROOT, env=environ(ports))
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop(timeout=60)
        server.close()


def environ(port: int) -> dict[str, str]:
    ours = ("GATEWAY_", "GUNICORN_", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PORT": str(port), "WEB_CONCURRENCY": "1", "GATEWAY_ADMIN": "127.0.0.1:0"}


def ask(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_shows_what_a_service_sees_and_leaves_nothing_behind(
    demo: Server, ports: int, number: signal.Signals
) -> None:
    demo.wait_until(lambda: f"http://127.0.0.1:{ports}" in demo.output(), "scripts/run says where it listens", PATIENCE)
    assert len(re.findall(r"^  curl ", demo.output(), re.MULTILINE)) == 3

    hello = {ask(ports, "/hello/world")[1]["instance"] for _ in range(4)}
    assert hello == {"hello-1", "hello-2"}
    status, seen = ask(ports, "/hello/world?a=1")
    assert (status, seen["path"]) == (200, "/world?a=1")

    status, seen = ask(ports, "/echo/%2Fraw?q=1", {"X-Forwarded-For": "6.6.6.6", "Host": "shop.example"})
    assert (status, seen["instance"], seen["path"]) == (200, "echo", "/echo/%2Fraw?q=1")
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-host"] == "shop.example"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["host"] == "shop.example"
    assert headers["x-request-id"]

    assert ask(ports, "/nowhere")[0] == 404

    assert demo.stop(number, timeout=60) == 0, demo.output()
    for port in (ports, *SERVICE_PORTS):
        assert not services.accepts(port)


def test_run_says_which_port_is_taken(ports: int) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", ports))
        holder.listen()
        server = Server([str(ROOT / "scripts" / "run")], cwd=ROOT, env=environ(ports))
        try:
            server.start()
            assert server.process is not None
            assert server.process.wait(PATIENCE) == 1
            assert f"port {ports} (for gateway) is taken" in server.output()
            assert "Traceback" not in server.output()
        finally:
            server.close()


def test_run_says_what_is_wrong_with_port(ports: int) -> None:
    server = Server([str(ROOT / "scripts" / "run")], cwd=ROOT, env={**environ(ports), "PORT": "http"})
    try:
        server.start()
        assert server.process is not None
        assert server.process.wait(PATIENCE) == 1
        assert "PORT: 'http' will not do" in server.output()
        assert "Traceback" not in server.output()
    finally:
        server.close()


def parts_of(demo: Server, port: int) -> list[int]:
    """The processes that scripts/run started: the services and, last, the gateway."""
    demo.wait_until(lambda: f"http://127.0.0.1:{port}" in demo.output(), "scripts/run says where it listens", PATIENCE)
    assert demo.process is not None
    # scripts/run has become the program that started the parts.
    return [int(pid) for pid in Path(f"/proc/{demo.process.pid}/task/{demo.process.pid}/children").read_text().split()]


def test_run_ends_when_the_gateway_ends(demo: Server, ports: int) -> None:
    os.kill(parts_of(demo, ports)[-1], signal.SIGKILL)
    assert demo.process is not None
    assert demo.process.wait(60) == 1
    assert "ended by itself: gateway" in demo.output()
    for port in SERVICE_PORTS:
        assert not services.accepts(port)


def test_run_lives_without_one_of_two_instances(demo: Server, ports: int) -> None:
    os.kill(parts_of(demo, ports)[0], signal.SIGKILL)
    demo.wait_until(lambda: "hello-1 (status -9) is gone" in demo.output(), "it is told", PATIENCE)
    for _ in range(4):
        with urllib.request.urlopen(f"http://127.0.0.1:{ports}/hello", timeout=10) as answer:
            assert json.load(answer)["instance"] == "hello-2"
    assert demo.stop(signal.SIGTERM) == 0
