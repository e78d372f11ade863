"""nginx's guards, includes and redirects: what import does not understand closes, never opens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.importers.widen import widened
from tests.imported import Imported, Went
from tests.unit.importers.closed import closings, ends

# -- nginx ---------------------------------------------------------------------------------


def nginx(*locations: str, more: str = "", around: str = "") -> Imported:
    text = " ".join(locations) or "location / { proxy_pass http://a; }"
    return Imported("nginx", f"{around} server {{ listen 80; {more} {text} }}\n")


GUARDS = [
    "access_by_lua_file x.lua;", 'access_by_lua_block { if x == "}" then ngx.exit(403) end -- }\n }', "access_by_lua 'x';",
    "rewrite_by_lua_block { ngx.exit(403) }", "server_rewrite_by_lua_file x;", "auth_ldap x;", "auth_pam x;", "auth_gss on;",
    "auth_digest x;", "auth_jwt_require $x;", "auth_oidc x;", "js_access main.check;", "modsecurity on;", "SecRulesEnabled;",
    'if ($cookie_token = "") { return 302 /login; }', "if ($bad) { return 444; }", "if ($bad) { rewrite ^ /x; }",
    "if ($bad) { set $x 1; return 403; }", "if ($x) { include more.conf; }", "some_module_of_ones_own on;",
    "include /nowhere/auth.conf;", "include nowhere/*.conf;", "ssl_certificate_by_lua_block { x() }", "ssl_verify_client on;",
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("level", ["location", "server", "http"])
def test_a_directive_that_may_refuse_closes(guard: str, level: str) -> None:
    if level == "http" and guard.startswith("if "):
        return
    found = {
        "location": lambda: nginx(f"location / {{ {guard} proxy_pass http://a; }}"),
        "server": lambda: nginx(more=guard),
        "http": lambda: nginx(around=guard),
    }[level]()
    assert found.ask("/x") == Went("closed")
    assert "to open it: upstream: a" in closings(found)
    named = guard.split()[0].rstrip(";")
    assert named in closings(found)


@pytest.mark.parametrize(
    "harmless",
    ["gzip on;", "proxy_buffering off;", "add_header X y;", "more_set_headers 'X: y';", "ssl_protocols TLSv1.2;", "limit_req zone=a;",
     "lua_package_path x;", "log_by_lua_block { x() }", "auth_ldap off;", "modsecurity off;", "js_set $x main.y;", "set $x 1;",
     "if ($x) { set $y 1; }", "if ($x) { add_header X y; }", "brotli on;", "expires 1d;", "auth_request off;",
     "include mime.types;", "include /etc/nginx/fastcgi_params;"],
)  # fmt: skip
def test_directives_that_let_every_request_pass_do_not_close(harmless: str) -> None:
    assert nginx(f"location / {{ {harmless} proxy_pass http://a; }}").ask("/x").to == "a:80"


def test_a_guard_that_is_switched_off_further_in() -> None:
    inner = "location /o { auth_ldap off; proxy_pass http://a; }"
    found = nginx("location / { proxy_pass http://a; }", inner, more="auth_ldap x;")
    assert (found.ask("/x").to, found.ask("/o/x").to) == ("closed", "a:80")


def test_what_stands_around_http_says_nothing_of_requests() -> None:
    text = "worker_processes 1; some_module on; include modules/*.conf; http { server { location / { proxy_pass http://a; } } }"
    assert Imported("nginx", text).ask("/x").to == "a:80"


def test_a_closed_location_keeps_its_rewrite() -> None:
    for inside in ("auth_ldap x; proxy_pass http://a/v2/;", "auth_ldap x; proxy_pass http://a; rewrite ^/p/(.*)$ /$1 break;",
                   "proxy_pass $backend; rewrite ^/p/(.*)$ /$1 break;"):  # fmt: skip
        assert "rewrite: {" in nginx(f"location /p/ {{ {inside} }}").text


def test_paths_that_a_server_rewrites_are_closed() -> None:
    """The rewritten path may have a guard: /old/x is /admin/x there."""
    found = nginx(
        "location / { proxy_pass http://a; }",
        "location /admin/ { deny all; }",
        more="rewrite ^/old/(.*)$ /admin/$1 last;",
    )
    assert [found.ask(path).to for path in ("/old/x", "/x")] == ["closed", "a:80"]


@pytest.mark.parametrize(
    ("pattern", "wider"),
    [
        (r"/\.(?!well-known/)x", r"/\.(?:)x"),
        ("(?<=a+)b", "(?:)b"),
        ("a++b?+c*", "a+b?c*"),
        (r"(?>a|b)c\1", "(?:a|b)c(?:.*)"),
        (r"[(?=)]\(?x", r"[(?=)]\(?x"),
        ("(?!(a(b)))c(d)", "(?:)c(d)"),
        (r"(?P<n>a)(?P=n)\k<n>", "(?P<n>a)(?:.*)(?:.*)"),
    ],
)
def test_patterns_without_look_around(pattern: str, wider: str) -> None:
    assert widened(pattern) == wider


@pytest.mark.parametrize(
    ("pattern", "path"),
    [(r"^/a\ b", "/a%20b"), ('"^/a b+$"', "/a%20b"), ("^/é?x$", "/%C3%A9x"), ("^/é?x$", "/x"), (r"^/\é", "/%c3%a9")],
)
def test_a_guard_meets_what_a_path_holds_percent_encoded(pattern: str, path: str) -> None:
    found = nginx("location / { proxy_pass http://a; }", f"location ~ {pattern} {{ deny all; }}")
    assert found.ask(path) == Went("closed")


def test_a_guard_whose_pattern_is_refused_closes_more() -> None:
    found = nginx('location ~ "/(?<=a+)secret" { deny all; }', "location / { proxy_pass http://a; }")
    assert [found.ask(path).to for path in ("/secret", "/x/secret", "/x")] == ["closed", "closed", "a:80"]
    assert "this pattern without look-around meets more" in found.comments


def test_a_guard_whose_pattern_is_no_pattern_closes_what_comes_after_it() -> None:
    other = "server { listen 80; server_name b.example; location / { proxy_pass http://b; } }"
    text = 'server { listen 80; server_name a.example; location ~ "/(secret" { deny all; } location = /e { proxy_pass http://a; } location / { proxy_pass http://a; } }'
    found = Imported("nginx", text + other)
    asked = [("/x", "a.example"), ("/e", "a.example"), ("/x", "b.example")]
    # An exact location wins before patterns are tried.
    assert [found.ask(*one).to for one in asked] == ["closed", "a:80", "b:80"]
    assert "a guard before it, in line 1, cannot be expressed" in closings(found)


# -- redirects to https, and ports -----------------------------------------------------------

SECURE = "server { listen 443 ssl; server_name a.example; location / { proxy_pass http://a; } location /api/ { proxy_pass http://b; } location = /e { proxy_pass http://b; } }"


@pytest.mark.parametrize(
    "plain",
    [
        "server_name a.example; return 301 https://$host$request_uri;",
        "server_name a.example; return 301 https://a.example$request_uri;",
        "server_name a.example; return 301 https://b.example/x?y;",
        "server_name a.example; location / { return 301 https://$host$request_uri; }",
        "server_name a.example; location / { return 301 https://a.example$request_uri; }",
        "server_name a.example; location / { return 301 https://$host/x?y=$arg_z; }",
        "server_name a.example; location /.well-known/ { root /var/www; } location / { return 301 https://$host$request_uri; }",
        "server_name a.example; rewrite ^ https://$host$request_uri? permanent;",
        "server_name a.example; rewrite ^(.*)$ https://$host$1 permanent;",
        "server_name a.example; location / { rewrite ^/(.*)$ https://$host/$1 redirect; }",
        "server_name a.example; if ($host = a.example) { return 301 https://$host$request_uri; } return 404;",
        "server_name _; return 301 https://$host$request_uri;",
        "server_name _; location / { return 301 https://$host$request_uri; }",
        "server_name other.example; return 301 https://$host$request_uri;",
        "server_name *.example; return 301 https://$host$request_uri;",
        r"server_name ~^(?<n>.+)$; return 301 https://$n$request_uri;",
        r"server_name ~^(?<n>.+)$; location / { return 301 https://$n$request_uri; }",
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_plain_http_is_redirected_and_never_forwarded(plain: str, first: bool) -> None:
    server = f"server {{ listen 80; {plain} }}"
    found = Imported("nginx", f"{server} {SECURE}" if first else f"{SECURE} {server}")
    for path in ("/", "/x", "/api/x", "/e"):
        assert found.ask(path, "a.example").to.startswith("-> 30"), path
        assert "https://*" in found.ask(path, "a.example").to
    assert ends(found)["a.example"][-2:] == ["b", "a"]


@pytest.mark.parametrize(
    "condition",
    ["$scheme = http", "$scheme != https", '$scheme != "https"', '$https = ""', "$https != on", "$server_port = 80",
     "$http_x_forwarded_proto = http", '$http_x_forwarded_proto != "https"'],
)  # fmt: skip
def test_a_condition_on_plain_http_redirects(condition: str) -> None:
    moved = f"if ({condition}) {{ return 301 https://$host$request_uri; }}"
    found = nginx("location / { proxy_pass http://a; }", more=f"listen 443 ssl; server_name a.example; {moved}")
    assert ends(found) == {"a.example": ["-> 301 https://*", "a"]}


def test_hosts_that_have_the_port_themselves_are_not_redirected() -> None:
    default = "server { listen 80 default_server; server_name _; return 301 https://$host$request_uri; }"
    both = SECURE.replace("listen 443 ssl;", "listen 443 ssl; listen 80;")
    assert Imported("nginx", default + both).ask("/x", "a.example").to == "a:80"


def test_what_nginx_takes_before_a_redirect_stays_before_it() -> None:
    plain = "server { listen 80; server_name a.example; location /acme/ { proxy_pass http://c; } location / { return 301 https://$host$request_uri; } }"
    found = Imported("nginx", plain + SECURE)
    assert (found.ask("/acme/x", "a.example").to, found.ask("/api/x", "a.example").to) == ("c:80", "-> 301 https://*")
    assert "holds for all ports of the host here" in found.comments


def two(first: str, second: str) -> Imported:
    """Two servers: on port 80, and on port 8443."""
    return Imported("nginx", f"server {{ listen 80; {first} }} server {{ listen 8443; {second} }}")


TO_HTTPS = "location / { return 301 https://$host$request_uri; }"


def test_a_redirect_of_the_default_server_holds_for_hosts_that_nobody_names() -> None:
    found = two(f"server_name a.example; {TO_HTTPS}", "server_name _; location /api/ { proxy_pass http://b; }")
    assert found.ask("/api/x", "other.example").to == "-> 301 https://*"


def test_a_condition_on_a_host_that_comes_by_the_default_server() -> None:
    moved = "if ($host = a.example) { return 301 https://$host$request_uri; } location / { proxy_pass http://c; }"
    found = two(f"server_name b.example; {moved}", "server_name a.example; location / { proxy_pass http://a; }")
    assert found.ask("/x", "a.example").to == "-> 301 https://*"


@pytest.mark.parametrize("path", ["/a/x", "/a", "/abc"])
def test_a_redirect_of_a_prefix_goes_by_bytes(path: str) -> None:
    """Also where the other server has the prefix with a slash, which is the same one here."""
    first = "server_name a.example; location /a { return 301 https://$host$request_uri; }"
    second = "location /a/ { proxy_pass http://b; } location / { proxy_pass http://b; }"
    assert two(first, f"server_name a.example; {second}").ask(path, "a.example").to == "-> 301 https://*"


@pytest.mark.parametrize(
    "answer", ["return 444;", "return 403 $request_uri;", "root /srv; try_files $uri =404;", "auth_basic x; fastcgi_pass a:1;"]
)
def test_a_server_whose_answer_cannot_be_said_is_not_forwarded_by_a_wider_server(answer: str) -> None:
    wide = "server { listen 80 default_server; location / { proxy_pass http://a; } }"
    found = nginx(f"location /x {{ {answer} }}", more=f"server_name b.example *.c.example; {answer}", around=wide)
    for host in ("b.example", "x.c.example"):
        assert found.ask("/y", host=host) == Went("closed")
    assert found.ask("/y", host="other.example").to == "a:80"


def test_a_server_that_nginx_never_uses_opens_nothing() -> None:
    """The same name on the same port: nginx ignores the second server, and so its open location."""
    closed = "server { listen 80; server_name a.example; location /admin/ { deny all; } }"
    opened = "server { listen 80; server_name a.example; location /admin/x/ { proxy_pass http://a; } location / { proxy_pass http://a; } }"
    found = Imported("nginx", closed + opened)
    assert [found.ask(path, "a.example").to for path in ("/admin/x/y", "/y")] == ["closed", ""]
    assert "nginx never uses this server for a.example" in found.comments


def test_a_name_with_a_dot_is_ignored_as_a_whole() -> None:
    """nginx: conflicting server name ".b.example" on 0.0.0.0:80, ignored."""
    found = Imported(
        "nginx",
        "server { listen 80; server_name *.b.example; location / { deny all; } }"
        "server { listen 80; server_name .b.example; location / { proxy_pass http://a; } }",
    )
    assert [found.ask("/x", host).to for host in ("b.example", "x.b.example")] == ["", "closed"]


def test_a_request_that_meets_no_location_is_not_forwarded_by_a_wider_server() -> None:
    wide = "server { listen 80 default_server; location / { proxy_pass http://a; } }"
    found = Imported("nginx", wide + "server { listen 80; server_name b.example; location /b { proxy_pass http://b; } }")
    asked = [found.ask(*one).to for one in (("/b", "b.example"), ("/x", "b.example"), ("/x", "c.example"))]
    assert asked == ["b:80", "404 fixed", "a:80"]


# -- includes --------------------------------------------------------------------------------

SITE = """server {
  listen 80; server_name a.example;
  include snippets/acme.conf;
  location /admin/ { include FOLDER/snippets/auth.conf; proxy_pass http://a; }
  location /off/ { proxy_pass http://b; }
}
"""
ACME = "location /.well-known/ { proxy_pass http://c; }\n"
AUTH = 'auth_basic "x";\nproxy_read_timeout 90s;\n'


def asked(found: Imported) -> list[str]:
    return [found.ask(path, "a.example").to for path in ("/admin/x", "/off/x", "/.well-known/x")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("snippets", "conf.d", "sites"):
        (tmp_path / name).mkdir()
    (tmp_path / "snippets/acme.conf").write_text(ACME)
    (tmp_path / "snippets/auth.conf").write_text(AUTH)
    return tmp_path


def at(path: Path) -> Imported:
    return Imported("nginx", path.read_bytes(), path)


def test_included_files_are_read_where_they_are(folder: Path) -> None:
    (folder / "nginx.conf").write_text("events {}\nhttp {\n include conf.d/*.conf;\n include sites/*;\n}\n")
    (folder / "conf.d/a.conf").write_text(SITE.replace("FOLDER", str(folder)))
    found = at(folder / "nginx.conf")
    assert asked(found) == ["closed", "b:80", "c:80"]
    assert "auth_basic guarded it" in closings(found)
    assert found.route("admin").timeouts.response == 90
    assert found.route("off").timeouts.response != 90
    assert f"{folder}/snippets/auth.conf was read from disk" in found.comments
    # A file of one site: names are relative to the folder of nginx.conf.
    assert asked(at(folder / "conf.d/a.conf")) == ["closed", "b:80", "c:80"]


def test_a_document_that_is_no_file_includes_nothing() -> None:
    found = Imported("nginx", SITE.replace("FOLDER", "/etc/nginx"))
    assert asked(found)[:2] == ["closed", "closed"]
    assert "include snippets/acme.conf could not be read, and may guard it" in closings(found)


@pytest.mark.parametrize("kind", ["gone", "folder", "pipe", "pattern"])
def test_a_file_that_cannot_be_read_closes(kind: str, folder: Path) -> None:
    auth = folder / "snippets/auth.conf"
    auth.unlink()
    if kind == "folder":
        auth.mkdir()
    elif kind == "pipe":
        os.mkfifo(auth)
    text = SITE.replace("FOLDER", str(folder))
    (folder / "nginx.conf").write_text(text.replace("snippets/auth", "gone/*") if kind == "pattern" else text)
    assert asked(at(folder / "nginx.conf")) == ["closed", "b:80", "c:80"]


def test_a_pattern_that_meets_no_file_holds_nothing(folder: Path) -> None:
    (folder / "nginx.conf").write_text(SITE.replace("FOLDER/snippets/auth.conf", f"{folder}/conf.d/*.conf"))
    assert asked(at(folder / "nginx.conf")) == ["a:80", "b:80", "c:80"]


def test_files_that_include_one_another_are_refused(folder: Path) -> None:
    (folder / "snippets/auth.conf").write_text("include snippets/auth.conf;\n")
    (folder / "nginx.conf").write_text(SITE.replace("FOLDER", str(folder)))
    with pytest.raises(ConfigError, match="files within files deeper than 16 levels"):
        at(folder / "nginx.conf")


def test_included_files_are_bounded(folder: Path) -> None:
    (folder / "nginx.conf").write_text(SITE.replace("FOLDER", str(folder)))
    (folder / "snippets/auth.conf").write_text("#" * (8 * 1024 * 1024))
    with pytest.raises(ConfigError, match="included files are longer than 8 MiB"):
        at(folder / "nginx.conf")


def test_too_many_files_are_refused(folder: Path) -> None:
    for number in range(1001):
        (folder / f"conf.d/{number}.conf").write_text("")
    (folder / "nginx.conf").write_text("http { include conf.d/*.conf; server { location / { proxy_pass http://a; } } }")
    with pytest.raises(ConfigError, match="more than 1000 files"):
        at(folder / "nginx.conf")
    (folder / "conf.d/1000.conf").unlink()
    assert at(folder / "nginx.conf").ask("/x").to == "a:80"


@pytest.mark.parametrize("there", [True, False])
def test_debians_proxy_params_say_that_the_host_is_the_clients(there: bool, folder: Path) -> None:
    (folder / "nginx.conf").write_text("server { location / { proxy_pass http://a; include proxy_params; } }")
    if there:
        (folder / "proxy_params").write_text("proxy_set_header Host other.example;\n")
    assert at(folder / "nginx.conf").ask("/x", "h.example") == Went("a:80", "/x", "other.example" if there else "h.example")


DUMP = f"""# configuration file /etc/nginx/nginx.conf:
events {{}}
http {{
  include mime.types;
  include /etc/nginx/conf.d/*.conf;
}}

# configuration file /etc/nginx/mime.types:
types {{ text/html html; }}

# configuration file /etc/nginx/conf.d/a.conf:
{SITE.replace("FOLDER", "/etc/nginx")}
# configuration file /etc/nginx/snippets/acme.conf:
{ACME}
# configuration file /etc/nginx/snippets/auth.conf:
{AUTH}"""


@pytest.mark.parametrize("before", ["", "# a comment\n\n", "nginx: the configuration file x syntax is ok\n"])
def test_what_nginx_T_prints(before: str) -> None:
    found = Imported("nginx", before + DUMP)
    assert asked(found) == ["closed", "b:80", "c:80"]
    line = (before + DUMP).split("\n").index('auth_basic "x";') + 1
    assert f"line {line}: auth_basic is not carried over" in found.comments
    assert "read from disk" not in found.comments


def test_a_file_that_nothing_includes_is_refused() -> None:
    """A comment of that form in a file of one's own would cut it in two."""
    with pytest.raises(ConfigError, match=r"/etc/nginx/x\.conf is not included by any other file"):
        Imported("nginx", DUMP + "# configuration file /etc/nginx/x.conf:\ndeny all;\n")
    with pytest.raises(ConfigError, match="is there twice, and differs"):
        Imported("nginx", DUMP + "# configuration file /etc/nginx/snippets/auth.conf:\n")


def test_a_file_that_the_output_lacks_closes() -> None:
    short = DUMP[: DUMP.index("# configuration file /etc/nginx/snippets/auth.conf")]
    assert asked(Imported("nginx", short)) == ["closed", "b:80", "c:80"]


@pytest.mark.parametrize("code", ['x = "}"', "x = '\\'}'", "--[[ } ]]", "--[==[ } ]] ]==]", "x = [[ } ]]", "if a then { { } } end", "-- }\n"])
def test_braces_in_lua(code: str) -> None:
    found = nginx(f"location / {{ log_by_lua_block {{ {code} }} proxy_pass http://a; }}")
    assert found.ask("/x").to == "a:80"


@pytest.mark.parametrize("code", ["{", '"', "[[", "--[=[", "[" * 200_000, "[=" * 100_000])
def test_lua_that_never_ends(code: str) -> None:
    with pytest.raises(ConfigError, match="never closed"):
        nginx(f"location / {{ log_by_lua_block {{ {code} }} proxy_pass http://a; }}")


def test_one_large_file_that_is_included_often_is_refused() -> None:
    large = "#" + "x" * 4_000_000
    text = f"# configuration file /etc/nginx/nginx.conf:\ninclude a;\ninclude a;\ninclude a;\n# configuration file /etc/nginx/a:\n{large}\n"
    with pytest.raises(ConfigError, match="included files are longer than 8 MiB"):
        Imported("nginx", text)
