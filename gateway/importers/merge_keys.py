"""YAML merge keys (`<<`), resolved in a document of another gateway.

Rule: our own file has no merge keys, but Traefik and Kong read them (YAML 1.1, yaml.org/type/merge),
and a guard that comes by one must not get lost. A `<<` that names anything but mappings, or
merging that unfolds to too much, is a mistake: the file is refused.
"""

from __future__ import annotations

from gateway.config.document import Entry, Mapping, Node, Sequence
from gateway.errors import Mistake

KEY = "<<"
# Entries that merging may add to one document; a real file adds a few hundred.
MOST_MERGED = 100_000


class _Merge:
    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._added = 0
        # Keyed by id(): an alias is the same node again. The nodes are part of the tree, so the ids stay valid.
        self._done: set[int] = set()

    def node(self, node: Node) -> None:
        """Resolve the merge keys in a node and in everything under it, in place."""
        if id(node) in self._done or self.mistakes:
            return
        self._done.add(id(node))
        if isinstance(node, Sequence):
            for item in node.items:
                self.node(item)
        elif isinstance(node, Mapping):
            for entry in node.entries.values():
                self.node(entry.node)
            merged = node.entries.pop(KEY, None)
            if merged is not None:
                self._merge(node, merged)

    def _merge(self, node: Mapping, merged: Entry) -> None:
        """Add the entries of the named mappings: a key of the mapping's own wins, then the first mapping."""
        sources = merged.node.items if isinstance(merged.node, Sequence) else [merged.node]
        for source in sources:
            if not isinstance(source, Mapping):
                message = f"{KEY} must name a mapping, or a list of mappings"
                self.mistakes.append(Mistake(merged.line, merged.col, KEY, message))
                return
            for key, entry in source.entries.items():
                if key not in node.entries:
                    node.entries[key] = Entry(merged.line, merged.col, entry.node)
                    self._added += 1
            if self._added > MOST_MERGED:
                message = f"merge keys ({KEY}) unfold to more than {MOST_MERGED} entries"
                self.mistakes.append(Mistake(merged.line, merged.col, KEY, message))
                return


def resolved(root: Node) -> list[Mistake]:
    """Resolve every merge key of a document, in place; the mistakes that refuse it."""
    merge = _Merge()
    merge.node(root)
    return merge.mistakes
