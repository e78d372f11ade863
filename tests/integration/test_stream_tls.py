"""One half of a TLS connection ends while the other side sends on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gateway.stream import TlsStream
from tests.conformance.harness import ROOT, certificate

NUMBERS = 2000
ROUNDS = 40


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where `tests.tls_flood` listens: in another process, so that it sends at any moment."""
    both, _ = certificate().write(tmp_path)
    command = [sys.executable, "-m", "tests.tls_flood", str(both)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def connected(port: int) -> TlsStream:
    plain = socket.create_connection(("127.0.0.1", port))
    return TlsStream(certificate().client.wrap_socket(plain, server_hostname="localhost"))


def test_who_need_not_wait_lets_others_run(port: int) -> None:
    stream = connected(port)
    stream.send(b"%d" % NUMBERS, 5.0)
    got = stream.recv(4, 5.0)
    ran: list[str] = []
    stream.on_readable = lambda: ran.append("told")
    # The other half of the first record is decrypted already.
    gevent.spawn(ran.append, "other")
    stream.eager = False
    got += stream.recv(4, 5.0)
    assert ran == ["other"]
    while len(got) < 8 * NUMBERS:
        got += stream.recv(65536, 5.0)
    stream.close()
    assert got == b"".join(b"%08d" % each for each in range(NUMBERS))


def test_nothing_is_lost_of_what_comes_meanwhile(port: int) -> None:
    """`SSL_shutdown` looks for the other side's close_notify, and drops the data that it finds instead."""
    for number in range(ROUNDS):
        stream = connected(port)
        stream.send(b"%d" % NUMBERS, 5.0)
        got = b""
        while len(got) < 8 * number * NUMBERS // ROUNDS:
            got += stream.recv(65536, 5.0)
        stream.shutdown_write()
        while data := stream.recv(65536, 5.0):
            got += data
        stream.close()
        assert got == b"".join(b"%08d" % each for each in range(NUMBERS)), number


def test_a_reader_that_is_killed_loses_nothing(port: int) -> None:
    """What it had read when others got their turn is for the next reader."""
    stream = connected(port)
    stream.send(b"%d" % NUMBERS, 5.0)
    got = stream.recv(4, 5.0)
    killed = 0
    while len(got) < 8 * NUMBERS:
        stream.eager = False
        reader = gevent.spawn(stream.recv, 1000, 5.0)
        gevent.sleep(0)
        killed += not reader.ready()
        reader.kill()
        if isinstance(reader.value, bytes):
            got += reader.value
        stream.eager = True
        if len(got) < 8 * NUMBERS:
            got += stream.recv(1000, 5.0)
    stream.close()
    assert killed
    assert got == b"".join(b"%08d" % each for each in range(NUMBERS))
