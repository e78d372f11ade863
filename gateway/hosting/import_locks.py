"""Import locks after gevent has patched in the middle of an import, as it does in `gateway.server.settings`.

Rule: nothing but this is done here, and nothing is imported that would have to be patched.
"""

from __future__ import annotations

import importlib._bootstrap
import threading
from typing import Any


def restore() -> None:
    """Give the locks of modules that are being imported back to their owner, this thread.

    gevent writes its own id of the thread into them. The import system compares that with what its own `_thread` module
    says, which gevent has patched, too, unless it is another copy: `ddtrace-run` drops `_thread` from sys.modules
    before anybody else imports it. Each import then ended with "cannot release un-acquired lock".
    """
    system: Any = importlib._bootstrap
    owner, gevents = system._thread.get_ident(), threading.get_ident()
    # Weak references, as the import system keeps them.
    for reference in list(system._module_locks.values()):
        lock = reference()
        if getattr(lock, "owner", None) == gevents:
            lock.owner = owner
