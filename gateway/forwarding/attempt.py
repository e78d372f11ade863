"""One attempt of one request at one endpoint.

Rule: an attempt is counted in flight from its beginning until its answer's body ends, and
judged once for its endpoint (`health`). What was counted up is counted down however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from gateway.errors import ConnectTimeout, DeadlineExceeded, GatewayError
from gateway.health.candidate import Candidate
from gateway.http import target as targets
from gateway.http import upgrades
from gateway.http.messages import Request, Response
from gateway.http.request_head import Head, Outbound, with_field
from gateway.http.target import Target
from gateway.model import WEBSOCKET, Endpoint, Route, Timeouts
from gateway.upstreams.state import UpstreamState


class Race(Protocol):
    """hedge.race: two attempts at once."""

    def __call__(
        self,
        first: Callable[[], Response],
        second: Callable[[], Callable[[], Response] | None],
        after: float,
        discard: Callable[[Response], None],
    ) -> tuple[bool, Response]: ...


@dataclass(frozen=True, slots=True)
class Tools:
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


def attempt(
    request: Request,
    candidate: Candidate,
    tools: Tools,
    route: Route,
    upstream: UpstreamState,
    target: Target,
    normal: bytes,
    asked_host: bytes,
    deadline: float | None,
    replayable: bool,
    fresh: bool = False,
    trial: bool = False,
) -> Response:
    """The answer of `candidate`, its body still to be read. Raises GatewayError.

    `target`, `normal`: the request's target and its path in normal form. `asked_host`: the authority that the client
    asked for. `deadline`: monotonic seconds that end the attempt. `replayable`: the request may be sent again.
    `fresh`: only a new connection will do. `trial`: it probes an ejected endpoint.
    """
    # In one piece: a call of its own for the head or the judgement costs every request half a microsecond.
    state, endpoint = candidate.state, candidate.endpoint
    state.in_flight += 1
    began = request.started
    if upstream.watchers or upstream.breaker is not None or deadline is not None:
        # The request's own start is close enough unless durations or an order are needed.
        began = monotonic()
    # From here on the client decides how long it takes.
    arriving = deadline is not None and request.body is not None and not request.body.complete
    rest: Any = None
    try:
        request.endpoint = endpoint
        pool_of = tools.pool_of
        pool = candidate.pool if pool_of is None else pool_of(upstream, candidate)
        # The head has no name here, so that the pool can drop it once it is sent.
        response: Response = pool.send(
            request,
            tools.outbound.head(request, target.raw, asked_host, asked_host)
            if route.verbatim
            and asked_host
            and request.upgrade is None
            and not (endpoint.base_path or endpoint.query)
            else _head(request, tools.outbound, route, endpoint, target, normal, asked_host, deadline),
            route.timeouts,
            replayable,
            fresh,
            deadline,
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


def _head(
    request: Request,
    outbound: Outbound,
    route: Route,
    endpoint: Endpoint,
    target: Target,
    normal: bytes,
    asked_host: bytes,
    deadline: float | None,
) -> Head:
    """The request's head for `endpoint`. Most are as the request came: `attempt` makes those itself."""
    upgrade = None
    if request.upgrade is not None or route.upgrade is not WEBSOCKET:
        upgrade = upgrades.protocol(request, route.upgrade)
    head = outbound.head(
        request,
        targets.outbound(route, endpoint, target, normal),
        asked_host,
        _host(route, endpoint, asked_host),
        targets.stripped(route, normal) if route.strip_prefix else b"",
        upgrade,
    )
    if route.deadline_header is not None:
        head = _with_deadline(head, route.deadline_header, route.timeouts, deadline)
    return head


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
