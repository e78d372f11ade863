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

from gateway.net.stream import TlsStream
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


def test_a_closed_stream_never_touches_the_next_owner_of_its_descriptor(port: int) -> None:
    """OpenSSL keeps the number of the descriptor, which the next socket gets."""
    stream = connected(port)
    number = stream.fileno()
    stream.close()
    one, other = socket.socketpair()
    assert number in (one.fileno(), other.fileno())
    for side in (one, other):
        side.sendall(b"x")
        side.settimeout(0.05)
    for use in (
        lambda: stream.send(b"secret", 1.0), lambda: stream.send_some(b"secret"), lambda: stream.send_parts([b"secret"]),
        lambda: stream.recv(100, 1.0), lambda: stream.poll(100), lambda: stream.peek(),
    ):  # fmt: skip
        with pytest.raises(ConnectionAbortedError):
            use()
    stream.shutdown_write()
    assert [side.recv(100) for side in (one, other)] == [b"x", b"x"]
    for side in (one, other):
        with pytest.raises(TimeoutError):
            side.recv(100)
    one.close()
    other.close()


def test_a_write_that_waits_when_its_stream_is_closed_writes_nothing_more(port: int) -> None:
    stream = connected(port)
    writer = gevent.spawn(stream.send, b"1" * 50_000_000, 10.0)
    gevent.sleep(0.05)
    assert not writer.ready()
    stream.close()
    one, other = socket.socketpair()
    with pytest.raises(ConnectionAbortedError):
        writer.get()
    for side in (one, other):
        side.settimeout(0.05)
        with pytest.raises(TimeoutError):
            side.recv(100)
    one.close()
    other.close()
