"""Traefik and what `gateway import traefik` makes of its file: the same requests go to the same places.

Traefik is no server that this project's tests install: where the benchmark has fetched one (or PATH has
it) these tests run; elsewhere they are skipped, also in CI, and tests/unit/importers has the same cases as a table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.testing import FakeUpstream, RawClient, answer
from tests import services
from tests.imported import Imported, Went
from tests.unit.importers.traefik_cases import CONFIG, DIFFERENT, REQUESTS, Ask

_PLACES = (os.environ.get("PATH", ""), str(services.ROOT / ".cache" / "bench" / "venv" / "bin"))
PROGRAM = shutil.which("traefik", path=os.pathsep.join(_PLACES))
if PROGRAM is None:
    pytest.skip("Traefik is not here; scripts/bench fetches it", allow_module_level=True)

STATIC = """\
global: {checkNewVersion: false, sendAnonymousUsage: false}
log: {level: ERROR}
entryPoints: {web: {address: "127.0.0.1:PORT"}}
providers: {file: {filename: "FOLDER/dynamic.yaml", watch: false}}
"""


@contextlib.contextmanager
def running(folder: Path, dynamic: str) -> Iterator[int]:
    port = services.free_port()
    (folder / "dynamic.yaml").write_text(dynamic)
    (folder / "static.yaml").write_text(STATIC.replace("PORT", str(port)).replace("FOLDER", str(folder)))
    server = services.Server([str(PROGRAM), f"--configFile={folder}/static.yaml"])
    try:
        server.start()
        server.wait_until(lambda: services.accepts(port), "Traefik listens")
        server.wait_until(lambda: status(port, "/ready") == 200, "Traefik has its routes")
        yield port
    finally:
        server.close()


def status(port: int, target: str) -> int:
    with RawClient(port) as client:
        head = f"GET {target} HTTP/1.1\r\nHost: ready.example\r\nConnection: close\r\n\r\n"
        return client.request(head.encode()).status


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, FakeUpstream]]:
    made = {name: FakeUpstream([answer(b"ok")]) for name in "abcd"}
    yield made
    for upstream in made.values():
        upstream.close()


@pytest.fixture(scope="module")
def dynamic(upstreams: dict[str, FakeUpstream]) -> str:
    text = CONFIG
    for name, upstream in upstreams.items():
        text = text.replace(f"http://{name}.internal", upstream.url)
    return text


@pytest.fixture(scope="module")
def traefik(dynamic: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(tmp_path_factory.mktemp("traefik"), dynamic) as port:
        yield port


@pytest.fixture(scope="module")
def ours(dynamic: str) -> Imported:
    return Imported("traefik", dynamic)


def theirs(port: int, upstreams: dict[str, FakeUpstream], ask: Ask) -> Went:
    for upstream in upstreams.values():
        upstream.forget([answer(b"ok")])
    lines = [f"{ask.method} {ask.target} HTTP/1.1", f"Host: {ask.host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in ask.headers]
    with RawClient(port) as client:
        client.request("".join(f"{line}\r\n" for line in (*lines, "")).encode(), ask.method.encode())
    for upstream in upstreams.values():
        if upstream.requests:
            got = upstream.last
            return Went(upstream.authority, got.target.decode(), (got.header(b"Host") or b"").decode())
    return Went("")


@pytest.mark.parametrize("ask", REQUESTS, ids=[ask.id for ask in REQUESTS])
def test_a_request_goes_where_traefik_sent_it(
    ask: Ask, traefik: int, upstreams: dict[str, FakeUpstream], ours: Imported
) -> None:
    assert ask.of(ours) == theirs(traefik, upstreams, ask)

@pytest.mark.parametrize("ask", DIFFERENT, ids=[ask.id for ask in DIFFERENT])
def test_known_differences(ask: Ask, traefik: int, upstreams: dict[str, FakeUpstream], ours: Imported) -> None:
    assert ask.of(ours) != theirs(traefik, upstreams, ask)
