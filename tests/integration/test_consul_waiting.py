"""Blocking queries: against a registry that waits as Consul does but can be told to misbehave, and
against the real agent where only that one will do."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import gevent
import pytest

from gateway.model import ConsulSettings, ConsulSource
from gateway.registries import RefusedError, RegistryError
from gateway.registries.consul import ConsulApi, _room
from gateway.testing import Act, Exchange, FakeUpstream, answer, head
from tests.exchanges import soon
from tests.integration.test_consul import Running, Start, places, start
from tests.services import Consul, free_port

__all__ = ["start"]


def entries(*ports: int) -> bytes:
    found = [{"Node": {"Node": "n"}, "Service": {"ID": f"s{p}", "Address": "10.0.0.1", "Port": p}} for p in ports]
    return json.dumps(found).encode()


class Catalogue(FakeUpstream):
    """A registry with one service: answers when its index is past the one asked for, or after the wait."""

    def __init__(self) -> None:
        super().__init__(self._serve)
        self.index = 10
        self.body = entries(80)
        # The share of a wait that is added to it; what Consul adds at most.
        self.late = 0.0
        self._changed = threading.Condition()
        # Questions for which nothing came meanwhile.
        self.idle = 0

    def put(self, *ports: int, index: int | None = None) -> None:
        with self._changed:
            self.index = self.index + 1 if index is None else index
            self.body = entries(*ports)
            self._changed.notify_all()

    def _serve(self, exchange: Exchange) -> None:
        asked = parse_qs(urlsplit(exchange.request.target.decode()).query)
        if "index" in asked:
            known, wait = int(asked["index"][0]), float(asked["wait"][0].removesuffix("ms")) / 1000
            with self._changed:
                if not self._changed.wait_for(lambda: self.index > known or self._stopping, wait * (1 + self.late)):
                    self.idle += 1
        exchange.send(answer(self.body, b"X-Consul-Index: %d" % self.index))

    def targets(self) -> list[str]:
        return [request.target.decode() for request in self.requests]

    def close(self) -> None:
        super().close()
        with self._changed:
            self._changed.notify_all()


@pytest.fixture
def catalogue() -> Iterator[Catalogue]:
    _room.cache_clear()
    with Catalogue() as fake:
        yield fake
        assert fake.violations == []


def at(*ports: int) -> list[str]:
    return [f"10.0.0.1:{port}" for port in ports]


def settled(running: Running, *ports: int) -> None:
    """Wait until it has said so last."""
    with gevent.Timeout(10, AssertionError(str(running.told[-2:]))):
        while not running.told or places(running.told[-1]) != at(*ports):
            gevent.sleep(0.005)


# -- waiting ----------------------------------------------------------------------------


def test_a_change_comes_while_it_waits(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=30.0, tag="t", datacenter="d")
    assert places(running.next()) == at(80)
    catalogue.wait(2)
    catalogue.put(81)
    assert places(running.until(lambda _: True, within=5)) == at(81)
    catalogue.wait(3)
    rest = "passing=1&tag=t&dc=d&stale="
    assert catalogue.targets() == [
        f"/v1/health/service/s?{rest}",
        f"/v1/health/service/s?index=10&wait=30000ms&{rest}",
        f"/v1/health/service/s?index=11&wait=30000ms&{rest}",
    ]
    assert len(catalogue.connections) == 1


def test_an_idle_registry_is_asked_once_a_poll(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=0.4)
    running.next()
    began = time.monotonic()
    catalogue.wait(5)
    assert time.monotonic() - began > 3 * 0.4 * 0.95
    assert catalogue.idle >= 3
    assert len(running.told) == 1
    assert running.provider.status.last_error == ""


def test_an_answer_that_is_late_by_consul_s_sixteenth_is_no_error(
    catalogue: Catalogue, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.late = 1 / 16
    running = start(catalogue.url, "s", poll=1.0)
    running.next()
    catalogue.wait(4)
    assert len(running.told) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("index", [b"0", b"x", b"-1", b""])
def test_an_index_that_is_none_makes_no_busy_loop(catalogue: Catalogue, start: Start, index: bytes) -> None:
    catalogue.answer(answer(entries(80), b"X-Consul-Index: " + index))
    running = start(catalogue.url, "s", poll=0.3)
    began = time.monotonic()
    running.next()
    catalogue.wait(4)
    assert time.monotonic() - began > 2 * 0.3 * 0.9
    assert all("index=0" not in target for target in catalogue.targets())
    catalogue.answer(answer(entries(81), b"X-Consul-Index: " + index))
    assert places(running.next()) == at(81)


def test_an_index_that_goes_back_begins_anew_and_changes_go_on_arriving(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=0.3)
    running.next()
    catalogue.put(81, index=3)
    assert places(running.next()) == at(81)
    catalogue.until(lambda: any("index=3" in target for target in catalogue.targets()))
    catalogue.put(82)
    assert places(running.next()) == at(82)


# -- faults while waiting ---------------------------------------------------------------


def test_a_watch_lives_on_after_a_500(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=30.0)
    running.next()
    catalogue.wait(2)
    catalogue.queue(answer(b"rpc error making call: EOF", status=500))
    catalogue.put(80)
    assert "HTTP 500: rpc error" in running.until(lambda update: update.failed).error
    running.until_at(*at(80))
    catalogue.wait(5)
    catalogue.put(81)
    assert places(running.until(lambda _: True, within=5)) == at(81)


def test_after_a_body_that_was_too_slow_the_next_answer_is_whole(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=0.3)
    running.next()
    slow: list[bytes | float] = [head(200, b"X-Consul-Index: 11", b"Content-Length: 1000"), *[b"[ ", 0.3] * 20]
    catalogue.queue(slow)
    assert "no answer in" in running.until(lambda update: update.failed).error
    running.until_at(*at(80))
    catalogue.put(81)
    assert places(running.next()) == at(81)


def test_a_registry_that_restarts_while_it_waits_is_asked_again(start: Start) -> None:
    with Catalogue() as first:
        running = start(first.url, "s", poll=30.0)
        running.next()
        first.wait(2)
        port = first.port
    assert running.until(lambda update: update.failed).error
    with FakeUpstream(answer(entries(82), b"X-Consul-Index: 5"), port=port):
        assert places(running.until(lambda update: not update.failed)) == at(82)


def test_one_dead_registry_is_no_matter_to_the_others(catalogue: Catalogue, start: Start) -> None:
    dead = start(f"http://127.0.0.1:{free_port()}", "s")
    running = start(catalogue.url, "s", poll=30.0)
    assert "refused" in dead.next().error
    running.next()
    catalogue.put(81)
    assert places(running.next()) == at(81)


def test_churn_is_asked_for_twice_a_second_and_the_last_state_comes(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=5.0)
    running.next()
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 3:
        number += 1
        catalogue.put(1000 + number)
        gevent.sleep(0.05)
    settled(running, 1000 + number)
    assert len(catalogue.requests) <= 2 + 3 + 2 * (time.monotonic() - began)


def test_flapping_leaves_nothing_behind(catalogue: Catalogue, start: Start) -> None:
    running = start(catalogue.url, "s", poll=0.1)
    running.next()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(60):
        catalogue.put(*([] if number % 2 else [80]))
        gevent.sleep(0.02)
    catalogue.put(99)
    settled(running, 99)
    soon(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert len(catalogue.connections) == 1


# -- the end ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_is_waited_for_is_given_up_at_once(
    catalogue: Catalogue, start: Start, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    running = start(catalogue.url, "s", poll=30.0)
    running.next()
    catalogue.wait(2)
    if how == "stop":
        running.stop.set()
    else:
        running.greenlet.kill()
    # The question would take 30 s.
    running.greenlet.join(20)
    assert running.greenlet.successful()
    with gevent.Timeout(5):
        assert catalogue.connections[0].ended()
    assert caplog.records == []


def test_stop_while_it_pauses(start: Start) -> None:
    running = start(f"http://127.0.0.1:{free_port()}", "s", poll=30.0)
    running.next()
    running.end()


# -- a real agent -----------------------------------------------------------------------


def test_a_change_is_there_long_before_the_poll_is_over(consul: Consul, start: Start) -> None:
    running = start(consul.address, "quick", poll=30.0)
    assert places(running.next()) == []
    for number in range(3):
        consul.register("quick", f"q{number}", 8100 + number)
        update = running.until(lambda _: True, within=5)
        assert len(update.endpoints or ()) == number + 1


def test_a_key_is_waited_for(consul: Consul) -> None:
    api = ConsulApi(ConsulSettings(address=consul.address))
    missing = api.key("conf/gateway ä")
    assert missing.value is None
    waiting = gevent.spawn(api.key, "conf/gateway ä", missing.index, 30.0)
    consul.call("PUT", "/v1/kv/conf/gateway%20%C3%A4", {"version": 1})
    found = waiting.get(timeout=5)
    assert json.loads(found.value) == {"version": 1}
    began = time.monotonic()
    assert api.key("conf/gateway ä", found.index, 0.2) == found
    assert time.monotonic() - began >= 0.2
    consul.call("DELETE", "/v1/kv/conf/gateway%20%C3%A4")
    assert api.key("conf/gateway ä", found.index, 30.0).value is None
    api.close()
    assert api.key("conf/gateway ä").value is None  # and open again


def test_a_service_of_our_own(consul: Consul) -> None:
    api = ConsulApi(ConsulSettings(address=consul.address))
    check = {"TTL": "30s", "DeregisterCriticalServiceAfter": "1m"}
    service = {"name": "own", "id": "own/1 ä", "address": "10.0.0.1", "port": 1, "tags": ["a"], "check": check}
    assert not api.registered("own/1 ä")
    api.register(service)
    assert api.registered("own/1 ä")
    api.report("own/1 ä", True, "ready & well")
    assert consul.passing("own") == {"own/1 ä"}
    api.report("own/1 ä", False, "draining")
    assert consul.passing("own") == set()
    api.deregister("own/1 ä")
    assert not api.registered("own/1 ä")
    with pytest.raises(RegistryError):
        api.report("own/1 ä", True, "")


def test_an_agent_without_room_for_more_connections_is_polled(start: Start) -> None:
    """limits.http_max_conns_per_client: 429 from then on, were it not for those that make room."""
    agent = Consul()
    agent.server.command += ["-hcl", "limits { http_max_conns_per_client = 6 }"]
    try:
        agent.up()
        for number in range(20):
            agent.register(f"many{number}", f"m{number}", 8200 + number)
        watching = [start(agent.address, f"many{number}", poll=0.5) for number in range(20)]
        for number, running in enumerate(watching):
            settled_at(running, f"127.0.0.1:{8200 + number}")
        # What changes arrives by the next poll.
        agent.register("many7", "m7", 9000)
        settled_at(watching[7], "127.0.0.1:9000")
    finally:
        for running in watching:
            running.stop.set()
        agent.server.close()


def settled_at(running: Running, place: str) -> None:
    with gevent.Timeout(20, AssertionError(str(running.told[-2:]))):
        while not running.told or places(running.told[-1]) != [place]:
            gevent.sleep(0.01)


# -- answers that are no answers --------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"{}", b"[{}]", b"[1]", b'[{"Value": "%"}]', b'[{"Value": 1}]', b'"x"'],
)  # fmt: skip
def test_a_key_s_answer_that_is_none(catalogue: Catalogue, body: bytes) -> None:
    catalogue.answer(answer(body, b"X-Consul-Index: 3"))
    with pytest.raises(RegistryError):
        ConsulApi(ConsulSettings(address=catalogue.url)).key("k")


def test_refusals_are_told_from_faults(catalogue: Catalogue) -> None:
    api = ConsulApi(ConsulSettings(address=catalogue.url, token="sesame"))
    for status, refused in ((400, True), (403, True), (404, True), (500, False), (302, False)):
        catalogue.queue(answer(b"no", status=status))
        with pytest.raises(RegistryError) as caught:
            api.passing(ConsulSource("s"))
        assert isinstance(caught.value, RefusedError) == refused
        assert "sesame" not in str(caught.value)
    catalogue.queue([Act.CLOSE])
    with pytest.raises(RegistryError):
        api.register({"name": "n", "id": "i", "port": 1, "check": {}})
