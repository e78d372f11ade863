"""The last good endpoints in a file, for a start while the registry is away.

There are two such files: `discovery.snapshot` for a restart of the machine, and one in the run directory for
workers that are replaced.

Rule: the file is written whole or not at all (beside it, fsync, rename), readable by its
owner alone, by one worker of all that share it (who has the lock), off the hub, and at most
once a second. What is read is believed only when it is ours, whole (SHA-256) and about the
same source as now; else it is refused with a line in the log, and nothing more happens.
A worker that got no answer for an upstream leaves that upstream's entry in the file as it is.
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

from gateway.model import Endpoint, StaticSource, Upstream
from gateway.net.ip import address, networks
from gateway.providers.addresses import allowed
from gateway.registries import RegistryError
from gateway.registries.json_pieces import Pieces
from gateway.runtime.hub import parts
from gateway.upstreams.snapshot import Group, Snapshot

log = logging.getLogger("gateway.upstreams.saved_endpoints")

FORMAT = 1
# 50,000 endpoints are some 10 MB.
LIMIT = 64 * 1024 * 1024
# Bytes of one endpoint in it, and more.
MOST_VALUE = 1024 * 1024


class Refused(Exception):
    """A file that is not to be believed; the text says why."""


# -- writing ------------------------------------------------------------------------------


class Saver:
    """Keeps the file at `path` as the snapshot in force has it. `durable`: it survives a power failure.

    Everything here is meant for a thread. A worker that does not have the lock writes nothing;
    it tries again each time, because the one that has it may leave. Only a worker whose look-ups all
    succeed keeps the lock: a sibling may know what another worker could not look up. Only one thread writes at a
    time: a second call during a write (its caller was interrupted and restarted) does nothing.
    """

    def __init__(self, path: str, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        # The thread that pops the element may write. `pop` is atomic, and unlike a lock never blocks the hub.
        self._turn = [True]
        self._closing = False
        self._lock: int | None = None
        self._written = ""
        # The one that the file has.
        self.saved: Snapshot | None = None
        # What was written last of each upstream, and its JSON.
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
            self._save(snapshot, unknown)
        except OSError as error:
            told = error.strerror or str(error)
            if told != self._trouble:
                log.warning("endpoints are not saved to %s: %s", self.path, told)
            self._trouble = told
        finally:
            self._turn.append(True)
            if self._closing:
                self.close()

    def _save(self, snapshot: Snapshot, unknown: Collection[str]) -> None:
        if self._lock is None:
            self._lock = _locked(f"{self.path}.lock")
            # Another worker may have written meanwhile.
            self._written = ""
        if self._lock is None:
            return
        groups = {name: group for name, group in snapshot.groups.items() if source_of(group.upstream) is not None}
        unconfirmed = {name for name, group in groups.items() if name in unknown or self._stale(name, group)}
        try:
            self._write(groups, unknown, unconfirmed)
            self.saved = snapshot
            if self._trouble:
                log.info("endpoints are saved to %s again", self.path)
            self._trouble = ""
        finally:
            if unconfirmed:
                self._unlock()

    def _stale(self, name: str, group: Group) -> bool:
        """Whether the last look-up failed, and no answer has come since the last save."""
        piece = self._pieces.get(name)
        return bool(group.error) and (piece is None or piece[0].endpoints is group.endpoints)

    def _write(self, groups: Mapping[str, Group], unknown: Collection[str], unconfirmed: Collection[str]) -> None:
        """Write the file unless it would stay the same. Entries of the file replace `unconfirmed` groups."""
        known = {name: group for name, group in groups.items() if name not in unknown}
        if unconfirmed and self._same_as_before(known):
            return
        pieces = {name: (group, self._json(name, group)) for name, group in known.items()}
        theirs = self._theirs({name: groups[name].upstream for name in unconfirmed})
        texts = {**{name: text for name, (_, text) in pieces.items()}, **theirs}
        # Made of pieces: one long call of the encoder would hold the interpreter, and with it the hub.
        body = b"{%b}" % b",".join(b"%b:%b" % (_compact(name), texts[name]) for name in sorted(texts))
        digest = hashlib.sha256(body).hexdigest()
        if digest != self._written:
            whole = b'{"sha256":"%b","upstreams":%b,"version":%d}\n' % (digest.encode(), body, FORMAT)
            _replace(self.path, whole, self._durable)
            self._written = digest
        self._pieces = pieces

    def _same_as_before(self, known: Mapping[str, Group]) -> bool:
        """Whether the endpoints are those of the last save."""
        before = self._pieces
        return known.keys() == before.keys() and all(
            before[name][0].endpoints is group.endpoints and before[name][0].upstream is group.upstream
            for name, group in known.items()
        )

    def _json(self, name: str, group: Group) -> bytes:
        before = self._pieces.get(name)
        if before is not None and before[0].endpoints is group.endpoints and before[0].upstream is group.upstream:
            return before[1]
        return _json(group)

    def _theirs(self, upstreams: Mapping[str, Upstream]) -> dict[str, bytes]:
        """The file's entries of these upstreams as JSON, where their source is still the same."""
        if not upstreams:
            return {}
        try:
            data, _ = _read(self.path)
            entries = _entries(data, lambda: None)
        except (OSError, Refused):
            return {}
        return {
            name: b"".join(entry.json())
            for name, upstream in upstreams.items()
            if (entry := entries.get(name)) is not None and entry.usable(upstream)
        }

    def close(self) -> None:
        """Release the lock on the file, or let the thread that is writing release it at its end."""
        self._closing = True
        if self._turn:
            self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def source_of(upstream: Upstream) -> str | None:
    """What tells where the endpoints of an upstream come from; None when they are in the file."""
    source = upstream.source
    if isinstance(source, StaticSource) and (
        source.literal or all(address(one.host) is not None for one in source.endpoints)
    ):
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


def _replace(path: str, data: bytes, durable: bool) -> None:
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
            if durable:
                os.fsync(file)
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    if not durable:
        return
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

    def usable(self, upstream: Upstream) -> bool:
        """Whether it is whole and about the source that the upstream has now."""
        return self.endpoints is not None and self.source == source_of(upstream) is not None

    def json(self) -> Iterator[bytes]:
        for number, key in enumerate(sorted(self.members)):
            yield b"%b%b:" % (b"," if number else b"{", _compact(key))
            yield from self.members[key]
        yield b"}" if self.members else b"{}"


def _decode(
    data: bytes, upstreams: Mapping[str, Upstream], turn: Callable[[], object]
) -> dict[str, tuple[Endpoint, ...]]:
    saved = _entries(data, turn)
    found = {}
    for name, upstream in upstreams.items():
        entry = saved.get(name)
        if entry is None or source_of(upstream) is None or entry.source != source_of(upstream):
            continue
        if entry.endpoints is None:
            raise Refused(f"damaged: the endpoints of {name}")
        found[name] = tuple(entry.endpoints)
    return found


def _entries(data: bytes, turn: Callable[[], object]) -> dict[str, _Saved]:
    """The upstreams of a whole file; raises `Refused`."""
    try:
        told, saved = _document(Pieces(data, turn, MOST_VALUE), turn)
    except RegistryError:
        raise Refused("damaged: it is not JSON") from None
    if told.get("version") != FORMAT:
        raise Refused(f"not of format {FORMAT}")
    if saved is None or _digest(saved, turn) != told.get("sha256"):
        raise Refused("damaged: its checksum does not fit")
    return saved


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

    def __init__(self, aside: Callable[[Callable[[], None]], None], durable: bool = True) -> None:
        self._aside = aside
        self._durable = durable
        self._saver: Saver | None = None

    def turn(self, path: str | None, snapshot: Snapshot, unknown: Collection[str]) -> None:
        """Save to `path`, nowhere if that is None. To be called about once a second."""
        if not snapshot.version:
            # There is no configuration yet: nothing is known of its upstreams.
            path = None
        if self._saver is not None and (self._saver.path != path or self._lost(self._saver)):
            self.close()
        if path is None:
            return
        saver = self._saver = self._saver or Saver(path, self._durable)
        if saver.saved is not snapshot:
            self._aside(lambda: saver.save(snapshot, unknown))

    def _lost(self, saver: Saver) -> bool:
        """Whether a file in the run directory was removed, as cleaners of /tmp do. A durable file may be on a network
        file system that hangs, so it is not looked at."""
        return not self._durable and saver.saved is not None and not os.path.exists(saver.path)

    def close(self) -> None:
        if self._saver is not None:
            self._saver.close()
        self._saver = None
