"""Escapes control characters in log records, which quote registries, upstreams and clients.

Rule: every log line of the gateway passes here, before any handler or formatter: records of the
loggers `gateway` and `gunicorn` are escaped when they are created. A line end in a value would
forge a log line; an escape sequence would reach the reader's terminal. Line ends of a format
string, of a traceback and between the mistakes of a `ConfigError` stay.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from gateway.errors import ConfigError, one_line

_OURS = ("gateway", "gunicorn")


def install() -> None:
    """Escape the records of our loggers from now on. Once is enough; more does nothing."""
    made = logging.getLogRecordFactory()
    if not isinstance(made, _Escaping):
        logging.setLogRecordFactory(_Escaping(made))


class _Escaping:
    """A factory of log records in front of the one that was there before."""

    def __init__(self, made: Callable[..., logging.LogRecord]) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._made(*args, **kwargs)
        if record.name.partition(".")[0] in _OURS:
            _escape(record)
        return record


def _escape(record: logging.LogRecord) -> None:
    if isinstance(record.args, tuple):
        record.args = tuple(map(_printable, record.args))
    elif record.args:
        record.args = {key: _printable(value) for key, value in record.args.items()}
    if isinstance(record.msg, str):
        record.msg = _lines(record.msg)
    if record.exc_info and record.exc_info[1] is not None:
        # A formatter takes this text in place of making its own.
        record.exc_text = _traceback(record.exc_info[1])


def _traceback(error: BaseException) -> str:
    """A traceback in which each error's own text is one line."""
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    met: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in met:
        met.add(id(chain))
        if not isinstance(chain, ConfigError):
            text = text.replace(str(chain), one_line(str(chain))) if "\n" in str(chain) else text
        chain = chain.__cause__ or chain.__context__
    return _lines(text)


def _printable(value: Any) -> Any:
    """A value as it is, or its text with control characters escaped."""
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return value
    return _lines(text) if isinstance(value, ConfigError) else one_line(text)


def _lines(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(one_line, text.split("\n")))
