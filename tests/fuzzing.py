"""Random and mutated bytes against both readers of the gateway: a client's requests, an upstream's answers.

Rule: no sockets. Each input is made from a seed and its number alone, so that one that fails can be had again.
What is asked of every input: a documented end, no traceback, no read after the end that goes on for ever, nothing
left behind; of what would be forwarded: that it is HTTP/1.1 by the letter; of a connection that is said to be fit
for another exchange: that the next one is read right.

python -m tests.fuzzing NUMBER [SEED]
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import gc
import logging
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from gateway import errors
from gateway.app import Gateway
from gateway.errors import BadResponse, GatewayError
from gateway.http.messages import Request, Response
from gateway.http.request_head import Head
from gateway.model import (
    AccessLogSettings,
    AnswerLimits,
    Config,
    Endpoint,
    Match,
    Route,
    ServerLimits,
    ServerSettings,
    StaticSource,
    Upstream,
)
from gateway.server.connection import Connection, Place, Shared
from gateway.server.parser import HeadParser
from gateway.testing import answer, chunked, framing, head, parse_head
from gateway.transport.answer import AnswerReader
from tests.exchanges import greenlets, open_files
from tests.unit.server.wire import Arrival, ScriptedStream, read_all

# So many inputs may take so long by the clock, waiting included; they take a hundredth of it.
_BATCH = 500
_BATCH_SECONDS = 30
# The CPU that one input may take, in seconds. A usual one takes a hundredth of a percent of it.
_INPUT_CPU_SECONDS = 0.1
# Reads that find the end. A reader that wants more goes round in circles.
_MOST_ENDS = 50

# -- inputs -----------------------------------------------------------------------------

_CHUNKED = b"Transfer-Encoding: chunked"


def _ask(line: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((line, b"Host: a.test", *lines)) + b"\r\n\r\n" + body


REQUESTS = (
    _ask(b"GET / HTTP/1.1"),
    _ask(b"GET /a%2Fb//c?x=%zz&y=1 HTTP/1.1", b"Accept: */*", b"Cookie: a=1", b"Cookie: b=2", b"X_Odd: 1"),
    _ask(b"HEAD /h HTTP/1.1", b"Connection: X-Own, keep-alive", b"X-Own: 1", b"TE: trailers"),
    _ask(b"GET http://b.test:81/abs?q HTTP/1.1", b"X-Forwarded-For: 1.2.3.4, [::1]:80", b"Via: 1.1 x"),
    _ask(b"OPTIONS * HTTP/1.1", b"Max-Forwards: 3"),
    _ask(b"GET /old HTTP/1.0", b"Connection: keep-alive"),
    _ask(b"POST /p HTTP/1.1", b"Content-Length: 11", body=b"hello world"),
    _ask(b"POST /p HTTP/1.1", b"Content-Length: 700", b"Expect: 100-continue", body=b"z" * 700),
    _ask(b"POST /c HTTP/1.1", _CHUNKED, body=chunked(b"hello", b"x" * 300, trailers=[b"Host: evil.test", b"T: 1"])),
    _ask(b"PUT /c HTTP/1.1", _CHUNKED, b"Trailer: T", body=b"5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n"),
    _ask(b"GET /ws HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA==", body=b"\x81\x01x"),
    _ask(b"POST /ws HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 3", body=b"abc"),
    _ask(b"PURGE /-/healthz HTTP/1.1", b"X-Request-Id: abc", b"Forwarded: for=1.2.3.4;proto=https"),
    b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n" + _ask(b"GET /x HTTP/1.1"),
    b"\r\n\r\nGET /blank HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
)

ANSWERS = (
    answer(b"hello"),
    answer(b"hello", b"Connection: close, X-Own", b"X-Own: 1", b"Keep-Alive: timeout=5"),
    answer(b"", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Date: now", status=404),
    head(200, _CHUNKED) + chunked(b"hel", b"lo" * 200, trailers=[b"Content-Length: 9", b"T: 1"]),
    head(200, _CHUNKED, b"Trailer: T") + b"5;a=\"b\"\r\nhello\r\n0\r\n\r\n",
    head(200) + b"until the end",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi",
    head(204),
    head(304, b"Content-Length: 5", b"ETag: x"),
    head(100) + head(103, b"Link: </a>") + answer(b"late"),
    head(101, b"Upgrade: websocket", b"Connection: Upgrade") + b"\x81\x01x",
    b"HTTP/1.1 200\r\nContent-Length : 2\r\n\r\nhi",
    head(999, b"Content-Length: 3", reason=b"Odd thing") + b"abc",
)

_TOKENS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b": ", b";", b",", b"#", b"?", b"%00", b"%2e%2e/", b"/../",
    b"0\r\n\r\n", b"5\r\n", b"fffffffffffffffff\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b" HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\x80", b"\xff", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip


def _mutated(rng: Random, raw: bytes, others: tuple[bytes, ...]) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randint(0, len(data))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = rng.choice(_TOKENS)
        elif kind == 2:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        elif kind == 4:
            other = rng.choice(others)
            data[at:] = other[rng.randint(0, len(other)) :]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            # Now and then as much as fits a head, which is where time that is not linear shows.
            most = 30_000 if rng.random() < 0.1 else 400
            data[at:at] = bytes((rng.choice(b"a0 \r\n:;,\t/.%\xff"),)) * rng.randint(1, most)
        else:
            end = min(at + rng.randint(1, 4), len(data))
            data[at:end] = rng.choice(_TOKENS)
    return bytes(data)


def made(rng: Random, kinds: tuple[bytes, ...]) -> bytes:
    """One input: mostly one to three messages, of which some were spoilt; else random bytes."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(0, 300))
    raw = b"".join(rng.choice(kinds) for _ in range(rng.choice((1, 1, 2, 3))))
    return raw if rng.random() < 0.15 else _mutated(rng, raw, kinds)


def cut(rng: Random, raw: bytes) -> list[bytes]:
    """The pieces in which it arrives."""
    kind = rng.randrange(4)
    if kind == 0 or len(raw) < 2:
        return [raw] if raw else []
    if kind == 1 and len(raw) < 400:
        return [raw[at : at + 1] for at in range(len(raw))]
    cuts = sorted(rng.sample(range(1, len(raw)), min(rng.randint(1, 6), len(raw) - 1)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


# -- what is watched ----------------------------------------------------------------------


class Hung(BaseException):
    """An input that has no end. Not an Exception: nobody on the way may take it for a fault of a request."""


class Tracebacks(logging.Handler):
    """Keeps what the gateway logs as its own fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


@dataclass
class Tally:
    """How inputs ended, and which were wrong: side, number and what was found."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    inputs: int = 0


@contextmanager
def _watched() -> Iterator[Tracebacks]:
    logs = Tracebacks()
    logger = logging.getLogger("gateway")
    logger.addHandler(logs)
    propagates, logger.propagate = logger.propagate, False

    def hung(*_: Any) -> None:
        raise Hung(f"{_BATCH} inputs took more than {_BATCH_SECONDS} s")

    def held(*_: Any) -> None:
        raise Hung(f"one input took more than {_INPUT_CPU_SECONDS} s of CPU")

    before = signal.signal(signal.SIGALRM, hung), signal.signal(signal.SIGPROF, held)
    try:
        yield logs
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGPROF, before[1])
        logger.removeHandler(logs)
        logger.propagate = propagates


def _each(side: str, seed: int, numbers: range, tally: Tally, one: Callable[[Random], str]) -> None:
    """Run `one` for each number; it says how it ended or raises what is wrong."""
    with _watched() as logs:
        for number in numbers:
            if (number - numbers.start) % _BATCH == 0:
                signal.setitimer(signal.ITIMER_REAL, _BATCH_SECONDS)
            try:
                signal.setitimer(signal.ITIMER_PROF, _INPUT_CPU_SECONDS)
                tally.ends[one(Random(f"{side}:{seed}:{number}"))] += 1
                signal.setitimer(signal.ITIMER_PROF, 0)
            except (Exception, Hung) as error:
                signal.setitimer(signal.ITIMER_PROF, 0)
                tally.wrong.append(f"{side} {seed} {number}: {type(error).__name__}: {error}")
            tally.inputs += 1
            if logs.told:
                tally.wrong.append(f"{side} {seed} {number}: logged {logs.told[0]}")
                logs.told.clear()
            if len(tally.wrong) > 20:
                return


# -- the client's side ----------------------------------------------------------------------


class _Client(ScriptedStream):
    """Counts the reads at the end, and lets no circle go on."""

    ends = 0

    def recv(self, size: int, timeout: float | None) -> bytes:
        waiting = self._arrivals
        if waiting and isinstance(waiting[0], bytes) and len(waiting[0]) > size:
            waiting[:1] = [waiting[0][:size], waiting[0][size:]]
        data = super().recv(size, timeout)
        if not data:
            self.ends += 1
            if self.ends > _MOST_ENDS:
                raise Hung(f"read {self.ends} times at the end")
        return data


class _Echo:
    """In place of an upstream's pool: reads the body, and answers with what it would have been sent."""

    def send(self, request: Request, head: Head, timeouts: Any, *_: Any) -> Response:
        self.check(head.data, request)
        body = read_all(request)
        if request.chunked is False and request.content_length is not None and len(body) != request.content_length:
            raise AssertionError(f"a body of {len(body)} instead of {request.content_length}")
        return Response(200, b"OK", [(b"X-Body", b"%d" % len(body))], data=head.data[:64].replace(b"\r\n", b"|"))

    @staticmethod
    def check(raw: bytes, request: Request) -> None:
        """The head is one whole head, by a reader of its own, and frames the body as the request does."""
        if raw.count(b"\r\n\r\n") != 1 or not raw.endswith(b"\r\n\r\n"):
            raise AssertionError(f"not one head: {raw!r}")
        line, fields = parse_head(raw)
        if line.count(b" ") != 2 or not line.endswith(b" HTTP/1.1"):
            raise AssertionError(f"request line {line!r}")
        is_chunked, length = framing(fields)
        if request.body is None:
            if is_chunked or length:
                raise AssertionError(f"framed without a body: {raw!r}")
        elif (is_chunked, length) != (request.chunked, request.content_length):
            raise AssertionError(f"framed otherwise than it came: {raw!r}")
        if sum(name.lower() == b"host" for name, _ in fields) != 1:
            raise AssertionError(f"not one Host: {raw!r}")


def _gateway(limits: ServerLimits) -> Gateway:
    config = Config(
        "v1",
        {"main": Upstream("main", StaticSource((Endpoint("http", "192.0.2.9", 80),)))},
        (
            Route("strip", "main", (Match(prefix="/p"),), strip_prefix=True),
            Route("main", "main", (Match(prefix="/"),)),
        ),
        server=ServerSettings(name="gw", limits=limits),
        access_log=AccessLogSettings(path=None),
    )
    made = Gateway(config)
    (candidate,) = made.store.current.groups["main"].candidates
    candidate.pool.send = _Echo().send
    return made


_TIGHT = ServerLimits(body=350, request_line=200, header=500, headers=12, chunk_extensions=16)
# 5xx are for an upstream that fails (this one never does) and for what is not supported.
_STATUSES = frozenset({b"100", b"200", b"204", b"400", b"404", b"408", b"413", b"414", b"417", b"421", b"431", b"501", b"505", b"508"})
_REASONS = frozenset(
    kind.reason
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, GatewayError) and kind is not GatewayError
)


class _Doors:
    """The gateway with wide and with narrow limits; each keeps one parser for all connections, as a worker does."""

    def __init__(self) -> None:
        self._shared = [self._make(limits) for limits in (ServerLimits(), _TIGHT)]
        self.finished: list[tuple[Response | None, str | None]] = []

    def _make(self, limits: ServerLimits) -> Shared:
        gateway = _gateway(limits)

        def finish(request: Request, response: Response | None, sent: int, error: GatewayError | None) -> None:
            self.finished.append((response, error.reason if error is not None else request.reason or None))
            Gateway.finish(gateway, request, response, sent, error)

        gateway.finish = finish  # type: ignore[method-assign]
        return Shared(gateway, None, gateway.server, HeadParser(limits), worn=lambda: None)  # type: ignore[arg-type]

    def one(self, rng: Random) -> str:
        """One connection with everything that arrives on it."""
        arrivals: list[Arrival] = list(cut(rng, made(rng, REQUESTS)))
        if rng.random() < 0.1:
            arrivals.append(rng.choice((TimeoutError("timed out"), ConnectionResetError("reset"))))
        stream = _Client(*arrivals)
        if rng.random() < 0.1:
            stream.breaks_after = rng.randint(0, 600)
        shared = rng.choice(self._shared)
        mode = rng.choice(("off", "off", "off", "auto"))
        self.finished.clear()
        Connection(shared, stream, Place("http", 8000, "127.0.0.1"), "192.0.2.1", 1, mode).run()  # type: ignore[arg-type]
        if not stream.closed or shared.connections:
            raise AssertionError("the connection was left open")
        for line in _status_lines(stream.sent):
            if line[9:12] not in _STATUSES:
                raise AssertionError(f"answered {line!r}")
        reasons = {reason for _, reason in self.finished if reason is not None}
        if not reasons <= _REASONS:
            raise AssertionError(f"ended with {reasons - _REASONS}")
        if not self.finished:
            return "requests: none"
        response, reason = self.finished[-1]
        return f"requests: {reason or (response.status if response is not None else None)}"


def _status_lines(sent: bytes) -> list[bytes]:
    """The answers' first lines, found by reading them one after another; the last may be cut off."""
    found = []
    while sent:
        raw, end, sent = sent.partition(b"\r\n\r\n")
        line, _, _ = raw.partition(b"\r\n")
        found.append(line)
        if not line.startswith(b"HTTP/1.1 ") and not b"HTTP/1.1 ".startswith(line[:9]):
            raise AssertionError(f"no status line: {line!r}")
        if not end:
            break
        _, fields = parse_head(raw + end)
        is_chunked, length = framing(fields)
        if is_chunked:
            raise AssertionError("no answer of these is chunked")
        # Answers to HEAD tell a length and have no body: then the next status line is here already.
        if length and not sent.startswith(b"HTTP/1.1 "):
            sent = sent[length:]
    return found


# -- the upstream's side ----------------------------------------------------------------------


class _Server:
    """An upstream's stream: pieces, then the end (or what goes wrong instead)."""

    def __init__(self, pieces: list[bytes], fails: OSError | None) -> None:
        self.pieces = pieces
        self._fails = fails
        self.ends = 0

    def recv(self, size: int, timeout: float | None) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        self.ends += 1
        if self.ends > _MOST_ENDS:
            raise Hung(f"read {self.ends} times at the end")
        if self._fails is not None:
            raise self._fails
        return b""


_NARROW = AnswerLimits(header=300, headers=6)
_NEXT = answer(b"next")


def _answer(rng: Random) -> str:
    """One connection's answers, until it is unfit for more."""
    fails = rng.choice((None, None, None, TimeoutError("timed out"), ConnectionResetError("reset")))
    stream = _Server(cut(rng, made(rng, ANSWERS)), fails)
    reader = AnswerReader(stream)  # type: ignore[arg-type]
    limits = rng.choice((AnswerLimits(), _NARROW))
    while True:
        is_head = rng.random() < 0.15
        surplus = not is_head and len(stream.pieces) == 1 and _has_surplus(stream.pieces[0])
        reader.begin(limits)
        try:
            judged = reader.read_head(is_head, lambda status, headers: None, b"1.1 gw")
            _check_answer(reader, Response(200, b"", judged.headers, block=judged.block).headers)
            while reader.upgraded is None and reader.read_body(None):
                pass
        except BadResponse:
            return "answers: bad_response"
        except EOFError:
            return "answers: cut off"
        except OSError as error:
            return f"answers: {type(error).__name__}"
        if reader.upgraded is not None:
            return "answers: 101"
        if not reader.complete:
            raise AssertionError("an end that is none")
        if not reader.persistent:
            return "answers: whole, then closed"
        if surplus:
            raise AssertionError("kept though more came than the answer told")
        if stream.ends:
            raise AssertionError("kept after its end")
        if not stream.pieces:
            return _another(reader, stream)
        # What is there already would have been noticed; here it is the next answer.


def _has_surplus(data: bytes) -> bool:
    """Whether a plain answer, framed by its one length, is followed by what nobody asked for."""
    raw, _, rest = data.partition(b"\r\n\r\n")
    lengths = re.findall(rb"(?i)\r\ncontent-length: (\d{1,9})(?=\r\n|\Z)", raw)
    plain = re.match(rb"HTTP/1\.1 (?!204|304)2\d\d ", raw)
    if not plain or len(lengths) != 1 or raw.lower().count(b"content-length") != 1:
        return False
    return b"transfer" not in raw.lower() and len(rest) > int(lengths[0])


def _check_answer(reader: AnswerReader, headers: list[tuple[bytes, bytes]]) -> None:
    if not 100 <= reader.status <= 999:
        raise AssertionError(f"status {reader.status}")
    for name, value in (*headers, (b"reason", reader.reason)):
        if not name or any(byte in b"\r\n\0" for byte in name + value):
            raise AssertionError(f"passed on {name!r}: {value!r}")


def _another(reader: AnswerReader, stream: _Server) -> str:
    """The connection is said to be fit: then the next answer is read as it is."""
    stream.pieces = [_NEXT]
    reader.begin(AnswerLimits())
    reader.read_head(False, None, b"")
    body = b""
    while piece := reader.read_body(None):
        body += piece
    if (reader.status, body, reader.persistent) != (200, b"next", True):
        raise AssertionError(f"the next answer was read as {reader.status} {body!r}")
    return "answers: whole, and another"


# -- a run --------------------------------------------------------------------------------------


def _alive(*kinds: type) -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) in kinds)


def left_behind(before: tuple[int, int, int]) -> list[str]:
    now = holdings()
    names = ("greenlets", "descriptors", "objects of exchanges")
    return [f"{name}: {was} before, {is_now} after" for name, was, is_now in zip(names, before, now, strict=True) if is_now > was]


def holdings() -> tuple[int, int, int]:
    """Live greenlets, open descriptors, and objects that end with their exchange."""
    return greenlets(), open_files(), _alive(Connection, Request, Response, AnswerReader)


def fuzz(seed: int, number: int, tell: Callable[[Tally], None] | None = None) -> Tally:
    """`number` inputs, half of them for each side. Goes on after a wrong one, up to twenty."""
    tally = Tally()
    doors = _Doors()
    step = 20_000
    _each("requests", seed, range(-200, 0), Tally(), doors.one)
    _each("answers", seed, range(-200, 0), Tally(), _answer)
    before = holdings()
    for start in range(0, number // 2, step):
        numbers = range(start, min(start + step, number // 2))
        _each("requests", seed, numbers, tally, doors.one)
        _each("answers", seed, numbers, tally, _answer)
        if tell is not None:
            tell(tally)
        if len(tally.wrong) > 20:
            break
    doors.finished.clear()
    tally.wrong += left_behind(before)
    return tally


def main(number: int, seed: int) -> int:
    began = time.monotonic()

    def tell(tally: Tally) -> None:
        print(f"{tally.inputs} inputs, {time.monotonic() - began:.0f} s, {len(tally.wrong)} wrong", flush=True)

    tally = fuzz(seed, number, tell)
    for end, times in sorted(tally.ends.items()):
        print(f"{times:>9}  {end}")
    for wrong in tally.wrong:
        print(wrong)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
