"""Entry points of Traefik are ports, and the gateway does not distinguish ports.

Rule: a redirect to https precedes the routers that plain http never reached in Traefik. An
internal service (`api@internal`) with an entry point of its own is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.importers.draft import DraftRoute, Note, Rank, Ranked
from gateway.model import Match


@dataclass(slots=True)
class Router:
    """A route and the entry points of its router (empty: all). `secure`: the router has `tls`, so it
    never gets plain http. `internal`: its service is Traefik's own, such as `api@internal`."""

    route: DraftRoute
    entries: frozenset[str]
    secure: bool
    internal: bool

    @property
    def rank(self) -> Rank:
        return self.route.matches[0].rank

    def move(self, rank: Rank) -> None:
        """Give the route another place in the order."""
        self.route.matches = [Ranked(one.match, rank) for one in self.route.matches]

    def apart(self, other: Router) -> bool:
        """Whether no request comes to both, as they share no entry point."""
        return bool(self.entries) and bool(other.entries) and self.entries.isdisjoint(other.entries)

    def never_plain(self, other: Router) -> bool:
        """Whether plain http that comes to this router does not come to the other one."""
        return self.apart(other) or (other.secure and not self.secure)


def placed(redirects: list[Router], others: list[Router], beyond: list[Router], notes: list[Note]) -> list[DraftRoute]:
    """All routes of a document, redirects first. `beyond`: the routers of redirects, for what
    those let pass; `notes`: of the document."""
    for redirect in redirects:
        if redirect.route.settings["redirect"]["scheme"] == "https":
            _in_front(redirect, others)
    routes = [one.route for one in redirects]
    for router in others:
        strangers = [one for one in (*others, *redirects) if one is not router]
        if router.internal and strangers and all(router.apart(one) for one in strangers):
            message = f"router {router.route.name}: left out: a page of Traefik's own, on an entry point of its own"
            notes.append(Note(router.route.line, message))
        else:
            routes.append(router.route)
    return routes + _beyond(beyond, others, {one.match for one in _matches(others)}, notes)


def _in_front(redirect: Router, others: list[Router]) -> None:
    """Put a redirect to https before the routers that plain http never reached. A router that
    plain http did reach before the redirect goes along, unless a router for https wins over it."""
    secure = [other for other in others if redirect.never_plain(other) and other.rank < redirect.rank]
    if not secure:
        return
    front = min(other.rank for other in secure)[0]
    for plain in others:
        if plain in secure or not front <= plain.rank[0] or plain.rank > redirect.rank:
            continue
        if all(plain.apart(other) for other in secure if other.rank < plain.rank):
            plain.move((front, -1, *plain.rank))
        else:
            message = f"router {plain.route.name} is behind it: plain http is redirected, too"
            redirect.route.notes.append(Note(redirect.route.line, message))
    redirect.move((front, 0))


def _beyond(beyond: list[Router], others: list[Router], taken: set[Match], notes: list[Note]) -> list[DraftRoute]:
    """Mostly the twin of a router that redirects is there for those who come by https: it has
    the same rule, or `tls`, or an entry point of its own."""
    routes: list[DraftRoute] = []
    for router in beyond:
        route = router.route
        if any(one.match in taken for one in route.matches):
            notes += route.notes
        elif any(map(router.never_plain, others)):
            message = f"router {route.name}: what comes by https is left to the routers for https"
            notes += [*route.notes, Note(route.line, message)]
        else:
            routes.append(route)
            taken |= {one.match for one in route.matches}
    return routes


def _matches(routers: list[Router]) -> list[Ranked]:
    return [one for router in routers for one in router.route.matches]
