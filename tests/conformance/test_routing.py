"""Group B: which route wins, and that what is forwarded is what came, byte for byte.

A route of this scene gives its name to the upstream as Host, so that the upstream knows which one won.
"""

from __future__ import annotations

import pytest

from gateway.testing import answer
from tests.conformance.harness import check_problem, request
from tests.conformance.stock_worker_limits import stock_limit

SCENE = "routing"
WSGI_SAMPLED = True


def won(scene, target, *lines, host, method=b"GET"):
    """The route that won, by the Host that it set; None for the gateway's 404."""
    upstream = scene.upstreams["main"]
    upstream.forget()
    response = scene.ask(request(target, *lines, host=host, method=method))
    if response.status == 404:
        check_problem(response, 404, "no_route", method)
        assert upstream.requests == []
        return None
    assert response.status == 200, response
    return upstream.last.header(b"host").decode()


class TestPaths:
    @pytest.mark.parametrize(
        ("target", "route"),
        [
            (b"/one", "one"), (b"/two", "two"), (b"/one?x=/two", "one"), (b"/one?", "one"),
            (b"/one/example", None), (b"/two/", None), (b"/Two", None), (b"/", None), (b"/on", None),
        ],
    )  # fmt: skip
    def test_exact(self, scene, target, route):
        assert won(scene, target, host=b"path.test") == route

    @pytest.mark.parametrize(
        ("target", "route"),
        [
            (b"/v2", "v2"), (b"/v2/", "v2"), (b"/v2/x", "v2"), (b"/v2?x", "v2"), (b"/v2example", None), (b"/V2", None),
            (b"/v2/deep", "v2-deep"), (b"/v2/deep/", "v2-deep"), (b"/v2/deep/x", "v2-deep"), (b"/v2/deeper", "v2"),
            (b"/v2/exact", "v2-exact"), (b"/v2/exact/", "v2"), (b"/number/12", "number"), (b"/number/12x", None),
            (b"/x/number/12", None), (b"/number/", None),
        ],
    )  # fmt: skip
    def test_prefix_by_segments(self, scene, target, route):
        assert won(scene, target, host=b"path.test") == route

    @pytest.mark.parametrize("target", [b"/%77ith", b"/wit%68", b"/%77%69%74%68/x", b"//with", b"/with//", b"///with///x"])
    def test_normal_form(self, scene, target):
        assert won(scene, target, host=b"path.test") == "with"

    @pytest.mark.parametrize("target", [b"/admin%2fpanel", b"/admin%2Fpanel", b"/admin%5cx", b"/admin%3b", b"/admin%25",
                                        b"/admin%3fx", b"/admin%23x", b"/admin;x"])  # fmt: skip
    def test_an_encoded_delimiter_is_no_slash(self, scene, target):
        assert won(scene, target, host=b"path.test") is None

    @pytest.mark.parametrize("target", [b"/admin/%2f", b"/%61dmin/x", b"/admi%6E", b"//admin//x", b"/admin/;x", b"/admin/%3f"])
    def test_no_way_round_a_protected_path(self, scene, target):
        assert won(scene, target, host=b"path.test") == "admin"


class TestHeadersQueryMethods:
    @pytest.mark.parametrize(
        ("lines", "route"),
        [
            ([b"Version: two"], "version-two"),
            ([b"version: two", b"COLOR: orange"], "version-two-orange"),
            ([b"Version: two", b"Color: blue"], "version-two"),
            ([b"Color: blue"], "colors"), ([b"color: green"], "colors"), ([b"color: purple"], None),
            ([b"Color: Blue"], None), ([b"Version: two, two"], None), ([], None),
        ],
    )  # fmt: skip
    def test_headers(self, scene, lines, route):
        assert won(scene, b"/", *lines, host=b"match.test") == route

    def test_several_lines_are_joined(self, scene):
        assert won(scene, b"/", b"Version: two", b"Version: two", host=b"match.test") is None

    @pytest.mark.parametrize(
        ("target", "route"),
        [
            (b"/?animal=hydra", "hydra"), (b"/?x=1&animal=hydra&y", "hydra"), (b"/?anima%6c=hydr%61", "hydra"),
            (b"/?animal=hydra&animal=whale", "hydra"), (b"/?animal=whale&animal=hydra", None), (b"/?Animal=hydra", None),
            (b"/?animal=Hydra", None), (b"/?animal", None), (b"/?animal=", None), (b"/?animal=hydra%20", None),
            (b"/?animal=blue+whale&size=1.10", "whale"), (b"/?size=1.10&animal=blue%20whale", "whale"),
            (b"/?animal=blue%2bwhale&size=1.10", None), (b"/?animal=blue+whale&size=1.1", None),
        ],
    )  # fmt: skip
    def test_query(self, scene, target, route):
        assert won(scene, target, host=b"match.test") == route

    @pytest.mark.parametrize(
        ("target", "lines", "route"),
        [
            (b"/path5?animal=hydra", [], "path5"), (b"/?animal=hydra", [b"Version: four"], "version-four"),
            (b"/path5", [b"version: four"], "path5-four"), (b"/path5?animal=hydra", [b"version: four"], "path5-four"),
        ],
    )  # fmt: skip
    def test_path_beats_headers_beat_query(self, scene, target, lines, route):
        assert won(scene, target, *lines, host=b"match.test") == route

    @pytest.mark.parametrize(("method", "route"), [(b"GET", "get"), (b"POST", "post"), (b"HEAD", None), (b"DELETE", None)])
    def test_methods(self, scene, method, route):
        assert won(scene, b"/", host=b"method.test", method=method) == route

    @pytest.mark.parametrize(("method", "route"), [(b"GET", "get-below"), (b"PUT", "any-below")])
    def test_with_methods_before_without(self, scene, method, route):
        assert won(scene, b"/any", host=b"method.test", method=method) == route


class TestHosts:
    @pytest.mark.parametrize(("host", "target", "route"), [
        (b"across.com", b"/", "across-first"), (b"across.com", b"/v2", "across-second"),
        (b"across.net", b"/v2", "across-first")])  # fmt: skip
    def test_routes_of_one_host_are_merged(self, scene, host, target, route):
        assert won(scene, target, host=host) == route

    @pytest.mark.parametrize(
        ("host", "route"),
        [
            (b"very.specific.com", "host-exact"), (b"very.specific.com:1234", "host-exact"),
            (b"other.specific.com", "host-wild"), (b"a.b.specific.com", "host-wild"),
            (b"a.more.specific.com", "host-wild-longer"), (b"more.specific.com", "host-wild"),
            (b"specific.com", None), (b"xspecific.com", None), (b"very.specific.com.evil.test", None),
        ],
    )  # fmt: skip
    def test_exact_then_longest_wildcard(self, scene, host, route):
        assert won(scene, b"/", host=host) == route

    @pytest.mark.parametrize(("host", "target", "route"), [
        (b"narrow.specific.com", b"/only", "only-here"), (b"narrow.specific.com", b"/else", "host-wild"),
        (b"across.org", b"/anywhere", "anywhere"), (b"method.test", b"/anywhere", "get")])  # fmt: skip
    def test_falls_through_to_wildcard_then_hostless(self, scene, host, target, route):
        assert won(scene, target, host=host) == route

    @pytest.mark.parametrize("host", [b"Foo.COM", b"foo.com.", b"foo.com:", b"foo.com.:88", b"FOO.com:80"])
    def test_spelling(self, scene, host):
        assert won(scene, b"/", host=host) == "foo"

    @pytest.mark.parametrize("host", [b"[::1]", b"[::1]:8080"])
    def test_ipv6_literal(self, scene, host):
        assert won(scene, b"/", host=host) == "ip6"

    @pytest.mark.parametrize("host", [b"foo.com/x", b"foo.com?x", b"u@foo.com", b"foo.com x", b"foo.com,bar", b"foo.com:8x",
                                      b"[::1", b"::1", b"foo.com#x", b"foo\\com"])  # fmt: skip
    def test_what_is_not_a_host(self, scene, upstream, host):
        assert scene.ask(request(b"/", host=host)).status == 400
        assert upstream.requests == []

    def test_priority_beats_all_else(self, scene):
        assert won(scene, b"/x", host=b"priority.test") == "high"

    def test_x_forwarded_host_does_not_route(self, scene):
        assert won(scene, b"/", b"X-Forwarded-Host: foo.com", host=b"very.specific.com") == "host-exact"


class TestAbsoluteForm:
    @pytest.mark.parametrize("scheme", [b"http", b"HTTP"])
    def test_wins_over_host(self, scene, upstream, scheme):
        response = scene.ask(request(scheme + b"://Raw.test/x%2f?y", host=b"foo.com"))
        if response.status != 400:
            assert (upstream.last.target, upstream.last.header(b"host")) == (b"/x%2f?y", b"Raw.test")
            assert upstream.last.header(b"x-forwarded-host") == b"Raw.test"

    def test_routes(self, scene):
        assert won(scene, b"http://foo.com:81/", host=b"very.specific.com") == "foo"

    @pytest.mark.parametrize(("target", "seen"), [
        (b"http://raw.test", b"/"), (b"http://raw.test/", b"/"), (b"http://raw.test?x=1", b"/?x=1"),
        (b"http://raw.test:8080/a//b", b"/a//b")])  # fmt: skip
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_without_a_path(self, scene, upstream, target, seen):
        scene.ask(request(target, host=b"raw.test"))
        assert upstream.last.target == seen

    @pytest.mark.parametrize("target", [b"http://", b"http:///x", b"http://u:p@raw.test/", b"ftp://raw.test/", b"http:/raw.test/",
                                        b"http://raw.test:x/", b"//raw.test"])  # fmt: skip
    def test_malformed(self, scene, upstream, target):
        """An authority with user information, without a host, of another scheme: 400. `//raw.test` is a path."""
        response = scene.ask(request(target, host=b"foo.com"))
        if target.startswith(b"//"):
            assert upstream.last.target == b"//raw.test"
        else:
            assert response.status == 400
            assert upstream.requests == []


class TestNoRoute:
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"OPTIONS", b"DELETE"])
    def test_404(self, scene, upstream, method):
        response = scene.ask(request(b"/none", host=b"path.test", method=method))
        check_problem(response, 404, "no_route", method)
        assert upstream.requests == []

    def test_is_logged(self, scene):
        scene.ask(request(b"/none-logged", host=b"path.test"))
        record = scene.gateway.logged("/none-logged")
        assert (record["status"], record["reason"], record["route"], record["upstream"]) == (404, "no_route", None, None)


class TestForwardedAsItCame:
    @pytest.mark.parametrize(
        "target",
        [
            b"/%3A%2F%2F", b"/a%2fbc", b"/a%2Fbc", b"/a%2fb/c%zz", b"/%", b"/%4", b"/a%zz?b%zz", b"//foo", b"/a//b", b"/a/b//",
            b"/?", b"/x?", b"/x", b"/x?a", b"/x?a=", b"/x?a=1&a=2;b=3", b"/x?a=%zz", b"/x?&&", b"/x??a?b", b"/x?a=/../b",
            b"/%ff%fe", b"/%C3%A9", b"/%c3%a9", b"/a+b%20c", b"/~%7e", b"/%41", b"/a;b=c;d/e;f", b"/a:b@c!$&'()*+,;=",
            b"/x?" + b"&".join(b"k%d=v" % n for n in range(600)), b"/" + b"a" * 4000, b"/a%5cb", b"/a...b/...", b"/.a/..b/c..",
            b"/.", b"/./x", b"/a/./b", b"/a/.", b"/%2e/x", b"/apt/./Packages?a/./b", b"/a/.;/b", b"//.//x",
        ],
        ids=lambda target: target[:20].decode("latin-1"),
    )  # fmt: skip
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_target(self, scene, upstream, target):
        assert scene.ask(request(target, host=b"raw.test")).status == 200
        assert upstream.last.target == target

    @stock_limit("long-query")
    def test_ten_thousand_pairs(self, scene, upstream):
        target = b"/x?" + b"&".join(b"%d" % (n % 10) for n in range(7000))
        assert scene.ask(request(target, host=b"raw.test")).status == 200
        assert upstream.last.target == target

    @pytest.mark.parametrize(
        "target",
        [
            b"/..", b"/../x", b"/./..", b"/a/../b", b"/a/..", b"/a/./../b", b"/.././x", b"/%2e%2e/x", b"/.%2E/x",
            b"/a/%2e%2e/b", b"/a%2f..%2fb", b"/a%2F%2e%2e", b"/a%5c..%5cb", b"/a\\..\\b", b"/..;/x", b"/a/..;x=y/b",
            b"/a%2f../b", b"/a/..%2fb", b"/a/..\\b", b"/%00", b"/a%00b", b"/a/%2e%2e;x/b",
        ],
    )  # fmt: skip
    def test_refused_paths(self, scene, upstream, target):
        response = scene.ask(request(target, host=b"raw.test"))
        check_problem(response, 400, "bad_path")
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"/./admin", b"/admin/.", b"/%2e/admin/./x", b"//.//%61dmin"])
    def test_single_dots_pass_no_guard(self, scene, upstream, target):
        assert scene.ask(request(target, host=b"path.test")).status == 200
        assert upstream.last.header(b"host") == b"admin"
        assert upstream.last.target == target

    @pytest.mark.parametrize("target", [b"/a#b", b"/#", b"/a?b#c", b"http://raw.test/a#b"])
    def test_a_fragment(self, scene, upstream, target):
        assert scene.ask(request(target, host=b"raw.test")).status == 400
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"/caf\xc3\xa9", b"/\xff", b"/\xc0\xaf", b"/a|b", b"/a[b]", b"/a{b}", b'/a"b', b"/a<b>",
                                        b"/a^b`c", b"/a?b|c", b"/a?\xff", b"/a\\b"])  # fmt: skip
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_odd_bytes(self, scene, upstream, target):
        response = scene.ask(request(target, host=b"raw.test"))
        assert response.status in (200, 400)
        if response.status == 200:
            assert upstream.last.target == target


class TestRewrites:
    @pytest.mark.parametrize(
        ("target", "seen"),
        [
            (b"/prefix/one/two?q=1", b"/one/two?q=1"), (b"/prefix", b"/"), (b"/prefix/", b"/"), (b"/prefix?q", b"/?q"),
            (b"//prefix/x", b"/x"), (b"/%70refix/x", b"/x"), (b"/prefix//x", b"/x"), (b"/prefix/a%2fb/%zz", b"/a%2fb/%zz"),
            (b"/prefix/prefix/x", b"/prefix/x"), (b"/a/b/c", b"/c"), (b"/a//b/c", b"/c"), (b"/a/b", b"/"),
            (b"/old/x?y=%2f", b"/new/x?y=%2f"), (b"/old", b"/new"), (b"/old/", b"/new/"), (b"/gone/x", b"/x"), (b"/gone", b"/"),
            (b"/full/x/y?q=1", b"/one?q=1"), (b"/full", b"/one"),
            (b"/prefix/./x", b"/./x"), (b"/./prefix/%2e/x", b"/%2e/x"), (b"/prefix/.", b"/."), (b"/a/./b", b"/"),
            (b"/prefix/.//host.test", b"/host.test"), (b"/./old/./x", b"/new/./x"), (b"/u/./12", b"/users/12"), (b"/u/12", b"/users/12"), (b"/u/12?x", b"/users/12?x"),
        ],
    )  # fmt: skip
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_on_the_raw_target(self, scene, upstream, target, seen):
        assert scene.ask(request(target, host=b"rewrite.test")).status == 200
        assert upstream.last.target == seen

    @pytest.mark.parametrize("target", [b"/prefixed", b"/prefix..", b"/prefix%2fx", b"/pre", b"/oldish"])
    def test_not_beyond_a_segment(self, scene, upstream, target):
        check_problem(scene.ask(request(target, host=b"rewrite.test")), 404, "no_route")
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"/prefix/../admin", b"/prefix/%2e%2e/admin", b"/prefix/..", b"/prefix//../x"])
    def test_no_way_up(self, scene, upstream, target):
        check_problem(scene.ask(request(target, host=b"rewrite.test")), 400, "bad_path")
        assert upstream.requests == []

    def test_x_forwarded_prefix_is_never_the_clients(self, scene, upstream):
        for target in (b"/x", b"/prefix/x"):
            host = b"raw.test" if target == b"/x" else b"rewrite.test"
            scene.ask(request(target, b"X-Forwarded-Prefix: /evil", host=host))
            assert b"/evil" not in upstream.last.values(b"x-forwarded-prefix")

    def test_a_location_is_the_upstreams_word(self, scene, upstream):
        """Documented: what the upstream says about itself is passed on as it is."""
        upstream.answer(answer(b"", b"Location: /x?y", b"Set-Cookie: a=b; Path=/x", b"Refresh: 1; url=/x", status=302))
        response = scene.ask(request(b"/prefix/x", host=b"rewrite.test"))
        assert response.status == 302
        assert response.header(b"location") == b"/x?y"
        assert response.header(b"set-cookie") == b"a=b; Path=/x"
        assert response.header(b"refresh") == b"1; url=/x"


class TestOwnPaths:
    @pytest.mark.parametrize("target", [b"/-/nothing", b"/-/", b"//-/nothing", b"/%2d/nothing", b"/-/status", b"/-/metrics",
                                        b"/-/config", b"/-//nothing", b"http://raw.test/-/status"])  # fmt: skip
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_unknown_ones_are_never_forwarded(self, scene, upstream, target):
        check_problem(scene.ask(request(target, host=b"raw.test")), 404, "no_route")
        assert upstream.requests == []

    @pytest.mark.parametrize("host", [b"raw.test", b"localhost", b"127.0.0.1:9901", b"[::1]:9901"])
    @pytest.mark.parametrize("target", [b"/-/status", b"/-/%73tatus", b"/%2D/metrics", b"//-//config", b"/-/status?x=/-/healthz",
                                        b"http://localhost:9901/-/status", b"http://127.0.0.1:9901//-/metrics"])  # fmt: skip
    def test_the_admin_listener_is_not_reached_by_a_data_listener(self, scene, upstream, host, target):
        """It is on in every scene (`admin` has a default), and told apart by the socket alone."""
        assert "Admin listener: http" in scene.gateway.errors()
        check_problem(scene.ask(request(target, b"Authorization: Bearer x", host=host)), 404, "no_route")
        assert upstream.requests == []

    @pytest.mark.parametrize("path", [b"/-/healthz", b"/-/readyz", b"//-/healthz", b"/%2D/healthz", b"/./-/./healthz"])
    @pytest.mark.parametrize("host", [b"raw.test", b"unknown.test"])
    def test_health_on_any_host(self, scene, upstream, path, host):
        assert scene.ask(request(path, host=host)).status == 200
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"/x/../-/status", b"/-/../-/healthz", b"/-/..;/x", b"/%2d/%2e%2e/x"])
    def test_no_dots_into_them(self, scene, upstream, target):
        check_problem(scene.ask(request(target, host=b"raw.test")), 400, "bad_path")
        assert upstream.requests == []

    @pytest.mark.parametrize("target", [b"/-", b"/-x", b"/-x/healthz", b"/x/-/healthz", b"/-%2fhealthz"])
    @pytest.mark.whole_wsgi("the target goes through the environ")
    def test_neighbours_are_not_theirs(self, scene, upstream, target):
        response = scene.ask(request(target, host=b"raw.test"))
        if target == b"/-":
            assert response.status in (200, 404)  # with or without the slash it is the same prefix
        else:
            assert upstream.last.target == target

    def test_head_of_health(self, scene):
        response = scene.ask(request(b"/-/healthz", method=b"HEAD"))
        assert (response.status, response.framing) == (200, "none")
