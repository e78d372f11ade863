"""Our worker under a real gunicorn: both doors, listeners of every kind, and what gunicorn's users expect of it."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gateway.testing import RawClient, Truncated, Wire
from tests.integration.worker_process import WorkerProcess, get


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("worker")) as process:
        yield process
    assert "Traceback" not in process.errors()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path_factory.mktemp("proxied"), "--proxy-protocol", "auto") as process:
        yield process


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    settings = {"timeouts": {"tls_handshake": 0.5, "half_close": 0.2}}
    with WorkerProcess(folder, "--certfile", "server.pem", settings=settings) as process:
        yield process
    assert "Traceback" not in process.errors()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def context(request: pytest.FixtureRequest, authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    made.minimum_version = made.maximum_version = request.param
    return made


class TestRequests:
    def test_kept_alive(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            for _ in range(3):
                assert client.request(get("/hello")).body == b"hello"
            assert client.request(get("/hello", "Connection: close")).header(b"connection") == b"close"
            assert client.ended()

    def test_pipelined(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            echo = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
            client.send(get("/hold?0.1") + echo + get("/hello") + get("/nothing"))
            assert [client.read_response().body for _ in range(4)] == [b"held", b"abc", b"hello", b"not found"]

    def test_byte_by_byte(self, worker: WorkerProcess) -> None:
        raw = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        with worker.client() as client:
            client.send_pieces((raw[at : at + 1] for at in range(len(raw))), gap=0.001)
            assert client.read_response().body == b"abc"

    def test_large_bodies_both_ways(self, worker: WorkerProcess) -> None:
        body = bytes(range(256)) * 8192
        with worker.client() as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert client.read_response().body == body
            assert client.request(get("/hello")).status == 200

    def test_a_stream_arrives_as_it_comes(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/ticks?3,0.2"))
            assert client.read_head().header(b"transfer-encoding") == b"chunked"
            seen = []
            for _ in range(3):
                assert client.read_until(b"\r\n") == b"5\r\n"
                assert client.read_until(b"\r\n") == b"tick\n\r\n"
                seen.append(time.monotonic())
            assert client.read_until(b"\r\n\r\n") == b"0\r\n\r\n"
            assert seen[-1] - seen[0] > 0.2

    @pytest.mark.parametrize("length", ["", "100"])
    def test_a_broken_answer_is_cut(self, worker: WorkerProcess, length: str) -> None:
        with worker.client() as client, pytest.raises(Truncated) as cut:
            client.request(get(f"/break?{length}"))
        assert b"tick" in cut.value.partial
        assert worker.ended(f"/break?{length}")["error"] == "upstream_stalled"

    def test_a_broken_answer_for_http_1_0_is_reset(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(get("/break?", version="1.0"))
            with pytest.raises(ConnectionResetError):
                client.read_to_end()

    def test_interim_answers(self, worker: WorkerProcess) -> None:
        response = worker.ask(get("/hints"))
        assert [(hint.status, hint.header(b"link")) for hint in response.interim] == [(103, b"</a>")]
        assert worker.ask(get("/hints", version="1.0")).interim == ()

    def test_views(self, worker: WorkerProcess) -> None:
        response = worker.ask(get("/flask?x"))
        assert (response.header(b"x-door"), response.body) == (b"wsgi", b"/flask?x")

    def test_every_exchange_is_finished(self, worker: WorkerProcess) -> None:
        body = b"POST /echo?once HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        worker.ask(body)
        ended = worker.ended("/echo?once")
        assert (ended["status"], ended["bytes_in"], ended["bytes_out"], ended["error"]) == (200, 3, 3, None)
        assert (ended["peer"], ended["scheme"]) == ("127.0.0.1", "http")

    def test_so_is_what_was_refused(self, worker: WorkerProcess) -> None:
        assert worker.ask(b"GET /bad\x01 HTTP/1.1\r\nHost: a\r\n\r\n").status == 400
        assert worker.ended("/bad\x01")["reason"] == "bad_request"


class TestContinue:
    RAW = b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

    def test_when_the_body_is_wanted(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(self.RAW % b"echo")
            assert client.read_head().status == 100
            client.send(b"hello")
            assert client.read_response().body == b"hello"
            assert client.request(get("/hello")).status == 200

    def test_not_when_it_is_refused(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(self.RAW % b"refuse")
            response = client.read_response()
            assert (response.status, response.interim, response.header(b"connection")) == (413, (), b"close")
            assert client.ended()


class TestUpgrade:
    RAW = get("/tunnel", "Connection: Upgrade", "Upgrade: Echo")

    def test_a_tunnel_is_the_last_of_a_connection(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(self.RAW + b"early")
            response = client.read_response()
            assert (response.status, response.header(b"connection"), response.header(b"upgrade")) == (101, b"Upgrade", b"echo")
            assert client.read_exactly(7) == b"[early]"
            client.send(get("/hello"))
            assert client.read_until(b"]").startswith(b"[GET /hello")
            client.half_close()
            assert client.read_to_end() == b""

    def test_an_upgrade_with_a_body_is_none(self, worker: WorkerProcess) -> None:
        inner = get("/inner")
        raw = get("/tunnel", "Connection: Upgrade", "Upgrade: Echo", f"Content-Length: {len(inner)}", method="POST")
        with worker.client() as client:
            client.send(raw + inner + get("/hello"))
            assert [client.read_response().body for _ in range(2)] == [b"no tunnel", b"hello"]


class TestUnreadBodies:
    def test_the_refusal_can_be_read_though_more_is_coming(self, worker: WorkerProcess) -> None:
        """The client writes all of it before it reads, as many do."""
        for _ in range(5):
            with worker.client() as client:
                client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
                client.send(b"x" * 3_000_000)
                assert client.read_response().status == 413
                assert client.read_to_end() == b""

    def test_a_small_one_is_drained(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n" + b"GET /inner HTTP/1.1")
            assert client.read_response().status == 413
            client.send(b"\r\nHost: a\r\n" + get("/hello"))
            assert client.read_response().body == b"hello"

    def test_one_that_never_comes_ends_the_connection(self, worker: WorkerProcess) -> None:
        with worker.client() as client:
            client.send(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n")
            assert client.read_response().status == 413
            assert client.ended()


class TestDoors:
    def test_direct(self, worker: WorkerProcess) -> None:
        assert "Door: direct" in worker.errors()

    def test_one_that_the_application_keeps_shut(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, closed_door="hooks are registered") as worker:
            assert "Door: wsgi (hooks are registered)" in worker.errors()
            assert worker.ask(get("/hello?x")).body == b"/hello?x"
            assert worker.ask(b"GET / HTTP/1.1\r\n\r\n").status == 400
            assert worker.ended("/")["reason"] == "bad_request"

    def test_one_that_gunicorns_access_log_keeps_shut(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--access-logfile", "access.log", "--access-logformat", "%(r)s %(s)s %(B)s") as worker:
            assert "Door: wsgi (gunicorn's access log is on)" in worker.errors()
            assert worker.ask(get("/hello")).status == 200
            log = tmp_path / "access.log"
            worker.until(lambda: log.read_text() == "GET /hello HTTP/1.1 200 6\n", "gunicorn's access log")

    def test_one_that_gunicorns_hooks_keep_shut(self, tmp_path: Path) -> None:
        (tmp_path / "hooks.py").write_text(
            "def pre_request(worker, req): worker.log.info('pre %s %s', req.method, req.path)\n"
            "def post_request(worker, req, environ, resp): worker.log.info('post %s %s', req.uri, resp.status_code)\n"
        )
        with WorkerProcess(tmp_path, "-c", "hooks.py") as worker:
            assert "hook is set)" in worker.errors()
            assert worker.ask(get("/a%20b?c")).status == 200
            worker.until(lambda: "pre GET /a b" in worker.errors(), "pre_request")
            worker.until(lambda: "post /a%20b?c 200" in worker.errors(), "post_request")


class TestApplications:
    def test_a_plain_one_by_the_letter_of_pep_3333(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, app="plain") as worker:
            assert "not a Gateway" in worker.errors()
            with worker.client() as client:
                assert client.request(get("/a%20b")).body == b"('GET', '/a b', '127.0.0.1', b'')"
                post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
                assert client.request(post).body == b"('POST', '/', '127.0.0.1', b'abc')"
            assert worker.ask(b"GET / HTTP/1.1\r\n\r\n").status == 400
            assert "Error" not in worker.errors()

    def test_one_that_exits_ends_its_request_alone(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, app="plain") as worker, worker.client() as client:
            assert client.request(get("/exit")).status == 500
            assert client.request(get("/")).status == 200
            # In gunicorn's own log, in its form.
            assert re.search(r"^\[.*\[ERROR\] a request failed$", worker.errors(), re.MULTILINE)

    @pytest.mark.parametrize("flag", ["--limit-request-line", "--limit-request-fields", "--limit-request-field_size"])
    def test_without_a_limit(self, tmp_path: Path, flag: str) -> None:
        with WorkerProcess(tmp_path, flag, "0", app="plain") as worker:
            assert worker.ask(get("/", "X: " + "x" * 2000)).status == 200

    def test_flask(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, app="flasked") as worker, worker.client() as client:
            form = b"a=1&b=%C3%A9"
            response = client.request(
                b"POST /hello/you?x=y HTTP/1.1\r\nHost: a.test:81\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(form), form)
            )
            told = {"name": "you", "form": {"a": "1", "b": "é"}, "host": "a.test:81", "args": {"x": "y"}}
            assert json.loads(response.body) == told
            assert client.request(get("/stream")).body == b"0\n1\n2\n3\n4\n"
            assert client.request(get("/none")).status == 404
            assert client.request(get("/stream", method="HEAD"), b"HEAD").body == b""
            part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 500_000 + b"\r\n--b--\r\n"
            head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n"
            assert client.request(head % len(part) + part).body == b"f 500000"
            assert client.request(get("/bug")).status == 500
            assert client.request(get("/hello/again")).status == 200

    def test_no_keepalive(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--keep-alive", "0", app="plain") as worker:
            assert worker.ask(get("/")).header(b"connection") == b"close"


class TestListeners:
    def test_several(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with WorkerProcess(tmp_path, binds=("127.0.0.1:0", "127.0.0.1:0", f"unix:{path}")) as worker:
            for port in worker.ports:
                with RawClient(port) as client:
                    assert client.request(get("/hello")).body == b"hello"
            assert len(set(worker.ports)) == 2
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            wire = Wire(sock)
            wire.send(get("/hello?unix", "Connection: close"))
            assert wire.read_to_end().endswith(b"hello")
            wire.close()
            assert worker.ended("/hello?unix")["peer"] == ""

    def test_preload(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--preload", workers=2) as worker:
            assert worker.ask(get("/hello")).body == b"hello"

    def test_connections_have_a_limit(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, settings={"limits": {"connections": 2}}) as worker:
            first, second, third = worker.client(), worker.client(), worker.client()
            assert first.request(get("/hello")).status == 200
            assert second.request(get("/hello")).status == 200
            third.send(get("/hello"))
            assert not third.ended(within=0.3)
            assert third.received == b""
            first.close()
            assert third.read_response().status == 200
            second.close()
            third.close()
            assert worker.ask(get("/hello")).status == 200


class TestProxyProtocol:
    LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n"
    V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x08\xc0\x00\x02\x01\x30\x39\x01\xbb"

    @pytest.mark.parametrize(("preamble", "peer"), [(LINE, "192.0.2.7"), (V2, "192.0.2.8"), (b"", "127.0.0.1")])
    @pytest.mark.parametrize("apart", [True, False])
    def test_from_a_peer_that_may(self, proxied: WorkerProcess, preamble: bytes, peer: str, apart: bool) -> None:
        target = f"/hello?{peer}{apart}"
        with proxied.client() as client:
            if apart:
                client.send_pieces([preamble[:13], preamble[13:]])
                client.send(get(target))
            else:
                client.send(preamble + get(target))
            assert client.read_response().status == 200
            assert proxied.ended(target)["peer"] == peer
            assert client.request(get("/hello")).status == 200

    def test_a_wrong_one(self, proxied: WorkerProcess) -> None:
        assert proxied.ask(b"PROXY TCP4 x y 1 2\r\n" + get("/hello")).status == 400

    def test_from_a_peer_that_may_not(self, tmp_path: Path) -> None:
        with WorkerProcess(tmp_path, "--proxy-protocol", "auto", "--proxy-allow-from", "192.0.2.1") as worker:
            assert worker.ask(self.LINE + get("/hello")).status == 400
            assert worker.ask(self.V2 + get("/hello")).status == 400
            assert worker.ask(get("/hello")).status == 200

    def test_when_it_is_off(self, worker: WorkerProcess) -> None:
        assert worker.ask(self.LINE + get("/hello")).status == 400


class TestTls:
    def test_requests(self, secured: WorkerProcess, context: ssl.SSLContext) -> None:
        with secured.client(tls=context) as client:
            client.send(get("/hello") + get("/hold?0.1") + get("/hello"))
            assert [client.read_response().body for _ in range(3)] == [b"hello", b"held", b"hello"]
            client.send(get("/hold?0.2"))
            client.send(get("/hello"))
            assert [client.read_response().body for _ in range(2)] == [b"held", b"hello"]
        assert secured.exchanges()[-1]["scheme"] == "https"

    def test_large_bodies(self, secured: WorkerProcess, context: ssl.SSLContext) -> None:
        body = bytes(range(256)) * 8192
        with secured.client(tls=context) as client:
            client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert client.read_response().body == body

    def test_a_slow_reader(self, secured: WorkerProcess, context: ssl.SSLContext) -> None:
        with secured.client(tls=context, receive_buffer=4096) as client:
            client.send(get("/flood?40"))
            time.sleep(0.2)
            body = client.read_response().body
            assert body == b"x" * 65536 * 40

    def test_the_end_is_told(self, secured: WorkerProcess, context: ssl.SSLContext) -> None:
        """Without close_notify, a body that ends with the connection may have been cut."""
        with secured.client(tls=context) as client:
            client.send(get("/ticks?2,0", version="1.0"))
            assert client.read_response().body == b"tick\ntick\n"

    def test_a_client_that_left(self, secured: WorkerProcess, context: ssl.SSLContext) -> None:
        target = f"/hold?{4.0 + context.maximum_version / 1e6}"
        client = secured.client(tls=context)
        client.send(get(target))
        client.close()
        ended = secured.ended(target)
        assert (ended["status"], ended["error"]) == (None, "client_closed")

    def test_a_handshake_has_a_limit(self, secured: WorkerProcess) -> None:
        with secured.client() as client:
            client.send(b"\x16\x03\x01")
            assert client.ended()

    def test_plain_text_is_none(self, secured: WorkerProcess) -> None:
        with secured.client() as client:
            client.send(get("/hello"))
            assert client.ended()
        with secured.client() as client:
            client.reset()
