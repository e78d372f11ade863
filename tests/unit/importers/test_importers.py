"""What all importers promise: what comes out passes the check, whatever went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import config, importers
from gateway.commands import cli
from gateway.config import document
from gateway.errors import ConfigError
from gateway.importers import priorities, regexes, yaml_writer
from gateway.importers.draft import Draft, DraftRoute, Names, Note, Ranked
from gateway.model import Match
from gateway.routing.router import Router
from tests.long import times


def believed(source: str, data: bytes) -> str | None:
    """The text, asserted to pass; None where the importer refused with a message."""
    try:
        text = importers.imported(source, data, "fuzz")
    except ConfigError as error:
        assert str(error).startswith("fuzz")  # noqa: PT017 - any input may be refused or not
        return None
    Router(config.loads(text.encode(), "imported", {}).routes)
    return text


# -- whatever goes in ----------------------------------------------------------------------

words = st.sampled_from(
    ["", "/", "/a", "/a/", "/a b", "/é", "/../x", "/-/x", "a", "a.example", "*.a.example", "*", "A:80", "${X}", "$1", "[::1]",
     "http://a", "https://a:1/b?c#d", "http://169.254.1.1", "http://a:99999", "h2c://a", "~^/a(b|c)$", "(", "(?i)/x", "(?<n>a)",
     "^/a/(.*)", "\\z", "[[:alpha:]]", "a\nb", "a'b\"c", "\U0001f600", "\x85", "\u2028", "#", "- x", "true", "null", "1", "yes",
     "GET", "get", "x-y", "X_Y", "10.0.0.1:8000", "tcp", "https", "5s", "1h", "-1", "1e9", "Host(`a`)", "Path(`/a`) || Path(`/b`)",
     "PathPrefix(`/a`) && !Path(`/a/b`)", "Header(`a`, `b`)", "s", "t", "m"]
)  # fmt: skip
scalars = words | st.integers(-10, 100_000) | st.booleans() | st.none() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)


def some_of(
    needed: dict[str, st.SearchStrategy[Any]] | None = None, **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings that mostly have what they need, so that something is carried over."""
    return st.fixed_dictionaries(needed or {}, optional=fields)


def mostly(*good: str) -> st.SearchStrategy[str]:
    return st.sampled_from(good) | st.sampled_from(good) | words


def named(value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(["s", "t", "m", "a b", "${X}", "é"]), value, max_size=3)


texts = st.lists(words, max_size=3) | anything
RULES = ("Host(`a`)", "PathPrefix(`/a`)", "PathPrefix(`/a/b`) && Method(`GET`)", "Path(`/a`) || Path(`/b`)")
URLS = ("http://a", "http://10.0.0.1:81", "https://b/base")
routers = named(
    some_of({"rule": mostly(*RULES), "service": mostly("s", "t")}, priority=scalars, middlewares=texts, tls=anything)
)
server = some_of({"url": mostly(*URLS)}, weight=scalars, preservePath=scalars)
check = some_of(path=mostly("/up"), interval=words, port=scalars, status=scalars, headers=anything)
balancer = some_of(
    {"servers": st.lists(server, max_size=3)},
    passHostHeader=scalars,
    serversTransport=words,
    strategy=mostly("p2c", "hrw"),
    sticky=some_of(cookie=some_of(name=words)) | anything,
    healthCheck=check | anything,
)
part = some_of({"name": mostly("s", "t", "u")}, weight=scalars, percent=scalars)
services = st.fixed_dictionaries(
    {"s": some_of({"loadBalancer": balancer})},
    optional={
        "t": some_of(
            loadBalancer=balancer,
            weighted=some_of(services=st.lists(part, max_size=3)) | anything,
            mirroring=some_of(service=mostly("s", "t"), mirrors=st.lists(part, max_size=2)) | anything,
            failover=some_of(service=mostly("s", "t"), fallback=words) | anything,
        )
    },
)
middlewares = named(
    some_of(
        stripPrefix=some_of(prefixes=texts),
        addPrefix=some_of(prefix=words),
        replacePath=some_of(path=words),
        replacePathRegex=some_of(regex=words, replacement=words),
        stripPrefixRegex=some_of(regex=texts),
        chain=some_of(middlewares=texts),
        retry=some_of(attempts=scalars),
        basicAuth=anything,
        redirectScheme=some_of(scheme=mostly("https"), port=scalars, permanent=scalars) | anything,
    )
)
transports = named(some_of(insecureSkipVerify=scalars, serverName=words, forwardingTimeouts=some_of(dialTimeout=words)))
traefik_documents = some_of(
    {
        "http": some_of(
            {"routers": routers, "services": services}, middlewares=middlewares, serversTransports=transports
        )
    },
    tcp=anything,
)
plugins = st.lists(
    some_of(
        name=st.sampled_from(["cors", "jwt", "request-termination", "redirect"]),
        service=scalars,
        route=anything,
        config=some_of(status_code=scalars, message=words, body=words, location=mostly("https://a/b")) | anything,
    ),
    max_size=2,
)
kong_check = some_of(
    type=mostly("http", "tcp"),
    healthy=some_of(interval=scalars, successes=scalars) | anything,
    unhealthy=some_of(interval=scalars, http_failures=scalars, tcp_failures=scalars, timeouts=scalars) | anything,
    http_path=words,
    headers=anything,
)
kong_routes = st.lists(
    some_of(
        name=scalars,
        service=mostly("s", "t") | some_of(name=words),
        hosts=texts,
        paths=st.lists(mostly("/a", "/a/b", "~/a/[0-9]+"), max_size=3) | texts,
        methods=texts,
        headers=st.dictionaries(words, texts, max_size=2) | anything,
        strip_path=scalars,
        preserve_host=scalars,
        regex_priority=scalars,
        protocols=st.just(["https"]) | texts,
        https_redirect_status_code=st.sampled_from([301, 426]) | scalars,
        plugins=plugins,
    ),
    max_size=3,
)
kong_documents = st.fixed_dictionaries(
    {"_format_version": st.sampled_from(["1.1", "2.1", "3.0", "x", 3.0])},
    optional={
        "services": st.lists(
            some_of(
                {"name": mostly("s", "t"), "url": mostly(*URLS), "routes": kong_routes},
                host=words,
                port=scalars,
                protocol=words,
                path=words,
                retries=scalars,
                read_timeout=scalars,
                tls_verify=scalars,
                plugins=plugins,
            ),
            max_size=3,
        ),
        "routes": kong_routes,
        "upstreams": st.lists(
            some_of(
                name=words,
                host_header=words,
                targets=st.lists(some_of(target=words, weight=scalars), max_size=2),
                algorithm=mostly("latency", "consistent-hashing"),
                hash_on=mostly("ip", "header", "cookie"),
                hash_on_header=words,
                healthchecks=some_of(active=kong_check) | anything,
            ),
            max_size=2,
        ),
        "plugins": plugins,
    },
)
nginx_words = words.map(lambda word: '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"')
directives = st.one_of(
    st.builds("proxy_pass {};".format, st.sampled_from(["http://a", "http://up", "https://up/x", "http://a/b/", "http://$x"]) | nginx_words),
    st.builds("proxy_set_header {} {};".format, st.sampled_from(["Host", "X-A", "Upgrade"]), nginx_words),
    st.builds("rewrite {} {} break;".format, nginx_words, nginx_words),
    st.builds("{} {};".format, st.sampled_from(["proxy_read_timeout", "client_max_body_size", "proxy_next_upstream", "deny", "return"]), nginx_words),
    st.builds("return {} {};".format, st.sampled_from(["", "301", "200", "404", "444"]), nginx_words),
    st.builds("return 301 {}{};".format, st.sampled_from(["https://$host", "https://b", "$scheme://$server_name", ""]), st.sampled_from(["$request_uri", "/x", ""])),
    st.builds("if ($host = {}) {{ return 301 https://$host$request_uri; }}".format, nginx_words),
    st.builds("mirror {};".format, nginx_words),
    st.builds("{};".format, nginx_words),
)  # fmt: skip
blocks = st.builds(
    lambda kind, path, inside: f"location {kind} {path} {{ {' '.join(inside)} }}",
    st.sampled_from(["", "=", "^~", "~", "~*"]),
    nginx_words,
    st.lists(directives, max_size=3),
)
nginx_documents = st.builds(
    lambda names, inside, group: (
        f"upstream up {{ {' '.join(group)} }} server {{ server_name {' '.join(names) or 'x'}; {' '.join(inside)} }}"
    ),
    st.lists(nginx_words, max_size=3),
    st.lists(blocks | directives, max_size=5),
    st.lists(st.builds("server {} {};".format, nginx_words, st.sampled_from(["", "weight=2", "backup", "weight=999999999", "max_fails=0"])), max_size=3),
)  # fmt: skip
fabio_lines = st.one_of(
    st.builds('route add s {}{} {} weight {} opts "{}"'.format, words, words, words, words, words),
    st.builds("s: urlprefix-{}{} {}={}".format, words, words, st.sampled_from(["strip", "host", "proto", "prepend"]), words),
    st.builds("t: urlprefix-a{} redirect=301,{}".format, words, words),
)  # fmt: skip
fabio_documents = st.lists(fabio_lines, max_size=4).map("\n".join)


@given(traefik_documents)
@settings(max_examples=times(60), deadline=None)
def test_traefik_documents(made: dict[str, Any]) -> None:
    believed("traefik", json.dumps(made).encode())


@given(kong_documents)
@settings(max_examples=times(60), deadline=None)
@example(
    {"_format_version": "3.0", "services": [{"name": "s", "host": "a", "port": "abc", "routes": [{"paths": ["/a"]}]}]}
)
def test_kong_documents(made: dict[str, Any]) -> None:
    believed("kong", json.dumps(made).encode())


@given(nginx_documents)
@settings(max_examples=times(60), deadline=None)
@example('server { server_name "\u2028" "/"; location / { proxy_pass http://a; } }')
def test_nginx_documents(made: str) -> None:
    believed("nginx", made.encode())


@given(fabio_documents)
@settings(max_examples=times(60), deadline=None)
def test_fabio_documents(made: str) -> None:
    believed("fabio", made.encode())


@given(st.sampled_from(sorted(importers.SOURCES)), st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=times(100), deadline=None)
def test_any_bytes(source: str, data: bytes) -> None:
    believed(source, data)


@pytest.mark.parametrize("source", sorted(importers.SOURCES))
@pytest.mark.parametrize(
    "data",
    [
        b"a" * (document.LIMIT + 1),
        b"[" * 100_000,
        b"{" * 100_000,
        b"a {" * 100_000,
        b"x = " + b"[" * 100_000,
        b"a: &a [x]\nb: &b [" + b"*a," * 400 + b"]\nc: &c [" + b"*b," * 400 + b"]\nd: [" + b"*c," * 400 + b"]\n",
        b'"\\ud800": 1',
        b"\xff\xfe",
    ],
    ids=["long", "lists", "mappings", "blocks", "toml", "aliases", "surrogate", "bytes"],
)
def test_hostile_bytes(source: str, data: bytes) -> None:
    assert believed(source, data) is None


def test_too_many_matches() -> None:
    lines = "".join(f"route add s{n} /{n} http://10.0.0.1/\n" for n in range(10_001))
    with pytest.raises(ConfigError, match="more than 10000 matches"):
        importers.imported("fabio", lines.encode(), "x")


# -- order ---------------------------------------------------------------------------------

paths = st.sampled_from(["/", "/a", "/a/b", "/b", "/a/b/c"])
hosts = st.sampled_from([None, "a.example", "b.a.example", "*.example", "*.a.example"])
some_matches = st.builds(
    lambda host, kind, path, methods: Match(
        host=host,
        path=path if kind == 0 else None,
        prefix=path if kind == 1 else None,
        regex=f"{path}.*" if kind == 2 else None,
        methods=methods,
    ),
    hosts,
    st.integers(0, 2),
    paths,
    st.sampled_from([frozenset[str](), frozenset({"GET"})]),
)


@given(st.lists(st.tuples(some_matches, st.integers(0, 5)), min_size=1, max_size=8))
@settings(max_examples=times(50), deadline=None)
def test_the_lowest_rank_wins_whatever_our_order_is(given_: list[tuple[Match, int]]) -> None:
    """For every request, the match of the lowest rank among all that it meets is the one that wins."""
    seen: set[Match] = set()
    draft = Draft("test")
    draft.upstream("u").settings["endpoints"] = [{"url": "http://u"}]
    for match, rank in sorted(given_, key=lambda pair: pair[1]):
        if match not in seen:
            seen.add(match)
            draft.routes.append(DraftRoute(f"r{len(seen)}", "u", [Ranked(match, (rank, len(seen)))]))
    wanted = list(draft.routes)
    names = Names()
    for route in wanted:
        names.free(route.name)
    draft.routes = priorities.by_priority(draft.routes, names)
    router = Router(config.loads(str(yaml_writer.written(draft, "x")).encode(), "x", {}).routes)
    singles = [
        (route.name, Router(config.loads(str(yaml_writer.written(one, "x")).encode(), "x", {}).routes))
        for route in wanted
        for one in [Draft("test", upstreams=draft.upstreams, routes=[route])]
    ]
    for host in (b"x", b"a.example", b"b.a.example", b"c.example"):
        for path in (b"/", b"/a", b"/a/b", b"/a/b/c", b"/b/x", b"/c"):
            for method in (b"GET", b"PUT"):
                met = [name for name, single in singles if single.match(method, host, path, None, [])]
                found = router.match(method, host, path, None, [])
                # A route that was split has a number behind its name.
                assert (found.name.partition("-")[0] if found else None) == (met[0] if met else None)


# -- patterns, writing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("^/a$", "/a"),
        ("^/a", "/a.*"),
        ("a$", ".*a"),
        ("a", ".*a.*"),
        ("^/a|b$", ".*(?:^/a|b$).*"),
        ("^/(a|b)$", "/(a|b)"),
        (r"^/a\$", r"/a\$.*"),
        (r"^/a\\$", r"/a\\"),
        ("(?i)^/a", "(?i:/a.*)"),
        ("^/(?<n>a)(?<=x)(?<!y)", "/(?P<n>a)(?<=x)(?<!y).*"),
        ("^/[|$]", "/[|$].*"),
        (r"^/a\z", r"/a\z.*"),
        (r"^/a\Z", r"/a\z.*"),
        ("^/a.*", "/a.*"),
        (r"^/a\.*", r"/a\.*.*"),
    ],
)
def test_patterns_of_the_whole_path(source: str, expected: str) -> None:
    assert regexes.whole(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/a/b.*", "/a/b"),
        (r"/a\.b", "/a.b"),
        ("/ab?c", "/a"),
        ("/ab{2}", "/a"),
        ("(a)", ""),
        ("/a|/b", ""),
        (r"/a\d", "/a"),
    ],
)
def test_what_every_match_of_a_pattern_begins_with(source: str, expected: str) -> None:
    assert regexes.literal(source) == expected


@given(st.text())
@example("yes")
@example("0x1F")
@example("a: b")
@example("a#b")
@example("'")
@example("\ufeff")
@settings(max_examples=times(300), deadline=None)
def test_scalars_are_read_as_the_text_they_were(text: str) -> None:
    root, mistakes = document.parse(f"a: [{yaml_writer.scalar(text)}, {{{yaml_writer.scalar(text)}: x}}]\n".encode())
    assert not mistakes
    assert isinstance(root, document.Mapping)
    items = root.entries["a"].node
    assert isinstance(items, document.Sequence)
    first, second = items.items
    assert isinstance(first, document.Leaf)
    assert first.value == text
    assert isinstance(second, document.Mapping)
    assert list(second.entries) == [text]


def test_a_comment_stays_one_line() -> None:
    draft = Draft("test", notes=[Note(3, "a\nb\x1b[31m\u2028" + "x" * 1000)])
    (comment,) = [line for line in str(yaml_writer.written(draft, "x\ny")).split("\n") if "line 3" in line]
    assert comment.startswith("# line 3: a\\nb\\x1b[31m\\u2028xxx")
    assert len(comment) < 400


# -- the command -----------------------------------------------------------------------------

NGINX = "server { gzip on; location / { proxy_pass http://10.0.0.1; } }\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "nginx.conf"
    path.write_text(NGINX)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["import", *map(str, arguments)])


def test_to_stdout_and_to_a_file(conf: Path, tmp_path: Path) -> None:
    found = run("nginx", conf)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "# line 1: gzip is not carried over" in found.stdout
    written = run("nginx", conf, "-o", tmp_path / "out.yaml")
    assert (written.exit_code, written.output) == (0, "")
    assert (tmp_path / "out.yaml").read_text() == found.stdout
    assert CliRunner().invoke(cli.main, ["check", str(tmp_path / "out.yaml")]).stdout == "ok: 1 route, 1 upstream\n"


def test_mistakes_end_with_1(conf: Path, tmp_path: Path) -> None:
    conf.write_text("server {\n")
    found = run("nginx", conf)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == f"{conf}:1:1: a {{ that is never closed\n"
    assert run("kong", tmp_path / "none").exit_code == 1
    conf.write_text(NGINX)
    assert run("nginx", conf, "-o", tmp_path / "no" / "such").exit_code == 1


def test_the_command_knows_every_source() -> None:
    argument = next(one for one in cli.main.commands["import"].params if one.name == "source")
    assert isinstance(argument.type, click.Choice)
    assert set(argument.type.choices) == set(importers.SOURCES)
