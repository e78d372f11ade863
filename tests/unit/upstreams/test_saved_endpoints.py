"""Endpoints in a file: what is written, and what is believed of what is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.model import Config, ConsulSource, DiscoverySettings, DnsSrvSource, Endpoint, StaticSource, Upstream
from gateway.routing.router import Router
from gateway.upstreams import saved_endpoints
from gateway.upstreams.saved_endpoints import Saver, Saving, load
from gateway.upstreams.snapshot import Known, Snapshot, build

ONE = Endpoint("http", "10.0.0.1", 80, authority=b"10.0.0.1:80")
TWO = Endpoint("https", "::1", 8443, 7, b"/base", b"k=\xe9", b"two.example:8443", "two.example")
USERS = Upstream("users", ConsulSource("user-svc"))
SRV = Upstream("srv", DnsSrvSource("_http._tcp.example"))
STATIC = Upstream("legacy", StaticSource((ONE,)))
NAMED = Upstream("named", StaticSource((Endpoint("http", "a.example", 80),)))
ALL = {one.name: one for one in (USERS, SRV, STATIC, NAMED)}


def snapshot(path: str | None = None, version: str = "v1", **known: tuple[Endpoint, ...]) -> Snapshot:
    config = Config(version, ALL, (), discovery=DiscoverySettings(snapshot=path))
    state: Any = None
    groups = {name: Known(endpoints) for name, endpoints in known.items()}
    return build(config, Router(()), groups, lambda upstream, endpoints, before, turn: ((), state))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "endpoints.json")


@pytest.fixture
def written(path: str) -> str:
    saver = Saver(path)
    saver.save(snapshot(users=(ONE, TWO), srv=(), legacy=(ONE,), named=(ONE,)), {"srv"})
    saver.close()
    return path


def test_what_was_written_is_read(written: str) -> None:
    assert load(written, ALL, ()) == {"users": (ONE, TWO), "named": (ONE,)}
    assert stat.S_IMODE(os.stat(written).st_mode) == 0o600
    assert sorted(os.listdir(os.path.dirname(written))) == ["endpoints.json", "endpoints.json.lock"]


def test_it_is_json_with_version_and_checksum(written: str) -> None:
    whole = json.loads(Path(written).read_bytes())
    assert sorted(whole) == ["sha256", "upstreams", "version"]
    assert (whole["version"], len(whole["sha256"])) == (1, 64)


def test_a_known_empty_group_is_kept_and_an_unknown_one_is_not(path: str) -> None:
    Saver(path).save(snapshot(users=(), srv=()), {"srv", "named"})
    assert load(path, ALL, ()) == {"users": ()}


def test_another_source_is_another_upstream(written: str) -> None:
    assert load(written, {"users": Upstream("users", ConsulSource("other"))}, ()) == {}
    assert load(written, {"users": replace(USERS, scheme="https")}, ()) == {}
    assert list(load(written, {"users": replace(USERS, host="upstream")}, ())) == ["users"]


def test_what_is_denied_by_now_is_left_out(written: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load(written, ALL, ["10.0.0.0/8"])["users"] == (TWO,)
    reason = "not an endpoint any more: 10.0.0.1 is in 10.0.0.0/8, which discovery.deny excludes"
    assert caplog.messages == [f"upstream users: {reason}", f"upstream named: {reason}"]


@pytest.mark.parametrize(
    "host",
    ["fe80::1%eth0", "64:ff9b::a00:1", "2002:a00:1::", "::ffff:10.0.0.1", "::10.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "::"],
)
def test_what_an_older_version_saved_is_left_out(path: str, host: str) -> None:
    saver = Saver(path)
    saver.save(snapshot(users=(replace(ONE, host=host), TWO)), ())
    saver.close()
    assert load(path, ALL, ["10.0.0.0/8"])["users"] == (TWO,)


def _set(key: str, value: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), key: value}).encode()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data[: len(data) // 2], "damaged: it is not JSON"),
        (lambda data: b"", "damaged: it is not JSON"),
        (lambda data: b"[" * 100_000, "damaged: it is not JSON"),
        (lambda data: b"[]", "not of format 1"),
        (_set("version", 2), "not of format 1"),
        (_set("sha256", "0" * 64), "damaged: its checksum does not fit"),
        (_set("upstreams", []), "damaged: its checksum does not fit"),
        (lambda data: data.replace(b"10.0.0.1", b"10.0.0.9"), "damaged: its checksum does not fit"),
        (lambda data: b"version: 1\n", "damaged: it is not JSON"),
    ],
)
def test_what_is_damaged_is_refused(
    written: str, spoil: Callable[[bytes], bytes], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(written)
    file.write_bytes(spoil(file.read_bytes()))
    assert load(written, ALL, ()) == {}
    assert caplog.messages == [f"the saved endpoints in {written} are not used: {told}"]


@pytest.mark.parametrize("entry", [{}, {"host": "h"}, {"host": "10.0.0.1", "port": 0}, [], "x", None])
def test_a_good_checksum_is_not_enough(written: str, entry: object, caplog: pytest.LogCaptureFixture) -> None:
    upstreams = {"users": {"source": saved_endpoints.source_of(USERS), "endpoints": [entry]}}
    digest = hashlib.sha256(saved_endpoints._compact(upstreams)).hexdigest()
    Path(written).write_text(json.dumps({"version": 1, "sha256": digest, "upstreams": upstreams}))
    assert load(written, ALL, ()) == {}
    assert "damaged: the endpoints of users" in caplog.text


def test_what_is_not_ours_alone_is_refused(written: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    os.chmod(written, 0o640)
    assert load(written, ALL, ()) == {}
    assert "others may read or write it (mode 0640, not 0600)" in caplog.text
    os.chmod(written, 0o600)
    link = tmp_path / "link"
    link.symlink_to(written)
    assert load(str(link), ALL, ()) == {}
    assert f"the saved endpoints in {link} are not used" in caplog.text
    assert load(str(tmp_path), ALL, ()) == {}
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert load(str(fifo), ALL, ()) == {}
    assert "no regular file" in caplog.text


def test_another_owner_is_refused(
    written: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert load(written, ALL, ()) == {}
    assert f"it belongs to user {os.getuid()}" in caplog.text


def test_too_large_is_not_read(written: str, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(written, saved_endpoints.LIMIT + 1)
    assert load(written, ALL, ()) == {}
    assert f"larger than {saved_endpoints.LIMIT} bytes" in caplog.text


def test_no_file_is_no_news(path: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load(path, ALL, ()) == {}
    assert caplog.messages == []


def test_one_of_all_that_share_it_writes(path: str) -> None:
    one, two = Saver(path), Saver(path)
    one.save(snapshot(users=(ONE,)), ())
    two.save(snapshot(users=(TWO,)), ())
    assert load(path, ALL, ())["users"] == (ONE,)
    one.close()
    two.save(snapshot(users=(TWO,)), ())
    assert load(path, ALL, ())["users"] == (TWO,)


def test_the_same_is_not_written_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(path)
    saver.save(snapshot(users=(ONE,)), ())
    before = os.stat(path).st_ino
    saver.save(snapshot(users=(ONE,)), ())
    assert os.stat(path).st_ino == before
    saver.save(snapshot(users=(TWO,)), ())
    assert os.stat(path).st_ino != before


def test_a_disk_that_is_full_is_told_once_and_leaves_the_old_file(
    written: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    saver = Saver(written)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for number in range(3):
            saver.save(snapshot(users=(replace(ONE, port=8000 + number),)), ())
    assert caplog.messages == [f"endpoints are not saved to {written}: No space left on device"]
    assert load(written, ALL, ())["users"] == (ONE, TWO)
    assert not os.path.exists(f"{written}.tmp")
    saver.save(snapshot(users=(TWO,)), ())
    assert load(written, ALL, ())["users"] == (TWO,)
    assert f"endpoints are saved to {written} again" in caplog.messages


def test_saving_follows_the_configuration(tmp_path: Path) -> None:
    calls: list[object] = []

    def aside(call: Callable[[], None]) -> None:
        calls.append(call)
        call()

    saving = Saving(aside)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    saving.turn(None, snapshot(None, users=(ONE,)), ())
    saving.turn(a, snapshot(a, "", users=()), ())
    assert os.listdir(tmp_path) == []
    now = snapshot(a, users=(ONE,))
    for _ in range(3):
        saving.turn(a, now, ())
    assert len(calls) == 1
    saving.turn(b, snapshot(b, users=(TWO,)), ())
    assert load(a, ALL, ())["users"] == (ONE,)
    assert load(b, ALL, ())["users"] == (TWO,)
    saving.close()
    Saver(a).save(snapshot(users=(TWO,)), ())
    assert load(a, ALL, ())["users"] == (TWO,)


# -- several workers ----------------------------------------------------------------------


def known(name: str, endpoints: tuple[Endpoint, ...], error: str = "", **others: tuple[Endpoint, ...]) -> Snapshot:
    """`name`'s endpoints and what is wrong now; `others` without trouble."""
    groups = {name: Known(endpoints, error), **{other: Known(found) for other, found in others.items()}}
    state: Any = None
    return build(Config("v1", ALL, ()), Router(()), groups, lambda upstream, endpoints, before, turn: ((), state))


def test_an_upstream_without_an_answer_keeps_its_entry(written: str) -> None:
    worker = Saver(written)
    worker.save(snapshot(srv=(TWO,)), {"users", "named"})
    assert load(written, ALL, ()) == {"users": (ONE, TWO), "named": (ONE,), "srv": (TWO,)}


def test_a_failed_look_up_keeps_the_entry_until_an_answer_comes(written: str) -> None:
    worker = Saver(written)
    worker.save(known("users", (ONE,), "away", named=(TWO,)), {"srv"})
    assert load(written, ALL, ()) == {"users": (ONE, TWO), "named": (TWO,)}
    # One of several names of an upstream cannot be looked up, the others can.
    worker.save(known("users", (TWO,), "one name is away", named=(TWO,)), {"srv"})
    assert load(written, ALL, ())["users"] == (TWO,)


def test_a_failed_look_up_is_saved_where_the_file_has_no_entry(path: str) -> None:
    Saver(path).save(known("users", (ONE,), "away"), {"srv", "named"})
    assert load(path, ALL, ()) == {"users": (ONE,)}


def test_an_entry_of_another_source_is_not_kept(written: str) -> None:
    other = {**ALL, "users": Upstream("users", ConsulSource("other"))}
    state: Any = None
    now = build(Config("v2", other, ()), Router(()), {}, lambda upstream, endpoints, before, turn: ((), state))
    Saver(written).save(now, {"users", "srv"})
    assert load(written, ALL, ()).get("users") is None


def test_another_error_alone_writes_nothing(written: str) -> None:
    worker, away = Saver(written), known("users", (ONE,), "away")
    worker.save(away, {"srv", "named"})
    before = os.stat(written).st_ino
    users = replace(away.groups["users"], error="away since long")
    worker.save(replace(away, groups={**away.groups, "users": users}), {"srv", "named"})
    assert os.stat(written).st_ino == before


def test_only_a_worker_that_knows_everything_keeps_the_lock(path: str) -> None:
    """A worker that took the place of another one must not keep its siblings from saving."""
    new, old = Saver(path), Saver(path)
    new.save(snapshot(), {"users", "srv", "named"})
    found = (ONE,)
    old.save(snapshot(users=found, srv=(), named=()), ())
    new.save(snapshot(users=(TWO,), srv=(), named=()), ())
    assert load(path, ALL, ())["users"] == (ONE,)
    # Its registry is away now: the other worker may know more.
    old.save(known("users", found, "away", srv=(), named=()), ())
    new.save(snapshot(users=(TWO,), srv=(), named=()), ())
    assert load(path, ALL, ())["users"] == (TWO,)


def test_a_file_in_the_run_directory_that_was_removed_is_written_again(tmp_path: Path) -> None:
    path, saving = str(tmp_path / "endpoints"), Saving(lambda call: call(), durable=False)
    now = snapshot(users=(ONE,), srv=(), named=())
    saving.turn(path, now, ())
    for file in tmp_path.iterdir():
        file.unlink()
    saving.turn(path, now, ())
    assert load(path, ALL, ())["users"] == (ONE,)


def test_a_file_in_the_run_directory_needs_no_disk(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", None)
    Saver(path, durable=False).save(snapshot(users=(ONE,)), ())
    assert load(path, ALL, ())["users"] == (ONE,)


def test_a_damaged_file_is_replaced(written: str) -> None:
    Path(written).write_bytes(b"{")
    Saver(written).save(snapshot(users=(TWO,)), {"srv"})
    assert load(written, ALL, ()) == {"users": (TWO,), "named": ()}
