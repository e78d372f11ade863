"""What becomes of nginx's configuration; tests/integration/test_import_nginx.py asks nginx itself."""

from __future__ import annotations

import pytest

from gateway.commands.wording import told_end, told_mirror
from gateway.errors import ConfigError
from gateway.importers.nginx_syntax import Directive, parse
from gateway.model import Balance, Eject, Redirect, Respond, StaticSource
from gateway.routing.router import Router
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
        ("a" * 81, f"x:1:1: {'a' * 79}… is not ended by a ;"),
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


@pytest.mark.parametrize("text", ["", "events {}\n", "server { listen 80; }", "http { server { return 444; } }"])
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
        ("return 444;", "return answers"),
        ("return 301 /y$1;", "return answers"),
        ("return 301 /y?a=b;", "return answers"),
        ("return 200 $body;", "return answers"),
        ("return 301;", "return answers"),
        ("return 404; error_page 404 /404.html;", "return answers"),
        ("return 404; internal;", "internal guarded it"),
        ("return 200; if ($http_key != x) { return 403; }", "if guarded it"),
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


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("return 301 /new;", Redirect(301, path=b"/new")),
        ("return 308 /new$is_args$args;", Redirect(308, path=b"/new")),
        ("return https://new.example$request_uri;", Redirect(302, "https", "new.example")),
        ("return 301 https://$host$request_uri;", Redirect(301, "https")),
        ("return 301 https://$server_name$request_uri;", Redirect(301, "https", "main.example")),
        ("return 307 $scheme://new.example:81/x;", Redirect(307, None, "new.example", 81, b"/x")),
        ("return 302 https://$http_host$uri$is_args$args;", Redirect(302, "https")),
        ("return 301 http://new.example;", Redirect(301, "http", "new.example", path=b"/")),
        # What looks after access is asked later there, too.
        ("deny all; return 301 /new;", Redirect(301, path=b"/new")),
    ],
)
def test_redirects(inside: str, expected: Redirect) -> None:
    found = server(f"location /old {{ {inside} }}", "location / { proxy_pass http://a; }", names="main.example")
    assert found.route("old").redirect == expected


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("return 404;", Respond(404)),
        ("return 204;", Respond(204)),
        ("return 200 ok;", Respond(200, b"ok", ((b"Content-Type", b"text/plain"),))),
        ('default_type application/json; return 200 "{}";', Respond(200, b"{}", ((b"Content-Type", b"application/json"),))),
        (
            "add_header X-A b; add_header X-T $time; return 200 ok;",
            Respond(200, b"ok", ((b"Content-Type", b"text/plain"), (b"X-A", b"b"))),
        ),
        ("add_header X-A b; add_header X-B c always; return 503;", Respond(503, b"", ((b"X-B", b"c"),))),
    ],
)
def test_fixed_answers(inside: str, expected: Respond) -> None:
    found = server(f"location /x {{ {inside} }}", "location / { proxy_pass http://a; }")
    assert found.route("x").respond == expected
    # As there, a prefix is one of bytes.
    assert [found.ask(path).to for path in ("/x/y", "/xy", "/y")] == [f"{expected.status} fixed"] * 2 + ["a:80"]


PLAIN = "server { listen 80; server_name a.example b.example; return 301 https://$host$request_uri; }"
SECURE = "server { listen 443 ssl; server_name a.example; location / { proxy_pass http://a; } location = /x { proxy_pass http://b; } }"


def ends(text: str) -> dict[str, list[str]]:
    """What becomes of requests for each host, in the order in which matches are tried."""
    found: dict[str, list[str]] = {}
    for route, match in Router(Imported("nginx", text).config.routes).ordered():
        found.setdefault(match.host or "*", []).append(told_end(route))
    return found


def test_a_server_that_redirects_to_its_twin() -> None:
    """To whatever path: the twin's exact path does not come before."""
    assert ends(PLAIN + SECURE) == {"a.example": ["-> 301 https://*", "b", "a"], "b.example": ["-> 301 https://*"]}
    assert "a redirect to https never ends" in Imported("nginx", PLAIN + SECURE).comments


def test_a_server_that_answers_and_a_twin_that_does_not() -> None:
    """Ports do not tell them apart here, and the twin serves."""
    text = PLAIN.replace("301 https://$host$request_uri", "404") + SECURE
    assert ends(text) == {"a.example": ["b", "a"], "b.example": ["404 fixed"]}
    comments = Imported("nginx", text).comments
    assert "left out: return answers all requests that come for a.example by one of its ports" in comments


def test_servers_that_only_answer() -> None:
    www = "server { server_name www.example; return 301 https://example$request_uri; }"
    rest = "server { listen 80 default_server; return 404; }"
    text = f"{www} {rest} server {{ server_name example; location /a {{ proxy_pass http://a; }} }}"
    assert ends(text) == {"www.example": ["-> 301 https://example"], "example": ["a"], "*": ["404 fixed"]}
    moved = text.replace("return 404", "return 301 https://$host$request_uri")
    assert "hosts with a server of their own are not redirected" in Imported("nginx", moved).comments


def test_redirects_as_certbot_writes_them() -> None:
    plain = """
server {
    if ($host = a.example) {
        return 301 https://$host$request_uri;
    } # managed by Certbot
    listen 80;
    server_name a.example;
    return 404; # managed by Certbot
}
"""
    assert ends(plain + SECURE) == {"a.example": ["-> 301 https://*", "b", "a"]}
    assert "if is not carried over" not in Imported("nginx", plain + SECURE).comments
    half = plain.replace("server_name a.example;", "server_name a.example c.example;")
    assert ends(half) == {"a.example": ["-> 301 https://*"], "c.example": ["404 fixed"]}


@pytest.mark.parametrize(
    ("there", "mirror"),
    [
        ("location = /copy { internal; proxy_pass http://b$request_uri; }", "100% copied to b"),
        ("location = /copy { internal; proxy_pass http://b; }", ""),
        ("location = /copy { internal; proxy_pass http://b/x$request_uri; }", ""),
        ("location = /copy { internal; proxy_pass http://$b$request_uri; }", ""),
        ("location = /other { internal; proxy_pass http://b$request_uri; }", ""),
    ],
)
def test_mirrors(there: str, mirror: str) -> None:
    found = server("location / { mirror /copy; mirror_request_body on; proxy_pass http://a; }", there)
    route = found.route("root")
    assert ("" if route.mirror is None else told_mirror(route.mirror)) == mirror
    assert ("mirror is not carried over: its location passes requests on" in found.comments) == (not mirror)


def test_one_mirror_and_none() -> None:
    found = server(
        "location / { mirror /copy; mirror /more; proxy_pass http://a; location /off { mirror off; proxy_pass http://a; } }",
        "location = /copy { internal; proxy_pass http://b$request_uri; }",
        "location = /more { internal; proxy_pass http://c$request_uri; }",
    )
    assert found.route("root").mirror is not None
    assert found.route("off").mirror is None
    assert "mirror is not carried over: a route has one" in found.comments


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        ("", Balance(), ""),
        ("least_conn;", Balance("least_requests"), ""),
        ("least_time header;", Balance("ewma"), ""),
        ("ip_hash;", Balance("hash", "client_ip"), ""),
        ("hash $binary_remote_addr consistent;", Balance("hash", "client_ip"), ""),
        ("hash ${remote_addr};", Balance("hash", "client_ip"), ""),
        ("hash $uri;", Balance("hash", "path"), ""),
        ("hash $http_x_user;", Balance("hash", "header", "x-user"), ""),
        ("hash $cookie_sid consistent;", Balance("hash", "cookie", "sid"), ""),
        ("hash $arg_id;", Balance("hash", "query", "id"), ""),
        ("hash $request_uri;", Balance(), "hash is not carried over: endpoints take turns, as its key"),
        ("hash $scheme$http_x;", Balance(), "hash is not carried over: endpoints take turns, as its key"),
        ("random two least_conn;", Balance("least_requests"), ""),
        ("random;", Balance(), "random is not carried over: endpoints take turns"),
        ("sticky cookie srv expires=1h;", Balance("sticky", name="srv"), ""),
    ],
)
def test_balancers(given: str, expected: Balance, told: str) -> None:
    text = f"upstream up {{ {given} server 10.0.0.1; }} server {{ location / {{ proxy_pass http://up; }} }}"
    found = Imported("nginx", text)
    assert found.config.upstreams["up"].balance == expected
    assert told in found.comments
    assert told or "is not carried over" not in found.comments


def test_failures_that_nobody_counts() -> None:
    text = "upstream up { server 10.0.0.1 max_fails=0; server 10.0.0.2 %s; } server { location / { proxy_pass http://up; } }"
    assert Imported("nginx", text % "max_fails=0").config.upstreams["up"].eject is None
    assert Imported("nginx", text % "").config.upstreams["up"].eject == Eject()


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
        "line 4: max_fails of server 10.0.0.1:81 is not carried over: eject counts failures in a row",
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


def test_patterns_do_not_count_under_a_prefix_that_shuts_them_out() -> None:
    """`^~` keeps patterns out of a prefix, but not out of a longer one under it."""
    found = server(
        "location / { proxy_pass http://r; }",
        "location ^~ /a { proxy_pass http://a; }",
        "location /a/b { proxy_pass http://b; }",
        "location ^~ /c/d { proxy_pass http://d; }",
        "location ~ \\.png$ { proxy_pass http://p; }",
        "location ~ ^/a/b/(x|y) { proxy_pass http://q; }",
    )
    asked = ["/z", "/z.png", "/a/x.png", "/a/b/z", "/a/b/z.png", "/a/b/y", "/c/d/x.png", "/c/x.png"]
    assert [found.ask(path).to.removesuffix(":80") for path in asked] == ["r", "p", "a", "b", "p", "q", "d", "p"]
    assert "(?!" not in found.text
