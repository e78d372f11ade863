"""Settings, sources and matches in words."""

from __future__ import annotations

import re

import pytest

from gateway.commands.wording import (
    columns,
    told_balance,
    told_end,
    told_mirror,
    told_rewrite,
    told_share,
    told_source,
    told_value,
    told_values,
)
from gateway.model import (
    Balance,
    Breaker,
    ConsulSource,
    DnsSrvSource,
    Eject,
    Endpoint,
    EtcdSource,
    HealthCheck,
    Match,
    Mirror,
    Redirect,
    Respond,
    RetryPolicy,
    Rewrite,
    Route,
    Share,
    Source,
    Split,
    StaticSource,
    Timeouts,
)
from gateway.routing.match_text import told_match


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (ConsulSource("user-svc"), "consul user-svc"),
        (ConsulSource("user-svc", "v2"), "consul user-svc v2"),
        (DnsSrvSource("_http._tcp.a.example"), "dns_srv _http._tcp.a.example"),
        (EtcdSource("/services/a/"), "etcd /services/a/"),
        (StaticSource((Endpoint("http", "10.0.0.1", 80), Endpoint("https", "::1", 443, 3, b"/base", b"k=v"))),
         "http://10.0.0.1:80 https://[::1]:443/base?k=v (3)"),
        (StaticSource(()), ""),
    ],
)  # fmt: skip
def test_sources(source: Source, told: str) -> None:
    assert told_source(source) == told


@pytest.mark.parametrize(
    ("match", "told"),
    [
        (Match(), "* /"),
        (Match(host="a", prefix="/x"), "a /x"),
        (Match(path="/x", methods=frozenset({"PUT", "GET"})), "* = /x GET,PUT"),
        (Match(regex="/x+", headers=(("a", "1"),), query=(("v", "2"),)), "* ~ /x+ a: 1 ?v=2"),
    ],
)
def test_matches(match: Match, told: str) -> None:
    assert told_match(match) == told


@pytest.mark.parametrize(
    ("rewrite", "told"),
    [
        (Rewrite(prefix=b"/v2"), "prefix /v2"),
        (Rewrite(path=b"/x"), "path /x"),
        (Rewrite(regex=re.compile(rb"/(.)"), to=rb"\1"), r"/(.) to \1"),
    ],
)
def test_rewritings(rewrite: Rewrite, told: str) -> None:
    assert told_rewrite(Route("r", "u", rewrite=rewrite)) == told


def shares(**weights: int) -> tuple[Share, ...]:
    return tuple(Share(Route("r", name), weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("route", "told"),
    [
        (Route("r", "users"), "users"),
        (Route("r", split=Split(shares(orders=95, legacy=5))), "orders 95%, legacy 5%"),
        (Route("r", split=Split(shares(a=1, b=2, c=0))), "a 33.33%, b 66.67%, c 0%"),
        (Route("r", split=Split(shares(a=1, b=1), "cookie", "exp")), "a 50%, b 50% by cookie:exp"),
        (Route("r", redirect=Redirect(301, path=b"/new")), "-> 301 /new"),
        (Route("r", redirect=Redirect(prefix=b"/v2/")), "-> 302 /v2/*"),
        (Route("r", redirect=Redirect(scheme="https")), "-> 302 https://*"),
        (Route("r", redirect=Redirect(308, None, "a.example", 81, b"/x")), "-> 308 //a.example:81/x"),
        (Route("r", redirect=Redirect(308, "http", port=81)), "-> 308 http://*:81"),
        (Route("r", respond=Respond(204)), "204 fixed"),
    ],
)
def test_what_becomes_of_requests(route: Route, told: str) -> None:
    assert told_end(route) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.0, "0%"), (1.0, "100%"), (0.05, "5%"), (0.125, "12.5%"), (0.00001, "<0.01%"), (1 / 65536, "<0.01%"), (0.1, "10%")],
)
def test_shares(share: float, told: str) -> None:
    assert told_share(share) == told
    assert told_mirror(Mirror(Route("r", "b"), share)) == f"{told} copied to b"


@pytest.mark.parametrize(
    ("balance", "told"),
    [
        (Balance("ewma"), "ewma"),
        (Balance("hash", "path"), "hash by path"),
        (Balance("hash", "header", "x-user"), "hash by header:x-user"),
        (Balance("sticky", name="gw", secret="hush"), "sticky by cookie:gw"),
    ],
)
def test_balancers(balance: Balance, told: str) -> None:
    assert told_balance(balance) == told


def test_sections_for_worse_days() -> None:
    eject = dict(told_values(Eject(statuses=frozenset({503, 500}))))
    assert (eject["for"], eject["max_for"], eject["error_rate"], eject["max_ejected"]) == ("10s", "300s", "50%", "50%")
    assert eject["statuses"] == "[500, 503]"
    assert "out_for" not in eject
    assert dict(told_values(Breaker()))["open_for"] == "5s"
    asked = dict(told_values(HealthCheck(b"/up", statuses=frozenset({404, *range(200, 300)}), headers=((b"X-Key", b"hush"),))))
    assert asked == {
        "path": "/up",
        "interval": "10s",
        "timeout": "2s",
        "healthy": "2",
        "unhealthy": "3",
        "status": "[200-299, 404]",
        "host": "null",
        "headers": "[X-Key]",
    }
    connected = dict(told_values(HealthCheck(tcp=True)))
    assert set(connected) == {"tcp", "interval", "timeout", "healthy", "unhealthy"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("total", None, "off"),
        ("connect", 0.25, "250ms"),
        ("connect", 1.5, "1.5s"),
        ("idle", 90.0, "90s"),
        ("tunnel", 7200.0, "2h"),
        ("drain", 0.0, "0s"),
        ("budget", 0.05, "5%"),
        ("buffer", 0, "0B"),
        ("buffer", 1000, "1000B"),
        ("header", 65536, "64KiB"),
        ("body", 3 * 1024**3, "3GiB"),
        ("attempts", 2, "2"),
        ("strip_prefix", True, "true"),
        ("methods", frozenset({b"PUT", b"GET"}), "[GET, PUT]"),
        ("deny", ("b", "a"), "[b, a]"),
        ("path", b"/x", "/x"),
    ],
)
def test_values_as_the_file_would_say_them(name: str, value: object, told: str) -> None:
    assert told_value(name, value) == told


def test_sections() -> None:
    assert dict(told_values(Timeouts()))["connect"] == "2s"
    assert dict(told_values(RetryPolicy()))["buffer"] == "64KiB"


def test_columns() -> None:
    assert columns([("a", "bb", ""), ("ccc", "d", "e")]) == ["a    bb", "ccc  d   e"]
    assert columns([]) == []
