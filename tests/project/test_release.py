"""`scripts/release`: what it makes, and that it fails for a wheel that does not serve."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import long

HELLO = """\
#!{python}
import http.server, sys
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("-b") + 1].rpartition(":")[2])), Hello).serve_forever()
"""
ENDS = "#!{python}\nimport sys\nsys.exit('no such module')\n"


# -- the proof that an installed gateway serves ---------------------------------------------


def serves(root: Path, folder: Path, program: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [sys.executable, root / "scripts" / "serves.py", folder, program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_gateway_that_serves(root: Path, tmp_path: Path) -> None:
    found = serves(root, tmp_path / "empty", Path(sys.executable).with_name("gateway"))
    assert found.returncode == 0, found.stderr
    assert "answered as they should" in found.stderr


@pytest.mark.parametrize(
    ("text", "told"), [(ENDS, ["/-/healthz: ", "it ended with status 1", "no such module"]), (HELLO, ["/other: 200 b'hello', not 404"])]
)
def test_a_program_that_does_not(text: str, told: list[str], root: Path, tmp_path: Path) -> None:
    program = tmp_path / "gateway"
    program.write_text(text.format(python=sys.executable))
    program.chmod(0o755)
    found = serves(root, tmp_path / "empty", program)
    assert found.returncode == 1
    assert [one for one in told if one not in found.stderr] == []


# -- the whole script -----------------------------------------------------------------------


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A copy, so that nothing is written beside the tests; with the environments of this one."""
    if not long.either(False, True):
        pytest.skip("scripts/release takes half a minute: with --long")
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("gateway", "scripts"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
        shutil.copy(root / name, copy / name)
    for name in (".venv", ".cache"):
        (copy / name).symlink_to(root / name)
    return copy


def release(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / "scripts" / "release"], capture_output=True, text=True, timeout=600, check=False)


def test_what_a_release_holds(checkout: Path) -> None:
    (checkout / "dist").mkdir()
    (checkout / "dist" / "of-before.whl").touch()
    done = release(checkout)
    assert done.returncode == 0, done.stderr
    wheel, sdist, sbom = _made(checkout)
    modules = {path.relative_to(checkout).as_posix() for path in (checkout / "gateway").rglob("*") if path.suffix in (".py", ".typed")}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert archive.read(points).decode().split() == ["[console_scripts]", "gateway", "=", "gateway.commands.cli:main"]
    assert {name for name in names if ".dist-info/" not in name} == modules
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert modules | {"setup.py", "README.md", "LICENSE"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "bench", ".cache", ".venv"))]
    _check_sbom(json.loads(sbom.read_text()), checkout)


def _made(checkout: Path) -> tuple[Path, Path, Path]:
    """Wheel, sdist and SBOM: nothing else is in dist."""
    dist = checkout / "dist"
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    assert {path.name for path in dist.iterdir()} == {wheel.name, sdist.name, "sbom.cdx.json"}
    return wheel, sdist, dist / "sbom.cdx.json"


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_sbom(sbom: dict[str, object], checkout: Path) -> None:
    """What the wheel runs with, at the locked versions, and nothing of the machine that made it."""
    assert sbom["bomFormat"] == "CycloneDX"
    components = sbom["components"]
    assert isinstance(components, list)
    versions = {_normal(one["name"]): one["version"] for one in components}
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\]+)", (checkout / "requirements.lock").read_text(), re.MULTILINE))
    assert versions.pop("wsgi-gateway")
    assert versions == {name: locked.get(name) for name in versions}
    assert {"gunicorn", "gevent", "urllib3", "flask", "google-re2"} <= versions.keys()
    assert not {"pytest", "mypy", "ruff"} & versions.keys()
    text = json.dumps(sbom)
    assert str(checkout) not in text
    assert "file:" not in text


def test_a_wheel_that_does_not_serve_is_no_release(checkout: Path) -> None:
    """A module that the sources name, and that packaging left out."""
    (checkout / "gateway" / "server" / "settings.py").unlink()
    done = release(checkout)
    assert done.returncode != 0
    assert "scripts/serves.py: /-/healthz: " in done.stderr
    assert "ready in dist/" not in done.stderr
