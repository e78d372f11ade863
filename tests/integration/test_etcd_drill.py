"""The gateway through an outage of etcd: killed, hanging, gone and back; its traffic never notices."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Self

from gateway.testing import FakeUpstream, answer
from tests.etcd_server import Cluster
from tests.gateway_process import GatewayProcess
from tests.services import wait_until

POLL = 0.5

CONFIG = """\
version: 1
discovery: {{etcd: {{endpoints: [{urls}], poll: {poll}s}}}}
access_log: null
upstreams:
  stock: {{etcd: /services/stock}}
routes:
  - {{name: stock, upstream: stock}}
"""


class Traffic:
    """Requests one after the other, and what came of them."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: Counter[tuple[int, str]] = Counter()
        self.latest: list[bytes] = []

    def _run(self) -> None:
        while not self._over.wait(0.01):
            status, reason, body = self._gateway.get("/")
            self.answers[(status, reason)] += 1
            self.latest = [*self.latest, body][-8:]

    def reach(self, *bodies: bytes) -> None:
        """Wait until the last requests went to all of these and to nobody else."""
        wait_until(lambda: len(self.latest) == 8 and set(self.latest) == set(bodies), f"{bodies}: {self.latest}")

    def some_more(self, number: int = 30) -> None:
        wanted = self.answers.total() + number
        wait_until(lambda: self.answers.total() >= wanted, "more requests")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)


FAILED = "discovery failed, what is known stays"


def test_traffic_never_notices_that_etcd_is_away(tmp_path: Path) -> None:
    with (
        Cluster.start() as cluster,
        FakeUpstream(answer(b"one")) as one,
        FakeUpstream(answer(b"two")) as two,
        FakeUpstream(answer(b"three")) as three,
    ):
        etcd = cluster.members[0]
        etcd.put("/services/stock/1", one.authority)
        etcd.put("/services/stockings/1", "127.0.0.1:1")
        (tmp_path / "gateway.yaml").write_text(CONFIG.format(urls=f'"{etcd.url}"', poll=POLL))
        with GatewayProcess(tmp_path, str(tmp_path / "gateway.yaml")) as gateway, Traffic(gateway) as traffic:
            traffic.reach(b"one")
            etcd.put("/services/stock/2", two.url)
            traffic.reach(b"one", b"two")

            failed = gateway.output().count(FAILED)
            etcd.kill()
            gateway.logged(FAILED, failed + 2)  # by each of two workers
            traffic.some_more()
            etcd.up()
            etcd.delete("/services/stock/1")
            traffic.reach(b"two")

            failed = gateway.output().count(FAILED)
            etcd.freeze()
            gateway.logged(FAILED, failed + 2)
            traffic.some_more()
            etcd.thaw()
            etcd.put("/services/stock/3", three.authority)
            traffic.reach(b"two", b"three")

            assert set(traffic.answers) == {(200, "")}, traffic.answers
            assert gateway.get("/-/readyz")[0] == 200


def test_a_gateway_that_starts_without_etcd_heals_by_itself(tmp_path: Path) -> None:
    with Cluster.start() as cluster, FakeUpstream(answer(b"one")) as one:
        etcd = cluster.members[0]
        etcd.put("/services/stock/1", one.authority)
        etcd.kill()
        text = CONFIG.format(urls=f'"{etcd.url}"', poll=POLL).replace("discovery: {", "discovery: {wait: 200ms, ")
        (tmp_path / "gateway.yaml").write_text(text)
        with GatewayProcess(tmp_path, str(tmp_path / "gateway.yaml")) as gateway:
            assert gateway.get("/")[:2] == (503, "no_endpoint")
            assert gateway.get("/-/readyz")[0] == 503
            etcd.up()
            wait_until(lambda: gateway.get("/")[0] == 200 and gateway.get("/-/readyz")[0] == 200, gateway.output())
