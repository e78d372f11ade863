"""TLS to upstreams: who is believed, what a connection survives, and that an end without close_notify is a cut."""

from __future__ import annotations

import contextlib
import datetime
import random
import socket
import ssl
import threading
import warnings

import gevent
import pytest
import trustme

from gateway.errors import ConfigError, ConnectTimeout, TlsError, UpstreamReset, UpstreamTruncated
from gateway.model import Timeouts, TlsSettings
from gateway.testing import PATIENCE, Act, FakeUpstream, answer, chunked, head
from gateway.transport import tls
from tests.exchanges import Line, Pieces, finish, greenlets, hold_up_the_hub, open_files, request, soon, whole

NAME = "service.example"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_side(authority, *names, version=None, **issue):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or (NAME,)), **issue).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@pytest.fixture
def serve(authority):
    """Starts TLS upstreams and lines to them."""
    with contextlib.ExitStack() as stack:

        def start(settings, *, context=None, server_name=NAME, script=None, timeouts=None, **kw):
            context = context or server_side(authority)
            fake = stack.enter_context(FakeUpstream(script, tls=context))
            line = Line(
                fake.host, fake.port, tls=settings, server_name=server_name, **({"timeouts": timeouts} if timeouts else {})
            )
            stack.callback(line.close)
            return fake, line

        yield start


@pytest.mark.parametrize(
    ("suite", "taken"),
    [("ECDHE-ECDSA-AES128-GCM-SHA256", True), ("ECDHE-ECDSA-CHACHA20-POLY1305", True), ("ECDHE-ECDSA-AES128-SHA256", False)],
)
def test_tls_1_2_needs_authenticated_encryption(serve, authority, ca, suite, taken):
    context = server_side(authority, version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(suite)
    _, line = serve(TlsSettings(ca=ca), context=context, script=[answer(b"ok")] * 2)
    if taken:
        assert line.ask().body == b"ok"
    else:
        with pytest.raises(TlsError):
            line.ask()


BOTH = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)


class TestTrust:
    def refused(self, line):
        with pytest.raises(TlsError) as seen:
            line.ask()
        error = seen.value
        assert (error.status, error.reason, error.retry_as, error.may_have_been_sent) == (
            502,
            "tls_error",
            "connect",
            False,
        )
        assert line.counts == (0, 0, 0)
        assert "EPERM" not in error.cause, "OpenSSL's numbers are not the system's"
        return error.cause

    def test_the_right_one(self, serve, ca):
        fake, line = serve(TlsSettings(ca=ca))
        assert line.ask().body == b"ok"
        assert fake.requests

    def test_an_unknown_authority(self, serve):
        fake, line = serve(TlsSettings())
        assert "tls handshake" in self.refused(line)
        assert fake.requests == []

    def test_another_authority(self, serve, tmp_path):
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        _, line = serve(TlsSettings(ca=str(other)))
        self.refused(line)

    def test_a_wrong_name(self, serve, ca, authority):
        _, line = serve(TlsSettings(ca=ca), context=server_side(authority, "other.example"))
        self.refused(line)

    def test_no_name_is_the_address(self, serve, ca, authority):
        _, line = serve(TlsSettings(ca=ca), server_name=None)
        self.refused(line)
        _, line = serve(TlsSettings(ca=ca), server_name=None, context=server_side(authority, "127.0.0.1"))
        assert line.ask().body == b"ok"

    def test_expired(self, serve, ca, authority):
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        context = server_side(authority, NAME, not_before=past - datetime.timedelta(days=9), not_after=past)
        _, line = serve(TlsSettings(ca=ca), context=context)
        assert "expired" in self.refused(line)

    def test_verify_false_believes_anybody(self, serve, authority):
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        context = server_side(authority, "other.example", not_before=past - datetime.timedelta(days=9), not_after=past)
        _, line = serve(TlsSettings(verify=False), context=context)
        assert line.ask().body == b"ok"

    def test_a_name_of_its_own_in_the_settings(self, serve, ca, authority):
        asked = []
        context = server_side(authority, "inside.example")
        context.sni_callback = lambda _sock, name, _context: asked.append(name)
        _, line = serve(TlsSettings(ca=ca, server_name="inside.example"), context=context)
        assert line.ask().body == b"ok"
        assert asked == ["inside.example"]

    def test_connected_by_address_with_name_and_host_kept(self, serve, ca, authority):
        asked = []
        context = server_side(authority)
        context.sni_callback = lambda _sock, name, _context: asked.append(name)
        fake, line = serve(TlsSettings(ca=ca), context=context)
        line.ask()
        assert asked == [NAME]
        assert fake.last.header(b"host") == b"service"

    def test_a_client_certificate(self, serve, ca, authority, tmp_path):
        context = server_side(authority, version=ssl.TLSVersion.TLSv1_2)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        _, line = serve(TlsSettings(ca=ca), context=context)
        self.refused(line)
        mine = authority.issue_cert("gateway.example")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        mine.cert_chain_pems[0].write_to_path(str(cert))
        mine.private_key_pem.write_to_path(str(key))
        _, line = serve(TlsSettings(ca=ca, cert=str(cert), key=str(key)), context=context)
        assert line.ask().body == b"ok"

    @pytest.mark.parametrize("body", [None, b"x", Pieces(b"x")])
    def test_a_client_certificate_that_is_missing_under_1_3(self, serve, ca, authority, body):
        """There the server says so after the handshake, when the request may be out."""
        context = server_side(authority, version=ssl.TLSVersion.TLSv1_3)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        _, line = serve(TlsSettings(ca=ca), context=context)
        with pytest.raises(UpstreamReset) as seen:
            line.ask(request(b"POST", body, chunked=isinstance(body, Pieces)))
        assert (seen.value.reason, seen.value.retry_as, seen.value.may_have_been_sent) == ("tls_error", "reset", True)
        assert "certificate required" in seen.value.cause
        assert line.counts == (0, 0, 0)

    def test_old_versions(self, serve, ca, authority):
        context = server_side(authority)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        _, line = serve(TlsSettings(ca=ca), context=context)
        self.refused(line)

    def test_a_server_that_speaks_no_tls(self, ca):
        with FakeUpstream(lambda exchange: exchange.send(answer(b"plain"))) as fake:
            plain = socket.create_server(("127.0.0.1", 0))

            def speak():
                connection, _ = plain.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

            threading.Thread(target=speak, daemon=True).start()
            line = Line(fake.host, plain.getsockname()[1], tls=TlsSettings(ca=ca), server_name=NAME)
            self.refused(line)
            plain.close()

    @pytest.mark.parametrize("settings", [{"ca": "/nowhere.pem"}, {"cert": "/nowhere.pem"}])
    def test_files_that_are_not_there(self, settings):
        with pytest.raises(ConfigError):
            tls.context(TlsSettings(**settings))


class TestHandshake:
    @pytest.mark.parametrize("drip", [b"", b"\x16\x03\x03\x40\x00" + bytes(2000)])
    def test_a_slow_one_is_limited_as_a_whole(self, ca, drip):
        """Silence, and one byte each 20 ms: both are cut by timeouts.connect."""
        stop = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def speak():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    for byte in drip:
                        connection.sendall(bytes([byte]))
                        if stop.wait(0.02):
                            return
                    stop.wait(20)

            speaking = gevent.spawn(speak)
            line = Line(
                "127.0.0.1",
                listener.getsockname()[1],
                tls=TlsSettings(ca=ca),
                server_name=NAME,
                timeouts=Timeouts(connect=0.2),
            )
            with pytest.raises(ConnectTimeout) as seen:
                line.ask()
            assert "tls handshake" in seen.value.cause
            assert line.counts == (0, 0, 0)
            stop.set()
            speaking.join()

    def test_one_that_could_not_go_on_has_the_time_that_the_hub_was_late(self, serve, ca):
        _, line = serve(TlsSettings(ca=ca), timeouts=Timeouts(connect=0.1, response=5.0, idle=5.0))
        asking = gevent.spawn(line.ask)
        gevent.sleep(0)  # now it dials
        hold_up_the_hub(0.6)  # and nothing runs until long after its limit
        assert asking.get(timeout=PATIENCE).body == b"ok"

    def test_failures_leave_nothing(self, serve, ca, authority):
        _, line = serve(TlsSettings(ca=ca), context=server_side(authority, "other.example"))
        with pytest.raises(TlsError):
            line.ask()
        soon(lambda: True)
        files, running = open_files(), greenlets()
        for _ in range(100):
            with pytest.raises(TlsError):
                line.ask()
        soon(lambda: open_files() <= files and greenlets() <= running)
        assert line.counts == (0, 0, 0)

    def test_killed_in_the_middle(self, ca):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            line = Line("127.0.0.1", listener.getsockname()[1], tls=TlsSettings(ca=ca), server_name=NAME)
            files = open_files()
            asking = gevent.spawn(line.ask)
            soon(lambda: line.counts == (1, 0, 0))
            asking.kill()
            assert line.counts == (0, 0, 0)
            soon(lambda: open_files() <= files)


class TestConnections:
    @BOTH
    def test_a_hundred_requests_over_one(self, serve, ca, authority, version):
        fake, line = serve(TlsSettings(ca=ca), context=server_side(authority, version=version))
        got = [line.ask() for _ in range(100)]
        assert [one.reused for one in got] == [False] + [True] * 99
        assert {one.body for one in got} == {b"ok"}
        assert len(fake.connections) == 1

    def test_session_tickets_do_not_make_it_dirty(self, serve, ca, authority):
        """They come behind the handshake, to a connection on which nobody reads."""
        fake, line = serve(TlsSettings(ca=ca), context=server_side(authority, version=ssl.TLSVersion.TLSv1_3))
        line.pool._put(line.pool._dial(request(), 5.0))
        stream = line.pool._idle[0].stream
        soon(lambda: bool(fake.connections))
        gevent.sleep(0.05)
        assert line.counts == (1, 1, 0)
        assert stream._watching
        assert line.ask().reused

    @BOTH
    @pytest.mark.parametrize("ticket_first", [True, False])
    def test_one_that_ends_while_idle_is_dropped_at_once(self, serve, ca, authority, version, ticket_first):
        fake, line = serve(TlsSettings(ca=ca), context=server_side(authority, version=version))
        if ticket_first:
            line.pool._put(line.pool._dial(request(), 5.0))
            soon(lambda: bool(fake.connections))
            gevent.sleep(0.02)
        else:
            line.ask()
        assert line.counts == (1, 1, 0)
        fake.hang_up()
        soon(lambda: line.counts == (0, 0, 0))

    def test_what_comes_behind_an_answer_is_nobodys(self, serve, ca):
        _, line = serve(TlsSettings(ca=ca), script=[answer(b"mine"), answer(b"stolen")])
        for _ in range(3):
            assert line.ask().body == b"mine"

    @BOTH
    @pytest.mark.parametrize("by_length", [True, False])
    def test_large_bodies_both_ways(self, serve, ca, authority, version, by_length):
        generator = random.Random(3)
        up = [generator.randbytes(65536) for _ in range(64)]

        def script(exchange):
            body = exchange.read_body()
            told = b"Content-Length: %d" % len(body) if by_length else b"Transfer-Encoding: chunked"
            exchange.send(head(200, told) + (body if by_length else chunked(body[:1_000_000], body[1_000_000:])))

        fake, line = serve(TlsSettings(ca=ca), context=server_side(authority, version=version), script=script)
        for _ in range(2):
            asked = request(b"POST", Pieces(*up), length=64 * 65536 if by_length else None, chunked=not by_length)
            assert whole(line.send(asked)) == b"".join(up)
        assert len(fake.connections) == 1

    def test_many_at_once(self, serve, ca):
        _, line = serve(TlsSettings(ca=ca))

        def ask():
            return [line.ask().body for _ in range(10)]

        assert finish(gevent.spawn(ask) for _ in range(10)) == [[b"ok"] * 10] * 10

    def test_one_context_an_upstream(self, serve, ca, monkeypatch):
        _, line = serve(TlsSettings(ca=ca))
        line.transport.prepare(line.upstream)
        monkeypatch.setattr(tls, "context", None)  # no second one may be made
        assert line.ask().body == b"ok"


class TestEnds:
    def close_notify(self, exchange):
        with contextlib.suppress(OSError):  # it would wait for ours
            exchange.wire.sock._sslobj.shutdown()

    @BOTH
    def test_a_body_until_the_end_needs_close_notify(self, serve, ca, authority, version):
        context = server_side(authority, version=version)
        _, line = serve(TlsSettings(ca=ca), context=context, script=[head(200) + b"hel", 0.02, Act.CUT])
        with pytest.raises(UpstreamTruncated):
            line.ask()
        assert line.counts == (0, 0, 0)

    @BOTH
    def test_and_is_whole_with_it(self, serve, ca, authority, version):
        def script(exchange):
            exchange.send(head(200) + b"hello")
            self.close_notify(exchange)
            exchange.run([Act.CLOSE])

        _, line = serve(TlsSettings(ca=ca), context=server_side(authority, version=version), script=script)
        assert line.ask().body == b"hello"

    def test_no_answer_at_all(self, serve, ca):
        _, line = serve(TlsSettings(ca=ca), script=[Act.CLOSE])
        with pytest.raises(UpstreamReset):
            line.ask()
