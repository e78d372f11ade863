"""JSON read piece by piece: the result is `json.loads`'s, and others run in between."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import ConsulSettings, ConsulSource, Upstream
from gateway.providers.consul import decode
from gateway.registries import RegistryError, consul, json_pieces
from gateway.registries.consul import ConsulApi
from gateway.registries.etcd_wire import encode, page
from gateway.registries.json_pieces import Pieces
from gateway.runtime.hub import SLICE, Slices
from gateway.testing import FakeUpstream, answer

UPSTREAM = Upstream("u", ConsulSource("s"))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def elements(body: bytes | list[bytes], most: int = 1000) -> list[object]:
    pieces = Pieces(body, lambda: None, most)
    found = list(pieces.elements())
    pieces.end()
    return found


@given(st.lists(_JSON, max_size=6), st.sampled_from([None, 0, 1]), st.integers(1, 9), st.booleans())
def test_an_array_is_what_json_makes_of_it(values: list[Any], indent: int | None, size: int, ascii: bool) -> None:
    """However small the parts are, also in the middle of a character, a number or a word."""
    body = json.dumps(values, indent=indent, ensure_ascii=ascii).encode()
    assert elements([body[at : at + size] for at in range(0, len(body), size)], most=100_000) == values


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=5), st.integers(1, 9))
def test_so_are_the_members_of_an_object(values: dict[str, Any], size: int) -> None:
    body = json.dumps(values).encode()
    pieces = Pieces([body[at : at + size] for at in range(0, len(body), size)], lambda: None, 100_000)
    assert {key: pieces.value() for key in pieces.members()} == values
    pieces.end()


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"{}", b"[", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[1]x", b"[1]]", b"[01]", b"[tru]", b'["a]', b'["\xff"]', b'["\xc3', b"[" * 100_000],
)
def test_what_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(RegistryError, match="not JSON"):
        elements(body, most=1_000_000)


def test_the_limit_of_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "PART", 100)
    fits = json.dumps(["x" * 998])  # with its quotes 1,000 bytes
    assert elements(fits.encode(), most=1000) == ["x" * 998]
    with pytest.raises(RegistryError, match="larger than 1000 bytes"):
        elements(json.dumps(["x" * 100_000]).encode(), most=1000)
    assert elements(json.dumps([1, *["x" * 900] * 5]).encode(), most=1000)[-1] == "x" * 900


def test_others_run_between_two_elements() -> None:
    turns: list[int] = []
    pieces = Pieces(json.dumps([{"a": number} for number in range(5000)]).encode(), lambda: turns.append(1), 1000)
    assert sum(1 for _ in pieces.elements()) == 5000
    assert len(turns) == 5000


def test_a_slice_ends_by_the_clock() -> None:
    now, rested = [0.0], []
    turn = Slices(rest=lambda: rested.append(now[0]), clock=lambda: now[0])
    for _ in turn.over(range(10)):
        now[0] += SLICE / 2
    assert rested == [SLICE, 2 * SLICE, 3 * SLICE, 4 * SLICE]


def instances(number: int, meta: str = "") -> list[dict[str, Any]]:
    return [
        {"Node": {"Node": "n", "Address": "x"}, "Service": {"ID": f"i{at}", "Address": f"10.0.{at >> 8}.{at & 255}", "Port": 80, "Meta": {"m": meta}}}
        for at in range(number)
    ]  # fmt: skip


def test_endpoints_are_decoded_in_turns_and_in_order() -> None:
    turns: list[int] = []
    entries = instances(5000)
    plain, _ = decode(entries, UPSTREAM)
    paced, _ = decode(iter(reversed(entries)), UPSTREAM, lambda: turns.append(1))
    assert paced == plain
    assert len(turns) > 5_050  # for each entry, and for each part that is put in order
    again, _ = decode(iter(entries), UPSTREAM, before={(one.host, one.port): one for one in plain})
    assert all(one is other for one, other in zip(again, plain, strict=True))


def test_an_answer_of_consul_comes_in_pieces() -> None:
    with FakeUpstream() as registry:
        body = json.dumps(instances(2000, meta="x" * 100)).encode()
        registry.queue(answer(body, b"X-Consul-Index: 7"))
        got = ConsulApi(ConsulSettings(address=registry.url)).passing(ConsulSource("s"))
        assert isinstance(got.body, list)
        turns: list[int] = []
        endpoints, _ = decode(got.payload(lambda: turns.append(1)), UPSTREAM)
        assert len(endpoints) == 2000
        assert len(turns) >= 2000
        assert got.payload() == json.loads(body)


@pytest.mark.parametrize(("more", "wrong"), [(0, ""), (1, "larger than")])
def test_the_limit_of_an_answer(more: int, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"[" + b" " * (200_000 - 2) + b"]"
    monkeypatch.setattr(consul, "MOST_BYTES", len(body) - more)
    with FakeUpstream() as registry:
        registry.queue(answer(body, b"X-Consul-Index: 7"))
        api = ConsulApi(ConsulSettings(address=registry.url))
        if wrong:
            with pytest.raises(RegistryError, match=wrong):
                api.passing(ConsulSource("s"))
        else:
            assert list(api.passing(ConsulSource("s")).payload(lambda: None)) == []  # type: ignore[call-overload]


def test_an_instance_that_is_too_large_costs_the_answer() -> None:
    with FakeUpstream() as registry:
        body = json.dumps([*instances(1), *instances(1, meta="x" * (consul.MOST_ENTRY * 2))]).encode()
        registry.queue(answer(body, b"X-Consul-Index: 7"))
        got = ConsulApi(ConsulSettings(address=registry.url)).passing(ConsulSource("s"))
        with pytest.raises(RegistryError, match=f"larger than {consul.MOST_ENTRY} bytes"):
            decode(got.payload(lambda: None), UPSTREAM)


@pytest.mark.parametrize("number", [0, 10, 5000])
def test_a_page_of_etcd(number: int) -> None:
    keys = [{"key": encode(b"/a/%d" % at), "value": encode(b"10.0.0.1:80")} for at in range(number)]
    header = {"cluster_id": "1", "revision": "9"}
    for body in ({"header": header, "kvs": keys, "more": True}, {"kvs": keys, "more": True, "count": "3", "header": header}):
        turns: list[int] = []
        found = page(json.dumps(body).encode(), lambda turns=turns: turns.append(1))  # type: ignore[misc]
        assert (len(found.pairs), found.revision, found.more) == (number, 9, True)
        assert (len(turns) >= number) == (number != 10)
    broken = json.dumps({"header": header, "kvs": [*keys, 7]}).encode()
    with pytest.raises(RegistryError, match="not the answer to a range request"):
        page(broken)
