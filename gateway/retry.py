"""Whether a request may be sent again: decisions without I/O, and the retry budget.

Rule: pure; two questions, as in tower's retry policy: may *this* request, after *this*
error, be sent again, and may *this upstream* be sent more than its clients ask for.

An attempt that failed before anything was sent (`connect`) is free of the budget: a refused
connection costs the upstream nothing, and the request has not reached an endpoint yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import ClientError, DeadlineExceeded, GatewayError
from gateway.http.messages import Request
from gateway.model import RetryPolicy

# Retries that an upstream may always get: with few requests, a share of them would round
# down to nothing (Linkerd's and Finagle's budgets have a floor likewise).
FLOOR_PER_SECOND = 3.0
# The traffic of this many seconds counts as live.
WINDOW = 10.0
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


class Budget:
    """Bounds the retries of one upstream and worker to a share of its live traffic.

    The forwarder counts `requests` up; everything else happens only when a retry is wanted.
    Tokens come in at `share` of the traffic, or at the floor if that is more, and at most a
    window's worth is saved.
    """

    __slots__ = ("_at", "_clock", "_seen", "_tokens", "requests", "spent")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.requests = 0
        self.spent = 0
        self._at = clock()
        self._seen = 0
        self._tokens = FLOOR_PER_SECOND * WINDOW

    def take(self, share: float) -> bool:
        """Take one retry out of the budget; False when there is none."""
        now = self._clock()
        elapsed = now - self._at
        fresh = float(self.requests - self._seen)
        if elapsed > WINDOW:
            fresh *= WINDOW / elapsed
            elapsed = WINDOW
        self._at, self._seen = now, self.requests
        earned = max(share * fresh, FLOOR_PER_SECOND * elapsed)
        most = max(FLOOR_PER_SECOND * WINDOW, share * fresh)
        self._tokens = min(self._tokens + earned, most)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.spent += 1
        return True

    def give_back(self) -> None:
        """A retry that was taken is not made after all."""
        self._tokens += 1.0
        self.spent -= 1
