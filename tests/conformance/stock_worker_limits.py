"""What gunicorn's own gevent worker cannot do, in one table: label → why.

Rule: this is the only place that excuses a failure, and only on that worker. Tests with `@stock_limit(label)` must fail
there (strictly), so that a limit which no longer holds is found. `docs/stock-worker.md` is made of this table:

    python -m tests.conformance.stock_worker_limits > docs/stock-worker.md
"""

from __future__ import annotations

import pytest

LIMITS: dict[str, str] = {
    "cookie-lines": "several Cookie lines reach an application joined by a comma (PEP 3333 has one value a name)",
    "name-case": "header names reach an application in upper case: their own case is lost",
    "line-order": "several lines of one name reach an application as one, so that their order among others is lost",
    "own-date": "gunicorn drops an application's Date and writes its own",
    "own-server": "gunicorn drops an application's Server and writes its own",
    "method-tokens": "gunicorn takes methods of 3 to 20 upper-case letters, `-`, `_` and digits only: the rest is 400",
    "long-query": "gunicorn's request line ends at 8,190 bytes: 414 beyond, whatever server.limits.request_line says",
    "long-target": "gunicorn's request line ends at 8,190 bytes: 414 beyond, whatever server.limits.request_line says",
    "whole-head": "gunicorn limits the length of each header line and their number, not all lines together",
    "client-gone": "an application cannot see that its client has left while it waits for the upstream",
    "client-gone-silent-stream": "an application cannot see that its client has left while nothing is written to it",
    "continue-upstream-refuses": "gunicorn sends 100 Continue before the application runs: the upstream's refusal comes after it",
    "continue-gateway-refuses": "gunicorn sends 100 Continue before the application runs: the gateway's refusal comes after it",
    "interim-answers": "1xx answers of the upstream are dropped: WSGI has no way for them",
    "early-hints": "1xx answers of the upstream are dropped: WSGI has no way for them",
    "hints-then-nothing": "an application cannot see that its client has left while it waits for the upstream",
    "huge-chunk-size": "gunicorn takes a chunk size of any length and waits for the bytes; nothing is complete upstream",
    "many-chunk-extensions": "gunicorn limits the extension of each chunk, not all of them together",
    "expect-list": "gunicorn takes Expect for one expectation: a list or an empty value is 417",
    "close-in-a-list": "gunicorn knows `Connection: close` alone, not in a list: the connection stays open",
    "refusal-keeps-open": "an application cannot make gunicorn close the connection: after a refusal that is not about framing it stays open",
}


def stock_limit(label: str) -> pytest.MarkDecorator:
    """Marks a test that gunicorn's own worker cannot pass, for the reason that stands under `label`."""
    return pytest.mark.xfail_on_stock_worker(LIMITS[label])


def page() -> str:
    rows = "".join(f"| {label} | {reason} |\n" for label, reason in LIMITS.items())
    return PAGE.format(rows=rows)


PAGE = """\
# What the stock gevent worker cannot do

The gateway runs under gunicorn's own gevent worker (`-k gevent`), and every conformance test runs there too. What
follows fails on that worker, and why; nothing of it is a limit of the gateway's own worker. The page is made of
the table that the tests use (`tests/conformance/stock_worker_limits.py`), and a test keeps the two the same.

| limit | why |
| --- | --- |
{rows}"""

if __name__ == "__main__":
    print(page(), end="")
