"""The gateway as its hosts start it: buildpack, socket activation, systemd, plain gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import FakeUpstream, RawClient, RawResponse
from tests import services
from tests.services import ROOT, Server, free_port, wait_until

GUNICORN = [sys.executable, "-m", "gunicorn"]
SETTINGS = ["-c", "conf/gunicorn.conf.py"]
APP = "gateway:create_app()"

# What hosts and careless people are known to export.
HOSTILE = {
    "FORWARDED_ALLOW_IPS": "*",
    "GUNICORN_CMD_ARGS": "--access-logfile - --forwarded-allow-ips=* --forwarder-headers=SCRIPT_NAME,PATH_INFO",
}


@dataclass
class Seen:
    """What the service behind the gateway saw of one request."""

    status: int
    method: str
    path: str
    headers: dict[str, list[str]]


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """The port of a service that answers with what it saw."""
    port = free_port()
    server = Server([sys.executable, str(ROOT / "scripts" / "demo_service.py"), "seen", str(port)])
    try:
        server.start()
        server.wait_until(lambda: services.accepts(port), "the service listens")
        yield port
    finally:
        server.close()


@pytest.fixture
def document(tmp_path: Path, service: int) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(text(service))
    return path


def text(service: int, graceful: str = "5s") -> str:
    return (
        f"version: 1\nserver: {{graceful: {graceful}}}\n"
        f'upstreams: {{seen: {{endpoints: ["http://127.0.0.1:{service}"]}}}}\n'
        "routes: [{name: all, match: {prefix: /}, upstream: seen}]\n"
    )


Start = Callable[..., Server]


@pytest.fixture
def start(document: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a command with a clean environment and what is given of one; ends it after the test."""
    with contextlib.ExitStack() as stack:

        def run(command: list[str], pass_fds: tuple[int, ...] = (), **environ: str) -> Server:
            env = {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "HOME": str(tmp_path),
                "XDG_RUNTIME_DIR": str(tmp_path),
                "PYTHONPATH": str(ROOT),
                "GATEWAY_CONFIG": str(document),
                "GATEWAY_ADMIN": "127.0.0.1:0",
                "WEB_CONCURRENCY": "1",
                **environ,
            }
            server = Server(command, cwd=ROOT, env=env, pass_fds=pass_fds)
            stack.callback(server.close)
            server.start()
            return server

        yield run


def ready(server: Server, port: int) -> None:
    def asks() -> bool:
        try:
            return get(port, "/-/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    server.wait_until(asks, f"the gateway is ready on {port}")


def get(port: int, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """One request on a connection of its own, closed after: an idle one would hold the worker up at its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        answer.text = answer.read()  # type: ignore[attr-defined]
        return answer
    finally:
        connection.close()


def through(port: int, path: str = "/x", headers: dict[str, str] | None = None) -> Seen:
    """One request through the gateway, as the service saw it."""
    answer = get(port, path, headers)
    told: dict[str, Any] = json.loads(answer.text)  # type: ignore[attr-defined]
    seen: dict[str, list[str]] = {}
    for name, value in told["headers"]:
        seen.setdefault(name.lower(), []).append(value)
    return Seen(answer.status, told["method"], told["path"], seen)


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def open_files(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed between the listing and the look.
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(each))
    return found


def ends_well(server: Server, port: int) -> None:
    """SIGTERM: status 0, and nothing is left of it."""
    assert server.process is not None
    family = children(server.process.pid)
    assert server.stop(signal.SIGTERM) == 0, server.output()
    assert not services.accepts(port)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


# -- a buildpack ----------------------------------------------------------------------


def procfile() -> list[str]:
    """The web process as such hosts run it: by a shell."""
    name, _, command = (ROOT / "Procfile").read_text().strip().partition(": ")
    assert name == "web"
    return ["bash", "-c", command]


def test_started_as_a_buildpack_would(start: Start, tmp_path: Path) -> None:
    port = free_port()
    server = start(procfile(), PORT=str(port), WEB_CONCURRENCY="2", **HOSTILE)
    ready(server, port)
    assert server.process is not None
    wait_until(lambda: len(children(server.process.pid)) == 2, "two workers")

    seen = through(
        port,
        "/a%2Fb//c?q",
        {
            "X-Forwarded-For": "6.6.6.6",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "evil.example",
            "X-Real-IP": "6.6.6.6",
            "Script-Name": "/admin",
            "SCRIPT_NAME": "/admin",
            "PATH_INFO": "/admin",
        },
    )
    assert seen.status == 200
    assert seen.path == "/a%2Fb//c?q"
    # The file trusts nobody, whatever the environment says.
    assert seen.headers["x-forwarded-for"] == ["127.0.0.1"]
    assert seen.headers["x-real-ip"] == ["127.0.0.1"]
    assert seen.headers["x-forwarded-proto"] == ["http"]
    assert seen.headers["x-forwarded-host"] == [f"127.0.0.1:{port}"]
    assert "script_name" not in seen.headers

    ends_well(server, port)
    output = server.output()
    # gunicorn's access log would say "GET /a%2Fb//c?q HTTP/1.1".
    assert 'HTTP/1.1"' not in output
    assert output.count("gunicorn's access log is off") == 1
    assert "forwarded_allow_ips is not to be set from outside" in output
    # Nor its control socket, which two gateways of one user would fight for.
    assert not list(tmp_path.rglob("*.ctl"))


def test_the_procfile_has_a_configuration_of_its_own(start: Start, service: int) -> None:
    port = free_port()
    environ = {"PORT": str(port), "GATEWAY_CONFIG": "", "BACKEND_URL": f"http://127.0.0.1:{service}", "DYNO": "web.1"}
    server = start(procfile(), **environ)
    ready(server, port)
    seen = through(port, "/x", {"Host": "shop.example"})
    # host: upstream, as routers of such hosts route by it.
    assert seen.headers["host"] == [f"127.0.0.1:{service}"]
    assert seen.headers["x-forwarded-host"] == ["shop.example"]
    ends_well(server, port)


# -- plain gunicorn -------------------------------------------------------------------


@pytest.mark.parametrize("settings", ["conf/gunicorn.conf.py", "python:gateway.server.settings"])
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_started_by_hand(start: Start, settings: str, preload: list[str]) -> None:
    port = free_port()
    server = start([*GUNICORN, "-c", settings, "-b", f"127.0.0.1:{port}", *preload, APP])
    ready(server, port)
    assert through(port).status == 200
    assert "MonkeyPatchWarning" not in server.output()
    ends_well(server, port)


@pytest.mark.parametrize("settings", ["runpy.run_path('conf/gunicorn.conf.py')", "import gateway.server.settings"])
def test_the_settings_patch_before_urllib3_takes_ssl(start: Start, settings: str) -> None:
    """gunicorn has imported ssl by then; urllib3 must not have, or its TLS would block the worker."""
    program = (
        f"import runpy, sys, gunicorn.app.wsgiapp\nassert 'urllib3' not in sys.modules\n{settings}\n"
        "import gevent.ssl, urllib3.util.ssl_\n"
        "assert urllib3.util.ssl_.SSLContext is gevent.ssl.SSLContext\nprint('patched')\n"
    )
    server = start([sys.executable, "-c", program])
    assert server.process is not None
    assert server.process.wait(30) == 0, server.output()
    assert server.output() == "patched\n"


def test_a_flag_beats_port(start: Start) -> None:
    port, other = services.free_ports(2)
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP], PORT=str(other))
    ready(server, port)
    assert not services.accepts(other)
    ends_well(server, port)


def test_gunicorns_own_limits_go_before_the_files_where_somebody_has_set_them(start: Start, tmp_path: Path) -> None:
    port = free_port()
    mine = tmp_path / "mine.py"
    mine.write_text("from gateway.server.settings import *\nlimit_request_fields = 5\n")
    server = start(
        [*GUNICORN, "-c", str(mine), "-b", f"127.0.0.1:{port}", "--limit-request-line", "200", APP],
        GUNICORN_CMD_ARGS="--keep-alive 0",
    )
    ready(server, port)
    with RawClient(port) as client:
        assert client.request(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").header(b"connection") == b"close"
    assert get(port, "/" + "x" * 200).status == 414
    assert get(port, "/x", {f"X-{number}": "" for number in range(5)}).status == 431
    # What nobody has set is the file's.
    assert get(port, "/x", {"X": "x" * 16_000}).status == 200
    ends_well(server, port)


@pytest.mark.parametrize(("name", "value"), [("PORT", "http"), ("PORT", "65536"), ("WEB_CONCURRENCY", "many")])
def test_gateway_run_says_what_is_wrong_with_the_environment(
    start: Start, document: Path, name: str, value: str
) -> None:
    server = start([sys.executable, "-m", "gateway", "run", "-c", str(document)], **{name: value})
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert f"{name}: {value!r} will not do" in server.output()
    assert "Traceback" not in server.output()


def test_a_bad_file_ends_the_start_with_its_mistakes(start: Start, document: Path) -> None:
    document.write_text("version: 1\nupstreams: {}\nroutes: [{name: a, upstream: nowhere}]\nnonsense: 1\n")
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP])
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert f"{document}:4:" in server.output()
    assert "nowhere" in server.output()
    assert "Traceback" not in server.output()


def test_a_hup_takes_the_file_again_and_forces_again(start: Start, document: Path, service: int) -> None:
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP], **HOSTILE)
    ready(server, port)
    assert server.process is not None
    before = children(server.process.pid)
    document.write_text(text(service, graceful="7s"))
    server.send(signal.SIGHUP)
    wait_until(lambda: not before & children(server.process.pid), "the old worker has left")
    ready(server, port)
    seen = through(port, "/after", {"X-Forwarded-For": "6.6.6.6"})
    assert seen.headers["x-forwarded-for"] == ["127.0.0.1"]
    assert "Changed by the file: graceful_timeout" in server.output()
    ends_well(server, port)
    assert 'HTTP/1.1"' not in server.output()


def test_a_hup_with_a_broken_file_leaves_everything_as_it_was(start: Start, document: Path, service: int) -> None:
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP])
    ready(server, port)
    assert server.process is not None
    before = children(server.process.pid)
    document.write_text("version: 1\nroutes: [nonsense\n")
    server.send(signal.SIGHUP)
    wait_until(lambda: not before & children(server.process.pid), "the old worker has left")
    ready(server, port)
    assert through(port, "/after").path.endswith("/after")
    assert "stays in force" in server.output()
    document.write_text(text(service))
    ends_well(server, port)


def test_a_cleaned_up_temporary_directory_costs_no_worker(start: Start, tmp_path: Path) -> None:
    """What the workers meet in is gone; a successor comes all the same, after a death and at a reload."""
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", "--worker-tmp-dir", str(tmp_path), APP])
    ready(server, port)
    assert server.process is not None
    for number, target in ((signal.SIGKILL, None), (signal.SIGHUP, server.process.pid)):
        (folder,) = tmp_path.glob("wsgi-gateway-run-*")
        shutil.rmtree(folder)
        before = children(server.process.pid)
        os.kill(target or min(before), number)
        wait_until(lambda old=before: not old & children(server.process.pid), "the old worker is gone")  # type: ignore[misc, union-attr]
        ready(server, port)
        assert (folder / "siblings").exists()
    ends_well(server, port)
    assert not list(tmp_path.glob("wsgi-gateway-run-*"))


def test_a_reload_is_no_draining(start: Start, document: Path, service: int) -> None:
    """The worker that goes accepts for `drain`; whoever asks it hears of the gateway, which stays."""
    document.write_text(text(service).replace("graceful: 5s", "graceful: 5s, drain: 1s"))
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP])
    ready(server, port)
    assert server.process is not None
    before = children(server.process.pid)
    server.send(signal.SIGHUP)
    heard = set()
    while before & children(server.process.pid):
        heard.add(get(port, "/-/readyz").status)
    assert heard == {200}
    server.send(signal.SIGTERM)
    server.wait_until(lambda: get(port, "/-/readyz").status == 503, "it drains")
    assert through(port).status == 200
    assert server.process.wait(30) == 0


def test_usr1_reopens_the_access_log(start: Start, document: Path, service: int, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    document.write_text(text(service) + f"access_log: {{path: {log}}}\n")
    port = free_port()
    server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP])
    ready(server, port)
    wait_until(log.exists, "the access log is there")
    log.rename(tmp_path / "access.log.1")
    server.send(signal.SIGUSR1)

    def logged() -> bool:
        through(port, "/rotated")
        return log.exists() and "/rotated" in log.read_text()

    wait_until(logged, "lines go to the new file")
    ends_well(server, port)


def test_a_wrapped_gateway_is_left_to_who_wrapped_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "wrapped.py").write_text(
        "from gateway import create_app\n\n\n"
        "class Wrapper:\n"
        "    def __init__(self, app):\n        self.app = app\n\n"
        "    def __call__(self, environ, start_response):\n        return self.app(environ, start_response)\n\n\n"
        "app = Wrapper(create_app())\n"
    )
    port = free_port()
    command = [*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", "--pythonpath", str(tmp_path), "wrapped:app"]
    server = start(command)
    server.wait_until(lambda: "is a Wrapper and not a Gateway" in server.output(), "it is said")
    server.wait_until(lambda: services.accepts(port), "it listens")
    assert get(port, "/-/healthz").status == 200
    ends_well(server, port)


READERS = """
import io
from flask import request
from gateway import create_app

app = create_app()
inner = app.wsgi_app

@app.before_request
def before():
    if request.path == "/data":
        request.get_data()
    elif request.path == "/form":
        request.form
    elif request.path == "/part":
        request.stream.read(2)

def middleware(environ, start_response):
    if environ["PATH_INFO"] == "/replaced":
        body = environ["wsgi.input"].read()
        environ["wsgi.input"] = io.BytesIO(body)
    return inner(environ, start_response)

app.wsgi_app = middleware
"""


@pytest.mark.parametrize("worker", ["gateway.server.worker.GatewayWorker", "gevent"])
def test_a_body_that_python_code_has_read_is_forwarded(
    start: Start, document: Path, tmp_path: Path, worker: str
) -> None:
    """Never does the upstream get a part of it, or wait for what cannot come."""
    (tmp_path / "readers.py").write_text(READERS)
    with FakeUpstream() as upstream:
        document.write_text(text(int(upstream.url.rpartition(":")[2])))
        bodies_read_by_python_code(start, tmp_path, worker, upstream)


def bodies_read_by_python_code(start: Start, tmp_path: Path, worker: str, upstream: FakeUpstream) -> None:
    port = free_port()
    command = [*GUNICORN, *SETTINGS, "-k", worker, "-b", f"127.0.0.1:{port}", "--pythonpath", str(tmp_path)]
    server = start([*command, "readers:app"])
    ready(server, port)
    framings = [b"Content-Length: 7\r\n\r\na=bcdef", b"Transfer-Encoding: chunked\r\n\r\n7\r\na=bcdef\r\n0\r\n\r\n"]
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"

    def post(path: bytes, framing: bytes) -> RawResponse:
        with RawClient(port) as client:
            return client.request(b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + form + framing)

    for framing in framings:
        for path in (b"/data", b"/replaced", b"/form", b"/part", b"/untouched"):
            assert post(path, framing).status == 200
            assert upstream.last.body == b"a=bcdef"
    ends_well(server, port)


# -- systemd --------------------------------------------------------------------------


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield sock


def inherit(start: Start, sock: socket.socket, command: list[str], **environ: str) -> Server:
    """systemd's protocol in a line of shell: the socket is descriptor 3 of a process that is told so."""
    assert sock.fileno() > 3
    script = f'exec 3<&{sock.fileno()} {sock.fileno()}<&-; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    return start(["bash", "-c", script, "bash", *command], pass_fds=(sock.fileno(),), **environ)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_inherited_sockets_go_before_port(start: Start, preload: list[str]) -> None:
    other = free_port()
    with listening() as sock:
        port = sock.getsockname()[1]
        server = inherit(start, sock, [*GUNICORN, *SETTINGS, *preload, APP], PORT=str(other))
        ready(server, port)
        assert through(port).status == 200
        assert not services.accepts(other)
        assert server.stop() == 0, server.output()


def test_gateway_run_passes_inherited_sockets_on(start: Start, document: Path) -> None:
    with listening() as sock:
        port = sock.getsockname()[1]
        server = inherit(start, sock, [sys.executable, "-m", "gateway", "run", "-c", str(document)])
        ready(server, port)
        assert through(port).status == 200
        assert server.stop() == 0, server.output()


def test_a_flag_beats_inherited_sockets(start: Start) -> None:
    port = free_port()
    with listening() as sock:
        server = inherit(start, sock, [*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP])
        ready(server, port)
        assert "inherited socket(s) left unused" in server.output()
        # Nobody in the gateway holds it: a connection is never taken from its queue.
        assert server.process is not None
        inode = os.readlink(f"/proc/self/fd/{sock.fileno()}")
        for pid in {server.process.pid} | children(server.process.pid):
            assert inode not in open_files(pid)
        ends_well(server, port)


def test_started_by_systemds_own_activation(start: Start) -> None:
    activate = str(services.require("systemd-socket-activate"))
    port = free_port()
    # It hands on nothing of its environment but what it is told to.
    names = ["PATH", "HOME", "XDG_RUNTIME_DIR", "PYTHONPATH", "GATEWAY_CONFIG", "WEB_CONCURRENCY"]
    passed = [word for name in names for word in ("-E", name)]
    server = start([activate, "-l", f"127.0.0.1:{port}", *passed, *GUNICORN, *SETTINGS, APP])
    # The first connection is what starts it.
    server.wait_until(lambda: services.accepts(port), "it listens")
    ready(server, port)
    assert through(port).status == 200
    assert server.stop() == 0, server.output()


def test_systemd_is_told_when_it_is_up(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        address = tmp_path / "notify"
        told.bind(str(address))
        told.settimeout(30)
        port = free_port()
        server = start([*GUNICORN, *SETTINGS, "-b", f"127.0.0.1:{port}", APP], NOTIFY_SOCKET=str(address))
        assert b"READY=1" in told.recv(4096).splitlines()
        ready(server, port)
        ends_well(server, port)
