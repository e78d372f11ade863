"""Which file, what of the environment, and how mistakes are told."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from gateway import config
from gateway.config import remote_key, source
from gateway.errors import ConfigError, Mistake
from gateway.model import ConsulTls
from tests.unit.config.reading import at, mistake, mistakes, read, server

LEAST = "version: 1\n"
ROOT = Path(__file__).resolve().parents[3]


def refusal(path: str | None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ)
    assert len(caught.value.mistakes) == 1
    return str(caught.value)


# -- which file --------------------------------------------------------------------------


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "gateway.yaml").write_text(LEAST)
    assert config.find({"GATEWAY_CONFIG": "/x/y.yaml"}) == "/x/y.yaml"
    assert config.find({"GATEWAY_CONFIG": ""}) == os.path.join("conf", "gateway.yaml")
    assert config.load(None, {}).path == os.path.join("conf", "gateway.yaml")


def test_etc_is_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source.PLACES[1] == "/etc/gateway/gateway.yaml"
    etc = tmp_path / "etc.yaml"
    monkeypatch.setattr(source, "PLACES", (source.PLACES[0], str(etc)))
    told = f"no configuration: set GATEWAY_CONFIG, or write ./conf/gateway.yaml or {etc}"
    assert refusal(None) == told
    etc.write_text(LEAST)
    assert config.find({}) == str(etc)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a.yaml,b.yaml", "several files (a file, a key of a registry, or one of each joined by a comma)"),
        ("consul://h/a,etcd://h/b", "two keys of registries (one)"),
        ("consul://h:8500", "consul://h:8500 names no key (consul://host:8500/key, etcd://host:2379/key)"),
        ("consul:///key", "consul:///key names no key (consul://host:8500/key, etcd://host:2379/key)"),
        ("etcd://h/key?x=1", "etcd://h/key?x=1 names no key (consul://host:8500/key, etcd://host:2379/key)"),
        (
            "consul://h:port/key",
            "Port could not be cast to integer value as 'port' (consul://host:8500/key, etcd://host:2379/key)",
        ),
        (
            "consul://user:pass@h/key",
            "no user and password here (a local file's discovery section, or the environment)",
        ),
    ],
)
def test_names_that_stand_for_nothing(path: str, told: str) -> None:
    assert refusal(path) == f"{path}: {told}"
    assert refusal(None, GATEWAY_CONFIG=path) == f"{path}: {told}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "x")) == f"{tmp_path}/x: cannot be read: No such file or directory"
    assert refusal(str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_comma_in_a_name_is_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "a,b.yaml"
    path.write_text(LEAST)
    assert config.load(str(path), {}).path == str(path)


def test_not_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    assert refusal(str(path)) == f"{path}:1:1: is longer than a configuration may be (8 MiB)"


@pytest.mark.parametrize(
    ("name", "environ"), [("gateway.yaml", {}), ("gateway.heroku.yaml", {"BACKEND_URL": "https://b.example"})]
)
def test_the_shipped_files_are_right(name: str, environ: dict[str, str]) -> None:
    found = config.load(str(ROOT / "conf" / name), environ)
    assert found.routes
    assert found.warnings == ()


def test_the_file_for_heroku() -> None:
    found = config.load(
        str(ROOT / "conf" / "gateway.heroku.yaml"), {"BACKEND_URL": "https://b.example", "DYNO": "web.1"}
    )
    assert found.server.trusted_proxies == ("private",)
    assert (found.server.timeouts.keepalive, found.server.graceful) == (95.0, 25.0)
    timeouts = found.routes[0].timeouts
    assert (timeouts.response, timeouts.total, timeouts.idle) == (20.0, 28.0, 50.0)
    assert found.routes[0].host == "upstream"


# -- the environment ---------------------------------------------------------------------


def test_the_environment_beats_the_file() -> None:
    text = (
        "version: 1\nserver: {trusted_proxies: [10.0.0.0/8]}\n"
        "discovery: {consul: {address: 'http://file:1', token: file, datacenter: dc}}\n"
    )
    found = read(
        text, GATEWAY_TRUSTED_PROXIES="private, 192.0.2.0/24 unix", CONSUL_HTTP_ADDR="env:2", CONSUL_HTTP_TOKEN="env"
    )
    assert found.server.trusted_proxies == ("private", "192.0.2.0/24", "unix")
    assert (found.discovery.consul.address, found.discovery.consul.token) == ("http://env:2", "env")
    assert found.discovery.consul.datacenter == "dc"
    found = read(text, GATEWAY_TRUSTED_PROXIES="", CONSUL_HTTP_ADDR="", CONSUL_HTTP_TOKEN="")
    assert found.server.trusted_proxies == ("10.0.0.0/8",)
    assert (found.discovery.consul.address, found.discovery.consul.token) == ("http://file:1", "file")


def test_consul_s_address_may_be_a_url() -> None:
    assert read(LEAST, CONSUL_HTTP_ADDR="https://c:8501").discovery.consul.address == "https://c:8501"
    assert read(LEAST, CONSUL_HTTP_ADDR="[::1]:8500").discovery.consul.address == "http://[::1]:8500"


def test_consul_s_own_variables(tmp_path: Path) -> None:
    """As api.DefaultConfig and api.NewClient of Consul read them."""
    token, pem = tmp_path / "token", tmp_path / "pem"
    token.write_text("of-the-file\n")
    pem.write_text("-----BEGIN CERTIFICATE-----")
    found = read(
        LEAST, CONSUL_HTTP_ADDR="c:8501", CONSUL_HTTP_SSL="1", CONSUL_HTTP_TOKEN="env", CONSUL_HTTP_TOKEN_FILE=str(token),
        CONSUL_CACERT=str(pem), CONSUL_CLIENT_CERT=str(pem), CONSUL_CLIENT_KEY=str(pem), CONSUL_HTTP_SSL_VERIFY="F",
    ).discovery.consul  # fmt: skip
    assert (found.address, found.token) == ("https://c:8501", "of-the-file")
    assert found.tls == ConsulTls(True, str(pem), str(pem), str(pem), False)
    assert read(LEAST).discovery.consul.tls == ConsulTls()


@pytest.mark.parametrize(
    ("ssl", "address", "used"),
    [
        ("true", "http://c:8500", "https://c:8500"),
        ("true", "https://c:8500", "https://c:8500"),
        ("false", "http://c:8500", "http://c:8500"),
        # Whoever writes https means it.
        ("false", "https://c:8500", "https://c:8500"),
        ("", "http://c:8500", "http://c:8500"),
    ],
)
def test_consul_is_never_asked_in_clear_with_its_variable_for_ssl(ssl: str, address: str, used: str) -> None:
    assert read(LEAST, CONSUL_HTTP_ADDR=address, CONSUL_HTTP_SSL=ssl).discovery.consul.address == used
    text = f"version: 1\ndiscovery: {{consul: {{address: '{address}'}}}}\n"
    found = read(text, CONSUL_HTTP_SSL=ssl).discovery
    assert found.consul.address == used
    settings = remote_key.consul_settings(source.Key("consul", "elsewhere:8500", "k"), found)
    assert settings.address == ("https" if ssl == "true" else "http") + "://elsewhere:8500"


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("CONSUL_HTTP_SSL", "yes", "is neither true nor false"),
        ("CONSUL_HTTP_SSL_VERIFY", "0x", "is neither true nor false"),
        ("CONSUL_CACERT", "/nowhere", "/nowhere cannot be read: No such file or directory"),
        ("CONSUL_CLIENT_CERT", __file__, "needs CONSUL_CLIENT_KEY as well"),
        ("CONSUL_CLIENT_KEY", __file__, "needs CONSUL_CLIENT_CERT as well"),
        ("CONSUL_HTTP_TOKEN_FILE", "/nowhere", "/nowhere cannot be read: No such file or directory"),
        ("CONSUL_HTTP_TOKEN_FILE", "/", "/ cannot be read: Is a directory"),
        ("CONSUL_HTTP_TOKEN_FILE", __file__, f"{__file__} holds no token"),
    ],
)
def test_mistakes_in_consul_s_variables(name: str, value: str, wrong: str) -> None:
    assert mistakes(LEAST, **{name: value}) == [f"f: {name}: {wrong} (environment)"]


def test_mistakes_in_the_environment_are_told_with_those_in_the_file() -> None:
    told = mistakes("version: 2\n", GATEWAY_TRUSTED_PROXIES="private,nope", CONSUL_HTTP_ADDR="unix:///run/consul.sock")
    assert [one.split(": ")[0] for one in told] == ["f", "f", "f:1:10"]
    assert told[0].startswith("f: GATEWAY_TRUSTED_PROXIES: ")
    assert told[0].endswith("(environment)")
    assert told[1].startswith("f: CONSUL_HTTP_ADDR: has the scheme unix")


# -- how mistakes are told ---------------------------------------------------------------


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    text = dedent("""\
        version: 1
        routes:
          - {name: a, upstream: nope, match: {prefix: /a, methods: [get]}}
          - {name: a, upstream: users, match: {prefix: /b}}
          - {name: b, upstream: users, match: {prefix: /b/}}
          - {name: c, upstream: users, split: [{upstream: users}]}
        server:
          timeouts: {header: 5, header: 6s}
          drain: ${WAIT}
        upstreams:
          users: {endpoints: [http://169.254.169.254/, http://u:p@h]}
          orders: {dns_srv: _http..tcp}
          stock: {}
        """)
    told = mistakes(text)
    assert [": ".join(one.split(": ")[:2]) for one in told] == [
        f"{at(text, 'nope')}: routes[0].upstream",
        f"{at(text, 'get')}: routes[0].match.methods[0]",
        f"{at(text, 'a, upstream: users')}: routes[1].name",
        f"{at(text, '{prefix: /b/}')}: routes[2].match",
        f"{at(text, 'split')}: routes[3].split",
        f"{at(text, '5, header')}: server.timeouts.header",
        f"{at(text, 'header: 6s')}: server.timeouts.header",
        f"{at(text, '${WAIT}')}: server.drain",
        f"{at(text, 'http://u')}: upstreams.users.endpoints[1]",
        f"{at(text, '_http..tcp')}: upstreams.orders.dns_srv",
        f"{at(text, 'stock')}: upstreams.stock",
    ]


def test_mistakes_are_values() -> None:
    with pytest.raises(ConfigError) as caught:
        read("version: 1\nserver: {via: x, drain: 1}\n")
    assert caught.value.mistakes == [
        Mistake(2, 15, "server.via", 'must be one of both | request | response | off, not "x"'),
        Mistake(2, 25, "server.drain", "must be a duration, not 1 (such as 500ms, 5s, 2m, 1h; at most 8760h; 0: none)"),
    ]


def test_a_mistake_is_one_line_whatever_the_file_holds() -> None:
    told = mistake('version: 1\nserver: {"a\\nb\\x1b[31m": 1}\n')
    assert told.startswith(r"f:2:10: server.a\nb\x1b[31m: unknown key")
    assert mistake('version: 1\nserver: {via: "x\\ny"}\n').endswith(r'not "x\ny"')


def test_long_values_are_cut() -> None:
    told = mistake(server(f"via: {'x' * 500}"))
    assert told.endswith(f'not "{"x" * 59}…"')


def test_near_misses_are_named() -> None:
    assert mistake(server("trusted_proxys: []")).startswith(
        "f:3:3: server.trusted_proxys: unknown key; did you mean trusted_proxies? (allowed: name, "
    )


@pytest.mark.parametrize("text", ["", "# nothing", "---", "null", "~"])
def test_an_empty_document(text: str) -> None:
    assert mistake(text) == "f:1:1: is empty (at least: version: 1)"


@pytest.mark.parametrize("text", ["- 1", "x", "5", "[]"])
def test_a_document_is_a_mapping(text: str) -> None:
    assert mistake(text) == "f:1:1: must be a mapping (version, upstreams, routes …)"


def test_merge_keys_are_ordinary_and_hence_unknown() -> None:
    assert mistake("version: 1\n<<: {routes: []}\n").startswith("f:2:1: <<: unknown key")


def test_aliases_may_be_used() -> None:
    found = read(
        """\
        version: 1
        upstreams:
          a: {consul: a, timeouts: &slow {response: 60s}}
          b: {consul: b, timeouts: *slow}
        """
    )
    assert found.upstreams["a"].timeouts == found.upstreams["b"].timeouts
    assert found.upstreams["b"].timeouts.response == 60.0
