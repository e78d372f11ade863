"""Which connection makes room for a new one, and how many a client may have."""

from __future__ import annotations

from time import monotonic

import pytest

from gateway.server import intake as module
from gateway.server.intake import IDLE_LONG_ENOUGH, SILENT_LONG_ENOUGH, Intake, Places


class Fake:
    """A connection that may be closed; `busy`: it is not idle any more when it comes to that."""

    def __init__(self, name: str, idle_for: float = 0.5, busy: bool = False) -> None:
        self.name = name
        self.idle_since: float | None = monotonic() - idle_for
        self.busy = busy

    def make_room(self) -> bool:
        if not self.busy:
            closed.append(self.name)
        return not self.busy


closed: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_closed() -> None:
    closed.clear()


def places(silent: tuple[Fake, ...] = (), lingering: tuple[Fake, ...] = (), idle: tuple[Fake, ...] = ()) -> Places:
    made = Places()
    made.silent, made.lingering, made.idle = dict.fromkeys(silent), dict.fromkeys(lingering), dict.fromkeys(idle)
    return made


def full(made: Places, most: int = 2) -> Intake:
    found = Intake(made, most)
    found.open = most
    return found


def test_silent_ones_first_then_lingering_ones_then_the_one_idle_longest() -> None:
    made = places(
        silent=(Fake("silent-old"), Fake("silent-new")),
        lingering=(Fake("lingering"),),
        idle=(Fake("idle-old", 30.0), Fake("idle-new", 20.0)),
    )
    intake = full(made)
    for _ in range(5):
        assert intake.room()
        assert intake.admit("192.0.2.1") == ""
    assert closed == ["silent-old", "silent-new", "lingering", "idle-old", "idle-new"]
    assert not intake.room()
    assert dict(made.closed) == {"silent": 2, "lingering": 1, "idle": 2, "per_client": 0, "full": 1}


@pytest.mark.parametrize(("idle_for", "closes"), [(IDLE_LONG_ENOUGH - 0.1, False), (IDLE_LONG_ENOUGH + 0.1, True)])
def test_an_idle_one_only_after_a_while(idle_for: float, closes: bool) -> None:
    assert full(places(idle=(Fake("idle", idle_for), Fake("other")))).room() is closes


@pytest.mark.parametrize(
    ("silent_for", "closes"), [(SILENT_LONG_ENOUGH - 0.05, False), (SILENT_LONG_ENOUGH + 0.05, True)]
)
def test_a_silent_one_only_when_its_first_byte_should_be_there(silent_for: float, closes: bool) -> None:
    assert full(places(silent=(Fake("silent", silent_for),))).room() is closes


def test_nobody_is_closed_before_there_is_a_newcomer() -> None:
    assert full(places(silent=(Fake("silent"),))).room()
    assert closed == []


def test_one_whose_request_has_just_come_keeps_its_place() -> None:
    made = places(silent=(Fake("busy", busy=True), Fake("silent")))
    assert full(made).admit("192.0.2.1") == ""
    assert closed == ["silent"]


def test_where_all_have_just_become_busy_there_is_one_more() -> None:
    intake = full(places(silent=(Fake("busy", busy=True),)))
    assert intake.room()
    assert intake.admit("192.0.2.1") == ""
    assert (intake.open, intake.room(), closed) == (3, False, [])


def test_a_bounded_number_is_looked_at() -> None:
    """An attacker who makes them all busy at once must not make accepting slow."""
    made = places(silent=tuple(Fake(str(number), busy=True) for number in range(1000)))
    full(made).admit("192.0.2.1")
    assert len(made.silent) == 1000 - module._LOOKED_AT


def test_room_is_for_one_while_the_closed_one_ends() -> None:
    intake = full(places(silent=(Fake("one"),)))
    assert intake.room()
    assert intake.admit("192.0.2.1") == ""
    assert intake.open == 3
    assert not intake.room()
    intake.ended("", for_another=True)
    assert (intake.open, intake.room()) == (2, False)


def test_accepting_goes_on_when_a_place_is_free() -> None:
    started: list[int] = []
    intake = full(places())
    intake.listen(lambda: started.append(1))
    assert not intake.room()
    intake.ended("", for_another=False)
    assert started == [1]
    intake.ended("", for_another=False)
    assert started == [1]


class TestPerClient:
    def test_one_more_is_refused_and_counted(self) -> None:
        intake = Intake(Places(), 100, per_client=2)
        held = [intake.admit("192.0.2.1") for _ in range(2)]
        assert None not in held
        assert intake.admit("192.0.2.1") is None
        assert intake.admit("192.0.2.2") is not None
        assert (intake.open, intake.places.closed["per_client"]) == (3, 1)
        assert held[0] is not None
        intake.ended(held[0], for_another=False)
        assert intake.admit("192.0.2.1") is not None

    def test_off_by_default(self) -> None:
        intake = Intake(Places(), 1000)
        assert all(intake.admit("192.0.2.1") == "" for _ in range(500))

    def test_the_addresses_of_one_ipv6_site_are_one_client(self) -> None:
        intake = Intake(Places(), 100, per_client=1)
        assert intake.admit("2001:db8:0:1::1") is not None
        assert intake.admit("2001:db8:0:1:ffff::2") is None
        assert intake.admit("2001:db8:0:2::1") is not None
        assert intake.admit("fe80::1%eth0") is not None
        assert intake.admit("::ffff:192.0.2.1") is not None
        assert intake.admit("192.0.2.1") is None

    def test_trusted_proxies_and_unix_sockets_have_as_many_as_they_like(self) -> None:
        intake = Intake(Places(), 100, per_client=1, exempt=lambda peer: peer == "10.0.0.1")
        assert all(intake.admit("10.0.0.1") == "" for _ in range(5))
        assert all(intake.admit("") == "" for _ in range(5))

    def test_nothing_is_kept_of_clients_that_left(self) -> None:
        intake = Intake(Places(), 100, per_client=1)
        for number in range(50):
            client = intake.admit(f"192.0.2.{number}")
            assert client is not None
            intake.ended(client, for_another=False)
        assert (intake._by_client, intake.open) == ({}, 0)
