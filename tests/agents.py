"""The environments of APM agents that `scripts/agents` makes: one each, with the agent beside what the tests run on."""

from __future__ import annotations

from tests.services import ROOT, allowed

PLACE = ROOT / ".cache" / "agents"


def require(name: str) -> str:
    """The folder with the programs of an agent's environment, or the calling test is skipped loudly: no machine has to
    be able to install them all."""
    place = PLACE / name
    allowed(name, "" if (place / "installed").exists() else "run scripts/agents; it says what cannot be installed")
    return str(place / "bin")
