"""The admin listener under gunicorn: its socket, its answers, and what it counts over workers and their deaths."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.server.worker import _MOST_ADMIN
from gateway.testing import Exchange, FakeUpstream, head
from tests import services
from tests.services import ROOT, Server, free_port, free_ports, wait_until

TOKEN = "a-token-of-some-length"
APP = "gateway:create_app()"
PAGES = ("/-/status", "/-/metrics", "/-/config")


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """The port of a service that answers everything."""
    port = free_port()
    server = Server([sys.executable, "-m", "tests.instance", str(port), "one"], cwd=ROOT)
    try:
        server.start()
        server.wait_until(lambda: services.accepts(port), "the service listens")
        yield port
    finally:
        server.close()


class Running:
    """gunicorn with the gateway, its data port and where its admin listener is."""

    def __init__(self, server: Server, port: int, folder: Path) -> None:
        self.server = server
        self.port = port
        self.temporary = folder

    @property
    def pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def run_directory(self) -> Path:
        (found,) = self.temporary.glob("wsgi-gateway-run-*")
        return found


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, service: int) -> Iterator[Start]:
    """Starts gunicorn with what is given of the configuration; all of it ends with the test."""
    with contextlib.ExitStack() as stack:
        # Short, as there will be sockets in it.
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def run(
            admin: str, *arguments: str, more: str = "", workers: int = 1, app: str = APP, wrap: tuple[str, ...] = (),
            pass_fds: tuple[int, ...] = (), port: int = 0, one: int = service, **environ: str,
        ) -> Running:  # fmt: skip
            """`port`: of the data listener, when that is inherited. `one`: of the upstream of that name."""
            own, dead = free_ports(2)
            document = tmp_path / "gateway.yaml"
            document.write_text(
                f"version: 1\nadmin: {admin}\n{more}\nupstreams:\n"
                f'  one: {{endpoints: ["http://127.0.0.1:{one}"]}}\n'
                f'  dead: {{endpoints: ["http://127.0.0.1:{dead}"], retry: {{attempts: 1}}}}\n'
                "routes:\n  - {name: one, match: {prefix: /one}, upstream: one}\n"
                "  - {name: dead, match: {prefix: /dead}, upstream: dead}\n"
                "  - {name: other-own, match: {prefix: /-other}, upstream: one}\n"
            )
            env = {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "HOME": str(tmp_path), "TMPDIR": str(temporary), "PYTHONPATH": f"{ROOT}:{tmp_path}",
                "GATEWAY_CONFIG": str(document), **environ,
            }  # fmt: skip
            command = [sys.executable, "-m", "gunicorn", "-c", "conf/gunicorn.conf.py", "-w", str(workers)]
            command += [*arguments, app] if port else ["-b", f"127.0.0.1:{own}", *arguments, app]
            server = Server([*wrap, *command], cwd=ROOT, env=env, pass_fds=pass_fds)
            stack.callback(server.close)
            server.start()
            server.wait_until(lambda: server.output().count("Door: ") >= workers or "-k" in arguments, "workers run")
            server.wait_until(lambda: services.accepts(port or own), "it listens")
            return Running(server, port or own, temporary)

        yield run


class Answer:
    def __init__(self, status: int, headers: dict[str, str], text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def ask(where: int | str, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request on a connection of its own. `where`: a port of 127.0.0.1 or the path of a socket."""
    connection = (
        UnixConnection(where) if isinstance(where, str) else http.client.HTTPConnection("127.0.0.1", where, timeout=20)
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Connection": "close", **named})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode())


def run_files(gateway: Running) -> set[str]:
    """What workers share, without the endpoints: those are written a moment after they are known."""
    return {path.name for path in gateway.run_directory().iterdir() if not path.name.startswith("endpoints")}


def counted(where: int, **headers: str) -> dict[str, float]:
    answer = ask(where, "/-/metrics", **headers)
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def requests(samples: dict[str, float], **labels: str) -> float:
    """The sum of all counted requests with these labels."""
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    found = [name for name in samples if name.startswith("gateway_requests_total{")]
    return sum(samples[name] for name in found if all(label in name for label in wanted))


# -- what is told ----------------------------------------------------------------------


def test_two_workers_are_told_of_as_one_and_outlive_their_deaths(start: Start) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}", token: {TOKEN}}}', workers=2, more="access_log: null")
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    def sent(number: int) -> None:
        for _ in range(number):
            assert ask(gateway.port, "/one/x?secret=1").status == 200
            assert ask(gateway.port, "/dead/x", "POST").status == 502
            assert ask(gateway.port, "/nowhere").status == 404

    def agrees(number: int) -> bool:
        found = counted(admin, **bearer)
        return (
            requests(found, route="one", status="200", method="GET", upstream="one") == number
            and requests(found, route="dead", status="502", method="POST") == number
            and requests(found, route="", status="404") == number
            and found['gateway_request_duration_seconds_count{route="one"}'] == number
            and found['gateway_errors_total{reason="connect_refused",route="dead",upstream="dead"}'] == number
            and found['gateway_errors_total{reason="no_route",route="",upstream=""}'] == number
        )

    sent(20)
    wait_until(lambda: agrees(20), "20 of each are counted")
    # No series is made of what a client says.
    text = ask(admin, "/-/metrics", **bearer).text
    for word in ("/one/x", "secret", "nowhere", "localhost", f":{gateway.port}"):
        assert word not in text
    assert 'gateway_endpoint_up{endpoint="127.0.0.1:' in text

    told = ask(admin, "/-/status", **bearer).json
    assert [each["slot"] for each in told["workers"]] == [0, 1]
    assert {each["pid"] for each in told["workers"]} == set(gateway.workers())
    for each in told["workers"]:
        assert each["door"] == {"kind": "direct", "why": ""}
        assert (each["ready"], each["draining"], each["in_flight"]) == (True, False, 0)
        assert each["config"]["version"] == told["workers"][0]["config"]["version"]
    assert [endpoint["workers"] for endpoint in told["upstreams"]["one"]["endpoints"]] == [2]

    config = ask(admin, "/-/config", **bearer)
    assert config.json["version"] == told["workers"][0]["config"]["version"]
    assert config.json["path"].endswith("gateway.yaml")
    assert TOKEN not in config.text

    # Killed again and again, with requests in between: no counter goes back, no file is added.
    files = run_files(gateway)
    for round_ in range(1, 6):
        victim = gateway.workers()[round_ % 2]
        os.kill(victim, signal.SIGKILL)

        def replaced(gone: int = victim) -> bool:
            # One that is being killed may have taken the connection.
            with contextlib.suppress(OSError, http.client.HTTPException):
                pids = {each.get("pid") for each in ask(admin, "/-/status", **bearer).json["workers"]}
                return gone not in pids and len(pids) == 2
            return False

        wait_until(replaced, "a successor took the slot")
        sent(2)
        wait_until(lambda number=20 + 2 * round_: agrees(number), "all are counted, from before and after")
    assert run_files(gateway) == files
    assert sorted(name for name in files if name.endswith(".db")) == [
        "counter_gateway-0.db", "counter_gateway-1.db", "histogram_gateway-0.db", "histogram_gateway-1.db",
    ]  # fmt: skip

    assert gateway.server.stop() == 0, gateway.server.output()
    assert not list(gateway.temporary.iterdir())


def test_who_may_ask(start: Start) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', GATEWAY_ADMIN_TOKEN=TOKEN)
    for page in PAGES:
        refused = ask(admin, page)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="gateway"')
        assert refused.headers["content-type"] == "application/problem+json"
        assert ask(admin, page, Authorization="Bearer wrong").status == 401
        assert ask(admin, page, Authorization=f"Bearer {TOKEN}").status == 200
        head = ask(admin, page, "HEAD", Authorization=f"Bearer {TOKEN}")
        assert (head.status, head.text) == (200, "")
        assert ask(admin, page, "POST", Authorization=f"Bearer {TOKEN}").headers["allow"] == "GET, HEAD"
        assert ask(admin, page, Authorization=f"Bearer {TOKEN}", Host="evil.example").status == 421
        # Nothing of it on the data port, whatever is said of where one came in.
        for host in ("localhost", f"127.0.0.1:{admin}", "a.example"):
            assert ask(gateway.port, page, Authorization=f"Bearer {TOKEN}", Host=host).status == 404
        for spelled in (f"/%2d{page[2:]}", f"//{page}", f"http://127.0.0.1:{admin}{page}", f"/x/..{page}"):
            assert ask(gateway.port, spelled, Authorization=f"Bearer {TOKEN}").status in (400, 404)
    # And no route on the admin port.
    for path in ("/one/x", "/dead", "/", "/-other"):
        assert ask(admin, path, Authorization=f"Bearer {TOKEN}").status == 404
    assert ask(gateway.port, "/-other/x").status == 200
    assert ask(admin, "/-/healthz").text == "ok\n"
    assert ask(admin, "/-/readyz").text == "ready\n"
    # Who watches is no traffic.
    wait_until(lambda: '"/-other/x"' in gateway.server.output(), "the access log has the last request")
    assert not re.search(r'"target": ?"/-/(status|readyz)".*"status":(200|401|421)', gateway.server.output())


def test_silent_connections_keep_nobody_from_the_admin_listener(start: Start) -> None:
    """They take its places, and are closed for those who ask; each is counted by its kind."""
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', more="server: {limits: {connections: 5}}")
    with contextlib.ExitStack() as stack:
        for port in (gateway.port, admin):
            for _ in range(_MOST_ADMIN + 6):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        assert ask(gateway.port, "/-/healthz").status == 200
        assert ask(admin, "/-/healthz").status == 200
        closed = ask(admin, "/-/status").json["workers"][0]["connections_closed"]
        assert closed.keys() == {"silent", "lingering", "idle", "per_client", "full"}
        assert closed["silent"] > 2
        assert (closed["idle"], closed["per_client"]) == (0, 0)
        (silent,) = (number for name, number in counted(admin).items() if 'decision="connection_silent"' in name)
        assert silent >= closed["silent"]


def test_inline_is_on_the_data_port_for_a_token(start: Start) -> None:
    gateway = start("{bind: inline}", more="server: {own_prefix: /_gw/}", workers=2, GATEWAY_ADMIN_TOKEN=TOKEN)
    for page in ("/_gw/status", "/_gw/metrics", "/_gw/config"):
        assert ask(gateway.port, page).status == 401
        assert ask(gateway.port, page, Authorization=f"Bearer {TOKEN}", Host="any.example").status == 200
    assert len(ask(gateway.port, "/_gw/status", Authorization=f"Bearer {TOKEN}").json["workers"]) == 2
    assert "Admin listener" not in gateway.server.output()


def test_off(start: Start) -> None:
    gateway = start("null")
    assert ask(gateway.port, "/one").status == 200
    assert ask(gateway.port, "/-/status").status == 404
    assert "Admin listener" not in gateway.server.output()


def test_a_worker_that_hangs_is_named_and_holds_up_nobody(start: Start) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', workers=2)
    wait_until(lambda: len(ask(admin, "/-/status").json["workers"]) == 2, "both workers tell")
    stopped = gateway.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    try:

        def named() -> bool:
            # A connection that the stopped one has in its hands already gets no answer.
            with contextlib.suppress(OSError):
                workers = ask(admin, "/-/status").json["workers"]
                return [each for each in workers if each.get("problem") == "no answer within 2 s"] != []
            return False

        wait_until(named, "the stopped worker is named")
        assert counted(admin)["gateway_workers_silent"] == 1.0
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_a_draining_worker_answers_to_the_end(start: Start, service: int) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', more="server: {graceful: 60s, timeouts: {body: 60s}}")
    with socket.create_connection(("127.0.0.1", gateway.port)) as held:
        # A request whose body does not come keeps the worker from leaving.
        held.sendall(b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nab")
        wait_until(lambda: ask(admin, "/-/status").json["workers"][0]["in_flight"] == 1, "the request is under way")
        assert counted(admin)['gateway_requests_in_flight{worker="0"}'] == 1.0
        gateway.server.send(signal.SIGTERM)
        wait_until(lambda: ask(admin, "/-/status").json["workers"][0]["draining"], "it is told that the worker leaves")
        wait_until(lambda: not services.accepts(gateway.port), "the data port is closed")
        assert ask(admin, "/-/readyz").status == 503
        assert counted(admin)['gateway_draining{worker="0"}'] == 1.0
        held.sendall(b"c" * 99_998)
        assert held.recv(64).startswith(b"HTTP/1.1 200")
    assert gateway.server.stop() == 0, gateway.server.output()
    assert not services.accepts(admin)


def test_tunnels(start: Start) -> None:
    def echo(exchange: Exchange) -> None:
        exchange.send(head(101, b"Upgrade: websocket", b"Connection: Upgrade"))
        while data := exchange.wire.read_some():
            exchange.send(data)

    admin = free_port()
    with FakeUpstream() as upstream:
        upstream.answer(echo)
        gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', one=upstream.port)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(b"GET /one HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 101")
            wait_until(lambda: counted(admin)['gateway_tunnels_open{worker="0"}'] == 1.0, "the tunnel is told of")
            assert ask(admin, "/-/status").json["workers"][0]["in_flight"] == 1
        wait_until(lambda: counted(admin)['gateway_tunnels_open{worker="0"}'] == 0.0, "the tunnel has ended")
        wait_until(lambda: counted(admin).get('gateway_tunnels_total{route="one"}') == 1.0, "it is counted")
        found = counted(admin)
    assert requests(found, route="one", status="101") == 1
    assert not [name for name in found if name.startswith("gateway_request_duration")]


# -- the socket ------------------------------------------------------------------------


def test_a_taken_port_costs_the_admin_listener_alone(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        gateway = start(f'{{bind: "127.0.0.1:{port}"}}')
        assert ask(gateway.port, "/one").status == 200
        output = gateway.server.output()
        assert re.search(rf"\[ERROR\] No admin listener: 127\.0\.0\.1:{port}: .*in use", output), output


def test_a_unix_socket(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    gateway = start(f"{{bind: unix:{path}}}")
    assert ask(path, "/-/status", Host="any.example").status == 200
    assert ask(path, "/one").status == 404
    assert os.stat(path).st_mode & 0o777 == 0o660
    second = start(f"{{bind: unix:{path}}}")
    assert "another process listens there" in second.server.output()
    assert second.server.stop() == 0
    # The one who has it keeps it, and takes it away at its end.
    assert ask(path, "/-/status").status == 200
    assert gateway.server.stop() == 0
    assert not os.path.exists(path)


def test_it_follows_the_file_at_a_hup_and_stays_through_others(start: Start, tmp_path: Path) -> None:
    first, second = free_ports(2)
    gateway = start(f'{{bind: "127.0.0.1:{first}"}}')
    document = tmp_path / "gateway.yaml"
    text = document.read_text()

    def hup(changed: str) -> None:
        before = set(gateway.workers())
        document.write_text(changed)
        gateway.server.send(signal.SIGHUP)
        wait_until(lambda: bool(gateway.workers()) and not before & set(gateway.workers()), "the old worker has left")

    hup(text + "# the same\n")
    assert ask(first, "/-/status").status == 200
    hup(text.replace(str(first), str(second)))
    wait_until(lambda: services.accepts(second), "it moved")
    assert ask(second, "/-/status").status == 200
    assert not services.accepts(first)
    hup(re.sub("admin: .*", "admin: null", text))
    wait_until(lambda: not services.accepts(second), "it is off")
    assert ask(gateway.port, "/one").status == 200


def test_a_new_master_takes_it_over(start: Start, tmp_path: Path) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', "--pid", str(tmp_path / "pid"))
    gateway.server.send(signal.SIGUSR2)
    successor = tmp_path / "pid.2"
    wait_until(lambda: successor.exists() and successor.read_text().strip() != "", "the new master runs")
    new = int(successor.read_text())
    try:
        wait_until(lambda: gateway.server.output().count("Door: ") == 2, "its worker runs")
        gateway.server.send(signal.SIGTERM)
        assert gateway.server.process is not None
        assert gateway.server.process.wait(30) == 0
        for _ in range(3):
            told = ask(admin, "/-/status").json
            assert [_stat(each["pid"])[1] for each in told["workers"]] == [str(new)]
        assert ask(gateway.port, "/one").status == 200
        assert ask(gateway.port, "/-/status").status == 404
        # It is the new one's own now, and goes where the file says.
        document = tmp_path / "gateway.yaml"
        other = free_port()
        document.write_text(document.read_text().replace(str(admin), str(other)))
        os.kill(new, signal.SIGHUP)
        wait_until(lambda: services.accepts(other) and not services.accepts(admin), "it moved")
        assert ask(other, "/-/status").status == 200
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: _stat(new)[0] == "Z", "the new master has left")
    assert not services.accepts(admin)


def _stat(pid: int) -> list[str]:
    """State, parent and so on of a process (proc(5)); one that is gone is as good as a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["Z", ""]


def test_a_socket_that_systemd_names(start: Start) -> None:
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(2):
            each = stack.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            each.listen(16)
            sockets.append(each)
        admin, data = (each.getsockname()[1] for each in sockets)
        one, two = (each.fileno() for each in sockets)
        script = (
            f'exec 13<&{one} 14<&{two} {one}<&- {two}<&-; exec 3<&13 4<&14 13<&- 14<&-; export LISTEN_FDS=2 '
            f'LISTEN_PID=$$ LISTEN_FDNAMES=admin:data; exec "$@"'
        )
        # It goes before what the file says.
        gateway = start('{bind: "127.0.0.1:1"}', wrap=("bash", "-c", script, "bash"), pass_fds=(one, two), port=data)
        assert ask(admin, "/-/status").status == 200
        assert ask(admin, "/one").status == 404
        assert ask(data, "/one").status == 200
        assert ask(data, "/-/status").status == 404
        assert "(inherited)" in gateway.server.output()
        assert gateway.server.stop() == 0, gateway.server.output()


# -- other workers, other applications -------------------------------------------------


def test_gunicorns_own_worker_tells_them_apart_by_the_accepting_socket(start: Start) -> None:
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', "-k", "gevent", workers=2)
    wait_until(lambda: services.accepts(admin), "the admin listener is there")
    wait_until(lambda: len(ask(admin, "/-/status").json["workers"]) == 2, "both workers tell")
    told = ask(admin, "/-/status").json["workers"][0]
    assert (told["door"]["kind"], told["connections"]) == ("wsgi", None)
    assert ask(admin, "/one").status == 404
    assert ask(admin, "/-/status", Host="evil.example").status == 421
    for host in ("localhost", f"127.0.0.1:{admin}"):
        assert ask(gateway.port, "/-/status", Host=host).status == 404
    assert ask(gateway.port, "/one").status == 200
    wait_until(lambda: requests(counted(admin), route="one") == 1, "it is counted")


def test_what_is_put_round_a_gateway_is_asked_on_our_worker_and_nobody_on_another(start: Start, tmp_path: Path) -> None:
    (tmp_path / "wrapped.py").write_text(
        "from gateway import create_app\n\n\ndef app():\n    inner = create_app()\n"
        "    return lambda environ, start_response: inner(environ, start_response)\n"
    )
    admin = free_port()
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', app="wrapped:app()")
    assert ask(admin, "/-/status").json["workers"][0]["slot"] == 0
    assert ask(admin, "/one").status == 404
    assert ask(gateway.port, "/-/status").status == 404
    assert gateway.server.stop() == 0
    gateway = start(f'{{bind: "127.0.0.1:{admin}"}}', "-k", "gevent", app="wrapped:app()")
    gateway.server.wait_until(
        lambda: "does not answer on the admin listener" in gateway.server.output(), "it is said that nobody is there"
    )
    assert ask(gateway.port, "/-/healthz").status == 200
    assert gateway.server.stop() == 0


def test_what_a_killed_master_left_is_removed_by_the_next(start: Start) -> None:
    gateway = start("null")
    left = gateway.run_directory()
    for pid in (gateway.pid, *gateway.workers()):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not services.accepts(gateway.port), "it is gone")
    old = time.time() - 3600
    os.utime(left, (old, old))
    second = start("null")
    assert second.run_directory() != left
    assert not left.exists()
    # A living one's stays.
    os.utime(second.run_directory(), (old, old))
    start("null")
    assert second.server.process is not None
    assert second.server.process.poll() is None
    assert len(list(second.temporary.glob("wsgi-gateway-run-*"))) == 2
