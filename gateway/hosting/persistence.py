"""What ends a gunicorn master, and what no longer may once its gateway has served.

Rule: at its first start a gateway that cannot work ends and says why, so that whoever started it notices. From the
moment that one of its workers was ready, an error is logged and the step is repeated: a full disk, a directory that is
gone, no process or descriptor to be had, a settings file that is broken. gunicorn ends the master in these cases.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

# Seconds that a worker waits before it ends because it cannot start: its master starts another at once.
PAUSE = 1.0
# How it ends then. gunicorn's master ends after 3 and 4.
CANNOT_START = 1


class Served:
    """Whether a worker of this master was ever ready. Made in the master, shared by all that it forks."""

    def __init__(self) -> None:
        # Anonymous memory: it needs no disk and no descriptor.
        self._shared = mmap.mmap(-1, 1)

    def note(self) -> None:
        self._shared[0] = 1

    def __bool__(self) -> bool:
        return bool(self._shared[0])


def guard(server: Any, served: Served) -> None:
    """Have gunicorn's master (its Arbiter) survive what it can repeat."""
    server.spawn_worker = partial(_spawn, server, served, server.spawn_worker, set())
    server.app.reload = partial(_read_settings, server, server.app.reload)
    server.reload = partial(_reload, server, server.reload)
    server.log.reopen_files = partial(reopen_files, server.log)


def _spawn(server: Any, served: Served, spawn: Callable[[], Any], logged: set[str]) -> Any:
    """The pid of a new worker; None when there cannot be one now. The master asks again every second."""
    umask = os.umask(0)
    os.umask(umask)
    try:
        pid = spawn()
    except Exception as error:
        # gunicorn leaves its own behind when it cannot make a worker's file.
        os.umask(umask)
        if not served:
            raise
        text = f"{type(error).__name__}: {error}"
        if text not in logged:
            server.log.error("No worker can be started, and it is tried again every second: %s", text)
        logged.add(text)
        return None
    if logged:
        logged.clear()
        server.log.info("Workers can be started again")
    return pid


def _read_settings(server: Any, read: Callable[[], None]) -> None:
    """gunicorn's settings at SIGHUP; those in force stay when they cannot be read."""
    application = server.app
    before = dict(vars(application))
    try:
        read()
    except (Exception, SystemExit) as error:
        vars(application).update(before)
        # What is wrong gunicorn has printed by now; it then ends with the status 1.
        what = "see above" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        server.log.error("gunicorn's settings cannot be read and stay as they are: %s", what)


def _reload(server: Any, reload: Callable[[], None]) -> None:
    try:
        reload()
    except Exception:
        server.log.exception("SIGHUP was not carried out to its end; the workers that run go on")


def cannot_exec(context: Mapping[Any, Any]) -> str:
    """Why gunicorn cannot start itself anew by its `START_CTX`, or ""."""
    if not os.path.isdir(context["cwd"]):
        return f"its working directory {context['cwd']} is gone"
    if not os.access(context[0], os.X_OK):
        return f"{context[0]} cannot be run"
    return ""


def reopen_files(log: Any) -> None:
    """gunicorn's `Logger.reopen_files`, but a file that cannot be opened leaves the one that is open in use."""
    if log.cfg.capture_output and log.cfg.errorlog != "-":
        with _reported(log):
            opened = open(log.cfg.errorlog, "a+")  # noqa: SIM115 - gunicorn closes it
            before, log.logfile = log.logfile, opened
            for descriptor in (1, 2):
                os.dup2(opened.fileno(), descriptor)
            if before is not None:
                before.close()
    names = list(logging.root.manager.loggerDict)
    for each in (logging.root, *map(logging.getLogger, names)):
        for handler in each.handlers:
            if isinstance(handler, logging.FileHandler):
                with _reported(log):
                    _reopen(handler)


def _reopen(handler: logging.FileHandler) -> None:
    handler.acquire()
    try:
        opened = handler._open()
        before, handler.stream = handler.stream, opened
        if before is not None:
            before.close()
    finally:
        handler.release()


@contextlib.contextmanager
def _reported(log: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("A log file cannot be opened again; the one before stays in use: %s", error)
