"""What is this gateway itself, and what is somebody else."""

from __future__ import annotations

import socket

import pytest

from gateway.config.urls import endpoint
from gateway.model import AdminSettings, Config, ConsulSource, Endpoint, StaticSource, Upstream
from gateway.net import machine
from gateway.upstreams import own_addresses
from gateway.upstreams.own_addresses import Listeners


@pytest.mark.parametrize(
    ("bind", "host", "port", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, True),
        ("http://127.0.0.1:8000", "127.0.0.1", 8001, False),
        ("http://127.0.0.1:8000", "127.0.0.2", 8000, False),
        ("http://127.0.0.1:8000", "::1", 8000, False),
        ("http://127.0.0.1:8000", "192.0.2.1", 8000, False),
        ("http://[::ffff:127.0.0.1]:8000", "127.0.0.1", 8000, True),
        ("https://[::1]:8000", "::1", 8000, True),
        ("https://[::1]:8000", "127.0.0.1", 8000, False),
        ("http://0.0.0.0:8000", "127.0.0.1", 8000, True),
        ("http://0.0.0.0:8000", "127.9.9.9", 8000, True),
        ("http://0.0.0.0:8000", "::1", 8000, False),
        ("http://0.0.0.0:8000", "198.51.100.1", 8000, False),
        ("http://[::]:8000", "127.0.0.1", 8000, True),
        ("http://[::]:8000", "::1", 8000, True),
        ("http://[::]:8000", "198.51.100.1", 8000, False),
        ("127.0.0.1:8000", "127.0.0.1", 8000, True),
        # What cannot be told: every address of this machine.
        (":8000", "127.0.0.1", 8000, True),
        (":8000", "::1", 8000, True),
        ("http://some.name:8000", "127.0.0.1", 8000, True),
        ("http://some.name:8000", "198.51.100.1", 8000, False),
        ("unix:/run/gateway.sock", "127.0.0.1", 8000, False),
        ("unix:/run/8000", "127.0.0.1", 8000, False),
        ("fd://8000", "127.0.0.1", 8000, False),
        ("", "127.0.0.1", 8000, False),
        ("http://127.0.0.1:8000", "a.example", 8000, False),
    ],
)
def test_own(bind: str, host: str, port: int, own: bool) -> None:
    told = Listeners([bind, "unix:/x"]).refusal(Endpoint("http", host, port))
    assert bool(told) == own
    assert not own or "is this gateway itself" in told


HOSTNAME = socket.gethostname()

# Ways to write 127.0.0.1, or this machine, in a URL.
HERE = [
    "127.0.0.1",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7f00:1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:7f00:1::1]",
    "0.0.0.0",
    "[::]",
    "[0:0:0:0:0:0:0:0]",
    "[::ffff:0.0.0.0]",
    "[64:ff9b::]",
    "[2002::]",
    "localhost",
    "LocalHost",
    "localhost.",
    "app.localhost",
    HOSTNAME,
    HOSTNAME.upper(),
]


@pytest.mark.parametrize("host", HERE)
@pytest.mark.parametrize("bind", ["http://127.0.0.1:8000", "http://0.0.0.0:8000", "http://[::]:8000"])
def test_however_it_is_written(bind: str, host: str) -> None:
    one = Listeners([bind])
    assert "is this gateway itself" in one.refusal(endpoint(f"http://{host}:8000/base?k=v"))
    assert one.refusal(endpoint(f"http://{host}:8001")) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.0.2.7"])
def test_a_name_of_this_machine_whatever_it_was_resolved_to(host: str) -> None:
    resolved = Endpoint("http", host, 8000, authority=b"localhost:8000")
    assert Listeners(["127.0.0.1:8000"]).refusal(resolved) == f"{resolved.address} is this gateway itself, which listens on 127.0.0.1:8000"


def test_a_default_port_needs_no_number() -> None:
    assert Listeners(["127.0.0.1:80"]).refusal(endpoint("http://localhost"))
    assert Listeners(["127.0.0.1:443"]).refusal(endpoint("https://[::ffff:127.0.0.1]"))


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://[64:ff9b::192.0.2.1]:8000", "http://[2002:c000:201::]:8000"])
def test_an_address_of_the_machine_in_each_form(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_address", lambda found: str(found) == "192.0.2.1")
    assert Listeners(["0.0.0.0:8000"]).refusal(endpoint(url))


@pytest.mark.parametrize("bind", ["http://127.0.0.1:x", "http://127.0.0.1:99999", "http://[::1:8000"])
def test_a_listener_that_cannot_be_read_is_an_error(bind: str) -> None:
    with pytest.raises(ValueError):
        Listeners([bind])


def test_no_question_where_the_port_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_address", lambda _: pytest.fail("asked"))
    monkeypatch.setattr(machine, "has_name", lambda _: pytest.fail("asked"))
    assert Listeners(["http://0.0.0.0:8000"]).refusal(Endpoint("http", "127.0.0.1", 1)) == ""


def test_warnings_are_about_endpoints_of_the_file() -> None:
    upstreams = {
        "a": Upstream("a", StaticSource((endpoint("http://10.0.0.1:8000"), endpoint("http://localhost:9901")))),
        "b": Upstream("b", ConsulSource("b")),
    }
    config = Config("v", upstreams, (), admin=AdminSettings("127.0.0.1:9901"))
    (path, message), *more = own_addresses.warnings(config, own_addresses.planned(config, ["127.0.0.1:8000"]))
    assert not more
    assert path == ("upstreams", "a", "endpoints", 1, "url")
    assert message == "is not used: localhost:9901 is this gateway itself, which listens on 127.0.0.1:9901"


@pytest.mark.parametrize("admin", [None, AdminSettings("inline"), AdminSettings("unix:/run/9901")])
def test_an_admin_listener_without_a_port(admin: AdminSettings | None) -> None:
    upstreams = {"a": Upstream("a", StaticSource((endpoint("http://127.0.0.1:9901"),)))}
    config = Config("v", upstreams, (), admin=admin)
    assert list(own_addresses.warnings(config, own_addresses.planned(config, ["unix:/x"]))) == []
