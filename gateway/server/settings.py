"""gunicorn's settings for the gateway: `gunicorn -c python:gateway.server.settings "gateway:create_app()"`.

Rule: gevent patches before anything else is imported, or urllib3 would keep an ssl module
that blocks the whole worker (with `--preload`, and whenever gunicorn imports first). The
names below are gunicorn's; `gateway.server.hosting` says where their values come from.
"""

from gevent import monkey

monkey.patch_all()

import logging
import os
import signal
import sys
from typing import Any

from gateway import config as _config
from gateway.errors import ConfigError
from gateway.server import hosting as _hosting

worker_class = "gateway.server.worker.GatewayWorker"


def _read() -> dict[str, Any]:
    return _hosting.gunicorn_settings(_config.load(None, os.environ).server, os.environ)


try:
    _current = _read()
except ConfigError as _error:
    # Without the traceback with which gunicorn answers an exception here.
    sys.exit(str(_error))

globals().update(_current)


def on_starting(server: Any) -> None:
    """The master, before it opens a socket: what must hold whatever the environment says."""
    _speak_through(server.log)
    _force(server)
    warning = _hosting.raise_open_files(server.cfg.worker_connections)
    if warning:
        server.log.warning("%s", warning)
    if "bind" in _hosting.given(server.cfg):
        _disinherit(server)


def on_reload(server: Any) -> None:
    """The master after SIGHUP: gunicorn imports this module once, so the file is read again here."""
    try:
        latest = _read()
    except ConfigError as error:
        server.log.error("The server's settings stay as they are:\n%s", error)
    else:
        changed = _hosting.renew(server.cfg, _current, latest)
        # What gunicorn finds here at the next SIGHUP.
        _current.update(latest)
        globals().update(latest)
        if changed:
            server.log.info("Changed by the file: %s", ", ".join(changed))
    _force(server)


def pre_fork(server: Any, worker: Any) -> None:
    """The master, for each worker: the number under which it counts and logs."""
    worker.slot = _hosting.free_slot({each.slot for each in server.WORKERS.values()})


def post_worker_init(worker: Any) -> None:
    """The worker, once the application is loaded: greenlets start here, as they would not survive a fork."""
    _speak_through(worker.log)
    gateway = _gateway(worker)
    if gateway is None:
        worker.log.warning(
            "The application is a %s and not a Gateway: whoever wrapped one calls its start()",
            type(worker.wsgi).__name__,
        )
        return
    _reopen_on_usr1(worker, gateway)
    gateway.start(worker.slot, ",".join(sorted(str(listener) for listener in worker.sockets)))


def worker_exit(server: Any, worker: Any) -> None:
    """The worker at its end: the log is flushed."""
    gateway = _gateway(worker)
    if gateway is not None:
        gateway.stop()


def _gateway(worker: Any) -> Any:
    """The Gateway that gunicorn has loaded; None when it loaded something else, or nothing yet."""
    # Known by what it can do: gateway.app is not imported from here.
    application = getattr(worker, "wsgi", None)
    return application if all(hasattr(application, name) for name in ("handle", "start", "stop", "reopen")) else None


def _speak_through(gunicorns: Any) -> None:
    """What the gateway has to say goes where gunicorn's own error log goes, in its form and level."""
    ours, theirs = logging.getLogger("gateway"), gunicorns.error_log
    ours.handlers = theirs.handlers
    ours.setLevel(theirs.level)
    ours.propagate = False


def _reopen_on_usr1(worker: Any, gateway: Any) -> None:
    """SIGUSR1 reopens gunicorn's logs; the access log was rotated with them."""
    gunicorns = worker.handle_usr1

    def reopen(sig: int, frame: Any) -> None:
        gunicorns(sig, frame)
        gateway.reopen()

    signal.signal(signal.SIGUSR1, reopen)


def _force(server: Any) -> None:
    overruled = _hosting.force(server.cfg)
    if "accesslog" in overruled:
        # The logger has been set up by now, and keeps whether it writes an access log.
        server.log.setup(server.cfg)
        server.log.warning("gunicorn's access log is off: the gateway writes its own (access_log in its file)")
    for name in overruled:
        if name != "accesslog":
            server.log.warning("%s is not to be set from outside: the gateway decides it", name)


def _disinherit(server: Any) -> None:
    """An address given by flag beats inherited sockets, which gunicorn would prefer."""
    inherited = _hosting.disinherit(os.environ, server.pid)
    if not inherited:
        return
    server.log.warning("%d inherited socket(s) left unused: --bind was given", len(inherited))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    # gevent's own os.close waits for its loop, which does not run in the master: the workers
    # would be forked with them.
    close = monkey.get_original("os", "close")
    for fd in inherited:
        close(fd)
