"""How the workers of one master ask one another, for whoever is asked about all of them.

Rule: nothing is written while nobody asks. Each worker listens on a unix socket in the
master's run directory and tells its status to whoever connects, as JSON, a line for each
part. A worker that is gone refuses the connection and is left out; one that does not answer
in time is named with that, and holds up nobody for longer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as gsocket
from gevent.pool import Pool

from gateway.runtime.background import Background, Task
from gateway.runtime.hub import Slices

log = logging.getLogger("gateway.admin")

Part = dict[str, Any]
# What one worker has to say, part by part; `None` is never said.
Told = Callable[[], Iterable[Part]]

# Seconds for one worker's whole answer.
PATIENCE = 2.0
# Seconds until it is tried again to listen.
AGAIN = 5.0
# At most of one worker's answer: 50,000 endpoints are less than a tenth of it.
MOST_BYTES = 64 * 1024 * 1024
_READ = 64 * 1024
_ASKED_AT_ONCE = 8


class Peers:
    """The workers that meet in `folder`; this one has `slot`. An empty folder: it is alone."""

    def __init__(self, folder: str, slot: int | str, told: Told, background: Background | None = None) -> None:
        self._folder = folder
        self._slot = str(slot)
        self._told = told
        self._background = background or Background()
        self._listener: Any = None
        self._failing = False
        self._answering = Pool(_ASKED_AT_ONCE)
        self._greenlet: Task | None = None

    def listen(self) -> None:
        """Answer others from now on. A predecessor's socket gives way; when there is none to be had, it is tried
        again."""
        if self._folder:
            self._try_to_listen()
            self._greenlet = self._background.start("status for other workers", self._accept)

    def _try_to_listen(self) -> None:
        path = self._path(self._slot)
        try:
            listener = gsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                listener.bind(path)
                listener.listen(_ASKED_AT_ONCE)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            if not self._failing:
                log.warning("other workers cannot ask this one for its status: %s", error)
            self._failing = True
        else:
            self._failing = False
            self._listener = listener

    def close(self) -> None:
        task, self._greenlet = self._greenlet, None
        if task is not None:
            # No successor has this slot while this worker lives.
            with contextlib.suppress(OSError):
                os.unlink(self._path(self._slot))
            task.kill(block=False)
            self._answering.kill(block=False)
            if self._listener is not None:
                self._listener.close()

    def _accept(self) -> None:
        while self._listener is None:
            gevent.sleep(AGAIN)
            self._try_to_listen()
        while True:
            connection, _ = self._listener.accept()
            try:
                # Blocks while `_ASKED_AT_ONCE` answers are in progress.
                self._answering.spawn(self._tell, connection)
            except BaseException:
                connection.close()
                raise

    def ask(self) -> list[list[Part]]:
        """What every worker says, this one first. One without an answer says what is wrong."""
        others = [gevent.spawn(self._ask, slot) for slot in self._others()]
        own = list(_in_turns(self._told()))
        gevent.joinall(others)
        return [own, *(parts for greenlet in others if (parts := greenlet.value))]

    def _others(self) -> Iterator[str]:
        if not self._folder:
            return
        for path in sorted(Path(self._folder).glob("worker-*.sock")):
            slot = path.stem.removeprefix("worker-")
            if slot != self._slot:
                yield slot

    def _path(self, slot: str) -> str:
        return os.path.join(self._folder, f"worker-{slot}.sock")

    def _ask(self, slot: str) -> list[Part]:
        """One worker's answer; nothing when there is none of that slot any more."""
        try:
            with gevent.Timeout(PATIENCE, TimeoutError(f"no answer within {PATIENCE:g} s")):
                return list(_in_turns(map(json.loads, self._lines(slot))))
        except (ConnectionError, FileNotFoundError):
            return []  # killed, now or before
        except (OSError, ValueError) as error:
            number = int(slot) if slot.isdecimal() else slot
            return [{"slot": number, "problem": str(error)}]

    def _lines(self, slot: str) -> Iterator[bytes]:
        with gsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(self._path(slot))
            data, left = b"", MOST_BYTES
            while piece := connection.recv(_READ):
                left -= len(piece)
                if left < 0:
                    raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
                *lines, data = (data + piece).split(b"\n")
                yield from lines
            if data:
                raise ValueError("an answer that breaks off")

    def _tell(self, connection: Any) -> None:
        """Somebody asks."""
        try:
            with gevent.Timeout(2 * PATIENCE, TimeoutError("nobody reads the answer")), connection:
                for part in _in_turns(self._told()):
                    connection.sendall(json.dumps(part).encode() + b"\n")
        except OSError as error:
            log.debug("a worker that asked has left: %s", error)
        except Exception as error:
            # The other worker sees a truncated answer and reports it.
            if self._greenlet is not None:
                self._greenlet.note(error, "an answer to another worker failed")


def _in_turns(parts: Iterable[Part]) -> Iterator[Part]:
    """Requests go on between parts."""
    turn = Slices()
    for part in parts:
        turn()
        yield part
