"""This gateway as a service in Consul: announced, kept alive, taken back when it leaves.

Rule: one registration a gateway, whoever of its workers sees to it, and never in the way of
traffic: the agent is asked by a greenlet of its own, and one that is away is asked again
until it is back. The service's id is made of the host's name and where it listens, so that a gateway
that was killed takes its own place again.

With `check: ttl` the gateway says every `interval` how it is (ready or not, as `/-/readyz`
does); Consul takes it for dead after three intervals of silence. With `check: http` Consul
asks `/-/readyz` itself.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from gateway.model import ConsulSettings, RegistrationSettings
from gateway.registries import RegistryError
from gateway.registries.consul import ConsulApi
from gateway.registries.pacing import Backoff, Clock
from gateway.runtime.background import Background, Task

log = logging.getLogger("gateway.registries.registration")

# How often a worker looks whether it is its turn, and whether the gateway is leaving.
LOOK = 0.25
# What taking the registration back may cost a gateway that leaves.
LEAVE = 1.0
# Consul's own advice for a TTL: longer than two reports.
REPORTS_A_TTL = 3
# How long Consul waits for /-/readyz.
CHECK_TIMEOUT = 2.0


class RegistrationError(Exception):
    """What is to be announced cannot be made out."""


class Siblings(Protocol):
    """The workers of one gateway; `gateway.hosting.siblings` has them."""

    def lead(self) -> bool: ...

    def resign(self) -> None: ...

    def replaced(self) -> bool: ...


class Agent(Protocol):
    """What is needed of `ConsulApi`."""

    def register(self, service: dict[str, Any]) -> None: ...

    def deregister(self, ident: str, within: float) -> None: ...

    def report(self, ident: str, passing: bool, note: str) -> None: ...

    def registered(self, ident: str) -> bool: ...

    def close(self) -> None: ...


# -- what is announced ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the gateway listens; `host` None is every address of this machine."""

    scheme: str
    host: str | None
    port: int


def listeners(bind: str) -> list[Listener]:
    """What gunicorn's names of sockets say, `http://127.0.0.1:8000,unix:/run/x`, those that
    others may reach first; unix sockets have no place in a registry."""
    found = []
    for name in bind.split(","):
        parts = urlsplit(name)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port:
            every = ipaddress.ip_address(parts.hostname).is_unspecified
            found.append(Listener(parts.scheme, None if every else parts.hostname, parts.port))
    return sorted(found, key=lambda listener: _loopback(listener.host))


def _loopback(host: str | None) -> bool:
    return host is not None and ipaddress.ip_address(host).is_loopback


def service(
    settings: RegistrationSettings, bind: str, own_prefix: str | None, hostname: str, local: Callable[[], str]
) -> dict[str, Any]:
    """The service as Consul's API takes it. `local`: this machine's address on the way to the agent."""
    first = next(iter(listeners(bind)), None)
    port = settings.port or (first.port if first else None)
    if port is None:
        raise RegistrationError("the gateway listens on no port: discovery.consul.registration.port must name one")
    address = settings.address or _address(first, local)
    check: dict[str, Any]
    if settings.check == "http":
        scheme = first.scheme if first else "http"
        # The agent that has no other address for us than its own is on this machine.
        url = f"{scheme}://{_authority(address or '127.0.0.1')}:{port}{own_prefix}readyz"
        check = {"HTTP": url, "Interval": _seconds(settings.interval), "Timeout": _seconds(CHECK_TIMEOUT)}
        if scheme == "https":
            # The certificate is for names, and this asks by address.
            check["TLSSkipVerify"] = True
    else:
        check = {"TTL": _seconds(settings.interval * REPORTS_A_TTL)}
    if settings.deregister_after is not None:
        check["DeregisterCriticalServiceAfter"] = _seconds(settings.deregister_after)
    return {
        "name": settings.service,
        "id": "-".join((settings.service, hostname, *_told(first), str(port))),
        "address": address,
        "port": port,
        "tags": list(settings.tags),
        "check": check,
    }


def _address(listener: Listener | None, local: Callable[[], str]) -> str | None:
    """Where others reach us; None leaves it to Consul, which takes the address of the agent's node."""
    if listener is None or listener.host is None:
        seen = local()
        return None if _loopback(seen) else seen
    if _loopback(listener.host):
        raise RegistrationError(
            f"the gateway listens on {listener.host} alone: discovery.consul.registration.address must say where "
            "others reach it"
        )
    return listener.host


def _told(listener: Listener | None) -> tuple[str, ...]:
    """What tells gateways of one host apart besides the port."""
    return (listener.host,) if listener is not None and listener.host is not None else ()


def _authority(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _seconds(length: float) -> str:
    return f"{round(length * 1000)}ms"


def local_address(agent: str) -> str:
    """This machine's address on the way to the agent; nothing is sent."""
    parts = urlsplit(agent if "://" in agent else f"http://{agent}")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 8500, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RegistrationError(f"no way to Consul: {error}") from error


# -- the greenlet -----------------------------------------------------------------------


class Registration:
    """Keeps one gateway announced. `unready` says why it is not ready, "" when it is; `draining`
    whether it is leaving."""

    def __init__(
        self,
        agent: Agent,
        settings: RegistrationSettings,
        announced: Callable[[], dict[str, Any]],
        unready: Callable[[], str],
        draining: Callable[[], bool],
        siblings: Siblings | None,
        clock: Clock,
        background: Background | None = None,
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._make = announced
        self._unready = unready
        self._draining = draining
        self._siblings = siblings
        self._clock = clock
        self._backoff = Backoff(random.random)
        self._service: dict[str, Any] = {}
        self._announced = self._told = False
        self._reported: str | None = None
        self._due = clock()
        self._error = ""
        self._background = background or Background()
        self._greenlet: Task | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._greenlet is None:
            self._greenlet = self._background.start("registration", self._run)

    def stop(self, for_good: bool = False) -> None:
        """End, and take the registration back unless other workers go on; `for_good`: even then."""
        if self._greenlet is not None:
            self._greenlet.kill(block=True)
            self._greenlet = None
        self._leave(for_good)
        self._agent.close()

    def _run(self) -> None:
        # A worker that is being replaced goes on until it ends: its successor may take a while to start.
        while not (self._draining() and self._last()):
            self.look()
            gevent.sleep(LOOK)
        self._leave()

    def look(self) -> None:
        """Do what is due."""
        if self._siblings is not None and not self._siblings.lead():
            return
        now, unready = self._clock(), self._unready()
        changed = self._settings.check == "ttl" and self._reported is not None and unready != self._reported
        if now < self._due and not changed:
            return
        try:
            self._keep(unready)
        except (RegistryError, RegistrationError) as error:
            self._failed(str(error))
            return
        except Exception as error:
            # An announcement that silently stops is worse than whatever this was.
            text = f"{type(error).__name__}: {error}"
            if text != self._error:
                log.error("the gateway is not announced for a reason of our own", exc_info=error)
            self._failed(text)
            return
        self._backoff.succeeded()
        self._due = now + self._settings.interval

    def _keep(self, unready: str) -> None:
        if self._announced and self._settings.check == "http" and not self._agent.registered(self._service["id"]):
            self._announced = False
        new = not self._announced
        if new:
            self._service = self._make()
            # From here on the agent may know it, whether or not its answer arrives.
            self._told = True
            self._agent.register(self._service)
            self._announced = True
        if self._settings.check == "ttl":
            self._agent.report(self._service["id"], passing=not unready, note=unready or "ready")
            self._reported = unready
        if new:
            log.info("announced to Consul as %s", self._service["id"])
        self._error = ""

    def _failed(self, error: str) -> None:
        if error != self._error:
            log.warning("the gateway is not announced to Consul: %s", error)
        self._error = error
        # An agent that is new, or came back without its memory, has to be told all of it.
        self._announced = False
        self._due = self._clock() + min(self._backoff.failed(), self._settings.interval)

    def _last(self) -> bool:
        """Whether nobody takes over what this worker does, once it ends."""
        return self._siblings is None or (self._draining() and not self._siblings.replaced())

    def _leave(self, for_good: bool = False) -> None:
        """Take the registration back, if it is this worker's and nobody takes it over."""
        if self._told and (for_good or self._last()):
            try:
                self._agent.deregister(self._service["id"], within=LEAVE)
            except RegistryError as error:
                log.warning("%s stays announced until its check fails: %s", self._service["id"], error)
            else:
                log.info("taken back from Consul: %s", self._service["id"])
        self._announced = self._told = False
        if self._siblings is not None:
            self._siblings.resign()


def make(
    consul: ConsulSettings,
    bind: str,
    own_prefix: str | None,
    unready: Callable[[], str],
    draining: Callable[[], bool],
    siblings: Siblings | None,
    clock: Clock,
    background: Background | None = None,
) -> Registration | None:
    """None when the gateway is not to be announced."""
    settings = consul.registration
    if settings is None:
        return None

    def announced() -> dict[str, Any]:
        return service(settings, bind, own_prefix, socket.gethostname(), lambda: local_address(consul.address))

    return Registration(ConsulApi(consul), settings, announced, unready, draining, siblings, clock, background)


class Announcer:
    """Registers the gateway as the configuration in force says. `make` returns the registration for
    `discovery.consul`, None if there is none.

    Deregistering waits for Consul and therefore runs in its own greenlet: a swap never waits."""

    def __init__(self, make: Callable[[ConsulSettings], Registration | None], background: Background) -> None:
        self._make = make
        self._background = background
        self._wanted: ConsulSettings | None = None
        self._in_use: ConsulSettings | None = None
        # Registrations of earlier configurations that are not deregistered yet.
        self._leaving: list[Registration] = []
        self._changed = Event()
        self._greenlet: Task | None = None
        self.registration: Registration | None = None

    def start(self, consul: ConsulSettings) -> None:
        self._wanted = consul
        self._settle()
        self._greenlet = self._background.start("announcer", self._run)

    def follow(self, consul: ConsulSettings) -> None:
        """Use the settings of the configuration that is in force now. Never waits."""
        self._wanted = consul
        self._changed.set()

    def stop(self) -> None:
        """End, and deregister unless other workers go on."""
        if self._greenlet is not None:
            self._greenlet.kill(block=True)
            self._greenlet = None
        for old in self._leaving:
            old.stop(for_good=True)
        if self.registration is not None:
            self.registration.stop()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            self._settle()
            self._changed.wait()

    def _settle(self) -> None:
        """Apply the wanted settings. Every step can be repeated after an exception."""
        wanted = self._wanted
        if wanted is not None and wanted != self._in_use:
            new = self._make(wanted)
            if self.registration is not None:
                self._leaving.append(self.registration)
            self.registration, self._in_use = new, wanted
        while self._leaving:
            self._leaving[0].stop(for_good=True)
            del self._leaving[0]
        if self.registration is not None:
            self.registration.start()
