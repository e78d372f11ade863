"""The Consul provider against a real agent, and against a registry that misbehaves as told."""

import gzip
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import gevent
import pytest
import requests
from gevent.event import Event

from gateway import providers
from gateway.model import ConsulSettings, ConsulSource, DiscoverySettings, Upstream
from gateway.providers.base import Update
from gateway.registries.consul import _room
from gateway.testing import Act, FakeUpstream, Script, answer, chunked, head
from tests.consul_agent import LastingConsul
from tests.services import Consul, free_port

POLL = 0.05


@dataclass
class Running:
    """A provider in a greenlet, and what it said."""

    provider: providers.Provider
    told: list[Update] = field(default_factory=list)
    stop: Event = field(default_factory=Event)
    _news: Event = field(default_factory=Event)
    _seen: int = 0

    def __post_init__(self) -> None:
        self.greenlet = gevent.spawn(self.provider.run, self._tell, self.stop)

    def _tell(self, update: Update) -> None:
        self.told.append(update)
        self._news.set()

    def next(self) -> Update:
        """The next thing it says."""
        return self.until(lambda _: True)

    def until(self, wanted: Callable[[Update], bool], within: float = 20.0) -> Update:
        """The next thing it says that is wanted; what was looked at before does not count."""
        with gevent.Timeout(within, AssertionError(f"{self.told[-3:]}")):
            while True:
                while self._seen < len(self.told):
                    self._seen += 1
                    if wanted(self.told[self._seen - 1]):
                        return self.told[self._seen - 1]
                self._news.clear()
                self._news.wait()

    def until_at(self, *addresses: str) -> Update:
        return self.until(lambda update: places(update) == list(addresses))

    def end(self) -> None:
        self.stop.set()
        self.greenlet.join(10)
        assert self.greenlet.successful()


def places(update: Update) -> list[str] | None:
    return None if update.endpoints is None else [e.address for e in update.endpoints]


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Running] = []

    def start(address: str, service: str, tag: str | None = None, poll: float = POLL, **settings: object) -> Running:
        consul = ConsulSettings(address=address, poll=poll, **settings)  # type: ignore[arg-type]
        provider = providers.make(Upstream("u", ConsulSource(service, tag)), DiscoverySettings(consul=consul))
        assert provider is not None
        started.append(Running(provider))
        return started[-1]

    yield start
    for running in started:
        running.end()


# -- a real agent -----------------------------------------------------------------------


def test_instances_come_and_go(consul: Consul, start: Start) -> None:
    running = start(consul.address, "come")
    assert places(running.next()) == []
    consul.register("come", "c1", 8001)
    consul.register("come", "c2", 8002, Weights={"Passing": 7, "Warning": 1})
    update = running.until_at("127.0.0.1:8001", "127.0.0.1:8002")
    assert [e.weight for e in update.endpoints or ()] == [1, 7]
    consul.register("come", "c1", 8003)  # on another port
    running.until_at("127.0.0.1:8002", "127.0.0.1:8003")
    consul.deregister("c1")
    running.until_at("127.0.0.1:8002")
    consul.deregister("c2")
    running.until_at()


def test_only_passing_instances(consul: Consul, start: Start) -> None:
    for name, port in (("t1", 8011), ("t2", 8012)):
        consul.register("checked", name, port, check={"CheckID": name, "TTL": "600s"})
    running = start(consul.address, "checked")
    assert places(running.next()) == []  # a TTL check is critical until it is told otherwise
    consul.call("PUT", "/v1/agent/check/pass/t1")
    consul.call("PUT", "/v1/agent/check/pass/t2")
    running.until_at("127.0.0.1:8011", "127.0.0.1:8012")
    consul.call("PUT", "/v1/agent/check/warn/t1")
    running.until_at("127.0.0.1:8012")
    consul.call("PUT", "/v1/agent/check/pass/t1")
    running.until_at("127.0.0.1:8011", "127.0.0.1:8012")
    consul.call("PUT", "/v1/agent/check/fail/t2")
    running.until_at("127.0.0.1:8011")


def test_two_checks_must_both_pass(consul: Consul, start: Start) -> None:
    checks = [{"CheckID": f"both-{n}", "TTL": "600s", "Status": "passing"} for n in (1, 2)]
    consul.register("both", "b1", 8015, Checks=checks)
    running = start(consul.address, "both")
    running.until_at("127.0.0.1:8015")
    consul.call("PUT", "/v1/agent/check/fail/both-2")
    running.until_at()
    consul.call("PUT", "/v1/agent/check/pass/both-2")
    running.until_at("127.0.0.1:8015")
    consul.call("PUT", "/v1/agent/check/warn/both-2")
    running.until_at()


def test_maintenance_of_one_instance_and_of_the_node(consul: Consul, start: Start) -> None:
    consul.register("maint", "m1", 8021)
    consul.register("maint", "m2", 8022)
    running = start(consul.address, "maint")
    running.until_at("127.0.0.1:8021", "127.0.0.1:8022")
    consul.call("PUT", "/v1/agent/service/maintenance/m1?enable=true&reason=test")
    running.until_at("127.0.0.1:8022")
    consul.call("PUT", "/v1/agent/service/maintenance/m1?enable=false")
    running.until_at("127.0.0.1:8021", "127.0.0.1:8022")
    consul.call("PUT", "/v1/agent/maintenance?enable=true")
    try:
        running.until_at()
    finally:
        consul.call("PUT", "/v1/agent/maintenance?enable=false")
    running.until_at("127.0.0.1:8021", "127.0.0.1:8022")


def test_nodes_outside_the_agent(consul: Consul, start: Start) -> None:
    """Entries of the catalogue without an agent: node addresses, IPv6, names, nulls, no port."""
    for node, address, service in (
        ("n1", "10.0.0.1", {"ID": "x", "Port": 80}),
        ("n2", "10.0.0.2", {"ID": "x", "Port": 80, "Address": ""}),
        ("n3", "2001:db8::3", {"ID": "x", "Port": 80}),
        ("n4", "10.0.0.4", {"ID": "x", "Port": 80, "Address": "localhost"}),
        ("n5", "10.0.0.5", {"ID": "x"}),
        ("n6", "169.254.169.254", {"ID": "x", "Port": 80}),
    ):
        service["Service"] = "catalogue"
        consul.call("PUT", "/v1/catalog/register", {"Node": node, "Address": address, "Service": service})
    running = start(consul.address, "catalogue")
    assert places(running.next()) == ["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::3]:80", "127.0.0.1:80"]


def test_tag(consul: Consul, start: Start) -> None:
    consul.register("tagged", "g1", 8031, Tags=["blue", "v1"])
    consul.register("tagged", "g2", 8032, Tags=["green"])
    start(consul.address, "tagged", tag="blue").until_at("127.0.0.1:8031")
    assert places(start(consul.address, "tagged", tag="red").next()) == []


def test_datacenter(consul: Consul, start: Start) -> None:
    consul.register("here", "h1", 8041)
    start(consul.address, "here", datacenter="dc1").until_at("127.0.0.1:8041")
    update = start(consul.address, "here", datacenter="mars").next()
    assert update.failed
    assert "HTTP 500" in update.error


WORD = "open-sesame"


def test_token(start: Start) -> None:
    agent = Consul()
    agent.server.command += ["-hcl", f'acl {{ enabled = true default_policy = "deny" tokens {{ master = "{WORD}" }} }}']
    try:
        agent.server.start()
        agent.server.wait_until(lambda: _takes_token(agent), "Consul takes the token")
        body = json.dumps({"Node": "n", "Address": "10.0.0.1", "Service": {"ID": "s", "Service": "s", "Port": 1}})
        with_token(agent, "PUT", "/v1/catalog/register", body).raise_for_status()
        assert places(start(agent.address, "s", token=WORD).next()) == ["10.0.0.1:1"]
        update = start(agent.address, "s", token="wrong-word").next()
        assert update.failed
        assert "HTTP 403" in update.error
        assert "wrong-word" not in update.error
    finally:
        agent.server.close()


def with_token(agent: Consul, method: str, path: str, body: str = "") -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, agent.address + path, data=body, headers={"X-Consul-Token": WORD}, timeout=5)


def _takes_token(agent: Consul) -> bool:
    try:
        return with_token(agent, "GET", "/v1/acl/token/self").status_code == 200
    except requests.RequestException:
        return False


def test_an_agent_that_is_killed_and_comes_back(start: Start) -> None:
    with LastingConsul.start() as agent:
        agent.register("lasting", "l1", 8051)
        running = start(agent.address, "lasting")
        running.until_at("127.0.0.1:8051")
        agent.kill()
        running.until(lambda update: "refused" in update.error)
        seen = len(running.told)
        agent.up()
        running.until_at("127.0.0.1:8051")
        assert [] not in [places(update) for update in running.told[seen:]]


def test_an_agent_that_comes_back_without_its_memory(start: Start) -> None:
    with Consul.start() as agent:
        agent.register("forgotten", "f1", 8061)
        running = start(agent.address, "forgotten")
        running.until_at("127.0.0.1:8061")
        agent.down()
        agent.up()
        assert "an empty answer" in running.until(lambda update: "empty" in update.error).error
        agent.register("forgotten", "f1", 8062)
        running.until_at("127.0.0.1:8062")
        assert [] not in [places(update) for update in running.told]


def test_an_agent_that_hangs_without_closing(start: Start) -> None:
    with LastingConsul.start() as agent:
        agent.register("frozen", "z1", 8071)
        running = start(agent.address, "frozen")
        running.until_at("127.0.0.1:8071")
        agent.freeze()
        assert "no answer in 1.0" in running.until(lambda update: update.failed).error
        agent.thaw()
        running.until_at("127.0.0.1:8071")


# -- a scripted registry ----------------------------------------------------------------

INDEX = b"X-Consul-Index: 9"
ONE = json.dumps([{"Node": {"Node": "n"}, "Service": {"ID": "s", "Address": "10.0.0.1", "Port": 80}}]).encode()
GOOD = answer(ONE, INDEX, b"Content-Type: application/json")


@pytest.fixture
def registry() -> Iterator[FakeUpstream]:
    with FakeUpstream(GOOD) as fake:
        _room.cache_clear()
        yield fake
        assert fake.violations == []


def test_what_is_asked(registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments and nothing else: the environment has no say once the configuration is read."""
    for name, value in {
        "CONSUL_HTTP_ADDR": "nonsense:::", "CONSUL_HTTP_TOKEN": "of-the-environment", "CONSUL_HTTP_SSL": "true",
        "HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    running = start(registry.url, "user svc/ä", tag="a&b", token="secret", datacenter="dc 1")
    assert places(running.next()) == ["10.0.0.1:80"]
    request = registry.requests[0]
    assert request.method == b"GET"
    assert request.target == b"/v1/health/service/user%20svc/%C3%A4?passing=1&tag=a%26b&dc=dc+1&stale="
    assert request.header(b"X-Consul-Token") == b"secret"
    assert request.header(b"Host") == registry.authority.encode()


def test_what_is_not_asked_for(registry: FakeUpstream, start: Start) -> None:
    start(registry.url + "/", "s", stale=False).next()
    assert registry.requests[0].target == b"/v1/health/service/s?passing=1"
    assert registry.requests[0].values(b"X-Consul-Token") == []


def test_an_address_as_consul_s_own_tools_take_it(registry: FakeUpstream, start: Start) -> None:
    assert places(start(registry.authority, "s").next()) == ["10.0.0.1:80"]


def test_one_connection_and_one_request_at_a_time(registry: FakeUpstream, start: Start) -> None:
    start(registry.url, "s")
    registry.wait(5)
    assert len(registry.connections) == 1


def test_polls_go_on_while_nothing_changes_and_end_with_stop(registry: FakeUpstream, start: Start) -> None:
    running = start(registry.url, "s")
    registry.wait(4)
    running.end()
    assert len(running.told) == 1
    asked = len(registry.requests)
    gevent.sleep(3 * POLL)
    assert len(registry.requests) == asked


FAULTS: dict[str, tuple[Script, str]] = {
    "500": (answer(b"rpc error making call: EOF", status=500), "HTTP 500: rpc error making call: EOF"),
    "no leader": (answer(b"No cluster leader", status=500), "HTTP 500: No cluster leader"),
    "403": (answer(b"Permission denied", status=403), "HTTP 403: Permission denied"),
    "401": (answer(b"ACL support disabled", status=401), "HTTP 401"),
    "400": (answer(b"", status=400), "HTTP 400"),
    "404": (answer(b"", status=404), "HTTP 404"),
    "429": (answer(b"Your IP is issuing too many concurrent connections", status=429), "HTTP 429"),
    "204": (head(204, INDEX), "HTTP 204"),
    "HTML": (answer(b"<html>\r\n<b>Log in</b>", INDEX, b"Content-Type: text/html"), "not JSON: <html>  <b>Log in"),
    "empty": (answer(b"", INDEX), "not JSON: "),
    "half, by length": ([head(200, INDEX, b"Content-Length: %d" % len(ONE)), ONE[:20], Act.CLOSE], "IncompleteRead"),
    "half, chunked": ([head(200, b"Transfer-Encoding: chunked"), chunked(ONE)[:-9], Act.CLOSE], "Incomplete"),
    "half, to the end": ([head(200, INDEX, b"Connection: close"), ONE[:20], Act.CLOSE], "not JSON"),
    "half a list": (answer(ONE[:-1], INDEX), "not JSON"),
    "object": (answer(b"{}", INDEX), "not a list but: {}"),
    "null": (answer(b"null", INDEX), "not a list but: None"),
    "not UTF-8": (answer(b'["\xff"]', INDEX), "not JSON"),
    "deep": (answer(b"[" * 100_000, INDEX), "not JSON"),
    "bad gzip": (answer(b"\x1f\x8bnot", INDEX, b"Content-Encoding: gzip"), "Error -3" ),
    "reset": ([Act.RESET], "reset"),
    "closed": ([Act.CLOSE], "closed"),
    "not HTTP": ([b"SSH-2.0-x\r\n", Act.CLOSE], "SSH-2.0-x"),
    "empty from a server without a leader": (answer(b"[]", INDEX, b"X-Consul-KnownLeader: false"), "no leader"),
    "empty because of the token": (answer(b"[]", INDEX, b"X-Consul-Results-Filtered-By-ACLs: true"), "may not read them"),
    "empty at an index that went back": (answer(b"[]", b"X-Consul-Index: 8"), "lost its memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_and_not_the_end(registry: FakeUpstream, start: Start, name: str) -> None:
    script, told = FAULTS[name]
    running = start(registry.url, "s")
    assert places(running.next()) == ["10.0.0.1:80"]
    registry.queue(script)
    update = running.until(lambda update: update.failed)
    assert told in update.error
    assert "0x" not in update.error  # an object's address would make every error a new one
    assert running.provider.status.last_error == update.error
    running.until_at("10.0.0.1:80")
    assert running.provider.status.last_error == ""


def test_a_redirect_is_not_followed_with_the_token(registry: FakeUpstream, start: Start) -> None:
    with FakeUpstream(GOOD) as elsewhere:
        registry.answer(answer(b"", b"Location: " + elsewhere.url.encode() + b"/x", status=302))
        assert "HTTP 302" in start(registry.url, "s", token="secret").next().error
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "script",
    [
        [Act.HANG],
        [head(200, INDEX, b"Content-Length: 100"), b"[", Act.HANG],
        # One byte now and then: each read is in time, the whole is not.
        [head(200, INDEX, b"Content-Length: 100"), *[b" ", 0.3] * 20],
    ],
    ids=["no head", "no body", "dripping"],
)
def test_a_hang_is_bounded(registry: FakeUpstream, start: Start, script: list[bytes | Act | float]) -> None:
    registry.queue(script)
    running = start(registry.url, "s", poll=0.05)
    assert "no answer in 1 s" in running.next().error
    running.until_at("10.0.0.1:80")


def test_an_answer_that_is_too_large_is_not_kept(
    registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.registries.consul.MOST_BYTES", 100_000)
    bomb = gzip.compress(b" " * 10_000_000)
    registry.queue(answer(bomb, INDEX, b"Content-Encoding: gzip"))
    running = start(registry.url, "s")
    assert "larger than 100000 bytes" in running.next().error
    running.until_at("10.0.0.1:80")


@pytest.mark.parametrize(
    "lines",
    [(), *((b"X-Consul-Index: " + index,) for index in (b"x", b"-1", b"0", b"9" * 5000))],
    ids=["none", "text", "negative", "0", "5000 digits"],
)
def test_an_index_is_not_needed(registry: FakeUpstream, start: Start, lines: tuple[bytes, ...]) -> None:
    registry.answer(answer(ONE, *lines))
    running = start(registry.url, "s")
    assert places(running.next()) == ["10.0.0.1:80"]
    registry.answer(answer(b"[]", *lines))
    running.until_at()


def test_refused_then_there(start: Start) -> None:
    port = free_port()
    running = start(f"http://127.0.0.1:{port}", "s")
    assert "refused" in running.next().error
    assert running.provider.status.last_success is None
    with FakeUpstream(GOOD, port=port):
        running.until_at("10.0.0.1:80")


def test_one_bad_entry_does_not_hide_the_others(
    registry: FakeUpstream, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.providers")
    entries = [*json.loads(ONE), {"Service": {"ID": "bad", "Address": "10.0.0.2", "Port": 0}}, None]
    registry.answer(answer(json.dumps(entries).encode(), INDEX))
    running = start(registry.url, "s")
    assert places(running.next()) == ["10.0.0.1:80"]
    registry.wait(4)
    assert len([r for r in caplog.records if "not an endpoint" in r.getMessage()]) == 2


def test_the_token_is_in_no_log(registry: FakeUpstream, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry.queue(answer(b"no", status=403), [Act.CLOSE], answer(b"x"))
    running = start(registry.url, "s", token=WORD)
    running.until_at("10.0.0.1:80")
    assert WORD not in caplog.text


def test_sockets_and_greenlets_do_not_grow(registry: FakeUpstream, start: Start) -> None:
    faults: list[Script] = [[Act.CLOSE], answer(b"x", status=500), [head(200, b"Content-Length: 9"), b"[", Act.CLOSE]]
    registry.queue(*faults * 10)
    running = start(registry.url, "s", poll=0.001)
    running.until_at("10.0.0.1:80")
    open_before, threads = _open_files(), threading.active_count()
    registry.queue(*faults * 10)
    running.until(lambda update: update.failed)
    running.until(lambda update: not update.failed and not registry._queue)
    assert _open_files() <= open_before + 2
    assert threading.active_count() <= threads + 1


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
