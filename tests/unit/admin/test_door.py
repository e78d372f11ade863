"""Who may ask the admin listener what."""

from __future__ import annotations

import json
import time

import pytest

from gateway.admin import Admin
from gateway.admin.door import WRONG_TOKEN_DELAY
from gateway.app import Gateway
from gateway.http.messages import Request, Response
from gateway.model import AccessLogSettings, AdminSettings, Config, Match, Route, ServerSettings, StaticSource, Upstream

TOKEN = "a-token-of-some-length"
PAGES = (b"/-/status", b"/-/metrics", b"/-/config")
LOOPBACK = ("127.0.0.1", 9901)


def gateway(admin: AdminSettings | None, own_prefix: str | None = "/-/") -> Gateway:
    return Gateway(
        Config(
            "v1",
            {"none": Upstream("none", StaticSource(()))},
            (Route("all", "none", (Match(prefix="/"),)),),
            server=ServerSettings(own_prefix=own_prefix),
            admin=admin,
            access_log=AccessLogSettings(path=None),
        )
    )


def listener(token: str = "", name: object = LOOPBACK) -> Admin:
    found = gateway(AdminSettings("127.0.0.1:9901", token)).admin
    assert found is not None
    found.host("", None, name)
    return found


def asked(
    target: bytes = b"/-/status", *headers: tuple[bytes, bytes], method: bytes = b"GET", host: bytes = b"localhost"
) -> Request:
    return Request(method, target, [(b"Host", host), *headers], started=time.monotonic(), peer="127.0.0.1")


def bearer(token: str) -> tuple[bytes, bytes]:
    return b"Authorization", b"Bearer " + token.encode()


def header(response: Response | None, name: bytes) -> bytes | None:
    assert response is not None
    return dict(response.headers).get(name)


# -- the token -------------------------------------------------------------------------


@pytest.mark.parametrize("target", PAGES)
def test_the_right_token_opens(target: bytes) -> None:
    response = listener(TOKEN).handle(asked(target, bearer(TOKEN)))
    assert response.status == 200
    assert header(response, b"Cache-Control") == b"no-store"
    assert response.content_length == len(response.data) > 0


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"Bearer", b"Bearer ", b"Bearer x", TOKEN.encode(), b"Basic " + TOKEN.encode(),
        b"Bearer " + TOKEN[:-1].encode(), b"Bearer " + TOKEN.encode() + b"x", b"Bearer \xff\xfe",
        b"Bearer " + TOKEN.upper().encode(), b"Bearer " + TOKEN.encode() + b", x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", [*PAGES, b"/-/", b"/-/nothing"])
def test_any_other_does_not_and_tells_nothing_of_what_there_is(value: bytes | None, target: bytes) -> None:
    headers = [] if value is None else [(b"Authorization", value)]
    response = listener(TOKEN).handle(asked(target, *headers))
    assert response.status == 401
    assert header(response, b"WWW-Authenticate") == b'Bearer realm="gateway"'
    assert header(response, b"Content-Type") == b"application/problem+json"
    assert json.loads(response.data)["reason"] == "unauthorized"
    assert TOKEN.encode() not in response.data


def test_wrong_tokens_are_delayed_and_counted() -> None:
    slept: list[float] = []
    settings = AdminSettings("127.0.0.1:9901", TOKEN)
    found = Admin(gateway(settings), settings, slept.append)
    found.host("", None, LOOPBACK)
    try:
        for wrong in (bearer("x"), (b"Authorization", b"Basic x"), bearer(TOKEN + "x")):
            assert found.handle(asked(b"/-/status", wrong)).status == 401
        assert slept == [WRONG_TOKEN_DELAY] * 3
        # Neither the right one nor none is a guess.
        assert found.handle(asked(b"/-/status")).status == 401
        answer = found.handle(asked(b"/-/status", bearer(TOKEN)))
        assert len(slept) == found.wrong_tokens == 3
        assert [one["admin"] for one in json.loads(answer.data)["workers"]] == [{"wrong_tokens": 3}]
        assert ("", "wrong_token", 3) in list(found._decided())
    finally:
        found.stop()


def test_two_tokens_are_none() -> None:
    assert listener(TOKEN).handle(asked(b"/-/status", bearer(TOKEN), bearer("x"))).status == 401


@pytest.mark.parametrize("value", [b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_schemes_case_and_spaces_do_not_matter(value: bytes) -> None:
    assert listener(TOKEN).handle(asked(b"/-/status", (b"AUTHORIZATION", value + TOKEN.encode()))).status == 200


def test_without_a_token_nobody_is_asked_for_one() -> None:
    assert listener().handle(asked()).status == 200
    assert listener().handle(asked(b"/-/status", bearer("whatever"))).status == 200


@pytest.mark.parametrize("name", [b"healthz", b"readyz"])
def test_health_needs_no_token(name: bytes) -> None:
    assert listener(TOKEN).handle(asked(b"/-/" + name)).status == 200


# -- Host ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"LOCALHOST:9901", b"localhost.", b"127.0.0.1:9901", b"[::1]", b"[::1]:1", b"10.0.0.1", b"[2001:db8::1]:80"],
)
def test_hosts_that_no_foreign_page_has(host: bytes) -> None:
    assert listener().handle(asked(host=host)).status == 200


@pytest.mark.parametrize(
    "host", [b"evil.example", b"localhost.evil.example", b"127.0.0.1.nip.io", b"x:9901", b"127.1", b"2130706433"]
)
def test_any_other_host_is_refused_on_loopback(host: bytes) -> None:
    for target in (*PAGES, b"/-/healthz", b"/x"):
        response = listener(TOKEN).handle(asked(target, bearer(TOKEN), host=host))
        assert (response.status, header(response, b"Gateway-Error")) == (421, b"misdirected")


def test_the_authority_of_an_absolute_target_counts_instead() -> None:
    assert listener().handle(asked(b"http://localhost:9901/-/status", host=b"evil.example")).status == 200
    assert listener().handle(asked(b"http://evil.example/-/status")).status == 421


@pytest.mark.parametrize("name", [("0.0.0.0", 9901), ("10.0.0.1", 9901), "/run/admin.sock", None])
def test_elsewhere_any_host_will_do(name: object) -> None:
    assert listener(TOKEN, name).handle(asked(b"/-/status", bearer(TOKEN), host=b"gw.example")).status == 200


def test_a_bad_host_is_a_bad_request() -> None:
    assert listener().handle(asked(host=b"a b")).status == 400


# -- paths and methods -----------------------------------------------------------------


@pytest.mark.parametrize("target", [b"/", b"/x", b"/-", b"/-x/status", b"/-/", b"/-/statusx", b"/-/status/", b"/x/-/status"])
def test_there_is_nothing_else(target: bytes) -> None:
    response = listener().handle(asked(target))
    assert (response.status, header(response, b"Gateway-Error")) == (404, b"no_route")


@pytest.mark.parametrize("target", [b"/-/status?x=1", b"//-/status", b"/%2d/%73tatus", b"/-//status"])
def test_other_spellings_of_a_path(target: bytes) -> None:
    assert listener().handle(asked(target)).status == 200


@pytest.mark.parametrize("target", [b"/-/../-/status", b"/-/%2e%2e/x", b"/-/status%00"])
def test_no_dots(target: bytes) -> None:
    response = listener().handle(asked(target))
    assert (response.status, header(response, b"Gateway-Error")) == (400, b"bad_path")


@pytest.mark.parametrize("target", [*PAGES, b"/-/healthz", b"/-/readyz"])
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PURGE"])
def test_there_is_nothing_to_change(method: bytes, target: bytes) -> None:
    response = listener().handle(asked(target, method=method))
    assert (response.status, header(response, b"Allow")) == (405, b"GET, HEAD")
    assert json.loads(response.data)["reason"] == "method_not_allowed"


@pytest.mark.parametrize("target", PAGES)
def test_head_is_the_same_without_a_body(target: bytes) -> None:
    response = listener().handle(asked(target, method=b"HEAD"))
    assert (response.status, response.data, response.bodyless) == (200, b"", True)
    assert response.content_length


def test_a_fault_is_an_answer() -> None:
    admin = listener()

    def broken(request: Request) -> tuple[bytes, bytes]:
        raise RuntimeError("secret")

    admin._pages[b"status"] = broken
    response = admin.handle(asked())
    assert response.status == 500
    assert b"secret" not in response.data


# -- inline ----------------------------------------------------------------------------


def through(app: Gateway, request: Request) -> Response:
    response = app.handle(request)
    assert response is not None
    return response


@pytest.mark.parametrize("own_prefix", ["/-/", "/_gw/"])
def test_inline_is_under_the_own_prefix_for_the_token_alone(own_prefix: str) -> None:
    app = gateway(AdminSettings("inline", TOKEN), own_prefix)
    target = own_prefix.encode() + b"status"
    assert through(app, asked(target, bearer(TOKEN), host=b"any.example")).status == 200
    refused = through(app, asked(target, host=b"any.example"))
    assert (refused.status, header(refused, b"WWW-Authenticate")) == (401, b'Bearer realm="gateway"')
    assert through(app, asked(target, bearer(TOKEN), method=b"POST")).status == 405
    # What there is not is told to anybody, as without admin.
    assert through(app, asked(own_prefix.encode() + b"nothing")).status == 404
    assert through(app, asked(own_prefix.encode() + b"healthz")).status == 200


@pytest.mark.parametrize("admin", [None, AdminSettings(), AdminSettings("127.0.0.1:9901", TOKEN)])
@pytest.mark.parametrize("target", [*PAGES, b"//-/status", b"/%2d/status", b"http://a.example/-/metrics"])
def test_the_data_listeners_have_none_of_it_otherwise(admin: AdminSettings | None, target: bytes) -> None:
    response = through(gateway(admin), asked(target, bearer(TOKEN)))
    assert (response.status, header(response, b"Gateway-Error")) == (404, b"no_route")


# -- other servers' workers ------------------------------------------------------------


class Accepted:
    """A connection that a server took."""

    def __init__(self, name: object) -> None:
        self._name = name

    def getsockname(self) -> object:
        return self._name


@pytest.mark.parametrize(
    ("bound", "accepted", "admin"),
    [
        (("127.0.0.1", 9901), ("127.0.0.1", 9901), True),
        (("127.0.0.1", 9901), ("127.0.0.1", 8000), False),
        (("127.0.0.1", 9901), ("10.0.0.1", 9901), False),
        (("0.0.0.0", 9901), ("10.0.0.1", 9901), True),
        (("::", 9901, 0, 0), ("2001:db8::1", 9901, 0, 0), True),
        (("0.0.0.0", 9901), ("10.0.0.1", 8000), False),
        ("/run/admin.sock", "/run/admin.sock", True),
        ("/run/admin.sock", "/run/data.sock", False),
        ("/run/admin.sock", ("127.0.0.1", 9901), False),
        (None, ("127.0.0.1", 9901), False),
    ],
)
def test_a_request_is_told_apart_by_the_accepting_socket(bound: object, accepted: object, admin: bool) -> None:
    # Nothing that a client says is looked at: SERVER_PORT and HTTP_HOST may come from Host.
    environ = {"gunicorn.socket": Accepted(accepted), "HTTP_HOST": "localhost:9901", "SERVER_PORT": "9901"}
    assert listener(name=bound).came_in(environ) is admin


def test_our_own_worker_says_it() -> None:
    assert listener().came_in({"gateway.admin": True})
    assert not listener().came_in({"HTTP_GATEWAY_ADMIN": "True", "gunicorn.socket": Accepted(("127.0.0.1", 1))})
