"""Flask hooks on forwarded requests under gunicorn: places, connections and log lines, with slow and broken peers."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import Act, FakeUpstream, RawClient, answer, chunk, head
from tests.services import ROOT, Server, free_ports

APP = """
import os
from flask import Response, request
from gateway import create_app

app = create_app()

@app.after_request
def hook(response):
    asked = request.headers.get("X-Hook", "")
    if asked == "replace":
        return Response("sorry", 503)
    if asked == "read":
        response.get_data()
    if asked == "read-all":
        response.direct_passthrough = False
        response.headers["X-Length"] = str(len(response.get_data()))
    if asked == "set":
        response.set_data(b"{}")
    if asked == "refuse":
        response.status_code = 403
    if asked == "fail":
        raise RuntimeError("bug")
    if asked == "upper":
        pieces = response.response
        response.response = (piece.upper() for piece in pieces)
    response.headers["X-Seen"] = "1"
    path = request.path
    response.call_on_close(lambda: print("closed", path, flush=True))
    return response

@app.before_request
def form():
    if request.headers.get("X-Hook") == "form":
        request.form.to_dict()

@app.errorhandler(404)
def page(error):
    return f"mine: {error.__cause__.reason}", 404
"""

LIMIT = 2
FRAMINGS = ("length", "chunked")
CUT = "/up/cut/read-all"


class Hooked:
    """A gateway with `APP`, one worker, and places for `LIMIT` requests."""

    def __init__(self, folder: Path, upstream: FakeUpstream) -> None:
        (folder / "with_hooks.py").write_text(APP)
        self.log = folder / "access.log"
        self.port, self.admin = free_ports(2)
        (folder / "gateway.yaml").write_text(
            f"version: 1\n"
            f"server: {{overload: 0}}\n"
            f"admin: {{bind: '127.0.0.1:{self.admin}'}}\n"
            f"access_log: {{path: {self.log}}}\n"
            f"upstreams: {{up: {{endpoints: ['{upstream.url}'], concurrency: {{limit: {LIMIT}, queue: 0}}}}}}\n"
            f"routes: [{{name: all, match: {{prefix: /up}}, upstream: up}}]\n"
        )
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
            "GATEWAY_CONFIG": str(folder / "gateway.yaml"),
            "WEB_CONCURRENCY": "1",
        }
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "python:gateway.server.settings"]
        self.server = Server([*gunicorn, "-b", f"127.0.0.1:{self.port}", "with_hooks:app"], cwd=folder, env=env)

    def client(self) -> RawClient:
        return RawClient(self.port, timeout=60)

    def ask(self, target: str, hook: str, *lines: str, method: str = "GET", body: bytes = b"") -> Any:
        with self.client() as client:
            client.send(request(target, hook, *lines, method=method, body=body))
            return client.read_response(method.encode())

    def logged(self, target: str, number: int = 1) -> list[dict[str, Any]]:
        """The lines of a target, once there are so many."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            text = self.log.read_text() if self.log.exists() else ""
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            found[:] = [line for line in lines if line["target"] == target]
            return len(found) >= number

        self.server.wait_until(there, f"{target} is logged {number} times")
        assert len(found) == number
        return found

    def is_free(self) -> bool:
        """No request has a place, at the worker's own word."""
        with RawClient(self.admin, timeout=60) as client:
            status = json.loads(client.request(b"GET /-/status HTTP/1.1\r\nHost: localhost\r\n\r\n").body)
        (worker,) = status["workers"]
        return worker["in_flight"] == worker["tunnels"] == 0


def request(target: str, hook: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    fields = [f"{method} {target} HTTP/1.1", "Host: a.test", f"X-Hook: {hook}", *lines]
    if body:
        fields.append(f"Content-Length: {len(body)}")
    return "".join(field + "\r\n" for field in fields).encode() + b"\r\n" + body


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: FakeUpstream) -> Iterator[Hooked]:
    hooked = Hooked(tmp_path_factory.mktemp("hooks"), upstream)
    try:
        hooked.server.start()
        hooked.server.wait_until(
            lambda: "Door: wsgi (request hooks are registered)" in hooked.server.output(), "it runs"
        )
        yield hooked
        assert hooked.server.stop(signal.SIGTERM) == 0, hooked.server.output()
        failed = set(re.findall(r"Exception on (\S+)", hooked.server.output()))
        assert failed == {f"/up/places/{hook}/{framing}" for hook in ("read", "fail") for framing in FRAMINGS} | {CUT}
        assert "a request failed" not in hooked.server.output()
    finally:
        hooked.server.close()


@pytest.fixture(autouse=True)
def _nothing_leaks(gateway: Hooked, upstream: FakeUpstream) -> Iterator[None]:
    upstream.forget()
    yield
    gateway.server.wait_until(gateway.is_free, "every place is given back")


WHAT = {
    "": (200, b"one and two"),
    "replace": (503, b"sorry"),
    "read-all": (200, b"one and two"),
    "set": (200, b"{}"),
    "upper": (200, b"ONE AND TWO"),
    "read": (500, None),
    "fail": (500, None),
}


@pytest.mark.parametrize("hook", list(WHAT))
@pytest.mark.parametrize("framing", FRAMINGS)
def test_places_and_lines(gateway: Hooked, upstream: FakeUpstream, hook: str, framing: str) -> None:
    """More requests than there are places, one after the other."""
    target = f"/up/places/{hook}/{framing}"
    pieces = [head(200, b"Transfer-Encoding: chunked"), chunk(b"one "), chunk(b"and two"), chunk(b"")]
    upstream.answer([answer(b"one and two")] if framing == "length" else [b"".join(pieces)])
    status, body = WHAT[hook]
    for _ in range(3 * LIMIT):
        got = gateway.ask(target, hook)
        assert got.status == status
        assert body is None or got.body == body
    lines = gateway.logged(target, 3 * LIMIT)
    assert {(line["status"], line["bytes_out"], line["route"]) for line in lines} == {(status, len(got.body), "all")}


@pytest.mark.parametrize("hook", ["replace", "set"])
def test_an_answer_that_would_not_end(gateway: Hooked, upstream: FakeUpstream, hook: str) -> None:
    """Nobody waits for the rest of what is not returned."""
    upstream.answer([head(200, b"Transfer-Encoding: chunked"), chunk(b"tick"), Act.HANG])
    target = f"/up/endless/{hook}"
    for _ in range(LIMIT + 1):
        assert gateway.ask(target, hook).body == WHAT[hook][1]
    upstream.wait_aborted(LIMIT + 1)
    gateway.logged(target, LIMIT + 1)


@pytest.mark.parametrize("hook", ["", "upper"])
def test_a_client_that_resets_inside_a_stream(gateway: Hooked, upstream: FakeUpstream, hook: str) -> None:
    upstream.answer([head(200, b"Transfer-Encoding: chunked"), chunk(b"tick"), Act.HANG])
    target = f"/up/reset/{hook}"
    with gateway.client() as client:
        client.send(request(target, hook))
        client.read_until(b"TICK" if hook else b"tick")
        client.reset()
    (line,) = gateway.logged(target)
    assert (line["status"], line["reason"], line["bytes_out"]) == (200, "client_closed", 4)
    gateway.server.wait_until(lambda: f"closed {target}" in gateway.server.output(), "call_on_close")
    assert "Traceback" not in gateway.server.output().partition(f"closed {target}")[0].rpartition("closed")[2]


def test_a_client_that_leaves_before_the_head(gateway: Hooked, upstream: FakeUpstream) -> None:
    upstream.answer([Act.HANG])
    with gateway.client() as client:
        client.send(request("/up/left", ""))
        upstream.wait(1)
        client.reset()
    (line,) = gateway.logged("/up/left")
    assert (line["status"], line["reason"], line["bytes_out"]) == (499, "client_closed", 0)


@pytest.mark.parametrize("hook", ["", "read-all"])
def test_an_upstream_that_breaks_off(gateway: Hooked, upstream: FakeUpstream, hook: str) -> None:
    upstream.answer([head(200, b"Content-Length: 9"), b"one", Act.RESET])
    target = CUT if hook else "/up/cut"
    with gateway.client() as client:
        client.send(request(target, hook))
        if hook:
            # The hook wanted all of it before the head went out.
            assert client.read_response().status == 500
        else:
            client.read_until(b"one")
            assert client.ended()
    (line,) = gateway.logged(target)
    assert (line["status"], line["reason"]) == (500 if hook else 200, "upstream_truncated")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_without_a_body(gateway: Hooked, upstream: FakeUpstream, method: str, status: int) -> None:
    upstream.answer([head(status, b"Content-Length: 9") if status != 204 else head(status)])
    target = f"/up/bodyless/{method}/{status}"
    got = gateway.ask(target, "", method=method)
    assert (got.status, got.body) == (status, b"")
    gateway.server.wait_until(lambda: f"closed {target}" in gateway.server.output(), "call_on_close")
    assert gateway.logged(target)[0]["bytes_out"] == 0


KEY = base64.b64encode(b"0123456789abcdef").decode()
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


def test_a_tunnel_through_hooks(gateway: Hooked, upstream: FakeUpstream) -> None:
    upstream.answer([head(101, b"Upgrade: websocket", b"Connection: Upgrade"), b"hello", Act.HANG])
    with gateway.client() as client:
        client.send(request("/up/tunnel", "", *UPGRADE))
        got = client.read_head()
        assert (got.status, got.header(b"upgrade"), got.header(b"x-seen")) == (101, b"websocket", b"1")
        client.read_until(b"hello")
    (line,) = gateway.logged("/up/tunnel")
    assert (line["status"], line["bytes_out"]) == (101, 5)


@pytest.mark.parametrize(("hook", "status"), [("refuse", 403), ("replace", 503)])
def test_a_tunnel_that_a_hook_refuses(gateway: Hooked, upstream: FakeUpstream, hook: str, status: int) -> None:
    upstream.answer([head(101, b"Upgrade: websocket", b"Connection: Upgrade"), Act.HANG])
    target = f"/up/no-tunnel/{hook}"
    assert gateway.ask(target, hook, *UPGRADE).status == status
    assert gateway.logged(target)[0]["status"] == status
    upstream.wait_aborted(1)


FORM = "Content-Type: application/x-www-form-urlencoded"


@pytest.mark.parametrize("body", [b"a=1", b"a=" + b"x" * 2_000_000])
def test_a_form_that_a_hook_has_read(gateway: Hooked, upstream: FakeUpstream, body: bytes) -> None:
    upstream.answer(answer(b"ok"))
    target = f"/up/form/{len(body)}"
    assert gateway.ask(target, "form", FORM, method="POST", body=body).body == b"ok"
    assert upstream.wait_complete().body == body
    assert gateway.logged(target)[0]["bytes_in"] == len(body)


def test_a_client_that_leaves_inside_its_form(gateway: Hooked, upstream: FakeUpstream) -> None:
    with gateway.client() as client:
        client.send(request("/up/left-form", "form", FORM, "Content-Length: 9", method="POST") + b"a=1")
        client.half_close()
        client.ended()
    (line,) = gateway.logged("/up/left-form")
    assert (line["status"], line["reason"]) == (499, "client_closed")


def test_an_error_page_of_ones_own(gateway: Hooked) -> None:
    got = gateway.ask("/none", "")
    assert (got.status, got.body, got.header(b"x-seen")) == (404, b"mine: no_route", b"1")
    (line,) = gateway.logged("/none")
    assert (line["status"], line["reason"]) == (404, "no_route")
