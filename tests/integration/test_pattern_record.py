"""The record of patterns (tests/startup) has those of every process that a test starts, so that one test can judge
all of them at the end of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.testing import FakeUpstream, answer
from tests import patterns
from tests.gateway_process import GatewayProcess
from tests.startup import pattern_recorder

CONFIG = """
version: 1
upstreams: {{u: {{endpoints: ["{url}"]}}}}
routes: [{{name: r, upstream: u, match: {{regex: "{regex}"}}}}]
"""


def recorded(pattern: str) -> str:
    """The place that compiled it by google-re2; "" for none."""
    return next((str(place) for (source, _), place in patterns.written()[1].items() if source in (pattern, pattern.encode())), "")


def test_a_gateway_that_a_test_starts(tmp_path: Path) -> None:
    """At its start and by a reload, whatever ends it."""
    path = tmp_path / "gateway.yaml"
    first, second = f"/first/{os.getpid()}/[0-9]+", f"/second/{os.getpid()}/[0-9]+"
    with FakeUpstream(answer(b"x")) as fake:
        path.write_text(CONFIG.format(url=fake.url, regex=first))
        with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
            text = CONFIG.format(url=fake.url, regex=second)
            path.write_text(text)
            gateway.follows(text)
            for pid in gateway.pids():
                os.kill(pid, signal.SIGKILL)
    assert recorded(first).startswith("patterns.py:")
    assert recorded(second).startswith("patterns.py:")


@pytest.mark.parametrize("own", [False, True], ids=["the tests' environment", "one of its own"])
def test_any_process_of_the_gateway_s_code(own: bool, tmp_path: Path) -> None:
    """Its environment, as a test gives it, stays as it is but for the record."""
    pattern = f"/any/{os.getpid()}/{own:d}+"
    code = f"import os, sys\nfrom gateway import patterns\npatterns.compile({pattern!r})\nprint(os.environ.get('PYTHONPATH'))"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(pattern_recorder.GATEWAY + "..")} if own else None
    done = subprocess.run([sys.executable, "-c", code], cwd=patterns.ROOT, env=env, capture_output=True, text=True, check=True)
    assert recorded(pattern).startswith("patterns.py:")
    first, *rest = done.stdout.strip().split(os.pathsep)
    assert first == str(Path(pattern_recorder.__file__).parent)
    assert not env or rest == [env["PYTHONPATH"]]


def test_without_a_descriptor_it_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError("too many open files")

    path = tmp_path / "record"
    monkeypatch.setattr(pattern_recorder, "_waiting", ["one\n"])
    with monkeypatch.context() as context:
        context.setattr(os, "open", refuse)
        pattern_recorder._write(str(path))
    pattern_recorder._waiting.append("two\n")
    pattern_recorder._write(str(path))
    assert (path.read_text(), pattern_recorder._waiting) == ("one\ntwo\n", [])
