"""Who is noticed at the doors: middlewares, subclasses, agents by transparent proxies, patches made before ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flask
import pytest

from gateway.app import Gateway
from gateway.flask_door import FlaskDoor
from gateway.server import instrumented
from gateway.server.instrumented import STEPS, author, wrapper
from tests.unit.test_app import ask, config


class Proxy:
    """What wrapt's pure Python makes: it passes for what it wraps."""

    def __init__(self, wrapped: Any, wrapper: Callable[..., Any]) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)
        object.__setattr__(self, "_self_wrapper", wrapper)

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(self.__wrapped__)

    @property
    def __module__(self) -> str:  # type: ignore[override]
        return self.__wrapped__.__module__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __get__(self, instance: Any, owner: type) -> Any:
        bound = self.__wrapped__.__get__(instance, owner)
        return lambda *given: self._self_wrapper(bound, *given)

    def __call__(self, *given: Any) -> Any:
        return self._self_wrapper(self.__wrapped__, *given)


def agent(wrapped: Callable[..., Any], *given: Any) -> Any:
    seen.append("agent")
    return wrapped(*given)


seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@pytest.fixture
def app() -> Gateway:
    return Gateway(config())


def test_nothing_is_replaced_as_it_is(app: Gateway) -> None:
    assert app.direct_door() is None
    assert wrapper(app) == ""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("owner", [Gateway, FlaskDoor, flask.Flask])
def test_a_patched_class_closes_the_direct_door(
    app: Gateway, monkeypatch: pytest.MonkeyPatch, step: str, owner: type
) -> None:
    monkeypatch.setattr(owner, step, lambda self, *given: None, raising=False)
    assert app.direct_door() == f"{step} was replaced by {__name__}"


@pytest.mark.parametrize("step", ["__call__", "wsgi_app", "full_dispatch_request", "preprocess_request"])
def test_a_transparent_proxy_that_was_there_first(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """An agent has patched Flask before the gateway was imported: what is there then is no original."""
    monkeypatch.setattr(flask.Flask, step, Proxy(getattr(flask.Flask, step), agent))
    app = Gateway(config())
    assert app.direct_door() == f"{step} was replaced by {__name__}"
    assert app.test_client().get("/x").headers["Gateway-Error"] == "no_endpoint"
    assert seen == ["agent"]


def test_a_decorated_function_that_passes_for_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    original = flask.Flask.wsgi_app

    @functools.wraps(original)
    def traced(*given: Any) -> Any:
        return agent(original, *given)

    monkeypatch.setattr(flask.Flask, "wsgi_app", traced)
    app = Gateway(config())
    assert app.direct_door() == f"wsgi_app was replaced by {__name__}"
    app.test_client().get("/x")
    assert seen == ["agent"]


def test_a_subclass_that_overrides_a_step_sees_what_is_forwarded() -> None:
    class Mine(Gateway):
        def full_dispatch_request(self) -> Any:
            seen.append("mine")
            return super().full_dispatch_request()

    app = Mine(config())
    assert app.direct_door() == f"full_dispatch_request was replaced by {__name__}"
    assert app.test_client().get("/x").headers["Gateway-Error"] == "no_endpoint"
    assert seen == ["mine"]


def test_a_middleware_alone_does_not_send_requests_through_flask(app: Gateway) -> None:
    app.wsgi_app = Proxy(app.wsgi_app, agent)  # type: ignore[method-assign]
    assert app.direct_door() == f"wsgi_app was replaced by {__name__}"
    assert app._inside is None
    app.test_client().get("/x")
    assert seen == ["agent"]


def test_a_proxy_around_the_app(app: Gateway) -> None:
    wrapped = Proxy(app, agent)
    assert isinstance(wrapped, Gateway)
    assert ask(wrapped, b"/x") is not None  # type: ignore[arg-type]
    assert wrapper(wrapped) == __name__


def test_authors() -> None:
    assert author(agent) == __name__
    assert author(functools.partial(agent)) == "functools"
    assert author(Gateway(config()).handle) == "gateway.flask_door"
    assert author(Proxy(Gateway.handle, agent)) == __name__


def test_every_step_is_one_of_flasks() -> None:
    for step in instrumented.STEPS:
        assert callable(getattr(flask.Flask, step))
