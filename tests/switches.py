"""Errors thrown into a greenlet at each point where it waits.

A gevent program can be interrupted only where a greenlet gives way to the hub: by a kill, by an error that another
greenlet throws in (a client that disconnected, a worker that ends), by a fault. `Switches` counts these points with
`greenlet.settrace` and throws at one of them; `Stage` runs one request through a real gateway over loopback sockets,
and lists what that request left behind: counters that did not fall, connections, greenlets, log records, wrong bytes.
"""

from __future__ import annotations

import fcntl
import gc
import select
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
import greenlet
from gevent import Greenlet, get_hub, getcurrent, spawn_raw
from gevent import socket as gsocket

from gateway import config as files
from gateway.app import Gateway
from gateway.errors import ClientClosed, Draining, GatewayError
from gateway.http.messages import Request, Response
from gateway.net.stream import wrap
from gateway.server.connection import Connection, Place, Shared
from gateway.server.parser import HeadParser
from gateway.testing import FakeUpstream, Malformed, RawClient, RawResponse, Truncated, answer
from gateway.transport.pool import EndpointPool
from tests import long
from tests.exchanges import open_files

# Target of the request that gets the error, of one that runs beside it, and of one sent afterwards.
VICTIM, BESIDE, PLAIN = b"/victim", b"/beside", b"/plain"
PLAIN_BODY = b"a plain answer"
# Seconds for what happens within milliseconds unless it never happens.
PATIENCE = 3.0
_ROOT = Path(__file__).resolve().parent.parent
_GATEWAY = f"{_ROOT}/gateway/"


# -- which greenlet, at which point, with which error ----------------------------------


@dataclass(frozen=True)
class Aim:
    """One throw. `victim` gets the error; `points` is the greenlet whose waits are counted. Both are "connection"
    (of the request to VICTIM), "beside" (of the one to BESIDE), or the number of a greenlet that the connection's
    started, in order. `entering`: counted when `points` is resumed instead of when it gives way. The throw then comes
    before any callback that `points` schedules in that turn: before a greenlet it spawns has begun, and between the
    moment a result is set and the moment the waiter has it."""

    error: str
    points: str | int = "connection"
    victim: str | int = "connection"
    entering: bool = False
    # Points are counted while the connection lingers after its answer, when the request is over.
    lingering: bool = False
    # A killed request must have its log record, too. (Nothing in the product kills a connection's greenlet.)
    logged: bool = False

    def __str__(self) -> str:
        point = f"{'resumed' if self.entering else 'waits'}-{self.points}"
        point += "-lingering" if self.lingering else ""
        return f"{self.error}-{point}" + ("" if self.victim == self.points else f"-into-{self.victim}")


class Switches:
    """Counts the points of an `Aim`, and throws at number `at` (None: counts only). `waits` names them, by the
    gateway's functions on the stack, innermost first."""

    def __init__(self, aim: Aim, at: int | None) -> None:
        self.aim, self.at = aim, at
        self.waits: list[str] = []
        self.children: list[Greenlet] = []
        self.known: dict[str, Any] = {}
        self.connection: Connection | None = None
        # From the moment the gateway has the request to its log record.
        self.under_way = False
        self.finished = False
        self.delivered = False
        # The throw was due: nothing is to be held back for its sake any more.
        self.released = False
        # What was thrown first. Not the error itself: its traceback would keep what the gateway let go of.
        self.thrown: type[BaseException] | None = None
        self._broken: BaseException | None = None

    @contextmanager
    def traced(self) -> Iterator[None]:
        before = greenlet.settrace(self._switched)
        try:
            yield
        finally:
            greenlet.settrace(before)
        if self._broken is not None:
            raise self._broken

    def find(self, who: str | int) -> Any:
        if isinstance(who, str):
            return self.known.get(who)
        return self.children[who] if who < len(self.children) else None

    def _switched(self, event: str, between: tuple[Any, Any]) -> None:
        # greenlet prints an error of this function and stops tracing.
        try:
            self._look(*between)
        except BaseException as error:
            self._broken = self._broken or error

    def _look(self, origin: Any, target: Any) -> None:
        if isinstance(target, Greenlet) and target not in self.children and self._ours(target):
            self.children.append(target)
        watched = self.find(self.aim.points)
        if watched is None or (isinstance(self.aim.points, str) and not self._is_due()):
            return
        if self.aim.entering:
            if target is watched:
                self._point(sys._getframe())
        elif origin is watched and not origin.dead:
            self._point(origin.gr_frame)

    def _is_due(self) -> bool:
        """Whether the connection is in the part of the request that is aimed at."""
        if self.aim.lingering:
            return self.connection is not None and self.connection.lingers_since is not None
        return self.under_way

    def _ours(self, target: Greenlet) -> bool:
        """Whether the connection's greenlet started it, or one that it started."""
        parent = target.spawning_greenlet() if target.spawning_greenlet is not None else None
        return parent is not None and (parent is self.known.get("connection") or parent in self.children)

    def _point(self, frame: FrameType | None) -> None:
        number = len(self.waits)
        self.waits.append(_stack(frame))
        if number == self.at:
            get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        victim = self.find(self.aim.victim)
        try:
            if victim is None or victim.dead or (isinstance(self.aim.victim, str) and not self._is_due()):
                return
            self._throw_into(victim)
        finally:
            self.released = True

    def _throw_into(self, victim: Any) -> None:
        kind, again = self.aim.error, self.delivered
        if kind in ("another_connection", "leaving"):
            self._close(kind)
            return
        if kind == "kill":
            error: BaseException = greenlet.GreenletExit()
        elif kind == "fault":
            error = RuntimeError("a fault, thrown in by a test")
        else:
            # What the product throws into a connection, and when: `Connection._give_up` and `interrupt`.
            connection = self.connection
            if connection is None or not connection.busy:
                return
            if kind == "draining" or again:
                error = Draining("the worker's time is over")
            else:
                error = connection.gone = ClientClosed("client closed the connection")
        self.delivered = True
        self.thrown = self.thrown or type(error)
        if kind == "closed_then_draining" and not again:
            # In the same turn of the hub, so that it meets whatever the first one makes wait.
            get_hub().loop.run_callback(self._throw)
        victim.throw(error)


    def _close(self, kind: str) -> None:
        """A connection that lingers is closed from outside: for a new one, or because the worker leaves."""
        assert self.connection is not None
        self.delivered = True
        if kind == "leaving":
            self.connection.stream.close()
        elif not self.connection.make_room():
            raise AssertionError("a connection that lingers made no room")


def _stack(frame: FrameType | None) -> str:
    """The gateway's functions, innermost first."""
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(_GATEWAY):
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found[:6]) or "(not begun)"


# -- one request through a real gateway ------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """One call of `finish`, which is one record of the access log."""

    target: bytes
    status: int | None
    reason: str
    bytes_out: int
    queue_s: float


class _Door:
    """The gateway, watched: which greenlet has which request, and what is logged of it."""

    def __init__(self, gateway: Gateway, switches: Switches, connections: dict[Any, Connection]) -> None:
        self._gateway, self._switches, self._connections = gateway, switches, connections
        self.records: list[Logged] = []

    def handle(self, request: Request) -> Response | None:
        switches = self._switches
        if request.target.startswith(BESIDE):
            switches.known["beside"] = getcurrent()
        elif request.target.startswith(VICTIM):
            switches.known["connection"] = getcurrent()
            switches.connection = self._connections[getcurrent()]
            switches.under_way = True
        return self._gateway.handle(request)

    def answer(self, error: GatewayError, request: Request) -> Response:
        return self._gateway.answer(error, request)

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        self._gateway.finish(request, response, bytes_out, error)
        status = None if response is None else response.status
        self.records.append(Logged(request.target, status, request.reason, bytes_out, request.queue_s))
        if request.target.startswith(VICTIM):
            self._switches.under_way = False


Script = Callable[[Any], None]


@dataclass(eq=False)
class Scenario:
    """One request to VICTIM and what happens around it. `config`: with {0}, {1}, … for the upstreams' addresses.
    `script`: what the upstreams do, given the stage and their exchange. `client`: sends the request, reads the answer.
    `wanted`: the status and body (None: any) that the client gets when nothing is thrown; `accepted`: others as good. `body`:
    the request's. `through`: modules of the gateway in which the connection's greenlet must have waited."""

    config: str
    script: Callable[[Stage, Any], None]
    client: Callable[[Stage], RawResponse | None]
    body: bytes = b""
    wanted: tuple[int, bytes | None] = (200, b"")
    accepted: tuple[tuple[int, bytes], ...] = ()
    # No other request could have what this one waits for.
    alone: bool = True
    upstreams: int = 1
    tls: Callable[[], tuple[Any, str]] | None = None
    prepare: Callable[[Stage], None] = lambda stage: None
    through: tuple[str, ...] = ()
    send_buffer: int = 0
    receive_buffer: int = 0
    # Bodies of requests to other targets.
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    # How many follow-up requests show that each endpoint still serves.
    plain_requests: int = 2


class Stage:
    """A gateway with its listener and upstreams for one run of a scenario."""

    def __init__(self, scenario: Scenario, aim: Aim, at: int | None) -> None:
        self.scenario, self.switches = scenario, Switches(aim, at)
        self.problems: list[str] = []
        self.answer: RawResponse | None = None
        # Requests to VICTIM that reached an upstream.
        self.tries = 0
        # Set by scripts.
        self.answered = False
        self.clients: list[RawClient] = []
        self.beside: list[Greenlet] = []
        self.pools: list[EndpointPool] = []
        # Errors out of `Connection.run`, and out of greenlets and callbacks: their types and texts.
        self._escaped: list[str] = []
        self._hub_errors: list[str] = []
        self._connections: dict[Any, Connection] = {}

    # what scenarios use

    @property
    def released(self) -> bool:
        return self.switches.released

    def connect(self) -> RawClient:
        client = RawClient(self.port, timeout=PATIENCE, receive_buffer=self.scenario.receive_buffer)
        self.clients.append(client)
        return client

    def until(self, holds: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait for a state of the scenario, or until the error was thrown and nothing has to be held back."""
        with suppress(AssertionError):
            self._soon(lambda: self.released or holds(), within)

    def seen(self, target: bytes = VICTIM) -> int:
        """Requests for a target that have reached the upstreams."""
        return sum(one.target.startswith(target) for upstream in self.upstreams for one in upstream.requests)

    def received(self) -> int:
        """Bytes of the request's body that an upstream has; the most of all tries."""
        sizes = [len(one.body) for upstream in self.upstreams for one in upstream.requests if one.target == VICTIM]
        return max(sizes, default=0)

    def held_up(self) -> bool:
        """Whether the connection's greenlet waits for its client to read."""
        greenlet = self.switches.known.get("connection")
        return greenlet is not None and "wait_writable" in _stack(greenlet.gr_frame)

    def lingers(self) -> bool:
        """Whether the connection of the request only reads and drops what still comes."""
        connection = self.switches.connection
        return connection is not None and connection.lingers_since is not None

    def is_read(self, client: RawClient) -> bool:
        """Whether a connection that lingers has read all that a client sent."""
        connection = self.switches.connection
        if connection is None or connection.stream.closed:
            return True
        queues = ((client.sock.fileno(), termios.TIOCOUTQ), (connection.stream.fileno(), termios.FIONREAD))
        return not any(any(fcntl.ioctl(file, queue, bytes(4))) for file, queue in queues)

    def spawn(self, run: Callable[[], object]) -> None:
        """Something the scenario does beside its client."""
        self.beside.append(gevent.spawn(run))

    def state(self, upstream: str = "u") -> Any:
        return self.gateway.store.current.groups[upstream].state

    # one run

    def run(self) -> list[str]:
        """The problems found; empty when nothing is left of the request."""
        files_before = open_files()
        hub = get_hub()
        hub.handle_error = lambda context, kind, value, trace: self._hub_errors.append(repr(value))
        try:
            with self._set_up():
                with self.switches.traced():
                    self._play()
                self._check()
                self._ask_plainly()
                # They hold the errors that ended them, and those what their frames held.
                self._connections.clear()
                self.switches.connection = None
                self.switches.children.clear()
            with suppress(AssertionError):
                self._soon(lambda: open_files() <= files_before, within=1.5)
            if left := max(open_files() - files_before, 0):
                gc.collect()
                gevent.sleep(0.01)
                kept = max(open_files() - files_before, 0)
                self.problems.append(f"{left} files are left open, {kept} of them when garbage is collected")
        finally:
            del hub.handle_error
        return self.problems

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        scenario = self.scenario
        context, ca = scenario.tls() if scenario.tls is not None else (None, "")
        self.upstreams = [FakeUpstream(tls=context) for _ in range(scenario.upstreams)]
        for upstream in self.upstreams:
            upstream.serve(PLAIN, answer(PLAIN_BODY))
            upstream.serve(VICTIM, self._script)
            upstream.serve(BESIDE, self._script)
            upstream.serve(b"/eject", self._script)
        text = scenario.config.format(*(upstream.url for upstream in self.upstreams), ca=ca)
        made, original = self.pools, EndpointPool.__init__

        def noted(pool: EndpointPool, *args: Any, **how: Any) -> None:
            original(pool, *args, **how)
            made.append(pool)

        EndpointPool.__init__ = noted  # type: ignore[method-assign]
        config = files.loads(f"version: 1\nadmin: null\naccess_log: {{path: null}}\n{text}".encode(), "test", {})
        self.gateway = Gateway(config)
        self.gateway.start()
        self.door = _Door(self.gateway, self.switches, self._connections)
        self.shared = Shared(self.door, None, config.server, HeadParser(config.server.limits), worn=lambda: None, buffers=self.gateway.buffers)  # type: ignore[arg-type]
        listener = gsocket.socket()
        if scenario.send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, scenario.send_buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        self.port = listener.getsockname()[1]
        accepting = gevent.spawn(self._accept, listener)
        scenario.prepare(self)
        try:
            yield
        finally:
            EndpointPool.__init__ = original  # type: ignore[method-assign]
            for client in self.clients:
                client.close()
            accepting.kill()
            listener.close()
            self.gateway.stop()
            for upstream in self.upstreams:
                upstream.close()
            for connection in list(self.shared.connections):
                connection.stream.close()

    def _accept(self, listener: Any) -> None:
        while True:
            sock, _ = listener.accept()
            spawn_raw(self._serve, sock)

    def _serve(self, sock: Any) -> None:
        """As the worker does; what it would log as "A connection failed" is kept."""
        connection = self._connections[getcurrent()] = Connection(
            self.shared, wrap(sock), Place("http", self.port, "127.0.0.1"), "127.0.0.1"
        )
        try:
            connection.run()
        except Exception as error:
            self._escaped.append(repr(error))
        finally:
            sock.close()

    def _script(self, exchange: Any) -> None:
        if exchange.request.target.startswith(VICTIM):
            self.tries += 1
        self.scenario.script(self, exchange)

    def _play(self) -> None:
        client = gevent.spawn(self._client)
        client.join()
        gevent.joinall(self.beside, timeout=PATIENCE)
        for one in self.beside:
            if not one.dead:
                self.problems.append("the request beside never ended")
                one.kill()
        for sock in self.clients:
            sock.close()
        with suppress(AssertionError):
            self._soon(lambda: not self._left())

    def _client(self) -> None:
        try:
            self.answer = self.scenario.client(self)
        except TimeoutError:
            self.problems.append("the client got neither an answer nor an end")
        except (OSError, Truncated):
            pass  # the connection was broken: the log record says why
        except Malformed as error:
            self.problems.append(f"the client received what is not HTTP: {error}")

    # what is left

    def _left(self) -> list[str]:
        """Counters that did not fall, and greenlets that did not end."""
        found = []
        for name, group in self.gateway.store.current.groups.items():
            gate = group.state.gate
            counts = {"in_flight": gate.in_flight, "streams": gate.streams, "queued": gate.queued}
            found += [f"gate of {name}: {what} {count}" for what, count in counts.items() if count]
            for candidate in group.candidates:
                if candidate.state.in_flight:
                    found.append(f"endpoint of {name}: in_flight {candidate.state.in_flight}")
                if candidate.state.on_trial:
                    found.append(f"endpoint of {name}: still on trial")
        for pool in self.pools:
            if pool.open != len(pool._idle) or pool._waiting:
                found.append(f"pool: open {pool.open}, idle {len(pool._idle)}, waiting {len(pool._waiting)}")
        found += [f"greenlet {number} still runs" for number, one in enumerate(self.switches.children) if not one.dead]
        places = self.shared.places
        for kind, those in (("silent", places.silent), ("lingering", places.lingering), ("idle", places.idle)):
            if those:
                found.append(f"{len(those)} connections are listed as {kind}")
        buffers = self.gateway.buffers
        if buffers.held or buffers.spooled:
            found.append(f"buffers: {buffers.held} bytes held, {buffers.spooled} in files")
        alive = sum(not one.dead for one in self._connections)
        if alive:
            found.append(f"{alive} connections still served")
        if self.gateway.in_flight():
            found.append(f"the gateway counts {self.gateway.in_flight()} in flight")
        return found

    def _check(self) -> None:
        self.problems += self._left()
        self._check_records()
        self._check_bodies()
        faults = [error for error in self._escaped + self._hub_errors if not error.startswith("RuntimeError('a fault, thrown")]
        self.problems += [f"nobody handled {error}" for error in faults]

    def _check_records(self) -> None:
        records = [one for one in self.door.records if one.target == VICTIM]
        aim = self.switches.aim
        killed = self.switches.thrown is greenlet.GreenletExit and aim.victim == "connection"
        if killed and not aim.logged and len(records) < 2:
            return
        if len(records) != 1:
            self.problems.append(f"{len(records)} log records of the request instead of 1")
            return
        reason, thrown = records[0].reason, self.switches.thrown
        got = None if self.answer is None else (self.answer.status, self.answer.body)
        scenario = self.scenario
        if thrown is None:
            wanted = (scenario.wanted, *scenario.accepted)
            if records[0].queue_s and scenario.alone:
                self.problems.append(f"it waited {records[0].queue_s:.3f} s for a place that nobody else had")
            if got not in wanted and (got is None or (got[0], None) not in wanted):
                self.problems.append(f"answered {got!r:.200} instead of {wanted!r:.200}; logged {records[0]}")
            return
        if got is not None and got[0] == 200 and got not in (scenario.wanted, *scenario.accepted):
            self.problems.append(f"wrong answer {got!r:.200}; logged {records[0]}")
        # An answer that was out whole is a success, also when its client could not read on after it.
        whole = {len(body) for _, body in (scenario.wanted, *scenario.accepted) if body is not None}
        if got is None and not reason and records[0].bytes_out not in whole:
            self.problems.append(f"a request without a whole answer is logged as a success: {records[0]}")
        if got is None and issubclass(thrown, GatewayError) and reason not in ("client_closed", "draining"):
            self.problems.append(f"the client got no whole answer because of {thrown.__name__}; logged {records[0]}")

    def _check_bodies(self) -> None:
        """No upstream saw a request that looked complete and was not what the client sent."""
        bodies = {VICTIM: self.scenario.body, **self.scenario.bodies}
        for upstream in self.upstreams:
            self.problems += [f"an upstream received: {what}" for what in upstream.violations]
            for request in upstream.requests:
                if request.complete and request.body != bodies.get(request.target, b""):
                    self.problems.append(f"an upstream saw a complete body of {request.target!r}: {request.body!r:.120}")

    def _ask_plainly(self) -> None:
        """What follows through the same gateway is answered."""
        for _ in range(self.scenario.plain_requests):
            try:
                with RawClient(self.port, timeout=PATIENCE) as client:
                    got = client.request(b"GET " + PLAIN + b" HTTP/1.1\r\nHost: a.test\r\n\r\n")
                if (got.status, got.body) != (200, PLAIN_BODY):
                    self.problems.append(f"the next request was answered {got.status} {got.body!r:.160}")
            except (OSError, Truncated, Malformed) as error:
                self.problems.append(f"the next request got no answer: {error!r}")
        if not self.problems:
            with suppress(AssertionError):
                self._soon(lambda: not self._left())
            self.problems += [f"after the next request: {what}" for what in self._left()]

    @staticmethod
    def _soon(holds: Callable[[], bool], within: float = PATIENCE) -> None:
        with gevent.Timeout(within, AssertionError(f"not within {within} s")):
            while not holds():
                gevent.sleep(0.001)


# -- a scenario, thrown at everywhere --------------------------------------------------


def readable(client: RawClient) -> bool:
    """Whether an answer, or the end of the connection, has come."""
    return bool(client.buffer) or bool(select.select([client.sock], [], [], 0)[0])


# Points of each kind of wait that are tried besides its last one.
_FIRST = long.either(2, 1_000_000)


def sample(waits: list[str]) -> list[int]:
    """Numbers of points: the first two and the last of each kind of wait; with --long all."""
    places: dict[str, list[int]] = {}
    for number, wait in enumerate(waits):
        places.setdefault(wait, []).append(number)
    return sorted({number for found in places.values() for number in (*found[:_FIRST], found[-1])})


@cache
def _without_error(scenario: Scenario, points: str | int, entering: bool) -> tuple[list[str], list[str]]:
    """What is wrong when nothing is thrown, and the points that there are."""
    stage = Stage(scenario, Aim("none", points, entering=entering), None)
    return stage.run(), stage.switches.waits


def throw_everywhere(scenario: Scenario, aim: Aim, most: int = 3) -> list[str]:
    """Run the scenario once without an error, then once for each sampled point. Returns what is wrong, a line for
    each run with a problem, and stops after `most` of them."""
    found, waits = _without_error(scenario, aim.points, aim.entering)
    if found:
        return [f"without any error: {found}"]
    missing = [module for module in scenario.through if not any(f"{module}." in wait for wait in waits)]
    if missing and aim.points == "connection":
        return [f"never waited in {missing}: {sorted(set(waits))}"]
    if not waits and scenario.accepted and aim.points != 0 and not isinstance(aim.points, str):
        return []  # with another answer that is as good, there is no second try
    wrong, delivered = [], 0
    for at in sample(waits):
        stage = Stage(scenario, aim, at)
        found = stage.run()
        delivered += stage.switches.delivered
        if found:
            seen = stage.switches.waits
            place = seen[at] if at < len(seen) else "(not reached)"
            wrong.append(f"point {at} of {len(waits)} [{place}]: {'; '.join(found)}")
            if len(wrong) >= most:
                break
    if not delivered:
        wrong.append(f"no error could be thrown at any of {len(waits)} points: {waits[:5]}")
    return wrong
