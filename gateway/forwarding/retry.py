"""Whether a request may be sent again: decisions without I/O.

Rule: pure; two questions, as in tower's retry policy: may *this* request, after *this*
error, be sent again, and may *this upstream* be sent more than its clients ask for.

An attempt that failed before anything was sent (`connect`) is free of the budget: a refused
connection costs the upstream nothing, and the request has not reached an endpoint yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import ClientError, DeadlineExceeded, GatewayError
from gateway.http.messages import Request
from gateway.model import RetryPolicy

# The pause before a retry is at most this many times `retry.backoff`.
LONGEST_PAUSE = 10.0


def replayable(request: Request, policy: RetryPolicy) -> bool:
    """Whether the request as such may be sent twice: its method, and a body that can be kept."""
    if request.method not in policy.methods:
        return False
    if request.body is None:
        return True
    return request.content_length is not None and request.content_length <= policy.buffer


def pause(policy: RetryPolicy, made: int, jitter: float) -> float:
    """Seconds before attempt number `made` (2 or more) at an endpoint that was used before: full
    jitter, anything from nothing to `backoff` doubled each time. `jitter`: 0.0 to 1.0."""
    return jitter * policy.backoff * min(2.0 ** min(made - 2, 30), LONGEST_PAUSE)


@dataclass(slots=True)
class Retries:
    """What the attempts of one request have come to. `made` counts those in progress or over.
    `fresh`: the next attempt needs a new connection, because a reused one was found dead. `stale`:
    that was all that happened. `first`: the first error, apart from that."""

    policy: RetryPolicy
    replayable: bool
    made: int = 1
    fresh: bool = False
    stale: bool = False
    first: GatewayError | None = None

    def after(self, error: GatewayError) -> bool:
        """Whether to retry after `error`."""
        if self.first is None or self.first.retry_as == "stale":
            self.first = error
        self.stale = error.retry_as == "stale"
        return self._left() and error.retry_as in self.policy.when and (
            not error.may_have_been_sent or self.replayable
        )

    def after_status(self, status: int) -> bool:
        """Whether to retry although an answer came, because of its status."""
        self.stale = False
        return self._left() and self.replayable and status in self.policy.statuses

    def verdict(self, last: GatewayError, request: Request, deadline: float | None, now: float) -> GatewayError:
        """The error that the request ends with when `last` is not retried: the first one, with the
        causes of all. An exceeded deadline and the client's errors stand for themselves."""
        first = self.first or last
        if isinstance(last, ClientError):
            return last
        if deadline is not None and now >= deadline and not isinstance(last, DeadlineExceeded):
            return DeadlineExceeded(f"total timeout after {now - request.started:.3f} s; last: {last.cause}")
        if first is last or isinstance(last, DeadlineExceeded):
            return last
        first.cause = f"{request.cause}; then {last.cause or last.detail}"
        request.cause = ""
        return first

    def again(self) -> None:
        self.made += 1

    def _left(self) -> bool:
        return self.made < self.policy.attempts
