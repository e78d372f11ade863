"""Heads of answers: one Date, framing where the door says, nothing else touched."""

from __future__ import annotations

import re

import pytest

from gateway.server import writer

DATE = rb"Date: (?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"


def lines(raw: bytes) -> list[bytes]:
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


class TestHead:
    def test_headers_stay_as_they_are(self) -> None:
        headers = [(b"x-A", b"1"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"X-Empty", b""), (b"X", b"\xe9")]
        found = lines(writer.head(200, b"OK", writer.fields(headers), b"Content-Length: 5\r\n", writer.CLOSE))
        assert found[0] == b"HTTP/1.1 200 OK"
        assert found[1:6] == [b"x-A: 1", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Empty: ", b"X: \xe9"]
        assert re.fullmatch(DATE, found[6])
        assert found[7:] == [b"Content-Length: 5", b"Connection: close"]

    @pytest.mark.parametrize("name", [b"Date", b"date", b"DATE"])
    @pytest.mark.parametrize("first", [True, False])
    def test_the_date_it_came_with_is_the_only_one(self, name: bytes, first: bool) -> None:
        headers = [(name, b"then"), (b"X", b"y")] if first else [(b"X", b"y"), (name, b"then")]
        found = lines(writer.head(200, b"OK", writer.fields(headers), b"", b""))
        assert [line for line in found if line.lower().startswith(b"date:")] == [name + b": then"]

    @pytest.mark.parametrize("header", [(b"X-Date", b"1"), (b"X", b"Date: 1"), (b"X", b"date: 1")])
    def test_what_only_looks_like_one_is_none(self, header: tuple[bytes, bytes]) -> None:
        assert re.search(rb"\r\n" + DATE, writer.head(200, b"OK", writer.fields([header]), b"", b""))

    def test_without_headers(self) -> None:
        found = lines(writer.head(404, b"Not Found", b"", b"Content-Length: 0\r\n", b""))
        assert found[0] == b"HTTP/1.1 404 Not Found"
        assert re.fullmatch(DATE, found[1])
        assert found[2:] == [b"Content-Length: 0"]

    @pytest.mark.parametrize(("status", "reason"), [(299, b""), (599, b"Odd"), (999, b"\xe9")])
    def test_odd_statuses(self, status: int, reason: bytes) -> None:
        assert lines(writer.head(status, reason, b"", b"", b""))[0] == b"HTTP/1.1 %d %b" % (status, reason)

    def test_status_lines_are_kept_within_bounds(self) -> None:
        for number in range(2000):
            assert lines(writer.head(200, b"%d" % number, b"", b"", b""))[0] == b"HTTP/1.1 200 %d" % number
        assert len(writer._status_lines) <= writer._MOST_STATUS_LINES


def test_interim() -> None:
    assert writer.interim(103, [(b"Link", b"</a>"), (b"Link", b"</b>")]) == (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n"
    )
    assert writer.interim(199, []) == b"HTTP/1.1 199 \r\n\r\n"
