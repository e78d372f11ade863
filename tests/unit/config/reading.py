"""Short ways to read a document in a test. Documents are called `f`."""

from __future__ import annotations

from textwrap import dedent, indent

import pytest

from gateway import config
from gateway.errors import ConfigError
from gateway.model import Config, Route, Upstream


def read(text: str, **environ: str) -> Config:
    return config.loads(dedent(text).encode(), "f", environ)


def mistakes(text: str, **environ: str) -> list[str]:
    """What is told of a document that must not be accepted, line by line."""
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    told = str(caught.value).split("\n")
    assert len(told) == len(caught.value.mistakes)
    return told


def mistake(text: str, **environ: str) -> str:
    """The one thing that is wrong with a document."""
    told = mistakes(text, **environ)
    assert len(told) == 1, told
    return told[0]


def at(text: str, what: str) -> str:
    """Where `what` begins in a document, as messages say it."""
    before = text[: text.index(what)]
    line_start = before.rfind("\n") + 1
    return f"f:{before.count(chr(10)) + 1}:{len(before) - line_start + 1}"


def server(text: str) -> str:
    return "version: 1\nserver:\n" + indent(dedent(text), "  ")


def with_upstream(text: str) -> str:
    """A document whose one upstream `u` is given in flow style or as a block, and is used."""
    return f"version: 1\nupstreams:\n  u: {text}\nroutes:\n  - {{name: r, upstream: u}}\n"


def with_route(text: str, **more: str) -> str:
    """A document with an upstream `u` and routes `r`, … that lead there, in flow style."""
    routes = {"r": text, **more}
    lines = "".join(f"  - {{name: {name}, upstream: u, {given}}}\n" for name, given in routes.items())
    return f"version: 1\nupstreams:\n  u: {{endpoints: [http://10.0.0.1:80]}}\nroutes:\n{lines}"


def upstream(text: str, **environ: str) -> Upstream:
    return read(with_upstream(text), **environ).upstreams["u"]


def route(text: str, **environ: str) -> Route:
    return read(with_route(text), **environ).routes[0]
