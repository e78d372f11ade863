"""docs/configuration.md holds every key of the schema with its default, and no other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from gateway import errors
from gateway.config import schema
from gateway.config.schema_mistakes import section_at
from tests.unit.config.reading import read

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_.\[\]A-Z]+)` \| (.*?) \| .* \|$", re.MULTILINE)
INHERITED = "as above"
# `match` is one mapping or a list of them, so that it is written without brackets.
BELOW = {"upstreams": ".NAME.", "routes": "[].", "endpoints": "[].", "match": ".", "to": "[]."}


def keys(cls: type[schema.Section], path: tuple[str | int, ...] = (), told: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a section as the page writes it, with its default."""
    for name, field in cls.model_fields.items():
        at = f"{told}{field.alias or name}"
        section = section_at((*path, name))
        plain = inspect.isclass(field.annotation) and section is not None and field.default_factory is None
        if not plain:
            yield at, default(field)
        if section is not None and field.default_factory is None:
            step: tuple[str | int, ...] = (name, 0) if name in BELOW else (name,)
            yield from keys(section, (*path, *step), at + BELOW.get(name, "."))


def default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return INHERITED
    return "required" if field.is_required() else f"`{spelt(field.default)}`"


def spelt(value: Any) -> str:
    """A default in the file's own spelling."""
    match value:
        case None:
            return "null"
        case "":
            return '""'
        case [{}]:
            return "everything"
        case bool():
            return str(value).lower()
        case list():
            return f"[{', '.join(map(spelt, value))}]"
        case _:
            return str(value)


def rows() -> list[tuple[str, str]]:
    found = ROW.findall(PAGE)
    return [row for row in found if row[0].split(".")[0].split("[")[0] in schema.Document.model_fields]


def test_every_key_is_in_the_page_once_with_its_default() -> None:
    expected = {key: value.replace("`everything`", "everything") for key, value in keys(schema.Document)}
    assert len(expected) > 90
    assert dict(rows()) == expected
    assert len(rows()) == len(expected)


def test_every_reason_that_the_page_names_exists() -> None:
    named = set(re.findall(r"\b(?:[45]\d\d|log|log 499) `(\w+)`", PAGE))
    assert len(named) > 10
    assert named <= set(errors.reasons())


def test_every_status_is_that_of_its_reason() -> None:
    reasons = errors.reasons()
    for status, reason in re.findall(r"\b([45]\d\d) `(\w+)`", PAGE):
        assert reasons[reason].status == int(status)


def test_the_example_is_right() -> None:
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    config = read(example[1])
    assert [route.name for route in config.routes] == ["users", "shop"]
    assert config.warnings == ()
