"""A small HTTP service that says which instance answered and what it saw.

    python scripts/demo_service.py NAME PORT

Rule: standard library only, one thread a connection, HTTP/1.1 with keep-alive. Every
method and path is answered 200 with JSON: instance, method, path, headers, body length.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

LARGEST_BODY = 1 << 20


class Answer(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server_version = "demo"
    instance: ClassVar[str] = "demo"
    # Head and body leave in two writes; without this the second waits for the client's ACK.
    disable_nagle_algorithm = True

    def answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit() or int(length) > LARGEST_BODY:
            # What is unread would be taken for the next request.
            self.close_connection = True
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        seen = {
            "instance": self.instance,
            "method": self.command,
            "path": self.path,
            "headers": self.headers.items(),
            "body_bytes": len(body),
        }
        text = json.dumps(seen, indent=2).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the gateway has an access log."""


class Service(ThreadingHTTPServer):
    daemon_threads = True
    # Connections are kept; ending does not wait for them.
    block_on_close = False
    request_queue_size = 128


def main(name: str, port: int) -> None:
    with Service(("127.0.0.1", port), type("Named", (Answer,), {"instance": name})) as service:
        # shutdown() waits for the loop, which the signal interrupts: another thread calls it.
        stop = threading.Thread(target=service.shutdown)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None if stop.is_alive() else stop.start())
        service.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
