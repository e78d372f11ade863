"""The documents in force, left where the other workers of one gateway find them.

Rule: for a worker whose own source is broken, unreadable or away, so that it has what its siblings have. The file lies
in the run directory of this gateway's master and is gone with it. A damaged file counts as none. Documents never
replace newer ones: each has the time at which it was read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import NamedTuple


class Part(NamedTuple):
    """A document as it was read. `data`: None where there is none. `at`: when, in seconds of the machine's monotonic
    clock, which all of its processes share."""

    data: bytes | None = None
    at: float = -math.inf


# That of the file and that of the key.
Parts = tuple[Part, Part]

NONE = Part()
NOTHING: Parts = (NONE, NONE)

NAME = "configuration"
# The endpoints, which `saved` reads and writes.
ENDPOINTS = "endpoints"
# What the master after this one (SIGUSR2) takes over.
FILES = (NAME, ENDPOINTS)


def newest(one: Parts, other: Parts) -> Parts:
    """The newer one of each document; of equally old ones that of `one`."""
    (file, key), (their_file, their_key) = one, other
    return their_file if their_file.at > file.at else file, their_key if their_key.at > key.at else key


def write(folder: str, parts: Parts) -> bool:
    """Replace the file, unless a document in it is newer. Returns False while a sibling writes. Raises OSError."""
    with _locked(os.path.join(folder, f"{NAME}.lock")) as locked:
        if not locked:
            return False
        both = newest(parts, read(folder) or NOTHING)
        # Equal documents may have been read at different times.
        if all(mine.data == newer.data for mine, newer in zip(parts, both, strict=True)):
            _replace(folder, both)
        return True


def _replace(folder: str, parts: Parts) -> None:
    sizes = [None if part.data is None else len(part.data) for part in parts]
    body = b"".join(part.data for part in parts if part.data is not None)
    head = {"sizes": sizes, "at": [part.at for part in parts], "sha256": hashlib.sha256(body).hexdigest()}
    beside = os.path.join(folder, f"{NAME}.{os.getpid()}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as opened:
            opened.write(json.dumps(head).encode() + b"\n" + body)
        os.rename(beside, os.path.join(folder, NAME))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Whether the lock is ours. A sibling may be stopped while it has the lock, so there is no wait for it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def read(folder: str) -> Parts | None:
    """What the siblings have; None when there is nothing to be had."""
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            head, _, body = file.read().partition(b"\n")
        known = json.loads(head)
        file_size, key_size = known["sizes"]
        file_at, key_at = map(float, known["at"])
        digest = known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if hashlib.sha256(body).hexdigest() != digest:
        return None
    of_file = None if file_size is None else body[:file_size]
    of_key = None if key_size is None else body[file_size or 0 :]
    return Part(of_file, file_at), Part(of_key, key_at)
