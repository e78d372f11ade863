"""A mapping of a source document that remembers what was asked of it.

Rule: whoever reads a mapping ends with `rest`, which notes every key that nobody asked for.
That is how nothing is dropped silently: a key that an importer does not know is a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Texts
from types import MappingProxyType

from gateway.config import document
from gateway.config.document import Leaf, Mapping, Node, Sequence
from gateway.errors import ConfigError, Mistake
from gateway.importers import merge_keys
from gateway.importers.draft import Note

_TRUE = frozenset({"true", "yes", "on"})
_FALSE = frozenset({"false", "no", "off"})


def read(data: bytes, name: str) -> Mapping:
    """The mapping at the root of a YAML or JSON document."""
    root, mistakes = document.parse(data)
    if mistakes or root is None:
        raise ConfigError.found(name, mistakes or [Mistake(1, 1, "", "is empty")])
    mistakes = merge_keys.resolved(root)
    if mistakes:
        raise ConfigError.found(name, mistakes)
    if not isinstance(root, Mapping):
        raise ConfigError.found(name, [Mistake(root.line, root.col, "", "must be a mapping")])
    return root


def decoded(data: bytes, name: str) -> str:
    """The text of a document; ConfigError with the line where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError.found(name, [Mistake(line, 1, "", "is not UTF-8")]) from None


class Fields:
    """`told` is what notes call it; they go to `notes`. Keys are found in any case."""

    def __init__(self, node: Mapping, told: str, notes: list[Note], line: int = 0) -> None:
        self.line = line or node.line
        self._entries = node.entries
        self._told = told
        self._notes = notes
        self._keys = {key.lower(): key for key in reversed(node.entries)}
        self._asked: set[str] = set()

    def within(self, notes: list[Note], told: str = "") -> Fields:
        """The same mapping with its notes elsewhere, and perhaps under another name; both
        remember what was asked."""
        other = Fields.__new__(Fields)
        other.line, other._entries, other._told = self.line, self._entries, told or self._told
        other._keys, other._asked, other._notes = self._keys, self._asked, notes
        return other

    def note(self, text: str, key: str = "") -> None:
        self._notes.append(Note(self.line_of(key), f"{self._told}: {text}" if self._told else text))

    def line_of(self, key: str) -> int:
        entry = self._entries.get(self._keys.get(key.lower(), ""))
        return entry.line if entry is not None else self.line

    def take(self, key: str) -> Node | None:
        """What stands at a key; None when it is not there, or null."""
        own = self._keys.get(key.lower())
        if own is None:
            return None
        self._asked.add(own)
        return self.peek(key)

    def peek(self, key: str) -> Node | None:
        """The same, but `rest` still notes the key."""
        own = self._keys.get(key.lower())
        node = self._entries[own].node if own is not None else None
        return None if isinstance(node, Leaf) and node.value is None else node

    def peeked(self, key: str) -> Fields:
        """The mapping at a key, empty if there is none; its notes are dropped, and `rest` still
        notes the key."""
        node = self.peek(key)
        return Fields(node if isinstance(node, Mapping) else Mapping(self.line, 1), "", [])

    def text(self, key: str) -> str | None:
        node = self.take(key)
        if node is None or isinstance(node, Leaf):
            return None if node is None else node.text
        self._odd(key, "text")
        return None

    def number(self, key: str) -> float | None:
        text = self.text(key)
        if text is None:
            return None
        value = document.resolve(text.strip())
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
            return value
        self._odd(key, "a number")
        return None

    def whole(self, key: str) -> int | None:
        value = self.number(key)
        if value is None or value == int(value):
            return None if value is None else int(value)
        self._odd(key, "a whole number")
        return None

    def flag(self, key: str, default: bool) -> bool:
        text = self.text(key)
        if text is None or text.lower() in _TRUE | _FALSE:
            return default if text is None else text.lower() in _TRUE
        self._odd(key, "true or false")
        return default

    def texts(self, key: str) -> list[str]:
        """A list of texts, or one text without the list."""
        node = self.take(key)
        items = [node] if isinstance(node, Leaf) else node.items if isinstance(node, Sequence) else []
        if node is not None and (isinstance(node, Mapping) or not all(isinstance(item, Leaf) for item in items)):
            self._odd(key, "a list of texts")
        return [item.text for item in items if isinstance(item, Leaf)]

    def fields(self, key: str) -> Fields | None:
        node = self.take(key)
        if isinstance(node, Mapping):
            return Fields(node, f"{self._told} {key}".strip(), self._notes, self.line_of(key))
        if node is not None:
            self._odd(key, "a mapping")
        return None

    def each(self, key: str, told: str) -> Iterator[Fields]:
        """The mappings of a list."""
        node = self.take(key)
        if node is not None and not isinstance(node, Sequence):
            self._odd(key, "a list")
        for item in node.items if isinstance(node, Sequence) else ():
            if isinstance(item, Mapping):
                yield Fields(item, told, self._notes)
            else:
                self._notes.append(Note(item.line, f"{told}: must be a mapping"))

    def entries(self, key: str, told: str) -> Iterator[tuple[str, Fields]]:
        """The mappings of a mapping, by their names."""
        node = self.take(key)
        if node is not None and not isinstance(node, Mapping):
            self._odd(key, "a mapping")
        for name, entry in node.entries.items() if isinstance(node, Mapping) else ():
            if isinstance(entry.node, Mapping):
                yield name, Fields(entry.node, f"{told} {name}", self._notes, entry.line)
            else:
                self._notes.append(Note(entry.line, f"{told} {name}: must be a mapping"))

    def names(self) -> list[str]:
        """The keys as they are spelt."""
        return list(self._entries)

    def rest(self, because: Texts[str, str] = MappingProxyType({})) -> None:
        """Note every key that was not asked for; `because` gives the reason for some."""
        for key, entry in self._entries.items():
            if key not in self._asked and not (isinstance(entry.node, Leaf) and entry.node.value is None):
                self._asked.add(key)
                self.note(f"{key} is not carried over{because.get(key.lower(), '')}", key)

    def _odd(self, key: str, wanted: str) -> None:
        self.note(f"{key} is not {wanted}, and left out", key)
