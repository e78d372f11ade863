"""The program that runs the suite: no file is lost, and no bin fails unnoticed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel import interpreters
from tests.parallel.__main__ import Job, Run, tree
from tests.parallel.bins import BINS, TESTS, Bin, all_files, divide
from tests.parallel.results import Results, events, summary
from tests.services import wait_until

ROOT = TESTS.parent


class TestBins:
    def test_every_test_file_is_in_one_bin(self, tmp_path: Path) -> None:
        """Compared with the files in which pytest itself looks for tests. None is imported for it."""
        (tmp_path / "files_alone.py").write_text(FILES_ALONE)
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "pytest", "--collect-only", "-s", "-p", "no:cacheprovider", "-p", "files_alone", "tests"]
        found = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False).stdout
        collected = set(re.findall(r"^module (.+)$", found, re.MULTILINE))
        divided = [file for files in divide(all_files(TESTS)).values() for file in files]
        assert len(divided) == len(set(divided)) > 100
        assert {str(TESTS / file) for file in divided} == collected

    def test_no_bin_is_empty(self) -> None:
        assert [each.name for each, files in divide(all_files(TESTS)).items() if not files] == []

    def test_a_file_that_no_pattern_names_goes_to_the_last_bin(self) -> None:
        assert divide(["unit/test_a.py", "new/deep/test_b.py"], (UNIT, REST)) == {
            UNIT: ["unit/test_a.py"],
            REST: ["new/deep/test_b.py"],
        }

    def test_a_pattern_that_matches_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no test file matches unit/"):
            divide(["test_b.py"], (UNIT, REST))

    def test_both_spellings_of_a_test_file_are_found(self, tmp_path: Path) -> None:
        for name in ("test_a.py", "b_test.py", "helper.py", "project/test_c.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert all_files(tmp_path) == ["b_test.py", "project/test_c.py", "test_a.py"]

    def test_names_are_told_apart(self) -> None:
        assert len({each.name for each in BINS}) == len(BINS)


# Prints the modules that pytest would import, and imports none.
FILES_ALONE = """
import pytest

class Nothing(pytest.File):
    def collect(self):
        return []

def pytest_pycollect_makemodule(module_path, parent):
    print(f"\\nmodule {module_path}")
    return Nothing.from_parent(parent, path=module_path)
"""

UNIT = Bin("unit", 1, ("unit/*",))
REST = Bin("rest", 1, ())


class Suite:
    """A test folder of its own, run as one bin."""

    def __init__(self, folder: Path, *options: str, alone: bool = False, name: str = "it") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone\naddopts = --import-mode=importlib\n")
        plugin = ["-m", "pytest", "-p", "tests.parallel.plugin", "-c", str(folder / "pytest.ini")]
        self.command = [sys.executable, *plugin, *options]
        self.job = Job(name, 1, [str(folder)], self.command, alone=alone)
        self.shown: list[str] = []

    def write(self, text: str, name: str = "test_it.py") -> Suite:
        (self.folder / name).write_text(text)
        return self

    def start(self) -> Suite:
        self.job.start(self.folder)
        return self

    def run(self) -> Results:
        self.start()
        assert self.job.process is not None
        self.job.process.wait(60)
        return self.ended()

    def ended(self) -> Results:
        assert self.job.process is not None
        self.shown += self.job.look()
        self.job.results.check(self.job.process.returncode, set())
        return self.job.results

    def until(self, text: str) -> None:
        """Wait for a line that the tests print to a file."""
        path = self.folder / "told"
        assert self.job.process is not None
        while not (path.exists() and text in path.read_text()):
            assert self.job.process.poll() is None, self.job._log.read_text()
            os.sched_yield()


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


KINDS = """
import pytest, warnings

def test_good(): pass
def test_bad():
    print("what it printed")
    assert 1 == 2
@pytest.mark.skip(reason="no reason")
def test_skipped(): pass
@pytest.mark.xfail(reason="known", strict=True)
def test_expected(): assert False
@pytest.mark.xfail(reason="mended", strict=True)
def test_unexpected(): pass
@pytest.fixture
def broken(): raise OSError("no disk")
def test_error(broken): pass
def test_warning(): warnings.warn("old")
"""


class TestOneBin:
    def test_every_outcome_is_counted(self, tmp_path: Path) -> None:
        suite = Suite(tmp_path).write(KINDS)
        found = suite.run()
        assert dict(found.counts) == {"passed": 2, "failed": 2, "skipped": 1, "xfailed": 1, "errors": 1}
        assert found.faults == []
        assert sorted(line.split("::")[1] for line in suite.shown) == [
            "test_bad (it)", "test_error (it)", "test_unexpected (it)",
        ]  # fmt: skip

    def test_a_failure_reads_as_pytest_s_own(self, tmp_path: Path) -> None:
        text, good = summary([Suite(tmp_path).write(KINDS).run()], {"Python 3.99": "not here"}, 61.0, 2.0)
        assert not good
        for part in ("= FAILURES =", "test_bad (it)", "E       assert 1 == 2", "Captured stdout call", "what it printed",
                     "OSError: no disk", "[XPASS(strict)] mended", "SKIPPED [1] no reason", "XFAIL [1] known", "UserWarning: old",
                     "Python 3.99: not here"):  # fmt: skip
            assert part in text
        assert text.splitlines()[-1].strip("= ") == (
            "2 failed, 1 error, 2 passed, 1 skipped, 1 xfailed in 61.0s (1:01), CPU 2s, 1 bin"
        )

    def test_success(self, tmp_path: Path) -> None:
        text, good = summary([Suite(tmp_path).write("def test_good(): pass").run()], {}, 1.0, 1.0)
        assert good
        assert text.strip("= ") == "1 passed in 1.0s (0:01), CPU 1s, 1 bin"

    def test_nothing_collected_is_a_fault(self, tmp_path: Path) -> None:
        found = Suite(tmp_path).write("").run()
        assert "collected no tests" in found.faults
        assert not summary([found], {}, 1.0, 1.0)[1]

    def test_a_file_that_cannot_be_imported_is_an_error(self, tmp_path: Path) -> None:
        found = Suite(tmp_path).write("import nothing_of_that_name").run()
        assert found.counts["errors"] == 1
        assert found.faults

    def test_a_process_that_dies_is_named_with_its_test(self, tmp_path: Path) -> None:
        found = (
            Suite(tmp_path).write("import os\ndef test_good(): pass\ndef test_dies(): os.kill(os.getpid(), 9)").run()
        )
        assert found.faults[0].startswith("was killed by signal 9, in ")
        assert "test_dies" in found.faults[0]
        assert not summary([found], {}, 1.0, 1.0)[1]

    def test_an_early_exit_that_looks_like_success_is_a_fault(self, tmp_path: Path) -> None:
        found = Suite(tmp_path).write("import os\ndef test_good(): pass\ndef test_leaves(): os._exit(0)").run()
        assert found.faults[0].startswith("ended with status 0, in ")

    def test_tests_that_did_not_run_are_a_fault(self, tmp_path: Path) -> None:
        found = Suite(tmp_path, "-x").write("def test_bad(): assert False\ndef test_good(): pass").run()
        assert "collected 2 tests and ran 1" in found.faults

    def test_a_file_without_a_test_is_a_fault(self, tmp_path: Path) -> None:
        suite = Suite(tmp_path).write("def test_good(): pass").write("", "test_empty.py")
        found = suite.run()
        found.check(0, {str(tmp_path / "test_it.py"), str(tmp_path / "test_empty.py")})
        assert found.faults == [f"collected nothing from {tmp_path / 'test_empty.py'}"]

    def test_a_file_that_skips_itself_is_not_lost(self, tmp_path: Path) -> None:
        text = "import pytest\npytest.skip('no Traefik', allow_module_level=True)"
        suite = Suite(tmp_path).write("def test_good(): pass").write(text, "test_empty.py")
        found = suite.run()
        assert (dict(found.counts), found.faults) == ({"passed": 1, "skipped": 1}, [])
        assert found.files == {str(tmp_path / "test_it.py"), str(tmp_path / "test_empty.py")}

    def test_what_must_be_alone_waits(self, tmp_path: Path) -> None:
        text = "import pytest\ndef test_good(): pass\n@pytest.mark.alone\ndef test_alone(): pass"
        beside = Suite(tmp_path).write(text).run()
        assert (beside.counts["passed"], beside.alone, beside.faults) == (1, {str(tmp_path / "test_it.py")}, [])
        alone = Suite(tmp_path, alone=True)
        found = alone.run()
        assert (found.counts["passed"], found.alone, found.faults) == (1, set(), [])
        assert "test_alone" in (tmp_path / "it.jsonl").read_text()

    def test_a_bin_that_hangs_is_named_with_its_stack_and_killed(self, tmp_path: Path) -> None:
        suite = Suite(tmp_path).write(
            "import subprocess, pathlib, threading\n"
            "def test_hangs():\n"
            "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
            f"    pathlib.Path({str(tmp_path / 'told')!r}).write_text(f'child {{child.pid}} begun')\n"
            "    threading.Event().wait()\n"
        )
        suite.start().until("begun")
        told = re.search(r"child (\d+) ", (tmp_path / "told").read_text())
        assert told is not None
        suite.shown += suite.job.look()
        suite.job.give_up(900.0)
        assert suite.job.process is not None
        assert suite.job.process.returncode == -signal.SIGKILL
        fault = suite.job.results.faults[0]
        assert fault.startswith("not finished after 15:00, in ")
        assert "test_hangs" in fault.splitlines()[0]
        assert "in test_hangs" in fault.partition("\n")[2]
        wait_until(lambda: not runs(int(told[1])), "its server to end")

    def test_a_half_written_event_waits_for_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "events"
        path.write_text('{"event": "st')
        reader = events(path)
        assert next(reader) == []
        with path.open("a") as file:
            file.write(f'art", "id": {json.dumps("a")}}}\n')
        assert next(reader) == [{"event": "start", "id": "a"}]

    def test_the_tree_of_a_process(self) -> None:
        with subprocess.Popen(["sh", "-c", "sleep 600 & echo; wait"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = tree(process.pid)
            assert len(found) == 2
            for pid in reversed(found):
                os.kill(pid, signal.SIGKILL)


class TestRun:
    @pytest.fixture(autouse=True)
    def _no_last_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stacks of what hangs here are not looked at."""
        monkeypatch.setattr("tests.parallel.__main__.LAST_WORDS", 0.1)

    def run(self, *suites: Suite, limit: float = 600.0, test_limit: float = 600.0, most: int = 2) -> bool:
        jobs = [suite.job for suite in suites]
        return Run(jobs, most, limit, test_limit, suites[0].command, suites[0].folder).go({})

    def test_all_bins_then_what_must_be_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "import pytest\ndef test_good(): pass\n@pytest.mark.alone\ndef test_alone(): pass"
        suites = [Suite(tmp_path / name, name=name).write(text) for name in ("a", "b")]
        for suite in suites:
            suite.job.files = [str(suite.folder / "test_it.py")]
        assert self.run(*suites)
        printed = capsys.readouterr().out
        assert "2 bins, 2 at once: a, b" in printed
        assert [suite.job.results.counts["passed"] for suite in suites] == [1, 1]
        assert "alone is done in 0:" in printed
        assert printed.splitlines()[-1].strip("= ").startswith("4 passed in ")

    def test_all_bins_have_one_record_of_patterns(self, tmp_path: Path) -> None:
        text = """
import os, pytest
def test_bin():
    with open(os.environ["TESTS_PATTERNS"], "a") as file:
        file.write("\\n" + os.path.dirname(__file__) + "\\n")
@pytest.mark.alone
def test_alone():
    with open(os.environ["TESTS_PATTERNS"]) as file:
        # The patterns of its processes are there, too.
        both = os.path.dirname(os.path.dirname(__file__))
        assert len({line for line in file.read().splitlines() if line.startswith(both)}) == 2
"""
        suites = [Suite(tmp_path / name, name=name).write(text) for name in ("a", "b")]
        for suite in suites:
            suite.job.files = [str(suite.folder / "test_it.py")]
        assert self.run(*suites)

    def test_one_failure_fails_the_run_and_is_shown_once_at_the_end(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        good = Suite(tmp_path / "a", name="a").write("def test_good(): pass")
        bad = Suite(tmp_path / "b", name="b").write("def test_bad(): assert 1 == 2")
        for suite in (good, bad):
            suite.job.files = [str(suite.folder / "test_it.py")]
        assert not self.run(good, bad)
        printed = capsys.readouterr().out
        assert len(re.findall(r"^E +assert 1 == 2", printed, re.MULTILINE)) == 1
        assert printed.splitlines()[-1].strip("= ").startswith("1 failed, 1 passed in ")

    def test_a_file_that_is_not_collected_fails_the_run(self, tmp_path: Path) -> None:
        suite = Suite(tmp_path).write("def test_good(): pass").write("", "test_empty.py")
        suite.job.files = [str(tmp_path / "test_it.py"), str(tmp_path / "test_empty.py")]
        assert not self.run(suite)
        assert suite.job.results.faults == [f"collected nothing from {tmp_path / 'test_empty.py'}"]

    def test_at_the_limit_every_bin_that_is_left_is_named(self, tmp_path: Path) -> None:
        hanging = Suite(tmp_path / "a", name="a").write("import threading\ndef test_it(): threading.Event().wait()")
        waiting = Suite(tmp_path / "b", name="b").write("def test_good(): pass")
        assert not self.run(hanging, waiting, limit=0.5, most=1)
        assert hanging.job.results.faults[0].startswith("not finished after ")
        assert waiting.job.results.faults == ["not started within 0:00"]

    def test_a_test_beyond_its_limit_costs_its_own_bin_only(self, tmp_path: Path) -> None:
        hanging = Suite(tmp_path / "a", name="a").write("import threading\ndef test_it(): threading.Event().wait()")
        other = Suite(tmp_path / "b", name="b").write("def test_good(): pass")
        for suite in (hanging, other):
            suite.job.files = [str(suite.folder / "test_it.py")]
        assert not self.run(hanging, other, test_limit=3.0, most=1)
        fault = hanging.job.results.faults[0].splitlines()[0]
        assert fault.startswith("not finished after ")
        assert "test_it.py::test_it" in fault
        assert (other.job.results.counts["passed"], other.job.results.faults) == (1, [])


class TestInterpreters:
    def test_classifiers_name_those_that_the_tests_run_on(self) -> None:
        named = re.findall(r'"Programming Language :: Python :: ([\d.]+)"', (ROOT / "setup.py").read_text())
        assert tuple(named) == interpreters.SUPPORTED

    def test_each_version_once_and_not_the_running_one(self) -> None:
        found = [each.version for each in interpreters.others()]
        assert len(found) == len(set(found))
        assert ".".join(map(str, sys.version_info[:3])) not in found

    @pytest.mark.parametrize(
        "told", ["exit 1", "echo 3.12.1 pypy", "echo 3.10.1 cpython", "echo 3.13.0", "echo", "kill -9 $$"]
    )
    def test_what_is_none(self, tmp_path: Path, told: str) -> None:
        program = tmp_path / "python3.12"
        program.write_text(f"#!/bin/sh\n{told}\n")
        program.chmod(0o755)
        assert interpreters.version(program) == ""

    def test_one_that_is_missing_is_named(self) -> None:
        here = ".".join(map(str, sys.version_info[:2]))
        assert list(interpreters.missing([])) == [
            f"Python {minor}" for minor in interpreters.SUPPORTED if minor != here
        ]
        every = [interpreters.Interpreter(f"{minor}.0", Path("x")) for minor in interpreters.SUPPORTED]
        assert interpreters.missing(every) == {}
