"""The gateway as a Flask app: its own paths, views, hooks, doors. Nothing is forwarded here:
the one upstream has no endpoint, so that a 503 no_endpoint shows that a route was taken."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from flask import Blueprint, Flask, request, signals

import gateway
from gateway.app import Gateway
from gateway.errors import ConfigError
from gateway.health.candidate import Candidate
from gateway.http.messages import Request, Response
from gateway.model import (
    AccessLogSettings,
    Config,
    Endpoint,
    Match,
    PoolSettings,
    Route,
    ServerSettings,
    StaticSource,
    Timeouts,
    TlsSettings,
    Upstream,
)


def config(**server: Any) -> Config:
    return Config(
        "v1",
        {"none": Upstream("none", StaticSource(()))},
        (Route("all", "none", (Match(prefix="/"),)),),
        server=ServerSettings(**server),
        access_log=AccessLogSettings(path=None),
    )


@pytest.fixture
def app() -> Gateway:
    return Gateway(config())


def ask(app: Gateway, target: bytes, method: bytes = b"GET", host: bytes = b"a.example") -> Response | None:
    """Through the direct door."""
    return app.handle(Request(method, target, [(b"Host", host)], started=time.monotonic(), peer="192.0.2.1"))


def reason(response: Response | None) -> str:
    assert response is not None
    return dict(response.headers).get(b"Gateway-Error", b"").decode()


def test_the_package_gives_its_names_when_asked() -> None:
    assert gateway.Gateway is Gateway
    assert gateway.create_app(config()).settings.version == "v1"
    with pytest.raises(AttributeError):
        _ = gateway.nothing  # type: ignore[attr-defined]


# -- own paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/-/healthz", "/./-/%2e/healthz", "//-/healthz", "/-//healthz", "/%2d/healthz"])
def test_healthz_on_any_host_and_spelling(app: Gateway, path: str) -> None:
    for host in (b"a.example", b"127.0.0.1"):
        response = ask(app, path.encode(), host=host)
        assert response is not None
        assert (response.status, response.data) == (200, b"ok\n")


def test_readyz_follows_draining(app: Gateway) -> None:
    ready = ask(app, b"/-/readyz")
    assert ready is not None
    assert ready.status == 200
    app.draining = True
    draining = ask(app, b"/-/readyz")
    assert draining is not None
    assert (draining.status, draining.data) == (503, b"draining\n")


@pytest.mark.parametrize("path", [b"/-", b"/-/", b"/-/nope", b"/-/status", b"http://x/-/metrics"])
def test_unknown_own_paths_are_404_and_never_forwarded(app: Gateway, path: bytes) -> None:
    assert reason(ask(app, path)) == "no_route"


def test_own_prefix_can_be_moved_or_taken_away() -> None:
    moved = Gateway(config(own_prefix="/_gw/"))
    assert reason(ask(moved, b"/-/healthz")) == "no_endpoint"
    healthz = ask(moved, b"/_gw/healthz")
    assert healthz is not None
    assert healthz.status == 200
    assert reason(ask(Gateway(config(own_prefix=None)), b"/-/healthz")) == "no_endpoint"


def test_head_on_own_paths_has_no_body(app: Gateway) -> None:
    response = ask(app, b"/-/healthz", b"HEAD")
    assert response is not None
    assert (response.data, response.content_length, response.bodyless) == (b"", 3, True)


# -- what the gateway answers itself ------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        (b"GET", b"/a/../b", "bad_path"),
        (b"GET", b"/a#b", "bad_request"),
        (b"GET", b"*", "bad_request"),
        (b"TRACE", b"/", "unsupported_method"),
        (b"CONNECT", b"/", "unsupported_method"),
        (b"BREW", b"/", "no_endpoint"),
        (b"get", b"/", "no_endpoint"),
    ],
)
def test_refusals(app: Gateway, method: bytes, target: bytes, expected: str) -> None:
    assert reason(ask(app, target, method)) == expected


def test_options_asterisk_is_the_gateways(app: Gateway) -> None:
    response = ask(app, b"*", b"OPTIONS")
    assert response is not None
    assert (response.status, response.data) == (204, b"")


def test_max_forwards_0_ends_here(app: Gateway) -> None:
    asked = Request(b"OPTIONS", b"/x", [(b"Host", b"a"), (b"Max-Forwards", b"0")], started=0.0, peer="192.0.2.1")
    response = app.handle(asked)
    assert response is not None
    assert response.status == 204


def test_a_request_without_host_goes_to_routes_without_a_host(app: Gateway) -> None:
    asked = Request(b"GET", b"/x", [], started=0.0, http11=False, peer="192.0.2.1")
    assert reason(app.handle(asked)) == "no_endpoint"


def test_a_fault_of_our_own_is_a_500_that_tells_nothing(app: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    app.store.current = None  # type: ignore[assignment]
    response = ask(app, b"/x")
    assert response is not None
    assert response.status == 500
    assert json.loads(response.data)["reason"] == "internal_error"
    assert b"NoneType" not in response.data
    assert "NoneType" in caplog.text


# -- Flask --------------------------------------------------------------------------------


def test_through_the_test_client(app: Gateway) -> None:
    client = app.test_client()
    assert client.get("/-/healthz").data == b"ok\n"
    response = client.get("/x?y")
    assert response.status_code == 503
    assert response.headers["Gateway-Error"] == "no_endpoint"
    assert response.get_json()["reason"] == "no_endpoint"
    assert response.content_type == "application/problem+json"


def test_an_http_1_1_request_without_host_is_refused_at_the_wsgi_door(app: Gateway) -> None:
    response = app.test_client().get("/x", environ_overrides={"HTTP_HOST": ""})
    assert response.status_code == 400
    assert response.headers["Gateway-Error"] == "bad_request"


def test_views_come_before_routes_and_after_own_paths(app: Gateway) -> None:
    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        return f"hello {name}"

    pages = Blueprint("pages", "pages", url_prefix="/pages")

    @pages.route("/one")
    def one() -> str:
        return request.headers["X-Seen"]

    app.register_blueprint(pages)
    client = app.test_client()
    assert client.get("/hello/you").data == b"hello you"
    assert client.get("/hello/%C3%A9").data == "hello é".encode()
    assert client.get("/pages/one", headers={"X-Seen": "yes"}).data == b"yes"
    assert client.post("/hello/you").headers["Gateway-Error"] == "no_endpoint"
    assert client.get("/other").headers["Gateway-Error"] == "no_endpoint"
    assert client.get("/-/healthz").data == b"ok\n"
    # The direct door leaves them to Flask, and only them.
    assert ask(app, b"/hello/you") is None
    assert ask(app, b"/hello/%79ou") is None
    assert ask(app, b"/other") is not None
    assert app.direct_door() is None


@pytest.mark.parametrize("hooked", [False, True])
def test_single_dots_do_not_lead_past_a_view(app: Gateway, hooked: bool) -> None:
    """Flask takes `.` for a name, the upstream behind the routes may not."""

    @app.get("/view")
    def view() -> str:
        return "view"

    if hooked:
        app.before_request(lambda: None)
    for path, expected in (("/./view", "bad_path"), ("/%2e/view", "bad_path"), ("/./x", "no_endpoint"), ("/view/.", "bad_path")):
        response = app.test_client().get(path, environ_overrides={"RAW_URI": path})
        assert response.headers["Gateway-Error"] == expected, path
        if not hooked:
            assert reason(ask(app, path.encode())) == expected


@pytest.mark.parametrize("host", [b"a" * 64, b"a." + b"b" * 64 + b".example", b"c" * 300 + b":80"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_host_that_flask_cannot_read(app: Gateway, host: bytes, hooked: bool) -> None:
    """A label has 63 bytes at most (RFC 1035 §2.3.4). It is a bad request as soon as there is a view."""
    assert reason(ask(app, b"/x", host=host)) == "no_endpoint"

    @app.get("/view")
    def view() -> str:
        return "view"

    if hooked:
        app.before_request(lambda: None)
    for path in ("/x", "/view"):
        response = app.test_client().get(path, environ_overrides={"HTTP_HOST": host.decode()})
        assert (response.status_code, response.headers["Gateway-Error"]) == (400, "bad_request")
        if not hooked:
            assert reason(ask(app, path.encode(), host=host)) == "bad_request"
    assert app.test_client().get("/view", headers={"Host": "a" * 63}).data == b"view"


def test_hooks_run_for_forwarded_requests_too(app: Gateway) -> None:
    seen: list[str] = []

    @app.before_request
    def before() -> None:
        seen.append(request.path)

    @app.after_request
    def after(response: Any) -> Any:
        response.headers["X-Hook"] = "1"
        return response

    response = app.test_client().get("/forwarded")
    assert response.headers["Gateway-Error"] == "no_endpoint"
    assert response.headers["X-Hook"] == "1"
    assert seen == ["/forwarded"]
    assert app.direct_door() == "request hooks are registered"
    assert ask(app, b"/forwarded") is None


def test_a_hook_may_answer(app: Gateway) -> None:
    @app.before_request
    def before() -> tuple[str, int]:
        return "stop", 418

    assert app.test_client().get("/x").status_code == 418


@pytest.mark.parametrize(
    ("own_prefix", "answered"), [("/-/", {"/-/healthz", "/-/readyz"}), ("/gw/", {"/gw/healthz", "/gw/readyz"}), (None, set())]
)
def test_a_hook_does_not_stand_in_front_of_health(own_prefix: str | None, answered: set[str]) -> None:
    app = Gateway(config(own_prefix=own_prefix))
    app.before_request(lambda: ("stop", 418))
    asked = [f"{prefix}{name}" for prefix in ("/-/", "/gw/", "/") for name in ("healthz", "readyz", "status", "")]
    client = app.test_client()
    # Without providers that run, it is not ready.
    assert {path for path in asked if client.get(path).status_code in (200, 503)} == answered
    assert client.post("/x").status_code == 418
    # What is no target is refused as it was before.
    assert client.get("/x", environ_overrides={"RAW_URI": "x y"}).status_code in (400, 418)


def test_a_signals_receiver_closes_the_direct_door(app: Gateway) -> None:
    def receiver(sender: Flask, **extra: Any) -> None:
        seen.append(sender)

    seen: list[Flask] = []
    with signals.request_started.connected_to(receiver):
        assert app.direct_door() == "the signal request-started has receivers"
        assert ask(app, b"/x") is None
        app.test_client().get("/x")
    assert seen == [app]
    assert app.direct_door() is None


@pytest.fixture
def wrapped() -> Gateway:
    app = Gateway(config())
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start: inner(environ, start)  # type: ignore[method-assign]
    return app


def test_a_middleware_closes_the_direct_door(wrapped: Gateway) -> None:
    assert wrapped.direct_door() == f"wsgi_app was replaced by {__name__}"


def test_request_ids_are_unique(app: Gateway) -> None:
    ids = set()
    for _ in range(100):
        asked = Request(b"GET", b"/", [(b"Host", b"a")], started=0.0, peer="192.0.2.1")
        app.handle(asked)
        ids.add(asked.request_id)
    assert len(ids) == 100
    assert {len(one) for one in ids} == {32}


def test_the_name_tells_gateways_of_one_host_apart() -> None:
    names = set()
    for bind in ("http://127.0.0.1:8000", "http://127.0.0.1:8001", "http://127.0.0.1:8000"):
        app = Gateway(config())
        app.start(0, bind)
        app.stop()
        asked = Request(b"GET", b"/", [(b"Host", b"a")], started=0.0, peer="192.0.2.1")
        head = app._outbound.head(asked, b"/", b"a", b"a").data
        names.add(head.partition(b"Via: 1.1 ")[2].split(b"\r\n")[0])
    assert len(names) == 2
    assert all(len(name) == 11 and name.startswith(b"gw-") for name in names)
    app = Gateway(config(name="edge"))
    app.start(0, "http://127.0.0.1:8000")
    app.stop()
    assert b"Via: 1.1 edge\r\n" in app._outbound.head(asked, b"/", b"a", b"a").data


def test_views_and_refusals_are_logged_once(app: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        app,
        "finish",
        lambda asked, response, sent, error: told.append((asked.target.decode(), response.status, sent)),
    )

    @app.get("/view")
    def view() -> str:
        return "seen"

    client = app.test_client()
    client.get("/view", buffered=True)
    assert told == [("/view", 200, 4)]
    client.get("/forwarded", buffered=True)
    assert told[1][:2] == ("/forwarded", 503)
    app.before_request_funcs.setdefault(None, []).append(lambda: None)
    client.get("/view", buffered=True)
    client.get("/forwarded", buffered=True)
    assert [(target, status) for target, status, _ in told[2:]] == [("/view", 200), ("/forwarded", 503)]


# -- another configuration ----------------------------------------------------------------


ONE = Endpoint("http", "192.0.2.1", 80)
TWO = Endpoint("http", "192.0.2.2", 80)


def serving(version: str, *endpoints: Endpoint, **upstream: Any) -> Config:
    return Config(
        version,
        {"main": Upstream("main", StaticSource(endpoints), **upstream)},
        (Route("all", "main", (Match(prefix="/"),)),),
        access_log=AccessLogSettings(path=None),
    )


def candidates(app: Gateway) -> tuple[Candidate, ...]:
    return app.store.current.groups["main"].candidates


def test_pools_and_states_survive_for_what_stays_and_go_with_what_goes() -> None:
    app = Gateway(serving("v1", ONE, TWO))
    one, two = candidates(app)
    pools = one.pool, two.pool
    two.state.in_flight = 1
    app.reconfigure(serving("v2", ONE, timeouts=Timeouts(idle=1.0)))
    (kept,) = candidates(app)
    assert (kept.pool, kept.state) == (pools[0], one.state)
    assert [pool.retired for pool in pools] == [False, True]
    # Back again while its last request is under way: what is known of it is still known.
    app.reconfigure(serving("v3", ONE, TWO))
    assert candidates(app)[1].state is two.state
    assert candidates(app)[1].pool is not pools[1]
    app.reconfigure(serving("v4", ONE))
    two.state.end()
    app._forget(app.store.current)
    app.reconfigure(serving("v5", ONE, TWO))
    assert candidates(app)[1].state is not two.state


def test_an_upstream_that_is_gone_leaves_nothing() -> None:
    app = Gateway(serving("v1", ONE))
    (one,) = candidates(app)
    pool = one.pool
    one.state.in_flight = 1
    app.reconfigure(config())
    assert pool.retired
    assert "main" in app._states
    one.state.end()
    app._forget(app.store.current)
    assert "main" not in app._states
    assert not app.transport._by_endpoint


def test_an_old_snapshots_first_look_at_a_pool() -> None:
    app = Gateway(serving("v1", ONE, TWO))
    one, two = candidates(app)
    app.reconfigure(serving("v2", ONE, pool=PoolSettings(max_idle=7)))
    # The newer settings for what stays; a pool that is not kept for what is gone.
    assert one.pool is candidates(app)[0].pool
    assert one.pool._settings.max_idle == 7
    assert two.pool.retired
    assert len(app.transport._by_endpoint) == 1


def test_pools_of_endpoints_that_were_never_used_are_never_made() -> None:
    app = Gateway(serving("v1", ONE, TWO))
    app.reconfigure(serving("v2", TWO))
    assert not app.transport._by_endpoint
    assert candidates(app)[0].pool is candidates(app)[0].pool
    assert len(app.transport._by_endpoint) == 1


def test_what_a_process_keeps_for_life_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = Gateway(config())
    for version in ("v2", "v3"):
        newer = replace(config(own_prefix="/_gw/"), version=version)
        app.reconfigure(newer)
        assert app.store.current.version == version
        assert app.store.config.server.own_prefix == "/-/"
    assert caplog.text.count("changed and in force after the next SIGHUP or restart: server") == 1


def test_the_status_of_the_configuration() -> None:
    app = Gateway(config())
    assert (app.config_status.version, app.config_status.error) == ("v1", "")
    app.trouble("file:1:2: nope")
    assert (app.config_status.version, app.config_status.error) == ("v1", "file:1:2: nope")
    assert app.config_status.error_at is not None
    app.trouble("")
    assert (app.config_status.error, app.config_status.error_at) == ("", None)
    app.trouble("file:1:2: nope")
    app.reconfigure(replace(config(), version="v2"))
    assert (app.config_status.version, app.config_status.error) == ("v2", "")


def test_tls_that_cannot_be_had_changes_nothing() -> None:
    app = Gateway(serving("v1", ONE))
    bad = TlsSettings(ca="/nonexistent.pem")
    with pytest.raises(ConfigError):
        app.reconfigure(serving("v2", replace(ONE, scheme="https"), scheme="https", tls=bad))
    assert app.store.current.version == "v1"
    app.reconfigure(serving("v3", replace(ONE, scheme="https"), scheme="https", tls=TlsSettings()))
    assert len(app.transport._contexts) == 1
    app.reconfigure(serving("v4", ONE))
    assert not app.transport._contexts
