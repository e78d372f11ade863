"""A configuration that is followed: files in every state, what is told and how often."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.queue import Queue

from gateway import config as files
from gateway.config import document, remote_key, siblings_copy, source, watch
from gateway.config.watch import GRACE, Watch
from gateway.errors import ConfigError
from gateway.model import Config, DiscoverySettings
from gateway.registries.consul import ConsulApi, KeyAnswer
from gateway.testing import FakeClock


def text(name: str) -> str:
    return f"version: 1\nupstreams: {{{name}: {{endpoints: ['http://127.0.0.1:1']}}}}\n"


class Followed:
    """A watch that is driven by hand."""

    def __init__(self, path: Path, written: str = text("first")) -> None:
        self.path = path
        path.write_text(written)
        self.clock = FakeClock()
        self.used: list[str] = []
        self.told: list[str] = []
        self.refuse = ""
        where = source.parse(str(path))
        self.watch = Watch(where, files.load(str(path), {}), self._use, self.told.append, {}, clock=self.clock)
        self.turn(3)

    def _use(self, config: Config) -> None:
        if self.refuse:
            raise ConfigError(self.refuse)
        self.used.append(next(iter(config.upstreams), ""))

    def turn(self, number: int = 1) -> None:
        """What `run` does at each tick."""
        assert self.watch._file is not None
        for _ in range(number):
            self.watch._file.tick()
            self.watch.consider()
            self.clock.advance(watch.TICK)

    def rest(self) -> None:
        """Until a trouble would be told."""
        self.turn(2 + int(GRACE / watch.TICK) + 1)


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "gateway.yaml")


def rename(path: Path, new: str) -> None:
    other = path.with_name("other")
    other.write_text(new)
    other.rename(path)


def truncate(path: Path, new: str) -> None:
    path.write_text(new)


def in_place(path: Path, new: str) -> None:
    with path.open("r+") as file:
        file.write(new)
        file.truncate()


@pytest.mark.parametrize("write", [rename, truncate, in_place])
def test_a_file_that_is_written(followed: Followed, write: Callable[[Path, str], None]) -> None:
    write(followed.path, text("second"))
    followed.turn()
    # It may still be written to.
    assert followed.used == []
    followed.turn()
    assert followed.used == ["second"]
    followed.rest()
    assert followed.used == ["second"]
    assert followed.told == []


def test_a_link_that_is_pointed_elsewhere_as_kubernetes_does(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    data, link = tmp_path / "..data", tmp_path / "gateway.yaml"
    data.symlink_to("one")
    link.symlink_to("..data/gateway.yaml")
    (tmp_path / "two" / "gateway.yaml").write_text(text("second"))
    followed = Followed(link)
    new = tmp_path / "..data_tmp"
    new.symlink_to("two")
    new.rename(data)
    followed.turn(2)
    assert followed.used == ["second"]


def test_the_same_bytes_again_are_nothing(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(watch, "assemble", lambda *given: loaded.append(given))
    rename(followed.path, text("first"))
    os.utime(followed.path)
    followed.turn(5)
    assert (followed.used, followed.told, loaded) == ([], [], [])


def test_what_is_wrong_is_told_once_and_changes_nothing(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    truncate(followed.path, "version: 1\nnope: 1\n")
    followed.turn(3)
    assert followed.told == []
    followed.rest()
    assert len(followed.told) == 1
    assert followed.told[0].startswith(f"{followed.path}:2:1: nope: unknown key")
    truncate(followed.path, "version: 1\nnope: 1\n\n")
    followed.rest()
    truncate(followed.path, "version: 1\nnape: 1\n")
    followed.rest()
    truncate(followed.path, "version: 1\nnope: 1\n")
    followed.rest()
    assert [caplog.text.count(f": {key}: unknown key") for key in ("nope", "nape")] == [1, 1]
    assert followed.used == []
    truncate(followed.path, text("second"))
    followed.turn(2)
    assert followed.used == ["second"]
    assert followed.told[-1] == ""


def test_back_to_what_is_in_force_is_no_new_configuration(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    truncate(followed.path, "version: 2\n")
    followed.rest()
    truncate(followed.path, text("first"))
    followed.rest()
    assert followed.used == []
    assert [bool(told) for told in followed.told] == [True, False]
    assert caplog.text.count("can be used again") == 1


def test_half_a_file_is_not_even_told(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    whole = text("second")
    for end in (4, 25, 40):
        truncate(followed.path, whole[:end])
        followed.turn(2)
    truncate(followed.path, whole)
    followed.rest()
    assert followed.used == ["second"]
    assert followed.told == []
    assert "ERROR" not in caplog.text


def test_missing_for_a_moment_and_for_longer(followed: Followed) -> None:
    aside = followed.path.with_name("aside")
    followed.path.rename(aside)
    followed.turn(2)
    aside.rename(followed.path)
    followed.rest()
    assert followed.told == []
    followed.path.unlink()
    followed.rest()
    assert followed.told == [f"{followed.path}: cannot be read: No such file or directory"]
    followed.path.write_text(text("second"))
    followed.turn(2)
    assert followed.used == ["second"]
    assert followed.told[-1] == ""


def test_what_is_no_file(followed: Followed) -> None:
    followed.path.unlink()
    followed.path.mkdir()
    followed.rest()
    assert followed.told == [f"{followed.path}: is a directory"]
    followed.path.rmdir()
    os.mkfifo(followed.path)
    followed.rest()
    assert followed.told[-1] == f"{followed.path}: is no regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(followed: Followed) -> None:
    followed.path.chmod(0)
    followed.rest()
    assert followed.told == [f"{followed.path}: cannot be read: Permission denied"]


def test_50_mb_by_mistake_are_not_read(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    with followed.path.open("r+b") as file:
        file.truncate(50 * 1024 * 1024)
    followed.rest()
    assert [told.partition(": ")[2] for told in followed.told] == ["is longer than a configuration may be (8 MiB)"]
    assert followed.watch._file is not None
    assert len(followed.watch._file.text.part.data or b"") == document.LIMIT + 1


def test_a_file_that_changes_while_it_is_read_is_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = source.read

    def meanwhile(path: str) -> bytes:
        data = read(path)
        monkeypatch.setattr(source, "read", read)
        truncate(followed.path, text("third"))
        return data

    truncate(followed.path, text("second"))
    followed.turn()
    monkeypatch.setattr(source, "read", meanwhile)
    followed.turn(4)
    assert followed.used == ["third"]


def test_what_cannot_be_put_in_force_is_tried_again(followed: Followed) -> None:
    followed.refuse = "tls: no such file"
    truncate(followed.path, text("second"))
    followed.rest()
    assert followed.told == ["tls: no such file"]
    followed.refuse = ""
    followed.clock.advance(watch.AGAIN)
    followed.turn()
    assert followed.used == ["second"]
    assert followed.told[-1] == ""


def test_a_storm_ends_with_the_last(followed: Followed) -> None:
    for number in range(10):
        truncate(followed.path, text(f"n{number}"))
        followed.turn()
    followed.rest()
    assert followed.used == ["n9"]


def test_warnings_are_told_when_they_are_new(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    routes = "routes: [{name: r, upstream: u, match: {methods: [GET]}}]\n"
    for name in ("u", "u ", "u  "):
        truncate(followed.path, text(name.replace("u", "u")) + routes + "#" + name)
        followed.rest()
    assert caplog.text.count("has GET without HEAD") == 1


def test_a_flood_of_warnings_is_cut_short(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    route = "  - {{name: r{0}, upstream: u, match: {{path: /{0}, methods: [GET]}}}}\n"
    truncate(followed.path, text("u") + "routes:\n" + "".join(map(route.format, range(120))))
    followed.rest()
    assert caplog.text.count("has GET without HEAD") == 100
    assert "20 more warnings: gateway check tells them all" in caplog.text


# -- a key beside a file ------------------------------------------------------------------


def test_a_flood_of_mistakes_is_cut_short(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    rename(followed.path, "version: 1\nroutes:\n" + "- {}\n" * 5000)
    followed.rest()
    lines = followed.told[-1].split("\n")
    assert lines[-1] == f"{5000 - watch.MOST_MISTAKES} more mistakes: gateway check tells them all"
    assert len(lines) == watch.MOST_MISTAKES + 1
    assert "routes[99].name: is required" in lines[-2]
    assert max(len(record.getMessage()) for record in caplog.records) < 20_000


class Registry:
    """In the place of the followers of keys."""

    def __init__(self) -> None:
        self.tell: list[remote_key.Tell] = []
        self.settings: list[DiscoverySettings] = []

    def follow(self, key: source.Key, settings: DiscoverySettings, tell: remote_key.Tell) -> None:
        self.settings.append(settings)
        self.tell.append(tell)
        gevent.sleep(3600)


LOCAL = "version: 1\ndiscovery: {consul: {token: %s}}\n"


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(remote_key, "follow", made.follow)
    return made


class Joined:
    """A watch of `file,consul://…` or of a key alone, driven by hand."""

    def __init__(self, named: str, run_directory: str | None = None, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.used: list[Config] = []
        self.told: list[str] = []
        start = files.starting({"GATEWAY_CONFIG": named})
        self.watch = Watch(
            source.parse(named), start, self.used.append, self.told.append, {}, run_directory, self.clock
        )

    def turn(self, number: int = 2) -> None:
        for _ in range(number):
            if self.watch._file is not None:
                self.watch._file.tick()
            self.watch.consider()
            gevent.sleep(0)
            self.clock.advance(watch.TICK)

    def rest(self) -> None:
        self.turn(8)


@pytest.fixture
def joined(tmp_path: Path, theirs: Registry) -> Iterator[Joined]:
    (tmp_path / "local.yaml").write_text(LOCAL % "one")
    made = Joined(f"{tmp_path}/local.yaml,consul://h:1/k")
    yield made
    made.watch._follower.kill()


def test_both_make_one(joined: Joined, theirs: Registry) -> None:
    joined.turn()
    assert joined.used == []
    theirs.tell[0](text("a").encode(), "")
    joined.turn()
    (made,) = joined.used
    assert list(made.upstreams) == ["a"]
    assert made.discovery.consul.token == "one"
    theirs.tell[0](text("b").encode(), "")
    joined.turn()
    assert list(joined.used[-1].upstreams) == ["b"]
    assert made.version != joined.used[-1].version


def test_a_registry_that_is_away_or_empty_changes_nothing(joined: Joined, theirs: Registry) -> None:
    joined.turn()
    theirs.tell[0](None, "connection refused")
    joined.rest()
    assert joined.told == ["consul://h:1/k: connection refused"]
    theirs.tell[0](text("a").encode(), "")
    joined.turn()
    assert joined.told[-1] == ""
    theirs.tell[0](None, "there is no such key")
    joined.rest()
    assert joined.told[-1] == "consul://h:1/k: there is no such key"
    assert len(joined.used) == 1
    theirs.tell[0](text("a").encode(), "")
    joined.rest()
    assert (len(joined.used), joined.told[-1]) == (1, "")


def test_another_token_is_used_while_the_registry_refuses(joined: Joined, theirs: Registry, tmp_path: Path) -> None:
    joined.turn()
    theirs.tell[0](None, "HTTP 403")
    joined.rest()
    (tmp_path / "local.yaml").write_text(LOCAL % "two")
    joined.rest()
    assert [settings.consul.token for settings in theirs.settings] == ["one", "two"]
    theirs.tell[1](text("a").encode(), "")
    joined.turn()
    assert joined.used[-1].discovery.consul.token == "two"


def test_mistakes_of_both_name_their_document(joined: Joined, theirs: Registry, tmp_path: Path) -> None:
    joined.turn()
    theirs.tell[0](b"version: 1\nroutes: [{name: r}]\n", "")
    joined.rest()
    assert joined.told[-1].startswith("consul://h:1/k:2:10: routes[0]: needs exactly one of upstream, ")
    (tmp_path / "local.yaml").write_text("version: 1\nroutes: []\n")
    joined.rest()
    assert joined.told[-1] == f"{tmp_path}/local.yaml:2:1: routes: stands in consul://h:1/k, and not here"


def test_a_key_alone(theirs: Registry) -> None:
    joined = Joined("etcd://h:1//conf/gateway")
    assert joined.watch._where.key == source.Key("etcd", "h:1", "/conf/gateway")
    joined.turn()
    theirs.tell[0](text("a").encode(), "")
    joined.turn()
    assert list(joined.used[-1].upstreams) == ["a"]
    joined.watch._follower.kill()


def test_a_worker_that_starts_while_the_registry_is_away_has_what_its_siblings_have(
    tmp_path: Path, theirs: Registry
) -> None:
    named = "consul://h:1/k"
    first, second = Joined(named, str(tmp_path)), None
    try:
        first.turn()
        theirs.tell[0](text("a").encode(), "")
        first.turn()
        second = Joined(named, str(tmp_path))
        second.turn()
        assert second.used == first.used
        # The registry is there after all, with something newer.
        theirs.tell[1](text("b").encode(), "")
        second.turn()
        assert list(second.used[-1].upstreams) == ["b"]
    finally:
        for each in (first, second):
            if each is not None:
                each.watch._follower.kill()


def test_what_siblings_left_is_believed_only_whole(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert siblings_copy.read(folder) is None
    texts = [(b"file", b"key\n"), (None, b""), (b"", None), (b"\n", b"\n")]
    for number, each in enumerate(texts):
        parts = (siblings_copy.Part(each[0], number), siblings_copy.Part(each[1], number + 0.5))
        assert siblings_copy.write(folder, parts)
        assert siblings_copy.read(folder) == parts
    left = tmp_path / siblings_copy.NAME
    left.write_bytes(left.read_bytes() + b"x")
    assert siblings_copy.read(folder) is None
    left.write_bytes(b"{}\n")
    assert siblings_copy.read(folder) is None
    assert sorted(os.listdir(folder)) == [siblings_copy.NAME, f"{siblings_copy.NAME}.lock"]


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("server: {own_prefix: null}", "2:1: server: is for the local file"),
        ("admin: null", "2:1: admin: is for the local file"),
        ("access_log: {path: /etc/cron.d/x}", "2:1: access_log: is for the local file"),
        ("upstreams: {u: {endpoints: ['http://${HOME}']}}", "2:29: upstreams.u.endpoints[0]: holds ${"),
        (
            "upstreams: {u: {endpoints: ['https://h'], tls: {ca: /etc/shadow}}}",
            "2:53: upstreams.u.tls.ca: is for the local file",
        ),
        ("upstreams: {u: {wsgi: 'os:system'}}", "2:17: upstreams.u.wsgi: is for the local file"),
    ],
)
def test_what_a_registry_may_not_say(held: str, told: str) -> None:
    where = source.parse("consul://h:1/k")
    with pytest.raises(ConfigError) as caught:
        files.assemble(where, None, f"version: 1\n{held}\n".encode(), {"HOME": "/root"})
    assert f"consul://h:1/k:{told}" in str(caught.value)
    assert "/root" not in str(caught.value)
    assert len({(one.line, one.col) for one in caught.value.mistakes}) == len(caught.value.mistakes)


def test_a_follower_lives_on_after_a_fault_of_our_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception | KeyAnswer] = [ZeroDivisionError("ours"), KeyAnswer(b"version: 1\n", 3)]

    def key(self: ConsulApi, name: str, index: int | None = None, wait: float = 0.0) -> KeyAnswer:
        said = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(ConsulApi, "key", key)
    told: Queue[tuple[bytes | None, str]] = Queue()
    follower = gevent.spawn(
        remote_key.follow, source.Key("consul", "h:1", "k"), DiscoverySettings(), lambda *said: told.put(said)
    )
    try:
        assert told.get(timeout=10) == (None, "ZeroDivisionError: ours")
        assert told.get(timeout=10) == (b"version: 1\n", "")
    finally:
        follower.kill()
    assert "consul://h:1/k: cannot be followed" in caplog.text


def test_a_registry_is_asked_as_the_local_file_says() -> None:
    settings = files.loads(
        b"version: 1\ndiscovery: {consul: {address: 'https://h:8501', token: t},"
        b" etcd: {endpoints: ['https://a:1', 'https://b:1'], username: u, password: p}}\n",
        "f", {},
    ).discovery  # fmt: skip

    def key(named: str) -> Any:
        return source.parse(named).key

    assert remote_key.consul_settings(key("consul://h:8501/k"), settings).address == "https://h:8501"
    other = remote_key.consul_settings(key("consul://elsewhere/k"), settings)
    assert (other.address, other.token) == ("http://elsewhere:8500", "t")
    assert remote_key.etcd_settings(key("etcd://b:1/k"), settings).endpoints == ("https://a:1", "https://b:1")
    assert remote_key.etcd_settings(key("etcd://c/k"), settings).endpoints == ("http://c:2379",)


# -- several workers ----------------------------------------------------------------------


BAD = text("bad") + "nonsense: 1\n"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Joined, Joined, Path]:
    """Two workers of one gateway that follow a file; both have `a` in force."""
    path, run = tmp_path / "gateway.yaml", tmp_path / "run"
    run.mkdir()
    path.write_text(text("a"))
    clock = FakeClock()
    one, two = Joined(str(path), str(run), clock), Joined(str(path), str(run), clock)
    one.turn(3)
    two.turn(3)
    return one, two, path


def in_force(worker: Joined) -> str:
    return next(iter(worker.used[-1].upstreams)) if worker.used else "a"


def test_a_worker_that_missed_a_good_version_takes_it_from_its_siblings(pair: tuple[Joined, Joined, Path]) -> None:
    one, two, path = pair
    path.write_text(text("b"))
    one.turn(3)
    # The other worker was busy, and finds a version that is wrong.
    path.write_text(BAD)
    two.rest()
    assert (in_force(one), in_force(two)) == ("b", "b")
    assert "nonsense" in two.told[-1]
    one.rest()
    two.rest()
    assert (len(one.used), len(two.used)) == (1, 1)
    path.write_text(text("a"))
    one.turn(3)
    two.turn(3)
    assert (in_force(one), in_force(two)) == ("a", "a")
    assert two.told[-1] == ""


def test_a_newer_version_is_never_replaced_by_an_older_one_of_siblings(pair: tuple[Joined, Joined, Path]) -> None:
    one, two, path = pair
    path.write_text(text("b"))
    one.turn(3)
    # What the other one has read before comes into force late.
    two.watch._left = siblings_copy.NOTHING
    two.turn(1)
    path.write_text(BAD)
    one.rest()
    two.rest()
    assert (in_force(one), in_force(two)) == ("b", "b")


def test_the_same_bytes_again_are_newer_than_what_came_between(pair: tuple[Joined, Joined, Path]) -> None:
    one, two, path = pair
    path.write_text(text("b"))
    one.turn(3)
    path.write_text(text("a"))
    # Missed `b`; it finds `a` as before, and leaves it for the first one, which missed the return to `a`.
    two.turn(3)
    path.write_text(BAD)
    one.rest()
    two.rest()
    assert (in_force(one), in_force(two)) == ("a", "a")


def test_a_version_of_siblings_that_cannot_be_used_is_tried_again(
    pair: tuple[Joined, Joined, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, path = pair
    path.write_text(text("b"))
    one.turn(3)
    path.write_text(BAD)

    def refuse(config: Config) -> None:
        raise ConfigError("not yet")

    with monkeypatch.context() as patch:
        patch.setattr(two.watch, "_use", refuse)
        two.rest()
    assert in_force(two) == "a"
    two.clock.advance(watch.AGAIN)
    two.rest()
    assert in_force(two) == "b"


def test_a_worker_whose_registry_is_away_has_the_newest_of_both_documents(
    tmp_path: Path, theirs: Registry
) -> None:
    local, clock = tmp_path / "local.yaml", FakeClock()
    local.write_text(LOCAL % "one")
    named = f"{local},consul://h:1/k"
    workers = [Joined(named, str(tmp_path), clock) for _ in range(2)]
    one, two = workers
    try:
        for number, worker in enumerate(workers):
            worker.turn()
            theirs.tell[number](text("a").encode(), "")
            worker.turn()
        theirs.tell[1](None, "connection refused")
        theirs.tell[0](text("b").encode(), "")
        one.turn()
        # Its file is newer than that of the other one, its key older.
        local.write_text(LOCAL % "two")
        two.rest()
        assert list(two.used[-1].upstreams) == ["b"]
        assert two.used[-1].discovery.consul.token == "two"
        one.turn(3)
        assert one.used[-1].version == two.used[-1].version
        number = len(two.used)
        two.rest()
        assert len(two.used) == number
    finally:
        for each in workers:
            each.watch._follower.kill()


def test_documents_of_siblings_are_not_replaced_by_older_ones(tmp_path: Path) -> None:
    folder = str(tmp_path)
    new = (siblings_copy.Part(b"new", 2.0), siblings_copy.Part())
    assert siblings_copy.write(folder, new)
    assert siblings_copy.write(folder, (siblings_copy.Part(b"old", 1.0), siblings_copy.Part()))
    assert siblings_copy.write(folder, (siblings_copy.Part(b"old", 1.0), siblings_copy.Part(b"key", 3.0)))
    assert siblings_copy.read(folder) == new
    # The same document, read by another worker at another time, is not a newer one.
    assert siblings_copy.write(folder, (siblings_copy.Part(b"new", 1.0), siblings_copy.Part(b"key", 3.0)))
    assert siblings_copy.read(folder) == (siblings_copy.Part(b"new", 2.0), siblings_copy.Part(b"key", 3.0))
    lock = os.open(tmp_path / f"{siblings_copy.NAME}.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not siblings_copy.write(folder, (siblings_copy.Part(b"newer", 3.0), siblings_copy.Part()))
    finally:
        os.close(lock)
    assert siblings_copy.write(folder, (siblings_copy.Part(b"newer", 3.0), siblings_copy.Part()))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_a_file_that_could_not_be_read_once_is_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    reads: list[str] = []

    def read(path: str) -> bytes:
        reads.append(path)
        if len(reads) < 3:
            raise ConfigError(f"{path}: cannot be read: {os.strerror(number)}")
        return text("second").encode()

    monkeypatch.setattr(source, "read", read)
    followed.path.write_text(text("second"))
    followed.turn(5)
    assert followed.used == ["second"]
    # It is the file as it stands: that of a state that was read is not read again.
    assert len(reads) == 3
    assert followed.told in ([], [""])
