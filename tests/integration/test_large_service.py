"""A service of 50,000 instances in a registry: requests to another upstream are served while it is taken in."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.testing import Exchange, FakeUpstream, answer
from tests.gateway_process import GatewayProcess

INSTANCES = 50_000
# Requests that have to be answered between the registry's answer and the new snapshot: with one slice of work of
# 2 ms between two of them there would be hundreds; were it all done at once, one or two.
MEANWHILE = 30


def instances(number: int, weight: int = 1) -> bytes:
    return json.dumps(
        [
            {
                "Node": {"Node": f"n{each % 500}", "Address": "192.0.2.1"},
                "Service": {
                    "ID": f"s{each}",
                    "Address": f"10.{each // 62500}.{each // 250 % 250}.{each % 250 + 1}",
                    "Port": 80,
                    "Weights": {"Passing": weight, "Warning": 1},
                },
            }
            for each in range(number)
        ]
    ).encode()


class Registry(FakeUpstream):
    """Answers when there is news, or after the wait."""

    def __init__(self) -> None:
        super().__init__(self._serve)
        self._index, self._body = 10, b"[]"
        self._changed = threading.Condition()

    def put(self, body: bytes) -> None:
        with self._changed:
            self._index, self._body = self._index + 1, body
            self._changed.notify_all()

    def _serve(self, exchange: Exchange) -> None:
        asked = parse_qs(urlsplit(exchange.request.target.decode()).query)
        known = int(asked["index"][0]) if "index" in asked else -1
        with self._changed:
            self._changed.wait_for(lambda: self._index > known or self._stopping, 2.0)
            index, body = self._index, self._body
        exchange.send(answer(body, b"X-Consul-Index: %d" % index))

    def close(self) -> None:
        super().close()
        with self._changed:
            self._changed.notify_all()


class Client(threading.Thread):
    """Asks one after the other until it is told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.stopping = threading.Event()
        self.answers: list[tuple[int, bytes]] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            self._connection.request("GET", "/beside/x")
            found = self._connection.getresponse()
            self.answers.append((found.status, found.read()))
        self._connection.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as fake:
        yield fake


def test_requests_to_another_upstream_go_on(registry: Registry, tmp_path: Path) -> None:
    bodies = [instances(INSTANCES), instances(INSTANCES, 2), instances(INSTANCES // 2, 2), instances(INSTANCES, 2)]
    with FakeUpstream(lambda exchange: exchange.send(answer(b"beside"))) as beside:
        path = tmp_path / "gateway.yaml"
        path.write_text(
            f"""
version: 1
discovery: {{wait: 0s, consul: {{address: "{registry.url}", poll: 2s}}}}
upstreams:
  large: {{consul: large}}
  beside: {{endpoints: ["{beside.url}"]}}
routes:
  - {{name: large, match: {{prefix: /large}}, upstream: large}}
  - {{name: beside, match: {{prefix: /beside}}, upstream: beside}}
"""
        )
        with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
            client = Client(gateway.port)
            client.start()
            counts: dict[str, int] = {}
            for body in bodies:
                line = f"({len(json.loads(body))} now)"
                counts[line] = counts.get(line, 0) + 1
                before = len(client.answers)
                registry.put(body)
                gateway.logged(line, counts[line], within=120.0)
                assert len(client.answers) - before >= MEANWHILE
            client.stopping.set()
            client.join(30)
            assert not client.is_alive()
            assert set(client.answers) == {(200, b"beside")}
            # Nothing failed on the way.
            assert "Traceback" not in gateway.output()
