"""The documents in force, left where the other workers of one gateway find them.

Rule: for a worker that starts while a file is broken or a registry is away, so that it has
what its siblings have. It lies in the run directory of this gateway's master and is gone
with it; what is not whole is as good as nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

# Those of the file and of the key, as far as there are.
Texts = tuple[bytes | None, bytes | None]

NAME = "configuration"
# The endpoints, which `saved` reads and writes.
ENDPOINTS = "endpoints"
# What the master after this one (SIGUSR2) takes over.
FILES = (NAME, ENDPOINTS)


def write(folder: str, texts: Texts) -> None:
    """Replace what is there. Raises OSError."""
    sizes = [None if text is None else len(text) for text in texts]
    body = b"".join(text for text in texts if text is not None)
    head = json.dumps({"sizes": sizes, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    beside = os.path.join(folder, f"{NAME}.{os.getpid()}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as opened:
            opened.write(head + b"\n" + body)
        os.rename(beside, os.path.join(folder, NAME))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def read(folder: str) -> Texts | None:
    """What the siblings have; None when there is nothing to be had."""
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            head, _, body = file.read().partition(b"\n")
        told = json.loads(head)
        file_size, key_size = told["sizes"]
        digest = told["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if hashlib.sha256(body).hexdigest() != digest:
        return None
    of_file = None if file_size is None else body[:file_size]
    return of_file, None if key_size is None else body[file_size or 0 :]
