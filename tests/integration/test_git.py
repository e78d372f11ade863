"""git over smart HTTP behind the gateway: clone, fetch and push, answered by `git http-backend`.

A push of more than `http.postBuffer` (1 MiB) is a chunked request; what is fetched is a chunked answer without a length.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer

from tests import services
from tests.gateway_process import GatewayProcess

# Larger than `http.postBuffer` and than every buffer on the way.
LARGE = 8 * 1024 * 1024
CONFIG = """
version: 1
upstreams: {{git: {{endpoints: ["http://127.0.0.1:{port}"]}}}}
routes:
  - {{name: git, upstream: git, match: {{prefix: /code}}, strip_prefix: true}}
"""


class Backend:
    """A WSGI application that runs git's CGI program. `refuse`: pushes get this status, and their bodies are not read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = 0
        self.refuse = ""
        self.seen: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen.append(environ)
        if self.refuse and environ["PATH_INFO"].endswith("/git-receive-pack"):
            start_response(self.refuse, [("Content-Type", "text/plain"), ("Content-Length", "3")])
            return [b"no\n"]
        cgi = {key: value for key, value in environ.items() if isinstance(value, str)}
        cgi |= {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "a"}
        process = subprocess.Popen(["git", "http-backend"], env=cgi, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        feeding = gevent.spawn(self._feed, environ["wsgi.input"], process)
        status, fields = "200 OK", []
        for line in iter(lambda: process.stdout.readline().rstrip(b"\r\n"), b""):
            name, _, value = line.decode("latin-1").partition(": ")
            if name == "Status":
                status = value
            else:
                fields.append((name, value))
        start_response(status, fields)
        return self._rest(process, feeding)

    @staticmethod
    def _feed(source: Any, process: Any) -> None:
        with process.stdin:
            while piece := source.read(65536):
                process.stdin.write(piece)

    @staticmethod
    def _rest(process: Any, feeding: Any) -> Iterator[bytes]:
        # As soon as it is there: progress of the server is a part of it.
        while piece := process.stdout.read1(65536):
            yield piece
        process.wait()
        feeding.join()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    services.require("git")
    made = Backend(tmp_path / "served")
    made.root.mkdir()
    server = WSGIServer(("127.0.0.1", 0), made, log=None)
    server.start()
    made.port = server.server_port
    git(made.root, "init", "-q", "--bare", "one.git")
    git(made.root / "one.git", "config", "http.receivepack", "true")
    yield made
    server.stop()


@pytest.fixture
def gateway(backend: Backend, tmp_path: Path) -> Iterator[GatewayProcess]:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.format(port=backend.port))
    with GatewayProcess(tmp_path, str(path), workers=1) as process:
        yield process


def git(folder: Path, *arguments: str, status: int = 0) -> str:
    """What git prints; without the configuration and the proxies of whoever runs the tests."""
    env = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    done = subprocess.run(["git", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout + done.stderr


def clone(folder: Path, gateway: GatewayProcess, name: str, *arguments: str) -> Path:
    git(folder, "clone", "-q", *arguments, f"http://127.0.0.1:{gateway.port}/code/one.git", name)
    return folder / name


def commit(work: Path, name: str, data: bytes) -> str:
    (work / name).write_bytes(data)
    git(work, "add", name)
    git(work, "commit", "-q", "-m", name)
    return git(work, "rev-parse", "HEAD").strip()


def pushed(backend: Backend) -> list[dict[str, Any]]:
    return [one for one in backend.seen if one["REQUEST_METHOD"] == "POST" and one["PATH_INFO"].endswith("receive-pack")]


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_push_and_clone(size: int, backend: Backend, gateway: GatewayProcess, tmp_path: Path) -> None:
    work, data = clone(tmp_path, gateway, "work"), os.urandom(size)
    first = commit(work, "data", data)
    git(work, "push", "-q", "origin", "HEAD:main")
    assert git(backend.root / "one.git", "rev-parse", "main").strip() == first
    # Before a chunked push git asks by a small one whether it may.
    chunked = [one for one in pushed(backend) if one.get("HTTP_TRANSFER_ENCODING") == "chunked"]
    assert bool(chunked) is (size == LARGE)
    other = clone(tmp_path, gateway, "other", "-b", "main")
    assert (other / "data").read_bytes() == data
    second = commit(other, "more", b"more")
    git(other, "push", "-q", "origin", "main")
    git(work, "pull", "-q", "origin", "main")
    assert git(work, "rev-parse", "HEAD").strip() == second
    assert (clone(tmp_path, gateway, "shallow", "-b", "main", "--depth", "1") / "more").read_bytes() == b"more"


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
def test_a_push_that_the_server_refuses(size: int, backend: Backend, gateway: GatewayProcess, tmp_path: Path) -> None:
    """It answers before it has the pack: git reports the status and not a broken connection."""
    work = clone(tmp_path, gateway, "work")
    commit(work, "data", os.urandom(size))
    backend.refuse = "403 Forbidden"
    told = git(work, "push", "-q", "origin", "HEAD:main", status=1)
    assert "The requested URL returned error: 403" in told or "HTTP 403" in told, told


def test_a_push_that_is_behind(backend: Backend, gateway: GatewayProcess, tmp_path: Path) -> None:
    one, other = clone(tmp_path, gateway, "work"), clone(tmp_path, gateway, "other")
    commit(one, "data", b"one")
    git(one, "push", "-q", "origin", "HEAD:main")
    commit(other, "data", b"other")
    assert "[rejected]" in git(other, "push", "origin", "HEAD:main", status=1)


def test_a_reload_during_a_push(backend: Backend, gateway: GatewayProcess, tmp_path: Path) -> None:
    """Whose route and upstream are gone before it is answered."""
    work, held, go = clone(tmp_path, gateway, "work"), tmp_path / "held", tmp_path / "go"
    hook = backend.root / "one.git" / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\ncat >/dev/null\ntouch '{held}'\nwhile [ ! -e '{go}' ]; do sleep 0.05; done\n")
    hook.chmod(0o755)
    first = commit(work, "data", os.urandom(LARGE))
    pushing = gevent.spawn(git, work, "push", "-q", "origin", "HEAD:main")
    services.wait_until(held.exists, "the server has the whole push")
    empty = "version: 1\n"
    (tmp_path / "gateway.yaml").write_text(empty)
    gateway.follows(empty)
    go.touch()
    pushing.get(timeout=60)
    assert git(backend.root / "one.git", "rev-parse", "main").strip() == first
    assert gateway.get("/code/one.git/info/refs")[0] == 404
