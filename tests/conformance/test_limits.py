"""Group D: limits of a body, with a length and without."""

from __future__ import annotations

import pytest

from gateway.testing import Truncated, answer, chunk, chunked, head
from tests.conformance.harness import check_problem, request

SCENE = "limits"
LIMIT = 16 * 1024
CHUNKED = b"Transfer-Encoding: chunked"


def check_nothing_left(client):
    """The rest of the refused body is drained or the connection closed: it is never read as a request."""
    try:
        client.send(request(b"/-/healthz"))
        assert client.read_response().status in (200, 400)  # served; or read as the next chunk, which it is not
    except (Truncated, ConnectionResetError, BrokenPipeError):
        pass  # closed


class TestBody:
    @pytest.mark.parametrize("size", [LIMIT + 1, 3_000_000])
    def test_too_long_by_its_length(self, scene, upstream, size):
        with scene.client() as client:
            try:
                client.send(request(b"/big", method=b"POST", body=b"x" * size))
            except OSError:
                pass  # the gateway stopped reading; its answer must be there all the same
            check_problem(client.read_response(), 413, "body_too_large")
            check_nothing_left(client)
        assert upstream.requests == []
        record = scene.gateway.logged("/big")
        assert (record["status"], record["reason"]) == (413, "body_too_large")

    def test_an_announced_one_is_refused_at_once(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/big", b"Content-Length: 100000000", method=b"POST"))
            check_problem(client.read_response(), 413, "body_too_large")

    @pytest.mark.parametrize("pieces", [[b"x" * (LIMIT + 1)], [b"x" * 1000] * 20, [b"x" * 65536] * 20])
    def test_too_long_in_chunks(self, scene, upstream, pieces):
        with scene.client() as client:
            try:
                client.send(request(b"/big-chunked", CHUNKED, method=b"POST") + chunked(*pieces))
            except OSError:
                pass  # the gateway stopped reading; its answer must be there all the same
            check_problem(client.read_response(), 413, "body_too_large")
            check_nothing_left(client)
        assert not [seen for seen in upstream.requests if seen.complete]

    def test_too_long_after_a_while(self, scene, upstream):
        with scene.client() as client:
            client.send(request(b"/big-later", CHUNKED, method=b"POST") + chunk(b"x" * 1000))
            upstream.wait(1)
            client.send(chunk(b"x" * LIMIT))
            check_problem(client.read_response(), 413, "body_too_large")
            check_nothing_left(client)
        upstream.wait_aborted()
        assert not upstream.aborted[0].complete

    def test_just_long_enough(self, scene, upstream):
        assert scene.ask(request(b"/", method=b"POST", body=b"x" * LIMIT)).status == 200
        assert scene.ask(request(b"/", CHUNKED, method=b"POST") + chunked(b"x" * 384, *[b"x" * 1000] * 16)).status == 200
        # The head of a request that an earlier test cut off may arrive only now.
        whole = [len(seen.body) for seen in upstream.requests if seen.complete]
        assert whole == [LIMIT, LIMIT]


class TestAnswers:
    @pytest.mark.parametrize("lines", [[b"X: " + b"a" * 9000], [b"X-%d: y" % number for number in range(30)],
                                       [b"X-%d: %s" % (number, b"a" * 1000) for number in range(10)]])  # fmt: skip
    def test_more_head_than_allowed(self, scene, upstream, lines):
        upstream.answer([head(200, b"Content-Length: 2", *lines), b"ok"])
        check_problem(scene.ask(request()), 502, "bad_response")

    def test_hints_count_too(self, scene, upstream):
        """What comes before an answer is held to the same limit."""
        upstream.answer([head(103, b"Link: " + b"a" * 9000), 0.05, answer(b"ok")])
        check_problem(scene.ask(request(method=b"POST", body=b"x")), 502, "bad_response")
