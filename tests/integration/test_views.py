"""Flask views of a Gateway in a real process: what the access log says of those that end badly."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import RawClient
from tests.services import ROOT, Server, free_port

APP = """
import gevent
from flask import Response, request
from gateway import create_app

app = create_app()

@app.get("/breaks")
def breaks():
    def pieces():
        yield "a"
        raise RuntimeError("bug")
    return Response(pieces())

@app.get("/never-begins")
def never_begins():
    def pieces():
        raise RuntimeError("bug")
        yield ""
    return Response(pieces())

@app.get("/exits")
def exits():
    raise SystemExit(3)

@app.get("/waits")
def waits():
    print("waits", flush=True)
    gevent.sleep(60)
    return "x"

@app.get("/streams")
def streams():
    def pieces():
        while True:
            yield "tick"
            gevent.sleep(0.01)
    return Response(pieces())

@app.post("/reads")
def reads():
    return request.get_data()

@app.get("/goes-well")
def goes_well():
    return "well"
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int, Path]]:
    folder = tmp_path_factory.mktemp("views")
    (folder / "with_views.py").write_text(APP)
    log = folder / "access.log"
    document = folder / "gateway.yaml"
    document.write_text(f"version: 1\nadmin: null\naccess_log: {{path: {log}}}\nupstreams: {{}}\nroutes: []\n")
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "GATEWAY_CONFIG": str(document),
        "WEB_CONCURRENCY": "1",
    }
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", "python:gateway.server.settings"]
    server = Server([*gunicorn, "-b", f"127.0.0.1:{port}", "with_views:app"], cwd=folder, env=env)
    try:
        server.start()
        server.wait_until(lambda: "Door: direct" in server.output(), "the gateway serves")
        yield server, port, log
        assert server.stop(signal.SIGTERM) == 0, server.output()
    finally:
        server.close()


def logged(server: Server, log: Path, target: str) -> dict[str, Any]:
    """The line of an exchange that ends."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        text = log.read_text() if log.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        found[:] = [line for line in lines if line["target"] == target]
        return bool(found)

    server.wait_until(there, f"{target} is logged")
    (line,) = found
    return line


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [("/goes-well", 200, None), ("/never-begins", 500, "internal_error"), ("/exits", 500, "internal_error")],
)
def test_what_is_answered_is_what_is_logged(
    gateway: tuple[Server, int, Path], target: str, status: int, reason: str | None
) -> None:
    server, port, log = gateway
    with RawClient(port) as client:
        assert client.request(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).status == status
    line = logged(server, log, target)
    assert (line["status"], line["reason"]) == (status, reason)


def test_one_that_breaks_inside_its_answer(gateway: tuple[Server, int, Path]) -> None:
    server, port, log = gateway
    with RawClient(port) as client:
        client.send(b"GET /breaks HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_head().status == 200
        client.read_until(b"1\r\na\r\n")
        assert client.ended()
    line = logged(server, log, "/breaks")
    assert (line["status"], line["reason"], line["cause"]) == (200, "internal_error", "RuntimeError: bug")


def test_a_client_that_leaves_before_its_answer(gateway: tuple[Server, int, Path]) -> None:
    server, port, log = gateway
    with RawClient(port) as client:
        client.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_until(lambda: "\nwaits\n" in server.output(), "the view waits")
        client.reset()
    line = logged(server, log, "/waits")
    assert (line["status"], line["reason"], line["bytes_out"]) == (499, "client_closed", 0)


def test_a_client_that_leaves_inside_its_answer(gateway: tuple[Server, int, Path]) -> None:
    server, port, log = gateway
    with RawClient(port) as client:
        client.send(b"GET /streams HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_until(b"tick")
        client.reset()
    line = logged(server, log, "/streams")
    assert (line["status"], line["reason"]) == (200, "client_closed")


def test_a_client_that_leaves_inside_its_body(gateway: tuple[Server, int, Path]) -> None:
    server, port, log = gateway
    with RawClient(port) as client:
        client.send(b"POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        client.half_close()
        client.ended()
    line = logged(server, log, "/reads")
    assert (line["status"], line["reason"]) == (499, "client_closed")
    assert "Exception on /reads" not in server.output()
