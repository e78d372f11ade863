"""The attempts of one request at one upstream, one after another, or two at once when hedged.

Rule: pick, send, decide, until an answer counts. Each attempt has its own reader of the
client's body, and nothing of it is left when the next one starts: its upload has ended and
its connection was released. What was counted up is counted down however an attempt ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from gateway import target as targets
from gateway.errors import ClientError, ConnectTimeout, DeadlineExceeded, GatewayError, PoolFull
from gateway.exchange import Request, Response
from gateway.headers import Head, Outbound, with_field
from gateway.health.candidate import Candidate
from gateway.health.state import UpstreamState
from gateway.kept import Kept, keep
from gateway.model import Endpoint, RetryPolicy, Route, Timeouts
from gateway.replay import ReplayBuffer
from gateway.retry import Retries, pause, replayable
from gateway.target import Target


class Race(Protocol):
    """hedge.race: two attempts at once."""

    def __call__(
        self,
        first: Callable[[], Response],
        second: Callable[[], Callable[[], Response] | None],
        after: float,
        discard: Callable[[Response], None],
    ) -> tuple[bool, Response]: ...


class Tools(NamedTuple):
    """What attempts work with, the same for all requests of a worker.

    `race` runs two attempts at once; `sleep` waits that many seconds and lets others run;
    `jitter` is a number from 0.0 to 1.0. `pool_of`: the pool to send by, where that is not
    the candidate's own.
    """

    outbound: Outbound
    race: Race
    sleep: Callable[[float], object]
    jitter: Callable[[], float]
    pool_of: Callable[[UpstreamState, Candidate], Any] | None = None


class Attempts:
    """`run` gives the answer that counts and the candidate that gave it.

    `target`, `normal`: the request's target and its path in normal form. `asked_host`: the
    authority that the client asked for. `deadline`: monotonic seconds that end every attempt.
    """

    # What only some requests need. No __slots__: these defaults cost nothing to set.
    _buffer: ReplayBuffer | None = None
    _retries: Retries | None = None
    # The last real answer, read whole.
    _kept: tuple[Response, Candidate] | None = None

    def run(
        self,
        tools: Tools,
        request: Request,
        route: Route,
        state: UpstreamState,
        candidates: tuple[Candidate, ...],
        target: Target,
        normal: bytes,
        asked_host: bytes,
        deadline: float | None,
    ) -> tuple[Response, Candidate]:
        """`candidates`: those of the request's snapshot. Raises GatewayError when no attempt had an answer."""
        self._tools = tools
        self._request = request
        self._route = route
        self._state = state
        self._candidates = candidates
        self._target = target
        self._normal = normal
        self._asked_host = asked_host
        self._deadline = deadline
        policy, outliers = route.retry, state.outliers
        again = self._replayable = replayable(request, policy)
        if again and request.body is not None and policy.attempts > 1:
            self._buffer = ReplayBuffer(request.body)
            request.body = self._buffer.reader()
        if candidates is not outliers.of or request.started >= outliers.recheck:
            outliers.look(candidates, monotonic())
        self._left: Sequence[Candidate] = outliers.usable
        # An ejected candidate that this request is to probe.
        trial = outliers.trial(again, monotonic()) if outliers.due else None
        hedged = policy.hedge and trial is None and _may_hedge(request, policy, self._left)
        fresh = False
        try:
            while True:
                candidate = trial or state.balancer.pick(self._left, request)
                try:
                    if hedged:
                        response, candidate = self._hedged(candidate)
                    else:
                        response = self._attempt(request, candidate, fresh, trial is not None)
                except GatewayError as error:
                    if not self._retries_after(error, candidate):
                        kept = self._fall_back(error)
                        if kept is None:
                            raise self._verdict(error)  # noqa: B904  # an error is not its own cause
                        return kept
                else:
                    if not policy.statuses or not self._retries_answer(response, candidate):
                        return response, candidate
                trial, hedged = None, False
                fresh = self._prepare_next(candidate)
        finally:
            if self._retries is not None:
                # Its traceback leads to this object: only the collector would find the two.
                self._retries.first = None

    # -- one attempt --------------------------------------------------------------------

    def _attempt(self, request: Request, candidate: Candidate, fresh: bool, trial: bool) -> Response:
        """One attempt, counted in flight until its body ends. `fresh`: only a new connection will
        do. `trial`: it probes an ejected endpoint."""
        route, upstream, state, deadline = self._route, self._state, candidate.state, self._deadline
        state.in_flight += 1
        began = request.started
        if upstream.watchers or upstream.breaker is not None or deadline is not None:
            # The request's own start is close enough unless durations or an order are needed.
            began = monotonic()
        # From here on the client decides how long it takes.
        arriving = deadline is not None and request.body is not None and not request.body.complete
        rest: Any = None
        try:
            request.endpoint = candidate.endpoint
            pool_of = self._tools.pool_of
            pool = candidate.pool if pool_of is None else pool_of(upstream, candidate)
            # The head has no name here, so that the pool can drop it once it is sent.
            response: Response = pool.send(
                request, self._head(request, candidate.endpoint), route.timeouts, self._replayable, fresh, deadline
            )
            rest = response.stream or response.tunnel
            if rest is not None:
                rest.on_end = state.end
            now = monotonic()
            request.first_byte_s = now - request.started
            if response.status >= 500:
                upstream.answered_badly(candidate, response.status, began, now, trial)
            else:
                state.answered += 1
                if upstream.breaker is not None:
                    upstream.breaker.answered(began, now)
                if trial:
                    upstream.outliers.answered(candidate, now)
            for watch in upstream.watchers:
                watch(candidate, request, response, now - began)
        except GatewayError as error:
            now = monotonic()
            if error.blames and (deadline is None or _had_time(error, route.timeouts, deadline, began, now, arriving)):
                upstream.failed(candidate, error, request, began, now, trial)
            raise
        except BaseException:
            if rest is not None:
                rest.close()
            raise
        finally:
            if rest is None:
                state.in_flight -= 1
            if trial:
                upstream.outliers.undecided(candidate)
        return response

    def _head(self, request: Request, endpoint: Endpoint) -> Head:
        """The request's head for `endpoint`."""
        route = self._route
        head = self._tools.outbound.head(
            request,
            targets.outbound(route, endpoint, self._target, self._normal),
            self._asked_host,
            _host(route, endpoint, self._asked_host),
            targets.stripped(route, self._normal) if route.strip_prefix else b"",
            request.upgrade if request.upgrade is not None and request.upgrade in route.upgrade else None,
            self._used,
        )
        if route.deadline_header is not None:
            head = _with_deadline(head, route.deadline_header, route.timeouts, self._deadline)
        return head

    def _used(self) -> set[bytes]:
        """The fields, in lower case, that this request was routed by."""
        route = self._request.route or self._route
        return {name.encode("latin-1") for name in (*route.fields(), *self._state.upstream.fields())}

    # -- two at once --------------------------------------------------------------------

    def _hedged(self, first: Candidate) -> tuple[Response, Candidate]:
        """The answer of `first`, or of a second candidate that is asked as well when `first` takes
        longer than nearly all answers do."""
        request, state, policy = self._request, self._state, self._route.retry
        after = state.usual()
        if after is None:
            return self._attempt(request, first, False, False), first
        # The copy records the second attempt; interim answers come from the first one only.
        copied, second = copy.copy(request), first
        copied.interim = None
        # For a balancer it is not a first attempt either.
        copied.attempts = 2

        def another() -> Callable[[], Response] | None:
            nonlocal second
            second = state.balancer.pick(_others(self._left, first), copied)
            if not state.take_retry(policy):
                return None
            state.decisions["hedged"] += 1
            request.attempts = 2
            return ask_second

        def ask_second() -> Response:
            try:
                return self._attempt(copied, second, False, False)
            except GatewayError as error:
                copied.fail(error)
                raise

        try:
            is_second, response = self._tools.race(
                lambda: self._attempt(request, first, False, False), another, after, _close
            )
        except GatewayError as error:
            if copied.cause:
                error.cause = f"{error.cause or error.detail}; then {copied.cause}"
            raise
        if not is_second:
            return response, first
        state.decisions["hedge_won"] += 1
        request.endpoint, request.reused = copied.endpoint, copied.reused
        request.connect_s, request.first_byte_s = copied.connect_s, copied.first_byte_s
        return response, second

    # -- what comes next ----------------------------------------------------------------

    def _retries_after(self, error: GatewayError, tried: Candidate) -> bool:
        """Whether there is another attempt after `error`."""
        retries = self._retries = self._retries or Retries(
            self._route.retry, self._replayable, self._request.attempts
        )
        left = self._leave_out(tried)
        if self._deadline is not None and monotonic() >= self._deadline:
            return False
        if not retries.after(error):
            return False
        if isinstance(error, PoolFull):
            # Waiting for the same pool once more would take as long again.
            if tried in left:
                return False
        elif error.retry_as != "connect" and not self._state.take_retry(retries.policy):
            return False
        retries.fresh = error.retry_as != "connect"
        self._request.fail(error)
        return True

    def _retries_answer(self, response: Response, tried: Candidate) -> bool:
        """Whether there is another attempt although an answer came, because of its status. The
        answer has been read whole then, and its connection released."""
        retries = self._retries = self._retries or Retries(
            self._route.retry, self._replayable, self._request.attempts
        )
        if not retries.after_status(response.status) or not self._state.take_retry(retries.policy):
            return False
        outcome = keep(response)
        if outcome is Kept.TOO_LONG:
            self._state.budget.give_back()
            return False
        address = tried.endpoint.address
        if outcome is Kept.WHOLE:
            self._kept = response, tried
            self._request.cause = f"{address} answered {response.status}, retried"
        else:
            self._request.cause = f"{address} answered {response.status} without the end of its body, retried"
        self._leave_out(tried)
        return True

    def _leave_out(self, tried: Candidate) -> Sequence[Candidate]:
        """Candidates for the next attempt: every one once before one is used twice.

        Always those of the request's own snapshot. A swap meanwhile may have changed their base path
        or TLS settings, and the request's route is the one that goes with the old ones.
        """
        left: Sequence[Candidate] = _others(self._left, tried)
        if not left:
            outliers = self._state.outliers
            left = outliers.usable if outliers.of is self._candidates else self._candidates
        self._left = left
        return left

    def _prepare_next(self, tried: Candidate) -> bool:
        """Before the next attempt: a body reader of its own, and a pause if it goes where the
        last one went, so that not all clients come back at once. Whether it needs a new connection."""
        request, retries, deadline = self._request, self._retries, self._deadline
        assert retries is not None, "an attempt was made"
        retries.again()
        request.attempts = retries.made
        if self._buffer is not None:
            request.body = self._buffer.reader()
        if tried not in self._left or retries.stale:
            return retries.fresh
        seconds = pause(retries.policy, retries.made, self._tools.jitter())
        if deadline is not None:
            seconds = min(seconds, max(deadline - monotonic(), 0.0))
        if seconds > 0.0:
            self._tools.sleep(seconds)
        return retries.fresh

    def _fall_back(self, error: GatewayError) -> tuple[Response, Candidate] | None:
        """The last real answer, which is worth more to the client than `error`; None without one."""
        if self._kept is None or isinstance(error, ClientError):
            return None
        self._request.fail(error)
        self._request.endpoint = self._kept[1].endpoint
        return self._kept

    def _verdict(self, error: GatewayError) -> GatewayError:
        """What the request ends with."""
        assert self._retries is not None, "an attempt was made"
        return self._retries.verdict(error, self._request, self._deadline, monotonic())


def _others(left: Sequence[Candidate], tried: Candidate) -> tuple[Candidate, ...]:
    """All but the one that was used."""
    return tuple(candidate for candidate in left if candidate is not tried)


def _may_hedge(request: Request, policy: RetryPolicy, left: Sequence[Candidate]) -> bool:
    """Whether a request may be sent twice at once: a GET that is nothing but its head, where two
    attempts are allowed and two endpoints available."""
    if policy.attempts < 2 or len(left) < 2:
        return False
    return request.method == b"GET" and request.body is None and request.upgrade is None


def _had_time(
    error: GatewayError, timeouts: Timeouts, deadline: float, began: float, now: float, arriving: bool
) -> bool:
    """Whether an attempt that began at `began` failed by more than the deadline. The deadline speaks
    against an endpoint that had the whole request and half of all the time: otherwise a queue, other
    attempts or the client used it up."""
    cut = isinstance(error, DeadlineExceeded) or (
        isinstance(error, ConnectTimeout) and (timeouts.connect is None or deadline - began < timeouts.connect)
    )
    return not cut or (not arriving and timeouts.total is not None and now - began >= timeouts.total / 2)


def _close(response: Response) -> None:
    if response.stream is not None:
        response.stream.close()


def _with_deadline(head: Head, name: str, timeouts: Timeouts, deadline: float | None) -> Head:
    """Tell the upstream how many milliseconds it has to begin its answer."""
    left = timeouts.response
    if deadline is not None:
        until = max(deadline - monotonic(), 0.0)
        left = until if left is None else min(left, until)
    return with_field(head, name.encode("latin-1"), None if left is None else b"%d" % (left * 1000.0))


def _host(route: Route, endpoint: Endpoint, asked_host: bytes) -> bytes:
    """What goes into Host: as asked, the endpoint's own, or a literal."""
    if route.host == "preserve":
        return asked_host or endpoint.authority or endpoint.address.encode("latin-1")
    if route.host == "upstream":
        return endpoint.authority or endpoint.address.encode("latin-1")
    return route.host.encode("latin-1")
