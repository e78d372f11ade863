"""Whom to believe: the trusted proxies, and the client's address that follows from them.

Rule: pure. Only what a trusted proxy says of a client counts, so the list of
X-Forwarded-For is read from its right end, where the nearest proxy wrote, and never from
its left, where anybody may have written. One dict lookup answers for an address that was
seen before; what is remembered is bounded, because clients choose their addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# private: RFC 1918 and RFC 4193. Link-local addresses and carriers' NAT (RFC 6598) are not
# in it: whoever wants those names them. loopback: RFC 1122 §3.2.1.3, RFC 4291 §2.5.3.
_WORDS: dict[str, tuple[Network, ...]] = {
    "private": tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))),
    "loopback": tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128"))),
    "unix": (),
}
# RFC 4291 §2.5.5.2: how a dual-stack socket shows an IPv4 peer.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

# Addresses remembered, of each kind; the table starts anew when it is full.
_SEEN = 4096
# The longest entry that can be an address: `"[` + 45 characters (RFC 4291 §2.2) + `]:65535"`.
_LONGEST = 64
# More proxies than this in a row are an attack on the walk's cost, not a network: so many
# entries from the right are looked at, as if the next one did not parse.
_HOPS = 64

# `address`, `address:port` for IPv4, `[address]` and `[address]:port` for IPv6.
_ENTRY = re.compile(
    r"(?P<v4>[0-9.]+) (?: :(?P<port4>[0-9]{1,5}) )?"
    r"| \[ (?P<v6>[0-9A-Fa-f:.]+) \] (?: :(?P<port6>[0-9]{1,5}) )?"
    r"| (?P<bare>[0-9A-Fa-f:.]+)",
    re.VERBOSE,
)
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Networks:
    """What the configuration's words mean. `unix`: peers on a unix socket are trusted."""

    unix: bool
    networks: tuple[Network, ...]

    def hold(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


class Known(NamedTuple):
    """What an address turned out to be. `text` is its one spelling, "" for no address."""

    trusted: bool
    text: str


_NO_ADDRESS = Known(False, "")


def parse(words: Iterable[str]) -> Networks:
    """What CIDRs and the words private, loopback and unix mean; ValueError says which is wrong."""
    unix = False
    networks: list[Network] = []
    for word in words:
        if word in _WORDS:
            unix = unix or word == "unix"
            networks.extend(_WORDS[word])
        else:
            networks.append(_network(word))
    return Networks(unix, tuple(networks))


def _network(word: str) -> Network:
    if "%" in word:
        raise ValueError(f"{word!r}: a network has no zone")
    try:
        network = ipaddress.ip_network(word)
    except ValueError as error:
        raise ValueError(f"{word!r}: not one of private, loopback, unix, nor a CIDR ({error})") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(mapped or 0), network.prefixlen - _MAPPED.prefixlen))
    return network


def _plain(text: str) -> Address:
    """An address in one form: without a zone, IPv4 never mapped into IPv6."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def entry_address(entry: bytes) -> Address | None:
    """The address in one X-Forwarded-For entry; None when it is anything else.

    Ports, brackets, quotes and white space around it are seen in the wild and are let pass;
    a zone is not, because it is free text that would reach logs and headers.
    """
    if len(entry) > _LONGEST:
        return None
    text = entry.decode("latin-1").strip(" \t")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" \t")
    found = _ENTRY.fullmatch(text)
    if found is None or int(found["port4"] or found["port6"] or 0) > _LAST_PORT:
        return None
    if found["v6"] and ":" not in found["v6"]:
        return None  # only IPv6 stands in brackets (RFC 3986 §3.2.2)
    try:
        return _plain(found["v4"] or found["v6"] or found["bare"])
    except ValueError:
        return None


class Trust:
    """The trusted proxies of one configuration."""

    __slots__ = ("_entries", "_networks", "_peers")

    def __init__(self, words: tuple[str, ...]) -> None:
        self._networks = parse(words)
        self._peers: dict[str, Known] = {}
        self._entries: dict[bytes, Known] = {}

    def known(self, peer: str) -> Known:
        """What is known of a peer: whether it is trusted, and its address in one spelling."""
        return self._peers.get(peer) or self._meet(peer)

    def trusts(self, peer: str) -> bool:
        """Whether what this peer says of others is believed; "" is a unix socket."""
        return self.known(peer).trusted

    def client_address(self, peer: str, forwarded_for: Sequence[bytes]) -> str:
        """The client's address: the rightmost entry that is not a trusted proxy.

        `forwarded_for`: the values of all X-Forwarded-For lines, in order. An entry that is
        no address ends the walk: what stands to its right is the last that is known. When
        all are trusted the leftmost is the client.
        """
        known = self.known(peer)
        client = known.text
        if not known.trusted or not forwarded_for:
            return client
        line = forwarded_for[0] if len(forwarded_for) == 1 else b",".join(forwarded_for)
        for entry in reversed(line.rsplit(b",", _HOPS)[-_HOPS:]):
            known = self._entries.get(entry) or self._read(entry)
            if not known.text:
                break
            client = known.text
            if not known.trusted:
                break
        return client

    def _meet(self, peer: str) -> Known:
        """Judge a peer and remember it."""
        if not peer:
            known = Known(self._networks.unix, "")
        else:
            try:
                address = _plain(peer)
            except ValueError:
                # Not an address, so in no network; it is still all that is known of the client.
                known = Known(False, peer)
            else:
                known = Known(self._networks.hold(address), str(address))
        if len(self._peers) >= _SEEN:
            self._peers.clear()
        self._peers[peer] = known
        return known

    def _read(self, entry: bytes) -> Known:
        """Judge an entry and remember it."""
        address = entry_address(entry)
        if address is None:
            # Not remembered: such entries may be long, and end the walk anyway.
            return _NO_ADDRESS
        known = Known(self._networks.hold(address), str(address))
        if len(self._entries) >= _SEEN:
            self._entries.clear()
        self._entries[entry] = known
        return known
