"""What the load calls wrong: the suite must be able to fail."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos import report, said
from tests.chaos.load import FAILED, OK, WRONG, Answer, judge
from tests.chaos.stage import Outcome

IDENT = "get-main-7"


def answered(body: bytes, ident: str = IDENT, status: int = 200, **fields: str) -> Answer:
    answer = Answer()
    answer.status, answer.body = status, body
    answer.fields = {"x-instance": "main-1", "x-id": ident, **fields}
    return answer


BODY = said.answer("get", "main-1", IDENT)
OTHERS = said.answer("get", "main-1", "get-main-8")


@pytest.mark.parametrize(
    ("answer", "broken", "verdict"),
    [
        (answered(BODY), "", OK),
        (answered(BODY[:-1]), "", WRONG),
        (answered(OTHERS), "", WRONG),
        (answered(BODY, ident="get-main-8"), "", WRONG),
        (answered(said.answer("get", "main-2", IDENT)), "", WRONG),
        (answered(BODY[:100]), "cut", FAILED),
        (answered(OTHERS[:100]), "cut", WRONG),
        (answered(said.failure("main-1", IDENT), status=500), "", FAILED),
        (answered(said.failure("main-1", "get-main-8"), status=500), "", WRONG),
        (Answer(), "closed", FAILED),
    ],
)
def test_an_answer_is_compared_with_what_this_instance_says_to_this_request(
    answer: Answer, broken: str, verdict: str
) -> None:
    assert judge("get", IDENT, answer, broken)[0] == verdict


def test_an_answer_of_nobody_fails_with_its_reason_and_is_wrong_when_it_looks_well() -> None:
    answer = Answer()
    answer.status, answer.fields = 502, {"gateway-error": "connect_refused"}
    assert judge("get", IDENT, answer, "") == (FAILED, "connect_refused")
    answer.status = 200
    assert judge("get", IDENT, answer, "")[0] == WRONG


def test_an_upload_that_arrived_otherwise_is_wrong() -> None:
    ident = "post-main-3"
    garbled = said.upload(ident)[:-1] + b"?"
    assert judge("post", ident, answered(said.to_upload("main-1", ident, garbled), ident), "")[0] == WRONG
    assert judge("post", ident, answered(said.to_upload("main-1", ident, said.upload(ident)), ident), "")[0] == OK


def test_the_table_says_where_the_gateway_lost_more_and_that_nobody_has_said_why() -> None:
    ours = Outcome("gateway", "refuse", requests=1000, failed=Counter({"502 connect_refused": 30}), back=1.0)
    theirs = Outcome("nginx", "refuse", requests=1000, failed=Counter({"502 no reason told": 3}), back=1.0)
    assert "| more than nginx: nobody has said why |" in report.failures({"refuse": {"gateway": ours, "nginx": theirs}})
    assert "| fewer than gateway" not in report.failures({"refuse": {"gateway": ours}})
    theirs.failed["502 no reason told"] = 50
    assert "| fewer than nginx " in report.failures({"refuse": {"gateway": ours, "nginx": theirs}})


def test_the_page_keeps_the_prose_around_its_marks() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.replace(page, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="each mark once"):
        report.replace("no marks", "new")
