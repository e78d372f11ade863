"""What the place that the gateway runs in (file, environment, machine) makes of gunicorn's settings.

Rule: functions of what they are given; `gateway.server.settings` is the module that
gunicorn reads and the only caller that does anything. Environment beats the file, and
gunicorn's own flags, applied later by gunicorn, beat both, except for `FORCED`.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import resource
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError
from gateway.model import TLS12_CIPHERS, ServerSettings

# These decide whose word is believed about a client, and no host or flag may change them:
# the gateway judges X-Forwarded-* itself by `server.trusted_proxies`. Hosts are known to
# export FORWARDED_ALLOW_IPS='*' and GUNICORN_CMD_ARGS with an access log. The control
# socket has one path for all of a user's gunicorns, so that two gateways would collide.
# HTTP/2 on gevent serves the streams of a connection one after the other.
FORCED: dict[str, Any] = {
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "secure_scheme_headers": {},
    "control_socket_disable": True,
    "http_protocols": "h1",
    "http2_cleartext": "off",
    "accesslog": None,
    "reuse_port": False,
}

# Where "the gateway decides it" does not say enough.
REASONS = {
    "reuse_port": "each worker would have a queue of its own, and connections that wait in it are lost when the worker "
    "leaves (SIGHUP, max_requests); all workers share one listener",
}

# gunicorn refuses more (its `limit_request_line` and `limit_request_fields`).
LARGEST_REQUEST_LINE = 8190
MOST_FIELDS = 32768

# What our own worker has better names for: it heeds these where somebody has set them.
HEEDED = frozenset(
    {"keepalive", "limit_request_field_size", "limit_request_fields", "limit_request_line", "worker_connections"}
)

# The first gunicorn_h1c that is as strict as gunicorn's own parser in Python; older ones
# accept bare LF and folded lines, and gunicorn takes them without a word.
STRICT_H1C = (0, 6, 14)

# gunicorn takes 0 for "no keep-alive"; this stands for "no limit".
NO_LIMIT = 24 * 3600


def gunicorn_settings(server: ServerSettings, environ: Mapping[str, str]) -> dict[str, Any]:
    """gunicorn's settings by name. What only the stock worker reads is here as well."""
    limits, timeouts = server.limits, server.timeouts
    return {
        "bind": bind(environ),
        "workers": workers(environ),
        "worker_connections": limits.connections or NO_LIMIT,
        "graceful_timeout": max(1, math.ceil(server.graceful)),
        "keepalive": NO_LIMIT if timeouts.keepalive is None else math.ceil(timeouts.keepalive),
        "limit_request_line": min(limits.request_line, LARGEST_REQUEST_LINE) or LARGEST_REQUEST_LINE,
        "limit_request_fields": min(limits.headers, MOST_FIELDS) or MOST_FIELDS,
        "limit_request_field_size": limits.header,
        "http_parser": http_parser(),
        "ciphers": TLS12_CIPHERS,
        **FORCED,
    }


def differing(cfg: Any, said: Mapping[str, Any]) -> frozenset[str]:
    """Those of `HEEDED` that a flag or somebody's own settings file has set, otherwise than the
    gateway's file (`said`) would have them."""
    return frozenset(name for name in HEEDED if cfg.settings[name].get() != cfg.settings[name].validator(said[name]))


def heed(server: ServerSettings, cfg: Any, names: Collection[str]) -> ServerSettings:
    """The server's settings, but for what gunicorn's settings of these names say. There, too, 0
    is no limit, except for `keepalive`: no connection is kept, which is the worker's to see to."""
    timeouts, limits = server.timeouts, server.limits
    if "keepalive" in names:
        timeouts = replace(timeouts, keepalive=cfg.keepalive or None)
    if "limit_request_line" in names:
        limits = replace(limits, request_line=cfg.limit_request_line)
    if "limit_request_fields" in names:
        limits = replace(limits, headers=cfg.limit_request_fields)
    if "limit_request_field_size" in names:
        # Of one line there, of all lines together here; 4: a colon, a space and the line's end.
        size = cfg.limit_request_field_size
        limits = replace(limits, header=size and cfg.limit_request_fields * (size + 4))
    if "worker_connections" in names:
        limits = replace(limits, connections=cfg.worker_connections)
    return replace(server, timeouts=timeouts, limits=limits)


def listens_at(listener: Any, tls: bool) -> str:
    """Where a socket listens, as gunicorn tells it in its log; the same in every worker. (A
    GeventWorker's own sockets tell their place in memory.)"""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


def bind(environ: Mapping[str, str]) -> list[str]:
    """Every address where PORT says which port, as its hosts expect; else loopback alone.

    Inherited sockets (LISTEN_FDS) are gunicorn's own doing: it leaves this unused then.
    """
    if not environ.get("PORT"):
        return ["127.0.0.1:8000"]
    return [f"0.0.0.0:{_whole('PORT', environ['PORT'], most=65535)}"]


def workers(environ: Mapping[str, str]) -> int:
    """WEB_CONCURRENCY, else one for each processor that this process may use."""
    if environ.get("WEB_CONCURRENCY"):
        return _whole("WEB_CONCURRENCY", environ["WEB_CONCURRENCY"], least=1)
    return processors(len(os.sched_getaffinity(0)), _text("/sys/fs/cgroup/cpu.max"))


def processors(usable: int, cpu_max: str) -> int:
    """How many processors to count on: those usable, or the container's quota when that is less.

    `cpu_max` is cgroup v2's file of that name: `max 100000` or `150000 100000`.
    """
    quota, _, period = cpu_max.strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return max(1, usable)


def http_parser() -> str:
    """gunicorn's C parser where it is strict; never gunicorn's `auto`, which takes a lax one."""
    try:
        version = importlib.metadata.version("gunicorn_h1c")
    except importlib.metadata.PackageNotFoundError:
        return "python"
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return "fast" if numbers >= STRICT_H1C else "python"


def force(cfg: Any) -> list[str]:
    """Set what is forced; the names of those settings that somebody else had set differently."""
    overruled = []
    for name, value in FORCED.items():
        before = cfg.settings[name].get()
        cfg.set(name, value)
        if cfg.settings[name].get() != before:
            overruled.append(name)
    return overruled


def given(cfg: Any) -> set[str]:
    """The settings given by gunicorn's command line or GUNICORN_CMD_ARGS."""
    parser = cfg.parser()
    sources = (parser.parse_args(cfg.get_cmd_args_from_env()), parser.parse_args())
    return {name for source in sources for name, value in vars(source).items() if value is not None}


def renew(cfg: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Carry changes of the file into a configuration that gunicorn has read again.

    Whatever a flag or somebody's own settings file says stays. The names that changed.
    """
    flags = given(cfg)
    changed = []
    for name, value in new.items():
        setting = cfg.settings[name]
        if name in flags or old[name] == value or setting.get() != setting.validator(old[name]):
            continue
        cfg.set(name, value)
        changed.append(name)
    return changed


def disinherit(environ: Mapping[str, str], pid: int) -> list[int]:
    """The inherited sockets that systemd's protocol (sd_listen_fds(3)) says are ours: from 3 on."""
    if environ.get("LISTEN_PID") != str(pid):
        return []
    return list(range(3, 3 + _whole("LISTEN_FDS", environ.get("LISTEN_FDS", "0"))))


def root_warning(cfg: Any) -> str:
    """The warning that workers run as root, or ""."""
    if os.geteuid() != 0 or cfg.uid != 0:
        return ""
    return AS_ROOT


AS_ROOT = (
    "root would serve, so whoever breaks into a worker has the machine (User= or DynamicUser= in the unit, "
    "USER in the image, or gunicorn's --user)"
)


def raise_open_files(connections: int) -> str:
    """Raise the soft limit of open files to the hard one; a warning when that is still too few.

    Each client may have a connection to an upstream: two a client, and some for the rest.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return too_few_files(hard, connections)


def too_few_files(limit: int, connections: int) -> str:
    """The warning, or "" when the limit will do."""
    wanted = 2 * connections + 256
    if limit in (resource.RLIM_INFINITY, -1) or limit >= wanted:
        return ""
    return (
        f"only {limit} files may be open (ulimit -Hn), {wanted} are wanted for "
        f"server.limits.connections: {connections}; raise the one (LimitNOFILE=) or lower the other"
    )


def free_slot(taken: set[int]) -> int:
    """The lowest number that no living worker has, so that a worker's successor has its number."""
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _whole(name: str, text: str, *, least: int = 0, most: int | None = None) -> int:
    allowed = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"
    # str.isdigit is true of other scripts' digits and of superscripts.
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < least or (most is not None and number > most):
        raise ConfigError(f"{name}: {text!r} will not do ({allowed})")
    return number


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
