"""A short run of the fuzzer on both sides; `scripts/fuzz` and --long have long ones."""

from __future__ import annotations

import os
import re
from random import Random

import pytest

from gateway.errors import BadRequest
from gateway.server.parser import Before, HeadParser
from gateway.transport.answer import AnswerReader
from tests import fuzzing, long

INPUTS = long.either(20_000, 1_000_000)


def test_no_input_does_harm() -> None:
    tally = fuzzing.fuzz(seed=int(os.environ.get("FUZZ_SEED", "3")), number=INPUTS)
    assert tally.wrong == []
    assert tally.inputs == INPUTS
    # It gets past the doors, and is not all well-formed either.
    ends = tally.ends
    assert ends["requests: 200"] > 1_000
    assert ends["requests: bad_request"] > 1_000
    assert ends["answers: whole, and another"] > 300
    assert ends["answers: bad_response"] > 1_000
    assert {"requests: request_timeout", "requests: client_closed", "requests: body_too_large", "requests: header_too_large",
            "answers: 101", "answers: cut off", "answers: whole, then closed"} <= set(ends)  # fmt: skip


def test_an_input_can_be_had_again() -> None:
    twice = [fuzzing.made(Random("requests:1:7"), fuzzing.REQUESTS) for _ in range(2)]
    assert twice[0] == twice[1]
    pieces = fuzzing.cut(Random(1), twice[0])
    assert b"".join(pieces) == twice[0]


class TestItWouldBeSeen:
    """Faults put in on purpose."""

    def test_a_fault_of_the_parser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parse = HeadParser.parse

        def faulty(self: HeadParser, raw: bytes, before: Before | None = None) -> Before | None:
            if b"\xff" in raw:
                raise ValueError("a fault")
            return parse(self, raw, before)

        monkeypatch.setattr(HeadParser, "parse", faulty)
        assert any("ValueError: a fault" in wrong for wrong in fuzzing.fuzz(1, 2_000).wrong)

    def test_a_traceback_that_became_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def faulty(*_: object) -> bytes:
            raise KeyError("a fault")

        monkeypatch.setattr("gateway.http.target.normal", faulty)
        assert any("logged" in wrong for wrong in fuzzing.fuzz(1, 1_000).wrong)

    def test_a_pattern_that_is_not_linear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = re.compile(rb"[^\s,]+[ \t]+([^\s,]+)")
        monkeypatch.setattr("gateway.http.request_head.received_by", slow.findall)
        via = fuzzing._ask(b"GET / HTTP/1.1", b"Via: " + b"a" * 31_000)
        monkeypatch.setattr(fuzzing, "made", lambda rng, kinds: via)
        assert any("s of CPU" in wrong for wrong in fuzzing.fuzz(1, 20).wrong)

    def test_a_body_that_is_never_at_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AnswerReader, "_end_of_stream", lambda self: None)
        assert any("Hung" in wrong for wrong in fuzzing.fuzz(1, 2_000).wrong)

    def test_a_connection_that_is_kept_wrongly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = AnswerReader._usual

        def forgiving(self: AnswerReader, data: bytes, hop: bytes) -> object:
            judged = usual(self, data, hop)
            if self.complete:
                self.persistent = True
            return judged

        monkeypatch.setattr(AnswerReader, "_usual", forgiving)
        assert fuzzing.fuzz(1, 4_000).wrong

    def test_what_is_left_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[object] = []
        made = BadRequest.__init__

        def keeping(self: BadRequest, cause: str = "") -> None:
            made(self, cause)
            if len(kept) < 5_000:
                kept.append(open(os.devnull))  # noqa: SIM115 - on purpose

        before = fuzzing.holdings()
        try:
            monkeypatch.setattr(BadRequest, "__init__", keeping)
            fuzzing.fuzz(1, 400)
            assert any("descriptors" in told for told in fuzzing.left_behind(before))
        finally:
            for one in kept:
                one.close()  # type: ignore[attr-defined]
