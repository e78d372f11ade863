"""nginx and what `gateway import nginx` makes of its file: the same requests go to the same places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.testing import FakeUpstream, RawClient, answer
from tests import nginx_server
from tests.imported import Imported, Went

# {a} to {e} are the addresses of upstreams that answer.
CONFIG = r"""
  upstream app { server {a}; keepalive 8; }
  server {
    listen 127.0.0.1:PORT default_server;
    server_name main.example;
    location / { proxy_pass http://app; }
    location = /exact { proxy_pass http://{b}/other; }
    location = / { proxy_pass http://{c}; proxy_set_header Host $http_host; }
    location /raw { proxy_pass http://{b}; proxy_set_header Host $http_host; }
    location /raw/deeper { proxy_pass http://{c}; proxy_set_header Host literal.example; }
    location /api/ { proxy_pass http://{b}/v2/; }
    location /cut/ { proxy_pass http://{b}/; }
    location /bare { proxy_pass http://{c}/base; }
    location /glue/ { proxy_pass http://{d}/x; }
    location /same/ { proxy_pass http://{d}/same/; }
    location ^~ /static/ { proxy_pass http://{d}; }
    location ^~ /first/ { proxy_pass http://{d}; }
    location /first/under/ { proxy_pass http://{c}; }
    location ~* \.(png|JPG)$ { proxy_pass http://{e}; }
    location ~ ^/u/(\d+)(/|$) { rewrite ^/u/(\d+)/(.*)$ /users/$1?rest=$2 break; proxy_pass http://{b}; }
    location ~ "^/(aa|bb){2}/" { proxy_pass http://{c}; }
    location ~ /\.hidden { return 403; }
    location /nest {
      proxy_pass http://{b};
      location /nest/none { deny all; }
      location = /nest/exact { proxy_pass http://{c}; }
      location ~ x$ { proxy_pass http://{d}; }
      location /nest/deep { proxy_pass http://{e}; location ~ y$ { proxy_pass http://{c}; } }
    }
    location /pair { proxy_pass http://{b}; }
    location /pair/ { proxy_pass http://{c}/in/; }
    location /.ht { deny all; }
    location /gone { return 301 /elsewhere; }
    location /fixed { return 200 "fixed"; }
    location /refused { deny all; return 410; }
    location "/with space/" { proxy_pass http://{c}; proxy_set_header Host $proxy_host; }
    location /100% { proxy_pass http://{d}; }
  }
  server {
    listen 127.0.0.1:PORT;
    server_name one.example .two.example;
    location / { proxy_pass http://{d}; }
    location ~ ^/api { proxy_pass http://{e}; }
  }
  server {
    listen 127.0.0.1:PORT;
    server_name deep.two.example;
    location / { proxy_pass http://{e}; }
  }
"""

REQUESTS = [
    ("/", "main.example"),
    ("/?q=1", "main.example"),
    ("/anything/at/all?x=%20y&&z", "main.example"),
    ("/exact", "main.example"),
    ("/exact?q=1", "main.example"),
    ("/exact/", "main.example"),
    ("/raw", "main.example"),
    ("/raw/%7Ea%2Fb//c?d=%e9", "main.example"),
    ("/raw/deeper", "main.example"),
    ("/raw/deeper/x", "main.example"),
    ("/api/", "main.example"),
    ("/api/users?id=1", "main.example"),
    ("/cut/", "main.example"),
    ("/cut/a/b", "main.example"),
    ("/bare", "main.example"),
    ("/bare/x", "main.example"),
    ("/glue/y", "main.example"),
    ("/same/y?z", "main.example"),
    ("/static/x", "main.example"),
    ("/static/x.png", "main.example"),
    ("/first/x.png", "main.example"),
    ("/first/under/x", "main.example"),
    ("/first/under/x.png", "main.example"),
    ("/raw/x.png", "main.example"),
    ("/raw/x.jpg", "main.example"),
    ("/raw/x.jpgs", "main.example"),
    ("/exact/x.PNG?y", "main.example"),
    ("/u/12", "main.example"),
    ("/u/12/and/more?q=1", "main.example"),
    ("/u/x/y", "main.example"),
    ("/aabb/x", "main.example"),
    ("/aab/x", "main.example"),
    ("/x/.hidden/y", "main.example"),
    ("/gone", "main.example"),
    ("/fixed/x", "main.example"),
    ("/fixedly", "main.example"),
    ("/refused", "main.example"),
    ("/pair", "main.example"),
    ("/pair/", "main.example"),
    ("/pair/x", "main.example"),
    ("/.ht", "main.example"),
    ("/.htaccess", "main.example"),
    ("/.ht/x", "main.example"),
    ("/nest/y", "main.example"),
    ("/nest/none/y", "main.example"),
    ("/nest/none/x", "main.example"),
    ("/nest/exact", "main.example"),
    ("/nest/x", "main.example"),
    ("/nest/x.png", "main.example"),
    ("/nest/deep/z", "main.example"),
    ("/nest/deep/y", "main.example"),
    ("/nest/deep/x", "main.example"),
    ("/with%20space/x", "main.example"),
    ("/100%25/x", "main.example"),
    ("/raw/x", "unknown.example"),
    ("/x", "one.example"),
    ("/api/x", "one.example"),
    ("/x", "ONE.example:8080"),
    ("/x", "two.example"),
    ("/x", "sub.two.example"),
    ("/api/x", "sub.sub.two.example"),
    ("/x", "deep.two.example"),
    ("/api/x", "deep.two.example"),
]


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, FakeUpstream]]:
    made = {name: FakeUpstream([answer(b"ok")]) for name in "abcde"}
    yield made
    for upstream in made.values():
        upstream.close()


@pytest.fixture(scope="module")
def http(upstreams: dict[str, FakeUpstream]) -> str:
    text = CONFIG
    for name, upstream in upstreams.items():
        text = text.replace(f"{{{name}}}", upstream.authority)
    return text


@pytest.fixture(scope="module")
def nginx(http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with nginx_server.running(tmp_path_factory.mktemp("nginx"), http) as port:
        yield port


@pytest.fixture(scope="module")
def ours(http: str) -> Imported:
    return Imported("nginx", http)


def theirs(port: int, upstreams: dict[str, FakeUpstream], target: str, host: str) -> Went:
    """Where nginx sent a request; the status when it answered by itself."""
    for upstream in upstreams.values():
        upstream.forget([answer(b"ok")])
    with RawClient(port) as client:
        answered = client.request(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    for upstream in upstreams.values():
        if upstream.requests:
            got = upstream.last
            return Went(upstream.authority, got.target.decode(), (got.header(b"Host") or b"").decode())
    return Went(str(answered.status))


def answers(went: Went) -> Went:
    """What the gateway answers by itself, as the status alone."""
    told = went.to.removeprefix("-> ").split(" ")
    return Went(told[0]) if len(told) > 1 else went


@pytest.mark.parametrize(("target", "host"), REQUESTS, ids=[f"{host}{target}" for target, host in REQUESTS])
def test_a_request_goes_where_nginx_sent_it(
    target: str, host: str, nginx: int, upstreams: dict[str, FakeUpstream], ours: Imported
) -> None:
    here, there = ours.ask(target, host), theirs(nginx, upstreams, target, host)
    if here.to == "closed":
        assert there.to in ("403", "404")
    else:
        assert answers(here) == there


# What docs/importing.md names as different: (request, what nginx does, what we do).
DIFFERENT = [
    ("/rawx", "b", "a"),  # prefixes are of bytes there, of whole segments here
    ("/api", "301", "b"),  # 301 to /api/ there
]


@pytest.mark.parametrize(("target", "there", "here"), DIFFERENT)
def test_known_differences(
    target: str, there: str, here: str, nginx: int, upstreams: dict[str, FakeUpstream], ours: Imported
) -> None:
    assert theirs(nginx, upstreams, target, "main.example").to == (
        there if there.isdecimal() else upstreams[there].authority
    )
    assert ours.ask(target, "main.example").to == upstreams[here].authority
