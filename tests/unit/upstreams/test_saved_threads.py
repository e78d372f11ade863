"""Saving by threads of which one may be late: the file is whole, and its lock is given back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from gateway.upstreams import saved_endpoints
from gateway.upstreams.saved_endpoints import Saver, load
from tests.unit.upstreams.test_saved_endpoints import ALL, ONE, TWO, snapshot


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "endpoints.json")


def is_locked(path: str) -> bool:
    with open(f"{path}.lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_second_call_while_one_writes_does_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the first was interrupted by a fault, and began anew."""
    saver, real, writes = Saver(path), saved_endpoints._replace, []

    def write(to: str, data: bytes, durable: bool) -> None:
        writes.append(data)
        saver.save(snapshot(users=(TWO,)), ())
        real(to, data, durable)

    monkeypatch.setattr(saved_endpoints, "_replace", write)
    saver.save(snapshot(users=(ONE,)), ())
    assert len(writes) == 1
    assert load(path, ALL, ())["users"] == (ONE,)
    monkeypatch.setattr(saved_endpoints, "_replace", real)
    saver.save(snapshot(users=(TWO,)), ())
    assert load(path, ALL, ())["users"] == (TWO,)
    saver.close()
    assert not is_locked(path)


def test_closing_while_one_writes_keeps_the_lock_until_it_has(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, real = Saver(path), saved_endpoints._replace

    def write(to: str, data: bytes, durable: bool) -> None:
        saver.close()
        assert is_locked(path)
        real(to, data, durable)

    monkeypatch.setattr(saved_endpoints, "_replace", write)
    saver.save(snapshot(users=(ONE,)), ())
    assert load(path, ALL, ())["users"] == (ONE,)
    assert not is_locked(path)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("no")])
def test_after_a_fault_the_next_call_saves(path: str, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    saver, real = Saver(path), saved_endpoints._replace

    def write(to: str, data: bytes, durable: bool) -> None:
        raise fault

    monkeypatch.setattr(saved_endpoints, "_replace", write)
    if isinstance(fault, OSError):
        saver.save(snapshot(users=(ONE,)), ())
    else:
        with pytest.raises(RuntimeError):
            saver.save(snapshot(users=(ONE,)), ())
    assert not os.path.exists(path)
    monkeypatch.setattr(saved_endpoints, "_replace", real)
    saver.save(snapshot(users=(ONE,)), ())
    assert load(path, ALL, ())["users"] == (ONE,)
    saver.close()
