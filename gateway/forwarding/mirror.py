"""Copies of requests, sent to another upstream whose answers nobody waits for.

Rule: a copy never delays or alters what it is a copy of. It is sent once, from a greenlet of
its own, over connections of its own, and what does not fit is dropped and counted. A body is
copied while the upstream of the route gets it; one that does not end, or is too large, has no
copy. Copies go through the forwarder like any request, so that endpoints of their upstream are
balanced, ejected and limited by them as well.

Counted in the decisions of the copy's upstream: `mirrored` (an answer began), `mirror_failed`,
`mirror_dropped`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet, Timeout

from gateway.errors import GatewayError
from gateway.forwarding.forwarder import Forwarder
from gateway.forwarding.hedge import race
from gateway.health.candidate import Candidate
from gateway.http.messages import BufferedBody, Request, RequestBody, Response
from gateway.http.request_head import MIRROR, Head, Outbound, with_field
from gateway.http.target import Target
from gateway.model import Endpoint, RetryPolicy, Route, Timeouts, Upstream
from gateway.net.read_size import PIECE
from gateway.runtime.hub import parts
from gateway.transport import Transport
from gateway.transport.transport import PoolKey, pool_key
from gateway.upstreams.snapshot import Group, Snapshot, Turn
from gateway.upstreams.state import UpstreamState

log = logging.getLogger("gateway.forwarding.mirror")

# Copies of one upstream and worker: so many are under way, so many more wait.
UNDER_WAY = 64
WAITING = 256
# An answer is read to its end, so that its connection serves again, within these.
ANSWER_BYTES = 1024 * 1024
ANSWER_SECONDS = 30.0
# How often, in seconds, it is logged that the copies of an upstream fail.
TELL = 60.0

# A copy is sent once: on a connection that was used a moment ago, or a fresh one.
_ONCE = RetryPolicy(attempts=1, when=frozenset(), methods=frozenset())


@dataclass(slots=True)
class _Copy:
    """A copy on its way, with what Forwarder.forward takes."""

    request: Request
    route: Route
    group: Group
    target: Target
    normal: bytes
    asked_host: bytes


class Copies:
    """All copies of one worker. `transport`: that of the traffic, whose TLS contexts are used."""

    def __init__(self, outbound: Outbound, transport: Transport) -> None:
        self._traffic = transport
        # To the same endpoints, over other connections.
        self._forwarder = Forwarder(outbound, race, pool_of=self._marked_pool)
        # Made for the first copy.
        self._transport: Transport | None = None
        self._known: set[PoolKey] = set()
        self._seen: Snapshot | None = None
        # By upstream.
        self._lanes: dict[str, _Lane] = {}

    def copy(
        self, request: Request, route: Route, group: Group, target: Target, normal: bytes, asked_host: bytes
    ) -> Callable[[], None]:
        """Send a copy as soon as the request's body is there. What this gives back is to be
        called when the request has ended."""
        copy = _Copy(_copied(request), replace(route, retry=_ONCE), group, target, normal, asked_host)
        dropped = group.state.decisions
        if request.body is None:
            self._send(copy)
            return _nothing
        most, length = route.retry.buffer, request.content_length
        if length is not None and length > most:
            dropped["mirror_dropped"] += 1
            return _nothing

        def whole(data: bytes) -> None:
            copy.request.content_length = len(data)
            copy.request.body = BufferedBody(data) if data else None
            self._send(copy)

        def lost() -> None:
            dropped["mirror_dropped"] += 1

        tee = request.body = Tee(request.body, length, most, whole, lost)
        return tee.give_up

    def _send(self, copy: _Copy) -> None:
        name = copy.group.upstream.name
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(self._forwarder, name)
        if not lane.take(copy):
            copy.group.state.decisions["mirror_dropped"] += 1

    def _pool(self, upstream: Upstream, endpoint: Endpoint) -> Any:
        """The pool of an endpoint for copies."""
        if self._transport is None:
            self._transport = Transport(b"", self._traffic)
        key = pool_key(upstream, endpoint)
        if key not in self._known:
            self._known.add(key)
            # A copy may belong to a snapshot that is in force no more.
            self._seen = None
        return self._transport.pool(upstream, endpoint)

    def _marked_pool(self, state: UpstreamState, candidate: Candidate) -> _Marked:
        return _Marked(self._pool(state.upstream, candidate.endpoint))

    def sweep(self, snapshot: Snapshot, turn: Turn = lambda: None) -> None:
        """From time to time: close what has been idle for too long, and forget what is gone."""
        if self._transport is None:
            return
        self._transport.expire()
        for name in [name for name, lane in self._lanes.items() if name not in snapshot.groups and not lane.busy]:
            del self._lanes[name]
        if snapshot is self._seen:
            return
        # First: a pool that is made meanwhile has it looked at again.
        self._seen = snapshot
        try:
            for key in parts(list(self._known), turn):
                group = snapshot.groups.get(key[0])
                member = group.find(key[1], key[2]) if group is not None else None
                if group is None or member is None or pool_key(group.upstream, member.endpoint) != key:
                    self._transport.drop([key])
                    self._known.discard(key)
        except BaseException:
            self._seen = None
            raise

    def stop(self) -> None:
        """Drop what waits, end what is under way."""
        for lane in self._lanes.values():
            lane.stop()
        if self._transport is not None:
            self._transport.close()


def _copied(request: Request) -> Request:
    """The request without its body: the same id, nobody behind it that could be told anything."""
    copy = Request(
        request.method,
        request.target,
        [*request.headers],
        request.started,
        request.peer,
        request.scheme,
        request.port,
        request.http11,
        request.content_length,
        host=request.host,
    )
    copy.client = request.client
    copy.request_id = request.request_id
    copy.route = request.route
    return copy


def _nothing() -> None:
    """There is no copy that could be affected."""


class Tee:
    """A request's body whose pieces are kept as they are read. Either `whole` is called with
    all of it, or `lost` when it does not end (`give_up`) or has more than `most` bytes."""

    __slots__ = (
        "_body", "_length", "_lost", "_most", "_pieces", "_size", "_whole", "complete", "expects_continue",
    )  # fmt: skip

    def __init__(
        self,
        body: RequestBody,
        length: int | None,
        most: int,
        whole: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self._body = body
        self.complete = body.complete
        self.expects_continue = body.expects_continue
        self._length = length
        self._most = most
        self._whole = whole
        self._lost = lost
        self._size = 0
        # None: it is settled.
        self._pieces: list[bytes] | None = []

    def read(self, most: int = PIECE) -> bytes:
        piece = self._body.read(most)
        self.complete = self._body.complete
        self.expects_continue = self._body.expects_continue
        if self._pieces is not None:
            self._keep(self._pieces, piece)
        return piece

    def _keep(self, pieces: list[bytes], piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._most:
            self.give_up()
            return
        pieces.append(piece)
        # Of a length that was told, the end is not always asked for.
        if not piece or self._size == self._length:
            self._pieces = None
            self._whole(b"".join(pieces))

    def give_up(self) -> None:
        """No more of it will be read, or be of use."""
        if self._pieces is not None:
            self._pieces = None
            self._lost()


class _Lane:
    """The copies for one upstream: a bounded number of greenlets and a bounded queue, so that
    one upstream that hangs takes no place of another's."""

    def __init__(self, forwarder: Forwarder, upstream: str) -> None:
        self._forwarder = forwarder
        self._upstream = upstream
        self._waiting: deque[_Copy] = deque()
        self._greenlets: set[Greenlet] = set()
        self._silent_until = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._greenlets)

    def take(self, copy: _Copy) -> bool:
        """Send it now or in its turn; False when there is no room."""
        if len(self._greenlets) < UNDER_WAY:
            greenlet = Greenlet(self._work, copy)
            self._greenlets.add(greenlet)
            greenlet.link(self._greenlets.discard)
            greenlet.start()
            return True
        if len(self._waiting) < WAITING:
            self._waiting.append(copy)
            return True
        return False

    def _work(self, copy: _Copy) -> None:
        while True:
            self._run(copy)
            if not self._waiting:
                return
            copy = self._waiting.popleft()

    def _run(self, copy: _Copy) -> None:
        request = copy.request
        request.started = monotonic()
        request.upstream = copy.group.upstream
        decisions = copy.group.state.decisions
        try:
            response = self._forwarder.forward(
                request, copy.route, copy.group, copy.target, copy.normal, copy.asked_host
            )
        except GatewayError as error:
            decisions["mirror_failed"] += 1
            self._tell(error)
        except (Exception, Timeout):
            # A Timeout of gevent is no Exception: one that leaks must not end the lane.
            decisions["mirror_failed"] += 1
            log.exception("the copy of request %s failed", request.request_id.decode("latin-1"))
        else:
            decisions["mirrored"] += 1
            _discard(response)

    def _tell(self, error: GatewayError) -> None:
        now = monotonic()
        if now >= self._silent_until:
            self._silent_until = now + TELL
            log.warning("copies to upstream %s fail: %s", self._upstream, error.cause or error.reason)

    def stop(self) -> None:
        self._waiting.clear()
        gevent.killall(list(self._greenlets), block=False)


def _discard(response: Response) -> None:
    """Read an answer to its end, within bounds, so that its connection can serve again."""
    stream = response.stream
    if stream is None:
        return
    left = ANSWER_BYTES
    try:
        with Timeout(ANSWER_SECONDS, False):
            while left > 0 and (piece := stream.read()):
                left -= len(piece)
    except GatewayError as error:
        # Nobody wants this answer: it only costs the connection.
        log.debug("the answer to a copy broke off: %s", error.cause)
    finally:
        stream.close()


class _Marked:
    """A pool for copies: each says that it is one, and of which route."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def send(
        self, request: Request, head: Head, timeouts: Timeouts, again: bool, fresh: bool, deadline: float | None
    ) -> Response:
        assert request.route is not None, "it was matched"
        marked = with_field(head, MIRROR, request.route.name.encode())
        response: Response = self._pool.send(request, marked, timeouts, again, fresh, deadline)
        return response
