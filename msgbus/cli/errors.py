"""The exit code of each error, and its text in one line."""

from __future__ import annotations

import errno
import json
import re
from enum import IntEnum
from typing import Any

from msgbus import exceptions as ex
from msgbus.foreign import text_of


class Code(IntEnum):
    """The exit codes."""

    OK = 0
    REMOTE = 1
    UNEXPECTED = 1
    USAGE = 2
    NO_SERVER = 3
    TIMEOUT = 4
    AWAY = 5
    UNKNOWN = 6


EXIT_CODES = """\
  0  all went well
  1  a server answered with an error; a check failed
  2  wrong usage: an argument, an option, the configuration; no such dead letter
  3  no server listens, or none answers; with --strict: one did not answer; msgbus stuck: something is stuck
  4  no answer in time, or the server fell silent
  5  the message system is away, or accepts no messages
  6  the outcome is unknown: it may or may not have run
  130  interrupted: Ctrl-C
  141  the reader of the output has closed it"""
"""For --help."""

_CODES: dict[type[BaseException], Code] = {
    ex.RemoteError: Code.REMOTE,
    ex.RPCDispatcherError: Code.REMOTE,
    ex.OutcomeUnknown: Code.UNKNOWN,
    ex.MessageUndeliverable: Code.NO_SERVER,
    ex.MessagingTimeout: Code.TIMEOUT,
    ex.TransportUnavailable: Code.AWAY,
    ex.TransportBlocked: Code.AWAY,
    ex.CapabilityMissing: Code.USAGE,
    ex.ConfigurationError: Code.USAGE,
    ex.DriverLoadFailure: Code.USAGE,
    ex.InvalidTarget: Code.USAGE,
    ex.InvalidTransportURL: Code.USAGE,
    ex.MessageTooLarge: Code.USAGE,
    ex.RPCVersionCapError: Code.USAGE,
    ex.SerializationError: Code.USAGE,
}

_CARRIED = ("exc_type", "value", "maybe_delivered", "driver", "method", "version", "version_cap")
"""Attributes of our errors that are shown as JSON."""


def code_of(exc: BaseException) -> Code:
    """The exit code for an error."""
    if _is_remote(exc):
        return Code.REMOTE
    if isinstance(exc, ex.TransportUnavailable | ex.TransportBlocked) and exc.maybe_delivered:
        return Code.UNKNOWN
    return next((_CODES[cls] for cls in type(exc).__mro__ if cls in _CODES), Code.UNEXPECTED)


def line_of(exc: BaseException) -> str:
    """One line that says what went wrong."""
    if isinstance(exc, ex.RemoteError):  # its text goes on with the remote traceback
        text = f"the server raised {text_of(exc.exc_type)}: {text_of(exc.value)}"
    elif _is_remote(exc) and not isinstance(exc, ex.RPCDispatcherError):
        text = f"the server raised {type(exc).__name__}: {text_of(exc)}"
    elif isinstance(exc, ex.ConfigurationError):
        text = _plain(text_of(exc))
    elif isinstance(exc, ex.MessagingException):
        text = text_of(exc)
    else:
        text = f"{type(exc).__name__}: {text_of(exc)}"
    return " ".join(text.split())


def is_named(exc: BaseException) -> bool:
    """Whether it is an error of msgbus itself, and not what a method raised."""
    if isinstance(exc, ex.RPCDispatcherError):
        return True
    return isinstance(exc, ex.MessagingException) and not isinstance(exc, ex.RemoteError) and not _is_remote(exc)


def is_end_of_output(exc: BaseException) -> bool:
    """Whether it means that nobody reads this command's output any more."""
    return isinstance(exc, OSError) and exc.errno == errno.EPIPE and not _is_remote(exc)


def _plain(text: str) -> str:
    """Put in plain words what oslo.config and Python say about a wrong value."""
    text = re.sub(r"LocationInfo\(location=<[^>]*>, detail=(['\"])(.*?)\1\)", r"\2", text)
    text = re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", text)
    return re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", text)


def details_of(exc: BaseException) -> dict[str, Any]:
    """An error as plain data.

    Returns:
        error (the name of its class), message (one line), exit_code, remote (whether the server raised it), and the
        error's own attributes: for example exc_type and value of a `RemoteError`.
    """
    found = {
        "error": type(exc).__name__,
        "message": line_of(exc),
        "exit_code": code_of(exc).value,
        "remote": isinstance(exc, ex.RemoteError) or _is_remote(exc),
    }
    if isinstance(exc, ex.MessagingException):
        found.update({name: getattr(exc, name) for name in _CARRIED if hasattr(exc, name)})
    return found


def json_line(details: dict[str, Any]) -> str:
    """Write what `details_of` returns as one line of JSON. What JSON lacks is written as text."""
    return json.dumps({name: _or_text(value) for name, value in details.items()}, default=text_of)


def _or_text(value: Any) -> Any:
    """The value, or its text if it holds NaN, itself, or a dict with keys that are no strings."""
    try:
        json.dumps(value, default=text_of, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return text_of(value)
    return value


def _is_remote(exc: BaseException) -> bool:
    """Whether it was raised on the server and rebuilt here, which cannot be seen from its class."""
    return any(note.startswith("Remote traceback:") for note in getattr(exc, "__notes__", ()))
