"""What etcd's JSON gateway says, as values: whole, split, joined, and wrong."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.registries import RegistryError
from gateway.registries.etcd_watch import MOST_HEAD, Body
from gateway.registries.etcd_wire import (
    Compacted,
    Event,
    Lines,
    Notice,
    Page,
    Refusal,
    notice,
    page,
    range_end,
    refused,
    token,
)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def result(**fields: Any) -> bytes:
    return json.dumps({"result": {"header": {"revision": "7"}, **fields}}).encode()


# -- keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"/svc/a/", b"/svc/a0"), (b"a", b"b"), (b"a\xff", b"b"), (b"a\xfe", b"a\xff"), (b"\xff\xff", b"\0"), (b"", b"\0")],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert range_end(prefix) == end


@given(st.binary(max_size=6), st.binary(max_size=9))
def test_a_key_is_in_the_range_exactly_when_it_has_the_prefix(prefix: bytes, key: bytes) -> None:
    end = range_end(prefix)
    assert (prefix <= key and (end == b"\0" or key < end)) == key.startswith(prefix)


# -- a range ----------------------------------------------------------------------------


def test_a_page() -> None:
    body = {
        "header": {"cluster_id": "14841639068965178418", "revision": "9223372036854775807"},
        "kvs": [{"key": b64("/a"), "value": b64("x"), "mod_revision": "3"}, {"key": b64("/b"), "mod_revision": "4"}],
        "more": True,
        "count": "5",
    }
    assert page(json.dumps(body).encode()) == Page(
        ((b"/a", b"x"), (b"/b", b"")), 9223372036854775807, "14841639068965178418", True
    )


def test_an_empty_page() -> None:
    assert page(b'{"header":{"cluster_id":"1","revision":"2"}}') == Page((), 2, "1", False)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"null", b"{}", b'{"header":{}}', b'{"header":{"revision":"2"}}',
        b'{"header":{"cluster_id":"1","revision":"x"}}', b'{"header":{"cluster_id":"1","revision":1e999}}', b'{"header":[]}', b"[" * 100_000, b'{"a":"\xff"}',
        b'{"header":{"cluster_id":"1","revision":"2"},"kvs":7}',
        b'{"header":{"cluster_id":"1","revision":"2"},"kvs":[{}]}',
        b'{"header":{"cluster_id":"1","revision":"2"},"kvs":[{"key":"***"}]}',
        b'{"header":{"cluster_id":"1","revision":"2"},"kvs":[{"key":5}]}',
    ],
)  # fmt: skip
def test_what_is_no_page(body: bytes) -> None:
    with pytest.raises(RegistryError, match="not "):
        page(body)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["header", "revision", "cluster_id", "kvs", "key", "value", "result", "events", "kv", "type", "error", "canceled", "compact_revision", "message"]), inner, max_size=5)))
def test_any_json_is_an_answer_or_an_error(told: Any) -> None:
    body = json.dumps(told).encode()
    for read in (page, notice, token):
        try:
            read(body)
        except RegistryError:
            pass
    assert isinstance(refused(500, body), RegistryError)


# -- refusals ---------------------------------------------------------------------------


def error(code: int, message: str) -> bytes:
    return json.dumps({"error": message, "message": message, "code": code}).encode()


@pytest.mark.parametrize(
    ("code", "message", "login_lost"),
    [
        (16, "etcdserver: invalid auth token", True),
        (3, "etcdserver: user name is empty", True),
        (3, "etcdserver: revision of auth store is old", True),
        (3, "etcdserver: authentication failed, invalid user ID or password", False),
        (7, "etcdserver: permission denied", False),
        (11, "etcdserver: mvcc: required revision has been compacted", False),
    ],
)
def test_what_all_members_would_say(code: int, message: str, login_lost: bool) -> None:
    found = refused(400, error(code, message))
    assert isinstance(found, Refusal)
    assert (str(found), found.code, found.login_lost) == (message, code, login_lost)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (503, error(14, "etcdserver: request timed out"), "HTTP 503: etcdserver: request timed out"),
        (500, error(2, "etcdserver: no leader"), "HTTP 500: etcdserver: no leader"),
        (404, b"404 page not found\n", "HTTP 404: 404 page not found "),
        (502, b"<html>\r\nbad", "HTTP 502: <html>  bad"),
        (500, b'{"code": null}', 'HTTP 500: {"code": null}'),
        (500, b'{"code": 1e999}', 'HTTP 500: {"code": 1e999}'),
        (302, b"", "HTTP 302: "),
    ],
)
def test_what_another_member_may_know_better(status: int, body: bytes, told: str) -> None:
    found = refused(status, body)
    assert not isinstance(found, Refusal)
    assert str(found) == told


def test_an_error_is_one_short_line() -> None:
    assert len(str(refused(500, b"x\n" * 10_000))) < 250
    assert "\n" not in str(refused(500, error(7, "a\nb\x1b[2J")))


def test_a_token() -> None:
    assert token(b'{"header":{},"token":"abc.7"}') == "abc.7"


@pytest.mark.parametrize("body", [b'{"token":"a\\r\\nX: secret"}', b'{"secret":1}', b'"secret"', b"secret", b'{"token":5}', b'{"token":"\\u00e9"}'])
def test_an_answer_to_a_login_is_not_quoted(body: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        token(body)
    assert "secret" not in str(caught.value)


# -- a watch ----------------------------------------------------------------------------


def test_notices() -> None:
    assert notice(result(created=True)) == Notice(created=True)
    assert notice(result()) == Notice()  # a sign of progress
    assert notice(
        result(
            fragment=True,
            events=[
                {"kv": {"key": b64("/a"), "value": b64("x"), "mod_revision": "8"}},
                {"kv": {"key": b64("/b"), "mod_revision": "8"}},
                {"type": "DELETE", "kv": {"key": b64("/c"), "mod_revision": "9"}},
            ],
        )
    ) == Notice((Event(b"/a", b"x", 8), Event(b"/b", b"", 8), Event(b"/c", None, 9)), part=True)


def test_a_compaction_ends_it() -> None:
    with pytest.raises(Compacted, match="compacted \\(up to 5\\)"):
        notice(result(canceled=True, compact_revision="5"))


@pytest.mark.parametrize(
    ("reason", "login_lost"),
    [
        ("rpc error: code = InvalidArgument desc = etcdserver: user name is empty", True),
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", True),
        ("etcdserver: watch ID already exists", False),
        ("", False),
    ],
)
def test_so_does_a_cancellation(reason: str, login_lost: bool) -> None:
    with pytest.raises(Refusal) as caught:
        notice(result(created=True, canceled=True, cancel_reason=reason))
    assert caught.value.login_lost is login_lost
    assert not isinstance(caught.value, Compacted)


@pytest.mark.parametrize(
    "line",
    [
        b'{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}',
        b'{"error":"x"}', b"{}", b'{"result":null}', b'{"result":{"events":[{}]}}', b'{"result":{"events":5}}',
        b'{"result":{"events":[{"kv":{"key":"YQ==","mod_revision":"x"}}]}}', b'{"result":{"cre', b"<html>",
    ],
)  # fmt: skip
def test_so_does_nonsense(line: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        notice(line)
    assert not isinstance(caught.value, Refusal)


# -- bytes ------------------------------------------------------------------------------


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(st.binary(min_size=1).filter(lambda line: b"\n" not in line and line.strip() != b"")), st.lists(st.integers(0)), st.booleans())
def test_lines_come_out_whole_however_they_are_cut(lines: list[bytes], at: list[int], ended: bool) -> None:
    data = b"".join(line + b"\n" for line in lines) + (b"" if ended else b"half")
    reader = Lines()
    assert [line for piece in cut(data, at) for line in reader.feed(piece)] == lines
    assert reader.partial is not ended


def test_empty_lines_are_none() -> None:
    assert Lines().feed(b"\n\r\n  \na\n\n") == [b"a"]


def test_a_line_has_an_end() -> None:
    reader = Lines(most=10)
    assert reader.feed(b"x" * 30 + b"\n" + b"y" * 10) == [b"x" * 30]
    with pytest.raises(RegistryError, match="more than 10 bytes"):
        reader.feed(b"y")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0), max_size=20), st.sampled_from(["chunked", "length", "end"]))
def test_a_body_comes_out_whole_however_it_is_cut(pieces: list[bytes], at: list[int], framing: str) -> None:
    whole = b"".join(pieces)
    if framing == "chunked":
        field, sent = b"Transfer-Encoding: chunked\r\n", b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    elif framing == "length":
        field, sent = b"Content-Length: %d\r\n" % len(whole), whole
    else:
        field, sent = b"Connection: close\r\n", whole
    body = Body()
    assert b"".join(body.feed(piece) for piece in cut(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n" + sent, at)) == whole
    assert body.started
    assert body.status == 200
    assert body.complete is (framing != "end")


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"\x15\x03\x01", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_not_http(data: bytes) -> None:
    with pytest.raises(RegistryError, match="not HTTP"):
        Body().feed(data)


def test_a_head_has_an_end() -> None:
    body = Body()
    line = b"A: %s\r\n" % (b"x" * 60)
    body.feed(b"HTTP/1.1 200 OK\r\n" + line * (MOST_HEAD // len(line) - 1))
    with pytest.raises(RegistryError, match="head"):
        body.feed(line * 2)
