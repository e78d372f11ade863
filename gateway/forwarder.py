"""One request to one upstream, attempts included. Reads like Go's reverseproxy.go.

Rule: top to bottom: pick, write the head, send, decide, track. After the first byte of an
answer went to the client nothing is decided any more: its end is proper or the client's
connection breaks.
"""

from __future__ import annotations

from time import monotonic

from gateway import target as targets
from gateway.errors import DeadlineExceeded, GatewayError, PoolFull
from gateway.exchange import Request, Response
from gateway.headers import Head, Outbound
from gateway.health.state import Candidate
from gateway.model import Endpoint, Route, Timeouts
from gateway.retry import Attempts, ReplayBody, replayable
from gateway.snapshot import Group
from gateway.target import Target


class Forwarder:
    """Sends requests where routes say. One per worker; keeps nothing of a request."""

    __slots__ = ("_outbound",)

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    def forward(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Response:
        """The answer of one of the group's endpoints, its body still to be read. Raises GatewayError."""
        candidates = group.candidates
        if not candidates:
            raise group.absence()
        state = group.state
        state.budget.requests += 1
        policy = route.retry
        again = replayable(request, policy)
        if again and request.body is not None and policy.attempts > 1:
            request.body = ReplayBody(request.body)
        total = route.timeouts.total
        deadline = None if total is None else request.started + total
        request.attempts = 1
        left = candidates
        attempts: Attempts | None = None
        while True:
            candidate = state.balancer.pick(left, request)
            try:
                endpoint = request.endpoint = candidate.endpoint
                head = self._outbound.head(
                    request,
                    targets.outbound(route, endpoint, target, normal),
                    asked_host,
                    _host(route, endpoint, asked_host),
                    targets.stripped(route, normal) if route.strip_prefix else b"",
                    request.upgrade if request.upgrade is not None and request.upgrade in route.upgrade else None,
                )
                fresh = attempts is not None and attempts.fresh
                response = self._send(request, head, candidate, route.timeouts, again, fresh, deadline)
            except GatewayError as error:
                attempts = attempts or Attempts(policy, again)
                self._check_deadline(error, request, deadline)
                left = self._others(left, candidate) or candidates
                if not self._again(attempts, error, group, left, candidate):
                    raise
                attempts.fresh = error.retry_as != "connect"
                request.fail(error)
            else:
                attempts = attempts or (Attempts(policy, again) if policy.statuses else None)
                if not (attempts and attempts.after_status(response.status) and state.budget.take(policy.budget)):
                    # What failed before stays as the cause of the second try; the request did not fail.
                    request.reason = ""
                    return response
                if response.stream is not None:
                    response.stream.close()
                request.cause = f"{candidate.endpoint.address} answered {response.status}, tried again"
                left = self._others(left, candidate) or candidates
            attempts.again()
            request.attempts = attempts.made
            if isinstance(request.body, ReplayBody):
                request.body.rewind()

    def _send(
        self,
        request: Request,
        head: Head,
        candidate: Candidate,
        timeouts: Timeouts,
        again: bool,
        fresh: bool,
        deadline: float | None,
    ) -> Response:
        """One attempt, counted in flight until its body ends. `again`: the request may be sent
        twice. `fresh`: only a new connection will do."""
        state = candidate.state
        state.in_flight += 1
        tracked = False
        try:
            response: Response = candidate.pool.send(request, head, timeouts, again, fresh, deadline)
            request.first_byte_s = monotonic() - request.started
            rest = response.stream or response.tunnel
            if rest is not None:
                rest.on_end = state.leave
                tracked = True
        finally:
            if not tracked:
                state.in_flight -= 1
        return response

    def _again(
        self, attempts: Attempts, error: GatewayError, group: Group, left: tuple[Candidate, ...], tried: Candidate
    ) -> bool:
        """Whether to go round after `error`, `left` being where the next try would go."""
        if not attempts.after(error):
            return False
        if isinstance(error, PoolFull):
            # The same pool would only be waited for once more.
            return tried not in left
        return error.retry_as == "connect" or group.state.budget.take(attempts.policy.budget)

    @staticmethod
    def _others(left: tuple[Candidate, ...], tried: Candidate) -> tuple[Candidate, ...]:
        """Every candidate once before one of them twice."""
        return tuple(candidate for candidate in left if candidate is not tried)

    @staticmethod
    def _check_deadline(error: GatewayError, request: Request, deadline: float | None) -> None:
        """An error at or after the deadline is the deadline's."""
        if deadline is not None and monotonic() >= deadline and not isinstance(error, DeadlineExceeded):
            took = monotonic() - request.started
            raise DeadlineExceeded(f"total timeout after {took:.3f} s; last: {error.cause}") from error


def _host(route: Route, endpoint: Endpoint, asked_host: bytes) -> bytes:
    """What goes into Host: as asked, the endpoint's own, or a literal."""
    if route.host == "preserve":
        return asked_host or endpoint.authority or endpoint.address.encode("latin-1")
    if route.host == "upstream":
        return endpoint.authority or endpoint.address.encode("latin-1")
    return route.host.encode("latin-1")


