"""What becomes of nginx's configuration; tests/integration/test_import_nginx.py asks nginx itself."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.importers.nginx_syntax import Directive, parse
from gateway.model import StaticSource
from tests.imported import Imported, Went


def server(*locations: str, names: str = "_", more: str = "") -> Imported:
    return Imported("nginx", f"server {{ server_name {names};\n{more}\n{chr(10).join(locations)}\n}}\n")


# -- words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b c;", ["b", "c"]),
        ("a # b;\n c;", ["c"]),
        ('a "b c" \'d "e\';', ["b c", 'd "e']),
        (r'a "b\"c" \d+ b\\c "\t";', ['b"c', r"\d+", r"b\c", "\t"]),
        ("a ${b}c $d{;}", ["${b}c", "$d"]),
        ("a b#c;", ["b#c"]),
        ('a "";', [""]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    if "{;}" in text:
        text = text.replace("{;}", ";")
    assert parse(text, "x")[0].words == words


def test_blocks_and_lines() -> None:
    inner = Directive("b", ["1"], 3)
    assert parse("\na {\n b 1; }\nc;", "x") == [Directive("a", [], 2, [inner]), Directive("c", [], 4)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a {\n b;\n", "x:1:1: a { that is never closed"),
        ("a;\n}\n", "x:2:1: a } that closes nothing"),
        ("a\nb", "x:1:1: a is not ended by a ;"),
        ("a { b }", "x:1:1: b is not ended by a ;"),
        (";", "x:1:1: a ; with nothing before it"),
        ("{}", "x:1:1: a { with nothing before it"),
        ('a\n "b;', 'x:2:1: a " that is never closed'),
        ('a "b"c;', "x:1:1: 'c' right behind a closing \""),
        ("a {" * 70, "x:1:1: nested deeper than 64 levels"),
    ],
)
def test_what_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "x")
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["", "events {}\n", "server { listen 80; }", "http { server { return 301 /x; } }"])
def test_nothing_to_carry_over(text: str) -> None:
    with pytest.raises(ConfigError, match="nothing in it could be carried over from nginx"):
        Imported("nginx", text)


# -- locations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "target", "expected"),
    [
        ("/ { proxy_pass http://a; }", "/x?y", "/x?y"),
        ("/ { proxy_pass http://a/; }", "/x", "/x"),
        ("/ { proxy_pass http://a/b/; }", "/x", "/b/x"),
        ("/ { proxy_pass http://a/b; }", "/x", "/bx"),
        ("/p/ { proxy_pass http://a/; }", "/p/x", "/x"),
        ("/p/ { proxy_pass http://a/q; }", "/p/x", "/qx"),
        ("/p { proxy_pass http://a/q/; }", "/p/x", "/q//x"),
        ("/p { proxy_pass http://a/q; }", "/p/x", "/q/x"),
        ("= /p { proxy_pass http://a/q; }", "/p?z", "/q?z"),
        ("=/p { proxy_pass http://a; }", "/p", "/p"),
        ("~ ^/p { proxy_pass http://a; }", "/p/x", "/p/x"),
        ("~*^/P { proxy_pass http://a; }", "/p/x", "/p/x"),
        ("^~ /p { proxy_pass http://a; }", "/p/x", "/p/x"),
        ("/ { rewrite ^/a/(.*)$ /b/$1 break; proxy_pass http://a; }", "/a/x?q", "/b/x?q"),
        ("/ { rewrite a/(.*)$ /b/$1?n=1 break; proxy_pass http://a; }", "/xa/y?q", "/b/y?n=1&q"),
        ("/ { rewrite ^/(?<id>\\d+)$ /n/$1 break; proxy_pass http://a; }", "/12", "/n/12"),
    ],
)
def test_paths(location: str, target: str, expected: str) -> None:
    assert server(f"location {location}").ask(target) == Went("a:80", expected, "a")


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ("return 403;", "return answers"),
        ("root /srv;", "it has no proxy_pass"),
        ("proxy_pass http://$backend;", "names no host but a variable"),
        ("proxy_pass http://unix:/run/a.sock;", "names no host"),
        ("proxy_pass http://a; auth_basic x;", "auth_basic guarded it"),
        ("proxy_pass http://a; allow 10.0.0.0/8; deny all;", "allow, deny guarded it"),
        ("proxy_pass http://a; internal;", "internal guarded it"),
        ("proxy_pass http://a; rewrite ^ /x last;", "rewrite is carried over when"),
        ("proxy_pass http://a; rewrite ^ /x?$args break;", "rewrite is carried over when"),
        ("proxy_pass http://a/x?y=z;", "cannot be put in place"),
        ("fastcgi_pass 127.0.0.1:9000;", "fastcgi_pass answers"),
        ("proxy_pass http://a; if ($http_key != x) { return 403; }", "if guarded it"),
    ],
)
def test_a_location_that_cannot_be_carried_over_is_closed(inside: str, told: str) -> None:
    """The next best location must not get its requests."""
    found = server("location / { proxy_pass http://a; }", f"location /x {{ {inside} }}")
    assert found.ask("/y").to == "a:80"
    assert found.ask("/x/y") == Went("closed")
    assert told in next(line for line in found.comments.splitlines() if "closed: " in line)


def test_guards_around_and_lifted() -> None:
    guarded = "auth_basic x; auth_basic_user_file f;"
    found = server(
        "location / { proxy_pass http://a; }", "location /o { auth_basic off; proxy_pass http://a; }", more=guarded
    )
    assert found.ask("/x") == Went("closed")
    assert found.ask("/o/x").to == "a:80"


def test_locations_within_locations() -> None:
    found = server(
        "location / { proxy_pass http://a; }",
        "location ~ ^/p/.*x$ { proxy_pass http://e; }",
        """location /p {
          proxy_read_timeout 7s;
          proxy_pass http://b;
          location /p/deny { deny all; }
          location = /p/exact { proxy_pass http://c; }
          location ~ \\.png$ { proxy_pass http://d; }
        }""",
        more="if ($bad) { set $x 1; }",
    )
    asked = ["/x", "/p/y", "/p/deny/y", "/p/exact", "/p/y.png", "/y.png", "/p/x", "/p/deny/x"]
    assert [found.ask(path).to.removesuffix(":80") for path in asked] == ["a", "b", "closed", "c", "d", "a", "e", "e"]
    assert found.route("p-exact").timeouts.response == 7


@pytest.mark.parametrize(
    ("set_", "host"),
    [
        ("", "up"),
        ("proxy_set_header Host $host;", "any.example"),
        ("proxy_set_header Host $http_host;", "any.example"),
        ("proxy_set_header Host $proxy_host;", "up"),
        ("proxy_set_header Host l.example;", "l.example"),
        ("proxy_set_header Host $server_name;", "any.example"),
    ],
)
def test_host(set_: str, host: str) -> None:
    text = f"upstream up {{ server 10.0.0.1; }} server {{ location / {{ proxy_pass http://up; {set_} }} }}"
    assert Imported("nginx", text).ask("/") == Went("10.0.0.1:80", "/", host)


def test_groups() -> None:
    text = """
upstream up {
  least_conn;
  server 10.0.0.1:81 weight=5 max_fails=2;
  server 10.0.0.2 backup;
  server 10.0.0.3 down;
  server [::1]:82;
  server unix:/run/x.sock;
  keepalive 32;
  keepalive_timeout 1m 30s;
}
upstream unused { server 10.0.0.9; }
server { location /a { proxy_pass http://up; } location /b { proxy_pass https://up; proxy_ssl_name x.example; } }
"""
    found = Imported("nginx", text)
    plain, secure = found.config.upstreams.values()
    assert isinstance(plain.source, StaticSource)
    assert [(one.address, one.weight) for one in plain.source.endpoints] == [
        ("10.0.0.1:81", 5),
        ("10.0.0.2:80", 0),
        ("10.0.0.3:80", 0),
        ("[::1]:82", 1),
    ]
    assert (plain.pool.max_idle, plain.pool.idle_timeout, plain.tls) == (32, 90.0, None)
    assert secure.tls is not None
    assert (secure.tls.verify, secure.tls.server_name) == (False, "x.example")
    for told in (
        "line 3: least_conn is not carried over",
        "line 4: max_fails of server 10.0.0.1:81 is not carried over",
        "line 5: backup: 10.0.0.2 has weight 0",
        "line 6: down: 10.0.0.3 has weight 0",
        "line 8: server unix:/run/x.sock is left out",
        "line 9: keepalive counts for the group",
        "line 12: upstream unused is left out",
        "nginx verifies no certificate",
    ):
        assert told in found.comments


def test_options() -> None:
    found = server(
        "location /a { proxy_pass http://a; proxy_read_timeout 5s; proxy_next_upstream off; }",
        "location /b { proxy_pass http://a; proxy_next_upstream error timeout http_502 http_503 non_idempotent; proxy_next_upstream_tries 3; }",
        more="proxy_connect_timeout 500ms; proxy_read_timeout 2m; proxy_send_timeout soon; client_max_body_size 8m;",
    )
    first, second = found.route("a"), found.route("b")
    assert (first.timeouts.connect, first.timeouts.response, first.timeouts.idle, first.retry.attempts) == (
        0.5,
        5,
        5,
        1,
    )
    assert (second.timeouts.response, second.retry.attempts) == (120, 3)
    assert second.retry.when == {"connect", "stale", "reset", "timeout"}
    assert second.retry.statuses == {502, 503}
    assert found.config.server.limits.body == 8 * 1024 * 1024
    assert "proxy_next_upstream non_idempotent is not carried over" in found.comments
    assert "proxy_send_timeout is no time" in found.comments


def test_limits_on_bodies_that_differ() -> None:
    found = server("location / { proxy_pass http://a; client_max_body_size 1m; }", more="client_max_body_size 2m;")
    assert found.config.server.limits.body == 0
    assert found.comments.count("client_max_body_size is not carried over") == 2


@pytest.mark.parametrize(
    "told",
    [
        "line 1: worker_processes is not carried over",
        "line 3: include is not carried over: import what it holds with the rest",
        "line 5: listen is not carried over",
        "line 6: server_name ~^www has no counterpart",
        "line 6: server_name a.* has no counterpart",
        "line 7: ssl_certificate is not carried over",
        "line 8: gzip is not carried over",
        "line 10: proxy_set_header X-Forwarded-For is not carried over: the gateway does this by itself",
        "line 11: proxy_set_header X-Other is not carried over",
        "line 12: if is not carried over: requests are treated as if",
        "line 14: add_header is not carried over",
        "line 16: location @named is left out",
        "line 4: a request for any other host gets 404 here",
        "a request that meets no location goes on to routes for any host",
        "prefixes go by whole segments here: what only begins with the same letters (/px) is not meant: /p",
    ],
)
def test_what_is_lost_is_told(told: str) -> None:
    text = """worker_processes 1;
http {
  include mime.types;
  server {
    listen 443 ssl;
    server_name ok.example ~^www a.*;
    ssl_certificate x;
    gzip on;
    location /p {
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Other "secret thing";
      if ($request_method = POST) { set $x 1; }
      location /p/q { proxy_pass http://b; }
      add_header X y;
      proxy_pass http://a; }
    location @named { proxy_pass http://c; }
  }
}
"""
    found = Imported("nginx", text)
    assert told in found.comments
    assert "secret thing" not in found.text


def test_a_snippet_of_locations() -> None:
    found = Imported("nginx", "location /a { proxy_pass http://a; }\nlocation / { proxy_pass http://b; }\n")
    assert (found.ask("/a/x").to, found.ask("/x").to) == ("a:80", "b:80")
