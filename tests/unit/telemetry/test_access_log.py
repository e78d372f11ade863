"""What a line of the access log says, what it hides, and what `record` keeps."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import pytest
from gevent import monkey
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ClientClosed, ConnectRefused
from gateway.http.messages import Headers, Request
from gateway.model import AccessLogSettings, Endpoint, Route, StaticSource, Upstream
from gateway.runtime import background
from gateway.telemetry import access_log
from gateway.telemetry.access_log import QUEUE, QUEUE_BYTES, AccessLog, trace_id
from gateway.telemetry.log_file import LogFile
from gateway.telemetry.redact import masking, masking_causes

FIELDS = [
    "time",
    "request_id",
    "trace_id",
    "client",
    "method",
    "host",
    "target",
    "route",
    "upstream",
    "endpoint",
    "status",
    "reason",
    "cause",
    "bytes_in",
    "bytes_out",
    "duration_ms",
    "queue_ms",
    "connect_ms",
    "first_byte_ms",
    "attempts",
    "reused",
    "worker",
    "config_version",
]

ENDPOINT = Endpoint("http", "2001:db8::9", 8080)
UPSTREAM = Upstream("users-up", StaticSource((ENDPOINT,)))
ROUTE = Route("users", "users-up")
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = b"00-" + TRACE + b"-00f067aa0ba902b7-01"

mask = masking(AccessLogSettings().redact)
mask_cause = masking_causes(AccessLogSettings().redact)


def asked(target: bytes = b"/user/1", method: bytes = b"GET", headers: Headers | None = None) -> Request:
    return Request(method, target, headers or [], started=0.0)


def forwarded() -> Request:
    request = asked(b"/user/1?page=2", b"POST")
    request.host = b"api.example.com:8000"
    request.client = "203.0.113.9"
    request.request_id = b"0123-abc"
    request.trace_id = TRACE.decode()
    request.route, request.upstream, request.endpoint = ROUTE, UPSTREAM, ENDPOINT
    request.attempts, request.reused = 2, True
    request.bytes_in = 17
    request.queue_s, request.connect_s, request.first_byte_s = 0.0005, 0.00125, 1.5
    return request


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Record requests in a log of their own; its lines, read back."""

    def write(*requests: Request, settings: AccessLogSettings | None = None, **options: Any) -> list[dict[str, Any]]:
        path = tmp_path / "access.log"
        path.unlink(missing_ok=True)
        chosen = AccessLogSettings(str(path), redact=(settings or AccessLogSettings()).redact)
        log = AccessLog(chosen, options.pop("worker", 3), **options)
        log.start()
        for request in requests:
            log.record(request, 200, 1234, 0.0254, "0a1b2c3d4e5f")
        log.stop()
        assert (log.dropped, log.lost) == (0, 0)
        text = path.read_bytes().decode("ascii")
        assert text.endswith("\n") or not requests
        return [json.loads(line) for line in text.splitlines()]

    return write


# -- the line ---------------------------------------------------------------------------


def test_a_forwarded_request(written: Callable[..., list[dict[str, Any]]]) -> None:
    (line,) = written(forwarded(), clock=lambda: 1795372680.0625)
    assert list(line) == FIELDS
    assert line == {
        "time": "2026-11-22T18:38:00.062Z",
        "request_id": "0123-abc",
        "trace_id": TRACE.decode(),
        "client": "203.0.113.9",
        "method": "POST",
        "host": "api.example.com:8000",
        "target": "/user/1?page=2",
        "route": "users",
        "upstream": "users-up",
        "endpoint": "[2001:db8::9]:8080",
        "status": 200,
        "reason": None,
        "cause": None,
        "bytes_in": 17,
        "bytes_out": 1234,
        "duration_ms": 25.4,
        "queue_ms": 0.5,
        "connect_ms": 1.25,
        "first_byte_ms": 1500,
        "attempts": 2,
        "reused": True,
        "worker": 3,
        "config_version": "0a1b2c3d4e5f",
    }


def test_what_is_not_known_is_null_or_0(written: Callable[..., list[dict[str, Any]]]) -> None:
    (line,) = written(asked(b"", b""))
    assert list(line) == FIELDS
    texts = ("request_id", "trace_id", "client", "method", "host", "target", "route", "upstream", "endpoint")
    assert [line[name] for name in (*texts, "reason", "cause")] == [None] * 11
    numbers = ("bytes_in", "queue_ms", "connect_ms", "first_byte_ms", "attempts")
    assert [line[name] for name in numbers] == [0] * 5
    assert line["reused"] is False


def test_an_error_tells_its_whole_story(written: Callable[..., list[dict[str, Any]]]) -> None:
    request = forwarded()
    request.fail(ConnectRefused('10.0.0.9:8080: connect: "refused" (errno 111) after 0.4 ms\n'))
    request.fail(ClientClosed("reset"))
    (line,) = written(request)
    assert line["reason"] == "client_closed"
    assert line["cause"] == '10.0.0.9:8080: connect: "refused" (errno 111) after 0.4 ms\n; then reset'


@pytest.mark.parametrize(
    ("clock", "time"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (951782399.9996, "2000-02-28T23:59:59.999Z"),
        (1795372680.0, "2026-11-22T18:38:00.000Z"),
        (4102444800.5, "2100-01-01T00:00:00.500Z"),
    ],
)
def test_time_is_utc_with_milliseconds(written: Callable[..., list[dict[str, Any]]], clock: float, time: str) -> None:
    assert [line["time"] for line in written(asked(), asked(), clock=lambda: clock)] == [time, time]


def test_time_goes_on(written: Callable[..., list[dict[str, Any]]]) -> None:
    ticks = iter([10.5, 10.75, 11.0, 9.25])
    times = [line["time"][17:] for line in written(*[asked()] * 4, clock=lambda: next(ticks))]
    assert times == ["10.500Z", "10.750Z", "11.000Z", "09.250Z"]


@pytest.mark.parametrize("worker", [0, 7, "worker-1", 'a"b\n'])
def test_the_worker_is_a_number_or_a_name(written: Callable[..., list[dict[str, Any]]], worker: int | str) -> None:
    assert written(asked(), worker=worker)[0]["worker"] == worker


def test_places_are_kept_apart(written: Callable[..., list[dict[str, Any]]]) -> None:
    requests = [forwarded() for _ in range(4)]
    requests[1].endpoint = Endpoint("http", "10.0.0.2", 81)
    requests[2].endpoint = None
    requests[3].route = Route('odd "name"', "users-up")
    places = [(line["route"], line["upstream"], line["endpoint"]) for line in written(*requests, *requests)]
    assert places[:4] == places[4:]
    assert places[:4] == [
        ("users", "users-up", "[2001:db8::9]:8080"),
        ("users", "users-up", "10.0.0.2:81"),
        ("users", "users-up", None),
        ('odd "name"', "users-up", "[2001:db8::9]:8080"),
    ]


def test_routes_of_versions_that_are_over_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    routes = [Route(f"route {number}", "users-up") for number in range(10)]
    for number in (*range(10), 8):
        request = forwarded()
        request.route = routes[number]
        log.record(request, 200, 0, 0.1, f"v{number}")
        del request
    log.start()
    log.stop()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["route"], line["config_version"]) for line in lines] == [
        (f"route {number}", f"v{number}") for number in (*range(10), 8)
    ]
    held = [sys.getrefcount(route) for route in routes]
    assert held == [held[0]] * 6 + [held[0] + 1] * 4


def test_a_line_is_what_was_known_when_the_request_ended(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    request = forwarded()
    log.record(request, 502, 0, 0.1, "v1")
    request.route, request.bytes_in, request.cause = None, 99, "later"
    log.start()
    log.stop()
    line = json.loads(path.read_text())
    assert (line["route"], line["bytes_in"], line["cause"]) == ("users", 17, None)


def test_lines_keep_their_order(written: Callable[..., list[dict[str, Any]]]) -> None:
    lines = written(*[asked(b"/%d" % n) for n in range(5_000)])
    assert [line["target"] for line in lines] == [f"/{n}" for n in range(5_000)]


@pytest.mark.parametrize(
    "evil",
    [b'"', b"\\", b"\r\n", b"\x00\x1b[31m\x7f", b"\xff\xfe", b"\xe2\x80\xa8", b'","status":200,"x":"', b"</script>"],
)
def test_bytes_from_outside_never_leave_their_field(written: Callable[..., list[dict[str, Any]]], evil: bytes) -> None:
    request = asked(b"/" + evil + b"?q=" + evil, evil)
    request.host, request.request_id = evil, evil
    request.client, request.cause = evil.decode("latin-1"), evil.decode("latin-1")
    (line,) = written(request)
    assert list(line) == FIELDS
    text = evil.decode("latin-1")
    assert [line[name] for name in ("method", "host", "request_id", "client", "cause")] == [text] * 5
    assert line["target"] == f"/{text}?q={text}"


def test_a_secret_is_masked_wherever_a_refused_request_has_it(written: Callable[..., list[dict[str, Any]]]) -> None:
    request = asked(b"/", b"TOKEN=S3CR3T")
    request.host = b"a?token=S3CR3T"
    (line,) = written(request)
    assert "S3CR3T" not in json.dumps(line)
    assert line["method"].startswith("TOKEN=")


# -- trace_id ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (TRACEPARENT, TRACE),
        (b"cc-" + TRACE + b"-00f067aa0ba902b7-01", TRACE),
        (b"cc-" + TRACE + b"-00f067aa0ba902b7-01-more", TRACE),
        (b"ff-" + TRACE + b"-00f067aa0ba902b7-01", b""),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", b""),
        (b"00-" + TRACE + b"-" + b"0" * 16 + b"-01", b""),
        (b"00-" + TRACE.upper() + b"-00f067aa0ba902b7-01", b""),
        (b"00-" + TRACE[:-1] + b"-00f067aa0ba902b7-01", b""),
        (b"00-" + TRACE + b"-00f067aa0ba902b7-01x", b""),
        (TRACE, b""),
        (b"", b""),
        (b"\xff" * 55, b""),
    ],
)
def test_the_trace_that_a_traceparent_names(value: bytes, found: bytes) -> None:
    assert trace_id(asked(headers=[(b"Host", b"a"), (b"TraceParent", value)])) == found.decode()


def test_a_request_that_was_not_forwarded_has_its_trace_too(written: Callable[..., list[dict[str, Any]]]) -> None:
    with_trace = asked(headers=[(b"Accept", b"*/*"), (b"traceparent", TRACEPARENT)])
    assert [line["trace_id"] for line in written(with_trace, asked())] == [TRACE.decode(), None]


# -- redaction --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/a?token=s3", "/a?token=***"),
        ("/a?x=1&token=s3&y=2", "/a?x=1&token=***&y=2"),
        ("/a?TOKEN=s3&Api_Key=s3", "/a?TOKEN=***&Api_Key=***"),
        ("/a?%74oken=s3", "/a?%74oken=***"),
        ("/a?%54%4f%4B%65n=s3", "/a?%54%4f%4B%65n=***"),
        ("/a?x-amz-signature=s3&X-Amz-Date=1", "/a?x-amz-signature=***&X-Amz-Date=1"),
        ("/a?X%2DAmz%2dSignature=s3", "/a?X%2DAmz%2dSignature=***"),
        ("/a?token=s3&token=s4", "/a?token=***&token=***"),
        ("/a?token=s3=s3==&y=2", "/a?token=***&y=2"),
        ("/a?token=", "/a?token=***"),
        # Both readings of a semicolon: it ends a parameter, or it belongs to the value.
        ("/a?x=1;token=s3&y=2", "/a?x=1;token=***&y=2"),
        ("/a?token=s3;s3&y=2", "/a?token=***&y=2"),
        ("/a?x=?token=s3", "/a?x=?token=***"),
        ("/a#access_token=s3&y=2", "/a#access_token=***&y=2"),
        ("/a?y=2#token=s3", "/a?y=2#token=***"),
        # Every form of a target.
        ("http://h.example/a?token=s3", "http://h.example/a?token=***"),
        ("http://h.example?token=s3", "http://h.example?token=***"),
        ("http://user:s3@h.example/a", "http://***@h.example/a"),
        ("http://s3@h.example:80/a?token=s3", "http://***@h.example:80/a?token=***"),
        # Parameters of a path's segments.
        ("/token=1;password=s3", "/token=1;password=***"),
        ("/a;token=s3?x=2", "/a;token=***?x=2"),
        ("/a;x=1;token=s3;y=2/b;sig=s3/c", "/a;x=1;token=***/b;sig=***/c"),
        ("/a%3btoken=s3/b%3Bx=1%3btoken%3Ds3;y=2/c?z=1", "/a%3btoken=***/b%3Bx=1%3btoken%3D***/c?z=1"),
        ("/a?x=1%3Btoken=s3&y=2", "/a?x=1%3Btoken=***&y=2"),
        # Names as frameworks read them.
        ("/a?token[]=s3&token%5B0%5D=s3&token[a]=s3", "/a?token[]=***&token%5B0%5D=***&token[a]=***"),
        ("/a?auth[token]=s3&auth.token=s3&a[b][password][]=s3", "/a?auth[token]=***&auth.token=***&a[b][password][]=***"),
        ("/a?access.token=s3&access+token=s3&access-token=s3", "/a?access.token=***&access+token=***&access-token=***"),
        ("/a?accessToken=s3&apikey=s3&+token=s3&token+=s3", "/a?accessToken=***&apikey=***&+token=***&token+=***"),
        ("/a?%2574oken=s3&token%3Ds3&token%3ds3=s3", "/a?%2574oken=***&token%3D***&token%3d***"),
        ("/a?client_secret=s3&id_token=s3&refresh_token=s3&jwt=s3", "/a?client_secret=***&id_token=***&refresh_token=***&jwt=***"),
        ("/a?sig=s3&secret=s3&pwd=s3&passwd=s3&key=s3", "/a?sig=***&secret=***&pwd=***&passwd=***&key=***"),
        ("/a?X-Amz-Security-Token=s3&X-Amz-Credential=s3", "/a?X-Amz-Security-Token=***&X-Amz-Credential=***"),
        # An authorization code is one beside `state`.
        ("/a?code=s3&state=1", "/a?code=***&state=1"),
        ("/a?state=1&x=2&code=s3", "/a?state=1&x=2&code=***"),
        ("/a?code=s3;state=1", "/a?code=***"),
        ("/a?code=1", "/a?code=1"),
        ("/a?zip.code=1&state=CA&zip_code=2&zipcode=3", "/a?zip.code=1&state=CA&zip_code=2&zipcode=3"),
        ("/a?sort[key]=1&keys=2&my_key=3", "/a?sort[key]=1&keys=2&my_key=3"),
        # Not a secret's name, not a query, not a value.
        ("/a?token", "/a?token"),
        ("/a?token&x=1", "/a?token&x=1"),
        ("/a?tokens=1&xtoken=2&token_=3", "/a?tokens=1&xtoken=2&token_=3"),
        ("/token=1;x=2", "/token=1;x=2"),
        ("/a&token=1", "/a&token=1"),
        ("/a?x=token=1", "/a?x=token=1"),
        ("/a%3Ftoken=1", "/a%3Ftoken=1"),
        ("/a?x=1%26token=2", "/a?x=1%26token=2"),
        ("/a?%zz=1&%=2&token%=3", "/a?%zz=1&%=2&token%=3"),
        ("/a?mail=me@h.example", "/a?mail=me@h.example"),
        ("http://h.example/a?mail=me@h.example", "http://h.example/a?mail=me@h.example"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_masking(target: str, shown: str) -> None:
    assert mask(target) == shown


def test_the_log_masks(written: Callable[..., list[dict[str, Any]]]) -> None:
    targets = [b"/a?token=s3", b"http://u:s3@h/a?Password=s3", b"/a#token=s3", b"/plain"]
    shown = [line["target"] for line in written(*map(asked, targets))]
    assert shown == ["/a?token=***", "http://***@h/a?Password=***", "/a#token=***", "/plain"]


def test_names_of_ones_own(written: Callable[..., list[dict[str, Any]]]) -> None:
    own = AccessLogSettings(redact=frozenset({"Pin Code", "a.b", "schlüssel"}))
    targets = ["/?pin+code=1&pin%20code=2&token=3", "/?a.b=1&axb=2", "/?schl%C3%BCssel=1", "/?SCHL%c3%9cSSEL=1"]
    shown = [line["target"] for line in written(*[asked(target.encode()) for target in targets], settings=own)]
    assert shown == [
        "/?pin+code=***&pin%20code=***&token=3",
        "/?a.b=***&axb=2",
        "/?schl%C3%BCssel=***",
        "/?SCHL%c3%9cSSEL=***",
    ]


def test_no_names_mask_nothing(written: Callable[..., list[dict[str, Any]]]) -> None:
    nothing = AccessLogSettings(redact=frozenset())
    assert written(asked(b"/?token=1&=2"), settings=nothing)[0]["target"] == "/?token=1&=2"


def spelt(name: str, choices: list[int]) -> str:
    """A name with each of its characters in one of four spellings."""
    ways = (str.lower, str.upper, lambda char: f"%{ord(char):02x}", lambda char: f"%{ord(char.upper()):02X}")
    return "".join(ways[choice](char) for char, choice in zip(name, choices, strict=False))


SECRET_NAMES = st.builds(
    spelt,
    st.sampled_from(sorted(AccessLogSettings().redact)),
    st.lists(st.integers(0, 3), min_size=20, max_size=20),
)
VALUES = st.text(max_size=12).map(lambda text: quote(text, safe="=?/;:@!$'()*+,"))


@given(
    st.sampled_from(["", "http://h.example", "http://u:p@h.example"]),
    st.lists(st.tuples(st.sampled_from("abcd"), VALUES), max_size=4),
    SECRET_NAMES,
    st.lists(st.tuples(st.sampled_from("abcd"), VALUES), max_size=4),
)
def test_a_secret_is_masked_wherever_it_stands(
    origin: str, before: list[tuple[str, str]], name: str, after: list[tuple[str, str]]
) -> None:
    parameters = [f"{key}={value}" for key, value in before] + [f"{name}=SECRET;SECRET"]
    target = f"{origin}/p?" + "&".join(parameters + [f"{key}={value}" for key, value in after])
    shown = mask(target)
    assert "SECRET" not in shown
    assert "u:p" not in shown
    if not any(";" in value or "?" in value for _, value in before + after):
        # And nothing else is.
        assert shown == target.replace("SECRET;SECRET", "***").replace("u:p@", "***@")


@given(st.binary(max_size=200))
def test_masking_takes_any_target_and_is_done_once(target: bytes) -> None:
    once = mask(target.decode("latin-1"))
    assert mask(once) == once


@pytest.mark.parametrize(("names", "shown"), [(500, "&token=***"), (501, "&***")])
def test_a_target_of_very_many_names_is_masked_from_there(names: int, shown: str) -> None:
    target = "/a?" + "&".join(["x=1"] * (names - 1)) + "&token=s3"
    assert mask(target).endswith(shown)
    assert "s3" not in mask(target)


@pytest.mark.parametrize(("length", "shown"), [(256, "1"), (257, "***")])
def test_a_very_long_name_is_taken_for_a_secrets(length: int, shown: str) -> None:
    assert mask(f"/a?{'x' * length}=1").endswith(f"x={shown}")


@pytest.mark.parametrize(
    "piece", ["?", "&", ";", "#", "=", "%", "%3D", "a=", "&a", "&%61=", "&a=1", "[", ".", "&[", "_", "%25", "//", "@", "'", "\\'", 'b"', ":"]
)
@pytest.mark.parametrize("masked", [mask, mask_cause], ids=["target", "cause"])
def test_masking_takes_time_by_length(piece: str, masked: Callable[[str], str]) -> None:
    """The steps of the interpreter, which no other load of the machine changes."""
    text = "/a?" + piece * 40_000
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        masked(text)
    finally:
        sys.setprofile(None)
    assert steps < 20_000


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ("request line b'GET /?token=s3 HTTP/1.x'", "request line b'GET /?token=***'"),
        ("request line b'GET /?a=b&token=s3 s3 HTTP/1.1'", "request line b'GET /?a=b&token=***'"),
        ("request line b'GET /?token=s3&x=1 2'", "request line b'GET /?token=***&x=1 2'"),
        ("request line b'GET /a;token=s3 x'", "request line b'GET /a;token=***'"),
        ("request line b'GET http://u:s3@h/ HTTP/1.x'", "request line b'GET http://***@h/ HTTP/1.x'"),
        ('request line b"GET /?x=\'&token=s3\' s3"', 'request line b"GET /?x=\'&token=***"'),
        ("method b'TOKEN=s3'", "method b'TOKEN=***'"),
        ("CONNECT to b'x?token=s3'", "CONNECT to b'x?token=***'"),
        ("b'u:s3@h;' is no host", "b'***@h;' is no host"),
        (f"b'http://u:{'s3' * 40}' is no request target", "b'http://***' is no request target"),
        (f"b'u:{'s3' * 39}' is no host", "b'***' is no host"),
        ("Host [b'a', b'u:s3@b']", "Host [b'a', b'***@b']"),
        ("connect 10.0.0.1:80 refused; then b'?sig=s3' x", "connect 10.0.0.1:80 refused; then b'?sig=***' x"),
        ("see https://u:s3@h/x?token=s3 and more", "see https://***@h/x?token=*** and more"),
        ("line b'?token=s3\\x00\\xff'", "line b'?token=***'"),
        # Nothing secret in it.
        ("request line b'GET /?x=1 HTTP/1.x'", "request line b'GET /?x=1 HTTP/1.x'"),
        ("connect 10.0.0.1:80: [Errno 111] Connection refused", "connect 10.0.0.1:80: [Errno 111] Connection refused"),
        ("it's 5 o'clock; zip_code=1", "it's 5 o'clock; zip_code=1"),
        ("", ""),
    ],
)
def test_causes_are_masked(cause: str, shown: str, written: Callable[..., list[dict[str, Any]]]) -> None:
    assert mask_cause(cause) == shown
    request = asked(b"/")
    request.reason, request.cause = "bad_request", cause
    assert written(request)[0]["cause"] == (shown or None)


@given(st.text(max_size=80), st.binary(max_size=80))
def test_masking_takes_any_cause(text: str, data: bytes) -> None:
    assert isinstance(mask_cause(f"{text}{data!r}{text!r}"), str)


# -- the queue --------------------------------------------------------------------------


def test_a_full_queue_drops_and_counts_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    for n in range(QUEUE + 5):
        log.record(asked(b"/%d" % n), 200, 0, 0.0, "v")
    assert log.dropped == 5
    log.start()
    with caplog.at_level(logging.WARNING, "gateway.access_log"):
        log.stop(timeout=60)
    lines = path.read_text().splitlines()
    assert len(lines) == QUEUE
    assert json.loads(lines[-1])["target"] == f"/{QUEUE - 1}"  # the oldest are kept
    assert [record.getMessage() for record in caplog.records if "dropped 5 records" in record.getMessage()]
    assert len(caplog.records) == 1


def test_the_queue_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(AccessLogSettings(str(path)), 1)
    large = asked(b"/" + b"x" * (2**20 - 1))
    large.host = b"h" * 2**20
    fit = QUEUE_BYTES // 2**21
    for _ in range(fit + 3):
        log.record(large, 200, 0, 0.0, "v")
    assert log.dropped == 3
    log.start()
    log.stop(timeout=60)
    assert len(path.read_text().splitlines()) == fit


def test_after_the_end_records_are_dropped_and_counted(tmp_path: Path) -> None:
    log = AccessLog(AccessLogSettings(str(tmp_path / "access.log")), 1)
    log.start()
    log.stop()
    log.record(asked(), 200, 0, 0.0, "v")
    assert log.dropped == 1
    log.stop()


def test_a_log_that_is_off_keeps_nothing() -> None:
    log = AccessLog(AccessLogSettings(None), 1)
    log.start()
    log.record(asked(), 200, 0, 0.0, "v")
    log.reopen()
    log.stop()
    assert (log.dropped, log.lost) == (0, 0)


def test_a_record_that_cannot_be_a_line_does_not_end_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    clock = iter([1.0, 1e300, 2.0])
    log = AccessLog(AccessLogSettings(str(path)), 1, clock=lambda: next(clock))
    log.record(asked(b"/1"), 200, 0, 0.0, "v")
    log.record(asked(b"/2"), 200, 0, 0.0, "v")
    log.start()
    log.stop()
    assert log.lost == 2
    assert re.search("could not be turned into lines", caplog.text)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="combined"):
        AccessLog(AccessLogSettings(format="combined"), 1)


# -- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(6))
def test_a_fault_wherever_the_log_waits_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Thrown in after so many turns of the hub, while lines are made, handed to the thread and written."""
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(access_log, "_TICK", 0.001)
    path = tmp_path / "access.log"
    real = LogFile.write

    def slow(self: LogFile, data: bytes, deadline: float | None) -> tuple[int, OSError | None]:
        monkey.get_original("time", "sleep")(0.02)
        return real(self, data, deadline)

    monkeypatch.setattr(LogFile, "write", slow)
    log = AccessLog(AccessLogSettings(str(path)), 1)
    log.start()
    task = log._greenlet
    assert task is not None
    gevent.sleep(0.005)
    for burst in range(3):
        for n in range(100):
            log.record(asked(b"/%d" % (burst * 100 + n)), 200, 0, 0.0, "v")
        for _ in range(number):
            gevent.sleep(0.004)
        task._greenlet.kill(RuntimeError("thrown in"), block=False)
        with gevent.Timeout(10):
            while task.restarts < burst + 1:
                gevent.sleep(0.001)
    log.stop()
    targets = [json.loads(line)["target"] for line in path.read_text().splitlines()]
    assert targets == [f"/{n}" for n in range(300)]
    assert (log.dropped, log.lost) == (0, 0)


def test_who_counts_and_fails_holds_up_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def observe(self, records: object) -> None:
            raise RuntimeError("cannot observe")

        def tick(self, dropped: int, lost: int) -> None:
            raise RuntimeError("cannot tick")

    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    path, tasks = tmp_path / "access.log", background.Background()
    log = AccessLog(AccessLogSettings(str(path)), 1, observer=Failing(), background=tasks)
    log.start()
    log.record(asked(b"/1"), 200, 0, 0.0, "v")
    with gevent.Timeout(10):
        while not path.read_text():
            gevent.sleep(0.001)
        listed = {task.name: task for task in tasks}
        while not listed["metrics"].restarts:
            gevent.sleep(0.001)
    assert listed["access log"].restarts == 0
    assert listed["access log"].last_error == "requests could not be counted: RuntimeError: cannot observe"
    assert listed["metrics"].last_error == "RuntimeError: cannot tick"
    log.record(asked(b"/2"), 200, 0, 0.0, "v")
    log.stop()
    assert path.read_text().count("\n") == 2
