"""YAML text as a tree of nodes that know where they stand.

Rule: YAML 1.2's core schema and nothing more. Only the events of PyYAML's parser are
used; which plain scalar is a number, a boolean or null is decided here, because PyYAML
follows YAML 1.1 (`on`, `10:20`, `010`, dates, `<<`). Mappings and lists may be shared by
aliases, but what they unfold to is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.errors import Mistake

LIMIT = 8 * 1024 * 1024
# Deeper than any document of ours by far; Python's own stack ends near 1000.
DEPTH = 64
TOO_DEEP = f"nested too deep (at most {DEPTH} levels)"
# Nodes that aliases may add: "billion laughs" needs millions, an honest file a few hundred.
ALIASED = 100_000

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# YAML 1.2.2 §10.3.2. More digits than a C double can tell apart are text, not a number.
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z")
_OCTAL = re.compile(r"0o[0-7]{1,300}\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,300}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,300}|[0-9]{1,300}(\.[0-9]{0,300})?)([eE][-+]?[0-9]{1,9})?\Z")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)\Z")
_NAN = frozenset({".nan", ".NaN", ".NAN"})

# Nodes that are freed at once.
_FREED = 64


@dataclass(slots=True)
class Leaf:
    """A scalar. `value` is what the core schema makes of it, `text` what was written."""

    line: int
    col: int
    text: str
    value: bool | int | float | str | None


@dataclass(slots=True)
class Sequence:
    line: int
    col: int
    items: list[Node] = field(default_factory=list)
    size: int = 1


@dataclass(slots=True)
class Entry:
    """A key of a mapping and what it holds; line and column are the key's."""

    line: int
    col: int
    node: Node


@dataclass(slots=True)
class Mapping:
    line: int
    col: int
    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 1


Node = Leaf | Sequence | Mapping


class Unreadable(Exception):
    """The text cannot be read on from here; the mistakes found so far are what there is."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake.message)
        self.mistake = mistake


def resolve(text: str) -> bool | int | float | str | None:
    """What a plain scalar stands for by YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text[2:], 8)
    if _HEX.match(text):
        return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    infinite = _INF.match(text)
    if infinite:
        return float(f"{infinite[1]}inf")
    return float("nan") if text in _NAN else text


def parse(data: bytes) -> tuple[Node | None, list[Mistake]]:
    """The tree of the one document in `data`, and the mistakes of form found on the way.

    The tree is None when the text cannot be read to its end or is empty.
    """
    if len(data) > LIMIT:
        return None, [Mistake(1, 1, "", f"is longer than a configuration may be ({LIMIT // 1024 // 1024} MiB)")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        return None, [Mistake(line, column, "", "is not UTF-8")]
    tree = _Tree()
    try:
        root = tree.document(yaml.parse(text, Loader=Loader))
    except Unreadable as error:
        return None, [*tree.mistakes, error.mistake]
    except yaml.YAMLError as error:
        return None, [*tree.mistakes, _syntax(error, text)]
    return root, tree.mistakes


def free(value: object) -> None:
    """Take a tree, or the data of one, apart that is not needed any more. The last reference to tens of thousands of
    nodes takes tens of milliseconds when it goes, in which no other thread can run."""
    if isinstance(value, Mapping):
        for entry in value.entries.values():
            free(entry.node)
    elif isinstance(value, dict):
        for one in value.values():
            free(one)
    else:
        items = value.items if isinstance(value, Sequence) else value
        while isinstance(items, list) and items:
            del items[-_FREED:]


def _syntax(error: yaml.YAMLError, text: str) -> Mistake:
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line = before.count("\n") + 1
        return Mistake(line, len(before.rpartition("\n")[2]) + 1, "", f"is not YAML: {error.reason}")
    mark = getattr(error, "problem_mark", None)
    told = " ".join(part for part in (getattr(error, "context", ""), getattr(error, "problem", "")) if part)
    if mark is None:
        return Mistake(1, 1, "", f"is not YAML: {told or error}")
    if "maximum nesting depth" in told:
        # libyaml has a limit of its own, far above ours, which its scanner meets first.
        return Mistake(mark.line + 1, mark.column + 1, "", TOO_DEEP)
    return Mistake(mark.line + 1, mark.column + 1, "", f"is not YAML: {told}")


class _Tree:
    """Builds nodes from the parser's events."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._anchors: dict[str, Node | None] = {}
        self._aliased = 0

    def document(self, events: Iterator[Any]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _unreadable(event, "several documents in one file (one is allowed)")
                if event.version not in (None, (1, 2)):
                    self._note(event, "", "is read as YAML 1.2 (leave the %YAML line out)")
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, ())
        return root

    def _note(self, event: Any, key: str, message: str) -> None:
        self.mistakes.append(Mistake(event.start_mark.line + 1, event.start_mark.column + 1, key, message))

    def _node(self, event: Any, events: Iterator[Any], path: tuple[str | int, ...]) -> Node:
        if len(path) > DEPTH:
            raise _unreadable(event, TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            self._note(event, dotted(path), f"tag {event.tag} (tags are not allowed)")
        line, col = event.start_mark.line + 1, event.start_mark.column + 1
        # While it is being built, what an anchor names cannot be referred to.
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0]
            node = Leaf(line, col, event.value, resolve(event.value) if plain else event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(Sequence(line, col), events, path)
        else:
            node = self._mapping(Mapping(line, col), events, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self._anchors:
            raise _unreadable(event, f"alias *{event.anchor} has no anchor &{event.anchor} before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise _unreadable(event, f"alias *{event.anchor} stands inside what it names")
        self._aliased += _size(node)
        if self._aliased > ALIASED:
            raise _unreadable(event, f"aliases unfold to more than {ALIASED} nodes")
        return node

    def _sequence(self, node: Sequence, events: Iterator[Any], path: tuple[str | int, ...]) -> Sequence:
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            item = self._node(event, events, (*path, len(node.items)))
            node.items.append(item)
            node.size += _size(item)
        return node

    def _mapping(self, node: Mapping, events: Iterator[Any], path: tuple[str | int, ...]) -> Mapping:
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, path)
            value = self._node(next(events), events, (*path, key))
            first = node.entries.get(key)
            if first is not None:
                where = f"{first.line}:{first.col}"
                self._note(event, dotted((*path, key)), f"given twice (the first is at {where})")
                continue
            node.entries[key] = Entry(event.start_mark.line + 1, event.start_mark.column + 1, value)
            node.size += 1 + _size(value)
        return node

    def _key(self, event: Any, path: tuple[str | int, ...]) -> str:
        """A key is its text, whatever the core schema would make of it."""
        if not isinstance(event, yaml.ScalarEvent):
            raise _unreadable(event, "a key must be a plain or quoted word")
        if event.tag is not None:
            self._note(event, dotted((*path, event.value)), f"tag {event.tag} (tags are not allowed)")
        if event.anchor is not None:
            self._note(event, dotted((*path, event.value)), "anchor on a key (put it on the value)")
        return str(event.value)


def _unreadable(event: Any, message: str) -> Unreadable:
    return Unreadable(Mistake(event.start_mark.line + 1, event.start_mark.column + 1, "", message))


def _size(node: Node) -> int:
    return 1 if isinstance(node, Leaf) else node.size


def dotted(path: tuple[str | int, ...]) -> str:
    """`routes[0].match.host`."""
    told = ""
    for part in path:
        told += f"[{part}]" if isinstance(part, int) else f".{part}"
    return told.removeprefix(".")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: `path` holds those keys on the way that the file has."""

    line: int
    col: int
    path: tuple[str | int, ...]


def locate(root: Node, path: tuple[str | int, ...], *, key: bool = False) -> Place:
    """The place of what `path` leads to (of its key, if so asked), or of the nearest thing
    around it. Parts that the file does not have are passed over: a schema sees one mapping
    where a list is allowed as a list of one."""
    node = root
    place = Place(root.line, root.col, ())
    for part in path:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.entries:
            entry = node.entries[part]
            node = entry.node
            at = entry if key else node
            place = Place(at.line, at.col, (*place.path, part))
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            place = Place(node.line, node.col, (*place.path, part))
    return place
