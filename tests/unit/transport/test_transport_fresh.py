"""What health checks go by: a connection like the pool's, made without one; and the TLS contexts behind it."""

from __future__ import annotations

import pytest

from gateway.model import Endpoint, StaticSource, TlsSettings, Upstream
from gateway.testing import FakeUpstream, answer
from gateway.transport import Transport, probe
from gateway.transport.pool import EndpointPool

PLAIN = Upstream("u", StaticSource(()))
SECURE = Upstream("u", StaticSource(()), scheme="https", tls=TlsSettings())
NAMED = Upstream("u", StaticSource(()), scheme="https", tls=TlsSettings(server_name="n.example"))
TRUSTING = Upstream("u", StaticSource(()), scheme="https", tls=TlsSettings(verify=False))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2001:db8::1"])
@pytest.mark.parametrize("name", [None, "localhost"])
@pytest.mark.parametrize("upstream", [PLAIN, SECURE, NAMED, TRUSTING], ids=["plain", "tls", "named", "trusting"])
def test_a_fresh_connection_is_made_like_the_pool_s(upstream: Upstream, host: str, name: str | None) -> None:
    transport = Transport(b"")
    endpoint = Endpoint(upstream.scheme, host, 8443, server_name=name)
    fresh = transport.fresh(upstream, endpoint)
    pooled = transport.pool(upstream, endpoint)._new_conn()
    assert type(fresh) is type(pooled)
    assert vars(fresh) == vars(pooled)


def test_checks_make_no_pool_and_one_connection_each(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    real = EndpointPool.__init__

    def count(self: EndpointPool, *given: object, **settings: object) -> None:
        made.append(self)
        real(self, *given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(EndpointPool, "__init__", count)
    transport = Transport(b"")
    with FakeUpstream() as upstream:
        upstream.answer(answer(b"ok"))
        endpoint = Endpoint("http", "127.0.0.1", upstream.port)
        question = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        for _ in range(5):
            assert probe.ask(transport, PLAIN, endpoint, question, 5.0) == 200
        assert [request.connection for request in upstream.requests] == [0, 1, 2, 3, 4]
    assert made == []
    assert transport._by_endpoint == {}


def test_contexts_are_made_apart_and_adopted_later() -> None:
    transport = Transport(b"")
    made = transport.contexts([PLAIN, TRUSTING])
    assert transport.known_contexts == frozenset()
    transport.adopt(made)
    assert transport.known_contexts == made.keys()
    assert transport.contexts([PLAIN, TRUSTING], transport.known_contexts) == {}
    # One that is in use is not exchanged for another.
    again = transport.contexts([TRUSTING])
    transport.adopt(again)
    assert transport._contexts == made
    assert transport._contexts != again
    transport.prune([PLAIN])
    assert transport.known_contexts == frozenset()
