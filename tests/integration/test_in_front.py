"""What stands in front of a Gateway: WSGI middleware that answers by itself, and hooks that ask for credentials."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import RawClient
from tests import services
from tests.gateway_process import GunicornProcess
from tests.services import free_port, wait_until

CONFIG = """version: 1
server: {limits: {body: 1KiB}}
routes: [{name: all, match: {prefix: /}, respond: {status: 204}}]
"""

Start = Callable[..., GunicornProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A gateway whose application is this text, a module."""
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    with ExitStack() as stack:

        def run(text: str, *flags: str, **environ: str) -> GunicornProcess:
            (tmp_path / "mine.py").write_text(text)
            named = str(tmp_path / "gateway.yaml")
            return stack.enter_context(GunicornProcess(tmp_path, named, *flags, application="mine:app", **environ))

        yield run


def logged(gateway: GunicornProcess, number: int) -> list[dict[str, Any]]:
    """The access log, but for what the test asked to know whether it is ready; once it has so many lines."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in gateway.requests() if line["target"] != "/-/readyz"]

    wait_until(lambda: len(lines()) >= number, f"{number} lines of the access log in {gateway.output()}")
    return lines()


# -- middleware that answers ------------------------------------------------------------

MIDDLEWARE = """
import io
from gateway import create_app

app = create_app()
inner = app.wsgi_app

def middleware(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/static":
        start_response("200 OK", [("Content-Length", "4")])
        return [b"file"]
    if path == "/streamed":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"tick" for _ in range(3))
    if path == "/lazy":
        return lazy(environ, start_response)
    if path == "/raises":
        raise RuntimeError("of the middleware")
    if path == "/breaks":
        start_response("200 OK", [("Content-Length", "8")])
        return breaks()
    if path == "/breaks-before":
        return breaks_before()
    if path == "/replaced":
        environ["wsgi.input"] = io.BytesIO(b"x" * 2000)
        environ["CONTENT_LENGTH"] = "2000"
    if path == "/copied":
        environ = dict(environ)
    return inner(environ, start_response)

def lazy(environ, start_response):
    yield from inner(environ, start_response)

def breaks():
    yield b"file"
    raise RuntimeError("of the middleware")

def breaks_before():
    raise RuntimeError("of the middleware")
    yield b""

app.wsgi_app = middleware
"""


def ask(gateway: GunicornProcess, path: str, body: bytes = b"") -> int:
    """The status of one request; 0 if its answer broke off."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("POST" if body else "GET", path, body or None, {"Connection": "close"})
        answer = connection.getresponse()
        answer.read()
    except http.client.IncompleteRead:
        return 0
    finally:
        connection.close()
    return answer.status


def test_each_request_has_one_line_whoever_answers_it(start: Start) -> None:
    admin = free_port()
    gateway = start(MIDDLEWARE, GATEWAY_ADMIN=f"127.0.0.1:{admin}")
    expected = {
        "/static": (200, 4, None), "/streamed": (200, 12, None), "/lazy": (204, 0, None), "/copied": (204, 0, None),
        "/forwarded": (204, 0, None), "/raises": (500, None, "internal_error"), "/breaks-before": (500, None, "internal_error"),
        "/breaks": (200, 4, "internal_error"), "/replaced": (413, None, "body_too_large"),
    }  # fmt: skip
    for path, (status, _, _) in expected.items():
        answered = ask(gateway, path, b"body" if path == "/replaced" else b"")
        assert answered == (status if path != "/breaks" else 0), path
    lines = {line["target"]: line for line in logged(gateway, len(expected))}
    for path, (status, sent, reason) in expected.items():
        line = lines[path]
        assert (line["status"], line["reason"]) == (status, reason), path
        assert sent is None or line["bytes_out"] == sent
        assert line["client"] == "127.0.0.1"
        assert line["host"] == f"127.0.0.1:{gateway.port}"
        assert line["request_id"]
    # No request has two.
    assert set(Counter(line["target"] for line in logged(gateway, len(expected))).values()) == {1}
    assert counted(admin, len(expected)) >= len(expected)


def counted(admin: int, least: int) -> int:
    """The requests in the metrics, once there are so many."""
    found = 0

    def enough() -> bool:
        nonlocal found
        connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=30)
        connection.request("GET", "/-/metrics", headers={"Connection": "close"})
        page = connection.getresponse().read().decode()
        connection.close()
        found = int(sum(float(value) for value in re.findall(r"^gateway_requests_total\{.*\} (\S+)", page, re.MULTILINE)))
        return found >= least

    wait_until(enough, "the metrics have them")
    return found


def test_a_client_that_leaves_while_a_middleware_answers(start: Start) -> None:
    gateway = start(MIDDLEWARE.replace("(b\"tick\" for _ in range(3))", "iter(lambda: b\"tick\" * 10_000, b\"\")"))
    with RawClient(gateway.port, receive_buffer=4096) as client:
        client.send(b"GET /streamed HTTP/1.1\r\nHost: a\r\n\r\n")
        client.read_head()
    (line,) = logged(gateway, 1)
    assert (line["target"], line["reason"]) == ("/streamed", "client_closed")


WHITENOISE = """
from whitenoise import WhiteNoise
from gateway import create_app

app = create_app()
app.wsgi_app = WhiteNoise(app.wsgi_app, root={root!r}, prefix="files")
"""


def test_files_of_whitenoise(start: Start, tmp_path: Path) -> None:
    missing = "" if importlib.util.find_spec("whitenoise") else "pip install whitenoise"
    services.allowed("whitenoise", missing)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "page.txt").write_text("text of a file")
    path = os.pathsep.join([str(services.ROOT), str(tmp_path), sysconfig.get_path("purelib")])
    gateway = start(WHITENOISE.format(root=str(tmp_path / "root")), PYTHONPATH=path)
    assert gateway.get("/files/page.txt") == (200, "", b"text of a file")
    assert gateway.get("/x")[0] == 204
    of_file, of_route = logged(gateway, 2)
    assert (of_file["target"], of_file["status"], of_file["bytes_out"]) == ("/files/page.txt", 200, 14)
    assert (of_route["target"], of_route["route"]) == ("/x", "all")


# -- hooks that ask for credentials -----------------------------------------------------

CLOSED = """
from flask import abort, request
from gateway import create_app

app = create_app()

@app.before_request
def who():
    if not request.authorization:
        abort(401)
"""


@pytest.mark.parametrize("worker", ["gateway.server.worker.GatewayWorker", "gevent"])
def test_an_authentication_hook_does_not_stand_in_front_of_health(start: Start, worker: str) -> None:
    gateway = start(CLOSED, "-k", worker)
    for path in ("/-/healthz", "/-/readyz", "/-/readyz?verbose", "/%2D/healthz", "http://a/-/healthz"):
        assert ask(gateway, path) == 200, path
    for path in ("/", "/x", "/-/other", "/-/", "/-/healthz/x", "/%2D/metrics"):
        assert ask(gateway, path) == 401, path
    lines = logged(gateway, 10)
    assert {line["target"]: line["status"] for line in lines}["/x"] == 401


LATE = """
from flask import abort
from gateway import create_app

app = create_app()

@app.get("/close")
def close():
    app.before_request_funcs.setdefault(None, []).append(lambda: abort(401))
    return "closed"
"""


def test_a_hook_that_comes_while_it_serves_does_not_either(start: Start) -> None:
    gateway = start(LATE)
    assert ask(gateway, "/close") == 200
    assert ask(gateway, "/x") == 401
    assert ask(gateway, "/-/healthz") == 200
