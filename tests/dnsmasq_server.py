"""dnsmasq, the real one, as an authority for `.test` with a zone that a restart changes."""

from __future__ import annotations

import contextlib
import getpass
import signal
from collections.abc import Iterator

import dns.exception
import dns.message
import dns.query

from tests import services


class Dnsmasq:
    """One dnsmasq on a loopback port, which stays the same from one start to the next."""

    def __init__(self) -> None:
        self._program = str(services.require("dnsmasq"))
        self.port = services.free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._server: services.Server | None = None

    @classmethod
    @contextlib.contextmanager
    def start(cls, *records: str) -> Iterator[Dnsmasq]:
        """`records`: options of dnsmasq, such as `host-record=a.test,10.0.0.1`."""
        server = cls()
        try:
            server.up(*records)
            yield server
        finally:
            server.close()

    def up(self, *records: str) -> None:
        self._server = services.Server(
            [
                self._program, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-resolv",
                "--no-hosts", "--log-facility=-", f"--user={getpass.getuser()}", "--listen-address=127.0.0.1",
                "--bind-interfaces", f"--port={self.port}", "--local=/test/", *(f"--{record}" for record in records),
            ]
        )  # fmt: skip
        self._server.start()
        self._server.wait_until(self._answers, "dnsmasq answers")

    def restart(self, *records: str) -> None:
        self.down(signal.SIGTERM)
        self.up(*records)

    def down(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self._server is not None:
            self._server.stop(number)
            self._server.close()

    def freeze(self) -> None:
        """SIGSTOP: questions are taken by the kernel and nobody answers."""
        assert self._server is not None
        self._server.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._server is not None
        self._server.send(signal.SIGCONT)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _answers(self) -> bool:
        try:
            dns.query.udp(dns.message.make_query("up.test", "A"), "127.0.0.1", 0.5, self.port)
        except (OSError, dns.exception.DNSException):
            return False
        return True
