"""What a check asks, what an answer is worth, and how many of them make a verdict.

Rule: pure. The first check of an endpoint decides alone, as in HAProxy and Envoy: a newcomer
that does not serve yet is found out at once. From then on so many in a row change a verdict.
"""

from __future__ import annotations

from gateway.model import Endpoint, HealthCheck


def question(check: HealthCheck, endpoint: Endpoint) -> bytes | None:
    """The request of a check; None when a connection is enough. The path is sent as it is
    configured, the endpoint's own base path is for traffic."""
    if check.tcp:
        return None
    host = check.host.encode("latin-1") if check.host is not None else endpoint.authority
    lines = [b"GET %b HTTP/1.1" % check.path, b"Host: %b" % (host or endpoint.address.encode("latin-1"))]
    if all(name.lower() != b"user-agent" for name, _ in check.headers):
        lines.append(b"User-Agent: wsgi-gateway")
    lines += [b"%b: %b" % field for field in check.headers]
    return b"\r\n".join((*lines, b"Connection: close", b"", b""))


def fault(check: HealthCheck, status: int) -> str:
    """What is wrong with an answer; "" when it is good."""
    if check.tcp or status in check.statuses:
        return ""
    return f"GET {check.path.decode('latin-1')} was answered {status}"


class Tally:
    """The checks of one endpoint. `healthy`: the verdict, None before the first check. `row`:
    how many checks in a row have spoken against it."""

    __slots__ = ("healthy", "row")

    def __init__(self, healthy: bool | None = None) -> None:
        self.healthy = healthy
        self.row = 0

    def add(self, check: HealthCheck, fault: str) -> str:
        """One more check, `fault` being what was wrong. Why the verdict is another one now; ""
        when it is not."""
        good = not fault
        if good is self.healthy:
            self.row = 0
            return ""
        self.row += 1
        first = self.healthy is None
        if self.row < (check.healthy if good else check.unhealthy) and not first:
            return ""
        row, self.healthy, self.row = self.row, good, 0
        if good:
            return "the first check was good" if first else f"{_checks(row)} good"
        return f"the first check failed: {fault}" if first else f"{_checks(row)} failed, the last: {fault}"


def _checks(row: int) -> str:
    return "1 check" if row == 1 else f"{row} checks in a row"
