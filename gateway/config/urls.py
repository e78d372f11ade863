"""The URL of an endpoint, taken apart.

Rule: only what can be connected to and sent as it stands. Base path and query keep their
bytes; nothing is decoded, encoded or put in order.
"""

from __future__ import annotations

import ipaddress
import re

from gateway.model import Endpoint

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)"
    r"(\?(?P<query>[^#]*))?(?P<fragment>#.*)?\Z",
    re.DOTALL,
)
_AUTHORITY = re.compile(r"(\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(:(?P<port>[0-9]{0,5}))?\Z")
# Labels of letters, digits, hyphens, and underscores, which container platforms use.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
# A name that ends so is an IPv4 address to resolvers (`127.1`, `0x7f000001`), not a name.
_NUMERIC = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\Z")
_PRINTABLE = re.compile(r"[!-~]*\Z")

PORTS = {"http": 80, "https": 443}


def endpoint(url: str) -> Endpoint:
    """The endpoint that a URL names; ValueError says what is wrong with it."""
    if not _PRINTABLE.match(url):
        raise ValueError("holds a space, a control character or a letter outside ASCII")
    found = _URL.match(url)
    if found is None:
        raise ValueError("is no URL")
    scheme, authority = found["scheme"].lower(), found["authority"]
    if scheme not in PORTS:
        raise ValueError(f"has the scheme {scheme}, not http or https")
    if "@" in authority:
        raise ValueError("holds a user name or password")
    if found["fragment"] is not None:
        raise ValueError("holds a fragment (#)")
    host, port = _host_and_port(authority)
    base_path = found["path"].encode()
    return Endpoint(
        scheme=scheme,
        host=host,
        port=PORTS[scheme] if port is None else port,
        # An empty path and "/" say the same: nothing stands before what is forwarded.
        base_path=b"" if base_path == b"/" else base_path,
        query=(found["query"] or "").encode(),
        authority=authority.removesuffix(":").encode(),
        server_name=host.removesuffix(".") if scheme == "https" else None,
    )


def _host_and_port(authority: str) -> tuple[str, int | None]:
    found = _AUTHORITY.match(authority)
    if found is None:
        raise ValueError(f"has no valid host and port in {authority!r}")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"has port {port}, not 1 to 65535")
    return (_ipv6(found["v6"]) if found["v6"] is not None else _name(found["name"])), port


def _ipv6(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f"has no IPv6 address in [{text}]") from None


def _name(text: str) -> str:
    if not text:
        raise ValueError("has no host")
    labels = text.removesuffix(".").split(".")
    if _NUMERIC.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError(f"has a host, {text}, that ends like an IPv4 address and is none") from None
    if len(text) > 253 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"has no valid host name in {text!r}")
    return text.lower()


def host(text: str) -> str:
    """A host alone, a name or an address without brackets; ValueError says what is wrong."""
    if not _PRINTABLE.match(text):
        raise ValueError("holds a space, a control character or a letter outside ASCII")
    return _ipv6(text) if ":" in text else _name(text)


def dns_server(text: str) -> str:
    """`address:port` of a DNS server, the port 53 when none is written."""
    host, port = _host_and_port(f"[{text}]" if text.count(":") > 1 and "[" not in text else text)
    if not is_address(host):
        raise ValueError(f"is no address: {text!r}")
    return f"[{host}]:{port or 53}" if ":" in host else f"{host}:{port or 53}"


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
