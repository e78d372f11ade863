"""The upstreams of the reload soak. They do what a target asks for and compare every byte that reaches them.

Rule: a body that breaks off must be the beginning of the right one; a body that ends must be the whole right one; what
follows a body must be a request. Anything else is a fault, whether or not a client is left that would notice it.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from gevent.server import StreamServer

from gateway.testing import Header, Malformed, Truncated, Wire, chunked, framing, head, parse_head, values
from tests.soak_orders import EARLY, OWN_LENGTH, SENT_OF, STATUS, Asked, Faults, answered, asked, different, owned

# Requests on one connection; the last answer closes it.
_USES = 60
# Requests whose attempts are counted. More than there can be at once, aborted ones included.
_MOST_COUNTED = 20_000
# Seconds that a connection may be idle, or an act may wait for the gateway to hang up.
_PATIENCE = 120.0
# How long "slow" takes: longer than 95 of 100 answers.
_SLOW = 0.06
_METHODS = (b"GET ", b"PUT ", b"POST ")


class Wrong(AssertionError):
    """Bytes that do not belong where they came. `kind` names the fault."""

    def __init__(self, kind: str, story: str) -> None:
        super().__init__(story)
        self.kind = kind


class Ledger:
    """What all upstreams note together: attempts of each request, acts, faults."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.acts: Counter[str] = Counter()
        # Heads that came, and bodies that came whole and right.
        self.heads = 0
        self.whole_bodies = 0
        self._attempts: dict[int, int] = {}

    def attempt(self, number: int) -> int:
        """Count an attempt of this request; 1 for the first."""
        made = self._attempts[number] = self._attempts.pop(number, 0) + 1
        if len(self._attempts) > _MOST_COUNTED:
            del self._attempts[next(iter(self._attempts))]
        return made


class Body:
    """A request's body, compared with what it must be as it comes."""

    def __init__(self, wire: Wire, fields: list[Header], request: Asked) -> None:
        self._wire = wire
        self._request = request
        self._wanted = owned(request.number, request.size)
        self._chunked, length = framing(fields)
        self._left = 0 if self._chunked else length or 0
        self.complete = not self._chunked and not length
        self._at = 0
        if length is not None and length != request.size:
            raise Wrong("another Content-Length at an upstream", f"{request.number:08x}: {length}, not {request.size}")

    @property
    def received(self) -> bytes:
        return self._wanted[: self._at]

    def read(self, enough: int = 1 << 40) -> None:
        """Read on until so many bytes are here, or the end is. Raises Wrong, or Truncated where the body breaks off."""
        while not self.complete and self._at < enough:
            if self._left == 0 and not self._next_chunk():
                break
            if not self._wire.buffer and not self._wire.fill():
                raise Truncated("the body", b"")
            piece = self._wire.take(self._left)
            self._compare(piece)
            self._left -= len(piece)
            if not self._left:
                self._end_piece()
        if self.complete and self._at != self._request.size:
            raise Wrong(
                "a body cut short that looks whole",
                f"{self._request.number:08x}: {self._at} of {self._request.size} bytes",
            )

    def _next_chunk(self) -> bool:
        line = self._wire.read_until(b"\r\n")[:-2]
        try:
            self._left = int(line, 16)
        except ValueError:
            raise Wrong(
                "bytes of something else in a body", f"{self._request.number:08x}: chunk size {line[:100]!r}"
            ) from None
        if not self._left:
            if self._wire.read_until(b"\r\n") != b"\r\n":
                raise Wrong(
                    "bytes of something else in a body", f"{self._request.number:08x}: something behind the last chunk"
                )
            self.complete = True
        return bool(self._left)

    def _end_piece(self) -> None:
        if not self._chunked:
            self.complete = True
        elif self._wire.read_exactly(2) != b"\r\n":
            raise Wrong("bytes of something else in a body", f"{self._request.number:08x}: no end of a chunk")

    def _compare(self, piece: bytes) -> None:
        wanted = self._wanted[self._at : self._at + len(piece)]
        if piece != wanted:
            raise Wrong(
                "bytes of something else in a body",
                f"{self._request.number:08x} at {self._at} of {self._request.size}: {different(piece, wanted)}",
            )
        self._at += len(piece)


def _hang(wire: Wire) -> None:
    """Send nothing until the gateway gives up the answer and hangs up."""
    wire.ended(_PATIENCE)
    if wire.buffer:
        raise Wrong("a request on a connection whose answer has not ended", repr(bytes(wire.buffer[:100])))


class Upstream:
    """A server that does what targets ask for. `tls`: it speaks TLS."""

    def __init__(self, name: str, ledger: Ledger, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self._ledger = ledger
        self._tls = tls
        self._server = StreamServer(("127.0.0.1", 0), self._serve, backlog=1024)
        self._server.start()
        self.port: int = self._server.server_port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.stop(timeout=0)

    def _serve(self, sock: socket.socket, _: Any) -> None:
        try:
            wire = Wire(self._tls.wrap_socket(sock, server_side=True) if self._tls else sock, timeout=_PATIENCE)
        except OSError:
            sock.close()
            return  # the gateway gave up inside the handshake
        uses = 0
        try:
            while uses < _USES and self._one(wire, uses + 1 == _USES):
                uses += 1
                wire.received.clear()
        except Wrong as error:
            self._fault(error.kind, str(error))
        except Malformed as error:
            self._fault("no HTTP at an upstream", str(error))
        except (OSError, Truncated):
            pass  # the gateway broke the connection, which cut exchanges want
        finally:
            wire.close()

    def _fault(self, kind: str, story: str) -> None:
        self._ledger.faults.add(kind, f"{self.name}: {story}")

    def _head(self, wire: Wire) -> bytes | None:
        """The next head, None at the end of the connection."""
        if not wire.buffer and not wire.fill():
            return None
        if not any(method.startswith(bytes(wire.buffer[: len(method)])) for method in _METHODS):
            raise Wrong("no request where one must begin", repr(bytes(wire.buffer[:100])))
        return wire.read_until(b"\r\n\r\n")

    def _one(self, wire: Wire, last: bool) -> bool:
        """Serve one request; whether the connection serves another."""
        raw = self._head(wire)
        if raw is None:
            return False
        line, fields = parse_head(raw)
        request = asked(line.split(b" ")[1])
        if request is None:
            raise Wrong("no request where one must begin", repr(line[:200]))
        if values(fields, b"x-soak") != [b"%08x" % request.number]:
            raise Wrong("a head with another's fields", f"{line!r}: {values(fields, b'x-soak')!r}")
        if len(set(request.before)) > 1:
            raise Wrong("two versions of the configuration in one request", repr(line))
        self._ledger.heads += 1
        body = Body(wire, fields, request)
        act = request.act(self._ledger.attempt(request.number))
        self._ledger.acts[act] += 1
        if values(fields, b"expect"):
            if act in EARLY and request.number % 2:
                # A final answer in place of 100: the body never comes, or (RFC 9110 §10.1.1) comes all the same.
                return self._answer_early(wire, request, act, body)
            wire.send(head(100))
        if act in EARLY:
            body.read(request.size // 3)
            return self._answer_early(wire, request, act, body)
        if act == "reset":
            body.read(request.size // 2)
            wire.reset()
            return False
        if act == "drop":
            body.read(request.size // 2)
            return False
        body.read()
        self._ledger.whole_bodies += bool(request.size)
        finish: Callable[[Wire, Asked, str, Body, bool], bool] = (
            self._stall if act in OWN_LENGTH or act == "stall" else self._answer
        )
        return finish(wire, request, act, body, last)

    @staticmethod
    def _answer(wire: Wire, request: Asked, act: str, body: Body, last: bool) -> bool:
        if act == "slow":
            gevent.sleep(_SLOW)
        text = answered(request.number, act, body.received, request.answer)
        lines = [b"X-Soak: %08x" % request.number]
        if last or act == "close":
            lines.append(b"Connection: close")
        if act == "chunked":
            wire.send(head(200, b"Transfer-Encoding: chunked", *lines) + chunked(text[:20], text[20:]))
        else:
            wire.send(head(200, b"Content-Length: %d" % len(text), *lines) + text)
        return not last and act != "close"

    @staticmethod
    def _stall(wire: Wire, request: Asked, act: str, body: Body, last: bool) -> bool:
        """No answer, or a part of one; "cut" then closes, the others wait until the gateway hangs up."""
        if act != "stall":
            text = answered(request.number, act, body.received, OWN_LENGTH[act])
            wire.send(
                head(STATUS[act], b"Content-Length: %d" % len(text), b"X-Soak: %08x" % request.number)
                + text[: SENT_OF[act]]
            )
        if act != "cut":
            _hang(wire)
        return False

    @staticmethod
    def _answer_early(wire: Wire, request: Asked, act: str, body: Body) -> bool:
        """Answer before the body is here, then read the rest of it as servers do that keep a connection."""
        text = answered(request.number, act, body.received, OWN_LENGTH[act])
        lines = [b"X-Soak: %08x" % request.number]
        if act == "busy-close":
            lines.append(b"Connection: close")
        if act == "busy-open":
            part = text[: SENT_OF[act]]
            wire.send(head(503, b"Transfer-Encoding: chunked", *lines) + b"%x\r\n%s\r\n" % (len(part), part))
            body.read()
            _hang(wire)
            return False
        wire.send(head(STATUS[act], b"Content-Length: %d" % len(text), *lines) + text)
        if act == "busy-close":
            wire.half_close()
            body.read()
            return False
        body.read()
        return True
