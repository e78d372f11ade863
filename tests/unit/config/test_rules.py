"""Rules between one key and another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.config.rules import RULES
from gateway.errors import ConfigError
from gateway.model import AdminSettings, EtcdSource, TlsSettings
from gateway.routing.router import Router
from tests.unit.config.reading import at, mistake, mistakes, read, route, upstream, with_route, with_upstream


def keys(told: list[str]) -> list[str]:
    return [one.split(": ")[1] for one in told]


# -- names -----------------------------------------------------------------------------


def test_an_unknown_upstream_is_told_with_those_that_are_known() -> None:
    text = "version: 1\nupstreams:\n  b: {consul: s}\n  a: {consul: s}\nroutes:\n  - {name: r, upstream: nope}\n"
    assert mistake(text) == f"{at(text, 'nope')}: routes[0].upstream: there is no upstream nope (allowed: a, b)"
    assert mistake("version: 1\nroutes: [{name: r, upstream: c}]\n").endswith("(allowed: none is defined)")


def test_a_broken_upstream_is_not_an_unknown_one() -> None:
    told = mistakes("version: 1\nupstreams: {u: {colour: red}}\nroutes: [{name: r, upstream: u}]\n")
    assert keys(told) == ["upstreams.u.colour"]
    told = mistakes("version: 1\nupstreams: [u]\nroutes: [{name: r, upstream: u}]\n")
    assert keys(told) == ["upstreams"]


def test_a_route_that_is_broken_elsewhere_still_has_its_upstream_and_name_checked() -> None:
    told = mistakes(
        """\
        version: 1
        upstreams: {u: {consul: s}}
        routes:
          - {name: r, upstream: u, match: {path: /a}}
          - {name: r, upstream: v, colour: red, match: {path: /b}}
        """
    )
    assert keys(told) == ["routes[1].name", "routes[1].upstream", "routes[1].colour"]


def test_names_are_unique() -> None:
    told = mistakes(
        "version: 1\nupstreams: {u: {consul: s}}\nroutes:\n"
        "  - {name: a, upstream: u, match: {path: /1}}\n"
        "  - {name: A, upstream: u, match: {path: /2}}\n"
        "  - {name: a, upstream: u, match: {path: /3}}\n"
        "  - {name: a, upstream: u, match: {path: /4}}\n"
    )
    assert told == [
        "f:6:12: routes[2].name: a is the name of the route in line 4 too",
        "f:7:12: routes[3].name: a is the name of the route in line 4 too",
    ]


def test_a_route_has_a_name() -> None:
    told = mistake("version: 1\nupstreams: {u: {consul: s}}\nroutes:\n  - {upstream: u}\n")
    assert told == "f:4:5: routes[0].name: is required"


def test_a_header_is_named_once_in_whatever_case() -> None:
    text = with_route("match: {headers: {X-A: 1, x-b: 2, x-a: 1}}")
    assert mistake(text) == f"{at(text, 'x-a')}: routes[0].match.headers.x-a: given twice, in another case"


# -- upstreams -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "{host: preserve}", "{consul: s, endpoints: [http://h]}", "{consul: null}", "{consul: s, dns_srv: a.b}"])
def test_one_source_of_endpoints(text: str) -> None:
    assert mistake(with_upstream(text)) == "f:3:3: upstreams.u: needs exactly one of consul, dns_srv, etcd, endpoints"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{endpoints: []}", "f:3:18: upstreams.u.endpoints: is empty (at least one URL)"),
        ("{endpoints: [http://h], tag: a}", "f:3:30: upstreams.u.tag: is for consul"),
        ("{dns_srv: a.b, tag: a}", "f:3:21: upstreams.u.tag: is for consul"),
        ("{dns_srv: a.b, scheme: http, tls: {}}", "f:3:35: upstreams.u.tls: is for scheme: https"),
        (
            "{endpoints: [http://h], scheme: http}",
            "f:3:30: upstreams.u.scheme: is for discovered endpoints; here each URL has its own",
        ),
        ("{endpoints: [http://h], tls: {}}", "f:3:30: upstreams.u.tls: no endpoint of this upstream is https"),
        (
            "{consul: s, scheme: https}",
            "f:3:18: upstreams.u.scheme: https over consul needs tls.server_name, the name to verify",
        ),
        (
            "{consul: s, tls: {}}",
            "f:3:18: upstreams.u.tls: https over consul needs tls.server_name, the name to verify",
        ),
        ("{consul: s, scheme: http, tls: {server_name: a}}", "f:3:32: upstreams.u.tls: is for scheme: https"),
    ],
)
def test_keys_that_do_not_go_together(text: str, told: str) -> None:
    assert mistake(with_upstream(text)) == told


def test_https_over_consul() -> None:
    found = upstream("{consul: s, tls: {server_name: s.example}}")
    assert found.scheme == "https"
    assert found.tls is not None
    assert found.tls.server_name == "s.example"
    assert upstream("{consul: s, scheme: https, tls: {server_name: 10.0.0.1, verify: false}}").scheme == "https"


def test_an_upstream_in_etcd() -> None:
    for text in ("{etcd: /svc/a}", "{etcd: /svc/a/}"):
        found = upstream(text)
        assert found.source == EtcdSource("/svc/a/")
        # A URL there may be https.
        assert (found.scheme, found.tls) == ("http", TlsSettings())
    assert upstream("{etcd: a, scheme: https}").scheme == "https"
    assert upstream("{etcd: a, scheme: http, tls: {server_name: b.example}}").tls == TlsSettings(server_name="b.example")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{endpoints: []}", "f:2:31: discovery.etcd.endpoints: is empty (at least one URL)"),
        ("{endpoints: [http://u:p@h]}", "f:2:32: discovery.etcd.endpoints[0]: holds a user name or password (such as http://127.0.0.1:8500)"),
        ("{username: u}", "f:2:13: discovery.etcd: username and password go together"),
        ("{password: p}", "f:2:13: discovery.etcd: username and password go together"),
        ("{password: p, username: [u]}", 'f:2:43: discovery.etcd.username: must be text, not a list'),
    ],
)
def test_members_of_etcd_and_who_asks(text: str, expected: str) -> None:
    assert mistake(f"version: 1\ndiscovery: {{etcd: {text}}}\n") == expected


def test_https_over_srv_records_verifies_their_targets() -> None:
    for text in ("{dns_srv: a.b, tls: {}}", "{dns_srv: a.b, scheme: https}"):
        found = upstream(text)
        assert found.scheme == "https"
        assert found.tls == TlsSettings()


@pytest.mark.parametrize("name", ["''", "a b", "a:80", "'*.a'", "http://a", "é.example", "5", "1.2.3"])
def test_bad_server_names(name: str) -> None:
    assert "upstreams.u.tls.server_name: " in mistake(with_upstream(f"{{consul: s, tls: {{server_name: {name}}}}}"))


def test_files_of_tls_exist(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    whole = f"ca: {tmp_path}/ca.pem, cert: {tmp_path}/cert.pem, key: {tmp_path}/key.pem"
    found = upstream(f"{{endpoints: [https://10.0.0.1], tls: {{{whole}}}}}").tls
    assert found is not None
    assert found.ca == f"{tmp_path}/ca.pem"
    assert (found.cert, found.key) == (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")
    for key in ("ca", "cert"):
        told = mistake(with_upstream(f"{{endpoints: [https://10.0.0.1], tls: {{{key}: {tmp_path}}}}}"))
        assert told.endswith(f"upstreams.u.tls.{key}: there is no file {tmp_path} that can be read")
    missing = tmp_path / "missing"
    told_all = mistakes(with_upstream(f"{{endpoints: [https://10.0.0.1], tls: {{ca: {missing}, cert: {missing}}}}}"))
    assert keys(told_all) == ["upstreams.u.tls.ca", "upstreams.u.tls.cert"]
    told = mistake(with_upstream(f"{{endpoints: [https://10.0.0.1], tls: {{key: {tmp_path}/key.pem}}}}"))
    assert told.endswith("upstreams.u.tls.key: needs tls.cert, the certificate that it belongs to")


def test_an_endpoint_stands_in_a_list_once() -> None:
    text = with_upstream("{endpoints: [http://a/x, http://b, http://A:80/x?q, {url: http://b:80/}]}")
    told = "is in this list already (for a larger share: weight)"
    assert mistakes(text) == [
        f"{at(text, 'http://A:80')}: upstreams.u.endpoints[2]: {told}",
        f"{at(text, 'http://b:80')}: upstreams.u.endpoints[3].url: {told}",
    ]
    assert upstream("{endpoints: [http://a, https://a, http://a:81, http://a/x]}").name == "u"


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]"])
def test_endpoints_that_discovery_denies(host: str) -> None:
    told = mistake(with_upstream(f"{{endpoints: ['http://{host}/']}}"))
    assert told == (
        "f:3:19: upstreams.u.endpoints[0]: 169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("[64:ff9b::a9fe:a9fe]", "64:ff9b::a9fe:a9fe (169.254.169.254) is in 169.254.0.0/16, which discovery.deny excludes"),
        ("[fd00:ec2::254]", "fd00:ec2::254 is in fd00:ec2::254/128, which discovery.deny excludes"),
        ("224.0.0.1", "224.0.0.1 is not an address of one host"),
        ("255.255.255.255", "255.255.255.255 is not an address of one host"),
        ("[ff02::1]", "ff02::1 is not an address of one host"),
    ],
)
def test_endpoints_that_nobody_has_to_deny(host: str, reason: str) -> None:
    assert mistake(with_upstream(f"{{endpoints: ['http://{host}/']}}")).endswith(f": upstreams.u.endpoints[0]: {reason}")


def test_an_endpoint_with_a_zone_is_no_url() -> None:
    assert "has no IPv6 address in [fe80::1%eth0]" in mistake(with_upstream("{endpoints: ['http://[fe80::1%eth0]']}"))


def test_what_is_denied_is_what_the_file_says() -> None:
    text = with_upstream("{endpoints: [http://169.254.169.254, http://10.1.2.3, 'http://[fe80::1]']}")
    assert read(text + "discovery: {deny: []}\n").routes
    told = mistakes(text + "discovery: {deny: [10.0.0.0/8, 'fe80::/10']}\n")
    assert keys(told) == ["upstreams.u.endpoints[1]", "upstreams.u.endpoints[2]"]
    # Names are looked up later; what cannot be read here is not judged by.
    assert keys(mistakes(text + "discovery: {deny: [x]}\n")) == ["discovery.deny[0]"]
    assert keys(mistakes(text + "discovery: {deny: ['fe80::%eth0/64']}\n")) == ["discovery.deny[0]"]


# -- routes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "told"),
    [
        ("[]", "routes[0].match: is empty and would match nothing (leave it out to match everything)"),
        ("{path: /a, prefix: /a}", "routes[0].match.prefix: stands beside path (one of path, prefix, regex)"),
        ("{regex: a, path: /a}", "routes[0].match.regex: stands beside path (one of path, prefix, regex)"),
        ("{not: {}}", "routes[0].match.not: is empty and would exclude nothing (leave it out)"),
        ("[{}, {path: /a, regex: a}]", "routes[0].match[1].regex: stands beside path (one of path, prefix, regex)"),
    ],
)
def test_one_condition_on_the_path(match: str, told: str) -> None:
    assert mistake(with_route(f"match: {match}")).endswith(f": {told}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("rewrite: {}", ["routes[0].rewrite: needs exactly one of prefix, path, regex with to"]),
        ("rewrite: {prefix: /a, path: /b}", ["routes[0].rewrite: needs exactly one of prefix, path, regex with to"]),
        ("rewrite: {regex: a}", ["routes[0].rewrite: regex and to go together"]),
        (
            "rewrite: {to: /a}",
            [
                "routes[0].rewrite: needs exactly one of prefix, path, regex with to",
                "routes[0].rewrite: regex and to go together",
            ],
        ),
        (
            r"rewrite: {regex: '/(a)', to: '/\2'}",
            ["routes[0].rewrite.to: does not fit the regular expression: invalid group reference 2 at position 2"],
        ),
        (
            r"rewrite: {regex: '/(a)', to: '/\g<b>'}",
            ["routes[0].rewrite.to: does not fit the regular expression: unknown group name 'b'"],
        ),
        (
            r"rewrite: {regex: '/(a)', to: '/\q'}",
            [r"routes[0].rewrite.to: does not fit the regular expression: bad escape \q at position 1"],
        ),
        ("strip_prefix: true, rewrite: {path: /b}", ["routes[0].rewrite: stands beside strip_prefix (one of them)"]),
        (
            "strip_prefix: true, match: [{prefix: /a}, {regex: /b}]",
            ["routes[0].strip_prefix: a match by regex has no prefix (rewrite: {regex, to})"],
        ),
        (
            "rewrite: {prefix: /b}, match: {regex: /b}",
            ["routes[0].rewrite.prefix: a match by regex has no prefix (rewrite: {regex, to})"],
        ),
    ],
)
def test_one_rewriting(given: str, told: list[str]) -> None:
    assert [one.split(": ", 1)[1] for one in mistakes(with_route(given))] == told


@pytest.mark.parametrize("cut", ["strip_prefix: true", "rewrite: {prefix: /n}", "redirect: {prefix: /n}"])
@pytest.mark.parametrize(
    "more",
    ["host: b.example", "methods: [PUT]", "headers: {x: y}", "query: {x: y}", "regex: /.*x", "not: {host: c.example}"],
)
def test_a_longer_prefix_has_no_conditions_of_its_own(cut: str, more: str) -> None:
    """`strip_prefix` would take `/t/private` off `/t/private/admin`, which only the first match has."""
    written = with_route(f"match: [{{host: a.example, prefix: /t}}, {{prefix: //t/private/, {more}}}], {cut}")
    if cut.startswith("redirect"):
        written = written.replace("upstream: u, ", "")
    expected = "routes[0].match[1]: /t/private would be taken off where match /t of this route holds and this one does not"
    found = [one.split(": ", 1)[1] for one in mistakes(written)]
    assert found == [f"{expected} (two routes)"]


@pytest.mark.parametrize(
    "matches",
    [
        "{prefix: /t}, {prefix: /t/private}",
        "{prefix: /t, host: a.example}, {prefix: /t/private}",
        "{prefix: /t, methods: [GET]}, {prefix: /t/private, methods: [GET, PUT]}",
        "{prefix: /t, headers: {a: b}}, {prefix: /t/private, headers: {a: b}}",
        "{prefix: /t, host: a.example}, {prefix: /tt/private, host: b.example}",
        "{prefix: /t, host: a.example}, {prefix: /t, host: b.example}",
        "{path: /t, host: a.example}, {prefix: /t/x, host: b.example}",
        "{prefix: /t, host: a.example}, {prefix: /t/x, host: b.example}, {prefix: /t/x, host: a.example}",
    ],
)
def test_prefixes_that_are_taken_off_wherever_they_are_met(matches: str) -> None:
    assert read(with_route(f"match: [{matches}], strip_prefix: true")).routes[0].strip_prefix


TWINS = [
    ("match: {prefix: /a}", "match: {prefix: /a/}"),
    ("match: {prefix: /%61}", "match: {prefix: //a}"),
    ("match: {path: /a%2fb}", "match: {path: /a%2Fb}"),
    ("match: {prefix: /}", "match: {}"),
    ("match: {}", "priority: 0"),
    ("match: {host: A.example., path: /a}", "match: {host: a.example, path: /a}"),
    ("match: {methods: [GET, HEAD]}", "match: {methods: [HEAD, GET, GET]}"),
    ("match: {headers: {X-A: 1, X-B: '2'}}", "match: {headers: {x-b: 2, x-a: '1'}}"),
    ("match: {query: {a: 1, b: 2}}", "match: {query: {b: 2, a: 1}}"),
    ("match: {regex: '/a+'}", "match: {regex: '/a+'}"),
    ("priority: 3", "priority: 3"),
    ("match: {path: /é}", "match: {path: /%C3%A9}"),
]


@pytest.mark.parametrize(("first", "second"), TWINS)
def test_routes_that_can_never_be_told_apart(first: str, second: str) -> None:
    told = mistake(with_route(first, other=second))
    assert told.startswith("f:6:")
    assert ": routes[1]" in told
    assert told.endswith("can never be told apart from route r in line 5 (another match, or another priority)")


DISTINCT = [
    ("match: {prefix: /a}", "match: {path: /a}"),
    ("match: {path: /a}", "match: {path: /a/}"),
    ("match: {path: /a}", "match: {regex: /a}"),
    ("match: {prefix: /a}", "match: {prefix: /a}, priority: 1"),
    ("match: {path: /a%2Fb}", "match: {path: /a/b}"),
    ("match: {host: a}", "match: {host: '*.a'}"),
    ("match: {host: a}", "match: {}"),
    ("match: {methods: [GET, HEAD]}", "match: {methods: [GET, HEAD, POST]}"),
    ("match: {headers: {a: 1}}", "match: {headers: {a: 1.0}}"),
    ("match: {query: {a: 1}}", "match: {query: {A: 1}}"),
    ("match: {query: {a: 1}}", "match: {headers: {a: 1}}"),
]


@pytest.mark.parametrize(("first", "second"), DISTINCT)
def test_routes_that_can_be_told_apart(first: str, second: str) -> None:
    assert len(read(with_route(first, other=second)).routes) == 2


def test_each_match_of_a_list_is_compared() -> None:
    text = with_route("match: [{path: /a}, {path: /b}]", other="match: [{path: /c}, { path: /b}]")
    assert mistake(text).startswith(
        f"{at(text, '{ path: /b}')}: routes[1].match[1]: can never be told apart from route r in line 5"
    )
    # What stands twice within one route leads to the same place.
    assert read(with_route("match: [{path: /a}, {path: /a}]")).routes


def test_twins_keep_their_places_when_a_route_between_them_is_broken() -> None:
    told = mistakes(with_route("match: {path: /a}", b="colour: red", c="match: {path: /a}"))
    assert keys(told) == ["routes[1].colour", "routes[2].match"]
    assert "route r in line 5" in told[1]


@pytest.mark.parametrize(
    "match", ["{path: /-/}", "{path: /-/x}", "{prefix: /-/}", "{prefix: /%2D/x}", "{prefix: //-//x/}"]
)
def test_routes_under_the_own_prefix(match: str) -> None:
    told = mistake(with_route(f"match: [{{path: /ok}}, {match}]"))
    key = match.strip("{").split(":")[0]
    assert told.startswith("f:5:")
    assert told.endswith(f"routes[0].match[1].{key}: is under server.own_prefix /-/, which the gateway answers itself")


@pytest.mark.parametrize(
    "match", ["{path: /-}", "{path: /-x}", "{prefix: /-x}", "{prefix: /}", "{regex: /-/x}", "{path: /x/-/}"]
)
def test_routes_that_only_touch_the_own_prefix(match: str) -> None:
    assert route(f"match: {match}").name == "r"


def test_the_own_prefix_is_what_the_file_says() -> None:
    text = with_route("match: {path: /-/x}")
    assert read(text + "server: {own_prefix: null}\n").routes
    assert read(text + "server: {own_prefix: /_gw/}\n").routes
    # What cannot be read here is not judged by.
    assert keys(mistakes(text + "server: {own_prefix: null, colour: red}\n")) == ["server.colour"]


def test_a_check_of_readyz_needs_one() -> None:
    text = "version: 1\ndiscovery: {consul: {registration: {check: %s}}}\nserver: {own_prefix: %s}\n"
    assert mistake(text % ("http", "null")).startswith("f:2:44: discovery.consul.registration.check: asks for readyz")
    for check, prefix in (("ttl", "null"), ("http", "/gw/")):
        assert read(text % (check, prefix)).discovery.consul.registration is not None


# -- all of them -----------------------------------------------------------------------


def test_rules_do_not_follow_from_what_the_schema_refused() -> None:
    told = mistakes(
        """\
        version: 1
        upstreams:
          a: {wsgi: a.b}
          b: {endpoints: [ftp://x], tag: t}
        routes:
          - {name: a, upstream: a, match: {prefix: nope}, rewrite: {}}
        """
    )
    assert keys(told) == ["upstreams.a.wsgi", "upstreams.b.endpoints[0]", "routes[0].match.prefix"]


def test_every_rule_is_asked() -> None:
    assert len(RULES) == len({rule.__name__ for rule in RULES}) == 28


WORDS = st.sampled_from(
    ["/", "/a", "/a/", "/%61", "/a%2Fb", "/é", "/a b", "//a", "/-/x", "/.", "/a/..;x", "/%zz", "a(", "/(a)"]
)
HOSTS = st.sampled_from(["a.example", "*.a.example", "[::1]", "A.", "*", "a..b", "-a", "a_b", "*.*.a", "10.0.0.1"])


@given(st.sampled_from(["path", "prefix", "regex"]), WORDS, HOSTS, st.booleans())
def test_the_router_takes_whatever_is_accepted(kind: str, word: str, host: str, strip: bool) -> None:
    flag = str(strip).lower()
    text = with_route(f"match: {{{kind}: '{word}', host: '{host}'}}, strip_prefix: {flag}")
    try:
        found = config.loads(text.encode(), "f", {})
    except ConfigError:
        return
    assert len(Router(found.routes).ordered()) == 1


# -- admin -----------------------------------------------------------------------------

LONG = "sixteen-or-more!"


@pytest.mark.parametrize(
    ("admin", "environ"),
    [
        ("{bind: inline}", {}),
        ("{bind: inline, token: fifteen-letters}", {}),
        ("{bind: inline}", {"GATEWAY_ADMIN_TOKEN": "fifteen-letters"}),
        ('{bind: "0.0.0.0:9901"}', {}),
        ('{bind: ":9901"}', {}),
        ('{bind: "[::]:9901"}', {}),
        ('{bind: "10.0.0.1:9901"}', {}),
        ('{bind: "localhost.example.com:9901"}', {}),
        ("null", {"GATEWAY_ADMIN": "inline"}),
        ("{}", {"GATEWAY_ADMIN": "0.0.0.0:1"}),
    ],
)
def test_admin_for_others_needs_a_token(admin: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        config.loads(f"version: 1\nadmin: {admin}\n".encode(), "f", environ)


@pytest.mark.parametrize(
    ("admin", "environ", "expected"),
    [
        ("{}", {}, AdminSettings("127.0.0.1:9901", "")),
        ("null", {}, None),
        (f"{{bind: inline, token: {LONG}}}", {}, AdminSettings("inline", LONG)),
        ("{bind: inline}", {"GATEWAY_ADMIN_TOKEN": LONG}, AdminSettings("inline", LONG)),
        ('{bind: "[::]:9901", token: x}', {}, AdminSettings("[::]:9901", "x")),
        ('{bind: "[::1]:9901"}', {}, AdminSettings("[::1]:9901", "")),
        ('{bind: "127.8.8.8:0"}', {}, AdminSettings("127.8.8.8:0", "")),
        ("{bind: unix:/run/a.sock}", {}, AdminSettings("unix:/run/a.sock", "")),
        ('{bind: "0.0.0.0:1"}', {"GATEWAY_ADMIN": "off"}, None),
        ("null", {"GATEWAY_ADMIN": "127.0.0.1:2"}, AdminSettings("127.0.0.1:2", "")),
        ("{token: file}", {"GATEWAY_ADMIN_TOKEN": "environment"}, AdminSettings("127.0.0.1:9901", "environment")),
    ],
)
def test_environment_beats_file_for_admin(
    admin: str, environ: dict[str, str], expected: AdminSettings | None
) -> None:
    assert config.loads(f"version: 1\nadmin: {admin}\n".encode(), "f", environ).admin == expected


def test_inline_needs_a_prefix() -> None:
    text = f"version: 1\nserver: {{own_prefix: null}}\nadmin: {{bind: inline, token: {LONG}}}\n"
    with pytest.raises(ConfigError, match="own_prefix, under which"):
        config.loads(text.encode(), "f", {})
