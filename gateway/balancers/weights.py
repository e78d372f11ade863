"""What candidates weigh against one another, slow start included, and choosing by it.

Rule: an endpoint weighs its own weight times the share that slow start gives it
(`EndpointState.warm`). That is worked out for each new sequence of candidates; where some
are warming, again each tenth of a second. Who asks for less often than that pays an identity
and a comparison.

Of tens of thousands of candidates that takes tens of milliseconds: `prepare` does it in parts for those of a
coming snapshot, and `look` takes the result over.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf
from time import monotonic

from gateway.health.candidate import Candidate
from gateway.runtime.hub import parts

_TICK = 0.1
# Of very many the shares grow in fewer and larger steps: seconds for each candidate.
_TICK_EACH = 2e-5


class Weights:
    """Of one sequence of candidates, `of`. `shares` add up to 1; `equal`, all are alike;
    `settled`, none of them grows. `random` gives a float in [0, 1)."""

    __slots__ = ("_again", "_random", "_ready", "_sums", "equal", "of", "settled", "shares")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._again = inf
        # Weights of settled candidates, prepared for when they are in force.
        self._ready: tuple[Sequence[Candidate], list[float], list[float], bool] | None = None
        self._sums: list[float] = []
        self.of: Sequence[Candidate] = ()
        self.shares: list[float] = []
        self.equal = True
        self.settled = True

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        """Work out the weights of candidates to come, unless a weight is still growing."""
        self._ready = None
        now = monotonic()
        weights: list[float] = []
        for candidate in parts(candidates, turn):
            if candidate.state.warm_until > now:
                return
            weights.append(candidate.endpoint.weight)
        shares, sums, equal = _worked_out(weights, turn)
        self._ready = (candidates, shares, sums, equal)

    def look(self, candidates: Sequence[Candidate], now: float) -> None:
        """Be about these candidates, as they are now."""
        if candidates is self.of and now < self._again:
            return
        self.of = candidates
        ready = self._ready
        if ready is not None and ready[0] is candidates:
            _, self.shares, self._sums, self.equal = ready
            self.settled, self._again, self._ready = True, inf, None
            return
        self.settled = max([candidate.state.warm_until for candidate in candidates], default=0.0) <= now
        if self.settled:
            weights: list[float] = [candidate.endpoint.weight for candidate in candidates]
        else:
            weights = [candidate.endpoint.weight * candidate.state.warm(now) for candidate in candidates]
        self.shares, self._sums, self.equal = _worked_out(weights)
        self._again = inf if self.settled else now + max(_TICK, _TICK_EACH * len(candidates))

    def one(self) -> int:
        """The place of one of them, by chance: as likely as its share is large."""
        return bisect(self._sums, self._random() * self._sums[-1], 0, len(self._sums) - 1)

    def another(self, first: int) -> int:
        """The same among those that are not `first`; `first` where there are no others."""
        share, below = self.shares[first], self._sums[first] - self.shares[first]
        at = self._random() * (self._sums[-1] - share)
        # Behind the first one, which is not there.
        return bisect(self._sums, at + share if at >= below else at, 0, len(self._sums) - 1)

    def smooth(self) -> Candidate:
        """Who is next by smooth weighted round robin (nginx's): each time everybody's credit
        grows by its share, and who has most pays 1.

        The credit stands with what is known of an endpoint, in shares and not in weights: it
        is good for other weights and among others just as well.
        """
        best = self.of[0]
        most = -inf
        for candidate, share in zip(self.of, self.shares, strict=True):
            state = candidate.state
            if state.credit is None:
                # A newcomer starts somewhere between the best and the worst placed.
                state.credit = self._random() - 0.5
            state.credit += share
            if state.credit > most:
                best, most = candidate, state.credit
        best.state.credit = most - 1.0
        return best


def _worked_out(
    weights: list[float], turn: Callable[[], object] = lambda: None
) -> tuple[list[float], list[float], bool]:
    """Shares, their sums up to each, and whether all are equal."""
    total = sum(weights)
    turn()
    equal = len(set(weights)) == 1
    turn()
    if equal:
        shares = [weights[0] / total] * len(weights)
    else:
        shares = [weight / total for weight in parts(weights, turn)]
    return shares, list(accumulate(parts(shares, turn))), equal
