"""An answer that is retried because of its status, kept in case no later one is better.

Rule: it is read whole before the next attempt starts, so that it holds no connection, no
place in a pool and no greenlet meanwhile. Reading is bounded in bytes and in time.
"""

from __future__ import annotations

from enum import Enum

from gevent import Timeout

from gateway.errors import BadResponse, UpstreamStalled, UpstreamTruncated
from gateway.http.messages import Response

# A body of up to this many bytes is kept; an answer with a longer one is passed on instead
# of being retried.
MOST_KEPT = 16 * 1024
# Seconds within which the body must have arrived; the retry does not wait longer for it.
KEEP_WITHIN = 1.0


class Kept(Enum):
    """What became of an answer that was to be kept."""

    # Its body is here, and its connection was released.
    WHOLE = "whole"
    # Its body is too long to be kept: it can only be passed on.
    TOO_LONG = "too long"
    # Its body broke off or did not arrive in time: it can only be forgotten.
    LOST = "lost"


def keep(response: Response, within: float = KEEP_WITHIN) -> Kept:
    """Read the rest of an answer's body into `data`, for at most `within` seconds.

    After WHOLE and LOST the answer has no `stream` any more. Raises what ends the request
    meanwhile (ClientClosed, Draining …); the answer's stream is closed then.
    """
    stream = response.stream
    if response.tunnel is not None:
        return Kept.TOO_LONG
    if stream is None:
        return Kept.WHOLE
    if response.content_length is not None and response.content_length > MOST_KEPT:
        return Kept.TOO_LONG
    pieces, size = [response.data], len(response.data)
    outcome = Kept.LOST
    try:
        with Timeout(within, False):
            while size <= MOST_KEPT and (piece := stream.read()):
                pieces.append(piece)
                size += len(piece)
            outcome = Kept.WHOLE if size <= MOST_KEPT else Kept.TOO_LONG
    except (UpstreamTruncated, UpstreamStalled, BadResponse):
        # The body broke off; `read` has released the connection.
        outcome = Kept.LOST
    except BaseException:
        stream.close()
        raise
    response.data = b"".join(pieces)
    if outcome is not Kept.TOO_LONG:
        response.stream = None
        stream.close()
    return outcome
