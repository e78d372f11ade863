"""The active span of OpenTelemetry becomes the upstream's parent (tests/integration/test_agents.py has the real one)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.messages import Headers, Request
from gateway.telemetry.active_span import propagate

TRACE = 0x0AF7651916CD43DD8448EB211C80319C


def asked(*headers: tuple[bytes, bytes]) -> Request:
    request = Request(b"GET", b"/", [(b"Host", b"a"), *headers], started=0.0)
    request.trace_id = "before"
    return request


@pytest.fixture
def span(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What OpenTelemetry would say: change it."""
    said: dict[str, Any] = {"valid": True, "carrier": {"traceparent": "00-0af7-b7ad-01"}}

    class Context:
        trace_id = TRACE

        @property
        def is_valid(self) -> bool:
            return bool(said["valid"])

    trace = SimpleNamespace(get_current_span=lambda: SimpleNamespace(get_span_context=Context))
    propagators = SimpleNamespace(
        inject=lambda carrier: carrier.update(said["carrier"]),
        get_global_textmap=lambda: SimpleNamespace(fields={"traceparent", "tracestate"}),
    )
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", trace)
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", propagators)
    return said


def test_it_takes_the_place_of_the_clients(span: dict[str, Any]) -> None:
    request = asked((b"Traceparent", b"old"), (b"TraceState", b"old"), (b"X-Other", b"1"))
    before = request.headers
    propagate(request)
    expected: Headers = [(b"Host", b"a"), (b"X-Other", b"1"), (b"traceparent", b"00-0af7-b7ad-01")]
    assert request.headers == request.fields == expected
    assert request.trace_id == f"{TRACE:032x}"
    # The parser's list may be another request's.
    assert len(before) == 4


def test_whatever_the_propagator_writes(span: dict[str, Any]) -> None:
    span["carrier"] = {"b3": "0af7-b7ad-1", "baggage": "a=1"}
    request = asked((b"B3", b"old"), (b"baggage", b"old"))
    propagate(request)
    assert request.headers == [(b"Host", b"a"), (b"b3", b"0af7-b7ad-1"), (b"baggage", b"a=1")]


def test_without_a_span(span: dict[str, Any]) -> None:
    span["valid"] = False
    request = asked((b"traceparent", b"old"))
    propagate(request)
    assert (request.headers, request.trace_id) == ([(b"Host", b"a"), (b"traceparent", b"old")], "before")


@pytest.mark.parametrize("missing", ["opentelemetry.trace", "opentelemetry.propagate"])
def test_without_opentelemetry(span: dict[str, Any], monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delitem(sys.modules, missing)
    request = asked((b"traceparent", b"old"))
    propagate(request)
    assert request.trace_id == "before"
