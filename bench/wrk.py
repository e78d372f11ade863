"""Load by wrk, closed loop: so many connections, each with its next request when the last was answered.

Rule: no figure without right answers. A checked run compares status and body of every
answer; with large ones that would make the load generator the slowest part, so an
unchecked run must have read, to within what was in flight, as many bytes as that many
right answers have.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.answer import HOST
from bench.proc import BenchError

SCRIPT = Path(__file__).parent / "wrk.lua"


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. `body` and `expected` are files."""

    url: str
    method: str = "GET"
    body: Path | None = None
    connections: int = 64
    keep: bool = True

    def command(self, seconds: float, expected: Path | None) -> list[str]:
        """wrk takes whole seconds. It counts an answer that came too late, but not one that never came:
        that is what the constant-rate scenario finds."""
        close = [] if self.keep else ["-H", "Connection: close"]
        return [
            *("wrk", "-t1", f"-c{self.connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"),
            *("-H", f"Host: {HOST}", *close, "-s", str(SCRIPT), self.url, "--"),
            *(self.method, str(self.body or "-"), str(expected or "-")),
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What wrk counted."""

    requests: int
    seconds: float
    bytes: int
    wrong: int
    status: int
    socket: int
    timeouts: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    def judge(self, load: Load, size: int | None) -> None:
        """Raise unless every answer was right; `size` is that of one right answer on the wire."""
        if self.requests == 0:
            raise BenchError("not one answer")
        if bad := self.wrong + self.status + self.socket + self.timeouts:
            raise BenchError(
                f"{bad} of {self.requests} answers were wrong: {self.wrong} by content, {self.status} by status, "
                f"{self.socket} broken connections, {self.timeouts} timeouts"
            )
        if size is None:
            return
        # A head may vary by a few digits; what is in flight at the end was partly read.
        slack = 16 * self.requests
        least, most = self.requests * size - slack, (self.requests + load.connections) * size + slack
        if not least <= self.bytes <= most:
            raise BenchError(
                f"{self.requests} answers of {size} bytes would be {self.requests * size} bytes, not {self.bytes}"
            )


def parse(output: str) -> Outcome:
    """The line that wrk.lua prints at the end."""
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return Outcome(**json.loads(line.removeprefix("RESULT ")))
    raise BenchError(f"wrk told no result:\n{output}")


def run(load: Load, seconds: float, *, size: int | None = None, expected: Path | None = None) -> Outcome:
    """One run, judged. wrk runs where the harness runs: on the load's core."""
    command = ["setpriv", "--pdeathsig", "KILL", *load.command(seconds, expected)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise BenchError(f"wrk failed: {done.stderr or done.stdout}")
    outcome = parse(done.stdout)
    outcome.judge(load, size)
    return outcome
