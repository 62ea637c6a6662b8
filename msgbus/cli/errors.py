"""What an error means for whoever runs a command: one line, and an exit code."""

from __future__ import annotations

from enum import IntEnum

from msgbus.exceptions import (
    CapabilityMissing,
    ConfigurationError,
    DriverLoadFailure,
    InvalidTarget,
    InvalidTransportURL,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    OutcomeUnknown,
    RemoteError,
    RPCDispatcherError,
    RPCVersionCapError,
    SerializationError,
    TransportBlocked,
    TransportUnavailable,
)


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
  1  the server answered with an error
  2  wrong usage: an argument, an option, the configuration
  3  no server listens at the target
  4  no answer in time, or the server fell silent
  5  the message system is away, or takes no messages
  6  the outcome is unknown: it may or may not have run"""
"""For --help."""

_CODES: list[tuple[tuple[type[BaseException], ...], Code]] = [
    ((RemoteError, RPCDispatcherError), Code.REMOTE),
    ((OutcomeUnknown,), Code.UNKNOWN),
    ((MessageUndeliverable,), Code.NO_SERVER),
    ((MessagingTimeout,), Code.TIMEOUT),
    (
        (
            CapabilityMissing,
            ConfigurationError,
            DriverLoadFailure,
            InvalidTarget,
            InvalidTransportURL,
            MessageTooLarge,
            RPCVersionCapError,
            SerializationError,
        ),
        Code.USAGE,
    ),
]


def code_of(exc: BaseException) -> Code:
    """The exit code for an error."""
    if _is_remote(exc):
        return Code.REMOTE
    if isinstance(exc, TransportUnavailable | TransportBlocked):
        return Code.UNKNOWN if exc.maybe_delivered else Code.AWAY
    for classes, code in _CODES:
        if isinstance(exc, classes):
            return code
    return Code.UNEXPECTED


def line_of(exc: BaseException) -> str:
    """One line that says what went wrong."""
    if isinstance(exc, RemoteError):  # its text goes on with the remote traceback
        text = f"the server raised {exc.exc_type}: {exc.value}"
    elif _is_remote(exc) and not isinstance(exc, RPCDispatcherError):
        text = f"the server raised {type(exc).__name__}: {exc}"
    elif isinstance(exc, MessagingException):
        text = f"{exc}"
    else:
        text = f"{type(exc).__name__}: {exc}"
    return " ".join(text.split())


def _is_remote(exc: BaseException) -> bool:
    """Whether it was raised on the server and made again here: its class alone does not tell."""
    return any(note.startswith("Remote traceback:") for note in getattr(exc, "__notes__", ()))
