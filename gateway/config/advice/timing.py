"""Advice: time limits that do not fit each other, and retries that never happen.

Rule: only what somebody wrote is criticised, at the place where it stands; settings that
routes share are told once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gateway.config.advice.subject import Whole
from gateway.config.rules import Breach, Breaches
from gateway.config.schema_mistakes import Path
from gateway.model import Route

# What load balancers and proxies before us usually wait for an answer (AWS's and nginx's default).
_PATIENCE = 60.0
# nginx keeps idle connections for 75 s, others for less (Apache and Node.js 5 s, gunicorn 2 s).
_USUAL_KEEPALIVE = 75.0
# The worker's own deadline is that much before `graceful`.
_BEFORE_GRACEFUL = 2.0


def branches(whole: Whole) -> Iterator[Route]:
    """Each route as it is for each of its upstreams; nobody waits for mirrors."""
    return (branch for route in whole.config.routes for branch in route.branches)


def _levels(whole: Whole, route: Route) -> Iterator[tuple[Path, Any]]:
    """Where a route's settings may be written, the nearest first."""
    document = whole.draft.document
    yield ("routes", route.index), document.routes[route.index]
    yield ("upstreams", route.upstream), document.upstreams[route.upstream]
    yield ("defaults",), document.defaults


def written(whole: Whole, route: Route, section: str | None, keys: Iterable[str]) -> Path | None:
    """The place of the first of these keys (of a section, or of none) that somebody wrote for a route."""
    levels = list(_levels(whole, route))
    for key in keys:
        for path, level in levels:
            # A route has no pool of its own.
            around = level if section is None else getattr(level, section, None)
            if key in getattr(around, "model_fields_set", ()):
                return (*path, key) if section is None else (*path, section, key)
    return None


def once(found: Iterable[tuple[Path | None, str]]) -> Breaches:
    """Routes share what is written above them: each place is told once, if anybody wrote it."""
    told: dict[Path, str] = {}
    for path, message in found:
        if path is not None:
            told.setdefault(path, message)
    for path, message in told.items():
        yield Breach(path, message, key=True)


def multiplied_timeouts(whole: Whole) -> Breaches:
    """Tries after `timeout` each wait anew."""

    def found() -> Iterator[tuple[Path | None, str]]:
        for route in branches(whole):
            retry, response, total = route.retry, route.timeouts.response, route.timeouts.total
            if retry.attempts < 2 or "timeout" not in retry.when or response is None:
                continue
            waits = f"{retry.attempts} tries of {response:g} s each (timeouts.response)"
            if total is None and retry.attempts * response > _PATIENCE:
                told = f"{waits}: clients may give up before, after {_PATIENCE:g} s or so (set timeouts.total)"
                yield written(whole, route, "retry", ("when", "attempts")), told
            elif total is not None and retry.attempts * response > total:
                told = f"{waits} do not fit into timeouts.total, {total:g} s"
                yield written(whole, route, "retry", ("when", "attempts")), told

    yield from once(found())


def connect_within_total(whole: Whole) -> Breaches:
    """`connect` is there to leave a dead endpoint for another one."""

    def found() -> Iterator[tuple[Path | None, str]]:
        for route in branches(whole):
            connect, total = route.timeouts.connect, route.timeouts.total
            if connect is None or total is None or route.retry.attempts < 2 or "connect" not in route.retry.when:
                continue
            if total <= connect:
                told = f"is over ({total:g} s) before timeouts.connect ({connect:g} s): no other endpoint is ever tried"
                yield written(whole, route, "timeouts", ("total",)), told

    yield from once(found())


def graceful_in_time(whole: Whole) -> Breaches:
    """Only where somebody wrote `graceful`: the defaults let a restart cut long waits."""
    server = whole.config.server
    if "graceful" not in whole.draft.document.server.model_fields_set:
        return
    limits = ((route.timeouts.response, route.timeouts.total) for route in branches(whole))
    longest = max((min(one for one in pair if one is not None) for pair in limits if any(pair)), default=0.0)
    left = max(server.graceful - _BEFORE_GRACEFUL, 0.0)
    if longest > left:
        told = f"a stopping worker breaks off after {left:g} s what may wait {longest:g} s for an answer"
        yield Breach(("server", "graceful"), told)


def idle_for_long(whole: Whole) -> Breaches:
    def found() -> Iterator[tuple[Path | None, str]]:
        for route in branches(whole):
            idle = whole.config.upstreams[route.upstream].pool.idle_timeout
            if idle is None or idle >= _USUAL_KEEPALIVE:
                told = f"most servers close idle connections after {_USUAL_KEEPALIVE:g} s or sooner: ours will be stale"
                yield written(whole, route, "pool", ("idle_timeout",)), told

    yield from once(found())


_OF_RETRIES = ("when", "statuses", "methods", "budget", "buffer", "backoff")


def retries_without_tries(whole: Whole) -> Breaches:
    # What is written for several upstreams may be of use to another one.
    useful = {
        (*path, "retry", key)
        for route in branches(whole)
        if route.retry.attempts > 1
        for path, level in _levels(whole, route)
        for key in level.retry.model_fields_set
    }

    def found() -> Iterator[tuple[Path | None, str]]:
        for route in branches(whole):
            if route.retry.attempts == 1:
                place = _written_beside(whole, route)
                yield None if place in useful else place, "has no effect: retry.attempts is 1"

    yield from once(found())


def _written_beside(whole: Whole, route: Route) -> Path | None:
    """What is written about retries at the level that switches them off, or nearer."""
    for path, level in _levels(whole, route):
        given = level.retry.model_fields_set
        for key in _OF_RETRIES:
            # What is hedged comes out of the budget, too.
            if key in given and not (key == "budget" and route.retry.hedge):
                return (*path, "retry", key)
        if "attempts" in given:
            return None
    return None
