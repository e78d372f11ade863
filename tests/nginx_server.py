"""A real nginx on loopback, as a user without rights runs it.

Rule: nginx is found, started and stopped as `services` says; the caller's text stands in
`http { }`, where `PORT` is the port to listen on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests import services

# All that nginx would write somewhere else goes into its folder.
_WHOLE = """\
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{http}
}}
"""


@contextlib.contextmanager
def running(folder: Path, http: str, connections: int = 64) -> Iterator[int]:
    """nginx with this in `http { }`; the port that it listens on."""
    program = services.require("nginx")
    port = services.free_port()
    path = folder / "nginx.conf"
    path.write_text(_WHOLE.format(folder=folder, connections=connections, http=http.replace("PORT", str(port))))
    server = services.Server([str(program), "-p", str(folder), "-e", "stderr", "-c", str(path)])
    try:
        server.start()
        server.wait_until(lambda: services.accepts(port), "nginx listens")
        yield port
    finally:
        server.close()
