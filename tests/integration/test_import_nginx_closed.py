"""nginx itself beside what `gateway import nginx` makes of its files: guards and redirects to https hold.

Rule: a request that nginx refuses or redirects may be closed here, never forwarded; one that it
forwards goes to the same place or is closed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.testing import FakeUpstream, RawClient, answer
from tests import nginx_server, services
from tests.imported import Imported

# {a} to {c} are the addresses of upstreams that answer, OTHER is a second port.
CONFIG = """
  include mime.types;
  include conf.d/*.conf;
  server {
    listen 127.0.0.1:PORT default_server; server_name _;
    location / { return 301 https://$host$request_uri; }
  }
  server {
    listen 127.0.0.1:PORT; server_name certbot.example;
    location /.well-known/acme-challenge/ { proxy_pass http://{c}; }
    location / { return 301 https://certbot.example$request_uri; }
  }
  server {
    listen 127.0.0.1:PORT; server_name rewrites.example;
    rewrite ^/(.*)$ https://$host/$1 permanent;
  }
  server {
    listen 127.0.0.1:OTHER; server_name named.example certbot.example rewrites.example;
    location / { proxy_pass http://{a}; }
    location /api/ { proxy_pass http://{b}; }
    location = /exact { proxy_pass http://{b}; }
  }
  server {
    listen 127.0.0.1:PORT; server_name guards.example;
    rewrite ^/old/(.*)$ /admin/$1 last;
    location / { proxy_pass http://{a}; }
    location /admin/ { include snippets/deny.conf; proxy_pass http://{b}; }
    location /cookie/ { if ($cookie_token = "") { return 302 /login; } proxy_pass http://{b}; }
    location /kept/ { if ($cookie_token = "") { set $x 1; } proxy_pass http://{b}; }
    location ~ "/(?=secret)s" { deny all; }
    location /post/ { limit_except POST { deny all; } proxy_pass http://{b}; }
    include snippets/more.conf;
  }
"""
FILES = {
    "mime.types": "types { text/html html; }\n",
    "conf.d/http.conf": "proxy_read_timeout 7s;\n",
    "snippets/deny.conf": "deny all;\n",
    "snippets/more.conf": "location /more/ { proxy_pass http://{c}; }\n",
}
HOSTS = ("named.example", "certbot.example", "rewrites.example", "unknown.example", "guards.example")
PATHS = (
    "/", "/x", "/api/x", "/exact", "/.well-known/acme-challenge/t", "/admin/x", "/old/x", "/cookie/x", "/kept/x",
    "/secret", "/x/secret", "/post/x", "/more/x",
)  # fmt: skip


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, FakeUpstream]]:
    made = {name: FakeUpstream([answer(b"ok")]) for name in "abc"}
    yield made
    for upstream in made.values():
        upstream.close()


@pytest.fixture(scope="module")
def folder(upstreams: dict[str, FakeUpstream], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nginx")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(filled(text, upstreams))
    return folder


def filled(text: str, upstreams: dict[str, FakeUpstream]) -> str:
    for name, upstream in upstreams.items():
        text = text.replace(f"{{{name}}}", upstream.authority)
    return text


@pytest.fixture(scope="module")
def nginx(folder: Path, upstreams: dict[str, FakeUpstream]) -> Iterator[int]:
    http = filled(CONFIG, upstreams).replace("OTHER", str(services.free_port()))
    with nginx_server.running(folder, http) as port:
        yield port


@pytest.fixture(scope="module", params=["file", "nginx -T"])
def ours(request: pytest.FixtureRequest, nginx: int, folder: Path) -> Imported:
    path = folder / "nginx.conf"
    if request.param == "file":
        return Imported("nginx", path.read_text(), path)
    command = [str(services.require("nginx")), "-p", str(folder), "-e", "stderr", "-c", str(path), "-T"]
    printed = subprocess.run(command, capture_output=True, check=True)
    return Imported("nginx", printed.stdout)


def theirs(port: int, upstreams: dict[str, FakeUpstream], target: str, host: str) -> str:
    """The upstream that nginx asked, or the status of its own answer."""
    for upstream in upstreams.values():
        upstream.forget([answer(b"ok")])
    with RawClient(port) as client:
        answered = client.request(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    asked = [upstream.authority for upstream in upstreams.values() if upstream.requests]
    return asked[0] if asked else str(answered.status)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", PATHS)
def test_what_nginx_refuses_or_redirects_is_not_forwarded(
    path: str, host: str, nginx: int, upstreams: dict[str, FakeUpstream], ours: Imported
) -> None:
    here, there = ours.ask(path, host).to, theirs(nginx, upstreams, path, host)
    if there in ("301", "302"):
        assert here.startswith(f"-> {there} https://") or here == "closed"
    elif here == "closed":
        assert there in ("403", "404")
    else:
        assert here == there


def test_files_that_nginx_includes_hold_here_too(ours: Imported) -> None:
    assert ours.route("more").timeouts.response == 7
    assert ours.ask("/cookie/x", "guards.example").to == "closed"
    assert ours.ask("/kept/x", "guards.example").to != "closed"
