"""How many requests one upstream may have at once in one worker.

Rule: a request that finds room costs a comparison and an addition, made where it is sent
(`forwarder`). Whoever finds none waits in turn, bounded in number and time, and is refused
as `overloaded` beyond either. A place that becomes free goes to who has waited longest.
"""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic

from gevent.event import AsyncResult

from gateway.errors import DeadlineExceeded, Overloaded
from gateway.http.messages import Request
from gateway.model import Concurrency


class Gate:
    """`in_flight`: requests that have a place, from before their first try to the end of
    their answer's body; `streams`: those of them whose answer has begun. `limit`: how many may.
    `refused`: how many found the queue full or waited in vain."""

    __slots__ = ("_narrowed", "_settings", "_turns", "in_flight", "limit", "refused", "streams", "waited")

    def __init__(self, settings: Concurrency = Concurrency(limit=0)) -> None:  # noqa: B008  # frozen
        self.in_flight = 0
        self.streams = 0
        self.refused = 0
        self.waited = 0
        self._turns: deque[AsyncResult] = deque()
        self.configure(settings)

    def configure(self, settings: Concurrency) -> None:
        """Take over settings that may have changed."""
        self._settings = settings
        self.narrow(inf)

    def narrow(self, limit: float) -> None:
        """Have another limit, within the configured one, for requests whose answer has not begun
        (`adaptive`): how long a body takes says nothing of how busy the upstream is."""
        self._narrowed = limit
        self.limit = min(limit + self.streams, self.most)
        self._serve()

    def stream(self) -> None:
        """An answer has begun, and its body goes on."""
        self.streams += 1
        if self._narrowed != inf:
            self.narrow(self._narrowed)

    def end_stream(self) -> None:
        """Such a body has ended, and with it the request."""
        self.streams -= 1
        if self._narrowed != inf:
            self.limit = min(self._narrowed + self.streams, self.most)
        self.leave()

    @property
    def most(self) -> float:
        """The configured limit."""
        return self._settings.limit or inf

    @property
    def queued(self) -> int:
        return len(self._turns)

    def wait(self, upstream: str, request: Request, deadline: float | None) -> None:
        """Get a place in turn. Raises Overloaded, or DeadlineExceeded at the `deadline`."""
        settings = self._settings
        if len(self._turns) >= settings.queue:
            self.refused += 1
            raise Overloaded(
                f"upstream {upstream}: {self.in_flight} requests in flight (limit {self.limit:g}), "
                f"{len(self._turns)} waiting (limit {settings.queue})"
            )
        self.waited += 1
        turn: AsyncResult = AsyncResult()
        self._turns.append(turn)
        began = monotonic()
        limit = settings.queue_timeout
        left = inf if deadline is None else max(deadline - began, 0.0)
        sooner = left if limit is None else min(left, limit)
        admitted = False
        try:
            turn.wait(None if sooner == inf else sooner)
            admitted = turn.ready()
        finally:
            request.queue_s += monotonic() - began
            if not admitted:
                self._give_up(turn)
        if not admitted:
            self.refused += 1
            waited = f"upstream {upstream}: no room for another request in {monotonic() - began:.3f} s"
            raise DeadlineExceeded(waited) if limit is None or left < limit else Overloaded(waited)

    def _give_up(self, turn: AsyncResult) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
        elif turn.ready():
            # It got its place at the same moment: the next has it.
            self.leave()

    def leave(self) -> None:
        """A request has ended: its place is free."""
        self.in_flight -= 1
        if self._turns:
            self._serve()

    def _serve(self) -> None:
        while self._turns and self.in_flight < self.limit:
            self.in_flight += 1
            self._turns.popleft().set()
