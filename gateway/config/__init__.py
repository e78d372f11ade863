"""The configuration: one YAML document in, one frozen `model.Config` out.

Rule: all or nothing. A document is read (`document`), filled from the environment
(`scalars`), checked against the schema (`schema`) and between keys (`rules`), and only
when nothing is wrong made into the model (`build`). Every mistake is told at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from gateway.config import build, document, environment, file_and_key, rules, schema_mistakes, source
from gateway.config.advice import general
from gateway.config.document import Leaf, Node
from gateway.config.origins import Origins
from gateway.config.scalars import Replacer
from gateway.config.schema import Document
from gateway.config.source import find
from gateway.errors import ConfigError, Mistake
from gateway.model import Config

log = logging.getLogger("gateway.config")

__all__ = ["assemble", "find", "latest", "load", "loads", "local", "origins", "starting", "version_of"]

# The last good configuration by path. gunicorn's master loads it before it forks, so that
# a worker that starts while the file is broken has what its siblings have.
_good: dict[str, Config] = {}

# What a document says that says nothing.
_NOTHING = b"version: 1\n"


def latest(environ: Mapping[str, str] = os.environ) -> Config:
    """What a worker starts with: `starting`, or, when that is broken now, the last good one of
    this process, with the mistakes in the log. Raises `ConfigError` when there is none."""
    path = find(environ)
    try:
        return starting(environ)
    except ConfigError as error:
        if path not in _good:
            raise
        log.error("%s\nThe configuration %s stays in force.", error, _good[path].version)
        return _good[path]


def starting(environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration that `find` finds, as far as it is on this machine: a registry is not
    asked, so that one that is away stops no process. Raises `ConfigError`."""
    where = source.parse(find(environ))
    if where.key is None:
        return load(where.named, environ)
    _good[where.named] = config = local(where, None if where.file is None else source.read(where.file), environ)
    return config


def load(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The whole configuration (by default the one that `find` finds), asked for now.

    Raises `ConfigError` with every mistake.
    """
    where = source.parse(find(environ) if path is None else path)
    text = None if where.file is None else source.read(where.file)
    if where.key is None:
        _good[where.named] = config = assemble(where, text, None, environ)
        return config
    # Not at the top: a client of registries is for those who have one.
    from gateway.config import remote_key

    return assemble(where, text, remote_key.read(where, local(where, text, environ).discovery), environ)


def assemble(
    where: source.Where, text: bytes | None, held: bytes | None, environ: Mapping[str, str] = os.environ
) -> Config:
    """The configuration of the texts of its file and of its key, of those that it has.

    Raises `ConfigError` with every mistake.
    """
    if held is None or where.key is None:
        return loads(text or b"", where.named, environ)
    # Not at the top: a client of registries is for those who have one.
    from gateway.config import remote_key

    # Its own mistakes first: the other document is judged together with it.
    is_here = remote_key.is_here(where.key, local(where, text, environ).discovery)
    key, file = str(where.key), where.file or where.named
    theirs = _mapping(held, key)
    ours = _mapping(text or _NOTHING, file)
    replacer = Replacer(environ)
    foreign = file_and_key.foreign(theirs)
    # Where a reference stands is said already; what becomes of it does not matter.
    data = {**replacer.data(ours), **Replacer({}).data(theirs)}
    broken = {(mistake.line, mistake.col) for mistake in foreign}
    over, _ = environment.overrides(environ)
    draft, found = _checked(file_and_key.union(ours, theirs), data, over)
    try:
        mistakes = [*foreign, *schema_mistakes.without_followers(found, broken)]
        if mistakes or draft is None:
            raise file_and_key.told(mistakes, file, key)
        version = version_of(text, held)
        whole = _made(draft, over, environ, version, where.named)
        return _warned(replace(whole, is_remote=not is_here), lambda warning: file_and_key.where(warning, file, key))
    finally:
        _free(draft, ours, theirs, data)


def version_of(text: bytes | None, held: bytes | None) -> str:
    """The version of a configuration: a hash of its documents."""
    both = (part for part in (text, held) if part is not None)
    return hashlib.sha256(b"\0".join(both)).hexdigest()[:12]


def local(where: source.Where, text: bytes | None, environ: Mapping[str, str] = os.environ) -> Config:
    """What is known before a registry has answered: no routes, and "" for a version."""
    assert where.key is not None, "without a key all of it is local"
    file = where.file or where.named
    if text is not None:
        misplaced = file_and_key.local_only(_mapping(text, file), str(where.key))
        if misplaced:
            raise ConfigError.found(file, misplaced)
    return replace(loads(_NOTHING if text is None else text, file, environ), version="", path=where.named)


def _mapping(text: bytes, name: str) -> document.Mapping:
    """The tree of a document; raises `ConfigError` when it is none."""
    root, mistakes = document.parse(text)
    if root is None or (isinstance(root, Leaf) and root.value is None):
        mistakes = mistakes or [Mistake(1, 1, "", "is empty (at least: version: 1)")]
    elif not isinstance(root, document.Mapping):
        mistakes.append(_no_mapping(root))
    if mistakes:
        raise ConfigError.found(name, mistakes)
    assert isinstance(root, document.Mapping)
    return root


def _no_mapping(root: Node) -> Mistake:
    return Mistake(root.line, root.col, "", "must be a mapping (version, upstreams, routes …)")


def origins(config: Config) -> Origins:
    """Which line says what of routes, upstreams and defaults, as the document is now; where it
    cannot be read any more nothing has a line."""
    where = source.parse(config.path)
    try:
        if where.key is None:
            return Origins.of(source.read(config.path), config.path)
        from gateway.config import remote_key

        return Origins.of(remote_key.read(where, config.discovery), str(where.key))
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
    try:
        mistakes += [*replacer.mistakes, *wrong, *schema_mistakes.without_followers(found, broken)]
        if mistakes or draft is None:
            raise ConfigError.found(name, mistakes)
        version = version_of(text, None)
        return _warned(_made(draft, over, environ, version, name), lambda warning: warning.told(name))
    finally:
        _free(draft, root, data)


def _free(draft: rules.Draft | None, *trees: object) -> None:
    """Give up a document in parts: it may have tens of thousands of endpoints."""
    if draft is not None:
        for upstream in draft.document.upstreams.values():
            document.free(upstream.endpoints)
        document.free(draft.document.routes)
    for tree in trees:
        document.free(tree)


def _made(
    draft: rules.Draft, over: environment.Overrides, environ: Mapping[str, str], version: str, path: str
) -> general.Whole:
    """A document without mistakes, and the model of it."""
    config = build.config(
        draft.document, over, version=version, path=path, line=lambda index: draft.line(("routes", index))
    )
    return general.Whole(draft, config, environ)


def _warned(whole: general.Whole, told: Callable[[Mistake], str]) -> Config:
    """The model with its warnings."""
    warnings = _told(whole.draft.root, (breach for advise in general.ADVICE for breach in advise(whole)))
    ordered = sorted(warnings, key=lambda mistake: (mistake.line, mistake.col))
    return replace(whole.config, warnings=tuple(map(told, ordered)))


def _checked(root: Node, data: Any, over: environment.Overrides) -> tuple[rules.Draft | None, list[Mistake]]:
    """The document by the schema and the rules. Parts that the schema refuses are left
    out, so that the rules can still be asked about the others."""
    if not isinstance(data, dict):
        return None, [_no_mapping(root)]
    parts: set[schema_mistakes.Path] = set()
    found: list[Mistake] = []
    try:
        believed = Document.model_validate(data)
    except ValidationError as error:
        for path, mistake in schema_mistakes.of_schema(error, root):
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


def _without(data: dict[str, Any], parts: set[schema_mistakes.Path]) -> dict[str, Any]:
    """The document without some of its sections, upstreams and routes."""
    kept = {key: value for key, value in data.items() if (key,) not in parts} | {"version": 1}
    if isinstance(kept.get("upstreams"), dict):
        kept["upstreams"] = {key: one for key, one in kept["upstreams"].items() if ("upstreams", key) not in parts}
    if isinstance(kept.get("routes"), list):
        kept["routes"] = [one for number, one in enumerate(kept["routes"]) if ("routes", number) not in parts]
    return kept


def _told(root: Node, breaches: Iterable[rules.Breach]) -> list[Mistake]:
    return [schema_mistakes.mistake_at(root, breach.path, breach.message, key=breach.key) for breach in breaches]
