"""The gunicorn worker: `worker_class = "gateway.server.worker.GatewayWorker"`.

Rule: everything around the requests is gunicorn's (master, signals, binds, TLS settings,
reload, preload, max_requests, logging); taking connections, speaking HTTP and leaving in
peace are ours. HTTP/2 is off.

Requests go to the application by one of two doors, decided once: straight to
`Gateway.handle`, or by WSGI when the application is none or something was put around it.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub, getcurrent, monkey
from gevent.event import Event
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from gateway.buffers.memory import Buffers
from gateway.errors import Draining, GatewayError
from gateway.hosting import gunicorn_settings, log_configuration, output, persistence
from gateway.http import problem
from gateway.http.messages import Request, Response
from gateway.model import ServerSettings
from gateway.net.stream import wrap
from gateway.server.acceptor import Acceptor
from gateway.server.connection import Connection, Door, Place, Shared
from gateway.server.gunicorn_hooks import Hooks, watched
from gateway.server.instrumented import wrapper
from gateway.server.intake import Intake
from gateway.server.parser import HeadParser
from gateway.server.wsgi_application import WsgiApplication

# Before gunicorn's graceful_timeout, at which the master kills: streams are broken, log
# lines written and flushed within this.
_MARGIN = 2.0
# How long an idle connection is left alone once the worker leaves.
_GRACE = 1.0
# How often a leaving worker looks what is left.
_LOOK = 0.05
# What broken exchanges get to write their log lines.
_LAST_WORDS = 1.0
_ACCEPTS_A_TURN = 64

# The plain one: the worker may have failed before it had an event loop.
_sleep = monkey.get_original("time", "sleep")

# Signals for the master alone.
_MASTERS = (signal.SIGHUP, signal.SIGUSR2)

_GATEWAY = ("handle", "finish", "answer", "identify", "direct_door", "server")
# Connections of the admin listener: for it alone, so that it answers when all others are taken.
_MOST_ADMIN = 64


class WsgiDoor:
    """The door for an application that has to be called by WSGI: it has every request. `finish` is for those that the
    gateway has not logged itself."""

    def __init__(self, gateway: Any | None) -> None:
        self._gateway = gateway

    def handle(self, request: Request) -> Response | None:
        return None

    def answer(self, error: GatewayError, request: Request) -> Response:
        if self._gateway is None:
            return problem.answer(error, request)
        response: Response = self._gateway.answer(error, request)
        return response

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        if self._gateway is not None:
            if not request.request_id:
                self._gateway.identify(request)
            self._gateway.finish(request, response, bytes_out, error)


class Listening(Intake):
    """An intake with what its connections share, and the listeners they come from."""

    def __init__(self, shared: Shared, most: float, per_client: int, exempt: Callable[[str], bool]) -> None:
        super().__init__(shared.places, most, per_client, exempt)
        self.shared = shared
        self.acceptors: list[Acceptor] = []

    def add(self, acceptor: Acceptor) -> None:
        self.acceptors.append(acceptor)
        self.listen(acceptor.start)

    def close(self) -> None:
        """Take no more."""
        for acceptor in self.acceptors:
            acceptor.close()


class _Handshake:
    """A TLS handshake that has not ended: its client has sent no byte of a request."""

    __slots__ = ("_greenlet", "closed_for_another", "idle_since")

    def __init__(self) -> None:
        self._greenlet = getcurrent()
        self.idle_since: float | None = monotonic()
        self.closed_for_another = False

    def make_room(self) -> bool:
        self.closed_for_another = True
        get_hub().loop.run_callback(self._break_off)
        return True

    def _break_off(self) -> None:
        if self._greenlet is not None:
            self._greenlet.throw(ConnectionAbortedError("another connection takes its place"))

    def over(self) -> None:
        self._greenlet = None


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """A GeventWorker with connections of its own."""

    alive: bool
    # Which door is in use, and why.
    door: tuple[str, str] = ("", "")
    # gunicorn's settings that somebody has set and that go before a Gateway's own.
    heeded: frozenset[str] = frozenset()
    # The descriptor of the listener that is not for data.
    admin_fd: int | None = None
    # Whether a worker of this master was ever ready (`persistence.Served`).
    served: object = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._data: Listening | None = None
        self._admin: Listening | None = None
        self._woken: Event | None = None
        self._terminated = False

    # -- gunicorn's calls -------------------------------------------------------------

    def init_process(self) -> None:
        try:
            super().init_process()
        except Exception as error:
            if self.booted or not self.served:
                raise
            # By the status with which gunicorn ends this worker its master would end, too.
            self.log.error("This worker cannot start; another is started in %g s", persistence.PAUSE, exc_info=error)
            self._pause(persistence.PAUSE)
            sys.exit(persistence.CANNOT_START)

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until this worker is told to leave."""
        end = monotonic() + seconds
        while self.alive and monotonic() < end:
            self.notify()
            _sleep(_LOOK)

    def init_signals(self) -> None:
        super().init_signals()
        for number in _MASTERS:
            # Sent to the whole process group they would end the workers; the master acts on them.
            signal.signal(number, _ignore)
            signal.siginterrupt(number, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM. A signal handler: it only sets what others look at."""
        super().handle_exit(sig, frame)
        self._terminated = True
        # The application may not have been loaded yet.
        application: Any = getattr(self, "wsgi", None)
        if application is not None and hasattr(application, "draining"):
            siblings = getattr(application, "siblings", None)
            # At SIGHUP the gateway stays, and whoever asks it must not be told otherwise.
            application.draining = siblings is None or not siblings.replaced()
        self._leave_soon()

    def run(self) -> None:
        if not logging.getLogger("gateway").hasHandlers():
            # Without the settings, or an application that has said where to.
            log_configuration.follow(self.log)
        self._woken = Event()
        shared = self._make_shared()
        data = self._data = self._listening(shared, shared.settings.limits.connections or math.inf)
        self.log.info("Door: %s%s", self.door[0], f" ({self.door[1]})" if self.door[1] else "")
        context = ssl_context(self.cfg) if self.cfg.is_ssl else None
        for listener in self.sockets:
            intake = data
            if listener.fileno() == self.admin_fd:
                intake = self._admin = self._listening(self._admin_shared(shared), _MOST_ADMIN)
            intake.add(self._acceptor(listener, context, intake))
        for intake in self._intakes():
            intake.start()
        while self.alive:
            self.notify()
            output.drain()
            self._woken.wait(1.0)
        self._leave()

    # -- what connections share -------------------------------------------------------

    def _make_shared(self) -> Shared:
        gateway = self.wsgi if all(hasattr(self.wsgi, name) for name in _GATEWAY) else None
        if gateway is None:
            settings = gunicorn_settings.heed(ServerSettings(), self.cfg, gunicorn_settings.HEEDED)
        else:
            settings = gunicorn_settings.heed(gateway.server, self.cfg, self.heeded)
        seen = watched(self.cfg, self.log)
        reason: str | None = seen
        if gateway is None:
            reason = f"the application is a {type(self.wsgi).__name__}, not a Gateway"
        elif reason is None:
            around = wrapper(gateway)
            reason = f"the application was wrapped by {around}" if around else gateway.direct_door()
        door: Door
        if gateway is not None and reason is None:
            self.door, door = ("direct", ""), gateway
        else:
            self.door, door = ("wsgi", reason or ""), WsgiDoor(gateway)
        hooks = Hooks(self)
        base = {**base_environ(self.cfg), "wsgi.multithread": True}
        return Shared(
            door=door,
            application=WsgiApplication(
                self.wsgi, base, hooks.before if seen else None, hooks.after if seen else None
            ),
            settings=settings,
            parser=HeadParser(settings.limits),
            left=self.max_requests,
            worn=self._worn,
            closing=not self.cfg.keepalive,
            buffers=Buffers(0) if gateway is None else gateway.buffers,
        )

    def _admin_shared(self, data: Shared) -> Shared:
        """The admin listener has a door of its own, so that no route is reached by it. Without
        a Gateway in front, the application is asked, and told by the environ where it is."""
        admin = getattr(self.wsgi, "admin", None)
        base = {**base_environ(self.cfg), "wsgi.multithread": True, "gateway.admin": True}
        return Shared(
            door=WsgiDoor(None) if admin is None else admin,
            application=WsgiApplication(self.wsgi, base),
            settings=data.settings,
            parser=HeadParser(data.settings.limits),
            worn=lambda: None,
        )

    def _worn(self) -> None:
        """max_requests were served."""
        if self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._leave_soon()

    def _leave_soon(self) -> None:
        for intake in self._intakes():
            intake.shared.closing = True
        if self._woken is not None:
            get_hub().loop.run_callback_threadsafe(self._woken.set)

    def _listening(self, shared: Shared, most: float) -> Listening:
        return Listening(shared, most, shared.settings.limits.connections_per_client, self._trusts)

    def _trusts(self, peer: str) -> bool:
        """Whether a peer is a proxy of ours, which opens connections ahead, and for many clients."""
        trusts = getattr(self.wsgi, "trusts", None)
        return trusts is not None and bool(trusts(peer))

    def _intakes(self) -> list[Listening]:
        return [intake for intake in (self._data, self._admin) if intake is not None]

    # -- connections ------------------------------------------------------------------

    @property
    def closed_connections(self) -> dict[str, int]:
        """Client connections that were closed for others or refused, by kind (`intake.Places`)."""
        closed: Counter[str] = Counter()
        for intake in self._intakes():
            closed.update(intake.places.closed)
        return dict(closed)

    @property
    def open_connections(self) -> int:
        """Those of the data listeners."""
        return 0 if self._data is None else self._data.open

    def _acceptor(self, listener: Any, context: Any | None, intake: Listening) -> Acceptor:
        name = listener.getsockname()
        scheme = "http" if context is None else "https"
        if isinstance(name, tuple):
            place = Place(scheme, name[1], name[0])
        else:
            place = Place(scheme, 443 if context is not None else 80)
        a_turn = 1 if self.cfg.workers > 1 else _ACCEPTS_A_TURN

        def take(client: Any, address: Any) -> None:
            peer, port = _peer(address)
            counted = intake.admit(peer)
            if counted is None:
                client.close()
                return
            gevent.spawn_raw(self._serve, intake, place, context, client, peer, port, counted)

        return Acceptor(listener, take, intake.room, a_turn)

    def _serve(
        self, intake: Listening, place: Place, context: Any | None, client: Any, peer: str, port: int, counted: str
    ) -> None:
        """The greenlet of one connection."""
        for_another = False
        try:
            if context is not None:
                client, for_another = self._handshake(intake, context, client)
            if client is not None:
                connection = self._connection(intake, place, client, peer, port)
                try:
                    connection.run()
                finally:
                    for_another = connection.closed_for_another
        except Exception:
            self.log.exception("A connection failed")
        finally:
            if client is not None:
                client.close()
            intake.ended(counted, for_another)

    def _connection(self, intake: Listening, place: Place, client: Any, peer: str, port: int) -> Connection:
        mode = self.cfg.proxy_protocol
        if mode != "off" and (intake is self._admin or not self._may_proxy(peer)):
            mode = "off"
        return Connection(intake.shared, wrap(client), place, peer, port, mode, opens_ahead=self._trusts(peer))

    def _may_proxy(self, peer: str) -> bool:
        """Whether `proxy_allow_ips` names this peer (a unix socket's always may)."""
        if not peer or "*" in self.cfg.proxy_allow_ips:
            return True
        address = ipaddress.ip_address(peer)
        return any(address in network for network in self.cfg.proxy_allow_networks())

    def _handshake(self, intake: Listening, context: Any, client: Any) -> tuple[Any | None, bool]:
        """The connection under TLS (None: there is none), and whether another one took its place."""
        limit = intake.shared.settings.timeouts.tls_handshake
        handshake, silent = _Handshake(), intake.places.silent
        silent[handshake] = None
        try:
            with gevent.Timeout(limit, TimeoutError("TLS handshake timed out")):
                made = context.wrap_socket(
                    client, server_side=True, suppress_ragged_eofs=self.cfg.suppress_ragged_eofs
                )
        except (OSError, ValueError) as error:  # ValueError: gone before it began
            self.log.debug("TLS handshake failed: %s", error)
            client.close()
            return None, handshake.closed_for_another
        finally:
            silent.pop(handshake, None)
            handshake.over()
        return made, handshake.closed_for_another

    # -- leaving ----------------------------------------------------------------------

    def _leave(self) -> None:
        """Serve what is under way, close what is idle, and be gone before the master's limit."""
        data = self._data
        assert data is not None
        # Again: at the signal there may have been no listeners yet.
        self._leave_soon()
        began = monotonic()
        drain = data.shared.settings.drain if self._terminated else 0.0
        graceful = self.cfg.graceful_timeout
        deadline = began + max(graceful - _MARGIN, graceful / 2)
        accepting_until = min(began + drain, deadline)
        accepting = True
        while (now := monotonic()) < deadline:
            if accepting and now >= accepting_until:
                accepting = False
                data.close()
            _dismiss_idle(data.shared, began, now)
            if not accepting and not data.open:
                self._leave_admin()
                return
            self.notify()
            gevent.sleep(_LOOK)
        data.close()
        self._leave_admin()
        self._break_off(data)

    def _leave_admin(self) -> None:
        """Whoever drains may be watched to the end."""
        if self._admin is None:
            return
        self._admin.close()
        for connection in list(self._admin.shared.connections):
            if not connection.busy:
                connection.stream.close()

    def _break_off(self, data: Listening) -> None:
        self.log.warning("Worker graceful timeout (pid:%s): %d connections are broken off", self.pid, data.open)
        for connection in list(data.shared.connections):
            connection.interrupt(Draining("the worker's time to end its exchanges is over"))
        deadline = monotonic() + _LAST_WORDS
        while data.open and monotonic() < deadline:
            gevent.sleep(_LOOK)
            for connection in list(data.shared.connections):
                if not connection.busy:
                    connection.close()
        for connection in list(data.shared.connections):
            connection.close()
        gevent.sleep(0)


def _ignore(number: int, frame: Any) -> None:
    """A handler and not SIG_IGN, which programs started by an application would inherit."""


def _peer(address: Any) -> tuple[str, int]:
    """Address and port of who connected; "" and 0 on a unix socket."""
    peer, port = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)
    if peer.startswith("::ffff:") and "." in peer:  # an IPv4 client of a socket for both
        peer = peer[7:]
    return peer, port


def _dismiss_idle(shared: Shared, began: float, now: float) -> None:
    for connection in list(shared.connections):
        since = connection.idle_since
        if since is not None and now - max(since, began) >= _GRACE:
            connection.dismiss()
        since = connection.lingers_since
        if since is not None and now - max(since, began) >= _GRACE:
            connection.stream.close()
