"""Reading a target, its normal form, and what an upstream gets of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import BadPath, BadRequest, ClientError
from gateway.http.target import (
    Target,
    for_server,
    host,
    matched_prefix,
    normal,
    outbound,
    parse,
    read,
    stripped,
    written,
    written_prefix,
)
from gateway.model import Endpoint, Match, Rewrite, Route
from tests.long import times

PLAIN = Route("plain", "u")
ENDPOINT = Endpoint("http", "127.0.0.1", 80)

# Bytes that mean something, so that random text is seldom meaningless.
telling = st.lists(st.sampled_from(list(b"/%.;\\?#ab2eF3541 ")) | st.integers(0, 255), max_size=24).map(bytes)
pieces = st.lists(
    st.sampled_from(
        b"/ // % %2 %2e %2E %2f %5c \\ . .. ; a strip %73trip %41 %33 %25 %00 %zz %C3%A9 0 ? x=1 &".split()
    ),
    max_size=12,
).map(b"".join)
raw_targets = st.one_of(telling, pieces).map(lambda raw: b"/" + raw)


# -- parse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/", Target(None, None, b"/", None, b"/")),
        (b"/x?", Target(None, None, b"/x", b"", b"/x?")),
        (b"/x??a", Target(None, None, b"/x", b"?a", b"/x??a")),
        (b"//h/x", Target(None, None, b"//h/x", None, b"//h/x")),
        (b"*", Target(None, None, b"*", None, b"*")),
        (b"http://h", Target(b"h", b"http", b"/", None, b"/")),
        (b"HttpS://H:1?q", Target(b"H:1", b"https", b"/", b"q", b"/?q")),
        (b"http://[::1]:80//x/%2f?", Target(b"[::1]:80", b"http", b"//x/%2f", b"", b"//x/%2f?")),
    ],
)
def test_parse(target: bytes, expected: Target) -> None:
    parsed = parse(target)
    assert parsed == expected
    assert type(parsed) is Target


@pytest.mark.parametrize("code", [*range(0x21), 0x23, *range(0x7F, 0x100)])
def test_bytes_that_no_target_holds(code: int) -> None:
    odd = bytes([code])
    for target in (
        b"/a" + odd,
        b"/a" + odd + b"b",
        b"/a?" + odd,
        odd,
        odd + b"/",
        b"http://h/" + odd,
        b"http://h" + odd,
    ):
        with pytest.raises(BadRequest):
            parse(target)


@pytest.mark.parametrize("code", [code for code in range(0x21, 0x7F) if code != 0x23])
def test_bytes_that_pass_unchanged(code: int) -> None:
    odd = bytes([code])
    assert parse(b"/a" + odd + b"b?" + odd).raw == b"/a" + odd + b"b?" + odd


@given(
    st.one_of(telling, pieces, st.binary()).flatmap(lambda raw: st.sampled_from([raw, b"/" + raw, b"http://" + raw]))
)
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        parsed = parse(raw)
        normal(parsed.path)
    except ClientError:
        return
    assert parsed.raw == parsed.path + (b"" if parsed.query is None else b"?" + parsed.query)
    assert parsed.path.startswith(b"/")
    assert raw.endswith(parsed.raw) or parsed.authority is not None


# -- host -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"foo.com", b"foo.com"),
        (b"Foo.COM", b"foo.com"),
        (b"foo.com.", b"foo.com"),
        (b"foo.com:", b"foo.com"),
        (b"foo.com.:88", b"foo.com"),
        (b"foo.com:65535", b"foo.com"),
        (b"foo.com:1", b"foo.com"),
        (b"foo_bar:00080", b"foo_bar"),
        (b"127.0.0.1:8080", b"127.0.0.1"),
        (b"[::1]", b"[::1]"),
        (b"[FE80::A]:8080", b"[fe80::a]"),
        (b"[::ffff:1.2.3.4]:", b"[::ffff:1.2.3.4]"),
        (b"x" * 300, b"x" * 300),
    ],
)
def test_host(value: bytes, expected: bytes) -> None:
    assert host(value) == expected
    assert host(value) == expected  # from the cache
    assert host(expected) == expected


_NO_PORTS = (b"a:0", b"a:00000", b"a:65536", b"[::1]:0", b"a.:0", b"127.0.0.1:000")


@pytest.mark.parametrize("value", [b"", b":80", b" ", b"foo.com ", b"a\n", b"a\x00", b"x" * 300 + b"/", *_NO_PORTS])
def test_no_host(value: bytes) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest):
            host(value)


@given(st.one_of(st.binary(max_size=40), st.text("aZ0-_.:[]@, /", max_size=12).map(str.encode)))
def test_any_bytes_are_a_host_or_refused(value: bytes) -> None:
    try:
        found = host(value)
    except BadRequest:
        return
    assert found
    assert host(found) == found
    assert re.fullmatch(rb"[a-z0-9._-]+|\[[0-9a-f:.]+\]", found)


# -- normal ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", b"/"),
        (b"///", b"/"),
        (b"//a///b//", b"/a/b/"),
        (b"/%41%7a%30%2d%2E%5f%7E", b"/Az0-._~"),
        (b"/%2f%3a%c3%a9", b"/%2F%3A%C3%A9"),
        (b"/%zz/%/%4/%g1", b"/%zz/%/%4/%g1"),
        (b"/%252e", b"/%252e"),
        (b"/%%32e", b"/%%32e"),
        (b"/%3%41", b"/%3%41"),
        (b"/%%4a%%4A", b"/%J%J"),
        (b"/%4%2f", b"/%4%2F"),
        (b"/a%2eb", b"/a.b"),
        (b"/.", b"/"),
        (b"/./", b"/"),
        (b"//%2E//.//", b"/"),
        (b"/a/.", b"/a/"),
        (b"/a/./", b"/a/"),
        (b"/./a/%2e/./b", b"/a/b"),
        (b"/.;x/.a/b.", b"/.;x/.a/b."),
        (b"/a%2f.%2fb", b"/a%2F.%2Fb"),
    ],
)
def test_normal(path: bytes, expected: bytes) -> None:
    assert normal(path) == expected


@pytest.mark.parametrize("path", [b"/", b"/a/b.c", b"/a/", b"/%E4%BD%A0/%20%2C", b"/a;b=c/d"])
def test_a_path_in_normal_form_is_not_copied(path: bytes) -> None:
    assert normal(path) is path


def reference(path: bytes) -> bytes | None:
    """The normal form, byte by byte; None for a path that is refused."""
    if not path.startswith(b"/"):
        return None
    out = bytearray()
    at = 0
    stray = 0  # where in `out` the last `%` without its digits is
    while at < len(path):
        digits = path[at + 1 : at + 3]
        if path[at : at + 1] == b"%" and re.fullmatch(rb"[0-9A-Fa-f]{2}", digits):
            char = bytes([int(digits, 16)])
            beside = re.fullmatch(rb"%[0-9A-Fa-f]?", out[stray:]) is not None
            if char.isalnum() or char in b"-._~":
                out += path[at : at + 3] if beside and re.fullmatch(rb"[0-9A-Fa-f]", char) else char
            else:
                out += b"%" + digits.upper()
            at += 3
            continue
        if path[at : at + 1] == b"%":
            stray = len(out)
        if not (path[at : at + 1] == b"/" and out[-1:] == b"/"):
            out += path[at : at + 1]
        at += 1
    if b"%00" in out:
        return None
    for segment in re.split(rb"[/\\]|%2F|%5C", bytes(out)):
        if segment.partition(b";")[0] == b"..":
            return None
    segments = bytes(out).split(b"/")
    kept = [segment for segment in segments[:-1] if segment != b"."]
    # A last single dot names the directory.
    return b"/".join([*kept, b"" if segments[-1] == b"." else segments[-1]])


@given(raw_targets.map(lambda raw: raw.replace(b"?", b"")))
@example(b"/%2e%2e%2fa")
@example(b"/%%2e")
@example(b"/%%33%41")
@example(b"/%a%41%41")
def test_normal_agrees_with_an_obvious_one(path: bytes) -> None:
    try:
        found = normal(path)
    except BadPath:
        assert reference(path) is None
        return
    assert found == reference(path)


@given(st.one_of(raw_targets, st.text("/%2345eEfF.;", max_size=16).map(lambda text: b"/" + text.encode())))
def test_normal_is_idempotent(path: bytes) -> None:
    try:
        found = normal(path)
    except BadPath:
        return
    assert normal(found) == found


@given(pieces)
def test_one_decoding_never_leads_out_of_a_path(raw: bytes) -> None:
    """What an upstream that decodes once, takes both slashes and drops parameters sees
    of an accepted path has no `..` segments: it cannot climb."""
    try:
        parsed = parse(b"/" + raw)
        normal(parsed.path)
    except ClientError:
        return
    decoded = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), parsed.path)
    assert b"\x00" not in decoded
    for segment in re.split(rb"[/\\]", decoded):
        assert segment != b".."


@pytest.mark.parametrize("path", [b"", b"*", b"a", b"%2Fa"])
def test_a_path_begins_with_a_slash(path: bytes) -> None:
    with pytest.raises(BadRequest):
        normal(path)


@pytest.mark.parametrize("path", ["/.", "/a/./b", "/a/%2e", "/a/../b"])
def test_what_the_file_may_not_say(path: str) -> None:
    with pytest.raises(BadPath):
        written(path)


def test_what_the_file_may_say() -> None:
    assert written("/café") == b"/caf%C3%A9"
    assert written("/a b//%63") == b"/a%20b/c"
    assert written_prefix("/v2/") == written_prefix("//v2") == b"/v2"
    assert written_prefix("/") == b""


# -- outbound -------------------------------------------------------------------------


@given(raw_targets)
def test_untouched_targets_are_forwarded_byte_for_byte(raw: bytes) -> None:
    for target, expected in ((raw, raw), (b"http://h.example:1" + raw, raw)):
        try:
            parsed = parse(target)
            path = normal(parsed.path)
        except ClientError:
            return
        assert outbound(PLAIN, ENDPOINT, parsed, path) == expected


def test_an_untouched_target_is_not_copied() -> None:
    parsed = parse(b"/a/b?c")
    assert outbound(PLAIN, ENDPOINT, parsed, normal(parsed.path)) is parsed.raw


STRIP = Route("strip", "u", (Match(prefix="/strip"), Match(prefix="/a/strip/")), strip_prefix=True)
REWRITE = Route("rewrite", "u", (Match(prefix="/strip"),), rewrite=Rewrite(prefix=b"/strip"))


@given(raw_targets)
def test_strip_takes_whole_segments_off_the_raw_target(raw: bytes) -> None:
    try:
        parsed = parse(raw)
        path = normal(parsed.path)
    except ClientError:
        return
    left = outbound(STRIP, ENDPOINT, parsed, path)
    prefix = stripped(STRIP, path)
    assert raw.endswith(left) or (left.startswith(b"/") and raw.endswith(left[1:]))
    left_path = left.partition(b"?")[0]
    assert left.startswith(b"/")
    assert normal(prefix + left_path) == (path if path != prefix else path + b"/")


@given(raw_targets)
def test_strip_never_leaves_the_name_of_a_host_in_front(raw: bytes) -> None:
    """Nor does a server that removes empty and single-dot segments from what is left."""
    try:
        parsed = parse(raw)
        path = normal(parsed.path)
    except ClientError:
        return
    left = parse(outbound(STRIP, ENDPOINT, parsed, path)).path
    assert re.match(rb"(?:/(?:\.|%2[Ee]))*//", left) is None


@given(raw_targets)
def test_a_prefix_rewritten_to_itself_changes_no_meaning(raw: bytes) -> None:
    try:
        parsed = parse(raw)
        path = normal(parsed.path)
    except ClientError:
        return
    if matched_prefix(REWRITE, path):
        same = parse(outbound(REWRITE, ENDPOINT, parsed, path))
        assert (normal(same.path), same.query) == (path, parsed.query)


@pytest.mark.parametrize(
    ("matches", "path", "expected"),
    [
        ((Match(),), b"/a", b""),
        ((Match(prefix="/"),), b"/a", b""),
        ((Match(prefix="/a"),), b"/a/b", b"/a"),
        ((Match(prefix="/a"), Match(prefix="/a/b/"), Match(prefix="/a/b/c")), b"/a/b/d", b"/a/b"),
        ((Match(prefix="/a/b"), Match(prefix="/a"), Match(path="/a")), b"/a/b/d", b"/a/b"),
        ((Match(path="/a/b"), Match(prefix="/a")), b"/a/b", b"/a/b"),
        ((Match(prefix="/a"), Match(path="/a/b")), b"/a/b", b"/a/b"),
        ((Match(prefix="/a"), Match(path="/a/b")), b"/a/b/c", b"/a"),
        ((Match(path="/a/"),), b"/a/", b"/a"),
        ((Match(path="/a"),), b"/b", b""),
        ((Match(regex="/a"),), b"/a", b""),
        ((Match(prefix="/%61"),), b"/a/b", b"/a"),
    ],
)
def test_matched_prefix(matches: tuple[Match, ...], path: bytes, expected: bytes) -> None:
    assert matched_prefix(Route("r", "u", matches), path) == expected


def test_forwarded_prefix_is_the_configured_one() -> None:
    assert stripped(STRIP, normal(b"//%73trip//x")) == b"/strip"
    assert stripped(STRIP, b"/other") == b""
    assert stripped(PLAIN, b"/strip/x") == b""
    assert stripped(REWRITE, b"/strip/x") == b""


@pytest.mark.parametrize(
    ("base", "query", "target", "expected"),
    [
        (b"/a%2Fb/", b"sta=tic", b"/c%2Fd?us=er", b"/a%2Fb/c%2Fd?sta=tic&us=er"),
        (b"/a", b"", b"/", b"/a/"),
        (b"/a", b"", b"/x?", b"/a/x?"),
        (b"/", b"", b"/x", b"/x"),
        (b"", b"k", b"/x", b"/x?k"),
        (b"", b"k", b"/x?", b"/x?k"),
        (b"", b"k", b"/x?k", b"/x?k&k"),
        (b"/a", b"", b"//x", b"/a//x"),
        (b"/a", b"k", b"http://h?x", b"/a/?k&x"),
    ],
)
def test_base_path_and_static_query(base: bytes, query: bytes, target: bytes, expected: bytes) -> None:
    parsed = parse(target)
    endpoint = Endpoint("http", "127.0.0.1", 80, base_path=base, query=query)
    assert outbound(PLAIN, endpoint, parsed, normal(parsed.path)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://a.test", b"*"), (b"HTTPS://a.test:1", b"*"), (b"http://a.test/", b"/"), (b"http://a.test?", b"/?"),
        (b"http://a.test?q", b"/?q"), (b"http://a.test//", b"//"), (b"http://a.test/x", b"/x"), (b"/", b"/"),
    ],
)  # fmt: skip
def test_options_of_a_server(target: bytes, expected: bytes) -> None:
    """RFC 9112 §3.2.4: what has neither path nor query asks about the server."""
    parsed = for_server(parse(target), target)
    path = normal(parsed.path)
    assert outbound(PLAIN, ENDPOINT, parsed, path) == expected
    stripping = Route("r", "u", (Match(prefix="/"),), strip_prefix=True)
    assert outbound(stripping, ENDPOINT, parsed, path) == expected.replace(b"//", b"/")


def test_a_base_path_or_rewrite_leaves_no_asterisk() -> None:
    parsed = for_server(parse(b"http://a.test"), b"http://a.test")
    assert outbound(PLAIN, Endpoint("http", "127.0.0.1", 80, base_path=b"/b"), parsed, b"/") == b"/b/"
    assert outbound(PLAIN, Endpoint("http", "127.0.0.1", 80, query=b"k"), parsed, b"/") == b"/?k"
    assert outbound(Route("r", "u", rewrite=Rewrite(path=b"/x")), ENDPOINT, parsed, b"/") == b"/x"


def test_a_rewritten_path_has_no_dot_segments() -> None:
    route = Route("r", "u", rewrite=Rewrite(regex=re.compile(rb"/(.)x(.)"), to=rb"/\1\2/y"))
    parsed = parse(b"/.x.")
    with pytest.raises(BadPath):
        outbound(route, ENDPOINT, parsed, normal(parsed.path))


class TestRead:
    """`read` is `parse` and `normal` in one."""

    @given(
        st.one_of(
            telling.map(lambda raw: b"/" + raw),
            st.binary(max_size=20).map(lambda raw: b"/" + raw),
            st.sampled_from([b"*", b"http://a/b", b"http://a", b"a", b"", b"/", b"//", b"/a/", b"/a?", b"/?", b"/a?b?c"]),
        )
    )
    @settings(max_examples=times(2000), deadline=None)
    def test_agrees(self, raw: bytes) -> None:
        def apart(raw: bytes) -> tuple[Target, bytes]:
            asked = parse(raw)
            return asked, asked.path if asked.path == b"*" else normal(asked.path)

        def story(how: Callable[[bytes], object]) -> object:
            try:
                return how(raw)
            except ClientError as error:
                return type(error)

        assert story(read) == story(apart)
