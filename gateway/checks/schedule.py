"""When each of many things is due: a heap of instants.

Rule: pure; instants are the caller's clock's. A thing that is taken is not due again before
somebody says when, so that what takes longer than its interval never runs twice at a time.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Schedule(Generic[Thing]):
    __slots__ = ("_due", "_heap", "_number")

    def __init__(self) -> None:
        self._due: dict[Thing, int] = {}
        # An entry counts when its number is the newest of its thing.
        self._heap: list[tuple[float, int, Thing]] = []
        self._number = 0

    def put(self, thing: Thing, due: float) -> None:
        """It is due then, and not when was said before."""
        self._number += 1
        self._due[thing] = self._number
        heapq.heappush(self._heap, (due, self._number, thing))

    def drop(self, thing: Thing) -> None:
        self._due.pop(thing, None)

    def clear(self) -> None:
        self._due.clear()
        self._heap.clear()

    @property
    def next(self) -> float:
        """When the next one is due; infinity for never."""
        heap = self._heap
        while heap and self._due.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else inf

    def take(self, now: float) -> Thing | None:
        """One that is due, the earliest first."""
        if self.next > now:
            return None
        _, _, thing = heapq.heappop(self._heap)
        del self._due[thing]
        return thing
