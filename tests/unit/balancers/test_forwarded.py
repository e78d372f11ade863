"""Balancers in the forwarder's place of work: what is in flight until when, and what the client is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.balancers.least_requests import LeastRequests
from gateway.balancers.sticky import Sticky
from gateway.errors import ClientClosed, ConnectRefused, UpstreamReset
from gateway.health.retry_budget import Budget
from gateway.http.messages import Response
from gateway.model import RetryPolicy
from gateway.upstreams.state import UpstreamState
from tests.unit.forwarding.test_forwarder import Body, Pool, World, ask


def world(balancer, *pools: Pool, **how) -> World:  # type: ignore[no-untyped-def]
    found = World(*pools, **how)
    state = UpstreamState(found.group.upstream, balancer, Budget(found.clock))
    found.group = replace(found.group, state=state)
    for candidate in found.candidates:
        candidate.state.gate = state.gate
    return found


# -- what is in flight ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["stream", "tunnel"])
def test_who_is_still_sending_gets_nothing_until_that_ends(end: str) -> None:
    """At the end of a body, when the client is gone (the body is closed) and at the end of a tunnel."""
    held = [Response(200 if end == "stream" else 101, b"", [], **{end: Body()}) for _ in range(3)]
    found = world(LeastRequests(lambda: 0.0), Pool(*held), Pool())
    sent = []
    for _ in range(8):
        found.forward(upgrade=b"websocket" if end == "tunnel" else None)
        sent.append(found.request.endpoint.host[-1])
    # One of the two has a request that does not end: the other gets the rest.
    assert sent.count("0") == 1
    assert found.in_flight == [1, 0]
    getattr(held[0], end).close()
    assert found.in_flight == [0, 0]
    after = [found.forward() and found.request.endpoint.host[-1] for _ in range(2)]
    assert sorted(after) == ["0", "1"]


def test_a_client_that_leaves_before_the_head_leaves_nothing_behind() -> None:
    found = world(LeastRequests(lambda: 0.0), Pool(*[ClientClosed()] * 5), Pool(*[ClientClosed()] * 5))
    for _ in range(10):
        with pytest.raises(ClientClosed):
            found.forward()
    assert found.in_flight == [0, 0]
    assert found.sent == [5, 5]


# -- the cookie -----------------------------------------------------------------------


def cookie(response: Response) -> bytes:
    found = [value for name, value in response.headers if name == b"Set-Cookie"]
    return found[0].partition(b";")[0] if found else b""


@pytest.mark.parametrize("error", [ConnectRefused(), UpstreamReset()])
def test_a_client_whose_endpoint_fails_is_told_of_its_new_one_by_the_answer(error: Exception) -> None:
    found = world(Sticky("gw", "secret", lambda: 0.0), Pool(), Pool())
    given = cookie(found.forward())
    first = int(found.request.endpoint.host[-1])
    assert cookie(found.forward(ask(headers=[(b"Cookie", given)]))) == b""
    found.pools[first].script.append(error)
    moved = cookie(found.forward(ask(headers=[(b"Cookie", given)])))
    assert moved not in (b"", given)
    assert cookie(found.forward(ask(headers=[(b"Cookie", moved)]))) == b""
    assert found.sent[1 - first] == 2


def test_a_first_answer_that_is_not_passed_on_tells_nothing() -> None:
    """It is tried again for its status: the cookie names whoever gave the answer that the client sees."""
    found = world(Sticky("gw", "secret", lambda: 0.0), Pool(), Pool())
    given = cookie(found.forward())
    first = int(found.request.endpoint.host[-1])
    found.route = replace(found.route, retry=RetryPolicy(attempts=2, statuses=frozenset({503})))
    found.pools[first].script.append(503)
    response = found.forward(ask(headers=[(b"Cookie", given)]))
    assert response.status == 200
    assert cookie(response) not in (b"", given)
    # Both refuse: the client gets the last answer, which names who gave it.
    for pool in found.pools:
        pool.script.append(503)
    last = found.forward(ask(headers=[(b"Cookie", given)]))
    assert (last.status, cookie(last)) == (503, cookie(response))
