"""A file of counters: the values of one worker slot in the format of prometheus_client's multiprocess mode.

Rule: one process writes it, any may read it, and what is in it outlives whoever wrote it. A
value is one write of 16 bytes into a mapped page. It never has holes: to write into one kills
the process when the disk is full.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client import mmap_dict, multiprocess
from prometheus_client.metrics_core import Metric

from gateway.runtime.hub import breathe

log = logging.getLogger("gateway.metrics")

# Untyped, both of them.
MmapedDict: Any = mmap_dict.MmapedDict
MultiProcessCollector: Any = multiprocess.MultiProcessCollector

# The label of what would be one series too many.
OTHER: Final = "other"
# Values of one worker's file. Enough for 50,000 endpoints; each that is used takes some 500
# bytes of memory.
MOST: Final = 100_000
# Values beyond twice of what is in use, from which on the files are made anew.
_SLACK: Final = 1000
# What is written or copied without a pause.
_SLICE: Final = 250
# Room on the disk that is taken at once: writing into a file that has none kills the process.
_ROOM: Final = 256 * 1024
# What reading a file raises that is not as it was written.
_DAMAGE: Final = (RuntimeError, ValueError, TypeError, struct.error)
# Files that were reported as damaged.
_left_out: set[str] = set()
# More than any value takes: names of 128 characters, each of six bytes in JSON.
_LARGEST: Final = 4096

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One counter. The labels are in the order in which values are given."""

    name: str
    told: str
    labels: tuple[str, ...]


def pause(number: int) -> None:
    if not number % _SLICE:
        breathe()


class CounterFile:
    """The values of one file, by metric, sample and labels. To be opened first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._keys: dict[tuple[str, Labels], str] = {}
        self._number = 0
        # What a predecessor has left is not known to be in use.
        self._kept = 0

    def open(self) -> None:
        """Open it, unless it is open. Raises OSError, and may be called again."""
        if self._file is None:
            self._file, self._number = _opened(self._path)

    def has(self, sample: str, labels: Labels) -> bool:
        """Whether this worker has written that value before."""
        return (sample, labels) in self._keys

    def add(self, series: Series, sample: str, labels: Labels, amount: float) -> None:
        key = self._keys.get((sample, labels))
        if key is None:
            key = self._key(series, sample, labels)
        value, _ = self._file.read_value(key)
        self._file.write_value(key, value + amount, 0.0)

    def _key(self, series: Series, sample: str, labels: Labels) -> str:
        names = series.labels if len(labels) == len(series.labels) else (*series.labels, "le")
        if len(self._keys) >= MOST:
            # Only what a hostile upstream or a storm of new routes can reach.
            labels = tuple(
                value if name in ("le", "method", "status", "reason", "decision") else OTHER
                for name, value in zip(names, labels, strict=True)
            )
        key = mmap_dict.mmap_key(series.name, sample, list(names), list(labels), series.told)
        self._make_room()
        if len(self._keys) < MOST:
            self._keys[sample, labels] = key
            # It may be there from before a restart; then `worn` comes a little early.
            self._number += 1
        return key

    def _make_room(self) -> None:
        """Before the file grows: it would have holes, and to write into one kills the process
        when the disk is full."""
        file = self._file
        if file._used + _LARGEST > file._capacity:
            os.posix_fallocate(file._f.fileno(), 0, 2 * file._capacity)

    @property
    def worn(self) -> bool:
        return self._number > 2 * self._kept + _SLACK

    def renew(self, used: Callable[[dict[str, str]], bool]) -> None:
        """Put a file in place of this one that has only what is used."""
        path = self._path.with_suffix(".new")
        path.unlink(missing_ok=True)
        fresh, _ = _opened(path, self._file._capacity)
        kept = 0
        for number, (key, value, timestamp) in enumerate(self._file.read_all_values()):
            pause(number + 1)
            if used(json.loads(key)[2]):
                fresh.write_value(key, value, timestamp)
                kept += 1
        os.replace(path, self._path)
        self._file.close()
        self._file = fresh
        self._keys.clear()
        self._number = self._kept = kept

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(path: Path, room: int = _ROOM) -> tuple[Any, int]:
    """The values in a file, from before too, and how many there are; one that is damaged is begun anew."""
    try:
        return _sound(path, room)
    except _DAMAGE as error:
        log.warning("metrics in %s are damaged and begin anew: %s", path, error)
        path.unlink()
        return _sound(path, room)


def _sound(path: Path, room: int) -> tuple[Any, int]:
    file = MmapedDict(str(_with_room(path, room)))
    if not 8 <= file._used <= file._capacity:
        raise ValueError(f"{file._used} of {file._capacity} bytes are in use")
    return file, _check(file.read_all_values())


def _check(values: Iterable[tuple[str, float, float]]) -> int:
    """The number of values. Raises one of `_DAMAGE` for a key that is none."""
    number = 0
    for key, _, _ in values:
        number += 1
        _, _, labels, _ = json.loads(key)
        if not isinstance(labels, dict):
            raise ValueError(f"the key {key[:80]!r}")
    return number


def _with_room(path: Path, room: int) -> Path:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as file:
        size = os.fstat(descriptor).st_size
        if size < room:
            try:
                os.posix_fallocate(descriptor, 0, room)
            except OSError:
                if not size:
                    # Who reads the files takes an empty one for damaged.
                    path.unlink()
                raise
        file.flush()
    return path


def collect(folders: Iterable[str]) -> Iterator[Metric]:
    """What all workers have counted, added up. Reads files: not for the hub's thread. A damaged file is left out."""
    for folder in folders:
        paths = sorted(map(str, Path(folder).glob("*.db")))
        try:
            found = MultiProcessCollector.merge(paths)
        except Exception:
            # One of them is damaged; if not, it is raised again.
            found = MultiProcessCollector.merge([path for path in paths if _readable(path)])
        yield from found


def _readable(path: str) -> bool:
    try:
        _check((key, value, now) for key, value, now, _ in MmapedDict.read_all_values_from_file(path))
    except (*_DAMAGE, OSError) as error:
        if path not in _left_out:
            log.warning("metrics in %s are left out: %s: %s", path, type(error).__name__, error)
        _left_out.add(path)
        return False
    _left_out.discard(path)
    return True
