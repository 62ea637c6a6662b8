"""Text and exceptions of others, made fit for a log or a terminal.

A peer chooses its method names, ids and texts. Written as they come, a newline in one forges a line of the log, and an
escape sequence steers the terminal. An exception's own methods may raise anything, `SystemExit` too. Nothing here does.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

LIMIT = 1000
"""Characters of one foreign text that are shown at the most."""
MAX_LINES = 400
"""Lines of a traceback that are shown at the most."""
_INDENT = "    "


def printable(text: str, limit: int = LIMIT) -> str:
    r"""One line that can be shown: what is not printable is escaped, as ``\n`` and ``\x1b`` are.

    That are control characters, those that change the direction of writing, line separators and lone surrogates. What
    is longer than `limit` characters ends with an ellipsis.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    # Two or more characters for one: the limit is for what is shown.
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def printable_lines(text: str, limit: int = LIMIT) -> str:
    """Several lines that can be shown: newlines stay, and each line is as of `printable`.

    Of more than `MAX_LINES` lines, those in the middle are left out.
    """
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - MAX_LINES} lines are left out …", *lines[-half:]]
    return "\n".join(printable(line, limit) for line in lines)


def printable_json(line: str) -> str:
    """JSON text that says the same, and can be shown: what is not printable in its strings is escaped."""
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
    """`str` of a value (or `repr`, with that as `write`), or what can be said instead where that raises.

    The text is not escaped: see `printable`.
    """
    try:
        return str.__str__(write(value))
    except BaseException as exc:  # SystemExit too: whoever writes about an exception has something to finish.
        return f"<unprintable {name_of(type(value))}: {name_of(type(exc))}>"


def traceback_of(exc: BaseException) -> list[str]:
    """The lines of an exception's traceback, as of `traceback.format_exception`, or its text where that raises."""
    try:
        return traceback.format_exception(exc)
    except BaseException:  # Its notes and causes may be properties, which raise anything.
        return [f"{name_of(type(exc))}: {text_of(exc)}\n"]


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines hold no control characters of others, and which never raises.

    Each argument of a line is shown as of `printable`. A traceback is indented, so that no line of it looks like one of
    the log's own. What a handler raises ends here (on the main thread only an `Exception`: what else may come there is
    a signal's), with a word on stderr.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As of `logging.Logger.log`; arguments are given one by one, not as a dict."""
        if not self.logger.isEnabledFor(level):
            return
        try:
            self.logger.log(level, msg, *map(_shown, args), stacklevel=2, **kwargs)
        except BaseException as exc:
            if not isinstance(exc, Exception) and threading.current_thread() is threading.main_thread():
                raise
            _say_lost(self.logger.name, exc)


def get_logger(name: str) -> Log:
    """The logger of a module: as of `logging.getLogger`, but see `Log`."""
    logger = logging.getLogger(name)
    logger.addFilter(_write_traceback)
    return Log(logger, None)


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
