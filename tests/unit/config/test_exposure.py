"""Warnings of secrets that are easy to guess, and of traffic that others can read or answer."""

from __future__ import annotations

import pytest

from gateway import config
from gateway.config import source
from tests.unit.config.reading import at, read, with_upstream

LONG, SHORT = "x" * 16, "x" * 15


def warnings(text: str, **environ: str) -> list[str]:
    return list(read(text, **environ).warnings)


@pytest.mark.parametrize("bind", ["0.0.0.0:9901", "[::]:9901", "10.0.0.1:9901", "admin.example:9901"])
def test_a_short_token_beyond_loopback(bind: str) -> None:
    text = f'version: 1\nadmin: {{bind: "{bind}", token: {SHORT}}}\n'
    told = f"{at(text, SHORT)}: admin.token: is shorter than 16 characters, and others reach {bind}"
    assert warnings(text) == [told]
    assert warnings(text.replace(SHORT, LONG)) == []


@pytest.mark.parametrize("bind", ["127.0.0.1:9901", "[::1]:9901", "localhost:9901", "unix:/run/a.sock"])
def test_a_short_token_that_only_this_machine_can_try(bind: str) -> None:
    assert warnings(f'version: 1\nadmin: {{bind: "{bind}", token: s}}\n') == []


def sticky(secret: str) -> str:
    return with_upstream(f"{{consul: s, balance: {{sticky: {{cookie: c, secret: {secret}}}}}}}")


BEYOND = [
    ("", {"PORT": "8000"}),
    (f'admin: {{bind: "0.0.0.0:9901", token: {LONG}}}\n', {}),
    ("server: {trusted_proxies: [private]}\n", {}),
    ("server: {trusted_proxies: [loopback, 10.0.0.0/8]}\n", {}),
]


@pytest.mark.parametrize(("more", "environ"), BEYOND)
def test_a_short_secret_of_cookies_beyond_loopback(more: str, environ: dict[str, str]) -> None:
    text = sticky(SHORT) + more
    told = "is shorter than 16 characters: who guesses it can choose the endpoint"
    assert warnings(text, **environ) == [f"{at(text, 'secret:')}: upstreams.u.balance.sticky.secret: {told}"]
    assert warnings(sticky(LONG) + more, **environ) == []


@pytest.mark.parametrize("more", ["", "server: {trusted_proxies: [loopback, unix, 127.0.0.0/8]}\n", "admin: null\n"])
def test_a_short_secret_of_cookies_on_this_machine(more: str) -> None:
    assert warnings(sticky("s") + more) == []


def test_an_upstream_that_is_not_verified() -> None:
    text = with_upstream("{endpoints: [https://10.0.0.1], tls: {verify: false}}")
    (told,) = warnings(text)
    assert told.startswith(f"{at(text, 'false')}: upstreams.u.tls.verify: false: whoever is on the way can answer")
    assert warnings(text.replace("false", "true")) == []


@pytest.mark.parametrize(
    ("discovery", "key", "told"),
    [
        ("consul: {address: 'http://consul.example:8500', token: s}", "consul.address", "the token goes to consul.example"),
        ("consul: {address: 'http://[fd00::1]:8500', token: s}", "consul.address", "the token goes to fd00::1"),
        ("etcd: {endpoints: ['http://127.0.0.1:1', 'http://10.0.0.1:2379'], username: u, password: s}", "etcd.endpoints", "the password goes to 10.0.0.1"),
    ],
)  # fmt: skip
def test_credentials_in_clear(discovery: str, key: str, told: str) -> None:
    text = f"version: 1\ndiscovery: {{{discovery}}}\n"
    (warning,) = warnings(text)
    assert f"discovery.{key}: {told} in clear (https)" in warning
    assert warnings(text.replace("http:", "https:")) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:8500", "http://localhost:8500", "http://[::1]:8500"])
def test_credentials_that_stay_on_this_machine(address: str) -> None:
    assert warnings(f"version: 1\ndiscovery: {{consul: {{address: '{address}', token: s}}}}\n") == []


def test_a_token_of_the_environment_counts() -> None:
    environ = {"CONSUL_HTTP_ADDR": "http://10.0.0.1:8500", "CONSUL_HTTP_TOKEN": "s"}
    (warning,) = warnings("version: 1\n", **environ)
    assert "the token goes to 10.0.0.1 in clear" in warning


def test_secrets_are_not_repeated() -> None:
    text = f'version: 1\nadmin: {{bind: "0.0.0.0:9901", token: {SHORT}}}\ndiscovery: {{consul: {{address: "http://h", token: sesame}}}}\n'
    assert all(SHORT not in one and "sesame" not in one for one in warnings(text))


# -- loopback endpoints of a registry on another machine --------------------------------------

LOOPBACK = ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost", "a.localhost"]


def of_key(named: str, host: str, file: str | None = None) -> tuple[str, ...]:
    held = with_upstream(f"{{endpoints: ['http://10.0.0.1:80', 'http://{host}:80']}}").encode()
    return config.assemble(source.parse(named), file.encode() if file is not None else None, held, {}).warnings


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("key", ["consul://198.51.100.1:8500/a", "etcd://etcd.example:2379//a"])
def test_a_loopback_endpoint_that_another_machine_names(host: str, key: str) -> None:
    """Requests would go to whatever has that port here."""
    (warning,) = of_key(key, host)
    told = "leads to the gateway's own machine, but the registry is on another one"
    assert warning.startswith(f"{key}:3:")
    assert warning.endswith(f"upstreams.u.endpoints[1]: {told}")


@pytest.mark.parametrize("host", ["10.0.0.2", "localhost.example", "[fd00::1]"])
def test_no_loopback_endpoint(host: str) -> None:
    assert of_key("consul://198.51.100.1:8500/a", host) == ()


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("key", ["consul://127.0.0.1:8500/a", "etcd://localhost:2379//a"])
def test_a_loopback_endpoint_of_a_registry_here(host: str, key: str) -> None:
    assert of_key(key, host) == ()


def test_one_that_the_file_names() -> None:
    assert warnings(with_upstream("{endpoints: ['http://127.0.0.1:80']}")) == []


def test_every_member_of_etcd_that_is_asked_counts() -> None:
    """The key's place is one of several members that the local file lists."""
    file = "version: 1\ndiscovery: {etcd: {endpoints: ['http://127.0.0.1:2379', 'http://198.51.100.1:2379']}}\n"
    assert len(of_key("gateway.yaml,etcd://127.0.0.1:2379//a", "127.0.0.1", file)) == 1
    assert of_key("gateway.yaml,etcd://127.0.0.1:2379//a", "127.0.0.1", file.replace("198.51.100.1", "[::1]")) == ()


def test_a_consul_that_is_not_verified() -> None:
    environ = {"CONSUL_HTTP_ADDR": "https://h:8501", "CONSUL_HTTP_SSL_VERIFY": "false"}
    (warning,) = warnings("version: 1\n", **environ)
    assert "is not verified (CONSUL_HTTP_SSL_VERIFY)" in warning
    assert warnings("version: 1\n", CONSUL_HTTP_SSL_VERIFY="false") == []
