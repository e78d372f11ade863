"""Real APM agents around the gateway: each forwarded request is seen once, bodies and streams go through, a client that
leaves is no error. Their environments are made by scripts/agents; what is not there is skipped by name."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing import Act, FakeUpstream, RawClient, answer, chunk, head
from tests import agents
from tests.services import ROOT, Server, free_ports, wait_until

# How each is started, and for whom the fast path closes.
HOW = {
    "newrelic": (["newrelic-admin", "run-program"], "the application was wrapped by newrelic.api.wsgi_application"),
    "ddtrace": (["ddtrace-run"], "wsgi_app was replaced by ddtrace.contrib.internal.flask.patch"),
    "elastic": ([], "the signal request-started has receivers"),
    "opentelemetry-wsgi": ([], "wsgi_app was replaced by opentelemetry.instrumentation.wsgi"),
    "opentelemetry-flask": ([], "wsgi_app was replaced by opentelemetry.instrumentation.flask"),
}
LIMIT = 2


class Agented:
    """A gateway with one worker and one agent around it, and with places for `LIMIT` requests."""

    def __init__(self, agent: str, folder: Path, upstream: FakeUpstream, *command: str) -> None:
        self.agent = agent
        self.noted_in = folder / "noted"
        self.log = folder / "access.log"
        programs = agents.require(agent.partition("-")[0])
        self.port, self.admin, self.collector_port = free_ports(3)
        self.collector = FakeUpstream(answer(b"{}"), port=self.collector_port)
        document = folder / "gateway.yaml"
        document.write_text(
            f"version: 1\n"
            f"server: {{overload: 0}}\n"
            f"admin: {{bind: '127.0.0.1:{self.admin}'}}\n"
            f"access_log: {{path: {self.log}}}\n"
            f"upstreams: {{up: {{endpoints: ['{upstream.url}'], concurrency: {{limit: {LIMIT}, queue: 0}}}}}}\n"
            f"routes: [{{name: all, match: {{prefix: /up}}, upstream: up}}]\n"
        )
        (folder / "newrelic.ini").write_text(
            f"[newrelic]\nlicense_key = {'0' * 40}\napp_name = gateway\ndeveloper_mode = true\nlog_file = {folder}/newrelic.log\n"
        )
        env = {
            "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "GATEWAY_CONFIG": str(document),
            "WEB_CONCURRENCY": "1",
            "AGENT": agent,
            "NOTED": str(self.noted_in),
            "NEW_RELIC_CONFIG_FILE": str(folder / "newrelic.ini"),
            # Without it the first requests are not seen.
            "NEW_RELIC_STARTUP_TIMEOUT": "10",
            "DD_TRACE_AGENT_URL": self.collector.url,
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
            "DD_TRACE_WRITER_INTERVAL_SECONDS": "0.1",
            "DD_CRASHTRACKING_ENABLED": "false",
        }
        starter = [f"{programs}/{HOW[agent][0][0]}", *HOW[agent][0][1:]] if HOW[agent][0] else []
        gunicorn = [f"{programs}/python", "-m", "gunicorn", "-c", "python:gateway.server.settings"]
        served = command or (*gunicorn, "-b", f"127.0.0.1:{self.port}", "tests.integration.agent_app:app")
        self.server = Server(
            [*starter, *(part.format(programs=programs, port=self.port) for part in served)], cwd=folder, env=env
        )

    def start(self) -> None:
        self.server.start()
        self.server.wait_until(lambda: "Door: " in self.server.output(), "it serves", 60.0)

    def close(self) -> None:
        self.server.close()
        self.collector.close()

    def client(self) -> RawClient:
        return RawClient(self.port, timeout=60)

    def ask(self, target: str, *lines: str, method: str = "GET", body: bytes = b"") -> Any:
        with self.client() as client:
            client.send(request(target, *lines, method=method) + body)
            return client.read_response(method.encode())

    def seen(self, target: str) -> dict[str, Any]:
        """What the agent noted of the one request with this target, once it has ended."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [one for one in self.noted() if one["name"].endswith(target)]
            return bool(found)

        self.server.wait_until(there, f"{self.agent} sees {target}")
        (one,) = found
        return one

    def noted(self) -> list[dict[str, Any]]:
        text = self.noted_in.read_text() if self.noted_in.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def logged(self, target: str) -> dict[str, Any]:
        """The log line of the one request with this target, once it has ended."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            text = self.log.read_text() if self.log.exists() else ""
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            found[:] = [line for line in lines if line["target"] == target]
            return bool(found)

        self.server.wait_until(there, f"{target} is logged")
        (line,) = found
        return line


def request(target: str, *lines: str, method: str = "GET") -> bytes:
    fields = [f"{method} {target} HTTP/1.1", "Host: a.test", *lines]
    return "".join(field + "\r\n" for field in fields).encode() + b"\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture(scope="module", params=list(HOW))
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: FakeUpstream
) -> Iterator[Agented]:
    agented = Agented(request.param, tmp_path_factory.mktemp(request.param), upstream)
    try:
        agented.start()
        yield agented
        assert agented.server.stop(signal.SIGTERM) == 0, agented.server.output()
        assert "Traceback" not in agented.server.output(), agented.server.output()
        assert not [one for one in agented.noted() if one["errors"] and "/cut" not in one["name"]]
    finally:
        agented.close()


@pytest.fixture(autouse=True)
def _forgotten(upstream: FakeUpstream) -> None:
    upstream.forget()


def test_the_fast_path_is_closed_and_the_log_says_for_whom(gateway: Agented) -> None:
    assert f"Door: wsgi ({HOW[gateway.agent][1]})" in gateway.server.output()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_forwarded_requests_are_seen_once(gateway: Agented, upstream: FakeUpstream, status: int) -> None:
    upstream.answer(answer(b"theirs", status=status))
    target = f"/up/once/{status}"
    got = gateway.ask(target)
    assert (got.status, got.body) == (status, b"theirs")
    assert int(gateway.seen(target)["status"]) == status
    assert gateway.logged(target)["status"] == status


def test_errors_of_the_gateway_are_seen(gateway: Agented) -> None:
    assert gateway.ask("/none").header(b"gateway-error") == b"no_route"
    assert int(gateway.seen("/none")["status"]) == 404


FORM = "Content-Type: application/x-www-form-urlencoded"
JSON = "Content-Type: application/json"
FILES = "Content-Type: multipart/form-data; boundary=s"
MULTIPART = b'--s\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + b"x" * 700_000 + b"\r\n--s--\r\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [(FORM, b"a=1&b=2"), (JSON, b'{"a": 1}'), (FILES, MULTIPART), (FORM, b"a=" + b"x" * 1_000_000)],
    ids=["form", "json", "files", "large"],
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_are_forwarded_whole(
    gateway: Agented, upstream: FakeUpstream, kind: str, body: bytes, framing: str, request: pytest.FixtureRequest
) -> None:
    target = f"/up/body/{request.node.callspec.id}"
    if framing == "length":
        got = gateway.ask(target, kind, f"Content-Length: {len(body)}", method="POST", body=body)
    else:
        sent = chunk(body[:5]) + chunk(body[5:]) + chunk(b"")
        got = gateway.ask(target, kind, "Transfer-Encoding: chunked", method="POST", body=sent)
    assert got.body == b"ok"
    assert upstream.wait_complete().body == body
    assert gateway.seen(target)["errors"] == []
    assert gateway.logged(target)["bytes_in"] == len(body)


def test_a_stream_is_not_held_back(gateway: Agented, upstream: FakeUpstream) -> None:
    go_on = threading.Event()
    events = [head(200, b"Transfer-Encoding: chunked", b"Content-Type: text/event-stream"), chunk(b"first")]
    upstream.answer([*events, go_on, chunk(b"last"), chunk(b"")])
    with gateway.client() as client:
        client.send(request("/up/events"))
        client.read_until(b"first\r\n")
        if gateway.agent == "opentelemetry-wsgi":
            # Its span ends with the body.
            assert not [one for one in gateway.noted() if one["name"].endswith("/up/events")]
        go_on.set()
        client.read_until(b"last\r\n0\r\n\r\n")
    assert gateway.seen("/up/events")["errors"] == []


@pytest.mark.parametrize("moment", ["head", "body", "upload"])
def test_a_client_that_resets_is_no_error(gateway: Agented, upstream: FakeUpstream, moment: str) -> None:
    """Again and again: each gives its place back."""
    script = {
        "head": [Act.HANG],
        "body": [head(200, b"Transfer-Encoding: chunked"), chunk(b"tick"), Act.HANG],
        "upload": lambda exchange: exchange.hang(),
    }
    upstream.answer(script[moment])  # type: ignore[arg-type]
    for number in range(LIMIT + 1):
        target = f"/up/reset/{moment}/{number}"
        with gateway.client() as client:
            if moment == "upload":
                client.send(request(target, "Content-Type: text/plain", "Content-Length: 100000", method="PUT") + b"abc")
                if gateway.agent != "elastic":  # which reads the body before anything is forwarded
                    upstream.wait(number + 1)
            else:
                client.send(request(target))
                upstream.wait(number + 1)
            if moment == "body":
                client.read_until(b"tick")
            client.reset()
        line = gateway.logged(target)
        assert (line["status"], line["reason"]) == (200 if moment == "body" else 499, "client_closed")
        assert gateway.seen(target)["errors"] == []
    assert "Exception on" not in gateway.server.output()


def test_an_upstream_that_breaks_off(gateway: Agented, upstream: FakeUpstream) -> None:
    upstream.answer([head(200, b"Content-Length: 9"), b"one", Act.RESET])
    with gateway.client() as client:
        client.send(request("/up/cut"))
        client.read_until(b"one")
        assert client.ended()
    line = gateway.logged("/up/cut")
    assert (line["status"], line["reason"]) == (200, "upstream_truncated")
    gateway.seen("/up/cut")


KEY = base64.b64encode(b"0123456789abcdef").decode()
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


def test_a_tunnel(gateway: Agented, upstream: FakeUpstream) -> None:
    upstream.answer([head(101, b"Upgrade: websocket", b"Connection: Upgrade"), b"hello", Act.HANG])
    with gateway.client() as client:
        client.send(request("/up/tunnel", *UPGRADE))
        assert client.read_head().status == 101
        client.read_until(b"hello")
    assert gateway.logged("/up/tunnel")["status"] == 101
    if gateway.agent != "newrelic":  # which leaves WebSockets out
        assert gateway.seen("/up/tunnel")["errors"] == []


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.mark.parametrize("gateway", ["opentelemetry-wsgi", "opentelemetry-flask"], indirect=True)
@pytest.mark.parametrize("given", [True, False])
def test_the_span_is_the_upstreams_parent(gateway: Agented, upstream: FakeUpstream, given: bool) -> None:
    fields = (f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=b", "baggage: c=d") if given else ()
    target = f"/up/trace/{given}"
    gateway.ask(target, *fields)
    got, span = upstream.wait_complete(), gateway.seen(target)
    trace, ident = span["ids"]
    assert [value[:-2] for value in got.values(b"traceparent")] == [f"00-{trace}-{ident}-".encode()]
    assert gateway.logged(target)["trace_id"] == trace
    if given:
        assert (trace, span["parent"]) == (TRACE, PARENT)
        assert (got.values(b"tracestate"), got.values(b"baggage")) == ([b"a=b"], [b"c=d"])


@pytest.mark.parametrize("gateway", ["elastic"], indirect=True)
def test_elastic_captures_bodies(gateway: Agented, upstream: FakeUpstream) -> None:
    gateway.ask("/up/captured", FORM, "Content-Length: 3", method="POST", body=b"a=1")
    assert gateway.seen("/up/captured")["body"] == {"a": "1"}


def test_gateway_run_by_ddtrace_run(tmp_path: Path, upstream: FakeUpstream) -> None:
    """What is sent reaches Datadog's agent."""
    command = ("{programs}/python", "-m", "gateway", "run", "-b", "127.0.0.1:{port}", "-w", "1")
    agented = Agented("ddtrace", tmp_path, upstream, *command)
    try:
        agented.start()
        assert agented.ask("/up/run").body == b"ok"
        traces = agented.collector.requests

        def arrived() -> bool:
            return sum(int(one.header(b"x-datadog-trace-count") or 0) for one in traces if b"traces" in one.target) > 0

        wait_until(arrived, "the agent has the trace")
        assert agented.server.stop(signal.SIGTERM) == 0, agented.server.output()
        assert "Traceback" not in agented.server.output()
    finally:
        agented.close()
