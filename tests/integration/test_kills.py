"""Whatever ends a request at any of its waits leaves nothing behind (issue 10).

At each point where the request's greenlet (or one that works for it) waits, an error is thrown in: the client is gone,
the worker's time is over, the greenlet is killed, or there is a fault. Afterwards every counter is back, no greenlet
and no connection is left, one log record says what happened, no upstream took a part of a body for the whole, and the
next request is answered.
"""

from __future__ import annotations

import fcntl
import ssl
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from time import monotonic
from typing import Any

import pytest
import trustme

from gateway.http.messages import Request, Response
from gateway.testing import RawClient, RawResponse, Truncated, answer, chunk, head
from tests.switches import BESIDE, VICTIM, Aim, Scenario, Stage, readable, throw_everywhere

# Each line differs: a byte at the wrong place shows.
PIECES = [b"".join(b"%07d\n" % (100 * part + line) for line in range(100)) for part in range(4)]
BODY = b"".join(PIECES)
LARGE = b"".join(b"%07d\n" % line for line in range(64 * 1024))
# More than a connection's small buffers hold.
LAST_WORDS = LARGE[:60_000]
EJECT = b"/eject"
BUSY = b"busy\n"
LARGE_BUSY = b"busy\n" * 4000


def config(endpoints: int = 1, upstream: str = "", route: str = "", defaults: str = "") -> str:
    """A route to one upstream; braces of addresses stay for the stage to fill. Short uploads stream, unless `upstream`
    says otherwise."""
    listed = ", ".join(f"'{{{number}}}'" for number in range(endpoints))
    return (
        f"defaults: {{{{timeouts: {{{{connect: 3s, response: 3s, idle: 3s}}}}, eject: null, buffer: {{{{request: 0}}}}{defaults}}}}}\n"
        f"upstreams: {{{{u: {{{{endpoints: [{listed}]{upstream}}}}}}}}}\n"
        f"routes: [{{{{name: r, match: {{{{prefix: /}}}}, upstream: u{route}}}}}]\n"
    )


# -- clients ---------------------------------------------------------------------------


def get(stage: Stage) -> RawResponse:
    return stage.connect().request(b"GET /victim HTTP/1.1\r\nHost: a.test\r\n\r\n")


def put_head(*lines: bytes, target: bytes = VICTIM) -> bytes:
    return b"\r\n".join([b"PUT %b HTTP/1.1" % target, b"Host: a.test", *lines, b"", b""])


def put(stage: Stage) -> RawResponse:
    """A body by length, the next piece when the upstream has the last one."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)))
    sent = 0
    for piece in PIECES:
        client.send(piece)
        sent += len(piece)
        stage.until(lambda: stage.received() >= sent)  # noqa: B023
    return client.read_response(b"PUT")


def put_held(stage: Stage) -> RawResponse:
    """A body that no upstream hears of before it is complete."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)))
    for number, piece in enumerate(PIECES, 1):
        client.send(piece)
        stage.until(lambda: stage.gateway.buffers.held >= number * len(piece))  # noqa: B023
    return client.read_response(b"PUT")


def put_in_a_file(stage: Stage) -> RawResponse:
    """One for which there is a file; the second half when the file has some of the first."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(LARGE)) + LARGE[: len(LARGE) // 2])
    stage.until(lambda: stage.gateway.buffers.spooled > 0)
    client.send(LARGE[len(LARGE) // 2 :])
    return client.read_response(b"PUT")


def put_chunked(stage: Stage) -> RawResponse:
    client = stage.connect()
    client.send(put_head(b"Transfer-Encoding: chunked"))
    sent = 0
    for piece in PIECES:
        client.send(chunk(piece))
        sent += len(piece)
        stage.until(lambda: stage.received() >= sent)  # noqa: B023
    client.send(b"0\r\n\r\n")
    return client.read_response(b"PUT")


def put_expecting(stage: Stage) -> RawResponse:
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue"))
    if client.read_head().status != 100:
        raise ConnectionAbortedError("refused")
    for piece in PIECES:
        client.send(piece)
    return client.read_response(b"PUT")


def put_during_answer(stage: Stage, tries: int = 2) -> RawResponse:
    """The rest of the body when the answer has begun (or the last try has)."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)) + PIECES[0])
    stage.until(lambda: readable(client) or stage.tries >= tries)
    for piece in PIECES[1:]:
        client.send(piece)
    return client.read_response(b"PUT")


def put_on(stage: Stage) -> RawResponse:
    """Goes on with the body while the gateway turns from the first try to the second."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)) + PIECES[0])
    stage.until(lambda: stage.answered)
    sent = len(PIECES[0])
    for piece in PIECES[1:]:
        client.send(piece)
        sent += len(piece)
        stage.until(lambda: stage.received() >= sent or stage.tries > 1 or readable(client))  # noqa: B023
    return client.read_response(b"PUT")


# -- upstreams -------------------------------------------------------------------------


def echo(stage: Stage, exchange: Any) -> None:
    exchange.send(answer(exchange.read_body()))


def want_the_body(stage: Stage, exchange: Any) -> None:
    exchange.send(head(100))
    echo(stage, exchange)


def say(data: bytes) -> Callable[[Stage, Any], None]:
    def script(stage: Stage, exchange: Any) -> None:
        exchange.read_body()
        exchange.send(data)

    return script


def answer_early(stage: Stage, exchange: Any) -> None:
    """Answers while the body comes, and ends when it has all of it."""
    exchange.send(head(200, b"Transfer-Encoding: chunked") + chunk(b"begun "))
    exchange.send(chunk(exchange.read_body()) + b"0\r\n\r\n")


def busy_first(kind: str, times: int = 1) -> Callable[[Stage, Any], None]:
    """503 to so many first tries while the body still comes; the next one is answered."""

    def script(stage: Stage, exchange: Any) -> None:
        number = stage.tries
        if number > times:
            body = exchange.read_body()
            exchange.send(head(200, b"Content-Length: %d" % len(body)) + body[:100])
            # The rest when the client has that: the answer goes on for a while.
            stage.until(lambda: any(map(readable, stage.clients)))
            exchange.send(body[100:])
            return
        exchange.read_piece()
        if kind == "unfinished":
            exchange.send(head(503, b"Transfer-Encoding: chunked") + chunk(BUSY[:2]))
            # A gateway may want all of it before it tries again.
            stage.until(lambda: stage.tries > number, within=0.1)
            exchange.send(chunk(BUSY[2:]) + b"0\r\n\r\n")
        else:
            exchange.send(answer(BUSY if kind == "small" else LARGE_BUSY, status=503))
        # Whatever comes now is still of this request.
        exchange.read_body()

    return script


def close_first(stage: Stage, exchange: Any) -> None:
    """Not one byte of an answer to the first try, which has come whole."""
    exchange.read_body()
    if stage.tries == 1:
        exchange.wire.close()
    else:
        echo(stage, exchange)


def busy_while_it_reads(stage: Stage, exchange: Any) -> None:
    """503 to the first try, its end only when all of the body is there."""
    if stage.tries > 1:
        echo(stage, exchange)
        return
    exchange.read_piece()
    exchange.send(head(503, b"Transfer-Encoding: chunked") + chunk(BUSY[:2]))
    stage.answered = True
    exchange.read_body()
    exchange.send(chunk(BUSY[2:]) + b"0\r\n\r\n")


def reset_first(stage: Stage, exchange: Any) -> None:
    if stage.tries == 1:
        exchange.wire.reset()
    else:
        echo(stage, exchange)




def answer_without_body(stage: Stage, exchange: Any) -> None:
    """A whole answer while most of the body is still to come."""
    exchange.read_piece()
    exchange.send(answer(b"enough"))
    exchange.read_body()


def answer_at_length(stage: Stage, exchange: Any) -> None:
    """More than the client's and the gateway's sockets hold, while the body still comes."""
    exchange.read_piece()
    exchange.send(head(200, b"Content-Length: %d" % (len(LARGE) + len(BODY))) + LARGE)
    exchange.send(exchange.read_body())


def refuse_early(stage: Stage, exchange: Any) -> None:
    """Reads no more of the body."""
    exchange.read_piece()
    exchange.send(answer(b"enough", b"Connection: close", status=413))
    exchange.wire.close()


def say_in_chunks(stage: Stage, exchange: Any) -> None:
    """LARGE, its last byte when the gateway has taken the rest ahead of the client."""
    exchange.send(head(200, b"Transfer-Encoding: chunked") + chunk(LARGE[:-1]))
    stage.until(lambda: stage.gateway.buffers.counts["answer_held"] > 0)
    exchange.send(chunk(LARGE[-1:]) + b"0\r\n\r\n")


def early_hints(stage: Stage, exchange: Any) -> None:
    """More 103 than the client's and the gateway's sockets hold, then the answer."""
    for number in range(60):
        exchange.send(head(103, b"Link: <%b>" % (b"%07d" % number * 100)))
    exchange.send(answer(b"ok"))


def take_turns(stage: Stage, exchange: Any) -> None:
    """The request beside is answered when the other one waits in the gateway."""
    if exchange.request.target == BESIDE:
        stage.until(lambda: waits_in_line(stage))
    echo(stage, exchange)


def waits_in_line(stage: Stage) -> bool:
    return bool(stage.state().gate.queued or any(pool._waiting for pool in stage.pools))


def hang_up_on_eject(stage: Stage, exchange: Any) -> None:
    if exchange.request.target == EJECT:
        exchange.wire.reset()
    else:
        echo(stage, exchange)


def upgrade(stage: Stage, exchange: Any) -> None:
    """An echo until the other side ends."""
    exchange.send(head(101, b"Connection: Upgrade", b"Upgrade: websocket") + b"hello")
    while data := exchange.wire.read_some():
        exchange.send(data)
    exchange.wire.close()


def upgrade_then_reset(stage: Stage, exchange: Any) -> None:
    """Ends by a reset once the gateway has received everything."""
    exchange.send(head(101, b"Connection: Upgrade", b"Upgrade: websocket") + LAST_WORDS)
    sock = exchange.wire.sock
    stage.until(lambda: not any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))))
    exchange.wire.reset()
    stage.answered = True


def both_then(winner: int) -> Callable[[Stage, Any], None]:
    """Answers nothing until both tries are under way; then one of them is quick."""

    def script(stage: Stage, exchange: Any) -> None:
        mine = stage.tries
        stage.until(lambda: stage.tries > 1)
        if mine != winner:
            stage.until(lambda: stage.answered)
        exchange.send(head(200, b"Content-Length: 2") + b"o")
        stage.answered = True
        exchange.send(b"k")

    return script


# -- more clients ----------------------------------------------------------------------


def get_slowly(stage: Stage) -> RawResponse:
    """Reads nothing until the gateway can send no more."""
    client = stage.connect()
    client.send(b"GET /victim HTTP/1.1\r\nHost: a.test\r\n\r\n")
    stage.until(lambda: stage.held_up())
    return client.read_response()


def get_read_ahead(stage: Stage) -> RawResponse:
    """Reads nothing until the gateway reads ahead; then takes its time."""
    client = stage.connect()
    client.send(b"GET /victim HTTP/1.1\r\nHost: a.test\r\n\r\n")
    stage.until(lambda: stage.gateway.buffers.counts["answer_held"] > 0)
    return client.read_response()


def put_slowly(stage: Stage) -> RawResponse:
    """Reads nothing until the gateway can send no more; then sends the rest."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)) + PIECES[0])
    stage.until(lambda: stage.held_up())
    for piece in PIECES[1:]:
        client.send(piece)
    return client.read_response(b"PUT")


def get_beside(stage: Stage) -> RawResponse:
    """While another request has the only place."""
    beside = stage.connect()

    def first() -> None:
        got = beside.request(b"PUT /beside HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\nbeside")
        if (got.status, got.body) != (200, b"beside"):
            stage.problems.append(f"the request beside was answered {got.status} {got.body!r:.100}")

    stage.spawn(first)
    stage.until(lambda: stage.seen(BESIDE) > 0)
    return get(stage)


def get_before_another(stage: Stage) -> RawResponse:
    """It has the only place, and another request waits for that."""
    client = stage.connect()
    client.send(b"GET /victim HTTP/1.1\r\nHost: a.test\r\n\r\n")
    stage.until(lambda: stage.tries > 0)
    beside = stage.connect()

    def second() -> None:
        got = beside.request(b"GET /beside HTTP/1.1\r\nHost: a.test\r\n\r\n")
        if got.status != 200:
            stage.problems.append(f"the request beside was answered {got.status} {got.body!r:.100}")

    stage.spawn(second)
    return client.read_response()


def wait_for_the_other(stage: Stage, exchange: Any) -> None:
    if exchange.request.target == VICTIM:
        stage.until(lambda: waits_in_line(stage))
    exchange.send(answer(b"ok"))


def open_tunnel(stage: Stage) -> RawResponse:
    client = stage.connect()
    client.send(b"GET /victim HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    got = client.read_response()
    if got.status != 101:
        return got
    client.read_exactly(5)
    client.send(b"ping")
    client.read_exactly(4)
    client.half_close()
    client.read_to_end()
    return got


def take_the_tail(stage: Stage) -> RawResponse:
    """Sends a message to an upstream that is gone, and reads what that had sent before."""
    client = stage.connect()
    client.send(b"GET /victim HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    got = client.read_response()
    if got.status != 101:
        return got
    stage.until(lambda: stage.answered)
    client.send(b"message")
    if client.read_exactly(len(LAST_WORDS)) != LAST_WORDS:
        stage.problems.append("the tunnel delivered other bytes")
    client.read_to_end()
    return got


def put_then_get(stage: Stage) -> RawResponse:
    """The answer comes before the body's end; the rest follows, and another request behind it."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: %d" % len(BODY)) + PIECES[0])
    got = client.read_response(b"PUT")
    for piece in PIECES[1:]:
        client.send(piece)
    if not got.values(b"connection"):
        after = client.request(b"GET /plain HTTP/1.1\r\nHost: a.test\r\n\r\n")
        if after.status != 200:
            stage.problems.append(f"behind a drained body: {after.status}")
    return got


def put_beyond_the_answer(stage: Stage) -> RawResponse:
    """A long upload that is answered at once, and goes on for a while: the connection lingers."""
    client = stage.connect()
    client.send(put_head(b"Content-Length: 10000000") + PIECES[0])
    got = client.read_response(b"PUT")
    with suppress(OSError):
        for piece in PIECES:
            client.send(piece)
            stage.until(lambda: not stage.lingers() or stage.is_read(client))
    return got


def put_while_leaving(stage: Stage) -> RawResponse:
    stage.shared.closing = True
    return put(stage)


# -- what they need --------------------------------------------------------------------


@cache
def certificate() -> tuple[ssl.SSLContext, TemporaryDirectory[str], str]:
    authority = trustme.CA()
    folder = TemporaryDirectory()
    path = Path(folder.name) / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, folder, str(path)


def with_tls() -> tuple[ssl.SSLContext, str]:
    context, _, path = certificate()
    return context, path


def usual_times(stage: Stage) -> None:
    """As if answers came within a millisecond so far, so that a slow one is hedged at once."""
    state = stage.state()
    state.usual()
    candidate = stage.gateway.store.current.groups["u"].candidates[0]
    for _ in range(64):
        for watch in state.watchers:
            watch(candidate, Request(b"GET", b"/", [], 0.0), Response(200, b"OK", []), 0.001)


def eject_the_first(stage: Stage) -> None:
    """One endpoint is out; the next request that may be sent again tries it."""
    with RawClient(stage.port) as client, suppress(Truncated):
        client.request(b"POST %b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n" % EJECT)
    states = [candidate.state for candidate in stage.gateway.store.current.groups["u"].candidates]
    stage.until(lambda: any(state.out_until and monotonic() > state.out_until for state in states))


# -- the scenarios ---------------------------------------------------------------------


def retry(more: str = "") -> str:
    return f", retry: {{{{attempts: 2, methods: [GET, PUT], budget: 100%{more}}}}}"


STATUSES = ", statuses: [503], backoff: 10ms"
ONE_CONNECTION = ", pool: {{max_connections: 1, queue_timeout: 1s}}"
ONE_PLACE = ", concurrency: {{limit: 1, queue: 10, queue_timeout: 3s}}"
TLS = ", tls: {{ca: '{ca}'}}"
SETUPS = {
    "another endpoint": (2, "", False),
    "the same endpoint": (1, "", False),
    "TLS": (1, TLS, True),
    "max_connections 1": (1, ONE_CONNECTION, False),
}

SIMPLE = {
    "get": Scenario(config(), say(answer(b"ok")), get, wanted=(200, b"ok"), through=("stream",)),
    "slow client": Scenario(
        config(), say(answer(LARGE)), get_slowly, wanted=(200, LARGE), through=("connection",),
        send_buffer=16384, receive_buffer=16384,
    ),
    "interim answers to a client that does not read": Scenario(
        config(), early_hints, get_slowly, wanted=(200, b"ok"), send_buffer=4096, receive_buffer=4096
    ),
    "reset, the same endpoint": Scenario(
        config(route=retry(", when: [connect, reset], backoff: 10ms")), reset_first, get, wanted=(200, b""), through=("forwarder",)
    ),
    "connect refused": Scenario(
        "defaults: {{eject: null}}\nupstreams: {{u: {{endpoints: ['{0}']}}, gone: {{endpoints: ['http://127.0.0.1:1']}}}}\n"
        "routes: [{{name: gone, match: {{prefix: /victim}}, upstream: gone, retry: {{attempts: 3, backoff: 10ms}}}}, "
        "{{name: r, match: {{prefix: /}}, upstream: u}}]\n",
        echo, get, wanted=(502, None)
    ),
    "trial of an ejected endpoint": Scenario(
        config(2, ", eject: {{consecutive: 1, for: 100ms, max_ejected: 100%}}"), hang_up_on_eject, get, wanted=(200, b""), upstreams=2, prepare=eject_the_first
    ),
    "waiting in the gate": Scenario(
        config(upstream=ONE_PLACE), take_turns, get_beside, alone=False, wanted=(200, b""), bodies={BESIDE: b"beside"}, through=("gate",)
    ),
    "waiting for a connection": Scenario(
        config(upstream=ONE_CONNECTION), take_turns, get_beside, alone=False, wanted=(200, b""), bodies={BESIDE: b"beside"}, through=("pool",)
    ),
    "having the only place": Scenario(config(upstream=ONE_PLACE), wait_for_the_other, get_before_another, wanted=(200, b"ok")),
    "having the only connection": Scenario(
        config(upstream=ONE_CONNECTION), wait_for_the_other, get_before_another, wanted=(200, b"ok")
    ),
}  # fmt: skip
UPLOADS = {
    "put": Scenario(config(), echo, put, BODY, (200, BODY)),
    "chunked upload": Scenario(config(), echo, put_chunked, BODY, (200, BODY)),
    "100-continue": Scenario(config(), want_the_body, put_expecting, BODY, (200, BODY)),
    "answer during the upload": Scenario(config(), answer_early, put_during_answer, BODY, (200, b"begun " + BODY)),
    "answer during the upload, TLS": Scenario(
        config(upstream=TLS), answer_early, put_during_answer, BODY, (200, b"begun " + BODY), tls=with_tls
    ),
    "put while the worker leaves": Scenario(config(), echo, put_while_leaving, BODY, (200, BODY)),
    "the rest is drained": Scenario(config(), answer_without_body, put_then_get, BODY, (200, b"enough")),
    "the rest is drained, max_connections 1": Scenario(
        config(upstream=ONE_CONNECTION), answer_without_body, put_then_get, BODY, (200, b"enough")
    ),
    "large answer to a slow client during the upload": Scenario(
        config(), answer_at_length, put_slowly, BODY, (200, LARGE + BODY), send_buffer=16384, receive_buffer=16384
    ),
    "reset after the upload": Scenario(
        config(route=retry(", when: [connect, reset], backoff: 10ms")), close_first, put, BODY, (200, BODY)
    ),
}  # fmt: skip
RETRIES = {
    **{
        f"503 ({kind}) during the upload, {setup}": Scenario(
            config(endpoints, upstream, retry(STATUSES)), busy_first(kind), put_during_answer, BODY, (200, BODY),
            accepted=((503, LARGE_BUSY),) if kind == "large" else (), upstreams=endpoints, tls=with_tls if tls else None,
        )
        for setup, (endpoints, upstream, tls) in SETUPS.items()
        for kind in ("small", "large", "unfinished")
    },
    "503 (unfinished) twice during the upload": Scenario(
        config(3, "", retry(STATUSES).replace("attempts: 2", "attempts: 3")), busy_first("unfinished", 2),
        lambda stage: put_during_answer(stage, 3), BODY, (200, BODY), upstreams=3,
    ),
    **{
        f"503 while the body comes, {setup}": Scenario(
            config(endpoints, upstream, retry(STATUSES)), busy_while_it_reads, put_on, BODY, (200, BODY),
            accepted=((503, BUSY),), upstreams=endpoints, tls=with_tls if tls else None,
        )
        for setup, (endpoints, upstream, tls) in SETUPS.items()
    },
}  # fmt: skip
HEDGES = {
    f"hedged, {which} answers first": Scenario(
        config(2, "", retry(", hedge: true")), both_then(winner), get, wanted=(200, b"ok"), upstreams=2,
        prepare=usual_times, through=("hedge",),
    )
    for which, winner in (("the first", 1), ("the second", 2))
}  # fmt: skip
TUNNELS = {
    "tunnel": Scenario(config(), upgrade, open_tunnel, wanted=(101, b""), through=("tunnel",)),
    "tunnel that breaks": Scenario(
        config(), upgrade_then_reset, take_the_tail, wanted=(101, b""), through=("tunnel",),
        send_buffer=4096, receive_buffer=4096,
    ),
}  # fmt: skip
BUFFER = ", buffer: {{{{request: 64KiB, response: {}, spool: {}}}}}"
SHIELDED = {
    "held body": Scenario(config(upstream=BUFFER.format("0", "null")), echo, put_held, BODY, (200, BODY), through=("held",)),
    "held body, sent again": Scenario(
        config(upstream=BUFFER.format("0", "null"), route=retry(", when: [connect, reset], backoff: 10ms")),
        reset_first, put_held, BODY, (200, BODY), through=("held",)
    ),
    "body in a file": Scenario(
        config(upstream=BUFFER.format("0", gettempdir())), say(answer(b"ok")), put_in_a_file, LARGE, (200, b"ok"),
        through=("spool",)
    ),
    "body in a file, refused early": Scenario(
        config(upstream=BUFFER.format("0", gettempdir())), refuse_early, put_in_a_file, LARGE, (413, b"enough"),
    ),
    **{
        f"read ahead, {where}": Scenario(
            config(upstream=BUFFER.format(response, spool)), say_in_chunks, get_read_ahead, wanted=(200, LARGE),
            send_buffer=16384, receive_buffer=16384,
        )
        for where, response, spool in (("memory", "1MiB", "null"), ("file", "16KiB", gettempdir()), ("too small", "16KiB", "null"))
    },
}  # fmt: skip
LINGERING = {
    "lingering after an early answer": Scenario(
        config(), refuse_early, put_beyond_the_answer, wanted=(413, b"enough"), through=("connection",)
    ),
}  # fmt: skip
MIRRORS = {
    "mirrored": Scenario(
        "defaults: {{eject: null, buffer: {{request: 0}}, timeouts: {{connect: 3s, response: 3s, idle: 3s}}}}\n"
        "upstreams: {{u: {{endpoints: ['{0}']}}, copies: {{endpoints: ['{1}']}}}}\n"
        "routes: [{{name: r, match: {{prefix: /}}, upstream: u, mirror: {{upstream: copies, percent: 100}}}}]\n",
        echo, put, BODY, (200, BODY), upstreams=2,
    )
}  # fmt: skip

CONNECTION = [Aim(error) for error in ("closed", "closed_then_draining", "draining", "kill", "fault")]
# Before anything that the connection's greenlet has set off in the same turn.
AT_ONCE = [Aim(error, entering=True) for error in ("closed", "kill")]


def workers(*numbers: int) -> list[Aim]:
    """For the greenlets that work for a request: each of them ended, and the request at the moment one goes on."""
    ended = [Aim(error, number, number) for number in numbers for error in ("kill", "fault")]
    return ended + [Aim("closed", number, "connection", entering=True) for number in numbers]


CASES = [
    *((SIMPLE, aim) for aim in (*CONNECTION, *AT_ONCE)),
    *((UPLOADS, aim) for aim in (*CONNECTION, *AT_ONCE, *workers(0))),
    *((RETRIES, aim) for aim in (*CONNECTION, *AT_ONCE, *workers(0, 1))),
    *((HEDGES, aim) for aim in (*CONNECTION, *AT_ONCE, *workers(0, 1))),
    *((TUNNELS, aim) for aim in (*CONNECTION, *AT_ONCE, Aim("kill", 0, 0), Aim("fault", 0, 0))),
    *((SHIELDED, aim) for aim in (*CONNECTION, *AT_ONCE)),
    # No greenlet works for a body that is held in memory.
    *(({name: SHIELDED[name]}, aim) for name in SHIELDED if not name.startswith("held") for aim in workers(0)),
    *(
        (LINGERING, Aim(error, lingering=True, logged=True, entering=entering))
        for error in ("kill", "fault", "another_connection", "leaving")
        for entering in (False, True)
    ),
    *((MIRRORS, aim) for aim in (*CONNECTION, *AT_ONCE, *workers(0, 1))),
    *(
        ({name: SIMPLE[name]}, Aim("closed", "beside", "connection", entering=True))
        for name in ("waiting in the gate", "waiting for a connection")
    ),
]


@pytest.mark.parametrize(
    ("scenario", "aim"),
    [pytest.param(one, aim, id=f"{name}-{aim}") for group, aim in CASES for name, one in group.items()],
)
def test_nothing_is_left_wherever_a_request_is_ended(scenario: Scenario, aim: Aim) -> None:
    assert not throw_everywhere(scenario, aim)


@pytest.mark.parametrize("name", ["get", "slow client"])
def test_a_killed_request_is_logged(name: str) -> None:
    """As any other: `Gateway.finish` is called once a request (docs/architecture.md, "Two doors")."""
    assert not throw_everywhere(SIMPLE[name], Aim("kill", logged=True))
