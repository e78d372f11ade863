"""Where the gateway's own lines go under gunicorn, and that gunicorn's access log stays off.

Rule: lines of the logger `gateway` go where the log configuration given to gunicorn (`--log-config`,
`--log-config-json`, `logconfig_dict`) sends them: by handlers of its own for `gateway`, else those for
`gunicorn.error`, else those of the root. Without one, and with `--log-syslog`, they go where gunicorn's error log goes.
"""

from __future__ import annotations

import logging
from typing import Any

from gateway.telemetry import log_lines

# Handlers and level that `follow` set last: anything else was set by somebody who meant it.
_last: tuple[list[logging.Handler], int] = ([], logging.NOTSET)


def follow(gunicorns: Any) -> None:
    """Have the gateway's lines follow gunicorn's `Logger`. To be called again when that was set up anew."""
    global _last
    log_lines.install()
    ours, theirs = logging.getLogger("gateway"), gunicorns.error_log
    handlers, level = _last
    if ours.handlers == handlers:
        if _by_root(gunicorns):
            handlers, ours.propagate = [], True
        else:
            handlers, ours.propagate = list(theirs.handlers), theirs.propagate
        ours.handlers = list(handlers)
    if ours.level == level:
        level = theirs.level
        ours.setLevel(level)
    _last = (handlers, level)


def _by_root(gunicorns: Any) -> bool:
    """Whether a log configuration has handlers for the root and none for gunicorn's error log."""
    cfg = gunicorns.cfg
    if not (cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json):
        return False
    configured = any(not getattr(handler, "_gunicorn", False) for handler in gunicorns.error_log.handlers)
    return bool(logging.getLogger().handlers) and not configured


def silence(gunicorns: Any) -> bool:
    """Switch gunicorn's access log off, which any log configuration switches on: it would have tokens in clear. Whether
    it was on. To be called again when the `Logger` was set up anew."""
    was_on = bool(gunicorns.access_log_enabled)
    gunicorns._access_log_enabled = False
    return was_on
