"""apt installs from a flat repository behind the gateway: its requests have a single-dot segment.

`deb URL ./` in a list makes apt ask for `URL/./Packages` (sources.list(5), "exact path").
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import services
from tests.gateway_process import GatewayProcess

PACKAGE, VERSION = "gateway-flat-test", "1.0"


def _member(name: str, data: bytes) -> bytes:
    """One member of an ar archive (deb(5))."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


CONTROL = (
    f"Package: {PACKAGE}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a test\n"
)
DEB = b"!<arch>\n" + b"".join(
    _member(name, data)
    for name, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", _tar({"control": CONTROL.encode()})),
        ("data.tar.gz", _tar({"usr/share/gateway-flat-test": b"ok\n"})),
    )
)


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder, and notes the targets as they came."""

    targets: list[str]

    def do_GET(self) -> None:
        self.targets.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A flat repository behind a server of its own: its URL, and the targets that were asked for."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / f"{PACKAGE}.deb").write_bytes(DEB)
    sums = f"Size: {len(DEB)}\nSHA256: {hashlib.sha256(DEB).hexdigest()}\n"
    index = f"{CONTROL}Filename: ./{PACKAGE}.deb\n{sums}\n".encode()
    (folder / "Packages").write_bytes(index)
    (folder / "Packages.gz").write_bytes(gzip.compress(index))
    kind = type("Files", (_Files,), {"targets": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind.targets
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _apt(folder: Path, source: str, *command: str) -> subprocess.CompletedProcess[str]:
    """apt-get with nothing of the machine's: own lists, own caches, no keys, no hooks."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/sources.list.d", "etc/preferences.d"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb [trusted=yes] {source} ./\n")
    (folder / "status").touch()
    (folder / "apt.conf").write_text(
        f"""
        Dir::State "{folder}/state"; Dir::State::status "{folder}/status"; Dir::Cache "{folder}/cache";
        Dir::Etc "{folder}/etc"; Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Log "{folder}";
        APT::Sandbox::User ""; APT::Architecture "amd64"; Acquire::Languages "none"; Acquire::Retries "0";
        Acquire::http::Proxy "DIRECT"; Acquire::http::Timeout "30"; Debug::NoLocking "true";
        """
    )
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        ["apt-get", "-q", *command],
        cwd=folder, env={**kept, "APT_CONFIG": str(folder / "apt.conf"), "LC_ALL": "C"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("strip", [False, True])
def test_a_flat_repository(tmp_path: Path, repository: tuple[str, list[str]], strip: bool) -> None:
    services.allowed("apt-get", "" if services.find("apt-get") else "only Debian and its relatives have it")
    url, targets = repository
    config = tmp_path / "gateway.yaml"
    prefix, option = ("/apt", ", strip_prefix: true") if strip else ("", "")
    config.write_text(
        f"version: 1\nadmin: null\naccess_log: null\nupstreams:\n  files: {{endpoints: ['{url}']}}\n"
        f"routes:\n  - {{name: files, match: {{prefix: '{prefix}/'}}, upstream: files{option}}}\n"
    )
    with GatewayProcess(tmp_path, str(config), workers=1) as gateway:
        folder = tmp_path / "apt"
        folder.mkdir()
        source = f"http://127.0.0.1:{gateway.port}{prefix}"
        updated = _apt(folder, source, "update")
        assert updated.returncode == 0, updated.stdout + updated.stderr
        fetched = _apt(folder, source, "download", PACKAGE)
        assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert [found.read_bytes() for found in folder.glob("*.deb")] == [DEB]
    assert any(target.startswith("/./Packages") for target in targets), targets
    assert f"/./{PACKAGE}.deb" in targets
