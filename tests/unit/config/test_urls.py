"""Endpoints' URLs: taken apart, bytes kept."""

from __future__ import annotations

import pytest

from gateway.config import urls
from gateway.model import Endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.9:8080", Endpoint("http", "10.0.0.9", 8080, authority=b"10.0.0.9:8080")),
        ("http://users", Endpoint("http", "users", 80, authority=b"users")),
        ("http://users/", Endpoint("http", "users", 80, authority=b"users")),
        ("http://users:", Endpoint("http", "users", 80, authority=b"users")),
        ("HTTP://Users.Example:80", Endpoint("http", "users.example", 80, authority=b"Users.Example:80")),
        ("http://a_b-c.d.", Endpoint("http", "a_b-c.d.", 80, authority=b"a_b-c.d.")),
        (
            "https://10.0.0.10/base?k=v",
            Endpoint(
                "https",
                "10.0.0.10",
                443,
                base_path=b"/base",
                query=b"k=v",
                authority=b"10.0.0.10",
                server_name="10.0.0.10",
            ),
        ),
        (
            "https://Api.Example.:8443",
            Endpoint("https", "api.example.", 8443, authority=b"Api.Example.:8443", server_name="api.example"),
        ),
        ("http://[::1]:81", Endpoint("http", "::1", 81, authority=b"[::1]:81")),
        (
            "https://[2001:DB8::0:1]",
            Endpoint("https", "2001:db8::1", 443, authority=b"[2001:DB8::0:1]", server_name="2001:db8::1"),
        ),
        (
            "http://h/a%2Fb//c/?sta=tic&x=%zz?y",
            Endpoint("http", "h", 80, base_path=b"/a%2Fb//c/", query=b"sta=tic&x=%zz?y", authority=b"h"),
        ),
        ("http://h?k", Endpoint("http", "h", 80, query=b"k", authority=b"h")),
        ("http://h/?", Endpoint("http", "h", 80, authority=b"h")),
    ],
)
def test_endpoints(url: str, endpoint: Endpoint) -> None:
    assert urls.endpoint(url) == endpoint


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "is no URL"),
        ("h:80", "is no URL"),
        ("http:/h", "is no URL"),
        ("//h", "is no URL"),
        ("ftp://h", "has the scheme ftp, not http or https"),
        ("unix:///x", "has the scheme unix, not http or https"),
        ("http://", "has no host"),
        ("http://:80", "has no host"),
        ("http:///x", "has no host"),
        ("http://u@h", "holds a user name or password"),
        ("http://u:p@h", "holds a user name or password"),
        ("http://h#", "holds a fragment (#)"),
        ("http://h/a#b", "holds a fragment (#)"),
        ("http://h:0", "has port 0, not 1 to 65535"),
        ("http://h:65536", "has port 65536, not 1 to 65535"),
        ("http://h:x", "has no valid host and port in 'h:x'"),
        ("http://h:-1", "has no valid host and port in 'h:-1'"),
        ("http://a:1:2", "has no valid host and port in 'a:1:2'"),
        ("http://::1", "has no valid host and port in '::1'"),
        ("http://[::1", "has no valid host and port in '[::1'"),
        ("http://[::1]x", "has no valid host and port in '[::1]x'"),
        ("http://[x]", "has no IPv6 address in [x]"),
        ("http://[127.0.0.1]", "has no IPv6 address in [127.0.0.1]"),
        ("http://[fe80::1%eth0]", "has no IPv6 address in [fe80::1%eth0]"),
        ("http://127.1", "has a host, 127.1, that ends like an IPv4 address and is none"),
        ("http://2130706433", "has a host, 2130706433, that ends like an IPv4 address and is none"),
        ("http://0x7f000001", "has a host, 0x7f000001, that ends like an IPv4 address and is none"),
        ("http://010.0.0.1", "has a host, 010.0.0.1, that ends like an IPv4 address and is none"),
        ("http://1.2.3.4.", "has a host, 1.2.3.4., that ends like an IPv4 address and is none"),
        ("http://a..b", "has no valid host name in 'a..b'"),
        ("http://-a", "has no valid host name in '-a'"),
        ("http://a-", "has no valid host name in 'a-'"),
        ("http://a,b", "has no valid host name in 'a,b'"),
        ("http://%61", "has no valid host name in '%61'"),
        ("http://h/a b", "holds a space, a control character or a letter outside ASCII"),
        ("http://hé", "holds a space, a control character or a letter outside ASCII"),
        ("http://h/\n", "holds a space, a control character or a letter outside ASCII"),
    ],
)
def test_what_is_refused(url: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        urls.endpoint(url)
    assert str(caught.value) == told
