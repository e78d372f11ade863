"""What gunicorn shows of a request to its hooks, its access log and statsd.

Rule: made only where somebody looks. The names are gunicorn's.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

from gateway.http.messages import Request, Response
from gateway.server.wsgi_application import split_target


class ShownRequest:
    """`req` of `pre_request`, `post_request` and the access log."""

    def __init__(self, request: Request) -> None:
        self.method = request.method.decode("latin-1")
        self.uri = request.target.decode("latin-1")
        self.path, self.query = split_target(request.target)
        self.version = (1, 1) if request.http11 else (1, 0)
        self.scheme = request.scheme
        self.peer_addr = (request.peer, 0)
        self.headers = [(name.decode("latin-1").upper(), value.decode("latin-1")) for name, value in request.headers]


class ShownResponse:
    """`resp` of `post_request` and the access log."""

    def __init__(self, response: Response | None, sent: int) -> None:
        status, reason = (response.status, response.reason) if response is not None else (499, b"Client Closed Request")
        self.status = f"{status} {reason.decode('latin-1')}"
        self.status_code = status
        self.sent = sent
        headers = response.headers if response is not None else []
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


class Hooks:
    """Calls gunicorn's hooks and access log for one worker."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def before(self, request: Request) -> None:
        self._worker.cfg.pre_request(self._worker, ShownRequest(request))

    def after(self, request: Request, environ: dict[str, Any], response: Response | None, sent: int) -> None:
        worker = self._worker
        shown, answer = ShownRequest(request), ShownResponse(response, sent)
        if environ:
            took = datetime.timedelta(seconds=time.monotonic() - request.started)
            worker.log.access(answer, shown, environ, took)
        try:
            worker.cfg.post_request(worker, shown, environ, answer)
        except Exception:
            worker.log.exception("Exception in post_request hook")


def watched(cfg: Any, log: Any) -> str | None:
    """Who of gunicorn's looks at every request; None when nobody does."""
    for name in ("pre_request", "post_request"):
        setting = cfg.settings[name]
        if setting.get() is not type(setting).default:
            return f"gunicorn's {name} hook is set"
    if cfg.statsd_host:
        return "statsd_host is set"
    if log.access_log_enabled:
        return "gunicorn's access log is on"
    return None
