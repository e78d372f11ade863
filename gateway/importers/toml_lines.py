"""A TOML document as the tree that the YAML reader makes, so that both are read alike.

Rule: the values are `tomllib`'s. It tells no lines, so those come from a look at the text:
headers and keys that stand at the beginning of a line; anything else has its table's line.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from gateway.config.document import DEPTH, Entry, Leaf, Mapping, Node, Sequence
from gateway.errors import ConfigError, Mistake

_HEADER = re.compile(r"\s*+(\[\[?+)((?:[^\]\"'#]++|\"[^\"]*+\"|'[^']*+')+)\]\]?+\s*+(?:#.*+)?\Z")
_KEY = re.compile(r"\s*+((?:[A-Za-z0-9_.\s-]++|\"[^\"]*+\"|'[^']*+')+)=")
# What stands between the parts, dots and white space, is skipped by the search.
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")
_PLACE = re.compile(r"\(at line ([0-9]+), column ([0-9]+)\)")

Path = tuple[str | int, ...]


def parse(text: str, name: str) -> Mapping:
    """The tree of a document; ConfigError when it is no TOML."""
    try:
        return _mapping(tomllib.loads(text), (), _lines(text), 1)
    except tomllib.TOMLDecodeError as error:
        found = _PLACE.search(str(error))
        line, col = (int(found[1]), int(found[2])) if found else (0, 0)
        told = _PLACE.sub("", str(error)).strip()
        raise ConfigError.found(name, [Mistake(line, col, "", f"is not TOML: {told}")]) from None
    except RecursionError:
        raise ConfigError.found(name, [Mistake(0, 0, "", f"is nested too deep (at most {DEPTH} levels)")]) from None


def _lines(text: str) -> dict[Path, int]:
    """Where tables and keys stand, as far as a look at each line tells."""
    found: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        if header:
            table = _parts(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, number)
                table = (*table, counts[table])
            for depth in range(1, len(table) + 1):
                found.setdefault(table[:depth], number)
            continue
        key = _KEY.match(line)
        if key:
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def _parts(text: str) -> Path:
    return tuple(double or single or bare for double, single, bare in _PART.findall(text))


def _mapping(value: dict[str, Any], path: Path, lines: dict[Path, int], line: int) -> Mapping:
    node = Mapping(line, 1)
    for key, one in value.items():
        at = (*path, key)
        here = lines.get(at, line)
        node.entries[key] = Entry(here, 1, _node(one, at, lines, here))
    return node


def _node(value: Any, path: Path, lines: dict[Path, int], line: int) -> Node:
    if len(path) > DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        return _mapping(value, path, lines, line)
    if isinstance(value, list):
        items = [_node(one, (*path, place), lines, lines.get((*path, place), line)) for place, one in enumerate(value)]
        return Sequence(line, 1, items)
    if isinstance(value, bool):
        return Leaf(line, 1, "true" if value else "false", value)
    if isinstance(value, int | float):
        return Leaf(line, 1, repr(value), value)
    return Leaf(line, 1, str(value), str(value))
