"""The access log: one record a request, every field with what is true of it."""

from __future__ import annotations

from gateway.testing import answer
from tests.conformance.harness import request

SCENE = "standard"
FIELDS = ["time", "request_id", "trace_id", "client", "method", "host", "target", "route", "upstream", "endpoint", "status", "reason",
          "cause", "bytes_in", "bytes_out", "duration_ms", "queue_ms", "connect_ms", "first_byte_ms", "attempts", "reused", "worker",
          "config_version"]  # fmt: skip


def test_a_record(scene, upstream):
    upstream.answer([0.02, answer(b"hello", status=201)])
    target = b"/logged?token=secret&a=b"
    scene.ask(request(target, method=b"POST", body=b"abc"))
    record = scene.gateway.logged("/logged?token=***&a=b")
    assert list(record) == FIELDS
    told = {key: record[key] for key in ("client", "method", "host", "route", "upstream", "endpoint", "status", "reason", "cause")}
    assert told == {"client": "127.0.0.1", "method": "POST", "host": "example.test", "route": "main", "upstream": "main",
                    "endpoint": upstream.authority, "status": 201, "reason": None, "cause": None}  # fmt: skip
    assert (record["bytes_in"], record["bytes_out"], record["attempts"], record["worker"]) == (3, 5, 1, 0)
    assert record["request_id"].encode() == upstream.last.header(b"x-request-id")
    assert 20 <= record["first_byte_ms"] <= record["duration_ms"]


def test_reuse_and_chunked_bytes(scene, upstream):
    scene.ask(request(b"/reuse-1"))
    scene.ask(request(b"/reuse-2", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nhello\r\n0\r\n\r\n")
    record = scene.gateway.logged("/reuse-2")
    assert (record["reused"], record["bytes_in"], record["connect_ms"]) == (True, 5, 0)


def test_own_paths_are_logged_without_a_route(scene):
    scene.ask(request(b"/-/healthz?logged"))
    record = scene.gateway.logged("/-/healthz?logged")
    assert (record["status"], record["route"], record["upstream"], record["attempts"]) == (200, None, None, 0)
