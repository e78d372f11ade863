"""Nodes as plain data, with `${NAME}` replaced.

Rule: replacing happens after parsing, in values only, once; what comes out is text and
is never read as YAML. Each scalar stays a `str` (its text) that remembers the value which
the core schema gave it, so that `1.10` can still be taken as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as EnvironMapping
from typing import Any

from gateway.config.document import Leaf, Mapping, Node, Sequence, dotted
from gateway.errors import Mistake

# `$${` is a literal `${`; anything else that opens with `${` must be a proper reference.
_REFERENCE = re.compile(r"\$(?P<literal>\$\{)|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?\Z", re.DOTALL)


class Scalar(str):
    """The text of a scalar. `value`: what it stands for. `written`: as it is in the file
    (for messages: what the environment holds may be secret). `replaced`: holds something
    from the environment, so that numbers and booleans have to be read from the text."""

    __slots__ = ("replaced", "value", "written")

    value: bool | int | float | str
    written: str
    replaced: bool

    def __new__(cls, text: str, value: bool | int | float | str, written: str, replaced: bool) -> Scalar:
        self = super().__new__(cls, text)
        self.value = value
        self.written = written
        self.replaced = replaced
        return self


class Replacer:
    """Turns a tree into dicts, lists, Scalars and None; collects what it could not replace."""

    def __init__(self, environ: EnvironMapping[str, str]) -> None:
        self._environ = environ
        self.mistakes: list[Mistake] = []

    def data(self, node: Node, path: tuple[str | int, ...] = ()) -> Any:
        if isinstance(node, Sequence):
            return [self.data(item, (*path, index)) for index, item in enumerate(node.items)]
        if isinstance(node, Mapping):
            return {key: self._entry(node, key, path) for key in node.entries}
        return self._scalar(node, path)

    def _entry(self, node: Mapping, key: str, path: tuple[str | int, ...]) -> Any:
        entry = node.entries[key]
        if "${" in key:
            told = "holds ${ (it is replaced in values only)"
            self.mistakes.append(Mistake(entry.line, entry.col, dotted((*path, key)), told))
        return self.data(entry.node, (*path, key))

    def _scalar(self, leaf: Leaf, path: tuple[str | int, ...]) -> Scalar | None:
        if leaf.value is None:
            return None
        if "${" not in leaf.text:
            return Scalar(leaf.text, leaf.value, leaf.text, False)
        text = _REFERENCE.sub(lambda found: self._reference(found, leaf, path), leaf.text)
        return Scalar(text, text, leaf.text, True)

    def _reference(self, found: re.Match[str], leaf: Leaf, path: tuple[str | int, ...]) -> str:
        if found["literal"]:
            return "${"
        inside = _NAME.match(found["inside"])
        if inside is None or not found["end"]:
            allowed = "${NAME}, ${NAME:-default}; $${ for a literal ${"
            self._note(leaf, path, f"{found[0]} is not a reference ({allowed})")
            return ""
        value = self._environ.get(inside["name"], "")
        default = inside["default"]
        # As in a shell: `:-` also stands in for a variable that is set but empty.
        if value or (default is None and inside["name"] in self._environ):
            return value
        if default is None:
            told = f"environment variable {inside['name']} is not set (set it, or write ${{{inside['name']}:-default}})"
            self._note(leaf, path, told)
            return ""
        return default[2:]

    def _note(self, leaf: Leaf, path: tuple[str | int, ...], message: str) -> None:
        self.mistakes.append(Mistake(leaf.line, leaf.col, dotted(path), message))
