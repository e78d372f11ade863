"""Hash: the same key, the same endpoint; few keys move; nobody gets more than it can bear."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancers.hash import Hash
from gateway.balancers.keys import key
from gateway.health.candidate import Candidate, EndpointState
from gateway.model import Balance, Endpoint
from tests.long import times
from tests.unit.balancers.picking import NOW, ask, candidates, likelihood, number, others

KEYS = 20_000

# Where the first 16 clients belong among five endpoints, and among five that weigh 1 to 5.
GOLDEN = [3, 3, 2, 1, 2, 4, 2, 4, 4, 1, 4, 1, 4, 0, 2, 0]
GOLDEN_WEIGHTED = [3, 3, 2, 1, 3, 4, 4, 4, 4, 1, 4, 4, 4, 3, 2, 0]


def hashing(by: str = "client_ip", name: str = "", seed: int = 1) -> Hash:
    return Hash(Balance("hash", by, name), Random(seed).random)


def homes(among: Sequence[Candidate], keys: int = KEYS, balancer: Hash | None = None, now: float = NOW) -> list[int]:
    """The endpoint of each of so many clients."""
    balancer = balancer or hashing()
    return [number(balancer.pick(among, ask(client=f"client-{each}", now=now))) for each in range(keys)]


# -- what the key is ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "name", "request_", "expected"),
    [
        ("client_ip", "", ask(client="2001:db8::1"), b"2001:db8::1"),
        ("client_ip", "", ask(client=""), b""),
        ("path", "", ask(b"/a/b?user=1"), b"/a/b"),
        ("path", "", ask(b"http://shop.example/a/b?user=1"), b"/a/b"),
        ("path", "", ask(b"http://shop.example?user=1"), b"/"),
        ("path", "", ask(b"*"), b"*"),
        ("header", "x-user", ask(headers=[(b"Host", b"h"), (b"X-User", b"ann"), (b"x-user", b"bob")]), b"ann"),
        ("header", "x-user", ask(headers=[(b"X_User", b"ann")]), b""),
        ("header", "x-user", ask(headers=[(b"X-User", b"")]), b""),
        ("cookie", "sid", ask(headers=[(b"Cookie", b"a=b; sid=42; sid=43")]), b"42"),
        ("cookie", "sid", ask(headers=[(b"Cookie", b"a=b"), (b"cookie", b"sid=42 ;x=y")]), b"42"),
        ("cookie", "sid", ask(headers=[(b"Cookie", b"xsid=1; sid2=2; SID=3; a=sid=4")]), b""),
        ("cookie", "s.d", ask(headers=[(b"Cookie", b"sid=1; s.d=2")]), b"2"),
        ("cookie", "sid", ask(), b""),
        ("query", "user", ask(b"/a?x=1&user=ann&user=bob"), b"ann"),
        ("query", "user", ask(b"/a?%75ser=a%6En+e"), b"ann e"),
        ("query", "user", ask(b"/a?user=&user=bob"), b""),
        ("query", "user", ask(b"/a?user"), b""),
        ("query", "user", ask(b"/a?username=1"), b""),
        ("query", "käse", ask(b"/a?k%C3%A4se=1"), b"1"),
        ("query", "user", ask(b"/user=1"), b""),
    ],
)
def test_keys(by: str, name: str, request_, expected: bytes) -> None:  # type: ignore[no-untyped-def]
    assert key(by, name)(request_) == expected


@pytest.mark.parametrize(
    ("by", "name", "one", "other", "another_key"),
    [
        ("client_ip", "", ask(b"/a", client="192.0.2.7"), ask(b"/b", client="192.0.2.7"), ask(b"/a", client="192.0.2.8")),
        ("path", "", ask(b"/a?x=1"), ask(b"/a?x=2", client="192.0.2.9"), ask(b"/b?x=1")),
        ("query", "u", ask(b"/a?u=1"), ask(b"/b?v=2&u=1"), ask(b"/a?u=2")),
        ("header", "x-u", ask(headers=[(b"X-U", b"1")]), ask(b"/b", [(b"x-u", b"1")]), ask(headers=[(b"X-U", b"2")])),
        ("cookie", "u", ask(headers=[(b"Cookie", b"u=1")]), ask(b"/b", [(b"Cookie", b"v=1;u=1")]), ask(headers=[(b"Cookie", b"u=2")])),
    ],
)
def test_the_same_key_is_the_same_endpoint(by, name, one, other, another_key) -> None:  # type: ignore[no-untyped-def]
    among = candidates(*[1] * 50)
    balancer = hashing(by, name)
    assert balancer.pick(among, one) is balancer.pick(among, other)
    assert balancer.pick(among, one) is not balancer.pick(among, another_key)


@pytest.mark.parametrize(
    ("by", "name", "keyless"),
    [
        ("header", "x-user", ask()),
        ("header", "x-user", ask(headers=[(b"X-User", b"")])),
        ("cookie", "sid", ask(headers=[(b"Cookie", b"a=b")])),
        ("query", "user", ask(b"/a?user=")),
        ("client_ip", "", ask(client="")),
    ],
)
def test_without_the_key_they_take_turns(by, name, keyless) -> None:  # type: ignore[no-untyped-def]
    """A request without its key goes wherever it is next, by weight."""
    among = candidates(1, 2, 1)
    balancer = hashing(by, name)
    got = Counter(number(balancer.pick(among, keyless)) for _ in range(40))
    assert got == {0: 10, 1: 20, 2: 10}


# -- who has a key --------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 2, 2, 2, 2), tuple([1] * 20), (1, 2, 3), (10, 1, 1, 1), tuple(range(1, 13))])
def test_keys_are_spread_by_weight(weights: tuple[int, ...]) -> None:
    assert likelihood(Counter(homes(candidates(*weights))), dict(enumerate(weights))) > 0.001


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), tuple([1] * 20), (1, 2, 3, 4)])
def test_when_one_leaves_its_keys_alone_move_and_to_all_others(weights: tuple[int, ...]) -> None:
    """Fewer than 1/n + ε of the keys."""
    among = candidates(*weights)
    before = homes(among)
    for leaving in (0, len(weights) - 1):
        left = others(among, among[leaving])
        after = homes(left)
        moved = [there for here, there in zip(before, after, strict=True) if here != there]
        assert len(moved) == before.count(leaving)
        assert len(moved) / KEYS < weights[leaving] / sum(weights) + 0.01
        spread = {each: weight for each, weight in enumerate(weights) if each != leaving}
        assert likelihood(Counter(moved), spread) > 0.001
        # And all of them are back when it is.
        assert homes(among, 500) == before[:500]


@settings(max_examples=times(30), deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=10),
    st.data(),
)
def test_nothing_moves_but_to_who_gained_or_from_who_lost(weights: list[int], data: st.DataObject) -> None:
    """Whatever weight changes: keys go to it when it grows, from it when it shrinks, and else stay."""
    which = data.draw(st.integers(0, len(weights) - 1))
    heavier = [weight + (each == which) * data.draw(st.integers(1, 20)) for each, weight in enumerate(weights)]
    before, after = homes(candidates(*weights), 300), homes(candidates(*heavier), 300)
    assert {there for here, there in zip(before, after, strict=True) if here != there} <= {which}
    assert {here for here, there in zip(after, before, strict=True) if here != there} <= {which}


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_candidates_plays_no_part(order: list[int]) -> None:
    among = candidates(*[1] * 8)
    assert homes(among, 30) == homes([among[each] for each in order], 30)


def test_other_workers_and_other_gateways_agree() -> None:
    """Neither the process nor its hash seed nor this version plays a part: what is here stays for ever."""
    told = """
from gateway.balancers.hash import Hash
from gateway.model import Balance
from tests.unit.balancers.picking import *
balancer, among = Hash(Balance("hash", "client_ip"), lambda: 0.0), candidates(1, 1, 1, 1, 1)
print(picks(balancer, among, 1), [number(balancer.pick(among, ask(client=f"client-{each}"))) for each in range(16)])
"""
    environ = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", told], env=environ, capture_output=True, text=True, check=True).stdout
    assert said.split(maxsplit=1)[1].strip() == str(homes(candidates(1, 1, 1, 1, 1), 16, hashing(seed=99)))
    assert homes(candidates(1, 1, 1, 1, 1), 16) == GOLDEN
    assert homes(candidates(1, 2, 3, 4, 5), 16) == GOLDEN_WEIGHTED


def test_endpoints_that_differ_in_anything_are_not_one() -> None:
    apart = [
        Endpoint("http", "10.0.0.1", 80),
        Endpoint("https", "10.0.0.1", 80),
        Endpoint("http", "10.0.0.1", 81),
        Endpoint("http", "10.0.0.1", 80, base_path=b"/v2"),
    ]
    among = [Candidate(endpoint, EndpointState()) for endpoint in apart]
    balancer = hashing()
    got = Counter(among.index(balancer.pick(among, ask(client=f"client-{each}"))) for each in range(4000))
    assert likelihood(got, dict.fromkeys(range(4), 1)) > 0.001


def test_slow_start_moves_keys_bit_by_bit() -> None:
    among = candidates(1, 1, 1, 1)
    without = homes(among[1:], 4000)
    among[0].state.warm_from, among[0].state.warm_until = NOW, NOW + 10
    balancer = hashing()
    before = without
    for second, share in ((2, 0.2), (5, 0.5), (8, 0.8), (11, 1.0)):
        after = homes(among, 4000, balancer, NOW + second)
        moved = [there for here, there in zip(before, after, strict=True) if here != there]
        assert set(moved) == {0}
        assert after.count(0) / 4000 == pytest.approx(share / (3 + share), rel=0.1)
        before = after


# -- bounded load ---------------------------------------------------------------------


def order(among: tuple[Candidate, ...], client: str) -> list[int]:
    """Where a key goes, and goes next, and so on."""
    found = []
    left = among
    while left:
        first = hashing().pick(left, ask(client=client))
        found.append(number(first))
        left = others(left, first)
    return found


def test_a_hot_key_fills_its_endpoints_in_its_order() -> None:
    among = candidates(1, 1, 1, 1, 1)
    balancer, ranks = hashing(), order(candidates(1, 1, 1, 1, 1), "hot")
    got = []
    for _ in range(100):
        picked = balancer.pick(among, ask(client="hot"))
        picked.state.in_flight += 1
        got.append(number(picked))
    # The first eight are no load on anybody.
    assert got[:8] == [ranks[0]] * 8
    assert got[8:16] == [ranks[1]] * 8
    # Of a hundred a fifth is 20, and nobody has more than 25.
    assert [got.count(which) for which in ranks] == [25, 25, 25, 25, 0]


@settings(max_examples=times(100), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=12),
    st.text(min_size=1, max_size=8, alphabet="abcdef"),
)
def test_nobody_gets_more_than_a_quarter_over_its_share(loads: list[tuple[int, int]], client: str) -> None:
    among = candidates(*(weight for _, weight in loads))
    ranks = order(among, client)
    for each, (load, _) in zip(among, loads, strict=True):
        each.state.in_flight = load
    total, weights = sum(load for load, _ in loads) + 1, sum(weight for _, weight in loads)
    most = [max(math.ceil(1.25 * total * weight / weights - 1e-9), 8) for _, weight in loads]
    picked = number(hashing().pick(among, ask(client=client)))
    assert picked == next(which for which in ranks if loads[which][0] < most[which])


def test_a_second_try_is_the_next_in_order() -> None:
    among = candidates(1, 1, 1, 1, 1)
    for client in ("a", "b", "c"):
        ranks = order(among, client)
        balancer = hashing()
        first = balancer.pick(among, ask(client=client))
        second = balancer.pick(others(among, first), ask(client=client, attempts=2))
        assert [number(first), number(second)] == ranks[:2]
