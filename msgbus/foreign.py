"""Makes foreign text and exceptions safe for a log or a terminal.

A peer chooses its method names, ids and texts. Written as they come, a newline in one forges a line of the log, and an
escape sequence steers the terminal. An exception's own methods may raise anything, `SystemExit` too. The functions
here never raise.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

LIMIT = 1000
"""The most characters of one foreign text that are shown."""
MAX_LINES = 400
"""The most lines of a traceback that are shown."""
_INDENT = "    "


def printable(text: str, limit: int = LIMIT) -> str:
    r"""One line that can be shown: what is not printable is escaped, as ``\n`` and ``\x1b`` are.

    These are control characters, those that change the direction of writing, line separators and lone surrogates. What
    is longer than `limit` characters ends with an ellipsis.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    # An escape has two or more characters; the limit is for the escaped text.
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def printable_lines(text: str, limit: int = LIMIT) -> str:
    """Several lines that can be shown: newlines stay, and each line is treated as by `printable`.

    Of more than `MAX_LINES` lines, those in the middle are left out.
    """
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - MAX_LINES} lines are left out …", *lines[-half:]]
    return "\n".join(printable(line, limit) for line in lines)


def printable_json(line: str) -> str:
    """The same JSON in text that can be shown: unprintable characters in its strings are escaped."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else _json_escape(char) for char in line)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def name_of(cls: type) -> str:
    """A class's name."""
    try:
        return str.__str__(cls.__name__)
    except BaseException:  # A metaclass may do anything.
        return "object"


def text_of(value: object, write: Callable[[Any], str] = str) -> str:
    """`str` of a value (or `repr`, with that as `write`), or a substitute if that raises.

    The text is not escaped: see `printable`.
    """
    try:
        return str.__str__(write(value))
    except BaseException as exc:  # SystemExit too: the caller has to go on.
        return f"<unprintable {name_of(type(value))}: {name_of(type(exc))}>"


def traceback_of(exc: BaseException) -> list[str]:
    """The lines of an exception's traceback, from `traceback.format_exception`, or its text if that raises."""
    try:
        return traceback.format_exception(exc)
    except BaseException:  # Its notes and causes may be properties, which raise anything.
        return [f"{name_of(type(exc))}: {text_of(exc)}\n"]


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger that escapes foreign control characters, and never raises.

    Each argument of a line is shown as by `printable`. A traceback is indented, so that no line of it looks like one of
    the log's own. An exception of a logging handler is noted on stderr and dropped (on the main thread only an
    `Exception`: any other may come from a signal).
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, None)
        # Asked for each message: so the adapter is left out.
        self.isEnabledFor = logger.isEnabledFor  # type: ignore[method-assign]

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As `logging.Logger.log`; arguments are given one by one, not as a dict."""
        if not self.logger.isEnabledFor(level):
            return
        try:
            self.logger.log(level, msg, *map(_shown, args), stacklevel=2, **kwargs)
        except BaseException as exc:
            if not isinstance(exc, Exception) and threading.current_thread() is threading.main_thread():
                raise
            _say_lost(self.logger.name, exc)


def get_logger(name: str) -> Log:
    """The logger of a module, as `logging.getLogger` returns it, wrapped in a `Log`."""
    logger = logging.getLogger(name)
    logger.addFilter(_write_traceback)
    return Log(logger)


def _write_traceback(record: logging.LogRecord) -> bool:
    """Write a record's traceback, before a formatter does in its own way."""
    if record.exc_info and isinstance(record.exc_info[1], BaseException):
        lines: Iterable[str] = printable_lines("".join(traceback_of(record.exc_info[1])).rstrip("\n")).split("\n")
        record.exc_text = "\n".join(_INDENT + line for line in lines)
    return True


def _say_lost(name: str, exc: BaseException) -> None:
    try:
        if logging.raiseExceptions:
            sys.stderr.write(f"a line of the logger {name} was lost: a handler raised {name_of(type(exc))}\n")
    except Exception:  # noqa: S110 - there is nowhere left to say it
        pass


class _Shown:
    """An argument of a log line."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(text_of(self._value))

    def __repr__(self) -> str:
        return printable(text_of(self._value, repr))


def _shown(arg: object) -> object:
    return arg if isinstance(arg, int | float) else _Shown(arg)
