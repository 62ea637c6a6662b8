"""Exceptions that cross the wire: how one is written, and which may be rebuilt on the other side."""

from __future__ import annotations

import builtins
import importlib
import json
import logging
import traceback
from collections.abc import Collection
from typing import Any

import msgspec

from msgbus.exceptions import RemoteError

LOG = logging.getLogger(__name__)

_OURS = "msgbus.exceptions"
_SUFFIX = "_Remote"  # How older peers mark an exception that came over more than one hop.


class _Failure(msgspec.Struct):
    """The keys that oslo.messaging gives a failure."""

    class_: str = msgspec.field(default="", name="class")
    module: str = ""
    message: str = ""
    tb: list[str] = []
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


def serialize_failure(exc: BaseException) -> str:
    """Write an exception as the JSON text that travels in a reply's ``failure``.

    Arguments of the exception that JSON does not have travel as their `repr`.
    """
    kwargs = getattr(exc, "kwargs", None)
    failure = {
        "class": type(exc).__name__.removesuffix(_SUFFIX),
        "module": type(exc).__module__.removesuffix(_SUFFIX),
        "message": _text(exc),
        "tb": traceback.format_exception(exc),
        "args": list(exc.args),
        "kwargs": kwargs if isinstance(kwargs, dict) else {},
    }
    try:
        return msgspec.json.encode(failure).decode()
    except Exception:  # whatever an exception carries, the caller has to be told of it
        failure["args"] = [_plain(arg) for arg in exc.args]
        failure["kwargs"] = {}
        return json.dumps(failure)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as error:  # a __str__ of somebody else's may raise anything
        return f"<unprintable {type(exc).__name__}: {type(error).__name__}>"


def _plain(value: object) -> object:
    if isinstance(value, str | int | float | bool | None):
        return value
    try:
        return repr(value)
    except Exception:  # likewise
        return f"<unprintable {type(value).__name__}>"


def rebuild_failure(text: str, allowed_modules: Collection[str]) -> Exception:
    """Make the exception that a reply's ``failure`` tells of.

    Built-in exceptions, msgbus's own, and those of `allowed_modules` are made again as themselves, with the remote
    traceback as a note; a module is imported only if it is listed. All others, and what cannot be made from its
    arguments, become a `RemoteError`.
    """
    try:
        failure = msgspec.json.decode(text, type=_Failure)
    except msgspec.MsgspecError as exc:
        return RemoteError("unreadable failure", str(exc))
    name = failure.class_.removesuffix(_SUFFIX)
    module = failure.module.removesuffix(_SUFFIX)
    if module == "exceptions":  # where Python 2 kept what builtins holds now
        module = builtins.__name__
    if module in (builtins.__name__, _OURS) or module in allowed_modules:
        try:
            cls = getattr(importlib.import_module(module), name)
            if isinstance(cls, type) and issubclass(cls, Exception) and cls.__module__ == module:
                rebuilt = cls(*failure.args, **failure.kwargs)
                if failure.tb:
                    rebuilt.add_note("Remote traceback:\n" + "".join(failure.tb).rstrip())
                return rebuilt
        except Exception as exc:  # an import or a constructor may raise anything; the caller still gets an error
            LOG.debug("%s.%s cannot be made again: %r", module, name, exc)
    return RemoteError(name, failure.message, failure.tb)
