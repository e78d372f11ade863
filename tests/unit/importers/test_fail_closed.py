"""Whatever an importer does not understand closes its routes: never open, never in plain http."""

from __future__ import annotations

import json

import pytest

from gateway import config, importers
from gateway.commands.wording import told_end
from gateway.errors import ConfigError
from gateway.routing.router import Router
from tests.imported import Imported, Went
from tests.unit.importers.closed import closings, ends

# -- merge keys ----------------------------------------------------------------------------

KONG = '_format_version: "3.0"\n'


@pytest.mark.parametrize(
    "keys",
    [
        "{<<: *guard, paths: [/a], name: r}",
        "{<<: [*other, *guard], paths: [/a], name: r}",
        "{paths: [/a], name: r, <<: {plugins: [{name: key-auth}]}}",
        "{<<: *around, name: r}",
    ],
)
def test_a_guard_that_comes_by_a_merge_key(keys: str) -> None:
    text = f"""{KONG}x-guard: &guard {{plugins: [{{name: key-auth}}]}}
x-other: &other {{preserve_host: true}}
x-around: &around {{<<: *guard, paths: [/a]}}
services: [{{name: s, url: "http://s", routes: [{keys}]}}]
"""
    found = Imported("kong", text)
    assert found.ask("/a/x") == Went("closed")
    assert "key-auth guarded it" in closings(found)


def test_a_key_of_its_own_wins_over_a_merged_one() -> None:
    """YAML's merge type: the first of several mappings wins, and the mapping itself over all."""
    text = f"""{KONG}x-a: &a {{strip_path: false, preserve_host: true}}
x-b: &b {{preserve_host: false, paths: [/b]}}
services: [{{name: s, url: "http://s", routes: [{{<<: [*a, *b], paths: [/a], name: r}}]}}]
"""
    assert Imported("kong", text).ask("/a/x", "h.example") == Went("s:80", "/a/x", "h.example")


@pytest.mark.parametrize("merged", ["x", "[x]", "", "[*a, 1]"])
def test_a_merge_key_of_anything_but_mappings_is_refused(merged: str) -> None:
    with pytest.raises(ConfigError, match="sample:3:12: <<: << must name a mapping, or a list of mappings"):
        Imported("kong", f"{KONG}x: &a {{}}\nservices: {{<<: {merged}}}\n")


def test_merging_is_bounded() -> None:
    wide = "".join(f"  k{number}: 1\n" for number in range(1000))
    many = "".join(f"n{number}:\n  <<: *a\n" for number in range(101))
    with pytest.raises(ConfigError, match="unfold to more than 100000"):
        Imported("kong", f"{KONG}a: &a\n{wide}{many}")


# -- Kong ----------------------------------------------------------------------------------


def kong(route: str, more: str = "") -> Imported:
    return Imported(
        "kong",
        f"""{KONG}services:
- name: s
  url: http://s.internal
  routes:
  - {{name: r, paths: [/r]{route}}}
  - {{name: q, paths: [/]}}
{more}""",
    )


@pytest.mark.parametrize(
    "plugin",
    ["oidc", "my-company-auth", "pre-function", "post-function", "forward-auth", "aws-lambda", "route-by-header", "canary",
     "ai-prompt-guard", "injection-protection", "x"],
)  # fmt: skip
@pytest.mark.parametrize("scope", ["route", "service", "global"])
def test_an_unknown_plugin_of_kong_closes(plugin: str, scope: str) -> None:
    given = f"plugins: [{{name: {plugin}}}]"
    found = {
        "route": lambda: kong(f", {given}"),
        "service": lambda: kong("", f"  {given}\n"),
        "global": lambda: kong("", f"{given}\n"),
    }[scope]()
    assert [found.ask(path).to for path in ("/r", "/r/x", "/rx")] == ["closed", "closed", "closed"]
    assert found.ask("/q").to == ("s.internal:80" if scope == "route" else "closed")
    assert f"{plugin} may refuse or divert requests, and is not in this version; to open it: upstream: s" in closings(found)


@pytest.mark.parametrize("plugin", ["cors", "rate-limiting", "prometheus", "request-transformer", "correlation-id"])
def test_plugins_that_let_every_request_pass_do_not_close(plugin: str) -> None:
    found = kong(f", plugins: [{{name: {plugin}}}]")
    assert found.ask("/r/x").to == "s.internal:80"
    assert f"plugin: {plugin} is not carried over" in found.comments


@pytest.mark.parametrize("plugins", ["{name: key-auth}", "[key-auth]", "key-auth"])
def test_plugins_of_kong_that_are_not_understood_close(plugins: str) -> None:
    assert kong(f", plugins: {plugins}").ask("/r").to == "closed"


FILTERS = "filter_chains: [{filters: [{name: my-auth}]}]"


@pytest.mark.parametrize(
    ("route", "more", "rest"),
    [
        (f", {FILTERS}", "", "s.internal:80"),
        (", filter_chains: my-auth", "", "s.internal:80"),
        ("", f"  {FILTERS}\n", "closed"),
        ("", "filter_chains: [{route: {name: r}, filters: [{name: my-auth}]}]", "s.internal:80"),
        ("", "filter_chains: [{service: s, filters: [{name: my-auth}]}]", "closed"),
    ],
)
def test_filters_of_kong_close(route: str, more: str, rest: str) -> None:
    found = kong(route, more)
    assert (found.ask("/r/x").to, found.ask("/q").to) == ("closed", rest)


def test_filters_of_kong_that_are_off_do_not_close() -> None:
    assert kong(", filter_chains: [{enabled: false, filters: [{name: my-auth}]}]").ask("/r").to == "s.internal:80"


@pytest.mark.parametrize(
    "condition",
    ["snis: [a.example]", "sources: [{ip: 10.0.0.0/8}]", 'headers: {x: ["~*^a"]}', "hosts: [example.*]", 'expression: "true"'],
)
def test_a_guarded_route_of_kong_loses_a_condition_not_its_guard(condition: str) -> None:
    assert kong(f", {condition}, plugins: [{{name: key-auth}}]").ask("/r/x", "example.org").to == "closed"


def test_opening_keeps_strip_and_rewrite() -> None:
    """Only the upstream has to be put back, and the route for the same bytes to be deleted."""
    found = kong(", plugins: [{name: key-auth}]")
    lines = found.text.split("\n")
    at = lines.index("  - name: r")
    route = "\n".join(lines[at : lines.index("", at)] if "" in lines[at:] else lines[at:])
    assert "strip_prefix: true" in route
    opened = found.text.replace("upstream: closed", "upstream: s", 1)
    (one,) = [route for route in config.loads(opened.encode(), "x", {}).routes if route.name == "r"]
    assert (one.upstream, one.strip_prefix) == ("s", True)
    base = kong(", plugins: [{name: key-auth}]").text.replace("http://s.internal", "http://s.internal/base")
    assert "closed: key-auth guarded it, and is not in this version; to open it: upstream: s" in base


@pytest.mark.parametrize("code", ["", ", https_redirect_status_code: 426", ", https_redirect_status_code: 301"])
def test_https_only_routes_of_kong_do_not_forward_plain_http(code: str) -> None:
    found = kong(f", protocols: [https]{code}")
    assert found.ask("/r/x").to.startswith("-> 30")
    assert ("Kong answered with 426" in found.comments) is ("301" not in code)


# -- Traefik -------------------------------------------------------------------------------

SERVICES = 'services: {s: {loadBalancer: {servers: [{url: "http://s"}]}}, d: {loadBalancer: {servers: [{url: "http://d"}]}}}'


def traefik(routers: str, more: str = "middlewares: {}", rest: str = "") -> Imported:
    return Imported("traefik", f"http:\n  routers:\n{routers}\n  {more}\n  {SERVICES}\n{rest}\n")


@pytest.mark.parametrize(
    "middleware",
    ["m: {newThing: {}}", "m: {headers: {allowedHosts: [a]}}", "m: {headers: {sslRedirect: true}}", "m: {chain: x}", "m: {chain: {middlewares: [{name: x}]}}",
     "m: {redirectScheme: x}", "m: {stripPrefix: x}", "m: {redirectRegex: {regex: a, replacement: b}}", "n: {}"],
)  # fmt: skip
def test_a_middleware_that_is_not_understood_closes(middleware: str) -> None:
    found = traefik("    r: {rule: 'PathPrefix(`/r`)', service: s, middlewares: [m]}", f"middlewares: {{{middleware}}}")
    assert [found.ask(path).to for path in ("/r/x", "/rx")] == ["closed", "closed"]
    assert "to open it: upstream: s" in closings(found)


@pytest.mark.parametrize("given", ["{a: b}", "[{a: b}]"])
def test_middlewares_that_are_not_a_list_of_names_close(given: str) -> None:
    assert traefik(f"    r: {{rule: 'PathPrefix(`/r`)', service: s, middlewares: {given}}}").ask("/r").to == "closed"


@pytest.mark.parametrize("harmless", ["headers: {customRequestHeaders: {a: b}}", "headers: {sslRedirect: false, allowedHosts: []}", "compress: {}", "rateLimit: {average: 1}"])
def test_middlewares_that_let_every_request_pass_do_not_close(harmless: str) -> None:
    text = "    r: {rule: 'PathPrefix(`/r`)', service: s, middlewares: [m]}"
    assert traefik(text, f"middlewares: {{m: {{{harmless}}}}}").ask("/r").to == "s:80"


OPTIONS = "tls: {options: {NAME: {clientAuth: AUTH}}}"


@pytest.mark.parametrize(
    ("router", "name", "auth", "to"),
    [
        ("tls: {options: m}", "m", "{caFiles: [a], clientAuthType: RequireAndVerifyClientCert}", "closed"),
        ("tls: {options: m@file}", "m", "{clientAuthType: RequireAnyClientCert}", "closed"),
        ("tls: {options: m}", "m", "{caFiles: [a]}", "closed"),
        ("tls: {options: m}", "m", "x", "closed"),
        ("tls: {}", "default", "{clientAuthType: RequireAndVerifyClientCert}", "closed"),
        ("tls: {options: m}", "n", "{clientAuthType: NoClientCert}", "closed"),
        ("tls: {options: m@kubernetes}", "m", "{clientAuthType: NoClientCert}", "closed"),
        ("tls: {options: m}", "m", "{clientAuthType: NoClientCert}", "s:80"),
        ("tls: {options: m}", "m", "{clientAuthType: RequestClientCert}", "s:80"),
        ("tls: {}", "m", "{clientAuthType: RequireAndVerifyClientCert}", "s:80"),
    ],
)
def test_client_certificates_of_traefik(router: str, name: str, auth: str, to: str) -> None:
    options = OPTIONS.replace("NAME", name).replace("AUTH", auth)
    found = traefik(f"    r: {{rule: 'Host(`a.example`)', service: s, {router}}}", rest=options)
    assert found.ask("/", "a.example").to == to
    assert ("client certificates" in closings(found)) is (to == "closed")


HTTPS = "middlewares: {https: {redirectScheme: {scheme: https, permanent: true}}}"
CATCH_ALL = "    to-https: {rule: 'HostRegexp(`.+`)', entryPoints: [web], middlewares: [https], service: SERVICE, priority: 1}"


@pytest.mark.parametrize("service", ["d", "noop@internal"])
@pytest.mark.parametrize("secure", ["entryPoints: [websecure]", "tls: {}", "entryPoints: [websecure], tls: {}"])
def test_a_redirect_of_one_entry_point_stands_before_the_others(service: str, secure: str) -> None:
    """On plain http Traefik's other router is not there, whatever its priority; by https the redirect is not."""
    shop = f"    shop: {{rule: 'Host(`shop.example`) && PathPrefix(`/x`)', service: s, {secure}}}"
    found = traefik(f"{CATCH_ALL.replace('SERVICE', service)}\n{shop}", HTTPS)
    assert ends(found) == {"*": ["-> 308 https://*"], "shop.example": ["s"]} or [
        told_end(route) for route, _ in Router(found.config.routes).ordered()
    ] == ["-> 308 https://*", "s"]
    assert found.ask("/x/y", "shop.example").to == "-> 308 https://*"
    assert "what comes by https is left to the routers for https" in found.comments


def test_plain_routers_before_a_redirect_stay_before_it() -> None:
    acme = "    acme: {rule: 'PathPrefix(`/acme`)', entryPoints: [web], service: d, priority: 50}"
    shop = "    shop: {rule: 'Host(`shop.example`)', entryPoints: [websecure], service: s}"
    found = traefik(f"{CATCH_ALL.replace('SERVICE', 'd')}\n{acme}\n{shop}", HTTPS)
    assert found.ask("/acme/x", "shop.example").to == "d:80"
    assert found.ask("/x", "shop.example").to == "-> 308 https://*"


def test_a_guard_for_https_does_not_fall_behind_a_plain_router() -> None:
    """The plain router is for all entry points, so it may not move before the guarded one."""
    wide = "    wide: {rule: 'Host(`shop.example`)', service: d, priority: 50}"
    admin = "    admin: {rule: 'Host(`shop.example`) && PathPrefix(`/admin`)', entryPoints: [websecure], service: s, middlewares: [auth]}"
    more = HTTPS.replace("{https:", "{auth: {basicAuth: {users: []}}, https:")
    found = traefik(f"{CATCH_ALL.replace('SERVICE', 'd')}\n{wide}\n{admin.replace('service', 'priority: 100, service')}", more)
    order = [told_end(route) for route, _ in Router(found.config.routes).ordered()]
    assert order.index("closed") < order.index("d")
    assert order[0] == "-> 308 https://*"
    assert "router wide is behind it: plain http is redirected, too" in found.comments


def test_pages_of_traefiks_own_on_a_port_of_their_own_are_left_out() -> None:
    app = "    app: {rule: 'Host(`a.example`)', entryPoints: [websecure], service: s}"
    dash = "    dash: {rule: 'PathPrefix(`/api`)', entryPoints: [ENTRY], service: api@internal}"
    found = traefik(f"{app}\n{dash.replace('ENTRY', 'traefik')}")
    assert found.ask("/api/x", "a.example").to == "s:80"
    assert "router dash: left out: a page of Traefik's own" in found.comments
    assert traefik(f"{app}\n{dash.replace('ENTRY', 'websecure')}").ask("/api/x").to == "closed"


def test_two_routers_for_everything() -> None:
    plain = "    plain: {rule: 'HostRegexp(`.+`)', entryPoints: [web], service: s}"
    found = traefik(f"{plain}\n{plain.replace('plain', 'secure').replace('web', 'websecure')}")
    assert found.ask("/x").to == "s:80"
    assert "route secure is left out: can never be told apart from route plain" in found.comments
    guarded = plain.replace("plain", "secure").replace("service: s", "service: s, middlewares: [nope]")
    assert traefik(f"{plain}\n{guarded}").ask("/x").to == "closed"


def test_a_guarded_router_of_traefik_loses_a_condition_not_its_guard() -> None:
    admin = "    admin: {rule: 'PathPrefix(`/admin`) && !ClientIP(`10.0.0.0/8`)', service: s, middlewares: [nope]}"
    found = traefik(f"{admin}\n    all: {{rule: 'PathPrefix(`/`)', service: s}}")
    assert (found.ask("/admin/x").to, found.ask("/x").to) == ("closed", "s:80")


def test_a_redirect_of_traefik_with_a_condition_that_cannot_be_expressed_redirects_more() -> None:
    hosts = "    r: {rule: 'HostRegexp(`^(a|b)[.]example$`)', middlewares: [https], service: s}"
    found = traefik(f"{hosts}\n    all: {{rule: 'PathPrefix(`/`)', service: d, tls: {{}}}}", HTTPS)
    assert found.ask("/x", "a.example").to == "-> 308 https://*"


# -- fabio ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "to"),
    [
        ("a.example:80/ redirect=301,https://a.example$path", "-> 301 https://*"),
        ("a.example:80/ redirect=308,https://$host$path", "-> 308 https://*"),
        ("a.example:80/ redirect=301,https://www.a.example$path", "-> 301 https://*"),
        ("a.example:80/ redirect=301,https://a.example/x?y", "-> 301 https://*"),
        ("a.example:80/ redirect=yes,https://a.example$path", "-> 302 https://*"),
    ],
)
def test_a_redirect_of_fabios_port_80(redirect: str, to: str) -> None:
    found = Imported("fabio", f"web: urlprefix-a.example/\nweb: urlprefix-a.example/api/v1\nweb: urlprefix-{redirect}\n")
    assert [found.ask(path, "a.example").to for path in ("/", "/api/v1/x")] == [to, to]
    assert "web" in {told_end(route) for route in found.config.routes}


def test_a_redirect_to_another_host_stays_where_nothing_else_has_its_host() -> None:
    found = Imported("fabio", "web: urlprefix-a.example:80/ redirect=301,https://www.a.example$path\n")
    assert found.ask("/x", "a.example").to == "-> 301 https://www.a.example"


@pytest.mark.parametrize("source", ["a.example:8080/p", "a.example/p*", "*.example/p", "a*.example/p", "a.example/$X"])
def test_a_guarded_route_of_fabio_that_cannot_be_matched_is_closed(source: str) -> None:
    found = Imported("fabio", f"web: urlprefix-/\nadmin: urlprefix-{source} auth=x\n")
    assert found.ask("/p/x", "a.example").to == "closed"
    assert "auth guarded it" in closings(found)


def test_routes_that_are_closed_say_how_to_open_them() -> None:
    texts = {
        "nginx": "server { location /a { return 444; } location /b { deny all; proxy_pass http://b; } }",
        "kong": json.dumps({"_format_version": "3.0", "routes": [{"name": "r", "paths": ["/r"]}]}),
        "traefik": "http: {routers: {r: {rule: 'Path(`/a`)', service: api@internal}}}",
    }
    for source, text in texts.items():
        lines = [line for line in importers.imported(source, text.encode(), "x").splitlines() if "closed: " in line]
        assert lines
        assert all("to open it: " in line for line in lines)
