"""Whom the gateway believes, and whose address it takes for the client's."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http import trusted_proxies
from gateway.http.trusted_proxies import Trust, entry_address, parse


@pytest.mark.parametrize(
    ("word", "inside", "outside"),
    [
        ("private", ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.9.9", "fd00::1", "fc00::1"],
         ["9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.169.0.0", "127.0.0.1", "169.254.1.1",
          "100.64.0.1", "fe80::1", "::1", ""]),
        ("loopback", ["127.0.0.1", "127.9.9.9", "::1"], ["126.255.255.255", "128.0.0.0", "::2", "10.0.0.1", ""]),
        ("unix", [""], ["127.0.0.1", "::1", "10.0.0.1"]),
        ("203.0.113.7", ["203.0.113.7"], ["203.0.113.6", "203.0.113.8"]),
        ("203.0.113.0/24", ["203.0.113.0", "203.0.113.255"], ["203.0.112.255", "203.0.114.0"]),
        ("2001:db8::/32", ["2001:db8::1", "2001:0DB8:ffff::"], ["2001:db9::", "203.0.113.1"]),
        ("::ffff:203.0.113.0/120", ["203.0.113.9", "::ffff:203.0.113.9"], ["203.0.114.9"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["2001:db8::1", "", "::1"]),
        ("::/0", ["2001:db8::1"], ["1.2.3.4", ""]),
    ],
)  # fmt: skip
def test_each_word_means_its_networks_and_nothing_else(word: str, inside: list[str], outside: list[str]) -> None:
    trusted = Trust((word,))
    assert [peer for peer in inside if not trusted.trusts(peer)] == []
    assert [peer for peer in outside if trusted.trusts(peer)] == []
    # The second time the answer comes from what is remembered.
    assert all(trusted.trusts(peer) for peer in inside)
    assert not any(trusted.trusts(peer) for peer in outside)


def test_several_words_add_up() -> None:
    trusted = Trust(("unix", "loopback", "203.0.113.0/24"))
    assert [trusted.trusts(peer) for peer in ("", "127.0.0.1", "203.0.113.1", "10.0.0.1")] == [True, True, True, False]


def test_without_words_nobody_is_trusted() -> None:
    nobody = Trust(())
    assert not any(nobody.trusts(peer) for peer in ("", "127.0.0.1", "::1", "10.0.0.1"))


@pytest.mark.parametrize(
    "word",
    ["", "*", "all", "Private", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "10.0.0.0-10.0.0.9", "example.com", "::1/129",
     "fe80::1%eth0", "fe80::%eth0/64", "010.0.0.0/8", " private", "10.0.0.0/8,loopback", "2001:db8::1/32"],
)  # fmt: skip
def test_a_wrong_word_is_named(word: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse(("private", word))
    assert repr(word) in str(raised.value)


@pytest.mark.parametrize("peer", ["unix:", "garbage", "10.0.0.1, 10.0.0.2", "10.0.0.256", "[10.0.0.1]", "\x00"])
def test_a_peer_that_is_no_address_is_not_trusted(peer: str) -> None:
    trusted = Trust(("0.0.0.0/0", "::/0"))
    assert not trusted.trusts(peer)
    assert trusted.client_address(peer, [b"1.2.3.4"]) == peer


def test_a_peer_with_a_zone_is_judged_by_its_address() -> None:
    trusted = Trust(("fe80::/10",))
    assert trusted.trusts("fe80::1%eth0")
    assert trusted.client_address("fe80::1%eth0", []) == "fe80::1"


LB = Trust(("10.0.0.0/8", "fd00::/8", "unix"))


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        # Nobody of trust speaks: what is said does not count.
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", [b"1.2.3.4"], "203.0.113.9"),
        ("203.0.113.9", [b"10.0.0.1"], "203.0.113.9"),
        ("::ffff:203.0.113.9", [b"1.2.3.4"], "203.0.113.9"),
        # A trusted peer.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        ("fd00::1", [b"2001:DB8::0:1"], "2001:db8::1"),
        # The rightmost that is not trusted, never the leftmost.
        ("10.0.0.1", [b"6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", [b"6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", [b"6.6.6.6", b"1.2.3.4", b"10.0.0.2,10.0.0.3"], "1.2.3.4"),
        ("10.0.0.1", [b"10.9.9.9, 1.2.3.4, ::ffff:10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", [b"1.2.3.4,10.0.0.2", b"5.6.7.8"], "5.6.7.8"),
        # All are trusted: the leftmost.
        ("10.0.0.1", [b"10.0.0.4, 10.0.0.3", b"10.0.0.2"], "10.0.0.4"),
        ("10.0.0.1", [b"fd00::4"], "fd00::4"),
        # What does not parse ends the walk.
        ("10.0.0.1", [b"unknown"], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4, "], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4", b""], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"1.2.3.4, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"1.2.3.4, _hidden"], "10.0.0.1"),
        ("10.0.0.1", [b"\xff\xfe, 10.0.0.2"], "10.0.0.2"),
        # A unix socket has no address of its own.
        ("", [b"1.2.3.4"], "1.2.3.4"),
        ("", [], ""),
        ("", [b"unknown"], ""),
    ],
)
def test_the_clients_address(peer: str, lines: list[bytes], client: str) -> None:
    assert LB.client_address(peer, lines) == client
    assert LB.client_address(peer, lines) == client


def test_a_unix_socket_that_is_not_trusted_tells_nothing() -> None:
    assert Trust(("private",)).client_address("", [b"1.2.3.4"]) == ""


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        (b"1.2.3.4", "1.2.3.4"),
        (b" \t1.2.3.4 ", "1.2.3.4"),
        (b"1.2.3.4:5", "1.2.3.4"),
        (b"1.2.3.4:65535", "1.2.3.4"),
        (b'"1.2.3.4"', "1.2.3.4"),
        (b'"1.2.3.4:80"', "1.2.3.4"),
        (b'" 1.2.3.4 "', "1.2.3.4"),
        (b"::1", "::1"),
        (b"[::1]", "::1"),
        (b"[::1]:5", "::1"),
        (b'"[2001:db8::1]:443"', "2001:db8::1"),
        (b"::ffff:1.2.3.4", "1.2.3.4"),
        (b"[::ffff:1.2.3.4]:80", "1.2.3.4"),
        (b"2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        (b"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ],
)
def test_an_entry_may_carry_port_brackets_quotes_and_space(entry: bytes, address: str) -> None:
    assert str(entry_address(entry)) == address


@pytest.mark.parametrize(
    "entry",
    [b"", b" ", b'"', b'""', b"unknown", b"_x", b"-", b"example.com", b"1.2.3", b"1.2.3.4.5", b"1.2.3.256",
     b"01.2.3.4", b"1.2.3.4:", b"1.2.3.4:65536", b"1.2.3.4:-1", b"1.2.3.4:x", b"1.2.3.4:000080", b'"1.2.3.4',
     b"1.2.3.4/8", b"1.2.3.4 5", b"1.2.3.4\r\nX: y", b"1.2.3.4\n", b"[1.2.3.4]", b"[::1", b"::1]", b"[::1]5", b"[::1]:",
     b"fe80::1%eth0", b"[fe80::1%25eth0]", b":::", b"12345::", b"0x7f000001", b"2130706433", b"\xb2.2.3.4",
     b"1.2.3.4,5.6.7.8", b" " * 100 + b"1.2.3.4"],
)  # fmt: skip
def test_an_entry_that_is_no_address(entry: bytes) -> None:
    assert entry_address(entry) is None


def test_the_walk_is_bounded() -> None:
    chain = [b"10.1.%d.%d" % (n // 256, n % 256) for n in range(30_000)]
    assert LB.client_address("10.0.0.1", [b", ".join(chain)]) == chain[-64].decode()
    assert LB.client_address("10.0.0.1", [b",".join(chain[:64])]) == chain[0].decode()
    assert LB.client_address("10.0.0.1", [b",".join([b"1.2.3.4", *chain[:64]])]) == chain[0].decode()


def test_what_is_remembered_is_bounded() -> None:
    trusted = Trust(("private",))
    addresses = [str(ipaddress.IPv4Address(0x0A000000 + n)) for n in range(3 * 4096)]
    for address in addresses:
        assert trusted.trusts(address)
        assert trusted.client_address("10.0.0.1", [address.encode() + b":1"]) == address
    assert len(trusted._peers) <= 4096
    assert len(trusted._entries) <= 4096


ADDRESSES = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.integers(0, 255).map(lambda n: ipaddress.IPv4Address(0x0A000000 + n)),
    st.integers(0, 255).map(lambda n: ipaddress.IPv6Address((0xFD << 120) + n)),
)


def written(address: trusted_proxies.Address, form: int) -> str:
    """One of the ways in which an address is written."""
    text = str(address)
    if address.version == 6:
        return [text, f"[{text}]", f"[{text}]:80", f'"[{text}]:80"'][form]
    return [text, f"{text}:80", f'"{text}"', f"::ffff:{text}"][form]


ENTRIES = st.one_of(
    st.builds(written, ADDRESSES, st.integers(0, 3)),
    st.sampled_from(["unknown", "", "_a", "1.2.3.4.5", "[::1"]),
    st.text(st.characters(max_codepoint=255, exclude_characters=","), max_size=20),
)


def known(text: str) -> str | None:
    """What a reader of X-Forwarded-For without our code would take an entry for."""
    text = text.strip(" \t")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" \t")
    for cut in (text, text.removesuffix("]").removeprefix("["), text.rpartition(":")[0].strip("[]")):
        try:
            address = ipaddress.ip_address(cut)
        except ValueError:
            continue
        return str(getattr(address, "ipv4_mapped", None) or address)
    return None


@given(ADDRESSES, st.lists(st.lists(ENTRIES, min_size=1, max_size=5), max_size=4))
def test_the_client_is_the_first_stranger_from_the_right(peer: trusted_proxies.Address, lines: list[list[str]]) -> None:
    found = LB.client_address(str(peer), [", ".join(line).encode("latin-1") for line in lines])
    chain = [entry for line in lines for entry in line]
    plain = str(getattr(peer, "ipv4_mapped", None) or peer)
    if not LB.trusts(str(peer)):
        assert found == plain
        return
    # What the gateway took for the client stands at some place, and everything to the right
    # of that place is a trusted proxy.
    seen = [plain]
    for entry in reversed(chain):
        address = entry_address(entry.encode("latin-1"))
        if not LB.trusts(seen[-1]) or address is None:
            break
        assert known(entry) == str(address)
        seen.append(str(address))
    assert found == seen[-1]
    assert all(LB.trusts(address) for address in seen[:-1])


@given(st.binary(max_size=80))
def test_no_entry_is_anything_but_an_address_or_nothing(entry: bytes) -> None:
    address = entry_address(entry)
    assert address is None or str(ipaddress.ip_address(str(address))) == str(address)
    client = LB.client_address("10.0.0.1", [entry])
    assert str(ipaddress.ip_address(client)) == client


@given(ADDRESSES, st.text(max_size=30))
def test_what_is_added_on_the_left_changes_nothing(stranger: trusted_proxies.Address, lie: str) -> None:
    line = f"{stranger}, 10.0.0.2"
    told = LB.client_address("10.0.0.1", [line.encode()])
    if not LB.trusts(str(stranger)):
        assert LB.client_address("10.0.0.1", [lie.encode("utf-8", "replace"), line.encode()]) == told
