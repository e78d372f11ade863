"""How often a registry is asked: pauses after failures, a bounded rate of questions, and waits that drift apart.

Rule: pure but for the clock and the random numbers, which are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Workers that were started together must not ask together for ever: each wait is longer or
# shorter by up to this share (Prometheus and Envoy spread their polls likewise).
JITTER = 0.1

Clock = Callable[[], float]
Random = Callable[[], float]

# After an error the next attempt is soon, then later and later (interface: 1 s to 30 s).
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


def spread(seconds: float, random: Random) -> float:
    """A wait of about `seconds`, so that many workers drift apart."""
    return seconds * (1 - JITTER + 2 * JITTER * random())


@dataclass(slots=True)
class Backoff:
    """How long to wait after the attempts that failed in a row."""

    random: Random
    failures: int = 0

    def failed(self) -> float:
        """One more failure: the pause before the next attempt, in seconds."""
        # 2 ** 5 is past the longest pause already; a float must not overflow in a long outage.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures, 5))
        self.failures += 1
        return spread(pause, self.random)

    def succeeded(self) -> None:
        self.failures = 0


# However fast a registry changes, each provider asks it at this rate at most, after a few
# questions at once: a deployment's changes come through one by one, a flapping service's do not.
QUESTIONS_A_SECOND, BURST = 2.0, 3


class TokenBucket:
    """Says how long to wait before the next question."""

    def __init__(self, clock: Clock, rate: float = QUESTIONS_A_SECOND, burst: int = BURST) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled = clock()

    def take(self) -> float:
        """One question: the pause before it, in seconds."""
        now = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)
