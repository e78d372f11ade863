"""The gateway when etcd is away from the start; outages later on are in test_outages.py."""

from __future__ import annotations

from pathlib import Path

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
