"""moto's S3 server, and boto3 as its client, in a virtual environment of their own.

Rule: they are 140 MB with what they need, too much for the extras of the package. The environment is made once, in
.cache; where an index does not have them, tests are skipped by name.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

from tests.services import ROOT, Server, accepts, allowed, free_port

# The extra `server` of moto brings what a dozen other services need.
_PACKAGES = ("moto[s3]==5.2.5", "boto3==1.44.8", "flask", "flask-cors")
_FOLDER = ROOT / ".cache" / "s3"
_STAMP = _FOLDER / "installed"


def python() -> Path:
    """The interpreter that has them; or the calling test is skipped by name."""
    _FOLDER.parent.mkdir(exist_ok=True)
    with (_FOLDER.parent / "s3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_STAMP.exists() and _STAMP.read_text() == " ".join(_PACKAGES)):
            allowed("boto3 and moto", _install())
            _STAMP.write_text(" ".join(_PACKAGES))
    return _FOLDER / "bin" / "python"


def _install() -> str:
    """The reason why they cannot be had; "" if they can."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    # The pip of this environment installs into that one, as Debian keeps ensurepip in a package of its own.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", _FOLDER], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(_FOLDER / "bin" / "python"), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", *_PACKAGES], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"pip cannot install them: {done.stderr.strip().splitlines()[-1]}"


class S3:
    """The server on a loopback port, state in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        self.python = python()
        self._server = Server([str(self.python), "-m", "moto.server", "-p", str(self.port)], cwd=_FOLDER)

    def __enter__(self) -> S3:
        self._server.start()
        self._server.wait_until(lambda: accepts(self.port), "moto listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
