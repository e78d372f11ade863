"""Whether a request may be tried again: a value that decides, and a budget.

Rule: pure; two questions, as in tower's retry policy: may *this* request, after *this*
error, be sent again, and may *this upstream* be sent more than its clients ask for.

A try that failed before anything was sent (`connect`) is free of the budget: a refused
connection is no load on anybody, and the request has not been anywhere yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import ClientError, DeadlineExceeded, GatewayError
from gateway.exchange import PIECE, Request, RequestBody
from gateway.model import RetryPolicy

# Retries that an upstream may always get: so few requests that a share of them is nothing
# still deserve a second try (Linkerd's and Finagle's budgets have a floor likewise).
FLOOR_PER_SECOND = 3.0
# The traffic of how many seconds counts as live.
WINDOW = 10.0
# A wait before another try grows no further than so many times `retry.backoff`.
LONGEST_PAUSE = 10.0


def replayable(request: Request, policy: RetryPolicy) -> bool:
    """Whether the request as such may be sent twice: its method, and a body that is kept."""
    if request.method not in policy.methods:
        return False
    if request.body is None:
        return True
    return request.content_length is not None and request.content_length <= policy.buffer


def pause(policy: RetryPolicy, made: int, jitter: float) -> float:
    """Seconds before try number `made` (2 or more) at an endpoint that was tried before: full
    jitter, anything from nothing to `backoff` doubled each time. `jitter`: 0.0 to 1.0."""
    return jitter * policy.backoff * min(2.0 ** min(made - 2, 30), LONGEST_PAUSE)


@dataclass(slots=True)
class Attempts:
    """The tries of one request. `made` counts those under way or over. `fresh`: the next
    one wants a new connection, as a reused one was just found dead. `stale`: that was all
    that happened. `first`: what went wrong first, apart from that."""

    policy: RetryPolicy
    replayable: bool
    made: int = 1
    fresh: bool = False
    stale: bool = False
    first: GatewayError | None = None

    def after(self, error: GatewayError) -> bool:
        """Whether to try again after `error`."""
        if self.first is None or self.first.retry_as == "stale":
            self.first = error
        self.stale = error.retry_as == "stale"
        return self._left() and error.retry_as in self.policy.when and (
            not error.may_have_been_sent or self.replayable
        )

    def after_status(self, status: int) -> bool:
        """Whether to try again though an answer came, for its status."""
        self.stale = False
        return self._left() and self.replayable and status in self.policy.statuses

    def cause(self, last: GatewayError, request: Request, deadline: float | None, now: float) -> GatewayError:
        """The error that the request ends with, no more tries being made after `last`: the
        first one, its cause telling of all. The deadline and the client are causes of their own."""
        if isinstance(last, ClientError):
            return last
        if deadline is not None and now >= deadline and not isinstance(last, DeadlineExceeded):
            return DeadlineExceeded(f"total timeout after {now - request.started:.3f} s; last: {last.cause}")
        first = self.first or last
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

    `requests` is counted up by whoever forwards; everything else happens only when a retry
    is wanted. Tokens come in at `share` of the traffic, or at the floor if that is more,
    and at most a window's worth is saved.
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


class ReplayBody:
    """A body that can be sent again: what was read is kept. Only for bodies known to be small."""

    __slots__ = ("_at", "_body", "_pieces", "complete", "expects_continue")

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._pieces: list[bytes] = []
        self._at = 0
        self.complete = body.complete
        self.expects_continue = body.expects_continue

    def read(self, most: int = PIECE) -> bytes:
        if self._at < len(self._pieces):
            self._at += 1
            return self._pieces[self._at - 1]
        piece = self._body.read(most)
        self.expects_continue = False
        if piece:
            self._pieces.append(piece)
            self._at += 1
        return piece

    def rewind(self) -> None:
        self._at = 0
