"""Defaults, then upstream, then route: the nearest wins, key by key."""

from __future__ import annotations

import sys

from gateway import model
from tests.unit.config.reading import read, route, upstream

WHOLE = """\
version: 1
defaults:
  timeouts: {connect: 1s, response: 10s, total: 20s}
  pool: {max_idle: 5}
  retry: {attempts: 3, statuses: [503]}
  limits: {headers: 10}
  upgrade: [foo]
  host: upstream
upstreams:
  near:
    consul: near
    tag: blue
    timeouts: {response: 11s, total: null}
    pool: {max_idle: null, queue_timeout: 2s}
    retry: {when: [connect], methods: [PUT]}
    limits: {header: 1KiB}
    upgrade: []
    host: near.example
  plain: {consul: plain}
routes:
  - name: both
    upstream: near
    match: {path: /1}
    timeouts: {connect: 0, idle: 12s}
    retry: {attempts: 1, statuses: []}
    upgrade: [websocket]
    host: preserve
  - {name: neither, upstream: plain, match: {path: /2}}
  - {name: upstreams, upstream: near, match: {path: /3}}
"""


def test_an_upstream_has_the_defaults() -> None:
    plain = read(WHOLE).upstreams["plain"]
    assert plain == model.Upstream(
        name="plain",
        source=model.ConsulSource("plain"),
        host="upstream",
        timeouts=model.Timeouts(connect=1.0, response=10.0, total=20.0),
        pool=model.PoolSettings(max_idle=5),
        retry=model.RetryPolicy(attempts=3, statuses=frozenset({503})),
        limits=model.AnswerLimits(headers=10),
        upgrade=frozenset({b"foo"}),
    )


def test_an_upstream_s_own_keys_win() -> None:
    near = read(WHOLE).upstreams["near"]
    assert near.source == model.ConsulSource("near", "blue")
    assert near.host == "near.example"
    assert near.timeouts == model.Timeouts(connect=1.0, response=11.0, total=None)
    assert near.pool == model.PoolSettings(max_idle=sys.maxsize, queue_timeout=2.0)
    assert near.retry == model.RetryPolicy(
        attempts=3, statuses=frozenset({503}), when=frozenset({"connect"}), methods=frozenset({b"PUT"})
    )
    assert near.limits == model.AnswerLimits(header=1024, headers=10)
    assert near.upgrade == frozenset()


def test_a_route_s_own_keys_win() -> None:
    both, neither, upstreams = read(WHOLE).routes
    assert both.timeouts == model.Timeouts(connect=None, response=11.0, idle=12.0, total=None)
    assert both.retry == model.RetryPolicy(attempts=1, when=frozenset({"connect"}), methods=frozenset({b"PUT"}))
    assert (both.upgrade, both.host) == ({b"websocket"}, "preserve")
    plain = read(WHOLE).upstreams["plain"]
    assert (neither.timeouts, neither.retry, neither.upgrade, neither.host) == (
        plain.timeouts,
        plain.retry,
        plain.upgrade,
        plain.host,
    )
    near = read(WHOLE).upstreams["near"]
    assert (upstreams.timeouts, upstreams.retry, upstreams.upgrade, upstreams.host) == (
        near.timeouts,
        near.retry,
        near.upgrade,
        near.host,
    )


def test_routes_know_their_place() -> None:
    assert [(one.index, one.line) for one in read(WHOLE).routes] == [(0, 21), (1, 28), (2, 29)]


def test_tls_where_https_is_spoken() -> None:
    assert upstream("{consul: s}").tls is None
    assert upstream("{endpoints: [http://a]}").tls is None
    assert upstream("{endpoints: [http://a, https://10.0.0.1]}").tls == model.TlsSettings()
    found = upstream("{consul: s, tls: {server_name: s.example, verify: false}}")
    assert found.tls == model.TlsSettings(verify=False, server_name="s.example")


def test_the_server_name_of_an_endpoint() -> None:
    def names(text: str) -> list[str | None]:
        source = upstream(text).source
        assert isinstance(source, model.StaticSource)
        return [one.server_name for one in source.endpoints]

    assert names("{endpoints: [https://a, http://b]}") == ["a", None]
    assert names("{endpoints: [https://a, http://b], tls: {server_name: c}}") == ["c", None]


def test_a_regular_expression_is_bytes() -> None:
    rewrite = route(r"rewrite: {regex: '/é(.)', to: '/\1'}").rewrite
    assert rewrite is not None
    assert rewrite.regex is not None
    assert rewrite.regex.fullmatch("/éx".encode())


def test_the_model_is_frozen_and_can_be_compared() -> None:
    assert read(WHOLE) == read(WHOLE)
    assert read(WHOLE).version == read(WHOLE).version
    assert read(WHOLE).version != read(WHOLE + "# changed\n").version
    assert len(read(WHOLE).version) == 12
    assert hash(read(WHOLE).routes[0]) == hash(read(WHOLE).routes[0])
