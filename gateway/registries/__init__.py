"""Clients of registries, for providers of endpoints and for configurations that live there.

Rule: a client asks, and says what came or why nothing did (`RegistryError`). Every question
is bounded in time and bytes. What an answer means is decided by whoever asked.
"""


class RegistryError(Exception):
    """The registry gave no answer that can be used; the text says why, on one line and
    without secrets."""


class RefusedError(RegistryError):
    """The registry is there and says no (HTTP 4xx): asking again soon will not help."""


def one_line(text: object, limit: int = 200) -> str:
    """Foreign text made fit for a log line: printable, on one line, short."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"
