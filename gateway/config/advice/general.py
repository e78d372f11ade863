"""What is legal but unwise.

Rule: a warning never stops anything, so that each names a real loss: a request that finds
no route, a name that is not verified as meant, a write that may happen twice, a line that
does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.config.advice import exposure, resilience, shadows, timing
from gateway.config.advice.subject import Whole
from gateway.config.rules import Breach, Breaches, Draft, endpoint_paths, match_paths
from gateway.config.schema import Balance, Retry
from gateway.config.schema_mistakes import Path
from gateway.config.urls import is_address
from gateway.model import Route

__all__ = ["ADVICE", "Whole"]


def head_beside_get(whole: Whole) -> Breaches:
    for path, route in whole.draft.routes():
        for at, match in match_paths(path, route):
            if "GET" in match.methods and "HEAD" not in match.methods:
                yield Breach((*at, "methods"), "has GET without HEAD: a HEAD finds no route here")


def dropped_headers(whole: Whole) -> Breaches:
    told = "header names with _ are dropped"
    for path, level in (("defaults",), whole.draft.document.defaults), *whole.draft.upstreams():
        balance = getattr(level, "balance", None)
        if isinstance(balance, Balance) and balance.hash is not None and _is_dropped(balance.hash.by):
            yield Breach((*path, "balance", "hash", "by"), f"no request has it: {told}")
    for path, route in whole.draft.routes():
        for at, match in match_paths(path, route):
            for name in match.headers:
                if "_" in name:
                    yield Breach((*at, "headers"), f"{name} never matches: {told}")
            for name in () if match.excluded is None else match.excluded.headers:
                if "_" in name:
                    yield Breach((*at, "not", "headers"), f"{name} excludes nothing: {told}")
        if route.split is not None and route.split.by is not None and _is_dropped(route.split.by):
            yield Breach((*path, "split", "by"), f"no request has it: {told}")


def _is_dropped(by: tuple[str, str]) -> bool:
    return by[0] == "header" and "_" in by[1]


def _everything_sent(whole: Whole) -> Iterator[Route]:
    """Each route as it is for each upstream that gets its requests or copies of them."""
    for route in whole.config.routes:
        yield from route.branches
        if route.mirror is not None:
            yield route.mirror.route


def preserved_host_over_tls(whole: Whole) -> Breaches:
    preserving = {one.upstream for one in _everything_sent(whole) if one.host == "preserve"}
    for path, upstream in whole.draft.upstreams():
        if path[1] not in preserving:
            continue
        for at, endpoint in endpoint_paths(path, upstream):
            if endpoint.url.scheme == "https" and not is_address(endpoint.url.host):
                told = f"gets the client's Host, not {endpoint.url.host} (host: upstream if it serves by name)"
                yield Breach(at, told)


def repeated_writes(whole: Whole) -> Breaches:
    for path, retry in _retries(whole.draft):
        if "methods" not in retry.model_fields_set:
            continue
        for number, method in enumerate(retry.methods):
            if method in ("POST", "PATCH"):
                yield Breach((*path, "retry", "methods", number), f"{method} may be carried out twice")


def _retries(draft: Draft) -> Iterator[tuple[Path, Retry]]:
    yield ("defaults",), draft.document.defaults.retry
    for path, upstream in draft.upstreams():
        yield path, upstream.retry
    for path, route in draft.routes():
        yield path, route.retry


def unused_upstreams(whole: Whole) -> Breaches:
    used = {one.upstream for one in _everything_sent(whole)}
    for path, _ in whole.draft.upstreams():
        if path[1] not in used:
            yield Breach(path, "no route leads to this upstream", key=True)


def untyped_bodies(whole: Whole) -> Breaches:
    for path, route in whole.draft.routes():
        respond = route.respond
        if respond is not None and respond.body and all(name.lower() != "content-type" for name in respond.headers):
            told = "has no Content-Type: clients guess what it is (respond.headers)"
            yield Breach((*path, "respond", "body"), told)


def trusted_router(whole: Whole) -> Breaches:
    if whole.environ.get("DYNO") and not whole.config.server.trusted_proxies:
        told = "DYNO is set and no proxy is trusted: every client looks like the host's router (private)"
        yield Breach(("server", "trusted_proxies"), told)


def drain_in_time(whole: Whole) -> Breaches:
    server = whole.config.server
    if server.drain and server.drain >= server.graceful:
        yield Breach(("server", "drain"), "is not shorter than graceful: nothing is left to finish requests in")


def trusted_everybody(whole: Whole) -> Breaches:
    for number, written in enumerate(whole.config.server.trusted_proxies):
        if written in ("0.0.0.0/0", "::/0"):
            told = f"{written} is everybody: any client may say who it is"
            yield Breach(("server", "trusted_proxies", number), told)


ADVICE: tuple[Callable[[Whole], Breaches], ...] = (
    head_beside_get,
    dropped_headers,
    preserved_host_over_tls,
    repeated_writes,
    unused_upstreams,
    untyped_bodies,
    trusted_router,
    trusted_everybody,
    drain_in_time,
    shadows.shadowed_matches,
    shadows.impossible_matches,
    shadows.refused_as_ambiguous,
    shadows.useless_strip,
    shadows.useless_redirect,
    timing.multiplied_timeouts,
    timing.connect_within_total,
    timing.graceful_in_time,
    timing.idle_for_long,
    timing.retries_without_tries,
    resilience.forgotten_cookies,
    resilience.shared_cookies,
    resilience.checks_that_overlap,
    resilience.opened_by_one,
    resilience.ejected_to_the_last,
    resilience.queue_without_limit,
    resilience.deadline_unknown,
    resilience.hedged_once,
    exposure.short_token,
    exposure.short_secrets,
    exposure.unverified_upstreams,
    exposure.secrets_in_clear,
    exposure.foreign_loopback,
    exposure.unverified_consul,
)
