"""The gateway as it is usually wired: a Flask catch-all over a stock urllib3 pool.

Rule: what one finds in tutorials, with no mistake that would make it slower than it has
to be: one pool for the process, as many connections kept as Go keeps, bodies streamed
back. It reads `BENCH_UPSTREAM`, `http://host:port`.
"""

from __future__ import annotations

import os

import urllib3
from flask import Flask, Response, request

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

app = Flask(__name__, static_folder=None)
pool = urllib3.PoolManager(maxsize=100, timeout=urllib3.Timeout(connect=2, read=30), retries=False)
upstream = os.environ["BENCH_UPSTREAM"]


@app.route("/", defaults={"path": ""}, methods=METHODS)
@app.route("/<path:path>", methods=METHODS)
def forward(path: str) -> Response:
    """One request: copy, send, copy back."""
    headers = {name: value for name, value in request.headers if name.lower() not in HOP_BY_HOP}
    headers["X-Forwarded-For"] = request.remote_addr or ""
    headers["X-Forwarded-Proto"] = request.scheme
    headers["X-Forwarded-Host"] = request.host
    answer = pool.request(
        request.method,
        f"{upstream}{request.full_path if request.query_string else request.path}",
        headers=headers,
        body=request.get_data() or None,
        preload_content=False,
        decode_content=False,
        redirect=False,
    )
    kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
    return Response(answer.stream(65536, decode_content=False), answer.status, kept, direct_passthrough=True)
