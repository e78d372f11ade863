"""The chaos suite in its short form: every fault once, for as long as it takes to be noticed, under steady load.

Rule: asserted is what must hold on any machine: no wrong answer, no POST twice, nobody left without an answer, no
request lost to what could have been tried elsewhere, the other upstream untouched, and everything back to normal
afterwards. How many requests a fault costs, and how long it takes, is for `scripts/chaos` to tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests import services
from tests.chaos import network
from tests.chaos.faults import FAULTS
from tests.chaos.stage import Outcome, Pace, Stage
from tests.chaos.systems import Gateway, Limits

LIMITS = Limits(connect=0.5, response=1.0, idle=0.5)
# The instances of the first stage are registered with Consul, which is of use for one fault and does not matter for others.
# Half of what `scripts/chaos` has: enough for each instance to be missed within a fault.
RATE = 150.0
STAGES = ("consul", "tls", "dns", "network")
PACE = Pace(quiet=0.3, fault=0.5, after=0.2, longest=30.0, until_out=True)
# What is lost on an open connection is only lost when its time is over: until then TCP sends it again.
LONGER = replace(PACE, fault=LIMITS.response + 0.5)
# What went wrong before anything was sent may always be tried elsewhere, and there was always somewhere else.
NEVER_SENT = {"connect_refused", "connect_timeout", "tls_error"}


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Stage]]:
    """One for each way to find and reach instances, made when it is first needed."""
    running: dict[str, Stage] = {}
    yield running
    for stage in running.values():
        stage.__exit__()


def on_stage(stages: dict[str, Stage], needs: str) -> Stage:
    """The stage; only one runs at a time."""
    needs = needs or STAGES[0]
    for name in [name for name in stages if name != needs]:
        stages.pop(name).__exit__()
    if needs not in stages:
        stages[needs] = Stage(Gateway, LIMITS, needs, RATE, settings="eject: {for: 500ms}").__enter__()
    return stages[needs]


@pytest.mark.parametrize(
    "name", [name for stage in STAGES for name, fault in FAULTS.items() if (fault.needs or STAGES[0]) == stage]
)
def test_a_fault_harms_only_what_it_must(stages: dict[str, Stage], name: str) -> None:
    fault = FAULTS[name]
    if fault.needs == "network":
        services.allowed("network namespaces", network.missing())
    stage = on_stage(stages, fault.needs)
    try:
        outcome = stage.play(fault, LONGER if fault.needs == "network" else PACE)
    except BaseException:
        print(stage.system.server.output()[-6000:])
        # In whatever state it is, it is nothing for the next fault.
        stages.pop(fault.needs or STAGES[0]).__exit__()
        raise
    print(outcome)
    assert outcome.wrong == []
    assert outcome.twice == []
    assert outcome.other_failed == {}
    assert outcome.back is not None
    if fault.out:
        assert outcome.voices == stage.system.voices
    check_failures(name, outcome)
    if name == "blackhole":
        check_connections(stage)


def check_failures(name: str, outcome: Outcome) -> None:
    """Whoever failed was told why, or saw that the answer broke off; and only where it could not be helped."""
    assert outcome.requests > 0
    assert [told for told in outcome.failed | outcome.failed_after if told.startswith("-")] == []
    if name != "all":
        assert [told for told in outcome.failed if told.split(" ")[1] in NEVER_SENT] == []
    if name in ("refuse", "close", "kill", "flap"):
        # What may be sent twice is tried elsewhere when a connection ends, unless its answer has begun.
        lost = {told: n for told, n in outcome.failed_gets.items() if told != "200 cut"}
        assert lost == {}


def check_connections(stage: Stage) -> None:
    """What the access log has of the victim: lost is only what was under way on a connection that was open before.
    A new one is not made, in time for another instance to answer, and that is what the victim was ejected for."""
    records = [json.loads(line) for line in (stage.folder / "access.log").read_text().splitlines()]
    here = f"{stage.victim.address}:{stage.victim.port}"
    lost = [record for record in records if record["reason"] and record["endpoint"] == here]
    assert lost != []
    assert {record["reason"] for record in lost} <= {"response_timeout", "upstream_stalled"}
    not_connected = [record for record in records if (record["cause"] or "").startswith(f"dial tcp {here}: TimeoutError")]
    assert len(not_connected) >= 5 * stage.system.voices
    assert {(record["attempts"], record["status"]) for record in not_connected} == {(2, 200)}
