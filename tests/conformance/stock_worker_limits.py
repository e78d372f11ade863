"""What gunicorn's own gevent worker cannot do, in one table: label of a case → why.

Rule: this is the only place that excuses a failure, and only on that worker. The tests named here must fail
there (strictly), so that a limit which no longer holds is found. `docs/stock-worker.md` is made of this table:

    python -m tests.conformance.stock_worker_limits > docs/stock-worker.md
"""

from __future__ import annotations

LIMITS: dict[str, str] = {
    "22": "several Cookie lines reach an application joined by a comma (PEP 3333 has one value a name)",
    "24": "header names reach an application in upper case: their own case is lost",
    "30-duplicates": "several lines of one name reach an application as one, so that their order among others is lost",
    "32": "gunicorn drops an application's Date and writes its own",
    "33": "gunicorn drops an application's Server and writes its own",
    "45-token": "gunicorn takes methods of 3 to 20 upper-case letters, `-`, `_` and digits only: the rest is 400",
    "95-long": "gunicorn's request line ends at 8,190 bytes: 414 beyond, whatever server.limits.request_line says",
    "193-longer": "gunicorn's request line ends at 8,190 bytes: 414 beyond, whatever server.limits.request_line says",
    "192-together": "gunicorn limits the length of each header line and their number, not all lines together",
    "121": "an application cannot see that its client has left while it waits for the upstream",
    "121-streaming": "an application cannot see that its client has left while nothing is written to it",
    "127-refusal": "gunicorn sends 100 Continue before the application runs: the upstream's refusal comes after it",
    "127-own-refusal": "gunicorn sends 100 Continue before the application runs: the gateway's refusal comes after it",
    "130-forwarded": "1xx answers of the upstream are dropped: WSGI has no way for them",
    "131": "1xx answers of the upstream are dropped: WSGI has no way for them",
    "133-gone": "an application cannot see that its client has left while it waits for the upstream",
    "271-huge": "gunicorn takes a chunk size of any length and waits for the bytes; nothing is complete upstream",
    "273-many": "gunicorn limits the extension of each chunk, not all of them together",
    "294-list": "gunicorn knows `Connection: close` alone, not in a list: the connection stays open",
    "202-gateway": "an application cannot make gunicorn close the connection: after a refusal that is not about framing it stays open",
}


def page() -> str:
    rows = "".join(f"| {label} | {reason} |\n" for label, reason in LIMITS.items())
    return PAGE.format(rows=rows)


PAGE = """\
# What the stock gevent worker cannot do

The gateway runs under gunicorn's own gevent worker (`-k gevent`), and every conformance test runs there too. What
follows fails on that worker, and why; nothing of it is a limit of the gateway's own worker. The page is made of
the table that the tests use (`tests/conformance/stock_worker_limits.py`), and a test keeps the two the same.

| case | why |
| --- | --- |
{rows}"""

if __name__ == "__main__":
    print(page(), end="")
