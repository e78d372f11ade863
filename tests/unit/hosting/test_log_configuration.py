"""Where the gateway's own lines go, by gunicorn's own `Logger` and real log configurations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd

from gateway.hosting import log_configuration

NAMES = ("", "gateway", "gateway.upstreams.store", "gunicorn.error", "gunicorn.access")


class Kept(logging.Handler):
    """Remembers lines, by the name of each handler."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((str(self.name), record.getMessage()))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loggers as in a new process, and as they were afterwards."""
    before = [(log, list(log.handlers), log.level, log.propagate) for log in map(logging.getLogger, NAMES)]
    for log, *_ in before:
        log.handlers, log.propagate = [], True
        log.setLevel(logging.WARNING if log is logging.root else logging.NOTSET)
    monkeypatch.setattr(log_configuration, "_last", ([], logging.NOTSET))
    monkeypatch.setattr(Kept, "seen", [])
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def configuration(root: str = "", **loggers: dict[str, Any]) -> dict[str, Any]:
    """For dictConfig: the root's handler, and loggers."""
    names = {name for each in loggers.values() for name in each.get("handlers", ())} | ({root} if root else set())
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {name: {"()": lambda name=name: Kept(name)} for name in names},
        "root": {"level": "INFO", "handlers": [root] if root else []},
        "loggers": {name.replace("_", "."): each for name, each in loggers.items()},
    }


def gunicorns(given: dict[str, Any] | None = None, **settings: Any) -> Logger:
    cfg = Config()
    for name, value in {"logconfig_dict": given or {}, **settings}.items():
        cfg.set(name, value)
    return Logger(cfg)


def went(text: str = "a line", level: int = logging.INFO) -> list[str]:
    """The handlers that a line of the gateway came to."""
    Kept.seen.clear()
    logging.getLogger("gateway.upstreams.store").log(level, text)
    return [name for name, _ in Kept.seen]


ERROR = {"level": "INFO", "handlers": ["error"], "propagate": False}
PASSED_ON = {"level": "INFO", "handlers": [], "propagate": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (configuration(gunicorn_error=ERROR), ["error"]),
        (configuration("root", gunicorn_error=ERROR), ["error"]),
        (configuration("root", gunicorn_error={**ERROR, "propagate": True}), ["error", "root"]),
        (configuration("root", gunicorn_error=PASSED_ON), ["root"]),
        # gunicorn keeps the handler that it made itself.
        (configuration("root"), ["root"]),
        (configuration("root", gateway={"handlers": ["ours"], "level": "INFO", "propagate": False}), ["ours"]),
        (configuration("root", gunicorn_error=ERROR, gateway={"handlers": ["ours"]}), ["ours", "root"]),
    ],
    ids=["error", "error-not-root", "both", "passed-on", "root-alone", "ours", "ours-and-root"],
)
def test_own_lines_go_where_the_configuration_sends_them(given: dict[str, Any], expected: list[str]) -> None:
    log = gunicorns(given)
    for _ in range(3):  # at the start, in a worker, at a reload
        log_configuration.follow(log)
        assert went() == expected
        log.setup(log.cfg)
        log_configuration.follow(log)
        assert went() == expected


def test_a_reload_may_bring_another_configuration() -> None:
    log = gunicorns(configuration(gunicorn_error=ERROR))
    log_configuration.follow(log)
    for given, expected in (
        (configuration("root", gunicorn_error=PASSED_ON), ["root"]),
        (configuration(gunicorn_error=ERROR), ["error"]),
        (configuration(gunicorn_error=ERROR, gateway={"handlers": ["ours"], "propagate": False}), ["ours"]),
    ):
        log.cfg.set("logconfig_dict", given)
        log.setup(log.cfg)
        log_configuration.follow(log)
        assert went() == expected
        # gunicorn's own are where they were told to be.
        Kept.seen.clear()
        log.error_log.info("theirs")
        assert [name for name, _ in Kept.seen] == (["root"] if expected == ["root"] else ["error"])


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (configuration("root"), logging.INFO),
        (configuration("root", gunicorn_error={**PASSED_ON, "level": "ERROR"}), logging.ERROR),
        (configuration("root", gunicorn_error=PASSED_ON, gateway={"level": "DEBUG"}), logging.DEBUG),
    ],
)
def test_the_level_is_that_of_gunicorns_log_unless_ours_has_one(given: dict[str, Any], level: int) -> None:
    log = gunicorns(given)
    for _ in range(2):
        log_configuration.follow(log)
        assert logging.getLogger("gateway").level == level
        assert not went(level=level - 1)
        assert went(level=level) == ["root"]


def test_without_a_configuration_they_go_with_gunicorns() -> None:
    log = gunicorns(loglevel="warning")
    log_configuration.follow(log)
    ours = logging.getLogger("gateway")
    assert ours.handlers == log.error_log.handlers
    assert (ours.propagate, ours.level) == (False, logging.WARNING)
    # Another list: what a configuration takes from ours is not taken from theirs.
    assert ours.handlers is not log.error_log.handlers


@pytest.mark.parametrize("kind", [Logger, Statsd])
def test_no_configuration_switches_gunicorns_access_log_on(kind: type[Logger]) -> None:
    cfg = Config()
    cfg.set("logconfig_dict", configuration(gunicorn_access={"handlers": ["access"], "level": "INFO"}))
    log = kind(cfg)
    assert log_configuration.silence(log)
    assert not log.access_log_enabled
    assert not log_configuration.silence(log)
    log.setup(cfg)
    assert log_configuration.silence(log)
