"""Python imports this first in every process whose PYTHONPATH names this folder: those that tests start."""

import os

if "TESTS_PATTERNS" in os.environ:
    import pattern_recorder

    pattern_recorder.record(os.environ["TESTS_PATTERNS"])
