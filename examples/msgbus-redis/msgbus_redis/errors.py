"""What Redis, redis-py and the operating system say, in words that say what to do."""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from msgbus.exceptions import MessageDeliveryFailure, MessagingException, TransportBlocked, TransportUnavailable

PASSING: Final = ("BUSY ", "LOADING", "MASTERDOWN", "NOREPLICAS")
"""How Redis begins when it takes nothing for a while, and has taken no part of what it was given."""


class Unsuitable(Exception):
    """This Redis answers, and messages would not be safe there or cannot be handled: the text says why."""


class Replica(Exception):
    """It is a replica, which takes no messages."""


def explain(error: BaseException) -> tuple[str, bool] | None:
    """What Redis says and what to check, and whether the next try would end in the same way; None: it is not Redis."""
    text = reason(error)
    if isinstance(error, Unsuitable):
        return text, True
    if isinstance(error, AuthenticationError | NoPermissionError) or text.startswith(("NOAUTH", "WRONGPASS")):
        return f"{text}; check user, password and the user's rights (ACL)", True
    if "max number of clients" in text:
        return f"{text}; raise Redis's maxclients, or connect less", False
    if isinstance(error, ReadOnlyError | Replica):
        return f"{text}; name the master, or all hosts one of which is the master", False
    if isinstance(error, NoScriptError):
        return f"{text}; somebody has removed the scripts, which come back with the connection", False
    if isinstance(error, BusyLoadingError):
        return f"{text}; it serves when that is done", False
    return None


def cause_of(error: BaseException) -> BaseException:
    """The error of the operating system or of TLS. redis-py puts the host in front of it, which the shell does too."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen or error


def reason(error: BaseException) -> str:
    """What happened, in one line."""
    cause = cause_of(error)
    return " ".join(str(cause).split()) or f"it did not answer in time ({type(cause).__name__})"


def refusal(error: ResponseError, name: str) -> tuple[MessagingException, bool]:
    """The error of a message that Redis has refused; and whether it may be offered again.

    Redis has taken no part of it: a script fails at its first write or not at all.
    """
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return TransportBlocked(f"{name} is out of memory: raise maxmemory, or consume what waits ({text})"), True
    if text.startswith("MISCONF"):
        return TransportBlocked(f"{name} cannot write to its disk: look for space, and in its log ({text})"), True
    if isinstance(error, NoScriptError | ReadOnlyError) or text.startswith(PASSING):
        return TransportUnavailable(f"{name} takes no messages at present: {text}"), True
    return MessageDeliveryFailure(f"{name} refuses the message: {text}"), False
