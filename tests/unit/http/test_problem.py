"""What a client is told when the gateway itself answers."""

from __future__ import annotations

import json

import pytest

from gateway import errors
from gateway.http import problem
from gateway.http.messages import Request, Response

SECRET = "dial 10.0.0.9:8080 refused after 3 ms in /srv/gateway/forwarder.py"
ANSWERED = [cls for cls in errors.reasons().values() if not issubclass(cls, errors.ClientClosed)]


def every(cls: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
    return [cls, *(below for sub in cls.__subclasses__() for below in every(sub))]


def asked(method: bytes = b"GET") -> Request:
    request = Request(method, b"/secret-path?x=1", [(b"Host", b"a.example")], started=0.0, peer="192.0.2.1")
    request.request_id = b"id-1"
    request.cause = SECRET
    return request


def header(response: Response, name: bytes) -> list[bytes]:
    return [value for field, value in response.headers if field.lower() == name]


@pytest.mark.parametrize("cls", ANSWERED, ids=lambda cls: cls.reason)
def test_every_reason_has_a_whole_answer(cls: type[errors.GatewayError]) -> None:
    response = problem.answer(cls(SECRET), asked())
    assert response.status == cls.status
    assert response.reason == problem.phrase(cls.status).encode()
    assert header(response, b"content-type") == [b"application/problem+json"]
    assert header(response, b"gateway-error") == [cls.reason.encode()]
    assert header(response, b"cache-control") == [b"no-store"]
    assert response.content_length == len(response.data) > 0
    assert not response.bodyless
    assert response.stream is None
    assert response.tunnel is None
    assert json.loads(response.data) == {
        "type": "about:blank",
        "title": problem.phrase(cls.status),
        "status": cls.status,
        "detail": cls.detail,
        "reason": cls.reason,
        "request_id": "id-1",
    }
    assert list(json.loads(response.data)) == ["type", "title", "status", "detail", "reason", "request_id"]


@pytest.mark.parametrize("cls", every(errors.GatewayError), ids=lambda cls: cls.__name__)
def test_no_answer_tells_the_cause_or_repeats_the_request(cls: type[errors.GatewayError]) -> None:
    response = problem.answer(cls(SECRET), asked())
    sent = response.data + response.reason + b"".join(name + value for name, value in response.headers)
    for word in (b"10.0.0.9", b"8080", b"dial", b"forwarder", b"secret-path", b"192.0.2.1"):
        assert word not in sent
    # Framing is the door's.
    names = {name.lower() for name, _ in response.headers}
    assert not names & {b"content-length", b"transfer-encoding", b"connection"}


@pytest.mark.parametrize("cls", ANSWERED, ids=lambda cls: cls.reason)
def test_head_gets_the_headers_only(cls: type[errors.GatewayError]) -> None:
    full = problem.answer(cls(SECRET), asked())
    head = problem.answer(cls(SECRET), asked(b"HEAD"))
    assert head.data == b""
    assert head.bodyless
    assert (head.status, head.headers, head.content_length) == (full.status, full.headers, len(full.data))


def test_a_method_that_only_looks_like_head_gets_a_body() -> None:
    assert problem.answer(errors.NoRoute(), asked(b"head")).data


@pytest.mark.parametrize("cls", [errors.ClientClosed, errors.WriteTimeout])
def test_a_client_that_is_gone_gets_nothing(cls: type[errors.GatewayError]) -> None:
    response = problem.answer(cls(SECRET), asked())
    assert (response.status, response.data, response.headers, response.close) == (499, b"", [], True)


def test_without_a_request_the_answer_is_whole_all_the_same() -> None:
    response = problem.answer(errors.BadRequest(SECRET), None)
    assert json.loads(response.data)["request_id"] == ""
    assert response.content_length == len(response.data)


def test_more_headers_are_added() -> None:
    response = problem.answer(errors.RateLimited(), asked(), [(b"Retry-After", b"3"), (b"X-Request-Id", b"id-1")])
    assert header(response, b"retry-after") == [b"3"]
    assert header(response, b"x-request-id") == [b"id-1"]
    assert header(response, b"gateway-error") == [b"rate_limited"]
    assert problem.answer(errors.RateLimited(), asked()).headers is not response.headers


def test_a_method_that_is_not_forwarded_comes_with_those_that_are() -> None:
    """RFC 9110 §15.5.6."""
    for request in (asked(b"TRACE"), None):
        response = problem.answer(errors.UnsupportedMethod(), request)
        assert response.status == 405
        assert header(response, b"allow") == [b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"]


@pytest.mark.parametrize("request_id", [b'"},{"x":"', b"\xff\x00\n", b"\\"])
def test_a_hostile_request_id_stays_a_string(request_id: bytes) -> None:
    request = asked()
    request.request_id = request_id
    response = problem.answer(errors.NoRoute(), request)
    assert json.loads(response.data)["request_id"] == request_id.decode("latin-1")
    assert response.data.isascii()


@pytest.mark.parametrize(
    ("cls", "close"),
    [
        (errors.BadRequest, True),
        (errors.RequestTimeout, True),
        (errors.UriTooLong, True),
        (errors.HeaderTooLarge, True),
        (errors.UnsupportedVersion, True),
        (errors.UnsupportedCoding, True),
        (errors.NoRoute, False),
        (errors.BadPath, False),
        (errors.UnsupportedMethod, False),
        (errors.NoEndpoint, False),
        (errors.ConnectRefused, False),
        (errors.ResponseTimeout, False),
        (errors.GatewayError, False),
    ],
)
def test_the_connection_ends_where_the_next_request_cannot_be_found(
    cls: type[errors.GatewayError], close: bool
) -> None:
    assert problem.answer(cls(), asked()).close is close


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (404, "Not Found"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (416, "Range Not Satisfiable"),
        (421, "Misdirected Request"),
        (422, "Unprocessable Content"),
        (431, "Request Header Fields Too Large"),
        (499, "Client Closed Request"),
        (504, "Gateway Timeout"),
        (505, "HTTP Version Not Supported"),
        (508, "Loop Detected"),
        (299, "OK"),
        (477, "Bad Request"),
        (599, "Internal Server Error"),
    ],
)
def test_phrases_are_those_of_rfc_9110(status: int, phrase: str) -> None:
    assert problem.phrase(status) == phrase
