"""One check over a connection of its own: what goes out, what comes back, what it costs at most."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
import trustme

from gateway.checks.check import question
from gateway.errors import (
    BadResponse,
    ConnectRefused,
    ConnectTimeout,
    GatewayError,
    ResponseTimeout,
    TlsError,
    UpstreamReset,
)
from gateway.model import AnswerLimits, Endpoint, HealthCheck, StaticSource, TlsSettings, Upstream
from gateway.testing import Act, Exchange, FakeUpstream, Script, answer, chunked, head
from gateway.transport import Transport, probe
from tests.exchanges import open_files
from tests.services import free_port

LIMITS = AnswerLimits(header=1024)
CHECK = HealthCheck(path=b"/healthz?deep", host="checked.example", headers=((b"X-Check", b"yes"),))


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as made:
        yield made


def ask(
    port: int, check: HealthCheck = CHECK, within: float = 5.0, scheme: str = "http", tls: TlsSettings | None = None,
    server_name: str | None = None,
) -> int:  # fmt: skip
    """One check; nothing is left of it, however it ends."""
    transport = Transport(b"")
    endpoint = Endpoint(scheme, "127.0.0.1", port, server_name=server_name)
    upstream = Upstream("u", StaticSource((endpoint,)), scheme, limits=LIMITS, tls=tls)
    before = open_files()
    try:
        return probe.ask(transport, upstream, endpoint, question(check, endpoint), within)
    finally:
        assert not transport._by_endpoint
        # Those of a FakeUpstream in this process go a moment later.
        with gevent.Timeout(5):
            while open_files() > before:
                gevent.sleep(0.01)


def test_what_is_asked(fake: FakeUpstream) -> None:
    assert ask(fake.port) == 200
    request = fake.last
    assert (request.method, request.target, request.version) == (b"GET", b"/healthz?deep", b"HTTP/1.1")
    assert request.values(b"host") == [b"checked.example"]
    assert request.values(b"x-check") == [b"yes"]
    assert request.values(b"connection") == [b"close"]
    assert fake.violations == []


def test_each_check_has_a_connection_of_its_own(fake: FakeUpstream) -> None:
    for _ in range(3):
        ask(fake.port)
    assert [request.connection for request in fake.requests] == [0, 1, 2]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (answer(b"", b"Location: /elsewhere", status=302), 302),
        (answer(b"down", status=503), 503),
        (head(204), 204),
        (head(200, b"Transfer-Encoding: chunked") + chunked(b"a", b"b"), 200),
        ([head(200) + b"until the end", Act.CLOSE], 200),
        ([head(103, b"Link: </x>"), answer(b"ok")], 200),
        (head(101, b"Upgrade: x", b"Connection: Upgrade") + b"another protocol", 101),
        ([head(200, b"Content-Length: 1000000") + bytes(20_000), Act.HANG], 200),
        ([head(200, b"Transfer-Encoding: chunked") + b"8000\r\n" + bytes(32768), Act.HANG], 200),
    ],
    ids=["redirect", "503", "204", "chunked", "eof", "interim", "101", "long", "long, chunked"],
)
def test_an_answer_is_its_status(fake: FakeUpstream, script: Script, status: int) -> None:
    fake.answer(script)
    assert ask(fake.port) == status
    assert len(fake.requests) == 1


def drip(exchange: Exchange) -> None:
    """A byte now and then: never silent for long, never done."""
    exchange.send(head(200, b"Transfer-Encoding: chunked") + b"1;")
    while not exchange.wire.ended(0.05):
        exchange.send(b"x")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Act.CLOSE, UpstreamReset),
        (Act.RESET, UpstreamReset),
        (b"HTTP/1.1 2", UpstreamReset),
        (head(200, b"Content-Length: 5") + b"abc", UpstreamReset),
        (b"SSH-2.0-OpenSSH_9.2\r\n", BadResponse),
        (head(200, b"X: " + b"x" * 2000), BadResponse),
        (Act.HANG, ResponseTimeout),
        ([head(200, b"Content-Length: 5") + b"abc", Act.HANG], ResponseTimeout),
        (drip, ResponseTimeout),
    ],
    ids=["closed", "reset", "half a head", "half a body", "no HTTP", "large head", "silent", "body stalls", "drips"],
)
def test_what_is_no_answer(fake: FakeUpstream, script: Script | Act, error: type[GatewayError]) -> None:
    steps = [script, Act.CLOSE] if isinstance(script, bytes) else [script] if isinstance(script, Act) else script
    fake.answer(steps)
    with pytest.raises(error) as seen:
        ask(fake.port, within=0.3 if error is ResponseTimeout else 5.0)
    assert seen.value.cause


def test_nobody_there() -> None:
    with pytest.raises(ConnectRefused, match="ECONNREFUSED"):
        ask(free_port())


def test_nobody_accepts() -> None:
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # The one place of its queue is taken.
        waiting.connect(full.getsockname())
        port = full.getsockname()[1]
        with pytest.raises(ConnectTimeout):
            ask(port, within=0.2)


def test_tcp_is_a_connection_and_no_more(fake: FakeUpstream) -> None:
    assert ask(fake.port, HealthCheck(tcp=True)) == 0
    fake.until(lambda: len(fake.connections) == 1 and fake.connections[0].closed)
    assert fake.requests == []
    assert fake.connections[0].received == b""
    with pytest.raises(ConnectRefused):
        ask(free_port(), HealthCheck(tcp=True))


class TestTls:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def settings(self, authority: trustme.CA, tmp_path: Path) -> TlsSettings:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        return TlsSettings(ca=str(tmp_path / "ca.pem"))

    @pytest.fixture
    def secure(self, authority: trustme.CA) -> Iterator[FakeUpstream]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("service.example").configure_cert(context)
        with FakeUpstream(tls=context) as made:
            yield made

    @pytest.mark.parametrize("tcp", [False, True])
    def test_as_traffic_does(self, secure: FakeUpstream, settings: TlsSettings, tcp: bool) -> None:
        """A mere connection is one of TLS, too."""
        check = HealthCheck(tcp=tcp)
        assert ask(secure.port, check, scheme="https", tls=settings, server_name="service.example") == (0 if tcp else 200)
        with pytest.raises(TlsError, match=r"other\.example"):
            ask(secure.port, check, scheme="https", tls=settings, server_name="other.example")
        with pytest.raises(TlsError):
            ask(secure.port, check, scheme="https", tls=TlsSettings(), server_name="service.example")
        assert ask(secure.port, check, scheme="https", tls=TlsSettings(verify=False), server_name="x.example") in (0, 200)
        assert len(secure.requests) == (0 if tcp else 2)

    def test_a_handshake_that_does_not_come(self, fake: FakeUpstream) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(ConnectTimeout, match="tls handshake"):
                ask(silent.getsockname()[1], scheme="https", within=0.2)
