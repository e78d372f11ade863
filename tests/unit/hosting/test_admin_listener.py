"""The admin listener's socket, as the master opens it."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from gunicorn import util
from gunicorn.config import Config

from gateway.hosting.admin_listener import AdminListener


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_unix_socket_has_its_final_mode_when_it_appears(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it before a chmod would stay connected."""
    path = tmp_path / "admin.sock"
    modes: list[int] = []
    monkeypatch.setattr(util, "chown", lambda name, uid, gid: modes.append(stat.S_IMODE(os.stat(name).st_mode)))
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(umask)
    listener = AdminListener()
    try:
        listener.open(f"unix:{path}", "", Config(), logging.getLogger("test"))
        assert os.umask(umask) == umask
        assert modes == [stat.S_IMODE(os.stat(path).st_mode)] == [0o660]
    finally:
        os.umask(before)
        listener.close()
