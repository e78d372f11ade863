"""Which names and addresses are this machine's own."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from gateway.net import machine


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "a.localhost", socket.gethostname(), f"{socket.gethostname().upper()}."])
def test_own_names(name: str) -> None:
    assert machine.has_name(name)


@pytest.mark.parametrize("name", ["", "localhost.example", "xlocalhost", f"x{socket.gethostname()}", "127.0.0.1"])
def test_other_names(name: str) -> None:
    assert not machine.has_name(name)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.9.9.9", "::1"])
def test_own_addresses(text: str) -> None:
    assert machine.has_address(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("urls", "here"),
    [
        ([], True),
        (["http://127.0.0.1:8500"], True),
        (["localhost:2379", "http://[::1]:2379"], True),
        (["127.0.0.1"], True),
        (["http://127.0.0.1:2379", "http://198.51.100.1:2379"], False),
        (["consul.example:8500"], False),
    ],
)
def test_servers_on_this_machine(urls: list[str], here: bool) -> None:
    assert machine.has_all(urls) is here


# TEST-NET-2, TEST-NET-3 and the documentation prefix (RFC 5737, 3849); a broadcast; a zone that is none.
@pytest.mark.parametrize("text", ["198.51.100.1", "203.0.113.1", "2001:db8::1", "255.255.255.255", "fe80::1%nowhere"])
def test_other_addresses(text: str) -> None:
    assert not machine.has_address(ipaddress.ip_address(text))


def test_the_address_that_leads_elsewhere_is_an_own_one() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("no route leads out of this machine")
        own = ipaddress.ip_address(probe.getsockname()[0])
    assert machine.has_address(own)


def test_the_kernel_is_asked_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(family: int, kind: int) -> socket.socket:
        asked.append(family)
        return socket.socket(family, kind)

    now = [0.0]
    monkeypatch.setattr(machine, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    monkeypatch.setattr(machine, "_socket", type("Kernel", (), {"socket": staticmethod(ask)}))
    other = ipaddress.ip_address("198.51.100.77")
    machine._has.cache_clear()
    for _ in range(3):
        machine.has_address(other)
    assert len(asked) == 1
    now[0] = machine.KEPT
    machine.has_address(other)
    assert len(asked) == 2
    machine._has.cache_clear()
