"""`pip install -U` while the gateway runs: its workers run the code of the master until that is replaced."""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import GatewayProcess
from tests.services import ROOT, Server, free_port, wait_until

CONFIG = """version: 1
discovery: {wait: 0s}
"""
ROUTES = "routes: [{name: all, match: {regex: '/.*'}, respond: {status: 200, body: here}}]\n"


class Package:
    """A wheel of a version of the gateway whose modules do not work together with those of another version."""

    def __init__(self, folder: Path, number: int) -> None:
        name = f"wsgi_gateway-{number}.0-py3-none-any.whl"
        self.path = folder / name
        files = {str(path.relative_to(ROOT)): self._of(path, number) for path in (ROOT / "gateway").rglob("*.py")}
        about = f"wsgi_gateway-{number}.0.dist-info"
        files[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: wsgi-gateway\nVersion: {number}.0\n"
        files[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        lines = [f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in files.items()]
        files[f"{about}/RECORD"] = "".join([*lines, f"{about}/RECORD,,\n"])
        with zipfile.ZipFile(self.path, "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)

    @staticmethod
    def _of(path: Path, number: int) -> str:
        text = path.read_text(encoding="utf-8")
        if path == ROOT / "gateway" / "__init__.py":
            return f"{text}\nNUMBER = {number}\n"
        if path == ROOT / "gateway" / "app.py":
            assert text.count('b"ok\\n"') == 1
            text = text.replace('b"ok\\n"', f'b"ok {number}\\n"')
        return (
            f"{text}\nimport sys as _sys\n"
            f"if _sys.modules['gateway'].NUMBER != {number}:\n    raise ImportError('versions are mixed in ' + __name__)\n"
        )


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Environment:
    """A virtual environment of its own: what the gateway needs comes from that of the tests."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        own = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        (Path(own) / "needed.pth").write_text(sysconfig.get_path("purelib"))

    def install(self, package: Package) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "-U", "--no-index", "--no-deps", str(package.path)], check=True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    folder = tmp_path_factory.mktemp("packages")
    return Package(folder, 1), Package(folder, 2)


@pytest.fixture
def environment(tmp_path: Path, packages: tuple[Package, Package]) -> Environment:
    made = Environment(tmp_path / "environment")
    made.install(packages[0])
    return made


@contextlib.contextmanager
def running(environment: Environment, folder: Path, named: str) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(folder, named, 2, PYTHONPATH="", PATH=f"{environment.python.parent}:{os.environ['PATH']}")
    command = [str(environment.python), "-m", "gateway", "run", "-b", f"127.0.0.1:{gateway.port}", "-w", "2"]
    gateway.server = Server(command, cwd=folder, env=gateway.server.env)
    with gateway:
        yield gateway


def version(gateway: GatewayProcess) -> bytes:
    return gateway.get("/-/healthz")[2]


def replaced(gateway: GatewayProcess, before: list[int]) -> None:
    def served() -> bool:
        now = gateway.pids()
        with contextlib.suppress(OSError):
            return len(now) == 2 and not set(before) & set(now) and version(gateway).startswith(b"ok")
        return False

    gateway.server.wait_until(served, f"other workers serve than {before}")


@pytest.mark.parametrize("source", ["file", "registry"])
def test_workers_run_the_masters_code_until_sigusr2(
    tmp_path: Path, environment: Environment, packages: tuple[Package, Package], source: str
) -> None:
    """A file alone, or a key of a registry too (here one that is away), whose client is a module for those who use it."""
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG if source == "registry" else CONFIG + ROUTES)
    named = f"{file},consul://127.0.0.1:{free_port()}/key" if source == "registry" else str(file)
    with running(environment, tmp_path, named) as gateway:
        assert version(gateway) == b"ok 1\n"
        environment.install(packages[1])
        # One after the other, as with max_requests; then all.
        for pid in gateway.pids():
            os.kill(pid, signal.SIGTERM)
            replaced(gateway, [pid])
        before = gateway.pids()
        gateway.server.send(signal.SIGHUP)
        replaced(gateway, before)
        for _ in range(10):
            assert version(gateway) == b"ok 1\n"
        if source == "file":
            # Another configuration, with parts that the first one did not need.
            file.write_text(CONFIG + ROUTES + 'upstreams: {a: {endpoints: ["http://127.0.0.1:1"], balance: ewma}}\n')
            gateway.logged(" -> ")
        assert "mixed" not in gateway.output()
        assert "cannot start" not in gateway.output()
        in_its_place(gateway)


def in_its_place(gateway: GatewayProcess) -> None:
    """SIGUSR2: a new master, with the new code; the old one ends, and no request fails meanwhile."""
    assert gateway.server.process is not None
    old = gateway.server.process.pid
    workers = gateway.pids()
    gateway.server.send(signal.SIGUSR2)

    def new() -> list[int]:
        return [pid for pid in gateway.pids() if pid not in workers]

    wait_until(lambda: len(new()) == 1, "there is a new master")
    successor = new()[0]
    try:
        wait_until(lambda: version(gateway) == b"ok 2\n", "the new master's workers serve")
        gateway.server.send(signal.SIGTERM)
        assert gateway.server.process.wait(30) == 0
        for _ in range(10):
            assert version(gateway) == b"ok 2\n"
    finally:
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{successor}").exists() or _ended(successor), f"{successor} (of {old}) ends")
    assert "mixed" not in gateway.output()


def _ended(pid: int) -> bool:
    """Whether it is a zombie: its new parent may not look after it."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    return True


def test_the_master_has_every_module_that_its_workers_may_import() -> None:
    program = (
        "import os, sys\n"
        "from gateway.server import settings\n"
        "from types import SimpleNamespace\n"
        "settings._open_admin = lambda server: None\n"
        "settings.when_ready(SimpleNamespace())\n"
        "import gateway.server.worker\n"
        "print('\\n'.join(name for name in sys.modules if name.partition('.')[0] == 'gateway'))\n"
    )
    folder = ROOT / "conf" / "gateway.heroku.yaml"
    env = {**os.environ, "GATEWAY_CONFIG": str(folder), "BACKEND_URL": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "gateway.app" in loaded
    missing = {
        f"{name} imports {wanted}" for name in loaded for wanted in imported(name, loaded) if wanted not in loaded
    }
    assert not missing


def imported(name: str, loaded: set[str]) -> Iterator[str]:
    """The modules of ours that a module imports, also inside its functions; not those for type checkers."""
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] == "gateway")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gateway":
            for one in node.names:
                full = f"{node.module}.{one.name}"
                is_module = ROOT.joinpath(*full.split(".")).with_suffix(".py").exists()
                yield full if is_module else str(node.module)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from running_nodes(node)
