"""Letting others have their turn in the middle of long work.

Rule: `gevent.sleep(0)` comes back in the same turn of the hub's loop, which looks at sockets
only when such callbacks have taken 5 ms together (gevent, `loop._run_callbacks`). A timer, be
it ever so short, comes back after the sockets were looked at.
"""

from __future__ import annotations

import gevent

_SOON = 1e-9


def breathe() -> None:
    """Have the hub look at sockets and timers, and everybody run who waits for one."""
    gevent.sleep(_SOON)
