"""One request to one upstream. Reads like Go's reverseproxy.go.

Rule: top to bottom: admit, attempt (`attempts`), complete. After the first byte of an
answer went to the client nothing is decided any more: its end is proper or the client's
connection breaks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

from gateway.buffers.held import Held, HeldBody, hold
from gateway.buffers.memory import Buffers
from gateway.forwarding import attempts
from gateway.forwarding.attempt import Race, Tools
from gateway.health.candidate import Candidate, Stay
from gateway.http.messages import Request, Response
from gateway.http.request_head import Outbound
from gateway.http.target import Target
from gateway.model import Route
from gateway.upstreams.snapshot import Group
from gateway.upstreams.state import UpstreamState


class Forwarder:
    """Sends requests where routes say. One per worker; keeps nothing of a request. `buffers`: where what is
    held of bodies is counted; None: of its own, without a limit. `latest`: the group in force in place of one whose
    endpoints may have changed. The other arguments are those of `attempt.Tools`."""

    __slots__ = ("_buffers", "_latest", "_tools")

    def __init__(
        self,
        outbound: Outbound,
        race: Race,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
        pool_of: Callable[[UpstreamState, Candidate], Any] | None = None,
        buffers: Buffers | None = None,
        latest: Callable[[Group], Group] = lambda group: group,
    ) -> None:
        self._buffers = buffers or Buffers(0)
        self._latest = latest
        self._tools = Tools(outbound, race, sleep, jitter, pool_of)

    def forward(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Response:
        """The answer of one of the group's endpoints, its body still to be read. Raises GatewayError."""
        if not group.candidates:
            raise group.absence()
        state = group.state
        total = route.timeouts.total
        deadline = None if total is None else request.started + total
        body = request.body
        if body is not None and not body.complete and not isinstance(body, HeldBody):
            held = hold(request, group.upstream.buffer, self._buffers, deadline)
            if held is not None:
                # That may have taken long.
                return self._forward_held(held, request, route, self._latest(group), target, normal, asked_host)
        if state.breaker is not None:
            state.breaker.admit(monotonic())
        gate = state.gate
        if gate.in_flight < gate.limit:
            gate.in_flight += 1
        else:
            gate.wait(group.upstream.name, request, deadline)
        try:
            state.budget.requests += 1
            request.attempts = 1
            response, candidate = attempts.run(
                self._tools, request, route, state, group.candidates, target, normal, asked_host, deadline
            )
        except BaseException:
            gate.leave()
            raise
        # Earlier attempts stay in the cause, but the request did not fail.
        request.reason = ""
        rest = response.stream
        if rest is None or _listens(response):
            # A tunnel or an event stream may last for hours: meanwhile it does not count as in flight.
            gate.leave()
        else:
            # The request ends when its answer's body ends, and leaves the gate then.
            stay = Stay(candidate.state)
            rest.on_end = stay.end
            rest.on_wait = stay.outlast
            rest.buffering = group.upstream.buffer
        return response

    def _forward_held(
        self,
        held: Held,
        request: Request,
        route: Route,
        group: Group,
        target: Target,
        normal: bytes,
        asked_host: bytes,
    ) -> Response:
        """The same for a request whose body is held: it is released when nothing reads it any more."""
        try:
            response = self.forward(request, route, group, target, normal, asked_host)
        except BaseException:
            held.release()
            raise
        held.release_after(response)
        return response


def _listens(response: Response) -> bool:
    """Whether an answer is a tunnel or a stream of events (WHATWG HTML §9.2), which has no end of its own."""
    if response.tunnel is not None:
        return True
    return response.content_length is None and response.is_event_stream()
