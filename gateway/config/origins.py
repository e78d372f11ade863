"""Which line of the file says something: for commands that explain what was set where.

Rule: asked with the path of a key, it answers for what is written and for nothing else; a
default that nobody wrote has no line. The model keeps no lines, because nothing on the
request path asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.config.document import Node, locate, parse
from gateway.config.schema_mistakes import Path, mistake_at


class Origins:
    """The places of what a document says. `name`: what the document is called."""

    def __init__(self, root: Node | None = None, name: str = "") -> None:
        self._root = root
        self._name = name

    @classmethod
    def of(cls, text: bytes, name: str) -> Origins:
        return cls(parse(text)[0], name)

    def line(self, path: Path) -> int:
        """The line of a key; 0 when the document does not hold it."""
        if self._root is None:
            return 0
        place = locate(self._root, path, key=True)
        return place.line if place.path == path else 0

    def place(self, path: Path) -> str:
        """`FILE:LINE` of a key; "" when the document does not hold it."""
        line = self.line(path)
        return f"{self._name}:{line}" if line else ""

    def told(self, path: Path, message: str) -> str:
        """A message about a value, with its place as far as the document holds it."""
        return message if self._root is None else mistake_at(self._root, path, message).told(self._name)

    def nearest(self, paths: Iterable[Path]) -> str:
        """The place of the first of these keys that is written; "" for none."""
        return next(filter(None, map(self.place, paths)), "")
