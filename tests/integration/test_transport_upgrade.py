"""Upgraded connections: which 101 is believed, and the pump behind it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import gevent
import pytest
import trustme
from gevent import socket as gsocket

from gateway.errors import BadResponse
from gateway.model import PoolSettings, Timeouts, TlsSettings
from gateway.net.stream import Stream
from gateway.testing import FakeUpstream, answer, head
from tests.exchanges import Line, finish, greenlets, open_files, request, soon

SWITCH = head(101, b"Connection: Upgrade", b"Upgrade: websocket")
PLENTY = 24 * 1024 * 1024


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def line(upstream):
    made = Line(upstream.host, upstream.port, timeouts=Timeouts(tunnel=5.0), pool=PoolSettings(max_connections=1))
    yield made
    made.close()
    soon(lambda: made.counts == (0, 0, 0))


class TestHandshake:
    def ask(self, line, upgrade=b"websocket"):
        return line.send(request(), upgrade=upgrade)

    @pytest.mark.parametrize("early", [b"", b"first frame"])
    def test_the_token_that_was_asked_for(self, upstream, line, early):
        upstream.answer(lambda exchange: (exchange.send(SWITCH + early), exchange.hang()))
        response = self.ask(line)
        assert response.status == 101
        assert (b"Upgrade", b"websocket") in response.headers
        assert response.tunnel._early == early
        response.tunnel.close()
        response.tunnel.close()
        assert line.counts == (0, 0, 0)

    def test_other_fields_pass_hop_by_hop_ones_do_not(self, upstream, line):
        told = head(
            101, b"Connection: Upgrade, X-Hop", b"Upgrade: websocket", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"X-A: b"
        )
        upstream.answer(lambda exchange: (exchange.send(told), exchange.hang()))
        response = self.ask(line)
        names = {name.lower() for name, _ in response.headers}
        assert b"x-a" in names
        assert not names & {b"x-hop", b"keep-alive"}
        response.tunnel.close()

    @pytest.mark.parametrize(
        "told",
        [
            head(101),
            head(101, b"Upgrade: websocket"),
            head(101, b"Connection: Upgrade"),
            head(101, b"Connection: Upgrade", b"Upgrade: h2c"),
            head(101, b"Connection: Upgrade", b"Upgrade: websocket, h2c"),
        ],
    )
    def test_what_is_not_believed(self, upstream, line, told):
        upstream.answer(lambda exchange: (exchange.send(told + b"frames"), exchange.hang()))
        with pytest.raises(BadResponse):
            self.ask(line)
        assert line.counts == (0, 0, 0)
        upstream.wait_aborted()

    def test_unasked(self, upstream, line):
        upstream.answer(lambda exchange: (exchange.send(SWITCH), exchange.hang()))
        with pytest.raises(BadResponse):
            self.ask(line, None)
        upstream.wait_aborted()

    def test_the_name_in_another_case(self, upstream, line):
        upstream.answer(
            lambda exchange: (exchange.send(head(101, b"connection: upgrade", b"upgrade: WebSocket")), exchange.hang())
        )
        self.ask(line).tunnel.close()

    def test_a_refusal_is_an_answer(self, upstream, line):
        upstream.answer(answer(b"no", status=403))
        response = self.ask(line)
        assert (response.status, response.data, response.tunnel) == (403, b"no", None)
        assert line.ask().reused


class Ends:
    """A tunnel under way: a client's socket, an upstream's, and the greenlet that pumps."""

    def __init__(self, line, fake, early_up=b"", early_down=b""):
        self._ready = threading.Event()
        self._over = threading.Event()

        def script(exchange):
            exchange.send(SWITCH + early_down)
            self.upstream = exchange.wire.sock
            self._ready.set()
            self._over.wait(20)

        fake.answer(script)
        response = line.send(request(), upgrade=b"websocket")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = gsocket.create_connection(listener.getsockname())
            inside, _ = listener.accept()
        self._ready.wait()
        for side in (self.client, self.upstream):
            side.settimeout(10)
        self.ended = []
        self.tunnel = response.tunnel
        self.tunnel.on_end = lambda: self.ended.append(1)
        self.inside = Stream(inside)
        self.running = gevent.spawn(self.tunnel.run, self.inside, early_up)

    def over(self):
        """What `run` returned."""
        (told,) = finish([self.running])
        assert self.ended == [1]
        self.done()
        return told

    def done(self):
        self._over.set()
        self.client.close()
        self.inside.close()


def drain(sock):
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


class TestPump:
    @pytest.fixture(autouse=True)
    def _books(self, line):
        files, running = open_files(), greenlets()
        yield
        soon(lambda: line.counts == (0, 0, 0))
        soon(lambda: open_files() <= files + 2 and greenlets() <= running + 1)

    def test_both_ways(self, upstream, line):
        ends = Ends(line, upstream)
        ends.client.sendall(b"ping")
        assert ends.upstream.recv(10) == b"ping"
        ends.upstream.sendall(b"pong!")
        assert ends.client.recv(10) == b"pong!"
        ends.client.close()
        assert ends.upstream.recv(10) == b""
        ends.upstream.shutdown(socket.SHUT_WR)
        assert ends.over() == (4, 5)

    def test_early_bytes_of_both_sides(self, upstream, line):
        ends = Ends(line, upstream, early_up=b"from client", early_down=b"from upstream")
        assert ends.client.recv(100) == b"from upstream"
        assert ends.upstream.recv(100) == b"from client"
        ends.client.shutdown(socket.SHUT_WR)
        ends.upstream.shutdown(socket.SHUT_WR)
        assert ends.over() == (11, 13)

    @pytest.mark.parametrize("client_first", [True, False])
    @pytest.mark.parametrize("data", [b"", b"last words"])
    def test_half_close(self, upstream, line, client_first, data):
        """One side has said all; the other goes on, and then ends, too."""
        ends = Ends(line, upstream)
        one, other = (ends.client, ends.upstream) if client_first else (ends.upstream, ends.client)
        if data:
            one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        assert drain(other) == data
        for _ in range(3):
            other.sendall(b"still here")
            assert one.recv(100) == b"still here"
        other.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b""
        assert sum(ends.over()) == len(data) + 30

    @pytest.mark.parametrize("client", [True, False])
    def test_full_close_delivers_what_was_sent(self, upstream, line, client):
        ends = Ends(line, upstream)
        one, other = (ends.client, ends.upstream) if client else (ends.upstream, ends.client)

        def send():
            one.sendall(b"x" * PLENTY)
            one.close()

        sending = gevent.spawn(send)
        assert len(drain(other)) == PLENTY
        finish([sending])
        other.close()
        assert sum(ends.over()) == PLENTY

    @pytest.mark.parametrize("client", [True, False])
    def test_a_reset_ends_the_other_side(self, upstream, line, client):
        """By a FIN, as it may have bytes that it has not read yet; some systems drop them at a RST."""
        ends = Ends(line, upstream)
        one, other = (ends.client, ends.upstream) if client else (ends.upstream, ends.client)
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
        assert other.recv(1) == b""
        ends.over()

    @pytest.mark.parametrize("client", [True, False])
    def test_a_reset_while_the_other_side_does_not_read(self, upstream, line, client):
        """The pump waits to write to one side when the other breaks."""
        ends = Ends(line, upstream)
        one, other = (ends.client, ends.upstream) if client else (ends.upstream, ends.client)
        sending = gevent.spawn(one.sendall, b"x" * PLENTY * 2)
        gevent.sleep(0.05)
        assert not sending.dead
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        other.close()
        ends.over()
        assert isinstance(finish([sending])[0], OSError)

    @pytest.mark.parametrize("client", [True, False])
    def test_a_tail_that_is_not_taken_is_given_up(self, upstream, line, client):
        line.timeouts = Timeouts(tunnel=5.0, write=0.2)
        ends, other = self.broken_with_a_tail(upstream, line, client)
        finish([ends.running])
        with pytest.raises(ConnectionResetError):
            drain(other)
        ends.over()

    @pytest.mark.parametrize("client", [True, False])
    def test_a_close_from_outside_ends_the_delivery_of_a_tail(self, upstream, line, client):
        """As a worker closes its connections at its deadline."""
        line.timeouts = Timeouts(tunnel=5.0, write=None)
        ends, _ = self.broken_with_a_tail(upstream, line, client)
        ends.inside.close()
        ends.over()

    @pytest.mark.parametrize("client", [True, False])
    def test_a_kill_ends_the_delivery_of_a_tail(self, upstream, line, client):
        line.timeouts = Timeouts(tunnel=5.0, write=None)
        ends, _ = self.broken_with_a_tail(upstream, line, client)
        ends.running.kill()
        assert ends.ended == [1]
        ends.done()

    @staticmethod
    def broken_with_a_tail(upstream, line, client):
        """One side was reset; the other has sent a message and does not read."""
        ends = Ends(line, upstream)
        one, other = (ends.client, ends.upstream) if client else (ends.upstream, ends.client)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # all buffers between are full
            while True:
                one.send(b"x" * PLENTY)
                gevent.sleep(0.01)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
        other.sendall(b"message")
        return ends, other

    def test_much_both_ways_at_once(self, upstream, line):
        ends = Ends(line, upstream)

        def send(sock, byte):
            sock.sendall(byte * PLENTY)
            sock.shutdown(socket.SHUT_WR)

        work = [
            gevent.spawn(send, ends.client, b"u"),
            gevent.spawn(send, ends.upstream, b"d"),
            gevent.spawn(drain, ends.client),
            gevent.spawn(drain, ends.upstream),
        ]
        _, _, down, up = finish(work)
        assert (up, down) == (b"u" * PLENTY, b"d" * PLENTY)
        assert ends.over() == (PLENTY, PLENTY)

    def test_the_idle_limit(self, upstream, line):
        line.timeouts = Timeouts(tunnel=0.1)
        ends = Ends(line, upstream)
        ends.over()
        with pytest.raises(ConnectionResetError):
            ends.upstream.recv(1)

    def test_one_side_that_speaks_keeps_it(self, upstream, line):
        line.timeouts = Timeouts(tunnel=1.0)
        ends = Ends(line, upstream)
        for _ in range(10):
            gevent.sleep(0.15)
            ends.upstream.sendall(b"x")
            assert ends.client.recv(10) == b"x"
        assert not ends.running.dead
        ends.over()

    def test_null_is_no_limit(self, upstream, line):
        line.timeouts = Timeouts(tunnel=None)
        ends = Ends(line, upstream)
        gevent.sleep(0.1)
        assert not ends.running.dead
        ends.client.close()
        ends.upstream.shutdown(socket.SHUT_WR)
        ends.over()

    def test_killed(self, upstream, line):
        ends = Ends(line, upstream)
        ends.client.sendall(b"x")
        assert ends.upstream.recv(1) == b"x"
        ends.running.kill()
        assert ends.ended == [1]
        assert line.counts == (0, 0, 0)
        ends.done()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
class TestOverTls:
    @pytest.fixture
    def ends(self, tmp_path, version):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        authority.issue_cert("service.example").configure_cert(context)
        with FakeUpstream(tls=context) as fake:
            tls = TlsSettings(ca=str(tmp_path / "ca.pem"))
            line = Line(
                fake.host, fake.port, tls=tls, server_name="service.example", timeouts=Timeouts(tunnel=5.0)
            )
            ends = Ends(line, fake, early_down=b"early")
            assert ends.client.recv(5) == b"early"
            yield ends
            ends.done()
            line.close()
            soon(lambda: line.counts == (0, 0, 0))

    def say_goodbye(self, ends):
        with contextlib.suppress(ssl.SSLError):  # it would wait for the other side's
            ends.upstream._sslobj.shutdown()
        ends.upstream.shutdown(socket.SHUT_RDWR)

    def test_both_ways_and_the_end_of_the_client(self, ends):
        for one, other in ((ends.client, ends.upstream), (ends.upstream, ends.client)):
            sending = gevent.spawn(one.sendall, b"x" * PLENTY)
            got = 0
            while got < PLENTY:
                got += len(other.recv(1 << 20))
            finish([sending])
        ends.client.shutdown(socket.SHUT_WR)
        assert ends.upstream.recv(10) == b""
        self.say_goodbye(ends)
        assert ends.client.recv(10) == b""
        assert ends.over() == (PLENTY, PLENTY + 5)

    def test_a_half_close_loses_nothing_that_is_on_its_way(self, ends):
        """OpenSSL gives up on data that it meets while it looks for the other side's close_notify."""

        def send():
            ends.upstream.sendall(b"d" * PLENTY)
            self.say_goodbye(ends)

        sending = gevent.spawn(send)
        gevent.sleep(0.05)  # the client does not read: all buffers between are full
        assert not sending.dead
        ends.client.shutdown(socket.SHUT_WR)
        gevent.sleep(0.02)
        assert len(drain(ends.client)) == PLENTY
        finish([sending])
        assert ends.over() == (0, PLENTY + 5)
