"""Everything that can go wrong with one exchange, as one tree.

Rule: an error knows its own answer. `status` and `reason` are what the client, the
header `Gateway-Error`, the log and the metric see; `cause` is for the log alone, with
addresses, phases, durations and errno, and never leaves the gateway. One place turns an
error into an answer (`gateway.http.problem`), so raising is all that other code does.

`blames` is what passive health asks: what the gateway refused itself, what a client did
and a reused connection that was closed meanwhile say nothing about an endpoint.

`may_have_been_sent` is what a retry asks (RFC 9110 §9.2.2): False means that not one
byte of the request reached an upstream, so that even a POST may be tried elsewhere.
`retry_as` is the word of `retry.when` in the configuration under which the error may
be tried again; None never is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with a configuration. `line` and `col` count from 1; line 0 is
    for what has no place in the file (the file itself, an environment variable)."""

    line: int
    col: int
    key: str
    message: str

    def told(self, file: str) -> str:
        """`FILE:LINE:COL: path.to.key: what is wrong (what is allowed)`."""
        place = f"{file}:{self.line}:{self.col}" if self.line else file
        return one_line(": ".join(part for part in (place, self.key, self.message) if part))


def one_line(text: str) -> str:
    """Text in which line ends and a terminal's control sequences are escaped, as Python writes them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class ConfigError(Exception):
    """The configuration cannot be used; carries every mistake found, one a line."""

    def __init__(self, told: str, mistakes: Iterable[Mistake] = ()) -> None:
        super().__init__(told)
        self.mistakes = list(mistakes)

    @classmethod
    def found(cls, file: str, mistakes: Iterable[Mistake]) -> ConfigError:
        """All mistakes of one file, in the order in which they stand there."""
        ordered = sorted(mistakes, key=lambda mistake: (mistake.line, mistake.col))
        return cls("\n".join(mistake.told(file) for mistake in ordered), ordered)


class GatewayError(Exception):
    """One exchange ended without a proper upstream answer.

    `detail` may be shown to a client: it names no address, path or stack of the inside.
    `cause` is the full story for the log.
    """

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "internal_error"
    detail: ClassVar[str] = "The gateway failed."
    may_have_been_sent: ClassVar[bool] = True
    retry_as: ClassVar[str | None] = None
    # Whether it speaks against the endpoint that was tried (passive health, the breaker).
    blames: ClassVar[bool] = False

    def __init__(self, cause: str = "", retry_after: int | None = None) -> None:
        super().__init__(cause or self.detail)
        self.cause = cause
        # Seconds that the client is told to wait before it asks again; None: nothing is told.
        self.retry_after = retry_after


class InternalError(GatewayError):
    """A fault of the gateway's own; the traceback is in the log."""


# -- the client's fault ---------------------------------------------------------------


class ClientError(GatewayError):
    """The request cannot be served as it stands."""

    status = 400
    reason = "bad_request"
    detail = "The request is malformed."
    may_have_been_sent = False


class BadRequest(ClientError):
    """Malformed framing, headers or request line (RFC 9112)."""


class BadPath(ClientError):
    reason = "bad_path"
    detail = "The path has a .. segment, an encoded NUL or more than one reading."


class Unauthorized(ClientError):
    status = 401
    reason = "unauthorized"
    detail = "This needs a token that was not given or is not the right one."


class NoRoute(ClientError):
    status = 404
    reason = "no_route"
    detail = "No route matches this request."


class MethodNotAllowed(ClientError):
    status = 405
    reason = "method_not_allowed"
    detail = "That method is not for this path."


class RequestTimeout(ClientError):
    status = 408
    reason = "request_timeout"
    detail = "The request did not arrive in time."


class BodyTooLarge(ClientError):
    status = 413
    reason = "body_too_large"
    detail = "The request body is larger than this gateway accepts."


class UriTooLong(ClientError):
    status = 414
    reason = "uri_too_long"
    detail = "The request target is longer than this gateway accepts."


class ExpectationFailed(ClientError):
    status = 417
    reason = "expectation_failed"
    detail = "Only the expectation 100-continue is understood."


class Misdirected(ClientError):
    status = 421
    reason = "misdirected"
    detail = "This listener does not serve that host."


class RateLimited(ClientError):
    status = 429
    reason = "rate_limited"
    detail = "Too many requests."


class HeaderTooLarge(ClientError):
    status = 431
    reason = "header_too_large"
    detail = "The request's header fields are larger than this gateway accepts."


class UnsupportedMethod(ClientError):
    status = 405
    reason = "unsupported_method"
    detail = "This gateway does not forward that method."


class UnsupportedCoding(ClientError):
    status = 501
    reason = "unsupported_coding"
    detail = "The only transfer coding understood is chunked."


class UnsupportedVersion(ClientError):
    status = 505
    reason = "unsupported_version"
    detail = "This gateway speaks HTTP/1.0 and HTTP/1.1."


class LoopDetected(ClientError):
    status = 508
    reason = "loop_detected"
    detail = "The request has been through this gateway before."


class ClientClosed(ClientError):
    """The client hung up before its answer was complete; the status is for the log only."""

    status = 499
    reason = "client_closed"
    detail = "The client closed the connection."
    may_have_been_sent = True


class WriteTimeout(ClientClosed):
    """The client stopped reading its answer."""

    reason = "write_timeout"
    detail = "The client did not read its answer in time."


# -- nothing reached an upstream ------------------------------------------------------


class ConnectError(GatewayError):
    """No connection was made, so nothing was sent: any method may go elsewhere."""

    status = 502
    may_have_been_sent = False
    retry_as: ClassVar[str | None] = "connect"
    blames = True
    detail = "The upstream could not be reached."


class ConnectRefused(ConnectError):
    reason = "connect_refused"


class ConnectReset(ConnectError):
    """A connection was made and reset before it could be used."""

    reason = "upstream_reset"


class NoNetworkRoute(ConnectError):
    reason = "no_network_route"


class TlsError(ConnectError):
    """The TLS handshake or the verification of the certificate failed."""

    reason = "tls_error"
    detail = "The upstream could not be reached securely."


class ConnectTimeout(ConnectError):
    status = 504
    reason = "connect_timeout"
    detail = "The upstream did not accept a connection in time."


class DnsError(ConnectError):
    """The upstream's name could not be looked up."""

    reason = "dns_error"
    retry_as = None
    blames = False


class Unavailable(GatewayError):
    """The gateway chose not to send: nothing left it."""

    status = 503
    may_have_been_sent = False


class NoEndpoint(Unavailable):
    reason = "no_endpoint"
    detail = "No endpoint of the upstream is available."


class CircuitOpen(Unavailable):
    reason = "circuit_open"
    detail = "The upstream is failing; requests to it are paused."


class PoolFull(Unavailable):
    reason = "pool_full"
    detail = "Every connection to the upstream is in use."
    # Another endpoint has connections of its own.
    retry_as = "connect"


class Overloaded(Unavailable):
    reason = "overloaded"
    detail = "The gateway is overloaded."


class Draining(Unavailable):
    reason = "draining"
    detail = "The gateway is shutting down."


class NotReady(Unavailable):
    reason = "not_ready"
    detail = "The gateway is not ready yet."


class DeadlineExceeded(GatewayError):
    """`timeouts.total` passed before the head of an answer came."""

    status = 504
    reason = "deadline_exceeded"
    blames = True
    detail = "The request took longer than it may."


# -- the request may have reached an upstream -----------------------------------------


class UpstreamError(GatewayError):
    """The upstream took (part of) the request and failed."""

    status = 502
    blames = True
    detail = "The upstream failed to answer."


class UpstreamReset(UpstreamError):
    """A fresh connection closed or was reset before the head of an answer was complete."""

    reason = "upstream_reset"
    retry_as: ClassVar[str | None] = "reset"


class TlsRefused(UpstreamReset):
    """A TLS alert came in an answer's place: under TLS 1.3 a server judges our certificate (or that there
    is none) after the handshake, when the request may be out."""

    reason = "tls_error"
    detail = TlsError.detail


class UpstreamStale(UpstreamReset):
    """A reused connection ended without one byte of an answer: most likely it was closed
    by the upstream at the moment it was chosen."""

    retry_as = "stale"
    blames = False


class UpstreamCut(UpstreamReset):
    """The connection ended in the middle of an answer's head: some of an answer exists,
    so that this is not tried again."""

    retry_as = None


class BadResponse(UpstreamError):
    reason = "bad_response"
    detail = "The upstream's answer was malformed."


class AnswerTooLarge(BadResponse):
    """The answer's head is beyond `limits`: the gateway refuses it, the endpoint did not fail."""

    blames = False


class ResponseTimeout(UpstreamError):
    status = 504
    reason = "response_timeout"
    detail = "The upstream did not answer in time."
    retry_as = "timeout"


# -- after the head was sent: log only, and the connection is broken -------------------


class UpstreamTruncated(UpstreamError):
    reason = "upstream_truncated"
    detail = "The upstream's answer broke off."


class UpstreamStalled(UpstreamError):
    reason = "upstream_stalled"
    status = 504
    detail = "The upstream's answer stalled."


class TunnelFault(GatewayError):
    """A tunnel ended by a fault of the gateway. `sent`, `received`: bytes from and to the client."""

    def __init__(self, cause: str = "", sent: int = 0, received: int = 0) -> None:
        super().__init__(cause)
        self.sent = sent
        self.received = received


def reasons() -> dict[str, type[GatewayError]]:
    """Every reason with the class that gives it (the first in the tree's order)."""
    found: dict[str, type[GatewayError]] = {}

    def walk(cls: type[GatewayError]) -> None:
        if "reason" in vars(cls):
            found.setdefault(cls.reason, cls)
        for sub in cls.__subclasses__():
            walk(sub)

    walk(GatewayError)
    return found
