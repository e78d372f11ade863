"""Faults of our own while a configuration is read, loaded, handed on or left for siblings: each is a verdict that
is told and tried again, and a version is in force only when it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gateway import config as files
from gateway.config import remote_key, siblings_copy, source, version_of, watch
from gateway.config.watch import AGAIN, GRACE, TICK, Watch
from gateway.errors import ConfigError
from gateway.model import Config
from gateway.runtime import background
from gateway.runtime.background import Background
from gateway.testing import FakeClock
from tests.unit.upstreams.test_store import until

FAULTS = [RuntimeError("can't start new thread"), MemoryError("none left"), OSError(24, "Too many open files")]


def text(name: str) -> str:
    return f"version: 1\nupstreams: {{{name}: {{endpoints: ['http://127.0.0.1:1']}}}}\n"


class Followed:
    """A watch that is driven by hand, over a gateway that puts in force what it is given when `hold` is False."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gateway.yaml"
        self.path.write_text(text("first"))
        self.run = folder / "run"
        self.run.mkdir()
        self.clock = FakeClock()
        self.fault: BaseException | None = None
        self.hold = False
        self.used: list[str] = []
        self.told: list[str] = []
        first = files.load(str(self.path), {})
        self.in_force = first.version
        self.waiting = first.version
        where = source.parse(str(self.path))
        self.watch = Watch(
            where, first, self._use, self.told.append, {}, str(self.run), self.clock, lambda: self.in_force
        )
        self.turn(3)

    def _use(self, config: Config) -> None:
        self.used.append(next(iter(config.upstreams)))
        if self.fault is not None:
            raise self.fault
        self.waiting = config.version
        if not self.hold:
            self.in_force = config.version

    def write(self, name: str) -> None:
        other = self.path.with_name("other")
        other.write_text(text(name))
        other.rename(self.path)

    def turn(self, number: int = 1) -> None:
        for _ in range(number):
            assert self.watch._file is not None
            self.watch._tick(self.watch._file)
            self.watch.consider()
            self.clock.advance(TICK)

    def rest(self, seconds: float = GRACE) -> None:
        self.turn(3 + int(seconds / TICK))

    def left(self) -> str:
        """The version that siblings find."""
        parts = siblings_copy.read(str(self.run))
        return version_of(parts[0].data, parts[1].data) if parts is not None else ""


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


@pytest.mark.parametrize("fault", [*FAULTS, ConfigError("a certificate is missing")])
def test_what_cannot_be_used_is_told_and_tried_again(
    followed: Followed, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    followed.fault = fault
    followed.write("second")
    followed.rest()
    assert followed.used == ["second"]
    assert len(followed.told) == 1
    assert str(fault) in followed.told[0]
    assert followed.in_force == version_of(text("first").encode(), None) == followed.left()
    followed.rest(2 * AGAIN)
    assert len(followed.used) == 3
    # The log says it once, whatever the number of attempts.
    assert caplog.text.count("Traceback") == (0 if isinstance(fault, ConfigError) else 1)
    assert len(followed.told) == 1
    followed.fault = None
    followed.rest(AGAIN)
    assert followed.told[-1] == ""
    assert followed.in_force == version_of(text("second").encode(), None) == followed.left()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_loaded_is_told_and_tried_again(
    followed: Followed, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = watch.assemble
    monkeypatch.setattr(watch, "assemble", lambda *given: (_ for _ in ()).throw(fault))
    followed.write("second")
    followed.rest()
    assert followed.used == []
    assert str(fault) in followed.told[-1]
    monkeypatch.setattr(watch, "assemble", real)
    followed.rest(AGAIN)
    assert followed.used == ["second"]
    assert followed.told[-1] == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_looked_at_is_told_and_looked_at_again(
    followed: Followed, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = source.read
    monkeypatch.setattr(source, "read", lambda path: (_ for _ in ()).throw(fault))
    followed.write("second")
    followed.rest()
    assert [str(fault) in told for told in followed.told] == [True]
    assert caplog.text.count("Traceback") == 1
    monkeypatch.setattr(source, "read", real)
    followed.rest()
    assert followed.used == ["second"]
    assert followed.told[-1] == ""


def test_whatever_else_is_thrown_leaves_the_texts_to_be_judged_again(followed: Followed) -> None:
    followed.fault = gevent.Timeout(3)
    followed.write("second")
    with pytest.raises(gevent.Timeout):
        followed.turn(3)
    followed.fault = None
    followed.turn(1)
    assert followed.used == ["second", "second"]
    assert followed.in_force == version_of(text("second").encode(), None)


def test_one_that_waits_is_not_named_as_in_force(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    first = followed.in_force
    assert followed.left() == first
    followed.hold = True
    followed.write("second")
    followed.rest()
    assert followed.used == ["second"]
    # It is not in force: siblings that start now do not find it, and messages do not name it.
    assert followed.left() == first
    followed.path.write_text("version: 2\n")
    followed.rest()
    assert f"The configuration {first} stays in force." in caplog.text
    followed.in_force = followed.waiting
    followed.rest()
    assert followed.left() == version_of(text("second").encode(), None)


def test_one_that_is_replaced_before_it_came_into_force_is_never_left(followed: Followed) -> None:
    first = followed.in_force
    followed.hold = True
    followed.write("second")
    followed.rest()
    followed.write("third")
    followed.rest()
    assert followed.left() == first
    followed.in_force = followed.waiting
    followed.rest()
    assert followed.left() == version_of(text("third").encode(), None)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_left_for_siblings_is_left_later(
    followed: Followed, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, real = followed.in_force, siblings_copy.write
    tries: list[bool] = []

    def fail(folder: str, parts: siblings_copy.Parts) -> bool:
        tries.append(True)
        raise fault

    monkeypatch.setattr(siblings_copy, "write", fail)
    followed.write("second")
    followed.rest(2 * AGAIN)
    assert followed.left() == first
    assert 2 <= len(tries) <= 4
    assert caplog.text.count("workers that start later may miss the configuration") == 1
    # What is in force is in force all the same.
    assert followed.told == []
    monkeypatch.setattr(siblings_copy, "write", real)
    followed.rest(AGAIN)
    assert followed.left() == followed.in_force


@pytest.mark.parametrize("fault", [*FAULTS, ConfigError("a certificate is missing")])
def test_what_siblings_have_is_asked_for_until_it_can_be_used(
    tmp_path: Path, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that starts while the file is broken, and cannot use what its siblings have at first."""
    made = Followed(tmp_path)
    siblings_copy.write(str(made.run), (siblings_copy.Part(text("theirs").encode(), made.clock()), siblings_copy.NONE))
    fresh = Followed.__new__(Followed)
    fresh.__dict__.update(made.__dict__, used=[], told=[], fault=fault)
    first = files.loads(text("first").encode(), str(made.path), {})
    fresh.watch = Watch(
        source.parse(str(made.path)), first, fresh._use, fresh.told.append, {}, str(made.run), fresh.clock,
        lambda: fresh.in_force,
    )  # fmt: skip
    made.path.write_text("version: 2\n")
    fresh.rest()
    assert fresh.used == ["theirs"]
    fresh.rest(AGAIN)
    assert fresh.used == ["theirs", "theirs"]
    assert caplog.text.count("what the other workers have in force cannot be used") == 1
    fresh.fault = None
    fresh.rest(2 * AGAIN)
    assert fresh.used == ["theirs"] * 3
    assert fresh.in_force == version_of(text("theirs").encode(), None)
    # The file is broken still, and that is told.
    assert "version" in fresh.told[-1]


# -- with greenlets -----------------------------------------------------------------------


class Key:
    """What a key holds, told to whoever follows; dies when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.value = text("first").replace("version: 1\n", "version: 1\nroutes: []\n").encode()
        monkeypatch.setattr(remote_key, "follow", self._follow)

    def _follow(self, key: source.Key, settings: Any, tell: Callable[[bytes | None, str], None]) -> None:
        self.begun += 1
        tell(self.value, "")
        Event().wait()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Key:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    return Key(monkeypatch)


@pytest.fixture
def tasks() -> Iterator[Background]:
    found = Background()
    yield found
    for task in found:
        task.kill()


def test_a_fault_thrown_into_either_greenlet_of_a_key(key: Key, tasks: Background) -> None:
    used: list[str] = []
    where = source.parse("consul://127.0.0.1:1/k")
    made = Watch(
        where, files.starting({"GATEWAY_CONFIG": where.named}), lambda config: used.append(config.version),
        [].append, {}, background=tasks,
    )  # fmt: skip
    made.begin()
    running = tasks.start("configuration", made.run)
    until(lambda: len(used) == 1)
    for task in (running, made._follower):
        assert task is not None
        gevent.sleep(0.001)
        task._greenlet.kill(RuntimeError("thrown in"), block=False)
        until(lambda task=task: task.restarts == 1)  # type: ignore[misc]
    until(lambda: key.begun == 2)
    assert [(task.name, task.dead) for task in tasks] == [("configuration key", False), ("configuration", False)]
    # A new value is still heard and used, though only one follower is there.
    key.value = key.value.replace(b"first", b"other")
    assert made._follower is not None
    made._follower._greenlet.kill(RuntimeError("again"), block=False)
    until(lambda: len(used) == 2)
    follower = made._follower
    running.kill()
    until(lambda: follower.dead)
    assert list(tasks) == []


def test_without_a_file_one_that_comes_into_force_later_is_left_then(
    key: Key, tasks: Background, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    where, in_force, used = source.parse("consul://127.0.0.1:1/k"), [""], []

    def use(config: Config) -> None:
        used.append(config.version)

    made = Watch(
        where, files.starting({"GATEWAY_CONFIG": where.named}), use, [].append, {}, str(tmp_path),
        in_force=lambda: in_force[0], background=tasks,
    )  # fmt: skip
    made.begin()
    tasks.start("configuration", made.run)
    until(lambda: used)
    gevent.sleep(0.01)
    assert siblings_copy.read(str(tmp_path)) is None
    in_force[0] = used[0]
    made.wake()
    until(lambda: siblings_copy.read(str(tmp_path)) is not None)
