"""Request heads: what passes, what is refused and how, and that one head leaves nothing behind for the next."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    ClientError,
    ExpectationFailed,
    HeaderTooLarge,
    UnsupportedCoding,
    UnsupportedMethod,
    UnsupportedVersion,
    UriTooLong,
)
from gateway.model import ServerLimits
from gateway.server.parser import HeadParser

HOST = b"Host: example.test"


def head(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes | None = HOST) -> bytes:
    lines = [line, *([host] if host is not None else []), *fields]
    return b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def parse(raw: bytes, limits: ServerLimits | None = None) -> HeadParser:
    parser = HeadParser(limits or ServerLimits())
    parser.parse(raw)
    return parser


def refused(raw: bytes, limits: ServerLimits | None = None) -> type[ClientError]:
    with pytest.raises(ClientError) as caught:
        parse(raw, limits)
    return caught.type


class TestWhatPasses:
    def test_everything_as_it_came(self) -> None:
        fields = [b"X-One: 1", b"x-ONE:2", b"X-Empty:", b"Cookie: a=1", b"Cookie: b=2"]
        found = parse(head(b"GET /a%2fb?q=1 HTTP/1.1", *fields))
        assert (found.method, found.target, found.http11) == (b"GET", b"/a%2fb?q=1", True)
        assert found.headers == [
            (b"Host", b"example.test"), (b"X-One", b"1"), (b"x-ONE", b"2"), (b"X-Empty", b""),
            (b"Cookie", b"a=1"), (b"Cookie", b"b=2"),
        ]  # fmt: skip
        assert (found.content_length, found.chunked, found.keep_alive, found.upgrade) == (None, False, True, None)

    @pytest.mark.parametrize(
        "method",
        [b"GET", b"QUERY", b"PURGE", b"get", b"M-SEARCH", b"X", b"!#$%&'*+-.^_`|~09azAZ", b"TRACE", b"PRI", b"A" * 64],
    )
    def test_any_token_is_a_method(self, method: bytes) -> None:
        assert parse(head(method + b" / HTTP/1.1")).method == method

    @pytest.mark.parametrize(
        "target",
        [b"/", b"//a", b"/%zz", b"/a|b\"<>^`{}\\[]", b"/?", b"/?a?b", b"http://a.test/x?y", b"https://a.test:1"],
    )
    def test_targets(self, target: bytes) -> None:
        assert parse(head(b"GET " + target + b" HTTP/1.1")).target == target

    def test_asterisk_is_for_options(self) -> None:
        assert parse(head(b"OPTIONS * HTTP/1.1")).target == b"*"
        assert refused(head(b"GET * HTTP/1.1")) is BadRequest

    @pytest.mark.parametrize("value", [b"\x85admin\xa0", b"a\tb", b"\xff", b"a  b", b"~!@"])
    def test_values_keep_their_bytes(self, value: bytes) -> None:
        assert parse(head(b"GET / HTTP/1.1", b"X: \t " + value + b" \t")).headers[-1] == (b"X", value)

    @pytest.mark.parametrize("host", [b"a", b"a.b:80", b"a.:80", b"a:", b"[::1]:8080", b"foo_bar", b"127.0.0.1"])
    def test_hosts(self, host: bytes) -> None:
        assert parse(head(host=b"Host: " + host)).headers == [(b"Host", host)]

    def test_http_1_0_may_do_without_host(self) -> None:
        found = parse(head(b"GET / HTTP/1.0", host=None))
        assert (found.http11, found.keep_alive) == (False, False)


class TestConnection:
    @pytest.mark.parametrize(
        ("version", "fields", "keep"),
        [
            (b"HTTP/1.1", [], True),
            (b"HTTP/1.1", [b"Connection: close"], False),
            (b"HTTP/1.1", [b"Connection: x, CLOSE , y"], False),
            (b"HTTP/1.1", [b"Connection: x", b"connection: close"], False),
            (b"HTTP/1.1", [b"Connection: keep-alive, close"], False),
            (b"HTTP/1.1", [b"Connection:"], True),
            (b"HTTP/1.1", [b"Connection: ,"], True),
            (b"HTTP/1.1", [b"Proxy-Connection: close"], True),
            (b"HTTP/1.0", [], False),
            (b"HTTP/1.0", [b"Connection: Keep-Alive"], True),
            (b"HTTP/1.0", [b"Connection: keep-alive, close"], False),
        ],
    )
    def test_keep_alive(self, version: bytes, fields: list[bytes], keep: bool) -> None:
        assert parse(head(b"GET / " + version, *fields)).keep_alive is keep

    @pytest.mark.parametrize(
        ("line", "fields", "token"),
        [
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: WebSocket"], b"websocket"),
            (b"GET / HTTP/1.1", [b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"], b"websocket"),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 0"], b"websocket"),
            (b"GET / HTTP/1.1", [b"Upgrade: websocket"], None),
            (b"GET / HTTP/1.1", [b"Connection: close", b"Upgrade: websocket"], None),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade"], None),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: a, b"], None),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: a", b"Upgrade: b"], None),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 3"], None),
            (b"GET / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked"], None),
            (b"POST / HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: websocket"], None),
            (b"GET / HTTP/1.0", [b"Connection: Upgrade", b"Upgrade: websocket"], None),
        ],
    )
    def test_upgrade(self, line: bytes, fields: list[bytes], token: bytes | None) -> None:
        assert parse(head(line, *fields)).upgrade == token

    def test_an_upgrade_with_a_body_is_framed(self) -> None:
        found = parse(head(b"POST / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 7"))
        assert (found.content_length, found.upgrade) == (7, None)
        found = parse(head(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked"))
        assert (found.chunked, found.upgrade) == (True, None)


class TestFraming:
    @pytest.mark.parametrize(
        ("value", "length"), [(b"0", 0), (b"5", 5), (b"005", 5), (b"999999999999999999", 10**18 - 1)]
    )
    def test_lengths(self, value: bytes, length: int) -> None:
        assert parse(head(b"POST / HTTP/1.1", b"Content-Length: " + value)).content_length == length

    @pytest.mark.parametrize(
        "fields",
        [
            [b"Content-Length:"], [b"Content-Length: +5"], [b"Content-Length: -5"], [b"Content-Length: 5 5"],
            [b"Content-Length: 5, 5"], [b"Content-Length: 5,6"], [b"Content-Length: 0x5"], [b"Content-Length: 5_0"],
            [b"Content-Length: 5", b"Content-Length: 5"], [b"Content-Length: 5", b"content-length: 6"],
            [b"Content-Length: 99999999999999999999"], [b"Content-Length: 1e3"], [b"Content-Length: \xb2"],
            [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 0"], [b"Content-Length : 5"],
            [b"Transfer-Encoding : chunked"],
            [b"Content-Length\t: 5"], [b"Content-Length\x00: 5"], [b"\tTransfer-Encoding: chunked"],
            [b"X: y", b" Transfer-Encoding: chunked"], [b"Transfer-Encoding:", b" chunked"],
        ],
    )  # fmt: skip
    def test_what_has_two_readings_is_refused(self, fields: list[bytes]) -> None:
        assert refused(head(b"POST / HTTP/1.1", *fields)) is BadRequest

    @pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b"\t chunked", b"chunked \t"])
    def test_chunked(self, value: bytes) -> None:
        found = parse(head(b"POST / HTTP/1.1", b"Transfer-Encoding:" + value))
        assert (found.chunked, found.content_length) == (True, None)

    @pytest.mark.parametrize(
        ("lines", "error"),
        [
            ([b"gzip"], UnsupportedCoding),
            ([b"gzip, chunked"], UnsupportedCoding),
            ([b"identity, chunked"], UnsupportedCoding),
            ([b"gzip", b"chunked"], UnsupportedCoding),
            ([b"identity"], UnsupportedCoding),
            ([b"xchunked"], UnsupportedCoding),
            ([b"chunk"], UnsupportedCoding),
            ([b"chunked, gzip"], BadRequest),
            ([b"chunked, identity"], BadRequest),
            ([b"chunked, chunked"], BadRequest),
            ([b"chunked", b"chunked"], BadRequest),
            ([b"chunked", b"identity"], BadRequest),
            ([b",chunked"], BadRequest),
            ([b"chunked,"], BadRequest),
            ([b"chunked;a=b"], BadRequest),
            ([b'"chunked"'], BadRequest),
            ([b""], BadRequest),
            ([b"\x0bchunked"], BadRequest),
            ([b"chun\x00ked"], BadRequest),
            ([b"chunked\xa0"], BadRequest),
            ([b"chunked chunked"], BadRequest),
        ],
    )
    def test_other_codings(self, lines: list[bytes], error: type[ClientError]) -> None:
        raw = head(b"POST / HTTP/1.1", *(b"Transfer-Encoding: " + line for line in lines))
        found = refused(raw)
        # 501 is for what is well formed and unknown (RFC 9112 §6.1).
        assert found is error

    def test_none_in_http_1_0(self) -> None:
        assert refused(head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked")) is BadRequest
        assert refused(head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked", host=None)) is BadRequest
        assert refused(head(b"POST / HTTP/1.0", b"Transfer-Encoding: gzip", host=None)) is BadRequest

    def test_http_1_0_without_host_has_a_body_too(self) -> None:
        assert parse(head(b"POST / HTTP/1.0", b"Content-Length: 5", host=None)).content_length == 5

    def test_get_with_a_body(self) -> None:
        assert parse(head(b"GET / HTTP/1.1", b"Content-Length: 5")).content_length == 5


class TestExpect:
    def test_is_for_bodies(self) -> None:
        assert parse(head(b"POST / HTTP/1.1", b"Expect: 100-Continue", b"Content-Length: 5")).expects_continue
        assert parse(head(b"POST / HTTP/1.1", b"Expect: 100-continue", b"Transfer-Encoding: chunked")).expects_continue
        assert not parse(head(b"POST / HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 0")).expects_continue
        assert not parse(head(b"GET / HTTP/1.1", b"Expect: 100-continue")).expects_continue

    def test_is_nothing_in_http_1_0(self) -> None:
        assert not parse(head(b"POST / HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 5")).expects_continue
        assert not parse(head(b"POST / HTTP/1.0", b"Expect: x", b"Content-Length: 5")).expects_continue

    @pytest.mark.parametrize(
        ("fields", "expects"),
        [
            ([b"Expect: 100-continue, 100-Continue"], True),
            ([b"Expect: 100-continue", b"Expect: 100-continue"], True),
            ([b"Expect: , 100-continue\t,"], True),
            ([b"Expect: 100-continue", b"Expect:"], True),
            ([b"Expect:"], False),
            ([b"Expect: "], False),
            ([b"Expect: ,\t,"], False),
            ([b"Expect:", b"Expect: ,"], False),
        ],
    )
    def test_is_a_list(self, fields: list[bytes], expects: bool) -> None:
        """RFC 9110 §10.1.1; empty members count for nothing (§5.6.1)."""
        assert parse(head(b"POST / HTTP/1.1", *fields, b"Content-Length: 5")).expects_continue is expects

    @pytest.mark.parametrize(
        "fields",
        [
            [b"Expect: 200-ok"],
            [b"Expect: 100-continue, x"],
            [b"Expect: 100-continue", b"Expect: x"],
            [b"Expect: , x"],
            [b"Expect: 100-continue;a=b"],
            [b"Expect: 100-continue=x"],
            [b'Expect: x=","'],
        ],
    )
    def test_other_expectations_fail(self, fields: list[bytes]) -> None:
        assert refused(head(b"POST / HTTP/1.1", *fields, b"Content-Length: 5")) is ExpectationFailed


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "line",
        [
            b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET /\tHTTP/1.1", b"GET / a HTTP/1.1", b"GET / HTTP/1.1\nX: y", b"GET /\r HTTP/1.1", b"hello", b"",
            b"\x00\x01\x02",
            b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.1.1", b"GET / HTTP/11", b"GET / HTTP/1,1",
            b"GET / HTTPS/1.1",
            b"GET / HTTP/ 1.1", b"GET / HTTP/\xb1.1", b"GET: / HTTP/1.1", b"GE(T / HTTP/1.1", b"G\xc9T / HTTP/1.1",
            b"G\x00T / HTTP/1.1",
            b"A" * 65 + b" / HTTP/1.1", b"A" * 4096 + b" / HTTP/1.1", b"GET /#a HTTP/1.1", b"GET /a?b#c HTTP/1.1",
            b"GET http://a/#b HTTP/1.1",
            b"GET /\x80 HTTP/1.1", b"GET /\x00 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET foo/bar HTTP/1.1",
            b"GET a.test:443 HTTP/1.1",
            b"GET s://]ufd/: HTTP/1.1", b"GET http:///a HTTP/1.1", b"GET http://u@h/a HTTP/1.1",
            b"GET ?a HTTP/1.1", b"GET ** HTTP/1.1",
            b"CONNECT / HTTP/1.1", b"CONNECT http://a/ HTTP/1.1", b"CONNECT a HTTP/1.1", b"CONNECT a: HTTP/1.1",
        ],
    )  # fmt: skip
    def test_lines(self, line: bytes) -> None:
        assert refused(head(line)) is BadRequest

    @pytest.mark.parametrize("version", [b"0.9", b"1.2", b"1.9", b"2.0", b"3.0", b"9.9"])
    def test_versions(self, version: bytes) -> None:
        assert refused(head(b"GET / HTTP/" + version)) is UnsupportedVersion

    def test_the_preface_of_http_2(self) -> None:
        assert refused(b"PRI * HTTP/2.0\r\n\r\n") in (UnsupportedVersion, BadRequest)

    def test_connect(self) -> None:
        assert refused(head(b"CONNECT a.test:80 HTTP/1.1")) is UnsupportedMethod

    @pytest.mark.parametrize(
        "field",
        [
            b"X", b": x", b" X: y", b"\tX: y", b"X : y", b"X\t: y", b"X\x85: y", b"X\xa0: y", b"X\x00: y", b"(: y",
            b"X Y: z", b"X\r: y",
            b"X: a\x00b", b"X: a\rb", b"X: a\nb", b"X: a\x0bb", b"X: a\x7fb", b"X: a\r\n b", b"X: a\r\n\tb",
            b"X: a\r\n ", b"X: a\nY: b",
        ],
    )  # fmt: skip
    def test_fields(self, field: bytes) -> None:
        assert refused(head(b"GET / HTTP/1.1", field)) is BadRequest
        assert refused(head(b"GET / HTTP/1.1", field, HOST, host=None)) is BadRequest

    def test_a_folded_first_line(self) -> None:
        assert refused(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n") is BadRequest

    @pytest.mark.parametrize(
        "fields",
        [
            [], [b"Host:"], [b"Host: "], [b"Host: a", b"Host: a"], [b"Host: a", b"hOST: b"], [b"Host: a, b"],
            [b"Host: a,b"],
            [b"Host: a b"], [b"Host: a/b"], [b"Host: u@a"], [b"Host: a:x"], [b"Host: [::1"], [b"Host: \xe9"],
            [b"Host: a?b"], [b"Host: a#b"],
        ],
    )  # fmt: skip
    def test_hosts(self, fields: list[bytes]) -> None:
        assert refused(head(b"GET / HTTP/1.1", *fields, host=None)) is BadRequest

    def test_hosts_of_http_1_0_too(self) -> None:
        assert refused(head(b"GET / HTTP/1.0", HOST)) is BadRequest

    def test_a_missing_host_of_an_absolute_target_too(self) -> None:
        assert refused(head(b"GET http://a/ HTTP/1.1", host=None)) is BadRequest


class TestLimits:
    def test_of_the_request_line(self) -> None:
        limits = ServerLimits(request_line=100)
        line = b"GET /" + b"a" * 86 + b" HTTP/1.1"
        assert len(line) == 100
        assert parse(head(line), limits).method == b"GET"
        assert refused(head(line.replace(b"/a", b"/aa")), limits) is UriTooLong

    def test_of_all_header_lines_together(self) -> None:
        limits = ServerLimits(header=100)
        field = b"X: " + b"y" * (100 - len(HOST) - 4 - 3)
        assert len(parse(head(b"GET / HTTP/1.1", field), limits).headers) == 2
        assert refused(head(b"GET / HTTP/1.1", field + b"y"), limits) is HeaderTooLarge

    def test_of_the_number_of_lines(self) -> None:
        limits = ServerLimits(headers=3)
        assert len(parse(head(b"GET / HTTP/1.1", b"A: 1", b"B: 2"), limits).headers) == 3
        assert refused(head(b"GET / HTTP/1.1", b"A: 1", b"B: 2", b"C: 3"), limits) is HeaderTooLarge

    def test_of_the_body(self) -> None:
        limits = ServerLimits(body=10)
        assert parse(head(b"POST / HTTP/1.1", b"Content-Length: 10"), limits).content_length == 10
        assert refused(head(b"POST / HTTP/1.1", b"Content-Length: 11"), limits) is BodyTooLarge

    def test_zero_is_none(self) -> None:
        limits = ServerLimits(request_line=0, header=0, headers=0, body=0)
        raw = head(b"GET /" + b"a" * 100_000 + b" HTTP/1.1", *[b"X: y"] * 5_000, b"Content-Length: 5000000000")
        assert parse(raw, limits).content_length == 5_000_000_000


HEADS = st.sampled_from(
    [
        head(), head(b"HEAD /x HTTP/1.1"), head(b"GET / HTTP/1.0"), head(b"GET / HTTP/1.0", host=None),
        head(b"GET / HTTP/1.1", b"Connection: close"), head(b"GET / HTTP/1.1", b"Proxy-Connection: close"),
        head(b"POST / HTTP/1.1", b"Content-Length: 5"), head(b"POST / HTTP/1.1", b"Content-Length: 5", host=None),
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"),
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", host=None),
        head(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket"),
        head(b"POST / HTTP/1.1", b"Upgrade: websocket"),
        head(b"POST / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 5"),
        head(b"CONNECT a:80 HTTP/1.1"), head(b"GET / HTTP/1.1", b"X"), head(b"GET / HTTP/2.0"),
        head(b"ODD / HTTP/1.1"), head(host=None),
        head(b"GET / HTTP/1.1", b"Transfer-Encoding: gzip"),
        head(b"GET / HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 1"),
    ]
)  # fmt: skip


def result(parser: HeadParser, raw: bytes) -> object:
    try:
        parser.parse(raw)
    except ClientError as error:
        return type(error)
    return (
        parser.method, parser.target, parser.headers, parser.http11, parser.content_length, parser.chunked,
        parser.keep_alive, parser.expects_continue, parser.upgrade,
    )  # fmt: skip


class TestOneAfterAnother:
    @given(st.lists(HEADS, max_size=8))
    def test_a_parser_remembers_nothing(self, heads: list[bytes]) -> None:
        parser = HeadParser(ServerLimits())
        for raw in heads:
            assert result(parser, raw) == result(HeadParser(ServerLimits()), raw)


class TestTheSameLinesAgain:
    """A connection remembers the field lines of the head before: what is read by that is what would be read without."""

    LINES = (b"GET / HTTP/1.1", b"HEAD /a?b=%2f HTTP/1.1", b"POST /b HTTP/1.1", b"GET /x#y HTTP/1.1", b"GET /" + b"l" * 300 + b" HTTP/1.1",
             b"GET / HTTP/1.0", b"GET  / HTTP/1.1", b"ODD / HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET http://a/ HTTP/1.1", b"GET / HTTP/1.1\r\nX: y", b"")  # fmt: skip
    FIELDS = (b"Accept: */*", b"X: 1", b"Connection: close", b"Content-Length: 3", b"Host: other.test", b"Cookie: a=b", b"Upgrade: x", b"Bad")  # fmt: skip
    LIMITS = ServerLimits(request_line=200)

    @given(st.lists(st.tuples(st.sampled_from(LINES), st.lists(st.sampled_from(FIELDS), max_size=3), st.booleans()), max_size=12))
    def test_one_connection(self, heads: list[tuple[bytes, list[bytes], bool]]) -> None:
        parser, before = HeadParser(self.LIMITS), None
        for line, fields, same in heads:
            raw = head(line, *([] if same else fields))
            expected = result(HeadParser(self.LIMITS), raw)
            if isinstance(expected, type):
                with pytest.raises(expected):
                    parser.parse(raw, before)
                return
            before = parser.parse(raw, before)
            assert expected == (
                parser.method, parser.target, parser.headers, parser.http11, parser.content_length, parser.chunked,
                parser.keep_alive, parser.expects_continue, parser.upgrade,
            )  # fmt: skip
            assert parser.host == dict(parser.headers).get(b"Host", b"")

    def test_it_is_read_by_that(self) -> None:
        parser = HeadParser(ServerLimits())
        first = parser.parse(head(b"GET /1 HTTP/1.1", b"X: y"))
        second = parser.parse(head(b"GET /2 HTTP/1.1", b"X: y"), first)
        third = parser.parse(head(b"POST /3 HTTP/1.1", b"X: y"), second)
        assert third == second != first
        assert (parser.method, parser.target) == (b"POST", b"/3")

    def test_who_sends_others_each_time_is_not_asked_again(self) -> None:
        parser, before = HeadParser(ServerLimits()), None
        for number in range(3):
            before = parser.parse(head(b"GET / HTTP/1.1", b"X: %d" % number), before)
        assert before == ()

    def test_who_changes_the_fields_changes_those_of_one_request(self) -> None:
        parser = HeadParser(ServerLimits())
        before = parser.parse(head())
        parser.headers.append((b"X", b"added"))
        before = parser.parse(head(), before)
        parser.headers.append((b"X", b"added"))
        parser.parse(head(), before)
        assert parser.headers == [(b"Host", b"example.test")]

    @pytest.mark.parametrize("fields", [[b"Content-Length: 0"], [b"Connection: close"], [b"Expect: 100-continue"], [b"Transfer-Encoding: chunked"]])
    def test_only_of_the_plainest_form(self, fields: list[bytes]) -> None:
        assert HeadParser(ServerLimits()).parse(head(b"GET / HTTP/1.1", *fields)) is None


# What RFC 9112 lets a head be, written down once more and independently.
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(
    rb"(" + _TOKEN + rb") ([!\"$-~]+) HTTP/1\.[01]\r\n(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
)


class TestAgainstTheGrammar:
    @given(st.data())
    def test_nothing_passes_that_is_no_head(self, data: st.DataObject) -> None:
        whole_heads = [head(), head(b"PUT /a HTTP/1.1", b"X: y", b"Content-Length: 3"), head(b"OPTIONS * HTTP/1.0")]
        raw = bytearray(data.draw(st.sampled_from(whole_heads)))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(raw) - 5))
            kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
            byte = data.draw(st.sampled_from(list(b"\r\n\t :;,\x00\x7f\x80\xffa0")) | st.integers(0, 255))
            if kind == "set":
                raw[at] = byte
            elif kind == "insert":
                raw.insert(at, byte)
            else:
                del raw[at]
        # As the connection cuts it: up to the first empty line.
        whole = bytes(raw[: raw.index(b"\r\n\r\n") + 4])
        passed = result(HeadParser(ServerLimits()), whole)
        if isinstance(passed, tuple):
            assert _HEAD.fullmatch(whole)
            names = [line.split(b":")[0] for line in whole.split(b"\r\n")[1:-2]]
            assert [name for name, _ in passed[2]] == names

    @given(st.binary(max_size=120))
    def test_nothing_but_client_errors(self, junk: bytes) -> None:
        junk = junk.replace(b"\r\n\r\n", b"") + b"\r\n\r\n"
        result(HeadParser(ServerLimits()), junk)
        result(HeadParser(ServerLimits()), b"GET / HTTP/1.1\r\nHost: a\r\n" + junk)


class ByLlhttp(HeadParser):
    """Gives every head to llhttp."""

    def _usual(self, head: bytes) -> bool:
        return False


class TestUsualHeads:
    """A usual head is read by a table of lines. Whatever that reads, llhttp would have read the same."""

    @staticmethod
    def story(parser: HeadParser, raw: bytes) -> object:
        try:
            parser.parse(raw)
        except ClientError as error:
            return type(error)
        return [
            getattr(parser, name)
            for name in (
                "method", "target", "headers", "host", "http11", "keep_alive",
                "content_length", "chunked", "expects_continue", "upgrade",
            )
        ]  # fmt: skip

    def agree(self, raw: bytes, limits: ServerLimits | None = None) -> None:
        limits = limits or ServerLimits()
        told = self.story(ByLlhttp(limits), raw)
        parser = HeadParser(limits)
        assert self.story(parser, raw) == told
        # The second time every line is known; and nothing of the first is left.
        assert self.story(parser, head()) == self.story(ByLlhttp(limits), head())
        assert self.story(parser, raw) == told

    @pytest.mark.parametrize("line", [
        b"GET / HTTP/1.1", b"GET /a?b=c HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET /\xe9 HTTP/1.1", b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ", b"GET /\x7f HTTP/1.1", b"GET /a\tb HTTP/1.1", b"GET http://a/ HTTP/1.1", b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1", b"GET a HTTP/1.1", b"get / HTTP/1.1", b"QUERY / HTTP/1.1", b"CONNECT a:80 HTTP/1.1",
        b"GET / HTTP/1.0", b"GET / HTTP/2.0", b"GET / http/1.1", b"GET /", b"POST / HTTP/1.1", b"TRACE / HTTP/1.1",
        b'GET /"<>\\^`{|} HTTP/1.1', b"GET /a\x00 HTTP/1.1",
    ])  # fmt: skip
    def test_request_lines(self, line: bytes) -> None:
        self.agree(head(line))

    @pytest.mark.parametrize("field", [
        b"X: y", b"X:y", b"X:  y", b"X: y ", b"X: ", b"X:", b"X : y", b": y", b"X", b"X: a\x00b", b"X: a\rb",
        b"X: a\nb", b"X: a\x7fb", b"X: \xe9", b"X: a\tb", b" X: y", b"X\xe9: y", b"Host: other", b"host: example.test",
        b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: +5", b"Content-Length: 5, 5",
        b"Content-Length: 55555555555555555555", b"Content-Length: 5\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Connection: close", b"Connection: keep-alive",
        b"Connection: X, close", b"Connection: ,", b"Connection: upgrade\r\nUpgrade: websocket", b"Upgrade: h2c",
        b"Proxy-Connection: close", b"Expect: 100-continue", b"Expect: 100-continue\r\nContent-Length: 5",
        b"Expect: other", b"X-A_B: 1",
    ])  # fmt: skip
    @pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /x HTTP/1.1", b"GET / HTTP/1.0"])
    def test_fields(self, field: bytes, line: bytes) -> None:
        self.agree(head(line, field))
        self.agree(head(line, field, host=None))
        self.agree(head(line, b"A: b", *field.split(b"\r\n"), b"C: d"))

    @pytest.mark.parametrize("limits", [
        ServerLimits(request_line=20), ServerLimits(request_line=21), ServerLimits(header=30), ServerLimits(header=31),
        ServerLimits(headers=1), ServerLimits(headers=2), ServerLimits(body=4), ServerLimits(body=5),
    ])  # fmt: skip
    def test_limits(self, limits: ServerLimits) -> None:
        for length in range(1, 14):
            self.agree(head(b"GET /%b HTTP/1.1" % (b"x" * length)), limits)
            self.agree(head(b"GET / HTTP/1.1", b"X: %b" % (b"y" * length)), limits)
        self.agree(head(b"POST / HTTP/1.1", b"Content-Length: 5", host=HOST), limits)

    @given(
        st.sampled_from([b"GET / HTTP/1.1", b"POST /a HTTP/1.1"]),
        st.lists(
            st.one_of(
                st.binary(max_size=12).filter(lambda line: b"\r\n" not in line and line),
                st.sampled_from([b"X: y", b"Content-Length: 3", b"Connection: close", b"a:b", b"Expect: 100-continue"]),
                st.tuples(
                    st.sampled_from([b"X", b"Host", b"Content-Length", b"Connection", b"Transfer-Encoding"]),
                    st.binary(max_size=6).filter(lambda value: b"\n" not in value),
                ).map(b": ".join),
            ),
            max_size=5,
        ),
    )
    def test_anything(self, line: bytes, fields: list[bytes]) -> None:
        self.agree(head(line, *fields))

    def test_the_table_stays_small(self) -> None:
        parser = HeadParser(ServerLimits())
        for number in range(5000):
            parser.parse(head(b"GET / HTTP/1.1", b"X: %d" % number))
        assert len(parser._lines.table) <= 4096
        long = b"X: " + b"y" * 1000
        parser.parse(head(b"GET / HTTP/1.1", long))
        assert long not in parser._lines.table


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer abc", b"authorization: Basic YTpi", b"Proxy-Authorization: Basic YTpi",
        b"Cookie: sid=1", b"COOKIE: sid=1", b"X-Api-Key: abc", b"X-Auth-Token: abc",
    ],
)  # fmt: skip
def test_credentials_are_not_remembered(line: bytes) -> None:
    """The table of field lines is shared by all connections and outlives them."""
    made = HeadParser(ServerLimits())
    for _ in range(2):
        made.parse(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n" + line + b"\r\n\r\n")
        assert (line.partition(b": ")[0], line.partition(b": ")[2]) in made.headers
    assert b"Accept: */*" in made._lines.table
    assert line not in made._lines.table
