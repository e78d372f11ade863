"""A TLS server in a process of its own that counts in small records, however the client's half ends.

To each connection it sends as many numbers of eight digits as its first message says, and ends when the client's half
has ended. It writes its port when it listens.

python -m tests.tls_flood CERTIFICATE
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys


def serve(wire: ssl.SSLSocket) -> None:
    for number in range(int(wire.recv(20))):
        wire.sendall(b"%08d" % number)
    while wire.recv(100):
        pass
    with contextlib.suppress(OSError):
        wire.unwrap()


def main(certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as wire:
                serve(wire)


if __name__ == "__main__":
    main(sys.argv[1])
