"""A gateway error as the answer that the client gets: RFC 9457, `application/problem+json`.

Rule: pure, and the one place that makes such answers. `status`, `reason` and `detail` come
from the error's class; its `cause` is for the log and never gets in here. `type` is
`about:blank` (RFC 9457 §4.2.1): the title is then the status phrase, and `reason` is the
word that programs look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

from gateway.errors import (
    BadRequest,
    ClientClosed,
    GatewayError,
    HeaderTooLarge,
    RequestTimeout,
    UnsupportedCoding,
    UnsupportedMethod,
    UnsupportedVersion,
    UriTooLong,
)
from gateway.http.messages import Header, Request, Response

CONTENT_TYPE = b"application/problem+json"

# RFC 9110 §15's phrases where Python 3.11 still has those of RFC 7231, and the one that is
# only ever logged.
_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
    499: "Client Closed Request",
}

# After these nobody knows where the next request would begin, or whether it will come.
_BORDER_LOST = (BadRequest, HeaderTooLarge, RequestTimeout, UnsupportedCoding, UnsupportedVersion, UriTooLong)

# RFC 9110 §15.5.6: a 405 lists the methods. Other methods are forwarded as well; there is no wildcard for them.
_ALLOW = (b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")


def phrase(status: int) -> str:
    """The status phrase of RFC 9110; of its class for a status that has none."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        # RFC 9110 §15: an unknown status is understood as the x00 of its class.
        return HTTPStatus(status // 100 * 100).phrase


def answer(error: GatewayError, request: Request | None, headers: Iterable[Header] = ()) -> Response:
    """What the client is told about an error; `headers` are added to its own.

    `request` is None when not even a head was understood. When the client is gone
    (`ClientClosed`) there is nobody to tell: the response is empty, its status is for the
    log, and the door breaks the connection instead of writing it.
    """
    title = phrase(error.status)
    if isinstance(error, ClientClosed):
        return Response(error.status, title.encode("ascii"), [], content_length=0, close=True)
    body = json.dumps(
        {
            "type": "about:blank",
            "title": title,
            "status": error.status,
            "detail": error.detail,
            "reason": error.reason,
            "request_id": request.request_id.decode("latin-1") if request is not None else "",
        }
    ).encode("ascii")
    bodyless = request is not None and request.method == b"HEAD"
    return Response(
        error.status,
        title.encode("ascii"),
        [
            (b"Content-Type", CONTENT_TYPE),
            # A 404, 405, 414 or 501 may be cached unless told otherwise (RFC 9110 §15.1), and
            # this one ends with the next change of the routes.
            (b"Cache-Control", b"no-store"),
            (b"Gateway-Error", error.reason.encode("ascii")),
            *([_ALLOW] if isinstance(error, UnsupportedMethod) else []),
            *([] if error.retry_after is None else [(b"Retry-After", b"%d" % error.retry_after)]),
            *headers,
        ],
        content_length=len(body),
        data=b"" if bodyless else body,
        bodyless=bodyless,
        close=isinstance(error, _BORDER_LOST),
    )
