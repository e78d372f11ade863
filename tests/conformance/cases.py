"""`@case("16")`: ties a test to a case of the conformance list; the same label may name a limit of the stock worker."""

from __future__ import annotations

import pytest


def case(label: str) -> pytest.MarkDecorator:
    return pytest.mark.case(label)
