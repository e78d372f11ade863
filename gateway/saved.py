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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.ip import address, networks
from gateway.model import Endpoint, StaticSource, Upstream
from gateway.providers.addresses import allowed
from gateway.registries import RegistryError
from gateway.registries.json_pieces import Pieces
from gateway.snapshot import Group, Snapshot
from gateway.turns import parts

log = logging.getLogger("gateway.saved")

FORMAT = 1
# 50,000 endpoints are some 10 MB.
LIMIT = 64 * 1024 * 1024
# Bytes of one endpoint in it, and more.
MOST_VALUE = 1024 * 1024


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
        self._pieces: dict[str, tuple[Group, bytes]] = {}
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
            digest = hashlib.sha256(body).hexdigest()
            if digest != self._written:
                _write(self.path, b'{"sha256":"%b","upstreams":%b,"version":%d}\n' % (digest.encode(), body, FORMAT))
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

    def _body(self, snapshot: Snapshot, unknown: Collection[str]) -> bytes:
        """The upstreams as JSON, its keys in order. Made of pieces, because one long call of
        the encoder would keep every other thread, and with it the hub, waiting."""
        pieces: dict[str, tuple[Group, bytes]] = {}
        for name, group in snapshot.groups.items():
            if name in unknown or source_of(group.upstream) is None:
                continue
            known = self._pieces.get(name)
            pieces[name] = known if known is not None and known[0] is group else (group, _json(group))
        self._pieces = pieces
        return b"{%b}" % b",".join(b"%b:%b" % (_compact(name), pieces[name][1]) for name in sorted(pieces))


def source_of(upstream: Upstream) -> str | None:
    """What tells where the endpoints of an upstream come from; None when they are in the file."""
    source = upstream.source
    if isinstance(source, StaticSource) and all(address(one.host) is not None for one in source.endpoints):
        return None
    name = upstream.tls.server_name if upstream.tls is not None else None
    told = f"{type(source).__name__} {source!r} {upstream.scheme} {name}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _json(group: Group) -> bytes:
    """Endpoint by endpoint, for the same reason."""
    endpoints = b",".join([_compact(_fields(one)) for one in group.endpoints])
    return b'{"endpoints":[%b],"source":%b}' % (endpoints, _compact(source_of(group.upstream)))


def _fields(endpoint: Endpoint) -> dict[str, object]:
    return {
        "scheme": endpoint.scheme,
        "host": endpoint.host,
        "port": endpoint.port,
        "weight": endpoint.weight,
        "base_path": endpoint.base_path.decode("latin-1"),
        "query": endpoint.query.decode("latin-1"),
        "authority": endpoint.authority.decode("latin-1"),
        "server_name": endpoint.server_name,
    }


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _compact(value: object) -> bytes:
    return _encode(value).encode()


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


def load(
    path: str, upstreams: Mapping[str, Upstream], deny: Iterable[str], turn: Callable[[], object] = lambda: None
) -> dict[str, tuple[Endpoint, ...]]:
    """The saved endpoints of those upstreams whose source is still the same, without those that
    are denied by now; none, and a line in the log, when the file is not to be believed. `turn` is
    called between two parts of the work."""
    try:
        data, saved_at = _read(path)
    except FileNotFoundError:
        return {}
    except (Refused, OSError) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        log.warning("the saved endpoints in %s are not used: %s", path, told)
        return {}
    try:
        found = _decode(data, upstreams, turn)
    except Refused as error:
        log.warning("the saved endpoints in %s are not used: %s", path, error)
        return {}
    denied = networks(deny)
    for name, endpoints in found.items():
        found[name], refused = allowed(parts(endpoints, turn), denied)
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


@dataclass(slots=True)
class _Saved:
    """One upstream in the file. `endpoints` None: they are damaged. `members`: its JSON, member by member, as the
    checksum is made of it."""

    endpoints: list[Endpoint] | None = field(default_factory=list)
    source: object = None
    members: dict[str, list[bytes]] = field(default_factory=dict)

    def json(self) -> Iterator[bytes]:
        for number, key in enumerate(sorted(self.members)):
            yield b"%b%b:" % (b"," if number else b"{", _compact(key))
            yield from self.members[key]
        yield b"}" if self.members else b"{}"


def _decode(
    data: bytes, upstreams: Mapping[str, Upstream], turn: Callable[[], object]
) -> dict[str, tuple[Endpoint, ...]]:
    try:
        told, saved = _document(Pieces(data, turn, MOST_VALUE), turn)
    except RegistryError:
        raise Refused("damaged: it is not JSON") from None
    if told.get("version") != FORMAT:
        raise Refused(f"not of format {FORMAT}")
    if saved is None or _digest(saved, turn) != told.get("sha256"):
        raise Refused("damaged: its checksum does not fit")
    found = {}
    for name, upstream in upstreams.items():
        entry = saved.get(name)
        if entry is None or source_of(upstream) is None or entry.source != source_of(upstream):
            continue
        if entry.endpoints is None:
            raise Refused(f"damaged: the endpoints of {name}")
        found[name] = tuple(entry.endpoints)
    return found


def _document(reader: Pieces, turn: Callable[[], object]) -> tuple[dict[str, object], dict[str, _Saved] | None]:
    """The members of the file besides its upstreams, and those; None: they are no object of objects."""
    told: dict[str, object] = {}
    saved: dict[str, _Saved] | None = None
    if reader.next() != "{":
        reader.value()
    else:
        for key in reader.members():
            if key != "upstreams":
                told[key] = reader.value()
            elif reader.next() != "{":
                reader.value()
            else:
                saved = {name: _upstream(reader, turn) for name in reader.members()}
    reader.end()
    return told, saved


def _upstream(reader: Pieces, turn: Callable[[], object]) -> _Saved:
    found = _Saved()
    if reader.next() != "{":
        reader.value()
        return found
    for key in reader.members():
        if key != "endpoints":
            value = reader.value()
            found.members[key] = [_compact(value)]
            if key == "source":
                found.source = value
            continue
        if reader.next() != "[":
            found.members[key], found.endpoints = [_compact(reader.value())], None
            continue
        texts = found.members[key] = [b"["]
        for entry in reader.elements():
            texts += (b",", _compact(entry)) if len(texts) > 1 else (_compact(entry),)
            try:
                if found.endpoints is not None:
                    found.endpoints.append(_endpoint(entry))
            except (KeyError, TypeError, ValueError, AttributeError):
                found.endpoints = None
        texts.append(b"]")
    if "endpoints" not in found.members:
        found.endpoints = None
    return found


def _digest(saved: Mapping[str, _Saved], turn: Callable[[], object]) -> str:
    digest = hashlib.sha256()
    for number, name in enumerate(sorted(saved)):
        digest.update(b"%b%b:" % (b"," if number else b"{", _compact(name)))
        for text in parts(saved[name].json(), turn):
            digest.update(text)
    digest.update(b"}" if saved else b"{}")
    return digest.hexdigest()


def _endpoint(entry: Any) -> Endpoint:
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
