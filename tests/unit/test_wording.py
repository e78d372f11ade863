"""Settings, sources and matches in words."""

from __future__ import annotations

import re

import pytest

from gateway.model import (
    ConsulSource,
    DnsSrvSource,
    Endpoint,
    EtcdSource,
    Match,
    RetryPolicy,
    Rewrite,
    Route,
    Source,
    StaticSource,
    Timeouts,
)
from gateway.wording import columns, told_match, told_rewrite, told_source, told_value, told_values


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
