"""Random servers on two ports of a real nginx, and what import makes of them.

Rule: the gateway forwards a request only if nginx forwards it on one of its ports, and never if nginx
redirects it to https on the first. Each case is made from its number, so it can be run again alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gateway.errors import ConfigError
from gateway.testing import FakeUpstream, RawClient, answer
from tests import nginx_server, services
from tests.imported import Imported

CASES = 12
HOSTS = ["a.example", "b.example", "c.example", "x.b.example"]
# `/a` alone is left out: nginx redirects it to `/a/`, the gateway forwards it (docs/importing.md).
REQUESTS = ["/", "/a/x", "/a/b", "/admin", "/admin/x", "/x/.git", "/q"]
KINDS = ["", "", "", "=", "^~", "~"]
PATHS = ["/", "/a", "/a/", "/a/b", "/admin", "/admin/x"]
PATTERNS = ["^/a", "admin", r"\.git", "^/$", "x$"]
INSIDE = [
    "proxy_pass http://{a};",
    "proxy_pass http://{b};",
    "proxy_pass http://{c};",
    "deny all; proxy_pass http://{a};",
    "return 301 https://$host$request_uri;",
    "return 301 https://z.example/q;",
    "return 403;",
    'if ($http_x = "") {{ return 403; }} proxy_pass http://{b};',
    "limit_except POST {{ deny all; }} proxy_pass http://{c};",
    "internal; proxy_pass http://{a};",
]
AROUND = ["", "", "", "return 301 https://$host$request_uri;", "rewrite ^(.*)$ https://$host$1 permanent;", "deny all;",
          "rewrite ^/a/(.*)$ /admin/$1 last;", "if ($host = a.example) {{ return 301 https://$host$request_uri; }}"]  # fmt: skip
NAMES = [["_"], ["a.example"], ["b.example", "c.example"], ["*.b.example"], [".b.example"], ["x.b.example", "a.example"]]


def server(random: Random, port: str) -> str:
    locations: dict[str, str] = {}
    for _ in range(random.randrange(1, 5)):
        kind = random.choice(KINDS)
        path = random.choice(PATTERNS if kind == "~" else PATHS)
        # nginx takes `/a` and `^~ /a` for the same location.
        locations.setdefault(f"{kind.removeprefix('^~')} {path}", f"location {kind} {path} {{{{ {random.choice(INSIDE)} }}}}")
    default = " default_server" if random.random() < 0.1 else ""
    around, names = random.choice(AROUND), " ".join(random.choice(NAMES))
    return f"server {{{{ listen 127.0.0.1:{port}{default}; server_name {names}; {around} {' '.join(locations.values())} }}}}"


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, FakeUpstream]]:
    made = {name: FakeUpstream([answer(b"ok")]) for name in "abc"}
    yield made
    for upstream in made.values():
        upstream.close()


def asked(port: int, target: str, host: str, upstreams: dict[str, FakeUpstream]) -> str:
    """The upstream that nginx asked, or its status; `https` behind that of a redirect to https."""
    for upstream in upstreams.values():
        upstream.forget([answer(b"ok")])
    with RawClient(port) as client:
        got = client.request(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    went = [upstream.authority for upstream in upstreams.values() if upstream.requests]
    moved = (got.header(b"location") or b"").startswith(b"https:")
    return went[0] if went else f"{got.status}{'https' if moved else ''}"


@pytest.mark.parametrize("case", range(CASES))
def test_what_nginx_does_not_forward_is_not_forwarded(
    case: int, upstreams: dict[str, FakeUpstream], tmp_path: Path
) -> None:
    random = Random(case)
    other = services.free_port()
    servers = [server(random, port) for port in random.choice((["PORT", str(other)], ["PORT", str(other), "PORT"]))]
    text = "\n".join(servers).format(**{name: one.authority for name, one in upstreams.items()})
    with nginx_server.running(tmp_path, text) as port:
        try:
            ours = Imported("nginx", text.replace("PORT", str(port)))
        except ConfigError as error:
            # Nothing is forwarded then.
            assert "nothing in it could be carried over" in str(error)  # noqa: PT017
            return
        for host in (*HOSTS, "unknown.example"):
            for target in REQUESTS:
                here = ours.ask(target, host).to
                if here not in {upstream.authority for upstream in upstreams.values()}:
                    continue
                there = [asked(one, target, host, upstreams) for one in (port, other)]
                where = f"{host}{target}: {here}, nginx: {there}\n{text}"
                assert any(":" in one for one in there), where
                assert not any(one.endswith("https") for one in there), where
