"""What the reload soak judges by, without a socket."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gateway import config as files
from gateway.errors import ConfigError
from tests.reload_soak import Held, grown, tracebacks
from tests.soak_clients import Log, drawn, pieces
from tests.soak_load import MARGIN
from tests.soak_log import compare
from tests.soak_orders import MOST_FAULTS, Faults, Order, answered, asked, expected, owned, wrong_answer
from tests.soak_reloads import (
    ALWAYS,
    GUESTS,
    IMPATIENT,
    IN_FORCE,
    Chooser,
    History,
    Servers,
    half,
    rendered,
    spoiled_by,
)


class TestBytes:
    def test_every_line_names_its_request(self) -> None:
        assert owned(0xAB, 40) == b"000000ab:000000\n000000ab:000001\n000000ab"
        for size in (0, 1, 15, 16, 17, 65_537, 400_000):
            assert len(owned(7, size)) == size

    def test_a_target_is_read_back(self) -> None:
        order = Order(0xAB, "main", "PUT", 700, acts=("busy-small", "ok"), answer=9)
        found = asked(order.target.encode())
        assert found is not None
        assert (found.number, found.before, found.acts, found.size, found.answer) == (
            0xAB,
            ("main",),
            ("busy-small", "ok"),
            700,
            9,
        )
        assert [found.act(attempt) for attempt in (1, 2, 3)] == ["busy-small", "ok", "ok"]
        assert asked(b"/c3/c3" + order.target[len("/main") :].encode()) is not None
        assert asked(b"/-/readyz") is None

    def test_pieces_are_the_whole_request(self) -> None:
        rng = Random(1)
        for number in range(300):
            order = drawn(rng, number)
            data = b"".join(piece.data for piece in pieces(order, rng))
            assert data.startswith(order.head())
            if not order.chunked:
                assert data == order.head() + order.body

    @pytest.mark.parametrize(
        ("body", "whole"),
        [
            (answered(2, "ok", b"", 99), True),
            (answered(1, "ok", b"", 99)[:-1], True),
            (answered(1, "ok", b"", 99) + b"x", True),
            (answered(1, "close", b"", 99), True),
            (answered(1, "ok", b"x", 99), True),
            (answered(2, "ok", b"", 99)[:6] + b"22", False),
            (answered(1, "ok", b"", 99)[:80] + owned(2, 20), False),
            (b"", True),
        ],
    )
    def test_a_wrong_answer(self, body: bytes, whole: bool) -> None:
        assert wrong_answer(Order(1, "main"), 200, body, whole)

    def test_a_right_answer(self) -> None:
        order = Order(1, "main", "PUT", 700, acts=("busy-small", "ok"))
        assert wrong_answer(order, 200, answered(1, "ok", order.body, 99), True) == ""
        assert wrong_answer(order, 503, answered(1, "busy-small", order.body[:100], 200), True) == ""
        assert wrong_answer(order, 200, answered(1, "ok", order.body, 99)[:50], False) == ""
        assert wrong_answer(order, 200, answered(1, "ok", order.body[:699], 99), True)
        assert wrong_answer(order, 200, answered(1, "busy-small", order.body, 200), True)


class TestExpected:
    @pytest.mark.parametrize(
        ("order", "statuses", "broken"),
        [
            (Order(1, "main"), {200}, False),
            (Order(1, "main", acts=("busy-small", "ok")), {200}, False),
            (Order(1, "main", acts=("busy-small",)), {503}, False),
            (Order(1, "main", acts=("busy-big", "ok")), {200, 503}, False),
            (Order(1, "main", acts=("busy-open", "ok")), {200, 503}, True),
            (Order(1, "main", "PUT", 65_536, acts=("busy-small", "ok")), {200}, False),
            (Order(1, "main", "PUT", 65_537, acts=("busy-small", "ok")), {200, 503}, False),
            (Order(1, "main", "PUT", 131_072, acts=("busy-small", "ok")), {200, 503}, False),
            (Order(1, "main", "PUT", 131_073, acts=("busy-small", "ok")), {503}, False),
            (Order(1, "main", "PUT", 700, chunked=True, acts=("busy-small", "ok")), {503}, False),
            (Order(1, "main", "POST", 700, acts=("busy-small", "ok")), {503}, False),
            (Order(1, "main", "POST", 700, acts=("reset", "ok")), {502}, False),
            (Order(1, "main", acts=("drop", "ok")), {200}, False),
            (Order(1, "main", "PUT", 700, acts=("drop", "ok")), {200}, False),
            (Order(1, "main", "PUT", 700, expects=True, acts=("drop", "ok")), {200, 502}, False),
            (Order(1, "main", "PUT", 700, expects=True, acts=("busy-small", "ok")), {200}, False),
            (Order(1, "main", "PUT", 700, acts=("early",)), {200}, False),
            (Order(1, "main", acts=("cut",)), {200, 502}, True),
            (Order(1, IMPATIENT, acts=("stall",)), {504}, False),
        ],
    )
    def test_what_must_come_of_a_request(self, order: Order, statuses: set[int], broken: bool) -> None:
        found = expected(order)
        assert set(found.statuses) == statuses
        assert found.broken == broken


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    for name in ("one", "other"):
        (tmp_path / name).write_text("")
    plain = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")
    return Servers(
        plain, ("https://127.0.0.1:4", "https://127.0.0.1:5"), (tmp_path / "one", tmp_path / "other"), tmp_path / "log"
    )


class TestVersions:
    def test_valid_ones_are_valid_and_have_what_always_is_there(self, servers: Servers) -> None:
        chooser = Chooser(servers, Random(1))
        seen = set()
        for turn in range(100):
            choice = chooser.next(turn * 0.3)
            config = files.loads(rendered(choice, servers).encode(), "file", {})
            assert {route.name for route in config.routes} == {*ALWAYS, IMPATIENT, *choice.guests}
            seen.add(choice.guests)
        assert {guest for guests in seen for guest in guests} == set(GUESTS)
        assert all(any(guest not in guests for guests in seen) for guest in GUESTS)

    def test_invalid_ones_and_halves_are_invalid(self, servers: Servers) -> None:
        rng = Random(1)
        chooser = Chooser(servers, rng)
        kinds = set()
        for turn in range(100):
            text = rendered(chooser.next(turn * 0.3), servers)
            kind, spoiled = spoiled_by(text, rng)
            kinds.add(kind)
            for each in (spoiled, text[: half(text, rng)]):
                with pytest.raises(ConfigError):
                    files.loads(each.encode(), "file", {})
        assert len(kinds) == 8

    def test_a_guest_may_be_away_while_one_version_in_force_may_lack_it(self) -> None:
        history = History()
        history.add(100.0, frozenset({"guest0"}), "one")
        history.add(200.0, frozenset(), "two")
        history.add(300.0, frozenset({"guest0"}), "three")
        for began, ended, absent, present in (
            (150.0, 199.0, False, True),
            (150.0, 200.0, True, True),
            (204.9, 205.0, True, True),
            (200.1 + IN_FORCE, 299.0, True, False),
            (299.0, 300.0, True, True),
            (299.9 + IN_FORCE, 310.0, True, True),
            (300.1 + IN_FORCE, 310.0, False, True),
        ):
            assert history.allows("guest0", 404, began, ended) == absent
            assert history.allows("guest0", 200, began, ended) == present


class TestLog:
    def record(self, order: Order, **changes: object) -> str:
        fields = {
            "target": order.target,
            "status": 200,
            "attempts": 1,
            "reused": True,
            "reason": None,
            "route": order.route,
            "config_version": "v1",
        }
        return json.dumps(fields | changes) + "\n"

    @pytest.mark.parametrize(
        ("changes", "times", "status", "fault"),
        [
            ({}, 1, 200, None),
            ({}, 1, 0, None),
            ({}, 1, None, None),
            ({}, 0, None, None),
            ({}, 0, 200, "no log line for a request"),
            ({}, 0, 0, "no log line for a request"),
            ({}, 2, 200, "more than one log line for a request"),
            ({}, 2, None, "more than one log line for a request"),
            ({"status": 502}, 1, 200, "another status in the log than the client got"),
            ({"config_version": "v2"}, 1, 200, "a log line whose version has no such route"),
            ({"config_version": "v9"}, 1, 200, "a log line with a version that was never valid"),
            ({"route": None, "reason": "no_route"}, 1, 200, "no_route in a version that has the route"),
            ({"target": "/main/00000009?do=ok&body=0&answer=0"}, 1, None, "a log line of nobody's request"),
            ({"target": "-"}, 1, None, "more lines of broken heads than heads were broken"),
            ({"target": "/-/readyz"}, 1, None, None),
        ],
    )
    def test_each_line_is_somebodys(
        self, tmp_path: Path, changes: dict[str, object], times: int, status: int | None, fault: str | None
    ) -> None:
        path, log, faults = tmp_path / "log", Log(), Faults()
        path.write_text(self.record(Order(1, "guest0"), **changes) * times)
        log.lines[1] = status
        compare(path, log, {"v1": frozenset({"guest0"}), "v2": frozenset()}, faults)
        assert list(faults.counts) == ([fault] if fault else [])


def test_what_grew_and_what_is_not_at_rest() -> None:
    held = Held(1, "v", "v", "", 0, 0, 0, 0, 0, 0, 6, 1, 15, 60 * 2**20, 300_000, 0, 0)
    assert grown(held, held, MARGIN) == held.busy == []
    assert grown(held, replace(held, resident=held.resident + MARGIN), MARGIN) == []
    more = replace(held, resident=held.resident + MARGIN + 1, greenlets=7, descriptors=16)
    assert len(grown(held, more, MARGIN)) == 3
    busy = replace(
        held, in_flight=1, gates=1, queued=1, endpoints=1, upstream_connections=1, left_states=1, client_connections=2
    )
    assert len(busy.busy) == 7


def test_faults_are_counted_and_few_are_kept() -> None:
    faults = Faults()
    for number in range(MOST_FAULTS - 1):
        faults.add("kind", f"example {number}")
    assert (faults.total, faults.too_many, len(faults.lines())) == (MOST_FAULTS - 1, False, 6)
    faults.add("kind", "one more")
    assert faults.too_many


def test_tracebacks_are_found() -> None:
    log = 'line\nTraceback (most recent call last):\n  File "a.py", line 1, in b\n    c()\nKeyError: 1\nline\n'
    assert len(tracebacks(log)) == 1
    assert "KeyError: 1" in tracebacks(log)[0]
