"""What goes wrong, one thing at a time, and how it is put right again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.stage import Stage

Step = Callable[["Stage"], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """`begin` and `end` it. `needs`: how a system finds its instances, or reaches them. `every`: what is done each
    second as long as it lasts. `out`: whether the gateway has to take the instance out for that."""

    name: str
    told: str
    begin: Step
    end: Step
    needs: str = ""
    every: Callable[[Stage, int], None] | None = None
    out: bool = True


def _order(order: str) -> Step:
    return lambda stage: stage.victim.order(order)


def _instance(name: str, told: str, order: str = "", needs: str = "", out: bool = True) -> Fault:
    """One that the instance itself does when told."""
    return Fault(name, told, _order(order or name), _order("well"), needs, out=out)


def _flap(stage: Stage, second: int) -> None:
    stage.victim.order("well" if second % 2 else "refuse")


def _kill_all(stage: Stage) -> None:
    for instance in stage.main:
        instance.kill()


def _start_all(stage: Stage) -> None:
    for instance in stage.main:
        instance.start()
    for instance in stage.main:
        instance.wait()


FAULTS = {
    fault.name: fault
    for fault in (
        _instance("refuse", "connections are refused"),
        _instance("close", "connections are accepted and closed"),
        _instance("hang", "no answer"),
        _instance("hang_in_body", "answers stop in their body", out=False),
        Fault(
            "stop", "SIGSTOP, later SIGCONT",
            lambda stage: stage.victim.send(signal.SIGSTOP),
            lambda stage: stage.victim.send(signal.SIGCONT),
        ),
        Fault("kill", "SIGKILL, later started again", lambda stage: stage.victim.kill(), lambda stage: stage.victim.up()),
        _instance("reset_in_head", "reset after 20 bytes, in the answer's head"),
        _instance("reset_in_body", "reset after 400 bytes, in the answer's body", out=False),
        _instance("garbage", "what comes is no HTTP"),
        _instance("slow", "10 × latency", "slow 10", out=False),
        _instance("errors", "30 % of the answers are 500", "errors 0.3", out=False),
        _instance("queue", "the queue of connections is full"),
        Fault(
            "blackhole", "packets go nowhere",
            lambda stage: stage.network.vanish(stage.victim.address),
            lambda stage: stage.network.appear(stage.victim.address),
            needs="network",
        ),
        _instance("handshake", "a TLS handshake takes 3 s", "handshake 3", needs="tls"),
        Fault("flap", "refuses for a second, is well for a second", _order("refuse"), _order("well"), every=_flap),
        Fault("dns", "DNS is gone", lambda stage: stage.dns.down(), lambda stage: stage.dns_up(), needs="dns", out=False),
        Fault("consul", "Consul is gone", lambda stage: stage.consul.kill(), lambda stage: stage.consul.up(), needs="consul", out=False),
        Fault("all", "all instances are killed, later started again", _kill_all, _start_all, out=False),
    )
}  # fmt: skip
