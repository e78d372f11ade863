"""Light steady traffic through a gateway, for drills in which nobody must notice anything."""

from __future__ import annotations

import http.client
import threading
from collections import Counter, deque
from typing import Self

from tests.gateway_process import GatewayProcess
from tests.services import wait_until

# Requests of a row that are looked at to see who gets them: by chance all of them may miss
# a worker that has not heard of a change yet, but not at the next look, too.
ROW = 16


class Traffic:
    """Two clients with requests one after the other, each on a connection of its own: some 200 a
    second. What came of each is counted: status and Gateway-Error, or the exception."""

    def __init__(self, gateway: GatewayProcess, path: str = "/") -> None:
        self._gateway = gateway
        self._path = path
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]
        self.answers: Counter[tuple[int, str]] = Counter()
        self.row: deque[bytes] = deque(maxlen=ROW)

    def _run(self) -> None:
        while not self._over.wait(0.01):
            try:
                status, reason, body = self._gateway.get(self._path)
            except (OSError, http.client.HTTPException) as error:
                status, reason, body = 0, repr(error), b""
            self.answers[status, reason] += 1
            self.row.append(body)

    def reach(self, *bodies: bytes, within: float = 20.0) -> None:
        """Wait until two rows of requests went to all of these and to nobody else."""
        for _ in range(2):
            self.row.clear()
            wait_until(
                lambda: len(self.row) == ROW and set(self.row) == set(bodies),
                f"{bodies}: {list(self.row)}\n{self._gateway.output()[-3000:]}",
                within,
            )

    def some_more(self, number: int = 100) -> None:
        wanted = self.answers.total() + number
        wait_until(lambda: self.answers.total() >= wanted, "more requests")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
