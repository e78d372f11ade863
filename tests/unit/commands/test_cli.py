"""The `gateway` command, as far as it goes without a socket."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.commands import cli

GOOD = """\
version: 1
upstreams: {a: {endpoints: [http://10.0.0.1]}, b: {consul: b}}
routes:
  - {name: rest, upstream: a, match: {prefix: /}}
  - {name: posts, upstream: b, match: {prefix: /posts, methods: [POST, PUT], headers: {X-Beta: 1}, query: {v: 2}}}
  - {name: many, upstream: b, match: [{regex: '/u/[0-9]+'}, {path: /u, host: '*.example.com'}], priority: 5}
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints does not depend on who runs the tests."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text("version: 1\nroutes: [{name: r, upstream: nope}]\nserver: {drain: 5}\n")
    return path


def gateway(*arguments: object, **environ: str) -> Result:
    clean = dict.fromkeys(("GATEWAY_CONFIG", "GATEWAY_TRUSTED_PROXIES", "CONSUL_HTTP_ADDR", "DYNO"))
    return CliRunner().invoke(cli.main, [str(one) for one in arguments], env={**clean, **environ})


# -- check -----------------------------------------------------------------------------


def test_check_says_ok(good: Path) -> None:
    found = gateway("check", good)
    assert (found.exit_code, found.stdout, found.stderr) == (0, "ok: 3 routes, 2 upstreams\n", "")


def test_check_counts_one(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("version: 1\nupstreams: {a: {consul: a}}\nroutes: [{name: r, upstream: a}]\n")
    assert gateway("check", path).stdout == "ok: 1 route, 1 upstream\n"


def test_check_tells_every_mistake(bad: Path) -> None:
    found = gateway("check", bad)
    assert found.exit_code == 1
    assert found.stdout == ""
    assert [line.split(": ")[:2] for line in found.stderr.splitlines()] == [
        [f"{bad}:2:30", "routes[0].upstream"],
        [f"{bad}:3:17", "server.drain"],
    ]


def test_check_warns_and_is_content(good: Path) -> None:
    found = gateway("check", good, DYNO="web.1")
    assert (found.exit_code, found.stdout) == (0, "ok: 3 routes, 2 upstreams\n")
    assert found.stderr.startswith(f"warning: {good}:1:1: DYNO is set")


@pytest.mark.parametrize("port", ["8000", ""])
@pytest.mark.parametrize(("euid", "warned"), [(0, True), (1000, False)])
def test_check_warns_of_serving_as_root(
    euid: int, port: str, warned: bool, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where clients are on this machine alone: a proxy in front hands others' requests on."""
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    found = gateway("check", good, PORT=port)
    assert found.exit_code == 0
    assert ("warning: root would serve" in found.stderr) is warned


OWN = """\
version: 1
upstreams:
  own: {endpoints: ["http://localhost:PORT", {url: "http://[64:ff9b::7f00:1]:9901"}, "http://192.0.2.1:PORT"]}
routes:
  - {name: own, match: {prefix: /}, upstream: own}
"""


@pytest.mark.parametrize(
    ("arguments", "environ", "port", "listens"),
    [
        ((), {}, "8000", "127.0.0.1:8000"),
        ((), {"PORT": "5000"}, "5000", "0.0.0.0:5000"),
        (("-b", "127.0.0.1:7000"), {"PORT": "5000"}, "7000", "127.0.0.1:7000"),
        (("--bind", ":7000"), {}, "7000", ":7000"),
    ],
)
def test_check_warns_of_own_listeners(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], port: str, listens: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("PORT", port))
    found = gateway("check", path, *arguments, **{"PORT": "", "GATEWAY_ADMIN": "", **environ})
    assert found.exit_code == 0
    assert [line for line in found.stderr.splitlines() if "gateway itself" in line] == [
        f"warning: {path}:3:21: upstreams.own.endpoints[0]: is not used: localhost:{port} is this gateway itself, which listens on {listens}",
        f"warning: {path}:3:52: upstreams.own.endpoints[1].url: is not used: [64:ff9b::7f00:1]:9901 is this gateway itself, which listens on 127.0.0.1:9901",
    ]


def test_check_warns_of_no_listener_that_is_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("PORT", "8000"))
    found = gateway("check", path, "-b", "unix:/run/8000", GATEWAY_ADMIN="off")
    assert (found.exit_code, found.stderr) == (0, "")


def test_check_names_a_port_that_is_none(good: Path) -> None:
    found = gateway("check", good, PORT="http")
    assert found.exit_code == 1
    assert "PORT" in found.stderr


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = gateway("check", tmp_path / "x")
    assert (found.exit_code, found.stderr) == (1, f"{tmp_path}/x: cannot be read: No such file or directory\n")
    found = gateway("check", tmp_path)
    assert (found.exit_code, found.stderr) == (1, f"{tmp_path}: cannot be read: Is a directory\n")


# -- routes, schema ----------------------------------------------------------------------


def test_routes_in_the_order_of_precedence(good: Path) -> None:
    found = gateway("routes", "-c", good)
    assert found.exit_code == 0
    assert [line.split() for line in found.stdout.splitlines()] == [
        ["PRIORITY", "HOST", "PATH", "METHODS", "CONDITIONS", "ROUTE", "UPSTREAM"],
        ["5", "*.example.com", "=", "/u", "*", "-", "many", "b"],
        ["5", "*", "~", "/u/[0-9]+", "*", "-", "many", "b"],
        ["0", "*", "/posts", "POST,PUT", "x-beta:", "1;", "?v=2", "posts", "b"],
        ["0", "*", "/", "*", "-", "rest", "a"],
    ]
    assert gateway("routes", GATEWAY_CONFIG=str(good)).stdout == found.stdout


def test_routes_tell_what_becomes_of_requests(tmp_path: Path) -> None:
    path = tmp_path / "shaped.yaml"
    path.write_text(
        "version: 1\nupstreams: {a: {consul: a}, b: {consul: b}}\nroutes:\n"
        "  - {name: split, match: {path: /1}, split: [{upstream: a, weight: 95}, {upstream: b, weight: 5}]}\n"
        "  - {name: copied, match: {path: /2}, upstream: a, mirror: {upstream: b, percent: 10}}\n"
        "  - {name: moved, match: {path: /3}, redirect: {path: /new, status: 301}}\n"
        "  - {name: fixed, match: {path: /4}, respond: {status: 200}}\n"
    )
    found = gateway("routes", "-c", path)
    head, *lines = found.stdout.splitlines()
    assert [line[head.index("UPSTREAM") :] for line in lines] == [
        "a 95%, b 5%",
        "a, 10% copied to b",
        "-> 301 /new",
        "200 fixed",
    ]


def test_routes_of_a_bad_file(bad: Path) -> None:
    assert gateway("routes", "--config", bad).exit_code == 1


def test_no_configuration_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gateway.config.source.PLACES", ("conf/gateway.yaml", str(tmp_path / "none")))
    found = gateway("routes")
    assert found.exit_code == 1
    assert found.stderr.startswith("no configuration: set GATEWAY_CONFIG, ")


def test_schema_is_json() -> None:
    found = gateway("schema")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["properties"]["version"]["const"] == 1


# -- explain -----------------------------------------------------------------------------


def test_explain_tells_who_wins_and_what_is_sent(good: Path) -> None:
    found = gateway("explain", "POST", "http://a/posts/1?v=2", "-H", "X-Beta: 1", "-H", "X-Empty:", "-c", good)
    assert (found.exit_code, found.stderr) == (0, "")
    assert f"route      posts  {good}:5" in found.stdout
    assert "  POST /posts/1?v=2 HTTP/1.1\n  Host: a\n  X-Beta: 1\n  X-Empty: \n" in found.stdout
    assert "the host a is not *.example.com" in found.stdout


def test_explain_as_json(good: Path) -> None:
    found = gateway("explain", "--json", "GET", "/x", "--peer", "10.9.9.9", GATEWAY_CONFIG=str(good))
    told = json.loads(found.stdout)
    assert (found.exit_code, told["route"], told["forwarded"]) == (0, "rest", True)
    assert "X-Real-IP: 10.9.9.9" in told["sent"][0]["lines"]


def test_explain_ends_with_2_when_nothing_is_forwarded(good: Path, bad: Path) -> None:
    found = gateway("explain", "GET", "/../x", "-c", good)
    assert found.exit_code == 2
    assert "400 bad_path" in found.stdout
    assert gateway("explain", "GET", "/", "-c", bad).exit_code == 1


@pytest.mark.parametrize("header", ["no colon", ": no name", ""])
def test_explain_refuses_what_is_no_header(header: str, good: Path) -> None:
    found = gateway("explain", "GET", "/", "-c", good, "-H", header)
    assert found.exit_code == 2
    assert "a header is 'Name: value'" in found.stderr


def test_explain_refuses_a_peer_that_is_no_address(good: Path) -> None:
    found = gateway("explain", "GET", "/", "-c", good, "--peer", "somebody")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "'somebody' does not appear to be an IPv4 or IPv6 address" in found.stderr


def test_explain_refuses_two_lines_in_one(good: Path) -> None:
    found = gateway("explain", "GET", "/", "-c", good, "-H", "A: b\r\nC: d")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "holds no line end" in found.stderr


# -- diff --------------------------------------------------------------------------------


def test_diff_of_the_same_is_nothing(good: Path) -> None:
    found = gateway("diff", good, good)
    assert (found.exit_code, found.stdout, found.stderr) == (0, "nothing changes\n", "")


def test_diff_tells_and_ends_with_1(good: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(GOOD.replace("upstream: a,", "upstream: b,"))
    found = gateway("diff", good, new)
    assert (found.exit_code, found.stdout) == (1, "~  route rest  upstream  a -> b\n")


@pytest.mark.parametrize("zipped", [False, True])
def test_diff_replays_a_log(zipped: bool, good: Path, tmp_path: Path) -> None:
    new, log = tmp_path / "new.yaml", tmp_path / "log"
    new.write_text(GOOD.replace("upstream: a,", "upstream: b,"))
    lines = b'{"method": "GET", "host": "h", "target": "/x", "route": "rest"}\n' * 3 + b"x" * 3_000_000 + b"\n"
    log.write_bytes(gzip.compress(lines) if zipped else lines)
    found = json.loads(gateway("diff", good, new, "--requests", log, "--json").stdout)
    assert len(found["changes"]) == 1
    assert found["replay"]["groups"] == [
        {"old": "rest (a)", "new": "rest (b)", "number": 3, "examples": ["GET h /x"] * 3}
    ]
    assert found["replay"]["unreadable"] == 3  # a line without end comes in pieces


def test_no_control_sequences_from_a_log(good: Path, tmp_path: Path) -> None:
    new, log = tmp_path / "new.yaml", tmp_path / "log"
    new.write_text(GOOD.replace("upstream: a,", "upstream: b,"))
    log.write_text(json.dumps({"method": "\x1b[31mGET", "host": "h", "target": "/x", "route": "rest"}))
    told = gateway("diff", good, new, "--requests", log).stdout
    assert "\\x1b[31mGET h /x" in told
    assert "\x1b" not in told


def test_diff_ends_with_2_when_there_is_trouble(good: Path, bad: Path, tmp_path: Path) -> None:
    assert gateway("diff", good, bad).exit_code == 2
    assert gateway("diff", tmp_path / "none", good).exit_code == 2
    assert gateway("diff", good, good, "--requests", tmp_path / "none").exit_code == 2
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"x" * 1000)[:-12])
    found = gateway("diff", good, good, "--requests", broken)
    assert (found.exit_code, found.stdout) == (2, "")
    assert f"{broken}: cannot be read: " in found.stderr


# -- run ---------------------------------------------------------------------------------


class Replaced(Exception):
    """`execv` never returns."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process would have been replaced by."""
    calls: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        assert program == arguments[0]
        calls.append([*arguments, os.environ["GATEWAY_CONFIG"]])
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    return calls


SERVES = [sys.executable, "-m", "gunicorn", "-c", "python:gateway.server.settings"]


def test_run_becomes_gunicorn(good: Path, executed: list[list[str]]) -> None:
    assert isinstance(gateway("run", "-c", good).exception, Replaced)
    assert isinstance(gateway("run", "-c", good, "-b", "127.0.0.1:0", "-w", 3, "--admin", "off").exception, Replaced)
    assert isinstance(gateway("run", GATEWAY_CONFIG=str(good)).exception, Replaced)
    assert executed == [
        [*SERVES, "gateway:create_app()", str(good)],
        [*SERVES, "-b", "127.0.0.1:0", "-w", "3", "gateway:create_app()", str(good)],
        [*SERVES, "gateway:create_app()", str(good)],
    ]


def test_run_names_the_file_by_its_whole_path(
    good: Path, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good.parent)
    gateway("run", "-c", good.name, GATEWAY_CONFIG="/somewhere/else")
    assert executed[0][-1] == str(good)


def test_run_refuses_a_bad_file(bad: Path, executed: list[list[str]]) -> None:
    found = gateway("run", "-c", bad)
    assert found.exit_code == 1
    assert "routes[0].upstream" in found.stderr
    assert executed == []


@pytest.mark.parametrize("bind", ["127.0.0.1:80", "[::1]:80", ":80", "localhost:0", "unix:/run/gw.sock", "fd://3"])
def test_binds(bind: str, good: Path, executed: list[list[str]]) -> None:
    gateway("run", "-c", good, "-b", bind)
    assert executed[0][5:7] == ["-b", bind]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-b", "127.0.0.1"),
        ("-b", "127.0.0.1:65536"),
        ("-b", "::1:80"),
        ("-b", "http://a:80"),
        ("-b", ""),
        ("-b", "unix:"),
        ("-w", "0"),
        ("-w", "two"),
        ("--admin", "9901"),
        ("--admin", "127.0.0.1:65536"),
        ("--admin", "unix:admin.sock"),
        ("--admin", "on"),
        ("--admin", ""),
        ("--reload",),
    ],
)
def test_what_run_refuses(arguments: tuple[str, ...], good: Path, executed: list[list[str]]) -> None:
    found = gateway("run", "-c", good, *arguments)
    assert found.exit_code == 2
    assert arguments[0] in found.stderr
    assert executed == []


@pytest.mark.parametrize("admin", ["127.0.0.1:9901", "[::1]:0", "localhost:1", "unix:/run/gateway/admin.sock", "off"])
def test_where_admin_is_goes_along_in_the_environment(
    admin: str, good: Path, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN", "127.0.0.1:1")
    gateway("run", "-c", good, "--admin", admin)
    assert len(executed) == 1
    assert os.environ["GATEWAY_ADMIN"] == admin


@pytest.mark.parametrize("admin", ["inline", "0.0.0.0:9901", ":9901", "admin.example:9901"])
def test_admin_that_others_reach_needs_a_token(
    admin: str, good: Path, executed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN", "")
    found = gateway("run", "-c", good, "--admin", admin)
    assert found.exit_code == 1
    assert "needs a token" in found.stderr
    assert executed == []
    told = gateway("run", "-c", good, "--admin", admin, GATEWAY_ADMIN_TOKEN="sixteen-or-more!")
    assert isinstance(told.exception, Replaced)


WATCH = """
import json, os, sys
def execv(program, arguments):
    watched = ("ssl", "_ssl", "urllib3", "requests", "gunicorn", "gevent", "flask")
    told = [name for name in watched if name in sys.modules]
    print(json.dumps([told, arguments, os.environ["GATEWAY_CONFIG"]]))
    sys.stdout.flush()
    os._exit(0)
os.execv = execv
from gateway.commands.cli import main
main(["run", "-c", sys.argv[1], "-w", "2"])
"""


def test_run_imports_neither_ssl_nor_urllib3(good: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(good)], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    imported, arguments, path = json.loads(done.stdout)
    assert imported == []
    assert arguments == [*SERVES, "-w", "2", "gateway:create_app()"]
    assert path == str(good)


def test_python_m_gateway_is_the_command(good: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", str(good)], env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "ok: 3 routes, 2 upstreams\n")
