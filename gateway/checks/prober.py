"""Active health: every endpoint is asked now and then, by one worker for all of them.

Rule: the workers of one master agree by a lock (`board`) who asks. That one tells its verdicts
to the others, which take them over within LOOK. Whoever asked last is followed, when it ends,
by another that begins with its verdicts; when it says nothing for SILENCE seconds (it hangs),
each worker asks for itself until it is back. Without a place to meet each worker does so, too.

However many endpoints there are, AT_ONCE are asked at a time. How they are asked is the
caller's (`transport.probe`); what becomes of an endpoint is `Outliers.check`'s.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event
from gevent.pool import Group as Greenlets

from gateway.checks.board import Board, Verdict
from gateway.checks.check import Tally, fault, question
from gateway.checks.schedule import Schedule
from gateway.errors import GatewayError, Unavailable
from gateway.health.candidate import Candidate
from gateway.model import Endpoint, HealthCheck, Key, Upstream
from gateway.runtime.background import Background, Task

if TYPE_CHECKING:
    from gateway.upstreams.snapshot import Group

log = logging.getLogger("gateway.health")

# Seconds between two looks at what others did: at the board, at the endpoints there are.
LOOK = 0.1
# The same where there is nothing to check.
IDLE = 0.5
# How often the one that checks says that it lives, and when it is not believed any more.
BEAT = 1.0
SILENCE = 5.0
AT_ONCE = 64
# A newcomer is asked within so many seconds.
SOON = 1.0
# An interval is longer or shorter by up to this share, so that checks drift apart.
JITTER = 0.1

# The status of an answer to a request (0 without one), within so many seconds, or GatewayError.
Ask = Callable[[Upstream, Endpoint, bytes | None, float], int]
Groups = Mapping[str, "Group"]


class _Target:
    """An endpoint that is checked. `busy`: just now. `asked`: for the first time at least."""

    __slots__ = ("asked", "busy", "candidate", "check", "group", "tally")

    def __init__(self, group: Group, candidate: Candidate, check: HealthCheck) -> None:
        self.group = group
        self.candidate = candidate
        self.check = check
        self.tally = Tally()
        self.busy = False
        self.asked = False

    def apply(self, verdict: Verdict | None, now: float) -> None:
        """What is known of the endpoint is what the checks say."""
        state, outliers = self.candidate.state, self.group.state.outliers
        if verdict is None:
            outliers.unchecked(self.candidate)
        elif state.checked is not verdict.healthy:
            news = not (verdict.healthy and state.checked is None)
            outliers.check(self.candidate, verdict.healthy, verdict.why, now)
            if news:
                # As the worker that asked saw it.
                state.since = verdict.since


class Prober:
    """One worker's part in it. `groups` gives those in force: another mapping when anything is
    different. Times are monotonic seconds, `wall` gives those since 1970."""

    def __init__(
        self,
        groups: Callable[[], Groups],
        ask: Ask,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        background: Background | None = None,
    ) -> None:
        self._groups = groups
        self._ask = ask
        self._clock = clock
        self._wall = wall
        self._random = jitter
        self._seen: Groups = {}
        self._targets: dict[str, dict[Key, _Target]] = {}
        self._verdicts: dict[str, dict[Key, Verdict]] = {}
        self._schedule: Schedule[_Target] = Schedule()
        self._under_way = Greenlets()
        self._number = 0
        self._woken = Event()
        self._board: Board | None = None
        # What the board has to be told, when it last was, and when it was touched.
        self._changed: set[str] = set()
        self._written = self._beaten = -SILENCE
        # What the log knows already: that nobody is told, and that the gateway itself cannot ask.
        self._trouble = ""
        self._hindered = False
        self._background = background or Background()
        self._greenlet: Task | None = None
        # Whether this worker is one that asks.
        self.checking = False

    # -- life ---------------------------------------------------------------------------

    def start(self, folder: str | None) -> None:
        """Begin, with what others know already. `folder`: where the workers meet; None: nowhere."""
        if folder is not None:
            try:
                self._board = Board(folder, self._wall)
            except OSError as error:
                log.error("health checks are not shared, each worker checks for itself: %s", error)
        self.turn()
        self._greenlet = self._background.start("health checks", self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None
        self._under_way.kill(block=False)
        self.checking = False
        if self._board is not None:
            self._board.close()
            self._board = None

    def _run(self) -> None:
        while True:
            self._woken.wait(self._pause())
            self._woken.clear()
            # If it fails, the verdicts stay and the next turn tries again.
            self.turn()

    def _pause(self) -> float:
        if not self._targets:
            return IDLE
        if self._number >= AT_ONCE:
            return LOOK
        return max(min(self._schedule.next - self._clock(), LOOK), 0.0)

    def turn(self) -> None:
        """Do what is due."""
        now = self._clock()
        self._follow(now)
        board = self._board
        if self._targets and (board is None or board.lead() or board.silence() > SILENCE):
            self._begin(now)
            self._start_due(now)
        elif board is None or not board.leading:
            self._cease(now)
            if board is not None:
                self._take(board, now)
        if board is not None and board.leading:
            if now - self._beaten >= BEAT:
                self._beaten = now
                board.beat()
            self._tell(board, now)
            if not self._targets and not self._changed:
                board.resign()

    # -- which endpoints ----------------------------------------------------------------

    def _follow(self, now: float) -> None:
        """Have the endpoints that are in force."""
        groups = self._groups()
        if groups is self._seen:
            return
        before = self._seen
        for name in list(self._targets):
            group = groups.get(name)
            if group is None or group.upstream.health is None:
                self._drop(name, group)
        for name, group in groups.items():
            check = group.upstream.health
            if check is not None and group is not before.get(name):
                self._join(name, group, check, now)
        # Set last: after an exception the remaining groups must be compared again.
        self._seen = groups

    def _drop(self, name: str, group: Group | None) -> None:
        """An upstream is checked no more, or gone."""
        for key, target in self._targets.pop(name).items():
            self._forget(name, key, target)
            if group is not None:
                target.apply(None, 0.0)
        if self.checking:
            self._verdicts.pop(name, None)

    def _join(self, name: str, group: Group, check: HealthCheck, now: float) -> None:
        """The endpoints of an upstream may be others, or checked in another way."""
        before = self._targets.get(name, {})
        targets = self._targets[name] = {}
        verdicts = self._verdicts.setdefault(name, {})
        for candidate in group.candidates:
            key = candidate.endpoint.key
            if key in targets:
                continue
            known = before.pop(key, None)
            target = targets[key] = known or _Target(group, candidate, check)
            if self.checking and (known is None or known.check != check):
                self._plan(target, check, now)
            target.group, target.candidate, target.check = group, candidate, check
            target.apply(verdicts.get(key), now)
        for key, target in before.items():
            self._forget(name, key, target)

    def _forget(self, name: str, key: Key, target: _Target) -> None:
        """It is checked no more. What others found out is theirs to take back."""
        self._schedule.drop(target)
        if self.checking and self._verdicts[name].pop(key, None) is not None:
            self._changed.add(name)

    def _every(self) -> Iterator[tuple[str, Key, _Target]]:
        for name, targets in self._targets.items():
            for key, target in targets.items():
                yield name, key, target

    # -- who checks ---------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """This worker checks from now on."""
        if self.checking:
            return
        if self._board is not None:
            # The last words of whoever did before.
            self._take(self._board, now)
        self.checking = True
        before, self._verdicts = self._verdicts, {name: {} for name in self._targets}
        self._changed.update(before)
        for name, key, target in self._every():
            verdict = before.get(name, {}).get(key)
            if verdict is not None:
                self._verdicts[name][key] = verdict
            target.tally = Tally(None if verdict is None else verdict.healthy)
            target.asked = verdict is not None
            self._plan(target, target.check, now)

    def _cease(self, now: float) -> None:
        """It does not check any more: what another one finds out counts."""
        if not self.checking:
            return
        self.checking = False
        self._schedule.clear()
        self._changed.clear()
        self._verdicts = {}
        if self._board is not None:
            self._board.forget()
            self._verdicts = self._board.read()
            for name, key, target in self._every():
                target.apply(self._verdicts.get(name, {}).get(key), now)

    def _take(self, board: Board, now: float) -> None:
        """Take over what another worker has found out."""
        for name, verdicts in board.read().items():
            self._verdicts[name] = verdicts
            for key, target in self._targets.get(name, {}).items():
                target.apply(verdicts.get(key), now)

    def _tell(self, board: Board, now: float) -> None:
        if not self._changed or now - self._written < LOOK:
            return
        self._written = now
        try:
            board.write(self._verdicts, self._changed)
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("other workers are not told what health checks found: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
            self._changed.clear()

    # -- checks -------------------------------------------------------------------------

    def _plan(self, target: _Target, check: HealthCheck, now: float) -> None:
        """The next check of one that has waited for none so far: soon, if it is the first at all."""
        within = check.interval if target.asked else min(check.interval, SOON)
        self._schedule.put(target, now + within * self._random())

    def _start_due(self, now: float) -> None:
        while self._number < AT_ONCE:
            target = self._schedule.take(now)
            if target is None:
                return
            # One that is under way from before says itself when the next is due.
            if not target.busy:
                target.busy = True
                self._number += 1
                self._under_way.spawn(self._check, target)

    def _check(self, target: _Target) -> None:
        """A greenlet: one check, and when the next one is."""
        began = self._clock()
        found: str | None = None
        try:
            found = self._outcome(target)
        except gevent.GreenletExit:
            raise
        except BaseException as error:  # gevent.Timeout is not an Exception
            self._fault(target, error)
        finally:
            target.busy = False
            self._number -= 1
            self._woken.set()
        name, key = target.group.upstream.name, target.candidate.endpoint.key
        if not self.checking or self._targets.get(name, {}).get(key) is not target:
            return
        interval = target.check.interval
        # The second one at any time within the interval: so those that came together part.
        wait = interval * (1.0 - JITTER + 2.0 * JITTER * self._random() if target.asked else self._random())
        target.asked = True
        now = self._clock()
        self._schedule.put(target, max(began + wait, now))
        why = "" if found is None else target.tally.add(target.check, found)
        if why:
            verdict = Verdict(not found, why, self._wall())
            self._verdicts[name][key] = verdict
            self._changed.add(name)
            target.apply(verdict, now)

    def _fault(self, target: _Target, error: BaseException) -> None:
        """A check failed because of an internal error: no verdict; the endpoint is checked again."""
        what = f"a check of {target.candidate.endpoint.address} failed by our own fault"
        if self._greenlet is not None:
            self._greenlet.note(error, what)
        else:
            log.error("%s", what, exc_info=error)

    def _outcome(self, target: _Target) -> str | None:
        """What is wrong with an endpoint; "" when nothing is, None when the gateway itself could
        not ask."""
        upstream, endpoint, check = target.group.upstream, target.candidate.endpoint, target.check
        try:
            status = self._ask(upstream, endpoint, question(check, endpoint), check.timeout)
            self._hindered = False
            return fault(check, status)
        except Unavailable as error:
            if not self._hindered:
                log.warning("upstream %s: %s could not be checked: %s", upstream.name, endpoint.address, error.cause)
            self._hindered = True
            return None
        except GatewayError as error:
            return error.cause or error.detail
