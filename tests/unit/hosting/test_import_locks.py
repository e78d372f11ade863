"""Import locks after gevent has patched inside an import, with and without another copy of `_thread`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# ddtrace's bootstrap does this before any module of ours is imported (ddtrace/bootstrap/cloning.py).
OTHER_COPY = """
import sys
for name in [name for name in sys.modules if name in ("_thread", "threading") or name.startswith("concurrent.futures")]:
    del sys.modules[name]
"""

PATCHES = """
from gevent import monkey
monkey.patch_all()
from gateway.hosting import import_locks
import_locks.restore()
import xml.dom.minidom
"""


@pytest.mark.parametrize("before", ["", OTHER_COPY], ids=["plain", "another copy"])
def test_an_import_that_patches_ends_well(tmp_path: Path, before: str) -> None:
    (tmp_path / "outer.py").write_text("import inner")
    (tmp_path / "inner.py").write_text(PATCHES)
    code = before + "import outer, json.tool\nprint('imported')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("imported\n", "", 0)
