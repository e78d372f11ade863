"""Checks of health by a gateway of two workers: what upstreams see of them, and who gets requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.testing import Act, FakeUpstream, answer
from tests import services
from tests.gateway_process import GatewayProcess
from tests.services import free_port, wait_until

INTERVAL = 0.2
HEALTHZ = b"/healthz"


class Running:
    """The gateway, its upstreams by name, and what it says of them."""

    def __init__(self, folder: Path) -> None:
        self.document = folder / "gateway.yaml"
        self.admin = free_port()
        self.fakes = {name: FakeUpstream(answer(name.encode())) for name in ("a", "b", "told", "moved", "found", "slow", "off")}
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("service.example").configure_cert(context)
        self.fakes["secure"] = FakeUpstream(tls=context)
        self.tcp_port = free_port()
        for name in ("moved", "found"):
            self.fakes[name].serve(HEALTHZ, answer(b"", b"Location: /elsewhere", status=302))
        self.fakes["slow"].serve(HEALTHZ, [Act.HANG])
        self.fakes["off"].serve(HEALTHZ, answer(status=503))
        self.write()
        self.gateway = GatewayProcess(folder, str(self.document), GATEWAY_ADMIN=f"127.0.0.1:{self.admin}", TMPDIR=str(folder))

    def write(self, off: str = "{}") -> None:
        """The configuration. `off`: how the upstream of that name is checked."""
        urls = {name: fake.url for name, fake in self.fakes.items()}
        self.document.write_text(
            f"version: 1\ndefaults: {{health: {{interval: {INTERVAL * 1000:g}ms, healthy: 2, unhealthy: 2}}}}\nupstreams:\n"
            f'  pair: {{endpoints: ["{urls["a"]}", "{urls["b"]}"]}}\n'
            f'  told: {{endpoints: ["{urls["told"]}/base?q=1"], health: {{path: "/deep?x=1", host: check.example, headers: {{X-Check: "1"}}}}}}\n'
            f'  moved: {{endpoints: ["{urls["moved"]}"], health: {{status: [200-299]}}}}\n'
            f'  found: {{endpoints: ["{urls["found"]}"]}}\n'
            f'  slow: {{endpoints: ["{urls["slow"]}"], health: {{timeout: 450ms}}}}\n'
            f'  off: {{endpoints: ["{urls["off"]}"], health: {off}}}\n'
            f'  tcp: {{endpoints: ["http://127.0.0.1:{self.tcp_port}"], health: {{tcp: true}}}}\n'
            f'  secure: {{endpoints: ["{urls["secure"]}"], tls: {{ca: ca.pem, server_name: service.example}}}}\n'
            f'  wrong: {{endpoints: ["{urls["secure"]}"], tls: {{ca: ca.pem, server_name: other.example}}}}\n'
            "routes:\n  - {name: pair, match: {prefix: /pair}, upstream: pair}\n"
        )

    def status(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/-/status", headers={"Connection": "close"})
            return json.loads(connection.getresponse().read())

    def metrics(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/-/metrics", headers={"Connection": "close"})
            return connection.getresponse().read().decode()

    def endpoint(self, upstream: str, number: int = 0) -> Any:
        """What status says of one of an upstream's endpoints, in the order of their ports."""
        rows = self.status()["upstreams"][upstream]["endpoints"]
        return sorted(rows, key=lambda row: int(row["address"].rpartition(":")[2]))[number]

    def number(self, name: str) -> int:
        """The place of `a` or `b` in that order."""
        return int(self.fakes[name].port > self.fakes["b" if name == "a" else "a"].port)

    def is_everywhere(self, state: str, upstream: str, number: int = 0) -> None:
        """Wait until every worker has an endpoint in that state."""

        def so() -> bool:
            found = self.endpoint(upstream, number)
            return found["state"] == state and "states" not in found and found["workers"] == 2

        wait_until(so, f"{upstream} is {state}: {self.status()['upstreams'][upstream]}\n{self.gateway.output()[-2000:]}")

    def checks(self, name: str, path: bytes = HEALTHZ) -> int:
        return sum(1 for request in list(self.fakes[name].requests) if request.target == path)

    def more_checks(self, name: str, number: int) -> None:
        wanted = self.checks(name) + number
        self.fakes[name].until(lambda: self.checks(name) >= wanted, 20.0)

    def leaders(self) -> list[int]:
        return [each["pid"] for each in self.status()["workers"] if each.get("checks_health")]

    def bodies(self, number: int = 16) -> set[bytes]:
        answers = [self.gateway.get("/pair") for _ in range(number)]
        assert {each[0] for each in answers} == {200}
        return {each[2] for each in answers}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    # Short, as there will be sockets in it.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        made = Running(Path(folder))
        for fake in made.fakes.values():
            stack.enter_context(fake)
        stack.enter_context(made.gateway)
        wait_until(lambda: len(made.status()["workers"]) == 2, "both workers tell")
        yield made


def test_what_is_asked(running: Running) -> None:
    running.fakes["told"].wait(1, 20.0)
    request = running.fakes["told"].requests[0]
    assert (request.method, request.target) == (b"GET", b"/deep?x=1")
    assert request.values(b"host") == [b"check.example"]
    assert request.values(b"x-check") == [b"1"]
    assert request.values(b"connection") == [b"close"]
    running.fakes["a"].wait(1, 20.0)
    assert running.fakes["a"].requests[0].values(b"host") == [running.fakes["a"].authority.encode()]
    assert not [fake.violations for fake in running.fakes.values() if fake.violations]


def test_one_that_fails_gets_no_requests_until_it_is_good_again(running: Running) -> None:
    running.is_everywhere("up", "pair")
    assert running.bodies() == {b"a", b"b"}
    running.fakes["a"].serve(HEALTHZ, answer(status=503))
    running.is_everywhere("unhealthy", "pair", running.number("a"))
    told = running.endpoint("pair", running.number("a"))
    assert told["why"] == "2 checks in a row failed, the last: GET /healthz was answered 503"
    assert abs(time.time() - told["since"]) < 60.0
    # The other address is another one.
    assert running.endpoint("pair", running.number("b"))["state"] == "up"
    assert running.bodies() == {b"b"}
    sample = f'gateway_endpoint_up{{endpoint="{running.fakes["a"].authority}",upstream="pair"}} 0.0'
    assert sample in running.metrics()
    running.fakes["a"].serve(HEALTHZ, answer(b"ok"))
    running.is_everywhere("up", "pair", running.number("a"))
    assert running.bodies() == {b"a", b"b"}
    decided = running.status()["upstreams"]["pair"]["decisions"]
    assert (decided["unhealthy"], decided["healthy"]) == (2, 2)
    assert re.search(r'gateway_decisions_total\{decision="unhealthy",upstream="pair"\} 2\.0', running.metrics())


def test_a_redirect_is_its_status(running: Running) -> None:
    running.is_everywhere("up", "found")
    running.is_everywhere("unhealthy", "moved")
    running.more_checks("moved", 2)
    for name in ("found", "moved"):
        assert {request.target for request in running.fakes[name].requests} == {HEALTHZ}


def test_checks_that_are_slower_than_their_interval_do_not_pile_up(running: Running) -> None:
    running.is_everywhere("unhealthy", "slow")
    assert "no answer from" in running.endpoint("slow")["why"]
    fake = running.fakes["slow"]
    for _ in range(3):
        fake.wait_aborted(len(fake.aborted) + 1, 20.0)
        # Each one that was begun has ended, but for the last perhaps.
        assert len(fake.requests) - len(fake.aborted) <= 1


def test_a_mere_connection(running: Running) -> None:
    running.is_everywhere("unhealthy", "tcp")
    assert "ECONNREFUSED" in running.endpoint("tcp")["why"]
    with socket.create_server(("127.0.0.1", running.tcp_port)) as listener:
        listener.settimeout(20.0)
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20.0)
                assert connection.recv(1) == b""
        running.is_everywhere("up", "tcp")


def test_tls_is_as_for_traffic(running: Running) -> None:
    running.is_everywhere("up", "secure")
    running.is_everywhere("unhealthy", "wrong")
    assert "other.example" in running.endpoint("wrong")["why"]


def test_two_workers_do_not_ask_twice(running: Running) -> None:
    running.is_everywhere("up", "pair")
    assert len(running.leaders()) == 1
    before, began = running.checks("b"), time.monotonic()
    running.more_checks("b", 10)
    # Each interval is a tenth shorter at most; one more on either side.
    assert running.checks("b") - before <= (time.monotonic() - began) / (0.9 * INTERVAL) + 2


def test_the_one_that_checks_is_killed(running: Running) -> None:
    running.is_everywhere("unhealthy", "off")
    before = running.endpoint("off")
    (leader,) = running.leaders()
    os.kill(leader, signal.SIGKILL)

    def followed() -> bool:
        # One that is being killed may have taken the connection.
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            leaders = running.leaders()
            return len(leaders) == 1 and leaders != [leader] and len(running.status()["workers"]) == 2
        return False

    wait_until(followed, "another one checks")
    running.more_checks("b", 3)
    # It went on with what was known, and so did the worker that was started.
    running.is_everywhere("unhealthy", "off")
    after = running.endpoint("off")
    assert (after["why"], after["since"]) == (before["why"], before["since"])
    # And a verdict reaches both.
    running.fakes["off"].serve(HEALTHZ, answer(b"ok"))
    running.is_everywhere("up", "off")
    running.fakes["off"].serve(HEALTHZ, answer(status=503))
    running.is_everywhere("unhealthy", "off")


def test_the_one_that_checks_hangs(running: Running) -> None:
    running.is_everywhere("unhealthy", "off")
    (leader,) = running.leaders()
    os.kill(leader, signal.SIGSTOP)
    try:
        running.more_checks("b", 3)
    finally:
        os.kill(leader, signal.SIGCONT)
    wait_until(lambda: running.leaders() == [leader], "it checks again, alone")


def test_checks_are_switched_off_and_on(running: Running) -> None:
    running.is_everywhere("unhealthy", "off")
    running.write(off="null")
    running.is_everywhere("up", "off")
    assert running.endpoint("off")["why"] == "it is not checked any more"
    seen = running.checks("off")
    running.more_checks("b", 5)
    assert running.checks("off") == seen
    running.write(off="{path: /other}")
    running.fakes["off"].serve(b"/other", answer(status=500))
    running.is_everywhere("unhealthy", "off")
    assert running.endpoint("off")["why"] == "the first check failed: GET /other was answered 500"


def test_nothing_of_it_is_left(running: Running) -> None:
    folder = running.document.parent
    (place,) = folder.glob("wsgi-gateway-run-*")
    names = {path.name for path in place.iterdir()}
    assert {"health", "health.lock"} <= names
    assert (place / "health").stat().st_mode & 0o777 == 0o600
    assert "Traceback" not in running.gateway.output()
    assert services.accepts(running.gateway.port)
