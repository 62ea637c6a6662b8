"""Exceptions that cross the wire: how one is written, and which may be rebuilt on the other side."""

from __future__ import annotations

import builtins
import importlib
import json
from collections.abc import Collection
from typing import Any

import msgspec

from msgbus.exceptions import RemoteError
from msgbus.foreign import get_logger, name_of, text_of, traceback_of

LOG = get_logger(__name__)

_OURS = "msgbus.exceptions"
_NEVER = (
    "StopIteration",
    "StopAsyncIteration",
)  # To whoever iterates or awaits, they mean something else than an error.
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

    Arguments of the exception that JSON does not have travel as their `repr`. Whatever an exception carries, and
    whatever its own methods raise, the caller is told of it.
    """
    args, kwargs = _arguments(exc)
    failure = {
        "class": name_of(type(exc)).removesuffix(_SUFFIX),
        "module": _module_of(type(exc)).removesuffix(_SUFFIX),
        "message": text_of(exc),
        "tb": traceback_of(exc),
        "args": [_plain(arg) for arg in args],
        "kwargs": {key: _plain(value) for key, value in kwargs.items() if isinstance(key, str)},
    }
    # A file name that is no UTF-8, for one, holds code points that cannot be written: they become question marks.
    return json.dumps(failure, ensure_ascii=False).encode("utf-8", "replace").decode()


def _arguments(exc: BaseException) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    try:
        kwargs = getattr(exc, "kwargs", None)
        # An OSError keeps its file names out of `args`.
        args = OSError.__reduce__(exc)[1] if isinstance(exc, OSError) else exc.args
        return tuple(args), dict(kwargs) if isinstance(kwargs, dict) else {}
    except BaseException:  # a property of somebody else's may raise anything
        return (), {}


def _module_of(cls: type) -> str:
    try:
        return str.__str__(cls.__module__)
    except BaseException:  # likewise
        return ""


def _plain(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except BaseException:  # likewise
        try:
            return repr(value)
        except BaseException:  # likewise
            return f"<unprintable {name_of(type(value))}>"
    return value


def rebuild_failure(text: str, allowed_modules: Collection[str]) -> Exception:
    """Make the exception that a reply's ``failure`` tells of.

    Built-in exceptions, msgbus's own, and those of `allowed_modules` are made again as themselves, with the remote
    traceback as a note; a module is imported only if it is listed. All others, and what cannot be made from its
    arguments, become a `RemoteError`.
    """
    try:
        failure = msgspec.json.decode(text, type=_Failure)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return RemoteError("unreadable failure", str(exc))
    name = failure.class_.removesuffix(_SUFFIX)
    module = failure.module.removesuffix(_SUFFIX)
    if module == "exceptions":  # where Python 2 kept what builtins holds now
        module = builtins.__name__
    if module in (builtins.__name__, _OURS) or module in allowed_modules:
        try:
            cls = getattr(importlib.import_module(module), name)
            if isinstance(cls, type) and issubclass(cls, Exception) and cls.__module__ == module and name not in _NEVER:
                return _with_note(cls(*failure.args, **failure.kwargs), failure.tb)
        except Exception as exc:  # an import or a constructor may raise anything; the caller still gets an error
            LOG.debug("%s.%s cannot be made again: %r", module, name, exc)
    return _with_note(RemoteError(name, failure.message, failure.tb), failure.tb)


def _with_note(exc: Exception, tb: list[str]) -> Exception:
    if tb:
        exc.add_note("Remote traceback:\n" + "".join(tb).rstrip())
    return exc
