"""Control characters of registries, upstreams and clients reach no log line."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from gateway.errors import ConfigError, Mistake
from gateway.telemetry import log_lines

FORGED = "::1%\x1b[31m\n[2026-01-01 00:00:00 +0000] [1] [CRITICAL] FORGED\r\x85\u2028\u202e"
SHOWN = r"::1%\x1b[31m\n[2026-01-01 00:00:00 +0000] [1] [CRITICAL] FORGED\r\x85\u2028\u202e"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a handler of anybody's writes for the gateway's loggers."""
    before = logging.getLogRecordFactory()
    log_lines.install()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("gateway", "gunicorn.error", "other")]
    for logger in loggers:
        logger.addHandler(handler)
    yield out
    for logger in loggers:
        logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize("name", ["gateway", "gateway.providers", "gunicorn.error"])
def test_values_are_one_line(name: str, lines: io.StringIO) -> None:
    logging.getLogger(name).error("upstream %s: not an endpoint: %s", "u", FORGED)
    assert lines.getvalue() == f"upstream u: not an endpoint: {SHOWN}\n"


def test_other_values_keep_their_kind(lines: io.StringIO) -> None:
    log = logging.getLogger("gateway.x")
    log.error("%d %s %r %.1f", 5, "é ü", b"\x1b", 0.25)
    log.error("%(a)s %(b)d", {"a": FORGED, "b": 1})
    log.error("%s", OSError(5, FORGED))
    first, second, third = lines.getvalue().splitlines()
    assert first == r"5 é ü b'\x1b' 0.2"
    assert second == f"{SHOWN} 1"
    assert SHOWN.split(" ")[0] in third


def test_lines_of_our_own_stay_apart(lines: io.StringIO) -> None:
    mistakes = [Mistake(1, 1, "a", "first"), Mistake(2, 1, "b", FORGED)]
    logging.getLogger("gateway.config").error("%s\nThe configuration stays.", ConfigError.found("f", mistakes))
    assert lines.getvalue().split("\n") == ["f:1:1: a: first", f"f:2:1: b: {SHOWN}", "The configuration stays.", ""]


def test_texts_without_values(lines: io.StringIO) -> None:
    logging.getLogger("gateway").error("one\x1b[31m\ntwo")
    assert lines.getvalue() == "one\\x1b[31m\ntwo\n"


def test_tracebacks(lines: io.StringIO) -> None:
    try:
        try:
            raise ValueError(FORGED)
        except ValueError as error:
            raise RuntimeError("x\ny") from error
    except RuntimeError:
        logging.getLogger("gateway").exception("failed")
    told = lines.getvalue()
    assert f"ValueError: {SHOWN}\n" in told
    assert "RuntimeError: x\\ny\n" in told
    assert "Traceback (most recent call last):\n" in told


def test_lines_of_others_are_left_alone(lines: io.StringIO) -> None:
    logging.getLogger("other").error("%s", "a\nb")
    assert lines.getvalue() == "a\nb\n"


def test_installing_twice_is_once(lines: io.StringIO) -> None:
    first = logging.getLogRecordFactory()
    log_lines.install()
    assert logging.getLogRecordFactory() is first
