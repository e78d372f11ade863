"""Consul's health answer → endpoints: what is taken, what is left out, what is no answer at all."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import ConsulSource, Endpoint, TlsSettings, Upstream
from gateway.providers.consul import decode
from gateway.registries import RegistryError

USERS = Upstream("users", ConsulSource("user-svc"))

# As a real agent answers, shortened to what differs between entries.
ENTRY: dict[str, Any] = {
    "Node": {"ID": "7f3", "Node": "n1", "Address": "10.0.0.1", "TaggedAddresses": None, "Meta": None},
    "Service": {
        "ID": "user-1", "Service": "user-svc", "Tags": ["v1"], "Address": "10.0.0.7", "Port": 8080,
        "TaggedAddresses": {"lan": {"Address": "10.0.0.8", "Port": 1}, "wan": {"Address": "203.0.113.7", "Port": 2}},
        "Meta": {"a": "b"}, "Weights": {"Passing": 1, "Warning": 1},
    },
    "Checks": [{"CheckID": "service:user-1", "Status": "passing"}],
}  # fmt: skip


def entry(**service: Any) -> dict[str, Any]:
    made = copy.deepcopy(ENTRY)
    made["Service"].update(service)
    return made


def without(*path: str) -> dict[str, Any]:
    made = copy.deepcopy(ENTRY)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return made


def places(*entries: Any) -> list[str]:
    return [e.address for e in decode(list(entries), USERS)[0]]


def test_an_instance_becomes_an_endpoint() -> None:
    endpoints, reasons = decode([ENTRY], USERS)
    assert endpoints == (Endpoint("http", "10.0.0.7", 8080, 1, authority=b"10.0.0.7:8080"),)
    assert reasons == ()


def test_scheme_and_server_name_are_the_upstream_s() -> None:
    upstream = Upstream("u", ConsulSource("s"), scheme="https", tls=TlsSettings(server_name="users.internal"))
    ((endpoint,), _) = decode([ENTRY], upstream)
    assert (endpoint.scheme, endpoint.server_name) == ("https", "users.internal")


def test_an_empty_list_is_an_answer() -> None:
    assert decode([], USERS) == ((), ())


@pytest.mark.parametrize("payload", [None, {}, {"error": "x"}, "rpc error", 0, True])
def test_what_is_not_a_list_is_not_an_answer(payload: object) -> None:
    with pytest.raises(RegistryError, match="not a list"):
        decode(payload, USERS)


@pytest.mark.parametrize("address", ["", None])
def test_no_service_address_is_the_node_s(address: object) -> None:
    assert places(entry(Address=address)) == ["10.0.0.1:8080"]
    assert places(without("Service", "Address")) == ["10.0.0.1:8080"]


def test_tagged_addresses_are_not_used() -> None:
    assert places(ENTRY) == ["10.0.0.7:8080"]


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("::1", "[::1]:8080"),
        ("[::1]", "[::1]:8080"),
        ("2001:DB8:0:0::1", "[2001:db8::1]:8080"),
        ("::ffff:10.0.0.9", "10.0.0.9:8080"),
    ],
)
def test_ipv6_in_one_spelling(told: str, address: str) -> None:
    ((endpoint,), _) = decode([entry(Address=told)], USERS)
    assert endpoint.address == address
    assert endpoint.authority == address.encode()


@pytest.mark.parametrize("port", [0, -1, 65536, None, "8080", 80.5, True, [], {}])
def test_an_instance_without_a_port_is_left_out_and_the_others_stay(port: object) -> None:
    endpoints, reasons = decode([entry(Port=port), entry(Address="10.0.0.9")], USERS)
    assert [e.address for e in endpoints] == ["10.0.0.9:8080"]
    assert len(reasons) == 1
    assert "bad port" in reasons[0]
    assert "'user-1'" in reasons[0]
    assert "'n1'" in reasons[0]


def test_a_missing_port_is_left_out() -> None:
    assert places(without("Service", "Port"), entry(Address="10.0.0.9")) == ["10.0.0.9:8080"]


@pytest.mark.parametrize(
    "address", ["a b", "http://x", "10.0.0.1:80", "x/y", "-x", "a..b", "x" * 64, 5, ["10.0.0.1"], "x\ny"]
)
def test_a_bad_address_is_left_out_on_one_line(address: object) -> None:
    endpoints, reasons = decode([entry(Address=address), entry(Address="10.0.0.9")], USERS)
    assert [e.host for e in endpoints] == ["10.0.0.9"]
    assert "bad address" in reasons[0]
    assert "\n" not in reasons[0]


def test_a_name_is_kept_for_the_look_up() -> None:
    assert places(entry(Address="Users-1.Internal.")) == ["users-1.internal.:8080"]


@pytest.mark.parametrize("bad", [None, [], "x", 3, {}, {"Service": None}, {"Service": []}, {"Service": {}, "Node": 4}])
def test_an_entry_of_another_shape_costs_itself_only(bad: object) -> None:
    endpoints, reasons = decode([bad, ENTRY], USERS)
    assert [e.address for e in endpoints] == ["10.0.0.7:8080"]
    assert len(reasons) == 1


@pytest.mark.parametrize(
    "path", [("Service", "Tags"), ("Service", "Meta"), ("Checks",), ("Service", "Weights"), ("Node",)]
)
def test_members_may_be_null_or_missing(path: tuple[str, ...]) -> None:
    null = copy.deepcopy(ENTRY)
    inner = null
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = None
    assert places(null) == places(without(*path)) == ["10.0.0.7:8080"]


@pytest.mark.parametrize(
    ("weights", "weight"),
    [
        ({"Passing": 5, "Warning": 2}, 5),
        ({"Passing": 0, "Warning": 1}, 0),
        ({"Warning": 9}, 1),
        ({"Passing": None}, 1),
        ({"Passing": -3}, 1),
        ({"Passing": "7"}, 1),
        ({"Passing": True}, 1),
        ({"Passing": 10**400}, 65535),
        ([], 1),
    ],
)
def test_weights_passing(weights: object, weight: int) -> None:
    ((endpoint,), _) = decode([entry(Weights=weights)], USERS)
    assert endpoint.weight == weight


def test_the_same_id_on_two_nodes_is_two_endpoints() -> None:
    other = entry(Address="")
    other["Node"] = {"Node": "n2", "Address": "10.0.0.2"}
    assert places(entry(Address=""), other) == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_two_registrations_of_one_place_are_one_endpoint() -> None:
    endpoints, reasons = decode([entry(ID="a"), entry(ID="b", Weights={"Passing": 4})], USERS)
    assert [(e.address, e.weight) for e in endpoints] == [("10.0.0.7:8080", 4)]
    assert reasons == ()


def test_two_ports_of_one_address_are_two_endpoints() -> None:
    assert places(entry(Port=2), entry(Port=1)) == ["10.0.0.7:1", "10.0.0.7:2"]


@given(st.permutations([entry(Address=f"10.0.0.{n}", Port=9000 - n) for n in range(1, 6)]))
def test_the_order_of_the_answer_does_not_matter(entries: list[Any]) -> None:
    assert places(*entries) == [f"10.0.0.{n}:{9000 - n}" for n in range(1, 6)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Node", "Service", "Address", "Port", "Weights", "Passing", "ID"]), inner)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_no_json_breaks_it(payload: list[Any]) -> None:
    endpoints, reasons = decode(json.loads(json.dumps(payload)), USERS)
    assert len(endpoints) + len(reasons) <= len(payload)
    for endpoint in endpoints:
        assert endpoint.host
        assert 0 < endpoint.port < 65536
        assert endpoint.weight >= 0
