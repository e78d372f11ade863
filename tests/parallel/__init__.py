"""The whole suite in several pytest processes at once: `python -m tests.parallel [--long]`, run by `scripts/test`."""
