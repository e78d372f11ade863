"""Answers that are framed unusually, as other proxies read them: accepted, cleaned, and safe for the next request."""

from __future__ import annotations

import pytest

from gateway.testing import answer, head
from tests.conformance.harness import check_problem, request

SCENE = "standard"

CHUNKED = head(200, b"Transfer-Encoding: chunked")
OK = b"HTTP/1.1 200 OK\r\n"


class TestChunkLines:
    @pytest.mark.parametrize(
        "body",
        [
            b"2; a=b\r\nok\r\n0\r\n\r\n", b"2 ;a=b\r\nok\r\n0\r\n\r\n", b"2;a = b\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0 ; a\r\n\r\n",
            b"2 \r\nok\r\n0\r\n\r\n", b"2   \r\nok\r\n0\r\n\r\n", b"2\t\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0 \r\n\r\n", b"2;\r\nok\r\n0;\r\n\r\n",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("late", [False, True])
    def test_blanks_and_empty_extensions(self, scene, upstream, body, late):
        upstream.answer([CHUNKED, b"3\r\nyes\r\n", body] if late else CHUNKED + b"3\r\nyes\r\n" + body)
        with scene.client() as client:
            response = client.request(request())
            assert (response.status, response.body) == (200, b"yesok")
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"
        assert len({seen.connection for seen in upstream.requests}) == 1

    @pytest.mark.parametrize(
        "body", [b"2\nok\r\n0\r\n\r\n", b" 2\r\nok\r\n0\r\n\r\n", b"2 2\r\nok\r\n0\r\n\r\n", b"2;a b\r\nok\r\n0\r\n\r\n", b"\r\nok\r\n"]
    )
    def test_malformed_ones(self, scene, upstream, body):
        upstream.answer(CHUNKED + body)
        check_problem(scene.ask(request()), 502, "bad_response")


class TestFraming:
    @pytest.mark.parametrize(
        ("raw", "kept"),
        [
            (OK + b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", False),
            (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", False),
            (OK + b"Content-Length: 2, 2\r\n\r\nok", True),
            (OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", True),
            (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", False),
            (OK + b"X: y\nContent-Length: 2\r\n\r\nok", False),
        ],
    )
    @pytest.mark.parametrize("pieces", [True, False])
    def test_accepted(self, scene, upstream, raw, kept, pieces):
        upstream.answer([raw[:20], raw[20:]] if pieces else raw)
        with scene.client() as client:
            response = client.request(request())
            assert (response.status, response.body) == (200, b"ok")
            # One way of framing is left.
            lengths, codings = response.values(b"content-length"), response.values(b"transfer-encoding")
            assert (lengths, codings) in (([b"2"], []), ([], [b"chunked"]))
            upstream.answer(answer(b"after"))
            assert client.request(request()).body == b"after"
        connections = {seen.connection for seen in upstream.requests}
        assert len(connections) == (1 if kept else 2), "whether the connection was used again"

    @pytest.mark.parametrize(
        "lines",
        [
            b"Content-Length: 2, 3\r\n", b"Content-Length: 2\r\nContent-Length: 3\r\n", b"Content-Length: 2,\r\n", b"Content-Length: x, x\r\n",
            b"Content-Length: 2\r\nTransfer-Encoding: gzip\r\n", b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 2\r\n",
            b"Content-Length: 2, 3\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            b"X: y\n z\nContent-Length: 2\r\n", b"X\nContent-Length: 2\r\n", b"X: \0\nContent-Length: 2\r\n",
        ],
    )  # fmt: skip
    def test_refused(self, scene, upstream, lines):
        upstream.answer(OK + lines + b"\r\n2\r\nok\r\n0\r\n\r\n")
        check_problem(scene.ask(request()), 502, "bad_response")
