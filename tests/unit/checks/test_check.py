"""What checks ask, what answers are worth, and how many make a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.checks.check import Tally, fault, question
from gateway.checks.schedule import Schedule
from gateway.model import Endpoint, HealthCheck

CHECK = HealthCheck(path=b"/healthz", healthy=2, unhealthy=3)
ENDPOINT = Endpoint("http", "10.0.0.1", 8080, base_path=b"/app", query=b"a=1")


def asked(check: HealthCheck, endpoint: Endpoint = ENDPOINT) -> bytes:
    found = question(check, endpoint)
    assert found is not None
    return found


class TestQuestion:
    def test_the_whole_of_it(self) -> None:
        assert asked(CHECK) == (
            b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: wsgi-gateway\r\nConnection: close\r\n\r\n"
        )

    @pytest.mark.parametrize(
        ("check", "endpoint", "host"),
        [
            (CHECK, replace(ENDPOINT, authority=b"a.example:81"), b"a.example:81"),
            (replace(CHECK, host="b.example"), replace(ENDPOINT, authority=b"a.example:81"), b"b.example"),
            (CHECK, replace(ENDPOINT, host="2001:db8::1"), b"[2001:db8::1]:8080"),
        ],
    )
    def test_host_is_the_configured_one_or_the_endpoint_s_own(
        self, check: HealthCheck, endpoint: Endpoint, host: bytes
    ) -> None:
        assert b"\r\nHost: %b\r\n" % host in asked(check, endpoint)

    def test_headers_are_sent_as_they_are(self) -> None:
        check = replace(CHECK, headers=((b"X-Check", b"1"), (b"user-agent", b"me")))
        assert asked(check).endswith(b"\r\nX-Check: 1\r\nuser-agent: me\r\nConnection: close\r\n\r\n")
        assert b"User-Agent" not in asked(check)

    def test_tcp_asks_nothing(self) -> None:
        assert question(replace(CHECK, tcp=True), ENDPOINT) is None


def test_what_an_answer_is_worth() -> None:
    check = replace(CHECK, statuses=frozenset({200, 204}))
    assert fault(check, 204) == ""
    assert fault(check, 302) == "GET /healthz was answered 302"
    assert fault(replace(check, tcp=True), 0) == ""


def verdicts(checks: str, healthy: bool | None = None, check: HealthCheck = CHECK) -> str:
    """`+` and `-` for good and bad checks -> for each what holds behind it, `?` for nothing."""
    tally = Tally(healthy)
    told = ""
    for each in checks:
        before = tally.healthy
        why = tally.add(check, "" if each == "+" else "bad")
        assert bool(why) == (tally.healthy is not before)
        told += {True: "U", False: "D", None: "?"}[tally.healthy]
    return told


class TestTally:
    def test_the_first_check_decides(self) -> None:
        assert verdicts("+") == "U"
        assert verdicts("-") == "D"

    @pytest.mark.parametrize(
        ("checks", "healthy", "told"),
        [
            ("---", True, "UUD"),
            ("--+--+---", True, "UUUUUUUUD"),
            ("++", False, "DU"),
            ("+-+-++", False, "DDDDDU"),
            ("---++--+---", True, "UUDDUUUUUUD"),
        ],
    )
    def test_so_many_in_a_row(self, checks: str, healthy: bool, told: str) -> None:
        assert verdicts(checks, healthy) == told

    def test_one_may_be_enough(self) -> None:
        assert verdicts("-+-+", True, replace(CHECK, healthy=1, unhealthy=1)) == "DUDU"

    def test_settings_may_change_in_between(self) -> None:
        tally = Tally(True)
        assert not tally.add(CHECK, "bad")
        assert tally.add(replace(CHECK, unhealthy=2), "bad") == "2 checks in a row failed, the last: bad"

    def test_what_is_told(self) -> None:
        assert Tally().add(CHECK, "") == "the first check was good"
        assert Tally().add(CHECK, "bad") == "the first check failed: bad"
        assert Tally(True).add(replace(CHECK, unhealthy=1), "bad") == "1 check failed, the last: bad"
        tally = Tally(False)
        tally.add(CHECK, "")
        assert tally.add(CHECK, "") == "2 checks in a row good"


class TestSchedule:
    def test_the_earliest_first_and_each_once(self) -> None:
        schedule: Schedule[str] = Schedule()
        for thing, due in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
            schedule.put(thing, due)
        assert schedule.next == 1.0
        assert [schedule.take(2.5) for _ in range(3)] == ["a", "b", None]
        assert schedule.next == 3.0

    def test_another_instant_takes_the_place_of_the_one_before(self) -> None:
        schedule: Schedule[str] = Schedule()
        schedule.put("a", 1.0)
        schedule.put("a", 5.0)
        assert schedule.next == 5.0
        assert schedule.take(4.0) is None
        schedule.put("a", 2.0)
        assert [schedule.take(9.0), schedule.take(9.0)] == ["a", None]

    def test_what_is_dropped_is_not_due(self) -> None:
        schedule: Schedule[str] = Schedule()
        schedule.put("a", 1.0)
        schedule.put("b", 1.0)
        schedule.drop("a")
        schedule.drop("unknown")
        assert [schedule.take(1.0), schedule.take(1.0)] == ["b", None]
        schedule.put("a", 1.0)
        schedule.clear()
        assert schedule.next == float("inf")
