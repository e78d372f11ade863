"""From an importer's draft to a document that `gateway check` accepts.

Rule: the check itself is asked. What it refuses (a host that is none, a pattern that Python
does not know, a route that can never be told from another) is taken out of the draft, and
its words become the note.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from gateway import config
from gateway.errors import ConfigError, Mistake
from gateway.importers import prefixes as paths
from gateway.importers import priorities, yaml_writer
from gateway.importers.draft import Draft, DraftRoute, Note, Rank, Ranked
from gateway.importers.widen import widened
from gateway.model import Match
from gateway.routing import router

# What is under `own_prefix`, which no import changes.
_OWN = re.compile(r"/-(?:/|\Z)")
# Each round takes out all that the check finds; a few more may come to light by that.
ROUNDS = 20
# Putting matches in order compares each with each.
MOST_MATCHES = 10_000

_CLOSED = "closed"
_NOWHERE = {"endpoints": [{"url": "http://127.0.0.1:9", "weight": 0}]}


def finished(draft: Draft, name: str) -> str:
    """The text of our file. ConfigError when nothing could be carried over."""
    # Of two routes for the very same requests the closed one stays, else the first to win. What
    # a redirect lets pass is for another one.
    draft.routes.sort(
        key=lambda route: (not route.lets_pass, not route.closed, min(ranked.rank for ranked in route.matches))
    )
    for route in draft.routes:
        route.name = draft.route_names.free(route.name)
    draft.routes = [part for route in draft.routes for part in _begun(draft, route)]
    if sum(len(route.matches) for route in draft.routes) > MOST_MATCHES:
        raise ConfigError.found(name, [Mistake(0, 0, "", f"has more than {MOST_MATCHES} matches")])
    _tell_apart(draft)
    _believed(draft, name)
    _tell_of_prefixes(draft)
    draft.routes = priorities.by_priority(draft.routes, draft.route_names)
    text = _believed(draft, name)
    if not draft.routes and not draft.upstreams:
        lost = [Mistake(note.line, 1 if note.line else 0, "", note.text) for note in dict.fromkeys(draft.notes)]
        nothing = Mistake(0, 0, "", f"nothing in it could be carried over from {draft.source}")
        raise ConfigError.found(name, [nothing, *lost])
    return text


def _begun(draft: Draft, route: DraftRoute) -> list[DraftRoute]:
    """A route as it goes into the first round."""
    if route.closed:
        return _close(draft, route, route.closed)
    if "respond" in route.settings:
        route.matches += paths.by_bytes(route.matches)
    return [route]


def _close(draft: Draft, route: DraftRoute, why: str) -> list[DraftRoute]:
    """Route the requests to the upstream whose only endpoint takes no request: 503.

    Two routes where the route has prefixes: elsewhere those go by bytes, and a pattern beside
    a prefix would not allow `strip_prefix`, which stays for whoever opens the route.
    """
    nowhere = next((one for one in draft.upstreams.values() if one.settings == _NOWHERE), None)
    if nowhere is None:
        nowhere = draft.upstream(_CLOSED)
        nowhere.settings |= _NOWHERE
        nowhere.notes.append(Note(0, "answers 503 to routes that must not be open, see there"))
    again = route.upstream == nowhere.name
    route.notes.insert(0, Note(route.line, f"closed: {why}{'' if again else _reopened(draft, route)}"))
    route.settings = {key: value for key, value in route.settings.items() if key not in _ENDS}
    route.upstream, route.closed = nowhere.name, why
    beside = [] if again else paths.by_bytes(route.matches)
    if not beside:
        return [route]
    told = f"closed with {route.name}: {draft.source} takes prefixes by bytes; to open {route.name} delete this, too"
    name = draft.route_names.free(route.name)
    other = DraftRoute(name, nowhere.name, beside, {}, [Note(route.line, told)], route.line, why)
    return [route, other]


_ENDS = frozenset({"split", "redirect", "respond", "mirror"})


def _reopened(draft: Draft, route: DraftRoute) -> str:
    """How to open a closed route: by what it led to, as far as that was carried over."""
    if not route.upstreams or not all(name in draft.upstreams for name in route.upstreams):
        return f"; to open it: name an upstream in place of `{_CLOSED}`"
    split = route.settings.get("split")
    if split is None:
        return f"; to open it: upstream: {route.upstream}"
    parts = ", ".join(f"{{upstream: {part['upstream']}, weight: {part['weight']}}}" for part in split)
    return f"; to open it: split: [{parts}]"


def _tell_apart(draft: Draft) -> None:
    """Where there are both `/a` and `/a/`, which are one prefix here, the first is left with
    the path `/a` alone, and wins there: the second did not meet it."""
    slashed: dict[Match, Rank] = {}
    for route in draft.routes:
        for one in route.matches:
            prefix = one.match.prefix
            if prefix is not None and prefix != "/" and prefix.endswith("/") and one.match.regex is None:
                slashed[replace(one.match, prefix=prefix[:-1])] = one.rank
    for route in draft.routes:
        route.matches = [
            # A match that goes before the other one anyway keeps all that it meets.
            _alone(one, slashed[one.match]) if one.match in slashed and not one.rank < slashed[one.match] else one
            for one in route.matches
        ]


def _alone(one: Ranked, slashed: Rank) -> Ranked:
    """The path for a prefix, before the prefix with a slash."""
    before = (*slashed[:-1], slashed[-1] - 1) if slashed else ()
    return Ranked(replace(one.match, prefix=None, path=one.match.prefix), min(one.rank, before))


def _tell_of_prefixes(draft: Draft) -> None:
    """Elsewhere a prefix is one of bytes; here it is one of whole segments."""
    prefixes = {ranked.match.prefix for route in draft.routes for ranked in route.matches} - {None, "/"}
    for slash, told in (
        (False, "prefixes go by whole segments here: what only begins with the same letters ({}x) is not meant"),
        (True, "a prefix without its last slash is meant, too ({})"),
    ):
        meant = sorted(prefix for prefix in prefixes if prefix and prefix.endswith("/") is slash)
        if meant:
            shown = ", ".join(meant[:5]) + (f" and {len(meant) - 5} more" if len(meant) > 5 else "")
            draft.note(0, f"{told.format(meant[0].rstrip('/'))}: {shown}")


def _believed(draft: Draft, name: str) -> str:
    """The text, once nothing is left in the draft that the check refuses."""
    for _ in range(ROUNDS):
        text = yaml_writer.written(draft, name)
        try:
            router.Router(config.loads(str(text).encode(), name, {}).routes)
        except ConfigError as error:
            _take_out(draft, text, error)
            continue
        return str(text)
    raise ConfigError.found(name, [Mistake(0, 0, "", "holds too much that is not understood")])


def _take_out(draft: Draft, text: yaml_writer.Text, error: ConfigError) -> None:
    """Remove whatever the mistakes stand in, with a note for each."""
    gone: dict[yaml_writer.Owner, str] = {}
    for mistake in error.mistakes:
        owner = text.owners[mistake.line - 1] if mistake.line else ()
        if not owner:
            raise error
        gone.setdefault(owner, mistake.message)
    if not gone:
        raise error
    if ("server",) in gone:
        draft.note(0, f"server: {gone[('server',)]}")
        draft.server = {}
    for name in list(draft.upstreams):
        _thin_upstream(draft, name, gone)
    for route in draft.routes:
        mirror = route.settings.get("mirror")
        if mirror is not None and mirror["upstream"] not in draft.upstreams:
            del route.settings["mirror"]
            route.notes.append(Note(route.line, f"nothing is copied: upstream {mirror['upstream']} is left out"))
    lost: list[tuple[DraftRoute, Ranked, str]] = []
    taken = Counter(one.match for route in draft.routes for one in route.matches)
    alone = {match: number == 1 for match, number in taken.items()}
    kept: list[DraftRoute] = []
    for number, route in enumerate(draft.routes):
        bad = {nth: why for nth in range(len(route.matches)) if (why := gone.get(("routes", number, nth)))}
        if route.closed:
            lost += [(route, one, bad[nth]) for nth, one in enumerate(route.matches) if nth in bad and alone[one.match]]
        kept += _thinned(draft, route, bad, gone.get(("routes", number)))
    draft.routes = kept
    for route, one, why in lost:
        _guard_lost(draft, route, one, why)


def _thin_upstream(draft: Draft, name: str, gone: dict[yaml_writer.Owner, str]) -> None:
    upstream = draft.upstreams[name]
    whole = gone.get(("upstreams", name))
    endpoints = upstream.settings.get("endpoints", [])
    bad = {number: why for number in range(len(endpoints)) if (why := gone.get(("upstreams", name, number)))}
    if whole is None and not bad:
        return
    if whole is not None or len(bad) == len(endpoints):
        line = upstream.notes[0].line if upstream.notes else 0
        draft.note(line, f"upstream {name} is left out: {whole or '; '.join(dict.fromkeys(bad.values()))}")
        draft.notes += upstream.notes
        del draft.upstreams[name]
        return
    for number, why in bad.items():
        upstream.notes.append(Note(0, f"endpoint {endpoints[number]['url']} is left out: {why}"))
    upstream.settings["endpoints"] = [one for number, one in enumerate(endpoints) if number not in bad]


def _thinned(draft: Draft, route: DraftRoute, bad: dict[int, str], whole: str | None) -> list[DraftRoute]:
    """A route without the matches that the check refuses, and closed where it refuses the rest
    of it (`whole`); nothing when no match is left."""
    if whole is not None and all(one.match == Match() for one in route.matches):
        # A route for all requests has no line for its match, so this may be said of that.
        everywhere = sum(all(one.match == Match() for one in other.matches) for other in draft.routes)
        bad = bad or ({0: whole} if everywhere > 1 else {})
    if len(bad) == len(route.matches):
        draft.note(route.line, f"route {route.name} is left out: {'; '.join(dict.fromkeys(bad.values()))}")
        draft.notes += route.notes
        return []
    route.notes += [Note(route.line, f"a match is left out: {why}") for why in dict.fromkeys(bad.values())]
    route.matches = [ranked for nth, ranked in enumerate(route.matches) if nth not in bad]
    missing = [name for name in route.upstreams if name not in draft.upstreams]
    if missing or not (route.upstreams or route.answered):
        return _close(draft, route, f"upstream {', '.join(missing)} could not be carried over")
    if whole is not None:
        route.settings = {}
        return _close(draft, route, whole)
    return [route]


def _guard_lost(draft: Draft, route: DraftRoute, one: Ranked, why: str) -> None:
    """A match of a closed route that cannot be expressed: its requests must not reach the next
    best route. A pattern without its look-around takes its place, as that meets more; where
    that is refused, too, all routes that come after it are closed."""
    if _OWN.match(one.match.path or one.match.prefix or ""):
        # The gateway answers there itself, so nothing can reach an upstream.
        return
    wider = widened(one.match.regex) if one.match.regex is not None else None
    if wider is not None and wider != one.match.regex:
        told = f"closed: {why}; this pattern without look-around meets more: {wider}"
        match = Ranked(replace(one.match, regex=wider), one.rank)
        name = draft.route_names.free(route.name)
        draft.routes.insert(0, DraftRoute(name, route.upstream, [match], {}, [Note(route.line, told)], route.line, why))
        return
    place = priorities.extent(replace(one.match, regex=None, path=None, prefix=None))
    for other in list(draft.routes):
        after = (its.match for its in other.matches if not one.rank or not its.rank or its.rank >= one.rank)
        if other.closed or other.lets_pass or all(place.apart(priorities.extent(match)) for match in after):
            continue
        beside = _close(draft, other, f"a guard before it, in line {route.line}, cannot be expressed ({why})")
        draft.routes += beside[1:]
