"""Which IPv4 address an IPv6 one holds, and which addresses no endpoint may have."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.model import NEVER_ENDPOINTS
from gateway.net.ip import address, denied, forms, networks, never

DEFAULT = networks(NEVER_ENDPOINTS)

# Of 10.1.2.3, each as RFC 4291, 2765, 6052, 8215 and 3056 write it.
EMBEDDED = [
    "10.1.2.3",
    "::ffff:10.1.2.3",
    "::FFFF:0a01:0203",
    "[::ffff:10.1.2.3]",
    "::10.1.2.3",
    "::a01:203",
    "::ffff:0:10.1.2.3",
    "64:ff9b::10.1.2.3",
    "64:ff9b::a01:203",
    "64:ff9b:1::a01:203",
    "64:ff9b:1:fffe::a01:203",
    "2002:a01:203::",
    "2002:a01:203:1:2:3:4:5",
]


def reason(text: str, deny: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = DEFAULT) -> str:
    found = address(text)
    assert found is not None
    return never(found) or denied(found, deny)


@pytest.mark.parametrize("text", EMBEDDED)
def test_the_ipv4_address_is_found(text: str) -> None:
    found = address(text)
    assert found is not None
    assert forms(found)[-1] == ipaddress.ip_address("10.1.2.3")


@pytest.mark.parametrize("text", ["::1", "::", "2001:db8::a01:203", "64:ff9c::a01:203", "64:ff9b:0:1::a01:203", "fe80::1"])
def test_other_addresses_hold_none(text: str) -> None:
    assert forms(ipaddress.ip_address(text)) == (ipaddress.ip_address(text),)


@pytest.mark.parametrize("text", EMBEDDED)
def test_every_network_of_the_user_holds_for_each_form(text: str) -> None:
    assert "is in 10.0.0.0/8, which discovery.deny excludes" in reason(text, networks(["10.0.0.0/8"]))
    assert reason(text, networks(["10.1.2.4/32", "11.0.0.0/8"])) == ""


@pytest.mark.parametrize("written", ["::ffff:10.0.0.0/104", "::ffff:10.1.2.3", "::ffff:0:0/96"])
@pytest.mark.parametrize("text", EMBEDDED)
def test_a_network_may_be_written_as_mapped(text: str, written: str) -> None:
    assert "discovery.deny excludes" in reason(text, networks([written]))


def test_a_network_of_ipv6_is_not_one_of_ipv4() -> None:
    assert reason("10.1.2.3", networks(["::/0"])) == ""
    assert reason("2001:db8::1", networks(["0.0.0.0/0"])) == ""
    assert reason("2002:a01:203::", networks(["2002::/16"])) == "2002:a01:203:: is in 2002::/16, which discovery.deny excludes"


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254", "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
        "169.254.170.2", "100.100.100.200", "::ffff:100.100.100.200", "64:ff9b::6464:64c8", "2002:6464:64c8::",
        "fd00:ec2::254", "fd00:0ec2:0:0::0254",
    ],
)  # fmt: skip
def test_denied_by_default(text: str) -> None:
    assert reason(text).endswith(", which discovery.deny excludes")
    assert reason(text, ()) == ""


@pytest.mark.parametrize(
    "text",
    [
        "255.255.255.255", "::ffff:255.255.255.255", "64:ff9b::ffff:ffff", "2002:ffff:ffff::", "::255.255.255.255",
        "224.0.0.1", "239.255.255.255", "::ffff:224.0.0.1", "64:ff9b::e000:1", "2002:e000:1::", "ff02::1", "ff05::2",
    ],
)  # fmt: skip
def test_denied_whatever_the_file_says(text: str) -> None:
    assert reason(text, ()).endswith(" is not an address of one host")


@pytest.mark.parametrize("text", ["fe80::1%eth0", "2001:db8::1%1", "::ffff:10.0.0.1%eth0", "::1%lo", "[fe80::1%eth0]"])
def test_a_zone_is_refused(text: str) -> None:
    assert reason(text, ()).endswith(" has a zone")


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "10.0.0.1", "100.100.100.201", "fd00:ec2::253", "fe80::1", "2001:db8::1"])
def test_allowed_by_default(text: str) -> None:
    assert reason(text) == ""


def test_the_reason_names_both_forms() -> None:
    assert reason("64:ff9b::a9fe:a9fe") == (
        "64:ff9b::a9fe:a9fe (169.254.169.254) is in 169.254.0.0/16, which discovery.deny excludes"
    )


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f000001", "010.0.0.1", "1.2.3.4:80", "[::1", "a%eth0"])
def test_no_address(text: str) -> None:
    assert address(text) is None
