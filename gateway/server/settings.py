"""gunicorn's settings for the gateway: `gunicorn -c python:gateway.server.settings "gateway:create_app()"`.

Rule: gevent patches before anything else is imported, or urllib3 would keep an ssl module
that blocks the whole worker (with `--preload`, and whenever gunicorn imports first). The
names below are gunicorn's; `gateway.hosting.gunicorn_settings` says where their values come from.
"""

from gevent import monkey

monkey.patch_all()

from gateway.hosting import import_locks as _import_locks

_import_locks.restore()

import gc
import importlib
import os
import secrets
import signal
import sys
from typing import Any

from gateway import config as _config
from gateway.config import siblings_copy as _shared
from gateway.errors import ConfigError
from gateway.hosting import admin_listener as _admin_listener
from gateway.hosting import gunicorn_settings as _hosting
from gateway.hosting import log_configuration as _logs
from gateway.hosting import output as _output
from gateway.hosting import persistence as _persistence
from gateway.hosting.run_directory import RunDirectory as _RunDirectory
from gateway.hosting.siblings import Siblings as _Siblings
from gateway.hosting.siblings import reloaded as _reloaded
from gateway.model import Config

worker_class = "gateway.server.worker.GatewayWorker"


_admin = _admin_listener.AdminListener()
_served = _persistence.Served()
# The run directory, and the same for a worker that is being forked; None: it would be of no use to that worker.
_made: _RunDirectory | None = None
_run: _RunDirectory | None = None
_latest: Config
# Which of the inherited sockets is the admin listener.
_inherited_admin: int | None = None


def _read() -> dict[str, Any]:
    """What the configuration makes of gunicorn's settings; it is kept for the admin listener."""
    global _latest
    _latest = _config.starting(os.environ)
    return _hosting.gunicorn_settings(_latest.server, os.environ)


try:
    _current = _read()
except ConfigError as _error:
    # Without the traceback with which gunicorn answers an exception here.
    sys.exit(str(_error))

globals().update(_current)

# All workers read one another's cookies: they inherit it by being forked (balancers.sticky,
# which is theirs to import).
_STICKY_KEY = "GATEWAY_STICKY_KEY"
os.environ.setdefault(_STICKY_KEY, secrets.token_hex(32))

# The run directory of the master before this one (SIGUSR2).
_RUN_BEFORE = "GATEWAY_RUN_BEFORE"


def on_starting(server: Any) -> None:
    """The master, before it opens a socket: what must hold whatever the environment says."""
    _persistence.guard(server, _served)
    _output.install(server)
    _force(server)
    warning = _hosting.raise_open_files(server.cfg.worker_connections)
    for told in (warning, _hosting.root_warning(server.cfg)):
        if told:
            server.log.warning("%s", told)
    _inherit_admin(server)
    if "bind" in _hosting.given(server.cfg):
        _disinherit(server)


def when_ready(server: Any) -> None:
    """The master, with its sockets open and no worker yet."""
    # Once here and not in each worker: they start sooner and share its memory. And all that they may import later:
    # when the package is upgraded on the disk, a worker must not mix its modules with those of before.
    for name in ("gateway.app", "gateway.config.remote_key"):
        importlib.import_module(name)
    if _inherited_admin is not None:
        # gunicorn has taken it for one of its own.
        _admin.adopt(server.LISTENERS.pop(_inherited_admin), server.log)
        if not server.LISTENERS:
            server.log.error("The only inherited socket is the admin listener: there is nowhere to serve")
            sys.exit(1)
    _open_admin(server)


def on_reload(server: Any) -> None:
    """The master after SIGHUP: gunicorn imports this module once, so the file is read again here."""
    _logs.follow(server.log)
    if _run is not None:
        _reloaded(_run.path)
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
        _open_admin(server)
    _force(server)


def pre_fork(server: Any, worker: Any) -> None:
    """The master, for each worker: the number under which it counts and logs, and what it is to heed."""
    _meet(server)
    worker.served = _served
    worker.slot = _hosting.free_slot({each.slot for each in server.WORKERS.values()})
    worker.heeded = _hosting.differing(server.cfg, _current)


def post_fork(server: Any, worker: Any) -> None:
    """The worker, before it looks at its sockets."""
    if _admin.listener is not None:
        worker.admin_fd = _admin.listener.fileno()
        worker.sockets = [*worker.sockets, _admin.listener]


def pre_exec(server: Any) -> None:
    """The process that becomes a new master (SIGUSR2), just before it does."""
    hindrance = _persistence.cannot_exec(server.START_CTX)
    if hindrance:
        server.log.error("SIGUSR2: no new master can be started: %s", hindrance)
        # An exception would make it stop the workers of the master that it is a copy of.
        os._exit(1)
    arguments = server.START_CTX["args"]
    if arguments[1].endswith(os.path.join("gunicorn", "__main__.py")):
        # Begun as `python -m gunicorn`. As a script it would take gunicorn's own `http` for Python's.
        arguments[1:2] = ["-m", "gunicorn"]
    server.cfg.env_orig[_STICKY_KEY] = os.environ[_STICKY_KEY]
    server.cfg.env_orig.pop(_RUN_BEFORE, None)
    if _run is not None:
        server.cfg.env_orig[_RUN_BEFORE] = _run.path
    server.cfg.env_orig.pop(_admin_listener.HANDED_OVER, None)
    told = _admin.hand_over()
    if told is not None:
        server.cfg.env_orig[_admin_listener.HANDED_OVER] = told


def on_exit(server: Any) -> None:
    """The master at its end."""
    # Not while another master goes on with the same sockets.
    _admin.close(unlink=server.reexec_pid == server.master_pid == 0)


def post_worker_init(worker: Any) -> None:
    """The worker, once the application is loaded: greenlets start here, as they would not survive a fork."""
    _logs.follow(worker.log)
    gateway = _gateway(worker)
    if gateway is None:
        worker.log.warning(
            "The application is a %s and not a Gateway: whoever wrapped one calls its start()",
            type(worker.wsgi).__name__,
        )
        # Our worker tells the application by the environ; another would serve routes there.
        _admin_socket(worker, kept=hasattr(worker, "open_connections"))
        return
    _reopen_on_usr1(worker, gateway)
    admin = _admin_socket(worker, kept=gateway.admin is not None)
    if gateway.admin is not None:
        folder = "" if _run is None else _run.path
        gateway.admin.host(folder, worker, None if admin is None else admin.getsockname())
    if _run is not None:
        gateway.siblings = _Siblings(_run.path)
        gateway.run_directory = str(_run.path)
    if not worker.alive:
        # The signal to leave came before there was an application to tell.
        gateway.draining = True
    data = [listener for listener in worker.sockets if listener is not admin]
    bind = ",".join(sorted(_hosting.listens_at(each, worker.cfg.is_ssl) for each in data))
    gateway.start(worker.slot, bind, persist=bool(_served))
    # What has been made so far is there to stay: the collector need not look at it again and
    # again, which with 50,000 endpoints takes a tenth of a second each time.
    gc.collect()
    gc.freeze()
    _served.note()


def worker_int(worker: Any) -> None:
    """The worker on SIGINT and SIGQUIT: like on SIGTERM, it is not ready any more."""
    gateway = _gateway(worker)
    if gateway is not None:
        gateway.draining = True


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


def _reopen_on_usr1(worker: Any, gateway: Any) -> None:
    """SIGUSR1 reopens gunicorn's logs; the access log was rotated with them."""
    gunicorns = worker.handle_usr1

    def reopen(sig: int, frame: Any) -> None:
        gunicorns(sig, frame)
        gateway.reopen()

    signal.signal(signal.SIGUSR1, reopen)


def _meet(server: Any) -> None:
    """A directory for the workers to meet in. One that cannot be made now is tried again for the next worker."""
    global _made, _run
    try:
        if _made is None:
            # Where gunicorn is told to keep its own, for hosts with nothing else to write to.
            _made = _RunDirectory(server.cfg.worker_tmp_dir, server.cfg.uid, server.cfg.gid)
        else:
            _made.remake()
    except OSError as error:
        _run = None
        server.log.error("No directory for this gateway's workers to meet in, each is alone: %s", error)
    else:
        _run = _made
        _take_over(server, _run)


def _take_over(server: Any, run: _RunDirectory) -> None:
    """What the workers of the master before this one know, once: a registry may be away."""
    before = os.environ.pop(_RUN_BEFORE, "")
    if not before:
        return
    try:
        run.take_over(before, _shared.FILES)
    except OSError as error:
        server.log.warning("What the workers before these know is not taken over: %s", error)


def _force(server: Any) -> None:
    overruled = _hosting.force(server.cfg)
    if "accesslog" in overruled:
        # Its handler has been added by now.
        server.log.setup(server.cfg)
    on = _logs.silence(server.log)
    _logs.follow(server.log)
    if "accesslog" in overruled:
        server.log.warning("gunicorn's access log is off: the gateway writes its own (access_log in its file)")
    elif on:
        server.log.info("gunicorn's access log is off, whatever the log configuration says of gunicorn.access")
    for name in overruled:
        if name != "accesslog":
            why = _hosting.REASONS.get(name, "the gateway decides it")
            server.log.warning("%s is not to be set from outside: %s", name, why)


def _open_admin(server: Any) -> None:
    admin = _latest.admin
    bind = None if admin is None or admin.bind == "inline" else admin.bind
    _admin.open(bind, admin.token if admin is not None else "", server.cfg, server.log)


def _admin_socket(worker: Any, kept: bool) -> Any | None:
    """The admin listener of a worker; let go of it where nobody would answer as who it is."""
    fd = getattr(worker, "admin_fd", None)
    found = next((listener for listener in worker.sockets if listener.fileno() == fd), None)
    if found is None or kept:
        return found
    worker.sockets = [listener for listener in worker.sockets if listener is not found]
    worker.admin_fd = None
    found.close()
    worker.log.warning("This worker does not answer on the admin listener: its application has none")
    return None


def _inherit_admin(server: Any) -> None:
    """Sockets that were passed on, by systemd or by the master before this one."""
    global _inherited_admin
    _inherited_admin = _admin_listener.of_systemd(os.environ, server.pid)
    told = os.environ.pop(_admin_listener.HANDED_OVER, "")
    before = _admin_listener.handed_over(told, server.cfg, server.log)
    if before is not None:
        listener, bind = before
        _admin.adopt(listener, server.log, bind)


def _disinherit(server: Any) -> None:
    """An address given by flag beats inherited sockets, which gunicorn would prefer."""
    inherited = _hosting.disinherit(os.environ, server.pid)
    if not inherited:
        return
    global _inherited_admin
    _inherited_admin = None
    server.log.warning("%d inherited socket(s) left unused: --bind was given", len(inherited))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    # gevent's own os.close waits for its loop, which does not run in the master: the workers
    # would be forked with them.
    close = monkey.get_original("os", "close")
    for fd in inherited:
        close(fd)
