"""The folder of a master's workers: whose it is, and what a reload writes into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gateway.hosting.run_directory import RunDirectory
from gateway.hosting.siblings import reloaded


def test_it_is_the_workers_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn's `user`: the master may be root, and what it makes is to be of use to its workers."""
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.append((path, user, group)))
    other = os.geteuid() + 1
    theirs = RunDirectory(str(tmp_path), other, 7)
    ours = RunDirectory(str(tmp_path), os.geteuid(), 7)
    assert given == [(theirs.path, other, 7)]
    theirs.remove()
    ours.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_one_that_a_killed_master_left_to_another_user_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "wsgi-gateway-run-left"
    left.mkdir()
    (left / "lock").touch()
    os.chown(left, 65534, 65534)
    os.utime(left, (0, 0))
    RunDirectory(str(tmp_path), os.geteuid(), os.getegid()).remove()
    assert left.exists()
    RunDirectory(str(tmp_path), 65534, 65534).remove()
    assert not left.exists()


def test_it_is_made_again_when_somebody_cleans_up(tmp_path: Path) -> None:
    made = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    (Path(made.path) / "siblings").touch()
    made.remake()
    assert (Path(made.path) / "siblings").exists()
    shutil.rmtree(made.path)
    made.remake()
    assert Path(made.path).stat().st_mode & 0o777 == 0o700
    assert [each.name for each in Path(made.path).iterdir()] == ["lock"]
    made.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_one_that_somebody_else_made_in_its_place_is_not_used(tmp_path: Path) -> None:
    made = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    os.chown(made.path, 65534, 65534)
    with pytest.raises(PermissionError, match="another user's"):
        made.remake()
    made.remove()


def test_a_reload_before_any_worker_makes_no_file_that_they_could_not_open(tmp_path: Path) -> None:
    reloaded(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_reload_follows_no_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "siblings").symlink_to(other)
    reloaded(str(tmp_path))
    assert other.read_bytes() == b""


def test_files_of_the_master_before_are_taken_over(tmp_path: Path) -> None:
    before = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    after = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    Path(before.path, "endpoints").write_bytes(b"known")
    after.take_over(before.path, ("configuration", "endpoints"))
    copy = Path(after.path, "endpoints")
    assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (b"known", 0o600)
    assert not Path(after.path, "configuration").exists()
    after.take_over(str(tmp_path / "gone"), ("configuration",))
    before.remove()
    after.remove()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_is_not_taken_over(tmp_path: Path, kind: str) -> None:
    before = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    after = RunDirectory(str(tmp_path), os.geteuid(), os.getegid())
    there = Path(before.path, "endpoints")
    if kind == "link":
        there.symlink_to("/etc/hostname")
    else:
        os.mkfifo(there)
    with pytest.raises(OSError, match=r"symbolic|not a file"):
        after.take_over(before.path, ("endpoints",))
    assert not Path(after.path, "endpoints").exists()
    before.remove()
    after.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_only_files_of_the_workers_user_are_taken_over_and_given_to_that_user(tmp_path: Path) -> None:
    before, after = RunDirectory(str(tmp_path), 65534, 65534), RunDirectory(str(tmp_path), 65534, 65534)
    there = Path(before.path, "endpoints")
    there.write_bytes(b"known")
    with pytest.raises(PermissionError, match="not a file of this gateway's workers"):
        after.take_over(before.path, ("endpoints",))
    os.chown(there, 65534, 65534)
    after.take_over(before.path, ("endpoints",))
    assert Path(after.path, "endpoints").stat().st_uid == 65534
    before.remove()
    after.remove()
