"""Which requests may become a tunnel: `upgrades.protocol`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.messages import Request, RequestBody
from gateway.http.upgrades import protocol
from gateway.model import WEBSOCKET

OTHERS = frozenset({b"spdy/3.1", b"tcp"})
BOTH = OTHERS | WEBSOCKET


class Body(RequestBody):
    def read(self, most: int = 0) -> bytes:
        return b""


def request(
    *fields: tuple[bytes, bytes], method: bytes = b"POST", upgrade: bytes | None = None, http11: bool = True, **more: object
) -> Request:
    """As a door makes it. `upgrade`: the token that the parser found."""
    return Request(
        method, b"/exec", list(fields), 0.0, http11=http11, upgrade=upgrade, interim=(lambda *_: None) if http11 else None, **more
    )  # type: ignore[arg-type]


ASK = (b"Connection", b"Upgrade")


def test_what_the_parser_found() -> None:
    """A GET with a token: as the client spelled it, if it is allowed; nothing else is looked at."""
    assert protocol(request(upgrade=b"websocket", method=b"GET"), WEBSOCKET) == b"websocket"
    assert protocol(request(upgrade=b"websocket", method=b"GET"), BOTH) == b"websocket"
    assert protocol(request(upgrade=b"tcp", method=b"GET"), BOTH) == b"tcp"
    assert protocol(request(upgrade=b"websocket", method=b"GET"), OTHERS) is None
    assert protocol(request(upgrade=b"h2c", method=b"GET"), BOTH) is None
    assert protocol(request(upgrade=b"websocket", method=b"GET"), frozenset()) is None


@pytest.mark.parametrize("method", [b"POST", b"GET", b"PUT", b"OPTIONS", b"X-MINE"])
@pytest.mark.parametrize(
    ("value", "found"),
    [(b"SPDY/3.1", b"SPDY/3.1"), (b"spdy/3.1", b"spdy/3.1"), (b" tcp\t", b"tcp"), (b"TCP", b"TCP")],
)
def test_what_a_route_allows_by_any_method(method: bytes, value: bytes, found: bytes) -> None:
    assert protocol(request(ASK, (b"Upgrade", value), method=method), OTHERS) == found
    assert protocol(request((b"UPGRADE", value), (b"connection", b"keep-alive, upgrade"), method=method), BOTH) == found


@pytest.mark.parametrize(
    "value", [b"", b" ", b"SPDY", b"SPDY/3", b"SPDY/3.10", b"SPDY/3.1/2", b"SPDY/3.1, tcp", b"tcp tcp", b"tcp\x0b", b"tcp;q=1", b"/", b"h2c"]
)
def test_one_protocol_that_is_named_exactly(value: bytes) -> None:
    assert protocol(request(ASK, (b"Upgrade", value)), OTHERS) is None


@pytest.mark.parametrize("value", [b"websocket", b"WebSocket"])
def test_a_websocket_is_found_by_the_parser_alone(value: bytes) -> None:
    """RFC 6455 §4.1: a GET, which the parser would have reported."""
    assert protocol(request(ASK, (b"Upgrade", value)), BOTH) is None


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Upgrade", b"tcp")],
        [(b"Upgrade", b"tcp"), (b"Connection", b"keep-alive")],
        [(b"Upgrade", b"tcp"), (b"Connection", b"upgraded")],
        [ASK],
        [ASK, (b"Upgrade", b"tcp"), (b"Upgrade", b"tcp")],
        [ASK, (b"Upgrade", b"tcp"), (b"Upgrade", b"SPDY/3.1")],
        [ASK, (b"Upgrade ", b"tcp")],
    ],
)  # fmt: skip
def test_both_fields_and_one_upgrade(fields: list[tuple[bytes, bytes]]) -> None:
    assert protocol(request(*fields), OTHERS) is None


def test_one_of_several_connection_fields_is_enough() -> None:
    assert protocol(request((b"Connection", b"close"), ASK, (b"Upgrade", b"tcp")), OTHERS) == b"tcp"


@pytest.mark.parametrize(
    "more", [{"body": Body()}, {"content_length": 1}, {"chunked": True}, {"body": Body(), "content_length": 3}]
)
def test_never_with_a_body(more: dict[str, object]) -> None:
    assert protocol(request(ASK, (b"Upgrade", b"tcp"), **more), OTHERS) is None


def test_an_empty_body_is_none() -> None:
    """docker and kubectl send Content-Length: 0."""
    assert protocol(request(ASK, (b"Upgrade", b"tcp"), content_length=0), OTHERS) == b"tcp"


def test_only_where_a_tunnel_can_be_made() -> None:
    """HTTP/1.0, and doors that hand no socket over, have no way to send 1xx."""
    assert protocol(request(ASK, (b"Upgrade", b"tcp"), http11=False), OTHERS) is None


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_what_is_found_is_allowed_and_stands_in_the_request(upgrade: bytes, connection: bytes) -> None:
    found = protocol(request((b"Connection", connection), (b"Upgrade", upgrade)), OTHERS)
    assert found is None or (found.lower() in OTHERS and found in upgrade)
