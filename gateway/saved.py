"""The last good endpoints in a file, for a start while the registry is away.

Rule: the file is written whole or not at all (beside it, fsync, rename), readable by its
owner alone, by one worker of all that share it (who has the lock), off the hub, and at most
once a second. What is read is believed only when it is ours, whole (SHA-256) and about the
same source as now; else it is refused with a line in the log, and nothing more happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gateway.ip import address, networks
from gateway.model import Endpoint, StaticSource, Upstream
from gateway.providers.addresses import allowed
from gateway.snapshot import Group, Snapshot

log = logging.getLogger("gateway.saved")

FORMAT = 1
# 50,000 endpoints are some 10 MB.
LIMIT = 64 * 1024 * 1024


class Refused(Exception):
    """A file that is not to be believed; the text says why."""


# -- writing ------------------------------------------------------------------------------


class Saver:
    """Keeps the file at `path` as the snapshot in force has it.

    Everything here is meant for a thread. A worker that does not have the lock writes nothing;
    it tries again each time, because the one that has it may leave. Only one thread writes at a time: a
    second call during a write (its caller was interrupted and restarted) does nothing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # The thread that pops the element may write. `pop` is atomic, and unlike a lock never blocks the hub.
        self._turn = [True]
        self._closing = False
        self._lock: int | None = None
        self._written = ""
        # The one that the file has.
        self.saved: Snapshot | None = None
        # The JSON of a group, as long as the group is the same.
        self._pieces: dict[str, tuple[Group, str]] = {}
        self._trouble = ""

    def save(self, snapshot: Snapshot, unknown: Collection[str]) -> None:
        """Write what changed, if anything did and it is ours to write. `unknown`: upstreams
        without an answer so far. Never raises OSError."""
        try:
            self._turn.pop()
        except IndexError:
            return
        try:
            if self._lock is None:
                self._lock = _locked(f"{self.path}.lock")
            if self._lock is None:
                return
            body = self._body(snapshot, unknown)
            digest = hashlib.sha256(body.encode()).hexdigest()
            if digest != self._written:
                _write(self.path, f'{{"sha256":"{digest}","upstreams":{body},"version":{FORMAT}}}\n'.encode())
                self._written = digest
            self.saved = snapshot
            if self._trouble:
                log.info("endpoints are saved to %s again", self.path)
            self._trouble = ""
        except OSError as error:
            told = error.strerror or str(error)
            if told != self._trouble:
                log.warning("endpoints are not saved to %s: %s", self.path, told)
            self._trouble = told
        finally:
            self._turn.append(True)
            if self._closing:
                self.close()

    def close(self) -> None:
        """Release the lock on the file, or let the thread that is writing release it at its end."""
        self._closing = True
        if not self._turn:
            return
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _body(self, snapshot: Snapshot, unknown: Collection[str]) -> str:
        """The upstreams as JSON, its keys in order. Made of pieces, because one long call of
        the encoder would keep every other thread, and with it the hub, waiting."""
        pieces: dict[str, tuple[Group, str]] = {}
        for name, group in snapshot.groups.items():
            if name in unknown or source_of(group.upstream) is None:
                continue
            known = self._pieces.get(name)
            pieces[name] = known if known is not None and known[0] is group else (group, _json(group))
        self._pieces = pieces
        return "{" + ",".join(f"{_compact(name)}:{pieces[name][1]}" for name in sorted(pieces)) + "}"


def source_of(upstream: Upstream) -> str | None:
    """What tells where the endpoints of an upstream come from; None when they are in the file."""
    source = upstream.source
    if isinstance(source, StaticSource) and all(address(one.host) is not None for one in source.endpoints):
        return None
    name = upstream.tls.server_name if upstream.tls is not None else None
    told = f"{type(source).__name__} {source!r} {upstream.scheme} {name}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _json(group: Group) -> str:
    endpoints = [
        {
            "scheme": one.scheme,
            "host": one.host,
            "port": one.port,
            "weight": one.weight,
            "base_path": one.base_path.decode("latin-1"),
            "query": one.query.decode("latin-1"),
            "authority": one.authority.decode("latin-1"),
            "server_name": one.server_name,
        }
        for one in group.endpoints
    ]
    return _compact({"endpoints": endpoints, "source": source_of(group.upstream)})


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _locked(path: str) -> int | None:
    """The lock, which lasts as long as the file is open; None while another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return lock


def _write(path: str, data: bytes) -> None:
    """Replace a file: either the old one or the whole new one is there, whatever happens."""
    beside = f"{path}.tmp"
    # Left over from a process that was killed; nobody else writes, as we have the lock.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(file)
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- reading ------------------------------------------------------------------------------


def load(path: str, upstreams: Mapping[str, Upstream], deny: Iterable[str]) -> dict[str, tuple[Endpoint, ...]]:
    """The saved endpoints of those upstreams whose source is still the same, without those that
    are denied by now; none, and a line in the log, when the file is not to be believed."""
    try:
        data, saved_at = _read(path)
    except FileNotFoundError:
        return {}
    except (Refused, OSError) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        log.warning("the saved endpoints in %s are not used: %s", path, told)
        return {}
    try:
        found = _decode(data, upstreams)
    except Refused as error:
        log.warning("the saved endpoints in %s are not used: %s", path, error)
        return {}
    denied = networks(deny)
    for name, endpoints in found.items():
        found[name], refused = allowed(endpoints, denied)
        for reason in refused:
            log.warning("upstream %s: not an endpoint any more: %s", name, reason)
    if found:
        age = max(0, round(time.time() - saved_at))
        number = sum(map(len, found.values()))
        log.info("%d endpoints of %d upstreams from %s, saved %d s ago", number, len(found), path, age)
    return found


def _read(path: str) -> tuple[bytes, float]:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("no regular file")
        if found.st_uid != os.geteuid():
            raise Refused(f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
        if found.st_mode & 0o077:
            raise Refused(f"others may read or write it (mode {stat.S_IMODE(found.st_mode):04o}, not 0600)")
        if found.st_size > LIMIT:
            raise Refused(f"larger than {LIMIT} bytes")
        return opened.read(LIMIT + 1), found.st_mtime


def _decode(data: bytes, upstreams: Mapping[str, Upstream]) -> dict[str, tuple[Endpoint, ...]]:
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("damaged: it is not JSON") from None
    if not isinstance(whole, dict) or whole.get("version") != FORMAT:
        raise Refused(f"not of format {FORMAT}")
    saved = whole.get("upstreams")
    if not isinstance(saved, dict) or hashlib.sha256(_compact(saved).encode()).hexdigest() != whole.get("sha256"):
        raise Refused("damaged: its checksum does not fit")
    found = {}
    for name, upstream in upstreams.items():
        entry = saved.get(name)
        if entry is None or source_of(upstream) is None or entry.get("source") != source_of(upstream):
            continue
        try:
            found[name] = tuple(map(_endpoint, entry["endpoints"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refused(f"damaged: the endpoints of {name}") from None
    return found


def _endpoint(entry: Mapping[str, Any]) -> Endpoint:
    if address(entry["host"]) is None or not 0 < int(entry["port"]) < 65536:
        raise ValueError(entry)
    return Endpoint(
        scheme=_one_of(entry["scheme"], "http", "https"),
        host=entry["host"],
        port=int(entry["port"]),
        weight=int(entry["weight"]),
        base_path=entry["base_path"].encode("latin-1"),
        query=entry["query"].encode("latin-1"),
        authority=entry["authority"].encode("latin-1"),
        server_name=entry["server_name"],
    )


def _one_of(value: str, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(value)
    return value


# -- while it serves ----------------------------------------------------------------------


class Saving:
    """Saves what is in force whenever it has changed. `aside` makes a call on a thread."""

    def __init__(self, aside: Callable[[Callable[[], None]], None]) -> None:
        self._aside = aside
        self._saver: Saver | None = None

    def turn(self, snapshot: Snapshot, unknown: Collection[str]) -> None:
        """To be called once a second or so; where to save is looked at anew each time."""
        # Without a version there is no configuration yet: nothing is known of its upstreams.
        path = snapshot.config.discovery.snapshot if snapshot.version else None
        if self._saver is not None and self._saver.path != path:
            self.close()
        if path is None:
            return
        saver = self._saver = self._saver or Saver(path)
        if saver.saved is not snapshot:
            self._aside(lambda: saver.save(snapshot, unknown))

    def close(self) -> None:
        if self._saver is not None:
            self._saver.close()
        self._saver = None
