"""What became of closed routes, for the tests of importers."""

from __future__ import annotations

from gateway.commands.wording import told_end
from gateway.routing.router import Router
from tests.imported import Imported


def closings(found: Imported) -> str:
    return "\n".join(line for line in found.comments.splitlines() if "closed: " in line)


def ends(found: Imported) -> dict[str, list[str]]:
    """What becomes of requests for each host, in the order in which matches are tried."""
    hosts: dict[str, list[str]] = {}
    for route, match in Router(found.config.routes).ordered():
        hosts.setdefault(match.host or "*", []).append(told_end(route))
    return hosts
