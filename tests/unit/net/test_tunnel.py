"""The byte pump, without sockets."""

from __future__ import annotations

from gateway.net.tunnel import Pump


class NeverWaits:
    """Gives each piece at once, as the stream of a flood does, then the end."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces
        self.eager = True
        # What `eager` was at each read.
        self.seen: list[bool] = []
        self.taken = 0

    def recv(self, size: int, timeout: float | None) -> bytes:
        self.seen.append(self.eager)
        self.eager = True
        if not self._left:
            return b""
        self._left -= 1
        return b"x" * size

    def send(self, data: bytes, timeout: float | None) -> None:
        self.taken += len(data)

    def shutdown_write(self) -> None:
        pass


def test_a_flood_lets_others_run_in_each_direction() -> None:
    for pieces in ((100, 0), (0, 100)):
        client, upstream = map(NeverWaits, pieces)
        pump = Pump(client, upstream, None)  # type: ignore[arg-type]
        pump.run(b"", b"")
        assert (pump.sent, pump.received) == (upstream.taken, client.taken)
        flood = client if pieces[0] else upstream
        # A megabyte at most in between.
        assert all(False in flood.seen[start : start + 16] for start in range(100 - 16))
