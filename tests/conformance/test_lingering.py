"""An answer that comes before the end of an upload reaches a client that sends all of it first."""

from __future__ import annotations

import threading

import pytest
import requests

from gateway.testing import PATIENCE, Exchange, answer
from tests.conformance.harness import request

SCENE = "standard"
pytestmark = pytest.mark.own_worker("gunicorn's worker closes at once")

# More than the sockets' buffers of all hops hold.
LARGE = 24 * 1024 * 1024


def refuse_early(exchange: Exchange) -> None:
    exchange.read_piece()
    exchange.send(answer(b"broken", status=500))
    exchange.wire.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_python_client_gets_the_answer(scene, upstream, streamed):
    upstream.answer(refuse_early)
    piece = b"x" * 65536
    data = (piece for _ in range(LARGE // len(piece))) if streamed else b"x" * LARGE
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(scene.gateway.log_path.parent / "authority.pem")
        url = f"{scene.door.scheme.decode()}://localhost:{scene.gateway.port}/upload"
        response = session.post(url, data=data, timeout=3 * PATIENCE)
    assert (response.status_code, response.content) == (500, b"broken")


@pytest.mark.parametrize("lines", [b"Content-Length: %d" % LARGE, b"Transfer-Encoding: chunked"])
def test_it_is_logged_before_the_rest_comes(scene, upstream, lines):
    upstream.answer(refuse_early)
    target = b"/early-%d" % len(lines)
    with scene.client() as client:
        client.send(request(target, lines, method=b"POST") + b"5\r\nhello\r\n")
        assert client.read_response(b"POST").body == b"broken"
        record = scene.gateway.logged(target.decode())
        assert (record["status"], record["reason"]) == (500, None)
        client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def test_many_uploads_at_once_get_theirs(scene, upstream):
    upstream.answer(refuse_early)
    got: list[int] = []

    def upload() -> None:
        with scene.client() as client:
            client.send(request(b"/many", b"Content-Length: %d" % (LARGE // 4), method=b"POST"))
            client.send(b"x" * (LARGE // 4))
            got.append(client.read_response(b"POST").status)

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    assert got == [500] * 4
