"""The configuration while it is served: noticed when it changes, loaded, and handed on.

Rule: one document, used whole or not at all. What cannot be read or is wrong changes nothing;
it is told once for each distinct trouble, and once when it is over. The same bytes again are
no change. A file that is being written is not looked at before it has come to rest, and no
trouble is told that is over as soon as that. While a source is bad, a worker has the newest documents that a sibling
could use: some of them may have read a good version that others missed. An internal error is reported in the same
way, and the step that failed is retried every `AGAIN` seconds.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import gevent
from gevent.event import Event

from gateway.config import assemble, local, siblings_copy, source, version_of
from gateway.config.source import Where
from gateway.errors import ConfigError
from gateway.model import Config, DiscoverySettings
from gateway.registries import one_line
from gateway.runtime import garbage
from gateway.runtime.background import Background, Task
from gateway.runtime.hub import off_hub

log = logging.getLogger("gateway.config")

# How often a file is looked at. It has come to rest when two looks saw the same: with the time
# that loading takes, well under the second within which every worker serves a new version.
TICK = 0.2
# A trouble that is over within this (a file between two names, half a file) is not told.
GRACE = 0.7
# What is wrong may be mended elsewhere: a certificate that the configuration names.
AGAIN = 5.0
# How often a worker with trouble looks for newer documents of its siblings.
ASK = 1.0
# Distinct troubles that are remembered until one is over.
MOST_LOGGED = 100
# Warnings and mistakes of one configuration that are logged: requests wait meanwhile.
MOST_WARNINGS = 100
MOST_MISTAKES = 100

# device, inode, size, times of change; or why there is none.
Look = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """`loaded_at`, `error_at`: Unix time. `error`: why what stands in `path` now is not in
    force, "" when it is; it says every mistake, one a line, but for those beyond MOST_MISTAKES."""

    version: str
    path: str
    loaded_at: float
    error: str = ""
    error_at: float | None = None


@dataclass(slots=True)
class Text:
    """What one source holds, as far as that is known; `error`: why not now. `part.at`: when it was read last."""

    part: siblings_copy.Part = siblings_copy.NONE
    error: str = ""


def look(path: str) -> Look:
    """What tells one state of a file from another. Links are followed, so that one which is
    pointed elsewhere (Kubernetes does so with a directory on the way) is a change."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not stat.S_ISREG(found.st_mode):
        # Not opened: reading a pipe may never end.
        return f"is {'a directory' if stat.S_ISDIR(found.st_mode) else 'no regular file'}"
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FileText:
    """The text of a file, as it is when it has come to rest."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = Text()
        self._path = path
        self._clock = clock
        self._seen: Look = ""
        self._settled: Look = ""

    def tick(self) -> None:
        """Look at the file; read it when it is another one than before, and at rest."""
        now = look(self._path)
        before, self._seen = self._seen, now
        if now == self._settled or now != before:
            return
        if isinstance(now, str):
            self._trouble(f"{self._path}: {now}")
        else:
            began = self._clock()
            try:
                data = source.read(self._path)
            except ConfigError as error:
                # Not settled: what kept it from being read (EMFILE, EIO, ESTALE) may be over at the next look.
                self._trouble(str(error))
                return
            if look(self._path) != now:
                return
            self.text = Text(siblings_copy.Part(data, began))
        self._settled = now

    def _trouble(self, error: str) -> None:
        self.text = Text(self.text.part, error)


def _first_mistakes(error: ConfigError) -> str:
    """The text of an error, without the mistakes beyond MOST_MISTAKES: status and metrics hold it, too."""
    number = len(error.mistakes)
    if number <= MOST_MISTAKES:
        return str(error)
    first = str(error).split("\n", MOST_MISTAKES)[:MOST_MISTAKES]
    return "\n".join([*first, f"{number - MOST_MISTAKES} more mistakes: gateway check tells them all"])


class Watch:
    """Follows the sources of a configuration. `use` accepts a new one, which may come into force later, or
    raises. `trouble` gets the current error, "" when it is over. `in_force` returns the version in force (by
    default the last one that `use` accepted); call `wake` when that changes."""

    def __init__(
        self,
        where: Where,
        config: Config,
        use: Callable[[Config], None],
        trouble: Callable[[str], None],
        environ: Mapping[str, str] = os.environ,
        run_directory: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        in_force: Callable[[], str] | None = None,
        background: Background | None = None,
    ) -> None:
        self._where = where
        self._use = use
        self._trouble = trouble
        self._environ = environ
        self._clock = clock
        # Where siblings leave the documents in force, the state of that file at the last look, and the next look.
        self._run_directory = run_directory
        self._shared: Look = ""
        self._ask_at = -math.inf
        # The version that `use` accepted last, its documents, and those that were left for siblings.
        self._version = config.version
        self._parts = siblings_copy.NOTHING
        self._left = siblings_copy.NOTHING
        self._leave_at = -math.inf
        self._in_force = in_force or (lambda: self._version)
        self._background = background or Background()
        self._warned = set(config.warnings)
        self._file = FileText(where.file, clock) if where.file is not None else None
        self._key = Text()
        self._settings = config.discovery
        self._news = Event()
        self._follower: Task | None = None
        # The documents that were judged last, when, and what was wrong with them.
        self._judged: siblings_copy.Parts | None = None
        self._judged_at = 0.0
        self._verdict = ""
        # The internal error that kept the file from being checked.
        self._hindrance = ""
        # What is wrong now, since when, and what of it was told.
        self._wrong = ""
        self._since = 0.0
        self._told = ""
        self._logged: set[str] = set()

    def begin(self) -> None:
        """The first look, before anything is served: what a worker was started with may be
        older than what its siblings have."""
        if self._file is not None:
            self._tick(self._file)
            self._tick(self._file)
        self.consider()

    def run(self) -> None:
        """Watch until the greenlet is killed."""
        try:
            while True:
                if self._file is not None:
                    self._tick(self._file)
                self.consider()
                # Without a file there may be nothing to do for hours.
                asking = not self._version and self._run_directory is not None
                busy = self._file is not None or self._wrong or self._may_leave() or asking
                self._news.wait(TICK if busy else None)
                self._news.clear()
        except gevent.GreenletExit:
            self.stop()
            raise

    def stop(self) -> None:
        """Follow no key any more."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.kill(block=False)

    def wake(self) -> None:
        """Another version is in force. Callable from any greenlet."""
        self._news.set()

    def _tick(self, file: FileText) -> None:
        try:
            off_hub(file.tick)
        except Exception as error:
            self._hindrance = self._fault("the configuration cannot be read", error)
        else:
            self._hindrance = ""

    def _fault(self, what: str, error: Exception) -> str:
        """Turn an internal error into a verdict. Its traceback is logged once."""
        text = f"{self._where.named}: {what}: {one_line(f'{type(error).__name__}: {error}')}"
        if text not in self._logged:
            log.error("%s", text, exc_info=error)
            self._remember(text)
        return text

    def consider(self) -> None:
        """Use what the sources hold, if that is another configuration; tell of trouble."""
        of_file = self._file.text.error if self._file is not None else ""
        error = self._hindrance or of_file or self._judge() or self._key.error
        if (error or not self._version) and self._run_directory is not None and self._clock() >= self._ask_at:
            self._ask_siblings(self._run_directory)
        if self._may_leave() and self._clock() >= self._leave_at:
            self._leave()
        now = self._clock()
        if error != self._wrong:
            self._wrong, self._since = error, now
        if error and error != self._told and now - self._since >= GRACE:
            self._tell(error)
        elif not error and self._told:
            self._told = ""
            self._logged.clear()
            log.info("the configuration in %s can be used again", self._where.named)
            self._trouble("")

    def _tell(self, error: str) -> None:
        self._told = error
        if error not in self._logged:
            log.error("%s\nThe configuration %s stays in force.", error, self._in_force() or "(none so far)")
        self._remember(error)
        self._trouble(error)

    def _remember(self, text: str) -> None:
        """Mark a message as logged."""
        if len(self._logged) >= MOST_LOGGED:
            self._logged.clear()
        self._logged.add(text)

    def _judge(self) -> str:
        """Load what the sources hold, unless that was done; what is wrong with it."""
        file = self._file.text.part if self._file is not None else siblings_copy.NONE
        if self._file is not None and file.data is None:
            return ""
        # What came from siblings meanwhile may be newer than what was read here.
        parts = siblings_copy.newest((file, self._key.part), self._parts)
        now = self._clock()
        if parts == self._judged and not (self._verdict and now - self._judged_at >= AGAIN):
            return self._verdict
        try:
            self._load(parts)
        except ConfigError as error:
            verdict = _first_mistakes(error)
        except Exception as error:
            verdict = self._fault("cannot be loaded, and is tried again", error)
        else:
            verdict = ""
        # Set only with a verdict: after any other exception (a kill, a timeout) the documents are judged again.
        self._judged, self._judged_at, self._verdict = parts, now, verdict
        return verdict

    def _may_leave(self) -> bool:
        """Whether the documents in force still have to be left for siblings."""
        known = self._run_directory is not None and self._parts != siblings_copy.NOTHING
        return known and self._left != self._parts and self._version == self._in_force()

    def _leave(self) -> None:
        """What is in force, for siblings that start later or have trouble."""
        folder, parts, version = self._run_directory, self._parts, self._version
        assert folder is not None
        self._leave_at = self._clock() + AGAIN
        try:
            written = off_hub(lambda: siblings_copy.write(folder, parts))
        except Exception as error:
            text = f"workers that start later may miss the configuration {version}: {error}"
            if text not in self._logged:
                log.warning("%s", text)
            self._remember(text)
        else:
            self._leave_at = -math.inf
            if written:
                self._left = parts

    def _ask_siblings(self, folder: str) -> None:
        """Take over documents of siblings that are newer than those in force."""
        self._ask_at = self._clock() + ASK
        now = look(os.path.join(folder, siblings_copy.NAME))
        if now == self._shared:
            return
        try:
            # It may be that no thread is to be had.
            taken = self._take(off_hub(lambda: siblings_copy.read(folder)) or siblings_copy.NOTHING)
        except Exception as error:
            self._ask_at = self._clock() + AGAIN
            text = f"what the other workers have in force cannot be used: {error}"
            if text not in self._logged:
                log.warning("%s", text, exc_info=None if isinstance(error, ConfigError) else error)
            self._remember(text)
            return
        if taken:
            log.warning("the configuration %s is that of the other workers", self._version)
            # The document is still broken: report that again.
            self._told = ""
        self._shared = now

    def _take(self, theirs: siblings_copy.Parts) -> bool:
        """Use what of `theirs` is newer; whether that is another configuration. Raises what `_use_parts` raises."""
        parts = siblings_copy.newest(self._parts, theirs)
        if parts == self._parts or version_of(*_data(parts)) == self._version:
            return False
        self._use_parts(parts)
        return True

    def _load(self, parts: siblings_copy.Parts) -> None:
        where, environ = self._where, self._environ
        file, key = _data(parts)
        if where.key is not None:
            self._follow(off_hub(lambda: local(where, file, environ)).discovery)
            if key is None:
                return
        if version_of(file, key) != self._version:
            self._use_parts(parts)
        else:
            self._parts = parts

    def _use_parts(self, parts: siblings_copy.Parts) -> None:
        file, key = _data(parts)
        # It may have tens of thousands of endpoints.
        with garbage.spared():
            config = off_hub(lambda: assemble(self._where, file, key, self._environ))
            self._use(config)
        self._version, self._parts = config.version, parts
        new = [warning for warning in config.warnings if warning not in self._warned]
        for warning in new[:MOST_WARNINGS]:
            log.warning("%s", warning)
        if len(new) > MOST_WARNINGS:
            log.warning("%d more warnings: gateway check tells them all", len(new) - MOST_WARNINGS)
        self._warned = set(config.warnings)

    # -- the key of a registry ----------------------------------------------------------

    def _follow(self, settings: DiscoverySettings) -> None:
        """Follow the key as the local part says; anew when it says something else."""
        if self._follower is not None and settings == self._settings:
            return
        # Not at the top: a client of registries is for those who have one.
        from gateway.config import remote_key

        assert self._where.key is not None
        self.stop()
        self._settings = settings
        follow = partial(remote_key.follow, self._where.key, settings, self._heard)
        self._follower = self._background.start("configuration key", follow)

    def _heard(self, value: bytes | None, error: str) -> None:
        before = self._key
        if value is None:
            heard = Text(before.part, f"{self._where.key}: {error}")
        elif value == before.part.data and not before.error:
            heard = before
        else:
            heard = Text(siblings_copy.Part(value, self._clock()))
        if heard != before:
            self._key = heard
            self._news.set()


def _data(parts: siblings_copy.Parts) -> tuple[bytes | None, bytes | None]:
    file, key = parts
    return file.data, key.data
