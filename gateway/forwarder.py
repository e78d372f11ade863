"""One request to one upstream, attempts included. Reads like Go's reverseproxy.go.

Rule: top to bottom: admit, pick, write the head, send, decide, track. After the first byte
of an answer went to the client nothing is decided any more: its end is proper or the
client's connection breaks.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from gateway import target as targets
from gateway.errors import ClientError, ConnectTimeout, DeadlineExceeded, GatewayError, PoolFull
from gateway.exchange import Request, Response
from gateway.headers import Head, Outbound, with_field
from gateway.health.candidate import Candidate, Stay
from gateway.health.state import UpstreamState
from gateway.model import Endpoint, RetryPolicy, Route, Timeouts
from gateway.retry import Attempts, ReplayBody, pause, replayable
from gateway.snapshot import Group
from gateway.target import Target

# What stays the same from one try to the next: route, upstream, target, its normal form, and
# the authority that was asked for.
Asked = tuple[Route, UpstreamState, Target, bytes, bytes]


class Race(Protocol):
    """hedge.race: two tries at once."""

    def __call__(
        self,
        first: Callable[[], Response],
        second: Callable[[], Callable[[], Response] | None],
        after: float,
        discard: Callable[[Response], None],
    ) -> tuple[bool, Response]: ...


class Forwarder:
    """Sends requests where routes say. One per worker; keeps nothing of a request. `race` runs
    two tries at once; `sleep` waits so many seconds and lets others run."""

    __slots__ = ("_outbound", "_race", "_random", "_sleep")

    def __init__(
        self,
        outbound: Outbound,
        race: Race,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._outbound = outbound
        self._race = race
        self._sleep = sleep
        self._random = jitter

    def forward(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Response:
        """The answer of one of the group's endpoints, its body still to be read. Raises GatewayError."""
        candidates = group.candidates
        if not candidates:
            raise group.absence()
        state = group.state
        total = route.timeouts.total
        deadline = None if total is None else request.started + total
        if state.breaker is not None:
            state.breaker.admit(monotonic())
        gate = state.gate
        if gate.in_flight < gate.limit:
            gate.in_flight += 1
        else:
            gate.wait(group.upstream.name, request, deadline)
        state.budget.requests += 1
        policy = route.retry
        again = replayable(request, policy)
        if again and request.body is not None and policy.attempts > 1:
            request.body = ReplayBody(request.body)
        request.attempts = 1
        asked = (route, state, target, normal, asked_host)
        outliers = state.outliers
        attempts: Attempts | None = None
        # The answer of an endpoint that is not the last one asked, and that endpoint.
        kept: tuple[Response, Candidate] | None = None
        try:
            if candidates is not outliers.of or request.started >= outliers.recheck:
                outliers.look(candidates, monotonic())
            left = outliers.usable
            trial = outliers.trial(again, monotonic()) if outliers.due else None
            while True:
                candidate = trial or state.balancer.pick(left, request)
                try:
                    fresh = attempts is not None and attempts.fresh
                    if policy.hedge and trial is None and _may_hedge(request, policy, attempts, left):
                        response, candidate = self._hedged(request, asked, candidate, left, deadline)
                    else:
                        response = self._try(request, asked, candidate, again, fresh, deadline, trial is not None)
                except GatewayError as error:
                    attempts = attempts or Attempts(policy, again, request.attempts)
                    left = _others(left, candidate) or outliers.usable
                    if not self._again(attempts, error, deadline, state, left, candidate):
                        if kept is None or isinstance(error, ClientError):
                            raise attempts.cause(error, request, deadline, monotonic()) from error
                        # The last real answer is worth more to the client than our own.
                        request.fail(error)
                        response, candidate = kept
                        kept = None
                        request.endpoint = candidate.endpoint
                        break
                    attempts.fresh = error.retry_as != "connect"
                    request.fail(error)
                else:
                    attempts = attempts or (Attempts(policy, again, request.attempts) if policy.statuses else None)
                    if not (attempts and attempts.after_status(response.status) and state.take_retry(policy)):
                        break
                    if kept is not None:
                        _close(kept[0])
                    kept = response, candidate
                    request.cause = f"{candidate.endpoint.address} answered {response.status}, tried again"
                    left = _others(left, candidate) or outliers.usable
                trial = None
                attempts.again()
                request.attempts = attempts.made
                self._pause(attempts, candidate, left, deadline)
                if isinstance(request.body, ReplayBody):
                    request.body.rewind()
        except BaseException:
            gate.leave()
            if kept is not None:
                _close(kept[0])
            raise
        if attempts is not None:
            # What failed before stays as the cause of the next try; the request did not fail.
            request.reason = ""
            if kept is not None:
                _close(kept[0])
        rest = response.stream
        if rest is None or _listens(response):
            # What only listens may do so for hours: it keeps nobody from being answered.
            gate.leave()
        else:
            # The request ends when its body ends.
            stay = Stay(candidate.state)
            rest.on_end = stay.end
            rest.on_wait = stay.outlast
        return response

    def _try(
        self,
        request: Request,
        asked: Asked,
        candidate: Candidate,
        again: bool,
        fresh: bool,
        deadline: float | None,
        trial: bool = False,
    ) -> Response:
        """One attempt, counted in flight until its body ends. `again`: the request may be sent
        twice. `fresh`: only a new connection will do. `trial`: it tries an endpoint that was out."""
        route, upstream = asked[0], asked[1]
        state = candidate.state
        state.in_flight += 1
        tracked = False
        began = request.started
        if upstream.watchers or upstream.breaker is not None or deadline is not None:
            # The other one is close enough for all but those who measure, or ask what came first.
            began = monotonic()
        # Then the client says how long it takes.
        arriving = deadline is not None and request.body is not None and not request.body.complete
        try:
            endpoint = request.endpoint = candidate.endpoint
            # Without a name of its own the head is the pool's to forget once it is out.
            response: Response = candidate.pool.send(
                request, self._head(request, asked, endpoint, deadline), route.timeouts, again, fresh, deadline
            )
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
            rest = response.stream or response.tunnel
            if rest is not None:
                rest.on_end = state.end
                tracked = True
        except GatewayError as error:
            now = monotonic()
            if error.blames and (deadline is None or _had_time(error, route.timeouts, deadline, began, now, arriving)):
                upstream.failed(candidate, error, request, began, now, trial)
            raise
        finally:
            if not tracked:
                state.in_flight -= 1
            if trial:
                upstream.outliers.undecided(candidate)
        return response

    def _head(self, request: Request, asked: Asked, endpoint: Endpoint, deadline: float | None) -> Head:
        """The head that `endpoint` gets."""
        route, _, target, normal, asked_host = asked
        head = self._outbound.head(
            request,
            targets.outbound(route, endpoint, target, normal),
            asked_host,
            _host(route, endpoint, asked_host),
            targets.stripped(route, normal) if route.strip_prefix else b"",
            request.upgrade if request.upgrade is not None and request.upgrade in route.upgrade else None,
        )
        if route.deadline_header is not None:
            head = _with_deadline(head, route.deadline_header, route.timeouts, deadline)
        return head

    def _hedged(
        self, request: Request, asked: Asked, first: Candidate, left: Sequence[Candidate], deadline: float | None
    ) -> tuple[Response, Candidate]:
        """The answer of `first`, or of another endpoint that is asked as well when `first` takes
        longer than nearly all answers do; and whose it is."""
        route, state = asked[0], asked[1]
        after = state.usual()
        if after is None:
            return self._try(request, asked, first, True, False, deadline), first
        # The copy learns what becomes of its try; what the client sees first comes from one of them.
        copied, second = copy.copy(request), first
        copied.interim = None
        # It is no first try to a balancer either.
        copied.attempts = 2

        def another() -> Callable[[], Response] | None:
            nonlocal second
            second = state.balancer.pick(_others(left, first), copied)
            if not state.take_retry(route.retry):
                return None
            state.decisions["hedged"] += 1
            request.attempts = 2
            return ask_second

        def ask_second() -> Response:
            try:
                return self._try(copied, asked, second, True, False, deadline)
            except GatewayError as error:
                copied.fail(error)
                raise

        try:
            is_second, response = self._race(
                lambda: self._try(request, asked, first, True, False, deadline), another, after, _close
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

    def _again(
        self,
        attempts: Attempts,
        error: GatewayError,
        deadline: float | None,
        state: UpstreamState,
        left: Sequence[Candidate],
        tried: Candidate,
    ) -> bool:
        """Whether to go round after `error`, `left` being where the next try would go."""
        if deadline is not None and monotonic() >= deadline:
            return False
        if not attempts.after(error):
            return False
        if isinstance(error, PoolFull):
            # The same pool would only be waited for once more.
            return tried not in left
        return error.retry_as == "connect" or state.take_retry(attempts.policy)

    def _pause(self, attempts: Attempts, tried: Candidate, left: Sequence[Candidate], deadline: float | None) -> None:
        """Before the same endpoint is asked again: it needs a moment, and not all at once."""
        if tried not in left or attempts.stale:
            return
        seconds = pause(attempts.policy, attempts.made, self._random())
        if deadline is not None:
            seconds = min(seconds, max(deadline - monotonic(), 0.0))
        if seconds > 0.0:
            self._sleep(seconds)


def _others(left: Sequence[Candidate], tried: Candidate) -> tuple[Candidate, ...]:
    """Every candidate once before one of them twice."""
    return tuple(candidate for candidate in left if candidate is not tried)


def _may_hedge(request: Request, policy: RetryPolicy, attempts: Attempts | None, left: Sequence[Candidate]) -> bool:
    """Whether a request may be under way twice: the first try of a GET of nothing but its head,
    where two tries are allowed and two endpoints there."""
    if attempts is not None or policy.attempts < 2 or len(left) < 2:
        return False
    return request.method == b"GET" and request.body is None and request.upgrade is None


def _had_time(
    error: GatewayError, timeouts: Timeouts, deadline: float, began: float, now: float, arriving: bool
) -> bool:
    """Whether a try that began at `began` failed by more than the deadline. That one speaks against an endpoint
    which had the whole request and half of all the time: else a queue, other tries or the client used it up."""
    cut = isinstance(error, DeadlineExceeded) or (
        isinstance(error, ConnectTimeout) and (timeouts.connect is None or deadline - began < timeouts.connect)
    )
    return not cut or (not arriving and timeouts.total is not None and now - began >= timeouts.total / 2)


def _listens(response: Response) -> bool:
    """Whether an answer is a tunnel or a stream of events (WHATWG HTML §9.2), which has no end of its own."""
    if response.tunnel is not None:
        return True
    return response.content_length is None and response.is_event_stream()


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
