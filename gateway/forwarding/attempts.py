"""The attempts of one request at one upstream, one after another, or two at once when hedged.

Rule: pick, send, decide, until an answer counts. Each attempt has its own reader of the
client's body, and nothing of it is left when the next one starts: its upload has ended and
its connection was released.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from time import monotonic

from gateway.errors import ClientError, GatewayError, PoolFull
from gateway.forwarding.attempt import Tools, attempt
from gateway.forwarding.kept import Kept, keep
from gateway.forwarding.replay import ReplayBuffer
from gateway.forwarding.retry import Retries, pause, replayable
from gateway.health.candidate import Candidate
from gateway.http import upgrades
from gateway.http.messages import Request, Response
from gateway.http.target import Target
from gateway.model import Route
from gateway.upstreams.state import UpstreamState

Answered = tuple[Response, Candidate]


def run(
    tools: Tools,
    request: Request,
    route: Route,
    state: UpstreamState,
    candidates: tuple[Candidate, ...],
    target: Target,
    normal: bytes,
    asked_host: bytes,
    deadline: float | None,
) -> Answered:
    """The answer that counts and the candidate that gave it. Raises GatewayError when no attempt had an answer.

    `candidates`: those of the request's snapshot. `target`, `normal`: the request's target and its path in normal
    form. `asked_host`: the authority that the client asked for. `deadline`: monotonic seconds that end every attempt.
    """
    policy, outliers = route.retry, state.outliers
    again = replayable(request, policy)
    buffer: ReplayBuffer | None = None
    if again and request.body is not None and policy.attempts > 1:
        buffer = ReplayBuffer(request.body)
        request.body = buffer.reader()
    if candidates is not outliers.of or request.started >= outliers.recheck:
        outliers.look(candidates, monotonic())
    usable = outliers.usable
    # An ejected candidate that this request is to probe.
    trial = outliers.trial(again, monotonic()) if outliers.due else None
    candidate = trial or state.balancer.pick(usable, request)
    hedged = policy.hedge and trial is None and _may_hedge(request, route, usable)
    response: Response | None = None
    failure: GatewayError | None = None
    if not hedged:
        try:
            response = attempt(
                request,
                candidate,
                tools,
                route,
                state,
                target,
                normal,
                asked_host,
                deadline,
                again,
                False,
                trial is not None,
            )
            if not policy.statuses:
                return response, candidate
        except GatewayError as error:
            failure = error
    # Few requests come here.
    asked = (tools, route, state, target, normal, asked_host, deadline, again)
    try:
        attempts = Attempts(request, candidates, usable, buffer, *asked)
        return attempts.hedged(candidate) if hedged else attempts.settle(response, failure, candidate)
    finally:
        # Its traceback leads to this frame: only the collector would find the two.
        failure = None


class Attempts:
    """What comes after the first attempt of one request, or in place of it."""

    def __init__(
        self,
        request: Request,
        candidates: tuple[Candidate, ...],
        usable: Sequence[Candidate],
        buffer: ReplayBuffer | None,
        tools: Tools,
        route: Route,
        state: UpstreamState,
        target: Target,
        normal: bytes,
        asked_host: bytes,
        deadline: float | None,
        replayable: bool,
    ) -> None:
        """`usable`: those of the candidates that no attempt was made at. The others are those of `run`."""
        self._request = request
        self._candidates = candidates
        self._left = usable
        self._buffer = buffer
        self._tools = tools
        self._route = route
        self._state = state
        self._target = target
        self._normal = normal
        self._asked_host = asked_host
        self._deadline = deadline
        self._replayable = replayable
        self._retries = Retries(route.retry, replayable, request.attempts)
        # The last real answer, read whole.
        self._kept: Answered | None = None

    def settle(self, response: Response | None, failure: GatewayError | None, tried: Candidate) -> Answered:
        """What the request ends with after an attempt at `tried` that had an answer or a failure, and as many more
        attempts as it takes. Raises GatewayError."""
        try:
            while True:
                if response is not None:
                    if not self._retries_answer(response, tried):
                        return response, tried
                elif failure is not None and not self._retries_after(failure, tried):
                    kept = self._fall_back(failure)
                    if kept is None:
                        raise self._verdict(failure)
                    return kept
                fresh = self._prepare_next(tried)
                tried = self._state.balancer.pick(self._left, self._request)
                response = failure = None
                try:
                    response = self._attempt(self._request, tried, fresh)
                except GatewayError as error:
                    failure = error
        finally:
            # Tracebacks lead to this frame and object: only the collector would find them.
            failure = self._retries.first = None

    def _attempt(self, request: Request, candidate: Candidate, fresh: bool = False) -> Response:
        return attempt(
            request,
            candidate,
            self._tools,
            self._route,
            self._state,
            self._target,
            self._normal,
            self._asked_host,
            self._deadline,
            self._replayable,
            fresh,
        )

    # -- two at once --------------------------------------------------------------------

    def hedged(self, first: Candidate) -> Answered:
        """What the request ends with when `first` is asked first, and a second candidate as well when that takes
        longer than nearly all answers do."""
        response: Response | None = None
        failure: GatewayError | None = None
        tried = first
        try:
            response, tried = self._race(first)
        except GatewayError as error:
            failure = error
        self._retries.made = self._request.attempts
        try:
            return self.settle(response, failure, tried)
        finally:
            failure = None

    def _race(self, first: Candidate) -> Answered:
        """One or two attempts at once: the first answer."""
        request, state, policy = self._request, self._state, self._route.retry
        after = state.usual()
        if after is None:
            return self._attempt(request, first), first
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
                return self._attempt(copied, second)
            except GatewayError as error:
                copied.fail(error)
                raise

        try:
            is_second, response = self._tools.race(lambda: self._attempt(request, first), another, after, _close)
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
        retries = self._retries
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
        retries = self._retries
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

    def _fall_back(self, error: GatewayError) -> Answered | None:
        """The last real answer, which is worth more to the client than `error`; None without one."""
        if self._kept is None or isinstance(error, ClientError):
            return None
        self._request.fail(error)
        self._request.endpoint = self._kept[1].endpoint
        return self._kept

    def _verdict(self, error: GatewayError) -> GatewayError:
        """What the request ends with."""
        return self._retries.verdict(error, self._request, self._deadline, monotonic())


def _others(left: Sequence[Candidate], tried: Candidate) -> tuple[Candidate, ...]:
    """All but the one that was used."""
    return tuple(candidate for candidate in left if candidate is not tried)


def _may_hedge(request: Request, route: Route, left: Sequence[Candidate]) -> bool:
    """Whether a request may be sent twice at once: a GET that is nothing but its head, where two
    attempts are allowed and two endpoints available."""
    if route.retry.attempts < 2 or len(left) < 2:
        return False
    if request.method != b"GET" or request.body is not None:
        return False
    return upgrades.protocol(request, route.upgrade) is None


def _close(response: Response) -> None:
    if response.stream is not None:
        response.stream.close()
