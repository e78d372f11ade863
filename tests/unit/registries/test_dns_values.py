"""What the DNS client decides without a server: the system's servers, which addresses to believe in."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import DnsSettings
from gateway.registries import RegistryError, dns_servers
from gateway.registries.dns import DnsApi, _has_route, _routed, shared
from gateway.registries.dns_servers import _NoAnswer, _place, _read, flat, of_system


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 10.0.0.53\n", ("10.0.0.53:53",)),
        ("# nameserver 1.1.1.1\nsearch a.b\n nameserver  10.0.0.1\nnameserver ::1 \n", ("10.0.0.1:53", "[::1]:53")),
        ("nameserver fe80::1%eth0\n", ("[fe80::1%eth0]:53",)),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(5)), ("10.0.0.0:53", "10.0.0.1:53", "10.0.0.2:53")),
        ("nameserver\noptions rotate\n", ("127.0.0.1:53",)),
        ("", ("127.0.0.1:53",)),
    ],
)
def test_servers_of_the_system(tmp_path: Path, text: str, servers: tuple[str, ...]) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    assert of_system(file) == servers


@pytest.mark.parametrize(
    ("server", "place"),
    [
        ("127.0.0.1:53", (socket.AF_INET, ("127.0.0.1", 53))),
        ("[::1]:5353", (socket.AF_INET6, ("::1", 5353, 0, 0))),
        ("[fe80::1%lo]:53", (socket.AF_INET6, ("fe80::1", 53, 0, socket.if_nametoindex("lo")))),
    ],
)
def test_where_a_server_is(server: str, place: object) -> None:
    assert _place(server) == place


def test_without_a_file_this_machine_is_asked(tmp_path: Path) -> None:
    assert of_system(tmp_path / "none") == ("127.0.0.1:53",)


def test_the_configuration_beats_the_system() -> None:
    assert flat(["10.0.0.53:53"])() == ("10.0.0.53:53",)
    assert flat([]) is of_system


def test_one_client_for_each_configuration() -> None:
    assert shared(DnsSettings(("127.0.0.1:1",))) is shared(DnsSettings(("127.0.0.1:1",)))
    assert shared(DnsSettings(("127.0.0.1:1",))) is not shared(DnsSettings(("127.0.0.1:2",)))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["10.0.0.2", "10.0.0.1", "10.0.0.1"], ("10.0.0.1", "10.0.0.2")),
        (["10.0.0.1", "2001:db8::1", "::1"], ("10.0.0.1", "::1")),
        # Nothing else is there: it is tried.
        (["2001:db8::1"], ("2001:db8::1",)),
        ([], ()),
    ],
)
def test_ipv6_without_a_route_is_left_out_beside_ipv4(hosts: list[str], expected: tuple[str, ...]) -> None:
    assert _routed(hosts, lambda host: host == "::1") == expected


def test_there_is_a_route_to_this_machine_and_none_to_nowhere() -> None:
    assert _has_route("::1")
    assert not _has_route("10.0.0.1")


@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 64, "é" * 70, ".".join(["a" * 60] * 5)])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(RegistryError, match=r"^[^\n]+$"):
        DnsApi(DnsSettings(("127.0.0.1:1",))).addresses(name)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "a.localhost"])
def test_localhost_is_this_machine(name: str) -> None:
    assert DnsApi(DnsSettings(("127.0.0.1:1",))).addresses(name).hosts == ("127.0.0.1",)


QUERY = dns_servers.dns.message.make_query("a.test", "SRV", id=0x1234)


@given(st.binary(max_size=120), st.booleans())
def test_foreign_bytes_are_a_reply_or_none_or_no_answer(tail: bytes, header: bool) -> None:
    head = QUERY.to_wire()[:2] + (b"\x84\x00\x00\x01\x00\x01\x00\x00\x00\x01" if header else b"")
    # Nothing but these: any other exception would end the test.
    with contextlib.suppress(_NoAnswer):
        reply = _read(head + tail, QUERY)
        assert reply is None or QUERY.is_response(reply)
    assert _read(b"\x00\x00" + tail, QUERY) is None
