"""Whether this worker has more to do than it can: the hub's own lag.

Rule: a look that comes late twice in a row by more than the limit says that every turn of the
hub takes that long, and so waits every request: new ones are refused until it is in time
again. Once is no overload, but a stall (a collection of garbage, a paused machine). Nothing
that was accepted is touched: streams and tunnels go on, and the gateway's own paths answer.
"""

from __future__ import annotations

import logging
import time

import gevent

from gateway.runtime.background import Background, Task

log = logging.getLogger("gateway.health")

# Seconds between two looks.
INTERVAL = 0.05
# Seconds that a client is told to wait.
RETRY_AFTER = 1


class Overload:
    """`limit`: seconds of lag, None for no limit. `shedding` is what a request asks."""

    __slots__ = ("_background", "_greenlet", "_last", "lag", "limit", "shed", "shedding", "times")

    def __init__(self, limit: float | None, background: Background | None = None) -> None:
        self.limit = limit
        self.shedding = False
        # Seconds that the last look was late; how often shedding began; requests refused.
        self.lag = 0.0
        self.times = 0
        self.shed = 0
        self._last: float | None = None
        self._background = background or Background()
        self._greenlet: Task | None = None

    def start(self) -> None:
        if self.limit is not None:
            self._greenlet = self._background.start("overload", self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None
        self.shedding = False

    def _run(self) -> None:
        # The pause before a restart must not count as lag.
        self._last = None
        while True:
            gevent.sleep(INTERVAL)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """A look at `now` (monotonic seconds), which should come `INTERVAL` after the last one."""
        before, self._last = self._last, now
        if before is None or self.limit is None:
            return
        was_late = self.lag > self.limit
        self.lag = max(now - before - INTERVAL, 0.0)
        late = self.lag > self.limit
        if late and was_late and not self.shedding:
            self.shedding = True
            self.times += 1
            log.warning("overloaded: turns of the hub take %.3f s, new requests are refused", self.lag)
        elif not late and self.shedding:
            self.shedding = False
            log.warning("overloaded no more: %d requests were refused so far", self.shed)
