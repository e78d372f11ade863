"""A document without mistakes, with everything that an advice may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.config.rules import Draft
from gateway.model import Config


@dataclass(frozen=True, slots=True)
class Whole:
    """The document as it was written, what became of it, and the environment."""

    draft: Draft
    config: Config
    environ: Mapping[str, str]
    # A registry on another machine holds the upstreams.
    is_remote: bool = False
