"""Advice: settings for worse days that do less than they seem to, or more.

Rule: as in `timing`: only what somebody wrote is criticised, at the place where it stands;
settings that upstreams share are told once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.config.advice.subject import Whole
from gateway.config.advice.timing import branches, once, written
from gateway.config.rules import Breaches
from gateway.config.schema_mistakes import Path
from gateway.model import Upstream

# Where something may stand below an upstream or `defaults`: a section, or a key of it.
_Keys = tuple[str, ...]


def place(whole: Whole, upstream: Upstream, *keys: _Keys) -> Path | None:
    """Where the first of these that is written stands, the nearest level first."""
    document = whole.draft.document
    levels: tuple[tuple[Path, Any], ...] = (
        (("upstreams", upstream.name), document.upstreams[upstream.name]),
        (("defaults",), document.defaults),
    )
    for path, level in levels:
        for some in keys:
            if _stands(level, some):
                return (*path, *some)
    return None


def _stands(level: Any, keys: _Keys) -> bool:
    for key in keys:
        if key not in getattr(level, "model_fields_set", ()):
            return False
        level = getattr(level, key)
    return True


def _upstreams(whole: Whole) -> Iterator[Upstream]:
    return iter(whole.config.upstreams.values())


def forgotten_cookies(whole: Whole) -> Breaches:
    told = "has no secret: its cookies are worth nothing after a restart, nor to other gateways"
    yield from once(
        (place(whole, one, ("balance", "sticky")), told)
        for one in _upstreams(whole)
        if one.balance.policy == "sticky" and not one.balance.secret
    )


def shared_cookies(whole: Whole) -> Breaches:
    """A client has one cookie of a name: the endpoint of one upstream in it says nothing to another."""
    hosts: dict[str, set[str | None]] = {}
    for route in whole.config.routes:
        for branch in route.branches:
            hosts.setdefault(branch.upstream, set()).update(match.host for match in route.matches)
    # The first upstream with a cookie of that name for a host (None: any host), or for whichever.
    first: dict[tuple[str, str | None], str] = {}
    anywhere: dict[str, str] = {}

    def found() -> Iterator[tuple[Path | None, str]]:
        for one in _upstreams(whole):
            cookie, mine = one.balance.name, hosts.get(one.name, set())
            if one.balance.policy != "sticky" or not mine:
                continue
            others = [first.get((cookie, host)) for host in (*mine, None)]
            other = anywhere.get(cookie) if None in mine else next(filter(None, others), None)
            if other is not None:
                told = f"upstream {other} sets the cookie {cookie}, too: each takes clients from the other's endpoints"
                yield place(whole, one, ("balance", "sticky")), told
            anywhere.setdefault(cookie, one.name)
            for host in mine:
                first.setdefault((cookie, host), one.name)

    yield from once(found())


def checks_that_overlap(whole: Whole) -> Breaches:
    def found() -> Iterator[tuple[Path | None, str]]:
        for one in _upstreams(whole):
            check = one.health
            if check is not None and check.timeout >= check.interval:
                told = f"is not shorter than health.interval ({check.timeout:g} s, {check.interval:g} s)"
                # It is told of the one that was written; both mean the same.
                yield place(whole, one, ("health", "timeout"), ("health", "interval")), f"timeout {told}"

    yield from once(found())


def opened_by_one(whole: Whole) -> Breaches:
    def found() -> Iterator[tuple[Path | None, str]]:
        for one in _upstreams(whole):
            breaker = one.breaker
            if breaker is not None and breaker.error_rate * breaker.min_requests <= 1:
                told = f"a single failure among {breaker.min_requests} requests closes the upstream to everybody"
                yield place(whole, one, ("breaker", "min_requests"), ("breaker", "error_rate"), ("breaker",)), told

    yield from once(found())


def ejected_to_the_last(whole: Whole) -> Breaches:
    told = "all requests may end up on the last endpoint that is left"
    yield from once(
        (place(whole, one, ("eject", "max_ejected")), told)
        for one in _upstreams(whole)
        if one.eject is not None and one.eject.max_ejected == 1.0
    )


def queue_without_limit(whole: Whole) -> Breaches:
    told = "does nothing: without concurrency.limit nobody waits"
    for one in _upstreams(whole):
        if not one.concurrency.limit:
            # What stands in defaults may be for others.
            at = place(whole, one, ("concurrency", "queue"), ("concurrency", "queue_timeout"))
            if at is not None and at[0] == "upstreams":
                yield from once([(at, told)])


def deadline_unknown(whole: Whole) -> Breaches:
    told = "tells nothing: neither timeouts.response nor timeouts.total is set"
    yield from once(
        (written(whole, route, None, ("deadline_header",)), told)
        for route in branches(whole)
        if route.deadline_header is not None and route.timeouts.response is None and route.timeouts.total is None
    )


def hedged_once(whole: Whole) -> Breaches:
    told = "does nothing: retry.attempts is 1"
    yield from once(
        (written(whole, route, "retry", ("hedge",)), told)
        for route in branches(whole)
        if route.retry.hedge and route.retry.attempts == 1
    )
