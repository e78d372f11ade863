"""What the gateway is installed from, and as whom systemd runs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import services

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def pins(lock: str) -> dict[str, str]:
    """Each package's version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock, re.MULTILINE))


# -- the lock ------------------------------------------------------------------------------


def test_every_pin_has_hashes(lock: str, pins: dict[str, str]) -> None:
    assert len(pins) > 30
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        if not entry.startswith("#"):
            assert re.fullmatch(r"\S+==\S+(?: \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]


def test_the_lock_holds_what_setup_asks_for(pins: dict[str, str]) -> None:
    """Else: scripts/lock."""
    asked = [Requirement(one) for one in importlib.metadata.requires("wsgi-gateway") or []]
    assert len(asked) > 15
    wrong = [str(one) for one in asked if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))]
    assert wrong == []


def test_the_lock_names_no_index_and_no_place(lock: str) -> None:
    assert not re.search(r"://|^-|(?<![\w-])/\w", "\n".join(line for line in lock.splitlines() if line[:1] not in "# "), re.M)


def test_buildpacks_still_install_the_checkout() -> None:
    assert (ROOT / "requirements.txt").read_text() == ".\n"


# -- the audit -----------------------------------------------------------------------------


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}, {"id": "X-2", "fix_versions": []}]}
SKIPPED = {"name": "c", "skip_reason": "no answer"}


@pytest.mark.parametrize(
    ("packages", "status", "lines"),
    [
        ([GOOD], 0, ["no known vulnerability in 1 packages of requirements.lock"]),
        ([GOOD, BAD], 1, ["b 2: X-1 (fixed in 3)", "b 2: X-2 (fixed in no version)"]),
        ([SKIPPED], 0, ["SKIPPED 1 of 1 packages (c): no answer"]),
        ([GOOD, SKIPPED], 0, ["SKIPPED 1 of 2 packages (c): no answer", "no known vulnerability in 1 packages of requirements.lock"]),
        ([BAD, SKIPPED], 1, ["b 2: X-1 (fixed in 3)", "b 2: X-2 (fixed in no version)", "SKIPPED 1 of 2 packages (c): no answer"]),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_up_is_skipped_aloud(packages: list[object], status: int, lines: list[str]) -> None:
    assert _script("audited").judged(packages) == (lines, status)


# -- systemd -------------------------------------------------------------------------------


def test_the_unit_is_exposed_to_little() -> None:
    found = shutil.which("systemd-analyze")
    services.allowed("systemd-analyze", "" if found else "not installed (Debian: apt-get install systemd)")
    # The threshold is in tenths.
    command = [str(found), "security", "--offline=true", "--threshold=25", "--no-pager", str(ROOT / "conf/gateway.service")]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SYSTEMD_COLORS": "0"})
    assert told.returncode == 0, told.stdout[-200:] + told.stderr[-200:]
    overall = re.search(r"Overall exposure level for gateway\.service: ([0-9.]+)", told.stdout)
    assert overall is not None
    assert float(overall[1]) <= 2.5


def test_the_unit_has_what_the_gateway_needs() -> None:
    unit = (ROOT / "conf/gateway.service").read_text().splitlines()
    for line in (
        "StateDirectory=gateway",
        "CapabilityBoundingSet=",
        "DynamicUser=yes",
        # Upstreams, DNS, the admin socket and the workers' meeting place.
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        # gunicorn's heartbeat files.
        "SystemCallFilter=@chown",
    ):
        assert line in unit
    assert any("--require-hashes -r requirements.lock" in line for line in unit)


def test_a_socket_stands_beside_the_unit() -> None:
    socket = (ROOT / "conf/gateway.socket").read_text().splitlines()
    assert "ListenStream=80" in socket
    assert "WantedBy=sockets.target" in socket
    # That name would make it the admin listener.
    assert "FileDescriptorName=admin" not in socket
