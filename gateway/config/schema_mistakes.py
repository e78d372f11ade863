"""What pydantic found, in our words and with places in the file.

Rule: `FILE:LINE:COL: path.to.key: what is wrong (what is allowed)`, one mistake for one
place and cause. What follows from a mistake told already is not told.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gateway.config.document import Node, dotted, locate
from gateway.config.schema import Document, Section
from gateway.errors import Mistake

Path = tuple[str | int, ...]


def mistake_at(root: Node, path: Path, message: str, *, key: bool = False, missing: bool = False) -> Mistake:
    """A mistake at what `path` leads to; `missing`: its last part is what is not there."""
    place = locate(root, path, key=key)
    told = (*place.path, path[-1]) if missing else place.path
    return Mistake(place.line, place.col, dotted(told), message)


def of_schema(error: ValidationError, root: Node) -> list[tuple[Path, Mistake]]:
    """The mistakes in a pydantic error, each with the path that pydantic gave."""
    found = error.errors(include_url=False, include_input=False)
    return [(one["loc"], _mistake(one, root)) for one in found]


def _mistake(one: Any, root: Node) -> Mistake:
    path: Path = one["loc"]
    match one["type"]:
        case "missing":
            return mistake_at(root, path, "is required", missing=True)
        case "extra_forbidden":
            return mistake_at(root, path, _unknown(path), key=True)
        case "mistake" if path[-1] == "[key]":
            return mistake_at(root, path[:-1], f"the key {one['ctx']['told']}", key=True)
        case "mistake":
            return mistake_at(root, path, one["ctx"]["told"])
        case "dict_type" | "model_type" | "model_attributes_type":
            return mistake_at(root, path, "must be a mapping")
        case "list_type":
            return mistake_at(root, path, "must be a list")
        case _:
            return mistake_at(root, path, one["msg"])


def _unknown(path: Path) -> str:
    section = section_at(path[:-1])
    assert section is not None, "only sections forbid keys"
    allowed = section.keys()
    if path[-1] in section.later:
        return f"is not in this version (allowed: {', '.join(allowed)})"
    near = difflib.get_close_matches(str(path[-1]), allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown key{hint} (allowed: {', '.join(allowed)})"


def section_at(path: Path) -> type[Section] | None:
    """The section of the schema that a path leads to."""
    section: type[Section] | None = Document
    parts = iter(path)
    for part in parts:
        found = None if section is None else _field(section, str(part))
        if found is None:
            return None
        annotation = found.annotation
        section = _section_in(annotation)
        if _is_container(annotation):
            next(parts, None)
    return section


def _field(section: type[Section], key: str) -> FieldInfo | None:
    """The field of a key of the file, which may have another name in Python."""
    named = (field for field in section.model_fields.values() if field.alias == key)
    return section.model_fields.get(key) or next(named, None)


def _is_container(annotation: Any) -> bool:
    return any(get_origin(one) in (list, dict) for one in (annotation, *get_args(annotation)))


def _section_in(annotation: Any) -> type[Section] | None:
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def without_followers(mistakes: Iterable[Mistake], broken: set[tuple[int, int]]) -> list[Mistake]:
    """Leave out what is said of places that are known to be broken."""
    return [mistake for mistake in mistakes if (mistake.line, mistake.col) not in broken]
