"""A document that a key of Consul or etcd holds: read once, or followed.

Rule: whoever follows is told what the key holds, or why that cannot be known, each time one
of them changes; a key that is not there is such a reason, because an empty document would
take every route away. A follower never ends by itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import gevent

from gateway.config.source import Key, Where
from gateway.errors import ConfigError, Mistake
from gateway.model import ConsulSettings, DiscoverySettings, EtcdSettings
from gateway.net import machine
from gateway.registries import RegistryError, one_line
from gateway.registries.consul import ConsulApi
from gateway.registries.etcd import EtcdApi

log = logging.getLogger("gateway.config")

# What the key holds, or (None) why that is not known.
Tell = Callable[[bytes | None, str], None]

# After a failure the next question is soon, then later: every gateway of a fleet follows.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
# However fast a registry answers, questions are this far apart.
PACE = 0.2


def read(where: Where, settings: DiscoverySettings) -> bytes:
    """What the key holds now; raises `ConfigError` when that cannot be known."""
    assert where.key is not None
    key = where.key
    try:
        if key.registry == "consul":
            consul = ConsulApi(consul_settings(key, settings))
            try:
                value = consul.key(key.name).value
            finally:
                consul.close()
        else:
            etcd = EtcdApi(etcd_settings(key, settings))
            try:
                value = etcd.key(key.name).value
            finally:
                etcd.close()
    except RegistryError as error:
        raise _refused(key, str(error)) from error
    if value is None:
        raise _refused(key, _ABSENT)
    return value


_ABSENT = "there is no such key"


def _refused(key: Key, message: str) -> ConfigError:
    return ConfigError.found(str(key), [Mistake(0, 0, "", message)])


def consul_settings(key: Key, settings: DiscoverySettings) -> ConsulSettings:
    """How the key is asked for: as the local file asks that registry, at the key's address."""
    given = settings.consul
    same = urlsplit(given.address).netloc.rpartition("@")[2] == key.place
    scheme = "https" if given.tls.required else "http"
    return replace(given, address=given.address if same else f"{scheme}://{key.place}", registration=None)


def etcd_settings(key: Key, settings: DiscoverySettings) -> EtcdSettings:
    given = settings.etcd
    same = any(urlsplit(endpoint).netloc.rpartition("@")[2] == key.place for endpoint in given.endpoints)
    return given if same else replace(given, endpoints=(f"http://{key.place}",))


def is_here(key: Key, settings: DiscoverySettings) -> bool:
    """Whether the servers that are asked for the key are on this machine."""
    if key.registry == "consul":
        return machine.has_all([consul_settings(key, settings).address])
    return machine.has_all(etcd_settings(key, settings).endpoints)


def follow(key: Key, settings: DiscoverySettings, tell: Tell) -> None:
    """Tell what the key holds and each change of it, until the greenlet is killed."""
    pause, fault = _Pause(), ""
    while True:
        try:
            if key.registry == "consul":
                _follow_consul(key, consul_settings(key, settings), tell, pause)
            else:
                _follow_etcd(key, etcd_settings(key, settings), tell, pause)
        except RegistryError as error:
            tell(None, str(error))
        except Exception as error:
            # A follower that dies is worse than whatever this was: it would never be noticed.
            text = one_line(f"{type(error).__name__}: {error}")
            if text != fault:
                log.error("%s: cannot be followed for a reason of our own", key, exc_info=error)
            fault = text
            tell(None, text)
        gevent.sleep(pause.next())


class _Pause:
    """How long to wait after failures in a row."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def next(self) -> float:
        pause, self._next = self._next, min(LONGEST_PAUSE, self._next * 2)
        return pause * (0.9 + 0.2 * random.random())

    def reset(self) -> None:
        self._next = FIRST_PAUSE


def _said(value: bytes | None, tell: Tell) -> None:
    tell(value, "" if value is not None else _ABSENT)


def _follow_consul(key: Key, settings: ConsulSettings, tell: Tell, pause: _Pause) -> None:
    api = ConsulApi(settings)
    index: int | None = None
    try:
        while True:
            asked = time.monotonic()
            answer = api.key(key.name, index, settings.poll)
            pause.reset()
            _said(answer.value, tell)
            # An index that went back belongs to a registry that counts anew: wait for nothing.
            index = answer.index if answer.index and answer.index >= (index or 0) else None
            # Without an index nobody waits over there.
            rest = PACE if index is not None else settings.poll
            gevent.sleep(max(0.0, asked + rest - time.monotonic()))
    finally:
        api.close()


def _follow_etcd(key: Key, settings: EtcdSettings, tell: Tell, pause: _Pause) -> None:
    api = EtcdApi(settings)
    try:
        got = api.key(key.name)
        _said(got.value, tell)
        with api.watch(key.name, got.revision + 1) as watch:
            pause.reset()
            for events in watch:
                if events:
                    _said(events[-1].value, tell)
                    gevent.sleep(PACE)
    finally:
        api.close()
