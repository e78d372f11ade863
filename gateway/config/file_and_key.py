"""One configuration of two documents: a local file, and one that a registry holds.

Rule: a registry may say where requests go and nothing else, so that whoever can write a key
there reads no file or environment variable here, runs no code, and opens no listener.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.config.document import Entry, Leaf, Mapping, Node, Sequence, dotted
from gateway.errors import ConfigError, Mistake

SHARED = frozenset({"version", "defaults", "upstreams", "routes"})
_FILES = ("ca", "cert", "key")


def foreign(root: Mapping) -> list[Mistake]:
    """What a document from a registry may not hold."""
    found = [
        Mistake(entry.line, entry.col, key, f"is for the local file (a registry: {', '.join(sorted(SHARED))})")
        for key, entry in root.entries.items()
        if key not in SHARED
    ]
    found += [
        Mistake(leaf.line, leaf.col, dotted(path), "holds ${: nothing is replaced in what a registry holds")
        for path, leaf in _leaves(root)
        if "${" in leaf.text
    ]
    upstreams = root.entries.get("upstreams")
    for name, upstream in _entries(upstreams.node if upstreams is not None else None):
        found += _local_only(("upstreams", name), upstream.node)
    return found


def _local_only(path: tuple[str | int, ...], upstream: Node) -> Iterator[Mistake]:
    for key, entry in _entries(upstream):
        if key == "wsgi":
            yield Mistake(entry.line, entry.col, dotted((*path, key)), "is for the local file: it names code")
        elif key == "tls":
            for part, file in _entries(entry.node):
                if part in _FILES and not (isinstance(file.node, Leaf) and file.node.value is None):
                    told = "is for the local file: it names a file of this machine"
                    yield Mistake(file.node.line, file.node.col, dotted((*path, key, part)), told)


def local_only(root: Mapping, key: str) -> list[Mistake]:
    """What the local file may not hold when a registry's key holds the rest."""
    return [
        Mistake(entry.line, entry.col, name, f"stands in {key}, and not here")
        for name, entry in root.entries.items()
        if name in SHARED and name != "version"
    ]


def union(file: Mapping, key: Mapping) -> Mapping:
    """Both as one tree; the sections are different ones but for `version`."""
    return Mapping(1, 1, {**file.entries, **key.entries}, file.size + key.size)


def told(mistakes: Iterable[Mistake], file: str, key: str) -> ConfigError:
    """The mistakes of both, each with the document in which it stands."""
    ordered = sorted(mistakes, key=lambda one: (_of_key(one), one.line, one.col))
    return ConfigError("\n".join(one.told(key if _of_key(one) else file) for one in ordered), ordered)


def where(mistake: Mistake, file: str, key: str) -> str:
    return mistake.told(key if _of_key(mistake) else file)


def _of_key(mistake: Mistake) -> bool:
    return mistake.key.partition(".")[0].partition("[")[0] in SHARED


def _entries(node: Node | None) -> Iterator[tuple[str, Entry]]:
    if isinstance(node, Mapping):
        yield from node.entries.items()


def _leaves(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
    if isinstance(node, Leaf):
        yield path, node
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            yield from _leaves(item, (*path, index))
    else:
        for name, entry in node.entries.items():
            yield from _leaves(entry.node, (*path, name))
