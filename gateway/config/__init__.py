"""The configuration: one YAML document in, one frozen `model.Config` out.

Rule: all or nothing. A document is read (`document`), filled from the environment
(`scalars`), checked against the schema (`schema`) and between keys (`rules`), and only
when nothing is wrong made into the model (`build`). Every mistake is told at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from gateway.config import advice, build, document, environment, rules, source, verdict
from gateway.config.document import Leaf, Node
from gateway.config.origins import Origins
from gateway.config.scalars import Replacer
from gateway.config.schema import Document
from gateway.config.source import find
from gateway.errors import ConfigError, Mistake
from gateway.model import Config

log = logging.getLogger("gateway.config")

__all__ = ["find", "latest", "load", "loads", "origins"]

# The last good configuration by path. gunicorn's master loads it before it forks, so that
# a worker that starts while the file is broken has what its siblings have.
_good: dict[str, Config] = {}


def latest(environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that `find` finds, or, when it is broken now, the last good one of
    this process, with the mistakes in the log. Raises `ConfigError` when there is none."""
    path = find(environ)
    try:
        return load(path, environ)
    except ConfigError as error:
        if path not in _good:
            raise
        log.error("%s\nThe configuration %s stays in force.", error, _good[path].version)
        return _good[path]


def load(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file (by default the one that `find` finds).

    Raises `ConfigError` with every mistake.
    """
    path = find(environ) if path is None else path
    _good[path] = config = loads(source.read(path), path, environ)
    return config


def origins(path: str) -> Origins:
    """Which line of a file says what; of one that cannot be read, none."""
    try:
        return Origins.of(source.read(path), path)
    except ConfigError:
        return Origins()


def loads(text: bytes, name: str, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a document's bytes; `name` is what messages call it."""
    root, mistakes = document.parse(text)
    if root is None or (isinstance(root, Leaf) and root.value is None):
        raise ConfigError.found(name, mistakes or [Mistake(1, 1, "", "is empty (at least: version: 1)")])
    replacer = Replacer(environ)
    data = replacer.data(root)
    over, wrong = environment.overrides(environ)
    broken = {(mistake.line, mistake.col) for mistake in replacer.mistakes}
    draft, found = _checked(root, data, over)
    mistakes += [*replacer.mistakes, *wrong, *verdict.without_followers(found, broken)]
    if mistakes or draft is None:
        raise ConfigError.found(name, mistakes)
    config = build.config(
        draft.document,
        over,
        version=hashlib.sha256(text).hexdigest()[:12],
        path=name,
        line=lambda index: draft.line(("routes", index)),
    )
    whole = advice.Whole(draft, config, environ)
    warnings = _told(root, (breach for advise in advice.ADVICE for breach in advise(whole)))
    ordered = sorted(warnings, key=lambda mistake: (mistake.line, mistake.col))
    return replace(config, warnings=tuple(warning.told(name) for warning in ordered))


def _checked(root: Node, data: Any, over: environment.Overrides) -> tuple[rules.Draft | None, list[Mistake]]:
    """The document by the schema and the rules. Parts that the schema refuses are left
    out, so that the rules can still be asked about the others."""
    if not isinstance(data, dict):
        return None, [Mistake(root.line, root.col, "", "must be a mapping (version, upstreams, routes …)")]
    parts: set[verdict.Path] = set()
    found: list[Mistake] = []
    try:
        believed = Document.model_validate(data)
    except ValidationError as error:
        for path, mistake in verdict.of_schema(error, root):
            found.append(mistake)
            parts.add(path[:2] if path[0] in ("upstreams", "routes") else path[:1])
        believed = Document.model_validate(_without(data, parts))
    routes = data.get("routes") if ("routes",) not in parts else None
    numbers = range(len(routes)) if isinstance(routes, list) else ()
    draft = rules.Draft(
        root=root,
        data=data,
        document=believed,
        numbers=tuple(number for number in numbers if ("routes", number) not in parts),
        whole=frozenset(Document.model_fields) - {str(part[0]) for part in parts},
        over=over,
    )
    found += _told(root, (breach for rule in rules.RULES for breach in rule(draft)))
    return draft, found


def _without(data: dict[str, Any], parts: set[verdict.Path]) -> dict[str, Any]:
    """The document without some of its sections, upstreams and routes."""
    kept = {key: value for key, value in data.items() if (key,) not in parts} | {"version": 1}
    if isinstance(kept.get("upstreams"), dict):
        kept["upstreams"] = {key: one for key, one in kept["upstreams"].items() if ("upstreams", key) not in parts}
    if isinstance(kept.get("routes"), list):
        kept["routes"] = [one for number, one in enumerate(kept["routes"]) if ("routes", number) not in parts]
    return kept


def _told(root: Node, breaches: Iterable[rules.Breach]) -> list[Mistake]:
    return [verdict.mistake_at(root, breach.path, breach.message, key=breach.key) for breach in breaches]
