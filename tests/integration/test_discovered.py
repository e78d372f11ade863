"""Requests to what a registry lists: who is dialled, with which Host, and what is answered when nobody is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import gevent
import pytest
from urllib3.exceptions import LocationParseError

from gateway.app import Gateway
from gateway.model import (
    AccessLogSettings,
    Config,
    ConsulSettings,
    ConsulSource,
    DiscoverySettings,
    Endpoint,
    Match,
    Route,
    TlsSettings,
    Upstream,
)
from gateway.testing import FakeUpstream, Script, answer
from gateway.transport.pool import EndpointPool
from gateway.transport.transport import Transport


def listed(*instances: FakeUpstream) -> Script:
    entries = [
        {"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": {"ID": f"{at}", "Address": each.host, "Port": each.port}}
        for at, each in enumerate(instances)
    ]
    return answer(json.dumps(entries).encode(), b"Content-Type: application/json")


@pytest.fixture
def registry() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def start(registry: FakeUpstream) -> Iterator[Callable[[], Gateway]]:
    started: list[Gateway] = []

    def start() -> Gateway:
        upstream = Upstream("users", ConsulSource("user-svc"))
        route = Route("all", "users", (Match(prefix="/"),), host="upstream")
        discovery = DiscoverySettings(consul=ConsulSettings(address=registry.url, poll=0.05))
        started.append(
            Gateway(Config("v1", {"users": upstream}, (route,), access_log=AccessLogSettings(path=None), discovery=discovery))
        )
        started[-1].start()
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


def ask(gateway: Gateway) -> tuple[int, str]:
    """The status, and the body or the reason."""
    response = gateway.test_client().get("/x")
    return response.status_code, response.headers.get("Gateway-Error") or response.get_data(as_text=True)


def until(gateway: Gateway, *wanted: object) -> None:
    with gevent.Timeout(20, AssertionError(f"{wanted}")):
        while ask(gateway) != wanted:
            gevent.sleep(0.02)


def test_an_instance_at_ipv6(registry: FakeUpstream, start: Callable[[], Gateway]) -> None:
    with FakeUpstream(answer(b"six"), host="::1") as six:
        registry.answer(listed(six))
        assert ask(start()) == (200, "six")
        assert six.last.header(b"Host") == b"[::1]:%d" % six.port


def test_nobody_left_is_told_from_a_registry_without_an_answer(
    registry: FakeUpstream, start: Callable[[], Gateway]
) -> None:
    with FakeUpstream(answer(b"one")) as one, FakeUpstream(answer(b"two")) as two:
        registry.answer(listed(one))
        gateway = start()
        assert ask(gateway) == (200, "one")
        registry.answer(answer(b"No cluster leader", status=500))
        registry.wait(len(registry.requests) + 2)
        assert ask(gateway) == (200, "one")
        # Registered anew on another port: the old one is never asked again.
        registry.answer(listed(two))
        until(gateway, 200, "two")
        had = len(one.requests)
        assert {ask(gateway) for _ in range(20)} == {(200, "two")}
        assert len(one.requests) == had
        # Deregistered: an answer.
        registry.answer(listed())
        until(gateway, 503, "no_endpoint")
        registry.answer(listed(one))
        until(gateway, 200, "one")


def test_an_endpoint_whose_pool_cannot_be_made_fails_like_one_that_cannot_be_reached(
    registry: FakeUpstream,
    start: Callable[[], Gateway],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others answer, it is ejected, and alone it is a 502: no fault of the gateway's own."""
    real = Transport._make

    def make(transport: Transport, upstream: Upstream, endpoint: Endpoint, settings: TlsSettings | None) -> EndpointPool:
        if endpoint.port == bad.port:
            raise LocationParseError("the host cannot be dialled")
        return real(transport, upstream, endpoint, settings)

    monkeypatch.setattr(Transport, "_make", make)
    with FakeUpstream(answer(b"good")) as good, FakeUpstream(answer(b"bad")) as bad:
        registry.answer(listed(good, bad))
        gateway = start()
        client = gateway.test_client()
        posts = [client.post("/x", data=b"sent once").get_data() for _ in range(40)]
        assert set(posts) == {b"good"}
        (group,) = gateway.store.current.groups.values()
        states = {candidate.endpoint.port: candidate.state for candidate in group.candidates}
        assert (states[good.port].state, states[bad.port].state) == ("up", "ejected")
        assert "no_network_route" in states[bad.port].why
        registry.answer(listed(bad))
        until(gateway, 502, "no_network_route")
    assert "Traceback" not in caplog.text
