"""Warnings: what is legal but unwise."""

from __future__ import annotations

import pytest

from gateway.config.advice import ADVICE
from tests.unit.config.reading import at, read, server, with_route, with_upstream


def warnings(text: str, **environ: str) -> list[str]:
    return list(read(text, **environ).warnings)


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\n",
        with_route("match: {methods: [GET, HEAD]}"),
        with_route("match: {methods: [POST]}"),
        with_upstream("{endpoints: [https://10.0.0.1]}"),
        with_upstream("{endpoints: [https://a], host: upstream}"),
        with_upstream("{endpoints: [http://a]}"),
        server("drain: 24s"),
        server("{drain: 0, graceful: 1s}"),
    ],
)
def test_nothing_to_warn_of(text: str) -> None:
    assert warnings(text) == []


def test_get_without_head() -> None:
    text = with_route("match: [{path: /a}, {methods: [GET, POST]}]")
    assert warnings(text) == [
        f"{at(text, '[GET')}: routes[0].match[1].methods: has GET without HEAD: a HEAD finds no route here"
    ]


def test_a_header_that_is_dropped() -> None:
    text = with_route("match: {headers: {X_A: 1}}")
    assert warnings(text) == [
        f"{at(text, '{X_A')}: routes[0].match.headers: x_a never matches: header names with _ are dropped"
    ]


def test_the_client_s_host_over_tls() -> None:
    text = with_upstream("{endpoints: [http://a, https://b, 'https://[::1]']}")
    assert warnings(text) == [
        f"{at(text, 'https://b')}: upstreams.u.endpoints[1]: "
        "gets the client's Host, not b (host: upstream if it serves by name)"
    ]
    whole = with_upstream("{endpoints: [https://b]}").replace("upstream: u}", "upstream: u, host: upstream}")
    assert warnings(whole) == []
    assert warnings(with_upstream("{endpoints: [https://b]}") + "defaults: {host: x.example}\n") == []
    told_again = warnings(
        with_upstream("{endpoints: [{url: https://b}], host: upstream}").replace("u}", "u, host: preserve}")
    )
    assert [one.split(": ")[1] for one in told_again] == ["upstreams.u.endpoints[0].url"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_writes_that_may_be_repeated(method: str) -> None:
    retry = f"retry: {{methods: [GET, {method}]}}"
    for text, place in (
        (f"version: 1\ndefaults: {{{retry}}}\n", "defaults"),
        (with_upstream(f"{{consul: s, {retry}}}"), "upstreams.u"),
        (with_route(retry), "routes[0]"),
    ):
        assert warnings(text) == [f"{at(text, method)}: {place}.retry.methods[1]: {method} may be carried out twice"]


def test_an_unused_upstream() -> None:
    text = "version: 1\nupstreams:\n  a: {consul: s}\n  b:\n    consul: s\nroutes: [{name: r, upstream: a}]\n"
    assert warnings(text) == ["f:4:3: upstreams.b: no route leads to this upstream"]


def test_a_host_s_router_that_is_not_trusted() -> None:
    told = "DYNO is set and no proxy is trusted: every client looks like the host's router (private)"
    assert warnings("version: 1\n", DYNO="web.1") == [f"f:1:1: {told}"]
    assert warnings(server("trusted_proxies: []"), DYNO="web.1") == [f"f:3:20: server.trusted_proxies: {told}"]
    assert warnings("version: 1\n", DYNO="") == []
    assert warnings("version: 1\n", DYNO="web.1", GATEWAY_TRUSTED_PROXIES="private") == []
    assert warnings(server("trusted_proxies: [private]"), DYNO="web.1") == []


@pytest.mark.parametrize("drain", ["25s", "30s"])
def test_a_drain_that_leaves_no_time(drain: str) -> None:
    assert warnings(server(f"drain: {drain}")) == [
        "f:3:10: server.drain: is not shorter than graceful: nothing is left to finish requests in"
    ]


def test_warnings_stand_in_the_order_of_the_file() -> None:
    text = (
        "version: 1\nroutes: [{name: r, upstream: b, match: {methods: [GET]}}]\n"
        "upstreams:\n  a: {consul: s}\n  b: {consul: s}\nserver:\n  drain: 1h\n"
    )
    assert [one.split(":")[1] for one in warnings(text, DYNO="1")] == ["2", "4", "7", "7"]


def test_warnings_do_not_make_configurations_differ() -> None:
    text = with_route("match: {methods: [GET]}")
    assert read(text, DYNO="1") == read(text)


def test_every_advice_is_given() -> None:
    assert len(ADVICE) == len({advise.__name__ for advise in ADVICE}) == 7
