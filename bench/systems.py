"""The systems under test: how each is found, configured and started.

Rule: real packages, one core, upstream connections kept, no access log but ours, and
whatever favours a peer where its defaults would hold it back for no good reason. One
that cannot be had is told by name and left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.answer import free_port, render, wait_until_right
from bench.proc import BenchError, Program
from bench.upstream import HERE, Place, nginx_user
from tests.parallel import interpreters
from tests.parallel.interpreters import Interpreter

ROUTES = 1_000
# Compiling 10,000 routes, or a first start on a cold disk, may take a while; a hang may not.
START = 60.0

Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True, slots=True)
class System:
    """`prepare` writes the configuration and gives command and environment; `missing` says why it
    cannot be had, or nothing. `proxies` is False for what answers by itself."""

    name: str
    title: str
    missing: Callable[[], str]
    prepare: Callable[[Place, int, str, int], Command]
    version: Callable[[], str]
    proxies: bool = True

    def start(self, place: Place, core: int, upstream: str, probe: bytes, body: bytes, routes: int) -> Running:
        """Start it before `upstream` (`host:port`) and wait until the probe is answered rightly."""
        port = free_port()
        command, env = self.prepare(place, port, upstream, routes)
        program = place.start(self.name, command, core, **env)
        try:
            size = wait_until_right(program, port, probe, body, START).size
        except BaseException:
            program.stop()
            raise
        return Running(program, port, size)


@dataclass(frozen=True, slots=True)
class Running:
    """A started system; `size` is what the probe's answer measured on the wire."""

    program: Program
    port: int
    size: int


def route_path(index: int) -> str:
    """The prefix of one of our routes."""
    return f"/svc{index:05d}"


def by_prefix(index: int) -> str:
    """What a route matches."""
    return f"prefix: {route_path(index)}"


def by_pattern(index: int) -> str:
    """The same by a pattern, which takes the paths of all scenarios."""
    return f"regex: '{route_path(index)}/[a-z0-9.]+'"


def gateway_config(upstream: str, routes: int, log: Path, match: Callable[[int], str]) -> str:
    """Our own configuration: every default on, as many routes as asked for, the access log to a file."""
    lines = [
        "version: 1",
        f'access_log: {{path: "{log}", format: json}}',
        f'upstreams: {{items: {{endpoints: ["http://{upstream}"]}}}}',
        "routes:",
        *(
            f"  - {{name: r{index:05d}, match: {{{match(index)}}}, upstream: items}}"
            for index in range(routes)
        ),
    ]
    return "\n".join(lines) + "\n"


def gateway(
    *options: str, match: Callable[[int], str] = by_prefix, python: str = sys.executable
) -> Callable[[Place, int, str, int], Command]:
    """Ours, started as the documentation says."""

    def prepare(place: Place, port: int, upstream: str, routes: int) -> Command:
        config = place.directory / "gateway.yaml"
        config.write_text(gateway_config(upstream, routes, place.directory / "access.log", match))
        command = [python, "-m", "gunicorn", "-c", str(place.root / "conf" / "gunicorn.conf.py")]
        command += ["-b", f"127.0.0.1:{port}", "-w", "1", *options, "gateway:create_app()"]
        return command, {"GATEWAY_CONFIG": str(config)}

    return prepare


def gateway_on(interpreter: Interpreter) -> Callable[[Place, int, str, int], Command]:
    """Ours on another interpreter. Its environment is created on first use."""

    def prepare(place: Place, port: int, upstream: str, routes: int) -> Command:
        interpreters.prepare(interpreter)
        return gateway(python=str(interpreter.python))(place, port, upstream, routes)

    return prepare


def stock_gunicorn(application: str) -> Callable[[Place, int, str, int], Command]:
    """An application under gunicorn's own gevent worker, its keep-alive and connections raised to our level."""

    def prepare(place: Place, port: int, upstream: str, _: int) -> Command:
        command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}"]
        command += ["--worker-connections", "10000", "--keep-alive", "75", "--no-control-socket", application]
        return command, {"BENCH_UPSTREAM": f"http://{upstream}"}

    return prepare


def configured(template: str, *command: str, **others: str) -> Callable[[Place, int, str, int], Command]:
    """A program with one configuration file (`{}` in its command) and perhaps more beside it."""

    def prepare(place: Place, port: int, upstream: str, _: int) -> Command:
        values = {"dir": place.directory, "port": port, "upstream": upstream, "user": nginx_user()}
        path = render(HERE / "peers" / template, place.directory / template, **values)
        for name, other in others.items():
            render(HERE / "peers" / other, place.directory / f"{name}{path.suffix}", **values)
        return [part.format(path, dir=place.directory) for part in command], {}

    return prepare


def go_proxy(place: Place, port: int, upstream: str, _: int) -> Command:
    """Go's ReverseProxy, compiled when its source has changed."""
    cache = place.root / ".cache" / "bench"
    binary = cache / "goproxy"
    env = {
        **place.env,
        "GOCACHE": str(cache / "go"),
        "GOPATH": str(cache / "gopath"),
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOTELEMETRY": "off",
        "CGO_ENABLED": "0",
    }
    build = [program_path("go"), "build", "-C", str(HERE / "goproxy"), "-o", str(binary), "."]
    done = subprocess.run(build, env=env, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise BenchError(f"go build failed: {done.stderr}")
    return [str(binary), "-listen", f"127.0.0.1:{port}", "-upstream", f"http://{upstream}"], {}


def aiohttp_proxy(_: Place, port: int, upstream: str, __: int) -> Command:
    return [sys.executable, "-m", "bench.aioproxy", str(port), f"http://{upstream}"], {}


def program_path(name: str) -> str:
    """A program beside our Python (as packages from PyPI put it) or on the path; empty if there is none."""
    return shutil.which(name, path=search_path()) or ""


def search_path() -> str:
    """Where programs are looked for; Debian keeps nginx and haproxy out of a user's path."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def needs(*programs: str) -> Callable[[], str]:
    """Missing when one of these programs is."""
    return lambda: ", ".join(f"no program {name}" for name in programs if not program_path(name))


def imports(*distributions: str) -> Callable[[], str]:
    """Missing when one of these distributions is not installed."""

    def missing() -> str:
        have = {item.metadata["Name"].lower() for item in metadata.distributions()}
        return ", ".join(f"no package {name}" for name in distributions if name not in have)

    return missing


def ours_is_there() -> str:
    """Missing in a checkout without the gateway's settings."""
    return "" if (HERE.parent / "conf" / "gunicorn.conf.py").exists() else "no conf/gunicorn.conf.py"


def of(*distributions: str) -> Callable[[], str]:
    """The versions of installed distributions."""
    return lambda: ", ".join(f"{name} {metadata.version(name)}" for name in distributions)


def says(*command: str) -> Callable[[], str]:
    """The first dotted number that a program prints when asked for its version."""

    def version() -> str:
        path = program_path(command[0])
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=20, check=False)
        found = re.search(r"\d+\.\d+(\.\d+)?\S*", done.stdout + done.stderr)
        return found.group().rstrip(",") if found else "unknown"

    return version


STOCK = ("gunicorn", "gevent")
OURS = ("gunicorn", "gevent", "urllib3", "httptools")

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "nginx",
            "nginx",
            needs("nginx"),
            configured("nginx.conf", "nginx", "-p", "{dir}", "-e", "stderr", "-c", "{}"),
            says("nginx", "-v"),
        ),
        System(
            "haproxy",
            "HAProxy",
            needs("haproxy"),
            configured("haproxy.cfg", "haproxy", "-db", "-f", "{}"),
            says("haproxy", "-v"),
        ),
        System("go", "Go httputil.ReverseProxy", needs("go"), go_proxy, says("go", "version")),
        System(
            "traefik",
            "Traefik",
            needs("traefik"),
            configured("traefik.yaml", program_path("traefik"), "--configFile={}", routes="traefik-routes.yaml"),
            says("traefik", "version"),
        ),
        System(
            "caddy",
            "Caddy",
            needs("caddy"),
            configured("caddy.json", "caddy", "run", "--config", "{}"),
            says("caddy", "version"),
        ),
        System("gateway", "wsgi-gateway", ours_is_there, gateway(), of(*OURS)),
        System("gateway-stock", "wsgi-gateway, stock gevent worker", ours_is_there, gateway("-k", "gevent"), of(*OURS)),
        System(
            "aiohttp", "aiohttp proxy, uvloop", imports("aiohttp", "uvloop"), aiohttp_proxy, of("aiohttp", "uvloop")
        ),
        System(
            "hello",
            "gunicorn gevent, hello world",
            imports("gunicorn", "gevent"),
            stock_gunicorn("bench.hello:app"),
            of(*STOCK),
            proxies=False,
        ),
        System(
            "naive",
            "Flask + urllib3 + gunicorn gevent",
            imports("flask", "urllib3", "gunicorn", "gevent"),
            stock_gunicorn("bench.naive:app"),
            of("flask", "urllib3", *STOCK),
        ),
    )
}
