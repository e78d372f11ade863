"""The other interpreters of this machine that the package supports, each with a virtual environment of its own.

Rule: an interpreter that is not here is skipped by name. Nothing is installed system-wide.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# As the classifiers of setup.py name them.
SUPPORTED = ("3.11", "3.12", "3.13")
_VERSION = "import sys; print(sys.version.split()[0], sys.implementation.name)"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`version`: three numbers, such as 3.12.1."""

    version: str
    path: Path

    @property
    def folder(self) -> Path:
        return ROOT / ".cache" / "pythons" / self.version

    @property
    def python(self) -> Path:
        """The interpreter inside the virtual environment."""
        return self.folder / "bin" / "python"


def candidates() -> list[Path]:
    """Programs that may be one: on PATH, Debian's own, pyenv's versions."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: list[Path] = []
    for minor in SUPPORTED:
        on_path = shutil.which(f"python{minor}")
        places = [Path(on_path)] if on_path else []
        places.append(Path(f"/usr/bin/python{minor}"))
        places += sorted(pyenv.glob(f"{minor}.*/bin/python{minor}"))
        found += [place for place in places if place.exists()]
    return found


def version(path: Path) -> str:
    """The version of a supported CPython at `path`; "" for anything else, such as a shim of pyenv that leads nowhere."""
    try:
        told = subprocess.run([path, "-c", _VERSION], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.fullmatch(r"((\d+\.\d+)\.\d+) cpython\n", told)
    return found[1] if found and found[2] in SUPPORTED else ""


def others() -> list[Interpreter]:
    """One for each version but the one that runs this."""
    here = ".".join(map(str, sys.version_info[:3]))
    found: dict[str, Interpreter] = {}
    for path in candidates():
        told = version(path)
        if told and told != here:
            found.setdefault(told, Interpreter(told, path))
    return [found[told] for told in sorted(found)]


def missing(interpreters: list[Interpreter]) -> dict[str, str]:
    """Supported minor versions that neither this interpreter nor the others are, and what that costs."""
    minors = {each.version.rpartition(".")[0] for each in interpreters} | {".".join(map(str, sys.version_info[:2]))}
    return {
        f"Python {minor}": "unit tests SKIPPED on it; pyenv install " + minor
        for minor in SUPPORTED
        if minor not in minors
    }


def requirements() -> list[str]:
    """What the package and its tests need. The package itself is not among it: conftest.py puts the checkout on the path."""
    found = []
    for each in map(Requirement, metadata.requires("wsgi-gateway") or ()):
        if each.marker is None or each.marker.evaluate({"extra": "test"}):
            each.marker = None
            found.append(str(each))
    return found


def _stamp() -> str:
    return hashlib.sha256((ROOT / "setup.py").read_bytes()).hexdigest()


def ready(interpreter: Interpreter) -> bool:
    """Whether its environment was made for this setup.py."""
    done = interpreter.folder / "installed"
    return done.exists() and done.read_text() == _stamp()


def prepare(interpreter: Interpreter) -> None:
    """Make its environment, unless it is ready. Raises subprocess.CalledProcessError."""
    if ready(interpreter):
        return
    interpreter.folder.parent.mkdir(parents=True, exist_ok=True)
    # The pip of this environment installs into that one, as Debian keeps ensurepip in a package of its own.
    subprocess.run([interpreter.path, "-m", "venv", "--clear", "--without-pip", interpreter.folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter.python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *requirements()], check=True)
    (interpreter.folder / "installed").write_text(_stamp())


if __name__ == "__main__":
    # One interpreter of `others()`, prepared, then in the place of this process: PATH VERSION ARGUMENTS...
    chosen = Interpreter(sys.argv[2], Path(sys.argv[1]))
    prepare(chosen)
    os.execv(chosen.python, [str(chosen.python), *sys.argv[3:]])
