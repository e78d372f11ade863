"""Clients of registries, for providers of endpoints and for configurations that live there.

Rule: a client asks, and says what came or why nothing did (`RegistryError`). Every question
is bounded in time and bytes. What an answer means is decided by whoever asked.
"""


class RegistryError(Exception):
    """The registry gave no answer that can be used; the text says why, on one line and
    without secrets."""
