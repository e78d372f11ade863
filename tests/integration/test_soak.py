"""A short soak; `scripts/soak` and --long have long ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gateway.testing import FakeUpstream, RawClient, answer
from tests import long, soak_load
from tests.soak_load import FAULTY, MARGIN, Held, Unexpected, grown, soaked

REQUESTS = long.either(5_000, 200_000)
# What a proper answer contents, too: the client is gone, or its request was proper.
CONTENT = {kind for kind in FAULTY if kind.startswith(("client leaves", "client closes"))} | {"client sends anything", "upgrade refused"}


def test_everything_returns_to_where_it_was(tmp_path: Path) -> None:
    with soaked(tmp_path) as soak:
        assert "Door: direct" in soak.gateway.errors()
        soak.load.run(soak_load.WARM_UP)
        before = soak.held()
        soak.load.run(REQUESTS)
        after = soak.held()
        assert soak.load.wrong == []
        assert soak.load.made == soak_load.WARM_UP + REQUESTS
        assert set(soak.load.faults) == set(FAULTY)
        assert grown(before, after, MARGIN) == []
        assert (after.in_flight, after.upstream_connections) == (0, 0)
        assert "Traceback" not in soak.gateway.errors()
        assert soak.ready()


class TestItWouldBeSeen:
    def test_what_grew(self) -> None:
        held = Held(50 * 2**20, 10, 0, 0, 3, 1, 270_000)
        assert grown(held, held, MARGIN) == []
        assert grown(held, replace(held, resident=50 * 2**20 + MARGIN, descriptors=9), MARGIN) == []
        more = replace(held, resident=60 * 2**20, descriptors=11, in_flight=1, upstream_connections=1, greenlets=4, client_connections=2)
        assert len(grown(held, more, MARGIN)) == 6

    @pytest.mark.parametrize("kind", sorted(set(FAULTY) - CONTENT))
    def test_a_fault_that_ends_otherwise(self, kind: str) -> None:
        """Against a server that answers everything well."""
        with FakeUpstream() as server:
            server.serve(b"/", lambda exchange: exchange.send(answer(b"ok", b"Connection: close")))
            with RawClient(server.port) as client, pytest.raises(Unexpected):
                FAULTY[kind](client, Random(1))
