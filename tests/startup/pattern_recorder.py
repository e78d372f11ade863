"""Notes every regular expression that code of the gateway compiles in this process.

Rule: imports next to nothing, as it runs before anything else in each Python process that a test starts, and changes
nothing for that process. What functions compile is appended to a file at once, so that a kill loses nothing; what
stands at the top of a module is in every process the same, and is not.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

GATEWAY = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "gateway", "")

# ("re" or "re2", pattern, flags) -> file and line of the first place in the gateway that compiled it.
compiled: dict[tuple[str, str | bytes, int], tuple[str, int]] = {}
# Lines that could not be written yet: there may be no descriptor left, which is what some tests are about.
_waiting: list[str] = []


def record(path: str) -> None:
    """Note each pattern from now on, and append lines `(library, pattern, flags, file, line)` to a file."""
    _record_re(path)
    if "re2" in sys.modules:
        _record_re2(sys.modules["re2"], path)
    else:
        # Not imported for this: that is part of what tests look at.
        sys.meta_path.insert(0, _Re2(path))


def _record_re(path: str) -> None:
    original = re._compile  # type: ignore[attr-defined]

    def noting(pattern: Any, flags: Any) -> Any:
        made = original(pattern, flags)
        _note("re", pattern, int(flags), path)
        return made

    re._compile = noting  # type: ignore[attr-defined]


def _record_re2(library: Any, path: str) -> None:
    original = library.compile

    def noting(pattern: Any, options: Any = None) -> Any:
        made = original(pattern, options)
        _note("re2", pattern, 0, path)
        return made

    library.compile = noting


class _Re2:
    """Finds google-re2 as it would be found without this, and wraps it once it is loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "re2":
            return None
        sys.meta_path.remove(self)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path)
        spec = next((one for one in found if one is not None), None)
        if spec is not None:
            self._loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _record_re2(module, self._path)


def _note(library: str, pattern: Any, flags: int, path: str) -> None:
    if not isinstance(pattern, (str, bytes)) or (library, pattern, flags) in compiled:
        return
    # Of the gateway's code, below the frames of the library.
    frame = sys._getframe(2)
    while frame is not None and os.path.basename(os.path.dirname(frame.f_code.co_filename)) in ("re", "re2"):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or not frame.f_code.co_filename.startswith(GATEWAY):
        return
    place = compiled[library, pattern, flags] = frame.f_code.co_filename, frame.f_lineno
    if frame.f_code.co_name != "<module>":
        _waiting.append(f"{(library, pattern, flags, *place)!a}\n")
        _write(path)


def _write(path: str) -> None:
    try:
        # Opened each time: a process may close, count or hand on its descriptors.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        # One write: several processes have the same file.
        os.write(file, "".join(_waiting).encode())
    finally:
        os.close(file)
    _waiting.clear()
