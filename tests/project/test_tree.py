"""What is promised of the files in the checkout: README, unit file, Procfile, scripts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gateway import config
from gateway.hosting import gunicorn_settings
from gateway.model import ServerSettings

SERVER = ServerSettings()


def test_the_configuration_in_the_readme_is_right(root: Path) -> None:
    _, _, rest = (root / "README.md").read_text().partition("```yaml\n")
    text, _, _ = rest.partition("```")
    found = config.loads(text.encode(), "README.md", {})
    assert len(text.splitlines()) <= 10
    assert not found.warnings
    assert [route.name for route in found.routes] == ["users", "stock"]


def _unit(root: Path) -> dict[str, str]:
    lines = (root / "conf" / "gateway.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_outlasts_the_drain(root: Path) -> None:
    unit = _unit(root)
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "mixed"
    assert int(unit["TimeoutStopSec"]) > SERVER.graceful + SERVER.drain
    assert gunicorn_settings.too_few_files(int(unit["LimitNOFILE"]), SERVER.limits.connections) == ""


def test_the_first_statement_of_the_settings_patches(root: Path) -> None:
    first, *_ = (root / "conf" / "gunicorn.conf.py").read_text().splitlines()
    assert first == "from gevent import monkey; monkey.patch_all()"


def test_a_buildpack_accepts_the_checkout(root: Path) -> None:
    assert (root / "requirements.txt").read_text() == ".\n"
    assert (root / ".python-version").read_text().startswith("3.")
    name, _, command = (root / "Procfile").read_text().strip().partition(": ")
    assert name == "web"
    words = shlex.split(command)
    assert words[-4:] == ["gunicorn", "-c", "conf/gunicorn.conf.py", "gateway:create_app()"]


@pytest.mark.parametrize("script", ["run", "test", "lint", "services", "venv", "tools", "lock", "audit", "release", "../.ci/run"])
def test_scripts_stop_at_the_first_failure(root: Path, script: str) -> None:
    path = root / "scripts" / script
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert path.stat().st_mode & 0o111
