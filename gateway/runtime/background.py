"""Background greenlets that survive their own faults.

Rule: an exception never ends a background greenlet. Otherwise endpoints would no longer be updated, or idle
connections no longer closed, and no request would show it. `Background.start` runs a function in a greenlet
and calls it again after an exception. /-/status lists every task with its restarts and its last error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent

log = logging.getLogger("gateway.runtime.background")

# Seconds before a task that failed runs again: the pause doubles with each fault in a row.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
# Distinct faults of one task that are remembered, so that each is logged once.
MOST_LOGGED = 100
# Characters of a fault that /-/status shows.
MOST_SHOWN = 300


class Task:
    """One supervised greenlet.

    `restarts`: how often it ran again after a fault. `last_error`: the last fault, "" when there was none;
    `last_error_at`: its time in seconds since 1970. Both stay after the task has recovered.
    """

    __slots__ = ("_background", "_greenlet", "_logged", "_work", "last_error", "last_error_at", "name", "restarts")

    def __init__(self, name: str, work: Callable[[], object], background: Background) -> None:
        self.name = name
        self.restarts = 0
        self.last_error = ""
        self.last_error_at: float | None = None
        self._work = work
        self._background = background
        self._logged: set[str] = set()
        self._greenlet: Any = gevent.spawn(self._run)

    @property
    def dead(self) -> bool:
        """Whether it has ended: its work has returned, or it was killed."""
        return bool(self._greenlet.dead)

    def note(self, error: BaseException, what: str = "") -> None:
        """Record a fault; log it with its traceback unless the same one was logged before. `what`: the part of
        the work that failed, if the task itself goes on."""
        text = f"{type(error).__name__}: {error}"
        self.last_error = (f"{what}: {text}" if what else text)[:MOST_SHOWN]
        self.last_error_at = time.time()
        if text in self._logged:
            return
        if len(self._logged) >= MOST_LOGGED:
            self._logged.clear()
        self._logged.add(text)
        log.error("background task %s: %s", self.name, what or "failed and starts again", exc_info=error)

    def join(self, timeout: float) -> None:
        """Wait until the task has ended, `timeout` seconds at most."""
        self._greenlet.join(timeout)

    def kill(self, block: bool = True) -> None:
        """End the task and remove it from the list; `block`: wait until it has ended."""
        self._background.remove(self)
        self._greenlet.kill(block=block)

    def _run(self) -> None:
        pause = 0.0
        while True:
            began = time.monotonic()
            try:
                if pause:
                    # Inside `try`: an exception thrown in during the pause must not end the task either.
                    gevent.sleep(pause)
                    self.restarts += 1
                    began = time.monotonic()
                self._work()
                return
            except (gevent.GreenletExit, SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # gevent.Timeout is not an Exception
                self.note(error)
            if time.monotonic() - began > LONGEST_PAUSE:
                # The task had recovered: log the next fault even if it is the same.
                pause = 0.0
                self._logged.clear()
            pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)


class Background:
    """The background tasks of one worker, in the order in which they started."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: dict[Task, None] = {}

    def start(self, name: str, work: Callable[[], object]) -> Task:
        """Run `work` in a greenlet until it returns or the task is killed."""
        task = Task(name, work, self)
        self._tasks[task] = None
        return task

    def remove(self, task: Task) -> None:
        self._tasks.pop(task, None)

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks))
