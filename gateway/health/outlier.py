"""Passive health: which endpoints get requests, learnt from the requests themselves.

Rule (Envoy's outlier detection, Finagle's failure accrual): an endpoint that failed so many
times in a row, or so large a share of its recent requests, is out for a while, twice as long
each time. Then one request tries it: it returns, or is out again. No more than a share of an
upstream's endpoints are out by this, and the only one never is. Where none is left that
works, all are tried (panic): an answer from any of them ends that.

Every request asks `usable`, which costs an identity and a comparison (`of`, `recheck`);
everything else happens when something failed or a time has passed. The balancer is never
given an endpoint that is out: what tries one is taken from `due`.

An upstream may have tens of thousands of endpoints: `prepare` looks at those of a coming snapshot in parts, so
that `look` has next to nothing to do when it is in force.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from gateway.health.window import Window
from gateway.model import Eject, Upstream
from gateway.runtime.hub import parts

if TYPE_CHECKING:
    from gateway.health.candidate import Candidate, EndpointState

log = logging.getLogger("gateway.health")

# What may be sent twice tries an endpoint that was out, because a failure is then nobody's.
# Where no such request has come for so many seconds, any request does.
PATIENCE = 1.0
# How often, in seconds, it is looked whether a panic is over.
_PANIC_LOOK = 0.1


class Outliers:
    """One for each upstream and worker. Times are monotonic seconds, `wall` gives those since 1970."""

    __slots__ = (
        "_decisions", "_plain", "_slow_start", "_upstream", "_wall", "due", "eject", "of", "panic", "recheck", "usable",
    )  # fmt: skip

    def __init__(self, upstream: Upstream, decisions: Counter[str], wall: Callable[[], float] = time.time) -> None:
        self._decisions = decisions
        self._wall = wall
        # The candidates that `usable` and `due` are about.
        self.of: Sequence[Candidate] = ()
        self.usable: Sequence[Candidate] = ()
        self.due: list[Candidate] = []
        # Candidates of which every one is known to be up.
        self._plain: Sequence[Candidate] | None = None
        self.recheck = inf
        self.panic = False
        self.configure(upstream)

    def configure(self, upstream: Upstream) -> None:
        self._upstream = upstream.name
        self._slow_start = upstream.slow_start
        self.eject = upstream.eject
        # Whatever was decided is looked at again.
        self._look_again()

    def _look_again(self) -> None:
        """Something has changed: the next request calls `look`."""
        self.recheck = -inf
        self._plain = None

    # -- who gets requests ------------------------------------------------------------

    def prepare(self, candidates: Sequence[Candidate], now: float, turn: Callable[[], object]) -> None:
        """Find out ahead of a swap whether all candidates are up. `turn` is called between two parts of the work."""
        # Any event at a candidate in the meantime takes this back.
        self._plain = candidates
        if not candidates or any(_odd(candidate.state, now) for candidate in parts(candidates, turn)):
            self._plain = None

    def look(self, candidates: Sequence[Candidate], now: float) -> None:
        """Work out `usable` and `due` anew for the candidates of a snapshot."""
        self.of = candidates
        odd = () if candidates is self._plain else [one for one in candidates if _odd(one.state, now)]
        if candidates and not odd:
            self.usable, self.due, self.recheck, self.panic = candidates, [], inf, False
            return
        if self.panic:
            self._leave_panic(candidates, now)
        if self.eject is None:
            for candidate in odd:
                candidate.state.out_until = 0.0
        out = {candidate.state for candidate in odd if _out(candidate.state)}
        up = [one for one in candidates if one.state not in out] if out else candidates
        if any(not _hopeless(candidate.state) for candidate in up):
            self.panic = False
        elif not self.panic and candidates:
            self._enter_panic(candidates, up)
        chosen = candidates if self.panic or len(up) == len(candidates) else tuple(up)
        self.due = []
        self.recheck = now + _PANIC_LOOK if self.panic else inf
        warming = False
        for candidate in odd:
            state = candidate.state
            if state.out_until and state.checked is not False and not self.panic and not state.on_trial:
                if state.out_until <= now:
                    self.due.append(candidate)
                else:
                    self.recheck = min(self.recheck, state.out_until)
            if state.warm_until > now:
                warming = True
                self.recheck = min(self.recheck, state.warm_until)
        # A balancer looks at weights only when it is given another sequence.
        self.usable = (*chosen,) if warming else tuple(chosen)

    def _enter_panic(self, candidates: Sequence[Candidate], up: Sequence[Candidate]) -> None:
        """All are tried, unless there is nothing to be gained by that."""
        if len(up) == len(candidates):
            return
        self.panic = True
        self._decisions["panic"] += 1
        log.warning("upstream %s: none of %d endpoints works, all are tried", self._upstream, len(candidates))
        for candidate in candidates:
            candidate.state.mark = candidate.state.answered

    def _leave_panic(self, candidates: Sequence[Candidate], now: float) -> None:
        """Whoever answered meanwhile is up again."""
        for candidate in candidates:
            state = candidate.state
            if state.out_until and state.answered != state.mark:
                self._back(candidate, now, "it answered when all were tried")

    def trial(self, again: bool, now: float) -> Candidate | None:
        """An endpoint that was out, to be tried by this request. `again`: it may be sent twice."""
        for candidate in self.due:
            state = candidate.state
            if again or now >= state.out_until + PATIENCE:
                self.due.remove(candidate)
                state.on_trial = True
                return candidate
        return None

    # -- what became of a try ---------------------------------------------------------

    def answered(self, candidate: Candidate, now: float) -> None:
        """A trial is over, well."""
        candidate.state.on_trial = False
        if candidate.state.out_until:
            self._back(candidate, now, "it answered")
        self._look_again()

    def undecided(self, candidate: Candidate) -> None:
        """A trial is over; if nothing was said of it, there will be another."""
        if candidate.state.on_trial:
            candidate.state.on_trial = False
            self._look_again()

    def failed(self, candidate: Candidate, began: float, now: float, why: str, trial: bool) -> None:
        """A try that began at `began` failed by the endpoint's fault."""
        state = candidate.state
        if trial and state.out_until:
            state.on_trial = False
            self._eject(candidate, now, f"{why} when it was tried again")
            return
        if state.out_until or began < state.returned_at:
            # It has been judged for that: what hung before it came back says nothing of it now.
            return
        if state.answered != state.streak_at:
            state.streak, state.streak_at = 0, state.answered
        state.streak += 1
        eject = self.eject
        if eject is None:
            return
        told = self._verdict(state, eject, now)
        if told:
            self._consider(candidate, eject, now, f"{told} ({why})")

    def _verdict(self, state: EndpointState, eject: Eject, now: float) -> str:
        """Why an endpoint has to go; "" when it has not."""
        if eject.consecutive and state.streak >= eject.consecutive:
            told = f"{state.streak} failures in a row"
        else:
            told = ""
        if eject.error_rate:
            if state.window is None or state.window.length != eject.window:
                state.window = Window(eject.window)
            failures, requests = state.window.failed(now, state.answered)
            if not told and requests >= eject.min_requests and failures >= eject.error_rate * requests:
                told = f"{failures} of {requests} requests failed within {eject.window:g} s"
        return told

    def _consider(self, candidate: Candidate, eject: Eject, now: float, why: str) -> None:
        """Take it out, unless too many are."""
        state, number = candidate.state, len(self.of)
        allowed = max(int(number * eject.max_ejected), 1) if eject.max_ejected and number > 1 else 0
        if sum(1 for other in self.of if other.state.out_until) < allowed:
            self._eject(candidate, now, why)
            return
        if state.spared is None:
            self._decisions["spared"] += 1
            log.warning(
                "upstream %s: %s is not ejected, %d of %d may be: %s",
                self._upstream, candidate.endpoint.address, allowed, number, why,
            )  # fmt: skip
        state.spared = state.answered
        self._look_again()

    def _eject(self, candidate: Candidate, now: float, why: str) -> None:
        eject, state = self.eject or Eject(), candidate.state
        # What was good for a while counts for what went before; the time that it was out was not.
        good = now - state.returned_at if state.returned_at and not state.out_until else 0.0
        forgiven = int(good / eject.out_for)
        state.ejections = max(state.ejections - forgiven, 0) + 1
        seconds = min(eject.out_for * 2.0 ** min(state.ejections - 1, 30), eject.max_for)
        state.out_until = now + seconds
        state.spared = None
        self._tell(state, why)
        self._decisions["ejected"] += 1
        log.warning("upstream %s: %s ejected for %g s: %s", self._upstream, candidate.endpoint.address, seconds, why)
        self._look_again()

    def _back(self, candidate: Candidate, now: float, why: str) -> None:
        state = candidate.state
        state.on_trial = False
        self._begin_anew(state, now)
        self._tell(state, why)
        self._decisions["returned"] += 1
        log.warning("upstream %s: %s is back: %s", self._upstream, candidate.endpoint.address, why)

    def _begin_anew(self, state: EndpointState, now: float) -> None:
        """It works: failures of before say nothing any more."""
        state.out_until = 0.0
        state.returned_at = now
        state.streak = 0
        state.spared = None
        if state.window is not None:
            state.window.clear()
        self.warm_up(state, now)

    # -- what active checks say -------------------------------------------------------

    def check(self, candidate: Candidate, healthy: bool, why: str, now: float) -> None:
        """Active health has another verdict."""
        state = candidate.state
        if state.checked is healthy:
            return
        # The first good word about an endpoint is no news.
        if not (healthy and state.checked is None):
            self._tell(state, why)
            self._decisions["healthy" if healthy else "unhealthy"] += 1
            word = "healthy again" if healthy else "unhealthy"
            log.warning("upstream %s: %s is %s: %s", self._upstream, candidate.endpoint.address, word, why)
            if healthy:
                self._begin_anew(state, now)
        state.checked = healthy
        self._look_again()

    def unchecked(self, candidate: Candidate) -> None:
        """Active health says nothing of it (any more)."""
        state = candidate.state
        if state.checked is False:
            self._tell(state, "it is not checked any more")
        if state.checked is not None:
            state.checked = None
            self._look_again()

    def warm_up(self, state: EndpointState, now: float, seconds: float | None = None) -> None:
        """Let its share grow over `seconds`, by default over the configured `slow_start`."""
        length = self._slow_start if seconds is None else seconds
        if length:
            state.warm_from, state.warm_until = now, now + length
            self._look_again()

    def _tell(self, state: EndpointState, why: str) -> None:
        state.why, state.since = why, self._wall()


def _odd(state: EndpointState, now: float) -> bool:
    """Whether it takes a closer look: it is or was out, or its share grows."""
    return (
        state.out_until > 0.0
        or state.checked is False
        or state.spared is not None
        or state.on_trial
        or state.warm_until > now
    )


def _out(state: EndpointState) -> bool:
    return state.out_until > 0.0 or state.checked is False


def _hopeless(state: EndpointState) -> bool:
    """It would be out if not too many were, and has not answered since."""
    return state.spared is not None and state.spared == state.answered
