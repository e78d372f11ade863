"""What may be an endpoint's host, and which addresses are never dialled."""

import pytest

from gateway.model import Endpoint
from gateway.net.ip import networks
from gateway.providers.addresses import allowed, host

DENY = networks(["169.254.0.0/16", "fe80::/10", "10.9.0.0/24"])


def at(place: str) -> Endpoint:
    return Endpoint("http", place, 80)


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::FFFF:169.254.169.254", "169.254.169.254"),
        ("Api_1.Example", "api_1.example"),
        ("root.", "root."),
        ("", None),
        (".", None),
        ("a..b", None),
        ("a b", None),
        ("ex\u00e4mple", None),
        ("%2e", None),
        ("a\x00b", None),
        ("127.0.0.1\n", None),
        (("a." * 127)[:-1], ("a." * 127)[:-1]),
        ("a." * 127 + "b", None),
    ],
)
def test_spelling(text: str, spelt: str | None) -> None:
    assert host(text) == spelt


@pytest.mark.parametrize(
    "denied",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "2001:db8::1%eth0",
        "::ffff:10.0.0.1%eth0",
        "10.9.0.255",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "64:ff9b::",
        "2002::",
    ],
)
def test_never_dialled(denied: str) -> None:
    kept, reasons = allowed([at(denied), at("10.0.0.1")], DENY)
    assert kept == (at("10.0.0.1"),)
    assert len(reasons) == 1


@pytest.mark.parametrize("good", ["10.9.1.0", "127.0.0.1", "::1", "2001:db8::1"])
def test_dialled(good: str) -> None:
    assert allowed([at(good)], DENY) == ((at(good),), ())


def test_the_reason_names_address_and_setting() -> None:
    assert allowed([at("169.254.169.254")], DENY)[1] == (
        "169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes",
    )
