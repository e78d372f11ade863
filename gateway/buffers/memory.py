"""How much of bodies one worker holds in memory.

Rule: bytes are taken here before they are held, and given back exactly once, however the exchange ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import inf

from gateway.buffers import spool as files
from gateway.buffers.spool import Spool
from gateway.model import Buffering


class Buffers:
    """The budget of one worker. `most`: bytes (`server.limits.buffers`); 0: no limit.

    `held`: bytes taken at this moment. `counts`: bodies by what became of them, in the words of metrics:
    `request_held` and `answer_held` were held (in memory or in files), `request_streamed` and `answer_streamed` were
    not, or not to their end, as there was no room.
    """

    __slots__ = ("_most", "_spools", "counts", "held")

    def __init__(self, most: int) -> None:
        self._most = most or inf
        self.held = 0
        self.counts: Counter[str] = Counter(request_held=0, answer_held=0, request_streamed=0, answer_streamed=0)
        # By folder.
        self._spools: dict[str, Spool] = {}

    def take(self, size: int) -> bool:
        """Take so many bytes; False when they do not fit."""
        if self.held + size > self._most:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        """So many of the bytes that were taken are held no more."""
        self.held -= size

    @property
    def spooled(self) -> int:
        """Bytes in temporary files at this moment."""
        return sum(spool.held for spool in self._spools.values())

    def clean(self, settings: Iterable[Buffering]) -> None:
        """Remove what processes that were killed left in the folders of these settings. Blocks: for the start."""
        for folder in {one.spool for one in settings if one.spool is not None}:
            files.clean(folder)

    def spool(self, buffering: Buffering) -> Spool | None:
        """Where the temporary files of an upstream are; None: it has none."""
        if buffering.spool is None or not buffering.spool_max:
            return None
        found = self._spools.get(buffering.spool)
        if found is None:
            found = self._spools[buffering.spool] = Spool(buffering.spool, buffering.spool_max)
        # A reload may have changed it.
        found.limit = buffering.spool_max
        return found
