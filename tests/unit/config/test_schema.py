"""Every key: its default, what it takes, what it refuses and how."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import model
from gateway.config import schema
from gateway.model import Config
from tests.unit.config.reading import mistake, mistakes, read, route, server, upstream, with_route, with_upstream

LEAST = "version: 1\n"


def test_the_defaults_of_file_and_model_are_the_same() -> None:
    config = read(LEAST)
    assert config == Config(version=config.version, upstreams={}, routes=(), path="f")


def test_the_defaults_of_upstreams_and_routes_are_the_model_s() -> None:
    config = read(with_upstream("{consul: svc}"))
    assert config.upstreams["u"] == model.Upstream("u", model.ConsulSource("svc"))
    assert config.routes == (model.Route("r", "u", line=5),)


def test_the_schema_spells_the_model_s_defaults() -> None:
    """Sections are taken over key by key, so that a default written twice could differ."""
    document = schema.Document.model_validate({"version": 1})
    pairs: list[tuple[schema.Section, Any]] = [
        (document.server.timeouts, model.ServerTimeouts()),
        (document.server.limits, model.ServerLimits()),
        (document.defaults.timeouts, model.Timeouts()),
        (document.defaults.pool, model.PoolSettings()),
        (document.defaults.limits, model.AnswerLimits()),
        (schema.Breaker(), model.Breaker()),
        (schema.Concurrency(), model.Concurrency()),
        (schema.Tls(), model.TlsSettings()),
    ]
    for section, settings in pairs:
        assert section.model_dump() == dataclasses.asdict(settings)
    # The environment alone says how TLS is spoken.
    consul = document.discovery.consul.model_dump() | {"tls": dataclasses.asdict(model.ConsulTls())}
    assert consul == dataclasses.asdict(model.ConsulSettings())
    assert schema.Eject().model_dump() == dataclasses.asdict(model.Eject()) | {"statuses": []}
    retry = document.defaults.retry.model_dump() | {"methods": {"GET", "HEAD", "OPTIONS"}}
    policy = dataclasses.asdict(model.RetryPolicy())
    assert {key: set(value) if isinstance(value, list) else value for key, value in retry.items()} == policy | {
        "methods": {method.decode() for method in policy["methods"]}
    }


# -- every section refuses what it does not know -----------------------------------------


def sections() -> Iterator[tuple[str, str, type[schema.Section]]]:
    """Each section with a document in which it holds only the key KEY."""
    for path in (
        "server",
        "access_log",
        "discovery",
        "defaults",
        "server.timeouts",
        "server.limits",
        "discovery.consul",
        "discovery.dns",
        "discovery.etcd",
        "defaults.timeouts",
        "defaults.pool",
        "defaults.retry",
        "defaults.limits",
        "defaults.eject",
        "defaults.health",
        "defaults.breaker",
        "defaults.concurrency",
    ):
        cls = schema.Document
        for part in path.split("."):
            cls = next(one for one in walk(cls.model_fields[part].annotation) if issubclass(one, schema.Section))
        first, *rest = path.split(".")
        inner = f"{rest[0]}: {{KEY: 1}}" if rest else "KEY: 1"
        yield path, f"version: 1\n{first}: {{{inner}}}\n", cls
    yield "upstreams.u", "version: 1\nupstreams: {u: {KEY: 1}}\n", schema.Upstream
    for name, cls in (
        ("tls", schema.Tls),
        ("timeouts", schema.Timeouts),
        ("pool", schema.Pool),
        ("buffer", schema.Buffer),
        ("retry", schema.Retry),
        ("limits", schema.Limits),
    ):
        yield f"upstreams.u.{name}", f"version: 1\nupstreams: {{u: {{{name}: {{KEY: 1}}}}}}\n", cls
    yield (
        "upstreams.u.endpoints[0]",
        "version: 1\nupstreams: {u: {endpoints: [{url: http://h, KEY: 1}]}}\n",
        schema.StaticEndpoint,
    )
    yield (
        "routes[0]",
        "version: 1\nroutes: [{name: r, upstream: u, KEY: 1}]\nupstreams: {u: {consul: s}}\n",
        schema.Route,
    )
    yield "routes[0].match", with_route("match: {KEY: 1}"), schema.Match
    yield "routes[0].match[1]", with_route("match: [{}, {KEY: 1}]"), schema.Match
    yield "routes[0].match.not", with_route("match: {not: {KEY: 1}}"), schema.Excluded
    yield "routes[0].match[1].not", with_route("match: [{}, {not: {KEY: 1}}]"), schema.Excluded
    yield "routes[0].rewrite", with_route("rewrite: {KEY: 1}"), schema.Rewrite
    yield "routes[0].mirror", with_route("mirror: {upstream: u, KEY: 1}"), schema.Mirror
    for name, given, cls in (
        ("split", "{to: [{upstream: u}], KEY: 1}", schema.Split),
        ("split[0]", "[{upstream: u, KEY: 1}]", schema.Part),
        ("split.to[0]", "{to: [{upstream: u, KEY: 1}]}", schema.Part),
        ("redirect", "{KEY: 1}", schema.Redirect),
        ("respond", "{KEY: 1}", schema.Respond),
    ):
        key = name.partition("[")[0].partition(".")[0]
        yield f"routes[0].{name}", with_route(f"{key}: {given}").replace("upstream: u, ", "", 1), cls
    for name, given, cls in (("hash", "{by: path, KEY: 1}", schema.Hash), ("sticky", "{cookie: c, KEY: 1}", schema.Sticky)):
        yield f"defaults.balance.{name}", f"version: 1\ndefaults: {{balance: {{{name}: {given}}}}}\n", cls
    yield "defaults.balance", "version: 1\ndefaults: {balance: {KEY: 1}}\n", schema.Balance
    registration = "version: 1\ndiscovery: {consul: {registration: {KEY: 1}}}\n"
    yield "discovery.consul.registration", registration, schema.Registration
    yield "admin", "version: 1\nadmin: {KEY: 1}\n", schema.Admin
    yield "", "version: 1\nKEY: 1\n", schema.Document


def walk(annotation: Any) -> Iterator[type[Any]]:
    if isinstance(annotation, type):
        yield annotation
    for one in getattr(annotation, "__args__", ()):
        yield from walk(one)


SECTIONS = list(sections())


def test_no_section_is_left_out() -> None:
    found: set[type[schema.Section]] = set()

    def add(cls: type[schema.Section]) -> None:
        found.add(cls)
        for field in cls.model_fields.values():
            for one in walk(field.annotation):
                if isinstance(one, type) and issubclass(one, schema.Section) and one not in found:
                    add(one)

    add(schema.Document)
    assert found == {cls for _, _, cls in SECTIONS}


@pytest.mark.parametrize(("path", "text", "cls"), SECTIONS, ids=[path for path, _, _ in SECTIONS])
def test_unknown_keys_are_told_with_those_that_are_known(path: str, text: str, cls: type[schema.Section]) -> None:
    text = text.replace("KEY", "colour")
    told = mistake(text)
    line, col = text[: text.index("colour")].count("\n") + 1, text.split("colour")[0][::-1].find("\n") + 1
    key = f"{path}.colour".removeprefix(".")
    assert told == f"f:{line}:{col}: {key}: unknown key (allowed: {', '.join(cls.keys())})"


LATER = [(path, text, key) for path, text, cls in SECTIONS for key in sorted(cls.later)]


@pytest.mark.parametrize(("path", "text", "key"), LATER, ids=[f"{path}.{key}" for path, _, key in LATER])
def test_what_is_not_there_yet_is_refused_by_name(path: str, text: str, key: str) -> None:
    told = mistake(text.replace("KEY", key))
    assert f"{path}.{key}: is not in this version (allowed: " in told
    assert key not in told.split("(allowed: ")[1]


def test_what_interface_reserves_is_in_later() -> None:
    later = {cls: cls.later for _, _, cls in SECTIONS if cls.later}
    assert later == {schema.Upstream: {"wsgi"}}


@pytest.mark.parametrize(
    "bind", ["x", "9901", "unix:", "unix:here", "127.0.0.1:", "127.0.0.1:99999", "::1:80", "INLINE", "a b:1", "127.1:80"]
)
def test_where_admin_cannot_be(bind: str) -> None:
    assert mistake(f'version: 1\nadmin: {{bind: "{bind}"}}\n').startswith("f:2:15: admin.bind: ")


def test_a_token_is_what_a_header_can_hold_and_is_not_repeated() -> None:
    told = mistake('version: 1\nadmin: {token: "my secret"}\n')
    assert told == "f:2:16: admin.token: must be printable ASCII without spaces"


def test_filters_are_only_empty() -> None:
    assert route("filters: []").name == "r"
    assert mistake(with_route("filters: [{cors: {}}]")).endswith("filters: filters are not in this version ([])")
    assert mistake(with_route("filters: {}")).endswith("filters: must be a list, not a mapping")


# -- kinds -------------------------------------------------------------------------------

DURATIONS = [
    *(
        (f"server: {{timeouts: {{{name}: %s}}}}", "server.timeouts." + name)
        for name in schema.ServerTimeouts.model_fields
    ),
    *(
        (f"defaults: {{timeouts: {{{name}: %s}}}}", "defaults.timeouts." + name)
        for name in schema.Timeouts.model_fields
    ),
    ("defaults: {pool: {idle_timeout: %s}}", "defaults.pool.idle_timeout"),
    ("defaults: {pool: {queue_timeout: %s}}", "defaults.pool.queue_timeout"),
    ("defaults: {concurrency: {queue_timeout: %s}}", "defaults.concurrency.queue_timeout"),
    ("defaults: {slow_start: %s}", "defaults.slow_start"),
    ("defaults: {retry: {backoff: %s}}", "defaults.retry.backoff"),
    ("defaults: {breaker: {window: %s}}", "defaults.breaker.window"),
    ("defaults: {breaker: {open_for: %s}}", "defaults.breaker.open_for"),
    ("defaults: {eject: {window: %s}}", "defaults.eject.window"),
    ("defaults: {eject: {max_for: %s, for: 1s}}", "defaults.eject.max_for"),
    ("defaults: {health: {interval: %s}}", "defaults.health.interval"),
    ("defaults: {health: {timeout: %s}}", "defaults.health.timeout"),
    ("server: {drain: %s}", "server.drain"),
    ("server: {overload: %s}", "server.overload"),
    ("server: {graceful: %s}", "server.graceful"),
    ("discovery: {wait: %s}", "discovery.wait"),
    ("discovery: {consul: {poll: %s}}", "discovery.consul.poll"),
]
SIZES = [
    *(
        (f"server: {{limits: {{{name}: %s}}}}", "server.limits." + name)
        for name in ("body", "request_line", "header", "chunk_extensions", "linger")
    ),
    ("server: {min_rate: %s}", "server.min_rate"),
    ("defaults: {limits: {header: %s}}", "defaults.limits.header"),
    ("defaults: {retry: {buffer: %s}}", "defaults.retry.buffer"),
]
COUNTS = [
    ("server: {limits: {headers: %s}}", "server.limits.headers"),
    ("server: {limits: {connections: %s}}", "server.limits.connections"),
    ("defaults: {limits: {headers: %s}}", "defaults.limits.headers"),
    ("defaults: {pool: {max_connections: %s}}", "defaults.pool.max_connections"),
    ("defaults: {pool: {max_idle: %s}}", "defaults.pool.max_idle"),
    ("defaults: {concurrency: {limit: %s}}", "defaults.concurrency.limit"),
]


def value(text: str, key: str, written: str) -> Any:
    """What a key of server, discovery or defaults becomes."""
    config = read(
        f"version: 1\n{text % written}\nupstreams: {{u: {{consul: s}}}}\nroutes: [{{name: r, upstream: u}}]\n"
    )
    section, *rest = key.split(".")
    found: Any = config.upstreams["u"] if section == "defaults" else getattr(config, section)
    for part in rest:
        found = getattr(found, part)
    return found


def refusal(text: str, key: str, written: str) -> str:
    told = mistake(f"version: 1\n{text % written}\n")
    place, found, message = told.split(": ", 2)
    assert found == key
    assert place == f"f:2:{text.index('%s') + 1}"
    return message


@pytest.mark.parametrize(("text", "key"), DURATIONS)
def test_durations(text: str, key: str) -> None:
    assert value(text, key, "1500ms") == 1.5
    assert value(text, key, "'2m'") == 120.0
    for written in ("5", "5.5", "1d", "-1s", "true", "on", "''", "[5s]", "{s: 5}", "9000h"):
        assert "must be a duration" in refusal(text, key, written)


@pytest.mark.parametrize(("text", "key"), DURATIONS)
def test_durations_that_are_off(text: str, key: str) -> None:
    off = {"half_close": (0.0, None)} | dict.fromkeys(("drain", "wait", "slow_start", "backoff"), (0.0, 0.0))
    name = key.rsplit(".", 1)[-1]
    if name in ("graceful", "poll", "window", "open_for", "max_for", "interval", "timeout"):
        for written in ("0", "null", "0s", "0.5ms"):
            assert "must be a duration of at least" in refusal(text, key, written)
    else:
        zero, null = off.get(name, (None, None))
        assert [value(text, key, written) for written in ("0", "0s", "'0'", "null", "~", "")] == [zero] * 3 + [null] * 3


@pytest.mark.parametrize(("text", "key"), SIZES)
def test_sizes(text: str, key: str) -> None:
    assert value(text, key, "3KiB") == 3072
    assert [value(text, key, written) for written in ("0", "0B", "null")] == [0, 0, 0]
    for written in ("5", "64KB", "-1B", "1.5MiB", "true", "[1B]"):
        assert "must be a size" in refusal(text, key, written)


@pytest.mark.parametrize(("text", "key"), COUNTS)
def test_counts(text: str, key: str) -> None:
    assert value(text, key, "7") == 7
    assert value(text, key, "0") == 0
    assert value(text, key, "null") == (sys.maxsize if key.endswith("max_idle") else 0)
    for written in ("-1", "1.5", "'7'", "true", "7B", "[7]", "99999999999"):
        assert "must be a whole number" in refusal(text, key, written)


@pytest.mark.parametrize("written", ["on", "yes", "1", "'true'", "null", "[]"])
def test_only_true_and_false_are_flags(written: str) -> None:
    assert refusal("server: {forwarded: %s}", "server.forwarded", written).startswith("must be true or false, not ")


@pytest.mark.parametrize(("written", "shown"), [("1.10", "1.10"), ("true", "true"), ("0x1F", "0x1F")])
def test_a_number_is_no_text_and_is_shown_as_written(written: str, shown: str) -> None:
    told = mistake(with_upstream(f"{{consul: {written}}}"))
    assert told == f'f:3:15: upstreams.u.consul: must be text, not {shown} (write "{shown}")'


def test_null_sections_are_no_sections() -> None:
    for key in ("server", "discovery", "defaults", "upstreams"):
        assert mistake(f"version: 1\n{key}:\n").endswith(f"{key}: must be a mapping")
    assert mistake("version: 1\nroutes:\n").endswith("routes: must be a list")
    for key in ("timeouts", "pool", "retry", "limits"):
        assert mistake(with_upstream(f"{{consul: s, {key}: null}}")).endswith(f"{key}: must be a mapping")
    for key in ("host", "balance", "upgrade"):
        assert "must be" in mistake(with_upstream(f"{{consul: s, {key}: null}}"))


@pytest.mark.parametrize("version", ["2", "0", "'1'", "1.0", "true", "null", "v1"])
def test_version_is_one(version: str) -> None:
    assert mistake(f"version: {version}\n").startswith("f:1:10: version: must be 1, not ")


def test_version_is_required() -> None:
    assert mistake("server: {}\n") == "f:1:1: version: is required"


# -- server and the rest -----------------------------------------------------------------


def test_all_of_server() -> None:
    settings = read(
        server(
            """\
            name: gw-1
            trusted_proxies: [10.0.0.0/8, private, loopback, unix, "2001:db8::/32", 192.0.2.1]
            timeouts: {header: 1s, body: 2s, write: 3s, keepalive: 4s, half_close: 5s, tls_handshake: 6s}
            min_rate: 1KiB
            limits:
              {body: 1MiB, request_line: 8KiB, header: 16KiB, headers: 50, chunk_extensions: 1KiB, connections: 10}
            graceful: 10s
            drain: 3s
            request_id: X-Correlation-Id
            own_prefix: /_gateway/
            via: off
            forwarded: true
            """
        )
    ).server
    assert settings == model.ServerSettings(
        name="gw-1",
        trusted_proxies=("10.0.0.0/8", "private", "loopback", "unix", "2001:db8::/32", "192.0.2.1"),
        timeouts=model.ServerTimeouts(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        min_rate=1024,
        limits=model.ServerLimits(1024 * 1024, 8192, 16384, 50, 1024, 10),
        graceful=10.0,
        drain=3.0,
        request_id="X-Correlation-Id",
        own_prefix="/_gateway/",
        via="off",
        forwarded=True,
    )


@pytest.mark.parametrize(
    "word", ["10.0.0.1/8", "privat", "PRIVATE", "10.0.0", "300.0.0.0/8", "'::1/129'", "'*'", "host"]
)
def test_bad_words_in_trusted_proxies(word: str) -> None:
    told = mistake(server(f"trusted_proxies: [private, {word}]"))
    assert told.startswith("f:3:30: server.trusted_proxies[1]: ")
    assert word.strip("'") in told


@pytest.mark.parametrize(
    "prefix", ["/", "-/", "/-", "/a b/", "/a?/", "/../", "/%2D/", "//", "/a//b/", "/é/", "''", "5"]
)
def test_bad_own_prefixes(prefix: str) -> None:
    assert mistake(server(f"own_prefix: {prefix}")).startswith("f:3:15: server.own_prefix: must be ")


def test_no_own_prefix() -> None:
    assert read(server("own_prefix: null")).server.own_prefix is None


@pytest.mark.parametrize("via", ["on", "none", "true", "null", "Both"])
def test_via_is_one_of_four(via: str) -> None:
    assert "must be one of both | request | response | off" in mistake(server(f"via: {via}"))


@pytest.mark.parametrize(
    ("key", "bad"), [("name", "'a b'"), ("name", "''"), ("request_id", "'X:Y'"), ("request_id", "null")]
)
def test_tokens(key: str, bad: str) -> None:
    assert mistake(server(f"{key}: {bad}")).startswith(f"f:3:{len(key) + 5}: server.{key}: must be ")


def test_access_log() -> None:
    assert read("version: 1\naccess_log: null\n").access_log is None
    assert read("version: 1\naccess_log: {path: null}\n").access_log == model.AccessLogSettings(path=None)
    found = read("version: 1\naccess_log: {path: /var/log/x, redact: [Key, KEY, pin]}\n").access_log
    assert found == model.AccessLogSettings("/var/log/x", redact=frozenset({"key", "pin"}))
    assert "must be json" in mistake("version: 1\naccess_log: {format: clf}\n")
    assert "must be a mapping" in mistake("version: 1\naccess_log: off\n")


def test_registration() -> None:
    def registration(text: str) -> model.RegistrationSettings | None:
        return read(f"version: 1\ndiscovery: {{consul: {{registration: {text}}}}}\n").discovery.consul.registration

    assert registration("null") is None
    assert registration("{}") == model.RegistrationSettings()
    assert registration(
        "{service: edge, address: gw.example, port: 80, tags: [a, b], check: http, interval: 2s, deregister_after: 2m}"
    ) == model.RegistrationSettings("edge", "gw.example", 80, ("a", "b"), "http", 2.0, 120.0)
    assert registration("{deregister_after: null}") == model.RegistrationSettings(deregister_after=None)


@pytest.mark.parametrize(
    "bad", ["service: ''", "port: 0", "port: 65536", "tags: ['']", "check: tcp", "interval: 0", "interval: 900ms",
            "deregister_after: 59s", "deregister_after: 0", "address: ''"]
)  # fmt: skip
def test_bad_registrations(bad: str) -> None:
    key = bad.split(":")[0]
    assert f"discovery.consul.registration.{key}" in mistake(
        f"version: 1\ndiscovery: {{consul: {{registration: {{{bad}}}}}}}\n"
    )


def test_discovery() -> None:
    found = read(
        """\
        version: 1
        discovery:
          consul: {address: "https://consul.example:8501/", token: t, datacenter: dc2, poll: 1s, stale: false}
          etcd: {endpoints: ["http://a:2379/", "https://b"], username: gw, password: secret, poll: 2s}
          wait: 0
          deny: [169.254.0.0/16, "fe80::/10"]
        """
    ).discovery
    assert found == model.DiscoverySettings(
        model.ConsulSettings("https://consul.example:8501", "t", "dc2", 1.0, False),
        model.EtcdSettings(("http://a:2379", "https://b"), "gw", "secret", 2.0),
        wait=0.0,
        deny=("169.254.0.0/16", "fe80::/10"),
    )
    assert read("version: 1\ndiscovery: {deny: []}\n").discovery.deny == ()


def test_dns_servers_and_srv_names() -> None:
    config = read("version: 1\ndiscovery: {dns: {servers: [10.0.0.53, '::1', '[::1]:5353', 127.0.0.1:8600], ttl: 5s}}\n")
    servers = ("10.0.0.53:53", "[::1]:53", "[::1]:5353", "127.0.0.1:8600")
    assert config.discovery.dns == model.DnsSettings(servers, 5.0)
    assert read(LEAST).discovery.dns == model.DnsSettings((), 30.0)
    assert upstream("{dns_srv: _HTTP._tcp.Orders.example.internal.}").source == model.DnsSrvSource(
        "_http._tcp.orders.example.internal"
    )


@pytest.mark.parametrize(
    "server", ["", "ns.example", "10.0.0", "10.0.0.1:0", "10.0.0.1:65536", "::1%eth0", "udp://1.1.1.1"]
)
def test_a_dns_server_is_an_address(server: str) -> None:
    told = mistake(f"version: 1\ndiscovery: {{dns: {{servers: ['{server}']}}}}\n")
    assert "discovery.dns.servers[0]: must be the address of a DNS server, not " in told


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "a b", "é.example", "a:80", f"{'a' * 64}.b", ".".join(["a" * 60] * 5)]
)
def test_a_name_of_srv_records_is_one(name: str) -> None:
    assert "upstreams.u.dns_srv: must be a DNS name, not " in mistake(with_upstream(f"{{dns_srv: '{name}'}}"))


def test_answers_of_dns_are_kept_for_a_second_at_least() -> None:
    told = mistake("version: 1\ndiscovery: {dns: {ttl: 500ms}}\n")
    assert told == "f:2:24: discovery.dns.ttl: must be a duration of at least 1000ms, not \"500ms\""


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8500", "http://h/v1", "http://u:p@h", "unix:///x", "http://h?x", "8500"]
)
def test_bad_registry_addresses(address: str) -> None:
    assert mistake(f"version: 1\ndiscovery: {{consul: {{address: '{address}'}}}}\n").startswith(
        "f:2:31: discovery.consul.address: "
    )


@pytest.mark.parametrize("network", ["private", "169.254.0.1/16", "x", "169.254.0.0/33"])
def test_bad_networks(network: str) -> None:
    assert "discovery.deny[0]: must be a network: " in mistake(f"version: 1\ndiscovery: {{deny: [{network}]}}\n")


# -- upstreams ---------------------------------------------------------------------------


def test_endpoints_with_and_without_weight() -> None:
    found = upstream('{endpoints: [http://10.0.0.9:8080, {url: "https://10.0.0.10/base?k=v", weight: 3}]}')
    assert isinstance(found.source, model.StaticSource)
    assert [(one.host, one.weight) for one in found.source.endpoints] == [("10.0.0.9", 1), ("10.0.0.10", 3)]
    assert (found.source.endpoints[1].base_path, found.source.endpoints[1].query) == (b"/base", b"k=v")


@pytest.mark.parametrize("weight", ["-1", "65536", "1.5", "'1'", "null", "true"])
def test_bad_weights(weight: str) -> None:
    told = mistake(with_upstream(f"{{endpoints: [{{url: http://h, weight: {weight}}}]}}"))
    assert "upstreams.u.endpoints[0].weight: must be a whole number" in told


def test_bad_urls_are_told_where_they_stand() -> None:
    told = mistakes(with_upstream("{endpoints: [ftp://h, http://u@h, 5, {url: 'http://h#'}, {weight: 1}, [x]]}"))
    assert [one.split(": ", 2)[:2] for one in told] == [
        ["f:3:19", "upstreams.u.endpoints[0]"],
        ["f:3:28", "upstreams.u.endpoints[1]"],
        ["f:3:40", "upstreams.u.endpoints[2]"],
        ["f:3:49", "upstreams.u.endpoints[3].url"],
        ["f:3:63", "upstreams.u.endpoints[4].url"],
        ["f:3:76", "upstreams.u.endpoints[5]"],
    ]


@pytest.mark.parametrize(
    "host", ["preserve", "upstream", "api.example.com", "api.example.com:8080", "'[::1]:80'", "10.0.0.1"]
)
def test_host_policies(host: str) -> None:
    assert upstream(f"{{consul: s, host: {host}}}").host == host.strip("'")
    assert route(f"host: {host}").host == host.strip("'")


@pytest.mark.parametrize(
    "host", ["''", "'a b'", "a/b", "http://a", "é.example", "'a,b'", "a:99999", "5", "null", "'*.a'"]
)
def test_bad_host_policies(host: str) -> None:
    assert "upstreams.u.host: must be" in mistake(with_upstream(f"{{consul: s, host: {host}}}"))


@pytest.mark.parametrize(
    "token", ["h2c", "H2C", "HTTP/2.0", "http/3", "TLS", "TLS/1.0", "tls/1.2", "''", "a b", "a/b/c", "5"]
)
def test_protocols_that_never_become_a_tunnel(token: str) -> None:
    told = mistake(with_upstream(f"{{consul: s, upgrade: [websocket, {token}]}}"))
    assert told.startswith("f:3:39: upstreams.u.upgrade[1]: must be ")


def test_upgrade_tokens_are_lower_case_bytes() -> None:
    assert upstream("{consul: s, upgrade: [WebSocket, foo/2]}").upgrade == {b"websocket", b"foo/2"}
    assert upstream("{consul: s, upgrade: []}").upgrade == frozenset()


def test_retry() -> None:
    found = upstream(
        "{consul: s, retry: {attempts: 1, when: [connect, timeout], statuses: [503, 429], "
        "methods: [PUT], budget: 5%, buffer: 0}}"
    ).retry
    assert found == model.RetryPolicy(
        1, frozenset({"connect", "timeout"}), frozenset({503, 429}), frozenset({b"PUT"}), 0.05, 0
    )


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("attempts", "0"),
        ("attempts", "null"),
        ("attempts", "-1"),
        ("when", "[conect]"),
        ("when", "connect"),
        ("when", "null"),
        ("statuses", "[200]"),
        ("statuses", "[600]"),
        ("statuses", "['503']"),
        ("statuses", "503"),
        ("methods", "[get]"),
        ("methods", "['G T']"),
        ("methods", "GET"),
        ("budget", "20"),
        ("budget", "0.2"),
        ("budget", "101%"),
        ("budget", "null"),
    ],
)
def test_bad_retry(key: str, bad: str) -> None:
    told = mistake(with_upstream(f"{{consul: s, retry: {{{key}: {bad}}}}}"))
    assert f": upstreams.u.retry.{key}" in told


@pytest.mark.parametrize("name", ["''", "' a'", "'a '", '"a\\nb"', "5", "null", "x" * 129])
def test_bad_names(name: str) -> None:
    assert "routes[0].name: must be " in mistake(
        f"version: 1\nupstreams: {{u: {{consul: s}}}}\nroutes: [{{name: {name}, upstream: u}}]\n"
    )


def test_a_bad_upstream_name_is_told_at_its_key() -> None:
    told = mistake("version: 1\nupstreams:\n  ' u': {consul: s}\n")
    assert told.startswith('f:3:3: upstreams. u: the key must be a name, not " u" (')


# -- routes ------------------------------------------------------------------------------


def test_a_whole_route() -> None:
    found = route(
        "match: {host: API.Example.com., prefix: /user, methods: [GET, POST], "
        "headers: {X-Beta: 1.10, X-On: true}, query: {v: 2}}, "
        "priority: -5, strip_prefix: true, host: upstream, timeouts: {response: 1s}, retry: {attempts: 3}, upgrade: []"
    )
    assert found == model.Route(
        name="r",
        upstream="u",
        matches=(
            model.Match(
                host="api.example.com",
                prefix="/user",
                methods=frozenset({"GET", "POST"}),
                headers=(("x-beta", "1.10"), ("x-on", "true")),
                query=(("v", "2"),),
            ),
        ),
        priority=-5,
        strip_prefix=True,
        host="upstream",
        timeouts=model.Timeouts(response=1.0),
        retry=model.RetryPolicy(attempts=3),
        upgrade=frozenset(),
        index=0,
        line=5,
    )


@pytest.mark.parametrize(
    "written",
    ["1.10", "010", "0x1F", "1e3", "true", "True", "FALSE", ".inf", "-0", "2020-01-01", "1:20", "on", "'null'"],
)
def test_match_values_are_taken_as_written(written: str) -> None:
    found = route(f"match: {{headers: {{X-V: {written}}}, query: {{v: {written}}}}}").matches[0]
    assert (found.headers, found.query) == ((("x-v", written.strip("'")),), (("v", written.strip("'")),))


@pytest.mark.parametrize("bad", ["null", "", "[1]", "{a: 1}"])
def test_what_is_no_match_value(bad: str) -> None:
    for key in ("headers", "query"):
        assert f"match.{key}.v: must be text or a number" in mistake(with_route(f"match: {{{key}: {{v: {bad}}}}}"))


@pytest.mark.parametrize("bad", ["' a'", "'a '", '"a\\rb"', '"a\\0"', '"a\\x7f"'])
def test_header_values_that_no_request_can_have(bad: str) -> None:
    assert "match.headers.v: must be a header value" in mistake(with_route(f"match: {{headers: {{v: {bad}}}}}"))


def test_query_names_and_values_are_any_text() -> None:
    assert route("match: {query: {'a b': ' é ', 1: ''}}").matches[0].query == (("a b", " é "), ("1", ""))


def test_one_match_or_many() -> None:
    assert route("match: {path: /a}").matches == (model.Match(path="/a"),)
    assert route("match: [{path: /a}, {prefix: /b}]").matches == (model.Match(path="/a"), model.Match(prefix="/b"))
    assert route("match: {}").matches == (model.Match(),)
    assert route("priority: 1").matches == (model.Match(),)
    assert mistake(with_route("match: /a")).endswith("routes[0].match: must be a list")
    assert mistake(with_route("match: [/a]")).endswith("routes[0].match[0]: must be a mapping")


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("A.example", "a.example"),
        ("a.example.", "a.example"),
        ("'*.Example.com'", "*.example.com"),
        ("'[::1]'", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("a_b", "a_b"),
        ("localhost", "localhost"),
    ],
)
def test_hosts(host: str, normal: str) -> None:
    assert route(f"match: {{host: {host}}}").matches[0].host == normal


@pytest.mark.parametrize(
    "host",
    [
        "'*'",
        "'*.'",
        "a.*",
        "'*.*.a'",
        "'*a.b'",
        "a:80",
        "'*.a:80'",
        "'[::1]:80'",
        "'*.[::1]'",
        "http://a",
        "a/b",
        "''",
        "é.example",
        "'a b'",
        "5",
    ],
)
def test_bad_hosts(host: str) -> None:
    assert "routes[0].match.host: must be" in mistake(with_route(f"match: {{host: {host}}}"))


@pytest.mark.parametrize(
    "path", ["a", "''", "/a?b", "/a#b", "/a/../b", "/.", "/a/%2e%2e/b", "/%00", "/a/..%2fb", '"/\\n"', "5"]
)
def test_bad_paths(path: str) -> None:
    for key in ("path", "prefix"):
        assert f"routes[0].match.{key}: must be" in mistake(with_route(f"match: {{{key}: {path}}}"))


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/", "/a%2Fb", "/%zz", "/a b", "/é", "//a", "/a;b", "/.well-known", "/a..b"]
)
def test_paths_are_kept_as_written(path: str) -> None:
    assert route(f"match: {{path: '{path}'}}").matches[0].path == path
    assert route(f"match: {{prefix: '{path}'}}").matches[0].prefix == path


@pytest.mark.parametrize(
    ("regex", "told"),
    [
        ("'a('", "missing ): a("),
        ("'a)'", "unexpected ): a)"),
        ("'*a'", "no argument for repetition operator: *"),
        ("'[b-a]'", "invalid character class range: b-a"),
        ("'\\q'", "invalid escape sequence: \\q"),
        ("'[[a'", "missing ]: [[a"),
        ("'(a{100}){11}'", "invalid repetition size: {11} (at most 1,000, nested ones multiplied)"),
    ],
)
def test_bad_regular_expressions(regex: str, told: str) -> None:
    assert mistake(with_route(f"match: {{regex: {regex}}}")) == (
        f"f:5:43: routes[0].match.regex: is no regular expression: {told}"
    )


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [
        ("{prefix: /v2}", model.Rewrite(prefix=b"/v2")),
        ("{path: '/x?y=1'}", model.Rewrite(path=b"/x?y=1")),
        (r"{regex: '^/u/(\d+)', to: '/users/\1'}", model.Rewrite(regex=re.compile(rb"^/u/(\d+)"), to=rb"/users/\1")),
        (r"{regex: '/(?P<all>.*)', to: '\g<all>'}", model.Rewrite(regex=re.compile(rb"/(?P<all>.*)"), to=rb"\g<all>")),
    ],
)
def test_rewrites(rewrite: str, expected: model.Rewrite) -> None:
    assert route(f"rewrite: {rewrite}").rewrite == expected


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("prefix", "v2"),
        ("prefix", "/v2?x"),
        ("prefix", "/é"),
        ("prefix", "'/a b'"),
        ("path", "x"),
        ("path", "/x#y"),
        ("path", "''"),
        ("path", "5"),
        ("to", "x"),
        ("to", "'/a b'"),
        ("to", "/#"),
        ("regex", "'('"),
        ("regex", "5"),
    ],
)
def test_bad_rewrites(key: str, bad: str) -> None:
    assert f"routes[0].rewrite.{key}: " in mistake(with_route(f"rewrite: {{{key}: {bad}}}"))


# -- JSON Schema -------------------------------------------------------------------------


def test_json_schema_is_json_and_refers_only_to_itself() -> None:
    told = json.dumps(schema.json_schema())
    found = json.loads(told)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', told))
    assert references == set(found["$defs"])
    assert set(found["properties"]) == set(schema.Document.model_fields)
    assert found["required"] == ["version"]


def test_json_schema_describes_every_key() -> None:
    found = schema.json_schema()
    inherited = set(schema.Defaults.model_fields)
    for name, section in {**found["$defs"], "": found}.items():
        assert section["additionalProperties"] is False
        for key, about in section["properties"].items():
            assert "description" in about or (name in ("Upstream", "Route") and key in inherited), (name, key)


@pytest.mark.parametrize("name", ["Timeouts", "ServerTimeouts", "Pool", "Limits", "ServerLimits", "Retry", "Eject", "HealthCheck", "Breaker", "Concurrency"])
def test_the_defaults_in_the_json_schema_are_what_the_file_may_say(name: str) -> None:
    cls = getattr(schema, name)
    said = {key: about["default"] for key, about in schema.json_schema()["$defs"][name]["properties"].items()}
    assert cls.model_validate(said) == cls()
