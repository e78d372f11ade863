"""Which route serves which request, and with which target: tables of data.

Rule: data only, in the words of the configuration file, so that the same tables can be
asked of the router alone and of a running gateway. `refs` are the numbers of the cases in
other people's suites (Gateway API conformance, Traefik, Kong, fabio, nginx, Go) that a
row stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what becomes of it.

    `route`: the name of the one that serves it; None and no `refused`: 404 `no_route`.
    `refused`: the reason of the 400 it gets instead. `forwarded`: the target that the
    upstream sees, when that is not the one that came.
    """

    target: str
    route: str | None = None
    host: str = "other.example"
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()
    forwarded: str | None = None
    refused: str | None = None

    @property
    def id(self) -> str:
        """A readable name for test reports, short even for very long targets."""
        fields = "".join(f" {name}={value}" for name, value in self.headers)
        return f"{self.method} {self.host} {self.target[:60]}{fields}"

    @property
    def expected_target(self) -> str:
        return self.target if self.forwarded is None else self.forwarded


@dataclass(frozen=True, slots=True)
class Table:
    """Routes as in the file (without `upstream`: one of its own for each, by the route's
    name) and requests to them. `endpoint`: base path and query of every endpoint's URL."""

    name: str
    refs: str
    routes: Sequence[Mapping[str, Any]]
    cases: Sequence[Case]
    endpoint: str = ""


_BETA = (("X-Beta", "1"),)

TABLES = (
    Table(
        "exact",
        "61",
        [
            {"name": "one", "match": {"path": "/one"}},
            {"name": "two", "match": {"path": "/two"}},
            {"name": "slash", "match": {"path": "/three/"}},
        ],
        [
            Case("/one", "one"),
            Case("/one?x=1", "one"),
            Case("/two", "two"),
            Case("/one/example"),
            Case("/two/"),
            Case("/Two"),
            Case("/"),
            Case("/three/", "slash"),
            Case("/three//", "slash"),
            Case("/three"),
        ],
    ),
    Table(
        "prefix by segment",
        "62",
        [
            {"name": "v2", "match": {"prefix": "/v2"}},
            {"name": "v3", "match": {"prefix": "/v3/"}},
            {"name": "deep", "match": {"prefix": "/v2/a/b"}},
        ],
        [
            Case("/v2", "v2"),
            Case("/v2/", "v2"),
            Case("/v2/x", "v2"),
            Case("/v2/a", "v2"),
            Case("/v2/a/", "v2"),
            Case("/v2/a/bc", "v2"),
            Case("/v2/a/b", "deep"),
            Case("/v2/a/b/c/d/e", "deep"),
            Case("/v2example"),
            Case("/v2%2Fx"),
            Case("/v3", "v3"),
            Case("/v3/", "v3"),
            Case("/v3/x", "v3"),
            Case("/v33"),
            Case("/"),
        ],
    ),
    Table(
        "headers",
        "64 65",
        [
            {"name": "version", "match": {"headers": {"Version": "two"}}},
            {"name": "version and colour", "match": {"headers": {"version": "two", "color": "orange"}}},
            {"name": "warm", "match": [{"headers": {"color": "red"}}, {"headers": {"color": "yellow"}}]},
            {"name": "list", "match": {"headers": {"Accept": "a, b"}}},
        ],
        [
            Case("/", "version", headers=(("version", "two"),)),
            Case("/", "version", headers=(("VERSION", "two"), ("color", "blue"))),
            Case("/", "version and colour", headers=(("version", "two"), ("color", "orange"))),
            Case("/", "version and colour", headers=(("Color", "orange"), ("Version", "two"))),
            Case("/", "warm", headers=(("color", "red"),)),
            Case("/", "warm", headers=(("Color", "yellow"),)),
            Case("/", headers=(("color", "purple"),)),
            Case("/", headers=(("version", "Two"),)),
            Case("/", headers=(("version", "two"), ("version", "three"))),
            Case("/", "list", headers=(("accept", "a"), ("x", "y"), ("ACCEPT", "b"))),
            Case("/", headers=(("accept", "b"), ("accept", "a"))),
            Case("/"),
        ],
    ),
    Table(
        "path before header before query",
        "67",
        [
            {"name": "query", "match": {"prefix": "/", "query": {"animal": "hydra"}}},
            {"name": "header", "match": {"prefix": "/", "headers": {"version": "four"}}},
            {"name": "path", "match": {"prefix": "/path5"}},
            {"name": "two parameters", "match": {"query": {"animal": "hydra", "legs": "4"}}},
        ],
        [
            Case("/path5?animal=hydra", "path"),
            Case("/path5", "path", headers=(("version", "four"),)),
            Case("/?animal=hydra", "query"),
            Case("/?animal=hydra", "header", headers=(("version", "four"),)),
            Case("/?legs=4&animal=hydra", "two parameters"),
            Case("/"),
        ],
    ),
    Table(
        "query",
        "67",
        [
            {"name": "plain", "match": {"query": {"animal": "whale"}}},
            {"name": "space", "match": {"query": {"big animal": "blue whale"}}},
            {"name": "empty", "match": {"query": {"flag": ""}}},
            {"name": "umlaut", "match": {"query": {"q": "ä"}}},
        ],
        [
            Case("/?animal=whale", "plain"),
            Case("/?x&animal=whale&y=", "plain"),
            Case("/?%61nimal=wh%61le", "plain"),
            Case("/?animal=whale&animal=shark", "plain"),
            Case("/?animal=shark&animal=whale"),
            Case("/?animal=Whale"),
            Case("/?Animal=whale"),
            Case("/?animal=whale%20"),
            Case("/?animal=whale;x=1"),
            Case("/?big+animal=blue+whale", "space"),
            Case("/?big%20animal=blue%20whale", "space"),
            Case("/?big%2Banimal=blue%2Bwhale"),
            Case("/?flag", "empty"),
            Case("/?flag=", "empty"),
            Case("/?q=%C3%A4", "umlaut"),
            Case("/?q=%E4"),
            Case("/?"),
            Case("/"),
        ],
    ),
    Table(
        "methods",
        "68",
        [
            {"name": "get", "match": {"path": "/m", "methods": ["GET"]}},
            {"name": "post", "match": {"path": "/m", "methods": ["POST", "PUT"]}},
            {"name": "any below", "match": {"prefix": "/n"}},
            {"name": "get below", "match": {"prefix": "/n", "methods": ["GET"]}},
        ],
        [
            Case("/m", "get"),
            Case("/m", "post", method="POST"),
            Case("/m", "post", method="PUT"),
            Case("/m", method="HEAD"),
            Case("/m", method="OPTIONS"),
            Case("/n/x", "get below"),
            Case("/n/x", "any below", method="HEAD"),
            Case("/n/x", "any below", method="PURGE"),
        ],
    ),
    Table(
        "routes of one host merged",
        "70",
        [
            {"name": "first", "match": [{"host": "example.com"}, {"host": "example.net"}]},
            {
                "name": "second",
                "match": [{"host": "example.com", "prefix": "/v2"}, {"host": "example.com", "headers": {"v": "2"}}],
            },
        ],
        [
            Case("/", "first", host="example.com"),
            Case("/example", "first", host="example.com"),
            Case("/", "second", host="example.com", headers=(("v", "2"),)),
            Case("/v2", "second", host="example.com"),
            Case("/v2/", "second", host="example.com"),
            Case("/v2example", "first", host="example.com"),
            Case("/v2", "first", host="example.net"),
            Case("/", "first", host="example.net", headers=(("v", "2"),)),
            Case("/", host="example.org"),
        ],
    ),
    Table(
        "hosts",
        "71 73 74 76 79",
        [
            {"name": "wildcard", "match": {"host": "*.example.com"}},
            {"name": "longer wildcard", "match": {"host": "*.b.example.com"}},
            {"name": "exact", "match": {"host": "a.example.com", "prefix": "/exact"}},
            {"name": "apex", "match": {"host": "example.com"}},
            {"name": "loopback", "match": {"host": "[::1]"}},
            {"name": "dotted", "match": {"host": "Foo.Example."}},
            {"name": "hostless", "match": {"prefix": "/any"}},
        ],
        [
            Case("/exact", "exact", host="a.example.com"),
            Case("/exact", "exact", host="a.example.com:1234"),
            Case("/", "wildcard", host="a.example.com"),
            Case("/any", "wildcard", host="a.example.com"),
            Case("/", "wildcard", host="x.y.z.example.com"),
            Case("/", "longer wildcard", host="a.b.example.com"),
            Case("/", "longer wildcard", host="c.a.b.example.com"),
            Case("/", "wildcard", host="b.example.com"),
            Case("/", "apex", host="example.com"),
            Case("/any", "apex", host="example.com"),
            Case("/", "loopback", host="[::1]:8080"),
            Case("/", "loopback", host="[::1]"),
            Case("/", host="[::2]:8080"),
            Case("/", "dotted", host="Foo.EXAMPLE"),
            Case("/", "dotted", host="foo.example."),
            Case("/", "dotted", host="foo.example:"),
            Case("/", "dotted", host="foo.example.:88"),
            Case("/", host="notexample.com"),
            Case("/", host="com"),
            Case("/", host="example.com.evil.example"),
            Case("/any/x", "hostless", host="somewhere.else"),
            Case("/any/x", "hostless", host="[::2]"),
        ],
    ),
    Table(
        "what is no host",
        "281",
        [{"name": "all", "match": {}}],
        [
            Case("/", "all", host="example.com"),
            Case("/", "all", host="under_score.example"),
            *(
                Case("/", host=host, refused="bad_request")
                for host in (
                    *("a, b", "a,b", "a b", "a/b", "user@a", "a?b", "a:b", "a:80:80", "a:65536", "a:123456", ":80"),
                    *("a..b", ".a", ".", "a..", "[::1", "::1", "[::1]a", "[1.2.3.4]", "[v1.x]", "[]", "a%2eb", "ä"),
                )
            ),
        ],
    ),
    Table(
        "target forms",
        "77 94 287",
        [
            {"name": "a", "match": {"host": "a.example"}},
            {"name": "b", "match": {"host": "b.example"}},
        ],
        [
            Case("http://a.example/x?y", "a", host="b.example", forwarded="/x?y"),
            Case("http://A.Example:81", "a", host="b.example", forwarded="/"),
            Case("HTTPS://a.example.?q", "a", host="b.example", forwarded="/?q"),
            Case("http://a.example//x/%2f", "a", host="b.example", forwarded="//x/%2f"),
            Case("http://c.example/", host="b.example"),
            Case("/http://a.example/", "b", host="b.example"),
            Case("//a.example/x", "b", host="b.example"),
            *(
                Case(target, host="b.example", refused="bad_request")
                for target in (
                    *("foo/bar", "a.example:443", "a.example", "s://]ufd/:", "ftp://a.example/", "http:/a.example/"),
                    *("http://", "http:///x", "http://u:p@a.example/", "http://u@a.example/", "http://a.example:x/"),
                    *("http://a b/", "http://[::1/", "http://a.example#f", "http://a.example/#f", "http:a.example"),
                    *("/x#f", "/x?y#f", "#", "?x", "**", "/*#"),
                )
            ),
        ],
    ),
    Table(
        "not, and prefix with regex",
        "",
        [
            {"name": "both", "match": {"prefix": "/b", "regex": r".*\.html"}},
            {"name": "regex", "match": {"regex": "/b/r.*"}},
            {"name": "longer", "match": {"prefix": "/b/longer"}},
            {"name": "exact", "match": {"path": "/b/x.html"}},
            {"name": "b", "match": {"prefix": "/b", "not": {"prefix": "/b/in", "path": "/b", "regex": "/b/z.*"}}},
            {"name": "strip", "match": {"prefix": "/s", "regex": "/s/[0-9]+"}, "strip_prefix": True},
            {
                "name": "said",
                "match": {
                    "prefix": "/n",
                    "not": {"methods": ["POST", "PUT"], "headers": {"X-A": "1", "X-B": "2"}, "query": {"v": "1", "w": "2"}},
                },
            },
            {"name": "host", "match": {"prefix": "/h", "not": {"host": "*.no.example"}}},
            {"name": "nohost", "match": {"prefix": "/h", "not": {"host": "a.example"}}},
        ],
        [
            Case("/b/y.html", "both"),
            Case("/bb/y.html"),
            Case("/y.html"),
            Case("/b/y.htm", "b"),
            Case("/b/r.html", "both"),
            Case("/b/r.css", "regex"),
            Case("/b/x.html", "exact"),
            Case("/b/longer/x.html", "both"),
            Case("/b/longer/x", "longer"),
            Case("/b/in/x.html", "both"),
            Case("/b/in/x"),
            Case("/b/in"),
            Case("/b/inn", "b"),
            Case("/b"),
            Case("/b/", "b"),
            Case("/b/zx"),
            Case("/s/12", "strip", forwarded="/12"),
            Case("//s/12", "strip", forwarded="/12"),
            Case("/s/x"),
            Case("/n", "said"),
            Case("/n?v=2&v=1", "said"),
            Case("/n?v=1"),
            Case("/n?x&w=2"),
            Case("/n", "said", method="PATCH"),
            Case("/n", method="PUT"),
            Case("/n", headers=[("x-b", "2")]),
            Case("/n", "said", headers=[("x-b", "2"), ("X-B", "2")]),
            Case("/h", "host"),
            Case("/h", "host", host="no.example"),
            Case("/h", "nohost", host="a.b.no.example"),
            Case("/h", "host", host="a.example"),
        ],
    ),
    Table(
        "rewrite",
        "82",
        [
            {"name": "prefix", "match": {"prefix": "/prefix/one"}, "rewrite": {"prefix": "/one"}},
            {"name": "slash", "match": {"prefix": "/slash"}, "rewrite": {"prefix": "/to/"}},
            {"name": "root", "match": {"prefix": "/root"}, "rewrite": {"prefix": "/"}},
            {"name": "below", "match": {"host": "below.example"}, "rewrite": {"prefix": "/v2"}},
            {"name": "full", "match": {"prefix": "/full"}, "rewrite": {"path": "/one"}},
            {
                "name": "regex",
                "match": {"prefix": "/u"},
                "rewrite": {"regex": r"^/u/(\d+)(/.*)?", "to": r"/users/\1/all\2"},
            },
            {
                "name": "regex query",
                "match": {"prefix": "/q"},
                "rewrite": {"regex": r"/q/(.*)", "to": r"/find?id=\1"},
            },
            {"name": "group", "match": {"prefix": "/g"}, "rewrite": {"regex": r"/g(/.*)?", "to": r"\1"}},
            {"name": "dots", "match": {"prefix": "/d"}, "rewrite": {"regex": r"/d/x(.*)", "to": r"/\1/y"}},
        ],
        [
            Case("/prefix/one/two?q=1", "prefix", forwarded="/one/two?q=1"),
            Case("/prefix/one", "prefix", forwarded="/one"),
            Case("/prefix/one/", "prefix", forwarded="/one/"),
            Case("/prefix//one//tw%6f", "prefix", forwarded="/one//tw%6f"),
            Case("/prefix/%6fne?", "prefix", forwarded="/one?"),
            Case("/slash", "slash", forwarded="/to/"),
            Case("/slash/", "slash", forwarded="/to/"),
            Case("/slash/x", "slash", forwarded="/to/x"),
            Case("/root", "root", forwarded="/"),
            Case("/root//x//y", "root", forwarded="/x//y"),
            Case("/root/", "root", forwarded="/"),
            Case("/root/x", "root", forwarded="/x"),
            Case("/", "below", host="below.example", forwarded="/v2/"),
            Case("/x//y", "below", host="below.example", forwarded="/v2/x//y"),
            Case("/full", "full", forwarded="/one"),
            Case("/full/two?q=1", "full", forwarded="/one?q=1"),
            Case("/full/two?", "full", forwarded="/one?"),
            Case("/u/12", "regex", forwarded="/users/12/all"),
            Case("/u/12/x%2fy?z", "regex", forwarded="/users/12/all/x%2Fy?z"),
            Case("/%75//1%32", "regex", forwarded="/users/12/all"),
            Case("/u/%zz", "regex"),
            Case("/u/12x", "regex"),
            Case("/q/7", "regex query", forwarded="/find?id=7"),
            Case("/q/7?a=1", "regex query", forwarded="/find?id=7&a=1"),
            Case("/q/7?", "regex query", forwarded="/find?id=7"),
            Case("/g/x?y", "group", forwarded="/x?y"),
            Case("/g?y", "group", forwarded="/?y"),
            Case("/g/", "group", forwarded="/"),
            Case("/d/xabc", "dots", forwarded="/abc/y"),
            Case("/d/x..", "dots", refused="bad_path"),
        ],
    ),
    Table(
        "strip",
        "83 85 88 91",
        [
            {"name": "strip", "match": {"prefix": "/strip"}, "strip_prefix": True},
            {"name": "two", "match": {"prefix": "/two/levels/"}, "strip_prefix": True},
            {"name": "exact", "match": {"path": "/exact"}, "strip_prefix": True},
            {"name": "several", "match": [{"prefix": "/s"}, {"prefix": "/s/t"}], "strip_prefix": True},
            {"name": "host", "match": {"host": "strip.example"}, "strip_prefix": True},
        ],
        [
            Case("/strip/x", "strip", forwarded="/x"),
            Case("//strip/x", "strip", forwarded="/x"),
            Case("/%73trip/x", "strip", forwarded="/x"),
            Case("/strip//x", "strip", forwarded="/x"),
            Case("/strip///x//y", "strip", forwarded="/x//y"),
            Case("/strip//", "strip", forwarded="/"),
            Case("/strip", "strip", forwarded="/"),
            Case("/strip?", "strip", forwarded="/?"),
            Case("/strip?q=%zz", "strip", forwarded="/?q=%zz"),
            Case("/strip/", "strip", forwarded="/"),
            Case("/strip/%2f/%zz/%E9?a=1&a=2;b", "strip", forwarded="/%2f/%zz/%E9?a=1&a=2;b"),
            Case("http://h.example/strip/x", "strip", forwarded="/x"),
            Case("/stripped"),
            Case("/strip%2Fx"),
            Case("/strip.."),
            Case("/strip../x"),
            Case("/strip/../x", refused="bad_path"),
            Case("/two/levels/x", "two", forwarded="/x"),
            Case("///two//%6cevels//x/", "two", forwarded="/x/"),
            Case("/two/levels", "two", forwarded="/"),
            Case("/two"),
            Case("/exact?x", "exact", forwarded="/?x"),
            Case("//ex%61ct", "exact", forwarded="/"),
            Case("/s/x", "several", forwarded="/x"),
            Case("/s/t/x", "several", forwarded="/x"),
            Case("/a//b", "host", host="strip.example"),
        ],
    ),
    Table(
        "byte for byte",
        "86 88 89 91 92 95 98",
        [
            {"name": "with", "match": {"prefix": "/with"}},
            {"name": "admin", "match": {"prefix": "/admin/panel"}},
            {"name": "colon", "match": {"prefix": "/a%3ab"}},
            {"name": "café", "match": {"prefix": "/café"}},
            {"name": "all", "match": {"prefix": "/"}},
        ],
        [
            Case("/%3A%2F%2F", "all"),
            Case("/a%2fbc", "all"),
            Case("/a%2Fbc%2f", "all"),
            Case("//foo", "all"),
            Case("/a//b", "all"),
            Case("//", "all"),
            Case("/%77ith", "with"),
            Case("/%77%69th//x", "with"),
            Case("/with%2Fx", refused="bad_path"),
            Case("/admin/panel", "admin"),
            Case("/admin//panel", "admin"),
            Case("//%61dmin/panel", "admin"),
            Case("/admin%2fpanel", refused="bad_path"),
            Case("/admin%5cpanel", refused="bad_path"),
            Case("/admin/panel%3bx", refused="bad_path"),
            Case("/admin/panel;x", refused="bad_path"),
            Case("/admin/panel%3fx", "all"),
            Case("/admin/panel%23x", "all"),
            Case("/admin/%2570anel", "all"),
            Case("/a%3ab", "colon"),
            Case("/a%3Ab/", "colon"),
            Case("/a:b", "all"),
            Case("/caf%C3%A9/x", "café"),
            Case("/caf%c3%a9", "café"),
            Case("/caf%E9", "all"),
            Case("/%zz/%/%4/%%%41", "all"),
            Case("/%ff%fe%c0%ae%c0%ae", "all"),
            Case("/x?", "all"),
            Case("/x?a", "all"),
            Case("/x?a=", "all"),
            Case("/x??", "all"),
            Case("/x?a=1&a=2;b=3", "all"),
            Case("/x?a=%zz&%", "all"),
            Case("/x?../..//%00", "all"),
            Case("/x?" + "&".join(f"p{number}={number}" for number in range(1000)), "all"),
            Case('/|/[/]/{/}/"/^/`/</>', "all"),
            Case("/a\\b", "all"),
            Case("/...", "all"),
            Case("/.well-known/x", "all"),
            Case("/a..b/..c/d..", "all"),
            Case("/~user/-_.", "all"),
        ],
    ),
    Table(
        "what is refused",
        "85 92 98",
        [{"name": "all", "match": {}}],
        [
            *(
                Case(target, refused="bad_path")
                for target in (
                    *("/..", "/../", "/a/..", "/a/../b", "/./..", "/.././", "/a/./../b", "//..", "/..//"),
                    *("/%2E%2e", "/.%2e/a", "/a/%2e./b", "/a/%2e%2e", "/%2e%2e%2fetc", "/%2e/.%2E"),
                    *(
                        "/..%2f",
                        "/..%2Fa",
                        "/a%2f..",
                        "/a%2f..%2Fb",
                        "/..%5c",
                        "/a%5C..%5cb",
                        "/a\\..\\b",
                    ),
                    *("/..\\", "/\\..", "/..;x", "/..;", "/.;/..;", "/a/..;x=../b", "/a%2f..;x", "/%2e%2e;a/b"),
                    *("/a%00", "/%00", "/a/%00/b", "/a%2500%00"),
                )
            ),
            Case("/a%2500", "all"),
            Case("/%252e%252e/", "all"),
            Case("/a;x=..", "all"),
            Case("/a;x=../b", "all"),
            Case("/;..", "all"),
            Case("/%%32e%%32e/x", "all"),
            *(
                Case(target, refused="bad_request")
                for target in ("/a b", "/\x00", "/a\tb", "/\x7f", "/caf\xc3\xa9", "/\xff", "/x?\x80")
            ),
        ],
    ),
    Table(
        "single-dot segments are dropped, and forwarded as they came",
        "",
        [
            {"name": "guard", "match": {"prefix": "/admin"}},
            {"name": "exact", "match": {"path": "/exact"}},
            {"name": "directory", "match": {"path": "/directory/"}},
            {"name": "strip", "match": {"prefix": "/strip/deep"}, "strip_prefix": True},
            {"name": "rewrite", "match": {"prefix": "/old"}, "rewrite": {"prefix": "/new/"}},
            {"name": "regex", "match": {"regex": "/r/.*"}, "rewrite": {"regex": "/r/(.*)", "to": "/s/\\1"}},
            {"name": "all", "match": {}},
        ],
        [
            *(
                Case(target, "guard", forwarded=target)
                for target in (
                    *("/./admin", "/admin/.", "/admin/./x", "/%2e/admin", "/%2E//./admin/x", "//./admin", "/././%61dmin/"),
                    *("/./admin?./..", "/.//admin", "/admin/.;x/."),
                )
            ),
            *(
                Case(target, "all", forwarded=target)
                for target in (
                    *("/.", "/./", "/%2e", "/%2E/", "//.//", "/a/./b", "/a/.", "/apt/./Packages", "/a%2F.%2fb", "/a\\.\\b"),
                    *("/.;x/b", "/.%3bx/", "/.a/b", "/a./b", "/.../b", "/%252e/admin", "/./adminx"),
                )
            ),
            # A server that cuts parameters, or decodes slashes, sees another path than the one that was matched.
            *(
                Case(target, refused="bad_path")
                for target in (
                    *("/.;x/admin", "/.;/admin/x", "/.%3b/admin", "/%2e;x/./admin", "/.%2fadmin", "/.%5cadmin", "/.\\admin"),
                    *("/./%2e%2fadmin", "/;x/.%2f./admin", "/./.;x%2fadmin", "/admin%2f."),
                )
            ),
            Case("/./exact", "exact", forwarded="/./exact"),
            Case("/exact/.", "all", forwarded="/exact/."),
            Case("/directory/.", "directory", forwarded="/directory/."),
            Case("/./directory/%2e", "directory", forwarded="/./directory/%2e"),
            Case("/directory", "all"),
            Case("/strip/deep/./Packages", "strip", forwarded="/./Packages"),
            Case("/./strip/./deep/./x/./y", "strip", forwarded="/./x/./y"),
            Case("/strip/%2e/%64eep", "strip", forwarded="/"),
            Case("/strip/deep/.", "strip", forwarded="/."),
            Case("/strip/deep/.//host.example/x", "strip", forwarded="/host.example/x"),
            Case("/strip/deep//%2E/host.example", "strip", forwarded="/host.example"),
            Case("/strip/./.deep/x", "all"),
            Case("/./old/./x", "rewrite", forwarded="/new/./x"),
            Case("/old/.", "rewrite", forwarded="/new/."),
            Case("/r/./a/./b", "regex", forwarded="/s/a/b"),
        ],
    ),
    Table(
        "base path and static query",
        "97",
        [
            {"name": "plain", "match": {"prefix": "/c%2Fd"}, "ambiguous_paths": "forward"},
            {"name": "strip", "match": {"prefix": "/strip"}, "strip_prefix": True},
            {"name": "rewrite", "match": {"prefix": "/old"}, "rewrite": {"prefix": "/new"}},
        ],
        [
            Case("/c%2Fd?us=er", "plain", forwarded="/a%2Fb/c%2Fd?sta=tic&us=er"),
            Case("/c%2fd", "plain", forwarded="/a%2Fb/c%2fd?sta=tic"),
            Case("/c%2fd?", "plain", forwarded="/a%2Fb/c%2fd?sta=tic"),
            Case("//c%2fd//x", "plain", forwarded="/a%2Fb//c%2fd//x?sta=tic"),
            Case("/strip?x", "strip", forwarded="/a%2Fb/?sta=tic&x"),
            Case("/strip//x", "strip", forwarded="/a%2Fb/x?sta=tic"),
            Case("/old/x", "rewrite", forwarded="/a%2Fb/new/x?sta=tic"),
        ],
        endpoint="/a%2Fb/?sta=tic",
    ),
    Table(
        "regular expressions",
        "61 62",
        [
            {"name": "prefix", "match": {"prefix": "/r/12/long/prefix"}},
            {"name": "number", "match": {"regex": r"/r/\d+(/.*[^0])?"}},
            {"name": "word", "match": {"regex": r"/r/\w+"}},
            {"name": "word or none", "match": {"regex": r"/r/\w*", "methods": ["GET"]}},
            {"name": "either", "match": {"regex": r"^/x|/y$"}},
            {"name": "exact", "match": {"path": "/r/13"}},
        ],
        [
            Case("/r/12", "number"),
            Case("/r/12/long/prefix", "number"),
            Case("/r/12/long//prefix/y", "number"),
            Case("/r/12/long/prefix/0", "prefix"),
            Case("/r/12/0"),
            Case("/r/1%32", "number"),
            Case("/r/13", "exact"),
            Case("/r/a", "word"),
            Case("/r/", "word or none"),
            Case("/r/", method="POST"),
            Case("/r/a/long/prefix"),
            Case("/r/a%2Fb"),
            Case("/r/12x/y"),
            Case("/x", "either"),
            Case("/y", "either"),
            Case("/xx"),
            Case("/z/y"),
        ],
    ),
    Table(
        "priority and file order",
        "109",
        [
            {"name": "first", "match": {"prefix": "/p", "methods": ["GET"]}},
            {"name": "second", "match": {"prefix": "/p", "methods": ["GET", "POST"]}},
            {"name": "exact", "match": {"host": "h.example", "path": "/p/x"}},
            {"name": "forced", "match": {"prefix": "/p", "headers": dict(_BETA)}, "priority": 10},
            {"name": "last resort", "match": {"path": "/p/y"}, "priority": -1},
        ],
        [
            Case("/p/x", "first"),
            Case("/p/x", "second", method="POST"),
            Case("/p/x", method="PUT"),
            Case("/p/x", "exact", host="h.example"),
            Case("/p/x", "forced", host="h.example", headers=_BETA),
            Case("/p/y", "first"),
            Case("/p/y", "last resort", method="PUT"),
        ],
    ),
)
