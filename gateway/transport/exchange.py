"""One exchange over one lent connection: request out, the answer's head in.

Rule: until the answer is returned, a failure closes the connection here; from then on `AnswerBody` or `Upgraded`
returns it to its lender or closes it. It is closed or returned exactly once.
"""

from __future__ import annotations

import ssl
from time import monotonic
from typing import Protocol

from gateway.errors import (
    BadResponse,
    DeadlineExceeded,
    GatewayError,
    ResponseTimeout,
    TlsRefused,
    UpstreamCut,
    UpstreamReset,
    UpstreamStale,
)
from gateway.http.messages import Headers, Request, RequestBody, Response
from gateway.http.request_head import Head, Inbound
from gateway.model import Timeouts, Upstream
from gateway.transport.body import AnswerBody
from gateway.transport.connection import Connection
from gateway.transport.upgraded import Upgraded
from gateway.transport.upload import Upload, whole

# How long an upstream may keep `Expect: 100-continue` unanswered before the body is sent
# all the same (RFC 9110 §10.1.1; Go and curl wait as long).
CONTINUE_WAIT = 1.0


class Lender(Protocol):
    """The pool that a connection comes from. `address`: the endpoint's, for causes in the log. `hop`: our entry for
    Via in answers."""

    address: str
    hop: bytes
    upstream: Upstream

    def give_back(self, connection: Connection) -> None:
        """Take a connection whose exchange ended properly."""
        ...

    def discard(self, connection: Connection) -> None:
        """Close a connection."""
        ...

    def limit_idle(self, connection: Connection, keep_alive: int) -> None:
        """The upstream announced how many seconds it keeps idle connections."""
        ...


def exchange(
    lender: Lender,
    connection: Connection,
    request: Request,
    head: Head,
    timeouts: Timeouts,
    deadline: float | None,
) -> Response:
    """Send a request and return its answer as soon as the head is complete. `deadline`: monotonic seconds that end
    everything up to the head. Raises a GatewayError."""
    reader = connection.reader
    upload: Upload | None = None
    # Until then the connection is released here; from then on the answer's body does it.
    settled = False
    try:
        reader.begin(lender.upstream.limits)
        if request.body is None:
            write = timeouts.write if deadline is None else sooner(timeouts.write, deadline)
            connection.stream.send(head.data, write)
            reader.limit(timeouts.response, deadline)
            judged = reader.read_head(request.method == b"HEAD", request.interim, lender.hop)
        else:
            upload = _send_with_body(connection, request, request.body, head, timeouts, deadline)
            if upload is not None:
                # A slow client may take its time with the rest.
                head = head._replace(data=b"")
            judged = _read_head(connection, request, upload, timeouts, deadline, lender.hop)
        response, body = _answer(lender, connection, request, head, judged, upload, timeouts)
        settled = True
    except BadResponse as error:
        error.cause = f"read head {lender.address}: {error.cause}"
        raise
    except (OSError, EOFError) as error:
        raise _explained(error, lender.address, connection, request, upload, timeouts, deadline) from error
    finally:
        if not settled:
            connection.stream.abort()
            lender.discard(connection)
            if upload is not None:
                # Last, because it waits: an exception thrown in meanwhile finds nothing left to do.
                upload.cancel()
    if body is not None and reader.complete:
        # This may wait for the end of the upload.
        body.finish()
    return response


# -- the request out ------------------------------------------------------------------


def _send_with_body(
    connection: Connection,
    request: Request,
    body: RequestBody,
    head: Head,
    timeouts: Timeouts,
    deadline: float | None,
) -> Upload | None:
    """Send the head, and the body when all of it is here; else what will send it."""
    stream = connection.stream
    write = timeouts.write if deadline is None else sooner(timeouts.write, deadline)
    data = head.data
    if body.complete:
        data += whole(body, request.content_length)
    try:
        stream.send(data, write)
    except OSError as error:
        # As in an upload: perhaps the upstream answered before it closed.
        upload = Upload(connection.reader, stream, body, request.content_length, timeouts, deadline)
        upload.failed = error
        return upload
    if body.complete:
        return None
    upload = Upload(connection.reader, stream, body, request.content_length, timeouts, deadline)
    if not body.expects_continue:
        upload.start()
    return upload


# -- the answer's head in -------------------------------------------------------------


def _read_head(
    connection: Connection,
    request: Request,
    upload: Upload | None,
    timeouts: Timeouts,
    deadline: float | None,
    hop: bytes,
) -> Inbound:
    reader = connection.reader
    if upload is None:
        reader.limit(timeouts.response, deadline)
    elif upload.failed is not None:
        if isinstance(upload.failed, TimeoutError):
            raise upload.failed
        reader.limit(timeouts.response, deadline)
    else:
        # timeouts.response begins when all of the request is out.
        reader.limit(None, deadline)
        if request.body is not None and request.body.expects_continue:
            return _read_head_expecting(connection, request, upload, deadline, hop)
    return reader.read_head(request.method == b"HEAD", request.interim, hop)


def _read_head_expecting(
    connection: Connection, request: Request, upload: Upload, deadline: float | None, hop: bytes
) -> Inbound:
    """Wait for `100 Continue` (or the refusal), then let the body go."""
    reader = connection.reader
    head_request = request.method == b"HEAD"

    def go() -> None:
        if not upload.started:
            reader.limit(None, deadline)
            upload.start()

    def interim(status: int, headers: Headers) -> None:
        if status == 100:
            # Reading the body gives the client its own.
            go()
        elif request.interim is not None:
            request.interim(status, headers)

    reader.limit(CONTINUE_WAIT, deadline)
    try:
        return reader.read_head(head_request, interim, hop)
    except TimeoutError:
        if upload.started or (deadline is not None and monotonic() >= deadline):
            raise
    go()
    return reader.read_head(head_request, interim, hop)


def _answer(
    lender: Lender,
    connection: Connection,
    request: Request,
    head: Head,
    judged: Inbound,
    upload: Upload | None,
    timeouts: Timeouts,
) -> tuple[Response, AnswerBody | None]:
    """The answer, and what releases the connection (None: it is released, or the tunnel's)."""
    reader = connection.reader
    if reader.status == 101:
        return _upgraded(lender, connection, head, judged, timeouts), None
    # Taken apart at once: each look-up of a named tuple's field costs as much as this.
    headers, length, chunked, _, shareable, keep_alive, _, gateway_error, block = judged
    if keep_alive is not None:
        lender.limit_idle(connection, keep_alive)
    if gateway_error is not None:
        request.cause = f"the upstream answered Gateway-Error: {gateway_error[:80].decode('latin-1')}"
    shareable = shareable and head.shareable
    status = reader.status
    response = Response(
        status,
        reader.reason,
        headers,
        block,
        None if chunked else length,
        bodyless=status == 204 or status == 304 or request.method == b"HEAD",
    )
    if reader.complete:
        pieces = reader.pieces
        response.data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if upload is None and shareable and reader.persistent:
            lender.give_back(connection)
            return response, None
    body = AnswerBody(lender, connection, upload, shareable, timeouts.idle)
    if not reader.complete:
        if reader.pieces:
            response.data = b"".join(reader.pieces)
            reader.pieces = []
        response.stream = body
    return response, body


def _upgraded(lender: Lender, connection: Connection, head: Head, judged: Inbound, timeouts: Timeouts) -> Response:
    """A 101 is for the token that was asked for, or a fault (RFC 9110 §7.8)."""
    reader = connection.reader
    token = judged.upgrade
    if head.upgrade is None or token != head.upgrade.lower() or reader.upgraded is None:
        raise BadResponse(f"101 to {token!r}, asked for {head.upgrade!r}")
    # Connection, like all framing, is the door's to write.
    headers = [(b"Upgrade", head.upgrade), *judged.headers]
    tunnel = Upgraded(lender, connection, reader.upgraded, timeouts.tunnel, timeouts.write)
    return Response(101, reader.reason, headers, bodyless=True, tunnel=tunnel)


# -- failures -------------------------------------------------------------------------


def _explained(
    error: OSError | EOFError,
    address: str,
    connection: Connection,
    request: Request,
    upload: Upload | None,
    timeouts: Timeouts,
    deadline: float | None,
) -> GatewayError:
    """What a failed read or write means, with endpoint, phase and duration."""
    reader = connection.reader
    if upload is not None and upload.client_error is not None:
        return upload.client_error
    cause = error
    alert = _is_alert(error)
    if upload is not None and upload.failed is not None and not alert:
        cause = upload.failed
    phase = "write request" if upload is not None and not upload.done else "read head"
    story = (
        f"{phase} {address}: {cause} "
        f"({'reused' if request.reused else 'fresh'} connection, exchange {connection.served + 1})"
    )
    if isinstance(cause, TimeoutError):
        if deadline is not None and monotonic() >= deadline:
            return DeadlineExceeded(f"{story}; total {timeouts.total} s")
        limit = timeouts.write if phase == "write request" else timeouts.response
        return ResponseTimeout(f"{story} after {limit} s")
    if reader.started:
        return UpstreamCut(f"{story}, in the middle of the answer's head")
    if request.reused:
        return UpstreamStale(story)
    return TlsRefused(story) if alert else UpstreamReset(story)


def _is_alert(error: BaseException) -> bool:
    """Whether TLS itself failed. (The end of a connection is an SSLError of its own kind, too.)"""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)


def sooner(timeout: float | None, deadline: float) -> float:
    """Seconds until a timeout that begins now or the deadline, whichever comes first."""
    left = max(deadline - monotonic(), 0.0)
    return left if timeout is None else min(timeout, left)
